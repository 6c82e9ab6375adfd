"""What is charged, drawn, voted and counted at test time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tts_builders import Letters, letters, posed, text_of

from reasonrl.config import ConfigError
from reasonrl.eval.backends import Ask
from reasonrl.eval.grading import Grade
from reasonrl.eval.tts.base import VERDICTS, Attempt, Budget, Trace, verdict_of, voted
from reasonrl.eval.tts.feedback import FeedbackPolicy
from reasonrl.eval.tts.hard import HardSet
from reasonrl.eval.tts.results import (
    cost_of_first,
    curve,
    full_share,
    legend,
    sizes,
    solved_by,
    summary,
    voted_by,
)


def attempt(number: int, verdict: str = "wrong", *, tokens: int = 3, extracted: str | None = "1") -> Attempt:
    ids = tuple(range(tokens))
    return Attempt(number, number - 1, "attempt", ids, "text", True, verdict, extracted, 5, seconds=0.5)


def trace(*verdicts: str, id: str = "q", oracle: bool = True) -> Trace:
    made = tuple(attempt(number, verdict) for number, verdict in enumerate(verdicts, 1))
    return Trace(id, made, "correct" in verdicts, oracle, "budget")


# votes


def test_a_vote_takes_no_answer_for_an_answer_only_where_nobody_gives_one() -> None:
    # T10 of the specification
    assert voted([None] * 20 + ["A"] * 7 + ["B"] * 5) == 26  # the last A
    assert voted([None] * 32) is None


def test_of_answers_with_equally_many_votes_the_first_seen_wins_and_its_last_sample_counts() -> None:
    assert voted(["A", "B", "B", "A"]) == 3
    assert voted(["B", "A", "A", "B"]) == 3
    assert voted(["A", "B"]) == 0


def test_equal_numbers_vote_together_unless_the_vote_is_raw() -> None:
    answers = ["7", "18", "18.0", "7 ", "$18"]
    assert voted(answers) == 4
    assert voted(answers, raw=True) == 0


# verdicts and noise


@pytest.mark.parametrize(
    ("grade", "verdict"),
    [
        (Grade(True, "ok", "1"), "correct"),
        (Grade(False, "ok", "2"), "wrong"),
        (Grade(False, "no_answer"), "unparseable"),
        (Grade(False, "timeout"), "error"),
        (Grade(False, "error"), "error"),
        (Grade(False, "no_judge"), "error"),
    ],
)
def test_what_could_not_be_compared_is_an_error_and_never_wrong(grade: Grade, verdict: str) -> None:
    assert verdict_of(grade) == verdict
    assert verdict in VERDICTS


def test_an_attempt_has_the_noise_of_the_same_answer_in_an_evaluation() -> None:
    question = posed("q7", seed=42)
    ask = Ask("task", "q7", (3,), (), "", 0.6, 0.95, -1, 50, seed=42)
    assert question.sampling(3).seed == ask.noise(3)
    assert question.sampling(3, phase="draft").seed == ask.noise(3)
    assert question.sampling(3, phase="reflection").seed != ask.noise(3)
    others = {posed("q7", seed=85).sampling(3).seed, posed("q8").sampling(3).seed, question.sampling(4).seed}
    assert ask.noise(3) not in others
    assert len(others) == 3


def test_an_attempt_may_fill_what_the_context_leaves_but_never_more_than_the_first() -> None:
    question = posed("q", room=20, context=40)
    assert question.sampling(0).max_tokens == 20
    assert question.sampling(0, prompt_ids=[1] * 10).max_tokens == 20
    assert question.sampling(0, prompt_ids=[1] * 33).max_tokens == 7
    assert posed("q", room=20).room_after([1] * 1000) == 20


@pytest.mark.parametrize("given", [{"attempts": 0}, {"attempts": 1, "tokens": 0}, {"attempts": 1, "seconds": 0.0}])
def test_a_budget_allows_something(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allows no attempt: it must be greater than 0"):
        Budget(**given)


# turns


def test_a_turn_ends_the_attempt_and_opens_the_next() -> None:
    policy = FeedbackPolicy(Letters())
    assert text_of(policy.turn("No.")) == "][u:No.][a:"
    assert text_of(policy.turn("No.", header=False)) == "][u:No.]"
    assert text_of(policy.after(letters("12#"), True, "No.")) == "12][u:No.][a:"  # its end token makes room for f_0
    assert text_of(policy.after(letters("12#"), False, "No.")) == "12#][u:No.][a:"  # cut: nothing to take away


def test_a_turn_around_words_to_come_is_the_turn_with_them() -> None:
    around = FeedbackPolicy(Letters()).around("No.")
    assert text_of((*around.opening_ids, *letters("Why"), *around.closing_ids)) == "][u:No.\n\nWhy]"


def test_without_a_chat_template_there_are_no_turns() -> None:
    tokenizer = Letters()
    tokenizer.chat_template = None
    with pytest.raises(
        ConfigError, match="'letters' has no chat template, and feedback is given in turns: choose a chat"
    ):
        FeedbackPolicy(tokenizer)


def test_a_template_that_refuses_a_second_question_is_told() -> None:
    class Once(Letters):
        def apply_chat_template(self, turns: object, **_: object) -> str:
            raise ValueError("one question only")

    with pytest.raises(
        ConfigError, match="cannot hold a user's turn after an answer .one question only.: choose another"
    ):
        FeedbackPolicy(Once())


# counting


@given(st.lists(st.lists(st.sampled_from(["wrong", "correct", "unparseable", "error"]), max_size=8), min_size=1))
def test_accuracy_at_k_never_falls_and_failures_never_count(found: list[list[str]]) -> None:
    traces = [trace(*each) for each in found]
    rates = [solved_by(traces, k).mean() for k in range(1, 9)]
    assert all(a <= b for a, b in pairwise(rates))
    assert rates[-1] == np.mean(["correct" in each for each in found])
    assert rates[0] == np.mean([each[:1] == ["correct"] for each in found])


def test_the_number_of_an_attempt_counts_those_charged() -> None:
    found = Trace("q", (attempt(0), attempt(1), attempt(0), attempt(2, "correct")), True, True, "correct")
    assert found.first_correct == 2
    assert found.failures == 1
    assert trace("wrong", "wrong").failures == 2


def test_hard_and_full_accuracy() -> None:
    # T13: of 500 questions greedy decoding solves 250; 100 of the other 250 are solved
    hard = HardSet("task", "m", "d", "p", {}, None, 500, 250, tuple(f"q{i}" for i in range(250)))
    traces = [trace("wrong", "correct" if i < 100 else "wrong", id=f"q{i}") for i in range(250)]
    found = summary({42: traces}, budget=2, votes=False, hard=hard)
    assert found["score"]["estimate"] == pytest.approx(0.40, abs=1e-12)
    assert found["hard"]["full_accuracy"] == pytest.approx(0.70, abs=1e-12)
    assert full_share(hard, 100) == pytest.approx(0.70, abs=1e-12)
    assert found["coverage"]["1"]["estimate"] == 0.0


def test_what_a_verifier_chose_is_called_a_coverage() -> None:
    found = summary({42: [trace("correct"), trace("wrong", "wrong")]}, budget=2, votes=False)
    assert found["score"]["name"] == "coverage@2"
    assert "the verifier's word chose: a coverage, no accuracy" in legend(found)
    chosen = summary({42: [trace("correct", oracle=False)]}, budget=2, votes=False)
    assert chosen["score"]["name"] == "accuracy"


def test_seeds_are_averaged_before_questions_are_drawn() -> None:
    once = summary({1: [trace("correct"), trace("wrong")]}, budget=1, votes=False)["score"]
    thrice = summary({s: [trace("correct"), trace("wrong")] for s in (1, 2, 3)}, budget=1, votes=False)["score"]
    assert thrice == once  # the same answers again are no more evidence


def test_a_vote_at_k_is_that_of_the_first_k() -> None:
    answers = [("1", "correct"), ("2", "wrong"), ("2", "wrong")]
    made = tuple(attempt(n, verdict, extracted=said) for n, (said, verdict) in enumerate(answers, 1))
    found = [Trace("q", made, False, False, "budget", 2)]
    assert [voted_by(found, k)[0] for k in (1, 2, 3)] == [1.0, 1.0, 0.0]


def test_cost_is_what_was_spent_up_to_the_first_right_attempt() -> None:
    assert cost_of_first(trace("wrong", "correct", "wrong"), "tokens") == 6
    assert cost_of_first(trace("wrong"), "tokens") is None
    shares = [each["share"] for each in curve([6.0, None], [9.0, 12.0], "tokens")]
    assert shares == [0.0] * 6 + [0.5, 0.5]  # at 12 / 2^7 .. 12


def test_sizes_are_powers_of_two_and_the_budget() -> None:
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(1) == [1]


def test_a_hard_set_holds_what_failed_and_not_what_nobody_could_verify() -> None:
    traces = [
        trace("correct", id="a"),
        trace("wrong", id="b"),
        trace("unparseable", id="c"),
        trace("error", id="d"),
        Trace("e", (), False, False, "failed"),
        Trace("f", (), False, False, "prompt_too_long"),
    ]
    found = HardSet.of(traces, task="t", model="m", data="d", prompt="p", decoding={}, limit=None)
    assert found.ids == ("b", "c", "f")
    assert found.errors == ("d", "e")
    assert (found.questions, found.greedy_correct) == (6, 1)
