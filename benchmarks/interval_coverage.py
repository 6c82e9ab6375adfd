"""How often the 95 % interval of an accuracy holds the truth, on benchmarks of the sizes people have.

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py [--simulations 10000] [--concentration 1] [--others]

Each simulation draws B problems and n samples of each, as an evaluation does, and asks for the interval of the accuracy. A
problem's chance to be solved comes from a Beta of the stated mean and of `--concentration` a + b: below 2 it is U-shaped,
most problems are always or never solved, as on AIME; at 1 the samples of one problem correlate by .5. With one sample a
problem it plays no part. 10,000 simulations know a coverage to 0.4 points (two standard errors), 2,000 to 1. `--others`
measures the intervals that were not chosen, on the same draws. A last table is of differences of two results on the same
problems, seven in ten of which are as hard for both. The promise is of the first table at concentration 1.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.special import expit, logit, stdtrit

from reasonrl.functional.estimates import Interval, difference_interval, mean_interval, share_interval

CELLS = ((30, 1), (30, 16), (40, 32), (164, 1), (500, 1), (500, 4), (1319, 1))  # problems, samples of each
PROMISED_CELLS = tuple(
    cell for cell in CELLS if cell != (30, 1)
)  # so few verdicts take so few values that coverage jumps
ACCURACIES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
PROMISED = (0.93, 0.97)
RESAMPLES = 1000  # of the percentile interval, which is left out beyond FEW problems
FEW = 40
Z = NormalDist().inv_cdf(0.975)


def solved(rng: np.random.Generator, problems: int, samples: int, accuracy: float, concentration: float) -> Any:
    """(problems,) share of right samples of one simulated evaluation."""
    chance = rng.beta(accuracy * concentration, (1 - accuracy) * concentration, problems)
    return rng.binomial(samples, chance) / samples


def coverage(
    interval: Callable[[Any, int], Interval],
    problems: int,
    samples: int,
    accuracy: float,
    *,
    concentration: float = 1.0,
    simulations: int = 2000,
) -> tuple[float, float]:
    """Share of simulated evaluations whose interval holds the accuracy, and the intervals' mean width."""
    rng = np.random.default_rng([problems, samples, round(1000 * accuracy)])  # the same evaluations for every interval
    made = [interval(solved(rng, problems, samples, accuracy, concentration), samples) for _ in range(simulations)]
    held = np.mean([found.low <= accuracy <= found.high for found in made])
    return float(held), float(np.mean([found.high - found.low for found in made]))


def chosen(values: Any, samples: int) -> Interval:
    return share_interval(values)


def percentile(values: Any, samples: int) -> Interval:
    return mean_interval(values, resamples=RESAMPLES)


def student(values: Any, samples: int) -> Interval:
    half = stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / math.sqrt(values.size)
    return Interval(values.mean(), values.mean() - half, values.mean() + half)


def student_logit(values: Any, samples: int) -> Interval:
    """Equal values say nothing: all of [0, 1]."""
    mean = values.mean()
    if np.ptp(values) == 0:
        return Interval(mean, 0.0, 1.0)
    half = stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / math.sqrt(values.size) / (mean * (1 - mean))
    return Interval(mean, expit(logit(mean) - half), expit(logit(mean) + half))


def korn_graubard_wilson(values: Any, samples: int) -> Interval:
    """Wilson's, with the number of independent samples that would spread as much, corrected for degrees of freedom."""
    mean, spread, size = values.mean(), values.var(), values.size
    effective = size if spread == 0 else size * mean * (1 - mean) / spread
    effective *= (stdtrit(size * samples - 1, 0.975) / stdtrit(size - 1, 0.975)) ** 2
    added = Z * Z / effective
    centre = (mean + added / 2) / (1 + added)
    half = math.sqrt(added * (mean * (1 - mean) + added / 4)) / (1 + added)
    return Interval(mean, centre - half, centre + half)


OTHERS: dict[str, Callable[[Any, int], Interval]] = {
    "t": student,
    "t on the logit scale": student_logit,
    "Wilson, effective sample size (Korn and Graubard)": korn_graubard_wilson,
    "percentile of resampled problems, level expanded": percentile,
}


def table(
    name: str, interval: Callable[[Any, int], Interval], args: argparse.Namespace
) -> dict[tuple[int, int, float], float]:
    """Print one in Markdown; the coverages."""
    print(f"\n{name}, concentration {args.concentration:g}, {args.simulations} simulations: coverage (mean width), %\n")
    print(f"| problems x samples | {' | '.join(f'{accuracy:g}' for accuracy in ACCURACIES)} |")
    print(f"|---|{'---|' * len(ACCURACIES)}")
    found = {}
    for problems, samples in CELLS:
        if interval is percentile and problems > FEW:
            continue
        cells = []
        for accuracy in ACCURACIES:
            held, width = coverage(
                interval, problems, samples, accuracy, concentration=args.concentration, simulations=args.simulations
            )
            found[problems, samples, accuracy] = held
            cells.append(f"{100 * held:.1f} ({100 * width:.1f})")
        print(f"| {problems} x {samples} | {' | '.join(cells)} |", flush=True)
    return found


def differences(args: argparse.Namespace) -> None:
    """Coverage of the paired interval; seven in ten problems are as hard for both, `gain` above that."""
    print(f"\ndifference of two results, {args.simulations} simulations: coverage (mean width), %\n")
    cases = ((0.1, 0.02), (0.3, 0.05), (0.5, 0.1), (0.8, 0.02), (0.9, 0.0))
    print(f"| problems x samples | {' | '.join(f'{accuracy:g}, {gain:+g}' for accuracy, gain in cases)} |")
    print(f"|---|{'---|' * len(cases)}")
    for problems, samples in CELLS:
        cells = []
        for accuracy, gain in cases:
            rng = np.random.default_rng([problems, samples, round(1000 * accuracy)])
            shape = accuracy * args.concentration, (1 - accuracy) * args.concentration
            held, width = [], []
            for _ in range(args.simulations):
                first, fresh = rng.beta(*shape, (2, problems))
                second = np.where(rng.random(problems) < 0.7, first, fresh)
                second = second + gain * (1 - second) / (1 - accuracy)
                found = difference_interval(
                    rng.binomial(samples, second) / samples, rng.binomial(samples, first) / samples
                )
                held.append(found.low <= gain <= found.high)
                width.append(found.high - found.low)
            cells.append(f"{100 * np.mean(held):.1f} ({100 * np.mean(width):.1f})")
        print(f"| {problems} x {samples} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--concentration", type=float, default=1.0)
    parser.add_argument("--others", action="store_true")
    args = parser.parse_args()
    found = table("Agresti and Coull's over problems", chosen, args)
    for name, interval in OTHERS.items() if args.others else ():
        table(name, interval, args)
    differences(args)
    missed = {
        cell: held
        for cell, held in found.items()
        if cell[:2] in PROMISED_CELLS and not PROMISED[0] <= held <= PROMISED[1]
    }
    for (problems, samples, accuracy), held in missed.items():
        print(
            f"{problems} x {samples} at accuracy {accuracy:g}: {held:.2%} is outside {PROMISED[0]:.0%}..{PROMISED[1]:.0%}"
        )
    if missed and args.concentration == 1.0:
        sys.exit("the promise is not kept")


if __name__ == "__main__":
    main()
