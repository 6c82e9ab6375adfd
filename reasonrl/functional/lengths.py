"""Rewards and penalties that depend on how long a response is.

n rollouts of one problem; lengths are counted in tokens.
"""

from __future__ import annotations

import math

import numpy as np

from reasonrl.functional.arrays import Array, Numbers, require_vector

RELATIVE_SPREAD_OF_EQUAL_LENGTHS = 1e-9  # below it, lengths differ by rounding only and have no direction
SIGMOID_GUARD = 1e-7  # tokens, added to the deviation: the guard of arXiv 2502.04463, from which the form stems


def standardised_length(lengths: Numbers) -> Array:
    """`z = (L - mean) / std`, population standard deviation (DeepCompress, arXiv 2510.27419, released form).

    Args:
        lengths: (n,) tokens.
    Returns:
        (n,) in standard deviations, at most `sqrt(n - 1)` in absolute value. Zeros when the lengths are equal, also
        when they are equal up to rounding, and when n is 1: equal lengths have no direction, so nothing is divided.
    Raises:
        ValueError: `lengths` is not a finite vector.
    """
    require_vector("lengths", lengths)
    values = np.asarray(lengths, dtype=np.float64)
    if values.size == 0 or np.ptp(values) <= RELATIVE_SPREAD_OF_EQUAL_LENGTHS * np.abs(values).max():
        return np.zeros_like(values)
    z: Array = (values - values.mean()) / values.std()
    return z


def length_bonus(standardised: Array, difficulty: float, *, alpha: float = 0.2) -> Array:
    """`alpha * sigmoid(difficulty * z)`: longer pays on hard problems, shorter on easy ones (arXiv 2510.27419).

    The paper writes `sigmoid(-beta * z)` with beta = P_g - P_b, which is larger on *easier* problems; `difficulty`
    is -beta.

    Args:
        standardised: (n,) lengths in standard deviations within their group.
        difficulty: signed; 0 makes the bonus constant. Unit: 1 / standard deviation of length.
        alpha: upper end of the bonus, in units of reward.
    Returns:
        (n,) in the open interval (0, alpha): a bonus, never a penalty.
    Raises:
        ValueError: `standardised` is not a finite vector.
    """
    require_vector("standardised lengths", standardised)
    # tanh saturates where exp would overflow, so no slope is too steep
    return alpha * 0.5 * (1.0 + np.tanh(0.5 * difficulty * np.asarray(standardised, dtype=np.float64)))


def overlong_penalty(lengths: Numbers, *, max_tokens: int, buffer: int, factor: float = 1.0) -> Array:
    """DAPO's soft overlong ramp (arXiv 2503.14476, equation 13): 0 up to `max_tokens - buffer`, then down to `-factor`.

    Args:
        lengths: (n,) tokens.
        max_tokens: length at which the whole penalty is due; longer responses pay no more.
        buffer: length of the ramp, 1..max_tokens.
        factor: depth of the ramp, in units of reward.
    Returns:
        (n,) in [-factor, 0].
    Raises:
        ValueError: `lengths` is not a finite vector, or the ramp does not fit below `max_tokens`.
    """
    require_vector("lengths", lengths)
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"the ramp needs 1 <= buffer <= max_tokens, got buffer={buffer}, max_tokens={max_tokens}")
    over = np.asarray(lengths, dtype=np.float64) - (max_tokens - buffer)
    return -factor * np.clip(over / buffer, 0.0, 1.0) + 0.0  # + 0.0 turns -0.0 into 0.0 in records


def relative_length(lengths: Numbers) -> Array:
    """`P = (L - min) / (max - min)`: where a response lies between the shortest and the longest of its group.

    PACE, arXiv 2602.11639, equation 4. One very long response sets the maximum and squeezes all others towards 0.

    Args:
        lengths: (n,) tokens.
    Returns:
        (n,) in [0, 1]. Zeros when all lengths are equal, also when n is 1: the formula is 0/0 there.
    Raises:
        ValueError: `lengths` is not a finite vector.
    """
    require_vector("lengths", lengths)
    values = np.asarray(lengths, dtype=np.float64)
    if values.size == 0 or np.ptp(values) == 0.0:
        return np.zeros_like(values)
    position: Array = (values - values.min()) / np.ptp(values)
    return position


def sigmoid_length(lengths: Numbers) -> Array:
    """`P = sigmoid((L - mean) / (std + 1e-7))`, population standard deviation (PACE, arXiv 2602.11639, equation 8).

    The paper calls it a cosine reward; what it prints is a sigmoid, without deviation or guard: both are ours.

    Args:
        lengths: (n,) tokens.
    Returns:
        (n,) in (0, 1); 0.5 when all lengths are equal.
    Raises:
        ValueError: `lengths` is not a finite vector.
    """
    require_vector("lengths", lengths)
    values = np.asarray(lengths, dtype=np.float64)
    if values.size == 0:
        return values.copy()
    z = (values - values.mean()) / (values.std() + SIGMOID_GUARD)
    position: Array = 0.5 * (1.0 + np.tanh(0.5 * z))
    return position


def pass_rate_weight(pass_rate: float) -> float:
    """`alpha = 1 - cos(pi * rho / 2)`: 0 where nothing is solved, 1 where everything is (PACE, equation 5).

    Args:
        pass_rate: rho, in [0, 1].
    Returns:
        In [0, 1], increasing; exactly 0 at 0.
    Raises:
        ValueError: `pass_rate` outside [0, 1].
    """
    if not 0.0 <= pass_rate <= 1.0:
        raise ValueError(f"pass_rate must lie in [0, 1], got {pass_rate}")
    return 1.0 - math.cos(0.5 * math.pi * pass_rate)
