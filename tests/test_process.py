"""Labels, losses and advantages of steps: the worked examples of AdaptiveStep and its relatives, and what always holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.functional.advantages import group_normalised, rloo
from reasonrl.functional.confidence import step_of_token
from reasonrl.functional.process import (
    hard_label,
    he_inverse,
    min_form,
    mixed,
    prime,
    process_supervision,
    soft_label,
    step_loss,
    telescoping,
)

LOGITS = np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])

reals = st.floats(-5, 5, allow_nan=False, width=32)


@st.composite
def group_of_steps(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rewards and ends of 2 to 5 rollouts."""
    ends = [
        np.cumsum(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))) - 1 for _ in range(draw(st.integers(2, 5)))
    ]
    rewards = [np.array(draw(st.lists(reals, min_size=len(own), max_size=len(own)))) for own in ends]
    return rewards, ends


# Labels


def test_one_right_continuation_makes_a_step_good() -> None:
    assert hard_label([0, 1, 0, 0, 0, 0, 0, 0]) == 1
    assert soft_label([0, 1, 0, 0, 0, 0, 0, 0]) == 0.125
    assert hard_label(np.zeros(8)) == soft_label(np.zeros(8)) == 0
    assert hard_label([[False, True], [False, False]]).tolist() == [1, 0]
    assert soft_label([[False, True], [False, False]]).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("label", [hard_label, soft_label])
def test_a_label_needs_verdicts(label) -> None:
    with pytest.raises(ValueError, match=r"at least 1 continuation \(..., J\), got shape \(3, 0\)"):
        label(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="must be 0 or 1, got .*nan"):
        label([1.0, np.nan])
    with pytest.raises(ValueError, match="must be 0 or 1"):
        label([0.5])


def test_the_pass_rate_behind_a_hard_score() -> None:
    np.testing.assert_allclose(he_inverse([0.9, 0.337, 0.570]), [0.2501, 0.05, 0.10], atol=2e-4)
    np.testing.assert_allclose(he_inverse(1 - (1 - np.array([0.05, 0.25])) ** 8), [0.05, 0.25], atol=1e-12)


def test_the_pass_rate_of_a_sure_score_is_below_one() -> None:
    # 1 - 1e-6^(1/8) = 1 - 0.177828
    np.testing.assert_allclose(he_inverse([0.0, 1.0]), [0.0, 0.822172], atol=1e-6)
    assert np.isnan(he_inverse([np.nan, 0.5])).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"scores must be probabilities in \[0, 1\], got -1.0..0.5"):
        he_inverse([-1.0, 0.5])
    with pytest.raises(ValueError, match="got rollouts=0"):
        he_inverse([0.5], 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=5), st.integers(1, 64))
def test_the_pass_rate_never_exceeds_the_score(scores, rollouts) -> None:
    assert (he_inverse(scores, rollouts) <= np.array(scores) + 1e-12).all()
    np.testing.assert_allclose(he_inverse(scores, 1), np.minimum(scores, 1 - 1e-6), atol=1e-12)


# Loss


def test_the_loss_over_the_vocabulary() -> None:
    # ln(e^2 + 3) - 2 and ln(e + 3) - 1
    loss = step_loss(LOGITS, [1, 0], 0, 1, form="full_vocab")
    np.testing.assert_allclose(loss, [0.34075, 0.74367], atol=1e-5)
    assert loss.mean() == pytest.approx(0.54221, abs=1e-5)


def test_the_loss_over_the_two_tokens() -> None:
    # ln(1 + e^-2) and ln(1 + e^-1)
    loss = step_loss(LOGITS, [1, 0], 0, 1)
    np.testing.assert_allclose(loss, [0.12693, 0.31326], atol=1e-5)
    assert loss.mean() == pytest.approx(0.22009, abs=1e-5)


def test_the_loss_is_not_that_of_a_softmax_of_a_softmax() -> None:
    twice = np.exp(LOGITS[:, :2]) / np.exp(LOGITS[:, :2]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(step_loss(twice, [1, 0], 0, 1), [0.38317, 0.48855], atol=1e-5)
    assert step_loss(twice, [1, 0], 0, 1).mean() == pytest.approx(0.43586, abs=1e-5)
    # a sure model has a loss of 0 here, of .3133 there
    assert step_loss([[50.0, 0.0]], [1], 0, 1)[0] == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(reals, reals, st.floats(0, 1), st.sampled_from(["two_way", "full_vocab"]))
def test_the_losses_agree_once_all_mass_is_on_two_tokens(good, bad, label, form) -> None:
    # -[y ln s + (1 - y) ln(1 - s)] with s = sigmoid(good - bad); the other tokens are far below
    s = 1 / (1 + np.exp(bad - good))
    expected = -(label * np.log(s) + (1 - label) * np.log(1 - s))
    loss = step_loss([[-60.0, bad, -60.0, good]], [label], 3, 1, form=form)
    np.testing.assert_allclose(loss, [expected], atol=1e-9)


def test_the_loss_of_huge_logits_is_finite() -> None:
    assert step_loss([[1e4, -1e4]], [0], 0, 1).tolist() == [2e4]
    assert step_loss(np.zeros((0, 4)), [], 0, 1).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS, [1.0], 0, 1), r"logits \(P, V\) and labels \(P,\) differ: \(2, 4\) vs \(1,\)"),
        ((LOGITS, [1.0, 1.5], 0, 1), r"labels \(P,\) must lie in \[0, 1\]"),
        ((LOGITS, [1.0, np.nan], 0, 1), r"labels \(P,\) must lie in \[0, 1\]"),
        ((LOGITS, [1.0, 0.0], 0, 4), "two token ids in 0..3, got 0 and 4"),
        ((LOGITS, [1.0, 0.0], 1, 1), "two token ids in 0..3, got 1 and 1"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        step_loss(*arguments)
    with pytest.raises(ValueError, match="form must be one of two_way, full_vocab, got 'bce'"):
        step_loss(LOGITS, [1, 0], 0, 1, form="bce")


# Telescoping


def test_a_step_gets_what_it_gained() -> None:
    steps = telescoping(0.5, [0.25, 0.75], 1.0)
    np.testing.assert_allclose(steps, [-0.25, 0.5, 0.25], atol=1e-12)
    # half of .866 and half of each
    np.testing.assert_allclose(mixed(0.866, steps, 0.5), [0.308, 0.683, 0.558], atol=1e-12)
    np.testing.assert_allclose(mixed(1.0, steps, 0.25), [0.0625, 0.625, 0.4375], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(reals, st.lists(reals, max_size=8), reals, st.data())
def test_the_gains_sum_to_the_outcome_whatever_the_boundaries(first, interior, last, data) -> None:
    at = data.draw(st.integers(0, len(interior)))
    more = [*interior[:at], data.draw(reals), *interior[at:]]
    for values in (interior, more):
        assert telescoping(first, values, last).sum() == pytest.approx(last - first, abs=1e-9)


def test_one_step_gets_the_outcome_less_the_mean() -> None:
    assert mixed(123.0, telescoping(0.25, [], 1.0), 0.0).tolist() == [0.75]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_all_weight_on_the_outcome_keeps_its_bits(outcome) -> None:
    steps = np.full(len(outcome), np.pi)
    assert mixed(outcome, steps, 1.0).tobytes() == np.array(outcome).tobytes()
    assert mixed(steps, outcome, 0.0).tobytes() == np.array(outcome).tobytes()


def test_gains_and_mixtures_refuse_what_they_cannot_use() -> None:
    with pytest.raises(ValueError, match="values of a rollout's step ends .* must be finite"):
        telescoping(0.5, [np.nan], 1.0)
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got 1.5"):
        mixed(1.0, [1.0], 1.5)


# Process supervision


REWARDS, ENDS = [[0.8, 0.6], [0.4, 0.2, 0.5]], [[2, 5], [1, 3, 4]]


def test_process_supervision_sums_the_normalised_rewards_from_a_step_on() -> None:
    # mean .5, population deviation .2: r' = [1.5, .5] and [-.5, -1.5, 0]
    one, two = process_supervision(REWARDS, ENDS, ddof=0)
    np.testing.assert_allclose(one, [2, 2, 2, 0.5, 0.5, 0.5], atol=2e-5)
    np.testing.assert_allclose(two, [-2, -2, -1.5, -1.5, 0], atol=2e-5)


def test_process_supervision_with_the_sample_deviation() -> None:
    # deviation sqrt(.2 / 4) = .223607
    one, two = process_supervision(REWARDS, ENDS, eps=0.0)
    np.testing.assert_allclose(one, [1.7889] * 3 + [0.4472] * 3, atol=5e-5)
    np.testing.assert_allclose(two, [-1.7889] * 2 + [-1.3416] * 2 + [0.0], atol=5e-5)


@pytest.mark.parametrize(("ddof", "size"), [(0, 1.0), (1, 0.86602)])
def test_one_step_a_rollout_is_grpo(ddof, size) -> None:
    rewards = np.array([1.0, 0.0, 1.0, 0.0])
    rows = process_supervision([[r] for r in rewards], [[2]] * 4, ddof=ddof)
    for row, r in zip(rows, rewards, strict=True):
        np.testing.assert_allclose(row, [size if r else -size] * 3, atol=1e-5)
    assert [row[0] for row in rows] == group_normalised(rewards, ddof=ddof).tolist()


def test_equal_rewards_give_zeros_and_a_lone_rollout_its_own() -> None:
    assert [row.tolist() for row in process_supervision([[0.7, 0.7], [0.7]], [[0, 1], [0]])] == [[0, 0], [0]]
    lone = process_supervision([[0.8, 0.6]], [[1, 2]])[0]
    np.testing.assert_allclose(lone, [1.4, 1.4, 0.6], atol=1e-5)
    assert process_supervision([], []) == []


def test_an_empty_response_takes_no_part() -> None:
    rows = process_supervision([[0.8, 0.6], [], [0.4, 0.2, 0.5]], [[2, 5], [], [1, 3, 4]], lengths=[6, 0, 5])
    alone = process_supervision(REWARDS, ENDS)
    assert [row.tolist() for row in rows] == [alone[0].tolist(), [], alone[1].tolist()]


def test_an_end_token_belongs_to_the_last_step() -> None:
    rows = process_supervision(REWARDS, ENDS, lengths=[7, 5])
    assert rows[0].size == 7
    assert rows[0][6] == rows[0][5]


@settings(max_examples=60, deadline=None)
@given(group_of_steps(), st.floats(0.5, 2), st.floats(-3, 3))
def test_process_supervision_ignores_shift_and_scale(steps, scale, shift) -> None:
    rewards, ends = steps
    if np.ptp(np.concatenate(rewards)) < 1e-3:
        return  # eps and rounding decide there
    rows = process_supervision(rewards, ends, eps=0.0)
    moved = process_supervision([scale * own + shift for own in rewards], ends, eps=0.0)
    for a, b in zip(rows, moved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(group_of_steps(), st.sampled_from([0, 1]))
def test_process_supervision_is_constant_in_a_step_and_sums_to_zero(steps, ddof) -> None:
    rewards, ends = steps
    pooled = np.concatenate(rewards)
    normalised = group_normalised(pooled, ddof=ddof)
    rows = process_supervision(rewards, ends, ddof=ddof)
    total, at = 0.0, 0
    for row, own in zip(rows, ends, strict=True):
        each = row[own]
        np.testing.assert_array_equal(row, each[step_of_token(own, len(row))])  # constant
        at += len(own)
        assert row[-1] == normalised[at - 1]  # the last step's own
        total += (each - np.append(each[1:], 0.0)).sum()  # differences of the sums give r' back
    assert total == pytest.approx(0.0, abs=1e-6)


def test_process_supervision_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="a group of 2 rows of rewards, 1 of ends and 2 lengths"):
        process_supervision(REWARDS, ENDS[:1])
    with pytest.raises(ValueError, match=r"values \(K,\) and ends \(K,\) differ: \(2,\) vs \(3,\)"):
        process_supervision(REWARDS, ENDS[::-1])
    with pytest.raises(ValueError, match="rewards of a rollout's steps .* must be finite"):
        process_supervision([[np.nan], [1.0]], [[0], [0]])


# Min-form


def test_the_worst_step_takes_the_weight() -> None:
    credit = min_form([0.8, -0.4, 0.6], 0.1)
    np.testing.assert_allclose(credit.weights, [6.1e-6, 0.99995, 4.5e-5], rtol=0.01)
    np.testing.assert_allclose(credit.returns, [-0.39995, -0.39995, 2.7e-5], atol=1e-5)
    assert min_form([]).returns.tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_the_first_return_lies_between_minimum_and_mean(rewards) -> None:
    credit = min_form(rewards)
    assert credit.weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert min(rewards) - 1e-9 <= credit.returns[0] <= np.mean(rewards) + 1e-9
    assert min_form(rewards, 1e-6).returns[0] == pytest.approx(min(rewards), abs=1e-4)


def test_min_form_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        min_form([1.0], 0)
    with pytest.raises(ValueError, match="rewards of a rollout's steps .* must be finite"):
        min_form([1.0, np.inf])


# PRIME


TOKENS = [[0.1, 0.3], [0.2, -0.2, 0.3]]  # means .2 and .1


@pytest.mark.parametrize(
    ("form", "baselined", "summed"),
    [
        ("formula", ([0, 0.2], [0, -0.4, 0.1]), ([0.2, 0.2], [-0.3, -0.3, 0.1])),
        ("released", ([-0.1, 0.3], [0.1, -0.7, 0.3]), ([0.2, 0.3], [-0.3, -0.4, 0.3])),
    ],
)
def test_prime_compares_tokens_with_the_other_rollouts(form, baselined, summed) -> None:
    for gamma, expected in ((0.0, baselined), (1.0, summed)):
        for row, wanted in zip(prime(TOKENS, gamma=gamma, form=form), expected, strict=True):
            np.testing.assert_allclose(row, wanted, atol=1e-12)


def test_prime_adds_the_outcome_and_discounts() -> None:
    rows = prime(TOKENS, outcomes=[1, 0], gamma=0.5)
    np.testing.assert_allclose(rows[0], [1.1, 1.2], atol=1e-12)  # .5 * .2 and .2, plus 1
    np.testing.assert_allclose(rows[1], [-1.175, -1.35, -0.9], atol=1e-12)  # .5 (-.4 + .5 * .1), -.35, .1, less 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(reals, min_size=1, max_size=5), min_size=2, max_size=5))
def test_the_two_forms_of_prime_agree_on_average_over_a_rollout(rewards) -> None:
    for ours, theirs in zip(prime(rewards, gamma=0.0), prime(rewards, gamma=0.0, form="released"), strict=True):
        assert ours.mean() == pytest.approx(theirs.mean(), abs=1e-9)


def test_prime_of_a_lone_and_of_an_empty_rollout() -> None:
    for form in ("formula", "released"):
        np.testing.assert_allclose(prime([[0.1, 0.3]], outcomes=[1.0], form=form)[0], [1.4, 1.3], atol=1e-12)
    rows = prime([[], [0.5]], outcomes=[0.0, 1.0])
    assert [row.tolist() for row in rows] == [[], [0.5 + rloo(np.array([0.0, 1.0]))[1]]]


def test_prime_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match=r"outcomes \(n,\) and rollouts \(n,\) differ: \(1,\) vs \(2,\)"):
        prime(TOKENS, outcomes=[1.0])
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        prime(TOKENS, gamma=2)
    with pytest.raises(ValueError, match="form must be one of formula, released, got 'code'"):
        prime(TOKENS, form="code")
