"""Quantities that follow the step: averages that move slowly, budgets and weights that run out.

Steps count optimiser steps from 1, so the value at step 0 is never used in training. Budgets are whole tokens.
"""

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


def linear_budget(step: int, *, initial: int, steps: int) -> int:
    """`floor(initial * (1 - step / steps))`, then 0 (PACE, arXiv 2602.11639, equation 2).

    Args:
        step: optimiser step.
        initial: tokens at step 0.
        steps: the step from which on the budget is 0.
    Returns:
        Tokens, never more than at an earlier step. In whole numbers throughout: no rounding can lose a token.
    Raises:
        ValueError: a negative argument.
    """
    _require_counts(step=step, initial=initial, steps=steps)
    return initial * (steps - step) // steps if step < steps else 0


def halving_budget(step: int, *, initial: int, every: int = 20, floor: int = 32) -> int:
    """`initial / 2^floor(step / every)` while that exceeds `floor`, then 0 (PACE, released code).

    Args:
        step: optimiser step.
        initial: tokens until the first halving.
        every: steps between halvings, at least 1.
        floor: the budget must exceed it to be given at all, in tokens.
    Returns:
        Tokens, never more than at an earlier step.
    Raises:
        ValueError: a negative argument, or `every` below 1.
    """
    _require_counts(step=step, initial=initial, floor=floor)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    budget = initial >> (step // every)
    return budget if budget > floor else 0


def adaptive_budget(previous: int, fell: bool, *, cap: int, floor: int = 64) -> int:
    """Twice the budget of a problem whose accuracy fell, half of it otherwise (PACE, released code, never active there).

    Args:
        previous: budget at the last visit, in tokens.
        fell: whether the problem's accuracy fell since the last visit.
        cap: the budget never grows beyond it.
        floor: half a budget below it is 0. A budget of 0 stays 0, whatever follows.
    Returns:
        Tokens, 0..cap.
    Raises:
        ValueError: a negative argument.
    """
    _require_counts(previous=previous, cap=cap, floor=floor)
    if fell:
        return min(2 * previous, cap)
    half = min(previous // 2, cap)
    return half if half >= floor else 0


def linear_anneal(step: int, steps: int) -> float:
    """`(steps - step) / steps`, held inside [0, 1]: 1 at step 0, 0 from `steps` on.

    Raises:
        ValueError: `step` negative, or `steps` below 1.
    """
    _require_counts(step=step)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return max(steps - step, 0) / steps


def cosine(step: int, *, steps: int, high: float, low: float) -> float:
    """Half a cosine from `high` at step 0 to `low` at `steps`, and `low` from then on.

    The hint schedules of UFT (arXiv 2505.16984) and Prefix-RFT (arXiv 2507.01679).

    Args:
        step: counted from 0 or 1, as the method does.
        steps: where `low` is reached, at least 1.
    Returns:
        A value in [low, high], same unit; for low > high it rises.
    Raises:
        ValueError: `step` negative, or `steps` below 1.
    """
    _require_counts(step=step)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
