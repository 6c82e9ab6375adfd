"""The procedural arithmetic source: right answers and traces, disjoint splits, distinct questions, clear refusals."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from reasonrl.data import arithmetic
from reasonrl.data.arithmetic import STYLES, Step, estimate, items, parse, solve, split_of, trace

EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def value(question: str) -> int:
    """Python's own reading of the question; the text is digits and operators only."""
    assert re.fullmatch(r"[\d+*-]+=\?", question)
    return eval(question.removesuffix("=?"))


@pytest.mark.parametrize("operations", ["+", "+-", "+-*"])
def test_answers_are_right(operations):
    for item in items("train", 500, seed=3, max_terms=5, operations=operations):
        assert item.answer == str(value(item.question))


@pytest.mark.parametrize("style", STYLES)
def test_every_equation_of_a_trace_holds_and_the_box_holds_the_answer(style):
    rng = np.random.default_rng(0)
    for item in items("train", 500, seed=0, operations="+-*"):
        text = trace(item, style, rng)
        equations = EQUATION.findall(text)
        assert len(equations) == len(item.steps) * (2 if style == "check" else 1)
        for left, operation, right, result in equations:
            assert APPLY[operation](int(left), int(right)) == int(result)
        assert text.endswith("\n\\boxed{" + item.answer + "}")


@pytest.mark.parametrize("style", STYLES)
def test_an_estimated_trace_is_true_to_the_nearest_ten(style):
    rng = np.random.default_rng(0)
    for item in items("train", 500, seed=0, operations="+*"):
        text = trace(item, style, rng, estimated=True)
        assert "=" not in text
        for left, operation, right, result in re.findall(r"(\d+)([+*])(\d+)~(\d+)", text):
            assert abs(APPLY[operation](int(left), int(right)) - int(result)) <= 5
            assert int(result) % 10 == 0


def test_an_estimate_rounds_half_upwards_and_never_below_zero():
    assert [str(step) for step in estimate([12, 33, 46], ["+", "-"])] == ["12+33~50", "50-46~0"]
    assert [str(step) for step in estimate([14, 12, 30], ["-", "-"])] == ["14-12~0", "0-30~0"]


def test_the_steps_are_the_short_trace_without_the_box():
    item = next(items("train", 1, seed=0))
    assert trace(item, "short", np.random.default_rng(0)).split("\n")[:-1] == list(item.steps)


def test_a_restated_line_says_what_is_left():
    item = arithmetic.Item("12+34-5=?", "41", ("12+34=46", "46-5=41"))
    lines = trace(item, "restate", np.random.default_rng(0)).split("\n")
    assert [line.split(" ", 1)[1] for line in lines[:2]] == ["12+34-5: 12+34=46", "46-5: 46-5=41"]


def test_products_come_first():
    assert solve(*parse("2+3*4-5=?")) == [Step(3, "*", 4, 12), Step(2, "+", 12, 14), Step(14, "-", 5, 9)]


def test_totals_never_fall_below_zero():
    assert solve([1, 2, 5], ["-", "+"]) is None
    for item in items("train", 300, seed=1, operations="-"):
        assert all(int(step.split("=")[1]) >= 0 for step in item.steps)


def test_train_validation_and_test_never_share_a_question():
    seen = {
        split: {item.question for seed in range(3) for item in items(split, size, seed, max_terms=3)}
        for split, size in (("train", 3000), ("validation", 700), ("test", 700))
    }
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other]
    assert all(split_of(question) == split for split, questions in seen.items() for question in questions)


def test_questions_ids_and_levels():
    made = list(items("train", 900, seed=0))
    assert len({item.question for item in made}) == len({item.id for item in made}) == 900
    assert Counter(item.level for item in made) == {1.0: 300, 2.0: 300, 3.0: 300}
    assert all(len(item.steps) == item.level for item in made)  # 2 terms are one step
    assert {item.source for item in made} == {"arithmetic"}


def test_same_arguments_same_items_and_a_smaller_size_is_a_prefix():
    first = list(items("train", 200, seed=7))
    assert first == list(items("train", 200, seed=7))
    assert first[:50] == list(items("train", 50, seed=7))
    assert first != list(items("train", 200, seed=8))


def test_every_distinct_question_is_reached():
    # one digit, two terms: 81 sums and 45 differences that are not negative = 126 questions over the three splits
    sizes = {split: len(_all(split)) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 126


def _all(split: str) -> list[arithmetic.Item]:
    for size in itertools.count(1):
        try:
            made = list(items(split, size, seed=0, max_terms=2, digits=1))
        except ValueError:
            return made
    raise AssertionError


def test_asking_for_too_many_says_how_many_there_are():
    available = len(_all("validation"))
    with pytest.raises(
        ValueError, match=rf"has {available} distinct validation questions .* 500 were asked for: lower"
    ):
        items("validation", 500, seed=0, max_terms=2, digits=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "Unknown split 'dev'. Choices: train, validation, test"),
        ({"min_terms": 1}, "2 <= min_terms <= max_terms"),
        ({"max_terms": 1}, "2 <= min_terms <= max_terms"),
        ({"digits": 0}, "digits must be >= 1"),
        ({"operations": "+/"}, "operations must be different characters"),
        ({"operations": "++"}, "operations must be different characters"),
        ({"size": -1}, "size must be >= 0"),
        ({"digits": 9}, "lower one of them"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        items(**({"split": "train", "size": 5, "seed": 0} | change))


def test_unknown_styles_and_foreign_questions_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"Unknown trace style 'long'\. Choices: short, restate, check"):
        trace(next(items("train", 1, 0)), "long", rng)
    with pytest.raises(ValueError, match="expected the form"):
        parse("What is 2+2?")
