"""A penalty on length alone, added after any reward.

n rollouts of a group; lengths in tokens, prefix included, because the response limit counts both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from reasonrl.core.knobs import check_number
from reasonrl.core.types import Counts, Floats
from reasonrl.functional.lengths import overlong_penalty

BUFFER_SHARE = 0.2  # DeepCompress and DAPO: 2048 of 10240 and 4096 of 20480 tokens


@dataclass(frozen=True)
class NoOverlong:
    """No penalty: switches off the ramp of a method that has one."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def __call__(self, total_lengths: Counts) -> Floats:
        """(n,) zeros"""
        return np.zeros(total_lengths.shape)


@dataclass(frozen=True)
class SoftOverlong:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): a ramp over the last `buffer` tokens."""

    max_tokens: int | None = None  # where the whole penalty is due; None = the run's response limit
    buffer: int | None = None  # length of the ramp; larger starts earlier; None = 20 % of max_tokens
    factor: float = 1.0  # depth, in units of reward

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_number("max_tokens", self.max_tokens, least=1, whole=True)
        if self.buffer is not None:
            most = float("inf") if self.max_tokens is None else self.max_tokens
            check_number("buffer", self.buffer, least=1, most=most, whole=True)
        check_number("factor", self.factor, least=0.0)

    @property
    def bounds(self) -> tuple[float, float]:
        """(-factor, 0)"""
        return -self.factor, 0.0

    def with_limits(self, max_new_tokens: int) -> SoftOverlong:
        """The ramp below this response limit. A ramp that ends beyond it could never bite in full and is refused."""
        if self.max_tokens is not None and self.max_tokens > max_new_tokens:
            raise ValueError(
                f"overlong: max_tokens={self.max_tokens} lies beyond the run's max_new_tokens={max_new_tokens}; "
                "leave max_tokens out to follow the run, or raise max_new_tokens"
            )
        return replace(self, max_tokens=self.max_tokens or max_new_tokens)

    def __call__(self, total_lengths: Counts) -> Floats:
        """(n,) in [-factor, 0]"""
        if self.max_tokens is None:
            raise ValueError(
                "SoftOverlong does not know the response limit: call with_limits(method, max_new_tokens) first"
            )
        buffer = self.buffer or max(1, round(BUFFER_SHARE * self.max_tokens))
        return overlong_penalty(total_lengths, max_tokens=self.max_tokens, buffer=buffer, factor=self.factor)
