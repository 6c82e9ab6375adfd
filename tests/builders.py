"""Small builders: `group(scores=[1, 0], lengths=[10, 40])`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasonrl.core import Ledger, Prefix, Problem, Rollout, RolloutGroup


def problem(id: str = "p0", **fields: Any) -> Problem:
    return Problem(**{"id": id, "prompt_ids": [1, 2, 3], "answer": "4", **fields})


def rollout(score: int = 1, length: int = 10, *, prefix: Prefix | None = None, **fields: Any) -> Rollout:
    ids = np.arange(3, 3 + length, dtype=np.int32)
    own: dict[str, Any] = {"token_ids": ids, "logprobs": np.full(length, -0.5, np.float32), "finished": True}
    return Rollout(**{"prefix": prefix or Prefix(), "score": score, **own, **fields})


def group(
    scores: Sequence[int] = (1, 0),
    lengths: Sequence[int] | None = None,
    *,
    id: str = "p0",
    step: int = 1,
    prefix: Prefix | None = None,
    **fields: Any,
) -> RolloutGroup:
    lengths = [10] * len(scores) if lengths is None else lengths
    answers = [rollout(s, n, prefix=prefix) for s, n in zip(scores, lengths, strict=True)]
    return RolloutGroup(problem(id), step, tuple(answers), **fields)


def groups_with_pass_rate(rate: float, *, count: int = 10, n: int = 10, step: int = 1) -> list[RolloutGroup]:
    """`count` mixed groups whose mean pass rate is `rate`."""
    right = round(rate * n)
    return [group([1] * right + [0] * (n - right), id=f"p{i}", step=step) for i in range(count)]


def ledger_with(**scalars: float) -> Ledger:
    """A ledger that remembers these scalars; write `difficulty__batch_pass_rate` for `difficulty/batch_pass_rate`."""
    ledger = Ledger()
    state = ledger.state_dict()
    state["scalars"] = {name.replace("__", "/"): value for name, value in scalars.items()}
    return Ledger.from_state_dict(state)


def shards(checkpoint: Path, weights: bytes = b"weights") -> None:
    """The files verl leaves of one training process, with made-up contents."""
    actor = checkpoint / "actor"
    actor.mkdir(parents=True, exist_ok=True)
    for part in ("model", "optim", "extra_state"):
        (actor / f"{part}_world_size_1_rank_0.pt").write_bytes(weights)
