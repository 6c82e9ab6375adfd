"""From a stream of items to one parquet file in verl's schema, and a report of what was dropped and why.

The file is the same, byte for byte in content, for the same items: `Report.sha256` is the hash of its rows, stored in
its metadata as well. It appears under its name only when it is complete. Ids come from the content unless the source
has its own, so they survive re-downloading, re-ordering and subsampling.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.data import parsers, readers, sources
from reasonrl.data.items import DataError, Dropped, Item, Stream
from reasonrl.data.readers import Row
from reasonrl.data.sources import DataConfig, data_from_config
from reasonrl.data.steps import answer_last
from reasonrl.data.traces import wrong_traces

SCHEMA_VERSION = 1
EXAMPLES = 3  # dropped rows named per reason, and dropped traces
DROPPED_AS_DUPLICATE = "duplicate question"

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("split", pa.string()),
                    ("index", pa.int64()),
                    ("id", pa.string()),
                    ("question", pa.string()),
                    ("steps", pa.list_(pa.string())),
                    ("level", pa.float64()),
                ]
            ),
        ),
    ]
)


@dataclass(frozen=True)
class Report:
    """What became of a source."""

    path: Path
    rows: int
    sha256: str  # of the rows
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    examples: tuple[str, ...] = ()  # "reason: where", at most `EXAMPLES` a reason
    with_steps: int | None = None  # rows that carry a solution in steps; None: not looked at (`source: verl`)
    traces_dropped: int = 0  # rows kept without their solution, because it states a wrong answer
    trace_examples: tuple[str, ...] = ()  # "id: '5' instead of '7'", at most `EXAMPLES`


def prepare(items: Stream, out: Path, *, split: str) -> Report:
    """Write `items` to the parquet file `out`; duplicates are dropped and counted.

    A solution that states another answer than the item's is dropped and counted too; its problem stays. Raises
    DataError when no row is left, naming what was dropped, or when answers cannot be compared here.
    """
    drops = Drops()
    kept, wrong = _without_wrong_traces(list(_unique(items, drops)))
    if not kept:
        raise DataError(_nothing_left(split, out, drops))
    return replace(
        write_items(kept, out, split=split),
        dropped=dict(drops.counts),
        examples=tuple(drops.examples),
        traces_dropped=len(wrong),
        trace_examples=tuple(wrong[:EXAMPLES]),
    )


def write_items(items: Sequence[Item], out: Path, *, split: str) -> Report:
    """Write `items` as they are, without looking at them. Raises DataError."""
    rows = [_row(item, index, split) for index, item in enumerate(items)]
    sha256 = _rows_sha256(rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(_metadata(sha256)))
    _write_atomically(out, lambda path: pq.write_table(table, path, compression="zstd"))
    return Report(out, len(rows), sha256, with_steps=sum(bool(row["extra_info"]["steps"]) for row in rows))


def build(
    cfg: Mapping[str, Any] | DataConfig, folder: Path, *, instead: Sequence[Item] | None = None, train: bool = True
) -> dict[str, Report]:
    """Make `train.parquet` and `val.parquet` in `folder` from the `data` node of a configuration.

    No problem is in both: training rows that ask a validation question are dropped and counted. With `val_split: null`
    `val_size` training problems are held out. `source: verl` takes ready files as they are, but for their steps where
    `steps` or `steps_field` is given. instead: validation problems from elsewhere, of which no file is made here; those of
    the data are then left alone. Raises DataError.
    """
    config = cfg if isinstance(cfg, DataConfig) else data_from_config(cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder} ({error.strerror}): choose another out=") from error
    if config.source == "verl":
        return _ready(config, folder, ("train", "val") if instead is None else ("train",))
    if instead is None:
        _check_validation(config)
    train_drops, val_drops = Drops(), Drops()
    if config.train_split is None:
        if train or instead is not None:
            raise DataError(
                f"data={config.name} is a test set, nothing to train on (data.train_split is null): choose other data, or "
                f"take some of it with data.train_split={config.val_split} data.val_split=null data.val_size=<number held out>"
            )
        return {"val": _reported(_validation(config, val_drops), folder / "val.parquet", "val", val_drops)}
    problems = list(_unique(sources.items(config, config.train_split, config.size), train_drops))
    problems = _of_levels(problems, config, train_drops)
    if instead is not None:
        problems, val = _without(problems, list(instead), train_drops), []
    elif config.val_split is None:
        if not problems:
            raise DataError(_nothing_left("train", folder / "train.parquet", train_drops))
        problems, val = _held_out(problems, config)
    else:
        val = _validation(config, val_drops)
        problems = _without(problems, val, train_drops)
    problems = _subsample(problems, config.size, config.seed)
    reports = {"train": _reported(problems, folder / "train.parquet", "train", train_drops)}
    if instead is None:
        reports["val"] = _reported(val, folder / "val.parquet", "val", val_drops)
    return reports


def problem_id(item: Item) -> str:
    """The source's own id, or one made from source, question and answer."""
    if item.id is not None:
        return item.id
    content = json.dumps([item.source, item.question, item.answer], ensure_ascii=False)
    return f"{item.source or 'problem'}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"


class Drops:
    """Counts dropped rows by reason and remembers the first few."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, reason: str, where: str) -> None:
        """Count one row."""
        self.counts[reason] += 1
        if self.counts[reason] <= EXAMPLES:
            self.examples.append(f"{reason}: {where}")

    def summary(self) -> str:
        """One line for an error."""
        if not self.counts:
            return "the source is empty"
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())
        return f"dropped {reasons} (for example {'; '.join(self.examples[:EXAMPLES])})"


def _unique(items: Stream, drops: Drops) -> Iterator[Item]:
    """Valid items, each question and each id once; the first one stays."""
    questions: set[str] = set()
    ids: set[str] = set()
    for number, item in enumerate(items):
        if isinstance(item, Dropped):
            drops.add(item.reason, item.where)
            continue
        where = item.id or f"item {number}"
        reason = _fault(item)
        key, name = _same_question(item), problem_id(item) if reason is None else ""
        if reason is None and key in questions:
            reason = DROPPED_AS_DUPLICATE
        if reason is None and name in ids:
            reason = "duplicate id"
        if reason is not None:
            drops.add(reason, where)
            continue
        questions.add(key)
        ids.add(name)
        yield item


def _without_wrong_traces(items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items, without steps where these state a wrong answer, and one line for each of those."""
    wrong = wrong_traces(items)
    kept = [replace(item, steps=()) if i in wrong else item for i, item in enumerate(items)]
    return kept, [f"{problem_id(items[i])}: {remark}" for i, remark in wrong.items()]


def _fault(item: Item) -> str | None:
    if not item.question.strip():
        return "no question"
    if not item.answer.strip():
        return "no answer"
    try:
        "".join([item.question, item.answer, item.source, item.id or "", *item.steps]).encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return None


def _same_question(item: Item) -> str:
    return " ".join(item.question.split())


def _row(item: Item, index: int, split: str) -> dict[str, Any]:
    return {
        "data_source": item.source,
        "prompt": [{"role": "user", "content": item.question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {
            "split": split,
            "index": index,
            "id": problem_id(item),
            "question": item.question,
            "steps": list(answer_last(item.steps)),
            "level": item.level,
        },
    }


def _rows_sha256(rows: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def _metadata(sha256: str) -> dict[str, str]:
    return {"reasonrl.schema": str(SCHEMA_VERSION), "reasonrl.sha256": sha256}


def _of_levels(items: list[Item], config: DataConfig, drops: Drops) -> list[Item]:
    low, high = config.min_level, config.max_level
    if low is None and high is None:
        return items
    kept = []
    for item in items:
        inside = item.level is not None and (low is None or item.level >= low) and (high is None or item.level <= high)
        if inside:
            kept.append(item)
        else:
            drops.add("no level" if item.level is None else "level outside min_level..max_level", problem_id(item))
    return kept


def _without(train: list[Item], val: list[Item], drops: Drops) -> list[Item]:
    asked = {_same_question(item) for item in val}
    kept = []
    for item in train:
        if _same_question(item) in asked:
            drops.add("also a validation question", problem_id(item))
        else:
            kept.append(item)
    return kept


def _draw(item: Item, seed: int) -> bytes:
    """A number for each problem that does not depend on its neighbours: growing `size` only adds problems."""
    return hashlib.sha256(f"{seed}\0{problem_id(item)}".encode()).digest()


def _subsample(items: list[Item], size: int | None, seed: int) -> list[Item]:
    """`size` of the items, drawn by `seed`, in their old order; all of them when there are fewer."""
    if size is None or size >= len(items):
        return items
    drawn = set(sorted(range(len(items)), key=lambda i: _draw(items[i], seed))[:size])
    return [item for i, item in enumerate(items) if i in drawn]


def _check_validation(config: DataConfig) -> None:
    if (
        not sources.SOURCES[config.source].one_file
        and config.path is not None
        and Path(config.path).expanduser().is_file()
        and config.val_split
        and not config.val_path
    ):
        raise DataError(
            f"path={config.path} is one file, and training and validation must not share it. Give val_path=<file>, or "
            f"hold problems out with val_split=null val_size=<number>, or name a folder (data.<key>=... in a run)"
        )


def _validation(config: DataConfig, drops: Drops) -> list[Item]:
    assert config.val_split is not None
    val = list(_unique(sources.items(config, config.val_split, config.val_size), drops))
    return _subsample(_of_levels(val, config, drops), config.val_size, config.seed)


def _held_out(train: list[Item], config: DataConfig) -> tuple[list[Item], list[Item]]:
    if config.val_size is None:
        raise DataError(
            f"data={config.name} has no validation split (data.val_split is null): say how many training problems to "
            f"hold out with val_size=..., or where validation problems are with val_path=... val_split=..."
        )
    if config.val_size >= len(train):
        raise DataError(f"data.val_size={config.val_size} leaves no training problem: {config.name} has {len(train)}")
    val = _subsample(train, config.val_size, config.seed + 1)  # another draw than the training subsample
    held = {problem_id(item) for item in val}
    return [item for item in train if problem_id(item) not in held], val


def _nothing_left(split: str, out: Path, drops: Drops) -> str:
    return (
        f"no {split} problem is left for {out}: {drops.summary()}. Look at those rows, give other data with path=, or name "
        "the columns with question_field= and answer_field= (data.<key>=... in a run)"
    )


def _reported(items: list[Item], out: Path, split: str, drops: Drops) -> Report:
    if not items:
        raise DataError(_nothing_left(split, out, drops))
    report = prepare(items, out, split=split)
    return replace(report, dropped=dict(drops.counts), examples=tuple(drops.examples))


def _ready(config: DataConfig, folder: Path, splits: Collection[str]) -> dict[str, Report]:
    """Files that are in verl's schema already: checked, then copied unchanged, or with their solutions cut into steps."""
    from reasonrl.data.problems import validate
    from reasonrl.data.readers import split_files

    reports = {}
    for split, given, wanted in (
        ("train", config.path, config.train_split),
        ("val", config.val_path, config.val_split),
    ):
        source = given or config.path
        if split not in splits:
            continue
        if source is None or wanted is None:
            raise DataError(f"source=verl needs files: path=<train.parquet or folder> and val_path=... for {split}")
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"no file or folder {path} (here: {Path.cwd()}); give the right one as path=, or val_path=")
        files = split_files(path, wanted) if path.is_dir() else [path]
        if len(files) != 1 or files[0].suffix != ".parquet":
            raise DataError(f"source=verl takes one parquet file for {split}, found {', '.join(map(str, files))}")
        if split == "val" and given is None and not path.is_dir():
            raise DataError(f"source=verl: {path} is the training file; name the validation file as val_path=...")
        rows = validate(files[0])
        out = folder / f"{split}.parquet"
        if config.steps is not None or config.steps_field is not None:
            reports[split] = _with_steps(files[0], out, config)
            continue
        content = files[0].read_bytes()
        stored = (pq.read_schema(files[0]).metadata or {}).get(b"reasonrl.sha256", b"").decode()
        _write_atomically(out, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
        reports[split] = Report(out, rows, stored or hashlib.sha256(content).hexdigest())
    return reports


def _with_steps(file: Path, out: Path, config: DataConfig) -> Report:
    """A ready file as it is, except for `extra_info.steps`, which are cut from the text that `steps_field` names."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    names = sources.columns(config)
    sources.check_columns(Row(f"{file.name}:0", rows[0]), names, config)
    items = [_solved(Row(f"{file.name}:{number}", values), names, config.steps) for number, values in enumerate(rows)]
    items, wrong = _without_wrong_traces(items)
    for values, item in zip(rows, items, strict=True):
        values["extra_info"] = {**(values.get("extra_info") or {}), "steps": list(answer_last(item.steps))}
    sha256 = _rows_sha256(rows)
    metadata = {**(table.schema.metadata or {}), b"reasonrl.sha256": sha256.encode()}
    schema = _schema_with_steps(table.schema).with_metadata(metadata)
    made = pa.Table.from_pylist(rows, schema=schema)
    _write_atomically(out, lambda path: pq.write_table(made, path, compression="zstd"))
    with_steps = sum(bool(item.steps) for item in items)
    return Report(
        out, len(rows), sha256, with_steps=with_steps, traces_dropped=len(wrong), trace_examples=tuple(wrong[:EXAMPLES])
    )


def _solved(row: Row, names: parsers.Columns, how: str | None) -> Item:
    """What checking a trace needs of a row."""
    steps = parsers.own_steps(row, names, how)
    if steps is None:
        raise DataError(
            f"{row.where}: {names.steps[0]} is neither a text nor a list of texts: name another steps_field="
        )
    answer = parsers.text(row, names.answer)
    return Item("", answer, steps, id=parsers.as_text(readers.field(row.values, "extra_info.id")) or row.where)


def _schema_with_steps(schema: pa.Schema) -> pa.Schema:
    at = schema.get_field_index("extra_info")
    inner = [] if at < 0 else [schema.field(at).type.field(i) for i in range(schema.field(at).type.num_fields)]
    steps = pa.field("steps", pa.list_(pa.string()))
    known = [f.name for f in inner]
    inner = [steps if f.name == "steps" else f for f in inner] + ([] if "steps" in known else [steps])
    extra = pa.field("extra_info", pa.struct(inner))
    return schema.append(extra) if at < 0 else schema.set(at, extra)


def _write_atomically(out: Path, write: Callable[[Path], Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
