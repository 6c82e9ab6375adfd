"""DeepCompress against the worked examples and properties of the paper and its released code."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from builders import group, groups_with_pass_rate, ledger_with
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.core import Credit, Ledger, Method, RolloutGroup, assign_credit, with_limits
from reasonrl.methods.deepcompress import build
from reasonrl.methods.grpo import build as build_grpo
from reasonrl.parts.advantages import GroupNormalised
from reasonrl.parts.difficulty import BatchRelative
from reasonrl.parts.overlong import NoOverlong, SoftOverlong
from reasonrl.parts.rewards import Correctness, DualLength

RECIPE_LIMIT = 10_240
FOUR = [1000, 2000, 3000, 4000]


def recipe(**knobs) -> Method:
    return with_limits(build(**knobs), RECIPE_LIMIT)


def credit_at(p_b: float, one: RolloutGroup, method: Method | None = None) -> Credit:
    """Credit of one group at this P_b, with the step's own tick taken back out."""
    method = method or recipe()
    weight = method.difficulty.smoothing
    before = (p_b - (1 - weight) * one.pass_rate) / weight
    return assign_credit(method, [one], ledger_with(difficulty__batch_pass_rate=before))


def advantages(credit: Credit, index: int = 0) -> list[float]:
    return [float(row[0]) for row in credit.advantages[index]]


# the worked examples


def test_t0_the_batch_pass_rate_is_smoothed() -> None:
    # .99 * .50 + .01 * .30
    groups = groups_with_pass_rate(0.3)
    p_b = BatchRelative().batch_pass_rate(groups, ledger_with(batch_pass_rate=0.50))
    assert p_b == pytest.approx(0.498, abs=1e-6)


def test_t0_the_batch_pass_rate_starts_at_one_and_sinks_slowly() -> None:
    method, ledger, seen = recipe(n=10), None, []
    ledger = Ledger.for_method(method)
    for step in range(1, 11):
        groups = groups_with_pass_rate(0.4, step=step)
        credit = assign_credit(method, groups, ledger)
        ledger.observe(groups, credit)
        seen.append(credit.metrics["ledger/difficulty/batch_pass_rate"])
    np.testing.assert_allclose(seen[:2], [0.994, 0.98806], atol=1e-6)
    assert seen[9] == pytest.approx(0.942629, rel=1e-5)
    assert ledger.scalar("difficulty/batch_pass_rate", 0) == seen[9]


def test_t1_on_a_simple_problem_the_shortest_right_answer_wins() -> None:
    credit = credit_at(0.25, group([1, 1, 1, 0], FOUR))  # P_g .75, beta +.5
    assert credit.metrics["difficulty/mean"] == pytest.approx(-0.5, abs=1e-6)
    np.testing.assert_allclose(credit.parts[0]["length_bonus"], [0.132337, 0.111134, 0.088866, 0], atol=1e-6)
    np.testing.assert_allclose(credit.rewards[0], [1.132337, 1.111134, 1.088866, -1], atol=1e-6)
    np.testing.assert_allclose(advantages(credit), [0.520353, 0.500265, 0.479169, -1.499787], atol=1e-6)


def test_t2_on_a_hard_problem_the_longest_right_answer_wins() -> None:
    credit = credit_at(0.75, group([0, 0, 1, 1], FOUR))  # P_g .5, beta -.25
    np.testing.assert_allclose(credit.rewards[0], [-1, -1, 1.105584, 1.116615], atol=1e-6)
    np.testing.assert_allclose(advantages(credit), [-0.866019, -0.866019, 0.861494, 0.870544], atol=1e-6)


def test_t3_the_overlong_ramp_reverses_the_preference_for_long_answers() -> None:
    lengths = [800, 1200, 1600, 2000, 2400, 2800, 9216, 10240]
    credit = credit_at(0.498, group([0, 1, 0, 1, 0, 0, 1, 0], lengths))  # P_g .375, beta -.123
    bonus = [0, 0.095457, 0, 0.096863, 0, 0, 0.109539, 0]
    np.testing.assert_allclose(credit.parts[0]["length_bonus"], bonus, atol=1e-6)
    np.testing.assert_allclose(credit.parts[0]["overlong"], [0, 0, 0, 0, 0, 0, -0.5, -1], atol=1e-6)
    np.testing.assert_allclose(credit.rewards[0], [-1, 1.095457, -1, 1.096863, -1, -1, 0.609539, -2], atol=1e-6)
    expected = [-0.515340, 1.283752, -0.515340, 1.284959, -0.515340, -0.515340, 0.866558, -1.373908]
    np.testing.assert_allclose(advantages(credit), expected, atol=1e-6)


def test_t4_equal_lengths_earn_the_same_bonus() -> None:
    credit = credit_at(0.5, group([1, 0, 1, 1], [1500] * 4))
    np.testing.assert_allclose(credit.rewards[0], [1.1, -1, 1.1, 1.1], atol=1e-6)


def test_t5_all_wrong_teaches_nothing() -> None:
    credit = credit_at(0.5, group([0] * 4, [10, 8192, 3000, 5]))
    np.testing.assert_array_equal(credit.rewards[0], [-1] * 4)
    assert advantages(credit) == [0.0] * 4


def test_t5_all_wrong_and_overlong_without_dropping_teaches_the_ramp() -> None:
    credit = credit_at(0.5, group([0] * 4, [3000, 9000, 10240, 10240]))
    np.testing.assert_allclose(credit.rewards[0], [-1, -1.394531, -2, -2], atol=1e-6)
    np.testing.assert_allclose(advantages(credit), [1.220081, 0.415982, -0.818031, -0.818031], atol=1e-6)


def test_t6_all_right_earns_no_bonus_by_default() -> None:
    credit = credit_at(0.498, group([1] * 4, FOUR))
    np.testing.assert_array_equal(credit.rewards[0], [1] * 4)
    assert advantages(credit) == [0.0] * 4
    assert credit.metrics["group/solve_all"] == 1.0


def test_t6_all_right_without_the_filter_is_length_optimisation_and_warns() -> None:
    with pytest.warns(UserWarning, match=r"dynamic_sampling\.enable=true"):
        method = recipe(filter_ratio=None)
    credit = credit_at(0.498, group([1] * 4, FOUR), method)
    np.testing.assert_allclose(credit.rewards[0], [1.132457, 1.111178, 1.088822, 1.067543], atol=1e-6)
    np.testing.assert_allclose(advantages(credit), [1.157954, 0.398792, -0.398792, -1.157954], atol=1e-6)


def test_t7_a_problem_as_hard_as_the_batch_earns_a_constant_bonus() -> None:
    credit = credit_at(0.5, group([1, 0, 1, 0], FOUR))
    np.testing.assert_allclose(credit.rewards[0], [1.1, -1, 1.1, -1], atol=1e-6)


def test_t8_the_papers_figure() -> None:
    # alpha .1, beta .2, z -4 needs 17 rollouts: one short answer among 16 long ones has z = -sqrt(16)
    short = group([1] + [0] * 16, [100] + [200] * 16)
    shaped = DualLength(alpha=0.1)([short], np.array([-0.2]), Ledger())
    assert shaped[0].total[0] == pytest.approx(1.068997, abs=1e-6)


# what the paper claims

mixed = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400)), min_size=2, max_size=12)


@settings(deadline=None)
@given(mixed, st.floats(0, 1))
def test_right_answers_beat_wrong_ones_and_only_they_earn_a_bonus(pairs, p_b) -> None:
    one = group([s for s, _ in pairs], [n for _, n in pairs])
    credit = assign_credit(recipe(), [one], ledger_with(difficulty__batch_pass_rate=p_b))
    bonus, right = credit.parts[0]["length_bonus"], one.scores > 0
    assert not bonus[~right].any()
    if 0 < one.pass_rate < 1:
        assert ((bonus[right] > 0) & (bonus[right] < 0.2)).all()
        assert credit.rewards[0][right].min() > credit.rewards[0][~right].max()
    assert sum(advantages(credit)) == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=8, unique=True), st.floats(-1, 1))
def test_the_sign_of_difficulty_decides_the_direction(lengths, difficulty) -> None:
    one = group([1] * len(lengths) + [0], [*sorted(lengths), 50])
    bonus = DualLength()([one], np.array([difficulty]), Ledger())[0].parts["length_bonus"][:-1]
    steps = np.diff(bonus)
    if abs(difficulty) > 1e-3:
        assert (np.sign(steps) == np.sign(difficulty)).all()
    if difficulty == 0:
        np.testing.assert_allclose(bonus, 0.1, atol=1e-12)


@settings(deadline=None)
@given(mixed, st.integers(1, 5), st.integers(0, 100))
def test_credit_ignores_an_affine_change_of_length(pairs, scale, shift) -> None:
    scores, lengths = [s for s, _ in pairs], [n for _, n in pairs]
    before = assign_credit(recipe(), [group(scores, lengths)], Ledger())
    after = assign_credit(recipe(), [group(scores, [scale * n + shift for n in lengths])], Ledger())
    np.testing.assert_allclose(before.rewards[0], after.rewards[0], atol=1e-9)


def test_alpha_zero_is_grpo_with_the_overlong_ramp() -> None:
    lengths = [[3000, 9000, 10240], FOUR, FOUR]
    scores = [[1, 0, 1], [1] * 4, [0, 1, 0, 0]]
    groups = [group(scores[i], lengths[i], id=str(i)) for i in range(3)]
    plain = build_grpo(reward=Correctness(-1.0, 1.0), overlong=SoftOverlong())
    ours, theirs = (assign_credit(m, groups, Ledger()) for m in (recipe(alpha=0.0), with_limits(plain, RECIPE_LIMIT)))
    for i in range(3):
        np.testing.assert_array_equal(ours.rewards[i], theirs.rewards[i])
        assert advantages(ours, i) == advantages(theirs, i)


# the batch pass rate


def test_the_batch_pass_rate_counts_solved_unsolved_and_dropped_groups() -> None:
    groups = [group([1, 1], id="a", kept=False), group([0, 0], id="b", kept=False), group([1, 0], id="c")]
    assert BatchRelative(smoothing=0.0).batch_pass_rate(groups, Ledger()) == pytest.approx(0.5)


def test_it_does_not_depend_on_the_order_in_which_groups_finish() -> None:
    groups = [group([1] * k + [0] * (7 - k), id=str(k)) for k in (1, 6, 3, 0, 5)]
    part = BatchRelative()
    assert part.batch_pass_rate(groups, Ledger()) == part.batch_pass_rate(groups[::-1], Ledger())


def test_it_ticks_without_dynamic_sampling_and_once_a_step() -> None:
    method = recipe()
    ledger = Ledger.for_method(method)
    groups = groups_with_pass_rate(0.4)
    credit = assign_credit(method, groups, ledger)
    assign_credit(method, groups, ledger)  # asking twice changes nothing
    ledger.observe(groups, credit)
    assert ledger.scalar("difficulty/batch_pass_rate", 0) == pytest.approx(0.994)
    with pytest.raises(ValueError, match="step 1 arrives after step 1 was applied"):
        ledger.observe(groups, credit)


def test_no_smoothing_is_the_batch_itself() -> None:
    part = BatchRelative(smoothing=0.0)
    np.testing.assert_allclose(part([group([1, 0], id="a"), group([1, 1], id="b")], Ledger()), [0.25, -0.25])


def test_groups_without_rollouts_say_nothing() -> None:
    part = BatchRelative()
    assert part.batch_pass_rate([group([])], ledger_with(batch_pass_rate=0.5)) == 0.5
    assert part.batch_pass_rate([group([]), group([1, 0])], ledger_with(batch_pass_rate=0.5)) == 0.5
    assert part([], Ledger()).shape == (0,)


def test_save_and_load_at_step_t_equals_an_uninterrupted_run() -> None:
    method = recipe()
    rates = [0.1, 0.7, 0.3, 0.9]

    def run(ledger: Ledger, steps: range) -> Ledger:
        for step in steps:
            groups = groups_with_pass_rate(rates[step - 1], step=step)
            ledger.observe(groups, assign_credit(method, groups, ledger))
        return ledger

    whole = run(Ledger.for_method(method), range(1, 5))
    half = run(Ledger.for_method(method), range(1, 3))
    assert run(Ledger.from_json(half.to_json(), method), range(3, 5)).to_json() == whole.to_json()


# the switches


def test_defaults_are_the_recipe() -> None:
    method = build()
    assert method.prefix.n == 16
    assert method.difficulty == BatchRelative(smoothing=0.99, initial_pass_rate=1.0)
    assert method.reward == DualLength(alpha=0.2, wrong=-1.0, right=1.0)
    assert method.advantage == GroupNormalised(eps=1e-6, ddof=1)
    loss = method.loss
    assert (loss.aggregation, loss.clip_low, loss.clip_high) == ("token-mean", 0.2, 0.28)
    assert (loss.dual_clip, loss.kl, loss.entropy) == (None, 0.0, 0.0)
    assert recipe().overlong == SoftOverlong(max_tokens=10240)


@pytest.mark.parametrize(("direction", "winner"), [("penalty", 0), ("bonus", 2)])
@pytest.mark.parametrize("difficulty", [-0.9, 0.9])
def test_a_fixed_direction_ignores_difficulty(direction, winner, difficulty) -> None:
    bonus = DualLength(direction=direction)([group([1, 1, 1, 0], FOUR)], np.array([difficulty]), Ledger())[0].total
    assert bonus.argmax() == winner


def test_a_fixed_direction_has_the_papers_strength() -> None:
    # beta = +1 at z = -1.341641: .2 * sigmoid(1.341641)
    shaped = DualLength(direction="penalty")([group([1, 1, 1, 0], FOUR)], np.array([0.3]), Ledger())
    assert shaped[0].parts["length_bonus"][0] == pytest.approx(0.158552, abs=1e-6)


@pytest.mark.parametrize(("ablation", "acts_on"), [("shorten_simple", 0), ("lengthen_hard", 1)])
def test_an_ablation_acts_on_one_side_only(ablation, acts_on) -> None:
    groups = [group([1, 1, 0], id="simple"), group([1, 0, 0], id="hard"), group([1, 0], id="neutral")]
    shaped = DualLength(ablation=ablation)(groups, np.array([-0.3, 0.3, 0.0]), Ledger())
    acted = [bool(item.parts["length_bonus"].any()) for item in shaped]
    assert acted == [i == acts_on for i in range(3)]


@pytest.mark.parametrize(("ratio", "chosen"), [(1.0, "abcde"), (0.4, "abde"), (0.2, "ae"), (0.1, ""), (0.0, "")])
def test_filter_ratio_keeps_the_extremes_among_mixed_groups(ratio, chosen) -> None:
    # five mixed groups, pass rates 1/6..5/6; int(q * 5) from each end; solved and unsolved ones never
    groups = [group([1] * (k + 1) + [0] * (5 - k), id="abcde"[k]) for k in range(5)]
    groups += [group([1] * 6, id="solved"), group([0] * 6, id="unsolved")]
    shaped = DualLength(filter_ratio=ratio)(groups, np.zeros(7), Ledger())
    earned = [g.problem.id for g, item in zip(groups, shaped, strict=True) if item.parts["length_bonus"].any()]
    assert earned == list(chosen)


def test_wrong_answers_may_earn_the_bonus_too() -> None:
    shaped = DualLength(only_correct=False)([group([1, 0], [10, 10])], np.array([0.0]), Ledger())
    np.testing.assert_allclose(shaped[0].total, [1.1, -0.9], atol=1e-12)


def test_slope_multiplies_the_difficulty() -> None:
    one = group([1, 1, 0], [10, 20, 30])
    steep = DualLength(slope=2.0)([one], np.array([0.2]), Ledger())[0].total
    np.testing.assert_array_equal(steep, DualLength()([one], np.array([0.4]), Ledger())[0].total)


def test_the_ramp_can_be_switched_off() -> None:
    credit = credit_at(0.5, group([0] * 4, [3000, 9000, 10240, 10240]), recipe(overlong=NoOverlong()))
    np.testing.assert_array_equal(credit.rewards[0], [-1] * 4)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, r"n must lie in \[1, inf\), got 0"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, inf\), got -0.1"),
        ({"smoothing": 1.0}, r"smoothing must lie in \[0, 1\), got 1.0"),
        ({"initial_pass_rate": 1.5}, r"initial_pass_rate must lie in \[0, 1\], got 1.5"),
        ({"filter_ratio": 2.0}, r"filter_ratio must lie in \[0, 1\], got 2.0"),
        ({"direction": "up"}, "direction must be one of dual, penalty, bonus; got 'up'"),
        ({"direction": "bonus", "ablation": "lengthen_hard"}, "choose one"),
        ({"p_true_scope": "last_batch"}, "Use all_finished"),
        ({"clip_low": 0.0}, r"loss.clip_low must lie in \(0, 1\], got 0"),
    ],
)
def test_impossible_knobs_fail_when_the_method_is_built(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**knobs)


def test_a_difficulty_that_is_never_negative_warns_with_the_dual_reward() -> None:
    with pytest.warns(UserWarning, match="method/difficulty=batch_relative"):
        build_grpo(reward=DualLength())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
        build_grpo(reward=DualLength(direction="penalty"))


# degenerate groups


@pytest.mark.parametrize("scores", [[], [1], [0], [1, 1], [0, 0]])
@pytest.mark.parametrize("length", [1, 500])
def test_degenerate_groups_are_defined(scores, length) -> None:
    credit = assign_credit(recipe(), [group(scores, [length] * len(scores)), group([1, 0])], Ledger())
    assert all(np.isfinite(row).all() for rows in credit.advantages for row in rows)
    assert len(credit.advantages[0]) == len(scores)


def test_an_empty_answer_counts_as_short_and_wrong() -> None:
    credit = assign_credit(recipe(), [group([0, 1, 0], [0, 10, 20])], Ledger())
    assert credit.rewards[0][0] == -1.0
    assert credit.advantages[0][0].shape == (0,)


def test_a_correct_answer_in_the_ramp_still_beats_a_wrong_one() -> None:
    credit = credit_at(0.5, group([1, 0, 0], [10239, 10, 200]))
    assert credit.rewards[0][0] > credit.rewards[0][1:].max()


def test_dropped_groups_train_nothing() -> None:
    one = replace(group([1, 0], [10, 20]), kept=False)
    credit = assign_credit(recipe(), [one], Ledger())
    assert not any(row.any() for row in credit.advantages[0])
    assert credit.rewards[0][0] > 1.0
