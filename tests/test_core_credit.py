"""`assign_credit`: order of the parts, checks on what they return, dropping, memory, metrics, speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from builders import group, ledger_with, problem

from reasonrl.core import (
    METRICS,
    Ledger,
    Memory,
    Method,
    PartError,
    Prefix,
    Rollout,
    RolloutGroup,
    Shaped,
    assign_credit,
    per_group,
    with_limits,
)
from reasonrl.core.defaults import Correctness, FailureRate
from reasonrl.parts.overlong import SoftOverlong


@dataclass(frozen=True)
class Returns:
    """A part that returns whatever it is given."""

    value: Any
    bounds: tuple[float, float] = (-1.0, 1.0)
    range: tuple[float, float] = (-1.0, 1.0)

    def __call__(self, groups: Any, *rest: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class Counts(FailureRate):
    """Remembers how many groups it saw and how often each problem came."""

    def remember(self, groups, ledger) -> Memory:
        seen = {g.problem.id: {"seen": ledger.number(g.problem.id, "seen", 0.0) + 1} for g in groups}
        return Memory({"groups": ledger.scalar("groups", 0.0) + len(groups)}, seen)

    def metrics(self, groups, ledger) -> dict[str, float]:
        return {"groups": float(len(groups)), "hint/rate": 0.5}


def test_plain_grpo_by_hand() -> None:
    # rewards 1, 0: mean .5, sample deviation .707107; .5 / .707108 = .707106
    credit = assign_credit(Method("m"), [group([1, 0], [3, 2])], Ledger())
    np.testing.assert_allclose(credit.advantages[0][0], [0.707106] * 3, atol=1e-6)
    np.testing.assert_allclose(credit.advantages[0][1], [-0.707106] * 2, atol=1e-6)
    assert credit.parts[0].keys() == {"correctness"}


def test_the_overlong_penalty_counts_the_prefix_and_is_recorded() -> None:
    method = with_limits(Method("m", overlong=SoftOverlong(buffer=5)), 20)
    credit = assign_credit(method, [group([1, 1], [8, 13], prefix=Prefix([1, 2, 3, 4]))], Ledger())
    np.testing.assert_allclose(credit.rewards[0], [1.0, 1.0 - 2 / 5], atol=1e-12)
    assert credit.metrics["reward/overlong"] == pytest.approx(-0.2)


def test_a_policy_prefix_is_covered_by_the_rows() -> None:
    for loss, length in (("none", 4), ("imitate", 4), ("policy", 7)):
        one = group([1, 0], [4, 4], prefix=Prefix([1, 2, 3], loss=loss))
        assert {row.shape for row in assign_credit(Method("m"), [one], Ledger()).advantages[0]} == {(length,)}


def test_dropped_groups_count_in_statistics_and_get_zero() -> None:
    groups = [group([1, 0], id="a"), group([1, 1], id="b", kept=False), group([1, 0], id="c", kept=False)]
    credit = assign_credit(Method("m"), groups, Ledger())
    assert [any(row.any() for row in rows) for rows in credit.advantages] == [True, False, False]
    assert credit.metrics["group/dropped"] == pytest.approx(2 / 3)
    assert credit.metrics["score/mean"] == pytest.approx(4 / 6)
    np.testing.assert_array_equal(credit.rewards[2], [1.0, 0.0])


def test_it_is_pure() -> None:
    groups, ledger = [group([1, 0])], ledger_with(difficulty__groups=3.0)
    before = ledger.to_json()
    first, second = (assign_credit(Method("m", difficulty=Counts()), groups, ledger) for _ in range(2))
    assert ledger.to_json() == before
    assert first.memory == second.memory
    assert first.metrics == second.metrics


def test_memory_and_metrics_carry_the_name_of_the_slot() -> None:
    method = Method("m", difficulty=Counts())
    ledger = Ledger.for_method(method)
    for step in (1, 2):
        groups = [group([1, 0], id=name, step=step) for name in "ab"]
        credit = assign_credit(method, groups, ledger)
        ledger.observe(groups, credit)
    assert credit.memory.scalars == {"difficulty/groups": 4.0}
    assert ledger.numbers("a") == {"difficulty/seen": 2.0}
    assert credit.metrics["ledger/difficulty/groups"] == 4.0
    assert (credit.metrics["difficulty/groups"], credit.metrics["hint/rate"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("fields", "law", "message"),
    [
        ({"difficulty": Returns([0.1])}, "shapes", r"difficulty part Returns returned shape \(1,\) for 2 groups"),
        ({"difficulty": Returns([0.1, np.nan])}, "finite", "returned nan for problem 'b'"),
        ({"difficulty": Returns([0.1, 3.0])}, "difficulty-range", r"declares range \[-1.0, 1.0\] but returned 3.0"),
        ({"difficulty": Returns("hard")}, "shapes", "returned 'hard', wanted an array of numbers"),
        ({"reward": Returns([1.0, 2.0])}, "shapes", r"returned 1.0, wanted Shaped\(total\)"),
        ({"reward": Returns([Shaped(np.zeros(2))])}, "shapes", "reward part Returns returned 1 entries for 2 groups"),
        ({"reward": Returns([Shaped(np.zeros(3))] * 2)}, "shapes", r"total has shape \(3,\), wanted \(2,\)"),
        ({"reward": Returns([Shaped(np.full(2, np.inf))] * 2)}, "finite", r"total is .inf inf."),
        ({"reward": Returns([Shaped(np.full(2, 1.5))] * 2)}, "reward-bounds", r"bounds \[-1.0, 1.0\] but returned"),
        ({"reward": Returns([Shaped(np.zeros(2), {"mean": np.zeros(2)})] * 2)}, "shapes", "'mean', which is reserved"),
        ({"advantage": Returns([[np.zeros(10)] * 2])}, "shapes", "returned 1 entries for 2 groups"),
        ({"advantage": Returns([[np.zeros(10)]] * 2)}, "shapes", "returned 1 rows for 2 rollouts"),
        ({"advantage": Returns([[np.zeros(9)] * 2] * 2)}, "shapes", r"shape \(9,\).*wanted \(10,\)"),
        ({"advantage": Returns([[np.full(10, np.nan)] * 2] * 2)}, "finite", "rollout 0 got .*nan"),
        ({"overlong": Returns(np.ones(2))}, "reward-bounds", "overlong part Returns declares bounds"),
        ({"advantage": Returns(None)}, "shapes", "returned NoneType entries for 2 groups"),
    ],
)
def test_what_a_part_returns_is_checked_under_its_name(fields, law, message) -> None:
    with pytest.raises(PartError, match=message) as caught:
        assign_credit(Method("m", **fields), [group(id="a"), group(id="b")], Ledger())
    assert caught.value.law == law


def test_training_a_masked_prefix_is_refused() -> None:
    one = group([1, 0], prefix=Prefix([1, 2, 3]))
    with pytest.raises(PartError, match=r"prefix of 3 tokens has loss='none'.*Declare loss='policy'") as caught:
        assign_credit(Method("m", advantage=Returns([[np.zeros(13)] * 2])), [one], Ledger())
    assert caught.value.law == "prefix-untrained"


def test_an_exception_in_a_part_names_the_part() -> None:
    @dataclass(frozen=True)
    class Divides(FailureRate):
        def __call__(self, groups, ledger):
            return 1 / 0

    with pytest.raises(PartError, match="m: difficulty part Divides raised ZeroDivisionError: division by zero"):
        assign_credit(Method("m", difficulty=Divides()), [group()], Ledger())


@pytest.mark.parametrize(
    ("memory", "message"),
    [(Memory({"a/b": 1.0}), "must not contain a slash"), (Memory({"a": float("inf")}), "remembers a=inf")],
)
def test_memory_is_checked(memory, message) -> None:
    @dataclass(frozen=True)
    class Remembers(FailureRate):
        def remember(self, groups, ledger):
            return memory

    with pytest.raises(PartError, match=message):
        assign_credit(Method("m", difficulty=Remembers()), [group()], Ledger())


def test_a_part_cannot_shadow_a_metric() -> None:
    @dataclass(frozen=True)
    class Shadows(FailureRate):
        def metrics(self, groups, ledger):
            return {"score/mean": 1.0}

    with pytest.raises(PartError, match="reports 'score/mean', which exists already"):
        assign_credit(Method("m", difficulty=Shadows()), [group()], Ledger())


# per_group


def test_per_group_sees_one_group_and_its_own_difficulty() -> None:
    @dataclass(frozen=True)
    class Scaled:
        bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

        @per_group
        def __call__(self, group: RolloutGroup, difficulty: float, ledger: Ledger) -> Shaped:
            return Shaped(group.scores * difficulty)

    credit = assign_credit(Method("m", reward=Scaled()), [group([1, 0]), group([1, 0, 0, 0])], Ledger())
    assert [rewards.tolist() for rewards in credit.rewards] == [[0.5, 0.0], [0.75, 0.0, 0.0, 0.0]]


# metrics


def test_metrics_by_hand() -> None:
    groups = [group([1, 0], [10, 30], id="a"), group([1, 1], [20, 40], id="b"), group([0, 0], [5, 5], id="c")]
    metrics = assign_credit(Method("m"), groups, Ledger()).metrics
    expected = {
        "group/count": 3,
        "group/solve_all": 1 / 3,
        "group/solve_none": 1 / 3,
        "group/zero_std": 2 / 3,
        "group/dropped": 0,
        "length/mean": 110 / 6,
        "length/correct": 70 / 3,
        "length/wrong": 40 / 3,
        "score/mean": 0.5,
        "reward/mean": 0.5,
        "reward/correctness": 0.5,
        "difficulty/mean": 0.5,
        "length/cut": 0,
        "advantage/mean": 0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_what_does_not_exist_is_left_out() -> None:
    all_right = assign_credit(Method("m"), [group([1, 1])], Ledger()).metrics
    assert "length/wrong" not in all_right
    assert "length/correct" in all_right
    nothing = assign_credit(Method("m"), [group([])], Ledger()).metrics
    assert nothing == {"group/count": 1, "group/empty": 1, "group/dropped": 0, "difficulty/mean": 1}
    assert assign_credit(Method("m"), [], Ledger()).metrics == {"group/count": 0}
    dropped = assign_credit(Method("m"), [group([1, 0], kept=False)], Ledger()).metrics
    assert "advantage/mean" not in dropped


def test_every_metric_is_declared_and_finite() -> None:
    metrics = assign_credit(Method("m"), [group([1, 0]), group([0]), group([])], Ledger()).metrics
    assert metrics.keys() - {"reward/correctness"} <= METRICS.keys()
    assert all(np.isfinite(value) for value in metrics.values())


def test_nothing_written_is_defined() -> None:
    one = group([0, 0], [0, 0])
    credit = assign_credit(Method("m", reward=Correctness(-1.0, 1.0)), [one, replace(one, rollouts=())], Ledger())
    assert [row.shape for row in credit.advantages[0]] == [(0,), (0,)]
    assert credit.advantages[1] == []


def test_a_large_step_takes_milliseconds() -> None:
    # 512 problems, 16 rollouts, 2000 tokens; verl's own advantage step on these arrays takes about 0.05 s
    rng = np.random.default_rng(0)
    ids, logprobs = np.zeros(2000, np.int32), np.zeros(2000, np.float32)
    ids.setflags(write=False)
    logprobs.setflags(write=False)

    def answers() -> tuple[Rollout, ...]:
        return tuple(Rollout(Prefix(), ids, logprobs, int(s), True) for s in rng.integers(0, 2, size=16))

    groups = [RolloutGroup(problem(str(i)), 1, answers()) for i in range(512)]
    best = min(_seconds(groups) for _ in range(3))
    assert best < 0.5  # generous: shared runners; measured alone it is far below 0.1


def _seconds(groups: list[RolloutGroup]) -> float:
    fresh = [replace(one) for one in groups]  # without cached columns
    start = time.perf_counter()
    assign_credit(Method("m"), fresh, Ledger())
    return time.perf_counter() - start


def test_right_rollouts_that_are_pushed_down_are_counted() -> None:
    @dataclass(frozen=True)
    class Short:
        bounds = (0.0, 1.0)

        @per_group
        def __call__(self, group, difficulty, ledger):
            return Shaped(group.scores * (1 - group.lengths / 100))

    # rewards .9, .5, .9: below the mean .7667 is one of the three right ones; the wrong one of the other group is not right
    groups = [group([1, 1, 1], [10, 50, 10]), group([0, 0], id="p1")]
    credit = assign_credit(Method("m", reward=Short()), groups, Ledger())
    assert credit.metrics["advantage/right_below_zero"] == pytest.approx(1 / 3)
    wrong = assign_credit(Method("m"), [group([0, 0])], Ledger())
    assert "advantage/right_below_zero" not in wrong.metrics
