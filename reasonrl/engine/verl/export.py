"""`reasonrl export CHECKPOINT [OUT]`: a run's sharded checkpoint as a Hugging Face folder, made once and all at once.

The merging is verl's own (`verl.model_merger`); ours is finding the checkpoint, refusing one that is not complete, and
publishing the folder by a rename, so that a killed export leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from reasonrl.config import ConfigError
from reasonrl.runs.files import fingerprint
from reasonrl.runs.folder import COMPLETE, RunFolder

STAMP = "reasonrl_export.json"  # which checkpoint a folder was made from

USAGE = """reasonrl export CHECKPOINT [OUT]

CHECKPOINT   runs/NAME, or runs/NAME/checkpoints/global_step_N (a run folder means its newest complete checkpoint)
OUT          folder to write; default: CHECKPOINT/huggingface
"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not args or args[0] in ("-h", "--help") or len(args) > 2:
        print(USAGE, file=sys.stderr if len(args) > 2 else sys.stdout)
        return 0 if args and args[0] in ("-h", "--help") else 2
    print(export(Path(args[0]), Path(args[1]) if len(args) == 2 else None))
    return 0


def locate(path: Path) -> tuple[RunFolder, int]:
    """A run folder or one of its checkpoints -> (run, step). Raises ConfigError."""
    path = path.absolute()
    found = re.fullmatch(r"global_step_(\d+)", path.name)
    folder = RunFolder.open(path.parents[1] if found else path)
    done = folder.complete_checkpoints()
    if not done:
        raise ConfigError(f"{folder.path} has no complete checkpoint yet")
    step = int(found.group(1)) if found else done[-1]
    if step not in done:
        raise ConfigError(f"{path} is not a complete checkpoint; complete ones: {', '.join(map(str, done))}")
    return folder, step


def export(checkpoint: Path, out: Path | None = None) -> Path:
    """Merge the shards of a checkpoint into `out` in Hugging Face format and return it; a finished one is reused.

    Of several processes that want the same folder one merges, the others wait for it.
    Raises ConfigError for a checkpoint that is incomplete, changed, or not this run's own.
    """
    folder, step = locate(checkpoint)
    source = folder.checkpoint(step)
    out = (out or source / "huggingface").absolute()
    stamp = json.dumps({"run": folder.path.name, "step": step, "checkpoint": fingerprint(source / COMPLETE)})
    if finished(out, stamp, step, folder):
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = out.with_name(f".{out.name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out.parent} ({error.strerror}): give another one") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished(out, stamp, step, folder):
            folder.verify_checkpoint(step)
            merge(source, out, stamp)
    return out


def finished(out: Path, stamp: str, step: int, folder: RunFolder) -> bool:
    """Whether `out` holds this export. Raises ConfigError when it holds something else."""
    if not out.exists():
        return False
    if (out / STAMP).is_file() and (out / STAMP).read_text() == stamp:
        return True
    raise ConfigError(f"{out} exists and does not hold step {step} of {folder.path.name}: give another folder")


def merge(source: Path, out: Path, stamp: str) -> None:
    """Merge beside `out`, then rename."""
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    actor = source / "actor"
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        target_dir=str(scratch),
        hf_model_config_path=str(actor / "huggingface"),
    )
    merger = FSDPModelMerger(config)
    merger.merge_and_save()
    merger.cleanup()
    (scratch / STAMP).write_text(stamp)
    scratch.replace(out)
