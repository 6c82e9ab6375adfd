"""What every function of this package asks of its inputs, and how it says so."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
Numbers: TypeAlias = NDArray[np.number[Any]]


def require_vector(name: str, values: Numbers) -> None:
    """Raise ValueError unless `values` is a one-dimensional array of finite numbers."""
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional (n,), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} (n,) must be finite, got {values}")


def require_same_length(name: str, values: Numbers, other_name: str, other: Numbers) -> None:
    """Raise ValueError unless both vectors have one entry per rollout."""
    if values.shape != other.shape:
        raise ValueError(f"{name} (n,) and {other_name} (n,) differ: {values.shape} vs {other.shape}")
