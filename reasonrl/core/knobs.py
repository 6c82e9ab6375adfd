"""Range checks with one voice: the error names the knob, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_number(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Raise unless `least <= value <= most` and `above < value < below`, finite, and whole when that is asked.

    Raises:
        TypeError: not a number (True and False are not numbers here).
        ValueError: not finite, not whole, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}")
    if whole and value != int(value if math.isfinite(value) else 0):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not math.isfinite(value) or not (least <= value <= most and above < value < below):
        raise ValueError(f"{name} must lie in {_interval(least, most, above, below)}, got {value!r}")


def _interval(least: float, most: float, above: float, below: float) -> str:
    low = f"({above:g}" if above > -math.inf else f"[{least:g}" if least > -math.inf else "(-inf"
    high = f"{below:g})" if below < math.inf else f"{most:g}]" if most < math.inf else "inf)"
    return f"{low}, {high}"


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")
