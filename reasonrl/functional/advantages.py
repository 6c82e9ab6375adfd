"""Advantages of one group from its scalar rewards.

n rollouts of one problem. Everything is float64; the caller spreads the result over tokens.

Two conventions hold for all of them, the same as in verl 0.9.1, so that numbers can be compared:
a group of one has nothing to be compared with, its baseline is 0 and its scale 1;
a group of none gives an empty array.
"""

from __future__ import annotations

import numpy as np

from reasonrl.functional.arrays import Array, require_vector


def group_normalised(rewards: Array, *, eps: float = 1e-6, ddof: int = 1) -> Array:
    """GRPO: `(r - mean) / (std + eps)` (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: (n,) reward of each rollout, any unit.
        eps: added to the standard deviation, in units of reward. Larger damps groups whose rewards hardly differ.
        ddof: 1 divides by n - 1 (verl, torch.std), 0 by n.
    Returns:
        (n,) in units of standard deviations; zeros when all rewards are equal; `r / (1 + eps)` when n = 1.
    Raises:
        ValueError: `rewards` is not a finite vector.
    """
    require_vector("rewards", rewards)
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2:
        return values / (1.0 + eps)
    centred = values - values.mean()
    if (values == values[0]).all():  # the mean of equal numbers may miss them by one unit in the last place
        return np.zeros_like(values)
    return np.asarray(centred / (np.sqrt(centred @ centred / (values.size - ddof)) + eps))


def dr_grpo(rewards: Array) -> Array:
    """Dr. GRPO: `r - mean`, no division by the spread (arXiv 2503.20783, section 3.2).

    Args:
        rewards: (n,) reward of each rollout, any unit.
    Returns:
        (n,) in units of reward; zeros when all rewards are equal; `r` itself when n = 1.
    Raises:
        ValueError: `rewards` is not a finite vector.
    """
    require_vector("rewards", rewards)
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2:
        return values.copy()
    if (values == values[0]).all():
        return np.zeros_like(values)
    return np.asarray(values - values.mean())


def rloo(rewards: Array) -> Array:
    """RLOO: each reward minus the mean of the *other* rewards of its group (arXiv 2402.14740).

    Args:
        rewards: (n,) reward of each rollout, any unit.
    Returns:
        (n,) in units of reward, equal to `n / (n - 1)` times Dr. GRPO; `r` itself when n = 1.
    Raises:
        ValueError: `rewards` is not a finite vector.
    """
    n = rewards.size
    return dr_grpo(rewards) * (n / (n - 1)) if n > 1 else dr_grpo(rewards)
