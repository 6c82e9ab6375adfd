"""PACE against the worked examples and properties of the paper and its released code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from builders import group, ledger_with, problem, rollout
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reasonrl.core import (
    LAWS,
    Credit,
    Ledger,
    Method,
    Prefix,
    Problem,
    RolloutGroup,
    View,
    assign_credit,
    check_needs,
    plan_rng,
    run_contract,
)
from reasonrl.methods.grpo import build as build_grpo
from reasonrl.methods.pace import build
from reasonrl.parts.advantages import GroupNormalised
from reasonrl.parts.difficulty import BatchRelative, FailureRate
from reasonrl.parts.prefix import Plain, StoredPrefix
from reasonrl.parts.rewards import Correctness, DifficultyPenalty

FOUR = [1000, 2000, 3000, 5000]
STORED = (list(range(100, 400)), list(range(400, 450)), list(range(450, 900)))  # 300 + 50 + 450 tokens


def credit_of(one: RolloutGroup, **knobs: Any) -> Credit:
    return assign_credit(build(**knobs), [one], Ledger())


def advantages(credit: Credit, index: int = 0) -> list[float]:
    return [float(row[0]) for row in credit.advantages[index]]


def stored(id: str = "p0", pieces: Sequence[Sequence[int]] = STORED) -> Problem:
    return problem(id, stored_prefix=tuple(pieces))


def view(step: int = 1, *, room: int = 10_000, numbers: dict[str, float] | None = None, round: int = 0) -> View:
    return View(step, 600, plan_rng(0, step, "p0", round), room, round=round, numbers=numbers or {})


def prefix_of(part: StoredPrefix, of: Problem | None = None, step: int = 1, **seen: Any) -> Prefix:
    (request,) = part.plan(of or stored(), view(step, **seen))
    assert (request.n, request.train) == (part.n, True)
    return request.prefix


def given_group(
    part: StoredPrefix, of: Problem, step: int, scores: Sequence[int] = (1, 0), **seen: Any
) -> RolloutGroup:
    """What the engine makes of the plan: every rollout behind the planned prefix."""
    prefix = prefix_of(part, of, step, **seen)
    return RolloutGroup(of, step, tuple(rollout(score, 10, prefix=prefix) for score in scores))


# the worked examples


@pytest.mark.parametrize(("k", "budget"), [(1, 506), (20, 409), (50, 256), (80, 102), (99, 5), (100, 0), (600, 0)])
def test_the_prefix_is_the_first_tokens_of_the_stored_text(k, budget) -> None:
    # floor(512 * (1 - k / 100))
    prefix = prefix_of(build().prefix, step=k)
    assert prefix.token_ids.tolist() == list(range(100, 100 + budget))


@pytest.mark.parametrize(
    ("knobs", "rewards", "expected"),
    [
        # rho .75, alpha .617317, P [0, .25, .5, 1]; mean .479924, sample deviation .587528
        ({}, [1.0, 0.845671, -0.308658, 0.382683], [0.885192, 0.622517, -1.342201, -0.165508]),
        # population deviation .508814
        (
            {"advantage": GroupNormalised(ddof=0)},
            [1.0, 0.845671, -0.308658, 0.382683],
            [1.022131, 0.718821, -1.549840, -0.191112],
        ),
        # P of equation 8 [.234474, .375875, .542157, .820727]; mean .445473, deviation .542481
        (
            {"penalty": "sigmoid"},
            [0.855255, 0.767966, -0.334683, 0.493352],
            [0.755384, 0.594477, -1.438121, 0.088260],
        ),
    ],
)
def test_w1_three_right_one_wrong(knobs, rewards, expected) -> None:
    credit = credit_of(group([1, 1, 0, 1], FOUR), **knobs)
    np.testing.assert_allclose(credit.rewards[0], rewards, atol=1e-5)
    np.testing.assert_allclose(advantages(credit), expected, atol=1e-5)
    assert credit.metrics["reward/length_weight"] == pytest.approx(0.617317, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "rewards", "expected"),
    [
        # s = 1: mean .788582, deviation .587528; the wrong one has P = .5, so the advantages are the paper's
        (0, [1.308658, 1.154329, 0, 0.691342], [0.885192, 0.622517, -1.342201, -0.165508]),
        # s = .75: mean .778937, deviation .555308
        (150, [1.231494, 1.115747, 0, 0.768506], [0.814965, 0.606528, -1.402709, -0.018783]),
        # s = 0: plain correctness
        (600, [1, 1, 0, 1], [0.499999, 0.499999, -1.499997, 0.499999]),
        (601, [1, 1, 0, 1], [0.499999, 0.499999, -1.499997, 0.499999]),
    ],
)
def test_w1_the_released_reward_fades(step, rewards, expected) -> None:
    credit = credit_of(group([1, 1, 0, 1], FOUR, step=step), reward_variant="release")
    np.testing.assert_allclose(credit.rewards[0], rewards, atol=1e-5)
    np.testing.assert_allclose(advantages(credit), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "rewards", "expected"),
    [
        # mean .479924, deviation .373386
        ("paper", [0, 0.845671, 0.691342, 0.382683], [-1.285326, 0.979539, 0.566216, -0.260428]),
        # mean .711418, deviation .511849: the short wrong answer earns nothing, the short right one a bonus
        ("release", [0, 1.154329, 1.0, 0.691342], [-1.389895, 0.865315, 0.563802, -0.039222]),
    ],
)
def test_w2_a_short_wrong_answer(variant, rewards, expected) -> None:
    credit = credit_of(group([0, 1, 1, 1], FOUR, step=0), reward_variant=variant)
    np.testing.assert_allclose(credit.rewards[0], rewards, atol=1e-5)
    np.testing.assert_allclose(advantages(credit), expected, atol=1e-5)


@pytest.mark.parametrize(("variant", "shift"), [("paper", 0.0), ("release", 0.5)])
def test_w3_all_right_is_a_ranking_by_length(variant, shift) -> None:
    credit = credit_of(group([1] * 4, FOUR, step=0), reward_variant=variant)
    np.testing.assert_allclose(credit.rewards[0], shift + np.array([1, 0.75, 0.5, 0]), atol=1e-5)
    np.testing.assert_allclose(advantages(credit), [1.024693, 0.439154, -0.146385, -1.317462], atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_w4_all_wrong_teaches_nothing(variant) -> None:
    credit = credit_of(group([0] * 4, [10, 16384, 3000, 5]), reward_variant=variant)
    assert credit.rewards[0].tolist() == [0.0] * 4
    assert advantages(credit) == [0.0] * 4


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_w5_equal_lengths_pay_nothing(variant) -> None:
    credit = credit_of(group([1, 1, 0, 1], [2000] * 4), reward_variant=variant)
    assert credit.rewards[0].tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(advantages(credit), [0.499999, 0.499999, -1.499997, 0.499999], atol=1e-5)


def test_w6_one_cut_answer_squeezes_the_others() -> None:
    # rho .625, alpha .444430; mean .538076, deviation .617488
    lengths = [800, 1200, 1200, 1600, 2400, 3200, 4000, 16384]
    credit = credit_of(group([1, 1, 1, 1, 0, 1, 0, 0], lengths))
    rewards = [1, 0.988593, 0.988593, 0.977185, -0.045629, 0.931556, -0.091259, -0.444430]
    expected = [0.748068, 0.729595, 0.729595, 0.711121, -0.945289, 0.637226, -1.019184, -1.591131]
    np.testing.assert_allclose(credit.rewards[0], rewards, atol=1e-5)
    np.testing.assert_allclose(advantages(credit), expected, atol=1e-5)
    # the right ones reach from 800 to 3200 of 800..16384: 2400 / 15584
    assert credit.metrics["reward/right_spread"] == pytest.approx(0.154004, abs=1e-6)


def test_a_shared_prefix_token_is_pushed_up_under_a_mean_per_rollout() -> None:
    # seq-mean-token-mean gives each prefix token A_i / L_i of rollout i; the sum over W1
    prefix = Prefix([5] * 100, loss="policy", scored=True)
    one = group([1, 1, 0, 1], [length - 100 for length in FOUR], prefix=prefix)
    credit = credit_of(one)
    assert [row.size for row in credit.advantages[0]] == FOUR
    weight = sum(float(row[0]) / row.size for row in credit.advantages[0])
    assert weight == pytest.approx(7.15949e-4, abs=1e-9)
    # and not at all under a constant divisor, as the advantages sum to zero
    assert sum(advantages(credit)) == pytest.approx(0, abs=1e-9)
    assert build().loss.aggregation == "seq-mean-token-mean"


# what the paper claims

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400)), min_size=2, max_size=12)
variants = st.sampled_from([{}, {"reward_variant": "release"}, {"penalty": "sigmoid"}, {"alpha_mode": "one"}])


def made(pairs: list[tuple[int, int]], **fields: Any) -> RolloutGroup:
    return group([score for score, _ in pairs], [length for _, length in pairs], **fields)


@settings(deadline=None)
@given(pairs, st.integers(0, 300), variants, st.booleans())
def test_a_shared_prefix_carries_no_length_penalty(pairs, extra, knobs, as_prefix) -> None:
    longer = [(score, length + extra) for score, length in pairs]
    after = made(pairs, prefix=Prefix([5] * extra)) if as_prefix else made(longer)
    before, after = credit_of(made(pairs), **knobs), credit_of(after, **knobs)
    np.testing.assert_allclose(before.rewards[0], after.rewards[0], atol=1e-12)
    np.testing.assert_allclose(advantages(before), advantages(after), atol=1e-9)


@dataclass(frozen=True)
class Fixed(FailureRate):
    """The same difficulty for every group."""

    value: float = 0.0

    def __call__(self, groups, ledger):
        return np.full(len(groups), self.value)


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=12), st.floats(0.0, 0.7), st.integers(1, 540))
def test_in_all_right_groups_the_strength_of_the_penalty_does_not_matter(lengths, difficulty, step) -> None:
    # alpha >= .109 and s >= .1 times a deviation of P of at least .2: eps moves an advantage by 1e-6 / .02 of itself
    one = group([1] * len(lengths), lengths, step=step)
    full = credit_of(one)
    for weaker in (credit_of(one, difficulty=Fixed(difficulty)), credit_of(one, reward_variant="release")):
        np.testing.assert_allclose(advantages(full), advantages(weaker), atol=2e-4)


@settings(deadline=None)
@given(pairs)
def test_right_answers_beat_wrong_ones_by_one_minus_alpha(pairs) -> None:
    one = made(pairs)
    rewards, right = credit_of(one).rewards[0], one.scores > 0
    assume(right.any() and not right.all())
    alpha = 1 - math.cos(math.pi * one.pass_rate / 2)
    assert rewards[right].min() - rewards[~right].max() >= 1 - alpha - 1e-12
    assert rewards[right].min() >= 1 - alpha - 1e-12
    assert -alpha - 1e-12 <= rewards[~right].min() <= rewards[~right].max() <= 0


@pytest.mark.parametrize(
    ("right", "gap"),
    enumerate([1, 0.980785, 0.923880, 0.831470, 0.707107, 0.555570, 0.382683, 0.195090]),
)
def test_the_gap_between_right_and_wrong_shrinks_with_the_pass_rate(right, gap) -> None:
    # the longest is right, the shortest wrong: 1 - alpha(right / 8) - 0
    one = group([1] * right + [0] * (8 - right), [400] * right + [10] * (8 - right))
    rewards = DifficultyPenalty()([one], FailureRate()([one], Ledger()), Ledger())[0].total
    smallest_right = rewards[0] if right else 1.0 - rewards.min()  # rho = 0: nobody pays
    assert smallest_right - rewards[-1] == pytest.approx(gap, abs=1e-5)


@settings(deadline=None)
@given(pairs, variants, st.integers(0, 700))
def test_advantages_sum_to_zero_and_rewards_keep_their_bounds(pairs, knobs, step) -> None:
    credit = credit_of(made(pairs, step=step), **knobs)
    low, high = build(**knobs).reward.bounds
    assert (low, high) == ((-0.5, 1.5) if knobs.get("reward_variant") else (-1.0, 1.0))
    assert low <= credit.rewards[0].min() <= credit.rewards[0].max() <= high
    assert sum(advantages(credit)) == pytest.approx(0, abs=1e-6)
    named = credit.parts[0]
    np.testing.assert_array_equal(named["correctness"] + named["length_penalty"], credit.rewards[0])


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), max_size=6), st.lists(st.integers(201, 400), min_size=1, max_size=6))
def test_released_and_paper_reward_differ_by_a_constant_unless_a_wrong_answer_is_short(right, wrong) -> None:
    # the shortest has 1 token, the longest at most 400: every wrong one lies in the longer half
    one = group([1] * (len(right) + 1) + [0] * len(wrong), [1, *right, *wrong], step=0)
    paper, release = credit_of(one), credit_of(one, reward_variant="release")
    alpha = paper.parts[0]["length_weight"]
    np.testing.assert_allclose(release.rewards[0], paper.rewards[0] + alpha / 2, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 120), st.integers(0, 600), st.sampled_from(["token", "paragraph"]), st.integers(0, 600))
def test_protected_means_protected(step, budget, cut, room) -> None:
    part = StoredPrefix(initial_tokens=budget, cut=cut)
    whole = np.concatenate(stored().stored_prefix)
    tokens = prefix_of(part, step=step, room=room).token_ids
    np.testing.assert_array_equal(tokens, whole[: tokens.size])
    limit = min(budget * (100 - step) // 100 if step < 100 else 0, room, whole.size)
    assert tokens.size == (limit if cut == "token" else max(end for end in (0, 300, 350, 800) if end <= limit))


def test_all_rollouts_of_a_problem_share_one_prefix_that_the_verifier_reads() -> None:
    part = build(n=5).prefix
    requests = part.plan(stored(), view(50))
    assert [request.n for request in requests] == [5]
    assert (requests[0].prefix.loss, requests[0].prefix.scored, requests[0].prefix.rate) == ("policy", True, None)
    assert part.plan(stored(), view(50, round=1)) == ()


def test_without_both_controls_the_reward_is_correctness_less_relative_length() -> None:
    method = build(initial_tokens=0, alpha_mode="one")
    one = group([1, 0, 0, 1], FOUR)
    credit = assign_credit(method, [one], Ledger())
    np.testing.assert_allclose(credit.rewards[0], [1, -0.25, -0.5, 0], atol=1e-12)
    assert prefix_of(method.prefix) == Prefix()


def test_correctness_without_a_prefix_is_plain_grpo() -> None:
    method, plain = build(initial_tokens=0, reward=Correctness()), build_grpo()
    groups = [made([(1, 3), (0, 40), (1, 7)], id="a"), group([1] * 3, id="b"), group([0], id="c"), group([], id="d")]
    ours, theirs = (assign_credit(m, groups, Ledger()) for m in (method, plain))
    assert (ours.metrics, ours.memory, ours.parts[0].keys()) == (theirs.metrics, theirs.memory, theirs.parts[0].keys())
    for i in range(len(groups)):
        np.testing.assert_array_equal(ours.rewards[i], theirs.rewards[i])
        assert advantages(ours, i) == advantages(theirs, i)
    for round in (0, 1):
        assert method.prefix.plan(stored(), view(round=round)) == plain.prefix.plan(stored(), view(round=round))


# the prefix


def test_the_mask_takes_the_prefix_out_of_training_and_of_nothing_else() -> None:
    in_loss, masked = (prefix_of(build(mask_prefix_in_loss=mask).prefix) for mask in (False, True))
    assert replace(in_loss, loss="none") == masked
    one = group([1, 0], [10, 20], prefix=masked)
    credit = credit_of(one, mask_prefix_in_loss=True)
    assert [row.size for row in credit.advantages[0]] == [10, 20]
    assert one.total_lengths.tolist() == [10 + 506, 20 + 506]


@pytest.mark.parametrize(
    ("step", "budget"),
    [(1, 512), (19, 512), (20, 256), (39, 256), (40, 128), (59, 128), (60, 64), (79, 64), (80, 0), (200, 0)],
)
def test_the_halving_schedule_of_the_release(step, budget) -> None:
    assert prefix_of(build(prefix_schedule="halving").prefix, step=step).token_ids.size == budget


@pytest.mark.parametrize(
    ("limit", "tokens"), [(0, 0), (299, 0), (300, 300), (349, 300), (350, 350), (799, 350), (800, 800), (900, 800)]
)
def test_the_paragraph_cut_stops_at_the_first_that_does_not_fit(limit, tokens) -> None:
    # paragraphs of 300, 50 and 450 tokens; S(0) is the budget itself
    assert prefix_of(StoredPrefix(initial_tokens=limit, cut="paragraph"), step=0).token_ids.size == tokens


def test_a_short_paragraph_behind_a_long_one_is_not_reached() -> None:
    # 600 does not fit 512, so the 5 behind it must not be taken either
    part = build(prefix_cut="paragraph").prefix
    assert prefix_of(part, stored(pieces=[[1] * 10, [2] * 600, [3] * 5])).token_ids.tolist() == [1] * 10
    assert prefix_of(part, stored(pieces=[[2] * 600, [3] * 5])) == Prefix()


@pytest.mark.parametrize("cut", ["token", "paragraph"])
@pytest.mark.parametrize("pieces", [(), ([],), ([], [])])
def test_a_problem_without_a_stored_text_starts_empty_and_is_counted(cut, pieces) -> None:
    part = StoredPrefix(cut=cut)
    assert prefix_of(part, stored(pieces=pieces)) == Prefix()
    groups = [given_group(part, stored("a"), 1), given_group(part, stored("b", pieces), 1)]
    metrics = part.metrics(groups, Ledger())
    assert (metrics["missing"], metrics["used"], metrics["shortened"]) == (0.5, 0.5, 0.0)


def test_a_stored_text_shorter_than_the_budget_is_given_whole() -> None:
    assert prefix_of(StoredPrefix(), stored(pieces=[[7, 8], [9]])).token_ids.tolist() == [7, 8, 9]


def test_a_prefix_is_shortened_to_the_room_and_that_is_counted() -> None:
    part = StoredPrefix(protected_steps=100)
    assert prefix_of(part, step=50, room=200).token_ids.tolist() == list(range(100, 300))
    assert prefix_of(part, step=50, room=0) == Prefix()
    groups = [given_group(part, stored(id), 50, room=room) for id, room in (("a", 200), ("b", 999), ("c", 256))]
    groups.append(RolloutGroup(stored("d"), 50, ()))  # no rollout survived: says nothing
    metrics = part.metrics(groups, Ledger())
    assert (metrics["budget"], metrics["shortened"], metrics["used"]) == (256.0, pytest.approx(1 / 3), 1.0)


def test_openings_of_wrong_answers_are_counted_where_the_store_knows() -> None:
    part = StoredPrefix()
    known = [replace(stored(id), stored_right=right) for id, right in (("a", True), ("b", False), ("c", False))]
    groups = [given_group(part, problem, 1) for problem in (*known, stored("d"))]
    assert part.metrics(groups, Ledger())["wrong"] == pytest.approx(2 / 3)
    assert "wrong" not in part.metrics(groups[3:], Ledger())


def test_metrics_reach_the_record_under_the_name_of_the_slot() -> None:
    method = build(n=2)
    metrics = assign_credit(method, [given_group(method.prefix, stored(), 80)], Ledger()).metrics
    expected = {"budget": 102, "tokens": 102, "used": 1, "missing": 0, "shortened": 0}
    assert {name: metrics[f"prefix/{name}"] for name in expected} == expected


def test_a_step_without_rollouts_has_no_shares() -> None:
    assert StoredPrefix().metrics([RolloutGroup(stored(), 1, ())], Ledger()) == {"budget": 506.0, "missing": 0.0}
    assert StoredPrefix().metrics([], Ledger()) == {}


def test_after_the_protected_steps_only_the_penalty_is_left() -> None:
    method = build()
    assert method.prefix.plan(stored(), view(100)) == Plain(8).plan(stored(), view(100))
    credit = credit_of(group([1, 1, 0, 1], FOUR, step=100))
    np.testing.assert_allclose(credit.rewards[0], [1.0, 0.845671, -0.308658, 0.382683], atol=1e-5)


def test_stored_prefixes_are_needed_unless_none_is_given() -> None:
    with pytest.raises(ValueError, match="prefix part StoredPrefix needs `stored_prefix`.*prepare prefixes"):
        check_needs(build(), {"logprobs"})
    check_needs(build(initial_tokens=0), {"logprobs"})


# the adaptive budgets


def visits(method: Method, scores: Sequence[Sequence[int]]) -> tuple[list[int], Ledger]:
    """Prefix tokens at each visit of one problem, when these are its verdicts."""
    ledger, given = Ledger.for_method(method), []
    for step, verdicts in enumerate(scores, start=1):
        numbers = ledger.view("prefix").numbers("p0")
        one = given_group(method.prefix, stored(), step, verdicts, numbers=numbers)
        given.append(int(one.rollouts[0].prefix.token_ids.size))
        ledger.observe([one], assign_credit(method, [one], ledger))
    return given, ledger


def test_the_adaptive_budget_follows_each_problems_own_accuracy() -> None:
    # rates 1/2, 1, 1/2, 0, 0, 1, 1: nothing to compare | rose | fell | fell | same | rose
    scores = [[1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [1, 1], [1, 1]]
    given, ledger = visits(build(prefix_schedule="adaptive"), scores)
    assert given == [512, 512, 256, 512, 512, 256, 128]
    assert ledger.numbers("p0") == {"prefix/budget": 64.0, "prefix/pass_rate": 1.0}


def test_an_adaptive_budget_below_64_is_nothing_and_stays_nothing() -> None:
    given, _ = visits(build(prefix_schedule="adaptive", initial_tokens=100), [[1, 1], [1, 1], [0, 0], [1, 0]])
    assert given == [100, 100, 0, 0]


def test_a_problem_that_comes_twice_in_a_step_is_one_visit() -> None:
    method = build(prefix_schedule="adaptive")
    groups = [group([1, 1, 1], id="twice"), group([0], id="twice"), group([], id="lost")]
    for order in (groups, groups[::-1]):
        memory = assign_credit(method, order, Ledger()).memory
        assert memory.problems == {"twice": {"prefix/budget": 512.0, "prefix/pass_rate": 0.75}}


def test_only_the_adaptive_schedule_remembers() -> None:
    for knobs in ({}, {"prefix_schedule": "halving"}, {"prefix_schedule": "adaptive", "initial_tokens": 0}):
        assert not credit_of(group([1, 0]), **knobs).memory.problems


def test_the_recorded_budget_is_the_mean_over_problems() -> None:
    state = Ledger().state_dict() | {"problems": {"a": {"prefix/budget": 128.0, "prefix/pass_rate": 0.5}}}
    ledger = Ledger.from_state_dict(state)
    credit = assign_credit(build(prefix_schedule="adaptive"), [group(id="a"), group(id="b")], ledger)
    assert credit.metrics["prefix/budget"] == (128 + 512) / 2


# groups


def test_the_same_problem_twice_in_a_step_makes_two_groups() -> None:
    first, second = group([1, 0], [100, 200]), group([1, 1], [10, 40])
    together = assign_credit(build(), [first, second], Ledger())
    for i, one in enumerate((first, second)):
        np.testing.assert_array_equal(together.rewards[i], credit_of(one).rewards[0])


def test_a_prefix_counts_as_length_where_it_differs_within_a_group() -> None:
    # 90 + 10 tokens against 50: the one that wrote less is the longer response
    answers = (rollout(1, 10, prefix=Prefix([5] * 90)), rollout(1, 50))
    assert credit_of(RolloutGroup(problem(), 1, answers)).rewards[0] == pytest.approx([0.0, 1.0], abs=1e-12)


def test_a_long_right_answer_may_lose() -> None:
    assert advantages(credit_of(group([1, 1, 0, 1], FOUR)))[3] == pytest.approx(-0.165508, abs=1e-5)


@pytest.mark.parametrize("scores", [[], [1], [0], [1, 1], [0, 0]])
@pytest.mark.parametrize("knobs", [{}, {"reward_variant": "release"}, {"penalty": "sigmoid"}, {"alpha_mode": "one"}])
def test_degenerate_groups_are_defined(scores, knobs) -> None:
    credit = assign_credit(build(**knobs), [group(scores, [500] * len(scores)), group([1, 0])], Ledger())
    assert all(np.isfinite(row).all() for rows in credit.advantages for row in rows)
    if len(scores) > 1:
        assert advantages(credit) == [0.0] * len(scores)


def test_an_empty_answer_is_the_shortest_and_wrong() -> None:
    credit = assign_credit(build(), [group([0, 1, 0], [0, 10, 20])], Ledger())
    assert credit.rewards[0][0] == 0.0
    assert credit.advantages[0][0].shape == (0,)


def test_the_spread_needs_two_right_answers() -> None:
    assert "reward/right_spread" not in credit_of(group([1, 0, 0], [10, 20, 30])).metrics
    groups = [group([1, 1, 0], [10, 20, 30], id="a"), group([1, 1], [10, 20], id="b"), group([0, 0], id="c")]
    assert assign_credit(build(), groups, Ledger()).metrics["reward/right_spread"] == (0.5 + 1.0) / 2


# the switches


def test_defaults_are_the_papers() -> None:
    method = build()
    assert method.prefix == StoredPrefix(8, 512, 100, "linear", "token", "policy")
    assert method.difficulty == FailureRate()
    assert method.reward == DifficultyPenalty("paper", "relative", "cosine", 600)
    assert method.advantage == GroupNormalised(eps=1e-6, ddof=1)
    assert method.overlong is None
    loss = method.loss
    assert (loss.aggregation, loss.clip_low, loss.clip_high) == ("seq-mean-token-mean", 0.2, 0.2)
    assert (loss.dual_clip, loss.kl, loss.entropy) == (3.0, 0.0, 0.0)


def test_knobs_reach_their_parts() -> None:
    method = build(
        n=4,
        initial_tokens=64,
        protected_steps=7,
        prefix_cut="paragraph",
        mask_prefix_in_loss=True,
        reward_variant="release",
        alpha_mode="one",
        anneal_steps=9,
        clip_low=0.1,
        clip_high=0.3,
        dual_clip=None,
        kl=0.01,
    )
    assert method.prefix == StoredPrefix(4, 64, 7, "linear", "paragraph", "none")
    assert method.reward == DifficultyPenalty("release", "relative", "one", 9)
    assert (method.loss.clip_low, method.loss.clip_high) == (0.1, 0.3)
    assert (method.loss.dual_clip, method.loss.kl) == (None, 0.01)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, r"n must lie in \[1, inf\), got 0"),
        ({"initial_tokens": -1}, r"initial_tokens must lie in \[0, inf\), got -1"),
        ({"protected_steps": 0}, r"protected_steps must lie in \[1, inf\), got 0"),
        ({"anneal_steps": 0}, r"anneal_steps must lie in \[1, inf\), got 0"),
        ({"prefix_schedule": "cosine"}, "schedule must be one of linear, halving, adaptive; got 'cosine'"),
        ({"prefix_cut": "line"}, "cut must be one of token, paragraph; got 'line'"),
        ({"reward_variant": "v2"}, "variant must be one of paper, release; got 'v2'"),
        ({"penalty": "cosine"}, "penalty must be one of relative, sigmoid; got 'cosine'"),
        ({"alpha_mode": "zero"}, "weight must be one of cosine, one; got 'zero'"),
        ({"reward_variant": "release", "penalty": "sigmoid"}, "not defined for variant=release.*use variant=paper"),
        ({"anneal_steps": 50}, "anneal_steps=50 has no effect with variant=paper.*use variant=release"),
        (
            {"prefix_schedule": "halving", "protected_steps": 40},
            "protected_steps=40 has no effect with schedule=halving; use schedule=linear, or leave it at 100",
        ),
        (
            {"prefix_schedule": "halving", "initial_tokens": 32},
            "initial_tokens=32 with schedule=halving never gives a prefix",
        ),
    ],
)
def test_impossible_knobs_fail_when_the_method_is_built(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**knobs)


def test_an_unknown_loss_of_the_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="loss must be one of policy, none; got 'imitate'"):
        StoredPrefix(loss="imitate")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"initial_tokens": 0},
        {"prefix_schedule": "halving"},
        {"prefix_schedule": "adaptive", "initial_tokens": 100, "difficulty": BatchRelative()},
        {"prefix_cut": "paragraph", "initial_tokens": 30},
        {"mask_prefix_in_loss": True},
        {"reward_variant": "release", "anneal_steps": 2},
        {"penalty": "sigmoid"},
        {"alpha_mode": "one"},
    ],
    ids=str,
)
def test_every_switch_keeps_every_law(knobs) -> None:
    results = run_contract(build, **knobs)
    assert [result.law for result in results] == list(LAWS)
    assert [result for result in results if not result.passed] == []


# on the command line


def from_command_line(*args: str) -> Method:
    pytest.importorskip("hydra")
    from reasonrl.cli import composed
    from reasonrl.config import method_from

    return method_from(composed(args).method)


def test_it_composes_from_the_command_line() -> None:
    assert from_command_line("method=pace") == build()
    changed = from_command_line("method=pace", "method.prefix_schedule=halving", "method.mask_prefix_in_loss=true")
    assert changed == build(prefix_schedule="halving", mask_prefix_in_loss=True)


def test_its_parts_fit_other_methods() -> None:
    method = from_command_line("method=deepcompress", "method/prefix=stored", "method/reward=difficulty_penalty")
    assert (method.prefix, method.reward) == (StoredPrefix(n=16), DifficultyPenalty())


def test_with_batch_relative_a_group_harder_than_the_batch_is_penalised_less() -> None:
    # P_b .99 * .5 + .01 * mean(.75, .25, .5) = .5: rho 1 at .75 and .5, 1 - .25 at .25
    method = from_command_line("method=pace", "method/difficulty=batch_relative")
    assert method.difficulty == BatchRelative()
    scores = {"easy": [1, 1, 0, 1], "hard": [0, 0, 0, 1], "average": [1, 0, 0, 1]}
    groups = [group(own, FOUR, id=id) for id, own in scores.items()]
    credit = assign_credit(method, groups, ledger_with(difficulty__batch_pass_rate=0.5))
    weights = [float(named["length_weight"][0]) for named in credit.parts]
    np.testing.assert_allclose(weights, [1.0, 0.617317, 1.0], atol=1e-5)
    np.testing.assert_allclose(credit.rewards[1], [0, -0.154329, -0.308658, 0.382683], atol=1e-5)


def test_with_batch_relative_an_all_wrong_group_still_prefers_short_answers() -> None:
    # documented in DifficultyPenalty: rho 1 - .5, alpha(.5) = .292893
    credit = assign_credit(
        build(difficulty=BatchRelative(smoothing=0.0)),
        [group([0] * 4, FOUR, id="a"), group([1] * 4, FOUR, id="b")],
        Ledger(),
    )
    np.testing.assert_allclose(credit.rewards[0], -0.292893 * np.array([0, 0.25, 0.5, 1]), atol=1e-5)
