r"""Math-Verify as the workers run it gives the verdicts of plain Math-Verify: parse trees, whole numbers, refusals."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from math_verify import grader, parse, parser, verify
from sympy import srepr

from reasonrl.verify.speed import speed_up


@contextmanager
def speed() -> Iterator[None]:
    """The changes of `speed_up`, taken back afterwards: this process also runs other tests."""
    before = _Latex2Sympy.create_parser, _Latex2Sympy.parse_number, grader.sympy_symbolic_eq
    try:
        speed_up()
        yield
    finally:
        _Latex2Sympy.create_parser, _Latex2Sympy.parse_number, grader.sympy_symbolic_eq = before


def parsed(answer: str) -> list[object]:
    parser.parse_latex_cached.cache_clear()  # it would hand one side's result to the other
    return parse(rf"\boxed{{{answer}}}", parsing_timeout=None)


def shown(answer: str) -> list[str]:
    try:
        return [found if isinstance(found, str) else srepr(found) for found in parsed(answer)]
    except TypeError as problem:  # sympy cannot order the factors of 0/0
        return [repr(problem)]


def verdict(answer: str, gold: str) -> bool:
    return verify(parsed(gold), parsed(answer), timeout_seconds=None)


def both(function, *answers):
    """What it gives without and with the changes."""
    plain = function(*answers)
    with speed():
        return plain, function(*answers)


NUMBERS = st.one_of(st.integers(0, 2_000).map(str), st.sampled_from(["0.5", "2.75", "1,234", "007", r"\pi", "x", "n"]))
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda part: st.one_of(
        st.tuples(st.sampled_from(["+", "-", r"\cdot ", "", "/"]), part, part).map(lambda t: t[1] + t[0] + t[2]),
        st.tuples(st.sampled_from([r"\frac", r"\dfrac"]), part, part).map(lambda t: f"{t[0]}{{{t[1]}}}{{{t[2]}}}"),
        st.tuples(part, st.integers(2, 4)).map(lambda t: f"{t[0]}^{{{t[1]}}}"),
        st.tuples(st.sampled_from([r"\sqrt{", r"\left(", r"-{", r"\sin{"]), part).map(
            lambda t: t[0] + t[1] + (r"\right)" if "left" in t[0] else "}")
        ),
    ),
    max_leaves=4,
)
ANSWERS = st.one_of(
    EXPRESSIONS,
    st.tuples(st.sampled_from(["()", "[)", "(]", r"\{\}"]), EXPRESSIONS, NUMBERS).map(
        lambda t: t[0][: len(t[0]) // 2] + t[1] + "," + t[2] + t[0][len(t[0]) // 2 :]
    ),
    st.tuples(st.sampled_from(["x=", "y<", r"x\le "]), NUMBERS).map("".join),
)
TOKENS = st.lists(
    st.sampled_from([*"0123456789xyn+-=,()[]{}^_", r"\frac", r"\sqrt", r"\pi", r"\{", r"\}", r"\text", r"\le ", " "]),
    max_size=9,
).map("".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ANSWERS)
def test_an_answer_is_parsed_as_before(answer: str) -> None:
    plain, fast = both(shown, answer)
    assert fast == plain


@settings(max_examples=80, deadline=None, derandomize=True)
@given(TOKENS)
def test_broken_latex_is_parsed_as_before(answer: str) -> None:
    plain, fast = both(shown, answer)
    assert fast == plain


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ANSWERS, ANSWERS)
def test_two_answers_are_compared_as_before(answer: str, gold: str) -> None:
    plain, fast = both(verdict, answer, gold)
    assert fast == plain


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\sqrt{12}", r"2\sqrt{3}", True),
        (r"2\sqrt{3}", r"3\sqrt{2}", False),
        (r"\sqrt{2}\cdot\sqrt{8}", r"\sqrt{16}", True),
        (r"\frac{\pi}{3}+\frac{\pi}{6}", r"\frac{\pi}{2}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x+2", False),
        (r"\sin^2 x+\cos^2 x", "1", True),
        (r"\sqrt{x^2}", "x", False),  # equal at the point that is looked at, not everywhere
        ("|x|", "x", False),
        (r"\frac{x^2-1}{x-1}", "x+1", True),
        ("0.333333333", r"\frac{1}{3}", True),
        ("0.3333", r"\frac{1}{3}", False),
        ("f(x)+1", "f(x)+2", False),
        (r"10\%", "0.1", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
        ("1000000007", "1,000,000,007", True),
    ],
)
def test_pairs_that_need_more_than_a_look(answer: str, gold: str, right: bool) -> None:
    plain, fast = both(verdict, answer, gold)
    assert (plain, fast) == (right, right)


def test_a_wrong_root_is_refused_without_simplifying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "simplify", lambda *_: pytest.fail("simplify was called"))
    with speed():
        assert not verdict(r"5\sqrt{7}", r"7\sqrt{5}")
        assert not verdict("x^2+3x", "x^2+2x")


def test_the_fast_parser_reads_a_pair_once_and_falls_back_for_a_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = _Latex2Sympy.create_parser
    monkeypatch.setattr(_Latex2Sympy, "create_parser", lambda self, latex: made.append(latex) or plain(self, latex))
    with speed():
        shown("(1,2)")
        assert made == ["(1,2)"]
        shown("x^2+5x+1")
        assert made[1:] == ["x^2+5x+1"] * 2


def test_a_second_call_changes_nothing() -> None:
    with speed():
        once = _Latex2Sympy.create_parser, _Latex2Sympy.parse_number, grader.sympy_symbolic_eq
        speed_up()
        assert once == (_Latex2Sympy.create_parser, _Latex2Sympy.parse_number, grader.sympy_symbolic_eq)
