"""Between verl's rows and reasonrl's groups. Numpy and torch only; nothing here talks to Ray or the queue.

    R rows of the batch, L_r response tokens of row r, P_r its prompt tokens

A row is one trained rollout. Where its prefix goes depends on what training does with it:

    prefix.loss   prompt                     response            response mask
    none          problem prompt + prefix    generated           1 ...
    policy        problem prompt             prefix + generated  1 ... 1 1
    imitate       problem prompt             prefix + generated  0 ... 1 1

Everything that is not a tensor travels in the row's `record`; probes travel in the record of the rollout they continue.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reasonrl.core import EMPTY, Credit, Prefix, Problem, Rollout, RolloutGroup

RECORD = "reasonrl"  # key of the record inside verl's `extra_fields`


@dataclass
class Row:
    """One trained rollout on its way into the queue."""

    prompt: NDArray[np.int32]
    response: NDArray[np.int32]
    mask: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    score: float
    record: dict[str, Any]


def to_row(problem: Problem, rollout: Rollout, record: Mapping[str, Any], probes: Sequence[Rollout] = ()) -> Row:
    """A rollout -> the row verl trains on."""
    prefix = rollout.prefix
    inside = prefix.loss != "none"
    generated = rollout.token_ids
    response = np.concatenate([prefix.token_ids, generated]) if inside else generated
    mask = np.ones(response.size, np.int32)
    logprobs = rollout.logprobs
    if inside:
        mask[: prefix.token_ids.size] = prefix.loss == "policy"
        # No sampling policy wrote the prefix. Zeros reach only verl's rollout-against-actor statistics; importance
        # weights (`algorithm.rollout_correction`) would read them, so config.py refuses that combination.
        logprobs = np.concatenate([np.zeros(prefix.token_ids.size, np.float32), logprobs])
    return Row(
        prompt=problem.prompt_ids if inside else np.concatenate([problem.prompt_ids, prefix.token_ids]),
        response=response,
        mask=mask,
        logprobs=logprobs,
        score=rollout.score,
        record={
            **record,
            "prefix_tokens": prefix.token_ids.size,
            "prefix_loss": prefix.loss,
            "prefix_weight": prefix.weight,
            "prefix_scored": prefix.scored,
            "prefix_rate": prefix.rate,
            "score": rollout.score,
            "finished": rollout.finished,
            "round": rollout.round,
            # pickled: the queue's own serialisation would turn the objects inside into dictionaries
            "probes": pickle.dumps(tuple(probes)) if probes else b"",
            "probe_count": len(probes),
        },
    )


@dataclass
class Rows:
    """Rows as fetched: flat arrays with offsets, and one record a row. Padding rows are already gone."""

    uids: list[str]
    records: list[dict[str, Any]]
    prompts: NDArray[Any]
    prompt_offsets: NDArray[np.int64]  # (R + 1,)
    responses: NDArray[Any]
    offsets: NDArray[np.int64]  # (R + 1,)
    logprobs: NDArray[np.float32]
    aux: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # per response token: old_logprobs, entropy

    def __len__(self) -> int:
        return len(self.uids)


def flat(nested: torch.Tensor) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A jagged tensor, or an ordinary one of equal rows, as values and offsets (R + 1,)."""
    if nested.is_nested:
        return nested.values().numpy(), nested.offsets().numpy().astype(np.int64)
    return nested.reshape(-1).numpy(), np.arange(nested.shape[0] + 1, dtype=np.int64) * nested.shape[1]


def groups_of(
    rows: Rows,
    problems: Sequence[Problem],
    step: int,
    *,
    skip: Set[int] = frozenset(),
    kept: Callable[[str], bool] = lambda uid: True,
) -> tuple[list[RolloutGroup], list[list[int]]]:
    """Rows -> groups in the order the problems were submitted, and for each group the row of each rollout.

    skip: padding rows, which copy another row's record. kept: uid -> whether dynamic sampling keeps the group.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for r, uid in enumerate(rows.uids):
        if r not in skip:
            members[uid].append(r)
    order = sorted(members, key=lambda uid: (rows.records[members[uid][0]]["order"], uid))
    lock_arrays(rows)
    groups, where = [], []
    for uid in order:
        indices = sorted(members[uid], key=lambda r: rows.records[r]["rollout"])
        rollouts = tuple(rollout_of(rows, r) for r in indices)
        groups.append(
            RolloutGroup(
                problem=problems[rows.records[indices[0]]["problem"]],
                step=step,
                rollouts=rollouts,
                probes=tuple(p for r in indices for p in probes_of(rows.records[r])),
                kept=kept(uid),
            )
        )
        where.append(indices)
    return groups, where


def lock_arrays(rows: Rows) -> None:
    """Bring the flat arrays to the core's types once, read-only, so that every rollout is a view of them."""
    rows.responses = np.ascontiguousarray(rows.responses, dtype=np.int32)
    rows.prompts = np.ascontiguousarray(rows.prompts, dtype=np.int32)
    rows.logprobs = np.ascontiguousarray(rows.logprobs, dtype=np.float32)
    for array in (rows.responses, rows.prompts, rows.logprobs):
        array.setflags(write=False)
    for name, values in rows.aux.items():
        rows.aux[name] = np.ascontiguousarray(values, dtype=np.float32)
        rows.aux[name].setflags(write=False)


def rollout_of(rows: Rows, r: int) -> Rollout:
    """Row r as a rollout; arrays are views."""
    record = rows.records[r]
    begin, end = rows.offsets[r], rows.offsets[r + 1]
    length = record["prefix_tokens"]
    inside = record["prefix_loss"] != "none"
    if not length:
        ids = EMPTY
    elif inside:
        ids = rows.responses[begin : begin + length]
    else:
        stop = rows.prompt_offsets[r + 1]
        ids = rows.prompts[stop - length : stop]
    first = begin + length if inside else begin
    aux = {}
    if rows.aux:
        padding = np.zeros(0 if inside else length, np.float32)
        aux = {name: np.concatenate([padding, values[begin:end]]) for name, values in rows.aux.items()}
    plain = not length and not inside and record["prefix_rate"] is None and not record["prefix_scored"]
    return Rollout(
        prefix=NO_PREFIX
        if plain
        else Prefix(
            token_ids=ids,
            loss=record["prefix_loss"],
            weight=record["prefix_weight"],
            scored=record["prefix_scored"],
            rate=record["prefix_rate"],
        ),
        token_ids=rows.responses[first:end],
        logprobs=rows.logprobs[first:end],
        score=record["score"],
        finished=record["finished"],
        round=record["round"],
        aux=aux,
    )


def probes_of(record: Mapping[str, Any]) -> tuple[Rollout, ...]:
    """The probes that travel in a row's record; only ever reads what this run's own worker wrote."""
    return pickle.loads(record["probes"]) if record.get("probes") else ()


NO_PREFIX = Prefix()


def advantages_of(rows: Rows, groups: Sequence[RolloutGroup], where: Sequence[Sequence[int]], credit: Credit) -> Any:
    """Credit -> one advantage per response token, flat float32 in row order (an imitated prefix gets 0)."""
    out = np.zeros(int(rows.offsets[-1]), np.float32)
    for group, indices, advantages in zip(groups, where, credit.advantages, strict=True):
        for rollout, r, values in zip(group.rollouts, indices, advantages, strict=True):
            end = rows.offsets[r + 1]
            out[end - rollout.trained_tokens : end] = values
    return out


def rewards_of(rows: Rows, where: Sequence[Sequence[int]], credit: Credit) -> Any:
    """Shaped rewards on the last token of each response, flat float32, where verl's `critic/rewards/*` looks."""
    out = np.zeros(int(rows.offsets[-1]), np.float32)
    for indices, rewards in zip(where, credit.rewards, strict=True):
        out[rows.offsets[np.asarray(indices) + 1] - 1] = rewards
    return out


def mini_batch_scale(padding: NDArray[np.bool_], ranks: int, rows: int) -> NDArray[np.float32]:
    """(R,) `rows / rollouts` of the mini-batch that each row falls into, 1.0 where nothing is padded.

    verl hands each rank a contiguous share of the rows, cuts the shares into mini-batches in order, and divides
    per-sequence losses by `rows`, padding included. Multiplying by this makes it a mean over rollouts.
    padding: which rows are synthetic. rows: of one mini-batch, over all ranks.
    """
    share, part = padding.size // ranks, rows // ranks
    mini_batch = (np.arange(padding.size) % share) // part
    rollouts = np.bincount(mini_batch, weights=~padding)
    return np.where(padding, 1.0, rows / np.maximum(rollouts, 1)[mini_batch]).astype(np.float32)


def imitation_of(rows: Rows, *, skip: Set[int] = frozenset()) -> NDArray[np.float32] | None:
    """Weight of each response token in the imitation term, flat; None when no prefix asks for it.

    Rollout i adds `weight_i / prefix length` per prefix token; the loss divides by the number of rollouts.
    """
    asking = [
        r
        for r, record in enumerate(rows.records)
        if record["prefix_loss"] == "imitate" and record["prefix_tokens"] and r not in skip
    ]
    if not asking:
        return None
    out = np.zeros(int(rows.offsets[-1]), np.float32)
    for r in asking:
        record = rows.records[r]
        begin, length = rows.offsets[r], record["prefix_tokens"]
        out[begin : begin + length] = record["prefix_weight"] / length
    return out
