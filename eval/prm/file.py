"""The file that a process reward model learns from, `prm.parquet`: a row a response, with its steps and their labels.

    L response tokens, K steps of a response

`step_ends` are indices into `response_ids`, rising; the last is the last token that is no end or special token, and a
response without any other token has no step. `hard` and `soft` are the labels at those ends, that of the last one being
`right`. Responses of a problem that are equal, token by token, are one row.

A file made without rollouts holds candidates to choose from: all n of a problem in the order of their numbers, equal ones
too, and no labels.

What the file was made with stands in its metadata (`Facts`): settings, among them `tau`, `rollouts` and the fingerprints
of model and tokenizer; names; counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reasonrl.data.items import DataError
from reasonrl.data.prefixes import Facts, facts_in, facts_metadata

FILE = "prm.parquet"
SCHEMA_VERSION = 1
METADATA = b"reasonrl.prm"
ROWS_TOGETHER = 4096  # of a row group: what is in memory at once while writing
WAY_OUT = "make one with `reasonrl prm data`"

Ids: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One response, or several equal ones."""

    problem_id: str
    source: str
    question: str  # bare, without the prompt's words
    answer: str  # the right one
    prompt_ids: Ids  # what the policy read before the response
    response_ids: Ids  # (L,) as sampled, the end token included when it was emitted
    logprobs: Floats  # (L,) of the distribution that the tokens were drawn from
    text: str  # the response, special tokens left out
    given: str | None  # the answer found in the text
    right: bool
    finished: bool  # False: cut at max_new_tokens
    numbers: Ids  # which of the problem's n responses, 0..n-1, were exactly this one
    step_ends: Ids  # (K,)
    hard: Floats  # (K,) or ()
    soft: Floats  # (K,) or ()


def write(path: Path, rows: Iterable[Row], facts: Facts) -> None:
    """Write the file; the same rows and facts give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(_columns().items()), metadata={METADATA: facts_metadata(facts)})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        rows = iter(rows)
        while some := list(islice(rows, ROWS_TOGETHER)):
            columns = [_column([getattr(row, f.name) for row in some], schema.field(f.name).type) for f in fields(Row)]
            file.write_table(pa.table(columns, schema=schema), row_group_size=ROWS_TOGETHER)


def read_facts(path: Path) -> Facts:
    """What the file at `path` was made with; reads no row. Raises DataError for another file."""
    return facts_in(
        path, METADATA, SCHEMA_VERSION, list(_columns()), what="data of `reasonrl prm data`", way_out=WAY_OUT
    )


def file_at(given: str | Path) -> Path:
    """What a person names: the store's folder, or the file itself. Raises DataError when it is not there or not done."""
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if any(path.glob("*/shard-*.jsonl")):
        raise DataError(
            f"{path} is not finished, it has no {FILE} yet: give the command again that started it, for every shard"
        )
    raise DataError(f"no {FILE} at {path} (here: {Path.cwd()}); {WAY_OUT}")


def _columns() -> dict[str, Any]:
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("right", "finished"), pa.bool_()),
        **dict.fromkeys(("prompt_ids", "response_ids", "numbers", "step_ends"), pa.list_(pa.int32())),
        **dict.fromkeys(("logprobs", "hard", "soft"), pa.list_(pa.float32())),
    }
    return {f.name: kinds.get(f.name, pa.string()) for f in fields(Row)}


def _column(values: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.concatenate(values).astype(kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(offsets, flat, type=kind)
