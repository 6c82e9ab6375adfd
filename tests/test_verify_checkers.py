"""What the five checkers accept: a golden set of pairs, the measured holes closed, and golds perturbed by rule.

These run the libraries in this process: none of the answers here hangs. Hostile ones are in test_verify_pool.py.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.verify import checkers
from reasonrl.verify.checkers import CHECKERS, choice, either, exact, math_verify, mathruler, quick
from reasonrl.verify.guards import contradicts, mathruler_normalizes, mathruler_reads, words
from reasonrl.verify.tidy import tidy

GOLDS = [
    *("5", "-3", "1234", "0", "1.5", "(1,2)", "[0,1)", "2,3", "x^2+1", "3R^2", "6+9i", "p - q", r"(-\infty, 4]"),
    *(r"\frac{1}{2}", r"-\frac{3}{4}", r"\frac{14}{3}", r"\sqrt{2}", r"2\sqrt{3}", r"11\sqrt2", r"\frac{\pi}{2}"),
    *(r"\text{Evelyn}", r"\text{even}", r"\text{(B)}", r"90^\circ", r"\$18.90", r"10\%"),
    *(r"\left( 3, \frac{\pi}{2} \right)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]


@pytest.mark.parametrize("name", ["mathruler", "math_verify", "either"])
@pytest.mark.parametrize("gold", GOLDS)
def test_every_gold_meets_itself(name: str, gold: str) -> None:
    assert CHECKERS[name](gold, gold)


@pytest.mark.parametrize("gold", GOLDS)
def test_either_accepts_harmless_rewriting(gold: str) -> None:
    rewritten = gold.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "")
    assert either(rewritten, gold)
    assert either(f" {rewritten} ", gold)


@pytest.mark.parametrize("gold", GOLDS)
def test_no_gold_meets_another_one(gold: str) -> None:
    others = [other for other in GOLDS if other != gold]
    assert [other for other in others if either(other, gold)] == []


@pytest.mark.parametrize(
    ("extracted", "gold", "by_mathruler", "by_math_verify"),
    [
        (r"\frac{2}{4}", r"\frac{1}{2}", False, True),  # not reduced
        (r"\frac{10}{2}", "5", False, True),
        (r"\{2,1\}", r"\{1,2\}", False, True),
        ("0.5", r"\frac{1}{2}", True, True),
        ("1,234", "1234", True, True),
        ("1{,}234", "1234", True, True),
        ("x = 5", "5", True, True),
        (r"5 \text{ cm}", "5", True, True),
        (r"5 \text{ cm}^2", "5", True, True),
        (r"50\%", "50", True, False),
        ("6", "5", False, False),
        ("-5", "5", False, False),
        (r"\frac{2}{1}", r"\frac{1}{2}", False, False),
        ("(2,1)", "(1,2)", False, False),
        ("(3,4]", "(3,4)", False, False),
        ("", "5", False, False),
        ("None", "5", False, False),
        ("5?", "5", False, False),
        ("the answer is 5", "5", False, False),
    ],
)
def test_the_two_libraries_on_known_pairs(extracted: str, gold: str, by_mathruler: bool, by_math_verify: bool) -> None:
    assert mathruler(extracted, gold) is by_mathruler
    assert math_verify(extracted, gold) is by_math_verify
    assert either(extracted, gold) is (by_mathruler or by_math_verify)


@pytest.mark.parametrize(
    "several",
    [
        r"5 \text{ or } 6",
        r"5 \text{ or 6}",
        r"5 \text{ and } 6",
        r"5 \text{ , } 6",
        r"5\text{, 6}",
        r"5\text{ or }6",
        r"5 \text{ cm or 6 cm}",
        r"5 \text{ but maybe } 6",
        r"5 \mbox{ or } 6",
        r"5 \text{ cm} 6",
        "5 or 6",
        "5, 6",
        "5; 6",
        r"5 \quad 6",
    ],
)
def test_a_box_that_names_several_candidates_is_wrong(several: str) -> None:
    for name in ("mathruler", "math_verify", "either"):
        assert not CHECKERS[name](several, "5"), name


def test_the_hole_that_is_closed_is_really_there() -> None:
    from mathruler.grader import grade_answer

    assert grade_answer(r"5 \text{ or } 6", "5")  # when this fails, the guard in `mathruler` can go


# answer, gold: what MathRuler says yes to although it is wrong
MATHRULER_HOLES = [
    ("3^{x}+1", "3^{x+1}"),
    ("e^2x", "e^{2x}"),
    (r"x+\frac{1}{2}", r"\frac{x+1}{2}"),
    (r"\frac{1}{2}x", r"\frac{1}{2x}"),
    (r"\frac{3}{4}5", r"\frac{3}{45}"),
    ("a_{n}+1", "a_{n+1}"),
    (r"2\sqrt[3]{3}", r"2\sqrt{3}"),
    ("0.3", r"0.\overline{3}"),
    ("x", r"\cot x"),
    ("62", r"\binom{6}{2}"),
    ("x3", r"x \ne 3"),
    (r"-2\frac{3}{4}", r"-\frac{5}{4}"),
    ("3 48", "348"),
    ("2 3/4", r"\frac{23}{4}"),
    ("y=5", "x=5"),
    (r"\text{feet}", r"\text{inches}"),
    (r"\text{Mon}", r"\text{Monday}"),
    (r"5 \text{ million}", "5"),
    (r"5 \text{ million}", r"5 \text{ dollars}"),
    ("5", r"5 \text{ million}"),
    (r"5 \text{ tenths}", "5"),
    (r"24 \text{ cm or 25 cm}", r"24 \text{ cm}"),
    (r"9^\frac{1}{2}", r"\frac{9}{2}"),
    (r"\ne 5", "5"),
    (r"4:30 \text{ a.m.}", r"4:30 \text{ p.m.}"),
]
MATH_VERIFY_HOLES = [
    ("101_3", "101_2"),
    (r"\neq 5", "5"),
    (r"\le 5", "5"),
    (r"x=6\land x=5", "5"),
    (r"5\text{, 6}", "5"),
    (r"5\text{ million}", "5"),
    ("5", r"5\text{ million}"),
    (r"4:30 \text{ a.m.}", r"4:30 \text{ p.m.}"),
]


@pytest.mark.parametrize(("extracted", "gold"), MATHRULER_HOLES)
def test_a_hole_of_mathruler_is_there_and_closed(extracted: str, gold: str) -> None:
    from mathruler.grader import grade_answer

    assert grade_answer(extracted, gold)  # when this fails, its guard can go
    assert not mathruler(extracted, gold)
    assert not either(extracted, gold)


@pytest.mark.parametrize(("extracted", "gold"), MATH_VERIFY_HOLES)
def test_a_hole_of_math_verify_is_there_and_closed(extracted: str, gold: str) -> None:
    from math_verify import parse, verify

    parsed = [parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, extracted)]
    assert verify(*parsed, timeout_seconds=None)  # when this fails, its guard can go
    assert not math_verify(extracted, gold)
    assert not either(extracted, gold)


@pytest.mark.parametrize(
    ("extracted", "gold"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"2 \sqrt{3}", r"2\sqrt{3}"),
        (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}{2}"),
        (r"\frac{\pi}{6}", r"\tfrac{\pi}{6}"),
        ("1{,}234", "1234"),
        (r"x^{2}", "x^2"),
        (r"90^{\circ}", "90"),
        (r"5 \text{ cm}^2", "5"),
        (r"\text{(B)}", "B"),
        (r"\text{Ada}", "ada"),
        ("12 000", "12000"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"( 2^{n-1} )", r"\left(2^{n-1}\right)"),  # not read, but spelled alike
    ],
)
def test_the_guards_leave_mathruler_what_it_is_good_at(extracted: str, gold: str) -> None:
    assert mathruler(extracted, gold)


@pytest.mark.parametrize(
    ("answer", "tidied"),
    [
        ("24°", r"24^\circ "),
        (r"12\,000", "12 000"),
        ("2√3", r"2\sqrt{3}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        (r"\dfrac{1}2", r"\dfrac{1}{2}"),
        (r"\frac\pie", r"\frac\pie"),  # one command, unknown
        ("1.25 million", r"1.25 \times 10^{6}"),
        (r"6\text{ thousand}", r"6 \times 10^{3}"),
        ("2 3/4", r"\left(2+\frac{3}{4}\right)"),
        ("-2 3/4", r"-\left(2+\frac{3}{4}\right)"),
        ("€24", "24"),
        ("-£3.50", "-3.50"),
        ("40 dollars", r"40 \text{ dollars}"),
        ("7:05 am", r"7:05 \text{ am}"),
        (r"2 \text{ and } 7", "2, 7"),
        (r"2, \text{or} 7", "2, 7"),
        (r"\mathbf{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\mathbf{1}\mathbf{2}", r"\mathbf{1}\mathbf{2}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        *((same, same) for same in ("40 xy", "40xy", "40 plus two", "40 cats and dogs", "3 x/y", "x = 5", "")),
    ],
)
def test_tidying_rewrites_harmless_spellings_and_nothing_else(answer: str, tidied: str) -> None:
    assert tidy(answer) == tidied
    assert tidy(tidied) == tidied


@given(st.text(alphabet=r"0123456789 abxyorand\{}$^_.,/()=√°€", max_size=40))
def test_tidying_any_text_twice_is_tidying_it_once_or_harmless(text: str) -> None:
    once = tidy(text)
    assert len(once) <= 8 * len(text) + 40  # no blow-up
    assert contradicts(text, text) is False
    assert words(text) == words(text.strip())


@pytest.mark.parametrize(
    "repeated", ["24 ", r"\text{ or }", r"\frac", "{", r"\mathbf{", "1 000 ", "√", "a, ", "^{", r"\sqrt{"]
)
def test_the_rules_take_little_time_on_hostile_text(repeated: str) -> None:
    """They run in a worker with a deadline; even so none may be exponential."""
    text = repeated * (2_000 // len(repeated))
    started = time.monotonic()
    tidy(text), contradicts(text, "5"), words(text), mathruler_normalizes(text, "5"), mathruler_reads(text)
    assert time.monotonic() - started < 1.0


def test_a_gold_with_words_is_not_met_by_its_first_half() -> None:
    gold = r"1 \text{ or } 2"
    assert either(gold, gold)
    assert not mathruler("1", gold)
    assert not mathruler(r"1 \text{ or } 7", gold)


def test_exact_collapses_white_space_only() -> None:
    assert exact("a  b\n", "a b")
    assert not exact("A b", "a b")
    assert not exact("5.0", "5")


LETTER_B = ["B", "b", "(B)", "B)", "B.", r"\text{B}", r"\textbf{(B)}", "B: 12", "B) 12", "Option B", "answer B", "$B$"]


@pytest.mark.parametrize("given", LETTER_B)
def test_choice_reads_the_letter_in_any_dress(given: str) -> None:
    assert choice(given, "B")
    assert choice("B", given)
    assert not choice(given, "C")


@pytest.mark.parametrize("given", ["", "Because", "A or B", "AB", "12", "A dog", "A, B"])
def test_choice_refuses_what_is_not_one_letter(given: str) -> None:
    assert not choice(given, "A")
    assert not choice(given, "B")


@pytest.mark.parametrize("checker", ["either", "mathruler", "math_verify"])
def test_whole_numbers_are_settled_without_a_library(checker: str) -> None:
    assert quick(checker, "72", "72") is True
    assert quick(checker, "+72", "72") is True
    assert quick(checker, "1,234", "1234") is True
    assert quick(checker, "72.0", "72") is True
    assert quick(checker, "072", "72") is True
    assert quick(checker, "73", "72") is False
    assert quick(checker, "72.0000001", "72") is False  # MathRuler alone says yes
    assert quick(checker, "1,23", "123") is None  # no thousands separator: for the library to judge
    assert quick(checker, r"\frac{1}{2}", r"\frac12") is None
    assert quick(checker, "0.5", r"\frac12") is None


@pytest.mark.parametrize("n", [-12, 0, 7, 1234, 10**12])
def test_the_quick_path_agrees_with_the_libraries(n: int) -> None:
    for text in (str(n), f"{n:,}", f"{n}.0", str(n + 1), str(-n - 1), f"{n}0" if n else "10"):
        assert quick("either", text, str(n)) is either(text, str(n)), text


def test_missing_library_is_found_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkers.missing_library("either") is None
    monkeypatch.setattr(checkers, "find_spec", lambda name: None if name == "math_verify" else object())
    assert checkers.missing_library("either") == "math_verify"
    assert checkers.missing_library("mathruler") is None
    assert checkers.missing_library("exact") is None
