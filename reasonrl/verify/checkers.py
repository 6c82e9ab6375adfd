r"""Is this extracted answer the gold answer? Checkers with one form: `(extracted, gold) -> bool`.

| checker | rule |
|---|---|
| `exact` | the same text after white space is collapsed |
| `choice` | the same option letter: `B`, `(b)`, `B) 12`, `\text{B}` |
| `mathruler` | MathRuler's `grade_answer`, where it can read both sides |
| `math_verify` | Math-Verify's `parse` and `verify`, its own timeouts off |
| `either` | one of the two, also for the pair as `tidy.py` spells it |
| `gsm8k_release`, `math_release` | as released with arXiv 2502.15771, for parity: `release.py` |

`mathruler` and `math_verify` may run for ever on hostile answers (Math-Verify needed its own 5 s alarm for power towers
and nested integrals). Nothing here stops them: `pool.py` runs them in processes that it kills at a deadline. Their
alarms stay off because `signal.alarm` fails outside the main thread and cancels alarms set by others.

`guards.py` closes the holes of both libraries, through which a wrong answer would be right. `docs/verifiers.md` has the
verdicts of all checkers on hundreds of perturbed answers.
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from reasonrl.verify.guards import WRAPPER, contradicts, mathruler_normalizes, mathruler_reads, words
from reasonrl.verify.release import gsm8k_release, math_release
from reasonrl.verify.tidy import tidy

Checker = Callable[[str, str], bool]

_CHOICE = re.compile(
    r"(?:(?:option|answer|choice)\s*)?\(?\s*([A-Z])\s*(?:\)|$|[.:](?:\s|$)).*", re.IGNORECASE | re.DOTALL
)
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
    """MathRuler's verdict on what it can read; the rest is compared as it spells it, words as words."""
    from mathruler.grader import grade_answer

    if contradicts(extracted, gold):
        return False
    if (wanted := words(gold)) is not None:
        return words(extracted) == wanted
    if _spelled_alike(extracted, gold):
        return True
    readable = mathruler_normalizes(extracted, gold) and mathruler_reads(extracted) and mathruler_reads(gold)
    return readable and bool(grade_answer(extracted, gold))


def math_verify(extracted: str, gold: str) -> bool:
    """Math-Verify's verdict. Not commutative: the gold comes first in its `verify`."""
    from math_verify import verify

    if contradicts(extracted, gold):
        return False
    # In a box, `5?` and "the answer is 5" are not read as 5; between dollars they would be (measured, 0.9.0).
    return bool(verify(_parsed(gold), _parsed(extracted), timeout_seconds=None))


def either(extracted: str, gold: str) -> bool:
    """Right for one of the two libraries, as it stands or tidied. The cheapest is asked first."""
    pairs = dict.fromkeys(((extracted, gold), (tidy(extracted), tidy(gold))))
    return any(_spelled_alike(*pair) or math_verify(*pair) or mathruler(*pair) for pair in pairs)


CHECKERS: dict[str, Checker] = {
    "either": either,
    "mathruler": mathruler,
    "math_verify": math_verify,
    "exact": exact,
    "choice": choice,
    "gsm8k_release": gsm8k_release,
    "math_release": math_release,
}
OWN_EXTRACT = {"gsm8k_release": "phrase_number", "math_release": "last_box"}  # where these look, for `extract=auto`
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


@functools.lru_cache(maxsize=1024)  # a gold comes back for each of its n samples
def _parsed(answer: str) -> list[Any]:
    from math_verify import parse

    parsed: list[Any] = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    return parsed


def _spelled_alike(extracted: str, gold: str) -> bool:
    """The same text for MathRuler's first step, which never hangs."""
    from mathruler.math_normalize import normalize_answer

    if contradicts(extracted, gold) or not mathruler_normalizes(extracted, gold) or words(gold) is not None:
        return False
    return bool(normalize_answer(extracted) == normalize_answer(gold))


def _option(answer: str) -> str | None:
    plain = WRAPPER.sub(r"\1", answer).replace("$", "").strip()
    found = _CHOICE.fullmatch(plain)
    return found[1].upper() if found else None
