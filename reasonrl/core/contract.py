"""What any strategy must satisfy, as named laws, and a runner: `reasonrl check my_pkg.my_method:build`.

A law is a function that raises when it is broken; the message carries the numbers. A strategy that fails one law often
cannot be judged on the others: those are reported as blocked, not as broken.

On padding: the engine pads, strategies never see padding. The law therefore hands over the same rollouts as views into
larger buffers with garbage around them (ids that do not exist, NaN log-probabilities). Credit must not move by one bit.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from reasonrl.core import specimens
from reasonrl.core.credit import Credit, PartError, assign_credit
from reasonrl.core.factory import Factory, load_factory, make
from reasonrl.core.ledger import Ledger
from reasonrl.core.method import Method, with_limits
from reasonrl.core.types import Floats, Rollout, RolloutGroup, read_only

TOLERANCE = 1e-7  # sums in another order differ in the last bits, and eps = 1e-6 may enlarge that


class Violation(AssertionError):
    """A strategy broke a law."""

    def __init__(self, law: str, message: str) -> None:
        super().__init__(f"{law}: {message}")
        self.law = law


@dataclass(frozen=True)
class LawResult:
    """How one law fared. Blocked = another law is broken, so this one could not be judged."""

    law: str
    status: Literal["kept", "broken", "blocked"]
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the law was judged and kept."""
        return self.status == "kept"


def run_contract(target: str | Factory | Method, **knobs: Any) -> list[LawResult]:
    """Judge a strategy by every law, in order.

    Args:
        target: `package.module:factory`, a factory, or a ready method.
        knobs: given to the factory.
    Returns:
        One result per law; the strategy passes when all are kept.
    """
    try:
        method = _build(target, knobs)
    except Exception as error:  # whatever user code raises is a verdict here, not a crash
        return [_verdict("builds", error), *(LawResult(law, "blocked", "builds") for law in LAWS if law != "builds")]
    return [_judge(law, check, method) for law, check in LAWS.items()]


def _build(target: str | Factory | Method, knobs: dict[str, Any]) -> Method:
    method = target
    if not isinstance(method, Method):
        method = make(load_factory(target) if isinstance(target, str) else target, knobs)  # type: ignore[arg-type]
    explicit = getattr(method.overlong, "max_tokens", None) or 0
    return with_limits(method, max(specimens.MOST_TOKENS, explicit))


def _judge(law: str, check: Callable[[Method], None], method: Method) -> LawResult:
    try:
        check(method)
    except Exception as error:
        return _verdict(law, error)
    return LawResult(law, "kept")


def _verdict(law: str, error: Exception) -> LawResult:
    if isinstance(error, specimens.EndlessPlan):
        error = Violation("plan-terminates", str(error))
    broken = error.law if isinstance(error, Violation | PartError) else law
    text = str(error) if isinstance(error, Violation | PartError) else f"{type(error).__name__}: {error}"
    message = text if text.startswith(f"{broken}: ") else f"{broken}: {text}"
    return LawResult(law, "broken" if broken == law else "blocked", message)


# what the laws look at


def _batches(method: Method) -> dict[str, list[RolloutGroup]]:
    return {
        "played": specimens.played_step(method, 1, Ledger.for_method(method)),
        "odd": specimens.odd_groups(),
        "prefixed": specimens.prefixed_groups(),
    }


def _credit(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger | None = None) -> Credit:
    return assign_credit(method, groups, ledger or Ledger.for_method(method))


def _steps(method: Method, ledger: Ledger, steps: Sequence[int]) -> Credit:
    credit = None
    for step in steps:
        groups = specimens.played_step(method, step, ledger)
        credit = _credit(method, groups, ledger)
        ledger.observe(groups, credit)
    assert credit is not None
    return credit


def _copy(method: Method) -> Method:
    try:
        copied: Method = pickle.loads(pickle.dumps(method))
    except Exception as error:
        raise Violation("pickling", f"{method.name} cannot be pickled: {type(error).__name__}: {error}") from error
    return copied


def _require_same(
    law: str, what: str, first: Floats, second: Floats, *, names: tuple[str, str], exact: bool = False
) -> None:
    tolerance = 0.0 if exact else TOLERANCE
    if first.shape != second.shape or not np.allclose(first, second, rtol=tolerance, atol=tolerance):
        raise Violation(law, f"{what}: {names[0]} {_show(first)}, {names[1]} {_show(second)}")


def _show(values: Floats) -> str:
    return np.array2string(values, precision=6, threshold=12, edgeitems=4)


def _require_same_group(
    law: str, name: str, a: tuple[Credit, int], b: tuple[Credit, int], order: Sequence[int], **how: Any
) -> None:
    """Group `a` with its rollouts in `order` has the credit of group `b`."""
    (first, i), (second, j) = a, b
    _require_same(law, f"rewards of {name}", first.rewards[i][list(order)], second.rewards[j], **how)
    for position, k in enumerate(order):
        row, other = first.advantages[i][k], second.advantages[j][position]
        _require_same(law, f"advantages of {name}, rollout {k}", row, other, **how)


def _require_same_credit(
    law: str,
    groups: Sequence[RolloutGroup],
    first: Credit,
    second: Credit,
    *,
    names: tuple[str, str],
    exact: bool = True,
) -> None:
    for i, group in enumerate(groups):
        order = range(len(group.rollouts))
        _require_same_group(law, _name(group), (first, i), (second, i), order, names=names, exact=exact)
    if first.memory != second.memory:
        raise Violation(law, f"memory: {names[0]} {first.memory}, {names[1]} {second.memory}")


def _name(group: RolloutGroup) -> str:
    return f"{group.problem.id} (scores {group.scores.astype(int).tolist()}, lengths {group.lengths.tolist()})"


# the laws


def _builds(method: Method) -> None:
    """The factory returns a Method; ran before."""


def _plan_terminates(method: Method) -> None:
    for problem in specimens.problems():
        specimens.play(method, problem)


def _plan_count(method: Method) -> None:
    for problem in specimens.problems():
        requests, _ = specimens.play(method, problem)
        trained = sum(request.n for request in requests if request.train)
        if trained != method.prefix.n:
            raise Violation(
                "plan-count", f"problem {problem.id}: plan asks for {trained} rollouts, n={method.prefix.n}"
            )


def _plan_room(method: Method) -> None:
    for room in (0, 3, specimens.ROOM):
        for problem in specimens.problems():
            for request in specimens.play(method, problem, room=room)[0]:
                tokens = request.prefix.token_ids.size
                if request.train and tokens > room:  # a probe may continue an answer that nearly ends
                    raise Violation(
                        "plan-room", f"problem {problem.id}: prefix of {tokens} tokens with view.room={room}"
                    )


def _plan_determinism(method: Method) -> None:
    for problem in specimens.problems():
        first, second = (specimens.play(method, problem)[0] for _ in range(2))
        if first != second:
            raise Violation("plan-determinism", f"problem {problem.id}, same view, same rng: {first} then {second}")


def _credit_runs(method: Method) -> None:
    """`assign_credit` itself names the law that a part breaks."""
    for groups in _batches(method).values():
        _credit(method, groups)


def _determinism(method: Method) -> None:
    for groups in _batches(method).values():
        first, second = _credit(method, groups), _credit(method, groups)
        _require_same_credit("determinism", groups, first, second, names=("first call", "second call"))


def _permutation(method: Method) -> None:
    rng = np.random.default_rng(7)
    for groups in _batches(method).values():
        before = _credit(method, groups)
        orders = [rng.permutation(len(group.rollouts)).tolist() for group in groups]
        after = _credit(method, [_permuted(g, order) for g, order in zip(groups, orders, strict=True)])
        for i, (group, order) in enumerate(zip(groups, orders, strict=True)):
            names = ("in order", "permuted")
            _require_same_group("permutation", _name(group), (before, i), (after, i), order, names=names)


def _permuted(group: RolloutGroup, order: Sequence[int]) -> RolloutGroup:
    place = {old: new for new, old in enumerate(order)}
    probes = tuple(replace(p, parent=(place[p.parent[0]], p.parent[1])) if p.parent else p for p in group.probes)
    return replace(group, rollouts=tuple(group.rollouts[k] for k in order), probes=probes)


def _batch_order(method: Method) -> None:
    for groups in _batches(method).values():
        before, after = _credit(method, groups), _credit(method, groups[::-1])
        for i, group in enumerate(groups):
            pair = (before, i), (after, len(groups) - 1 - i)
            order = range(len(group.rollouts))
            _require_same_group("batch-order", _name(group), *pair, order, names=("first to last", "last to first"))


def _padding(method: Method) -> None:
    for groups in _batches(method).values():
        padded = [
            replace(g, rollouts=tuple(map(_padded, g.rollouts)), probes=tuple(map(_padded, g.probes))) for g in groups
        ]
        first, second = _credit(method, groups), _credit(method, padded)
        _require_same_credit("padding", groups, first, second, names=("exact arrays", "views into padded buffers"))


def _padded(rollout: Rollout) -> Rollout:
    return replace(
        rollout,
        prefix=replace(rollout.prefix, token_ids=_inside_buffer(rollout.prefix.token_ids, np.iinfo(np.int32).max)),
        token_ids=_inside_buffer(rollout.token_ids, np.iinfo(np.int32).max),
        logprobs=_inside_buffer(rollout.logprobs, np.nan),
        aux={name: _inside_buffer(values, np.nan) for name, values in rollout.aux.items()},
    )


def _inside_buffer(values: Any, filler: float) -> Any:
    buffer = np.full(values.size + 24, filler, dtype=values.dtype)
    buffer[7 : 7 + values.size] = values
    return read_only(buffer[7 : 7 + values.size])


def _dropped_zero(method: Method) -> None:
    for groups in _batches(method).values():
        before = _credit(method, [replace(group, kept=True) for group in groups])
        after = _credit(method, [replace(group, kept=i % 2 == 0) for i, group in enumerate(groups)])
        for i, group in enumerate(groups):
            names, order = ("nothing dropped", "every second group dropped"), range(len(group.rollouts))
            _require_same(
                "dropped-zero", f"rewards of {_name(group)}", before.rewards[i], after.rewards[i], names=names
            )
            if i % 2 == 0:
                _require_same_group("dropped-zero", _name(group), (before, i), (after, i), order, names=names)
            elif any(row.any() for row in after.advantages[i]):
                raise Violation("dropped-zero", f"dropped {_name(group)} has advantages {after.advantages[i]}")


def _state(method: Method) -> None:
    whole = Ledger.for_method(method)
    uninterrupted = _steps(_copy(method), whole, (1, 2, 3, 4))
    saved = Ledger.for_method(method)
    _steps(_copy(method), saved, (1, 2))
    restored = Ledger.from_json(saved.to_json(), method)
    if restored.to_json() != saved.to_json():
        raise Violation("state", f"ledger saved as {saved.to_json()}, restored as {restored.to_json()}")
    resumed = _steps(_copy(method), restored, (3, 4))
    names = ("steps 1-4 in one run", "resumed after step 2 by a fresh copy")
    if whole.to_json() != restored.to_json():
        raise Violation("state", f"ledger after {names[0]} {whole.to_json()}, {names[1]} {restored.to_json()}")
    for i, pair in enumerate(zip(uninterrupted.rewards, resumed.rewards, strict=True)):
        _require_same("state", f"rewards of group {i} in step 4", *pair, names=names, exact=True)
        order, ends = range(len(pair[0])), ((uninterrupted, i), (resumed, i))
        _require_same_group("state", f"group {i} in step 4", *ends, order, names=names, exact=True)


def _pickling(method: Method) -> None:
    for groups in _batches(method).values():
        first, second = _credit(method, groups), _credit(_copy(method), pickle.loads(pickle.dumps(groups)))
        _require_same_credit("pickling", groups, first, second, names=("original", "unpickled copy"))


LAWS: dict[str, Callable[[Method], None]] = {
    "builds": _builds,
    "plan-terminates": _plan_terminates,
    "plan-count": _plan_count,
    "plan-room": _plan_room,
    "plan-determinism": _plan_determinism,
    "runs": _credit_runs,
    "shapes": _credit_runs,
    "finite": _credit_runs,
    "difficulty-range": _credit_runs,
    "reward-bounds": _credit_runs,
    "prefix-untrained": _credit_runs,
    "determinism": _determinism,
    "permutation": _permutation,
    "batch-order": _batch_order,
    "padding": _padding,
    "dropped-zero": _dropped_zero,
    "state": _state,
    "pickling": _pickling,
}

MEANING: dict[str, str] = {
    "builds": "the factory takes these knobs and returns a Method",
    "plan-terminates": "plan ends after finitely many rounds, with a model that answers anything",
    "plan-count": "trained rollouts add up to prefix.n",
    "plan-room": "no prefix of a trained rollout is longer than view.room: the engine never shortens one",
    "plan-determinism": "same view and rng, same requests",
    "runs": "no part raises, on ordinary and on odd groups; inputs are read-only",
    "shapes": "one entry a group, one number a rollout, one number a trained token",
    "finite": "no NaN: all right, all wrong, n = 1, no rollout, equal lengths, empty responses",
    "difficulty-range": "the declared range is kept",
    "reward-bounds": "the declared bounds are kept",
    "prefix-untrained": 'a prefix gets advantages only with loss="policy"',
    "determinism": "same groups and ledger, same credit, bit for bit",
    "permutation": "the order of rollouts in a group does not matter",
    "batch-order": "the order of groups in a step does not matter",
    "padding": "what lies around an array in memory does not matter",
    "dropped-zero": "dropped groups train nothing and still count in batch statistics",
    "state": "resuming from a saved ledger equals never stopping: no state outside the ledger",
    "pickling": "workers in other processes get the same strategy",
}
