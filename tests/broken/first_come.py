"""Broken on purpose: rewards the first rollout of a group, so the order of rollouts matters."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reasonrl.core import Method, Shaped, per_group


@dataclass(frozen=True)
class FirstComeFirstServed:
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(group.scores * (np.arange(len(group.rollouts)) == 0))


def build() -> Method:
    return Method("first_come", reward=FirstComeFirstServed())
