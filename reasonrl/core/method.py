"""A method: four parts, an optional overlong penalty, and the settings of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from reasonrl.core.defaults import Correctness, FailureRate, GroupNormalised, Plain
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.protocols import (
    NEEDS,
    AdvantageEstimator,
    Checks,
    DifficultyEstimator,
    Limited,
    Overlong,
    PrefixPolicy,
    RewardShaper,
)

Aggregation: TypeAlias = Literal[
    "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"
]

AGGREGATIONS: tuple[Aggregation, ...] = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
)
SLOTS = ("prefix", "difficulty", "reward", "advantage", "overlong")
VERBS = {
    "prefix": "plan",
    "difficulty": "__call__",
    "reward": "__call__",
    "advantage": "__call__",
    "overlong": "__call__",
}
ATTRIBUTES = {"prefix": "n", "difficulty": "range", "reward": "bounds", "advantage": None, "overlong": "bounds"}


@dataclass(frozen=True)
class Loss:
    """The clipped policy loss, in words an engine translates.

    Let r be the probability ratio of new to old policy and A the advantage: minus min(r A, clip(r, 1 - low, 1 +
    high) A).
    """

    aggregation: Aggregation = "token-mean"  # how (rollout, token) losses become one number; verl's loss_agg_mode
    clip_low: float = 0.2  # larger: bigger steps down; usual 0.1..0.3
    clip_high: float = 0.2  # larger: rare tokens may grow faster (DAPO: 0.28)
    dual_clip: float | None = None  # with A < 0 the loss stops at dual_clip * |A|; None = off (verl's own: 3.0)
    kl: float = 0.0  # weight of the KL term to the reference policy; 0 needs no reference policy
    entropy: float = 0.0  # weight of the entropy bonus
    scale: int | None = None  # constant divisor of "seq-mean-token-sum-norm"; None = the response limit

    def __post_init__(self) -> None:
        check_choice("loss.aggregation", self.aggregation, AGGREGATIONS)
        check_number("loss.clip_low", self.clip_low, above=0.0, most=1.0)
        check_number("loss.clip_high", self.clip_high, above=0.0)
        check_number("loss.kl", self.kl, least=0.0)
        check_number("loss.entropy", self.entropy, least=0.0)
        if self.dual_clip is not None:
            check_number("loss.dual_clip", self.dual_clip, above=1.0)
        if self.scale is not None:
            check_number("loss.scale", self.scale, least=1, whole=True)
            if self.aggregation != "seq-mean-token-sum-norm":
                raise ValueError(
                    f"loss.scale={self.scale} has no effect with aggregation={self.aggregation!r}; "
                    "use seq-mean-token-sum-norm or leave scale out"
                )


@dataclass(frozen=True)
class Method:
    """What a run trains with. The engine reads the parts and never the name."""

    name: str
    # one shared instance each is safe: parts are frozen
    prefix: PrefixPolicy = Plain(n=8)  # noqa: RUF009
    difficulty: DifficultyEstimator = FailureRate()  # noqa: RUF009
    reward: RewardShaper = Correctness(wrong=0.0, right=1.0)  # noqa: RUF009
    advantage: AdvantageEstimator = GroupNormalised()  # noqa: RUF009
    loss: Loss = Loss()
    overlong: Overlong | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"Method.name must be a non-empty string, got {self.name!r}")
        for slot in SLOTS:
            part = getattr(self, slot)
            if part is not None or slot != "overlong":
                _require_part(slot, part)
        if not isinstance(self.loss, Loss):
            raise TypeError(f"Method.loss must be a Loss(...), got {self.loss!r}")
        for part in self.parts.values():
            if isinstance(part, Checks):
                part.check(self)

    @property
    def parts(self) -> dict[str, Any]:
        """Slot -> part, for the slots that are filled."""
        return {slot: getattr(self, slot) for slot in SLOTS if getattr(self, slot) is not None}

    @property
    def signature(self) -> tuple[str, ...]:
        """Which classes fill the slots, e.g. `reward=DualLength`: what a saved ledger must agree with."""
        return tuple(f"{slot}={type(part).__qualname__}" for slot, part in self.parts.items())

    @property
    def needs(self) -> frozenset[str]:
        """Everything that any part needs."""
        return frozenset().union(*(part_needs(part) for part in self.parts.values()))


def part_needs(part: object) -> frozenset[str]:
    """What one part reads besides tokens, scores and lengths."""
    return frozenset(getattr(part, "needs", ()))


def _require_part(slot: str, part: object) -> None:
    name = part.__name__ if isinstance(part, type) else type(part).__name__
    if isinstance(part, type):
        raise TypeError(f"Method.{slot} must be an instance, got the class {name}; write {name}(...)")
    verb, attribute = VERBS[slot], ATTRIBUTES[slot]
    if not callable(getattr(part, verb, None)):
        raise TypeError(f"Method.{slot}: {name} has no {verb}(); see the protocols in reasonrl.core")
    if attribute and not hasattr(part, attribute):
        raise TypeError(f"Method.{slot}: {name} does not declare `{attribute}`; see the protocols in reasonrl.core")
    unknown = part_needs(part) - NEEDS.keys()
    if unknown:
        raise ValueError(f"Method.{slot}: {name} needs {sorted(unknown)}, unknown; choices: {', '.join(NEEDS)}")


def check_needs(method: Method, provided: Iterable[str]) -> None:
    """Raise ValueError, naming the part and the way out, if a part needs what neither engine nor data provides."""
    have = set(provided)
    for slot, part in method.parts.items():
        for need in sorted(part_needs(part) - have):
            raise ValueError(
                f"{method.name}: {slot} part {type(part).__name__} needs `{need}`, which this run does not provide. "
                f"Either {NEEDS[need]}, or choose another part with method/{slot}=..."
            )


def with_limits(method: Method, max_new_tokens: int) -> Method:
    """The method with every setting filled in that follows the run's response limit (the overlong ramp, for one)."""
    check_number("max_new_tokens", max_new_tokens, least=1, whole=True)
    limited = {s: p.with_limits(max_new_tokens) for s, p in method.parts.items() if isinstance(p, Limited)}
    return replace(method, **limited)
