"""SEELE against the worked examples and properties of its paper: hints that keep accuracy at one half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import group, problem, rollout
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.core import Ledger, Prefix, Problem, Rollout, RolloutGroup, View, assign_credit, plan_rng, run_contract
from reasonrl.functional.item_response import accuracy_at, descent_bound
from reasonrl.methods.grpo import build as build_grpo
from reasonrl.methods.seele import build
from reasonrl.parts.advantages import DrGRPO
from reasonrl.parts.hints import AdaptiveHint, FixedHint, cap, hint_ids, rounds_of, units

FIVE_STEPS = tuple([10 * i + 1, 10 * i + 2, 10 * i + 3] for i in range(1, 6))  # step i: tokens i1 i2 i3


def solved(steps: Sequence[Sequence[int]] = FIVE_STEPS, id: str = "p0") -> Problem:
    return problem(id, solution_steps=tuple(steps))


def view(rollouts: Sequence[Rollout] = (), *, round: int | None = None, room: int = 1000, **numbers: float) -> View:
    number = max((r.round for r in rollouts), default=-1) + 1 if round is None else round
    return View(1, 100, plan_rng(0, 1, "p0", number), room, number, tuple(rollouts), numbers=numbers)


def played(accuracies: Sequence[float], rates: Sequence[float | None], n: int = 8) -> list[Rollout]:
    """n rollouts a round, as many right as the accuracy says, behind a hint of that rate."""
    return [
        rollout(int(k < a * n), prefix=Prefix([1, 2], rate=rate), round=number)
        for number, (a, rate) in enumerate(zip(accuracies, rates, strict=True))
        for k in range(n)
    ]


def asked(part: Any, of: Problem, at: View) -> tuple[int, int, float | None]:
    """Hint tokens, rollouts and rate of the one request of a round."""
    (request,) = part.plan(of, at)
    return request.prefix.token_ids.size, request.n, request.prefix.rate


PART = AdaptiveHint(n=32)


# what a hint is


def test_a_hint_is_the_first_whole_steps_and_never_the_last_one() -> None:
    assert units(solved(), "step") == 5
    assert cap(solved(), "step") == 4
    assert hint_ids(solved(), 2, "step").tolist() == [11, 12, 13, 21, 22, 23]
    assert cap(solved(), "token") == 12  # of 15 tokens: the last step's three state the answer
    assert hint_ids(solved(), 4, "token").tolist() == [11, 12, 13, 21]


@given(st.lists(st.integers(1, 5), max_size=8), st.sampled_from(["step", "token"]), st.integers(0, 30))
def test_no_hint_ever_holds_a_token_of_the_last_step_or_more_than_the_room(lengths, unit, room) -> None:
    steps = [[100 * i + k for k in range(length)] for i, length in enumerate(lengths, 1)]
    for part in (AdaptiveHint(unit=unit), FixedHint(unit=unit, rate=1.0)):
        (request,) = part.plan(solved(steps), view(room=room, rate=1.0))
        given_away = request.prefix.token_ids.tolist()
        assert given_away == [t for step in steps for t in step][: len(given_away)]
        assert len(given_away) <= min(room, sum(lengths[:-1]))


@pytest.mark.parametrize(
    ("loss", "weight", "expected"),
    [
        ("nll_token_mean", 0.001, ("imitate", 0.001)),
        ("nll_token_sum", 0.001, ("imitate", 0.012)),  # the engine averages over the hint's 12 tokens
        ("policy", 0.001, ("policy", 0.0)),
        ("none", 0.001, ("none", 0.0)),
    ],
)
def test_what_is_trained_on_the_hint_is_a_switch(loss, weight, expected) -> None:
    (request,) = AdaptiveHint(loss=loss, weight=weight).plan(solved(), view())
    assert (request.prefix.loss, pytest.approx(request.prefix.weight)) == expected
    assert not request.prefix.scored  # the continuation alone is scored


def test_an_empty_hint_is_imitated_nowhere() -> None:
    (request,) = PART.plan(solved(), view(rate=0.0))
    assert request.prefix == Prefix(rate=0.0)


# rates


@pytest.mark.parametrize(("steps", "rate", "tokens"), [(5, 0.8, 12), (2, 0.5, 3)])
def test_the_first_round_gives_all_but_one_step(steps, rate, tokens) -> None:
    assert asked(PART, solved(FIVE_STEPS[:steps]), view()) == (tokens, 8, pytest.approx(rate))


@pytest.mark.parametrize("steps", [0, 1])
def test_a_problem_without_at_least_two_steps_is_plain_grpo_in_one_round(steps) -> None:
    of = solved(FIVE_STEPS[:steps])
    assert asked(PART, of, view()) == (0, 32, None)
    (request,) = PART.plan(of, view())
    assert request.prefix == Prefix()
    assert PART.plan(of, view([rollout()] * 32, round=1)) == ()


def test_the_first_round_of_a_later_epoch_uses_the_remembered_rate() -> None:
    assert asked(PART, solved(), view(rate=0.41)) == (6, 8, 0.41)  # round(.41 * 5) = 2 steps


def test_a_changed_solution_keeps_the_rate_and_changes_the_hint() -> None:
    assert asked(PART, solved(FIVE_STEPS[:3]), view(rate=0.41)) == (3, 8, 0.41)


@pytest.mark.parametrize(
    ("accuracies", "rates", "rate"),
    [
        ([0.875, 0.25], [0.8, 0.4], 0.54103),  # row B
        ([0.875, 0.25, 0.5], [0.8, 0.4, 0.6], 0.57597),  # row C
        ([0.0], [0.8], 0.9),  # all wrong: halfway to one
        ([1.0], [0.8], 0.4),  # all right: halfway to zero
        ([0.75], [0.0], 0.0),  # right without a hint: none
    ],
)
def test_later_rounds_invert_the_curve_fitted_to_the_rounds_before(accuracies, rates, rate) -> None:
    tokens, n, planned = asked(PART, solved(), view(played(accuracies, rates)))
    if (rate, len(rates)) in ((0.54103, 2), (0.57597, 3)):
        assert tokens == 9  # l = 3 of S = 5, worked by hand
    assert planned == pytest.approx(rate, abs=1e-3)
    assert tokens == 3 * min(round(rate * 5), 4)
    assert n == 8


def test_the_curve_is_of_this_step_alone_and_the_rate_of_the_last_epoch_is_not_in_it() -> None:
    seen = played([0.875, 0.25], [0.8, 0.4])
    assert asked(PART, solved(), view(seen, rate=0.1)) == asked(PART, solved(), view(seen))


def test_the_plan_ends_after_the_last_round() -> None:
    assert PART.plan(solved(), view(played([0.5] * 4, [0.8, 0.6, 0.5, 0.5]))) == ()


def test_a_hint_without_room_is_shortened_by_whole_steps_and_recorded_as_it_was_given() -> None:
    assert asked(PART, solved(), view(room=11)) == (9, 8, pytest.approx(0.6))
    assert asked(PART, solved(), view(room=9)) == (9, 8, pytest.approx(0.6))
    assert asked(PART, solved(), view(room=2)) == (0, 8, 0.0)


def test_a_long_solution_is_cut_finely() -> None:
    of = solved([[i] for i in range(400)])
    seen = played([0.875, 0.25, 0.5], [0.8, 0.4, 0.6])
    assert asked(PART, of, view(seen))[0] == 230  # round(.57597 * 400)


def test_the_effective_rate_is_what_was_given_after_rounding() -> None:
    assert asked(replace(PART, record="effective"), solved(), view(rate=0.47)) == (6, 8, pytest.approx(0.4))


def test_tokens_as_unit_cut_anywhere() -> None:
    assert asked(replace(PART, unit="token"), solved(), view(rate=0.47)) == (7, 8, 0.47)


def test_a_lost_round_is_left_out_and_a_thin_one_counts_like_the_others() -> None:
    full = played([0.875, 0.25], [0.8, 0.4])
    lost = [replace(r, round=2 * r.round) for r in full]  # nothing survived of round 1
    assert asked(PART, solved(), view(lost, round=3))[2] == asked(PART, solved(), view(full))[2]
    thin = [r for r in full if r.round == 0] + [r for r in full if r.round == 1][::4]  # 2 of 8, one of them right
    assert rounds_of(thin)[1].accuracy == 0.5
    assert asked(PART, solved(), view(thin))[2] == pytest.approx(
        asked(PART, solved(), view(played([0.875, 0.5], [0.8, 0.4])))[2]
    )


def test_if_all_rounds_so_far_are_lost_the_first_rate_is_tried_again() -> None:
    assert asked(PART, solved(), view(round=2)) == (12, 8, 0.8)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=3))
def test_rates_lie_in_0_1_whatever_the_rounds_came_to(seen) -> None:
    rollouts = played([right / 8 for _, right in seen], [rate / 20 for rate, _ in seen])
    tokens, _, rate = asked(PART, solved(), view(rollouts))
    assert rate is not None
    assert 0.0 <= rate <= 1.0
    assert tokens in (0, 3, 6, 9, 12)


# credit


def test_all_rounds_form_one_group_with_one_mean() -> None:
    one = RolloutGroup(solved(), 1, tuple(played([7 / 8, 2 / 8, 4 / 8, 5 / 8], [0.8, 0.4, 0.6, 0.55])))
    (rows,) = assign_credit(build(), [one], Ledger()).advantages
    assert one.pass_rate == 0.5625
    assert {float(row[0]) for row in rows} == {0.4375, -0.5625}
    assert sum(row[0] for row in rows) == pytest.approx(0.0, abs=1e-12)


def test_the_baseline_of_a_round_compares_equal_hints() -> None:
    one = RolloutGroup(solved(), 1, tuple(played([1.0, 0.25], [0.8, 0.4])))
    (rows,) = assign_credit(build(baseline="round"), [one], Ledger()).advantages
    assert [float(row[0]) for row in rows] == [0.0] * 8 + [0.75, 0.75] + [-0.25] * 6


def test_without_a_hint_it_is_dr_grpo_to_the_bit() -> None:
    # by hand: reward minus the group's mean, 1/2 and 3/4
    by_hand = [[0.5, -0.5, -0.5, 0.5], [0.25, 0.25, 0.25, -0.75]]
    groups = [group([1, 0, 0, 1], [5, 9, 3, 7]), group([1, 1, 1, 0], [5, 9, 3, 7], id="p1")]
    ours = assign_credit(build(rounds=1), groups, Ledger())
    plain = assign_credit(build_grpo(advantage=DrGRPO()), groups, Ledger())
    for a, b in zip(ours.advantages, plain.advantages, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert [[float(row[0]) for row in rows] for rows in ours.advantages] == by_hand


def test_the_loss_is_a_sum_over_tokens_divided_by_a_constant() -> None:
    loss = build().loss
    assert (loss.aggregation, loss.scale, loss.dual_clip, loss.kl) == ("seq-mean-token-sum-norm", 2048, None, 0.001)
    assert build(aggregation="token-mean").loss.scale is None


def test_the_bare_factory_is_the_paper() -> None:
    method = build()
    assert method.prefix == AdaptiveHint(
        n=32, rounds=4, target=0.5, unit="step", record="raw", solver="grid", loss="nll_token_mean", weight=0.001
    )
    assert (method.loss.clip_low, method.loss.clip_high, method.loss.entropy) == (0.2, 0.2, 0.0)


# memory


def test_the_last_rate_is_remembered_and_survives_saving_bit_for_bit() -> None:
    method = build()
    ledger = Ledger.for_method(method)
    one = RolloutGroup(solved(), 1, tuple(played([0.875, 0.25, 0.5], [0.8, 0.4, 0.1 + 0.2])))
    ledger.observe([one], assign_credit(method, [one], ledger))
    restored = Ledger.from_json(ledger.to_json(), method).view("prefix").numbers("p0")
    assert restored == {"rate": 0.1 + 0.2}
    assert asked(method.prefix, solved(), view(**restored))[2] == 0.1 + 0.2


def test_remembering_one_more_fit_is_a_switch() -> None:
    one = RolloutGroup(solved(), 1, tuple(played([0.875, 0.25, 0.5], [0.8, 0.4, 0.6])))
    memory = replace(PART, store="refit").remember([one], Ledger())
    assert memory.problems["p0"]["rate"] == pytest.approx(0.57597, abs=1e-3)


def test_nothing_is_remembered_of_a_problem_that_was_given_no_hint_plan() -> None:
    assert PART.remember([group([1, 0])], Ledger()).problems == {}


# numbers for the record


def test_accuracy_is_reported_by_round_because_the_mean_hides_the_cold_start() -> None:
    one = RolloutGroup(solved(), 1, tuple(played([1.0, 0.25, 0.0, 0.0], [0.8, 0.4, 0.6, 0.8])))
    two = RolloutGroup(solved(id="p1"), 1, tuple(played([0.5, 0.75], [0.8, 0.4])))
    metrics = PART.metrics([one, two, group([0], id="p2")], Ledger())
    assert metrics["hint/no_solution"] == pytest.approx(1 / 3)
    by_round = [metrics[f"hint/accuracy_round_{i}"] for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(by_round, [0.75, 0.5, 0.0, 0.0])
    assert metrics["hint/rate"] == pytest.approx((0.8 + 0.4 + 0.6 + 0.8 + 0.8 + 0.4) / 6)
    assert metrics["hint/target_distance"] == pytest.approx((0.5 + 0.25) / 2)
    assert metrics["hint/cold"] == 1.0
    assert metrics["hint/fit_error"] > 0.0
    assert metrics["hint/learnable"] == pytest.approx((0 + 0.75 + 0 + 0 + 1 + 0.75) / 6)  # 4 a (1 - a)


def test_a_problem_that_fails_behind_the_longest_hint_is_counted() -> None:
    longest = Prefix(hint_ids(solved(), 4, "step"), rate=0.95)
    failing = [rollout(0, prefix=longest) for _ in range(8)]
    metrics = PART.metrics([RolloutGroup(solved(), 1, tuple(failing))], Ledger())
    assert (metrics["hint/at_cap"], metrics["hint/unsolved_at_cap"]) == (1.0, 1.0)


def test_the_bound_on_what_a_step_gains_peaks_at_one_half() -> None:
    values = descent_bound(np.array([0.5, 0.25, 0.75, 0.125, 0.0, 1.0]), beta=0.001)
    np.testing.assert_allclose(values, [125, 93.75, 93.75, 54.6875, 0, 0])
    with pytest.raises(ValueError, match="beta must be above 0"):
        descent_bound(0.5, beta=0.0)


# the whole loop


def simulated(part: AdaptiveHint, *, problems: int, epochs: int, steps: int, seed: int = 0) -> np.ndarray:
    """(epochs, rounds) mean accuracy against made-up problems whose curves do not change: no language model."""
    rng = np.random.default_rng(seed)
    slope = np.exp(rng.uniform(np.log(4), np.log(50), problems))
    shift = -rng.uniform(0.1, 0.9, problems)
    floor = np.where(rng.random(problems) < 0.7, 0.0, rng.uniform(0, 0.3, problems))
    of = solved([[i] for i in range(steps)])
    numbers: list[dict[str, float]] = [{} for _ in range(problems)]
    means = np.zeros((epochs, part.rounds))
    for epoch in range(epochs):
        for i in range(problems):
            seen: list[Rollout] = []
            for number in range(part.rounds):
                (request,) = part.plan(of, view(seen, round=number, **numbers[i]))
                share = request.prefix.token_ids.size / steps
                chance = accuracy_at(np.array(share), slope[i], shift[i], floor[i])
                scores = rng.random(request.n) < chance
                seen += [rollout(int(s), 1, prefix=request.prefix, round=number) for s in scores]
                means[epoch, number] += scores.mean() / problems
            memory = part.remember([RolloutGroup(of, 1, tuple(seen))], Ledger())
            numbers[i] = dict(memory.problems["p0"])
    return means


def test_in_the_second_epoch_accuracy_stays_near_one_half() -> None:
    first, second = simulated(PART, problems=150, epochs=2, steps=5)
    assert first[0] > 0.75  # the pessimistic start gives nearly everything away
    assert 0.45 <= second.mean() <= 0.60


def test_another_target_is_met_as_well() -> None:
    _, second = simulated(replace(PART, target=0.75, n=64), problems=80, epochs=2, steps=40)
    assert second.mean() == pytest.approx(0.75, abs=0.06)


# laws, refusals


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"unit": "token", "record": "effective"},
        {"store": "refit", "duplicates": "per_distinct_rate"},
        {"hint_loss": "policy", "baseline": "round"},
        {"hint_loss": "none", "rounds": 1},
        {"prefix": FixedHint(n=8)},
    ],
)
def test_it_keeps_the_laws(knobs) -> None:
    broken = [result for result in run_contract(build, **{"n": 8, **knobs}) if not result.passed]
    assert broken == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 30}, "n=30 rollouts do not divide into rounds=4.*for example n=32"),
        ({"target": 0.0}, r"target must lie in \(0, 1\)"),
        ({"target": 1.0}, r"target must lie in \(0, 1\)"),
        ({"rounds": 0}, "rounds must lie in"),
        ({"hint_weight": -1.0}, "weight must lie in"),
        ({"unit": "sentence"}, "unit must be one of step, token"),
        ({"hint_loss": "all"}, "loss must be one of nll_token_mean"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**knobs)
