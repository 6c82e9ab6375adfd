"""How hard a problem is for the current policy. Larger = harder, always.

B problems in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from reasonrl.core.defaults import FailureRate
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.types import Floats, RolloutGroup
from reasonrl.functional.schedules import smoothed

__all__ = ["BatchRelative", "FailureRate"]


@dataclass(frozen=True)
class BatchRelative:
    """Difficulty = P_b - P_g: how far the group's pass rate lies below the smoothed pass rate of recent batches.

    DeepCompress, arXiv 2510.27419: it writes beta = P_g - P_b, so this is -beta. P_b is an exponential average over
    steps of the mean pass rate of *all* groups finished for the step, kept or dropped; it already contains the
    current step. P_b is remembered as `difficulty/batch_pass_rate`, one tick a step.
    """

    smoothing: float = 0.99  # share of the past in P_b, [0, 1); larger follows more slowly; 0 = the current batch alone
    initial_pass_rate: float = 1.0  # P_b before the first step; 1 makes nearly every problem count as hard at first
    p_true_scope: Literal["all_finished", "last_batch"] = "all_finished"

    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        check_number("smoothing", self.smoothing, least=0.0, below=1.0)
        check_number("initial_pass_rate", self.initial_pass_rate, least=0.0, most=1.0)
        check_choice("p_true_scope", self.p_true_scope, ("all_finished", "last_batch"))
        if self.p_true_scope == "last_batch":
            raise ValueError(
                "p_true_scope=last_batch needs dynamic sampling that refills whole batches; problems are refilled one "
                "by one here, so there is no last batch. Use all_finished"
            )

    def batch_pass_rate(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> float:
        """P_b with this step in it. Groups without rollouts say nothing; if all are empty P_b stays."""
        previous = ledger.scalar("batch_pass_rate", self.initial_pass_rate)
        # sorted: a sum in another order differs in the last bit, and P_b must not depend on who finished first
        rates = sorted(group.pass_rate for group in groups if group.rollouts)
        return smoothed(previous, float(np.mean(rates)), weight=self.smoothing) if rates else previous

    def __call__(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Floats:
        """(B,) in [-1, 1]"""
        return self.batch_pass_rate(groups, ledger) - np.array([group.pass_rate for group in groups])

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """P_b, also in steps without dynamic sampling."""
        return Memory({"batch_pass_rate": self.batch_pass_rate(groups, ledger)})
