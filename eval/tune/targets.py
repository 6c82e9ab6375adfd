"""What is learned: the gold solution of a problem, its final answer in the form that is asked for, and the end token.

    T tokens of prompt and target

The answer is stated as the prompt asks and the verifier accepts: `ending`, unless the solution states it already. What the
verifier would not accept is never taught, and what does not fit is left out, not cut: a cut solution would teach not to end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError

if TYPE_CHECKING:
    from reasonrl.data.problems import Loaded
    from reasonrl.data.prompts import Prompt
    from reasonrl.verify.pool import VerifyConfig

SLOT = "{answer}"
BOXED, TAGGED, HASHES = r"\boxed{{answer}}", "<answer>{answer}</answer>", "#### {answer}"
CODE, FENCE = "code", "```"  # a checker that runs programs, and what stands around these
IGNORED = -100  # the label of a token that is not learned
_HASHES_LINE = re.compile(r"\n?^[ \t]*####[^\n]*\Z", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Target:
    """Input ids (T,); those before `start` are the prompt."""

    id: str
    ids: NDArray[np.int32]
    start: int


@dataclass(frozen=True)
class Targets:
    """What is trained on. dropped: reason -> problems."""

    train: Sequence[Target]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens that are learned."""
        return sum(each.ids.size - each.start for each in self.train)


def make_targets(
    loaded: Loaded,
    prompt: Prompt,
    tokenizer: Any,
    verify: VerifyConfig,
    *,
    ending: str | None,
    max_tokens: int,
    source: str,
) -> Targets:
    """Raises ConfigError where nothing is left, saying why."""
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer names no end token (eos_token), which a solution has to end with")
    texts = gold_texts(loaded, prompt, verify, ending=ending, source=source)
    with_solution = sum(bool(text.strip()) for text in loaded.solutions)
    lead = " " if prompt.kind == "text" and not prompt.user[-1:].isspace() else ""
    encoded = tokenizer([lead + text for text in texts.values()], add_special_tokens=False)["input_ids"]
    made = []
    for i, ids in zip(texts, encoded, strict=True):
        before = loaded.problems[i].prompt_ids
        whole = np.concatenate([np.asarray(before, np.int32), np.asarray([*ids, tokenizer.eos_token_id], np.int32)])
        made.append(Target(loaded.problems[i].id, whole, len(before)))
    train = [each for each in made if each.ids.size <= max_tokens]
    if not train:
        shortest = min(each.ids.size for each in made)
        raise ConfigError(
            f"{source}: all {len(made)} solutions are longer than max_tokens={max_tokens} with their prompts (the shortest has "
            f"{shortest}): raise max_tokens"
        )
    dropped = {
        "prompt over max_prompt_tokens": loaded.dropped_too_long,
        "no solution": len(loaded) - with_solution,
        "refused by the verifier": with_solution - len(texts),
        f"longer than {max_tokens} tokens": len(made) - len(train),
    }
    return Targets(train, {reason: count for reason, count in dropped.items() if count})


def gold_texts(
    loaded: Loaded, prompt: Prompt, verify: VerifyConfig, *, ending: str | None, source: str
) -> dict[int, str]:
    """Solutions as they are to be written, by problem: those that the verifier accepts.

    ending: the form of the answer; None: see `ending_of`. Raises ConfigError where there is none, saying why.
    """
    with_solution = [i for i, text in enumerate(loaded.solutions) if text.strip()]
    if not with_solution:
        raise ConfigError(
            f"{source} has no solutions to learn from: name their column with data.steps_field=..., or choose data that has "
            "them (gsm8k, math, arithmetic); data.steps=none leaves them out"
        )
    form = ending if ending is not None else ending_of(verify, prompt)
    texts = [target_text(loaded.solutions[i], loaded.problems[i].answer, form, verify) for i in with_solution]
    held = accepted(texts, [loaded.problems[i].answer for i in with_solution], verify)
    if not any(held):
        raise ConfigError(
            f"{source}: the verifier (verify.checker={verify.checker}) accepts none of {len(texts)} solutions, the first of "
            f"which ends with {texts[0][-60:]!r}: give the form of the answer as ending='...{SLOT}...' (reasonrl tune), "
            "another prompt= or another verify="
        )
    return {i: text for i, text, right in zip(with_solution, texts, held, strict=True) if right}


def ending_of(verify: VerifyConfig, prompt: Prompt) -> str:
    """How the answer is stated at the end: as the verifier finds it, else as the prompt asks."""
    if verify.checker == CODE:
        return ""
    if verify.mode == "phrase_number":
        return f"{verify.answer_phrase}{SLOT}."
    asked = f"{prompt.system or ''}\n{prompt.user}"
    if verify.mode == "answer_tag" or (verify.mode == "auto" and "<answer>" in asked):
        return TAGGED
    return HASHES if verify.mode == "hashes" else BOXED


def target_text(solution: str, answer: str, ending: str, verify: VerifyConfig) -> str:
    """A solution that ends with its answer; of a program, the fenced code."""
    if verify.checker == CODE:
        # data of ours brings it fenced
        return solution.strip() if FENCE in solution else f"{FENCE}python\n{solution.strip()}\n{FENCE}"
    text = solution.rstrip()
    stated = verify.extract_from(text)
    if stated == answer and not _HASHES_LINE.search(text):
        return text
    return f"{_HASHES_LINE.sub('', text).rstrip()}\n{ending.replace(SLOT, answer)}"


def accepted(texts: Sequence[str], answers: Sequence[str], verify: VerifyConfig) -> list[bool]:
    """Whether the verifier takes each for right; programs are not run here. Raises ConfigError."""
    if verify.checker == CODE:
        from reasonrl.verify.judge.jobs import extract_code

        return [extract_code(text) is not None for text in texts]
    from reasonrl.verify.pool import Verifier, VerifierError

    try:
        with Verifier(verify) as verifier:
            return [verdict.correct for verdict in verifier.verify_many(zip(texts, answers, strict=True))]
    except VerifierError as error:
        raise ConfigError(str(error)) from error


def collated(some: Sequence[Target]) -> dict[str, Any]:
    """Padded on the right: ids, mask and labels (B, T)."""
    import torch

    size = max(each.ids.size for each in some)
    ids = torch.zeros((len(some), size), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, each in enumerate(some):
        own = torch.from_numpy(each.ids.astype(np.int64))
        ids[row, : own.numel()] = own
        mask[row, : own.numel()] = 1
        labels[row, each.start : own.numel()] = own[each.start :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
