"""One step as the recorder sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrl.core import Credit, RolloutGroup


@dataclass(frozen=True)
class StepRecord:
    """Everything of a step that is kept: its groups (dropped ones too), what credit made of them, its metrics."""

    step: int
    groups: Sequence[RolloutGroup]
    credit: Credit
    metrics: dict[str, float]
