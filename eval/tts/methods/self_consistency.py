"""Independent samples that vote (arXiv 2203.11171). The verifier ends nothing and chooses nothing: this is an accuracy.

Samples without an answer have no vote. Of answers with equally many votes the one seen first wins; the last sample that states
it is the one that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier, voted

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SelfConsistency:
    """raw_vote: answers are the same only where they are written the same, as in the released code of arXiv 2502.15771."""

    name: ClassVar[str] = "self_consistency"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = False
    votes: ClassVar[bool] = True
    greedy: ClassVar[bool] = False

    raw_vote: bool = False

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """All attempts at once, unless the tokens or seconds are counted, or redraws are free."""
        log = Log(posed, budget, verifier)
        if budget.tokens is None and budget.seconds is None and not log.over:
            yield from log.several(log.left)
        while not log.over:
            yield from log.attempt()
        chosen = voted([each.extracted for each in log.attempts], raw=self.raw_vote, programs=posed.programs)
        return log.trace(log.over, oracle=False, chosen=chosen)
