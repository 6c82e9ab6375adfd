"""A learned editor changes the weights after an attempt, in the place of a gradient step. arXiv 2502.15771, OpTune.

This file decides which attempts come from edited weights; the editor is the backend's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Budget, Log, Posed, Step, Turns, Verifier
from reasonrl.eval.tts.feedback import INCORRECT, body

if TYPE_CHECKING:
    import numpy as np

SCHEDULES = ("alternate", "chain")


@dataclass(frozen=True)
class OpTune:
    """schedule: `alternate` edits for every second attempt, `chain` for every one but the first.

    An edit starts from the base weights and follows from the attempt just before it; edits do not add up.
    """

    name: ClassVar[str] = "optune"
    needs: ClassVar[frozenset[str]] = frozenset({"sample", "grad"})
    turns: ClassVar[bool] = True
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    editor: str | None = None
    schedule: str = "alternate"
    words: str = INCORRECT

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        require(self.schedule in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Attempts until one is right. After an attempt that could not be verified the next comes from the base weights."""
        assert posed.feedback is not None
        log = Log(posed, budget, verifier)
        edited = False
        while not log.over:
            attempt = yield from log.attempt(adapter=edited)
            if attempt.verdict == "correct":
                return log.trace("correct", oracle=True)
            edited = attempt.verdict != "error" and (self.schedule == "chain" or not edited)
            if edited and not log.over:
                answer, words = body(attempt.token_ids, attempt.finished), posed.feedback.turn(self.words, header=False)
                step = Step(posed.prompt_ids, answer, words, header_tokens=len(words) - 1, knobs=asdict(self))
                yield from log.step(step)
        return log.trace(log.over, oracle=True)
