"""The contract: shipped methods keep every law, and each deliberately broken strategy is told which law it broke."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import reasonrl.methods
from reasonrl.core import LAWS, Method, Prefix, Request, Shaped, per_group, run_contract
from reasonrl.core.defaults import Correctness, FailureRate, GroupNormalised, Plain
from reasonrl.parts.advantages import RLOO, DrGRPO

METHODS = sorted(file.stem for file in Path(reasonrl.methods.__file__).parent.glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", METHODS)
def test_shipped_methods_keep_every_law(name) -> None:
    results = run_contract(f"reasonrl.methods.{name}:build")
    assert [result.law for result in results] == list(LAWS)
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("advantage", [DrGRPO(), RLOO(), GroupNormalised(ddof=0)])
@pytest.mark.parametrize("knobs", [{"direction": "penalty"}, {"filter_ratio": 0.3}, {"ablation": "lengthen_hard"}])
def test_switches_and_recombinations_keep_every_law(advantage, knobs) -> None:
    results = run_contract("reasonrl.methods.deepcompress:build", advantage=advantage, **knobs)
    assert all(result.passed for result in results)


# strategies that break one law each


@dataclass(frozen=True)
class ForeverPlan(Plain):
    def plan(self, problem, view):
        return (Request(Prefix(), 1),)


@dataclass(frozen=True)
class TooFewPlan(Plain):
    def plan(self, problem, view):
        return () if view.round else (Request(Prefix(), self.n - 1),)


@dataclass(frozen=True)
class LongPlan(Plain):
    def plan(self, problem, view):
        return () if view.round else (Request(Prefix([3] * 20), self.n),)


@dataclass(frozen=True)
class RandomPlan(Plain):
    def plan(self, problem, view):
        length = int(np.random.default_rng().integers(0, view.room + 1))  # not view.rng
        return () if view.round else (Request(Prefix([3] * length), self.n),)


@dataclass(frozen=True)
class LoosePlan(Plain):
    """Trains the prefix without saying so: pairs with `WholeRow`."""

    def plan(self, problem, view):
        return () if view.round else (Request(Prefix([3] * min(4, view.room)), self.n),)


@dataclass(frozen=True)
class WholeRow(GroupNormalised):
    def __call__(self, groups, rewards, ledger):
        return [[np.zeros(r.total_tokens) for r in group.rollouts] for group in groups]


@dataclass(frozen=True)
class NoEps(GroupNormalised):
    def __call__(self, groups, rewards, ledger):
        with np.errstate(all="ignore"):
            return [g.per_token((r - r.mean()) / r.std()) for g, r in zip(groups, rewards, strict=True)]


@dataclass(frozen=True)
class PerGroupRow(GroupNormalised):
    def __call__(self, groups, rewards, ledger):
        return [[np.zeros(g.trained_lengths.max(initial=0)) for _ in g.rollouts] for g in groups]


@dataclass(frozen=True)
class Unbounded(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(group.scores - group.lengths / 10)


@dataclass(frozen=True)
class FirstIsBest(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(np.where(np.arange(len(group.rollouts)) == 0, self.right, self.wrong))


@dataclass(frozen=True)
class FirstGroupWins(Correctness):
    def __call__(self, groups, difficulty, ledger):
        return [Shaped(group.scores * (i == 0)) for i, group in enumerate(groups)]


@dataclass(frozen=True)
class ReadsPadding(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        sizes = [r.token_ids.base.size if r.token_ids.base is not None else 0 for r in group.rollouts]
        return Shaped(np.array([1.0 / (1.0 + size) for size in sizes]))


@dataclass(frozen=True)
class ReadsKept(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(group.scores * (1.0 if group.kept else 0.5))


@dataclass(frozen=True)
class WritesInputs(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        group.scores[group.lengths > 20] = 0.0
        return Shaped(group.scores)


@dataclass(frozen=True)
class Noisy(FailureRate):
    def __call__(self, groups, ledger):
        return np.random.default_rng().random(len(groups))


@dataclass(frozen=True)
class PaysDifficulty(Correctness):
    @per_group
    def __call__(self, group, difficulty, ledger):
        return Shaped(group.scores * difficulty)


@dataclass(frozen=True)
class OutOfRange(FailureRate):
    range: ClassVar[tuple[float, float]] = (0.0, 0.5)


@dataclass(frozen=True)
class HiddenState(Correctness):
    """Remembers the last step in itself: constant within a step, lost on resume."""

    seen: list[int] = field(default_factory=list)

    def __call__(self, groups, difficulty, ledger):
        step = groups[0].step
        if step not in self.seen:
            self.seen.append(step)
        return [Shaped(group.scores / len(self.seen)) for group in groups]


@dataclass(frozen=True)
class Locked(Correctness):
    lock: Any = field(default_factory=threading.Lock)


BROKEN: list[tuple[str, Callable[[], Method], str]] = [
    ("plan-terminates", lambda: Method("m", prefix=ForeverPlan()), "after 64 rounds"),
    ("plan-count", lambda: Method("m", prefix=TooFewPlan()), "asks for 7 rollouts, n=8"),
    ("plan-room", lambda: Method("m", prefix=LongPlan()), "prefix of 20 tokens with view.room=0"),
    ("plan-determinism", lambda: Method("m", prefix=RandomPlan()), "same view, same rng"),
    ("runs", lambda: Method("m", reward=WritesInputs()), "assignment destination is read-only"),
    ("shapes", lambda: Method("m", advantage=PerGroupRow()), "wanted ("),
    ("finite", lambda: Method("m", advantage=NoEps()), "nan"),
    ("difficulty-range", lambda: Method("m", difficulty=OutOfRange()), "declares range [0.0, 0.5]"),
    ("reward-bounds", lambda: Method("m", reward=Unbounded()), "declares bounds [0.0, 1.0]"),
    ("prefix-untrained", lambda: Method("m", prefix=LoosePlan(), advantage=WholeRow()), "prefix of 4 tokens"),
    ("determinism", lambda: Method("m", difficulty=Noisy(), reward=PaysDifficulty()), "second call"),
    ("permutation", lambda: Method("m", reward=FirstIsBest()), "permuted"),
    ("batch-order", lambda: Method("m", reward=FirstGroupWins()), "last to first"),
    ("padding", lambda: Method("m", reward=ReadsPadding()), "padded buffers"),
    ("dropped-zero", lambda: Method("m", reward=ReadsKept()), "every second group dropped"),
    ("state", lambda: Method("m", reward=HiddenState()), "resumed after step 2 by a fresh copy"),
    ("pickling", lambda: Method("m", reward=Locked()), "cannot be pickled"),
]


@pytest.mark.parametrize(("law", "strategy", "numbers"), BROKEN, ids=[law for law, *_ in BROKEN])
def test_a_broken_strategy_is_told_its_law_and_the_numbers(law, strategy, numbers) -> None:
    results = {result.law: result for result in run_contract(strategy)}
    assert results[law].status == "broken"
    assert results[law].message.startswith(f"{law}: ")
    assert numbers in results[law].message


def test_every_law_has_a_strategy_that_breaks_it() -> None:
    assert {law for law, *_ in BROKEN} | {"builds"} == set(LAWS)


@pytest.mark.parametrize(
    "law", ["shapes", "finite", "reward-bounds", "difficulty-range", "prefix-untrained", "pickling", "plan-count"]
)
def test_a_clean_break_is_reported_once_and_blocks_the_rest(law) -> None:
    strategy = next(build for name, build, _ in BROKEN if name == law)
    assert [r.law for r in run_contract(strategy) if r.status == "broken"] == [law]


def test_a_factory_that_fails_blocks_everything() -> None:
    results = run_contract("reasonrl.methods.grpo:build", n=0)
    assert results[0].status == "broken"
    assert "n must lie in [1, inf), got 0" in results[0].message
    assert all(result.status == "blocked" for result in itertools.islice(results, 1, None))


def test_an_explicit_ramp_beyond_the_specimens_is_judged_too() -> None:
    from reasonrl.parts.overlong import SoftOverlong

    assert all(r.passed for r in run_contract(Method("m", overlong=SoftOverlong(max_tokens=10_240))))
