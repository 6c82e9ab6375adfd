"""The words of the project as data: problem, prefix, request, rollout, group, and what a plan may see.

B problems in a step, n rollouts per problem, L tokens of a rollout.
Arrays are read-only: constructors take any sequence, convert it once, and share an array that is already right.
Token ids, never text: cutting text into steps or paragraphs happens when data is prepared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.floating[Any]]
Counts: TypeAlias = NDArray[np.int64]
PrefixLoss: TypeAlias = Literal["none", "policy", "imitate"]

PREFIX_LOSSES: tuple[PrefixLoss, ...] = ("none", "policy", "imitate")


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, locked. Only for arrays that nobody else holds."""
    array.setflags(write=False)
    return array


EMPTY: Ids = read_only(np.empty(0, dtype=np.int32))
NO_FLOATS: Floats = read_only(np.empty(0, dtype=np.float32))


def as_ids(name: str, values: Any) -> Ids:
    """Token ids as a read-only int32 vector. Shares `values` when it is one already."""
    if isinstance(values, np.ndarray) and values.dtype == np.int32 and values.ndim == 1 and not values.flags.writeable:
        return values
    raw = np.asarray(values)
    if raw.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {raw.shape}")
    if raw.size == 0:
        return EMPTY
    if raw.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got dtype {raw.dtype}")
    if raw.min() < 0 or raw.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must lie in 0..{np.iinfo(np.int32).max}, got {raw.min()}..{raw.max()}")
    return read_only(raw.astype(np.int32))


def as_floats(name: str, values: Any) -> Floats:
    """Numbers as a read-only float32 vector. Shares `values` when it is one already."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 1:
        return values if not values.flags.writeable else read_only(values.copy())
    raw = np.asarray(values, dtype=np.float32)
    if raw.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {raw.shape}")
    return read_only(raw.copy() if raw is values else raw)


class _Record:
    """A frozen dataclass that holds arrays: unpickled arrays are locked again (pickle forgets the flag)."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            _lock(value)
        self.__dict__.update(state)


def _lock(value: Any) -> None:
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif isinstance(value, tuple):
        for item in value:
            _lock(item)
    elif isinstance(value, dict):
        for item in value.values():
            _lock(item)


class _ByContent(_Record):
    """Equality and hash by content: a dataclass would compare arrays elementwise and fail."""

    def _key(self) -> tuple[Any, ...]:
        return tuple(_content(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _content(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, tuple):
        return tuple(_content(item) for item in value)
    return value


def _set(record: object, name: str, value: Any) -> None:
    object.__setattr__(record, name, value)


@dataclass(frozen=True, eq=False)
class Problem(_ByContent):
    """One question with its checkable answer."""

    id: str  # identity across epochs and runs
    prompt_ids: Ids
    answer: str
    solution_steps: tuple[Ids, ...] = ()  # the reference solution, one array a step
    stored_prefix: tuple[Ids, ...] = ()  # an opening prepared before the run, one array a paragraph
    stored_right: bool | None = None  # whether it opens a right answer; None = nobody said
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"Problem.id must be a non-empty string, got {self.id!r}")
        _set(self, "prompt_ids", as_ids(f"problem {self.id!r}: prompt_ids", self.prompt_ids))
        for name in ("solution_steps", "stored_prefix"):
            pieces = tuple(as_ids(f"problem {self.id!r}: {name}[{i}]", p) for i, p in enumerate(getattr(self, name)))
            _set(self, name, pieces)


@dataclass(frozen=True, eq=False)
class Prefix(_ByContent):
    """Tokens put at the start of the assistant's turn, and what training does with them."""

    token_ids: Ids = field(default_factory=lambda: EMPTY)
    loss: PrefixLoss = "none"  # masked | trained like sampled tokens | weight * token-mean NLL
    weight: float = 0.0  # only for "imitate"; averaged over rollouts
    scored: bool = False  # True: the verifier reads prefix + continuation, else the continuation
    rate: float | None = None  # share of the solution given away, if that is what it is

    def __post_init__(self) -> None:
        _set(self, "token_ids", as_ids("Prefix.token_ids", self.token_ids))
        if self.loss not in PREFIX_LOSSES:
            raise ValueError(f"Prefix.loss must be one of {', '.join(PREFIX_LOSSES)}, got {self.loss!r}")
        if not (math.isfinite(self.weight) and self.weight >= 0.0):
            raise ValueError(f"Prefix.weight must be finite and at least 0, got {self.weight}")
        if self.weight and self.loss != "imitate":
            raise ValueError(f"Prefix.weight={self.weight} has no effect with loss={self.loss!r}; use loss='imitate'")
        if self.rate is not None and not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"Prefix.rate must lie in [0, 1], got {self.rate}")


@dataclass(frozen=True)
class Request:
    """Sample `n` continuations of the problem after this prefix."""

    prefix: Prefix
    n: int
    train: bool = True  # False = a probe: sampled and scored to learn a value, never trained on
    parent: tuple[int, int] | None = None  # probe: (rollout index in view.rollouts, index of the last token kept)

    def __post_init__(self) -> None:
        if not isinstance(self.n, int | np.integer) or self.n < 1:
            raise ValueError(
                f"Request.n must be a whole number of at least 1, got {self.n!r}; plan () to sample nothing"
            )
        if self.parent is not None:
            if self.train:
                raise ValueError("Request.parent belongs to a probe: set train=False, or leave parent out")
            _set(self, "parent", _as_parent(self.parent))


def _as_parent(parent: tuple[int, int]) -> tuple[int, int]:
    rollout, token = (int(x) for x in parent)
    if rollout < 0 or token < 0:
        raise ValueError(f"parent = (rollout index, token index), both at least 0, got {parent}")
    return rollout, token


@dataclass(frozen=True, eq=False)
class Rollout(_Record):
    """One sampled response."""

    prefix: Prefix
    token_ids: Ids  # (L,) generated tokens, end token included when emitted
    logprobs: Floats  # (L,) float32, of token_ids, under the sampling policy, after temperature
    score: float  # the verifier's word, 0 or 1; an empty scored text is wrong
    finished: bool  # False = cut at the limit
    round: int = 0
    parent: tuple[int, int] | None = None
    # per token of prefix + generated, only when a part needs it: old_logprobs, entropy, step_scores
    aux: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set(self, "token_ids", as_ids("Rollout.token_ids", self.token_ids))
        _set(self, "logprobs", as_floats("Rollout.logprobs", self.logprobs))
        if self.logprobs.size != self.token_ids.size:
            raise ValueError(
                f"Rollout: {self.token_ids.size} generated tokens but {self.logprobs.size} log-probabilities; "
                "log-probs cover the generated tokens only, not the prefix"
            )
        if self.score not in (0, 1):
            raise ValueError(f"Rollout.score is the verifier's word, 0 or 1, got {self.score}; shape rewards in a part")
        _set(self, "score", float(self.score))
        if self.score and not self.token_ids.size and not (self.prefix.scored and self.prefix.token_ids.size):
            raise ValueError("Rollout.score is 1 but the scored text is empty: an empty text is wrong")
        if self.parent is not None:
            _set(self, "parent", _as_parent(self.parent))
        if self.aux:
            _set(self, "aux", {name: self._aux(name, values) for name, values in self.aux.items()})

    def _aux(self, name: str, values: Any) -> Floats:
        array = as_floats(f"Rollout.aux[{name!r}]", values)
        if array.size != self.total_tokens:
            raise ValueError(
                f"Rollout.aux[{name!r}] has {array.size} values for {self.total_tokens} tokens (prefix + generated)"
            )
        return array

    @property
    def total_tokens(self) -> int:
        """Prefix and generated tokens."""
        return self.prefix.token_ids.size + self.token_ids.size

    @property
    def trained_tokens(self) -> int:
        """Length of this rollout's row of advantages: generated tokens, after the prefix's if that is trained too."""
        return self.total_tokens if self.prefix.loss == "policy" else self.token_ids.size


@dataclass(frozen=True, eq=False)
class RolloutGroup(_Record):
    """All trained rollouts of one problem in one step: what GRPO compares."""

    problem: Problem
    step: int
    rollouts: tuple[Rollout, ...]  # the trained ones; any number, failed ones are missing
    probes: tuple[Rollout, ...] = ()
    kept: bool = True  # False: dynamic sampling drops it after credit; batch statistics still see it

    def __post_init__(self) -> None:
        _set(self, "rollouts", tuple(self.rollouts))
        _set(self, "probes", tuple(self.probes))
        if self.step < 0:
            raise ValueError(f"group of problem {self.problem.id!r}: step must be at least 0, got {self.step}")

    @cached_property
    def scores(self) -> Floats:
        """(n,) the verifier's word, float64."""
        return read_only(np.array([r.score for r in self.rollouts], dtype=np.float64))

    @cached_property
    def lengths(self) -> Counts:
        """(n,) generated tokens."""
        return read_only(np.array([r.token_ids.size for r in self.rollouts], dtype=np.int64))

    @cached_property
    def total_lengths(self) -> Counts:
        """(n,) prefix and generated tokens."""
        return read_only(np.array([r.total_tokens for r in self.rollouts], dtype=np.int64))

    @cached_property
    def trained_lengths(self) -> Counts:
        """(n,) tokens that get an advantage."""
        return read_only(np.array([r.trained_tokens for r in self.rollouts], dtype=np.int64))

    @cached_property
    def pass_rate(self) -> float:
        """Share of right rollouts; 0 for a group in which no rollout survived."""
        return float(self.scores.mean()) if self.rollouts else 0.0

    def per_token(self, values: Floats) -> list[Floats]:
        """One number per rollout as rows of advantages: (n,) to n read-only views of `trained_lengths`, no copies."""
        if values.shape != (len(self.rollouts),):
            raise ValueError(f"per_token needs one value per rollout ({len(self.rollouts)},), got shape {values.shape}")
        if not self.rollouts:
            return []
        lengths = self.trained_lengths.tolist()
        wide = np.broadcast_to(np.asarray(values)[:, None], (len(lengths), max(lengths)))
        return [row[:length] for row, length in zip(wide, lengths, strict=True)]


@dataclass(frozen=True, eq=False)
class View:
    """What `plan` may see of the run, for one problem, before one round."""

    step: int
    total_steps: int
    rng: np.random.Generator  # from run seed, step, problem id, round: see `plan_rng`
    room: int  # prefix tokens that still leave the minimum response
    round: int = 0
    rollouts: tuple[Rollout, ...] = ()  # trained ones so far this step, in the order they were asked for
    probes: tuple[Rollout, ...] = ()  # probes so far this step
    numbers: Mapping[str, float] = field(default_factory=dict)  # what is remembered of this problem
    scalars: Mapping[str, float] = field(default_factory=dict)  # what is remembered of the run


def plan_rng(seed: int, step: int, problem_id: str, round: int = 0) -> np.random.Generator:
    """The randomness of one plan: depends on nothing else, so one problem of one step can be replayed alone."""
    digest = hashlib.blake2b(problem_id.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, step, int.from_bytes(digest, "little"), round])
