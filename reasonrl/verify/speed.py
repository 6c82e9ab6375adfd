"""Math-Verify made faster without another verdict. It changes other packages' globals, so only worker processes do it.

Where its time went, measured on answers of MATH500 and of `benchmarks/grading.py`:

- Parsing. ANTLR decides ambiguities with full context (LL), up to 20 ms for `(1,2)`. Its faster mode (SLL) gives the
  same tree or a syntax error ("Adaptive LL(*) Parsing", Parr, Harwell and Fisher 2014, section 3.2; the start rule
  reads to the end of the input), so a syntax error is read once more with LL, from the start.
- Whole numbers. Each was read by evaluating Python code, 0.3 ms.
- Refusing wrong answers. `simplify(gold - answer)` is asked whether it is zero, 5 to 50 ms for roots and multiples of
  pi. A difference that is not near zero at one point is not zero, and the point is looked at first.

The tests compare verdicts with and without; `benchmarks/grading.py` compares them with plain Math-Verify.
"""

from typing import Any

FAR = 1e-6  # evaluated to 15 digits, so this is far from zero
MAX_SYMBOLS = 6


def speed_up() -> None:
    """Change Math-Verify in this process; a second call changes nothing."""
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
    from math_verify import grader

    if not hasattr(_Latex2Sympy.create_parser, "faster"):
        _Latex2Sympy.create_parser = _in_two_stages(_Latex2Sympy.create_parser)
        _Latex2Sympy.parse_number = _whole_numbers_at_once(_Latex2Sympy.parse_number)
        grader.sympy_symbolic_eq = _after_a_look(grader.sympy_symbolic_eq)


def _in_two_stages(create_parser: Any) -> Any:
    from antlr4.atn.PredictionMode import PredictionMode

    def faster(self: Any, latex: str) -> Any:
        parser = create_parser(self, latex)
        start_rule = parser.math

        def math() -> Any:
            parser._interp.predictionMode = PredictionMode.SLL
            try:
                return start_rule()
            except Exception:  # of the parser or the lexer, whose state is spent too
                return create_parser(self, latex).math()

        parser.math = math
        return parser

    faster.faster = True  # type: ignore[attr-defined]
    return faster


def _whole_numbers_at_once(parse_number: Any) -> Any:
    from sympy import Integer

    def faster(self: Any, text: str) -> Any:
        digits = text.replace(",", "")
        return Integer(int(digits)) if digits.isascii() and digits.isdigit() else parse_number(self, text)

    return faster


def _after_a_look(symbolic_eq: Any) -> Any:
    def faster(a: Any, b: Any) -> bool:
        return not _differ_at_a_point(a, b) and symbolic_eq(a, b)

    return faster


def _differ_at_a_point(a: Any, b: Any) -> bool:
    """Whether two expressions have clearly different finite values at one point. False when that cannot be told."""
    from sympy import Expr, Float

    try:
        difference = a - b
        symbols = sorted(difference.free_symbols, key=str)
        if not isinstance(difference, Expr) or len(symbols) > MAX_SYMBOLS:
            return False
        point = {symbol: Float(0.61803 + 0.41421 * at) for at, symbol in enumerate(symbols)}
        value = difference.evalf(15, subs=point)
        return FAR < abs(complex(value)) < 1 / FAR
    except Exception:  # no number: a function without a name, a matrix, a pole
        return False
