"""IFEval: the checkers decide as their kinds say, strictly and loosely, and nothing that they do can stop a run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nltk
import pytest

from reasonrl.config import ConfigError
from reasonrl.eval.grading import PARTS, Grade, Grader
from reasonrl.eval.tasks import Question, instructions, load_task
from reasonrl.eval.tasks.instructions import INSTRUCTIONS, Asked, InstructionWorkers, loose_forms, obeyed
from reasonrl.verify.pool import VerifyConfig

CONFIG = VerifyConfig(checker="exact", timeout=1.0)
# A pattern that a checker searches for: exponential on a row of a's, so it never comes back.
HANGS = ("keywords:existence", {"keywords": ["(a+)+$"]}, "a" * 60 + "b")


@pytest.fixture(scope="module", autouse=True)
def punkt(tmp_path_factory) -> Iterator[Path]:
    """Punkt's tables, empty: enough to cut at full stops. Worker processes find them through the environment."""
    folder = tmp_path_factory.mktemp("nltk")
    tables = folder / "tokenizers" / "punkt_tab" / "english"
    tables.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (tables / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder))
        patch.setattr(nltk.data, "path", [str(folder)])
        yield folder


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(load_task("ifeval"), CONFIG) as shared:
        yield shared


def question(*asked: tuple[str, dict[str, Any]], prompt: str = "Write.") -> Question:
    extra = {"prompt": prompt, "instruction_id_list": [name for name, _ in asked], "kwargs": [kw for _, kw in asked]}
    return Question("ifeval/1", prompt, "", extra=extra)


def holds(name: str, values: dict[str, Any], text: str) -> tuple[bool, bool]:
    """(strict, loose) of one instruction."""
    found = obeyed(Asked("Write.", [name], [values], text))
    return found.strict[0], found.loose[0]


PARAGRAPHS = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}
# instruction, its values, a text that obeys, one that does not
KINDS = [
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "IT IS so.", "IT is so."),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCE ABOUT THE WEATHER.", "This is an English sentence."),
    ("change_case:english_lowercase", {}, "this is an english sentence about the weather.", "This is an English sentence."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it.\nI say it.", "I say it."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\ntwo"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name] of town"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "yes\nP.S. no", "yes"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, 2]}\n```', '{"a": 1'),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\nPart 2", "Part 1"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a b* and *c*", "*a b* and c"),
    ("detectable_format:title", {}, "<<Ode>>\nText", "Ode\nText"),
    ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sun and moon", "Sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "sunny moon", "the sun"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "at least"}, "sun sun", "sun"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"}, "quiz", "Q q"),
    ("language:response_language", {"language": "de"}, "Das Wetter ist heute schön.", "This is not German."),
    ("length_constraints:nth_paragraph_first_word", PARAGRAPHS, "first\n\nthen it", "first\n\nit then"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Only one.", "One here. Two here."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
    ("startend:end_checker", {"end_phrase": "The end."}, "So: the END.", "The end. Or not."),
    ("startend:quotation", {}, '"quoted"', '"quoted" not'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "right", "wrong"), KINDS, ids=[kind[0] for kind in KINDS])
def test_each_kind_knows_a_text_that_obeys_from_one_that_does_not(name, values, right, wrong) -> None:
    assert set(values) == set(INSTRUCTIONS[name])
    assert holds(name, values, right) == (True, True)
    assert not holds(name, values, wrong)[0]


def test_our_table_of_instructions_is_the_librarys() -> None:
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(INSTRUCTIONS) == set(INSTRUCTION_DICT) == {name for name, *_ in KINDS}
    for name, needed in INSTRUCTIONS.items():
        assert set(INSTRUCTION_DICT[name](name).get_instruction_args_keys()) == set(needed), name


def test_loose_forgives_a_first_line_a_last_line_and_asterisks() -> None:
    quoted = ("startend:quotation", {})
    assert holds(*quoted, 'Sure!\n"quoted"') == (False, True)
    assert holds(*quoted, '"quoted"\nI hope this helps.') == (False, True)
    assert holds(*quoted, 'Sure!\n"quoted"\nI hope this helps.') == (False, True)
    assert holds(*quoted, '*"quoted"*') == (False, True)
    assert holds(*quoted, 'Sure!\n*"quoted"*\nBye') == (False, True)
    assert holds(*quoted, 'Sure!\nHere:\n"quoted"') == (False, False)


def test_the_loose_forms_are_the_papers_eight_and_none_twice() -> None:
    assert loose_forms("*a*\nb\n*c*") == [
        *("*a*\nb\n*c*", "b\n*c*", "*a*\nb", "b"),
        *("a\nb\nc", "b\nc", "a\nb"),  # the eighth, b, is there already
    ]
    assert loose_forms("a") == ["a", ""]


def test_a_letter_that_is_none_is_replaced_at_random_and_always_by_the_same_one() -> None:
    """The original draws a letter where `#` is asked for: unseeded, one text would get two verdicts."""
    values = {"letter": "#", "let_frequency": 1, "let_relation": "at least"}
    asked = Asked("four hashtags", ["keywords:letter_frequency"], [values], "abcdefghijklm")
    assert len({obeyed(asked) for _ in range(20)}) == 1


def test_a_grade_holds_the_four_numbers_and_right_means_all_obeyed_strictly(grader) -> None:
    asked = question(("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}))
    grade = grader.submit(asked, 'Sure:\n"<<Ode>> to one"').result(60)
    assert grade == Grade(False, "ok", parts=dict(zip(PARTS, [0.0, 1.0, 2 / 3, 1.0], strict=True)))
    assert PARTS == ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    right = grader.submit(asked, '"<<Ode>> to one"').result(60)
    assert right == Grade(True, "ok", parts=dict.fromkeys(PARTS, 1.0))


def test_an_empty_text_obeys_nothing(grader) -> None:
    for text in ("", " \n "):
        grade = grader.submit(question(("punctuation:no_comma", {})), text).result(1)
        assert grade == Grade(False, "no_answer", parts=dict.fromkeys(PARTS, 0.0))


def test_reasoning_is_not_checked_when_it_is_cut_off() -> None:
    with Grader(load_task("ifeval"), VerifyConfig(checker="exact", answer_after="last_think")) as cutting:
        asked = question(("punctuation:no_comma", {}))
        assert cutting.submit(asked, "one, two").result(1).status == "no_answer"  # no reasoning that ends
        assert cutting.submit(asked, "one, two</think>").result(1).status == "no_answer"


def test_a_text_that_hangs_a_checker_is_a_timeout_and_the_next_one_is_served(grader) -> None:
    good = question(("punctuation:no_comma", {}))
    grader.submit(good, "so").result(60)  # it runs
    started = time.monotonic()
    hanging, following = grader.submit(question(HANGS[:2]), HANGS[2]), grader.submit(good, "so")
    grade = hanging.result(60)
    assert 0.9 < time.monotonic() - started < 4
    assert grade == Grade(False, "timeout", message="no verdict in 1 s", parts=dict.fromkeys(PARTS, 0.0))
    assert following.result(60).correct


def test_a_checker_that_fails_is_an_error_and_its_process_goes_on(grader) -> None:
    grade = grader.submit(question(("keywords:existence", {"keywords": ["("]})), "so").result(60)
    assert (grade.correct, grade.status) == (False, "error")
    assert "unterminated subpattern" in grade.message
    assert grader.submit(question(("punctuation:no_comma", {})), "so").result(60).correct


def test_a_process_that_is_killed_costs_one_error(grader) -> None:
    """The next text gets a new process, as after a deadline."""
    workers = grader._instructions
    assert workers is not None
    grader.submit(question(("punctuation:no_comma", {})), "so").result(60)  # it runs
    waiting = grader.submit(question(HANGS[:2]), HANGS[2])
    time.sleep(0.2)
    for process in list(workers._processes):
        os.kill(process.pid, signal.SIGKILL)
    grade = waiting.result(60)
    assert (grade.status, grade.message) == ("error", "RuntimeError: the checker's process died (EOFError)")


def test_closing_frees_whoever_waits() -> None:
    workers = InstructionWorkers(timeout=30.0)
    waiting = [workers.submit(Asked("Write.", [HANGS[0]], [HANGS[1]], HANGS[2])) for _ in range(3)]
    while not workers._processes:
        time.sleep(0.01)
    started = time.monotonic()
    workers.close()
    assert time.monotonic() - started < 10
    for future in waiting:
        with pytest.raises(RuntimeError, match="closed"):
            future.result(5)
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(Asked("Write.", [], [], ""))


def test_what_is_missing_is_told_before_anything_is_graded(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(nltk.data, "path", ["/nowhere"])
        with pytest.raises(ConfigError, match=r"python -m nltk.downloader punkt_tab.*NLTK_DATA=.*Looked in /nowhere"):
            Grader(load_task("ifeval"), CONFIG)
    monkeypatch.setattr(instructions, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "reasonrl\[ifeval\]"'):
        Grader(load_task("ifeval"), CONFIG)
