"""Runs the real command in a process of its own: Ray, verl, the CPU rollout engine, the embedded model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SMALL = ["model=tiny", "batch=4", "method.n=4", "data.size=64", "data.val_size=16", "val_n=1", "max_new_tokens=112"]


def environment(folder: Path) -> dict[str, str]:
    """Without what this test process has set for itself; `folder` is importable, as the current one is for a user."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VERL_", "PYTEST_"))}
    return kept | {"PYTHONUNBUFFERED": "1"}


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    """`reasonrl <args>` in `folder`, output in folder/out.txt."""
    with (folder / "out.txt").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "reasonrl", *args],
            cwd=folder,
            env=environment(folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # a shell that was told to work in the background ignores Ctrl-C, and so would all it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(folder: Path, *args: str, seconds: float = 420) -> str:
    """Run to the end and return the output; a non-zero exit code fails with the end of it."""
    process = start(folder, *args)
    code = process.wait(timeout=seconds)
    text = (folder / "out.txt").read_text()
    assert code == 0, text[-6000:]
    return text


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 300) -> bool:
    """kill -9 the whole process group once `ready`; False when it had ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if ready():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.02)
    raise AssertionError("not ready in time")
