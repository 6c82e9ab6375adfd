"""Labelled responses as a process reward model reads them, and everything that can be wrong with them.

T tokens of an input, K steps of a response
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import require

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.engine.prm import Card, Layout
    from reasonrl.eval.prm.labelled import Responses
    from reasonrl.eval.prm.train import TrainKnobs

PAPER_TOKENS = (" ки", " к", " и")
ADDED_TOKENS = ("<step>", "<good>", "<bad>")


@dataclass(frozen=True, eq=False)
class Example:
    """One response: input ids (T,), positions (K,) of its tags and their targets (K,), share of the good token."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    targets: NDArray[np.float32]
    row: int


@dataclass(frozen=True, eq=False)
class Examples:
    """What is trained on and what is held out."""

    path: str
    tokenizer: Any
    card: Card
    layout: Layout
    rows: Responses
    train: list[Example]
    held_out: list[Example]
    added: tuple[int, ...]
    cut_tokens: int


class Preparation:
    """Everything that can be wrong with the data is found here, before a model is loaded."""

    def __init__(self, knobs: TrainKnobs, path: str, rows: Responses, console: Console) -> None:
        self.knobs, self.path, self.rows, self.console = knobs, path, rows, console

    def examples(self) -> Examples:
        """Raises ConfigError."""
        from transformers import AutoTokenizer

        from reasonrl.engine.prm import Card, Layout
        from reasonrl.engine.prm.card import vocabulary_sha256
        from reasonrl.eval.prm.labelled import steps

        knobs, rows = self.knobs, self.rows
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        policy = self._policy(tokenizer)
        vocabulary, size = vocabulary_sha256(tokenizer), len(tokenizer)
        ids = choose_tokens(knobs, tokenizer)
        card = Card(
            *ids,
            tokens=tuple(tokenizer.convert_ids_to_tokens(list(ids))),  # type: ignore[arg-type]
            input=knobs.input,  # type: ignore[arg-type]
            loss=knobs.loss,  # type: ignore[arg-type]
            labels=knobs.labels,  # type: ignore[arg-type]
            rollouts=int(rows.settings.get("rollouts", 0)),
            vocabulary=vocabulary,
            data=dict(rows.settings),
        )
        limit = min(knobs.max_tokens, self._context())
        made, cut, lost = [], 0, 0
        try:
            layout = Layout(card, tokenizer, policy)
            for number, row in enumerate(rows.rows):
                labels = row.hard if knobs.labels == "hard" else row.soft
                given, positions = layout(steps(row))
                kept = positions < limit
                cut += max(given.size - limit, 0)
                if kept.any():
                    made.append(Example(given[:limit], positions[kept], labels[kept].astype(np.float32), number))
                else:
                    lost += 1
        except ValueError as error:
            raise ConfigError(f"{rows.path}: {error}") from error
        self._refuse(made, lost, limit)
        if layout.same:
            self._refuse_foreign_ids(size)
        train, held_out = self._split(made)
        self._tell(train, held_out, cut, lost, limit, card)
        added = tuple(i for i in ids if i >= size)
        return Examples(self.path, tokenizer, card, layout, rows, train, held_out, added, cut)

    def _policy(self, tokenizer: Any) -> Any:
        """The tokenizer that the responses were sampled with, if it is another one; else None. Raises ConfigError."""
        from transformers import AutoTokenizer

        from reasonrl.config import package_path
        from reasonrl.data.prefixes import tokenizer_fingerprint

        made_by, path = self.rows.settings.get("tokenizer"), self.rows.about.get("path")
        if made_by in (None, tokenizer_fingerprint(tokenizer)):
            return None
        try:
            policy = AutoTokenizer.from_pretrained(package_path(str(path)))
        except Exception as error:  # the libraries behind it raise a dozen kinds
            raise ConfigError(
                f"{self.rows.path} was sampled with another tokenizer than that of {self.knobs.model}, and that of {path} "
                "cannot be loaded to translate: train from a model of the policy's own family"
            ) from error
        require(
            tokenizer_fingerprint(policy) == made_by,
            f"{self.rows.path} was sampled with another tokenizer than {path} has now: restore it, or train from a model of "
            "the policy's own family",
        )
        return policy

    def _context(self) -> int:
        from reasonrl.models import cached_snapshot, context, facts

        folder = Path(self.path) if Path(self.path).is_dir() else cached_snapshot(self.path)
        limit = context(facts(folder)) if folder else None
        return limit or sys.maxsize

    def _refuse_foreign_ids(self, size: int) -> None:
        highest = max((int(row.response_ids.max()) for row in self.rows.rows if len(row.response_ids)), default=0)
        require(
            highest < size,
            f"{self.rows.path} has token {highest}, the tokenizer of {self.knobs.model} has {size}: train from a model with "
            "the vocabulary of the policy that wrote the responses",
        )

    def _refuse(self, made: Sequence[Example], lost: int, limit: int) -> None:
        require(
            bool(made),
            f"{self.rows.path}: none of its {len(self.rows)} responses has a step within {limit} tokens; raise max_tokens"
            if lost
            else f"{self.rows.path} has no steps to train on",
        )
        targets = np.concatenate([example.targets for example in made])
        require(
            bool((targets != targets[0]).any()),
            f"{self.rows.path}: all {targets.size} labels are {targets[0]:g}, so there is nothing to tell apart: sample "
            "problems that the policy sometimes solves and sometimes does not, or use labels=soft",
        )

    def _split(self, made: Sequence[Example]) -> tuple[list[Example], list[Example]]:
        """By problem: responses to a held-out problem are never trained on."""
        names = sorted({row.problem_id for row in self.rows.rows})
        count = round(self.knobs.val_share * len(names))
        if self.knobs.val_share > 0:
            count = min(max(count, 1), len(names) - 1)
        order = np.random.default_rng([self.knobs.seed, 1]).permutation(len(names))
        held = {names[i] for i in order[:count]}
        parts: tuple[list[Example], list[Example]] = ([], [])
        for example in made:
            parts[self.rows.rows[example.row].problem_id in held].append(example)
        require(bool(parts[0]), f"val_share={self.knobs.val_share} leaves no response to train on: lower it")
        return parts

    def _tell(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        cut: int,
        lost: int,
        limit: int,
        card: Card,
    ) -> None:
        targets = np.concatenate([example.targets for example in train])
        tokens = sum(example.ids.size for example in train)
        held = len({self.rows.rows[example.row].problem_id for example in held_out})
        self.console.print(
            f"responses   {len(train)} to train on, {len(held_out)} of {held} problems held out\n"
            f"steps       {targets.size}, {targets.size / len(train):.2f} a response; {targets.mean():.1%} of the labels "
            f"good ({self.knobs.labels})\n"
            f"tokens      {tokens}, {tokens / len(train):.1f} a response; {cut} cut at {limit}"
            + (f", {lost} responses lost all steps" if lost else "")
            + f"\ntokens of   tag {card.tokens[0]!r}, good {card.tokens[1]!r}, bad {card.tokens[2]!r} {card.ids}"
        )


# The three tokens


def one_token(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token; None when it is not."""
    known = tokenizer.get_vocab()
    if text in known:
        return int(known[text])
    # a tokenizer that puts a space before every text has " x" as the token of "x"
    for form in (text, text.strip()):
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    return None


def choose_tokens(knobs: TrainKnobs, tokenizer: Any) -> tuple[int, int, int]:
    """Ids of tag, good and bad; the tokenizer gets three more tokens where it has none. Raises ConfigError."""
    if knobs.tag is not None:
        named = {name: getattr(knobs, name) for name in ("tag", "good", "bad")}
        ids = {name: one_token(tokenizer, text) for name, text in named.items()}
        for name, text in named.items():
            count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            require(
                ids[name] is not None,
                f"{name}={text!r} is {count} tokens or unknown to this tokenizer, and must be one: choose another text, or "
                f"leave tag= good= bad= out",
            )
        require(
            len(set(ids.values())) == 3, f"tag, good and bad must be three different tokens, got {list(named.values())}"
        )
        return ids["tag"], ids["good"], ids["bad"]  # type: ignore[return-value]
    paper = [one_token(tokenizer, text) for text in PAPER_TOKENS]
    if None not in paper and len(set(paper)) == 3:
        return paper[0], paper[1], paper[2]  # type: ignore[return-value]
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    tag, good, bad = (int(tokenizer.get_vocab()[text]) for text in ADDED_TOKENS)
    return tag, good, bad
