"""A weight matrix edited by what an attempt left behind: running moments, normalisation, the editor's map and its delta.

    T tokens, di inputs and do outputs of a linear layer, D = di + do, r rank of the editor, R rows that are merged in

The editor of OpTune (arXiv 2502.15771), after MEND (arXiv 2110.11309): the gradient of a matrix is a sum over tokens of outer
products d_t u_t^T, so a map of (u_t, d_t) is a map of gradients. Everything in float64; the engine's version is tested
against this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonrl.functional.arrays import Array

GUARD = 1e-7  # added to the deviation, as released


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean (D,) and sum of squared distances from the mean (D,) of all rows seen so far."""

    count: int
    mean: Array
    m2: Array

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows."""
        return cls(0, np.zeros(width), np.zeros(width))

    @classmethod
    def of(cls, rows: Array) -> Moments:
        """Of rows (R, D). Raises ValueError for another shape."""
        values = np.asarray(rows, dtype=np.float64)
        if values.ndim != 2:
            raise ValueError(f"rows must be (R, D), got {values.shape}")
        if not len(values):
            return cls.empty(values.shape[1])
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both, whatever their order (Chan, Golub and LeVeque 1983, equations 2.1).

        So batches, and the ranks of a distributed training, come to what one pass over all rows comes to.
        Raises ValueError for another width.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {self.mean.shape} and {other.mean.shape} dimensions cannot be merged")
        count = self.count + other.count
        if not count:
            return self
        gap = other.mean - self.mean
        share = other.count / count
        return Moments(count, self.mean + gap * share, self.m2 + other.m2 + gap**2 * (self.count * share))

    @property
    def std(self) -> Array:
        """(D,) unbiased; zeros for fewer than two rows, which have no spread."""
        std: Array = np.sqrt(self.m2 / max(self.count - 1, 1))
        return std

    def normalised(self, rows: Array) -> Array:
        """(x - mean) / (std + 1e-7) of rows (R, D)."""
        found: Array = (rows - self.mean) / (self.std + GUARD)
        return found


@dataclass(frozen=True, eq=False)
class LowRank:
    """`g(z) = z + U D z + b`: an identity plus a linear map of rank r, no nonlinearity. Dropout is the engine's.

    down D (r, D), up U (D, r), bias b (D,). With U = 0 and b = 0 it changes nothing.
    """

    down: Array
    up: Array
    bias: Array

    def __call__(self, rows: Array) -> Array:
        """Of rows (T, D)."""
        found: Array = rows + rows @ self.down.T @ self.up.T + self.bias
        return found


def delta(inputs: Array, gradients: Array, moments: Moments, editor: LowRank, eta: float) -> Array:
    """`dW = eta * sum_t d'_t u'_t^T`, which is added to W.

    Args:
        inputs: (T, di) what the layer read at each token. gradients: (T, do) of the loss with respect to what it gave.
    Returns:
        (do, di); zeros for T = 0.
    Raises:
        ValueError: different numbers of tokens, or moments of another width than di + do.
    """
    if len(inputs) != len(gradients):
        raise ValueError(f"inputs and gradients differ in tokens: {inputs.shape} vs {gradients.shape}")
    split = inputs.shape[1]
    z = editor(moments.normalised(np.concatenate([inputs, gradients], axis=1)))  # (T, D)
    found: Array = eta * z[:, split:].T @ z[:, :split]
    return found


def cheaper_factored(tokens: int, inputs: int, outputs: int) -> bool:
    """Whether `(h U'^T) D'` costs less than `h dW^T`: T (di + do) against di do multiplications a row of h."""
    return tokens * (inputs + outputs) < inputs * outputs
