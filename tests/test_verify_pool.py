"""The verifier survives what has hung real verifiers: deadlines that kill, dead workers, threads, tasks, closing."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import fields
from importlib.resources import files

import pytest
import yaml

from reasonrl.verify import pool, worker
from reasonrl.verify.pool import Verdict, Verifier, VerifierError, VerifyConfig, verify_from_config

HANGS = [
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"(x+1)^{100000}",
    r"100000000!",
    r"\sum_{k=1}^{10^{12}} k^{k}",
]
NASTY = [  # slow, deep or malformed, but these come back
    r"\frac{" * 150 + "1" + "}{2}" * 150,
    "(" * 900 + "1" + ")" * 900,
    r"\sqrt{" * 200 + "2" + "}" * 200,
    r"\int " * 30 + "x",
    "9^9^9^9",
    "{" * 50,
    "}" * 50,
    "\\" * 51,
    "\x00\ud800",
    "__import__('os').system('false')",
    "1" + "0" * 1_900,
    r"\text{" + "a" * 1_900 + "}",
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(VerifyConfig(timeout=1.5)) as shared:
        shared.warm_up()
        yield shared


def box(answer: str) -> str:
    return rf"so \boxed{{{answer}}}"


def workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@pytest.mark.parametrize("hostile", HANGS)
def test_a_hanging_answer_is_killed_at_the_deadline_and_the_next_one_served(verifier: Verifier, hostile: str) -> None:
    started = time.monotonic()
    verdict = verifier.submit(box(hostile), r"\frac{1}{3}").result(30)
    assert verdict == Verdict(False, hostile, "timeout", "no verdict in 1.5 s")
    assert 1.4 < time.monotonic() - started < 8.0  # the deadline, and a busy machine
    assert verifier.submit(box(r"\frac{2}{4}"), r"\frac12").result(30).correct


@pytest.mark.parametrize("hostile", NASTY)
def test_a_nasty_answer_is_wrong_and_harms_nothing(verifier: Verifier, hostile: str) -> None:
    verdict = verifier.submit(box(hostile), r"\frac{1}{3}").result(30)
    assert not verdict.correct
    assert verifier.submit(box(r"\frac{2}{6}"), r"\frac{1}{3}").result(30).correct


def test_text_after_the_limit_is_never_compared() -> None:
    long = "1+" * 5_000 + "1"  # a 10,001-character box
    with Verifier() as verifier:
        verdict = verifier.submit(box(long), "5001").result(0)
        assert (verdict.correct, verdict.status) == (False, "ok")
        assert "10001 characters" in verdict.message
        assert verifier._pool is None


def test_plain_answers_start_no_process() -> None:
    with Verifier() as verifier:
        pairs = [(box("72"), "72"), (box("1,234"), "1234"), (box("7"), "8"), (box(r"\sqrt{2}"), r"\sqrt{2}"), ("", "5")]
        assert [v.correct for v in verifier.verify_many(pairs)] == [True, True, False, True, False]
        assert verifier._pool is None
        assert verifier.counts() == {"checked": 5, "cached": 0, "no_answer": 1, "timeout": 0, "error": 0}


@pytest.mark.parametrize("checker", ["exact", "choice"])
def test_exact_and_choice_start_no_process(checker: str) -> None:
    with Verifier(VerifyConfig(checker=checker)) as verifier:
        verifier.warm_up()
        assert verifier.submit(box("B"), "B").result(0).correct
        assert not verifier.submit(box("C"), "B").result(0).correct
        assert verifier._pool is None


@pytest.mark.parametrize("checker", ["mathruler", "math_verify", "either"])
def test_each_checker_works_in_its_process(checker: str) -> None:
    with Verifier(VerifyConfig(checker=checker)) as verifier:
        verifier.warm_up()
        verdicts = verifier.verify_many([(box(r"\dfrac{1}{2}"), r"\frac{1}{2}"), (box(r"\frac{1}{3}"), r"\frac{1}{2}")])
        assert [(v.correct, v.status) for v in verdicts] == [(True, "ok"), (False, "ok")]


@pytest.mark.parametrize("text", ["", "   ", "no statement at all", None, 5])
def test_empty_or_unusable_text_is_no_answer(verifier: Verifier, text: object) -> None:
    assert verifier.submit(text, "5").result(0) == Verdict(False, None, "no_answer")  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", ["", "  ", None, 5, "9" * 5_000])
def test_an_unusable_gold_is_an_error_verdict(verifier: Verifier, gold: object) -> None:
    verdict = verifier.submit(box("5"), gold).result(0)  # type: ignore[arg-type]
    assert (verdict.correct, verdict.status) == (False, "error")
    assert "gold" in verdict.message


def test_only_text_after_the_reasoning_is_scored() -> None:
    response = r"maybe \boxed{5}</think>no \boxed{6}</think>finally \boxed{7}"
    for cut, answer in (("none", "7"), ("first_think", "7"), ("last_think", "7")):
        with Verifier(VerifyConfig(answer_after=cut)) as verifier:
            assert verifier.submit(response, answer).result(0).correct
    with Verifier(VerifyConfig(answer_after="last_think")) as verifier:
        assert verifier.submit(r"\boxed{5}</think>done", "5").result(0).status == "no_answer"
        assert verifier.submit(r"\boxed{5}", "5").result(0).status == "no_answer"
        assert verifier.submit(r"\boxed{5}</think>", "5").result(0).status == "no_answer"


def test_extraction_follows_the_configuration() -> None:
    with Verifier(VerifyConfig(extract="answer_tag")) as verifier:
        assert verifier.submit(box("5"), "5").result(0).status == "no_answer"
        assert verifier.submit("<answer>5</answer>", "5").result(0).correct


def test_repeats_are_answered_from_the_cache() -> None:
    with Verifier(VerifyConfig(workers=1)) as verifier:
        pair = (box(r"\frac{2}{4}"), r"\frac{1}{2}")
        assert all(v.correct for v in verifier.verify_many([pair] * 3))  # one comparison, two that wait for it
        assert verifier.verify_many([pair])[0].correct
        assert verifier.counts()["checked"] == 4
        assert verifier.counts()["cached"] == 3


def test_the_cache_forgets_the_oldest_and_can_be_off() -> None:
    pairs = [(box(rf"\frac{{{2 * i}}}{{4}}"), rf"\frac{{{i}}}{{2}}") for i in (1, 3, 5)]
    with Verifier(VerifyConfig(cache_size=2)) as verifier:
        for pair in (*pairs, pairs[0]):
            assert verifier.submit(*pair).result(30).correct
        assert verifier.counts()["cached"] == 0
        assert len(verifier._cache) == 2
    with Verifier(VerifyConfig(cache_size=0)) as verifier:
        for _ in range(2):
            assert verifier.submit(*pairs[0]).result(30).correct
        assert verifier.counts()["cached"] == 0


def test_counts_only_grow_and_taken_ones_start_anew() -> None:
    with Verifier() as verifier:
        verifier.verify_many([(box("1"), "1"), ("nothing", "1")])
        assert verifier.take_counts() == {"checked": 2, "cached": 0, "no_answer": 1, "timeout": 0, "error": 0}
        verifier.verify_many([(box("2"), "1")])
        assert verifier.take_counts() == {"checked": 1, "cached": 0, "no_answer": 0, "timeout": 0, "error": 0}
        assert verifier.counts()["checked"] == 3


def test_timeouts_are_counted_and_not_remembered() -> None:
    with Verifier(VerifyConfig(timeout=0.5)) as verifier:
        verifier.warm_up()
        for _ in range(2):
            assert verifier.submit(box(HANGS[0]), r"\frac{1}{3}").result(30).status == "timeout"
        assert verifier.counts() == {"checked": 2, "cached": 0, "no_answer": 0, "timeout": 2, "error": 0}


def test_many_threads_share_one_verifier(verifier: Verifier) -> None:
    wrong: list[tuple[int, int]] = []

    def ask(thread: int) -> None:
        for i in range(1, 60):
            n = (i * 7 + thread) % 40 + 1
            if (
                not verifier.submit(box(rf"\frac{{{2 * n}}}{{{2 * n + 2}}}"), rf"\frac{{{n}}}{{{n + 1}}}")
                .result(60)
                .correct
            ):
                wrong.append((thread, i))

    threads = [threading.Thread(target=ask, args=(t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tasks_of_an_event_loop_go_on_while_one_answer_hangs(verifier: Verifier) -> None:
    async def main() -> tuple[list[Verdict], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        clock = asyncio.create_task(tick())
        asked = [(HANGS[1], "7"), ("5", "5"), (r"\frac{3}{6}", r"\frac12"), ("4", "5")]
        verdicts = await asyncio.gather(*(verifier.verify(box(answer), gold) for answer, gold in asked))
        clock.cancel()
        return verdicts, ticks

    verdicts, ticks = asyncio.run(main())
    assert [v.correct for v in verdicts] == [False, True, True, False]
    assert verdicts[0].status == "timeout"
    assert ticks > 20


def test_a_task_that_is_cancelled_does_not_take_others_with_it(verifier: Verifier) -> None:
    async def main() -> Verdict:
        pair = (box(HANGS[4]), r"\frac{1}{7}")
        patient = asyncio.create_task(verifier.verify(*pair))
        hasty = asyncio.create_task(verifier.verify(*pair))
        await asyncio.sleep(0.1)
        hasty.cancel()
        return await patient

    assert asyncio.run(main()).status == "timeout"


def test_a_worker_that_dies_costs_one_error_verdict() -> None:
    with Verifier(VerifyConfig(timeout=20.0)) as verifier:
        verifier.warm_up()
        hanging = verifier.submit(box(HANGS[0]), r"\frac{1}{3}")
        time.sleep(0.5)  # until the worker has it
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        verdict = hanging.result(10)
        assert (verdict.correct, verdict.status) == (False, "error")
        assert verifier.submit(box(r"\frac{2}{4}"), r"\frac12").result(30).correct
        assert verifier.counts()["error"] == 1


def test_idle_workers_that_die_cost_nothing() -> None:
    with Verifier() as verifier:
        verifier.warm_up()
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        pairs = [(box(rf"\frac{{{2 * n}}}{{{2 * n + 2}}}"), rf"\frac{{{n}}}{{{n + 1}}}") for n in range(1, 20)]
        assert all(v.correct for v in verifier.verify_many(pairs))


def test_a_stuck_pool_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Verifier(VerifyConfig(timeout=0.5)) as verifier:
        verifier.warm_up()
        monkeypatch.setattr(verifier._workers(), "_stall", 0.5)  # too short to start in, so only from here on
        (pid,) = workers()
        os.kill(pid, signal.SIGSTOP)  # alive, but it never takes a task
        verdict = verifier.submit(box(r"\frac{2}{4}"), r"\frac12").result(30)
        os.kill(pid, signal.SIGCONT)
        assert verdict.status == "error"
        assert "no worker answered" in verdict.message
        monkeypatch.setattr(verifier._workers(), "_stall", 60.0)
        assert verifier.submit(box(r"\frac{2}{4}"), r"\frac12").result(30).correct


def test_closing_answers_who_waits_and_leaves_no_process() -> None:
    verifier = Verifier(VerifyConfig(timeout=30.0, workers=2))
    waiting = [verifier.submit(box(hostile), r"\frac{1}{3}") for hostile in HANGS[:3]]
    time.sleep(0.5)
    mine = workers()
    started = time.monotonic()
    verifier.close()
    assert time.monotonic() - started < 10.0
    assert [future.result(0).status for future in waiting] == ["error"] * 3
    assert not set(mine) & set(workers())
    verifier.close()  # twice is fine
    with pytest.raises(VerifierError, match="closed"):
        verifier.submit(box("1"), "1")


def test_futures_cannot_be_cancelled_behind_the_verifiers_back(verifier: Verifier) -> None:
    future: Future[Verdict] = verifier.submit(box(r"\frac{4}{8}"), r"\frac12")
    assert not future.cancel()
    assert future.result(30).correct


def test_a_script_without_main_guard_can_use_it(tmp_path: object) -> None:
    script = f"{tmp_path}/script.py"
    with open(script, "w") as file:
        file.write(
            textwrap.dedent(
                r"""
                print("main runs")
                from reasonrl.verify.pool import Verifier
                verifier = Verifier()
                print(verifier.submit(r"\boxed{\frac{2}{4}}", r"\frac12").result(60).correct)
                """  # never closed either: leaving the interpreter must end the workers
            )
        )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["main runs", "True"]


def test_a_worker_without_parent_ends_itself_even_deep_in_c() -> None:
    code = "from reasonrl.verify import worker; worker.check('math_verify', '9^{9^{9^{9}}}', '7', %f)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code % (1.0 - worker.GRACE_SECONDS)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - started < 30.0


def test_a_checker_whose_library_is_missing_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.checkers, "find_spec", lambda name: None)
    with pytest.raises(VerifierError, match="pip install mathruler"):
        Verifier(VerifyConfig(checker="mathruler"))
    Verifier(VerifyConfig(checker="exact")).close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"checker": "mathrule"},
            r"Unknown verify\.checker 'mathrule'\. Did you mean 'mathruler' or 'math_release'\? Choices: choice",
        ),
        ({"extract": "box"}, r"Unknown verify\.extract 'box'\. Did you mean 'boxed'"),
        ({"answer_after": "think"}, r"Unknown verify\.answer_after 'think'.*first_think"),
        ({"timeout": 0.0}, r"timeout must be > 0"),
        ({"workers": 0}, r"workers must be >= 1"),
        ({"cache_size": -1}, r"cache_size must be >= 0"),
        ({"cpu_seconds": 0.0}, r"cpu_seconds must be >= 0.1"),
        ({"memory_mb": 1}, r"memory_mb must be >= 64"),
        ({"judge": "localhost:8078"}, r"verify\.judge must be https://\.\.\., unix:.*http://127\.0\.0\.1"),
        ({"judge": "http://judge.lab:8078"}, r"verify\.judge must be https://.*got 'http://judge.lab:8078'"),
        ({"judge": "http://localhost:80b8"}, r"verify\.judge must be https://.*got 'http://localhost:80b8'"),
        ({"judge": "http://[::1"}, r"verify\.judge must be https://"),
        ({"judge": "https://"}, r"verify\.judge must be https://"),
        ({"judge": "unix:"}, r"verify\.judge must be https://"),
        (
            {"checker": "code", "extract": "boxed"},
            r"verify\.extract=boxed finds no programs: choose auto or first_fence",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerifyConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["either", "mathruler", "math_verify", "exact", "choice", "code"])
def test_every_configuration_of_the_group_holds_all_settings(name: str) -> None:
    settings = yaml.safe_load((files("reasonrl.conf") / "verify" / f"{name}.yaml").read_text())
    assert verify_from_config(settings) == VerifyConfig(checker=name)
    of_programs = {"judge", "cpu_seconds", "memory_mb"} if name != "code" else set()
    assert set(settings) == {field.name for field in fields(VerifyConfig)} - of_programs - {"answer_phrase"}


def test_unknown_settings_name_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown setting in verify 'chekcer'\. Did you mean 'checker'"):
        verify_from_config({"chekcer": "exact"})
    with pytest.raises(ValueError, match=r"verify\.workers must be int, got 1\.5"):
        verify_from_config({"workers": 1.5})
