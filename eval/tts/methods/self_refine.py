"""A draft, then again and again: here is your last answer, there is an error in it, find it and correct it.

After Self-Refine (arXiv 2303.17651). Every output but the draft is verified, and a right one ends the search; the model sees
its latest output only. The draft is charged like an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier
from reasonrl.eval.tts.feedback import REFINE

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SelfRefine:
    """request: what is asked after each output."""

    name: ClassVar[str] = "self_refine"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = True
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    request: str = REFINE
    missing_header_parity: bool = False

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """A draft and its refinements. An output that could not be verified ends them, for it may be right."""
        assert posed.feedback is not None
        log = Log(posed, budget, verifier)
        if log.over:
            return log.trace(log.over, oracle=True)
        latest = yield from log.attempt(phase="draft")
        while not log.over:
            header = not self.missing_header_parity
            words = posed.feedback.after(latest.token_ids, latest.finished, self.request, header=header)
            prompt = (*posed.prompt_ids, *words)
            if posed.room_after(prompt) < 1:
                return log.trace("context", oracle=True)
            latest = yield from log.attempt(prompt)
            if latest.verdict in ("correct", "error"):
                return log.trace(latest.verdict, oracle=True)
        return log.trace(log.over, oracle=True)
