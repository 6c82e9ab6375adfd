"""From a parquet file in verl's schema to the `Problem`s that methods see: prompts and solutions as token ids.

A prompt over the limit is dropped and counted, or refused; it is never cut.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reasonrl.core import Problem
from reasonrl.data.items import DataError, step_text
from reasonrl.data.parsers import as_text
from reasonrl.data.prefixes import Stored, join, read, tokenise, within
from reasonrl.data.prompts import Prompt
from reasonrl.data.steps import answer_last

WAY_OUT = "prepare the file with `reasonrl data`, which writes this schema"


@dataclass(frozen=True)
class Loaded:
    """The problems of one file, and their texts in the same order."""

    problems: list[Problem]
    questions: list[str]
    solutions: list[str]  # the steps joined; "" without
    levels: list[float | None]
    dropped_too_long: int
    longest_prompt_tokens: int  # of all rows, the dropped ones included

    def __len__(self) -> int:
        return len(self.problems)


@dataclass(frozen=True)
class _Row:
    id: str
    source: str
    question: str
    answer: str
    steps: tuple[str, ...]
    prefix: tuple[str, ...]
    level: float | None


def load(
    parquet: Path,
    prompt: Prompt,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"] = "drop",
    solutions: bool = True,
    prefixes: Path | None = None,
    prompts: Mapping[str, Prompt] | None = None,
) -> Loaded:
    """Read and tokenise. Steps are tokenised one by one, without special tokens, so that a hint ends at a step.

    `Problem.stored_prefix`, one array a paragraph, comes from the store `prefixes`, joined by problem id and never as
    long as the sample it was cut from; without a store, from a column `extra_info.stored_prefix` (texts).
    prompts: of sources that have one of their own.
    `solutions=False` skips steps and prefixes, for callers that read neither. Raises DataError for a bad file, a store
    of other data, or when every prompt is too long.
    """
    rows = list(_rows(Path(parquet)))
    encoded = _encoded(rows, prompt, prompts or {}, tokenizer)
    lengths = [len(ids) for ids in encoded]
    kept = [i for i, length in enumerate(lengths) if length <= max_prompt_tokens]
    _check_lengths(Path(parquet), rows, lengths, max_prompt_tokens, bool(kept), overlong)
    stored = _joined(prefixes, [rows[i] for i in kept])
    texts = [_pieces(rows[i], stored) if solutions else ([], []) for i in kept]
    pieces = [text for steps, prefix in texts for text in (*steps, *prefix)]
    ids: Iterator[Any] = tokenise(pieces, tokenizer)
    problems = [
        Problem(
            id=rows[i].id,
            prompt_ids=encoded[i],  # type: ignore[arg-type]
            answer=rows[i].answer,
            solution_steps=tuple(next(ids) for _ in steps),
            stored_prefix=_shorter_than_sample([next(ids) for _ in prefix], rows[i].id, stored),
            stored_right=stored[rows[i].id].correct if stored and rows[i].id in stored else None,
            source=rows[i].source,
        )
        for i, (steps, prefix) in zip(kept, texts, strict=True)
    ]
    return Loaded(
        problems,
        [rows[i].question for i in kept],
        ["".join(map(step_text, rows[i].steps)) for i in kept],
        [rows[i].level for i in kept],
        len(rows) - len(kept),
        max(lengths),
    )


def _encoded(rows: Sequence[_Row], prompt: Prompt, prompts: Mapping[str, Prompt], tokenizer: Any) -> list[list[int]]:
    encoded: list[list[int]] = [[] for _ in rows]
    for source in dict.fromkeys(row.source for row in rows):
        places = [i for i, row in enumerate(rows) if row.source == source]
        questions = [rows[i].question for i in places]
        for i, ids in zip(places, prompts.get(source, prompt).encode_many(questions, tokenizer), strict=True):
            encoded[i] = ids
    return encoded


def validate(parquet: Path) -> int:
    """The number of rows of a file in verl's schema. Raises DataError saying what is wrong with it."""
    return sum(1 for _ in _rows(Path(parquet)))


def _rows(parquet: Path) -> Iterator[_Row]:
    table = _table(parquet)
    seen: dict[str, int] = {}
    for number, values in enumerate(table.to_pylist()):
        row = _row(values, f"{parquet}, row {number}")
        if row.id in seen:
            raise DataError(f"{parquet}: rows {seen[row.id]} and {number} share the id {row.id!r}; {WAY_OUT}")
        seen[row.id] = number
        yield row
    if not seen:
        raise DataError(f"{parquet} has no rows; {WAY_OUT}")


def _table(parquet: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not parquet.is_file():
        raise DataError(f"no data file {parquet}; {WAY_OUT}")
    try:
        names = pq.read_schema(parquet).names
        missing = [name for name in ("prompt", "reward_model") if name not in names]
        if missing:
            raise DataError(f"{parquet} lacks {', '.join(missing)}; its columns are {', '.join(names)}; {WAY_OUT}")
        wanted = [name for name in ("data_source", "prompt", "reward_model", "extra_info") if name in names]
        return pq.read_table(parquet, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{parquet} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def _row(values: dict[str, Any], where: str) -> _Row:
    extra = values.get("extra_info") or {}
    question = extra.get("question") or _user_turn(values["prompt"], where)
    gold = (values["reward_model"] or {}).get("ground_truth")
    answer = as_text(gold).strip()
    if not answer:
        raise DataError(
            f"{where}: reward_model.ground_truth must be a text, got {gold!r}. For a nested gold prepare the file with "
            f"`reasonrl data source=jsonl question_field=... answer_field=reward_model.ground_truth.<name>`"
        )
    source = values.get("data_source") or ""
    return _Row(
        id=as_text(extra.get("id")) or _content_id(source, question, answer),
        source=source,
        question=question,
        answer=answer,
        steps=answer_last(tuple(extra.get("steps") or ())),  # a file from elsewhere may state it earlier
        prefix=tuple(extra.get("stored_prefix") or ()),
        level=extra.get("level"),
    )


def _user_turn(prompt: Any, where: str) -> str:
    """The question of a chat: its one user turn. A system turn is replaced by the run's prompt template."""
    turns = [turn["content"] for turn in prompt or () if turn.get("role") == "user"] if isinstance(prompt, list) else []
    if len(turns) != 1 or not turns[0]:
        raise DataError(f"{where}: prompt must be a chat with one user turn, got {len(turns)} of them; {WAY_OUT}")
    return str(turns[0])


def _content_id(source: str, question: str, answer: str) -> str:
    return f"{source or 'problem'}/{hashlib.sha256(repr((question, answer)).encode()).hexdigest()[:16]}"


def _joined(prefixes: Path | None, rows: Sequence[_Row]) -> Mapping[str, Stored] | None:
    if prefixes is None:
        return None
    store = read(prefixes)
    join(store, ((row.id, row.question) for row in rows))
    return store.rows


def _pieces(row: _Row, stored: Mapping[str, Stored] | None) -> tuple[list[str], list[str]]:
    """Texts of the steps and of the prefix; a store replaces what the row brings."""
    prefix = row.prefix
    if stored is not None:
        prefix = stored[row.id].paragraphs if row.id in stored else ()
    return [step_text(step) for step in row.steps if step], [text for text in prefix if text]


def _shorter_than_sample(ids: list[Any], id: str, stored: Mapping[str, Stored] | None) -> tuple[Any, ...]:
    return tuple(ids if stored is None or id not in stored else within(ids, stored[id].sample_tokens - 1))


def _check_lengths(
    parquet: Path, rows: Sequence[_Row], lengths: Sequence[int], limit: int, any_kept: bool, overlong: str
) -> None:
    longest = max(range(len(rows)), key=lambda i: lengths[i])
    found = f"{sum(n > limit for n in lengths)} of {len(rows)} prompts are longer than max_prompt_tokens={limit}"
    if not any_kept:
        raise DataError(
            f"{parquet}: {found}, so nothing is left; the shortest has {min(lengths)} tokens, the longest "
            f"{lengths[longest]}. Raise max_prompt_tokens, or choose a shorter prompt= template"
        )
    if overlong == "error" and lengths[longest] > limit:
        raise DataError(
            f"{parquet}: {found}; the longest is {rows[longest].id!r} with {lengths[longest]} tokens. Raise "
            f"max_prompt_tokens, or drop them with data.overlong=drop"
        )
