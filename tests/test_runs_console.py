"""What a person sees: progress lines, the summary, the curves."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from reasonrl.runs import console as module
from reasonrl.runs.console import Progress, clock, draw_curves, summary
from reasonrl.runs.folder import RunFolder

STEP = {"score/mean": 0.5, "length/mean": 12.34, "reward/mean": -0.25}


def terminal() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=120), text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (125, "2:05"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (90000, "25:00:00"),
    ],
)
def test_clock(seconds, shown) -> None:
    assert clock(seconds) == shown


@given(st.integers(0, 10**6))
def test_clock_loses_no_second(seconds) -> None:
    total = 0
    for part in clock(seconds).split(":"):
        total = total * 60 + int(part)
    assert total == seconds


def test_a_step_is_one_line_with_the_time_left_at_the_pace_so_far(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out, text = terminal()
    progress = Progress(out, steps=10, done=4)
    now[0] += 6
    progress(5, STEP)
    now[0] += 2
    progress(6, STEP)
    assert text.getvalue().splitlines() == [
        "step  5/10  accuracy  50.0%  tokens    12.3  reward -0.250    6.0 s  left 0:30",
        "step  6/10  accuracy  50.0%  tokens    12.3  reward -0.250    2.0 s  left 0:16",
    ]


def test_validation_before_the_first_step_is_told_and_takes_none_of_its_time(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out, text = terminal()
    progress = Progress(out, steps=2)
    now[0] += 50
    progress(0, {"val/acc": 0.25, "val/tokens": 40.0, "val/tokens_correct": 30.0})
    now[0] += 3
    progress(1, STEP)
    first, second = text.getvalue().splitlines()
    assert first == "validation at step 0: accuracy 25.0%, tokens 40.0, 30.0 when right"
    assert second.endswith("reward -0.250    3.0 s  left 0:03")


def frame(steps: int = 6) -> pd.DataFrame:
    rows = {
        "score/mean": [0.1 * i for i in range(steps)],
        "length/correct": [20.0 - i for i in range(steps)],
        "length/wrong": [float("nan")] * steps,
        "val/acc": [0.2] + [None] * (steps - 2) + [0.5],
    }
    return pd.DataFrame(rows, index=pd.Index(range(1, steps + 1), name="step"))


def test_curves_are_a_png(tmp_path) -> None:
    path = draw_curves(frame(), tmp_path / "curves.png", title="run")
    assert path == tmp_path / "curves.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000


def test_nothing_is_drawn_of_a_run_without_steps(tmp_path) -> None:
    assert draw_curves(pd.DataFrame(), tmp_path / "curves.png", title="run") is None
    assert not (tmp_path / "curves.png").exists()


def test_the_summary_compares_first_and_last_validation(tmp_path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.record_validation(0, {"val/acc": 0.25, "val/tokens": 40.0})
    folder.record_validation(1, {"score/mean": 0.3, "val/acc": 0.375, "val/tokens": 30.0})
    folder.record_validation(2, {"score/mean": 0.3})
    out, text = terminal()
    summary(folder, out, 125)
    shown = text.getvalue()
    assert "run: 2 steps in 2:05" in shown
    rows = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:5]]
        for line in shown.splitlines()
        if line[0] == "│"
    }
    assert rows == {"accuracy": ["25.0%", "37.5%", "+12.5 pt"], "tokens": ["40.0", "30.0", "-10.0"]}
    assert (folder.path / "curves.png").is_file()


def test_the_summary_of_a_run_without_validation_says_where_everything_lies(tmp_path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.record_validation(1, {"score/mean": 0.3})
    out, text = terminal()
    summary(folder, out, 1)
    assert text.getvalue().replace("\n", "").startswith(f"run folder: {folder.path}")
