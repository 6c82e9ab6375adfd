"""One parquet file a step, one row per rollout: everything that credit saw and made.

Columns are fixed (`COLUMNS`), reward parts come as `reward_<name>`; the schema version is in the file's metadata. Probes are
rows with `trained` false. Arrays per token cover the generated tokens; `advantages` cover the trained ones, which are the
prefix's too when `prefix_loss` is "policy".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.core import Rollout, RolloutGroup
from reasonrl.runs.record import StepRecord

SCHEMA_VERSION = 1
COLUMNS = {
    "step": pa.int32(),
    "problem_id": pa.string(),
    "group": pa.int32(),  # place of the problem in the step
    "rollout": pa.int32(),  # place in the group; -1 for a probe
    "trained": pa.bool_(),
    "kept": pa.bool_(),  # False: dropped by dynamic sampling
    "round": pa.int32(),
    "parent_rollout": pa.int32(),
    "parent_token": pa.int32(),
    "answer": pa.string(),
    "text": pa.large_string(),
    "prompt_ids": pa.list_(pa.int32()),
    "prefix_ids": pa.list_(pa.int32()),
    "token_ids": pa.list_(pa.int32()),
    "logprobs": pa.list_(pa.float32()),
    "prefix_loss": pa.string(),
    "prefix_weight": pa.float32(),
    "prefix_rate": pa.float32(),
    "prefix_scored": pa.bool_(),
    "tokens": pa.int32(),
    "finished": pa.bool_(),
    "score": pa.float32(),
    "reward": pa.float64(),
    "advantages": pa.list_(pa.float32()),
}


def write_rollouts(path: Path, record: StepRecord, decode: Callable[[Any], str]) -> None:
    """Write the file of one step at `path`."""
    credit = record.credit
    names = sorted({name for parts in credit.parts for name in parts})
    rows: dict[str, list[Any]] = {name: [] for name in [*COLUMNS, *(f"reward_{n}" for n in names)]}
    for g, group in enumerate(record.groups):
        for i, rollout in enumerate(group.rollouts):
            made = {
                "rollout": i,
                "trained": True,
                "reward": float(credit.rewards[g][i]),
                "advantages": np.asarray(credit.advantages[g][i], dtype=np.float32),
                **{f"reward_{n}": float(v[i]) for n, v in credit.parts[g].items()},
            }
            _append(rows, record.step, g, group, rollout, made, decode)
        for probe in group.probes:
            _append(rows, record.step, g, group, probe, {"rollout": -1, "trained": False}, decode)
    schema = pa.schema([*COLUMNS.items(), *((f"reward_{n}", pa.float64()) for n in names)])
    schema = schema.with_metadata({"reasonrl_rollouts": str(SCHEMA_VERSION)})
    pq.write_table(pa.table(rows, schema=schema), path, compression="zstd")


def _append(
    rows: dict[str, list[Any]],
    step: int,
    g: int,
    group: RolloutGroup,
    rollout: Rollout,
    made: Mapping[str, Any],
    decode: Callable[[Any], str],
) -> None:
    prefix = rollout.prefix
    parent = rollout.parent or (None, None)
    values = {
        "step": step,
        "problem_id": group.problem.id,
        "group": g,
        "kept": group.kept,
        "round": rollout.round,
        "parent_rollout": parent[0],
        "parent_token": parent[1],
        "answer": group.problem.answer,
        "text": decode(rollout.token_ids),
        "prompt_ids": group.problem.prompt_ids,
        "prefix_ids": prefix.token_ids,
        "token_ids": rollout.token_ids,
        "logprobs": rollout.logprobs,
        "prefix_loss": prefix.loss,
        "prefix_weight": prefix.weight,
        "prefix_rate": prefix.rate,
        "prefix_scored": prefix.scored,
        "tokens": rollout.token_ids.size,
        "finished": rollout.finished,
        "score": rollout.score,
        **made,
    }
    for name, column in rows.items():
        column.append(values.get(name))
