"""The four parts of plain GRPO: what a `Method` has when nothing else is said.

They stand in core, not in parts, because the defaults of `Method` are made of them; `reasonrl.parts` re-exports them.
GRPO: DeepSeekMath, arXiv 2402.03300, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger
from reasonrl.core.protocols import Shaped, per_group
from reasonrl.core.types import Floats, Prefix, Problem, Request, RolloutGroup, View
from reasonrl.functional.advantages import group_normalised


@dataclass(frozen=True)
class Plain:
    """No prefix: one request for `n` rollouts. Larger n: a better baseline, at n times the sampling; usual 4..64."""

    n: int = 8

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """One round, then nothing."""
        return () if view.round else (Request(Prefix(), self.n),)


@dataclass(frozen=True)
class FailureRate:
    """Difficulty = 1 - P_g, the share of wrong rollouts in the group; 1 when none survived."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Floats:
        """(B,) in [0, 1]"""
        return np.array([1.0 - group.pass_rate for group in groups])


@dataclass(frozen=True)
class Correctness:
    """The verifier's word alone: `wrong` or `right`."""

    wrong: float = 0.0
    right: float = 1.0

    def __post_init__(self) -> None:
        check_number("wrong", self.wrong)
        check_number("right", self.right, above=self.wrong)

    @property
    def bounds(self) -> tuple[float, float]:
        """(wrong, right)"""
        return self.wrong, self.right

    @per_group
    def __call__(self, group: RolloutGroup, difficulty: float, ledger: Ledger) -> Shaped:
        """(n,)"""
        total = np.where(group.scores > 0, self.right, self.wrong)
        return Shaped(total, {"correctness": total})


@dataclass(frozen=True)
class GroupNormalised:
    """GRPO: reward minus the group's mean, over its standard deviation; one value for all tokens of a rollout."""

    eps: float = 1e-6
    ddof: int = 1  # 1 = sample standard deviation, as verl and torch.std

    def __post_init__(self) -> None:
        check_number("eps", self.eps, above=0.0)
        check_choice("ddof", self.ddof, (0, 1))

    @per_group
    def __call__(self, group: RolloutGroup, rewards: Floats, ledger: Ledger) -> Sequence[Floats]:
        """n rows (L,)"""
        return group.per_token(group_normalised(rewards, eps=self.eps, ddof=self.ddof))
