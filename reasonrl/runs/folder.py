"""A run is a folder that explains itself; this file is the only writer of it.

    config.yaml  provenance.json  metrics.jsonl  rollouts/step_000012.parquet  checkpoints/global_step_12/
    data/{train,val}.parquet  curves.png  log.txt

Order of writing in step N: rollouts N, metrics line N, then checkpoint N, whose last file is `reasonrl/COMPLETE`.
A checkpoint without that file does not exist for anybody; records of steps after the checkpoint one resumes from are cut.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, nearest
from reasonrl.runs.files import append_line, explain, fingerprint, replacing, require_space, size_of, write_text
from reasonrl.runs.record import StepRecord

if TYPE_CHECKING:
    import pandas as pd

PICKLED = (".pt", ".pth", ".bin", ".pkl")  # files whose loading can run code
LOCK = ".lock"
BEFORE_THE_START = {"rollouts", "checkpoints", "data", "log.txt", LOCK}  # what a run makes before its config.yaml
COMPLETE = Path("reasonrl") / "COMPLETE"
STATE = Path("reasonrl") / "state.json"


class RunFolder:
    """Writes and reads one run. `decode` turns token ids into text for the rollout files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_rollouts = True
        self.keep_checkpoints = 2
        self.first_checkpoint = 64 << 20  # bytes, before there is one to measure
        self.ranks = 1  # training processes, each of which writes its own files into a checkpoint
        self._tracker_id: str | None = None
        self.decode: Callable[[Any], str] = str
        self.listeners: list[Callable[[int, dict[str, float]], None]] = []

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder. Raises ConfigError when something is there already."""
        cls.refuse_existing(path)
        shutil.rmtree(path, ignore_errors=True)
        try:
            for part in ("rollouts", "checkpoints", "data"):
                (path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            explain(error, path)
            raise ConfigError(f"cannot make the run folder {path} ({error.strerror}): choose another out=") from error
        return cls(path)

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise ConfigError when something is there already, unless it is a run that was killed before it began."""
        there = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), path)
        if not there.is_dir():
            raise ConfigError(f"{there} is a file, so no run folder {path} can be made: choose another out= or name=")
        if there != path:
            if not os.access(there, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{there} cannot be written, so no run folder {path} can be made: choose another out="
                )
            return
        entries = {entry.name for entry in path.iterdir()}
        if LOCK in entries and entries <= BEFORE_THE_START:
            with RunFolder(path).locked():  # raises while the other run is starting
                return
        if entries:
            resume = f", continue it with resume={path}" if "config.yaml" in entries else ""
            raise ConfigError(f"run folder {path} exists: choose another name={resume}, or delete it")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises ConfigError when another one has it."""
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"another process is training in {self.path}: wait for it, or stop it first"
                ) from error
            yield

    def tracker_id(self) -> str:
        """The id under which trackers know this run: made once, the same after every resume."""
        if self._tracker_id is None:
            self._tracker_id = self.provenance().get("tracker_id") or uuid.uuid4().hex[:12]
        return self._tracker_id

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises ConfigError when it is none."""
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path} is no run folder ({cls._why_no_run(path)})")
        return cls(path)

    @staticmethod
    def _why_no_run(path: Path) -> str:
        run = next((p for p in path.parents if (p / "config.yaml").is_file() and (p / "checkpoints").is_dir()), None)
        if run is not None:
            return f"it lies in one: {run}"
        if path.is_dir():
            return "no config.yaml in it: a run killed before it began starts again under the same name"
        runs = sorted(p.parent.name for p in path.parent.glob("*/config.yaml"))
        return f"nothing there{nearest(path.name, runs)}" if runs else "nothing there"

    @property
    def begun(self) -> bool:
        """Whether there is anything to resume."""
        return (self.path / "config.yaml").is_file()

    def discard_if_unstarted(self) -> None:
        """Remove the folder of a run that was refused before its first step, so that its name is free again."""
        if not self.metrics_file.exists() and not self.complete_checkpoints():
            shutil.rmtree(self.path)

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def rollout_file(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.parquet"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"global_step_{step}"

    # writing

    def record_step(self, record: StepRecord) -> None:
        """Rollouts first, so that a metrics line says its rollouts are there."""
        if self.record_rollouts:
            from reasonrl.runs.rollouts import write_rollouts

            with replacing(self.rollout_file(record.step)) as scratch:
                write_rollouts(scratch, record, self.decode)
        self._line(record.step, record.metrics)

    def record_validation(self, step: int, metrics: dict[str, float]) -> None:
        """The validation before the first step."""
        self._line(step, metrics)

    def _line(self, step: int, metrics: dict[str, Any]) -> None:
        plain = {name: number for name, value in sorted(metrics.items()) if (number := as_number(value)) is not None}
        append_line(self.metrics_file, json.dumps({"step": step, **plain}))
        for listen in self.listeners:
            listen(step, plain)

    def before_checkpoint(self, step: int) -> None:
        """Remove what is left of an unfinished checkpoint of this step, and make sure that there is room."""
        shutil.rmtree(self.checkpoint(step), ignore_errors=True)
        done = self.complete_checkpoints()
        require_space(self.path, int(1.1 * size_of(self.checkpoint(done[-1]))) if done else self.first_checkpoint)

    @contextmanager
    def blaming_a_full_disk(self) -> Iterator[None]:
        """A failure that leaves an unfinished checkpoint and no room for one is DiskFull, in whatever words it came."""
        try:
            yield
        except Exception as error:
            done = self.complete_checkpoints()
            cut = [f for f in (self.path / "checkpoints").glob("global_step_*") if not (f / COMPLETE).is_file()]
            needed = size_of(self.checkpoint(done[-1])) if done else self.first_checkpoint
            if cut and shutil.disk_usage(self.path).free < needed:
                explain(OSError(errno.ENOSPC, str(error)), cut[0] / COMPLETE)
            raise

    def publish_checkpoint(self, step: int, state: dict[str, str]) -> None:
        """Make the files under `global_step_<step>` the newest checkpoint, in one step, and delete the oldest ones."""
        folder = self.checkpoint(step)
        (folder / "reasonrl").mkdir(parents=True, exist_ok=True)
        write_text(folder / STATE, json.dumps({"step": step, **state}))
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        require_shards(folder, self.ranks)
        manifest = {str(f.relative_to(folder)): fingerprint(f) for f in files}
        self._vouch(step, manifest)
        write_text(folder / COMPLETE, json.dumps({"step": step, "files": manifest}, indent=1))
        for old in self.complete_checkpoints()[: -self.keep_checkpoints]:
            (self.checkpoint(old) / COMPLETE).unlink()
            shutil.rmtree(self.checkpoint(old))

    def _vouch(self, step: int, manifest: dict[str, str]) -> None:
        """Note the fingerprints of this run's own pickled files: only those may be loaded again."""
        provenance = self.provenance()
        known = provenance.setdefault("checkpoints", {})
        known[str(step)] = {name: digest for name, digest in manifest.items() if name.endswith(PICKLED)}
        write_text(self.path / "provenance.json", json.dumps(provenance, indent=1))

    # reading

    def provenance(self) -> dict[str, Any]:
        """`provenance.json`, or {} before it was written."""
        file = self.path / "provenance.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{file} is not JSON ({error}): restore it, or start a new run") from error

    def complete_checkpoints(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        found = (re.fullmatch(r"global_step_(\d+)", f.name) for f in (self.path / "checkpoints").glob("global_step_*"))
        steps = sorted(int(m.group(1)) for m in found if m)
        return [step for step in steps if (self.checkpoint(step) / COMPLETE).is_file()]

    def state(self, step: int) -> dict[str, str]:
        """What was saved beside the weights: ledger and data order, as JSON texts."""
        return json.loads((self.checkpoint(step) / STATE).read_text())

    def verify_checkpoint(self, step: int) -> None:
        """Raise ConfigError unless every file is there unchanged and every pickled file is this run's own."""
        folder = self.checkpoint(step)
        try:
            manifest = json.loads((folder / COMPLETE).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"checkpoint {folder} cannot be read ({error}): delete it to use an older one") from error
        own = self.provenance().get("checkpoints", {}).get(str(step), {})
        for file in sorted(f for f in folder.rglob("*") if f.suffix in PICKLED):
            if str(file.relative_to(folder)) not in manifest:
                raise ConfigError(f"{file} can run code when it is loaded and is not part of the checkpoint: remove it")
        for name, digest in manifest.items():
            file = folder / name
            if not file.is_file():
                raise ConfigError(f"checkpoint {folder} lacks {name}: resume from an older one by deleting this folder")
            if name.endswith(PICKLED) and own.get(name) != digest:
                raise ConfigError(
                    f"{file} can run code when it is loaded and was not written by this run (not in provenance.json): "
                    "refused. Start a new run from exported weights instead (reasonrl export)"
                )
            if fingerprint(file) != digest:
                raise ConfigError(
                    f"{file} changed since the checkpoint was written: delete {folder} to use an older one"
                )

    def lines(self) -> list[dict[str, float]]:
        """All complete metrics lines."""
        if not self.metrics_file.is_file():
            return []
        text = self.metrics_file.read_text()
        found = []
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ConfigError(f"{self.metrics_file}, line {number} is not JSON ({error}): remove it") from error
        return found

    def metrics(self) -> pd.DataFrame:
        """One row a step, indexed by step."""
        import pandas as pd

        return pd.DataFrame(self.lines()).set_index("step") if self.lines() else pd.DataFrame()

    def rollouts(self, step: int) -> pd.DataFrame:
        """One row per rollout of a step. Raises FileNotFoundError naming the steps there are."""
        import pandas as pd

        if not self.rollout_file(step).is_file():
            have = sorted(int(f.stem.split("_")[1]) for f in (self.path / "rollouts").glob("step_*.parquet"))
            raise FileNotFoundError(f"no rollouts of step {step} in {self.path}; recorded: {have}")
        return pd.read_parquet(self.rollout_file(step))

    def rewind(self, step: int) -> None:
        """Cut every record after `step`, and what is left of unfinished checkpoints."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
        for file in (self.path / "rollouts").glob("*"):
            number = re.fullmatch(r"step_(\d+)\.parquet", file.name)
            if number is None or int(number.group(1)) > step:
                file.unlink()
        complete = set(self.complete_checkpoints())
        for folder in (self.path / "checkpoints").glob("global_step_*"):
            if int(folder.name.removeprefix("global_step_")) not in complete:
                shutil.rmtree(folder)


def require_shards(checkpoint: Path, ranks: int) -> None:
    """Raise FileNotFoundError unless every rank's weights, optimizer and random state are there."""
    names = [
        f"{part}_world_size_{ranks}_rank_{r}.pt" for part in ("model", "optim", "extra_state") for r in range(ranks)
    ]
    missing = [name for name in names if not (checkpoint / "actor" / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{checkpoint} lacks {', '.join(missing[:3])}: are all nodes writing to one shared file system? The checkpoint "
            "is not published and older ones are kept"
        )


def as_number(value: Any) -> float | None:
    """A finite float, or None for what cannot be drawn as a curve."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
