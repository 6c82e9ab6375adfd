"""One job of a sweep, in a process of its own; its exit code and output are kept, and the next job starts regardless."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from reasonrl.runs.files import append_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

STAMP = "REASONRL_SWEEP"  # one name for all jobs of a sweep
LONGEST_NAME = 120


def job_name(overrides: list[str]) -> str:
    """`method=grpo seed=1` -> `method=grpo,seed=1`, safe as a folder name; a hash stands for what had to go."""
    text = ",".join(o.lstrip("+") for o in overrides if not o.startswith(("out=", "name=", "hydra", "+hydra"))) or "job"
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=,._-") else "-" for c in text)
    if safe == text and len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[: LONGEST_NAME - 7]}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def recipe_again(override: str) -> str:
    """`+deepcompress=tiny` -> `recipe=deepcompress/tiny`: what the command line made of it needs Hydra's search path."""
    from reasonrl.cli import folder_of

    group, _, name = override.removeprefix("+").partition("=")
    is_recipe = override.startswith("+") and (folder_of("reasonrl.recipes") / group / f"{name}.yaml").is_file()
    return f"recipe={group}/{name}" if is_recipe else override


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """The job's exit code. On Ctrl-C the job gets a minute to take Ray down, which the terminal told it as well."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def run_in_process(cfg: DictConfig, overrides: list[str], number: int) -> int:
    """Run one job of a sweep as `reasonrl <overrides>`; returns its exit code. The sweep's folder gets sweep.jsonl."""
    stamp = os.environ.setdefault(STAMP, time.strftime("sweep-%m%d-%H%M%S"))
    folder = Path(cfg.out).expanduser() / (cfg.name or stamp)
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name(overrides)
    log = folder / f"{name}.log"
    console = Console(file=sys.stdout, soft_wrap=True)
    console.print(f"job {number}: {name}", highlight=False)
    kept = [recipe_again(o) for o in overrides if not o.startswith(("out=", "name="))]
    command = [sys.executable, "-m", "reasonrl", *kept, f"out={folder}", f"name='{name}'"]
    started = time.monotonic()
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        code = wait_for(process)
    seconds = time.monotonic() - started
    record = {"job": number, "name": name, "exit_code": code, "seconds": round(seconds, 1), "overrides": overrides}
    append_line(folder / "sweep.jsonl", json.dumps(record))
    verdict = "done" if code == 0 else f"FAILED with exit code {code}, see {log}"
    console.print(f"job {number}: {verdict} ({seconds:.0f} s)", highlight=False)
    return code
