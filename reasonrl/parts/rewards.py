"""From verdicts, lengths and difficulty to one reward per rollout.

B problems in a step, n rollouts of a problem; lengths in tokens, generated ones unless a part says otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reasonrl.core.defaults import Correctness
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger
from reasonrl.core.method import Method
from reasonrl.core.protocols import Shaped, per_group
from reasonrl.core.types import Floats, RolloutGroup
from reasonrl.functional.lengths import (
    length_bonus,
    pass_rate_weight,
    relative_length,
    sigmoid_length,
    standardised_length,
)
from reasonrl.functional.schedules import linear_anneal

__all__ = ["Correctness", "DifficultyPenalty", "DualLength"]

ANNEAL_STEPS = 600  # PACE, released code


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


@dataclass(frozen=True)
class DifficultyPenalty:
    """Long answers pay, the more the easier the problem: `R = R_acc - alpha(rho) * P`.

    PACE, arXiv 2602.11639, equations 3 to 5. rho = 1 - clip(difficulty, 0, 1): with `failure_rate` the pass rate of the
    group, with `batch_relative` 1 for groups at least as easy as the recent average and less for harder ones.
    P in [0, 1] says where a response lies between the shortest and the longest of its group, right or wrong, prefix
    included. Right answers earn 1 - alpha or more, wrong ones 0 or less. A group that is all wrong teaches nothing with
    `failure_rate`, because alpha is 0; with another difficulty, or weight=one, it still prefers short answers.

    One very long response sets the scale of P and squeezes all others together: watch `reward/right_spread`. A long
    right answer may end below the mean of its group, as equation 6 has it: watch `advantage/right_below_zero`.
    """

    variant: Literal["paper", "release"] = "paper"  # release: short right answers gain alpha/2, long ones lose it
    penalty: Literal["relative", "sigmoid"] = "relative"  # sigmoid: the length penalty of the paper's equation 8
    weight: Literal["cosine", "one"] = "cosine"  # one: alpha = 1 at any difficulty, the paper's ablation
    anneal_steps: int = ANNEAL_STEPS  # release: the step at which the length term has faded out

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("paper", "release"))
        check_choice("penalty", self.penalty, ("relative", "sigmoid"))
        check_choice("weight", self.weight, ("cosine", "one"))
        check_number("anneal_steps", self.anneal_steps, least=1, whole=True)
        if self.variant == "release" and self.penalty == "sigmoid":
            raise ValueError(
                "penalty=sigmoid is not defined for variant=release, whose length term is centred on P = 0.5 of the "
                "relative length: use variant=paper, or penalty=relative"
            )
        if self.variant == "paper" and self.anneal_steps != ANNEAL_STEPS:
            raise ValueError(
                f"anneal_steps={self.anneal_steps} has no effect with variant=paper, which does not anneal; "
                f"use variant=release, or leave it at {ANNEAL_STEPS}"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """(-1, 1) for the paper, (-0.5, 1.5) for the release."""
        return (-1.0, 1.0) if self.variant == "paper" else (-0.5, 1.5)

    @per_group
    def __call__(self, group: RolloutGroup, difficulty: float, ledger: Ledger) -> Shaped:
        """(n,), with `correctness`, `length_penalty`, whose sum it is, and `length_weight`, the alpha within."""
        alpha = 1.0
        if self.weight == "cosine":
            alpha = pass_rate_weight(1.0 - min(max(float(difficulty), 0.0), 1.0))
        term = self._paper(group, alpha) if self.variant == "paper" else self._release(group, alpha)
        parts = {"correctness": group.scores, "length_penalty": term, "length_weight": np.full(term.shape, alpha)}
        return Shaped(group.scores + term, parts)

    def _paper(self, group: RolloutGroup, alpha: float) -> Floats:
        return -alpha * self._position(group) + 0.0  # + 0.0 turns -0.0 into 0.0 in records

    def _release(self, group: RolloutGroup, alpha: float) -> Floats:
        """The length reward of Kimi k1.5 times alpha and a linear anneal; equal lengths and wrong answers earn none."""
        position = self._position(group)
        if not position.any():  # equal lengths: P = 0 would read as "all are the shortest"
            return position
        term = linear_anneal(group.step, self.anneal_steps) * alpha * (0.5 - position)
        return np.where(group.scores > 0, term, np.minimum(term, 0.0)) + 0.0

    def _position(self, group: RolloutGroup) -> Floats:
        """P (n,) of all responses."""
        lengths = group.total_lengths
        return relative_length(lengths) if self.penalty == "relative" else sigmoid_length(lengths)

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """How far apart the right answers of a group lie in P, largest minus smallest, where there are two or more."""
        right = [self._position(group)[group.scores > 0] for group in groups if group.scores.sum() > 1]
        return {"right_spread": float(np.mean([np.ptp(position) for position in right]))} if right else {}
