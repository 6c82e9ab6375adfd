"""An evaluation is a folder that explains itself and continues itself; this file is its only writer.

    config.yaml  provenance.json  answers/<task>.jsonl  grades/<task>.jsonl
    samples.parquet  results.json  timing.json  report.html  suite.md

Answers and their grades are appended as they come, answers first, so whatever a kill leaves can be continued: a half line
is cut, an answer without a grade is graded, and nothing that is there is made again. The rest is written at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.backends import Answer, Key
from reasonrl.runs.files import DiskFull, append_line, replacing, write_text

if TYPE_CHECKING:
    from reasonrl.eval.grading import Grade
    from reasonrl.eval.tasks import Question

LOCK = ".lock"
CONFIG = "config.yaml"
OWN = (CONFIG, "provenance.json", "answers", "grades", "samples.parquet", "results.json", "timing.json", "report.html")
OWN += ("suite.md", "lighteval")
FLUSH_SECONDS = 2.0  # what a kill may lose at most, besides FLUSH_ROWS
FLUSH_ROWS = 256
COLUMNS: tuple[str, ...] = ("task", "id", "number", "category", "gold", "text", "extracted", "correct", "status")
COLUMNS += ("message", "tokens", "prompt_tokens", "finished", "parts")
TOO_LONG = "prompt_too_long"


@dataclass(eq=False)
class Lines:
    """JSON lines, each of one answer (id, number), appended in batches."""

    path: Path
    rows: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _buffer: list[str] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, path: Path) -> Lines:
        """What is there, without the half line that a kill leaves. Raises ConfigError for any other damage."""
        lines = cls(path)
        if not path.is_file():
            return lines
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(path, end)
        for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                lines.rows.setdefault((row["id"], row["number"]), row)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number} is damaged: remove that line, or start anew with overwrite=true"
                ) from error
        return lines

    def add(self, row: dict[str, Any]) -> None:
        """One more; on disk at the next flush."""
        self.rows[row["id"], row["number"]] = row
        self._buffer.append(json.dumps(row))  # ASCII: no character in it ends a line

    @property
    def due(self) -> bool:
        """Whether it is time to flush."""
        return bool(self._buffer) and (
            len(self._buffer) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS
        )

    def flush(self) -> None:
        """Have everything on disk, in one write."""
        if self._buffer:
            append_line(self.path, "\n".join(self._buffer))
        self._buffer, self._flushed = [], time.monotonic()

    def keep(self, keys: Iterable[tuple[str, int]]) -> None:
        """Drop every row but these."""
        kept = {key: self.rows[key] for key in keys if key in self.rows}
        if len(kept) < len(self.rows):
            self.rows = kept
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept.values()))


@dataclass(eq=False)
class Kept:
    """What a task has so far."""

    answers: Lines
    grades: Lines

    def flush(self, *, due: bool = False) -> None:
        """Answers before grades: a grade whose answer was lost would stand beside another answer after a restart.

        due: only where it is time.
        """
        if not due or self.answers.due or self.grades.due:
            self.answers.flush()
            self.grades.flush()

    @property
    def short_of_room(self) -> int:
        """Questions of which a server said that the context left them less than max_new_tokens."""
        return len({name for (name, _), row in self.answers.rows.items() if row.get("short_of_room")})

    def answered(self, answer: Answer) -> None:
        """Write an answer down."""
        self.answers.add(
            {
                "id": answer.id,
                "number": answer.number,
                "text": answer.text,
                "tokens": answer.tokens,
                "prompt_tokens": answer.prompt_tokens,
                "finished": answer.finished,
                **{name: True for name in ("too_long", "short_of_room") if getattr(answer, name)},
            }
        )

    def graded(self, key: Key, grade: Grade) -> None:
        """Write a grade down."""
        self.grades.add({"id": key[1], "number": key[2], **asdict(grade), "parts": dict(grade.parts)})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; a disk that fills up in it says how to continue.

    Raises ConfigError for a folder that cannot be written, or that another process is at work on; DiskFull.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"cannot write the folder {path} ({error.strerror}): choose another out=") from error
    with lock, saying_how_to_continue(path):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another process is at work on {path}: wait for it, or stop it first") from error
        yield


class EvalFolder:
    """One evaluation. Use `opened`, which locks it."""

    def __init__(self, path: Path, tasks: Iterable[str]) -> None:
        self.path = path
        self.kept = {
            task: Kept(
                Lines.read(path / "answers" / f"{task}.jsonl"),
                Lines.read(path / "grades" / f"{task}.jsonl"),
            )
            for task in tasks
        }
        for kept in self.kept.values():
            kept.grades.keep(kept.answers.rows)  # after a kill between a disk's two writes

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        path: Path,
        tasks: Iterable[str],
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> Iterator[EvalFolder]:
        """A new evaluation, or one to continue; what was added is on disk afterwards, whatever happened.

        settings: what its numbers follow from, flat. about: for people. overwrite: remove what is there.
        Raises ConfigError when it was begun with other settings, when another process is at work on it, or when it is no
        evaluation; DiskFull saying how to continue.
        """
        refuse_foreign(path)
        with locked(path):
            if overwrite:
                _clear(path)
            config = path / CONFIG
            if config.is_file():
                refuse_others(config, _settings(config), settings)
            else:
                _clear(path)  # a kill before the first line of it
            for part in ("answers", "grades"):
                (path / part).mkdir(exist_ok=True)
            folder = cls(path, tasks)
            write_text(config, _yaml({"settings": dict(settings), **about}))
            try:
                yield folder
            finally:
                folder.flush()

    def flush(self, *, due: bool = False) -> None:
        """Have what was added on disk. due: only the tasks for which it is time."""
        for kept in self.kept.values():
            kept.flush(due=due)

    @property
    def answers(self) -> int:
        """How many there are."""
        return sum(len(kept.answers.rows) for kept in self.kept.values())

    def samples(self, task: str, questions: Iterable[Question]) -> list[dict[str, Any]]:
        """Every graded answer of a task as one flat row, in the order of the questions and their numbers."""
        kept = self.kept[task]
        by_id: dict[str, list[int]] = {}
        for name, number in kept.grades.rows:
            by_id.setdefault(name, []).append(number)
        rows = []
        for question in questions:
            for number in sorted(by_id.get(question.id, ())):
                answer, grade = kept.answers.rows[question.id, number], kept.grades.rows[question.id, number]
                rows.append(
                    {
                        "task": task,
                        "id": question.id,
                        "number": number,
                        "category": question.category,
                        "gold": question.answer,
                        "text": answer["text"],
                        **{name: grade[name] for name in ("extracted", "correct", "status", "message")},
                        **{name: answer[name] for name in ("tokens", "prompt_tokens", "finished")},
                        "parts": grade["parts"] or None,
                    }
                )
        return rows

    def write_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """samples.parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = dict.fromkeys(COLUMNS, pa.string())
        kinds |= dict.fromkeys(("number", "tokens", "prompt_tokens"), pa.int64())
        kinds |= dict.fromkeys(("correct", "finished"), pa.bool_())
        kinds["parts"] = pa.map_(pa.string(), pa.float64())
        plain = [
            # a model may write half of a surrogate pair, which is no UTF-8
            {
                name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                for name, value in {**row, "parts": sorted(row["parts"].items()) if row["parts"] else None}.items()
            }
            for row in rows
        ]
        with replacing(self.path / "samples.parquet") as scratch:
            pq.write_table(pa.Table.from_pylist(plain, pa.schema(list(kinds.items()))), scratch, compression="zstd")

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """results.json, timing.json, provenance.json."""
        write_text(self.path / name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """suite.md."""
        write_text(self.path / name, text)

    def read_json(self, name: str) -> dict[str, Any]:
        """The same, {} where there is none or none that can be read."""
        try:
            found = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def refuse_foreign(path: Path) -> None:
    """Raise ConfigError when something else is at `path`."""
    there = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), path)
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, so no folder {path} can be made: choose another out= or name=")
    if there != path:
        return
    entries = {entry.name for entry in path.iterdir()} - {LOCK}
    if entries and not (path / CONFIG).is_file() and not entries <= set(OWN):
        raise ConfigError(f"{path} holds other things than an evaluation: choose another out= or name=")
    if (path / CONFIG).is_file():
        _settings(path / CONFIG)


def refuse_others(config: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the differences, unless the folder was begun with the same settings."""
    differing = [name for name in sorted({**theirs, **mine}) if theirs.get(name) != mine.get(name)]
    if differing:
        told = ", ".join(f"{name} {_short(theirs.get(name))} (now {_short(mine.get(name))})" for name in differing)
        raise ConfigError(
            f"{config.parent} was begun with other settings: {told}. Give the same ones again to continue it, another name= "
            "or out=, or overwrite=true to start it anew"
        )


@contextlib.contextmanager
def saying_how_to_continue(path: Path) -> Iterator[None]:
    """A full disk in the words of this command; any other failure to write as a ConfigError."""
    try:
        yield
    except DiskFull as error:
        raise DiskFull(
            error.errno,
            f"disk full while writing to {path}: what was written before is kept. Free some space and give the same "
            "command again",
        ) from error
    except PermissionError as error:
        raise ConfigError(f"cannot write {error.filename or path} ({error.strerror}): choose another out=") from error


def _settings(config: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(config.read_text())["settings"]
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{config} is not that of an evaluation (no settings in it): choose another out= or name="
        ) from error


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True, width=120))


def _clear(path: Path) -> None:
    """Remove what an evaluation leaves, the file that says so last."""
    for name in reversed(OWN):
        there = path / name
        if there.is_dir():
            shutil.rmtree(there)
        else:
            there.unlink(missing_ok=True)


def _short(value: Any) -> str:
    return f"{value[:18]}..." if isinstance(value, str) and len(value) > 24 else str(value)
