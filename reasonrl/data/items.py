"""What a data source yields: a question with its checkable answer, or the reason why a row was dropped.

Every source gives a stream of `Item` and `Dropped`; `prepare.py` turns it into one parquet file and counts the dropped.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class DataError(ValueError):
    """Data that cannot be used. The message says what, where, and the way out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One problem as text, before any prompt template or tokenizer."""

    question: str  # the bare question, without instructions on how to write the answer
    answer: str  # the gold answer alone: "72", "\\frac{1}{2}", "C"
    # The reference solution cut into pieces, in order; () when the source has none. A piece that does not end in white
    # space stands on a line of its own: the solution is "".join(step_text(s) for s in steps).
    steps: tuple[str, ...] = ()
    source: str = ""  # name that groups problems in metrics, "gsm8k"
    id: str | None = None  # the source's own identity; None: made from source, question and answer
    level: float | None = None  # the source's difficulty, larger = harder, on the source's own scale


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that did not become an item."""

    reason: str  # short and countable: "no answer", "empty question"
    where: str  # file and line or row, for a person


def step_text(step: str) -> str:
    """One step as it stands in the solution: a newline is added unless the step brings its own white space."""
    return step if step[-1:].isspace() else step + "\n"


Stream = Iterable[Item | Dropped]
Rows = Iterator[Item | Dropped]
