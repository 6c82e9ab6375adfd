"""What makes a folder with a language model a process reward model (PRM): `prm.json` beside its `config.json`.

    K steps of a response, T tokens of an input

A PRM of AdaptiveStep (arXiv 2502.13943, section 3) is a causal language model that reads a question and a response with a
*tag* token after each step. Of its logits at a tag two are looked at, those of a *good* and of a *bad* token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from reasonrl.runs.files import write_text

FILE = "prm.json"
SCHEMA_VERSION = 1
WAY_OUT = "make one with `reasonrl prm train`"


@dataclass(frozen=True)
class Card:
    """How a PRM is asked, and what it was taught.

    tag, good, bad: token ids. tokens: their names in the vocabulary, compared at every start.
    input: what stands before the response: the bare question, tokenised without special tokens as in the paper, or the
    policy's own prompt ids.
    loss: `two_way` or `full_vocab`. labels: `hard` (any of `rollouts` continuations was right) or `soft` (their mean):
    a hard score predicts "still reachable", and `functional.process.he_inverse` turns it into a value.
    vocabulary: hash of the base model's vocabulary. A policy of the same one gives its token ids as they are.
    data: settings of the labelled responses, tau among them. training: settings and result of the training.
    """

    tag: int
    good: int
    bad: int
    tokens: tuple[str, str, str]
    input: Literal["question", "prompt"]
    loss: Literal["two_way", "full_vocab"]
    labels: Literal["hard", "soft"]
    rollouts: int
    vocabulary: str
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raises ValueError for values that no PRM has."""
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if len({*self.ids}) < 3 or min(self.ids) < 0 or len(self.tokens) != 3:
            raise ValueError(f"tag, good and bad must be three different tokens, got {self.tokens} with ids {self.ids}")
        for name, choices in (
            ("input", ("question", "prompt")),
            ("loss", ("two_way", "full_vocab")),
            ("labels", ("hard", "soft")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.rollouts < 0:
            raise ValueError(f"rollouts must not be negative, got {self.rollouts}")

    @property
    def ids(self) -> tuple[int, int, int]:
        """tag, good, bad."""
        return self.tag, self.good, self.bad

    def form(self) -> dict[str, Any]:
        """What its scores depend on besides the weights, and what they mean."""
        return {"ids": list(self.ids), "input": self.input, "labels": self.labels, "rollouts": self.rollouts}

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def card_from(values: Mapping[str, Any], where: str) -> Card:
    """A card from what JSON gave. Raises ValueError naming `where`."""
    try:
        if values["schema"] != SCHEMA_VERSION:
            raise ValueError(
                f"{where} has schema version {values['schema']}, this reasonrl reads {SCHEMA_VERSION}: train it again"
            )
        known = {f.name for f in fields(Card)}
        return Card(**{name: value for name, value in values.items() if name in known})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} is not the card of a process reward model ({error}); {WAY_OUT}") from error


def read_card(folder: Path) -> Card:
    """The card of a PRM's folder. Raises ValueError for a folder that has none, with the way out."""
    file = folder / FILE
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder} (here: {Path.cwd()}): give the folder of a process reward model; {WAY_OUT}"
        )
    if not file.is_file():
        raise ValueError(f"{folder} has no {FILE}, so it is not a process reward model; {WAY_OUT}")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): copy the folder again") from error
    return card_from(values, str(file))


def write_card(folder: Path, card: Card) -> None:
    """Write `prm.json` in one step."""
    write_text(folder / FILE, json.dumps(card.asdict(), indent=1, sort_keys=True) + "\n")


def require_tokens(card: Card, tokenizer: Any, where: str) -> None:
    """Raise ValueError unless the tokenizer has the card's three tokens at the card's ids."""
    found = tuple(tokenizer.convert_ids_to_tokens([int(i) for i in card.ids]))
    if found != card.tokens:
        raise ValueError(
            f"{where}: its {FILE} says tag, good and bad are {card.tokens} at {card.ids}, its tokenizer has {found} there: "
            "the tokenizer was exchanged; restore it, or train the model again"
        )


def vocabulary_sha256(tokenizer: Any) -> str:
    """Which ids mean which tokens; merges and special flags do not matter to somebody who hands over ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def identity_of(model: str, card: Card) -> str:
    """One hash for the weights (`models.model_fingerprint`) and the card's `form`: same identity, same scores."""
    content = json.dumps([model, card.form()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
