"""The tables of the embedded model in recipes/README.md: equal rollouts, three seeds, run folders as evidence.

    python benchmarks/tiny_table.py run lengths runs/tiny        # every run of a table, one after the other
    python benchmarks/tiny_table.py run lengths runs/tiny 2      # only seed 2: side by side, once the store is there
    python benchmarks/tiny_table.py table lengths runs/tiny      # the Markdown table from their run folders

lengths: 50 steps of 16 problems x 8 rollouts on `data=arithmetic`, which the model was taught on. Who answers shorter?
hints: 30 steps of 16 problems x 16 rollouts on 64 problems of four numbers that the model solves in at most 1 of 32
    tries. Who learns more? (The plain model solves 16 % of all problems of four numbers; at most 20 % of these.)

steps: 16 problems x 8 rollouts on `data=arithmetic`, GRPO for 60 steps and AdaptiveStep for as many as sample the same
    number of tokens, those of its probes included. Whose tokens are better spent?

Validation samples 4 answers (temperature 1) to each of the same 256 held-out problems of the same kind; for hints 8 to each
of 112, as hard.
Intervals are Student's t over the three seeds (2 degrees of freedom, 95 %), of the difference by seed where one is shown.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEEDS = (1, 2, 3)
T95 = 4.303  # Student's t, 2 degrees of freedom
STEPS = 50
EPOCH = 4  # steps of the hints table: 64 problems in batches of 16
STORE = "{out}/prefixes"  # of the lengths table, made before its first run
HARD = {"train": (480, 64), "validation": (768, 112)}  # of the hints table: problems to draw from, and to keep
TRIES, MOST_RIGHT = 32, 1

BUDGETS = (50_000, 100_000, 150_000, 200_000, 250_000)  # generated tokens, columns of the steps table
PROBES = ["method=adaptivestep", "method.n=8", "method.probes=4", "method.max_steps=3", "method.refresh=5"]

PACE = ["method=pace", "method.n=8", "method.initial_tokens=16", "method.protected_steps=20"]
SEELE = ["method.n=16", "method.rounds=4"]


@dataclass(frozen=True)
class Table:
    """Runs to compare: arguments that all of them have, and those of each arm; the first arm is the baseline."""

    common: list[str]
    arms: dict[str, list[str]]


TABLES = {
    "lengths": Table(
        [f"steps={STEPS}", "save_every=0", "validate_every=25", "val_n=4"],
        {
            "GRPO": ["method=grpo", "method.n=8"],
            "DeepCompress, paper's defaults": ["method=deepcompress", "method.n=8"],
            "DeepCompress, `recipe=deepcompress/tiny`": ["recipe=deepcompress/tiny"],
            "PACE, 16 tokens protected over 20 steps": [*PACE, f"prefixes={STORE}"],
            "PACE without prefix": ["method=pace", "method.n=8", "method.initial_tokens=0"],
            "PACE without difficulty scaling": [*PACE, "method.alpha_mode=one", f"prefixes={STORE}"],
        },
    ),
    "hints": Table(
        [
            *[
                "model=tiny",
                "data=jsonl",
                "data.path={out}/hard/train.jsonl",
                "data.val_path={out}/hard/validation.jsonl",
            ],
            *["steps=30", "save_every=0", "validate_every=10", "val_n=8"],
        ],
        {
            "GRPO": ["method=grpo", "method.n=16"],
            "SEELE": ["method=seele", *SEELE],
            "UFT": ["method=uft", "method.n=16", "method.hint_steps=18"],
            "Prefix-RFT": ["method=prefix_rft", "method.n=16"],
        },
    ),
    "steps": Table(
        ["model=tiny", "save_every=0", "val_n=4"],
        {
            "GRPO": ["method=grpo", "method.n=8", "steps=60", "validate_every=10"],
            "AdaptiveStep, at most 2 cuts x 4 probes": [*PROBES, "steps=26", "validate_every=4"],
            "AdaptiveStep, steps alone": [*PROBES, "method.outcome_weight=0", "steps=26", "validate_every=4"],
        },
    ),
}


def name_of(table: str, arm: str, seed: int) -> str:
    return f"{table}-{list(TABLES[table].arms).index(arm)}-s{seed}"


def steps_of(table: str, arm: str) -> int:
    args = [*TABLES[table].common, *TABLES[table].arms[arm]]
    given = [int(arg.removeprefix("steps=")) for arg in args if arg.startswith("steps=")]
    return given[-1] if given else STEPS


def lines(folder: Path) -> list[dict[str, float]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def reasonrl(*args: str) -> None:
    print("reasonrl", " ".join(args), flush=True)
    subprocess.run([sys.executable, "-m", "reasonrl", *args], check=True)


def make_hard(out: Path) -> None:
    """Write problems a split that the untrained model seldom solves, as `reasonrl prefixes` counts its answers."""
    from reasonrl.data import arithmetic, prefixes

    folder = out / "hard"
    folder.mkdir(parents=True, exist_ok=True)
    pools = {split: folder / f"{split}-pool.jsonl" for split in HARD}
    for split, (drawn, _) in HARD.items():
        items = arithmetic.items(split, drawn, seed=0, min_terms=4, max_terms=4)
        rows = [{"id": i.question, "question": i.question, "answer": i.answer, "steps": list(i.steps)} for i in items]
        pools[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    for (split, pool), other in zip(pools.items(), reversed(pools.values()), strict=True):
        if (folder / f"{split}.jsonl").is_file():
            continue
        files = [f"data.path={pool}", f"data.val_path={other}"]
        reasonrl("prefixes", "model=tiny", "data=jsonl", *files, f"n={TRIES}", f"store={folder / split}-pool")
        rows = prefixes.read(folder / f"{split}-pool" / prefixes.FILE).rows.values()
        right = {row.id.removeprefix("jsonl/"): row.right for row in rows}
        hard = [line for line in pool.read_text().splitlines() if right[json.loads(line)["id"]] <= MOST_RIGHT]
        print(
            f"{split}: {len(hard)} of {len(rows)} problems are solved in at most {MOST_RIGHT} of {TRIES} tries",
            flush=True,
        )
        (folder / f"{split}.jsonl").write_text("\n".join(hard[: HARD[split][1]]) + "\n")


def run(name: str, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Make the runs that are not complete yet."""
    table = TABLES[name]
    store = STORE.format(out=out)
    if name == "hints":
        make_hard(out)
    for seed in seeds:
        for arm, args in table.arms.items():
            run_name = name_of(name, arm, seed)
            done = lines(out / run_name)
            if done and done[-1]["step"] == steps_of(name, arm):
                continue
            args = [arg.format(out=out) for arg in args]
            if f"prefixes={store}" in args and not (Path(store) / "prefixes.parquet").is_file():
                reasonrl("prefixes", "model=tiny", "data=arithmetic", "n=8", f"store={store}")
            reasonrl(
                *args, *(c.format(out=out) for c in table.common), f"seed={seed}", f"out={out}", f"name={run_name}"
            )


def with_interval(values: list[float], unit: str, scale: float = 1.0) -> str:
    mean = sum(values) / len(values)
    half = T95 * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return f"{mean * scale:.1f} ± {half * scale:.1f}{unit}"


def runs_of(name: str, out: Path, arm: str) -> list[list[dict[str, float]]]:
    """The metrics lines of an arm's runs. Raises FileNotFoundError when one is missing or has not ended."""
    found = [lines(out / name_of(name, arm, seed)) for seed in SEEDS]
    for seed, made in zip(SEEDS, found, strict=True):
        if not made or made[-1]["step"] != steps_of(name, arm) or "val/acc" not in made[-1]:
            raise FileNotFoundError(f"{out / name_of(name, arm, seed)} is not a complete run: `run` first")
    return found


def column(runs: list[list[dict[str, float]]], key: str, at: int = -1) -> list[float]:
    """One number a seed: at the last validation, or the first."""
    return [[line[key] for line in made if key in line][at] for made in runs]


def lengths_row(runs: list[list[dict[str, float]]], base: list[list[dict[str, float]]]) -> list[str]:
    after, tokens = column(runs, "val/acc"), column(runs, "val/tokens_correct")
    gain = [a - b for a, b in zip(after, column(runs, "val/acc", 0), strict=True)]
    ratio = [t / g - 1 for t, g in zip(tokens, column(base, "val/tokens_correct"), strict=True)]
    return [
        f"{sum(column(runs, 'val/acc', 0)) / len(runs):.1%}",
        with_interval(after, " %", 100),
        with_interval(gain, " pt", 100),
        with_interval(tokens, ""),
        "" if runs is base else with_interval(ratio, " %", 100),
        ", ".join(f"{a:.1%}" for a in after),
    ]


def hints_row(runs: list[list[dict[str, float]]], base: list[list[dict[str, float]]]) -> list[str]:
    after = column(runs, "val/acc")
    better = [a - b for a, b in zip(after, column(base, "val/acc"), strict=True)]
    epochs = [[line["score/mean"] for line in made if line["step"] > EPOCH] for made in runs]
    return [
        f"{sum(column(runs, 'val/acc', 0)) / len(runs):.1%}",
        with_interval([sum(scores) / len(scores) for scores in epochs], " %", 100),
        with_interval(after, " %", 100),
        "" if runs is base else with_interval(better, " pt", 100),
        f"{sum(np.mean([line['length/mean'] for line in made if 'length/mean' in line]) for made in runs) / len(runs):.0f}",
        ", ".join(f"{a:.1%}" for a in after),
    ]


def spent(made: list[dict[str, float]]) -> list[tuple[float, float]]:
    """(generated tokens so far, held-out accuracy) at each validation; probes are generated too."""
    tokens, found = 0.0, []
    for line in made:
        rollouts = line.get("group/count", 0.0) * 8
        tokens += line.get("length/mean", 0.0) * rollouts * (1.0 + line.get("prefix/probe_cost", 0.0))
        if "val/acc" in line:
            found.append((tokens, line["val/acc"]))
    return found


def steps_row(runs: list[list[dict[str, float]]], base: list[list[dict[str, float]]]) -> list[str]:
    curves = [list(zip(*spent(made), strict=True)) for made in runs]
    cost = [1 + sum(line.get("prefix/probe_cost", 0.0) for line in made) / made[-1]["step"] for made in runs]
    cells = []
    for budget in BUDGETS:
        reached = all(tokens[-1] >= budget for tokens, _ in curves)
        at = [float(np.interp(budget, tokens, accuracy)) for tokens, accuracy in curves]
        cells.append(with_interval(at, " %", 100) if reached else "")
    return [f"{sum(cost) / len(cost):.1f}", f"{sum(made[-1]['step'] for made in runs) // len(runs)}", *cells]


HEADS = {
    "lengths": "| method | accuracy before | accuracy after | gain | tokens of right answers | against GRPO's | "
    "accuracy by seed |",
    "hints": "| method | accuracy before | of trained rollouts after the first epoch | held-out accuracy after | "
    "against GRPO | generated tokens a rollout | accuracy by seed |",
    "steps": "| method | sampled tokens a token of rollouts | steps | "
    + " | ".join(f"accuracy at {budget // 1000}k tokens" for budget in BUDGETS)
    + " |",
}
ROWS = {"lengths": lengths_row, "hints": hints_row, "steps": steps_row}


def markdown(name: str, out: Path) -> str:
    """The table. Raises FileNotFoundError when a run is missing."""
    found = {arm: runs_of(name, out, arm) for arm in TABLES[name].arms}
    base = next(iter(found.values()))
    rows = [f"| {' | '.join([arm, *ROWS[name](runs, base)])} |" for arm, runs in found.items()]
    return "\n".join([HEADS[name], "|---" * HEADS[name].count(" | ") + "|---|", *rows])


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("run", "table") or sys.argv[2] not in TABLES:
        sys.exit(__doc__)
    if sys.argv[1] == "run":
        run(sys.argv[2], Path(sys.argv[3]).absolute(), tuple(map(int, sys.argv[4:])) or SEEDS)
    else:
        print(markdown(sys.argv[2], Path(sys.argv[3]).absolute()))
