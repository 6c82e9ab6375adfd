"""Test-time methods on programs: votes by syntax tree, time-outs that are wrong, and verdicts that cannot be had."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_builders import FakeJudge, need_judge
from tts_builders import posed

from reasonrl.config import RunFailed
from reasonrl.eval.grading import Grader
from reasonrl.eval.tasks import Question, load_task
from reasonrl.eval.tts.backends.fake import FakeBackend, written
from reasonrl.eval.tts.base import Posed, TaskVerifier, voted
from reasonrl.eval.tts.run import run_tts
from reasonrl.eval.tts.settings import read_settings
from reasonrl.runs import provenance
from reasonrl.verify import code
from reasonrl.verify.judge.types import BadJob, JudgeError, JudgeGone, Outcome
from reasonrl.verify.pool import VerifyConfig

ROWS = [
    {"task_id": 11 + k, "text": f"Add {k}.", "code": "", "test_list": [f"assert add{k}(1) == {1 + k}"]}
    for k in range(2)
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeJudge]:
    def make(says: Callable[[Any], Any]) -> FakeJudge:
        judge = FakeJudge(says)
        monkeypatch.setattr(code, "open_judge", lambda url, limits: contextlib.nullcontext(judge))
        return judge

    return make


def program(name: str, body: str) -> str:
    return f"```python\ndef {name}(x):\n    {body}\n```"


def question() -> Posed:
    return replace(posed(), question=Question("mbpp/11", "", "", extra={"tests": ROWS[0]["test_list"], "setup": ""}))


def verdict(says: Any, fake: Callable[..., FakeJudge]) -> str:
    fake(lambda task: says)
    with Grader(load_task("mbpp"), VerifyConfig(checker="code")) as grader:
        verifier = TaskVerifier(grader)
        return verifier.verdict(verifier.submit(question(), program("add0", "return x")).result(5))


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (Outcome("passed"), "correct"),
        (Outcome("failed"), "wrong"),
        (Outcome("timeout_cpu"), "wrong"),
        (Outcome("timeout_wall"), "wrong"),
        (Outcome("memory"), "wrong"),
        (Outcome("unparseable"), "unparseable"),
        (Outcome("sandbox_error"), "error"),
        (JudgeError("no verdict in 4 tries"), "error"),
        (BadJob("the tests do not compile"), "error"),
    ],
)
def test_a_program_is_wrong_by_its_own_fault_only(says: Any, expected: str, fake: Callable[..., FakeJudge]) -> None:
    assert verdict(says, fake) == expected


def test_without_any_judge_nobody_goes_on(fake: Callable[..., FakeJudge]) -> None:
    with pytest.raises(JudgeGone, match="no judge"):
        verdict(JudgeGone("no judge at unix:/x"), fake)


def test_programs_vote_by_what_they_are_and_not_by_how_they_are_written() -> None:
    same, other = ["def f(x): return x+1", "# yes\ndef f(x):\n    return x + 1"], "def f(x): return x - 1"
    assert voted([other, same[0], same[1]], programs=True) == 2
    assert voted([other, same[0], same[1]]) == 0  # as texts they are three
    assert voted([other, same[0], same[1]], raw=True, programs=True) == 0
    assert voted([None, None], programs=True) is None


def made(*args: str, write: Callable[[str, int], str]) -> Path:
    """A run in which attempt k (from 0) at a question is `write(question, k)`."""
    count: dict[str, int] = {}

    def answer(owner: str, ask: Any) -> Any:
        count[owner] = count.get(owner, -1) + 1
        return written(write(owner, count[owner]), ask)

    base = ["model=tiny", "task=mbpp", "data_dir=.", "seeds=42", "max_new_tokens=120", "name=t", "verify.cpu_seconds=1"]
    return run_tts(read_settings([*base, *args]), open_backend=lambda plan: contextlib.nullcontext(FakeBackend(answer)))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_methods_solve_programs_with_a_judge_of_their_own(here: Path) -> None:
    need_judge()

    def write(owner: str, k: int) -> str:
        n = int(owner.rpartition("/")[2]) - 11
        return program(f"add{n}", ["while True: pass", f"return x + {n}", f"return {n} + x  # at last"][min(k, 1 + n)])

    found = results(made("method=best_of_n", "budget=3", write=write))
    assert found["score"]["name"] == "coverage@3"
    assert found["score"]["estimate"] == 1.0
    assert [found["coverage"][k]["estimate"] for k in ("1", "2")] == [0.0, 1.0]


def test_self_consistency_votes_among_programs(here: Path) -> None:
    need_judge()

    def write(owner: str, k: int) -> str:
        n = int(owner.rpartition("/")[2]) - 11
        return program(f"add{n}", [f"return x * {n}", f"return x+{n}", f"return x + {n}  # so"][k])

    found = results(made("method=self_consistency", "budget=3", write=write))
    assert found["score"]["estimate"] == found["vote"]["3"]["estimate"] == 1.0
    assert found["vote"]["1"]["estimate"] == 0.0


def test_a_judge_that_is_gone_stops_a_run_and_says_what_is_kept(here: Path, fake: Callable[..., FakeJudge]) -> None:
    asked = 0

    def says(task: Any) -> Any:
        nonlocal asked
        asked += 1
        return Outcome("failed") if asked <= 2 else JudgeGone("no judge at unix:/x for 60 s")

    fake(says)
    with pytest.raises(RunFailed, match=r"no judge at unix:/x .*0 questions and \d attempts are kept in tts/t\."):
        made("method=best_of_n", "budget=4", write=lambda owner, k: program("add0", f"return {k}"))


def test_one_program_that_no_judge_can_rule_on_does_not_stop_the_others(
    here: Path, fake: Callable[..., FakeJudge]
) -> None:
    fake(lambda task: JudgeError("no verdict in 4 tries") if "add0" in task.code else Outcome("passed"))
    folder = made(
        "method=best_of_n",
        "budget=2",
        write=lambda owner, k: program(f"add{int(owner.rpartition('/')[2]) - 11}", "pass"),
    )
    found = results(folder)
    assert found["coverage"]["2"]["estimate"] == 0.5
    files = [json.loads(line) for file in (folder / "attempts").iterdir() for line in file.read_text().splitlines()]
    verdicts = [line["verdict"] for line in files]
    assert sorted(set(verdicts)) == ["correct", "error"]
