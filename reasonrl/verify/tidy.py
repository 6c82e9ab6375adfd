r"""Harmless spellings that both libraries refuse, rewritten: `24°`, `12\,000`, `2√3`, `\frac\pi2`, `1.25 million`.

`either` looks at the tidied pair when the pair as it stands is refused. Nothing is dropped that could name another
answer: words become a unit only behind a single number, and `and` or `or` become the comma of a list.
"""

import re

from reasonrl.verify.guards import SCALE_WORD, SCALES

_SYMBOLS = {
    "°": r"^\circ ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\neq ",
    "·": r"\cdot ",
    "×": r"\times ",
    "−": "-",
    "–": "-",
    "∅": r"\emptyset ",
}
_TRANSLATE = str.maketrans(_SYMBOLS)
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z])")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|~")
_DEGREE = re.compile(r"\\deg(?:ree)?(?![a-zA-Z])")
_AND = re.compile(r"\s*,?\s*\\text\{\s*,?\s*(?:and|or)\s*\}\s*", re.IGNORECASE)
_SCALED = re.compile(rf"(\d[\d,.]*)\s*(?:\\text\{{\s*)?({'|'.join(SCALES)})\s*\}}?", re.IGNORECASE)
_MIXED = re.compile(r"(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
_NUMBER = r"[-+]?(?:\\?[$€£])?\s*\d[\d,]*(?:\.\d+|:\d\d)?"
# Short or glued letters may be variables: `24xy`, `24 ab`.
_BARE_UNIT = re.compile(
    rf"({_NUMBER})\s+([a-zA-Z]{{4,}}(?:\s[a-zA-Z]{{2,}})*|[ap]\.?m\.?|[a-zA-Z]{{2,}}/[a-zA-Z]+|m/s)", re.IGNORECASE
)
_CURRENCY = re.compile(r"^(-?)\s*[€£]\s*(?=\d)|(?<=\d)\s*[€£]$")
_NO_UNIT = re.compile(r"\b(?:or|and|not|but|maybe|to|plus|minus|times|over|score|dozen|sqrt)\b", re.IGNORECASE)


_TOKEN = r"(\{[^{}]*\}|\\[a-zA-Z]+(?![a-zA-Z])|[a-zA-Z\d])"
_FRACTION = re.compile(rf"(\\[dt]?frac)(?![a-zA-Z])\s*{_TOKEN}\s*{_TOKEN}")
_DRESS = re.compile(r"\\(?:mathbf|boldsymbol|bm|textbf|text|mathrm|mathit|displaystyle)\s*\{(.*)\}", re.DOTALL)


def tidy(answer: str) -> str:
    """The same answer in the spelling that the libraries know; most answers come back unchanged."""
    text = _ROOT.sub(r"\\sqrt{\1}", _undressed(answer)).translate(_TRANSLATE)
    text = _FRACTION.sub(lambda found: f"{found[1]}{{{found[2].strip('{}')}}}{{{found[3].strip('{}')}}}", text)
    text = _AND.sub(", ", _DEGREE.sub(r"^\\circ", _SPACE.sub(" ", text)))
    if scaled := _SCALED.fullmatch(text.strip()):
        return rf"{scaled[1]} \times 10^{{{SCALES[scaled[2].lower()]}}}"
    if mixed := _MIXED.fullmatch(text.strip()):
        sign, whole, top, bottom = mixed.groups()
        return rf"{sign}\left({whole}+\frac{{{top}}}{{{bottom}}}\right)"
    text = _CURRENCY.sub(r"\1", text)
    unit = _BARE_UNIT.fullmatch(text.strip())
    if unit and not _NO_UNIT.search(unit[2]) and not SCALE_WORD.search(unit[2]):
        return rf"{unit[1]} \text{{ {unit[2]}}}"
    return text


def _undressed(answer: str) -> str:
    """Without a font command around all of it."""
    dress = _DRESS.fullmatch(answer.strip())
    if dress is None:
        return answer
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", dress[1]):
        depth += 1 if brace == "{" else -1
        if depth < 0:  # two commands side by side
            return answer
    return dress[1]
