"""The table of the embedded model: GRPO, DeepCompress by the paper and the short-run recipe, three seeds, equal rollouts.

    python benchmarks/tiny_table.py run runs/tiny_table      # nine runs one after the other, about half an hour on 2 cores
    python benchmarks/tiny_table.py run runs/tiny_table 2    # only seed 2, to have seeds side by side
    python benchmarks/tiny_table.py table runs/tiny_table    # the Markdown table from their run folders

Every run: 50 steps of 16 problems x 8 rollouts on `data=arithmetic`; validation samples 4 answers (temperature 1) to
each of the same 256 held-out problems.
Intervals are Student's t over the three seeds (2 degrees of freedom, 95 %), of the difference by seed where one is shown.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

STEPS = 50
COMMON = [f"steps={STEPS}", "save_every=0", "validate_every=25", "val_n=4"]
ARMS = {
    "GRPO": ["method=grpo", "method.n=8"],
    "DeepCompress, paper's defaults": ["method=deepcompress", "method.n=8"],
    "DeepCompress, `recipe=deepcompress/tiny`": ["recipe=deepcompress/tiny"],
}
SEEDS = (1, 2, 3)
T95 = 4.303  # Student's t, 2 degrees of freedom


def name_of(arm: str, seed: int) -> str:
    return f"{list(ARMS).index(arm)}-s{seed}"


def lines(folder: Path) -> list[dict[str, float]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def run(out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Make the runs that are not complete yet."""
    for seed in seeds:
        for arm, args in ARMS.items():
            name = name_of(arm, seed)
            done = lines(out / name)
            if done and done[-1]["step"] == STEPS:
                continue
            command = [sys.executable, "-m", "reasonrl", *args, *COMMON, f"seed={seed}", f"out={out}", f"name={name}"]
            print(" ".join(command[1:]), flush=True)
            subprocess.run(command, check=True)


def with_interval(values: list[float], unit: str, scale: float = 1.0) -> str:
    mean = sum(values) / len(values)
    half = T95 * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return f"{mean * scale:.1f} ± {half * scale:.1f}{unit}"


def table(out: Path) -> str:
    """Markdown. Raises FileNotFoundError when a run is missing."""
    ends: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
    for arm in ARMS:
        for seed in SEEDS:
            validated = [line for line in lines(out / name_of(arm, seed)) if "val/acc" in line]
            if not validated or validated[-1]["step"] != STEPS:
                raise FileNotFoundError(f"{out / name_of(arm, seed)} is not a complete run: `run` first")
            ends.setdefault(arm, []).append((validated[0], validated[-1]))
    base = [after["val/tokens_correct"] for _, after in ends["GRPO"]]
    rows = [
        "| method | accuracy before | accuracy after | gain | tokens of right answers | against GRPO's | accuracy by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, pairs in ends.items():
        after = [a["val/acc"] for _, a in pairs]
        tokens = [a["val/tokens_correct"] for _, a in pairs]
        gain = [a["val/acc"] - b["val/acc"] for b, a in pairs]
        ratio = [t / g - 1 for t, g in zip(tokens, base, strict=True)]
        cells = [
            arm,
            f"{sum(b['val/acc'] for b, _ in pairs) / len(pairs):.1%}",
            with_interval(after, " %", 100),
            with_interval(gain, " pt", 100),
            with_interval(tokens, ""),
            "" if arm == "GRPO" else with_interval(ratio, " %", 100),
            ", ".join(f"{a:.1%}" for a in after),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("run", "table"):
        sys.exit(__doc__)
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), tuple(map(int, sys.argv[3:])) or SEEDS)
    else:
        print(table(Path(sys.argv[2])))
