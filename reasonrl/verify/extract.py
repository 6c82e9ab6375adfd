r"""Finding the final answer in a response: pure text rules, no mathematics.

The rules of `extract_answer`, in order:
1. The candidates are `\boxed{...}` (and `\fbox{...}`) with balanced braces, where `\{` and `\}` do not count, and
   `<answer>...</answer>`. The one that ends last in the text wins: a model that corrects itself means its last word.
2. A box inside the winning tag is the tag's answer: `<answer>so \boxed{5}.</answer>` gives `5`.
3. A box or tag that is opened after the winner and never closed means the response was cut while it was changing its
   answer: there is no answer. A closed box inside an unclosed tag still counts (the limit cut only the closing tag).
4. Without box and tag, the last line of the form `#### answer` counts (GSM8K's own form).
5. The answer is trimmed: outer white space, one pair of `$...$`, `\(...\)` or `\[...\]` around all of it, and one
   trailing period (`9.` gives `9`; `1, 2, ...` and `\right.` keep theirs). What is then empty is no answer.

Free text ("the answer is 9") is never searched: a number that merely stands last is not a stated answer. The modes
`phrase_number` and `last_box` do as released code does instead, for parity: `release.py`.
All rules take time linear in the text, because model text reaches them outside any deadline.
"""

import re
from typing import NamedTuple

from reasonrl.verify.release import PHRASE, last_box, phrase_number

# auto = all rules; the next three look at one form only; the last two by rules of their own
MODES = ("auto", "boxed", "answer_tag", "hashes", "phrase_number", "last_box")
CUTS = ("none", "first_think", "last_think")

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*")
_BARE_WORD = re.compile(r"[^\s{}$\\.,;]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is consumed whole, so \{ is no brace
_HASHES = re.compile(r"^[ \t]*####(.*)$", re.MULTILINE)
_TAG_OPEN, _TAG_CLOSE, _THINK_CLOSE = "<answer>", "</answer>", "</think>"


class _Span(NamedTuple):
    start: int
    end: int  # -1: opened and never closed
    text: str


_NOTHING = _Span(-1, -1, "")


def extract_answer(text: str, mode: str = "auto", *, phrase: str = PHRASE) -> str | None:
    """The final answer stated in `text` by the rules above, or None. `mode` is one of `MODES`; phrase: of phrase_number."""
    if mode == "phrase_number":
        return phrase_number(text, phrase)
    if mode == "last_box":
        return last_box(text)
    if mode == "hashes":
        return _hashes(text)
    box = _last_box(text) if mode != "answer_tag" else _NOTHING
    tag = _last_tag(text) if mode != "boxed" else _NOTHING
    if box.start < 0 and tag.start < 0:
        return _hashes(text) if mode == "auto" else None
    winner = max(box, tag, key=lambda span: span.end)
    if winner.end < 0 or _reopened(box, winner) or _reopened(tag, winner):
        return None
    if winner is tag:
        inner = _last_box(winner.text)
        return _trim(winner.text if inner is _NOTHING else inner.text)  # an unclosed box has no text: no answer
    return _trim(winner.text)


def cut_reasoning(text: str, answer_after: str) -> str | None:
    """The part of `text` that is scored; None when the marker it should follow is missing.

    `none`: all of it. `first_think` / `last_think`: what follows the first / last `</think>`.
    """
    if answer_after == "none":
        return text
    at = text.find(_THINK_CLOSE) if answer_after == "first_think" else text.rfind(_THINK_CLOSE)
    return None if at < 0 else text[at + len(_THINK_CLOSE) :]


def _reopened(span: _Span, winner: _Span) -> bool:
    return span.end < 0 and span.start > winner.end


def _last_box(text: str) -> _Span:
    r"""The last box opened, closed or not. `\boxed 5`, without braces, holds the one word that follows."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opened = _BOX.match(text, at) if at >= 0 else None
    if opened is None:
        return _NOTHING
    start, at = opened.span()
    if not text.startswith("{", at):
        bare = _BARE_WORD.match(text, at)
        return _Span(start, bare.end(), bare[0]) if bare else _Span(start, -1, "")
    depth = 0
    for brace in _BRACE.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return _Span(start, brace.end(), text[at + 1 : brace.start()])
    return _Span(start, -1, "")


def _last_tag(text: str) -> _Span:
    start = text.rfind(_TAG_OPEN)
    if start < 0:
        return _NOTHING
    end = text.find(_TAG_CLOSE, start)
    if end >= 0:
        return _Span(start, end + len(_TAG_CLOSE), text[start + len(_TAG_OPEN) : end])
    return _Span(start, -1, "")


def _hashes(text: str) -> str | None:
    found = _HASHES.findall(text)
    return _trim(found[-1]) if found else None


def _trim(answer: str) -> str | None:
    answer = _without_period(answer.strip())
    inner = answer.strip("$")
    if "$" not in inner and answer[:1] == answer[-1:] == "$" and not inner.endswith("\\"):
        answer = inner
    elif answer[:2] + answer[-2:] in (r"\(\)", r"\[\]") and len(answer) >= 4:
        answer = answer[2:-2]
    return _without_period(answer.strip()) or None


def _without_period(answer: str) -> str:
    if answer.endswith(".") and not answer.endswith(("..", r"\right.")):
        return answer[:-1].rstrip()
    return answer
