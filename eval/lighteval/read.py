"""What lighteval wrote, and its accuracy beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.lighteval.counterparts import COUNTERPARTS
from reasonrl.eval.lighteval.installed import read_json

if TYPE_CHECKING:
    from rich.table import Table

    from reasonrl.eval.compare import Problems
    from reasonrl.eval.tasks import Question
    from reasonrl.functional.estimates import Interval

LEVEL = 0.95


@dataclass(frozen=True)
class Theirs:
    """What lighteval found on a task. error: standard error, None where it gives none. values: its questions' texts, scores."""

    estimate: float
    error: float | None
    values: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Beside:
    """Ours and theirs on one task."""

    task: str
    ours: Interval
    problems: int
    theirs: Theirs
    difference: Interval | None
    paired: bool
    notes: Sequence[str]


def results_file(given: Path) -> Path:
    """A results file, or the newest in a folder. Raises ConfigError."""
    if given.is_file():
        return given
    found = sorted(given.rglob("results_*.json"), key=lambda file: file.name)
    if not found:
        raise ConfigError(f"there is no results_*.json of lighteval in {given}")
    return found[-1]


def model_of(file: Path) -> str:
    """The model that a results file names."""
    return str((read_json(file).get("config_general") or {}).get("model_name", "an unnamed model"))


def read_theirs(file: Path, tasks: Sequence[str]) -> dict[str, Theirs]:
    """What lighteval found on our tasks. Raises ConfigError."""
    found = read_json(file).get("results")
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is no results file of lighteval 0.13 (no 'results' in it)")
    theirs = {}
    for task in tasks:
        other = COUNTERPARTS[task]
        names = [name for name in found if name.split("|")[0] == other.task]
        if not names:
            raise ConfigError(
                f"{file} has no {other.task}; it has {', '.join(name for name in found if name != 'all')}"
            )
        scores = found[names[0]]
        metrics = [name for name in scores if name.startswith(other.metric) and not name.endswith("_stderr")]
        if not metrics:
            raise ConfigError(f"{file}: {names[0]} has no {other.metric}; it has {', '.join(scores)}")
        error = scores.get(f"{metrics[0]}_stderr")
        theirs[task] = Theirs(float(scores[metrics[0]]), error, read_details(file, names[0], metrics[0]))
    return theirs


def read_details(file: Path, name: str, metric: str) -> list[tuple[str, float]]:
    """Question and score of every problem; [] where the details are not beside the results."""
    import pyarrow.parquet as pq

    date = file.stem.removeprefix("results_")
    places = [place for place, part in enumerate(file.parts) if part == "results"]
    if not places:
        return []
    rest = file.parts[places[-1] + 1 : -1]
    details = Path(*file.parts[: places[-1]], "details", *rest, date, f"details_{name}_{date}.parquet")
    if not details.is_file():
        return []
    columns = pq.read_table(details, columns=["doc", "metric"]).to_pydict()
    return [
        (doc["query"], float(scores[metric])) for doc, scores in zip(columns["doc"], columns["metric"], strict=True)
    ]


def matched(asked: Sequence[Question], theirs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Our id -> their score, of the questions whose text stands in exactly one of theirs, and which no other shares."""
    queries = [(" ".join(query.split()), score) for query, score in theirs]
    found: dict[str, int] = {}
    for question in asked:
        text = " ".join(question.text.split())
        places = [place for place, (query, _) in enumerate(queries) if text in query]
        if len(places) == 1:
            found[question.id] = places[0]
    taken = list(found.values())
    return {id: queries[place][1] for id, place in found.items() if taken.count(place) == 1}


def beside(
    task: str,
    result: Mapping[str, Any],
    problems: Problems,
    theirs: Theirs,
    asked: Sequence[Question],
    notes: Sequence[str],
) -> Beside:
    """Ours and theirs: paired where all problems of both can be matched, else as two samples."""
    import numpy as np

    from reasonrl.functional.estimates import Interval, difference_interval

    accuracy = result["accuracy"]
    ours = Interval(accuracy["estimate"], accuracy["low"], accuracy["high"], accuracy["level"])
    pairs = matched(asked, theirs.values)
    size = problems.ids.size
    if len(pairs) == size == len(theirs.values) and size > 1:
        scores = np.array([pairs[id] for id in problems.ids])
        return Beside(task, ours, size, theirs, difference_interval(problems.accuracy, scores, LEVEL), True, notes)
    said = [*notes]
    if theirs.values and len(theirs.values) != size:
        said.append(f"{size} problems here, {len(theirs.values)} there")
    if asked and pairs and len(pairs) < size:
        said.append(f"{len(pairs)} of {size} problems could be matched by their text, so the difference is not paired")
    if not theirs.values:
        said.append("lighteval's details are not beside its results, so the difference is not paired")
    difference = None
    if theirs.error is not None and not math.isnan(theirs.error) and size > 1:
        gap = ours.estimate - theirs.estimate
        own = float(problems.accuracy.std(ddof=1)) / math.sqrt(size)
        half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * math.hypot(own, theirs.error)
        difference = Interval(gap, gap - half, gap + half, LEVEL)
    return Beside(task, ours, size, theirs, difference, False, said)


HEADINGS = ("task", "problems", "ours", "lighteval", "ours - lighteval", "how")


def cells(row: Beside) -> list[str]:
    """In the order of `HEADINGS`."""
    from reasonrl.eval.table import NONE, count, with_interval

    gap = row.difference
    return [
        row.task,
        count(row.problems),
        with_interval({"estimate": row.ours.estimate, "low": row.ours.low, "high": row.ours.high}),
        f"{row.theirs.estimate:.1%}",
        NONE if gap is None else f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})",
        "paired" if row.paired else "unpaired",
    ]


def legend(rows: Sequence[Beside]) -> list[str]:
    """What differs."""
    told = [f"{row.task}: {'; '.join(row.notes)}" for row in rows if row.notes]
    return [
        *told,
        "lighteval removes <think>..</think> before it grades where an answer holds both tags, and shows no system text",
        f"differences in points, {100 * LEVEL:g} %; paired: over problems matched by their text",
    ]


def table(rows: Sequence[Beside], results: Mapping[str, Any]) -> Table:
    """For the terminal."""
    from rich.text import Text

    from reasonrl.eval.table import narrow, stacked

    found: Table = narrow(f"{results['model']['name']} and lighteval", HEADINGS, legend(rows))
    for row in rows:
        found.add_row(*(Text(stacked(cell)) for cell in cells(row)))
    return found


def markdown(rows: Sequence[Beside], results: Mapping[str, Any]) -> str:
    """The same in Markdown, ending in a line break."""
    from reasonrl.eval.table import escaped

    lines = [f"{results['model']['name']} and lighteval", "", f"| {' | '.join(HEADINGS)} |"]
    lines.append(f"|---|{'---:|' * (len(HEADINGS) - 1)}")
    lines += [f"| {' | '.join(map(escaped, cells(row)))} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {escaped(note)}" for note in legend(rows))]) + "\n"
