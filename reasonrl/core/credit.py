"""From finished groups to advantages: the only place where rewards and advantages are computed, on every engine.

B groups in a step, n rollouts of a group, L trained tokens of a rollout.

Order: difficulty (B,), reward (n,), overlong penalty (n,), advantage (L,), memory, metrics. All groups take part,
also those that dynamic sampling drops (`kept=False`); only then do dropped groups get advantages of zero.
Whatever a part returns is checked here, so a wrong shape or a NaN is reported with the part's name instead of
entering a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.method import Method
from reasonrl.core.protocols import Measures, Remembers, Shaped
from reasonrl.core.types import Floats, Rollout, RolloutGroup

# Every metric of `Credit.metrics`, besides `reward/<part>`, `ledger/<part>/<name>` and what parts add themselves.
# A metric whose quantity does not exist in a step (no right answer, no kept group) is left out of that step.
METRICS: Mapping[str, str] = {
    "score/mean": "share of right rollouts",
    "reward/mean": "mean reward after shaping and overlong penalty",
    "reward/std": "its standard deviation over all rollouts",
    "difficulty/mean": "mean difficulty of the groups, in the estimator's unit",
    "length/mean": "generated tokens per rollout",
    "length/correct": "generated tokens per right rollout",
    "length/wrong": "generated tokens per wrong rollout",
    "length/cut": "share of rollouts cut at the limit",
    "group/count": "groups that came to credit",
    "group/solve_all": "share of groups in which every rollout is right",
    "group/solve_none": "share of groups in which every rollout is wrong",
    "group/zero_std": "share of groups whose rewards are all equal: no gradient",
    "group/dropped": "share of groups that dynamic sampling dropped",
    "group/empty": "share of groups in which no rollout survived",
    "advantage/mean": "mean over trained rollouts of the token-mean advantage",
    "advantage/std": "its standard deviation",
    "advantage/max_abs": "largest absolute value of it",
    "advantage/right_below_zero": "share of right rollouts with a negative one: pushed down although right",
    "prefix/tokens": "prefix tokens per rollout",
}

BOUND_SLACK = 1e-9  # rounding: a reward of 1.2000000000000002 keeps a bound of 1.2

T = TypeVar("T")


class PartError(ValueError):
    """A part broke its contract. `law` is the name of the law in `reasonrl.core.contract`."""

    def __init__(self, law: str, message: str) -> None:
        super().__init__(message)
        self.law = law

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.law, str(self))


@dataclass(frozen=True, eq=False)
class Credit:
    """What a step is trained on, group by group, and what is remembered and recorded of it."""

    rewards: list[Floats]  # B times (n,), overlong penalty included
    parts: list[dict[str, Floats]]  # B times name -> (n,)
    advantages: list[list[Floats]]  # B times n times (L,); read-only, often views of a single number
    memory: Memory  # keys <part>/<name>
    metrics: dict[str, float]


def assign_credit(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger) -> Credit:
    """Rewards, advantages, memory and metrics of one step. Pure: neither groups nor ledger change.

    Raises:
        PartError: a part raised, or returned a wrong shape, a value that is not finite, or one outside its declared
            range.
    """
    groups = tuple(groups)
    difficulty = _difficulty(method, groups, ledger)
    rewards, parts = _rewards(method, groups, difficulty, ledger)
    advantages = _advantages(method, groups, rewards, ledger)
    memory = _memory(method, groups, ledger)
    metrics = {
        **_batch_metrics(groups, rewards, difficulty),
        **_reward_metrics(parts),
        **_advantage_metrics(groups, advantages),
        **{f"ledger/{key}": float(value) for key, value in memory.scalars.items()},
    }
    metrics |= _part_metrics(method, groups, ledger, taken=metrics.keys() | METRICS.keys())
    return Credit(rewards, parts, advantages, memory, metrics)


def _run(method: Method, slot: str, verb: Callable[..., T], *args: Any) -> T:
    try:
        return verb(*args)
    except PartError:
        raise
    except Exception as error:
        raise PartError("runs", f"{_part(method, slot)} raised {type(error).__name__}: {error}") from error


def _part(method: Method, slot: str) -> str:
    return f"{method.name}: {slot} part {type(getattr(method, slot)).__name__}"


def _of(group: RolloutGroup) -> str:
    return f"for problem {group.problem.id!r} (step {group.step})"


def _difficulty(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger) -> Floats:
    raw = _run(method, "difficulty", method.difficulty, groups, ledger.view("difficulty"))
    values = _array(method, "difficulty", raw)
    who = _part(method, "difficulty")
    if values.shape != (len(groups),):
        raise PartError(
            "shapes", f"{who} returned shape {values.shape} for {len(groups)} groups, wanted ({len(groups)},)"
        )
    low, high = method.difficulty.range
    for group, value in zip(groups, values.tolist(), strict=True):
        if not np.isfinite(value):
            raise PartError("finite", f"{who} returned {value} {_of(group)}")
        if not low - BOUND_SLACK <= value <= high + BOUND_SLACK:
            raise PartError(
                "difficulty-range", f"{who} declares range [{low}, {high}] but returned {value} {_of(group)}"
            )
    return values


def _rewards(
    method: Method, groups: Sequence[RolloutGroup], difficulty: Floats, ledger: Ledger
) -> tuple[list[Floats], list[dict[str, Floats]]]:
    shaped = _run(method, "reward", method.reward, groups, difficulty, ledger.view("reward"))
    _require_one_per_group(method, "reward", groups, shaped)
    rewards, parts = [], []
    for group, item in zip(groups, shaped, strict=True):
        if not isinstance(item, Shaped):
            raise PartError("shapes", f"{_part(method, 'reward')} returned {item!r}, wanted Shaped(total) {_of(group)}")
        total = _vector(method, "reward", group, "total", item.total)
        _require_bounds(method, "reward", group, total, method.reward.bounds)
        named = _named_parts(method, group, item)
        if method.overlong is not None:
            penalty = _overlong(method, group)
            total, named["overlong"] = total + penalty, penalty
        rewards.append(total)
        parts.append(named)
    return rewards, parts


def _named_parts(method: Method, group: RolloutGroup, item: Shaped) -> dict[str, Floats]:
    taken = {"mean", "std", "overlong"} & item.parts.keys()
    if taken:
        raise PartError(
            "shapes", f"{_part(method, 'reward')} names a part {taken.pop()!r}, which is reserved: rename it"
        )
    return {name: _vector(method, "reward", group, name, values) for name, values in item.parts.items()}


def _overlong(method: Method, group: RolloutGroup) -> Floats:
    assert method.overlong is not None
    raw = _run(method, "overlong", method.overlong, group.total_lengths)
    penalty = _vector(method, "overlong", group, "penalty", raw)
    low, high = method.overlong.bounds
    _require_bounds(method, "overlong", group, penalty, (low, min(high, 0.0)))
    return penalty


def _array(method: Method, slot: str, raw: Any) -> Floats:
    try:
        return np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PartError("shapes", f"{_part(method, slot)} returned {raw!r}, wanted an array of numbers") from error


def _vector(method: Method, slot: str, group: RolloutGroup, name: str, raw: Any) -> Floats:
    values = _array(method, slot, raw)
    n = len(group.rollouts)
    if values.shape != (n,):
        raise PartError("shapes", f"{_part(method, slot)}: {name} has shape {values.shape}, wanted ({n},) {_of(group)}")
    if not np.isfinite(values).all():
        raise PartError("finite", f"{_part(method, slot)}: {name} is {values} {_of(group)}; scores {group.scores}")
    return values


def _require_bounds(
    method: Method, slot: str, group: RolloutGroup, values: Floats, bounds: tuple[float, float]
) -> None:
    low, high = bounds
    if values.size and not (low - BOUND_SLACK <= values.min() and values.max() <= high + BOUND_SLACK):
        raise PartError(
            "reward-bounds", f"{_part(method, slot)} declares bounds [{low}, {high}] but returned {values} {_of(group)}"
        )


def _require_one_per_group(method: Method, slot: str, groups: Sequence[RolloutGroup], values: Sequence[Any]) -> None:
    entries = len(values) if hasattr(values, "__len__") else type(values).__name__
    if entries != len(groups):
        raise PartError("shapes", f"{_part(method, slot)} returned {entries} entries for {len(groups)} groups")


def _advantages(
    method: Method, groups: Sequence[RolloutGroup], rewards: Sequence[Floats], ledger: Ledger
) -> list[list[Floats]]:
    rows = _run(method, "advantage", method.advantage, groups, rewards, ledger.view("advantage"))
    _require_one_per_group(method, "advantage", groups, rows)
    checked = [_rows(method, group, group_rows) for group, group_rows in zip(groups, rows, strict=True)]
    return [
        group_rows if group.kept else group.per_token(np.zeros(len(group.rollouts)))
        for group, group_rows in zip(groups, checked, strict=True)
    ]


def _rows(method: Method, group: RolloutGroup, raw: Sequence[Floats]) -> list[Floats]:
    if not hasattr(raw, "__len__") or len(raw) != len(group.rollouts):
        returned, n = (len(raw) if hasattr(raw, "__len__") else repr(raw)), len(group.rollouts)
        raise PartError(
            "shapes", f"{_part(method, 'advantage')} returned {returned} rows for {n} rollouts {_of(group)}"
        )
    rows = [np.asarray(row) for row in raw]
    for i, (row, length) in enumerate(zip(rows, group.trained_lengths.tolist(), strict=True)):
        if row.shape != (length,):
            raise _wrong_row(method, group, i, row)
        # a broadcast view holds one number, and a sum is finite only if its terms are: no temporary array per rollout
        if length and not np.isfinite(row[0] if row.strides == (0,) else row.sum()):
            raise PartError("finite", f"{_part(method, 'advantage')}: rollout {i} got {row} {_of(group)}")
    return rows


def _wrong_row(method: Method, group: RolloutGroup, i: int, row: Floats) -> PartError:
    rollout: Rollout = group.rollouts[i]
    who = f"{_part(method, 'advantage')}: rollout {i} got advantages of shape {row.shape} {_of(group)}"
    prefix = rollout.prefix.token_ids.size
    if rollout.prefix.loss != "policy" and row.shape == (rollout.total_tokens,):
        return PartError(
            "prefix-untrained",
            f"{who}; its prefix of {prefix} tokens has loss={rollout.prefix.loss!r}, so only the "
            f"{rollout.token_ids.size} generated tokens are trained. Declare loss='policy' to train it",
        )
    return PartError("shapes", f"{who}, wanted ({rollout.trained_tokens},)")


def _memory(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
    scalars: dict[str, float] = {}
    problems: dict[str, dict[str, float]] = {}
    for slot, part in method.parts.items():
        if not isinstance(part, Remembers):
            continue
        kept = _run(method, slot, part.remember, groups, ledger.view(slot))
        scalars.update(_prefixed(method, slot, kept.scalars))
        for problem_id, numbers in kept.problems.items():
            problems.setdefault(problem_id, {}).update(_prefixed(method, slot, numbers))
    return Memory(scalars, problems)


def _prefixed(method: Method, slot: str, numbers: Mapping[str, float]) -> dict[str, float]:
    for name, value in numbers.items():
        if "/" in name:
            raise PartError("shapes", f"{_part(method, slot)} remembers {name!r}: names must not contain a slash")
        if not np.isfinite(value):
            raise PartError("finite", f"{_part(method, slot)} remembers {name}={value}: must be finite")
    return {f"{slot}/{name}": float(value) for name, value in numbers.items()}


def _batch_metrics(groups: Sequence[RolloutGroup], rewards: Sequence[Floats], difficulty: Floats) -> dict[str, float]:
    metrics = {"group/count": float(len(groups))}
    if not groups:
        return metrics
    filled = [group for group in groups if group.rollouts]
    metrics["group/empty"] = 1.0 - len(filled) / len(groups)
    metrics["group/dropped"] = float(np.mean([not group.kept for group in groups]))
    metrics["difficulty/mean"] = float(difficulty.mean())
    if not filled:
        return metrics
    scores = np.concatenate([group.scores for group in filled])
    lengths = np.concatenate([group.lengths for group in filled])
    total = np.concatenate([group.total_lengths for group in filled])
    reward = np.concatenate(list(rewards))
    rates = np.array([group.pass_rate for group in filled])
    metrics |= {
        "group/solve_all": float((rates == 1.0).mean()),
        "group/solve_none": float((rates == 0.0).mean()),
        "group/zero_std": float(np.mean([(r == r[0]).all() for r in rewards if r.size])),
        "score/mean": float(scores.mean()),
        "reward/mean": float(reward.mean()),
        "reward/std": float(reward.std()),
        "length/mean": float(lengths.mean()),
        "length/cut": float(np.mean([not r.finished for group in filled for r in group.rollouts])),
        "prefix/tokens": float((total - lengths).mean()),
    }
    for name, chosen in (("length/correct", scores > 0), ("length/wrong", scores == 0)):
        if chosen.any():
            metrics[name] = float(lengths[chosen].mean())
    return metrics


def _reward_metrics(parts: Sequence[Mapping[str, Floats]]) -> dict[str, float]:
    columns: dict[str, list[Floats]] = {}
    for named in parts:
        for name, values in named.items():
            columns.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return {f"reward/{name}": float(values.mean()) for name, values in joined.items() if values.size}


def _advantage_metrics(groups: Sequence[RolloutGroup], advantages: Sequence[Sequence[Floats]]) -> dict[str, float]:
    pairs = [
        (row[0] if row.strides == (0,) else row.mean(), rollout.score)
        for group, rows in zip(groups, advantages, strict=True)
        if group.kept
        for rollout, row in zip(group.rollouts, rows, strict=True)
        if row.size
    ]
    if not pairs:
        return {}
    means, scores = np.array(pairs, dtype=np.float64).T
    metrics = {
        "advantage/mean": float(means.mean()),
        "advantage/std": float(means.std()),
        "advantage/max_abs": float(np.abs(means).max()),
    }
    if scores.any():
        metrics["advantage/right_below_zero"] = float((means[scores > 0] < 0).mean())
    return metrics


def _part_metrics(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger, taken: set[str]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for slot, part in method.parts.items():
        if not isinstance(part, Measures):
            continue
        for name, value in _run(method, slot, part.metrics, groups, ledger.view(slot)).items():
            key = name if "/" in name else f"{slot}/{name}"
            if key in taken or key in metrics:
                raise PartError("shapes", f"{_part(method, slot)} reports {key!r}, which exists already: rename it")
            if not np.isfinite(value):
                raise PartError("finite", f"{_part(method, slot)} reports {key}={value}: leave it out when undefined")
            metrics[key] = float(value)
    return metrics
