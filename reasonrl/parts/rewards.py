"""From verdicts, lengths and difficulty to one reward per rollout.

B problems in a step, n rollouts of a problem; lengths in generated tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reasonrl.core.defaults import Correctness
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger
from reasonrl.core.method import Method
from reasonrl.core.protocols import Shaped
from reasonrl.core.types import Floats, RolloutGroup
from reasonrl.functional.lengths import length_bonus, standardised_length

__all__ = ["Correctness", "DualLength"]


@dataclass(frozen=True)
class DualLength:
    """Right answers earn a bonus: the shorter the better on easy problems, the longer the better on hard ones.

    DeepCompress, arXiv 2510.27419: `R = R_o + alpha * sigmoid(-beta * z)` with z the length standardised within the
    group and beta = -difficulty. The sign of the difficulty decides the direction, its size the strength.
    """

    alpha: float = 0.2  # upper end of the bonus; 0 turns it off; usual 0.1..1
    slope: float = 1.0  # multiplies the difficulty; larger is more decided
    only_correct: bool = True  # False: wrong answers earn it too (the paper's figure 2)
    # groups that earn it: None = all; q = the int(q * m) easiest and hardest of the m mixed ones; 1 = all mixed ones
    filter_ratio: float | None = 1.0
    direction: Literal["dual", "penalty", "bonus"] = "dual"  # penalty / bonus: shorter / longer is better everywhere
    ablation: Literal["shorten_simple", "lengthen_hard"] | None = None  # act on easy / hard problems alone
    wrong: float = -1.0
    right: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, least=0.0)
        check_number("slope", self.slope, least=0.0)
        if self.filter_ratio is not None:
            check_number("filter_ratio", self.filter_ratio, least=0.0, most=1.0)
        check_choice("direction", self.direction, ("dual", "penalty", "bonus"))
        check_choice("ablation", self.ablation, (None, "shorten_simple", "lengthen_hard"))
        check_number("wrong", self.wrong)
        check_number("right", self.right, above=self.wrong)
        if self.ablation and self.direction != "dual":
            raise ValueError(
                f"ablation={self.ablation} splits by difficulty, which direction={self.direction} ignores: choose one"
            )
        if self.filter_ratio is None and self.alpha:
            warnings.warn(
                "filter_ratio=null: groups whose answers are all right earn the length bonus too, and normalisation "
                "blows its tiny spread up to pure length optimisation; run with dynamic_sampling.enable=true",
                stacklevel=3,
            )

    def check(self, method: Method) -> None:
        """Warn about a difficulty that is never negative: no problem would count as easy."""
        if self.direction == "dual" and self.alpha and method.difficulty.range[0] >= 0.0:
            warnings.warn(
                f"{method.name}: reward part DualLength shortens only where difficulty is below 0; "
                f"{type(method.difficulty).__name__} has range {method.difficulty.range}, so all answers grow; "
                "add method/difficulty=batch_relative, or set direction=penalty",
                stacklevel=4,
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """(wrong, right + alpha), or more if wrong answers may earn the bonus too."""
        return self.wrong, self.right + self.alpha

    def __call__(self, groups: Sequence[RolloutGroup], difficulty: Floats, ledger: Ledger) -> list[Shaped]:
        """B times total (n,), with `outcome` and `length_bonus`."""
        earns = self._earns(groups, difficulty)
        return [self._shape(*row) for row in zip(groups, difficulty.tolist(), earns.tolist(), strict=True)]

    def _shape(self, group: RolloutGroup, difficulty: float, earns: bool) -> Shaped:
        outcome = np.where(group.scores > 0, self.right, self.wrong)
        bonus = np.zeros_like(outcome)
        if earns:
            signed = {"dual": self.slope * difficulty, "penalty": -1.0, "bonus": 1.0}[self.direction]
            bonus = length_bonus(standardised_length(group.lengths), signed, alpha=self.alpha)
            if self.only_correct:
                bonus = np.where(group.scores > 0, bonus, 0.0)
        return Shaped(outcome + bonus, {"outcome": outcome, "length_bonus": bonus})

    def _earns(self, groups: Sequence[RolloutGroup], difficulty: Floats) -> NDArray[np.bool_]:
        """(B,) which groups the bonus is for."""
        chosen = np.ones(len(groups), dtype=bool)
        if self.filter_ratio is not None:
            chosen = _extreme_mixed(groups, self.filter_ratio)
        if self.ablation == "shorten_simple":
            chosen &= difficulty < 0
        if self.ablation == "lengthen_hard":
            chosen &= difficulty > 0
        return chosen


def _extreme_mixed(groups: Sequence[RolloutGroup], share: float) -> NDArray[np.bool_]:
    """(B,) the k groups of lowest and of highest pass rate among the m mixed ones, k = int(share * m)."""
    # ties go by problem id: which groups earn the bonus must not depend on which finished first
    mixed = [i for i, group in enumerate(groups) if 0.0 < group.pass_rate < 1.0]
    mixed.sort(key=lambda i: (groups[i].pass_rate, groups[i].problem.id))
    k = int(share * len(mixed))
    chosen = np.zeros(len(groups), dtype=bool)
    chosen[mixed[:k] + mixed[len(mixed) - k :]] = True
    return chosen
