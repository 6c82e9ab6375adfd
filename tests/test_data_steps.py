"""Solutions cut into steps: nothing lost, formulas whole, numbers counted up, the answer last."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.data.items import step_text
from reasonrl.data.steps import SPLITTERS, answer_last, solution_steps

KEEP_WHITE_SPACE = ("auto", "numbered", "paragraphs", "sentences")

# -- numbered --------------------------------------------------------------------------------------------------------

FORMS = {  # the start of step {n}
    "dot": "{n}. ",
    "bracket": "{n}) ",
    "indented": "  {n}. ",
    "bold number": "**{n}.** ",
    "bold title": "**{n}. Title** ",
    "heading number": "### {n}. ",
    "colon": "Step {n}: ",
    "lower case": "step {n}: ",
    "full stop": "Step {n}. ",
    "dash": "Step {n} \u2014 ",
    "bold": "**Step {n}** ",
    "bold colon": "**Step {n}:** ",
    "heading": "### Step {n}\n",
    "heading colon": "## Step {n}: ",
    "four hashes": "#### Step {n}: ",
    "LaTeX": "\\textbf{{Step {n}:}} ",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_a_number_starts_a_step(form: str) -> None:
    steps = [form.format(n=n) + f"so $x = {n}$.\nMore of it.\n" for n in range(1, 13)]
    assert solution_steps("".join(steps), "numbered") == tuple(steps)
    assert solution_steps("We start.\n\n" + "".join(steps), "auto") == ("We start.\n\n" + steps[0], *steps[1:])


@pytest.mark.parametrize(
    "line",
    [
        "2.5 apples are left.",  # a decimal
        "2.",  # wrapped: the number ends a sentence of the line above
        "2024. Then it rained.",  # a year
        "2 apples are left.",
        "12. Therefore we go on.",  # wrapped, and 2 is still to come
        "   2. deeper",
        "In 2) we saw it.",
        "**2** apples",
        "$$\n2. x\n$$",
        "\\[\n2. x\n\\]",
        "so $a +\n2. b$ holds",
        "\\begin{enumerate}\n\\begin{enumerate}\n\\end{enumerate}\n2. x\n\\end{enumerate}",
        "[asy]\n2. x\n[/asy]",
        "```\n2. x\n```",
        "1. again",
    ],
)
def test_a_line_that_only_looks_like_a_number_starts_no_step(line: str) -> None:
    solution = f"1. First.\n{line}\n2. Second, {{}}.\n3. Third.\n"
    assert solution_steps(solution, "numbered") == (
        f"1. First.\n{line}\n",
        "2. Second, {}.\n",
        "3. Third.\n",
    )


@pytest.mark.parametrize(
    "line",
    [
        "Step 2 shows that.",
        "Step 2.5: half a step",
        "### Step 2.1: a part",
        "**Step 2a**",
        "In Step 2: x",
        "Stepping 2: x",
    ],
)
def test_a_line_that_only_mentions_a_step_starts_none(line: str) -> None:
    solution = f"Step 1: First.\n{line}\nStep 2: Second.\n"
    assert solution_steps(solution, "numbered") == (f"Step 1: First.\n{line}\n", "Step 2: Second.\n")


def test_money_is_no_formula_that_hides_a_number() -> None:
    steps = ("1. He pays $5.\n", "2. She pays 2*3=$<<2*3=6>>6.\n", "3. In all 5+6=$11.\n", "4. So \\$11, or $x$.")
    assert solution_steps("".join(steps), "numbered") == steps


def test_of_two_numberings_the_outer_one_counts() -> None:
    inner = "1. a\n2. b\n3. c\n"
    headed = (f"### Step 1: add\n{inner}", f"### Step 2: check\n{inner}")
    assert solution_steps("".join(headed), "numbered") == headed
    titled = (f"**1. Add**\n{inner}", f"**2. Check**\n{inner}")
    assert solution_steps("".join(titled), "numbered") == titled
    nested = ("1. add\n   1. a\n   2. b\n   3. c\n", "2. check\n")
    assert solution_steps("".join(nested), "numbered") == nested
    listed = (f"We know:\n{inner}Step 1: add\n", "Step 2: check\n")
    assert solution_steps("".join(listed), "numbered") == listed


def test_a_number_may_be_missing_but_none_may_fall() -> None:
    assert solution_steps("Step 0: a\nStep 2: b\nStep 1: c\nStep 4: d", "numbered") == (
        "Step 0: a\nStep 2: b\n",
        "Step 1: c\n",
        "Step 4: d",
    )
    assert solution_steps("5. a\n6. b", "numbered") == ("5. a\n6. b",)  # an excerpt of something else


def test_numbered_without_numbers_is_one_step() -> None:
    assert solution_steps("a\n\nb", "numbered") == ("a\n\nb",)


# -- paragraphs, lines, sentences ------------------------------------------------------------------------------------


def test_paragraphs_end_at_empty_lines_outside_formulas() -> None:
    steps = ("\n\nOne\nline. Two.\n \n\n", "It costs $5 today.\n\n", "Then $6.\n\n", "Now \\[a\n\n= b\\] ends.\n\n")
    assert solution_steps("".join(steps), "paragraphs") == steps
    assert solution_steps("x $a\n\nb$ y", "paragraphs") == ("x $a\n\n", "b$ y")  # TeX knows no such formula


def test_gsm8k_lines_lose_their_calculator_notes() -> None:
    solution = "He sold 48/2 = <<48/2=24>>24 clips.\n\n  In all 24*2=$<<24*2=48>>48\nor 48-1=$<<48-1=47>>47.\n"
    assert solution_steps(solution, "lines") == ("He sold 48/2 = 24 clips.", "In all 24*2=$48", "or 48-1=$47.")


def test_lines_keep_displayed_formulas_whole() -> None:
    assert solution_steps("So\n\\begin{align}\na\n=b\n\\end{align}\nby $x +\ny$ here", "lines") == (
        "So",
        "\\begin{align}\na\n=b\n\\end{align}",
        "by $x +\ny$ here",
    )


def test_sentences_end_at_full_stops_outside_formulas() -> None:
    solution = "First, $x = 1. 5$ holds. Then $y=2.$ So \\[z = 3. A\\] is found.\n\nby hand. Thus $\\boxed{6}$."
    assert solution_steps(solution, "sentences") == (
        "First, $x = 1. 5$ holds. ",
        "Then $y=2.$ ",
        "So \\[z = 3. A\\] is found.\n\n",
        "by hand. ",
        "Thus $\\boxed{6}$.",
    )


def test_drawings_and_environments_stay_whole() -> None:
    drawing = "[asy]\ndraw((0,0)--(1,1)); // A. B\n\nlabel(A);\n[/asy]"
    aligned = "\\begin{align*}\na &= b. \\\\\n\nC &= d.\n\\end{align*}"
    solution = f"See. {drawing} Now {aligned} done."
    assert solution_steps(solution, "sentences") == ("See. ", f"{drawing} Now {aligned} done.")
    for how in ("paragraphs", "lines"):
        assert solution_steps(solution, how) == (solution,)


# -- auto, none, bad names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "like"),
    [
        ("1. A. B\n\n2. C\n", "numbered"),
        ("1. A. B\n\nC\nD\n", "paragraphs"),  # one number is no numbering
        ("A. B\nC\n", "lines"),
        ("A. B is $c$.", "sentences"),
    ],
)
def test_auto_takes_the_first_cut_that_gives_two_steps(solution: str, like: str) -> None:
    steps = solution_steps(solution, "auto")
    assert steps == solution_steps(solution, like)
    assert len(steps) == 2


@pytest.mark.parametrize("how", SPLITTERS)
def test_nothing_has_no_steps(how: str) -> None:
    assert solution_steps("", how) == solution_steps(" \n\n ", how) == ()
    assert (solution_steps("a", how) == ()) == (how == "none")


def test_another_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'number'\. Did you mean 'numbered'.*auto, lines, none, numbered"):
        solution_steps("a", "number")


# -- laws ------------------------------------------------------------------------------------------------------------

PROSE = ("a", "B", " ", ".", "\n", "\n\n", "\r\n", "\u2028", "1. ", "3. ", "2) ", "Step 1: ", "**Step 2** ", "#### 2")
MARKUP = ("$", "$$", "\\", "\\[", "\\]", "[asy]", "[/asy]", "\\begin{a}", "\\end{a}", "```", "<<1>>")
HARD = st.lists(st.sampled_from(PROSE + MARKUP), max_size=30).map("".join)


@given(HARD, st.sampled_from(KEEP_WHITE_SPACE))
def test_joined_steps_are_the_solution(solution: str, how: str) -> None:
    steps = solution_steps(solution, how)
    by_lines = how == "auto" and steps == solution_steps(solution, "lines")
    assert "".join(steps) == solution or by_lines or (not solution.strip() and steps == ())
    assert all(step.strip() for step in steps)


@given(HARD)
def test_lines_lose_white_space_and_notes_only(solution: str) -> None:
    left = "".join("".join(solution_steps(solution, "lines")).split())
    assert left == "".join(solution.replace("<<1>>", "").split())


FORMULAS = ("$a\n1. b$", "$$a\n\n2. b$$", "\\[a.\n\nC\\]", "\\(a\n\nStep 3: b\\)", "\\begin{x}\n1. a\n\n\\end{x}")


@given(
    st.lists(st.sampled_from([*FORMULAS, "Text.", "1. A", "2. B", "Step 1: C", "pays $5", "\\$6"]), max_size=8),
    st.lists(st.sampled_from([" ", "\n", "\n\n"]), min_size=8, max_size=8),
    st.sampled_from(["auto", "numbered", "paragraphs", "lines"]),
)
def test_no_formula_is_ever_cut(parts: list[str], gaps: list[str], how: str) -> None:
    solution = "".join(itertools.chain(*zip(parts, gaps, strict=False)))
    steps = solution_steps(solution, how)
    for formula in FORMULAS:
        assert sum(step.count(formula) for step in steps) == parts.count(formula)


@pytest.mark.parametrize(
    "part",
    ["\\begin{a}", "\\[", "$", "$ ", "$a ", "1. ", "1. a\n", "Step 1", "#### ", "#### a\n", "<<", "\n \t", "<answer>"],
)
def test_the_time_is_linear_in_the_text(part: str) -> None:
    solution = part * 20_000
    started = time.monotonic()
    for how in ("numbered", "paragraphs", "lines"):
        answer_last(solution_steps(solution, how))
    assert time.monotonic() - started < 5  # measured: 0.2 s at most; a minute when each part looks at all others


# -- the answer ------------------------------------------------------------------------------------------------------


def test_steps_from_the_first_stated_answer_on_become_one() -> None:
    assert answer_last(("a ", "b ", "c")) == ("a ", "b ", "c")
    assert answer_last(("a ", "so \\boxed{1}. ", "That is all.")) == ("a ", "so \\boxed{1}. That is all.")
    assert answer_last(("a", "<answer>1</answer>", "b", "c")) == ("a", "<answer>1</answer>\nb\nc")
    assert answer_last(("a", "#### 1", "b")) == ("a", "#### 1\nb")
    assert answer_last(("\\boxed{1} ",)) == ("\\boxed{1} ",)
    for stated in ("####1", "  #### 1", "\\boxed4", "\\fbox 4"):  # the verifier reads these as well
        assert answer_last(("a", stated, "b")) == ("a", f"{stated}\nb")
    assert answer_last(("a ", "\\boxedwidth is no box ", "b")) == ("a ", "\\boxedwidth is no box ", "b")
    assert answer_last(()) == ()


@pytest.mark.parametrize("heading", ["#### Step 1: add", "#### 1. Add", "#### **Adding**", "#### Adding", "##### 1"])
def test_a_heading_of_four_hashes_is_no_answer(heading: str) -> None:
    assert answer_last((f"{heading}\n1+1\n", "b", "#### 2")) == (f"{heading}\n1+1\n", "b", "#### 2")


@given(st.lists(st.sampled_from(["a ", "b", "\\boxed{1} ", "#### 1", "c\n"]), max_size=6))
def test_no_step_but_the_last_states_the_answer_and_the_text_stays(steps: list[str]) -> None:
    merged = answer_last(tuple(steps))
    assert not any("boxed" in step or "####" in step for step in merged[:-1])
    assert "".join(map(step_text, merged)) == "".join(map(step_text, steps))


def test_a_step_without_white_space_gets_a_line_of_its_own() -> None:
    assert [step_text(step) for step in ("a", "a ", "a\n")] == ["a\n", "a ", "a\n"]
