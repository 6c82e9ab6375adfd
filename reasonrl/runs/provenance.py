"""What a run was made of: enough to repeat it, and to see why two runs differ."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = [
    "reasonrl",
    "verl",
    "torch",
    "transformers",
    "peft",
    "vllm",
    "flash-attn",
    "ray",
    "TransferQueue",
    "tensordict",
    "numpy",
    "hydra-core",
    "mathruler",
    "math-verify",
]


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions, code, command and hardware, and the facts the caller knows (seeds, data and prompt hashes, seams)."""
    return {
        "schema": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": versions(),
        "git": git_state(Path(__file__).parent),
        "hardware": hardware(),
        **facts,
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that shape the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a git checkout."""

    def git(*args: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, [] without a driver. Does not import torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=30
    )
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    return names[: len([part for part in visible.split(",") if part.strip() not in ("", "-1")])]


def hardware() -> dict[str, Any]:
    """CPU count, memory in GiB, GPUs."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": gpus(),
    }
