"""Prefix-RFT: one hybrid rollout a group, its prefix trained where the policy is least sure."""

from __future__ import annotations

import numpy as np
import pytest
from builders import group, problem, rollout

from reasonrl.core import Ledger, Prefix, RolloutGroup, View, assign_credit, plan_rng
from reasonrl.methods.prefix_rft import Demonstration, SplitAdvantage, build

TEN_STEPS = tuple([i, i] for i in range(1, 11))  # 20 tokens, of which 18 may be given


def hybrid_group(
    entropy: list[float], scores: tuple[int, ...] = (1, 1, 0, 0, 0, 0, 0), *, right: int = 1
) -> RolloutGroup:
    """Seven plain rollouts and one that continues a prefix of as many tokens as `entropy` says."""
    prefix = Prefix(list(range(len(entropy))), loss="policy", rate=0.5)
    one = rollout(right, 3, prefix=prefix, aux={"entropy": [*entropy, 0.1, 0.1, 0.1]})
    return RolloutGroup(problem(), 1, (*(rollout(s, 2) for s in scores), one))


def rows(groups: list[RolloutGroup], keep: float = 1.0) -> list[list[np.ndarray]]:
    return assign_credit(build(keep=keep), groups, Ledger()).advantages  # type: ignore[return-value]


def test_one_rollout_continues_the_demonstration_and_the_others_start_from_nothing() -> None:
    of = problem(solution_steps=TEN_STEPS)
    for step in (1, 250, 500):
        plain, hybrid = Demonstration().plan(of, View(step, 500, plan_rng(0, step, "p0"), 100))
        assert (plain.n, plain.prefix) == (7, Prefix())
        assert (hybrid.n, hybrid.prefix.loss) == (1, "policy")
        assert (
            hybrid.prefix.token_ids.tolist()
            == [i for i in range(1, 11) for _ in (0, 1)][: len(hybrid.prefix.token_ids)]
        )


@pytest.mark.parametrize(("step", "low"), [(0, 0.95), (250, 0.5), (500, 0.05)])
def test_the_share_is_drawn_between_a_falling_bound_and_95_percent(step, low) -> None:
    of = problem(solution_steps=[[i] for i in range(1000)])
    shares = [
        Demonstration().plan(of, View(step, 500, plan_rng(0, step, f"p{i}"), 2000))[1].prefix.rate for i in range(200)
    ]
    assert min(shares) == pytest.approx(low, abs=0.02)
    assert max(shares) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("steps", "room"), [((), 100), (([1, 2],), 100), (TEN_STEPS, 0)])
def test_where_nothing_can_be_given_all_rollouts_are_plain(steps, room) -> None:
    requests = Demonstration().plan(problem(solution_steps=steps), View(1, 500, plan_rng(0, 1, "p0"), room))
    assert [(r.n, r.prefix) for r in requests] == [(8, Prefix())]


def test_the_three_kinds_of_tokens_have_three_baselines() -> None:
    # 2 of 7 plain ones right, the hybrid right: plain 1 - 2/7 and -2/7, prefix 1 - 2/7, continuation 1
    (group_rows,) = rows([hybrid_group([1.0, 2.0])])
    assert [row[0] for row in group_rows[:7]] == pytest.approx([5 / 7, 5 / 7, *[-2 / 7] * 5])
    assert group_rows[7] == pytest.approx([5 / 7, 5 / 7, 1.0, 1.0, 1.0])


def test_a_prefix_whose_continuation_fails_is_pushed_down() -> None:
    (group_rows,) = rows([hybrid_group([1.0, 2.0], right=0)])
    assert group_rows[7] == pytest.approx([-2 / 7, -2 / 7, 0.0, 0.0, 0.0])


def test_only_the_most_uncertain_prefix_tokens_of_the_step_are_trained() -> None:
    sure, unsure = hybrid_group([0.1, 0.2, 0.3, 0.4, 0.5]), hybrid_group([0.6, 0.9, 0.7, 0.8, 0.55])
    first, second = rows([sure, unsure], keep=0.2)  # 2 of 10 tokens
    assert np.flatnonzero(first[7][:5]).tolist() == []
    assert np.flatnonzero(second[7][:5]).tolist() == [1, 3]
    assert (second[7][5:] == 1.0).all()  # the continuation is always trained


def test_without_a_hybrid_it_is_dr_grpo_and_a_lone_rollout_gets_its_reward() -> None:
    first, second = rows([group([1, 0, 0, 0]), group([1], id="p1")])
    assert [row[0] for row in first] == [0.75, -0.25, -0.25, -0.25]
    assert second[0][0] == 1.0


def test_a_dropped_group_needs_no_entropy() -> None:
    prefix = Prefix([1, 2], loss="policy")
    dropped = RolloutGroup(problem("p1"), 1, (rollout(1, prefix=prefix), rollout(1)), kept=False)
    kept, gone = rows([hybrid_group([1.0, 2.0]), dropped])
    assert kept[7][0] == pytest.approx(5 / 7)
    assert not any(row.any() for row in gone)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n must lie in \[2, inf\)"):
        build(n=1)
    with pytest.raises(ValueError, match=r"keep must lie in \[0, 1\]"):
        SplitAdvantage(keep=1.5)
