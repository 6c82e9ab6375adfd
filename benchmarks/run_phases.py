"""Seconds a step by phase, training accuracy and lengths of finished runs, as in the GPU tables of recipes/README.md.

    python benchmarks/run_phases.py RUN_FOLDER [...]

Medians over the steps but the first, which compiles kernels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

PHASES = {
    "seconds a step": "timing_s/step",
    "generation": "timing_s/gen",
    "longest single answer": "time/generate_s",
    "old log-probs": "timing_s/old_log_prob",
    "credit": "time/credit_s",
    "update": "timing_s/update_actor",
    "weight sync": "timing_s/update_weights",
}
ENDS = 5  # steps that the first and last figures are means of


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last `ENDS` values."""
    return statistics.fmean(values[:ENDS]), statistics.fmean(values[-ENDS:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    print(f"| run | steps | accuracy | tokens | {' | '.join(PHASES)} |\n|{'---|' * (4 + len(PHASES))}")
    for run in args.runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "timing_s/step" in line]
        if len(steps) < 2:
            raise SystemExit(f"{run} has {len(steps)} trained steps: at least 2 are needed")
        first, last = ends([line["score/mean"] for line in steps])
        short, long = ends([line["length/mean"] for line in steps])
        seconds = [
            f"{statistics.median(line[key] for line in steps[1:]):.2f}" if key in steps[-1] else ""
            for key in PHASES.values()
        ]
        print(
            f"| {run.name} | {len(steps)} | {first:.1%} → {last:.1%} | {short:.0f} → {long:.0f} | {' | '.join(seconds)} |"
        )


if __name__ == "__main__":
    main()
