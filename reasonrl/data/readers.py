"""Rows of a data set, from jsonl, json, parquet, gzip of these, folders, and the Hugging Face hub.

A row keeps the place it came from, because every complaint about a row has to name it.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reasonrl.data.items import DataError, Dropped

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
SAME_SPLIT = ({"train", "training"}, {"test"}, {"validation", "valid", "val", "dev"})
EXAMPLE_FILES = 8  # named in an error


class Row(NamedTuple):
    """One record of a source."""

    where: str  # "train.jsonl:17"
    values: Mapping[str, Any]


Rows = Iterator[Row | Dropped]


def read(path: str | Path, split: str, subset: str | None = None) -> Rows:
    """All rows of `split` under `path`: a file is taken whole, of a folder the files that are named after the split.

    Raises DataError when there is no such file, or nothing in it.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"no file or folder {root} (here: {Path.cwd()}); give the right one as path=")
    if root.is_dir() and any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return _saved_dataset(root, split)
    files = [root] if root.is_file() else split_files(root, split, subset)
    return (row for file in files for row in read_file(file))


def split_files(folder: Path, split: str, subset: str | None = None) -> list[Path]:
    """Data files below `folder` that belong to `split` by their own or their folder's name, in order of name."""
    if subset is not None and (folder / subset).is_dir():
        folder = folder / subset
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} file; give a file or another folder as path=")
    names = next((same for same in SAME_SPLIT if split in same), {split})
    found = [file for file in files if names & set(_words(file.relative_to(folder)))]
    if not found:
        listed = ", ".join(str(file.relative_to(folder)) for file in files[:EXAMPLE_FILES])
        raise DataError(
            f"no file in {folder} is named after the split {split!r}; there are {listed}"
            f"{' ...' if len(files) > EXAMPLE_FILES else ''}. Name the file itself, or another split"
        )
    return found


def read_file(file: Path) -> Rows:
    """The rows of one file. Raises DataError for an unknown suffix, an empty or an unreadable file."""
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"{file}: cannot read this kind of file; known are {', '.join(SUFFIXES)}")
    if file.stat().st_size == 0:
        raise DataError(f"{file.absolute()} is empty; copy it again, or give another one as path=")
    if file.name.endswith(".parquet"):
        return _parquet(file)
    return _json(file) if ".json" in file.suffixes[-2:] and ".jsonl" not in file.name else _jsonl(file)


def from_hub(name: str, split: str, subset: str | None = None, revision: str | None = None) -> Rows:
    """The rows of a data set on the Hugging Face hub, or in its local cache. Raises DataError when there are none."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"reading {name} from the Hugging Face hub needs: pip install datasets; or give path="
        ) from error
    try:
        dataset = load_dataset(name, name=subset, split=split, revision=revision)
    except Exception as error:  # the library raises a dozen kinds: network, login, names, file formats
        raise DataError(
            f"cannot load {name}{f' ({subset})' if subset else ''}, split {split!r}, from the Hugging Face hub: "
            f"{type(error).__name__}: {_first_line(error)}. Download it where there is a network and give "
            f"path=<file or folder> (data.path=... in a run)"
        ) from error
    return (Row(f"{name}[{split}]:{i}", row) for i, row in enumerate(dataset))


def field(values: Mapping[str, Any], name: str) -> Any:
    """`values[name]`, where dots lead into nested records: `reward_model.ground_truth`. None when there is none."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def has(values: Mapping[str, Any], name: str) -> bool:
    """Whether there is such a column, though this row may hold nothing in it."""
    outer, dot, inner = name.partition(".")
    if name in values or not dot:
        return name in values
    return isinstance(values.get(outer), Mapping) and has(values[outer], inner)


def _parquet(file: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable parquet file: {_first_line(error)}") from error
    return _parquet_rows(file, parquet)


def _parquet_rows(file: Path, parquet: Any) -> Rows:
    number = 0
    with parquet:
        for batch in parquet.iter_batches(batch_size=4096):
            for values in batch.to_pylist():
                yield Row(f"{file.name}:{number}", values)
                number += 1


def _jsonl(file: Path) -> Rows:
    with _open(file) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_row(line, f"{file.name}:{number}")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 lines: {_first_line(error)}") from error


def _json_row(line: str, where: str) -> Row | Dropped:
    try:
        values = json.loads(line)
    except ValueError:
        return Dropped("not JSON", where)
    return Row(where, values) if isinstance(values, dict) else Dropped("not a JSON record", where)


def _json(file: Path) -> Rows:
    with _open(file) as text:
        try:
            content = json.load(text)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(
                f"{file} is not JSON: {_first_line(error)}; one record a line needs the name .jsonl"
            ) from error
    if isinstance(content, dict):  # {"data": [...]}: the one list in it
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise DataError(f"{file} holds no list of records")
    for number, values in enumerate(content):
        where = f"{file.name}:{number}"
        yield Row(where, values) if isinstance(values, dict) else Dropped("not a JSON record", where)


def _saved_dataset(folder: Path, split: str) -> Rows:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise DataError(f"{folder} was saved by `datasets`, which is not installed: pip install datasets") from error
    saved = load_from_disk(str(folder))
    if not isinstance(saved, Dataset):
        if split not in saved:
            raise DataError(f"{folder} has no split {split!r}; there are {', '.join(saved)}")
        saved = saved[split]
    return (Row(f"{folder.name}[{split}]:{i}", row) for i, row in enumerate(saved))


def _open(file: Path) -> io.TextIOWrapper:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", str(path).lower())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
