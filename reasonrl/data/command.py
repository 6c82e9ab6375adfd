"""`reasonrl data key=value ...`: make a data set once and look at what was dropped, before any run."""

import contextlib
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonrl.data.prepare import Report

HELP = """\
reasonrl data source=... [name=...] [path=...] [out=...] [key=value ...]

Turns a data set into verl's parquet schema: out/train.parquet and out/val.parquet, and a report of the rows dropped.

  source=gsm8k|math|deepmath103k|skywork_or1     known data sets, from path=<file or folder> or the Hugging Face hub
  source=jsonl question_field=q answer_field=a   your own .jsonl, .json, .parquet (.gz too); dots reach nested columns
  source=arithmetic|reasoning_gym                made on the fly (reasoning_gym task=chain_sum options.min_terms=3
                                                  needs the optional extra)
  source=verl path=train.parquet val_path=...    files in verl's schema: checked, then taken as they are

  name=NAME               goes into problem ids and metrics (default: the source's name)
  out=FOLDER              default: data/NAME
  train_split=, val_split=test|null     null holds val_size training problems out; train_split=null: there are none
  size=, val_size=, seed=               how many problems, drawn by the seed
  min_level=, max_level=                by the source's own difficulty
  steps_field=, id_field=, level_field=, hub=, subset=, revision=
  steps=auto|numbered|paragraphs|lines|sentences|none   how solutions are cut into steps (default: the source's own way);
                                        a solution that states a wrong answer is left out, its problem stays

In a run the same keys are data.<key>=...; see conf/data/*.yaml. Use the result with
  reasonrl data=verl data.path=FOLDER
"""


def run(args: Sequence[str]) -> int:
    """Do the command; the exit status. Errors are printed as one message, not as a traceback."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    from reasonrl.data.prepare import build

    made: list[Path] = []
    try:
        settings = parse(args)
        out = Path(str(settings.pop("out", Path("data") / str(settings["name"])))).expanduser()
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        reports = build(settings, out, train=False)
    except ValueError as error:
        print(f"reasonrl data: {error}", file=sys.stderr)
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()
        return 2
    _show(reports)
    return 0


def parse(args: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments over the defaults of `conf/data/<source>.yaml`. Raises ValueError for other forms."""
    import yaml

    given: dict[str, Any] = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or not key:
            raise ValueError(f"expected key=value, got {arg!r}; see `reasonrl data --help`")
        group, _, inner = key.partition(".")
        try:
            read = value if key in TEXTS and value != "null" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{arg}: not a value: {str(error).splitlines()[0]}") from error
        if inner:  # options.min_terms=3
            given[group] = {**_mapping(given.get(group), arg), inner: read}
        else:
            given[key] = read
    if "source" not in given:
        raise ValueError("which data? Give source=...; see `reasonrl data --help`")
    return {**_defaults(str(given["source"])), **({} if "name" in given else {"name": given["source"]}), **given}


def _mapping(value: Any, arg: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{arg}: {arg.partition('.')[0]} is {value!r} already")
    return value or {}


# Taken as they are written: a path may look like a YAML date or number.
TEXTS = {"name", "source", "path", "val_path", "out", "hub", "subset", "revision", "train_split", "task", "steps"} | {
    f"{part}_field" for part in ("question", "answer", "steps", "id", "level")
}


def _defaults(source: str) -> dict[str, Any]:
    import yaml

    file = files("reasonrl.conf") / "data" / f"{source}.yaml"
    return dict(yaml.safe_load(file.read_text())) if file.is_file() else {}


def _show(reports: "dict[str, Report]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "problems", "with steps", "dropped", "sha256", box=None, pad_edge=False)
    table.add_column("file", overflow="fold")  # a path is copied from here: never shortened
    for split, report in reports.items():
        dropped = str(sum(report.dropped.values()))
        table.add_row(
            split,
            str(report.rows),
            "-" if report.with_steps is None else str(report.with_steps),
            dropped,
            report.sha256[:12],
            str(report.path),
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table, soft_wrap=False)
    for split, report in reports.items():
        for reason, count in sorted(report.dropped.items(), key=lambda pair: -pair[1]):
            console.print(f"{split}: dropped {count} x {reason}", markup=False)
        for example in report.examples:
            console.print(f"  {example}", markup=False)
        if report.traces_dropped:
            console.print(
                f"{split}: left out {report.traces_dropped} x trace with a wrong answer, the problems kept",
                markup=False,
            )
        for example in report.trace_examples:
            console.print(f"  {example}", markup=False)
