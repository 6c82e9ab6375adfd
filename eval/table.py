"""The results of an evaluation as one table: for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"
HEADINGS = (
    "task",
    "problems x n",
    "accuracy (95 %)",
    "pass@k",
    "maj@k",
    "tokens (right / wrong)",
    "cut",
    "no answer",
    "ungraded",
    "detectable",
)
# the same in 80 columns: what is narrow stands in two lines
STACKED = (
    "task",
    "prob-\nlems",
    "accuracy\n95 %",
    "pass@k\nmaj@k",
    "tokens\nright/wrong",
    "cut",
    "no\nanswer",
    "un-\ngraded",
)
STACKED += ("detec-\ntable",)
UNGRADED = 7


def results_table(results: Mapping[str, Any], speed: Mapping[str, Any] | None = None) -> Table:
    """results: of results.json. speed: of timing.json, told below the table."""
    from rich.text import Text

    table = narrow(title(results), [with_level(heading, results) for heading in STACKED], legend(results, speed))
    for name, task in results["tasks"].items():
        cells = [Text(cell) for cell in stacked_row(name, task)]
        if task["ungraded"]:
            cells[UNGRADED].stylize("bold red")
        table.add_row(*cells)
    if len(results["tasks"]) > 1:
        table.add_section()
        table.add_row("mean", "", percent(mean_accuracy(results)))
    return table


def markdown_table(results: Mapping[str, Any], speed: Mapping[str, Any] | None = None) -> str:
    """The same in Markdown, ending in a line break."""
    names = [with_level(heading, results) for heading in HEADINGS]
    lines = [
        title(results),
        "",
        f"| {' | '.join(names)} |",
        f"|---|{'---:|' * (len(names) - 1)}",
        *(f"| {' | '.join(escaped(cell) for cell in row(name, task))} |" for name, task in results["tasks"].items()),
    ]
    if len(results["tasks"]) > 1:
        lines.append(f"| mean | | {percent(mean_accuracy(results))} |{' |' * (len(names) - 3)}")
    return "\n".join([*lines, "", *(f"- {escaped(line)}" for line in legend(results, speed))]) + "\n"


def title(results: Mapping[str, Any]) -> str:
    """Model, and protocol or suite where there is one."""
    how = [f"{key} {results[key]}" for key in ("protocol", "suite") if results.get(key)]
    return ", ".join([str(results["model"]["name"]), *how])


def narrow(title: str, headings: Sequence[str], legend: Sequence[str]) -> Table:
    """A table in which only the first column wraps."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(title),
        title_justify="left",
        caption=Text("\n".join(legend)) if legend else None,
        caption_justify="left",
    )
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
    return table


def with_level(heading: str, results: Mapping[str, Any]) -> str:
    """The interval's level is the results' own."""
    levels = {task["accuracy"]["level"] for task in results["tasks"].values()}
    return heading.replace("95", " or ".join(f"{100 * each:g}" for each in sorted(levels)) or "95")


def row(name: str, task: Mapping[str, Any]) -> list[str]:
    """A task's cells, in the order of `HEADINGS`."""
    least, most = task["n"]["min"], task["n"]["max"]
    tokens, rates = task["tokens"], task["rates"]
    return [
        name,
        f"{task['problems']} x {least if least == most else f'{least}..{most}'}",
        with_interval(task["accuracy"]),
        at_largest_k(task["pass_at_k"]),
        at_largest_k(task["maj_at_k"]),
        f"{count(tokens['mean'])} ({count(tokens['correct'])} / {count(tokens['wrong'])})",
        percent(rates["truncated"]["share"]),
        percent(rates["no_answer"]["share"]),
        str(task["ungraded"]),
        points(task["minimum_detectable_difference"]["value"]),
    ]


def stacked_row(name: str, task: Mapping[str, Any]) -> list[str]:
    """A task's cells, in the order of `STACKED`."""
    _, size, accuracy, passed, voted, _, *rest = row(name, task)
    tokens = task["tokens"]
    lengths = f"{count(tokens['mean'])}\n{thousands(tokens['correct'])}/{thousands(tokens['wrong'])}"
    return [name, size.replace(" x", "\nx"), stacked(accuracy), f"{passed}\n{voted}", lengths, *rest]


def stacked(cell: str) -> str:
    """A number above its interval."""
    return cell.replace(" (", "\n").rstrip(")")


def legend(results: Mapping[str, Any], speed: Mapping[str, Any] | None = None) -> list[str]:
    """What the columns do not say: how sure, what to know, how fast."""
    lines = [f"{name}: {note}" for name, task in results["tasks"].items() for note in task.get("notes", ())]
    lines += [str(note) for note in results.get("notes", ())]
    found = [task["minimum_detectable_difference"] for task in results["tasks"].values()]
    if any(each["value"] is not None for each in found):
        lines.append(
            f"detectable: difference of two unrelated results that a test at {found[0]['alpha']:g} finds "
            f"{found[0]['power']:.0%} of the time; `reasonrl eval compare` finds smaller ones on the same problems"
        )
    sessions = (speed or {}).get("sessions") or ()
    if sessions:
        answers, tokens = (sum(each.get(key) or 0 for each in sessions) for key in ("answers", "tokens"))
        sampling = sum((each.get("seconds") or {}).get("sample", 0.0) for each in sessions)
        rate = f", {tokens / sampling:,.0f} tokens a second while sampling" if sampling else ""
        lines.append(f"{answers:,} answers in {speed['seconds']:,.0f} s{rate}" if speed else "")
    return lines


def mean_accuracy(results: Mapping[str, Any]) -> float:
    """Each task counts once."""
    accuracies = [task["accuracy"]["estimate"] for task in results["tasks"].values()]
    return float(sum(accuracies) / len(accuracies))


def with_interval(found: Mapping[str, float]) -> str:
    """52.0% (44.1–59.8)"""
    return f"{found['estimate']:.1%} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"


def at_largest_k(found: Mapping[str, Mapping[str, float]]) -> str:
    """`61.2% @16`; nothing at k = 1, which is the accuracy."""
    k = max((int(name) for name in found), default=1)
    return f"{found[str(k)]['estimate']:.1%} @{k}" if k > 1 else NONE


def percent(value: float | None) -> str:
    """52.0%"""
    return NONE if value is None else f"{value:.1%}"


def points(value: float | None) -> str:
    """A difference of accuracies: 4.2 pt"""
    return NONE if value is None else f"{100 * value:.1f} pt"


def count(value: float | None) -> str:
    """1,234"""
    return NONE if value is None else f"{value:,.0f}"


def thousands(value: float | None) -> str:
    """1.2k"""
    if value is None:
        return NONE
    return f"{value:.0f}" if value < 999.5 else f"{value / 1000:.1f}k" if value < 9950 else f"{value / 1000:.0f}k"


def escaped(text: str) -> str:
    """A task's name must not end a cell."""
    return text.replace("|", "\\|").replace("\n", " ")
