"""`reasonrl eval` on tasks that ask for programs: golds from rows, one judge a run, and a judge that is lost on the way."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_builders import judges, need_judge

from reasonrl.cli import composed
from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval import report
from reasonrl.eval.backends import Answer, Ask
from reasonrl.eval.plan import comparable, prepare
from reasonrl.eval.run import evaluate
from reasonrl.eval.settings import read_settings
from reasonrl.eval.tasks import Question, load_questions, load_task
from reasonrl.eval.tasks.programs import program_gold, unpacked
from reasonrl.runs import provenance
from reasonrl.train import check_judge
from reasonrl.train import prepare as prepare_run
from reasonrl.verify import code

PROGRAMS = {f"f{k}": f"def f{k}(x):\n    return x + {k}" for k in range(8)}
TESTS = [
    {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
    {"input": "5 5", "output": "10", "testtype": "stdin"},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a small MBPP and a small HumanEval, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    rows = [
        {"task_id": 11 + k, "text": f"Add {k}.", "code": PROGRAMS[name], "test_list": [f"assert {name}(1) == {1 + k}"]}
        for k, name in enumerate(PROGRAMS)
    ]
    rows += [{**rows[0], "task_id": 601}]
    write(tmp_path / "mbpp" / "mbpp.jsonl", rows)
    head = 'def half(x):\n    """Half of it."""\n'
    test = "def check(candidate):\n    assert candidate(4) == 2\n"
    row = {
        "task_id": "HumanEval/0",
        "prompt": head,
        "test": test,
        "entry_point": "half",
        "canonical_solution": "    return x // 2\n",
    }
    write(tmp_path / "humaneval" / "HumanEval.jsonl", [row])
    return tmp_path


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Fake:
    """Writes the right program, but a wrong one for the odd ones. `between` is called after each answer."""

    def __init__(self, between: Callable[[int], None] = lambda made: None) -> None:
        self.between, self.asked = between, []

    def facts(self) -> dict[str, Any]:
        return {}

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for made, ask in enumerate(asks):
            self.asked.append(ask.id)
            k = int(ask.id.partition("/")[2]) - 11
            program = PROGRAMS[f"f{k}"] + (" + 1" if k % 2 else "") if ask.task == "mbpp" else "    return x / 2"
            yield Answer(ask.task, ask.id, 0, f"So:\n```python\n{program}\n```", 5, len(ask.prompt_ids), True)
            self.between(made)


def made(*args: str, backend: Fake | None = None) -> Path:
    args = args or ("task=mbpp",)
    knobs = read_settings(["model=tiny", "data_dir=.", "name=e", "verify.cpu_seconds=1", *args])
    return evaluate(knobs, open_backend=lambda *_: contextlib.nullcontext(backend or Fake()))


def grades(folder: Path, task: str = "mbpp") -> dict[str, tuple[bool, str]]:
    file = folder / "grades" / f"{task}.jsonl"
    lines = map(json.loads, file.read_text().splitlines() if file.exists() else ())
    return {line["id"]: (line["correct"], line["status"]) for line in lines}


RIGHT = {f"mbpp/{11 + k}": (k % 2 == 0, "ok") for k in range(8)}

# golds


def gold(task: str, **extra: Any) -> dict[str, Any]:
    return json.loads(program_gold(load_task(task), Question("q1", "", "", extra=extra)))


def test_a_row_becomes_what_a_judge_is_asked(here: Path) -> None:
    task = load_task("mbpp")
    question = load_questions(task, data_dir=here).items[1]
    assert json.loads(program_gold(task, question)) == {"kind": "mbpp", "tests": ["assert f1(1) == 2"], "setup": ""}
    task = load_task("humaneval")
    question = load_questions(task, data_dir=here).items[0]
    found = json.loads(program_gold(task, question))
    assert (found["kind"], found["entry_point"], found["with_prompt"]) == ("humaneval", "half", True)


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


@pytest.mark.parametrize("private", [json.dumps(TESTS[1:]), packed(json.dumps(TESTS[1:])), TESTS[1:]])
def test_the_tests_of_a_contest_problem_are_unpacked(private: Any) -> None:
    found = gold(
        "livecodebench", tests={"public": json.dumps(TESTS[:1]), "private": private}, starter_code="", metadata="{}"
    )
    assert found == {"kind": "stdin", "inputs": ["1 2\n", "5 5"], "outputs": ["3\n", "10"]}


def test_starter_code_means_calls_of_a_method() -> None:
    tests = {"public": "", "private": json.dumps([{"input": "[1]\n2", "output": "3", "testtype": "functional"}])}
    found = gold("livecodebench", tests=tests, starter_code="class Solution:", metadata='{"func_name": "addUp"}')
    assert found == {"kind": "functional", "name": "addUp", "inputs": ["[1]\n2"], "outputs": ["3"]}
    with pytest.raises(ValueError, match=r"task livecodebench, question q1: name must be the name of a method, got ''"):
        gold("livecodebench", tests=tests, starter_code="class Solution:", metadata="{}")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("it_ran"),))


@pytest.mark.parametrize(
    ("stored", "match"),
    [
        (packed(Evil()), "cannot be read: it would call"),
        (packed(["a"]), "hold a list instead of a text"),
        ("not base64!", "cannot be read"),
        (base64.b64encode(b"not packed").decode(), "cannot be read"),
        ("{}", "must be a list of records"),
    ],
)
def test_packed_tests_are_text_or_nothing(here: Path, stored: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unpacked(stored)
    assert not (here / "it_ran").exists()


# an evaluation


def test_programs_are_run_and_graded_by_one_judge_for_all_tasks() -> None:
    need_judge()
    seen: list[int] = []
    folder = made("task=mbpp,humaneval", backend=Fake(lambda made: seen.append(len(judges()))))
    assert grades(folder) == RIGHT
    assert grades(folder, "humaneval") == {"HumanEval/0": (True, "ok")}  # 2.0 == 2
    assert max(seen) == 1 + len(judges())  # and it is gone at the end
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    assert tasks["mbpp"]["accuracy"]["estimate"] == 0.5
    settings = tasks["mbpp"]["settings"]
    assert (settings["checker"], settings["cpu_seconds"], settings["memory_mb"]) == ("code", 1.0, 1024)


def test_a_judge_that_dies_stops_the_run_and_nothing_is_called_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_judge()
    monkeypatch.setattr(code, "PATIENCE", 0.5)
    before = judges()

    def kill(made: int) -> None:
        if made == 3:
            time.sleep(1.0)  # for the first grades
            for judge in judges() - before:
                judge.kill()

    with pytest.raises(
        RunFailed, match=r"task mbpp, question mbpp/\d+: no judge at .*8 answers are kept in .*the same command"
    ):
        made(backend=Fake(kill))
    first = grades(here / "evals" / "e")
    assert first.items() <= RIGHT.items()
    assert len(first) < 8
    again = Fake()
    assert grades(made(backend=again)) == RIGHT
    assert again.asked == []  # the answers were kept: only their grades were missing


def test_where_no_program_can_be_run_no_model_is_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def refused(url: Any, limits: Any) -> Iterator[Any]:
        raise ConfigError("programs cannot be judged here: no namespaces")
        yield

    monkeypatch.setattr(code, "open_judge", refused)
    knobs = read_settings(["model=tiny", "task=mbpp", "data_dir=.", "name=e"])
    with pytest.raises(ConfigError, match="programs cannot be judged here: no namespaces"):
        evaluate(knobs, open_backend=lambda *_: pytest.fail("the model was loaded"))
    assert not (here / "evals").exists()


def test_an_address_changes_neither_the_folder_nor_what_is_compared() -> None:
    from rich.console import Console

    def plan(*args: str) -> Any:
        return prepare(read_settings(["model=tiny", "task=mbpp", "data_dir=.", *args]), Console(quiet=True))

    plain, there, longer = plan(), plan("verify.judge=http://127.0.0.1:9"), plan("verify.cpu_seconds=9")
    assert plain.path == there.path != longer.path
    assert comparable(plain) == comparable(there)
    assert {key for key, value in comparable(plain).items() if comparable(longer)[key] != value} == {"mbpp.cpu_seconds"}
    assert there.tasks[0].verify.judge == "http://127.0.0.1:9"


# validation during training


def run_plan(*args: str) -> Any:
    return prepare_run(composed(["model=tiny", "name=r", "val_tasks=[mbpp]", "val_data_dir=.", *args]))


def test_validation_takes_the_judge_of_the_run(here: Path) -> None:
    need_judge()
    plan = run_plan()
    assert plan.programs
    (item, *rest) = plan.validation.items()
    assert len(rest) == 7
    plan.validation.write(here / "val.parquet")
    with code.open_judge(None) as judge:
        before = judges()
        (make,) = pickle.loads(pickle.dumps(plan.validation.judges(judge.url))).values()
        submit = make()
        assert submit(item.id, item.answer, f"```python\n{PROGRAMS['f0']}\n```").result(60).correct
        assert not submit(item.id, item.answer, "```python\nf0 = 1\n```").result(60).correct
        assert judges() == before


def test_a_row_whose_tests_are_no_text_is_dropped_and_counted(here: Path) -> None:
    row = {"task_id": 11, "text": "a", "code": "b", "test_list": [1]}
    (here / "mbpp" / "mbpp.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'test_list': ['assert b']})}\n")
    found = load_questions(load_task("mbpp"), data_dir=here)
    assert (len(found.items), [each.reason for each in found.dropped]) == (1, ["no tests"])


def test_the_nodes_of_a_cluster_need_a_judge_that_all_of_them_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    plan = run_plan()
    plan.cfg.engine.name = "cluster"
    with pytest.raises(
        ConfigError, match=r"needs? a judge that every node reaches.*\+verify\.judge=http://127\.0\.0\.1"
    ):
        check_judge(plan)
    check_judge(replace(plan, validation=None))  # no programs
