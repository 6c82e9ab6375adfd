"""Suites: the papers' numbers are copied rightly, and ours stand beside them in the papers' tables."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_builders import row as sample
from report_builders import write_folder
from rich.console import Console

from reasonrl.cli import options
from reasonrl.config import ConfigError
from reasonrl.data.arithmetic import parse, solve
from reasonrl.eval import report
from reasonrl.eval.backends import Answer, Ask
from reasonrl.eval.run import evaluate
from reasonrl.eval.settings import read_settings
from reasonrl.eval.suites import (
    Suite,
    chosen_tasks,
    headings,
    mean,
    measured,
    nearest_row,
    printed,
    read_suite,
    saving,
    suite_markdown,
    suite_table,
)
from reasonrl.eval.tasks import load_task
from reasonrl.runs import provenance

NAMES = options("suite")
suite_of = functools.cache(read_suite)
ROUNDED = 0.05 + 1e-9  # printed with one decimal


# the papers' numbers


def rows_of(name: str, group: str | None = None) -> list[tuple[Suite, Any]]:
    suite = suite_of(name)
    return [(suite, row) for row in suite.rows if group in (None, row.group)]


@pytest.mark.parametrize("name", NAMES)
def test_printed_averages_follow_from_their_columns(name) -> None:
    for suite, row in rows_of(name):
        by_task = dict(zip(suite.tasks, row.accuracy, strict=False))
        for (heading, tasks), average in zip(suite.averages.items(), row.averages, strict=False):
            found = mean([by_task.get(task) for task in tasks])
            if found is not None:
                assert (abs(found - average) <= ROUNDED) is row.follows, (row.group, row.name, heading)
        if row.average_tokens is not None:
            assert (abs(mean(row.tokens) - row.average_tokens) <= 0.5) is row.follows, (row.group, row.name)


def test_only_one_row_does_not_follow() -> None:
    found = [(row.group, row.name) for name in NAMES for _, row in rows_of(name) if not row.follows]
    assert found == [("DeepSeek-R1-Distill-Qwen-7B", "AdaptThink")]


def test_printed_savings_are_of_averaged_lengths() -> None:
    checked = 0
    for suite, row in rows_of("pace"):
        before = [other for other in suite.rows if (other.group, other.name) == (row.group, row.before)]
        if row.saved is not None:
            assert abs(saving(row.average_tokens, before[0].average_tokens) - row.saved) <= ROUNDED, row.name
            checked += 1
    assert checked == 14


def test_deepcompress_saves_what_its_figure_says_rounded_not_cut() -> None:
    saved = {row.name: printed(suite, row).saved for suite, row in rows_of("deepcompress")}
    assert saved["DeepCompress-Zero-3B"] == pytest.approx(57.984, abs=1e-3)
    assert saved["DeepCompress-Zero-7B"] == pytest.approx(16.665, abs=1e-3)
    assert saved["DeepMath-Zero-3B"] is None
    text = suite_markdown(results(), suite_of("deepcompress"))
    assert "| 36.6 / 3,841 | 58.0 |" in text
    assert "| 48.7 / 4,441 | 16.7 |" in text


def test_how_much_is_copied() -> None:
    numbers = {name: sum(len(row.accuracy) + len(row.tokens) for _, row in rows_of(name)) for name in NAMES}
    assert numbers == {
        "adaptivestep": 20,
        "deepcompress": 63 + 28,
        "fttt": 0,  # its tables are not confirmed
        "pace": 17 * 8,
        "pace_general": 4 * 6,
        "seele": 27,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_has_known_tasks_and_a_protocol(name) -> None:
    suite = suite_of(name)
    assert [load_task(task).name for task in suite.tasks] == list(suite.tasks)
    assert suite.protocol
    assert suite.title
    assert "arXiv" in suite.citation


# ours


def task(accuracy: float, tokens: float | None = 100.0, **settings: Any) -> dict[str, Any]:
    interval = {"estimate": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "level": 0.95}
    return {"accuracy": interval, "tokens": {"mean": tokens}, "settings": settings}


def results(model: str = "mine", path: str = "", **tasks: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"name": model, "path": path}, "tasks": tasks, "notes": ["of a test"]}


PACE = {
    "aime24": task(0.5, 6000.0),
    "aime25": task(0.4, 5000.0),
    "math500": task(0.9, 1500.0),
    "gsm8k": task(0.95, 300.0),
}


def test_ours_are_a_mean_of_the_sets_and_tokens_saved_against_a_baseline() -> None:
    suite = suite_of("pace")
    before = results("before", **{name: task(0.5, 6400.0) for name in PACE})
    found = measured(suite, results(**PACE), before)
    assert found.averages == [pytest.approx(100 * (0.5 + 0.4 + 0.9 + 0.95) / 4)]
    assert found.average_tokens == 3200.0
    assert found.saved == 50.0  # 3200 of 6400
    assert measured(suite, results(**PACE)).saved is None


def test_a_missing_task_is_a_dash_and_its_average_is_not_printed() -> None:
    suite = suite_of("seele")
    there = {name: task(0.5) for name in suite.tasks if name != "gpqa_diamond"}
    found = measured(suite, results(**there))
    assert found.accuracy[suite.tasks.index("gpqa_diamond")] is None
    assert found.averages == [50.0, None]  # the six mathematics sets are all there
    text = suite_markdown(results(**there), suite)
    assert "| ours: mine | 50.0 (45.0–55.0) |" in text
    assert "| 50.0 (45.0–55.0) | – | 50.0 (45.0–55.0) | 50.0 | – |" in text
    assert "- not evaluated: gpqa_diamond; so no general\n" in text


def test_the_table_says_what_was_not_done_as_the_protocol_says() -> None:
    sampled = {**PACE, "gsm8k": task(0.95, 300.0, n=4, temperature=0.6, max_new_tokens=30000, limit=8, top_k=-1)}
    text = suite_markdown(results(**sampled), suite_of("pace"))
    assert "- gsm8k: n 4 (protocol: 16), limit 8 (protocol: None)\n" in text
    assert "math500: n" not in text


def test_the_table_says_how_to_get_what_it_lacks() -> None:
    suite = suite_of("pace")
    assert "- TR of ours: baseline=<folder of the model before" in suite_markdown(results(**PACE), suite)
    text = suite_markdown(results(**PACE), suite, results("before", gsm8k=task(0.5)))
    assert "- TR of ours: against before\n" in text
    assert "- the baseline has no aime24, aime25, math500\n" in text
    assert "- of a test\n" in text


@pytest.mark.parametrize(
    ("model", "path", "row"),
    [
        ("DeepSeek-R1-Distill-Qwen-1.5B", "", ("DeepSeek-R1-Distill-Qwen-1.5B", "Vanilla")),
        ("r1_qwen_7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", ("DeepSeek-R1-Distill-Qwen-7B", "Vanilla")),
        ("mine", "runs/mine", None),
    ],
)
def test_the_published_row_of_the_model_is_marked(model, path, row) -> None:
    suite = suite_of("pace")
    found = nearest_row(suite, results(model, path, **PACE))
    assert (found and (found.group, found.name)) == row
    assert ("| → Vanilla |" in suite_markdown(results(model, path, **PACE), suite)) is (row is not None)


def test_of_several_names_the_same_one_counts_then_the_longest() -> None:
    suite = suite_of("deepcompress")
    assert nearest_row(suite, results("Qwen2.5-3B-Instruct")).name == "Qwen2.5-3B-Instruct"
    assert nearest_row(suite, results("Qwen2.5-3B-Instruct-mine")).name == "Qwen2.5-3B-Instruct"
    assert nearest_row(suite, results("qwen2_5_3b", "Qwen/Qwen2.5-3B")).name == "Qwen2.5-3B"


# the table


def shown(width: int, suite: Suite, *given: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(suite_table(*given[:1], suite, *given[1:]))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_stands_in_eighty_columns(name) -> None:
    suite = suite_of(name)
    ours = results("Qwen2.5-3B", **{each: task(0.512, 23456.0) for each in suite.tasks})
    text = shown(80, suite, ours)
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for each in suite.rows:
        figures = printed(suite, each)
        for number in (*figures.accuracy, *figures.averages):
            assert number is None or f"{number:.{suite.decimals}f}" in words, (each.name, number)
        for number in figures.tokens:
            assert number is None or f"{number:,.0f}" in words, (each.name, number)
    assert words.count("51.20" if suite.decimals == 2 else "51.2") == len(suite.tasks) + len(suite.averages)


def test_the_interval_and_the_tokens_stand_under_an_accuracy() -> None:
    lines = shown(120, suite_of("pace"), results(**PACE)).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("ours: mine"))
    columns = [line.split() for line in lines[first : first + 4]]
    assert columns[0] == ["ours:", "mine", "50.0", "40.0", "90.0", "95.0", "68.8", "–"]
    assert columns[1][0] == "45.0"
    assert columns[2][0] == "55.0"
    assert columns[3] == ["6,000", "5,000", "1,500", "300", "3,200"]
    assert "under ours: the ends of its 95 % interval, then mean tokens" in "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_markdown_has_a_cell_for_every_heading(name) -> None:
    suite = suite_of(name)
    text = suite_markdown(results(**{each: task(0.5) for each in suite.tasks}), suite)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(headings(suite)) + 1}
    assert len(lines) == 3 + len(suite.rows) + len({row.group for row in suite.rows})
    assert "-\n" not in lines[0]


# files of one's own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tasks_may_be_asked_for_one_by_one_in_the_suite_s_order() -> None:
    suite = suite_of("pace")
    assert chosen_tasks(suite, None) == ["aime24", "aime25", "math500", "gsm8k"]
    assert chosen_tasks(suite, ("gsm8k", "aime25")) == ["aime25", "gsm8k"]
    with pytest.raises(ConfigError, match="suite pace has no task 'gsm8'; did you mean gsm8k"):
        chosen_tasks(suite, ("gsm8",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("protocol: pace", "suite s.yaml lacks tasks"),
        ("tasks: []", "suite s.yaml: names no tasks"),
        ("tasks: [a]\ntitel: x", r"Unknown setting in suite s.yaml 'titel'. Did you mean 'title'"),
        ("tasks: [a]\nheadings: [A, B]", "suite s.yaml: 2 headings for 1 tasks"),
        ("tasks: [a]\naverages: {AVG: [b]}", "averages.AVG has 'b', which is not among its tasks"),
        ("tasks: [a]\nrows: [1]", "rows must map a heading to its rows"),
        ("tasks: [a]\nrows: {g: 1}", "rows.g must be a list of key: value rows"),
        ("tasks: [a]\nrows: {g: [{nam: x}]}", "Unknown setting in suite s.yaml.rows.g 'nam'"),
        ("tasks: [a]\nrows: {g: [{name: x, accuracy: [1, 2]}]}", "row g, x has 2 accuracy for 1"),
        ("tasks: [a]\nrows: {g: [{name: x, accuracy: [much]}]}", "row g, x: accuracy must be numbers, got 'much'"),
        ("tasks: [a]\nrows: {g: [{name: x, before: y}]}", "row g, x: no row 'y' in its group"),
    ],
)
def test_a_suite_with_a_mistake_is_refused(here, content, message) -> None:
    Path("s.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_suite("s.yaml")


# the command


class HalfRight:
    """Right for every second answer to a question, in 10 tokens."""

    def facts(self) -> dict[str, Any]:
        return {}

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for ask in asks:
            question = re.search(r"\S+=\?", ask.turns[-1]["content"]).group()
            right = solve(*parse(question))[-1].result
            for number in ask.numbers:
                text = f"\\boxed{{{right + number % 2}}}"
                yield Answer(ask.task, ask.id, number, text, 10, len(ask.prompt_ids), finished=True)


def write_suite(*names: str) -> None:
    for place, name in enumerate(names):
        own = {"name": name, "kind": "answer", "source": {}, "format": "arithmetic", "prompt": "plain"}
        more = {"options": {"size": 4, "seed": place}, "sampling": {"n": 2, "temperature": 1.0}}
        Path(f"{name}.yaml").write_text(json.dumps({**own, **more}))  # JSON is YAML
    tasks = [f"./{name}.yaml" for name in names]
    row = {"name": "theirs", "accuracy": [12.5] * len(names), "tokens": [500] * len(names)}
    suite = {"tasks": tasks, "protocol": "./p.yaml", "averages": {"AVG": tasks}, "saving": "TR", "rows": {"g": [row]}}
    Path("s.yaml").write_text(json.dumps(suite))
    Path("p.yaml").write_text("n: 4\nmax_new_tokens: 64\n")


def made(*args: str, console: Console | None = None) -> Path:
    """Of a server, so that no tokenizer need be loaded."""
    server = ["backend=openai", "base_url=http://nowhere/v1"]
    knobs = read_settings(["model=tiny", "suite=./s.yaml", "verify=exact", "workers=1", *server, *args])
    return evaluate(knobs, console=console, open_backend=lambda *_: contextlib.nullcontext(HalfRight()))


@pytest.fixture
def quick(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    write_suite("one", "two")
    return here


def lines_of(folder: Path) -> Sequence[str]:
    return (folder / "suite.md").read_text().splitlines()


def test_a_suite_is_evaluated_and_its_table_written(quick) -> None:
    console = Console(record=True, file=io.StringIO(), width=200)
    folder = made(console=console)
    assert folder == Path("evals/tiny-s-verifyexact")
    found = json.loads((folder / "results.json").read_text())
    assert list(found["tasks"]) == ["one", "two"]
    assert {each["settings"]["n"] for each in found["tasks"].values()} == {4}
    text = console.export_text()
    assert text.index("pass@k") < text.index("ours: tiny")
    assert "theirs" in text
    ours = next(line for line in lines_of(folder) if line.startswith("| ours: tiny |"))
    assert ours.count("50.0 (") == 2  # the fake is right every second time
    assert "| 50.0 / " in ours

    saved = made("baseline=evals/tiny-s-verifyexact", "name=again")
    assert next(line for line in lines_of(saved) if line.startswith("| ours")).endswith("| 0.0 |")


def test_a_suite_can_be_narrowed_and_says_what_is_missing(quick) -> None:
    folder = made("task=./two.yaml")
    assert folder == Path("evals/tiny-s-two-verifyexact")
    assert list(json.loads((folder / "results.json").read_text())["tasks"]) == ["two"]
    assert "- not evaluated: ./one.yaml; so no AVG" in lines_of(folder)


def test_a_baseline_that_is_none_is_told_at_once(quick) -> None:
    with pytest.raises(ConfigError, match="there is no folder evals/none"):
        made("baseline=evals/none")
    write_folder(Path("evals/x"), [sample(id="sums/0"), sample(id="sums/1", correct=False)])
    (Path("evals/x") / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a result that this version reads"):
        made("baseline=evals/x")
