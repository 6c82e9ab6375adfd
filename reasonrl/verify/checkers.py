r"""Is this extracted answer the gold answer? Five checkers with one form: `(extracted, gold) -> bool`.

| checker | rule |
|---|---|
| `exact` | the same text after white space is collapsed |
| `choice` | the same option letter: `B`, `(b)`, `B) 12`, `\text{B}` |
| `mathruler` | MathRuler's `grade_answer`, with the hole below closed |
| `math_verify` | Math-Verify's `parse` and `verify`, its own timeouts off |
| `either` | `mathruler`, and `math_verify` when that says no |

`mathruler` and `math_verify` may run for ever on hostile answers (Math-Verify needed its own 5 s alarm for power towers
and nested integrals). Nothing here stops them: `pool.py` runs them in processes that it kills at a deadline. Their
alarms stay off because `signal.alarm` fails outside the main thread and cancels alarms set by others.

Two holes are closed here, through which one box could name several candidates:
- MathRuler takes everything after `\text{ ` for a unit and drops it, so `5 \text{ or } 6` equals 5. Such a tail must
  look like a unit, letters and at most an exponent; else MathRuler is not asked. The same goes for the gold.
- Math-Verify drops `\text{...}` too: `5\text{, 6}` equals 5. Text with digits, commas or "or" is refused when the gold
  has no text of its own.
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec

Checker = Callable[[str, str], bool]

_UNIT_TAIL = re.compile(r"\s*\\text\{ (?P<words>[a-zA-Z ./-]*)\}\s*(?:\^\s*(?:\d|\{\s*-?\d\s*\}))?\s*")
_CHOICE = re.compile(
    r"(?:(?:option|answer|choice)\s*)?\(?\s*([A-Z])\s*(?:\)|$|[.:](?:\s|$)).*", re.IGNORECASE | re.DOTALL
)
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathbf|mathrm|mathsf|mbox|bf)\s*\{([^{}]*)\}")
_SEVERAL = re.compile(r"[\d,;]|\b(?:or|and|not|but|maybe)\b", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)")
_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?")


def exact(extracted: str, gold: str) -> bool:
    """The same text, white space collapsed; case counts."""
    return extracted.split() == gold.split()


def choice(extracted: str, gold: str) -> bool:
    """The same option letter, whatever its case, brackets or following text. A gold that is no letter is never met."""
    letter = _option(gold)
    return letter is not None and _option(extracted) == letter


def mathruler(extracted: str, gold: str) -> bool:
    r"""MathRuler's verdict; where a `\text{ ...}` tail is no unit, only the same text is right."""
    from mathruler.grader import grade_answer

    if not (_tail_is_unit(extracted) and _tail_is_unit(gold)):
        return exact(extracted, gold)
    return bool(grade_answer(extracted, gold))


def math_verify(extracted: str, gold: str) -> bool:
    """Math-Verify's verdict. Not commutative: the gold comes first in its `verify`."""
    from math_verify import parse, verify

    if _text_names_several(extracted) and not _WRAPPER.search(gold):
        return False
    # In a box, `5?` and "the answer is 5" are not read as 5; between dollars they would be (measured, 0.9.0).
    parsed_gold = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
    parsed = parse(rf"\boxed{{{extracted}}}", parsing_timeout=None)
    return bool(verify(parsed_gold, parsed, timeout_seconds=None))


def either(extracted: str, gold: str) -> bool:
    """Right for MathRuler or, failing that, for Math-Verify."""
    return mathruler(extracted, gold) or math_verify(extracted, gold)


CHECKERS: dict[str, Checker] = {
    "either": either,
    "mathruler": mathruler,
    "math_verify": math_verify,
    "exact": exact,
    "choice": choice,
}
LIBRARIES: dict[str, tuple[str, ...]] = {  # what each checker imports in its process; the others run where they are
    "either": ("mathruler", "math_verify"),
    "mathruler": ("mathruler",),
    "math_verify": ("math_verify",),
}


def quick(checker: str, extracted: str, gold: str) -> bool | None:
    """The verdict when it needs no mathematics library, else None: equal texts, whole numbers, `exact` and `choice`.

    A whole-number gold against a plain decimal is decided exactly (MathRuler alone would accept 5.0000001 for 5).
    """
    if checker not in LIBRARIES:
        return CHECKERS[checker](extracted, gold)
    if extracted == gold or exact(extracted, gold):
        return True
    if _INTEGER.fullmatch(gold) and _DECIMAL.fullmatch(extracted):
        return _number(extracted) == _number(gold)
    return None


def missing_library(checker: str) -> str | None:
    """The first library that `checker` needs and that is not installed; looks without importing."""
    return next((name for name in LIBRARIES.get(checker, ()) if find_spec(name) is None), None)


@functools.lru_cache(maxsize=4096)  # the same few golds come back for every rollout
def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _tail_is_unit(answer: str) -> bool:
    at = answer.find(r"\text{ ")
    if at < 0:
        return True
    tail = _UNIT_TAIL.fullmatch(answer, at)
    return tail is not None and not _SEVERAL.search(tail["words"])


def _text_names_several(answer: str) -> bool:
    texts = list(_WRAPPER.finditer(answer))
    whole = len(texts) == 1 and texts[0][0] == answer  # `\text{1,234}` is only wrapped
    return not whole and any(_SEVERAL.search(text[1]) for text in texts)


def _option(answer: str) -> str | None:
    plain = _WRAPPER.sub(r"\1", answer).replace("$", "").strip()
    found = _CHOICE.fullmatch(plain)
    return found[1].upper() if found else None
