r"""From one row of a known data set to an `Item`, or the reason why the row is dropped. Pure functions of the row."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonrl.data.items import Dropped, Item, step_text
from reasonrl.data.readers import Row, field
from reasonrl.data.steps import solution_steps
from reasonrl.verify.extract import extract_answer


@dataclass(frozen=True)
class Columns:
    """Candidate column names of each part, best first; dots lead into nested records."""

    question: tuple[str, ...]
    answer: tuple[str, ...]
    steps: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    level: tuple[str, ...] = ()


# The row, its columns, the name of the source, and one of steps.SPLITTERS, or None for the source's own way.
Parse = Callable[[Row, Columns, str, str | None], Item | Dropped]

# Requests for a box that some sets append to every question; the prompt template adds its own.
_REQUEST = re.compile(
    r"\s*(?:Let'?s think step by step and output the final answer (?:with)?in \\boxed\{\}"
    r"|Please reason step by step,? and put your final answer within \\boxed\{\})\.?\s*$",
    re.IGNORECASE,
)
_GOLD_HASHES = re.compile(r"####\s*(.*?)\s*$", re.DOTALL)


def gsm8k(row: Row, columns: Columns, source: str, how: str | None = None) -> Item | Dropped:
    """`answer` holds the worked lines, then `#### 1,234`; a step a line."""
    worked = text(row, columns.answer)
    gold = _GOLD_HASHES.search(worked)
    if gold is None:
        return Dropped("no '#### answer' line", row.where)
    solution = text(row, columns.steps) if columns.steps else worked[: gold.start()]
    return item(row, columns, source, answer=gold[1].replace(",", ""), steps=solution_steps(solution, how or "lines"))


def math(row: Row, columns: Columns, source: str, how: str | None = None) -> Item | Dropped:
    r"""MATH and its relatives: an answer column, or else the last `\boxed{}` of the solution; a step a sentence."""
    solution = text(row, columns.steps)
    answer = text(row, columns.answer) or extract_answer(solution, "boxed") or ""
    return item(row, columns, source, answer=answer, steps=solution_steps(solution, how or "sentences"))


def plain(row: Row, columns: Columns, source: str, how: str | None = None) -> Item | Dropped:
    """Question and answer stand in columns of their own, and so may a solution, as `steps` says."""
    return item(row, columns, source, answer=text(row, columns.answer), steps=_written(row, columns, how))


def chat(row: Row, columns: Columns, source: str, how: str | None = None) -> Item | Dropped:
    """verl's schema: the question is the last user turn, the answer may be a JSON list of one (Skywork-OR1)."""
    if field(row.values, "ability") not in (None, "math"):
        return Dropped(f"ability is not math: {field(row.values, 'ability')}", row.where)
    golds = _json_list(text(row, columns.answer))
    if len(set(golds)) > 1:
        return Dropped("several gold answers", row.where)
    return item(row, columns, source, answer=golds[0] if golds else "", steps=_written(row, columns, how))


def own_fields(row: Row, columns: Columns, source: str, how: str | None = None) -> Item | Dropped:
    """Any columns. Steps may be a list of texts, or one text with a step a line."""
    steps = own_steps(row, columns, how)
    if steps is None:
        return Dropped("steps are not texts", row.where)
    return item(row, columns, source, answer=text(row, columns.answer), steps=steps)


def own_steps(row: Row, columns: Columns, how: str | None) -> tuple[str, ...] | None:
    """The steps of any column, by `how`: a list stays as it is, a text is cut by lines. None: neither of the two."""
    found = first(row, columns.steps)
    if found is None or isinstance(found, str):
        return solution_steps(found or "", how or "lines")
    if not isinstance(found, list) or not all(isinstance(step, str) for step in found):
        return None
    return cut_again(found, how)


def cut_again(steps: Sequence[str], how: str | None) -> tuple[str, ...]:
    """Steps that are cut already: joined and cut by `how`, or as they are."""
    return tuple(steps) if how is None else solution_steps("".join(map(step_text, filter(None, steps))), how)


def _written(row: Row, columns: Columns, how: str | None) -> tuple[str, ...]:
    """A column with a model's response: what it wrote after its reasoning, which ends with `</think>`."""
    response = text(row, columns.steps)
    return solution_steps(response.rpartition("</think>")[2], how or "auto")


def item(row: Row, columns: Columns, source: str, *, answer: str, steps: tuple[str, ...]) -> Item | Dropped:
    """The Item, or why not: no question, no answer."""
    question = _REQUEST.sub("", _question(first(row, columns.question))).strip()
    answer = answer.strip()
    if not question:
        return Dropped("no question", row.where)
    if not answer:
        return Dropped("no answer", row.where)
    name = as_text(first(row, columns.id))
    return Item(
        question, answer, steps, source, f"{source}/{name}" if name else None, _level(first(row, columns.level))
    )


def first(row: Row, names: tuple[str, ...]) -> Any:
    """The first of the columns that holds something."""
    return next((value for name in names if (value := field(row.values, name)) is not None), None)


def text(row: Row, names: tuple[str, ...]) -> str:
    """The first of the columns as text; "" when it holds none."""
    return as_text(first(row, names))


def as_text(value: Any) -> str:
    """Texts and numbers as text, whole numbers without `.0`; "" for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _question(value: Any) -> str:
    """A text, or the last user turn of a chat."""
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
        return as_text(turns[-1].get("content")) if turns else ""
    return as_text(value)


def _json_list(answer: str) -> list[str]:
    if answer.startswith("[") and answer.endswith("]"):
        try:
            values = json.loads(answer)
        except ValueError:  # an interval or a vector, not JSON
            return [answer]
        if values and all(isinstance(value, str) for value in values):
            return [value.strip() for value in values]
    return [answer]


def _level(value: Any) -> float | None:
    """A number, `Level 5`, or failures of several models (Skywork-OR1's `model_difficulty`), of which the mean."""
    if isinstance(value, Mapping):
        known = [float(v) for v in value.values() if isinstance(v, int | float)]
        return sum(known) / len(known) if known else None
    found = re.search(r"-?\d+(?:\.\d+)?", as_text(value))
    return float(found[0]) if found else None
