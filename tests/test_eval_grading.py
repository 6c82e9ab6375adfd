"""Grading: whatever a text does, it gets a grade that says what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval import grading
from reasonrl.eval.grading import Grade, Grader, stated_option
from reasonrl.eval.tasks import Question, Task, load_questions, load_task
from reasonrl.verify import checkers
from reasonrl.verify.judge.types import JudgeGone
from reasonrl.verify.pool import Verdict, VerifierError, VerifyConfig

CHOICE = VerifyConfig(checker="choice")
TASK = load_task("arc_c")
QUESTION = Question("arc_c/1", "Which?\n\nA) x\nB) y", "B")
SUM = Question("arithmetic/1", "1+1?", "2")


@pytest.fixture
def choices() -> Iterator[Grader]:
    with Grader(TASK, CHOICE) as grader:
        yield grader


def graded(text: str, gold: str = "2", **options: object) -> Grade:
    """The grade of an answer to a question of arithmetic."""
    with Grader(load_task("arithmetic"), VerifyConfig(**options)) as grader:  # type: ignore[arg-type]
        return grader.submit(replace(SUM, answer=gold), text).result(30)


# Answers


def test_an_answer_is_what_the_verifier_reads_and_says() -> None:
    assert graded(r"so \boxed{2}") == Grade(True, "ok", "2")
    assert graded(r"so \boxed{3}") == Grade(False, "ok", "3")
    assert graded("so it is two") == Grade(False, "no_answer")
    assert graded("") == Grade(False, "no_answer")


def test_every_gold_of_the_embedded_models_task_is_right_and_its_neighbour_is_wrong() -> None:
    items = load_questions(load_task("arithmetic")).items
    with Grader(load_task("arithmetic"), VerifyConfig()) as grader:
        for item in items:
            assert grader.submit(item, rf"\boxed{{{item.answer}}}").result(30).correct
            assert not grader.submit(item, rf"\boxed{{{int(item.answer) + 1}}}").result(30).correct


def test_an_answer_that_hangs_the_mathematics_is_a_timeout_and_says_so() -> None:
    grade = graded(r"\boxed{9^{9^{9^{9}}}}", r"\frac{1}{3}", timeout=1.0)
    assert grade == Grade(False, "timeout", "9^{9^{9^{9}}}", "no verdict in 1 s")


def test_a_gold_that_cannot_be_compared_is_an_error_and_never_silent() -> None:
    grade = graded(r"\boxed{2}", "9" * 5000)
    assert (grade.correct, grade.status) == (False, "error")
    assert "gold answer" in grade.message


def test_a_verifier_that_fails_is_an_error_grade() -> None:
    failing: Future[Verdict] = Future()
    graded_later = grading._then(failing, lambda verdict: Grade(verdict.correct, "ok"))
    failing.set_exception(OSError("pipe gone"))
    assert graded_later.result(1) == Grade(False, "error", message="OSError: pipe gone")


def test_only_text_after_the_reasoning_counts_when_that_is_asked_for() -> None:
    text = r"<think>\boxed{3}</think>\boxed{2}"
    assert graded(text, answer_after="last_think").correct
    assert graded(r"<think>\boxed{2}</think>done", answer_after="last_think").status == "no_answer"


def test_what_is_missing_is_told_when_the_grader_is_made(monkeypatch) -> None:
    monkeypatch.setattr(checkers, "missing_library", lambda _: "math_verify")
    with pytest.raises(
        ConfigError, match=r"task arithmetic: verify=either needs 'math_verify'.*pip install math-verify"
    ):
        Grader(load_task("arithmetic"), VerifyConfig())


def test_a_closed_grader_takes_nothing_more() -> None:
    grader = Grader(load_task("arithmetic"), VerifyConfig())
    grader.close()
    with pytest.raises(VerifierError, match="closed"):
        grader.submit(SUM, r"\boxed{2}")


# Choices: what models write


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        (r"so \boxed{B}", "B"),
        (r"so \boxed{(b)}", "B"),
        (r"so \boxed{B) y}", "B"),
        (r"so \boxed{\text{B}}", "B"),
        ("<answer>B</answer>", "B"),
        ("#### B", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("the answer is (B) because y is large", "B"),
        ("Therefore, the correct answer is: B", "B"),
        ("Answer: B", "B"),
        ("Answer: (B) y", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: B", "B"),
        ("The answer is **B**.", "B"),
        ("The answer is **(B) y**.", "B"),
        ("The answer is option B.", "B"),
        ("The answer is the option B", "B"),
        ("The answer is $B$.", "B"),
        (r"The answer is $\text{B}$.", "B"),
        (r"The answer is $\mathbf{(B)}$.", "B"),
        ("ANSWER: B", "B"),
        ("Answer:\nB", "B"),
        ("The answer is A. No: the answer is B.", "B"),  # the last word wins
        (r"The answer is A. So \boxed{B}", "B"),  # a box before any sentence
        (r"So \boxed{B}. The answer is A.", "B"),
    ],
)
def test_an_option_is_found_in_the_forms_models_use(choices, text, extracted) -> None:
    assert choices.submit(QUESTION, text).result(0) == Grade(True, "ok", extracted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",  # a letter that merely stands there
        "I would choose (B).",
        "The answer is Apple.",
        "The answer is b.",  # an article would look the same: "the answer is a ..."
        "The answer is a larger planet",
        "The answer is I think unclear",
        "The answer is I'm not sure",
        "The answers are B and C",
        "answerB",
        r"The answer is B. Wait: \boxed{",  # cut while it changed its mind
        "The answer is B. Wait: <answer>",
        "The answer is" + " " * 40 + "B",
    ],
)
def test_what_states_no_option_is_no_answer(choices, text) -> None:
    assert choices.submit(QUESTION, text).result(0) == Grade(False, "no_answer")


def test_a_wrong_letter_is_wrong_and_a_box_without_letter_is_kept_as_it_is(choices) -> None:
    assert choices.submit(QUESTION, "The answer is (A).").result(0) == Grade(False, "ok", "A")
    assert choices.submit(QUESTION, r"\boxed{12 km}").result(0) == Grade(False, "ok", "12 km")


def test_the_letters_i_and_j_of_ten_options_are_read() -> None:
    with Grader(load_task("mmlu_pro"), CHOICE) as grader:
        for letter in "IJ":
            question = replace(QUESTION, answer=letter)
            for text in (f"The answer is {letter}.", f"The answer is ({letter}).", rf"\boxed{{{letter}}}"):
                assert grader.submit(question, text).result(0) == Grade(True, "ok", letter)


def test_boxes_only_means_boxes_only() -> None:
    with Grader(TASK, replace(CHOICE, extract="boxed")) as grader:
        assert grader.submit(QUESTION, "The answer is (B).").result(0).status == "no_answer"


def test_a_sentence_inside_the_reasoning_does_not_count() -> None:
    with Grader(TASK, replace(CHOICE, answer_after="last_think")) as grader:
        assert grader.submit(QUESTION, "The answer is A.</think>The answer is B.").result(0).extracted == "B"
        assert grader.submit(QUESTION, "The answer is B.</think>Done.").result(0).status == "no_answer"
        assert grader.submit(QUESTION, "The answer is B.").result(0).status == "no_answer"


def test_sentences_are_searched_in_time_that_grows_with_the_text_only() -> None:
    for nasty in ("answer is " * 200_000, "answer" + " " * 2_000_000, "answer:" * 300_000, "*" * 2_000_000):
        started = time.monotonic()
        stated_option(nasty)
        assert time.monotonic() - started < 5


def test_letters_are_compared_by_the_choice_checker_only() -> None:
    with pytest.raises(ConfigError, match=r"task arc_c asks for an option's letter: verify=either cannot"):
        Grader(TASK, VerifyConfig())


# Programs, and many threads


def test_programs_are_run_and_nothing_else_is() -> None:
    with pytest.raises(ConfigError, match=r"task humaneval asks for programs, .*: verify=exact cannot.*verify=code"):
        Grader(load_task("humaneval"), VerifyConfig(checker="exact"))
    with pytest.raises(ConfigError, match=r"task gsm8k asks for no programs: verify=code has nothing to run"):
        Grader(load_task("gsm8k"), VerifyConfig(checker="code"))


def test_without_a_judges_word_there_is_no_grade() -> None:
    """Any other failure is a grade of status error, which counts as wrong; this one would be a lie."""
    failing: Future[Verdict] = Future()
    graded_later = grading._then(failing, lambda verdict: Grade(verdict.correct, "ok"))
    failing.set_exception(JudgeGone("no judge at unix:/nowhere"))
    with pytest.raises(RunFailed, match="no judge at"):
        graded_later.result(1)


def test_one_grader_serves_many_threads() -> None:
    right: list[bool] = []
    with Grader(TASK, CHOICE) as grader:

        def ask() -> None:
            futures = [grader.submit(QUESTION, text) for text in ("The answer is B.", r"\boxed{B}") * 50]
            right.extend(future.result(10).correct for future in futures)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert right == [True] * 800


def test_a_task_of_ones_own_is_graded_like_any(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: answer\nsource: {files: rows.jsonl}\n")
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    task: Task = load_task(str(tmp_path / "mine.yaml"))
    with Grader(task, VerifyConfig()) as grader:
        assert grader.submit(load_questions(task).items[0], r"\boxed{2}").result(10).correct
