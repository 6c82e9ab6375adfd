"""Accuracy against hint rate, per problem: fit a logistic curve, read off the rate of a wanted accuracy.

Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding (SEELE),
arXiv 2509.06923, equations 11-13 and appendix B. The rate p in [0, 1] is the share of the solution that is shown.
What we changed: the paper fits one problem at a time with a trust-region solver, whose bounds and start it does not
give and which can end in the worse of two minima; here all problems of a step are searched at once, on grids.

B problems, J rounds of a problem, M points of a problem (its rounds and the margins), K slopes, S shifts of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasonrl.functional.arrays import Array

Mask: TypeAlias = NDArray[np.bool_]
Duplicates: TypeAlias = Literal["per_round", "per_distinct_rate"]
Solver: TypeAlias = Literal["grid", "trf"]

# Ours, the paper gives none; a fit of its figure 3 sits exactly at slope 50.
SLOPE_BOUNDS = (0.0, 50.0)
SHIFT_BOUNDS = (-1.5, 0.5)
START = (10.0, -0.5, 0.05)  # slope, shift, floor of the iterative solver

SLOPES = np.geomspace(0.5, 50.0, 40)
SHIFTS = np.linspace(-1.5, 0.5, 81)
SMALLEST_SLOPE = 0.05  # the zooms work on its logarithm; so flat a curve moves by 0.01 between rates 0 and 1
ZOOMS = 20
SIDE = 9  # points of a zoom along each axis

# Sized to the cache; every problem is worked out alone, so they do not change a digit of the result.
COARSE_CHUNK = 2
ZOOM_CHUNK = 128


def accuracy_at(rates: ArrayLike, slope: ArrayLike, shift: ArrayLike, floor: ArrayLike) -> Array:
    """`f(p) = b + (1 - b) / (1 + exp(-k (p + mu)))` (arXiv 2509.06923, equation 12). The four arguments broadcast.

    Args:
        rates: p, hint rate; usual range [0, 1].
        slope: k, 1 / rate. Larger is steeper; any size is safe.
        shift: mu, rate; `-mu` is the rate at which the accuracy is `(1 + b) / 2`.
        floor: b, accuracy without ability, [0, 1].
    Returns:
        Accuracy in [b, 1], of the broadcast shape.
    """
    p, k, mu, b = (np.asarray(values, dtype=np.float64) for values in (rates, slope, shift, floor))
    # tanh saturates where exp would overflow
    return np.asarray(b + (1.0 - b) * 0.5 * (1.0 + np.tanh(0.5 * k * (p + mu))))


def descent_bound(accuracy: ArrayLike, *, beta: float) -> Array:
    """`a (1 - a) / (2 beta)`: what one step can gain at most on a problem (arXiv 2509.06923, equation 9, appendix A).

    The variance of a verdict is a (1 - a), and by Cramer and Rao it bounds the information in the gradient. An upper
    bound, not a rate: the ratio to its peak at one half, 4 a (1 - a), is what matters.

    Args:
        accuracy: a, [0, 1], any shape.
        beta: weight of the KL term, above 0.
    Returns:
        In units of reward, of the shape of `accuracy`.
    Raises:
        ValueError: `beta` not above 0.
    """
    if not beta > 0.0:
        raise ValueError(f"beta must be above 0, got {beta}")
    a = np.asarray(accuracy, dtype=np.float64)
    return np.asarray(a * (1.0 - a) / (2.0 * beta))


@dataclass(frozen=True, eq=False)
class ItemResponse:
    """Fitted curves of B problems.

    Attributes:
        slope: (B,) k in [0, 50], 1 / rate. Not determined by one round: it runs to its bound.
        shift: (B,) mu in [-1.5, 0.5], rate.
        floor: (B,) b in [0, 1], accuracy.
        sse: (B,) sum of squared residuals over the points, margins included, accuracy squared.
    """

    slope: Array
    shift: Array
    floor: Array
    sse: Array

    def rate_for(self, target: float) -> Array:
        """Hint rate at which each curve reaches `target`: equation 12 solved for p, clipped to [0, 1].

        Args:
            target: wanted accuracy in (0, 1).
        Returns:
            (B,) rates in [0, 1], never falling as `target` rises; 0 where the floor reaches the target without a hint.
        Raises:
            ValueError: `target` outside (0, 1).
        """
        if not 0.0 < target < 1.0:
            raise ValueError(f"the target accuracy must lie in (0, 1), got {target}")
        above = target > self.floor
        odds = np.log(target - self.floor, out=np.zeros_like(self.floor), where=above) - np.log(1.0 - target)
        # a curve of slope 0 never reaches the target: the bound sends it to the far end without a division by 0
        rates = odds / np.maximum(self.slope, 1e-9) - self.shift
        return np.where(above, np.minimum(np.maximum(rates, 0.0), 1.0), 0.0)


def fit_item_response(
    rates: ArrayLike,
    accuracies: ArrayLike,
    *,
    known: ArrayLike | None = None,
    margins: bool = True,
    duplicates: Duplicates = "per_round",
    solver: Solver = "grid",
) -> ItemResponse:
    """The least-squares curve of each problem (arXiv 2509.06923, equation 13), all problems at once.

    The order of the rounds does not matter, not even in the last digit.

    Args:
        rates: (B, J) hint rate of each round, [0, 1].
        accuracies: (B, J) mean score of each round, [0, 1].
        known: (B, J) False where a problem has no such round; what stands there is ignored. None: all are known.
        margins: add the points (0, 0) and (1, 1) of appendix B, each unless that rate was tried, with the weight of a
            round. Without them one or two rounds leave the curve undetermined.
        duplicates: rounds of equal rate share the mean of their accuracies. `per_round` counts it once a round, which
            is equation 13 to the letter; `per_distinct_rate` once.
        solver: `grid` searches slope and shift on a coarse grid and 20 finer ones, with the best floor of each point
            in closed form: deterministic, and it finds the lower of two minima. `trf` is the paper's trust-region
            solver from one start (scipy), one problem after the other: about a hundred times slower for a batch.
    Returns:
        One curve per problem.
    Raises:
        ValueError: shapes that differ, a known rate or accuracy outside [0, 1] or not finite, a problem without a
            known round, an unknown `duplicates` or `solver`.
    """
    for name, value, choices in (
        ("duplicates", duplicates, ("per_round", "per_distinct_rate")),
        ("solver", solver, ("grid", "trf")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    points = _points(*_checked(rates, accuracies, known), margins=margins, duplicates=duplicates)
    return _grid(*points) if solver == "grid" else _trust_region(*points)


def _checked(rates: ArrayLike, accuracies: ArrayLike, known: ArrayLike | None) -> tuple[Array, Array, Mask]:
    p, a = np.asarray(rates, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if p.ndim != 2 or p.shape != a.shape:
        raise ValueError(f"rates and accuracies must both be (B, J), got {p.shape} and {a.shape}")
    mask = np.ones(p.shape, dtype=bool) if known is None else np.asarray(known)
    if mask.shape != p.shape or mask.dtype != np.bool_:
        raise ValueError(f"known must be bool of shape {p.shape}, got {mask.dtype} of shape {mask.shape}")
    empty = ~mask.any(axis=1)
    if empty.any():
        raise ValueError(
            f"problem {int(empty.argmax())} of {len(p)} has no known round and cannot be fitted: "
            "use its stored rate, or the cold-start rate"
        )
    for name, values in (("rates", p), ("accuracies", a)):
        wrong = mask & ~((values >= 0.0) & (values <= 1.0))  # so written, NaN is wrong too
        if wrong.any():
            i, j = (int(index[0]) for index in wrong.nonzero())
            raise ValueError(f"{name} (B, J) must lie in [0, 1], got {values[i, j]} for problem {i}, round {j}")
    return p, a, mask


def _points(p: Array, a: Array, mask: Mask, *, margins: bool, duplicates: Duplicates) -> tuple[Array, Array, Mask]:
    """What is fitted: rates (M, B), accuracies (M, B) and which of them exist (M, B)."""
    p, a = np.where(mask, p, 2.0), np.where(mask, a, 0.0)  # unknown rounds sort behind all others
    order = np.lexsort((a, p), axis=1)[:, : mask.sum(axis=1).max(initial=0)]
    p, a = np.take_along_axis(p, order, axis=1).T, np.take_along_axis(a, order, axis=1).T  # (J, B)
    exists = p <= 1.0
    repeated = p[1:] == p[:-1]
    if (repeated & exists[1:]).any():
        same = p[:, None] == p  # (J, J, B)
        a = (same * a).sum(axis=1) / same.sum(axis=1)
        if duplicates == "per_distinct_rate":
            exists[1:] &= ~repeated
    p = np.where(exists, p, 0.0)
    if not margins:
        return p, a, exists
    ends = np.array([[0.0], [1.0]])
    untried = ~((p[:, None] == ends) & exists[:, None]).any(axis=0)  # (2, B)
    ends = np.broadcast_to(ends, untried.shape)
    return np.concatenate((p, ends)), np.concatenate((a, ends)), np.concatenate((exists, untried))


# With t = 1 - sigmoid = 1 / (1 + exp(k (p + mu))) the curve is 1 - u t, u = 1 - b: linear in u, so the best u is the
# regression of the miss 1 - a on t through the origin, clipped to [0, 1]. Points that do not exist have t = 1 - a = 0.


def _profile(tails: Array, misses: Array, terms: Array) -> tuple[Array, Array]:
    """The best u of each grid point and its sum of squares, (...), from t (M, ...) and 1 - a; overwrites `terms`."""
    best = np.add.reduce(np.multiply(tails, misses, out=terms), axis=0)
    best /= np.add.reduce(np.multiply(tails, tails, out=terms), axis=0)
    np.minimum(best, 1.0, out=best)
    # from the residuals, not from expanded squares: where a fit is exact to 1e-16, the digits below decide
    np.multiply(tails, best, out=terms)
    np.subtract(terms, misses, out=terms)
    return best, np.add.reduce(np.multiply(terms, terms, out=terms), axis=0)


def _grid(p: Array, a: Array, exists: Mask) -> ItemResponse:
    found = np.empty((4, p.shape[1]))
    misses, weights = np.where(exists, 1.0 - a, 0.0), exists.astype(np.float64)
    cells = _coarse(p, misses, weights)
    for start in range(0, p.shape[1], ZOOM_CHUNK):
        chunk = np.s_[:, start : start + ZOOM_CHUNK]
        found[chunk] = _zoom(cells[chunk], p[chunk], misses[chunk], weights[chunk])
    return ItemResponse(*found)


SHIFT_GROWTH = np.exp(SLOPES[:, None] * SHIFTS)  # (K, S)


def _coarse(p: Array, misses: Array, weights: Array) -> Array:
    """Slope and shift (2, B) of the best point of the coarse grid."""
    size = p.shape[1]
    # t = E / (E + exp(k mu)) with E = exp(-k p): one exponential per slope instead of one per grid point
    decay = np.exp(p[..., None, None] * -SLOPES[:, None])  # (M, B, K, 1)
    kept = decay * weights[..., None, None]
    misses = misses[..., None, None]
    tails = np.empty((len(p), min(size, COARSE_CHUNK), *SHIFT_GROWTH.shape))  # (M, chunk, K, S)
    terms = np.empty_like(tails)
    index = np.empty(size, dtype=np.intp)
    for start in range(0, size, COARSE_CHUNK):
        chunk = slice(start, min(start + COARSE_CHUNK, size))
        part = slice(chunk.stop - start)
        t = np.add(decay[:, chunk], SHIFT_GROWTH, out=tails[:, part])
        np.divide(kept[:, chunk], t, out=t)
        _, sse = _profile(t, misses[:, chunk], terms[:, part])
        index[chunk] = sse.reshape(len(sse), -1).argmin(axis=1)
    k, mu = np.divmod(index, SHIFTS.size)
    return np.stack((SLOPES[k], SHIFTS[mu]))


OFFSETS = np.linspace(-1.0, 1.0, SIDE)[:, None]


def _zoom(cells: Array, p: Array, misses: Array, weights: Array) -> Array:
    """Slope, shift, floor and sum of squares (4, B) after 20 zooms into `cells`, slope and shift (2, B).

    The axes are the logarithm of the slope and the height `z = k (pivot + mu)` of the curve at the pivot, the point
    where it is steepest. Along slope and shift themselves the valley of good fits is narrow and bent, and the windows
    shrink before they reach its end: of 1,500 random fits 388 then missed the minimum by more than 1e-10, here 2.
    """
    size = p.shape[1]
    columns = np.arange(size)
    tails = weights / (1.0 + np.exp(cells[0] * (p + cells[1])))
    pivot = p[(tails * (1.0 - tails)).argmax(axis=0), columns]
    gaps = (p - pivot)[:, None]  # (M, 1, B)
    reach = np.array(SHIFT_BOUNDS)[:, None, None] + pivot  # (2, 1, B), z / k at the bounds of the shift
    low, high = np.log((SMALLEST_SLOPE, SLOPE_BOUNDS[1]))
    centre = np.stack((np.log(cells[0]), cells[0] * (pivot + cells[1])))
    window = np.stack((np.full(size, np.log(SLOPES[1] / SLOPES[0])), cells[0] * (SHIFTS[1] - SHIFTS[0])))
    former = np.empty_like(centre)
    weights, misses = weights[:, None, None], misses[:, None, None]
    grid = np.empty((2, SIDE, size))
    log_slopes, heights = grid[0], grid[1][:, None]
    tails = np.empty((len(p), SIDE, SIDE, size))  # (M, S, K, B)
    terms = np.empty_like(tails)
    for _ in range(ZOOMS):
        np.add(np.multiply(window[:, None], OFFSETS, out=grid), centre[:, None], out=grid)
        np.minimum(np.maximum(log_slopes, low, out=log_slopes), high, out=log_slopes)
        slopes = np.exp(log_slopes)  # (K, B)
        ends = slopes * reach
        z = np.minimum(np.maximum(heights, ends[0]), ends[1])  # (S, K, B)
        # exp(k (p + mu)) as a product: one exponential per slope and point instead of one per grid point
        np.multiply(np.exp(slopes * gaps)[:, None], np.exp(z), out=tails)
        np.divide(weights, np.add(tails, 1.0, out=tails), out=tails)
        best, sse = _profile(tails, misses, terms)
        index = sse.reshape(-1, size).argmin(axis=0)
        former, centre = centre, former
        centre[0] = log_slopes[index % SIDE, columns]
        centre[1] = z.reshape(-1, size)[index, columns]
        # halve a window unless the best lies on its border; a border that is the bound itself is no full step away
        step = np.abs(np.subtract(centre, former, out=former), out=former)
        window *= np.maximum(step > 0.9 * window, 0.5)
    k = np.exp(centre[0])
    floor = 1.0 - best.reshape(-1, size)[index, columns]
    shift = np.clip(centre[1] / k - pivot, *SHIFT_BOUNDS)  # rounding alone can step outside
    return np.stack((k, shift, floor, sse.reshape(-1, size)[index, columns]))


def _trust_region(p: Array, a: Array, exists: Mask) -> ItemResponse:
    from scipy.optimize import least_squares  # 0.3 seconds to import, and only this switch needs it

    low, high = zip(SLOPE_BOUNDS, SHIFT_BOUNDS, (0.0, 1.0), strict=True)

    def residuals(curve: Array, rates: Array, accuracies: Array) -> Any:
        return accuracy_at(rates, *curve) - accuracies

    found = np.empty((4, p.shape[1]))
    for i in range(p.shape[1]):
        points = p[exists[:, i], i], a[exists[:, i], i]
        fit = least_squares(
            residuals, START, args=points, bounds=(low, high), method="trf", ftol=1e-8, xtol=1e-8, gtol=1e-8
        )
        found[:, i] = *fit.x, 2.0 * fit.cost
    return ItemResponse(*found)
