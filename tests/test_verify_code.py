"""Programs as answers: golds, what a judge is asked, what its word means, and that silence is never a verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from judge_builders import FakeJudge, judges, need_judge

from reasonrl.config import ConfigError, RunFailed
from reasonrl.verify import code
from reasonrl.verify.code import Cases, code_answer, job_of, open_judge, ruling, same_output, vote_key
from reasonrl.verify.judge.types import VERDICTS, BadJob, Job, JudgeError, JudgeGone, Limits, Outcome
from reasonrl.verify.pool import Verdict, Verifier, VerifyConfig

CODE = VerifyConfig(checker="code", cpu_seconds=1.0)
LIMITS = Limits(cpu_seconds=1.0)
DOUBLE = code_answer("mbpp", tests=["assert double(2) == 4", "assert double(-3) == -6"])
RIGHT = "def double(x):\n    return 2 * x\n"
HEAD = 'from math import floor\n\ndef half(x):\n    """Half of x, rounded down."""\n'
HALF = code_answer("humaneval", prompt=HEAD, tests="def check(f):\n    assert f(5) == 2\n", entry_point="half")
SUM = code_answer("stdin", inputs=["1 2\n", "10 -4\n"], outputs=["3\n", "6"])
JOIN = code_answer("functional", name="join", inputs=["[1, 2]\n[3]", "[]\n[]"], outputs=["[1, 2, 3]", "[]"])


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nDone."


# golds


def test_a_gold_is_text_that_says_how_programs_are_judged() -> None:
    assert json.loads(DOUBLE) == {
        "kind": "mbpp",
        "tests": ["assert double(2) == 4", "assert double(-3) == -6"],
        "setup": "",
    }
    assert json.loads(HALF)["with_prompt"] is True
    job = job_of(DOUBLE, RIGHT, LIMITS)
    assert isinstance(job, Job)
    assert (job.code, job.mode, job.limits) == (RIGHT, "strict", LIMITS)
    assert "assert double(2) == 4" in job.tests
    job = job_of(HALF, "    return floor(x / 2)", LIMITS)
    assert isinstance(job, Job)
    assert job.code.startswith(HEAD.rstrip())
    assert (job.names, job.prelude) == (("half",), HEAD)


def test_a_program_with_inputs_is_run_once_with_each() -> None:
    cases = job_of(SUM, "print(sum(map(int, input().split())))", LIMITS)
    assert isinstance(cases, Cases)
    assert [each.stdin for each in cases.programs] == ["1 2\n", "10 -4\n"]
    assert {each.limits.output_bytes for each in cases.programs} == {1 << 20}
    long = code_answer("stdin", inputs=["1"], outputs=["x" * (2 << 20)])
    cases = job_of(long, "p", LIMITS)
    assert isinstance(cases, Cases)
    assert cases.programs[0].limits.output_bytes == 4 << 20  # or a right answer would be cut


def test_calls_of_a_method_are_literals_in_the_tests() -> None:
    job = job_of(JOIN, "class Solution: pass", LIMITS)
    assert isinstance(job, Job)
    assert job.tests.splitlines()[-2:] == [
        "assert plain(Solution().join([1, 2], [3])) == [1, 2, 3]",
        "assert plain(Solution().join([], [])) == []",
    ]
    job = job_of(code_answer("functional", name="f", inputs=['true\n"a\\nb"'], outputs=["null"]), "", LIMITS)
    assert isinstance(job, Job)
    assert "Solution().f(True, 'a\\nb')) == None" in job.tests


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: code_answer("mbbp", tests=["a"]), "Unknown kind of code problem: 'mbbp'. Did you mean 'mbpp'"),
        (lambda: code_answer("mbpp", test=["a"]), "Unknown setting in the mbpp problem 'test'. Did you mean 'tests'"),
        (lambda: code_answer("mbpp"), "lacks tests"),
        (lambda: code_answer("mbpp", tests=[]), "without a test every program is right"),
        (lambda: code_answer("mbpp", tests=[" \n"]), "without a test every program is right"),
        (
            lambda: code_answer("humaneval", prompt="", tests="check = print", entry_point="f"),
            r"must define check\(candidate\)",
        ),
        (
            lambda: code_answer("stdin", inputs=["x" * (16 << 20)], outputs=[""]),
            "an input has more than 15728640 bytes",
        ),
        (
            lambda: code_answer("stdin", inputs=[""], outputs=["é" * (9 << 20)]),
            "an output has more than 16777216 bytes",
        ),
        (lambda: code_answer("humaneval", prompt="", tests="t", entry_point="f()"), "must be the name of a function"),
        (lambda: code_answer("stdin", inputs=["1"], outputs=[]), "equally many and not empty, got 1 and 0"),
        (lambda: code_answer("stdin", inputs=[], outputs=[]), "equally many and not empty"),
        (
            lambda: code_answer("functional", name="f", inputs=["x y"], outputs=["1"]),
            "neither JSON nor a literal: 'x y'",
        ),
        (lambda: job_of("72", "x", LIMITS), "a JSON record with a kind, got '72'"),
        (lambda: job_of("seven", "x", LIMITS), "is a JSON text, got 'seven'"),
    ],
)
def test_a_gold_that_says_nothing_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


# what a judge's word means


def test_only_what_a_program_did_itself_is_wrong() -> None:
    said = {}
    for verdict in VERDICTS:
        try:
            found = ruling(Outcome(verdict, "why"))
            said[verdict] = (found.correct, found.status)
        except JudgeError:
            said[verdict] = None
    wrong = dict.fromkeys(("failed", "error", "timeout_cpu", "timeout_wall", "memory", "output_limit"), (False, "ok"))
    assert said == {**wrong, "passed": (True, "ok"), "unparseable": (False, "no_answer"), "sandbox_error": None}
    assert ruling(Outcome("timeout_cpu")).message == "timeout_cpu"
    assert ruling(Outcome("failed", "AssertionError")).message == "failed: AssertionError"


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("3\n6", "3\n6\n\n", True),
        ("  3 \n6  ", "3\n6", True),
        ("3 6", "3\n6", False),
        ("3.0 0.50", "3 0.5", True),
        ("3.0000001", "3", False),
        ("1e1000000000", "1", False),
        ("yes", "Yes", False),
        ("a  b", "a b", False),
        ("", "", True),
        ("", "0", False),
        ("nan", "1", False),
        ("sNaN", "1", False),
        ("Infinity", "inf", True),
    ],
)
def test_what_a_program_writes_is_compared_line_by_line(written: str, expected: str, same: bool) -> None:
    assert same_output(written, expected) is same


def test_programs_that_differ_in_layout_and_remarks_have_one_vote() -> None:
    same = [
        "def f(x): return x+1",
        "# hi\ndef f( x ):\n    '''Doc.'''\n    return (x + 1)  # ok\n",
        '"""M."""\ndef f(x):\n\treturn x+1',
    ]
    assert len({vote_key(each) for each in same}) == 1
    assert vote_key("def f(x): return 1+x") != vote_key(same[0])
    assert vote_key("def f(") == "def f("
    assert vote_key("(" * 100_000) == "(" * 100_000
    assert vote_key("x = " + "-" * 50_000 + "1")  # too deep for a syntax tree: its own text


# asking, with a stand-in for the judge


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeJudge]:
    def make(says: Callable[[Any], Any] = lambda task: Outcome("passed")) -> FakeJudge:
        judge = FakeJudge(says)
        monkeypatch.setattr(code, "open_judge", lambda url, limits: contextlib.nullcontext(judge))
        return judge

    return make


@pytest.mark.parametrize(
    "text",
    ["", "I cannot.", "```python\ndef f(x", "```json\n{}\n```", "```python\n\n```", fenced("x = '\ud800'"), None],
)
def test_what_holds_no_program_is_no_answer_and_nobody_is_asked(fake, text: Any) -> None:
    judge = fake()
    with Verifier(CODE) as verifier:
        assert verifier.submit(text, DOUBLE).result(5) == Verdict(False, None, "no_answer")
        assert verifier.counts()["no_answer"] == 1
    assert judge.asked == []


def test_only_what_follows_the_reasoning_is_run(fake) -> None:
    judge = fake()
    with Verifier(VerifyConfig(checker="code", answer_after="last_think")) as verifier:
        text = f"<think>{fenced('wrong')}</think>{fenced(RIGHT)}"
        assert verifier.submit(text, DOUBLE).result(5) == Verdict(True, f"{RIGHT}\n", "ok")
        assert verifier.submit(fenced(RIGHT), DOUBLE).result(5).status == "no_answer"
    assert [each.code for each in judge.asked] == [f"{RIGHT}\n"]


def test_a_gigantic_program_is_wrong_and_never_sent(fake) -> None:
    judge = fake()
    with Verifier(CODE) as verifier:
        verdict = verifier.submit(fenced("x = 1\n" * 40_000), DOUBLE).result(5)
    assert (verdict.correct, verdict.status) == (False, "ok")
    assert "is never run" in verdict.message
    assert judge.asked == []


@pytest.mark.parametrize(
    "error", [JudgeGone("nobody"), JudgeError("no verdict"), BadJob("no tests"), Outcome("sandbox_error", "no room")]
)
def test_without_a_verdict_the_future_raises(fake, error: Any) -> None:
    fake(lambda task: error)
    with Verifier(CODE) as verifier:
        with pytest.raises(RunFailed, match="nobody|no verdict|no tests|no room"):
            verifier.submit(fenced(RIGHT), DOUBLE).result(5)
        with pytest.raises(RunFailed):
            asyncio.run(verifier.verify(fenced(RIGHT), DOUBLE))
        assert verifier.counts()["checked"] == 0


def test_a_gold_of_another_kind_is_no_wrong_answer(fake) -> None:
    fake()
    with Verifier(CODE) as verifier, pytest.raises(JudgeError, match="a gold that is none: .*got '72'"):
        verifier.submit(fenced(RIGHT), "72").result(5)


@pytest.mark.parametrize(
    "error", [UnicodeEncodeError("utf-8", "x", 0, 1, "half a character"), KeyError("x"), ZeroDivisionError()]
)
def test_an_error_of_ours_is_no_wrong_answer_either(fake, error: Exception) -> None:
    """Whoever takes a RunFailed for silence, and any other exception for a wrong answer, must not be misled."""
    fake(lambda _: error)
    with Verifier(CODE) as verifier, pytest.raises(RunFailed, match=f"no verdict: {type(error).__name__}"):
        verifier.submit(fenced(RIGHT), DOUBLE).result(5)


def test_an_address_that_is_none_is_told_as_such_and_not_as_a_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def broken(*_: Any) -> Iterator[Any]:
        raise ValueError("Invalid port")
        yield

    monkeypatch.setattr(code, "open_judge", broken)
    with Verifier(CODE) as verifier, pytest.raises(JudgeError, match="^no verdict: ValueError: Invalid port"):
        verifier.submit(fenced(RIGHT), DOUBLE).result(5)


def test_the_first_input_that_fails_decides(fake) -> None:
    judge = fake(lambda task: Outcome("passed", stdout="3" if task.stdin == "1 2\n" else "7"))
    with Verifier(CODE) as verifier:
        verdict = verifier.submit(fenced("p"), SUM).result(5)
        assert (verdict.correct, verdict.message) == (False, "failed: it wrote something else (input 2 of 2)")
        judge.says = lambda task: Outcome("error", stderr="Traceback ...\nValueError: no\n")
        verdict = verifier.submit(fenced("q"), SUM).result(5)
        assert verdict.message == "error: ValueError: no (input 1 of 2)"
        judge.says = lambda task: Outcome("error", stderr="SyntaxError: '(' was never closed\n")
        assert verifier.submit(fenced("r("), SUM).result(5).status == "no_answer"
    assert len(judge.asked) == 4


def test_no_more_programs_are_sent_at_once_than_a_judge_works_on(fake) -> None:
    judge = fake()
    with Verifier(CODE) as verifier:
        verdicts = verifier.verify_many([(fenced(f"x = {k}"), DOUBLE) for k in range(100)])
    assert all(verdict.correct for verdict in verdicts)
    assert judge.most == 8  # of one core


def test_closing_leaves_nobody_waiting_and_no_thread(fake) -> None:
    gate = threading.Event()
    judge = fake()

    async def held(task: Any) -> Outcome:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return Outcome("passed")

    judge.judge_async = held  # type: ignore[method-assign]
    verifier = Verifier(CODE)
    future = verifier.submit(fenced(RIGHT), DOUBLE)
    verifier.close()
    with pytest.raises(JudgeError, match="the verifier was closed"):
        future.result(5)
    deadline = time.monotonic() + 5
    while any(thread.name == "verify-code" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_verdicts_follow_from_is_compared_and_an_address_is_not() -> None:
    assert VerifyConfig(checker="code", judge="https://a").comparable == VerifyConfig(checker="code").comparable
    assert VerifyConfig(checker="code", cpu_seconds=9.0).comparable != VerifyConfig(checker="code").comparable
    assert set(VerifyConfig().comparable) == {"checker", "extract", "answer_after", "timeout"}


# with a judge


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    need_judge()
    with Verifier(CODE) as shared:
        shared.warm_up()
        yield shared


@pytest.mark.parametrize(
    ("program", "gold", "correct", "status"),
    [
        (RIGHT, DOUBLE, True, "ok"),
        ("def double(x):\n    return x + 2", DOUBLE, False, "ok"),
        ("def double(x):\n    while True:\n        pass", DOUBLE, False, "ok"),
        ("def double(x)\n    return 2 * x", DOUBLE, False, "no_answer"),
        ("def double(x):\n    raise ValueError('\\ud800')", DOUBLE, False, "ok"),  # half a character in its message
        ("def double(x):\n    assert False, '\\ud800'", DOUBLE, False, "ok"),
        ("import os\nos._exit(0)", DOUBLE, False, "ok"),
        ("class A:\n    def __eq__(self, o): return True\ndef double(x): return A()", DOUBLE, False, "ok"),
        ("    return floor(x / 2)", HALF, True, "ok"),
        ("def half(x):\n    return floor(x / 2)", HALF, True, "ok"),
        ("def half(x):\n    return x / 2", HALF, False, "ok"),
        ("print(sum(map(int, input().split())))", SUM, True, "ok"),
        ("print(3)", SUM, False, "ok"),
        ("print(sum(map(int, input().split()))\n", SUM, False, "no_answer"),
        ("import sys\nprint(3)\nsys.exit(1)", SUM, False, "ok"),
        (
            "class Solution:\n    def join(self, a: List[int], b: List[int]):\n        return tuple(a + b)",
            JOIN,
            True,
            "ok",
        ),
        ("class Solution:\n    def join(self, a, b):\n        return a", JOIN, False, "ok"),
        ("def join(a, b):\n    return a + b", JOIN, False, "ok"),
    ],
)
def test_programs_get_the_verdict_they_deserve(verifier, program, gold, correct, status) -> None:
    verdict = verifier.submit(fenced(program), gold).result(60)
    assert (verdict.correct, verdict.status) == (correct, status), verdict


def test_a_judge_that_dies_is_told_and_never_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    need_judge()
    monkeypatch.setattr(code, "PATIENCE", 0.5)
    before = judges()
    with Verifier(CODE) as own:
        assert own.submit(fenced(RIGHT), DOUBLE).result(60).correct
        (mine,) = judges() - before
        mine.kill()
        with pytest.raises(JudgeGone, match="no judge at unix:"):
            own.submit(fenced(RIGHT + "\n"), DOUBLE).result(60)


def test_what_a_judge_cannot_give_is_told_before_anything_is_asked() -> None:
    with pytest.raises(JudgeGone, match="start one with reasonrl judge"), open_judge("unix:/nowhere/socket"):
        pass
    need_judge()
    with open_judge(None, LIMITS) as judge:
        with pytest.raises(ConfigError, match=r"verify\.cpu_seconds=100 is more than the judge at unix:.* gives, 60"):
            Verifier(VerifyConfig(checker="code", cpu_seconds=100.0, judge=judge.url)).warm_up()
        with Verifier(VerifyConfig(checker="code", judge=judge.url)) as other:  # somebody else's judge is left alone
            other.warm_up()
        assert judge.health()["status"] == "ok"


def test_where_no_sandbox_is_possible_the_reason_and_the_way_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonrl.verify.judge import embedded

    @contextlib.contextmanager
    def refused(url: str | None, **knobs: Any) -> Iterator[Any]:
        raise ConfigError("the sandbox does not work here: no namespaces")
        yield

    monkeypatch.setattr(embedded, "opened_judge", refused)
    with pytest.raises(ConfigError, match=r"cannot be judged here: .*no namespaces.*verify\.judge=http"):
        Verifier(CODE).warm_up()
