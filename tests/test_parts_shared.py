"""The parts that methods share: bounds, ranges and defaults as they are written in the papers."""

from __future__ import annotations

import numpy as np
import pytest
from builders import group, problem

from reasonrl.core import Ledger, Method, View, assign_credit, plan_rng, with_limits
from reasonrl.parts.advantages import RLOO, DrGRPO, GroupNormalised
from reasonrl.parts.difficulty import BatchRelative, FailureRate
from reasonrl.parts.overlong import NoOverlong, SoftOverlong
from reasonrl.parts.prefix import Plain
from reasonrl.parts.rewards import Correctness, DualLength


def view(round: int = 0) -> View:
    return View(step=1, total_steps=10, rng=plan_rng(0, 1, "p0", round), room=100, round=round)


def test_plain_asks_once_without_a_prefix() -> None:
    (request,) = Plain(5).plan(problem(), view())
    assert (request.n, request.prefix.token_ids.size, request.train) == (5, 0, True)
    assert Plain(5).plan(problem(), view(1)) == ()


def test_failure_rate_is_the_share_of_wrong_rollouts() -> None:
    groups = [group([1, 1, 1, 0]), group([0, 0]), group([])]
    assert FailureRate()(groups, Ledger()).tolist() == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("part", [FailureRate(), BatchRelative(), BatchRelative(smoothing=0.0)])
def test_harder_groups_have_larger_difficulty(part) -> None:
    groups = [group([1] * k + [0] * (4 - k), id=str(k)) for k in range(5)]
    values = part(groups, Ledger())
    assert (np.diff(values) < 0).all()
    assert (part.range[0] <= values).all()
    assert (values <= part.range[1]).all()


def test_correctness_pays_the_verifiers_word() -> None:
    credit = assign_credit(Method("m", reward=Correctness(-1.0, 2.0)), [group([1, 0])], Ledger())
    assert credit.rewards[0].tolist() == [2.0, -1.0]
    with pytest.raises(ValueError, match=r"right must lie in \(1, inf\), got 0"):
        Correctness(wrong=1.0, right=0.0)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (GroupNormalised(), [0.866024, -0.866024, 0.866024, -0.866024]),
        (GroupNormalised(ddof=0), [0.999998, -0.999998, 0.999998, -0.999998]),
        (DrGRPO(), [0.5, -0.5, 0.5, -0.5]),
        (RLOO(), [2 / 3, -2 / 3, 2 / 3, -2 / 3]),
    ],
)
def test_advantages_give_every_token_its_rollouts_value(part, expected) -> None:
    credit = assign_credit(Method("m", advantage=part), [group([1, 0, 1, 0], [1, 2, 3, 4])], Ledger())
    for row, value, length in zip(credit.advantages[0], expected, [1, 2, 3, 4], strict=True):
        np.testing.assert_allclose(row, [value] * length, atol=1e-6)


def test_group_normalised_checks_its_settings() -> None:
    with pytest.raises(ValueError, match=r"eps must lie in \(0, inf\), got 0"):
        GroupNormalised(eps=0.0)
    with pytest.raises(ValueError, match="ddof must be one of 0, 1; got 2"):
        GroupNormalised(ddof=2)


def test_the_overlong_buffer_is_a_fifth_of_the_limit() -> None:
    penalty = with_limits(Method("m", overlong=SoftOverlong()), 10_240).overlong(np.array([8192, 8193, 10_240]))
    np.testing.assert_allclose(penalty, [0, -1 / 2048, -1], atol=1e-12)
    assert not NoOverlong()(np.array([5, 99])).any()


def test_a_tiny_limit_still_has_a_ramp() -> None:
    assert SoftOverlong(max_tokens=2)(np.array([1, 2])).tolist() == [0.0, -1.0]


def test_an_explicit_ramp_is_kept_and_must_fit_the_run() -> None:
    part = SoftOverlong(max_tokens=100, buffer=10, factor=2.0)
    assert part.with_limits(200) == part
    assert part.bounds == (-2.0, 0.0)
    with pytest.raises(
        ValueError, match=r"max_tokens=100 lies beyond the run's max_new_tokens=50; leave max_tokens out"
    ):
        part.with_limits(50)
    with pytest.raises(ValueError, match=r"buffer must lie in \[1, 100\], got 101"):
        SoftOverlong(max_tokens=100, buffer=101)
    with pytest.raises(ValueError, match=r"buffer must lie in \[1, 50\], got 60"):
        SoftOverlong(buffer=60).with_limits(50)


def test_a_ramp_without_a_limit_says_what_to_call() -> None:
    with pytest.raises(ValueError, match=r"call with_limits\(method, max_new_tokens\) first"):
        SoftOverlong()(np.array([1]))


def test_dual_length_declares_what_it_can_pay() -> None:
    assert DualLength(alpha=0.5).bounds == (-1.0, 1.5)
    assert DualLength(alpha=3.0, only_correct=False).bounds == (-1.0, 4.0)
