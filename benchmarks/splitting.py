"""Splitting responses at low confidence, against plain numpy passes over the same array: a million tokens.

    OMP_NUM_THREADS=1 python benchmarks/splitting.py [--tokens 1000000] [--repeats 15]

The step of training: `split` with a known threshold. Two passes stand beside it, over the same array of confidences:
`np.exp`, which is what making them costs, and `c < tau`, the cheapest that any splitter needs. The promise is kept
against the second too. What comes before, checked confidences and the threshold, is printed on its own. Sides
alternate; a figure is the median of the paired ratios with its range over the repeats.
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

from reasonrl.functional.confidence import confidence, split, threshold

PROMISED = 10.0
QUANTILE = 0.02


def responses(tokens: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Log-probabilities (N,) as rollouts carry them, and lengths (R,), about 400 tokens each; most tokens are sure."""
    lengths = rng.integers(200, 601, size=max(1, tokens // 400))
    lengths[-1] += max(0, tokens - lengths.sum())
    stops = np.minimum(lengths.cumsum(), tokens)
    logprobs = np.log(np.clip(rng.beta(4.0, 0.25, tokens), 1e-12, 1.0)).astype(np.float32)
    return logprobs, np.diff(stops, prepend=0)


def seconds(step: Callable[[], Any]) -> float:
    """Of CPU time: both sides run on one thread, so what else the machine does stays out."""
    started = time.process_time()
    step()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    logprobs, lengths = responses(args.tokens, np.random.default_rng(0))
    values = confidence(logprobs)
    tau = threshold(values, QUANTILE)
    ended = np.zeros(args.tokens, dtype=bool)
    ended[lengths.cumsum() - 1] = True  # an end token each
    wide = logprobs.astype(np.float64)
    steps: dict[str, Callable[[], Any]] = {
        "split": lambda: split(values, lengths, tau),
        "split, end tokens excluded": lambda: split(values, lengths, tau, excluded=ended),
        "np.exp": lambda: np.exp(wide),
        "c < tau": lambda: values < tau,
        "confidence": lambda: confidence(logprobs),
        "threshold": lambda: threshold(values, QUANTILE),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in [*steps.items()] * (1 + args.repeats):  # the first round warms up
        times[name].append(seconds(step))
    ends, counts = split(values, lengths, tau)
    print(
        f"{args.tokens:,} tokens in {lengths.size:,} responses, tau {tau:.3f}, {ends.size:,} steps, "
        f"{counts.mean():.1f} a response; {args.repeats} repeats, {os.cpu_count()} cores"
    )
    print("; ".join(f"{name} {1e3 * np.median(found[1:]):.2f} ms" for name, found in times.items()))
    kept = True
    for ours in ("split", "split, end tokens excluded"):
        for plain in ("np.exp", "c < tau"):
            ratios = sorted(a / b for a, b in zip(times[ours][1:], times[plain][1:], strict=True))
            median = float(np.median(ratios))
            print(f"{ours} / {plain}: {median:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] (under {PROMISED:g} promised)")
            kept &= median < PROMISED
    if not kept:
        sys.exit("a promise is not kept")


if __name__ == "__main__":
    main()
