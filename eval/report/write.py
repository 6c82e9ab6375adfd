"""report.html of an evaluation's folder: what results.json and samples.parquet say, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonrl.config import ConfigError
from reasonrl.eval.report.charts import AccuracyChart, LengthChart, accuracy_chart, length_chart, token_axis
from reasonrl.eval.report.latex import symbols
from reasonrl.eval.report.samples import TEXT_BYTES, pack, read_samples
from reasonrl.runs.files import replacing

HERE = Path(__file__).parent
SCHEMA = 1
HASH = re.compile(r"[0-9a-f]{32,}")
HASH_SHOWN = 12


@dataclass(frozen=True)
class Charts:
    accuracy: AccuracyChart
    lengths: LengthChart


def write_report(folder: Path, *, text_bytes: int = TEXT_BYTES) -> Path:
    """Write `folder`/report.html from results.json, samples.parquet and, where it is there, timing.json.

    Args:
        folder: of an evaluation that ended.
        text_bytes: of sample texts in the page; beyond, the middle of the longest ones is left out and the page says so.
    Returns:
        The file.
    Raises:
        ConfigError: the folder has no results, they are of another form, or the two files are not of one evaluation.
    """
    results = read_results(folder / "results.json")
    columns = read_samples(folder / "samples.parquet")
    check_same_evaluation(folder, results, columns)
    timing = folder / "timing.json"
    page = rendered(results, columns, read_json(timing) if timing.is_file() else None, text_bytes)
    path = folder / "report.html"
    with replacing(path) as scratch:
        scratch.write_bytes(page.encode())
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: name the folder of an evaluation that ended, such as evals/mine; one that was "
            "stopped continues when its `reasonrl eval` command is given again"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give the `reasonrl eval` command again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object: give the `reasonrl eval` command again")
    return found


def read_results(path: Path) -> dict[str, Any]:
    """results.json, of the schema that this page knows. Raises ConfigError."""
    results = read_json(path)
    if results.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path} has schema {results.get('schema')!r} and this version of reasonrl reads schema {SCHEMA}: "
            "write the report with the version that made the folder"
        )
    return results


def check_same_evaluation(folder: Path, results: Mapping[str, Any], columns: Mapping[str, list[Any]]) -> None:
    """Raise ConfigError unless both files count the same samples of the same tasks."""
    told = {name: task["samples"] for name, task in results["tasks"].items()}
    names, counts = np.unique(np.array(columns["task"], dtype=object), return_counts=True)
    found = dict(zip(names.tolist(), counts.tolist(), strict=True))
    for name in {**told, **found}:
        if told.get(name, 0) != found.get(name, 0):
            raise ConfigError(
                f"{folder}: results.json counts {told.get(name, 0)} samples of {name}, samples.parquet holds "
                f"{found.get(name, 0)}: they are not of one evaluation; give its `reasonrl eval` command again"
            )


def rendered(
    results: Mapping[str, Any], columns: dict[str, list[Any]], timing: Mapping[str, Any] | None, text_bytes: int
) -> str:
    """The page. Raises ConfigError when results.json lacks what the page shows."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
    from markupsafe import Markup

    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("latex.js", "page.js"))
    page = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,  # names of tasks and models come from anywhere
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": percent, "count": count, "flat": flat, "shown": shown}
    try:
        return page.get_template("page.html").render(
            results=results,
            charts={name: task_charts(name, task, columns) for name, task in results["tasks"].items()},
            timing=timing,
            packed=pack(columns, text_bytes),
            samples=len(columns["text"]),
            symbols=symbols(),
            style=Markup(style),
            script=Markup(script),
            # a browser runs no script but this one, whatever a sample holds, and asks nothing of a network
            policy=f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
            "base-uri 'none'; form-action 'none'",
        )
    except (KeyError, UndefinedError) as error:
        raise ConfigError(f"results.json lacks what the report shows ({error}): give the eval command again") from error


def source(text: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def task_charts(name: str, task: Mapping[str, Any], columns: Mapping[str, list[Any]]) -> Charts:
    """The two charts of a task."""
    asked = np.array(
        [t == name and s != "prompt_too_long" for t, s in zip(columns["task"], columns["status"], strict=True)]
    )
    tokens = np.array(columns["tokens"], dtype=np.int64)[asked]  # (N,)
    correct, finished = (np.array(columns[key], dtype=bool)[asked] for key in ("correct", "finished"))
    axis = token_axis(tokens)
    return Charts(accuracy_chart(task["length_bins"], axis), length_chart(tokens, correct, finished, axis))


def percent(share: float | None) -> str:
    """0.5754 -> 57.5"""
    return "–" if share is None else f"{100 * share:.1f}"


def count(value: float | None) -> str:
    """1234.56 -> 1,234.6; whole numbers without a decimal."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`("n.min", 4)` for every leaf of nested objects."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        yield from flat({str(i): inner for i, inner in enumerate(value, 1)}, key)
    elif value is not None:
        yield key, value


def shown(value: Any) -> str:
    """A setting as text; of a hash the first digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return HASH.sub(lambda found: f"{found[0][:HASH_SHOWN]}…", value)
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)
