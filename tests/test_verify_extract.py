"""The text rules of `reasonrl.verify.extract`, one claim a test."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.verify.extract import cut_reasoning, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{5} wait, no: \boxed{6}", "6"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {8}", "8"),
        (r"\boxed 9$", "9"),
        (r"\fbox{3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace is no brace
        (r"\boxed{a \\{b}}", r"a \\{b}"),  # a line break and then a real brace
        ("\\boxed{1\n2}", "1\n2"),
    ],
)
def test_the_last_box_with_balanced_braces_is_the_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>5</answer> or rather <answer> 6 </answer>", "6"),
        (r"<answer>so \boxed{5}.</answer>", "5"),
        (r"<answer>first \boxed{4}, then \boxed{5}</answer>", "5"),
        (r"<answer>5</answer> but \boxed{6}", "6"),
        (r"\boxed{6} and <answer>5</answer>", "5"),
        (r"<answer>\boxed{5}", "5"),  # only the closing tag is missing
        ("<answer>two\nlines</answer>", "two\nlines"),
    ],
)
def test_tag_and_box_the_later_one_wins_and_a_box_inside_the_tag(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "the answer is 9",
        r"\boxed{}",
        r"\boxed{ . }",
        r"\boxed{5",
        r"\boxed{5} no wait, \boxed{6",  # cut while it changed its mind
        r"\boxed{5} no wait, \boxed",
        r"<answer>5</answer> no, <answer>6",
        r"\boxed{5} no, <answer>6",
        r"<answer>\boxed{5</answer>",
        "<answer></answer>",
        "<answer>5",
        "</answer>5<answer>",
        "####",
    ],
)
def test_no_closed_statement_is_no_answer(text: str) -> None:
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 - 2 = 3\n#### 3", "3"),
        ("#### 3\n#### 1,234  \n", "1,234"),
        ("text #### 3", None),  # not at the start of a line
        (r"#### 3" + "\n" + r"\boxed{4}", "4"),  # a box or tag comes before hashes
    ],
)
def test_hashes_count_when_nothing_else_is_there(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("inside", "answer"),
    [
        ("9.", "9"),
        (" 9 ", "9"),
        ("$9$", "9"),
        ("$9$.", "9"),
        ("$9.$", "9"),
        ("$$9$$", "9"),
        (r"\(9\)", "9"),
        (r"\[9\]", "9"),
        (r"\$9", r"\$9"),
        ("1, 2, ...", "1, 2, ..."),
        ("$1$ or $2$", "$1$ or $2$"),
        ("0.5", "0.5"),
    ],
)
def test_answers_are_trimmed(inside: str, answer: str) -> None:
    assert extract_answer(f"<answer>{inside}</answer>") == answer


def test_modes_look_at_one_form_only() -> None:
    text = "#### 1\n" + r"\boxed{2} <answer>3</answer>"
    assert [extract_answer(text, mode) for mode in ("auto", "boxed", "answer_tag", "hashes")] == ["3", "2", "3", "1"]
    assert extract_answer(r"\boxed{2}", "answer_tag") is None
    assert extract_answer("<answer>2</answer>", "boxed") is None
    assert extract_answer("#### 2", "boxed") is None


def test_reasoning_is_cut_at_the_first_or_last_marker() -> None:
    text = "a</think>b</think>c"
    assert cut_reasoning(text, "none") == text
    assert cut_reasoning(text, "first_think") == "b</think>c"
    assert cut_reasoning(text, "last_think") == "c"
    assert cut_reasoning("no marker", "first_think") is None
    assert cut_reasoning("no marker", "last_think") is None
    assert cut_reasoning("all of it</think>", "last_think") == ""


def test_ten_thousand_characters_are_read_to_the_end() -> None:
    deep = r"\frac{" * 2_000 + "1" + "}{2}" * 2_000
    assert extract_answer(rf"\boxed{{{deep}}}") == deep
    assert extract_answer(r"\boxed{" * 50_000) is None
    assert extract_answer("<answer>" * 50_000) is None


@pytest.mark.parametrize(
    "text",
    [
        "<answer>a" + " " * 200_000 + "b</answer>",
        "#### " + " " * 200_000 + "b",
        " " * 200_000 + "#### 1",
        r"\boxed{" + "{" * 200_000,
        r"\boxed" * 40_000,
        "<answer>" + "$" * 200_000 + "</answer>",
        "<answer>" + "." * 200_000 + "</answer>",
    ],
)
def test_time_is_linear_in_hostile_text(text: str) -> None:
    started = time.monotonic()
    extract_answer(text)
    assert time.monotonic() - started < 1.0


@given(st.text(alphabet="a1 {}\\$.<>/answerboxd", max_size=60))
def test_any_text_gives_a_trimmed_answer_or_none(text: str) -> None:
    answer = extract_answer(text + r"\boxed{" + text)
    assert answer is None or (answer and answer == answer.strip())


@given(st.text(alphabet="ab12{}", max_size=30).filter(lambda s: s.count("{") == s.count("}")))
def test_a_box_gives_back_any_balanced_content(content: str) -> None:
    depth = 0
    for character in content:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return  # closes before it opens: not balanced
    assert extract_answer(rf"thus \boxed{{{content}}} holds") == (content or None)
