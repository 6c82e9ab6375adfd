"""The rows of samples.parquet, and the form in which a page carries them: JSON by columns, gzip, base64.

N samples
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError

TEXT_BYTES = 30_000_000  # of sample texts in a page; a phone still opens that
SHORT_BYTES = 2_000  # of any other text of a sample: an "extracted answer" can be a whole page
COLUMNS = (
    "task",
    "id",
    "number",
    "category",
    "gold",
    "text",
    "extracted",
    "correct",
    "status",
    "message",
    "tokens",
    "prompt_tokens",
    "finished",
    "parts",
)
SHORT = ("id", "category", "gold", "extracted", "message")


@dataclass(frozen=True)
class Packed:
    """Samples as a page carries them.

    Attributes:
        data: base64 of gzip of JSON, one list a column; letters, digits, `+/=` only, so that it is safe inside HTML.
        limit: bytes of the longest text that is whole; None: all are.
        elided: texts whose middle was left out.
    """

    data: str
    limit: int | None
    elided: int


def read_samples(path: Path) -> dict[str, list[Any]]:
    """The columns of samples.parquet, each (N,). Raises ConfigError for a file that is missing, broken or of another form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "give the `reasonrl eval` command that made the folder again: it continues, and writes the file anew"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: {again}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path} cannot be read ({error}): {again}") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}: {again}")
    return {name: table[name].to_pylist() for name in COLUMNS}


def pack(columns: dict[str, list[Any]], text_bytes: int = TEXT_BYTES) -> Packed:
    """Samples for a page, with at most about `text_bytes` of texts: the middle of the longest ones goes first."""
    sizes = np.array([len(text.encode()) for text in columns["text"]], dtype=np.int64)  # (N,)
    limit = fitting_limit(sizes, text_bytes)
    tasks = list(dict.fromkeys(columns["task"]))
    place = {name: i for i, name in enumerate(tasks)}
    packed = {
        **columns,
        "tasks": tasks,
        "task": [place[name] for name in columns["task"]],
        "text": columns["text"] if limit is None else [without_middle(text, limit) for text in columns["text"]],
        "parts": [dict(parts) if parts else None for parts in columns["parts"]],
        **{name: [None if v is None else without_middle(v, SHORT_BYTES) for v in columns[name]] for name in SHORT},
    }
    text = json.dumps(packed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
    return Packed(data, limit, 0 if limit is None else int((sizes > limit).sum()))


def fitting_limit(sizes: NDArray[np.int64] | Sequence[int], budget: int) -> int | None:
    """The largest limit with `sum(min(size, limit)) <= budget`; None when all sizes (N,) fit as they are."""
    ordered = np.sort(np.asarray(sizes, dtype=np.int64))
    if ordered.sum() <= budget:
        return None
    before = np.cumsum(ordered) - ordered  # bytes of the texts shorter than each one
    limits = (budget - before) // np.arange(ordered.size, 0, -1)  # what is left, shared among it and the longer ones
    return int(limits[np.argmax(limits < ordered)])


def without_middle(text: str, limit: int) -> str:
    """The first and last half of `limit` bytes of a text that is longer, with a note between them of what is missing."""
    if len(text) <= limit // 4:  # a character has at most 4 bytes
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    half = limit // 2
    head = data[:half].decode(errors="ignore")
    tail = data[len(data) - half :].decode(errors="ignore")
    return f"{head}\n[... {len(text) - len(head) - len(tail):,} characters left out here ...]\n{tail}"
