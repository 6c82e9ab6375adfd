"""From the rewards of a group to one number per trained token.

n rollouts of a group, L trained tokens of a rollout. These three give every token of a rollout the same value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrl.core.defaults import GroupNormalised
from reasonrl.core.ledger import Ledger
from reasonrl.core.protocols import per_group
from reasonrl.core.types import Floats, RolloutGroup
from reasonrl.functional.advantages import dr_grpo, rloo

__all__ = ["RLOO", "DrGRPO", "GroupNormalised"]


@dataclass(frozen=True)
class DrGRPO:
    """Reward minus the group's mean (arXiv 2503.20783): groups with little spread stay small."""

    @per_group
    def __call__(self, group: RolloutGroup, rewards: Floats, ledger: Ledger) -> Sequence[Floats]:
        """n rows (L,)"""
        return group.per_token(dr_grpo(rewards))


@dataclass(frozen=True)
class RLOO:
    """Reward minus the mean of the other rollouts (arXiv 2402.14740)."""

    @per_group
    def __call__(self, group: RolloutGroup, rewards: Floats, ledger: Ledger) -> Sequence[Floats]:
        """n rows (L,)"""
        return group.per_token(rloo(rewards))
