r"""Where problems come from: `source=` names one of `SOURCES`; rows come from `path=` or from the Hugging Face hub.

A new data set in a known shape needs no new source: `source=jsonl question_field=... answer_field=...` reads any
columns, nested ones too. A new shape is one parser in `parsers.py` and one line in `SOURCES`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from reasonrl.data import gym, parsers
from reasonrl.data.items import DataError, Dropped, Rows
from reasonrl.data.parsers import Columns
from reasonrl.data.readers import Row, from_hub, has, read
from reasonrl.data.readers import Rows as RawRows
from reasonrl.data.steps import SPLITTERS
from reasonrl.data.typed import typed, unknown_name

NO_COLUMNS = Columns((), ())
OVERLONG = ("drop", "error")


@dataclass(frozen=True)
class DataConfig:
    """A data set; the `data` group of the configuration. Other keys of the group are the source's own knobs."""

    name: str
    source: str  # one of SOURCES
    path: str | None = None  # file or folder; null asks the Hugging Face hub
    val_path: str | None = None  # file or folder of the validation problems, if not `path`
    hub: str | None = None  # name on the hub
    subset: str | None = None  # configuration on the hub, or subfolder of `path`
    revision: str | None = None  # commit on the hub; pin it for a result that others can repeat
    train_split: str | None = "train"  # null: a test set, nothing to train on
    val_split: str | None = "test"  # null: `val_size` training problems are held out
    size: int | None = None  # training problems kept, drawn by `seed`; null = all
    val_size: int | None = None  # validation problems kept; null = all
    seed: int = 0
    min_level: float | None = None  # problems outside the levels, or without one, are dropped
    max_level: float | None = None
    overlong: str = "drop"  # drop | error: prompts longer than max_prompt_tokens
    question_field: str | None = None  # column names that replace the source's own; dots lead into nested records
    answer_field: str | None = None
    steps_field: str | None = None
    id_field: str | None = None
    level_field: str | None = None
    steps: str | None = None  # how solutions are cut into steps, one of steps.SPLITTERS; null = the source's own way
    knobs: dict[str, Any] = field(default_factory=dict)  # the source's own keys of the group

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(unknown_name("data.source", self.source, SOURCES))
        if self.overlong not in OVERLONG:
            raise ValueError(unknown_name("data.overlong", self.overlong, OVERLONG))
        for name, value in (("size", self.size), ("val_size", self.val_size)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be >= 1 or null, got {value}")
        if self.train_split is None and self.val_split is None:
            raise ValueError("data.train_split and data.val_split are both null: name one, such as data.val_split=test")
        if self.steps is not None and self.steps not in SPLITTERS:
            raise ValueError(unknown_name("data.steps", self.steps, SPLITTERS))
        if self.steps not in (None, "none") and not SOURCES[self.source].solutions and not self.steps_field:
            raise ValueError(
                f"data.steps={self.steps} cuts solutions, and source={self.source} takes none by itself: name their "
                f"column as data.steps_field=..."
            )


def data_from_config(cfg: Mapping[str, Any]) -> DataConfig:
    """The `data` node of a composed configuration. Raises ValueError for unknown keys, naming the nearest ones."""
    source = cfg.get("source")
    if source not in SOURCES:
        raise ValueError(unknown_name("data.source", source, SOURCES))
    own = {f.name for f in fields(DataConfig)}
    extra = SOURCES[str(source)].knobs()
    for key in cfg:
        if key not in own | extra:
            raise ValueError(unknown_name(f"setting of data source {source!r}:", key, (own | extra) - {"knobs"}))
    knobs = {**cfg.get("knobs", {}), **{key: cfg[key] for key in cfg if key in extra - own}}
    common = {"val_split": SOURCES[str(source)].val_split, **{key: cfg[key] for key in cfg if key in own}}
    return typed(DataConfig, {**common, "knobs": knobs}, "data")


def items(config: DataConfig, split: str, size: int | None = None) -> Rows:
    """The problems of one split, and the rows dropped. Only sources that make their problems heed `size`.

    Raises DataError when there is no such data, or when its columns are not the source's.
    """
    source = SOURCES[config.source]
    return source.make(config, split, size) if source.make is not None else _parsed(source, config, split)


def columns(config: DataConfig) -> Columns:
    """The column names of the source, replaced by those that the configuration gives."""
    given = {f.name: getattr(config, f"{f.name}_field") for f in fields(Columns)}
    known = SOURCES[config.source].columns
    return Columns(**{part: (own,) if own else getattr(known, part) for part, own in given.items()})


def check_columns(row: Row, columns: Columns, config: DataConfig) -> None:
    """A file of another kind is an error, not a file of which every row is dropped. Raises DataError."""
    answers = columns.answer + (columns.steps if config.source == "math" else ())
    wanted = [("question", columns.question), ("answer", answers)]
    wanted += [(part, getattr(columns, part)) for part in ("steps", "id", "level") if getattr(config, f"{part}_field")]
    for part, names in wanted:
        if parsers.first(row, names) is None and not any(has(row.values, name) for name in names):
            raise DataError(
                f"{row.where}: no {part} column for source={config.source} (looked for {' or '.join(names)}); the "
                f"columns are {', '.join(map(str, row.values))}. Name yours with {part}_field=..., in a run with "
                f"data.{part}_field=..."
            )


@dataclass(frozen=True)
class Source:
    """Rows and a parser, or a maker of finished items with knobs of its own."""

    parse: parsers.Parse | None = None
    columns: Columns = NO_COLUMNS
    make: Callable[[DataConfig, str, int | None], Rows] | None = None
    knobs: Callable[[], set[str]] = set
    val_split: str = "test"  # where a configuration does not say
    solutions: bool = True  # False: only where `steps_field` names them
    programs: bool = False  # answers are programs, which verify=code runs
    one_file: bool = False  # a file holds all splits, and the source knows which row is of which


def _parsed(source: Source, config: DataConfig, split: str) -> Rows:
    names = columns(config)
    checked = False
    for row in _raw_rows(config, split):
        if isinstance(row, Dropped):
            yield row
            continue
        if not checked:
            check_columns(row, names, config)
            checked = True
        assert source.parse is not None
        yield source.parse(row, names, config.name, config.steps)


def _raw_rows(config: DataConfig, split: str) -> RawRows:
    path = config.val_path if config.val_path and split == config.val_split else config.path
    if path is not None:
        return read(path, split, config.subset)
    if config.hub is None:
        raise DataError(f"data={config.name} needs path=<file or folder> (data.path=... in a run)")
    return from_hub(config.hub, split, config.subset, config.revision)


def _arithmetic(config: DataConfig, split: str, size: int | None) -> Rows:
    from reasonrl.data import arithmetic

    try:
        for item in arithmetic.items(split, size or 4096, config.seed, **config.knobs):
            yield replace(item, steps=parsers.cut_again(item.steps, config.steps))
    except ValueError as error:
        raise DataError(str(error)) from error


def _arithmetic_knobs() -> set[str]:
    from reasonrl.data import arithmetic

    return {p.name for p in inspect.signature(arithmetic.items).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _gym(config: DataConfig, split: str, size: int | None) -> Rows:
    held_out = split != config.train_split
    seed = config.seed + held_out * 1_000_003
    return gym.items(size=size or 4096, seed=seed, source=config.name, how=config.steps or "lines", **config.knobs)


def _functions(config: DataConfig, split: str, size: int | None) -> Rows:
    from reasonrl.data import functions

    try:
        yield from functions.from_config(config, split, size)
    except ValueError as error:
        raise DataError(str(error)) from error


def _mbpp(config: DataConfig, split: str, size: int | None) -> Rows:
    from reasonrl.data import programs  # which writes golds for a judge

    return programs.mbpp(config, split)


def _humaneval(config: DataConfig, split: str, size: int | None) -> Rows:
    from reasonrl.data import programs

    return programs.humaneval(config, split)


SOURCES: dict[str, Source] = {
    "arithmetic": Source(make=_arithmetic, knobs=_arithmetic_knobs, val_split="validation"),
    "gsm8k": Source(parsers.gsm8k, Columns(("question",), ("answer",), id=("id",))),
    "math": Source(
        parsers.math,
        Columns(
            ("problem", "question"),
            ("answer", "final_answer", "expected_answer"),
            ("solution",),
            ("unique_id",),
            ("level",),
        ),
    ),
    "deepmath103k": Source(
        parsers.plain,
        Columns(("question", "prompt"), ("final_answer", "ground_truth"), id=("id",), level=("difficulty",)),
        solutions=False,
    ),
    "skywork_or1": Source(
        parsers.chat,
        Columns(("prompt",), ("reward_model.ground_truth",), level=("extra_info.model_difficulty",)),
        solutions=False,
    ),
    "reasoning_gym": Source(make=_gym, knobs=lambda: {"task", "options"}, val_split="validation"),
    "functions": Source(make=_functions, val_split="validation", programs=True),
    "mbpp": Source(make=_mbpp, val_split="validation", programs=True, one_file=True),
    "humaneval": Source(make=_humaneval, programs=True),
    "jsonl": Source(parsers.own_fields, Columns(("question",), ("answer",), ("steps",), ("id",), ("level",))),
    "verl": Source(
        parsers.own_fields,
        Columns(("extra_info.question", "prompt"), ("reward_model.ground_truth",), ("extra_info.steps",)),
    ),
}
