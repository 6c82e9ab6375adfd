"""How good a result is, and how sure that is: pass@k, maj@k, intervals over problems, comparison of two results.

B problems, N samples, n samples of a problem, k of them drawn, K values of k, m comparisons.

Which interval. Samples of one problem are alike: problems are the unit that is drawn, never single samples.

Of an accuracy, or any mean of values in [0, 1], one a problem: `share_interval`, that of Agresti and Coull (The American
Statistician 52, 1998) with problems in the place of draws. Benchmarks are small and their accuracy often near 0 or 1, where
intervals from the seen spread alone are too short, because the few problems that would widen it are missing: at 30 problems
x 16 samples and an accuracy of .95 a t interval holds the truth 82 % of the time, the percentile interval 85 %, Wilson's with
an effective sample size (Korn and Graubard, Survey Methodology 24, 1998) 87 %, a t interval on the logit scale 90 %, this one
97 %. It is wider than needed where problems are all about as hard, which those of benchmarks are not.
`benchmarks/interval_coverage.py` measures it. arXiv 2503.01747 shows the same fault on evaluations of language models.

Of any other mean: `mean_interval`. Problems are resampled, with all their samples (cluster bootstrap),
and the quantiles of the resampled means are the interval (percentile). It follows the skew of a mean near 0 or 1 and
stays within the range of the values, which an interval of `mean +- t s` does not, and a bootstrap-t divides by 0 in
resamples without spread, frequent with 0/1 values. Its known fault, too narrow for few problems, is removed by widening
its level to that of a t interval (the expanded percentile interval of Hesterberg, arXiv 1411.5279).
Where all values are equal there is nothing to resample and the interval is a point.

Of a difference of two results on the same problems: `difference_interval`, and of their ratio `ratio_interval`, both of the
t distribution; differences have little skew. `paired_interval` has the test, and resamples.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
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


def majority_at_k(answers: Sequence[Hashable | None], right: ArrayLike, ks: Sequence[int]) -> Array:
    """The chance that the answer given most often by k of a problem's n samples is right, over all `C(n, k)` draws.

    Exact: draws are counted, not made, by generating functions of how often each answer comes up. Answers that tie for most
    votes are picked with equal chance. An answer whose samples are judged differently counts by its share of right ones.

    Args:
        answers: n, in a form in which equal answers are equal; None for a sample without one, which has no vote. Only where
            all k drawn are None does None win.
        right: (n,) whether each sample is right.
        ks: K numbers of samples drawn, each in 1..n.
    Returns:
        (K,) in [0, 1]; at k = 1 the share of right samples.
    Raises:
        ValueError: lengths that differ, `right` other than 0 and 1, a k outside 1..n, counts of draws beyond what a float
            holds (n of more than 1,000 with k near its half).
    """
    verdicts = np.asarray(right, dtype=np.float64)
    require_vector("right", verdicts)
    n = len(answers)
    if verdicts.size != n:
        raise ValueError(f"answers (n,) and right (n,) differ: {n} vs {verdicts.size}")
    if not np.isin(verdicts, (0.0, 1.0)).all():
        raise ValueError("right must be 0 or 1 for each sample")
    if not ks or min(ks) < 1 or max(ks) > n:
        raise ValueError(f"maj@k draws k of a problem's samples and needs 1 <= k <= {n}, got {list(ks)}")
    votes = Counter(answers)
    correct = Counter(answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict)
    silent = (votes.pop(None, 0), correct.pop(None, 0))
    given = tuple(sorted((count, correct[answer]) for answer, count in votes.items()))
    try:
        return np.asarray(_plurality(given, silent, tuple(ks)))
    except OverflowError as error:
        raise ValueError(f"maj@{max(ks)} of {n} samples has more draws than a float can count") from error


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


@dataclass(frozen=True)
class LengthBin:
    """The samples of `low` to `high` tokens, both included, and how many of them are right."""

    low: int
    high: int
    samples: int
    accuracy: Interval


def share_interval(values: ArrayLike, level: float = 0.95, *, weights: ArrayLike | None = None) -> Interval:
    """The mean of values in [0, 1], with Agresti and Coull's interval over problems: see the module.

    The interval is that of a mean, `M +- z s / sqrt(B)`, after `z^2 / 2` problems with value 1 and as many with value 0 are
    added (two of each at 95 %). With 0/1 values it is theirs to the digit. It always holds the mean, also where all values
    are equal, and is cut to [0, 1].

    Args:
        values: (B,) one a problem, such as its share of right samples.
        level: share of such intervals that hold the truth, (0, 1).
        weights: (B,) above 0, such as the number of samples of each problem; None: all count alike. Uneven weights are worth
            fewer problems, `(sum w)^2 / sum w^2` (Kish).
    Returns:
        The mean with its interval.
    Raises:
        ValueError: no values or any outside [0, 1], weights of another length or not above 0, a level outside (0, 1).
    """
    shares = np.asarray(values, dtype=np.float64)
    require_vector("values", shares)
    _require_sampling(level)
    if not shares.size or shares.min() < 0.0 or shares.max() > 1.0:
        raise ValueError(f"an interval of shares needs values in [0, 1], one a problem, got {shares}")
    counts = np.ones_like(shares) if weights is None else np.asarray(weights, dtype=np.float64)
    require_vector("weights", counts)
    require_same_length("values", shares, "weights", counts)
    if counts.min() <= 0.0:
        raise ValueError(f"weights must be above 0, got {counts.min()}")
    parts = counts / counts.sum()
    problems = 1.0 / float((parts * parts).sum())
    mean = float(counts @ shares / counts.sum())  # exactly 1 where all are
    seen = problems * float((parts * parts) @ (shares - mean) ** 2)
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    added = z * z
    centre = (problems * mean + added / 2.0) / (problems + added)
    moved = problems * (seen + (mean - centre) ** 2) + added / 2.0 * ((1.0 - centre) ** 2 + centre**2)
    half = z * math.sqrt(moved) / (problems + added)
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half), level)


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


def difference_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a - b over problems, with the t interval of the paired differences (arXiv 2411.00640).

    Args:
        a: (B,) one value a problem, such as its share of right samples.
        b: (B,) of the same problems, in the same order.
        level: (0, 1).
    Returns:
        The difference with its interval; a point where all problems differ alike.
    Raises:
        ValueError: vectors that are not finite or differ in length, fewer than 2 problems, a level outside (0, 1).
    """
    gaps = _pairs(a, b, level)
    mean, half = float(gaps.mean()), _half(gaps, level)
    return Interval(mean, mean - half, mean + half, level)


def ratio_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a over mean of b on the same problems, with a t interval of its logarithm (linearised).

    Args:
        a: (B,) one value a problem, at least 0, such as its mean tokens.
        b: (B,) of the same problems, in the same order.
        level: (0, 1).
    Returns:
        The ratio with its interval.
    Raises:
        ValueError: vectors that are not finite or differ in length, fewer than 2 problems, values below 0, a mean of 0, a
            level outside (0, 1).
    """
    _pairs(a, b, level)
    ours, theirs = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(ours.min(), theirs.min()) < 0.0 or not ours.any() or not theirs.any():
        raise ValueError("a ratio of means needs values of at least 0, not all of which are 0")
    ratio = float(ours.mean() / theirs.mean())
    factor = math.exp(_half(ours / ours.mean() - theirs / theirs.mean(), level))
    return Interval(ratio, ratio / factor, ratio * factor, level)


def holm(p_values: ArrayLike) -> Array:
    """p-values adjusted for being several (Holm, Scandinavian Journal of Statistics 6, 1979).

    Rejecting those of at most alpha keeps the chance of any false rejection at alpha, whatever the tests' dependence.

    Args:
        p_values: (m,) in [0, 1].
    Returns:
        (m,) in [0, 1], none smaller than before, in the same order.
    Raises:
        ValueError: values that are not a finite vector in [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    require_vector("p_values", values)
    if ((values < 0.0) | (values > 1.0)).any():
        raise ValueError(f"p-values must lie in [0, 1], got {values}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)))
    return adjusted


def minimum_detectable_difference(
    spread: float,
    problems: int,
    other: tuple[float, int] | None = None,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """The difference of two means that a two-sided test at `alpha` finds with a chance of `power`.

    `(t_(1 - alpha / 2) + t_power) * s`, s the standard error of the difference (arXiv 2411.00640, with t for the normal).

    Args:
        spread: standard deviation over problems; paired: of the problems' differences; unpaired: of one result's values.
        problems: B, at least 2.
        other: unpaired: spread and problems of the other result. None: paired.
        power: (0, 1); .8 is customary.
        alpha: (0, 1).
    Returns:
        At least 0, in the unit of the values.
    Raises:
        ValueError: a spread that is negative or not finite, fewer than 2 problems, `power` or `alpha` outside (0, 1).
    """
    from scipy.special import stdtrit

    sides = [(spread, problems)] if other is None else [(spread, problems), other]
    for deviation, size in sides:
        if not 0.0 <= deviation < math.inf or size < 2:
            raise ValueError(f"needs a spread of at least 0 and at least 2 problems, got {deviation} of {size}")
    for name, value in (("power", power), ("alpha", alpha)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} must lie in (0, 1), got {value}")
    freedom = sum(size - 1 for _, size in sides)
    error = math.sqrt(sum(deviation**2 / size for deviation, size in sides))
    return float(stdtrit(freedom, 1.0 - alpha / 2.0) + stdtrit(freedom, power)) * error


def accuracy_by_length(
    tokens: ArrayLike, right: ArrayLike, groups: ArrayLike, bins: int = 8, level: float = 0.95
) -> list[LengthBin]:
    """Accuracy of short and of long samples, in bins of about equally many.

    Samples of one length are never parted, so there are fewer bins where many have the same.

    Args:
        tokens: (N,) whole numbers.
        right: (N,) 0 or 1.
        groups: (N,) the problem of each sample; the intervals are over problems.
        bins: at most so many, at least 1.
        level: (0, 1).
    Returns:
        Shortest first; [] without samples.
    Raises:
        ValueError: lengths that differ, tokens that are not whole, `right` other than 0 and 1, `bins` below 1, a level outside
            (0, 1).
    """
    lengths, verdicts, names = np.asarray(tokens), np.asarray(right, dtype=np.float64), np.asarray(groups)
    if not lengths.size == verdicts.size == names.size:
        raise ValueError(f"tokens, right and groups (N,) differ: {lengths.size}, {verdicts.size}, {names.size}")
    if not lengths.size:
        return []
    if lengths.dtype.kind not in "iu":
        raise ValueError(f"tokens must be whole numbers, got dtype {lengths.dtype}")
    if not np.isin(verdicts, (0.0, 1.0)).all():
        raise ValueError("right must be 0 or 1 for each sample")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    ordered = np.sort(lengths)
    starts = np.unique(ordered[(np.arange(bins) * lengths.size) // bins])  # the first is the shortest
    place = np.searchsorted(starts, lengths, side="right") - 1  # (N,)
    found = []
    for i in range(starts.size):
        here = place == i
        problem = np.unique(names[here], return_inverse=True)[1]
        samples = np.bincount(problem)
        accuracy = share_interval(np.bincount(problem, weights=verdicts[here]) / samples, level, weights=samples)
        found.append(LengthBin(int(lengths[here].min()), int(lengths[here].max()), int(here.sum()), accuracy))
    return found


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


@functools.lru_cache(maxsize=4096)  # most problems of a benchmark are answered alike
def _plurality(given: tuple[tuple[int, int], ...], silent: tuple[int, int], ks: tuple[int, ...]) -> tuple[float, ...]:
    """`majority_at_k` from (votes, right ones) of each answer, and of the samples without one.

    For each number of votes t that may win: in `ways[r, d]` the draws of d samples in which r answers have t votes and none
    has more, in `worth[r, d]` the sum of those answers' shares of right samples over these draws.
    """
    most = max(ks)
    n = silent[0] + sum(count for count, _ in given)
    total = _binomials(silent[0], most) * (silent[1] / max(silent[0], 1))  # (most + 1,) draws of None alone
    back = np.arange(most + 1) - np.arange(most + 1)[:, None]  # (most + 1, most + 1) samples from d to d'
    for t in range(1, min(most, max((count for count, _ in given), default=0)) + 1):
        able = [(count, correct / count) for count, correct in given if count >= t]
        ways = np.zeros((min(len(able), most // t) + 1, most + 1))
        ways[0] = _binomials(n - sum(count for count, _ in able), most)  # too few votes to win: any number of these
        worth = np.zeros_like(ways)
        for count, share in able:
            draws = _binomials(count, most)
            fewer = np.where((back >= 0) & (back < t), draws[back], 0.0)  # this answer has less than t votes
            reach_ways, reach_worth = draws[t] * ways[:-1, :-t], draws[t] * worth[:-1, :-t]
            ways, worth = ways @ fewer, worth @ fewer
            ways[1:, t:] += reach_ways
            worth[1:, t:] += reach_worth + share * reach_ways
        total = total + (worth[1:] / np.arange(1, len(worth))[:, None]).sum(axis=0)
    return tuple(min(1.0, float(total[k]) / float(math.comb(n, k))) for k in ks)


def _binomials(n: int, most: int) -> Array:
    """`C(n, d)` for d = 0..most. Raises OverflowError beyond floats."""
    return np.asarray([float(math.comb(n, d)) for d in range(most + 1)])


def _pairs(a: ArrayLike, b: ArrayLike, level: float) -> Array:
    """a - b (B,)."""
    ours, theirs = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    require_vector("a", ours)
    require_vector("b", theirs)
    require_same_length("a", ours, "b", theirs)
    _require_sampling(level)
    if ours.size < 2:
        raise ValueError(f"an interval over problems needs at least 2 of them, got {ours.size}")
    return ours - theirs


def _half(values: Array, level: float) -> float:
    """Half the width of the t interval of a mean."""
    from scipy.special import stdtrit

    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(stdtrit(values.size - 1, 0.5 + level / 2.0)) * error


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
