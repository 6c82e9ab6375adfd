"""`prm.parquet` as training and choosing read it: all rows in memory, their step ends and labels checked.

R responses, L tokens of one, K steps of one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.data.items import DataError
from reasonrl.engine.prm import Steps
from reasonrl.eval.prm.file import ROWS_TOGETHER, WAY_OUT, Row, file_at, read_facts
from reasonrl.runs.files import fingerprint


@dataclass(frozen=True, eq=False)
class Responses:
    """A file in memory. settings: what it was made with (`tau`, `rollouts`, fingerprints, ...). about: names, for people."""

    path: Path
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return fingerprint(self.path)


def steps(row: Row, ends: Sequence[int] | NDArray[Any] | None = None) -> Steps:
    """A row as a scorer takes it; `ends` (K,) instead of its own."""
    chosen: Any = row.step_ends if ends is None else ends
    return Steps(row.question, row.prompt_ids, row.response_ids, chosen)  # type: ignore[arg-type]


def read_responses(given: str | Path, *, labels: bool) -> Responses:
    """The file or store at `given`, with labels when they are wanted. Raises ConfigError naming the row."""
    try:
        path = file_at(given)
        facts = read_facts(path)
        found = Responses(path, facts.settings, facts.about, list(_rows(path)))
    except DataError as error:
        raise ConfigError(str(error)) from error
    if not found.rows:
        raise ConfigError(f"{path} has no rows; {WAY_OUT}")
    if labels and found.settings.get("rollouts") == 0:
        raise ConfigError(f"{path} was made with rollouts=0, so it has no labels to train on; {WAY_OUT} rollouts=8")
    for number, row in enumerate(found.rows):
        _check(row, labels, f"{path}, row {number} (problem {row.problem_id!r})")
    return found


def _rows(path: Path) -> Iterator[Row]:
    """In the file's order; lists as views of one array a few thousand rows. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f.name for f in fields(Row)]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_TOGETHER, columns=names):
                columns = [_values(batch.column(name)) for name in names]
                yield from (Row(*values) for values in zip(*columns, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}. Copy it again") from error


def _values(column: Any) -> Sequence[Any]:
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = column.flatten().to_numpy(zero_copy_only=False)  # a missing list is empty, a missing number NaN
    return np.split(flat, column.value_lengths().fill_null(0).to_numpy().cumsum()[:-1])


def _check(row: Row, labels: bool, where: str) -> None:
    ends, length = row.step_ends, len(row.response_ids)
    if (np.diff(ends) <= 0).any() or (len(ends) and (ends[0] < 0 or ends[-1] >= length)):
        raise ConfigError(f"{where}: step_ends must be rising indices of its {length} tokens, got {list(ends)}")
    for name, found in {"hard": row.hard, "soft": row.soft}.items() if labels else ():
        if len(found) != len(ends):
            raise ConfigError(f"{where}: {len(found)} labels in column {name} for {len(ends)} steps; {WAY_OUT}")
        if not ((found >= 0) & (found <= 1)).all():
            raise ConfigError(f"{where}: labels in column {name} must lie in [0, 1], got {found.tolist()}")
