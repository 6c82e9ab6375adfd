"""Broken on purpose: divides by the number of right rollouts, which is 0 when all are wrong."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reasonrl.core import Method, Shaped, per_group


@dataclass(frozen=True)
class SharedPrize:
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @per_group
    def __call__(self, group, difficulty, ledger):
        with np.errstate(all="ignore"):
            return Shaped(group.scores / group.scores.sum())


def build() -> Method:
    return Method("nan_all_wrong", reward=SharedPrize())
