r"""The two checkers of mathematics that the code of arXiv 2502.15771 was released with, for numbers to compare with its own.

    gsm8k_release   the first number behind the last "The final answer is "; equal as text
    math_release    the last \boxed{}; equal as text after the normaliser of MATH's own harness (arXiv 2103.03874)

They are kept as they behave, with their faults: 5.0 is not 5 and 1,000 is not 1000 for the second, a colon behind the phrase
hides the answer of the first. `verify=either` is what to grade with. In one place ours differs: `\fbox{10}` states no answer
here, where the release stops with an error.
"""

import functools
import re

PHRASE = "The final answer is "
MOST_LEFT = 2  # characters of what may stand before an equals sign: `x=5` is 5

_NUMBER = re.compile(r"-?[0-9.,]+")
_BRACE = re.compile(r"[{}]")
_WHOLE = re.compile(r"(?:-?[1-9][0-9]*|0)/(?:-?[1-9][0-9]*|0)")
# in this order, each everywhere in the text
_SPELLINGS = (
    ("\n", ""),
    (r"\!", ""),
    (r"\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
)
_UNIT = r"\text{ "


# Finding


def phrase_number(text: str, phrase: str = PHRASE) -> str | None:
    """The first number behind the last `phrase`; None without phrase or number. `...` is a number without digits, "" """
    _, found, after = text.rpartition(phrase)
    number = _NUMBER.search(after) if found else None
    return None if number is None else plain_number(number[0])


def last_box(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; `\boxed x`, where it occurs, goes before and reaches to the next dollar."""
    _, spaced, after = text.rpartition("\\boxed ")
    if spaced:
        return after.partition("$")[0]
    start = text.rfind("\\boxed{")
    if start < 0 or text.rfind("\\boxed") > start:
        return None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : brace.start()]
    return None


# Comparing


def gsm8k_release(extracted: str, gold: str) -> bool:
    """The same characters, commas and trailing dots apart."""
    return plain_number(extracted) == plain_number(gold)


def math_release(extracted: str, gold: str) -> bool:
    """The same text once both are normalised; as they stand where one of them cannot be."""
    try:
        return normalized(extracted) == normalized(gold)
    except ValueError:
        return extracted == gold


def plain_number(text: str) -> str:
    """Without commas and trailing dots."""
    return text.replace(",", "").rstrip(".")


@functools.lru_cache(maxsize=4096)  # a gold comes back for each of its samples
def normalized(text: str) -> str:
    """One spelling for answers that MATH's harness takes for equal. Raises ValueError where it stops with an error."""
    for written, plain in _SPELLINGS:
        text = text.replace(written, plain)
    text = _without_unit(text)
    text = text.replace(r"\\%", "").replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text.startswith("."):
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= MOST_LEFT:
        text = right
    text = _fractions(_roots(text).replace(" ", ""))
    if text == "0.5":
        return r"\frac{1}{2}"
    if _WHOLE.fullmatch(text):
        above, _, below = text.partition("/")
        return rf"\frac{{{above}}}{{{below}}}"
    return text


def _without_unit(text: str) -> str:
    before, *after = text.split(_UNIT)
    if len(after) > 1:
        raise ValueError(f"two units in {text!r}")
    return before


def _roots(text: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`."""
    first, *rest = text.split(r"\sqrt")
    if any(not part for part in rest):
        raise ValueError(f"a root of nothing in {text!r}")
    return first + "".join(rf"\sqrt{part}" if part[0] == "{" else rf"\sqrt{{{part[0]}}}{part[1:]}" for part in rest)


def _fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{2}` as `\frac{1}{2}`."""
    first, *rest = text.split(r"\frac")
    made = first
    for part in rest:
        if not part:
            raise ValueError(f"a fraction of nothing in {text!r}")
        if part.startswith("{"):
            made += rf"\frac{part}"
            continue
        if len(part) < 2:
            return text
        above, below, after = part[0], part[1], part[2:]
        made += rf"\frac{{{above}}}{{{after}" if below == "{" else rf"\frac{{{above}}}{{{below}}}{after}"
    return made
