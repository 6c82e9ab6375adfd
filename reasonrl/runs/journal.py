"""What a long command has finished, written down as it goes, so that it can be stopped at any moment and continued.

A folder holds one journal for each of k shards, `shard-0-of-2.jsonl`: a line with the settings it was begun with, then a
line a finished problem. A half-written last line does not count. Nothing else is needed to continue or to put the shards
together, so journals may be copied between machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.runs.files import DiskFull, append_line, write_text

FLUSH_ROWS = 16  # finished problems that a kill may lose, at most
FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class Shard:
    """The i-th of k parts of the problems: those whose place in the data leaves the rest i when divided by k."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`0/2`. Raises ConfigError."""
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
            raise ConfigError(f"shard must be i/k with i in 0..k-1, such as 0/2 and 1/2, got {text!r}")
        return cls(int(index), int(of))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def all(self) -> list[Shard]:
        """All parts, this one among them."""
        return [Shard(index, self.of) for index in range(self.of)]

    def file(self, folder: Path) -> Path:
        """Its journal."""
        return folder / f"shard-{self.index}-of-{self.of}.jsonl"

    def own(self, problems: int) -> range:
        """The places of its problems."""
        return range(self.index, problems, self.of)


@dataclass(frozen=True)
class Written:
    """What a journal holds."""

    settings: Mapping[str, Any]  # what its rows depend on
    about: Mapping[str, Any]  # for people
    rows: list[dict[str, Any]]  # each with an "id", each id once


@dataclass(eq=False)
class Journal:
    """The journal of one shard, open for appending."""

    path: Path
    done: set[str]  # ids
    buffer: list[str] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, folder: Path, part: Shard, settings: Mapping[str, Any], about: Mapping[str, Any]
    ) -> Iterator[Journal]:
        """This shard's journal, locked; what was added is on disk afterwards, whatever happened.

        Raises ConfigError when another process has it, or when a shard in the folder was begun with other settings.
        """
        path = part.file(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / f".{path.stem}.lock").open("w")
        except OSError as error:
            raise ConfigError(f"cannot write the store {folder} ({error.strerror}): choose another store=") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"another process is at work on shard {part} of {folder}: wait for it, or stop it first"
                ) from error
            _refuse_other_shards(folder, part, settings)
            written = read_journal(path)
            with saying_how_to_continue(folder):
                if written is None or not written.rows:
                    write_text(path, _line({"settings": settings, "about": about}) + "\n")
                else:
                    _cut_half_line(path)
            journal = cls(path, {row["id"] for row in written.rows} if written else set())
            try:
                yield journal
            finally:
                journal.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a finished problem, with its "id"; it is on disk a little later."""
        self.buffer.append(_line(row))
        self.done.add(row["id"])
        if len(self.buffer) >= FLUSH_ROWS or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Have everything on disk, in one write."""
        if self.buffer:
            with saying_how_to_continue(self.path.parent):
                append_line(self.path, "\n".join(self.buffer))
        self.buffer, self.flushed = [], time.monotonic()


def read_journal(path: Path) -> Written | None:
    """What a journal holds; None when there is none, or one that was killed before its first line was complete.

    Raises ConfigError for a complete line that is none of ours.
    """
    if not path.is_file():
        return None
    first: dict[str, Any] | None = None
    rows = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
            if first is None:
                first = {name: values[name] for name in ("settings", "about")}
            else:
                rows[values["id"]] = values  # a kill between writing a line and knowing it leaves it twice
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number} is damaged: remove that line, or choose another store="
            ) from error
    return None if first is None else Written(**first, rows=list(rows.values()))


@dataclass(frozen=True)
class Missing:
    """A shard that is not complete yet."""

    shard: Shard
    have: int  # rows


def read_shards(folder: Path, part: Shard, wanted: Callable[[Written, Shard], int]) -> list[Written] | Missing:
    """The journals of all shards, in their order, or the first that is not complete.

    wanted: how many rows a shard must have. Raises ConfigError when they were begun with different settings.
    """
    shards: list[Written] = []
    for other in part.all:
        written = read_journal(other.file(folder))
        have = len(written.rows) if written else 0
        if written is None or have < wanted(written, other):
            return Missing(other, have)
        if shards:
            refuse_others(other.file(folder), written.settings, shards[0].settings)
        shards.append(written)
    return shards


def refuse_others(file: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the differences, unless `file` was made with the same settings."""
    differing = [name for name in sorted({**theirs, **mine}) if theirs.get(name) != mine.get(name)]
    if differing:
        told = ", ".join(f"{name} {_short(theirs.get(name))} (now {_short(mine.get(name))})" for name in differing)
        raise ConfigError(f"{file} was made with other settings: {told}. Give the same ones again, or another store=")


@contextlib.contextmanager
def saying_how_to_continue(folder: Path) -> Iterator[None]:
    """A full disk in the words of such a command; any other failure to write as a ConfigError."""
    try:
        yield
    except DiskFull as error:
        raise DiskFull(
            error.errno,
            f"disk full while writing to {folder}: what was finished before is kept. Free some space and give the same "
            "command again",
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write the store {folder} ({error.strerror}): choose another store=") from error


def _refuse_other_shards(folder: Path, part: Shard, settings: Mapping[str, Any]) -> None:
    for path in sorted(folder.glob("shard-*-of-*.jsonl")):
        written = read_journal(path)
        if written is None or not written.rows:  # nothing would be lost
            continue
        of = path.stem.rpartition("-")[2]
        if of != str(part.of):
            raise ConfigError(f"{path} is one of {of} shards, not of {part.of}: keep to {of}, or choose another store=")
        refuse_others(path, written.settings, settings)


def _cut_half_line(path: Path) -> None:
    """Remove what stands after the last complete line, or the next one would be appended to it."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)  # ASCII: no character in it ends a line


def _short(value: Any) -> str:
    return f"{value[:18]}..." if isinstance(value, str) and len(value) > 24 else str(value)
