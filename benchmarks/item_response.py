"""SEELE's curve fits: one vectorised call against scipy's trust-region solver and lmfit, which the paper used.

    OMP_NUM_THREADS=1 python benchmarks/item_response.py [--problems 768] [--repeats 3]

Three questions. A step's fits (256 problems, three fits each) in one call, against one after the other; one fit alone,
as a plan asks for it; and whether the rates agree where the curve is determined. Both baselines get the same points,
bounds, start and tolerances. Sides alternate; a figure is the median of the paired ratios with its range.
Needs lmfit, which is in the extra `dev`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import least_squares

try:
    import lmfit
except ImportError:
    sys.exit("lmfit is missing; it comes with the development tools: pip install -e '.[dev]'")

from reasonrl.functional.item_response import SHIFT_BOUNDS, SLOPE_BOUNDS, START, fit_item_response

BOUNDS = tuple(zip(SLOPE_BOUNDS, SHIFT_BOUNDS, (0.0, 1.0), strict=True))
TOLERANCES = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-8)

B = [(0.8, 0.875), (0.4, 0.25)]
C = [*B, (0.6, 0.5)]
D = [*C, (0.6, 0.625)]
E = [(0.2, 0.26653816), (0.4, 0.6), (0.6, 0.93346184)]
# name, rounds, options, target, rate: the minimum of 200 random starts
WORKED: list[tuple[str, list[tuple[float, float]], dict[str, Any], float, float]] = [
    ("two rounds", B, {}, 0.5, 0.54103),
    ("a third on their curve", [*B, (0.54103, 0.5)], {}, 0.5, 0.54103),
    ("three rounds", C, {}, 0.5, 0.57597),
    ("three rounds, target .25", C, {}, 0.25, 0.43154),
    ("three rounds, target .375", C, {}, 0.375, 0.50905),
    ("three rounds, target .625", C, {}, 0.625, 0.64266),
    ("three rounds, target .75", C, {}, 0.75, 0.71923),
    ("a repeated rate, each round", D, {}, 0.5, 0.56019),
    ("a repeated rate, once", D, {"duplicates": "per_distinct_rate"}, 0.5, 0.55627),
    ("an exact curve, no margins", E, {"margins": False}, 0.5, 0.35743),
    ("the same with margins", E, {}, 0.5, 0.33958),
]


def curve(p: Any, slope: float, shift: float, floor: float) -> Any:
    return floor + (1.0 - floor) / (1.0 + np.exp(-slope * (p + shift)))


def trust_region(p: Any, a: Any) -> Any:
    return least_squares(lambda x: curve(p, *x) - a, START, bounds=BOUNDS, method="trf", **TOLERANCES)


def with_lmfit(p: Any, a: Any) -> Any:
    parameters = lmfit.Parameters()
    for name, value, low, high in zip(("slope", "shift", "floor"), START, *BOUNDS, strict=True):
        parameters.add(name, value, min=low, max=high)
    with np.errstate(invalid="ignore"):  # the standard errors of an undetermined fit
        return lmfit.minimize(
            lambda x: curve(p, x["slope"].value, x["shift"].value, x["floor"].value) - a,
            parameters,
            method="least_squares",
            **TOLERANCES,
        )


def seconds(step: Callable[[], Any]) -> float:
    """Of CPU time: both sides run on one thread, so what else the machine does stays out."""
    started = time.process_time()
    step()
    return time.process_time() - started


def compared(name: str, ours: list[float], theirs: list[float], other: str, promised: float) -> bool:
    """Print one row, times in milliseconds; whether the promise is kept."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    median = float(np.median(ratios))
    print(
        f"{name}: ours {1e3 * np.median(ours):,.2f} ms, {other} {1e3 * np.median(theirs):,.2f} ms, "
        f"{median:.1f} times faster [{ratios[0]:.1f}, {ratios[-1]:.1f}] (at least {promised:g} promised)"
    )
    return median >= promised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rates = rng.random((args.problems, 3))
    accuracies = rng.integers(0, 9, (args.problems, 3)) / 8
    rounds = rng.integers(1, 4, args.problems)
    known = np.arange(3) < rounds[:, None]
    alone = [(p[:n], a[:n]) for p, a, n in zip(rates, accuracies, rounds, strict=True)]
    points = [(np.append(p, (0.0, 1.0)), np.append(a, (0.0, 1.0))) for p, a in alone]
    print(f"{args.problems} fits of 1..3 rounds and two margins, {args.repeats} repeats; {os.cpu_count()} cores")

    def batch() -> Any:
        return fit_item_response(rates, accuracies, known=known).rate_for(0.5)

    def one(i: int) -> Any:
        p, a = alone[i]
        return fit_item_response(p[None], a[None]).rate_for(0.5)

    batch(), one(0), trust_region(*points[0]), with_lmfit(*points[0])  # warm up
    ours, scipys, lmfits = [], [], []
    for _ in range(args.repeats):
        ours.append(seconds(batch))
        scipys.append(seconds(lambda: [trust_region(p, a) for p, a in points]))
        lmfits.append(seconds(lambda: [with_lmfit(p, a) for p, a in points]))
    baselines = ((scipys, "scipy trf", 10), (lmfits, "lmfit", 25))
    kept = [compared("a step's fits", ours, times, *other) for times, *other in baselines]

    ours, scipys = [], []
    for repeat in range(args.repeats):  # median of 20 calls each, call by call in turn
        chosen = range(20 * repeat, 20 * repeat + 20)
        pairs = [(seconds(lambda i=i: one(i)), seconds(lambda i=i: trust_region(*points[i]))) for i in chosen]
        ours.append(float(np.median([a for a, _ in pairs])))
        scipys.append(float(np.median([b for _, b in pairs])))
    kept.append(compared("one fit alone", ours, scipys, "scipy trf", 3))

    errors = {}
    for name, pairs_of, options, target, rate in WORKED:
        p, a = zip(*pairs_of, strict=True)
        errors[name] = abs(float(fit_item_response([p], [a], **options).rate_for(target)[0]) - rate)
    worst = max(errors, key=errors.__getitem__)
    print(f"rates of {len(WORKED)} worked examples: off by at most {errors[worst]:.1e} in {worst!r} (1e-3 promised)")
    kept.append(errors[worst] <= 1e-3)
    if not all(kept):
        sys.exit("a promise is not kept")


if __name__ == "__main__":
    main()
