"""Problems whose answer is a program: rows of MBPP and HumanEval, their golds as `verify.code` reads them.

MBPP is one file for all splits, which its paper cuts by `task_id`; the hub and folders of its files hold one split each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reasonrl.data.items import DataError, Dropped, Item, Rows
from reasonrl.data.readers import Row, from_hub, read, read_file
from reasonrl.data.steps import solution_steps
from reasonrl.verify.code import code_answer

if TYPE_CHECKING:
    from reasonrl.data.sources import DataConfig

MBPP_SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
FENCED = "```python\n{}\n```"


def mbpp_question(what: str, tests: Sequence[str]) -> str:
    """A task in a sentence, and its asserts, because only they name the function."""
    return f"{what}\n\nThe solution must pass these tests:\n\n{FENCED.format(chr(10).join(tests))}"


def are_tests(value: object) -> bool:
    """Whether it is a list of texts that holds something."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def humaneval_question(head: str) -> str:
    """The head of a function, with its doc string."""
    return f"Complete this Python function.\n\n{FENCED.format(head.rstrip())}"


def mbpp(config: DataConfig, split: str, size: int | None = None) -> Rows:
    """The problems of one split of MBPP. Raises DataError."""
    if split not in MBPP_SPLITS:
        raise DataError(f"data={config.name} has no split {split!r}; there are {', '.join(MBPP_SPLITS)}")
    for row in _rows(config, split, "mbpp*.jsonl*"):
        if isinstance(row, Dropped):
            yield row
            continue
        _require(row, config, ("task_id", "code", "test_list"))
        number = row.values["task_id"]
        if isinstance(number, int) and number in MBPP_SPLITS[split]:
            yield _mbpp_item(row, config)


def _mbpp_item(row: Row, config: DataConfig) -> Item | Dropped:
    values = row.values
    what, tests = str(values.get("text") or values.get("prompt") or "").strip(), values["test_list"]
    if not what or not are_tests(tests):
        return Dropped("no question" if not what else "no tests", row.where)
    setup = values.get("test_setup_code") or "\n".join(values.get("test_imports") or ())
    gold = code_answer("mbpp", tests=list(tests), setup=str(setup))
    steps = solution_in(str(values["code"]), config.steps)
    return Item(mbpp_question(what, tests), gold, steps, config.name, f"{config.name}/{values['task_id']}")


def humaneval(config: DataConfig, split: str, size: int | None = None) -> Rows:
    """The problems of HumanEval, which has one split, `test`. Raises DataError."""
    for row in _rows(config, split, "HumanEval*.jsonl*"):
        if isinstance(row, Dropped):
            yield row
            continue
        _require(row, config, ("task_id", "prompt", "test", "entry_point"))
        values = {name: str(value or "") for name, value in row.values.items()}
        parts = {"prompt": values["prompt"], "tests": values["test"], "entry_point": values["entry_point"]}
        if not all(text.strip() for text in parts.values()):
            yield Dropped("no question or no tests", row.where)
            continue
        code = values["prompt"] + values.get("canonical_solution", "") if values.get("canonical_solution") else ""
        steps = solution_in(code, config.steps)
        gold = code_answer("humaneval", **parts)
        yield Item(humaneval_question(values["prompt"]), gold, steps, config.name, values["task_id"])


def solution_in(code: str, how: str | None) -> tuple[str, ...]:
    """A program as a response would hold it, cut into steps: by `how`, or a line a step as it is written. () without one."""
    code = code.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    if not code.strip() or how == "none":
        return ()
    fenced = FENCED.format(code)
    if how is not None:
        return solution_steps(fenced, how)
    first, second, *rest = fenced.splitlines(keepends=True)
    return (first + second, *rest)


def _rows(config: DataConfig, split: str, pattern: str) -> Iterator[Row | Dropped]:
    given = config.val_path if config.val_path and split == config.val_split else config.path
    if given is None:
        if config.hub is None:
            raise DataError(f"data={config.name} needs path=<file or folder> (data.path=... in a run)")
        return from_hub(config.hub, split, config.subset, config.revision)
    path = Path(given).expanduser()
    files = sorted(path.rglob(pattern)) if path.is_dir() else []
    return read_file(files[0]) if files else read(path, split, config.subset)


def _require(row: Row, config: DataConfig, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in row.values]
    if missing:
        raise DataError(
            f"{row.where}: no column {missing[0]} for source={config.source}; the columns are "
            f"{', '.join(map(str, row.values))}. Is it another file?"
        )
