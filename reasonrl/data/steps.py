r"""Cutting reference solutions into steps: GSM8K by line, prose with LaTeX by sentence.

White space stays with the piece before it, so the joined pieces are the solution again. The piece that states the
final answer is always the last one: a hint that stops before the last step never gives the answer away.
"""

import re

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_PROTECTED = re.compile(  # never cut inside
    r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\[asy\].*?\[/asy\]"
    r"|\\begin\{(?P<environment>\w+\*?)\}.*?\\end\{(?P=environment)\}",
    re.DOTALL,
)
_GAP = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"[.!?][\"')\]}]*(?:\$\$?|\\\]|\\\))?[\"')]*$")
_ANSWER = re.compile(r"\\(?:boxed|fbox)\b|<answer>|^#### ", re.MULTILINE)


def solution_lines(solution: str) -> tuple[str, ...]:
    """One step a line, GSM8K's `<<48/2=24>>` calculator notes removed, empty lines left out."""
    lines = (" ".join(_ANNOTATION.sub("", line).split(" ")).strip() for line in solution.splitlines())
    return tuple(line for line in lines if line)


def solution_sentences(solution: str) -> tuple[str, ...]:
    """One step a sentence or paragraph, formulas and drawings kept whole; about four for a MATH solution."""
    protected = [match.span() for match in _PROTECTED.finditer(solution)]
    cuts, span = [0], 0
    for gap in _GAP.finditer(solution):
        while span < len(protected) and protected[span][1] <= gap.start():
            span += 1
        if span < len(protected) and protected[span][0] < gap.start():
            continue
        if _ends_here(solution, gap.start(), gap.end()):
            cuts.append(gap.end())
    pieces = [solution[a:b] for a, b in zip(cuts, [*cuts[1:], len(solution)], strict=True)]
    return tuple(piece for piece in pieces if piece.strip())


def answer_last(steps: tuple[str, ...]) -> tuple[str, ...]:
    r"""Join everything from the first step that states an answer (`\boxed`, `<answer>`, `####`) into one last step."""
    first = next((i for i, step in enumerate(steps) if _ANSWER.search(step)), len(steps))
    tail = steps[first:]
    if len(tail) < 2:
        return steps
    joined = "".join(step if step[-1:].isspace() else step + "\n" for step in tail[:-1]) + tail[-1]
    return (*steps[:first], joined)


def _ends_here(text: str, start: int, end: int) -> bool:
    if start == 0 or end == len(text):
        return False
    if text.count("\n", start, end) >= 2:
        return True
    before = text[max(0, start - 8) : start]
    return _SENTENCE_END.search(before) is not None and (text[end].isupper() or text[end] in "$\\[")
