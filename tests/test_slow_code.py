"""Training on programs, through Ray and verl on the CPU, with a judge of the run's own. `make test-slow`.

The embedded model knows sums and no Python. So every rollout starts behind a program that was stored for its problem, right
for one half of them and wrong for the other: what the judge says of it is the reward.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from e2e import finish, start
from judge_builders import need_judge

from reasonrl.data import functions
from reasonrl.data.items import step_text
from reasonrl.data.prepare import write_items
from reasonrl.runs.folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

PROBLEMS = 8
RUN = [
    *["model=tiny", "method=pace", "method.n=2", "method.initial_tokens=112", "method.protected_steps=100000"],
    *["data=verl", "data.path=train.parquet", "data.val_path=val.parquet", "verify=code", "verify.cpu_seconds=1"],
    *["batch=4", "max_prompt_tokens=200", "max_new_tokens=120", "name=run"],
]


def write_data(folder: Path) -> None:
    """Problems of `data=functions`; every other one brings a right program as its stored opening, the rest a wrong one."""
    for split, name in (("train", "train"), ("validation", "val")):
        made = list(functions.items(split, PROBLEMS, 0, min_level=1, max_level=2))
        write_items(made, folder / f"{name}.parquet", split=name)
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        for place, (row, item) in enumerate(zip(rows, made, strict=True)):
            program = "".join(map(step_text, item.steps))
            right = place % 2 == 0
            row["extra_info"]["stored_prefix"] = [program if right else program.replace("return ", "return 1 + ")]
            row["extra_info"]["id"] = f"{'right' if right else 'wrong'}/{place}"
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def own_judges() -> set[int]:
    """Judges that somebody on this machine has started for a while."""
    return {
        each.pid for each in psutil.process_iter(["cmdline"]) if "end_with_stdin=true" in (each.info["cmdline"] or ())
    }


def judges_below(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "judge" in arguments(child)[1:5]]


def arguments(process: psutil.Process) -> list[str]:
    """Of a process that may have ended meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def test_the_judges_word_is_the_reward(tmp_path: Path) -> None:
    need_judge()
    write_data(tmp_path)
    before = own_judges()
    text = finish(tmp_path, *RUN, "steps=2")
    run = RunFolder.open(tmp_path / "runs" / "run")
    assert [line["step"] for line in run.lines()] == [0, 1, 2]
    for step in (1, 2):
        frame = run.rollouts(step)
        assert len(frame) == 8
        wanted = frame.problem_id.str.startswith("right/").astype(float)
        assert frame.score.tolist() == wanted.tolist()
    assert run.lines()[0]["val/acc"] == 0.0  # validation gives no opening, and the model writes no program
    assert run.lines()[0]["val/failed"] == 0.0
    assert run.lines()[1]["verify/checked"] == 8
    assert run.lines()[1]["verify/error"] == 0
    assert "Traceback" not in text
    assert own_judges() <= before  # it is gone with the run


def test_a_judge_that_dies_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    need_judge()
    write_data(tmp_path)
    process = start(tmp_path, *RUN, "steps=1000", "save_every=1000", "validate_every=0")
    file = tmp_path / "runs" / "run" / "rollouts" / "step_000001.parquet"
    deadline = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, (tmp_path / "out.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (judge,) = judges_below(process.pid)
    os.kill(judge.pid, signal.SIGKILL)
    code = process.wait(timeout=300)  # a minute of patience, and the end of Ray
    text = (tmp_path / "out.txt").read_text()
    assert code == 1, text[-3000:]
    assert "no judge at unix:" in text
    assert "Traceback" not in text
    scores = [score for path in file.parent.glob("*.parquet") for score in pq.read_table(path)["score"].to_pylist()]
    assert sum(scores) == len(scores) / 2  # and no program was called wrong for it
