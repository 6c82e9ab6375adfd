"""The model is told that its answer is incorrect and tries again, the whole conversation before its eyes; temperature 0.

The first attempt is the greedy answer, which on the hard set is known to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier
from reasonrl.eval.tts.feedback import TRY_AGAIN

if TYPE_CHECKING:
    import numpy as np

OVERFLOWS = ("drop_oldest", "stop")


@dataclass(frozen=True)
class Revision:
    """overflow: what to do when the conversation leaves less room than the first attempt had: forget its oldest rounds, or end.

    The last attempt is never forgotten; when it alone leaves less room, the next one gets less.
    """

    name: ClassVar[str] = "revision"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = True
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = True

    request: str = TRY_AGAIN
    overflow: str = "drop_oldest"
    missing_header_parity: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        require(self.overflow in OVERFLOWS, f"overflow must be one of {', '.join(OVERFLOWS)}, got {self.overflow!r}")

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Rounds until an attempt is right. An attempt that could not be verified ends them: nothing true can be said of it."""
        assert posed.feedback is not None
        log = Log(posed, budget, verifier)
        rounds: list[tuple[int, ...]] = []
        dropped, stop = 0, None
        while stop is None and not log.over:
            prompt = _joined(posed, rounds)
            if posed.room_after(prompt) < posed.room and self.overflow == "stop":
                stop = "context"
                break
            while posed.room_after(prompt) < posed.room and len(rounds) > 1:
                rounds.pop(0)
                dropped += 1
                prompt = _joined(posed, rounds)
            if posed.room_after(prompt) < 1:
                stop = "context"
                break
            attempt = yield from log.attempt(prompt, greedy=True)
            stop = {"correct": "correct", "error": "error"}.get(attempt.verdict)
            header = not self.missing_header_parity
            rounds.append(posed.feedback.after(attempt.token_ids, attempt.finished, self.request, header=header))
        notes = {"dropped_rounds": dropped} if dropped else {}
        return log.trace(stop or str(log.over), oracle=True, notes=notes)


def _joined(posed: Posed, rounds: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (*posed.prompt_ids, *(token for each in rounds for token in each))
