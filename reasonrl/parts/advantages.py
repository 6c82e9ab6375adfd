"""From the rewards of a group to one number per trained token.

n rollouts of a group, L trained tokens of a rollout. These three give every token of a rollout the same value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reasonrl.core.defaults import GroupNormalised
from reasonrl.core.knobs import check_choice
from reasonrl.core.ledger import Ledger
from reasonrl.core.protocols import per_group
from reasonrl.core.types import Floats, RolloutGroup
from reasonrl.functional.advantages import dr_grpo, rloo

__all__ = ["RLOO", "DrGRPO", "GroupNormalised"]


@dataclass(frozen=True)
class DrGRPO:
    """Reward minus the group's mean (arXiv 2503.20783): groups with little spread stay small."""

    # round: minus the mean of the rollouts of the same round. Where rounds are hinted differently, the group's mean
    # favours those that were given more.
    baseline: Literal["group", "round"] = "group"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, ("group", "round"))

    @per_group
    def __call__(self, group: RolloutGroup, rewards: Floats, ledger: Ledger) -> Sequence[Floats]:
        """n rows (L,)"""
        if self.baseline == "group":
            return group.per_token(dr_grpo(rewards))
        rounds = np.array([rollout.round for rollout in group.rollouts])
        values = np.zeros(len(rounds))
        for number in np.unique(rounds):
            values[rounds == number] = dr_grpo(np.asarray(rewards)[rounds == number])
        return group.per_token(values)


@dataclass(frozen=True)
class RLOO:
    """Reward minus the mean of the other rollouts (arXiv 2402.14740)."""

    @per_group
    def __call__(self, group: RolloutGroup, rewards: Floats, ledger: Ledger) -> Sequence[Floats]:
        """n rows (L,)"""
        return group.per_token(rloo(rewards))
