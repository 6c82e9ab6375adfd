r"""Cutting reference solutions into steps, and telling which of them states the final answer.

`solution_steps` has four splitters, and `auto` chooses among them. Formulas (`$...$`, `$$`, `\[ \]`, `\( \)`),
`\begin...\end`, `[asy]` drawings and code fences are never cut. White space stays with the piece before it, so the
joined pieces are the solution again; only `lines` trims its pieces. `answer_last` then joins the last ones: a hint that
stops before the last step never gives the answer away.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from reasonrl.data.items import step_text
from reasonrl.data.typed import unknown_name

SPLITTERS = ("auto", "numbered", "lines", "paragraphs", "sentences", "none")

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_GAP = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"[.!?][\"')\]}]*(?:\$\$?|\\\]|\\\))?[\"')]*$")

# A line of four hashes is GSM8K's answer, unless it reads like a heading: "#### Step 2", "#### 2. Solve", "#### Solve".
_TITLE = r"[ \t]*(?:\*\*|__)?(?:[A-Za-z]{2}|\d{1,2}[.):][ \t]+\S)"
HEADING = re.compile(rf"^[ \t]*(?:#{{5,6}}|####(?={_TITLE}))[^\n]*\n(?=\s*\S)", re.MULTILINE)  # with text below it
# what the verifier would read: see verify/extract.py
STATED = re.compile(rf"\\(?:boxed|fbox)(?![a-zA-Z])|<answer>|^[ \t]*####(?!#|{_TITLE})", re.MULTILINE)

_SENTENCE_WHOLE = re.compile(  # what sentences are never cut in; every dollar counts, also those that mean money
    r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\[asy\].*?\[/asy\]|```.*?```"
    r"|\\begin\{(?P<environment>\w+\*?)\}.*?\\end\{(?P=environment)\}",
    re.DOTALL,
)
_OPENING = re.compile(
    r"\\begin\{(?P<environment>\w+\*?)\}|\\[\[(]|\\.|\$\$?|\[asy\]|```", re.DOTALL
)  # an escaped character is consumed whole, so \$ and \\[2pt] open nothing
_EDGE = re.compile(r"\\(?P<edge>begin|end)\{(?P<name>\w+\*?)\}")
_CLOSING = {r"\[": r"\]", r"\(": r"\)", "$$": "$$", "[asy]": "[/asy]", "```": "```"}
# Dollars hold a formula when neither has a space on its inner side and no number or calculator note follows the
# second: "$5 and $6" is money. TeX allows no empty line within.
_INLINE = re.compile(r"\$(?!\s|<<)(?:[^$\\\n]|\\.|\n(?![ \t]*\n))*(?<=\S)\$(?!\.?\d|<<)", re.DOTALL)

_NUMBER = re.compile(
    r"^(?P<indent>[ \t]*)(?P<lead>#{1,6}[ \t]+(?:\*\*|__)?|\*\*|__|\\textbf\{)?"
    r"(?:[Ss]tep[ \t]+(?P<step>\d{1,3})(?![.,]?\d)(?(lead)\b|[ \t]*(?:[:.)\u2013\u2014-]|$))"
    r"|(?P<item>\d{1,2})(?P<close>[.)])(?(lead)(?:\*\*|__|\})?(?=\s)|(?=[ \t]+\S)))",
    re.MULTILINE,
)


def solution_steps(solution: str, how: str) -> tuple[str, ...]:
    """The solution in pieces, in order; () for `none` and for an empty one. Raises ValueError for another `how`.

    numbered     `1. ...`, `2) ...`, `Step 3: ...`, `**Step 4**`, `### Step 5` at line starts, counting up from 1 (or 0)
                 at one depth; text before the first number belongs to the first step. One piece when there are none.
    paragraphs   cut at empty lines
    lines        a step a line, GSM8K's `<<48/2=24>>` calculator notes removed; outer white space and empty lines go
    sentences    cut at empty lines and between sentences; about four for a MATH solution
    auto         the first of numbered, paragraphs, lines that gives two steps or more, else sentences
    """
    if how not in SPLITTERS:
        raise ValueError(unknown_name("way to cut steps", how, SPLITTERS))
    if how == "none" or not solution.strip():
        return ()
    ways = {"numbered": _numbered, "paragraphs": _paragraphs, "lines": _lines}
    if how in ways:
        return ways[how](solution, _whole(solution))
    if how == "auto":
        whole = _whole(solution)
        for cut in ways.values():
            if len(steps := cut(solution, whole)) > 1:
                return steps
    return _sentences(solution)


def answer_last(steps: Sequence[str]) -> tuple[str, ...]:
    r"""Join everything from the first step that states an answer (`\boxed`, `<answer>`, `####`) into one last step."""
    first = next((i for i, step in enumerate(steps) if STATED.search(step)), len(steps))
    tail = steps[first:]
    if len(tail) < 2:
        return tuple(steps)
    return (*steps[:first], "".join(map(step_text, tail[:-1])) + tail[-1])


class _Span(NamedTuple):
    start: int
    end: int


class _Mark(NamedTuple):
    """The number of a step at the start of a line."""

    start: int
    number: int
    kind: str  # "step", "headed" (bold or a heading), "." or ")"
    indent: int


def _numbered(solution: str, whole: Sequence[_Span]) -> tuple[str, ...]:
    found = list(_NUMBER.finditer(solution))
    inside = _inside([match.start() for match in found], whole)
    marks = [_mark(match) for match, hidden in zip(found, inside, strict=True) if not hidden]
    # The outer of two numberings appears first, but "Step" is never an inner one.
    kinds = sorted(dict.fromkeys(mark.kind for mark in marks), key=lambda kind: kind != "step")
    runs = (_counted([mark for mark in marks if mark.kind == kind]) for kind in kinds)
    run: list[_Mark] = next((run for run in runs if len(run) > 1), [])
    return _pieces(solution, [mark.start for mark in run[1:]])


def _mark(match: re.Match[str]) -> _Mark:
    kind = "step" if match["step"] else "headed" if match["lead"] else match["close"]
    return _Mark(match.start(), int(match["step"] or match["item"]), kind, len(match["indent"].expandtabs(4)))


def _counted(marks: Sequence[_Mark]) -> list[_Mark]:
    """The marks that count up: from 0 or 1, by one where that number follows at all, no deeper than the first."""
    first = next((i for i, mark in enumerate(marks) if mark.number <= 1), len(marks))
    outer = [mark for mark in marks[first:] if mark.indent <= marks[first].indent]
    last_at = {mark.number: i for i, mark in enumerate(outer)}
    run = outer[:1]
    for i, mark in enumerate(outer):
        wanted = run[-1].number + 1
        if mark.number == wanted or (mark.number > wanted and last_at.get(wanted, -1) < i):
            run.append(mark)
    return run


def _paragraphs(solution: str, whole: Sequence[_Span]) -> tuple[str, ...]:
    gaps = [gap for gap in _GAP.finditer(solution) if gap[0].count("\n") > 1]
    inside = _inside([gap.start() for gap in gaps], whole)
    cuts = [gap.end() for gap, hidden in zip(gaps, inside, strict=True) if not hidden and gap.start() > 0]
    return _pieces(solution, [cut for cut in cuts if cut < len(solution)])


def _lines(solution: str, whole: Sequence[_Span]) -> tuple[str, ...]:
    ends = [0]
    for line in solution.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    cuts = [end for end, hidden in zip(ends, _inside(ends, whole), strict=True) if not hidden and end > 0]
    lines = (_ANNOTATION.sub("", line).strip() for line in _pieces(solution, cuts))
    return tuple(line for line in lines if line)


def _sentences(solution: str) -> tuple[str, ...]:
    whole = [_Span(*match.span()) for match in _SENTENCE_WHOLE.finditer(solution)]
    gaps = [gap for gap in _GAP.finditer(solution) if _ends_here(solution, gap.start(), gap.end())]
    inside = _inside([gap.start() for gap in gaps], whole)
    return _pieces(solution, [gap.end() for gap, hidden in zip(gaps, inside, strict=True) if not hidden])


def _ends_here(text: str, start: int, end: int) -> bool:
    if start == 0 or end == len(text):
        return False
    if text.count("\n", start, end) >= 2:
        return True
    before = text[max(0, start - 8) : start]
    return _SENTENCE_END.search(before) is not None and (text[end].isupper() or text[end] in "$\\[")


def _pieces(solution: str, cuts: Iterable[int]) -> tuple[str, ...]:
    return tuple(solution[a:b] for a, b in pairwise([0, *cuts, len(solution)]) if solution[a:b].strip())


def _inside(positions: Sequence[int], whole: Sequence[_Span]) -> list[bool]:
    """For each of the rising positions, whether it lies within one of the spans, not at its edge."""
    found, at = [], 0
    for position in positions:
        while at < len(whole) and whole[at].end <= position:
            at += 1
        found.append(at < len(whole) and whole[at].start < position)
    return found


def _whole(solution: str) -> list[_Span]:
    """What is never cut: formulas, environments, drawings, code. What is opened and never closed is not among it."""
    spans: list[_Span] = []
    environments = _environments(solution)
    missing: set[str] = set()  # what is not closed any more; keeps the time linear
    at = 0
    while (opened := _OPENING.search(solution, at)) is not None:
        at, sign = opened.end(), opened[0]
        end = -1
        if opened["environment"]:
            end = environments.get(opened.start(), -1)
        elif sign == "$":
            formula = _INLINE.match(solution, opened.start())
            end = formula.end() if formula else -1
        elif sign in _CLOSING and sign not in missing:
            found = solution.find(_CLOSING[sign], at)
            end = found + len(_CLOSING[sign]) if found >= 0 else -1
            if found < 0:
                missing.add(sign)
        if end >= 0:
            spans.append(_Span(opened.start(), end))
            at = end
    return spans


def _environments(solution: str) -> dict[int, int]:
    r"""Start of each `\begin` -> end of its `\end`; environments of the same name may stand inside each other."""
    ends: dict[int, int] = {}
    begun: dict[str, list[int]] = {}
    for edge in _EDGE.finditer(solution):
        starts = begun.setdefault(edge["name"], [])
        if edge["edge"] == "begin":
            starts.append(edge.start())
        elif starts:
            ends[starts.pop()] = edge.end()
    return ends
