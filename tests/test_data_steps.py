"""Solutions cut into steps: nothing lost, formulas whole, the answer last."""

from hypothesis import given
from hypothesis import strategies as st

from reasonrl.data.items import step_text
from reasonrl.data.steps import answer_last, solution_lines, solution_sentences


def test_gsm8k_lines_lose_their_calculator_notes() -> None:
    solution = "He sold 48/2 = <<48/2=24>>24 clips.\n\nIn all 48+24 = $<<48+24=72>>72.\n"
    assert solution_lines(solution) == ("He sold 48/2 = 24 clips.", "In all 48+24 = $72.")
    assert solution_lines("") == ()


def test_sentences_end_at_full_stops_outside_formulas() -> None:
    solution = "First, $x = 1. 5$ holds. Then $y=2.$ So \\[z = 3. A\\] is found.\n\nby hand. Thus $\\boxed{6}$."
    assert solution_sentences(solution) == (
        "First, $x = 1. 5$ holds. ",
        "Then $y=2.$ ",
        "So \\[z = 3. A\\] is found.\n\n",
        "by hand. ",
        "Thus $\\boxed{6}$.",
    )


def test_drawings_and_environments_stay_whole() -> None:
    drawing = "[asy]\ndraw((0,0)--(1,1)); // A. B\n\nlabel(A);\n[/asy]"
    aligned = "\\begin{align*}\na &= b. \\\\\n\nC &= d.\n\\end{align*}"
    assert solution_sentences(f"See. {drawing} Now {aligned} done.") == ("See. ", f"{drawing} Now {aligned} done.")


@given(st.text(alphabet="aA .$\n\\[]!?{}()", max_size=80))
def test_joined_sentences_are_the_solution(solution: str) -> None:
    pieces = solution_sentences(solution)
    assert "".join(pieces) == solution or (not solution.strip() and pieces == ())


def test_steps_from_the_first_stated_answer_on_become_one() -> None:
    assert answer_last(("a ", "b ", "c")) == ("a ", "b ", "c")
    assert answer_last(("a ", "so \\boxed{1}. ", "That is all.")) == ("a ", "so \\boxed{1}. That is all.")
    assert answer_last(("a", "<answer>1</answer>", "b", "c")) == ("a", "<answer>1</answer>\nb\nc")
    assert answer_last(("\\boxed{1} ",)) == ("\\boxed{1} ",)
    assert answer_last(()) == ()


@given(st.lists(st.sampled_from(["a ", "b", "\\boxed{1} ", "#### 1", "c\n"]), max_size=6))
def test_no_step_but_the_last_states_the_answer_and_the_text_stays(steps: list[str]) -> None:
    merged = answer_last(tuple(steps))
    assert not any("boxed" in step or "####" in step for step in merged[:-1])
    assert "".join(map(step_text, merged)) == "".join(map(step_text, steps))


def test_a_step_without_white_space_gets_a_line_of_its_own() -> None:
    assert [step_text(step) for step in ("a", "a ", "a\n")] == ["a\n", "a ", "a\n"]
