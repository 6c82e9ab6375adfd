"""Suites: the tasks of a paper's table, and that table with a row of ours.

A file of `conf/suite/` names a protocol, the tasks in the order of the paper's columns, what is averaged, and the rows that the
paper printed, in percent. An average counts each of its tasks once. How much is saved compares averaged lengths: 1 less the
mean tokens over those of the model before.

A number is printed only where it is known: a task that was not evaluated is a dash, and so is every average that needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, nearest
from reasonrl.eval.settings import read_conf, read_protocol, resolve
from reasonrl.eval.table import NONE, count, escaped, narrow

if TYPE_CHECKING:
    from rich.table import Table

Cell = Callable[[str, "tuple[str, str] | None", "str | None"], str]

OURS = "ours"
NEAREST = "→"
WIDE = 6  # columns
COMPARED = ("n", "temperature", "top_p", "top_k", "max_new_tokens", "max_context", "limit", "verify")


@dataclass(frozen=True)
class Row:
    """What a paper printed of one model; accuracies in percent, None where it prints nothing.

    accuracy, tokens: one a task of the suite, or none at all. averages: one an average of the suite, or none at all.
    average_tokens, saved: where printed. before: the row of the same group that `saved` refers to.
    model: by which an evaluated model is recognised. follows: False where the averages do not follow from the columns.
    """

    name: str
    group: str
    accuracy: Sequence[float | None] = ()
    tokens: Sequence[float | None] = ()
    averages: Sequence[float | None] = ()
    average_tokens: float | None = None
    saved: float | None = None
    before: str | None = None
    model: str | None = None
    follows: bool = True


@dataclass(frozen=True)
class Suite:
    """The tasks of a paper under its protocol.

    headings: of the tasks; a line break in one is for the terminal only. averages: heading -> tasks.
    saving: heading of the tokens saved; "" where the paper does not speak of it. decimals: of accuracies, as printed.
    """

    tasks: Sequence[str]
    protocol: str | None = None
    name: str = ""
    title: str = ""
    citation: str = ""
    headings: Sequence[str] = ()
    averages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    saving: str = ""
    decimals: int = 1
    notes: Sequence[str] = ()
    rows: Sequence[Row] = ()

    @property
    def lengths(self) -> bool:
        """Whether the table has tokens."""
        return any(row.tokens for row in self.rows)

    def found(self, results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Of results.json, by the suite's own words for its tasks; those that are not there are left out."""
        from reasonrl.eval.tasks.task import load_task

        names = {task: load_task(task).name if task.endswith((".yaml", ".yml")) else task for task in self.tasks}
        return {task: results["tasks"][name] for task, name in names.items() if name in results["tasks"]}


def read_suite(name: str) -> Suite:
    """A name of `conf/suite`, or a file of one's own that ends in .yaml. Raises ConfigError."""
    from reasonrl.data.typed import typed

    where = f"suite {name}"
    try:
        values = {"name": Path(name).stem, **read_conf("suite", name)}
        suite = typed(Suite, {**values, "rows": _rows(values.get("rows") or {}, where)}, where)
        _check(suite)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{error}" if where in str(error) else f"{where}: {error}") from error
    return suite


def chosen_tasks(suite: Suite, asked: Sequence[str] | None) -> list[str]:
    """The suite's tasks; of them those asked for, in the suite's order. Raises ConfigError."""
    for task in asked or ():
        if task not in suite.tasks:
            raise ConfigError(f"suite {suite.name} has no task '{task}'{nearest(task, suite.tasks)}")
    return [task for task in suite.tasks if asked is None or task in asked]


def _rows(given: Any, where: str) -> list[Row]:
    from reasonrl.data.typed import typed

    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: rows must map a heading to its rows, got {given!r}")
    rows = []
    for group, members in given.items():
        if not isinstance(members, Sequence) or not all(isinstance(member, Mapping) for member in members):
            raise ValueError(f"{where}: rows.{group} must be a list of key: value rows, got {members!r}")
        for member in members:
            rows.append(typed(Row, {"group": str(group), **member}, f"{where}.rows.{group}"))
    return rows


def _check(suite: Suite) -> None:
    """Raise ValueError for what does not fit together."""
    if not suite.tasks or isinstance(suite.tasks, str):
        raise ValueError("names no tasks")
    if suite.headings and len(suite.headings) != len(suite.tasks):
        raise ValueError(f"{len(suite.headings)} headings for {len(suite.tasks)} tasks")
    for heading, tasks in suite.averages.items():
        for task in tasks:
            if task not in suite.tasks:
                raise ValueError(f"averages.{heading} has '{task}', which is not among its tasks")
    wanted = {"accuracy": len(suite.tasks), "tokens": len(suite.tasks), "averages": len(suite.averages)}
    for row in suite.rows:
        for what, size in wanted.items():
            numbers = getattr(row, what)
            if numbers and len(numbers) != size:
                raise ValueError(f"row {row.group}, {row.name} has {len(numbers)} {what} for {size}")
            for number in numbers:
                if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                    raise ValueError(f"row {row.group}, {row.name}: {what} must be numbers, got {number!r}")
        if row.before is not None and _before(suite, row) is None:
            raise ValueError(f"row {row.group}, {row.name}: no row '{row.before}' in its group")


def _before(suite: Suite, row: Row) -> Row | None:
    same = [each for each in suite.rows if each.group == row.group and each.name == row.before]
    return same[0] if same else None


# The numbers


@dataclass(frozen=True)
class Figures:
    """One row of the table; accuracies and `saved` in percent, None for a dash. tokens: () where the row has none."""

    accuracy: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]
    tokens: Sequence[float | None]
    averages: Sequence[float | None]
    average_tokens: float | None
    saved: float | None


def printed(suite: Suite, row: Row) -> Figures:
    """A paper's row: what it printed; mean tokens and what they save are worked out where it did not."""
    none: list[None] = [None] * len(suite.tasks)
    average = row.average_tokens if row.average_tokens is not None else mean(row.tokens)
    before = _before(suite, row)
    saved = row.saved
    if saved is None and before is not None:
        saved = saving(average, printed(suite, before).average_tokens)
    averages = row.averages or [None] * len(suite.averages)
    return Figures(row.accuracy or none, none, row.tokens, averages, average, saved)


def measured(suite: Suite, results: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> Figures:
    """Ours. results: of results.json. baseline: results of the model before, for the tokens saved."""
    tasks = suite.found(results)
    found = [tasks.get(task) for task in suite.tasks]
    accuracy = [None if task is None else 100 * task["accuracy"]["estimate"] for task in found]
    by_task = dict(zip(suite.tasks, accuracy, strict=True))
    tokens = [None if task is None else task["tokens"]["mean"] for task in found]
    before = None if baseline is None else measured(suite, baseline).average_tokens
    return Figures(
        accuracy,
        [None if task is None else (100 * task["accuracy"]["low"], 100 * task["accuracy"]["high"]) for task in found],
        tokens,
        [mean([by_task[task] for task in averaged]) for averaged in suite.averages.values()],
        mean(tokens),
        saving(mean(tokens), before),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Each counts once; None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def saving(tokens: float | None, before: float | None) -> float | None:
    """Tokens saved, in percent of those before."""
    return None if tokens is None or not before else 100 * (1 - tokens / before)


def nearest_row(suite: Suite, results: Mapping[str, Any]) -> Row | None:
    """The published row of the model that was evaluated, by its name: the same one, else the longest that is part of it."""
    names = {
        _plain(results["model"]["name"]),
        _plain(str(results["model"].get("path") or "").rstrip("/").split("/")[-1]),
    }
    known = [(row, _plain(row.model)) for row in suite.rows if row.model]
    same = [row for row, model in known if model in names]
    part = [(row, model) for row, model in known if any(model in name for name in names)]
    return same[0] if same else max(part, key=lambda each: len(each[1]))[0] if part else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


# What to know beside the numbers


def deviations(suite: Suite, results: Mapping[str, Any]) -> list[str]:
    """Where the evaluation was not made as the suite's protocol says, a line a task."""
    from reasonrl.eval.tasks.task import load_task

    if suite.protocol is None:
        return []
    protocol, found = read_protocol(suite.protocol), []
    for name, task in suite.found(results).items():
        wanted, had = resolve(load_task(name), protocol, {}), task["settings"]
        differing = [
            f"{key} {had[key]} (protocol: {getattr(wanted, key)})"
            for key in COMPARED
            if key in had and had[key] != getattr(wanted, key)
        ]
        if differing:
            found.append(f"{name}: {', '.join(differing)}")
    return found


def legend(
    suite: Suite, results: Mapping[str, Any], baseline: Mapping[str, Any] | None = None, row: Row | None = None
) -> list[str]:
    """What the cells do not say."""
    lines = [f"numbers beside {OURS}: as printed in {suite.citation or suite.title}"] if suite.rows else []
    missing = [task for task in suite.tasks if task not in suite.found(results)]
    if missing:
        without = [flat(heading) for heading, tasks in suite.averages.items() if set(tasks) & set(missing)]
        lines.append(
            f"not evaluated: {', '.join(missing)}" + (f"; so no {' and no '.join(without)}" if without else "")
        )
    lines += deviations(suite, results)
    if suite.saving and baseline is None:
        lines.append(f"{suite.saving} of {OURS}: baseline=<folder of the model before, evaluated on the same tasks>")
    elif suite.saving and baseline is not None:
        lines.append(f"{suite.saving} of {OURS}: against {baseline['model']['name']}")
        lacking = [task for task in suite.tasks if task not in suite.found(baseline)]
        if lacking:
            lines.append(f"the baseline has no {', '.join(lacking)}")
    if row is not None:
        lines.append(f"{NEAREST} the published row whose name is nearest to {results['model']['name']}")
    return [*lines, *suite.notes]


# The table


def headings(suite: Suite) -> list[str]:
    """Of all columns."""
    return ["", *(suite.headings or suite.tasks), *suite.averages, *([suite.saving] if suite.saving else [])]


def flat(heading: str) -> str:
    """In one line."""
    return heading.replace("\n", "")


def suite_table(results: Mapping[str, Any], suite: Suite, baseline: Mapping[str, Any] | None = None) -> Table:
    """The paper's table with ours on top, for the terminal: under an accuracy stand its interval's ends, then tokens.

    results: of results.json. baseline: results of the model before, for the tokens saved.
    """
    from rich.text import Text

    row = nearest_row(suite, results)
    levels = {f"{100 * task['accuracy']['level']:g}" for task in suite.found(results).values()}
    under = f"under {OURS}: the ends of its {' or '.join(sorted(levels))} % interval" + (
        ", then mean tokens" if suite.lengths else ""
    )
    table: Table = narrow(title(suite), headings(suite), [under, *legend(suite, results, baseline, row)])
    if len(table.columns) < WIDE:
        table.columns[0].min_width = 40  # what stands below wraps where the table ends
    label = f"{OURS}: {results['model']['name']}"
    ours = _cells(suite, measured(suite, results, baseline), in_lines)
    table.add_row(Text(label, style="bold"), *map(Text, ours))
    for group in dict.fromkeys(each.group for each in suite.rows):
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for each in (each for each in suite.rows if each.group == group):
            style = "bold" if each is row else ""
            cells = _cells(suite, printed(suite, each), in_lines)
            table.add_row(Text(_named(each, row), style=style), *(Text(cell, style=style) for cell in cells))
    return table


def suite_markdown(results: Mapping[str, Any], suite: Suite, baseline: Mapping[str, Any] | None = None) -> str:
    """The same in Markdown, ending in a line break."""
    row = nearest_row(suite, results)
    names = [flat(heading) for heading in headings(suite)]
    lines = [title(suite), "", f"| {' | '.join(map(escaped, names))} |", f"|---|{'---:|' * (len(names) - 1)}"]
    lines.append(
        _line(f"{OURS}: {results['model']['name']}", _cells(suite, measured(suite, results, baseline), in_one_line))
    )
    for group in dict.fromkeys(each.group for each in suite.rows):
        lines.append(_line(f"**{group}**", [""] * (len(names) - 1)))
        for each in (each for each in suite.rows if each.group == group):
            lines.append(_line(_named(each, row), _cells(suite, printed(suite, each), in_one_line)))
    notes = [*legend(suite, results, baseline, row), *map(str, results.get("notes") or ())]
    return "\n".join([*lines, "", *(f"- {escaped(note)}" for note in notes)]) + "\n"


def title(suite: Suite) -> str:
    """Of the table."""
    return suite.title or suite.name


def in_lines(accuracy: str, interval: tuple[str, str] | None, tokens: str | None) -> str:
    """A cell of the terminal."""
    return "\n".join([accuracy, *(interval or ()), *([tokens] if tokens is not None else [])])


def in_one_line(accuracy: str, interval: tuple[str, str] | None, tokens: str | None) -> str:
    """A cell of Markdown: 52.0 (44.1–59.8) / 5,530"""
    told = f"{accuracy} ({interval[0]}–{interval[1]})" if interval else accuracy
    return told if tokens is None or (tokens == accuracy == NONE) else f"{told} / {tokens}"


def _cells(suite: Suite, row: Figures, cell: Cell) -> list[str]:
    """Of all columns but the first."""

    def number(value: float | None) -> str:
        return NONE if value is None else f"{value:.{suite.decimals}f}"

    lengths = [count(tokens) for tokens in row.tokens] if suite.lengths and row.tokens else [None] * len(suite.tasks)
    made = []
    for accuracy, interval, tokens in zip(row.accuracy, row.intervals, lengths, strict=True):
        ends = None if interval is None else (number(interval[0]), number(interval[1]))
        made.append(cell(number(accuracy), ends, tokens))
    blank = ("", "") if any(row.intervals) and cell is in_lines else None  # so that tokens stand in one line
    average_tokens = count(row.average_tokens) if suite.lengths and row.tokens else None
    made += [cell(number(average), blank, average_tokens) for average in row.averages]
    return [*made, *([number(row.saved)] if suite.saving else [])]


def _named(row: Row, nearest: Row | None) -> str:
    return f"{NEAREST} {row.name}" if row is nearest else f"  {row.name}"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([escaped(name.strip()), *map(escaped, cells)])} |"
