"""A test-time run is a folder that explains itself and continues itself; this file is its only writer.

    config.yaml  provenance.json  attempts/seed42.jsonl  traces/seed42.jsonl  results.json  timing.json

A line an attempt, appended as it comes, and a line a question that ended. A question with its line is not begun again; of one
without, the attempts that are there are taken over, so a kill costs at most what was under way.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.eval.folder import CONFIG, LOCK, Lines, locked, refuse_others
from reasonrl.eval.tts.base import Attempt, Trace
from reasonrl.runs.files import write_text

OWN = (CONFIG, "provenance.json", "attempts", "traces", "results.json", "timing.json")


@dataclass(eq=False)
class Seed:
    """What one seed has so far."""

    attempts: Lines
    traces: Lines

    @classmethod
    def read(cls, folder: Path, seed: int) -> Seed:
        """What is there; a trace whose attempts are not all there is dropped. Raises ConfigError for a damaged line."""
        found = cls(
            Lines.read(folder / "attempts" / f"seed{seed}.jsonl"), Lines.read(folder / "traces" / f"seed{seed}.jsonl")
        )
        whole = [
            key
            for key, row in found.traces.rows.items()
            if all((key[0], number) in found.attempts.rows for number in range(row["generations"]))
        ]
        found.traces.keep(whole)
        return found

    def wrote(self, id: str, attempt: Attempt) -> None:
        """An attempt was made."""
        if (id, attempt.generation) not in self.attempts.rows:
            row = {name: getattr(attempt, name) for name in _NAMES}
            self.attempts.add({"id": id, "number": attempt.generation, "attempt": attempt.number, **row})

    def ended(self, trace: Trace) -> None:
        """A question ended."""
        row = {name: getattr(trace, name) for name in ("solved", "oracle", "stop", "chosen", "generations")}
        self.traces.add({"id": trace.id, "number": 0, **row, "notes": dict(trace.notes)})

    def has(self, id: str) -> bool:
        """Whether the question has ended."""
        return (id, 0) in self.traces.rows

    def recorded(self) -> dict[str, list[Attempt]]:
        """By question, its attempts from the first on, without gaps."""
        found: dict[str, list[Attempt]] = {}
        for id, number in sorted(self.attempts.rows):
            attempts = found.setdefault(id, [])
            if number == len(attempts):
                attempts.append(_attempt(self.attempts.rows[id, number]))
        return found

    def found(self, ids: Iterable[str]) -> list[Trace]:
        """The traces of these questions, in their order."""
        attempts = self.recorded()
        traces = []
        for id in ids:
            row = self.traces.rows[id, 0]
            made = tuple(attempts.get(id, ())[: row["generations"]])
            traces.append(Trace(id, made, row["solved"], row["oracle"], row["stop"], row["chosen"], row["notes"]))
        return traces

    def flush(self, *, due: bool = False) -> None:
        """Attempts before traces: a trace says how many attempts it has."""
        if not due or self.attempts.due or self.traces.due:
            self.attempts.flush()
            self.traces.flush()


_NAMES = ("phase", "token_ids", "text", "finished", "verdict", "extracted", "prompt_tokens", "steps", "seconds")


def _attempt(row: Mapping[str, Any]) -> Attempt:
    values = {name: row[name] for name in _NAMES} | {"token_ids": tuple(row["token_ids"])}
    return Attempt(number=row["attempt"], generation=row["number"], **values)


class TTSFolder:
    """One run. Use `opened`, which locks it."""

    def __init__(self, path: Path, seeds: Iterable[int]) -> None:
        self.path = path
        self.seeds = {seed: Seed.read(path, seed) for seed in seeds}

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        path: Path,
        seeds: Iterable[int],
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> Iterator[TTSFolder]:
        """A new run, or one to continue; what was added is on disk afterwards, whatever happened.

        settings: what its numbers follow from, flat. about: for people. Raises ConfigError when it was begun with other
        settings, when another process is at work on it, or when it is something else; DiskFull saying how to continue.
        """
        import yaml

        refuse_foreign(path)
        with locked(path):
            config = path / CONFIG
            if overwrite or not config.is_file():
                _clear(path)
            if config.is_file():
                refuse_others(config, read_config(config)["settings"], settings)
            values = json.loads(json.dumps({"settings": dict(settings), **about}))
            write_text(config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
            for part in ("attempts", "traces"):
                (path / part).mkdir(exist_ok=True)
            folder = cls(path, seeds)
            try:
                yield folder
            finally:
                for seed in folder.seeds.values():
                    seed.flush()

    @property
    def ended(self) -> int:
        """Questions that have ended, over all seeds."""
        return sum(len(seed.traces.rows) for seed in self.seeds.values())

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """results.json, timing.json, provenance.json."""
        write_text(self.path / name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The same; {} where there is none."""
        file = self.path / name
        return dict(json.loads(file.read_text())) if file.is_file() else {}


def refuse_foreign(path: Path) -> None:
    """Raise ConfigError when something else is at `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is a file: choose another out= or name=")
    entries = {entry.name for entry in path.iterdir()} - {LOCK}
    if not entries <= set(OWN):
        raise ConfigError(f"{path} holds other things than a test-time run: choose another out= or name=")
    if (path / CONFIG).is_file():
        read_config(path / CONFIG)


def read_config(file: Path) -> dict[str, Any]:
    """config.yaml. Raises ConfigError."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text())
        if not isinstance(found["settings"], dict):
            raise TypeError("settings")
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is not that of a test-time run: choose another out= or name=") from error


def _clear(path: Path) -> None:
    for name in reversed(OWN):
        there = path / name
        if there.is_dir():
            shutil.rmtree(there)
        else:
            there.unlink(missing_ok=True)
