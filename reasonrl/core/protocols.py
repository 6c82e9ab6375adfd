"""The protocols of the parts. What a part computes is its own affair; what goes in and comes out is fixed here.

B problems in a step, n rollouts of a problem, L tokens of a rollout.

A part is a frozen, picklable dataclass instance with one verb. It may also define
- `needs`: names out of `NEEDS`, what it reads besides tokens, scores and lengths;
- `remember(groups, ledger) -> Memory`: what the next step should know;
- `metrics(groups, ledger) -> Mapping[str, float]`: numbers for the record; plain names get `<part>/` in front;
- `with_limits(max_new_tokens) -> part`: itself, once the run's response limit is known;
- `check(method)`: raise or warn, when the method is built, about other parts it does not go with.

Parameters are matched by position, so an implementation may name them as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.types import Counts, Floats, Problem, Request, RolloutGroup, View

# What a part may need, and what to do when the engine or the data set cannot provide it.
NEEDS: Mapping[str, str] = {
    "logprobs": "use an engine that returns the log-probabilities of sampled tokens",
    "old_logprobs": "use an engine that recomputes log-probabilities before the update",
    "entropy": "use an engine that returns per-token entropy",
    "solution_steps": "use a data set whose problems carry a reference solution cut into steps",
    "stored_prefix": "prepare prefixes for the data set first",
    "prm": "name a process reward model with prm=<folder or address> (`reasonrl prm train` makes one)",
}


class PrefixPolicy(Protocol):
    """Rollout prefixing: what the model is given before it writes, and how often it is asked."""

    @property
    def n(self) -> int:
        """Trained rollouts per problem in one step."""
        ...

    def plan(self, problem: Problem, view: View, /) -> Sequence[Request]:
        """The next requests for this problem; () ends its sampling. Called again after each batch of answers."""
        ...


class DifficultyEstimator(Protocol):
    """One number per problem; larger = harder, always."""

    @property
    def range(self) -> tuple[float, float]:
        """Every value lies between these, ends included."""
        ...

    def __call__(self, groups: Sequence[RolloutGroup], ledger: Ledger, /) -> Floats:
        """(B,)"""
        ...


@dataclass(frozen=True, eq=False)
class Shaped:
    """The shaped reward of one group: what is trained on, and the named terms it was made of, for the record."""

    total: Floats  # (n,)
    parts: Mapping[str, Floats] = field(default_factory=dict)  # name -> (n,)


class RewardShaper(Protocol):
    """From verdicts, lengths and difficulty to one reward per rollout."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Every total lies between these, ends included; the overlong penalty is not counted."""
        ...

    def __call__(self, groups: Sequence[RolloutGroup], difficulty: Floats, ledger: Ledger, /) -> Sequence[Shaped]:
        """B times total (n,) and its named parts."""
        ...


class AdvantageEstimator(Protocol):
    """From rewards to one number per trained token."""

    def __call__(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[Floats], ledger: Ledger, /
    ) -> Sequence[Sequence[Floats]]:
        """B times n rows (L,), L = `rollout.trained_tokens`; `group.per_token(values)` spreads (n,) over tokens."""
        ...


class Overlong(Protocol):
    """A penalty on length alone, added after any shaper."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Every penalty lies between these, ends included; the upper one is 0 or less."""
        ...

    def __call__(self, total_lengths: Counts, /) -> Floats:
        """(n,) tokens, prefix included, to (n,) penalties."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A part with memory."""

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger, /) -> Memory:
        """What to keep of this step; the ledger still holds the values of the step before."""
        ...


@runtime_checkable
class Measures(Protocol):
    """A part with numbers of its own for the record."""

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger, /) -> Mapping[str, float]:
        """Finite numbers; leave out what is not defined this step."""
        ...


@runtime_checkable
class ScoresSteps(Protocol):
    """A part with `prm` among its needs: it says where the process reward model scores.

    Before credit is assigned the engine puts `aux["step_scores"]` on every rollout that is kept: the score at each such
    token, NaN at all others and where the model's context ended.
    """

    def step_ends(self, groups: Sequence[RolloutGroup], ledger: Ledger, /) -> Sequence[Sequence[Counts]]:
        """B times n times (K,) indices of generated tokens."""
        ...

    def check_labels(self, labels: str, /) -> None:
        """Raise ValueError for scores of a model trained on such labels, `hard` or `soft`, that the part would misread."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A part with settings that follow the run's response limit."""

    def with_limits(self, max_new_tokens: int, /) -> Any:
        """The part with those settings filled in."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A part that does not go with every other."""

    def check(self, method: Any, /) -> None:
        """Raise ValueError for an impossible combination, `warnings.warn` about a doubtful one."""
        ...


S = TypeVar("S")


@overload
def per_group(
    one: Callable[[S, RolloutGroup, Ledger], float], /
) -> Callable[[S, Sequence[RolloutGroup], Ledger], Floats]: ...
@overload
def per_group(
    one: Callable[[S, RolloutGroup, float, Ledger], Shaped], /
) -> Callable[[S, Sequence[RolloutGroup], Floats, Ledger], Sequence[Shaped]]: ...
@overload
def per_group(
    one: Callable[[S, RolloutGroup, Floats, Ledger], Sequence[Floats]], /
) -> Callable[[S, Sequence[RolloutGroup], Sequence[Floats], Ledger], Sequence[Sequence[Floats]]]: ...
def per_group(one: Callable[..., Any], /) -> Callable[..., Any]:
    """Lift a method that sees one group to the batch form that the protocols ask for.

    `(self, group, ledger)` becomes a difficulty, `(self, group, difficulty, ledger)` a reward and
    `(self, group, rewards, ledger)` an advantage: what stands between group and ledger has one entry per group.
    """

    @wraps(one)
    def lifted(self: Any, groups: Sequence[RolloutGroup], *rest: Any) -> list[Any]:
        *columns, ledger = rest
        return [one(self, *row, ledger) for row in zip(groups, *columns, strict=True)]

    return lifted
