"""Confidence, threshold and steps: the worked examples of AdaptiveStep, what holds for every response, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.functional.confidence import (
    capped,
    confidence,
    every,
    line_ends,
    random_ends,
    split,
    spo_advantages,
    spo_cuts,
    spread,
    step_ends,
    step_of_token,
    tagged,
    threshold,
    top_share,
    triggers,
)

POOL = [0.30, 0.45, 0.55, 0.62, 0.71, 0.80, 0.88, 0.93, 0.97, 0.99]
P = np.array([0.99, 0.40, 0.98, 0.97, 0.55, 0.20, 0.10, 0.99, 0.95, 0.90])

# few distinct values, so that ties with tau happen
probabilities = st.lists(st.sampled_from(np.linspace(0.0, 1.0, 21).tolist()), max_size=30).map(np.array)
taus = st.sampled_from(np.linspace(0.0, 1.0, 21).tolist())
masks = st.integers(0, 2**30 - 1).map(lambda bits: np.array([bits >> i & 1 for i in range(30)], dtype=bool))


def loop_ends(values: np.ndarray, tau: float, excluded: np.ndarray) -> list[int]:
    kept = [t for t in range(len(values)) if not excluded[t]]
    return sorted({t for t in kept if values[t] < tau} | set(kept[-1:]))


# Confidence


def test_confidence_is_the_probability_in_double_precision() -> None:
    values = confidence(np.log(np.array([0.25, 1.0, 0.5])).astype(np.float32))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [0.25, 1.0, 0.5], atol=1e-7)


def test_what_rounding_leaves_above_zero_is_certainty() -> None:
    assert confidence([1e-4, 3e-8, 0.0]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, np.inf, 2e-4])
def test_no_sampled_token_has_such_a_log_probability(wrong) -> None:
    with pytest.raises(ValueError, match=rf"at most 0, got {wrong} at token 2 of 4.*mask is shifted"):
        confidence([-0.1, -0.2, wrong, -0.3])


def test_log_probabilities_of_several_responses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logprobs must be one-dimensional \(L,\), got shape \(2, 3\)"):
        confidence(np.zeros((2, 3)))


# Threshold


def test_the_threshold_is_the_linear_quantile() -> None:
    # 0.2 * 9 = 1.8: eight tenths of the way from .45 to .55
    tau = threshold(POOL, 0.2, least=2)
    assert tau == pytest.approx(0.53, abs=1e-12)
    assert (np.array(POOL) < tau).sum() == 2
    # what other quantiles would have taken: 1 token, and 2 at another threshold
    assert np.quantile(POOL, 0.2, method="lower") == 0.45
    assert np.quantile(POOL, 0.2, method="higher") == 0.55


@pytest.mark.parametrize(
    ("size", "quantile", "below"), [(10, 0.2, 2), (57, 0.02, 2), (1001, 0.02, 20), (5000, 0.02, 100)]
)
def test_the_share_below_the_threshold_of_a_calibration_pool(size, quantile, below) -> None:
    pool = np.random.default_rng(0).permutation(size) / size
    assert (pool < threshold(pool, quantile, least=2)).sum() == below


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_exactly_ceil_of_the_share_lies_below(size, thousandths, random) -> None:
    rank = thousandths * (size - 1)
    pool = np.array(random.sample(range(1, 10 * size), size)) / (10 * size)
    below = (pool < threshold(pool, thousandths / 1000, least=2)).sum()
    if rank % 1000:
        assert below == -(-rank // 1000)
    else:  # a rank that is whole: the float product may lie a unit in the last place beside it
        assert below - rank // 1000 in (0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 51))
def test_two_percent_of_a_small_batch_is_one_token_however_sure_the_model_is(size) -> None:
    pool = 1.0 - np.arange(size) * 1e-9
    assert (pool < threshold(pool, 0.02, least=2)).sum() == 1


def test_too_few_tokens_give_no_threshold() -> None:
    with pytest.raises(ValueError, match="a threshold from 999 tokens.*at least 1000 are wanted: pool more responses"):
        threshold(np.full(999, 0.5), 0.02)
    assert threshold(np.full(1000, 0.5), 0.02) == 0.5
    with pytest.raises(ValueError, match="a threshold from 0 tokens"):
        threshold([], 0.02, least=0)


def test_a_threshold_needs_a_share_and_probabilities() -> None:
    with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\], got 2; 2 percent is 0.02"):
        threshold(POOL, 2, least=2)
    with pytest.raises(ValueError, match="in \\[0, 1\\], got nan at token 1 of 3"):
        threshold([0.5, np.nan, 0.5], 0.02, least=2)
    with pytest.raises(ValueError, match="got -0.5 at token 0 of 2; `confidence` makes them from log-probabilities"):
        threshold([-0.5, -1.0], 0.02, least=2)


# Steps


def test_a_step_ends_with_the_unsure_token() -> None:
    # B = {1, 5, 6}; .55 at token 4 is exactly tau and no boundary
    assert step_ends(P, 0.55).tolist() == [1, 5, 6, 9]
    assert step_of_token([1, 5, 6, 9], 10).tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3]


def test_an_unsure_last_token_gives_no_empty_step() -> None:
    assert step_ends(np.append(P[:9], 0.1), 0.55).tolist() == [1, 5, 6, 9]


def test_a_sure_response_is_one_step_and_an_unsure_one_a_step_a_token() -> None:
    assert step_ends(np.full(10, 0.9), 0.55).tolist() == [9]
    assert step_ends(np.full(10, 0.1), 0.55).tolist() == list(range(10))


def test_responses_of_no_token_and_of_one() -> None:
    assert step_ends([], 0.55).tolist() == []
    assert step_ends([0.1], 0.55).tolist() == step_ends([0.9], 0.55).tolist() == [0]
    assert spread([], [], 0).tolist() == []


def test_the_step_closes_before_tokens_that_end_none() -> None:
    # tool output at 5 and 6, end token at 9: of B = {1, 5, 6} only 1 is left
    excluded = np.isin(np.arange(10), [5, 6, 9])
    assert step_ends(P, 0.55, excluded=excluded).tolist() == [1, 8]
    assert step_of_token([1, 8], 10).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_response_of_nothing_but_an_end_token_has_no_step() -> None:
    assert step_ends([0.2], 0.55, excluded=[True]).tolist() == []
    assert step_of_token([], 1).tolist() == [-1]
    assert spread([], [], 1).tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(probabilities, taus, masks)
def test_ends_equal_the_two_line_loop(values, tau, mask) -> None:
    excluded = mask[: len(values)]
    assert step_ends(values, tau, excluded=excluded).tolist() == loop_ends(values, tau, excluded)
    assert step_ends(values, tau).tolist() == loop_ends(values, tau, np.zeros(len(values), dtype=bool))


@settings(max_examples=60, deadline=None)
@given(probabilities, taus)
def test_steps_partition_the_response(values, tau) -> None:
    ends = step_ends(values, tau)
    steps = step_of_token(ends, len(values))
    assert len(ends) == len(set(np.flatnonzero(values < tau)) | set(range(len(values))[-1:]))
    assert np.diff(ends, prepend=-1).sum() == len(values)
    assert (np.diff(steps) >= 0).all()  # contiguous
    assert sorted(set(steps.tolist())) == list(range(len(ends)))  # none empty
    assert (np.diff(ends, prepend=-1) == np.bincount(steps, minlength=len(ends))).all()


@settings(max_examples=60, deadline=None)
@given(probabilities, taus, taus)
def test_a_higher_threshold_only_adds_ends(values, one, other) -> None:
    low, high = sorted((one, other))
    assert set(step_ends(values, low)) <= set(step_ends(values, high))


@settings(max_examples=60, deadline=None)
@given(probabilities.filter(len))
def test_quantile_zero_gives_one_step(values) -> None:
    assert step_ends(values, threshold(values, 0.0, least=1)).tolist() == [len(values) - 1]


@settings(max_examples=60, deadline=None)
@given(probabilities, taus, st.integers(0, 5), st.integers(0, 5))
def test_prompt_and_padding_move_no_end(values, tau, before, after) -> None:
    padded = np.concatenate((np.zeros(before), values, np.zeros(after)))
    excluded = np.ones(len(padded), dtype=bool)
    excluded[before : before + len(values)] = False
    assert (step_ends(padded, tau, excluded=excluded) - before).tolist() == step_ends(values, tau).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(probabilities, masks), max_size=6), taus)
def test_many_responses_at_once_are_split_like_each_alone(responses, tau) -> None:
    flat = np.concatenate([np.zeros(0), *(values for values, _ in responses)])
    hidden = np.concatenate([np.zeros(0, dtype=bool), *(mask[: len(values)] for values, mask in responses)])
    lengths = [len(values) for values, _ in responses]
    for excluded in (None, hidden):
        ends, counts = split(flat, lengths, tau, excluded=excluded)
        alone = [
            step_ends(values, tau, excluded=None if excluded is None else mask[: len(values)])
            for values, mask in responses
        ]
        assert counts.tolist() == [len(own) for own in alone]
        assert ends.tolist() == [end for own in alone for end in own.tolist()]


def test_lengths_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to the 10 confidences, got shape .* with sum 9"):
        split(P, [4, 5], 0.5)
    with pytest.raises(ValueError, match="add up to the 10 confidences"):
        split(P, [12, -2], 0.5)


def test_steps_need_probabilities_and_masks_of_their_length() -> None:
    with pytest.raises(ValueError, match="tau must be a probability in \\[0, 1\\], got 55; 55 percent is 0.55"):
        step_ends(P, 55)
    with pytest.raises(ValueError, match="tau must be a probability"):
        step_ends(P, np.nan)
    with pytest.raises(ValueError, match="got nan at token 1 of 2"):
        step_ends([0.5, np.nan], 0.5)
    with pytest.raises(ValueError, match="got -0.7 at token 0 of 1; `confidence` makes them"):
        step_ends([-0.7], 0.5)
    with pytest.raises(ValueError, match=r"excluded must be bool of shape \(10,\), got bool of shape \(9,\)"):
        step_ends(P, 0.5, excluded=np.zeros(9, dtype=bool))
    with pytest.raises(ValueError, match=r"excluded must be bool of shape \(10,\), got int64"):
        step_ends(P, 0.5, excluded=np.zeros(10, dtype=np.int64))
    with pytest.raises(ValueError, match=r"confidences must be one-dimensional \(L,\), got shape \(2, 5\)"):
        step_ends(P.reshape(2, 5), 0.5)


# Fewer steps


def test_a_cap_keeps_the_least_confident_ends_and_the_last() -> None:
    ends = step_ends(P, 0.55)  # 1, 5, 6 at .40, .20, .10, and 9
    assert capped(ends, P, 3).tolist() == [5, 6, 9]
    assert capped(ends, P, 2).tolist() == [6, 9]
    assert capped(ends, P, 1).tolist() == [9]
    assert capped(ends, P, 4).tolist() == capped(ends, P, 99).tolist() == [1, 5, 6, 9]
    assert capped([], [], 3).tolist() == []


def test_a_cap_keeps_the_earlier_of_equally_confident_ends() -> None:
    assert capped([0, 1, 2, 3, 4], [0.3, 0.1, 0.3, 0.3, 0.9], 3).tolist() == [0, 1, 4]


def test_every_second_interior_end_and_the_last() -> None:
    assert every([1, 5, 6, 9], 2).tolist() == [1, 6, 9]
    assert every([1, 5, 6, 9], 1).tolist() == [1, 5, 6, 9]
    assert every([9], 2).tolist() == [9]
    assert every([], 2).tolist() == []


@settings(max_examples=60, deadline=None)
@given(probabilities, taus, st.integers(1, 6))
def test_fewer_steps_still_partition_the_response(values, tau, number) -> None:
    ends = step_ends(values, tau)
    for fewer in (capped(ends, values, number), every(ends, number)):
        assert set(fewer) <= set(ends)
        assert fewer[-1:].tolist() == ends[-1:].tolist()
    assert len(capped(ends, values, number)) == min(len(ends), number)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: capped([1, 9], P, 0), "at least 1 step, got most=0"),
        (lambda: capped([1, 10], P, 2), r"ends must be token indices 0..9, got 1..10"),
        (lambda: every([1, 9], 0), "every m-th end needs m of at least 1, got 0"),
        (lambda: every([5, 1], 1), r"ends must be a vector of rising token indices, got \[5 1\]"),
        (lambda: every([1, 1], 1), "rising token indices"),
        (lambda: every([-1, 1], 1), r"ends must be token indices 0 or above, got -1..1"),
        (lambda: spread([1.0], [0.5]), "ends must be integers, got dtype float64"),
        (lambda: spread([1.0], [1, 2]), r"values \(K,\) and ends \(K,\) differ: \(1,\) vs \(2,\)"),
        (lambda: random_ends(5, np.random.default_rng(0), steps=0), "at least 1 step, got steps=0"),
        (lambda: line_ends([0, 1]), r"newline must be a bool mask \(L,\), got int64"),
    ],
)
def test_ends_that_are_none_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Baselines


def test_lines_end_with_their_newline() -> None:
    newline = np.array([False, True, False, True, True, False])
    assert line_ends(newline).tolist() == [1, 3, 4, 5]
    assert line_ends(newline, excluded=[False] * 5 + [True]).tolist() == [1, 3, 4]
    assert line_ends([]).tolist() == []
    assert newline.tolist() == [False, True, False, True, True, False]  # the mask given is left as it was


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), masks, st.integers(1, 8), st.integers(0, 9))
def test_random_ends_are_so_many_and_never_empty_steps(length, mask, steps, seed) -> None:
    excluded = mask[:length]
    ends = random_ends(length, np.random.default_rng(seed), steps=steps, excluded=excluded)
    allowed = np.flatnonzero(~excluded)
    assert len(ends) == min(steps, len(allowed))
    assert (np.diff(ends) > 0).all()
    assert set(ends) <= set(allowed)
    assert ends[-1:].tolist() == allowed[-1:].tolist()


def test_random_ends_fall_anywhere() -> None:
    rng = np.random.default_rng(0)
    drawn = np.concatenate([random_ends(5, rng, steps=2)[:-1] for _ in range(400)])
    assert (np.bincount(drawn, minlength=4) > 60).all()  # 100 expected at each of the four


# SPO


def test_spo_cuts_before_the_unsure_token() -> None:
    # low {1, 4, 5, 6}: token 9 is exactly at .9
    assert spo_cuts(P, 0.9, interval=1).tolist() == [0, 3, 4, 5]
    assert spo_cuts(P, 0.9, interval=2).tolist() == [0, 4]
    assert spo_cuts([0.1, 0.95], 0.9, interval=1).tolist() == [-1]


def test_spo_gives_the_gain_to_unsure_tokens() -> None:
    advantages = spo_advantages([0.5, 0.25], [0, 4], 1.0, P)
    np.testing.assert_allclose(advantages, [0, -0.25, 0, 0, -0.25, 0.75, 0.75, 0, 0, 0.75], atol=1e-12)
    assert advantages[9] == 0.75  # zero where p > .9 keeps it
    assert not (P < 0.9)[9]  # the loss where p < .9 does not


def test_spo_credits_the_first_token_only_from_the_prompt_on() -> None:
    unsure = np.full(3, 0.5)
    assert spo_advantages([0.25], [-1], 1.0, unsure).tolist() == [0.75, 0.75, 0.75]
    assert spo_advantages([0.25], [0], 1.0, unsure).tolist() == [0.0, 0.75, 0.75]
    assert spo_advantages([], [], 1.0, unsure).tolist() == [0.0, 0.0, 0.0]


def test_spo_refuses_values_without_cuts() -> None:
    with pytest.raises(ValueError, match=r"values \(n,\) and cuts \(n,\) differ: \(2,\) vs \(1,\)"):
        spo_advantages([0.5, 0.5], [0], 1.0, P)
    with pytest.raises(ValueError, match=r"cuts must be token indices -1..9, got 0..10"):
        spo_advantages([0.5, 0.5], [0, 10], 1.0, P)
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        spo_cuts(P, interval=0)


# Value-guided decoding


@pytest.mark.parametrize(
    ("probability", "released", "ours"), [(0.5499, True, True), (0.54996, False, True), (0.55, False, False)]
)
def test_decoding_asks_below_the_threshold(probability, released, ours) -> None:
    assert triggers(probability, 0.55, round_percent=True) is released
    assert triggers(probability, 0.55) is ours


def test_a_threshold_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match="tau must be a probability in \\[0, 1\\], got 55"):
        triggers(0.5, 55)
    with pytest.raises(ValueError, match="probability must be a probability in \\[0, 1\\], got nan"):
        triggers(np.nan, 0.5)


# Tags


def test_a_tag_follows_each_step() -> None:
    ids, positions = tagged([5, 6, 7, 8], [1, 3], tag=99)
    assert ids.tolist() == [5, 6, 99, 7, 8, 99]
    assert positions.tolist() == [2, 5]
    assert ids.dtype == np.int32


def test_an_end_token_stays_behind_the_last_tag() -> None:
    assert tagged([5, 6, 2], [1], tag=99)[0].tolist() == [5, 6, 99, 2]
    assert tagged([], [], tag=99)[0].tolist() == []


@settings(max_examples=60, deadline=None)
@given(probabilities, taus, st.data())
def test_without_its_tags_a_response_is_what_it_was(values, tau, data) -> None:
    # few ids, so that the response often holds the tag itself
    response = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))), dtype=np.int32
    )
    ends = step_ends(values, tau)
    ids, positions = tagged(response, ends, tag=0)
    assert len(positions) == len(ends)
    assert (ids[positions] == 0).all()
    np.testing.assert_array_equal(np.delete(ids, positions), response)
    np.testing.assert_array_equal(ids[positions - 1], response[ends])  # the tag stands behind the end


def test_tags_outside_the_response_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ends must be token indices 0..2, got 1..3"):
        tagged([5, 6, 7], [1, 3], tag=9)


# Values of steps to tokens


def test_a_value_is_spread_over_its_step() -> None:
    assert spread([1.0, -2.0], [1, 4]).tolist() == [1, 1, -2, -2, -2]
    assert spread([1.0, -2.0], [1, 4], 7).tolist() == [1, 1, -2, -2, -2, -2, -2]
    with pytest.raises(ValueError, match=r"ends must be token indices 0..3, got 1..4"):
        spread([1.0, -2.0], [1, 4], 4)


# The tokens of highest entropy


@pytest.mark.parametrize(("size", "kept"), [(10, 2), (11, 3), (14, 3), (1, 1)])
def test_a_fifth_of_the_tokens_as_released(size, kept) -> None:
    entropies = np.random.default_rng(0).permutation(size) / size
    mask = top_share(entropies, 0.2, "count")
    assert mask.sum() == kept
    assert entropies[mask].min() > entropies[~mask].max(initial=-1.0)


def test_a_fifth_of_the_tokens_by_quantile() -> None:
    entropies = np.arange(1, 11) / 10
    assert np.quantile(entropies, 0.8) == pytest.approx(0.82)
    assert np.flatnonzero(top_share(entropies, 0.2)).tolist() == [8, 9]


def test_ties_at_the_top() -> None:
    assert top_share(np.ones(5), 0.2).tolist() == [True] * 5
    assert top_share(np.ones(5), 0.2, "count").tolist() == [True, False, False, False, False]
    assert top_share([], 0.2).tolist() == top_share([], 0.2, "count").tolist() == []


def test_a_share_of_the_tokens_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 20"):
        top_share([0.5], 20)
    with pytest.raises(ValueError, match="how must be one of quantile, count, got 'topk'"):
        top_share([0.5], 0.2, "topk")
    with pytest.raises(ValueError, match=r"values \(n,\) must be finite"):
        top_share([0.5, np.nan], 0.2)
