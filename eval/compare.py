"""`reasonrl eval compare`: several evaluations of the same problems against the first one, problem by problem.

    B problems that all have, m comparisons

Pairing is what makes small differences visible: how hard a problem is cancels out. Read from the folders alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError, nearest
from reasonrl.eval.prm.knobs import read_knobs, require
from reasonrl.eval.summary import ALPHA, POWER, TOO_LONG, rounded
from reasonrl.eval.table import NONE, count, escaped, narrow, stacked, with_interval

if TYPE_CHECKING:
    from rich.table import Table

    from reasonrl.functional.estimates import Interval

HELP = """\
reasonrl eval compare <folder> <folder> [<folder> ...] [key=value ...]

Compares evaluations on the same problems, task by task, each with the first folder: accuracy, its difference with an interval,
whether chance explains it, problems gained and lost, and tokens.

  reasonrl eval compare evals/before evals/after
  reasonrl eval compare evals/base evals/grpo evals/pace task=gsm8k out=pace.md

  task=                 tasks, such as gsm8k,math500; default: all that every folder has
  allow=                data, prompt or both: compare although these differ, on the problems whose ids all have
  level=0.95            of the intervals
  out=                  also write it to FILE.json or FILE.md; nothing is written otherwise

p-values are of a sign-flip test on problems, exact where problems are right or wrong; where several comparisons are made they
are adjusted for it (Holm). Differences and ratios have t intervals over problems.
"""
COMMAND = "reasonrl eval compare"
HASHES = {"data": "data_sha256", "prompt": "prompt_sha256"}
SCHEMA = 1
UNTOLD = ("seed",)  # settings that every pair of results may differ in
HEADINGS = ("result", "accuracy", "difference", "p", "gained", "lost", "tokens", "tokens / first", "detectable")
STACKED = ("result", "accuracy", "difference", "p", "gained\nlost", "tokens", "tokens\n/ first", "detec-\ntable")


@dataclass(frozen=True)
class CompareKnobs:
    """See `HELP`."""

    task: tuple[str, ...] | None = None
    allow: tuple[str, ...] = ()
    level: float = 0.95
    out: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in self.allow:
            require(name in HASHES, f"allow must be of {', '.join(HASHES)}, got {name!r}")
        require(0 < self.level < 1, f"level must lie in (0, 1), got {self.level}")
        require(
            self.out is None or Path(self.out).suffix in (".json", ".md"),
            f"out={self.out}: a comparison is written as .json or .md",
        )


@dataclass(frozen=True, eq=False)
class Problems:
    """What an evaluation found on one task, a row a problem.

    Attributes:
        ids: B, sorted.
        accuracy: (B,) share of right samples.
        tokens: (B,) mean of what was written; NaN where the prompt left no room to write.
    """

    ids: NDArray[np.str_]
    accuracy: NDArray[np.float64]
    tokens: NDArray[np.float64]

    def at(self, ids: NDArray[np.str_]) -> Problems:
        """These problems only; all of them are there."""
        places = np.searchsorted(self.ids, ids)
        return Problems(ids, self.accuracy[places], self.tokens[places])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation. name: as it is called in tables."""

    name: str
    path: Path
    results: Mapping[str, Any]
    tasks: Mapping[str, Problems]


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    folders = [arg for arg in args if "=" not in arg or Path(arg).expanduser().is_dir()]
    knobs = read_knobs(CompareKnobs, [arg for arg in args if arg not in folders], COMMAND)
    from rich.console import Console

    compared = compare(folders, knobs)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    for task in compared["tasks"]:
        console.print(task_table(compared, task), "")
    for note in compared["notes"]:
        console.print(note, soft_wrap=True)
    if knobs.out:
        console.print(str(write(compared, Path(knobs.out).expanduser())), soft_wrap=True)
    return 0


def compare(folders: Sequence[str], knobs: CompareKnobs | None = None) -> dict[str, Any]:
    """Every evaluation with the first one. Returns what goes to FILE.json. Raises ConfigError."""
    knobs = knobs or CompareKnobs()
    require(len(folders) > 1, f"{COMMAND} needs two folders or more, got {' '.join(folders) or 'none'}")
    paths = [Path(folder).expanduser() for folder in folders]
    for place, path in enumerate(paths):
        require(path.resolve() not in [p.resolve() for p in paths[:place]], f"{folders[place]} is given twice")
    names = _names(paths)
    results = [read_results(path) for path in paths]
    tasks = chosen_tasks(names, results, knobs.task)
    for task in tasks:
        refuse_unlike(task, names, [each["tasks"][task] for each in results], knobs.allow)
    every = [
        Evaluation(name, path, each, read_problems(path, tasks))
        for name, path, each in zip(names, paths, results, strict=True)
    ]
    made = {task: compare_task(task, every, knobs) for task in tasks}
    adjust(made)
    return {
        "schema": SCHEMA,
        "baseline": names[0],
        "results": [
            {"name": each.name, "path": str(each.path), "model": each.results["model"]["name"]} for each in every
        ],
        "allow": sorted(knobs.allow),
        "level": knobs.level,
        "comparisons": len(tasks) * (len(every) - 1),
        "tasks": rounded(made),
        "notes": notes(every, tasks, knobs),
    }


# Reading


def read_results(path: Path) -> dict[str, Any]:
    """results.json of an evaluation's folder. Raises ConfigError."""
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no folder {path}{nearest(path.name, beside) if beside else ''}")
    file = path / "results.json"
    if not file.is_file():
        begun = (path / "config.yaml").is_file() or (path / "answers").is_dir()
        raise ConfigError(
            f"{path} is an evaluation that has not finished (no results.json): give the command that began it again"
            if begun
            else f"{path} is not the folder of an evaluation (no results.json in it)"
        )
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file} ({error}): make it again with `reasonrl eval ...`") from error
    if not isinstance(found, dict) or found.get("schema") != 1 or not isinstance(found.get("tasks"), dict):
        raise ConfigError(f"{file} is not a result that this version reads (schema 1): evaluate again")
    return found


def read_problems(path: Path, tasks: Sequence[str]) -> dict[str, Problems]:
    """samples.parquet, a row a problem. Raises ConfigError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = path / "samples.parquet"
    try:
        columns = pq.read_table(file, columns=["task", "id", "correct", "tokens", "status"]).to_pydict()
    except (OSError, pa.ArrowException) as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot read {file} ({line}): give the command that began {path} again") from error
    task_of = np.array(columns["task"], dtype=np.str_)
    found = {}
    for task in tasks:
        rows = task_of == task
        if not rows.any():
            raise ConfigError(f"{file} has no samples of {task}, which results.json has: evaluate again")
        ids, place = np.unique(np.array(columns["id"], dtype=np.str_)[rows], return_inverse=True)
        correct = np.array(columns["correct"], dtype=np.float64)[rows]
        tokens = np.array(columns["tokens"], dtype=np.float64)[rows]
        written = np.array([status != TOO_LONG for status in columns["status"]])[rows]
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing was written
            lengths = np.bincount(place, weights=tokens * written) / np.bincount(place, weights=written)
        found[task] = Problems(ids, np.bincount(place, weights=correct) / np.bincount(place), lengths)
    return found


def chosen_tasks(names: Sequence[str], results: Sequence[Mapping[str, Any]], asked: Sequence[str] | None) -> list[str]:
    """The tasks that all have, in the first one's order, or those asked for. Raises ConfigError."""
    common = [task for task in results[0]["tasks"] if all(task in each["tasks"] for each in results)]
    for task in asked or ():
        for name, each in zip(names, results, strict=True):
            require(task in each["tasks"], f"{name} has no task '{task}'{nearest(task, each['tasks'])}")
    if not common:
        have = "; ".join(f"{name}: {', '.join(each['tasks'])}" for name, each in zip(names, results, strict=True))
        raise ConfigError(f"the evaluations have no task in common ({have}): evaluate them on the same tasks")
    return [task for task in common if asked is None or task in asked]


def refuse_unlike(task: str, names: Sequence[str], each: Sequence[Mapping[str, Any]], allow: Sequence[str]) -> None:
    """Raise ConfigError where a result is of other data or another prompt than the first."""
    for name, found in zip(names[1:], each[1:], strict=True):
        unlike = [what for what, key in HASHES.items() if found[key] != each[0][key] and what not in allow]
        if unlike:
            told = " and ".join(
                f"{what} ({each[0][HASHES[what]][:8]} and {found[HASHES[what]][:8]}"
                + (f", from {each[0].get('origin')} and {found.get('origin')}" if what == "data" else "")
                + (
                    f", {each[0]['settings'].get('prompt')} and {found['settings'].get('prompt')}"
                    if what == "prompt"
                    else ""
                )
                + ")"
                for what in unlike
            )
            raise ConfigError(
                f"{task}: {names[0]} and {name} differ in {told}, so a difference of accuracies may come from that. Evaluate "
                f"both alike, or give allow={','.join(sorted({*allow, *unlike}))} to compare the problems whose ids both have"
            )


# Comparing


def compare_task(task: str, every: Sequence[Evaluation], knobs: CompareKnobs) -> dict[str, Any]:
    """One task, without the adjusted p-values. Raises ConfigError when fewer than 2 problems are in all."""
    ids = every[0].tasks[task].ids
    for each in every[1:]:
        ids = np.intersect1d(ids, each.tasks[task].ids)
    if ids.size < 2:
        raise ConfigError(f"{task}: {ids.size} problems are in every evaluation, and a comparison needs 2 or more")
    first, *others = [each.tasks[task].at(ids) for each in every]
    return {
        "problems": int(ids.size),
        "left_out": {each.name: int(each.tasks[task].ids.size - ids.size) for each in every},
        "baseline": {"name": every[0].name, **_alone(first, knobs.level)},
        "others": [
            {"name": each.name, **_alone(found, knobs.level), **_against(found, first, knobs.level)}
            for each, found in zip(every[1:], others, strict=True)
        ],
        "notes": task_notes(task, every, int(ids.size), knobs),
    }


def _alone(found: Problems, level: float) -> dict[str, Any]:
    from reasonrl.functional.estimates import share_interval

    lengths = found.tokens[~np.isnan(found.tokens)]
    return {
        "accuracy": _interval(share_interval(found.accuracy, level)),
        "tokens": float(lengths.mean()) if lengths.size else None,
    }


def _against(ours: Problems, first: Problems, level: float) -> dict[str, Any]:
    """Ours less the first, or over it; p_adjusted is filled in once all comparisons are there."""
    from reasonrl.functional.estimates import (
        difference_interval,
        minimum_detectable_difference,
        paired_interval,
        ratio_interval,
    )

    gaps = ours.accuracy - first.accuracy
    test = paired_interval(ours.accuracy, first.accuracy, level)
    both = ~np.isnan(ours.tokens) & ~np.isnan(first.tokens)
    comparable = both.sum() > 1 and ours.tokens[both].any() and first.tokens[both].any()
    spread = float(gaps.std(ddof=1))
    return {
        "difference": _interval(difference_interval(ours.accuracy, first.accuracy, level)),
        "p_value": test.p_value,
        "p_adjusted": test.p_value,
        "gained": test.gained,
        "lost": test.lost,
        "tokens_ratio": _interval(ratio_interval(ours.tokens[both], first.tokens[both], level)) if comparable else None,
        "minimum_detectable_difference": (
            minimum_detectable_difference(spread, gaps.size, power=POWER, alpha=ALPHA) if spread else None
        ),
    }


def adjust(made: Mapping[str, Any]) -> None:
    """Fill in p_adjusted: of all comparisons that are told, every task and every result."""
    from reasonrl.functional.estimates import holm

    rows = [row for task in made.values() for row in task["others"]]
    for row, value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_adjusted"] = float(value)


# Telling


def task_notes(task: str, every: Sequence[Evaluation], problems: int, knobs: CompareKnobs) -> list[str]:
    """What differs beside the models."""
    found = []
    first = every[0].results["tasks"][task]
    for each in every[1:]:
        mine = each.results["tasks"][task]
        unlike = [what for what, key in HASHES.items() if mine[key] != first[key]]
        if unlike:
            found.append(
                f"{' and '.join(unlike)} of {every[0].name} and {each.name} differ: compared are the {problems} problems whose "
                f"ids all have (allow={','.join(sorted(knobs.allow))})"
            )
        settings = [
            f"{key} {first['settings'].get(key)} and {mine['settings'].get(key)}"
            for key in sorted({*first["settings"], *mine["settings"]} - {*UNTOLD, *HASHES})
            if first["settings"].get(key) != mine["settings"].get(key)
        ]
        if settings:
            found.append(f"{every[0].name} and {each.name} differ in {', '.join(settings)}")
        if mine.get("chat_template_sha256") != first.get("chat_template_sha256"):
            found.append(f"{every[0].name} and {each.name} have other chat templates")
    for each in every:
        missing = each.tasks[task].ids.size - problems
        if missing:
            found.append(f"{missing} problems of {each.name} are not in every evaluation and left out")
        ungraded = each.results["tasks"][task].get("ungraded")
        if ungraded:
            found.append(f"{ungraded} samples of {each.name} could not be graded and count as wrong")
    return found


def notes(every: Sequence[Evaluation], tasks: Sequence[str], knobs: CompareKnobs) -> list[str]:
    """What holds for all tasks."""
    made = len(tasks) * (len(every) - 1)
    found = [
        f"difference: less {every[0].name}, over problems, {100 * knobs.level:g} % interval; gained, lost: problems solved "
        "more often, less often",
        f"detectable: the difference that a test at {ALPHA:g} finds {POWER:.0%} of the time, by the spread of the differences",
    ]
    if made > 1:
        found.append(f"p: adjusted for {made} comparisons (Holm)")
    backends = {each.name: dict(each.results.get("backend") or {}) for each in every}
    if len({json.dumps(backend, sort_keys=True) for backend in backends.values()}) > 1:
        told = "; ".join(
            f"{name}: {', '.join(f'{key} {value}' for key, value in backend.items())}"
            for name, backend in backends.items()
        )
        found.append(f"backends differ ({told})")
    for each in every:
        others = [task for task in each.results["tasks"] if task not in tasks]
        if others and knobs.task is None:
            found.append(f"not compared, because not all have them: {', '.join(others)} of {each.name}")
    return found


def cells(compared: Mapping[str, Any], task: str) -> list[list[str]]:
    """A row a result, in the order of `HEADINGS`."""
    found = compared["tasks"][task]
    rows = [[found["baseline"]["name"], with_interval(found["baseline"]["accuracy"]), *[""] * 4]]
    rows[0] += [count(found["baseline"]["tokens"]), "", ""]
    for other in found["others"]:
        ratio, detectable = other["tokens_ratio"], other["minimum_detectable_difference"]
        rows.append(
            [
                other["name"],
                with_interval(other["accuracy"]),
                _points(other["difference"]),
                _probability(other["p_adjusted"]),
                str(other["gained"]),
                str(other["lost"]),
                count(other["tokens"]),
                NONE if ratio is None else f"{ratio['estimate']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})",
                NONE if detectable is None else f"{100 * detectable:.1f} pt",
            ]
        )
    return rows


def with_holm(headings: Sequence[str], compared: Mapping[str, Any]) -> list[str]:
    """Says where p-values are adjusted."""
    return ["p (Holm)" if compared["comparisons"] > 1 and heading == "p" else heading for heading in headings]


def task_table(compared: Mapping[str, Any], task: str) -> Table:
    """For the terminal."""
    from rich.text import Text

    found = compared["tasks"][task]
    headings = [stacked(heading) for heading in with_holm(STACKED, compared)]
    table = narrow(f"{task}: {found['problems']} problems", headings, found["notes"])
    for name, accuracy, difference, p, gained, lost, *rest in cells(compared, task):
        row = [name, stacked(accuracy), stacked(difference), p, f"{gained}\n{lost}", *map(stacked, rest)]
        table.add_row(*map(Text, row))
    return table


def markdown(compared: Mapping[str, Any]) -> str:
    """All tasks in Markdown, ending in a line break."""
    names = with_holm(HEADINGS, compared)
    lines = []
    for task, found in compared["tasks"].items():
        lines += [f"{task}: {found['problems']} problems", "", f"| {' | '.join(names)} |"]
        lines.append(f"|---|{'---:|' * (len(names) - 1)}")
        lines += [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in cells(compared, task)]
        lines += ["", *(f"- {escaped(note)}" for note in found["notes"]), *([""] if found["notes"] else [])]
    return "\n".join([*lines, *(f"- {escaped(note)}" for note in compared["notes"])]) + "\n"


def write(compared: Mapping[str, Any], file: Path) -> Path:
    """FILE.json or FILE.md. Raises ConfigError when it cannot be written."""
    from reasonrl.runs.files import write_text

    text = markdown(compared) if file.suffix == ".md" else json.dumps(compared, indent=1, ensure_ascii=False) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise ConfigError(f"cannot write {file} ({error.strerror}): choose another out=") from error
    return file


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names; as many folders above them as tell all apart."""
    resolved = [path.resolve() for path in paths]
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _interval(found: Interval) -> dict[str, float]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "level": found.level}


def _points(found: Mapping[str, float]) -> str:
    return f"{100 * found['estimate']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _probability(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
