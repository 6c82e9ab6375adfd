"""One answer at temperature 0. The questions on which it fails are the hard set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Greedy:
    """The attempt that the other methods are measured against."""

    name: ClassVar[str] = "greedy"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = True

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """One attempt, whatever the budget."""
        log = Log(posed, budget, verifier)
        if log.over:
            return log.trace(log.over, oracle=False)
        yield from log.attempt(greedy=True)
        return log.trace("done", oracle=False, chosen=0)
