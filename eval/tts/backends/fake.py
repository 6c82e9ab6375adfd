"""A backend that a script answers: for tests, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reasonrl.eval.tts.backends import Outcome
from reasonrl.eval.tts.base import CAPABILITIES, Generate, Generated, Step, StepDone

END = 0


class FakeBackend:
    """answer: what an owner's ask is given; whatever it raises, the call raises.

    calls: the asks of each call of `generate`. steps: of each owner. forgotten: owners, in order.
    """

    capabilities = frozenset(CAPABILITIES)

    def __init__(self, answer: Callable[[str, Generate], Outcome]) -> None:
        self._answer = answer
        self.calls: list[list[tuple[str, Generate]]] = []
        self.steps: list[tuple[str, Step]] = []
        self.forgotten: list[str] = []

    def generate(self, asks: Sequence[tuple[str, Generate]]) -> list[Outcome]:
        self.calls.append(list(asks))
        return [self._answer(owner, ask) for owner, ask in asks]

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        self.steps.extend(asks)
        return [StepDone(0.0) for _ in asks]

    def forget(self, owner: str) -> None:
        self.forgotten.append(owner)

    def facts(self) -> dict[str, Any]:
        return {}


def scripted(scripts: dict[str, Sequence[str]]) -> Callable[[str, Generate], Outcome]:
    """Answers that follow a list of texts an owner, a token a letter and END; to ask for more is an error."""
    left = {owner: iter(texts) for owner, texts in scripts.items()}

    def answer(owner: str, ask: Generate) -> Outcome:
        made = [written(next(left[owner]), ask) for _ in range(ask.beams)]
        return made[0] if ask.beams == 1 else tuple(made)

    return answer


def written(text: str, ask: Generate) -> Generated:
    """A text as a model that writes a token a letter would have written it, cut where there is no room."""
    ids = (*map(ord, text), END)
    kept = ids[: ask.sampling.max_tokens]
    return Generated(kept, text[: len(kept)], kept == ids)
