"""The questions of a benchmark: found in a folder or on the Hugging Face hub, read, checked, counted.

With `data_dir` only that folder counts (and, for a task file of one's own, the folder it is in): a set that is missing
there is an error, never a download. Below `data_dir`, `<task>/` is looked into first. A file with a bare name such as
test.jsonl counts in `data_dir` itself only when that folder is called after the task, because it could be anybody's.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from reasonrl.data.items import DataError, Dropped
from reasonrl.data.readers import Row, Rows, from_hub, read_file
from reasonrl.eval.tasks.formats import FORMATS
from reasonrl.eval.tasks.task import Question, Questions, Task

__all__ = ["Question", "Questions", "load_questions", "rows"]

_ANYBODYS = re.compile(r"(?:test|train|valid|validation|val|dev|data|main|eval|questions)\b")
SHOWN = 3  # examples in an error


def load_questions(task: Task, *, data_dir: Path | None = None, limit: int | None = None) -> Questions:
    """All questions of the task, or the first `limit`, with the rows that were dropped on the way.

    Raises DataError, with what, where and the way out: no such data, a missing column, not one usable row, an id twice.
    """
    made = FORMATS[task.format].make
    if made is not None:
        origin, stream = f"made by reasonrl.data.{task.format}", made(task)
    else:
        origin, raw = rows(task, data_dir)
        stream = _parsed(task, raw)
    items: list[Question] = []
    dropped: list[Dropped] = []
    places: dict[str, int] = {}
    for found in stream:
        if isinstance(found, Dropped):
            dropped.append(found)
            continue
        if found.id in places:
            raise DataError(
                f"task {task.name}: question {len(items) + 1} of {origin} has the id {found.id!r} of question "
                f"{places[found.id]}; leave one out, or name another column with options.id_field"
            )
        items.append(found)
        places[found.id] = len(items)
        if len(items) == limit:
            break
    if not items:
        raise DataError(f"task {task.name}: {origin} holds no question{_reasons(dropped)}")
    return Questions(task, tuple(items), _sha256(items), origin, tuple(dropped))


def rows(task: Task, data_dir: Path | None = None) -> tuple[str, Rows]:
    """Where the rows of a task come from, and the rows. Raises DataError."""
    if data_dir is not None:
        data_dir = data_dir.expanduser()
        if not data_dir.is_dir():
            raise DataError(f"no folder {data_dir} (here: {Path.cwd()}); give the right one as data_dir=")
    files, ignored = _files(task, data_dir)
    if files:
        names = [_relative(file, data_dir) for file in files]
        return ", ".join(names), chain.from_iterable(_read(file) for file in files)
    if data_dir is not None or task.source.hub is None:
        raise DataError(_missing(task, data_dir, ignored))
    source = task.source
    try:
        return f"{source.hub}@{source.revision or 'main'}", from_hub(
            str(source.hub), source.split, source.subset, source.revision
        )
    except DataError as error:
        cause = error.__cause__ or error
        what = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:300]}"
        raise DataError(_missing(task, None, [], f"{source.hub} cannot be loaded from the hub ({what})")) from error


def _parsed(task: Task, raw: Rows) -> Iterator[Question | Dropped]:
    form = FORMATS[task.format]
    assert form.parse is not None
    checked = False
    for index, row in enumerate(raw):
        if isinstance(row, Dropped):
            yield row
            continue
        if not checked:
            form.check_columns(row, task)
            checked = True
        found = form.parse(row, index, task)
        if found is not None:
            yield found


# Files


def _files(task: Task, data_dir: Path | None) -> tuple[list[Path], list[Path]]:
    """The files of the first pattern that matches; and those that matched, but could be another task's."""
    ignored: list[Path] = []
    patterns = [pattern for pattern in task.source.files if not Path(pattern).is_absolute()]
    if data_dir is not None:
        for folder in (data_dir / task.name, data_dir):
            for pattern in patterns:
                found = sorted(file for file in folder.glob(pattern) if file.is_file())
                if folder == data_dir and _plain(data_dir.resolve().name) != _plain(task.name):
                    nobodys = [file for file in found if _ANYBODYS.match(str(file.relative_to(folder)).lower())]
                    ignored += nobodys
                    found = [file for file in found if file not in nobodys]
                if found:
                    return found, []
    for pattern in task.source.files:
        if Path(pattern).is_absolute():
            found = sorted(file for file in Path("/").glob(pattern.lstrip("/")) if file.is_file())
            if found:
                return found, []
    return [], ignored


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _relative(file: Path, data_dir: Path | None) -> str:
    return str(file.relative_to(data_dir)) if data_dir is not None and file.is_relative_to(data_dir) else str(file)


def _read(file: Path) -> Rows:
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty; copy it again")
    return _csv(file) if file.name.endswith((".csv", ".csv.gz")) else read_file(file)


def _csv(file: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with (
        gzip.open(file, "rt", encoding="utf-8-sig", newline="")
        if file.suffix == ".gz"
        else file.open(encoding="utf-8-sig", newline="") as lines
    ):
        try:
            for number, values in enumerate(csv.DictReader(lines)):
                yield Row(f"{file.name}:{number}", values)
        except (csv.Error, OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as UTF-8 CSV: {error}") from error


# Messages


def _missing(task: Task, data_dir: Path | None, ignored: list[Path], why: str | None = None) -> str:
    """What was looked for, and how to get it."""
    source = task.source
    wanted = [pattern for pattern in source.files if not Path(pattern).is_absolute()]
    folder = data_dir if data_dir is not None else "<data_dir>"
    lines = [f"task {task.name}: {why or 'no data'}."]
    if data_dir is not None:
        lines.append(f"Looked in {data_dir / task.name}/ and {data_dir}/ for {', '.join(wanted) or 'nothing'}.")
    if ignored:
        lines.append(
            f"{ignored[0].name} lies in {data_dir}, but its name does not say whose it is: if it is this task's, move it "
            f"to {data_dir}/{task.name}/."
        )
    beside = [pattern for pattern in source.files if Path(pattern).is_absolute()]
    if beside:
        lines.append(f"Looked for {', '.join(beside)}.")
    if source.gated:
        lines.append(
            f"The set is gated: accept its terms at https://huggingface.co/datasets/{source.hub}, then: hf auth login."
        )
    if source.hub is not None:
        lines.append(
            f"With a network: {'leave data_dir= out, or ' if data_dir is not None else ''}"
            f"hf download {source.hub} --repo-type dataset --local-dir {folder}/{task.name}"
            f"{'' if data_dir is not None else ', and give data_dir=<data_dir>'}."
        )
    if wanted:
        lines.append(f"From elsewhere: put it there as {folder}/{task.name}/{_example(wanted)}.")
    if source.how:
        lines.append(source.how)
    return " ".join(lines)


def _example(patterns: list[str]) -> str:
    return next((pattern for pattern in patterns if "*" not in pattern), patterns[0])


def _reasons(dropped: list[Dropped]) -> str:
    if not dropped:
        return "; is it another file, or another split?"
    counted = Counter(each.reason for each in dropped)
    reasons = ", ".join(f"{number} x {reason}" for reason, number in counted.most_common(SHOWN))
    return f": all {len(dropped)} rows were dropped ({reasons}), the first at {dropped[0].where}"


def _sha256(items: list[Question]) -> str:
    digest = hashlib.sha256()
    for item in items:
        line = [item.id, item.text, item.answer, item.extra]
        text = json.dumps(line, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
