"""Lock step: one call a round, and traces that depend on nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tts_builders import FakeVerifier, Letters, posed, verdicts

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.tts.backends import Outcome
from reasonrl.eval.tts.backends.fake import FakeBackend, scripted, written
from reasonrl.eval.tts.base import VERDICTS, Attempt, Budget, Generate, Generated, Posed, Trace
from reasonrl.eval.tts.feedback import FeedbackPolicy
from reasonrl.eval.tts.methods import METHODS
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.fttt import FTTT
from reasonrl.eval.tts.methods.greedy import Greedy
from reasonrl.eval.tts.methods.revision import Revision
from reasonrl.eval.tts.results import solved_by
from reasonrl.eval.tts.schedule import Schedule


def drawn(texts: str = "TFGNE", right: float | None = None) -> Callable[[str, Generate], Outcome]:
    """A model without memory: what it writes follows from the noise of the ask and its prompt."""

    def one(ask: Generate, beam: int) -> Generated:
        rng = np.random.default_rng([*ask.sampling.seed, len(ask.prompt_ids), beam])
        text = texts[rng.integers(len(texts))] if right is None else "FT"[int(rng.random() < right)]
        return written(text, ask)

    return lambda owner, ask: one(ask, 0) if ask.beams == 1 else tuple(one(ask, k) for k in range(ask.beams))


def run(method: Any, questions: Sequence[Posed], batch: int, backend: FakeBackend, budget: int = 4) -> dict[str, Trace]:
    schedule = Schedule(method, backend, FakeVerifier(), Budget(budget), batch=batch)
    return {trace.id: trace for trace in schedule.run(questions)}


QUESTIONS = [posed(f"q{i}", room=0 if i == 3 else 50, context=90) for i in range(7)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(METHODS)), st.permutations(QUESTIONS), st.integers(1, 9))
def test_a_trace_depends_on_neither_the_order_of_questions_nor_the_batch(
    name: str, questions: list[Posed], batch: int
) -> None:
    expected = run(METHODS[name](), QUESTIONS, 64, FakeBackend(drawn()))
    assert run(METHODS[name](), questions, batch, FakeBackend(drawn())) == expected
    assert set(expected) == {each.id for each in QUESTIONS}
    found = [attempt for trace in expected.values() for attempt in trace.attempts]
    assert {each.verdict for each in found} <= set(VERDICTS)


def test_two_questions_in_either_order_have_the_same_traces() -> None:
    q1, q2 = posed("q1"), posed("q2")
    there = run(FTTT(), [q1, q2], 1, FakeBackend(drawn()))  # T17
    back = run(FTTT(), [q2, q1], 1, FakeBackend(drawn()))
    assert there == back


def test_every_round_is_one_call_for_all_that_are_live() -> None:
    texts = {"a": ["F", "F", "F"], "b": ["F", "T"], "c": ["T"], "d": ["F", "T"]}
    backend = FakeBackend(scripted(texts))
    run(BestOfN(), [posed(name) for name in texts], 3, backend, budget=3)
    owners = [[owner for owner, _ in call] for call in backend.calls]
    assert owners == [["a", "b", "c"], ["a", "b", "d"], ["a", "d"]]  # d takes the place of c at once
    assert backend.forgotten == ["c", "b", "a", "d"]


def test_steps_of_a_round_are_taken_together_before_the_next_attempts() -> None:
    calls: list[str] = []

    class Told(FakeBackend):
        def generate(self, asks: Any) -> Any:
            calls.append(f"generate {len(asks)}")
            return super().generate(asks)

        def step(self, asks: Any) -> Any:
            calls.append(f"step {len(asks)}")
            return super().step(asks)

    texts = {"a": ["F", "T"], "b": ["N", "T"], "c": ["F", "T"]}
    run(FTTT(), [posed(name) for name in texts], 8, Told(scripted(texts)))
    assert calls == ["generate 3", "step 2", "generate 3"]


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32])
def test_coverage_of_independent_samples_is_that_of_the_formula(n: int, covered: list[Trace]) -> None:
    # T9: .1000, .1900, .3439, .5695, .8147, .9657
    expected = {1: 0.1, 2: 0.19, 4: 0.3439, 8: 0.5695, 16: 0.8147, 32: 0.9657}[n]
    assert 1 - 0.9**n == pytest.approx(expected, abs=5e-5)
    error = (expected * (1 - expected) / len(covered)) ** 0.5
    assert solved_by(covered, n).mean() == pytest.approx(expected, abs=4 * error)


@pytest.fixture(scope="module")
def covered() -> list[Trace]:
    questions = [posed(f"q{i}") for i in range(1000)]
    return list(run(BestOfN(), questions, 500, FakeBackend(drawn(right=0.1)), budget=32).values())


def test_stopping_at_the_first_right_sample_changes_no_coverage() -> None:
    questions = [posed(f"q{i}") for i in range(40)]  # T13
    stopped = run(BestOfN(), questions, 64, FakeBackend(drawn(right=0.3)), budget=8)
    whole = run(BestOfN(oracle_stop=False), questions, 64, FakeBackend(drawn(right=0.3)), budget=8)
    for k in range(1, 9):
        assert (solved_by(list(stopped.values()), k) == solved_by([whole[name] for name in stopped], k)).all()
        anywhere = [any(a.verdict == "correct" for a in whole[name].attempts[:k]) for name in stopped]
        assert (solved_by(list(stopped.values()), k) == anywhere).all()


# what goes wrong


def poisoned(name: str) -> FakeBackend:
    inner = drawn("F")

    def answer(owner: str, ask: Generate) -> Outcome:
        if owner == name:
            raise RuntimeError("cannot read this prompt")
        return inner(owner, ask)

    return FakeBackend(answer)


def test_one_question_that_fails_does_not_stop_the_others() -> None:
    backend = poisoned("q1")
    found = run(BestOfN(), [posed(f"q{i}") for i in range(4)], 8, backend, budget=2)
    assert found["q1"].stop == "failed"
    assert found["q1"].notes == {"error": "RuntimeError: cannot read this prompt"}
    assert not found["q1"].solved
    good = run(BestOfN(), [posed(f"q{i}") for i in range(4)], 8, FakeBackend(drawn("F")), budget=2)
    assert {name: trace for name, trace in found.items() if name != "q1"} == {
        n: t for n, t in good.items() if n != "q1"
    }


def test_a_question_that_its_method_cannot_go_on_with_fails_alone() -> None:
    class Refusing(FeedbackPolicy):
        def turn(self, words: str, *, header: bool = True) -> tuple[int, ...]:
            raise ValueError("no such turn")

    odd = replace(posed("odd"), feedback=Refusing(Letters()))
    found = run(Revision(), [odd, posed("even")], 8, FakeBackend(drawn("F")), budget=2)
    assert found["odd"].notes == {"error": "ValueError: no such turn"}
    assert verdicts(found["odd"]) == ["wrong"]
    assert found["even"].stop == "budget"


def test_a_backend_that_fails_once_costs_nothing() -> None:
    calls = 0

    def answer(owner: str, ask: Generate) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a hiccup")
        return drawn("F")(owner, ask)

    found = run(Greedy(), [posed("a"), posed("b")], 8, FakeBackend(answer))
    assert [trace.stop for trace in found.values()] == ["done", "done"]


def test_a_backend_that_fails_for_everybody_ends_the_run() -> None:
    def broken(owner: str, ask: Generate) -> Outcome:
        raise RuntimeError("the GPU is gone")

    with pytest.raises(RunFailed, match="all 3 questions of a round failed, the first with: the GPU is gone"):
        run(Greedy(), [posed(f"q{i}") for i in range(3)], 8, FakeBackend(broken))


def test_a_method_that_needs_what_the_backend_cannot_is_refused_at_once() -> None:
    backend = FakeBackend(drawn())
    backend.capabilities = frozenset({"sample", "beam"})
    with pytest.raises(ConfigError, match=r"method=fttt needs a backend that can grad, sample, .* \(no grad\): choose"):
        Schedule(FTTT(), backend, FakeVerifier(), Budget(1))


# continued


@pytest.mark.parametrize("name", list(METHODS))
def test_attempts_of_an_earlier_session_are_not_made_again(name: str) -> None:
    method, question = METHODS[name](), posed("q", context=200)
    first = FakeBackend(drawn("FGN"))
    written_first: list[Attempt] = []
    schedule = Schedule(
        method, first, FakeVerifier(), Budget(4), wrote=lambda _, attempt: written_first.append(attempt)
    )
    (whole,) = schedule.run([question])
    assert tuple(written_first) == whole.attempts
    for kept in range(len(whole.attempts) + 1):
        again, verifier, more = FakeBackend(drawn("FGN")), FakeVerifier(), []
        schedule = Schedule(method, again, verifier, Budget(4), wrote=lambda _, a, more=more: more.append(a))
        (continued,) = schedule.run([question], {"q": whole.attempts[:kept]})
        assert continued == whole
        graded = {each.text for each in whole.attempts[:kept] if each.verdict != "unchecked"}
        assert not graded & set(verifier.asked)
        if name != "beam_search":  # one search, made again as a whole
            assert tuple(more) == whole.attempts[kept:]
            assert sum(map(len, again.calls)) == len(whole.attempts) - kept
        assert len(again.steps) == len(first.steps)  # weights are made again, from the same attempts


def test_an_attempt_that_could_not_be_graded_stays_so_when_the_run_is_continued() -> None:
    question = posed("q")
    (whole,) = Schedule(BestOfN(), FakeBackend(scripted({"q": "FEF"})), FakeVerifier(), Budget(3)).run([question])
    assert [each.verdict for each in whole.attempts] == ["wrong", "error", "wrong"]

    class Mended(FakeVerifier):
        def submit(self, posed: Posed, text: str) -> Any:
            return super().submit(posed, "T" if text == "E" else text)

    again = Schedule(BestOfN(), FakeBackend(scripted({"q": "F"})), Mended(), Budget(3))
    (continued,) = again.run([question], {"q": whole.attempts[:2]})
    assert continued == whole  # else the trace would be solved by an attempt that is written down as not right


def test_a_budget_of_seconds_is_the_questions_own_share() -> None:
    backend = FakeBackend(drawn("F"))
    schedule = Schedule(BestOfN(), backend, FakeVerifier(), Budget(10_000, seconds=1e-7))
    (trace,) = schedule.run([posed()])
    assert trace.stop == "seconds"
    assert trace.seconds >= 1e-7
