"""What writes answers: a model in this process (`local`), vLLM (`vllm`), or a server (`openai`). One shape for all.

A backend reads `asks` no faster than it works on them, and gives answers in whatever order they are finished, so that
grading runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Answer", "Ask", "Backend", "Key", "seed_number"]

Key = tuple[str, str, int]  # task, id of the question, number of the answer


@dataclass(frozen=True)
class Ask:
    """Answers that are wanted of one question.

    numbers: which of its n. prompt_ids: what a model reads; turns: the same for a server, a text or chat messages.
    max_tokens: of each answer. own_noise: each has noise of its own, from (seed, task, id, number).
    """

    task: str
    id: str
    numbers: tuple[int, ...]
    prompt_ids: Sequence[int]
    turns: str | Sequence[dict[str, str]]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    own_noise: bool = False

    def noise(self, number: int) -> tuple[int, ...]:
        """What the noise of an answer follows from."""
        from reasonrl.sampled.answers import noise_key

        return noise_key(self.seed, f"{self.task}\n{self.id}", number)

    def seed_of(self, number: int) -> int:
        """The same as one number, in 0..2**63 - 1."""
        return seed_number(self.noise(number))


@dataclass(frozen=True)
class Answer:
    """One answer."""

    task: str
    id: str
    number: int
    text: str
    tokens: int  # written, the end token included
    prompt_tokens: int
    finished: bool  # False: cut at max_tokens
    too_long: bool = False  # the prompt alone fills the context: nothing was written
    short_of_room: bool = False  # the context left it less than max_tokens, as only a server could say

    @property
    def key(self) -> Key:
        return (self.task, self.id, self.number)


def seed_number(key: tuple[int, ...]) -> int:
    """A noise key as one number, in 0..2**63 - 1."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Backend(Protocol):
    """Holds a model, or the address of one."""

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """One answer for each of the numbers of each ask."""
        ...

    def facts(self) -> dict[str, Any]:
        """What timing.json says of it."""
        ...
