"""Broken on purpose: a length penalty that leaves the bounds it declares."""

from dataclasses import dataclass
from typing import ClassVar

from reasonrl.core import Method, Shaped, per_group


@dataclass(frozen=True)
class PayPerToken:
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(group.scores - group.lengths / 10)


def build() -> Method:
    return Method("unbounded_reward", reward=PayPerToken())
