"""Kill -9 and resume, sweeps, ctrl-C: minutes each. `make test-slow`; the last result is in docs/slow_tests.md."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from e2e import SMALL, finish, kill_when, start

from reasonrl.runs.folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]

RUN = ["method=deepcompress", *SMALL, "dynamic_sampling.enable=true", "seed=7", "name=run"]
MEASURED = ("time", "timing", "perf", "actor/perf", "verify/cached")  # clocks, memory, and a cache that restarts


def reproducible(line: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if not k.startswith(MEASURED) and "/mfu" not in k}


# What is remembered between steps, and must come back: a smoothed pass rate; hint rates per problem, in the middle of an
# epoch of four steps; a threshold of two steps before; the place in a prefix budget that falls to nothing in step 6.
METHODS = {
    "deepcompress": ["method=deepcompress", *SMALL, "dynamic_sampling.enable=true"],
    "seele": [
        *["method=seele", *(arg for arg in SMALL if not arg.startswith("data.size"))],
        *["data.size=16", "data.min_terms=3", "method.rounds=2"],
    ],
    "adaptivestep": [
        "method=adaptivestep",
        *SMALL,
        "method.probes=2",
        "method.quantile=0.05",
        "method.refresh=2",
        "batch=12",
    ],
    "pace": ["method=pace", *SMALL, "method.initial_tokens=16", "method.protected_steps=6", "prefixes=../store"],
}


def kill_and_resume(folder: Path, args: list[str], steps: int, at: int) -> RunFolder:
    """Start, kill once step `at` is recorded, resume to the end."""
    run = folder / "runs" / "run"
    process = start(folder, *args, f"steps={steps}", "save_every=2", "deterministic=true")
    assert kill_when(process, lambda: (run / "rollouts" / f"step_{at:06d}.parquet").exists())
    finish(folder, "resume=runs/run")
    return RunFolder.open(run)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    """deterministic=true: the metrics of every step equal an uninterrupted run's to 1e-6."""
    args = [*METHODS[name], "seed=7", "name=run"]
    if name == "pace":
        finish(tmp_path, "prefixes", "model=tiny", "data.size=64", "data.val_size=16", "n=2", "store=store")
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finish(tmp_path / "whole", *args, "steps=6", "save_every=2", "deterministic=true")
    whole = RunFolder.open(tmp_path / "whole" / "runs" / "run").lines()
    killed = kill_and_resume(tmp_path / "killed", args, 6, at=random.Random(os.getpid()).choice([3, 4, 5])).lines()
    assert [line["step"] for line in killed] == [0, 1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(killed, whole, strict=True):
        assert reproducible(ours) == pytest.approx(reproducible(theirs), abs=1e-6)


def test_twenty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Killed anywhere, start-up and saving included; every resume continues, and the records end complete."""
    rng = random.Random(20)
    run = tmp_path / "runs" / "run"
    args = [*RUN, "steps=150", "save_every=1"]
    kills, reached = 0, []
    started, process = time.monotonic(), start(tmp_path, *args)
    saved = run / "checkpoints" / "global_step_1" / "reasonrl" / "COMPLETE"
    assert kill_when(process, saved.exists)
    usual = time.monotonic() - started  # until a first step is saved, on this machine today
    while kills < 20:
        begun = (run / "config.yaml").exists()
        process = start(tmp_path, *(["resume=runs/run"] if begun else args))
        patience = usual * rng.uniform(0.3, 1.4)
        started = time.monotonic()
        if not kill_when(process, lambda s=started, p=patience: time.monotonic() - s > p):
            assert process.returncode == 0, (tmp_path / "out.txt").read_text()[-4000:]
            break  # all steps are done
        kills += 1
        if (run / "config.yaml").exists():
            folder = RunFolder.open(run)
            reached.append(folder.complete_checkpoints()[-1] if folder.complete_checkpoints() else 0)
            assert reached == sorted(reached)
        elif run.exists():
            import shutil

            shutil.rmtree(run)  # killed before the run was one
    folder = RunFolder.open(run)
    if folder.lines()[-1]["step"] < 150:
        finish(tmp_path, "resume=runs/run", seconds=900)
    lines = folder.lines()
    assert [line["step"] for line in lines] == list(range(151))
    orders = [json.loads(folder.state(step)["order"])["position"] for step in folder.complete_checkpoints()]
    assert orders == sorted(orders)
    for step in range(1, 151):
        assert len(folder.rollouts(step)) > 0
    print(f"kills: {kills}; checkpoint after each: {reached}")


def test_a_sweep_leaves_complete_folders_and_goes_on_after_a_bad_job(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "method=grpo,deepcompress", "seed=1,2", *SMALL, "steps=2", "name=sweep")
    assert process.wait(timeout=600) == 0, (tmp_path / "out.txt").read_text()[-4000:]
    folders = [f for f in (tmp_path / "runs" / "sweep").iterdir() if f.is_dir()]
    assert len(folders) == 4
    for folder in folders:
        assert RunFolder.open(folder).complete_checkpoints() == [2]
    bad = start(tmp_path, "-m", "method=grpo", "lr=-1,1e-4", *SMALL, "steps=1", "name=partly")
    assert bad.wait(timeout=600) != 0
    records = [json.loads(line) for line in (tmp_path / "runs" / "partly" / "sweep.jsonl").read_text().splitlines()]
    assert [record["exit_code"] for record in records] == [2, 0]


def test_ctrl_c_leaves_no_process_and_a_folder_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    process = start(tmp_path, *RUN, "steps=30", "save_every=1")
    while not (run / "checkpoints" / "global_step_1" / "reasonrl" / "COMPLETE").exists():
        assert process.poll() is None, (tmp_path / "out.txt").read_text()[-4000:]
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert "interrupted" in (tmp_path / "out.txt").read_text()
    done = RunFolder.open(run).complete_checkpoints()[-1]
    finish(tmp_path, "resume=runs/run", f"steps={done + 1}")


@pytest.mark.parametrize(
    ("method", "part"), [("seele", "method/reward=dual_length"), ("pace", "method/difficulty=batch_relative")]
)
def test_methods_train_with_parts_of_others(tmp_path: Path, method: str, part: str) -> None:
    args = [*METHODS[method], part, "steps=3", "name=run"]
    if method == "pace":
        finish(tmp_path, "prefixes", "model=tiny", "data.size=64", "data.val_size=16", "n=2", "store=store")
        args[args.index("prefixes=../store")] = "prefixes=store"
    finish(tmp_path, *args)
    run = RunFolder.open(tmp_path / "runs" / "run")
    lines = run.lines()
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    if method == "seele":
        assert {"hint/rate"} <= lines[1].keys()
        assert any(name.startswith("reward/") and "length" in name for name in lines[1])
    else:
        assert lines[1]["prefix/tokens"] > 0
        assert "ledger/difficulty/batch_pass_rate" in lines[1]
