"""Quantities that move slowly from step to step."""

from __future__ import annotations

import math


def smoothed(previous: float, current: float, *, weight: float) -> float:
    """Exponential moving average `weight * previous + (1 - weight) * current`.

    Args:
        previous: value of the step before.
        current: what this step measured, same unit.
        weight: share of the past, in [0, 1). 0 forgets it: the result is `current` exactly.
    Returns:
        A value between `previous` and `current`.
    Raises:
        ValueError: `weight` outside [0, 1), or a value that is not finite.
    """
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"weight must lie in [0, 1), got {weight}")
    if not (math.isfinite(previous) and math.isfinite(current)):
        raise ValueError(f"smoothing needs finite numbers, got previous={previous}, current={current}")
    mixed = weight * previous + (1.0 - weight) * current
    # rounding may step one unit outside; a pass rate of 1.0000000000000002 would then break its declared range
    return min(max(mixed, min(previous, current)), max(previous, current))
