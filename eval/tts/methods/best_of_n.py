"""Independent samples, one after the other, until the verifier finds a right one: coverage@N, or pass@N.

No reward model chooses: this is how far one could get. `selector=vote` makes all N and lets them vote instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier, voted

if TYPE_CHECKING:
    import numpy as np

SELECTORS = ("oracle", "vote")


@dataclass(frozen=True)
class BestOfN:
    """selector: who says which sample counts. oracle_stop: false makes all N samples, right one or not."""

    name: ClassVar[str] = "best_of_n"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    selector: str = "oracle"
    oracle_stop: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        require(
            self.selector in SELECTORS,
            f"selector must be one of {', '.join(SELECTORS)}, got {self.selector!r}; a process reward model chooses in "
            "`reasonrl prm best-of-n`",
        )

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Attempts until one is right or the budget ends."""
        log = Log(posed, budget, verifier)
        stop = self.oracle_stop and self.selector == "oracle"
        while not log.over:
            attempt = yield from log.attempt()
            if stop and attempt.verdict == "correct":
                return log.trace("correct", oracle=True)
        if self.selector == "vote":
            return log.trace(log.over, oracle=False, chosen=voted([each.extracted for each in log.attempts]))
        return log.trace(log.over, oracle=True)
