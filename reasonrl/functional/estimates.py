"""How good a result is, and how sure that is: pass@k, intervals that resample problems, comparison of two results.

B problems, N samples, n samples of a problem, k of them drawn.

Which interval. Samples of one problem are alike, so problems are resampled, with all their samples (cluster bootstrap),
and the quantiles of the resampled means are the interval (percentile). It follows the skew of a mean near 0 or 1 and
stays within the range of the values, which an interval of `mean +- t s` does not, and a bootstrap-t divides by 0 in
resamples without spread, frequent with 0/1 values. Its known fault, too narrow for few problems, is removed by widening
its level to that of a t interval (the expanded percentile interval of Hesterberg, arXiv 1411.5279).
Where all values are equal there is nothing to resample and the interval is a point: use `wilson` there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from reasonrl.functional.arrays import Array, require_same_length, require_vector

RESAMPLES = 10_000
CHUNK = 1 << 20  # draws held at once
EXACT_FLIPS = 13  # so many differing problems: all 2^13 flips are fewer than the resamples


def pass_at_k(n: ArrayLike, right: ArrayLike, k: int) -> Array:
    """`1 - C(n - c, k) / C(n, k)`: the chance that k of the n samples hold a right one (arXiv 2107.03374, equation 1).

    Unbiased, unlike `1 - (1 - c / n)^k`. Worked out as a product, so that no binomial overflows.

    Args:
        n: samples of each problem, one number or (B,).
        right: c, the right ones, (B,).
        k: at least 1 and at most every n: fewer samples than k cannot tell.
    Returns:
        (B,) in [0, 1].
    Raises:
        ValueError: numbers that are not whole, `right` outside 0..n, `k` outside 1..n.
    """
    samples, found = np.broadcast_arrays(np.asarray(n), np.asarray(right))
    for name, counts in (("n", samples), ("right", found)):
        if counts.size and counts.dtype.kind not in "iu":
            raise ValueError(f"{name} must be whole numbers of samples, got dtype {counts.dtype}")
    if samples.size and not 1 <= k <= samples.min():
        raise ValueError(f"pass@{k} needs k of at least 1 and at least k samples of every problem, got {samples.min()}")
    wrong = samples.astype(np.int64) - found
    if (wrong < 0).any() or (found < 0).any():
        raise ValueError(f"right must lie in 0..n, got {found} of {samples}")
    drawn = np.arange(k)
    misses = (wrong[..., None] - drawn) / (samples[..., None] - drawn)  # (B, k), one factor is 0 where wrong < k
    return np.asarray(1.0 - misses.prod(axis=-1))


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """Result a less result b on the same problems.

    Attributes:
        difference: mean of a - b, with its interval.
        p_value: of "neither is better", two-sided.
        gained: problems on which a is higher.
        lost: problems on which b is higher.
    """

    difference: Interval
    p_value: float
    gained: int
    lost: int


def mean_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over all samples, with an interval that resamples problems: see the module.

    Args:
        values: (N,) one a sample, such as 0/1 verdicts.
        groups: (N,) the problem of each sample, in any order, numbers or names; None: each sample is its own problem.
        level: share of such intervals that hold the truth, (0, 1).
        resamples: more take longer and tremble less; at 10,000 an end moves by about a hundredth of the width.
        seed: of the resampling. The same input gives the same interval.
    Returns:
        The mean with its interval.
    Raises:
        ValueError: `values` is no finite vector, groups of another length, fewer than 2 problems, a level outside (0, 1),
            `resamples` below 1.
    """
    numbers = np.asarray(values, dtype=np.float64)
    require_vector("values", numbers)
    _require_sampling(level, resamples)
    if groups is None:
        problem: Any = np.arange(numbers.size)
    else:
        names = np.asarray(groups)
        if names.shape != numbers.shape:
            raise ValueError(f"values (N,) and groups (N,) differ: {numbers.shape} vs {names.shape}")
        problem = np.unique(names, return_inverse=True)[1]
    sums, counts = np.bincount(problem, weights=numbers), np.bincount(problem)
    if sums.size < 2:
        raise ValueError(f"an interval resamples problems and needs at least 2 of them, got {sums.size}")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, CHUNK // sums.size)
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        drawn = rng.integers(0, sums.size, (part.size, sums.size))
        np.divide(sums[drawn].sum(axis=1), counts[drawn].sum(axis=1), out=part)
    tail = _expanded_tail(level, sums.size)
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), level)


def paired_interval(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Two results on the same problems: the mean of a - b, its interval, and whether chance explains it.

    The p-value is that of a sign-flip test: were neither better, a and b could change places on any problem. It is exact
    where all differences have one size, as with 0/1 results (McNemar's exact test), and where at most 13 problems differ;
    else a random `resamples` of the flips are counted.

    Args:
        a: (B,) one value a problem, such as its share of right samples.
        b: (B,) of the same problems, in the same order.
        level: of the interval, (0, 1).
        resamples: of the interval, and of the test where it draws.
        seed: of both.
    Returns:
        Difference, p-value in [0, 1], problems gained and lost by a.
    Raises:
        ValueError: vectors that are not finite or differ in length, fewer than 2 problems, a level outside (0, 1),
            `resamples` below 1.
    """
    ours, theirs = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    require_vector("a", ours)
    require_vector("b", theirs)
    require_same_length("a", ours, "b", theirs)
    gaps = ours - theirs
    return Comparison(
        mean_interval(gaps, level=level, resamples=resamples, seed=seed),
        _sign_flip(gaps[gaps != 0.0], resamples, np.random.default_rng([seed, 1])),
        int((gaps > 0.0).sum()),
        int((gaps < 0.0).sum()),
    )


def wilson(right: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: for n independent samples, also where all or none are right.

    Args:
        right: 0..n.
        n: at least 1. Several samples of one problem are not independent: use `mean_interval`.
        level: (0, 1).
    Returns:
        The share with its interval, within [0, 1].
    Raises:
        ValueError: `n` below 1, `right` outside 0..n, a level outside (0, 1).
    """
    _require_sampling(level)
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"a share needs 0 <= right <= n and n of at least 1, got {right} of {n}")
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    share, spread = right / n, z * z / n
    centre = (share + spread / 2.0) / (1.0 + spread)
    half = math.sqrt(spread * (share * (1.0 - share) + spread / 4.0)) / (1.0 + spread)
    # at the ends the bound is the share itself, which rounding may miss
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == n else centre + half
    return Interval(share, low, high, level)


def _expanded_tail(level: float, problems: int) -> float:
    """Which quantile makes the percentile interval of a symmetric mean as wide as its t interval."""
    from scipy.special import stdtrit  # 0.2 seconds to import

    t = float(stdtrit(problems - 1, 0.5 - level / 2.0))
    return NormalDist().cdf(t * math.sqrt(problems / (problems - 1)))


def _sign_flip(gaps: Array, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p-value: share of flips whose sum is at least as far from 0 as that of `gaps` (m,), none of which is 0."""
    m = gaps.size
    if m == 0:
        return 1.0
    if np.ptp(np.abs(gaps)) == 0.0:
        from scipy.special import bdtr

        fewer = min(int((gaps > 0.0).sum()), int((gaps < 0.0).sum()))
        return min(1.0, 2.0 * float(bdtr(fewer, m, 0.5)))
    total = gaps.sum()
    reached = abs(total) - 1e-9 * np.abs(gaps).sum()  # sums that are equal but for rounding count as equal
    if m <= EXACT_FLIPS:
        kept = (np.arange(1 << m)[:, None] >> np.arange(m)) & 1  # (2^m, m)
        return float((np.abs(2.0 * (kept @ gaps) - total) >= reached).mean())
    extreme = 0
    rows = max(1, CHUNK // m)
    for start in range(0, resamples, rows):
        kept = rng.integers(0, 2, (min(rows, resamples - start), m), dtype=np.int8)
        extreme += int((np.abs(2.0 * (kept.astype(np.float64) @ gaps) - total) >= reached).sum())
    return (1 + extreme) / (1 + resamples)  # the result itself is one of the flips


def _require_sampling(level: float, resamples: int = 1) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
