"""One beam search as wide as the budget; solved when any of its beams is right, which only a verifier can know.

The algorithm is that of transformers' `generate` (length penalty 1, no early stopping); another library's beams differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BeamSearch:
    """Attempt k is the k-th best beam of the widest search, not the best of a search of width k."""

    name: ClassVar[str] = "beam_search"
    needs: ClassVar[frozenset[str]] = frozenset({"beam"})
    turns: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = True

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """One search."""
        log = Log(posed, budget, verifier)
        if log.over:
            return log.trace(log.over, oracle=True)
        found = yield from log.beams(budget.attempts)
        narrower = {"beams": len(found)} if len(found) < budget.attempts else {}
        return log.trace("done", oracle=True, notes=narrower)
