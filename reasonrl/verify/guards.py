r"""What the two libraries overlook: pairs they would call equal and that are not.

Found by perturbing answers (`tests/perturbed_answers.jsonl`); `docs/verifiers.md` shows what is left.

- `contradicts`: the answer names several candidates or says something else than the gold, in a part that both drop.
- `mathruler_normalizes`: MathRuler drops units, spaces and the left side of `x=5` before anything else.
- `mathruler_reads`: then it turns LaTeX into plain text without braces: `3^{x}+1` and `3^{x+1}` become `3^x+1`,
  `x+\frac{1}{2}` and `\frac{x+1}{2}` become `x+1/2`. Commands it does not know vanish: `\cot x` becomes `x`, `x \ne 3`
  becomes `x3`, `0.\overline{3}` becomes `0.3`.
- `words`: MathRuler deletes units wherever they stand, so `\text{feet}` equals `\text{inches}`; words are compared here.
"""

import re

WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathsf|mbox|bf)\s*\{([^{}]*)\}")
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten

# Quarters, halves and dozens may be what is counted.
SCALE_WORD = re.compile(
    rf"\b(?:{'|'.join(SCALES)}|thirds?|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand|million)ths?)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"[\d,;]|\b(?:or|and|not|but|maybe)\b", re.IGNORECASE)
_UNIT_TAIL = re.compile(r"\s*\\text\{ (?P<words>[a-zA-Z ./-]*)\}\s*(?:\^\s*(?:\d|\{\s*-?\d\s*\}))?\s*")
_BASE = re.compile(r"\s*\(?[A-F]*\d[\dA-F]*(?:\.[\dA-F]+)?\)?\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))\s*")
_NOON = re.compile(r"(?<![a-z\\])([ap])\.?\s*m(?![a-z])", re.IGNORECASE)
_RELATION = re.compile(
    r"\s*(?:[<>≤≥≠¬]|\\(?:neq?|not|neg|lnot|leq?|geq?|lt|gt|leqslant|geqslant)(?![a-zA-Z])|\\not=)", re.IGNORECASE
)
_CONNECTIVE = re.compile(r"\\(?:land|wedge|lor|vee)(?![a-zA-Z])")
_LEFT_SIDE = re.compile(r"\s*([a-zA-Z]{1,2})\s*=(?!=)")
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z '-]*(?:,\s*[a-zA-Z][a-zA-Z '-]*)*")

# Kept by MathRuler, or dropped as it should be (\left).
_COMMANDS = set(
    re.findall(
        r"\w+",
        r"""\frac \dfrac \tfrac \sqrt \pi \text \textbf \textit \textrm \mathrm \mathbf \left \right \cdot \times \div \pm
        \infty \cup \cap \circ \in \le \leq \ge \geq \neq \quad \qquad \displaystyle \emptyset \varnothing \lbrace \rbrace
        \langle \rangle \begin \end \ln \log \sin \cos \tan \alpha \beta \gamma \delta \theta \lambda \mu \sigma \phi
        \omega""",
    )
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SIMPLE = re.compile(r"\{\s*(?:-?\s*\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+)\s*\}")  # nothing is lost without these braces
_SIMPLE_ROOT = re.compile(r"\\sqrt\s*" + _SIMPLE.pattern)
_LOOSE_FRACTION = re.compile(r"\\[dt]?frac(?!\s*\{)(?!\d\d(?!\d))")
_LOOSE_SCRIPT = re.compile(r"[\^_]\s*\\(?!circ|infty)")
_APART = re.compile(r"(?<![\d,.])\d{1,3}(?:\s\d{3})+(?![\d\s])|(?P<apart>\d\s+\d)")
_NEGATIVE_MIXED = re.compile(r"-\s*\d+\s*\\[dt]?frac")


def contradicts(extracted: str, gold: str) -> bool:
    r"""Whether the answer is wrong for a reason that both libraries may miss.

    Text with several candidates (`5\text{, 6}`) that the gold has not, another scale (`5 \text{ million}`) or base
    (`101_2` for `101_3`), a.m. for p.m., a relation without its left side (`\neq 5` for 5) or a logical connective
    (`x=5 \land x=6`).
    """
    if _text_adds(extracted) and not _text_counts(gold):
        return True
    if _scales(extracted) != _scales(gold):
        return True
    for rule in (_base, _half_of_day):
        stated, wanted = rule(extracted), rule(gold)
        if stated is not None and wanted is not None and stated != wanted:
            return True
    return any(rule(extracted) and not rule(gold) for rule in (_RELATION.match, _CONNECTIVE.search))


def mathruler_normalizes(extracted: str, gold: str) -> bool:
    """Whether nothing that counts is lost when MathRuler drops units, spaces and the left side of an equation."""
    left, right = _LEFT_SIDE.match(extracted), _LEFT_SIDE.match(gold)
    if left and right and left[1] != right[1]:
        return False
    return all(_tail_is_unit(text) and not _digits_stand_apart(text) for text in (extracted, gold))


def mathruler_reads(answer: str) -> bool:
    """Whether MathRuler's plain text of the answer keeps what it says."""
    if not _COMMANDS.issuperset(_COMMAND.findall(answer)) or r"\sqrt[" in answer.replace(" ", ""):
        return False
    if _LOOSE_FRACTION.search(answer) or _LOOSE_SCRIPT.search(answer) or _NEGATIVE_MIXED.search(answer):
        return False
    bare = re.sub(r"\\(?:begin|end)\{[a-z]*\}|\\[{}]", "", WRAPPER.sub("", answer))
    bare = re.sub(r"\{([,.]?)\}", r"\1", bare)
    for _ in range(3):  # roots keep their content in brackets, so they may be nested
        bare = _SIMPLE_ROOT.sub("r", bare)
    return not re.search(r"[{}]|\u007f\s*\d", _SIMPLE.sub("\u007f", bare))  # `2^{3}4` would become 2^34


def words(text: str) -> str | None:
    r"""A text of plain words without its dress, else None: `\text{Monday.}` gives `monday`. One has three letters or more."""
    plain = WRAPPER.sub(r"\1", text).strip(' .*"')
    if not _WORDS.fullmatch(plain) or not re.search(r"[a-zA-Z]{3}", plain):
        return None
    return ", ".join(" ".join(part.split()) for part in plain.casefold().split(","))


def _tail_is_unit(answer: str) -> bool:
    at = answer.find(r"\text{ ")
    if at < 0:
        return True
    tail = _UNIT_TAIL.fullmatch(answer, at)
    return tail is not None and not _SEVERAL.search(tail["words"])


def _digits_stand_apart(answer: str) -> bool:
    return r"\begin" not in answer and any(found["apart"] for found in _APART.finditer(answer))


def _text_adds(answer: str) -> bool:
    return _text_counts(answer) and not WRAPPER.fullmatch(answer)  # `\text{1,234}` is only wrapped


def _text_counts(answer: str) -> bool:
    return any(_SEVERAL.search(text[1]) for text in WRAPPER.finditer(answer))


def _scales(answer: str) -> list[str]:
    if WRAPPER.fullmatch(answer):
        return []
    return [word.lower() for text in WRAPPER.finditer(answer) for word in SCALE_WORD.findall(text[1])]


def _base(answer: str) -> str | None:
    found = _BASE.fullmatch(answer)
    return (found[1] or found[2]) if found else None


def _half_of_day(answer: str) -> str | None:
    found = _NOON.search(answer)
    return found[1].lower() if found else None
