"""The methods of test time on scripted models: what each asks, charges, learns from and counts."""

from __future__ import annotations

from typing import Any

import pytest
from tts_builders import letters, numbers, play, posed, prompts, text_of, verdicts

from reasonrl.config import ConfigError
from reasonrl.eval.tts.base import CAPABILITIES, Budget
from reasonrl.eval.tts.methods import METHODS
from reasonrl.eval.tts.methods.beam_search import BeamSearch
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.fttt import FTTT
from reasonrl.eval.tts.methods.greedy import Greedy
from reasonrl.eval.tts.methods.optune import OpTune
from reasonrl.eval.tts.methods.revision import Revision
from reasonrl.eval.tts.methods.self_consistency import SelfConsistency
from reasonrl.eval.tts.methods.self_refine import SelfRefine

FREE = Budget(3, free_unparsable=True)


def test_every_method_says_what_it_is() -> None:
    assert list(METHODS) == [
        "greedy",
        "revision",
        "beam_search",
        "best_of_n",
        "self_refine",
        "self_consistency",
        "fttt",
        "optune",
    ]
    for name, method in METHODS.items():
        assert method.name == name
        assert method.needs <= set(CAPABILITIES)
        assert method() == method()  # frozen, of knobs alone


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=list(METHODS))
def test_a_prompt_that_fills_the_context_is_not_asked(method: Any) -> None:
    trace, backend, _ = play(method, [], 4, posed(room=0))
    assert (trace.stop, trace.solved, trace.attempts) == ("prompt_too_long", False, ())
    assert backend.calls == []


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=list(METHODS))
def test_no_method_is_charged_more_than_its_budget(method: Any) -> None:
    texts = ["F", "N", "", "G", "F", "H", "N", "F"]
    for budget in (1, 2, 5):
        trace, _, _ = play(method, texts, budget)
        charged = [number for number in numbers(trace) if number]
        assert charged == list(range(1, len(charged) + 1))
        assert len(charged) <= budget


# one question, several answers


def test_greedy_asks_once_whatever_the_budget() -> None:
    trace, backend, _ = play(Greedy(), ["F"], 8)
    assert verdicts(trace) == ["wrong"]
    assert trace.oracle is False
    assert backend.calls[0][0][1].sampling.temperature == 0


def test_best_of_n_stops_at_the_first_right_sample() -> None:
    trace, backend, _ = play(BestOfN(), ["F", "N", "T"], 8)
    assert verdicts(trace) == ["wrong", "unparseable", "correct"]
    assert (trace.first_correct, trace.stop, trace.oracle, trace.solved) == (3, "correct", True, True)
    assert set(prompts(backend)) == {"[u:q][a:"}
    assert len({ask.sampling.seed for call in backend.calls for _, ask in call}) == 3


def test_best_of_n_may_go_on_to_the_end() -> None:
    trace, _, _ = play(BestOfN(oracle_stop=False), ["F", "T", "F"], 3)
    assert len(trace.attempts) == 3
    assert trace.solved


def test_best_of_n_may_be_chosen_from_by_vote() -> None:
    trace, _, _ = play(BestOfN(selector="vote"), ["T", "F", "F"], 3)
    assert (trace.oracle, trace.chosen, trace.solved) == (False, 2, False)
    with pytest.raises(ConfigError, match="selector must be one of oracle, vote, prm, orm, got 'me'"):
        BestOfN(selector="me")


def test_an_attempt_that_could_not_be_verified_is_no_failure_of_best_of_n_but_is_charged() -> None:
    trace, _, _ = play(BestOfN(), ["E", "T"], 2)
    assert verdicts(trace) == ["error", "correct"]


def test_a_budget_of_tokens_lets_no_further_attempt_begin() -> None:
    trace, _, _ = play(BestOfN(), ["FF", "GG", "HH"], Budget(8, tokens=6))  # three tokens each, the end token included
    assert trace.stop == "tokens"
    assert trace.tokens == 6


def test_self_consistency_asks_at_once_and_the_verifier_does_not_choose() -> None:
    trace, backend, _ = play(SelfConsistency(), ["T", "F", "F", "N"], 4)
    assert [len(call) for call in backend.calls] == [4]
    assert (trace.oracle, trace.chosen, trace.solved) == (False, 2, False)
    assert trace.first_correct == 1  # there to be seen, but nobody may use it
    again, backend, _ = play(SelfConsistency(), ["T", "T", "F"], 3)
    assert again.solved
    assert [ask.sampling.seed for _, ask in backend.calls[0]] == [posed().sampling(k).seed for k in range(3)]


def test_a_vote_without_an_answer_is_wrong() -> None:
    trace, _, _ = play(SelfConsistency(), ["N"] * 32, 32)  # T10
    assert (trace.chosen, trace.solved) == (None, False)


def test_beams_are_attempts_from_the_best_on() -> None:
    trace, backend, _ = play(BeamSearch(), ["F", "T", "T"], 3)
    assert [ask.beams for _, ask in backend.calls[0]] == [3]
    assert (numbers(trace), trace.first_correct, trace.oracle) == ([1, 2, 3], 2, True)


def test_fewer_beams_than_asked_for_are_told() -> None:
    from tts_builders import FakeVerifier

    from reasonrl.eval.tts.backends.fake import FakeBackend, written
    from reasonrl.eval.tts.schedule import Schedule

    backend = FakeBackend(lambda owner, ask: tuple(written(text, ask) for text in "FG"))
    (trace,) = Schedule(BeamSearch(), backend, FakeVerifier(), Budget(4)).run([posed()])
    assert trace.notes == {"beams": 2}


# turns


def test_revision_keeps_the_whole_conversation() -> None:
    trace, backend, _ = play(Revision(request="No."), ["F", "G", "T"], 8)
    assert prompts(backend) == ["[u:q][a:", "[u:q][a:F][u:No.][a:", "[u:q][a:F][u:No.][a:G][u:No.][a:"]
    assert trace.stop == "correct"
    assert {ask.sampling.temperature for call in backend.calls for _, ask in call} == {0.0}


def test_revision_forgets_its_oldest_rounds_when_the_context_is_full() -> None:
    question = posed(room=10, context=30)  # a prompt of 8 tokens, 12 a round: one round leaves 10, two leave -2
    trace, backend, _ = play(Revision(request="No."), ["F", "G", "H", "T"], 8, question)
    assert prompts(backend)[2:] == ["[u:q][a:G][u:No.][a:", "[u:q][a:H][u:No.][a:"]
    assert trace.notes == {"dropped_rounds": 2}
    assert trace.solved


def test_revision_may_stop_when_the_context_is_full() -> None:
    question = posed(room=10, context=30)
    trace, backend, _ = play(Revision(request="No.", overflow="stop"), ["F", "G", "T"], 8, question)
    assert (trace.stop, trace.solved, len(backend.calls)) == ("context", False, 2)
    with pytest.raises(ConfigError, match="overflow must be one of drop_oldest, stop, got 'no'"):
        Revision(overflow="no")


def test_revision_ends_where_not_even_the_last_round_fits() -> None:
    trace, _, _ = play(Revision(request="No" * 30), ["F"], 8, posed(room=10, context=30))
    assert trace.stop == "context"


@pytest.mark.parametrize("method", [Revision(), SelfRefine()])
def test_nobody_is_told_that_an_answer_is_wrong_which_could_not_be_verified(method: Any) -> None:
    texts = ["E"] if method.name == "revision" else ["F", "E"]
    trace, backend, verifier = play(method, texts, 8)
    assert trace.stop == "error"
    assert len(backend.calls) == len(texts)
    assert verifier.asked == ["E"] * 3  # graded again twice


def test_a_verifier_that_fails_once_is_asked_again() -> None:
    trace, _, _ = play(BestOfN(), ["X"], 1)
    assert trace.solved


def test_self_refine_sees_its_latest_output_and_pays_for_the_draft() -> None:
    trace, backend, verifier = play(SelfRefine(request="Fix."), ["T", "F", "G"], 3)
    assert prompts(backend) == ["[u:q][a:", "[u:q][a:T][u:Fix.][a:", "[u:q][a:F][u:Fix.][a:"]
    assert verdicts(trace) == ["unchecked", "wrong", "wrong"]
    assert verifier.asked == ["F", "G"]
    assert numbers(trace) == [1, 2, 3]
    assert not trace.solved  # the draft was right, and nobody knew


@pytest.mark.parametrize("method", [Revision(missing_header_parity=True), SelfRefine(missing_header_parity=True)])
def test_the_header_of_the_next_answer_can_be_left_out_for_parity(method: Any) -> None:
    _, backend, _ = play(method, ["F", "T"], 8)
    assert prompts(backend)[1].endswith("]")


# weights


def test_fttt_learns_once_from_each_wrong_attempt_and_asks_the_bare_question_again() -> None:
    trace, backend, _ = play(FTTT(words="No."), ["F", "G", "T"], 8)
    assert set(prompts(backend)) == {"[u:q][a:"}
    assert [each.steps for each in trace.attempts] == [0, 1, 2]
    assert trace.notes == {"steps": 2}
    step = backend.steps[0][1]
    assert (text_of(step.attempt_ids), text_of(step.feedback_ids)) == ("F", "][u:No.]")
    assert (step.header_tokens, step.reflection_ids) == (7, ())  # all but f_0
    assert step.knobs["lr"] == 1e-5


def test_fttt_as_released_draws_attempts_without_an_answer_again_for_free() -> None:
    # T11
    trace, backend, _ = play(FTTT(), ["N", "F", "N", "F", "T"], FREE)
    assert (trace.solved, trace.failures, trace.generations) == (True, 2, 5)
    assert numbers(trace) == [0, 1, 0, 2, 3]
    assert len(backend.steps) == 2
    trace, backend, _ = play(FTTT(), ["N"] * 7, FREE)
    assert (trace.solved, trace.failures, trace.generations) == (False, 0, 7)
    assert backend.steps == []
    trace, backend, _ = play(FTTT(), ["F"] * 3, FREE)
    assert (trace.generations, len(backend.steps)) == (3, 3)


def test_fttt_is_charged_for_every_attempt_by_default() -> None:
    trace, backend, _ = play(FTTT(), ["N", "F", "N", "F", "T"], 3)  # T11
    assert (trace.solved, trace.generations, len(backend.steps)) == (False, 3, 1)


def test_fttt_learns_nothing_from_an_attempt_that_could_not_be_verified() -> None:
    _, backend, _ = play(FTTT(), ["E", "", "T"], 3)
    assert backend.steps == []


def test_with_one_attempt_fttt_asks_what_best_of_n_asks() -> None:
    _, ours, _ = play(FTTT(), ["F"], 1)  # T16, as far as it is decided here
    _, theirs, _ = play(BestOfN(), ["F"], 1)
    assert ours.calls == theirs.calls


def test_fttt_plus_learns_a_reflection_written_without_its_own_weights() -> None:
    trace, backend, _ = play(FTTT(plus=True, words="No.", reflect="Why?"), ["F", "because", "T"], 8)
    asked = [ask for call in backend.calls for _, ask in call]
    assert text_of(asked[1].prompt_ids) == "[u:q][a:F][u:Why?][a:"
    assert [ask.adapter for ask in asked] == [True, False, True]
    step = backend.steps[0][1]
    assert text_of(step.feedback_ids) == "][u:No.\n\n"
    assert text_of(step.reflection_ids) == "because]"
    assert step.header_tokens == len(step.feedback_ids) - 1
    assert [each.phase for each in trace.attempts] == ["attempt", "reflection", "attempt"]
    assert numbers(trace) == [1, 0, 2]
    # the reflection shifts no noise: attempt 2 is the one that plain FTTT would have drawn
    assert asked[2].sampling.seed == posed().sampling(1).seed


def test_a_reflection_that_does_not_end_or_says_nothing_is_left_out() -> None:
    question = posed(room=5)
    _, backend, _ = play(FTTT(plus=True), ["F", "too long", "too long", "T"], 8, question)
    assert len(backend.calls) == 4
    assert backend.steps[0][1].reflection_ids == ()
    _, backend, _ = play(FTTT(plus=True), ["F", "", "T"], 8)
    assert backend.steps[0][1].reflection_ids == ()


def test_a_cut_attempt_is_learned_from_whole() -> None:
    _, backend, _ = play(FTTT(), ["abcdefgh", "T"], 8, posed(room=5))
    assert backend.steps[0][1].attempt_ids == letters("abcde")


def test_optune_edits_for_every_second_attempt() -> None:
    trace, backend, _ = play(OpTune(), ["F", "G", "H", "I"], 4)  # T12
    assert [ask.adapter for call in backend.calls for _, ask in call] == [False, True, False, True]
    assert [text_of(step.attempt_ids) for _, step in backend.steps] == ["F", "H"]
    assert trace.generations == 4


def test_optune_may_edit_after_every_attempt() -> None:
    _, backend, _ = play(OpTune(schedule="chain"), ["F", "G", "H", "I"], 4)
    assert [ask.adapter for call in backend.calls for _, ask in call] == [False, True, True, True]
    assert [text_of(step.attempt_ids) for _, step in backend.steps] == ["F", "G", "H"]
    with pytest.raises(ConfigError, match="schedule must be one of alternate, chain, got 'never'"):
        OpTune(schedule="never")


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0"),
        ({"c": -1.0}, "c must be at least 0, got -1.0"),
        ({"steps": 0}, "steps and rank must be at least 1, got 0, 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd, got 'lion'"),
    ],
)
def test_knobs_out_of_range_are_told(knobs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        FTTT(**knobs)
