"""pass@k, maj@k, intervals and comparisons: against brute force, exact tests and small simulations."""

import math
from collections import Counter
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reasonrl.functional.estimates as estimates
from reasonrl.functional.estimates import (
    accuracy_by_length,
    difference_interval,
    holm,
    majority_at_k,
    mean_interval,
    minimum_detectable_difference,
    paired_interval,
    pass_at_k,
    ratio_interval,
    share_interval,
    wilson,
)

# pass@k


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.data())
def test_pass_at_k_counts_the_draws_that_hold_a_right_sample(n, data) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, [right], k)[0] == pytest.approx(np.mean([any(draw) for draw in draws]), abs=1e-12)


def test_pass_at_k_of_many_problems_at_once() -> None:
    # 1 - C(4, 2) / C(5, 2) = .4; 1 - C(2, 2) / C(4, 2) = 5/6; all right; none right
    np.testing.assert_allclose(pass_at_k([5, 4, 3, 2], [1, 2, 3, 0], 2), [0.4, 5 / 6, 1, 0], atol=1e-12)
    np.testing.assert_allclose(pass_at_k(4, [0, 1, 2], 1), [0, 0.25, 0.5], atol=1e-12)  # the pass rate
    assert pass_at_k(10_000, [10], 5000)[0] == pytest.approx(1 - 0.5**10, abs=1e-3)  # no binomial overflows
    assert pass_at_k(4, np.zeros(0, dtype=int), 1).shape == (0,)


def test_pass_at_k_is_unbiased() -> None:
    # over all outcomes of n = 5 samples at p = .3 it averages 1 - .7^k
    right = np.array([sum(outcome) for outcome in product([0, 1], repeat=5)])
    chance = 0.3**right * 0.7 ** (5 - right)
    for k in (1, 2, 5):
        assert chance @ pass_at_k(5, right, k) == pytest.approx(1 - 0.7**k, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([8, 4], [1, 1], 5), "pass@5 needs .* at least k samples of every problem, got 4"),
        ((8, [1], 0), "pass@0 needs k of at least 1"),
        ((8, [9], 1), r"right must lie in 0..n, got \[9\] of \[8\]"),
        ((8, [-1], 1), r"right must lie in 0..n"),
        ((8, [0.5], 1), "right must be whole numbers of samples, got dtype float64"),
    ],
)
def test_pass_at_k_refuses_what_it_cannot_know(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


# maj@k


def every_draw(answers, right, k) -> float:
    """The definition: mean over all subsets of how right their plurality answer is."""
    share = {
        answer: np.mean([r for a, r in zip(answers, right, strict=True) if a == answer]) for answer in set(answers)
    }
    worth = []
    for draw in combinations(answers, k):
        votes = Counter(answer for answer in draw if answer is not None)
        winners = [a for a, count in votes.items() if count == max(votes.values())] or [None]
        worth.append(np.mean([share[winner] for winner in winners]))
    return float(np.mean(worth))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, "1", "2", "3", "4"]), st.booleans()), min_size=1, max_size=8))
def test_maj_at_k_counts_the_draws_whose_plurality_is_right(samples) -> None:
    answers, right = zip(*samples, strict=True)
    ks = range(1, len(samples) + 1)
    expected = [every_draw(answers, right, k) for k in ks]
    np.testing.assert_allclose(majority_at_k(answers, right, ks), expected, atol=1e-12)


def test_maj_at_k_by_hand() -> None:
    # three of five right: draws of 3 with at least 2 of them, (C(3,2) * 2 + 1) / 10; a pair ties or agrees
    np.testing.assert_allclose(majority_at_k("RRRWW", [1, 1, 1, 0, 0], [1, 2, 3, 5]), [0.6, 0.6, 0.7, 1], atol=1e-12)
    # wrong answers that differ do not add up: 2 of 4 wins where both are drawn, 3 / 6, a tie of two else
    np.testing.assert_allclose(majority_at_k("RRXY", [1, 1, 0, 0], [2, 4]), [1 / 6 + 4 / 6 * 0.5, 1], atol=1e-12)
    assert majority_at_k(["R", None, None, None], [1, 0, 0, 0], [4])[0] == 1  # silence has no vote
    assert majority_at_k([None, None], [1, 0], [1, 2]).tolist() == [0.5, 0.5]  # nobody votes
    assert majority_at_k(["R", "W"], [1, 0], [2])[0] == 0.5  # a tie counts by share
    assert majority_at_k(["A", "A", "W"], [1, 0, 0], [3])[0] == 0.5  # an answer judged both ways


def test_maj_at_k_of_many_samples_is_exact_and_fast() -> None:
    # two answers, k odd: the hypergeometric tail
    tail = sum(math.comb(40, r) * math.comb(24, 15 - r) for r in range(8, 16)) / math.comb(64, 15)
    assert majority_at_k([0] * 40 + [1] * 24, [1] * 40 + [0] * 24, [15])[0] == pytest.approx(tail, abs=1e-12)
    values = majority_at_k([i % 7 for i in range(1000)], [i % 7 == 0 for i in range(1000)], [1, 64])
    assert values[0] == pytest.approx(143 / 1000, abs=1e-9)
    assert values[1] == pytest.approx(1 / 7, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [1], [2]), r"needs 1 <= k <= 1, got \[2\]"),
        ((["a"], [1], [0]), r"needs 1 <= k <= 1, got \[0\]"),
        ((["a"], [1], []), "draws k of a problem's samples"),
        ((["a"], [1, 0], [1]), r"answers \(n,\) and right \(n,\) differ: 1 vs 2"),
        ((["a"], [0.5], [1]), "right must be 0 or 1"),
        ((["a"] * 3000, [1] * 3000, [1500]), "maj@1500 of 3000 samples has more draws than a float can count"),
    ],
)
def test_maj_at_k_refuses_what_it_cannot_count(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        majority_at_k(*arguments)


# Share


def test_the_interval_of_verdicts_is_that_of_agresti_and_coull() -> None:
    # z^2 = 3.841459: (8 + 1.920729) / 13.841459 = .716740, +- z sqrt(.716740 * .283260 / 13.841459)
    found = share_interval([1] * 8 + [0] * 2)
    np.testing.assert_allclose([found.estimate, found.low, found.high], [0.8, 0.479368, 0.954112], atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interval_of_shares_adds_two_problems_of_each_kind(values) -> None:
    level = math.erf(math.sqrt(2))  # two standard errors
    found = share_interval(values, level)
    more = np.array([*values, 0, 0, 1, 1])
    low, high = more.mean() - 2 * more.std() / math.sqrt(more.size), more.mean() + 2 * more.std() / math.sqrt(more.size)
    np.testing.assert_allclose([found.low, found.high], [max(0, low), min(1, high)], atol=1e-9)
    assert found.low <= found.estimate + 1e-12
    assert found.high >= found.estimate - 1e-12
    other = share_interval(1 - np.array(values), level)
    np.testing.assert_allclose([other.low, other.high], [1 - found.high, 1 - found.low], atol=1e-9)


def test_all_right_is_not_certain_and_more_problems_are_surer() -> None:
    few, many = share_interval([1.0] * 30), share_interval([1.0] * 500)
    assert (few.estimate, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.8649, abs=1e-3)
    assert few.low < many.low < 1.0


def test_uneven_weights_are_worth_fewer_problems() -> None:
    values = np.tile([0.0, 0.25, 1.0], 8)
    assert share_interval(values, weights=np.full(24, 3)) == share_interval(values)
    # (12 * 1 + 12 * 3)^2 / (12 * 1 + 12 * 9) = 19.2 problems
    uneven = share_interval(np.repeat([1.0, 0.0], 12), weights=[1] * 12 + [3] * 12)
    assert uneven.estimate == pytest.approx(0.25)
    added, problems = 3.841459, 19.2
    centre = (problems * 0.25 + added / 2) / (problems + added)
    seen = problems * (12 * 0.75**2 + 12 * 9 * 0.25**2) / 48**2
    moved = problems * (seen + (0.25 - centre) ** 2) + added / 2 * (centre**2 + (1 - centre) ** 2)
    assert uneven.high - centre == pytest.approx(1.959964 * math.sqrt(moved) / (problems + added), abs=1e-6)


def test_the_interval_of_verdicts_holds_the_truth_as_often_as_it_says() -> None:
    """One sample a problem: all outcomes are counted, none drawn."""
    from scipy.stats import binom

    for problems in (164, 500, 1319):
        found = [share_interval(np.arange(problems) < right) for right in range(problems + 1)]
        low, high = np.array([(i.low, i.high) for i in found]).T
        for accuracy in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
            held = binom.pmf(np.arange(problems + 1), problems, accuracy)[(low <= accuracy) & (accuracy <= high)].sum()
            assert 0.93 <= held <= 0.97, (problems, accuracy, held)


@pytest.mark.parametrize(("problems", "samples", "accuracy"), [(30, 16, 0.1), (30, 16, 0.95), (40, 32, 0.95)])
def test_the_interval_of_few_problems_holds_the_truth_as_often_as_it_says(problems, samples, accuracy) -> None:
    """5,000 evaluations; most problems are always or never solved. A t interval of the same shares is too short."""
    rng = np.random.default_rng(0)
    chance = rng.beta(accuracy, 1 - accuracy, (5000, problems))
    shares = rng.binomial(samples, chance) / samples
    found = [share_interval(values) for values in shares]
    assert 0.93 <= np.mean([i.low <= accuracy <= i.high for i in found]) <= 0.97
    reach = 2.045 * shares.std(axis=1, ddof=1) / math.sqrt(problems)
    assert np.mean(np.abs(shares.mean(axis=1) - accuracy) <= reach) < 0.92


# Mean


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.random(40) < 0.6, resamples=400) for _ in range(300)]
    assert 0.92 <= np.mean([i.low <= 0.6 <= i.high for i in found]) <= 0.98
    few = [mean_interval(rng.normal(size=6), level=0.8, resamples=400) for _ in range(300)]
    assert 0.74 <= np.mean([i.low <= 0 <= i.high for i in few]) <= 0.87  # .80 with six, where plain quantiles give .70


def test_samples_of_one_problem_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    hits = np.zeros(2)
    for _ in range(120):
        values = rng.random(240) < np.repeat(rng.beta(0.5, 0.5, 30), 8)  # problems are easy or hard, .5 on average
        for i, by in enumerate((groups, None)):
            interval = mean_interval(values, by, resamples=300)
            hits[i] += interval.low <= 0.5 <= interval.high
    assert hits[0] / 120 >= 0.9
    assert hits[1] / 120 <= 0.8  # single samples pretend to know more


def test_the_mean_counts_samples_and_the_names_of_problems_do_not_matter() -> None:
    values, groups = [1, 1, 1, 0, 0, 1], ["b", "b", "b", "a", "c", "c"]
    interval = mean_interval(values, groups)
    assert interval.estimate == pytest.approx(4 / 6)
    order = [3, 0, 4, 1, 5, 2]
    moved = mean_interval(np.array(values)[order], [[0, 1, 2]["abc".index(groups[i])] for i in order])
    assert moved == interval


def test_an_interval_can_be_had_again_and_stays_within_the_values() -> None:
    values = np.array([0.0] * 3 + [1.0] * 5)
    interval = mean_interval(values)
    assert mean_interval(values) == interval
    assert 0.0 <= interval.low < interval.estimate < interval.high <= 1.0
    assert mean_interval(values, seed=1, resamples=20) != mean_interval(values, resamples=20)
    assert mean_interval(values, level=0.5).low > interval.low


def test_the_interval_of_many_problems_is_that_of_the_t_distribution() -> None:
    values = np.random.default_rng(0).normal(size=100)
    half = 1.984 * values.std(ddof=1) / 10  # t of 99 degrees
    interval = mean_interval(values)
    np.testing.assert_allclose(
        [interval.low, interval.high], [values.mean() - half, values.mean() + half], atol=0.05 * half
    )


def test_draws_are_made_in_pieces(monkeypatch) -> None:
    monkeypatch.setattr(estimates, "CHUNK", 64)
    interval = mean_interval(np.arange(50.0), resamples=500)
    assert interval.low == pytest.approx(20.4, abs=1.5)  # 24.5 less 2.01 * 14.58 / sqrt(50)
    assert interval.high == pytest.approx(28.6, abs=1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), "needs at least 2 of them, got 1"),
        (lambda: mean_interval([]), "needs at least 2 of them, got 0"),
        (lambda: mean_interval([1, 0, 1], ["a", "a", "a"]), "resamples problems and needs at least 2 of them, got 1"),
        (lambda: mean_interval([1, 0], [1]), r"values \(N,\) and groups \(N,\) differ: \(2,\) vs \(1,\)"),
        (lambda: mean_interval([1, np.nan]), r"values \(n,\) must be finite"),
        (lambda: mean_interval([1, 0], level=95), r"level must lie in \(0, 1\), got 95"),
        (lambda: mean_interval([1, 0], resamples=0), "resamples must be at least 1, got 0"),
        (lambda: paired_interval([1, 0], [1]), r"a \(n,\) and b \(n,\) differ: \(2,\) vs \(1,\)"),
        (lambda: share_interval([]), r"needs values in \[0, 1\], one a problem, got \[\]"),
        (lambda: share_interval([0.5, 1.5]), r"needs values in \[0, 1\]"),
        (lambda: share_interval([0.5], 1.0), r"level must lie in \(0, 1\), got 1.0"),
        (lambda: share_interval([0.5], weights=[1, 2]), r"values \(n,\) and weights \(n,\) differ"),
        (lambda: share_interval([0.5], weights=[0]), "weights must be above 0, got 0.0"),
        (lambda: difference_interval([1], [0]), "needs at least 2 of them, got 1"),
        (lambda: difference_interval([1, 0], [0]), r"a \(n,\) and b \(n,\) differ"),
        (lambda: ratio_interval([1, 2], [0, 0]), "not all of which are 0"),
        (lambda: ratio_interval([1, -2], [1, 1]), "values of at least 0"),
        (lambda: holm([0.5, 1.5]), r"p-values must lie in \[0, 1\]"),
        (
            lambda: minimum_detectable_difference(-0.1, 30),
            "a spread of at least 0 and at least 2 problems, got -0.1 of 30",
        ),
        (lambda: minimum_detectable_difference(0.1, 30, (0.1, 1)), "at least 2 problems, got 0.1 of 1"),
        (lambda: minimum_detectable_difference(0.1, 30, power=1.0), r"power must lie in \(0, 1\), got 1.0"),
        (lambda: accuracy_by_length([1, 2], [1], ["a"]), r"tokens, right and groups \(N,\) differ: 2, 1, 1"),
        (lambda: accuracy_by_length([1.5], [1], ["a"]), "tokens must be whole numbers, got dtype float64"),
        (lambda: accuracy_by_length([1], [1], ["a"], bins=0), "bins must be at least 1, got 0"),
        (lambda: wilson(3, 0), "0 <= right <= n and n of at least 1, got 3 of 0"),
        (lambda: wilson(3, 2), "got 3 of 2"),
        (lambda: wilson(1, 2, 1.0), r"level must lie in \(0, 1\), got 1.0"),
    ],
)
def test_intervals_refuse_what_says_nothing(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Two results


def test_a_comparison_counts_gains_and_losses() -> None:
    # 8 against 3: two-sided binomial 2 * (1 + 11 + 55 + 165) / 2048
    found = paired_interval([1] * 8 + [0] * 3 + [1] * 9, [0] * 8 + [1] * 3 + [1] * 9)
    assert (found.gained, found.lost) == (8, 3)
    assert found.difference.estimate == pytest.approx(0.25)
    assert found.difference.low < 0 < found.difference.high
    assert found.p_value == pytest.approx(464 / 2048, abs=1e-12)


def test_the_two_results_change_places() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(12), rng.random(12)
    one, other = paired_interval(a, b), paired_interval(b, a)
    assert one.difference.estimate == -other.difference.estimate
    assert (one.gained, one.lost, one.p_value) == (other.lost, other.gained, other.p_value)


def test_equal_results_are_no_better() -> None:
    found = paired_interval([1, 0, 1], [1, 0, 1])
    assert (found.p_value, found.gained, found.lost) == (1.0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-0.5, -0.1, 0.0, 0.2, 0.3]), min_size=2, max_size=9))
def test_the_p_value_counts_all_flips(gaps) -> None:
    sums = [abs(np.dot(signs, gaps)) for signs in product([-1, 1], repeat=len(gaps))]
    expected = np.mean(np.array(sums) >= abs(sum(gaps)) - 1e-9)
    found = paired_interval(gaps, np.zeros(len(gaps)), resamples=1)
    assert found.p_value == pytest.approx(expected, abs=1e-12)


def test_drawn_flips_come_close_to_all_of_them(monkeypatch) -> None:
    gaps = np.array([0.9, 0.8, 0.1, -0.2, 0.5, -0.3, 0.4, 0.7, -0.6])
    exact = paired_interval(gaps, np.zeros(9)).p_value
    monkeypatch.setattr(estimates, "EXACT_FLIPS", 0)
    monkeypatch.setattr(estimates, "CHUNK", 1000)
    assert paired_interval(gaps, np.zeros(9)).p_value == pytest.approx(exact, abs=0.015)  # three standard errors


def test_a_chance_difference_is_rarely_found_and_a_real_one_often() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 200, 40))
    chance = [paired_interval(x, y, resamples=199).p_value <= 0.05 for x, y in zip(a, b, strict=True)]
    real = [paired_interval(x + 0.4, y, resamples=199).p_value <= 0.05 for x, y in zip(a, b, strict=True)]
    assert 0.01 <= np.mean(chance) <= 0.1
    assert np.mean(real) > 0.95


def test_the_interval_of_a_difference_is_that_of_student() -> None:
    # differences .2, .4, 0, .2: mean .2, s = .163299, t of 3 degrees 3.182446: +- 3.182446 * .163299 / 2
    found = difference_interval([0.5, 0.9, 0.3, 0.4], [0.3, 0.5, 0.3, 0.2])
    np.testing.assert_allclose([found.estimate, found.low, found.high], [0.2, -0.059846, 0.459846], atol=1e-6)
    assert difference_interval([1, 0], [1, 0]).high == 0  # nothing differs


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    chance = rng.beta(0.5, 0.5, (2000, 30))
    a, b = rng.binomial(16, np.array([0.9 * chance, chance])) / 16  # .45 and .5
    found = [difference_interval(x, y) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([i.low <= -0.05 <= i.high for i in found]) <= 0.97


def test_the_interval_of_a_ratio() -> None:
    # 3 / 4; residuals a / 3 - b / 4 = -5/12, 1/6, 1/4, s = .363242, t of 2 degrees 4.302653
    found = ratio_interval([1, 3, 5], [3, 3.3333333333333335, 5.666666666666667])
    factor = math.exp(4.302653 * np.std([1 / 3 - 3 / 4, 1 - 10 / 12, 5 / 3 - 17 / 12], ddof=1) / math.sqrt(3))
    np.testing.assert_allclose([found.estimate, found.low, found.high], [0.75, 0.75 / factor, 0.75 * factor], atol=1e-6)
    same = ratio_interval([2, 4, 6], [1, 2, 3])
    assert (same.estimate, same.low, same.high) == pytest.approx((2, 2, 2), abs=1e-12)


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    length = rng.lognormal(7, 0.6, (2000, 40))  # long problems are long for both
    a, b = length * rng.lognormal(-0.02, 0.2, (2, 2000, 40))
    found = [ratio_interval(0.7 * x, y) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([i.low <= 0.7 <= i.high for i in found]) <= 0.97


# Several results


def test_several_p_values_are_adjusted() -> None:
    # smallest first: .01 * 3, .03 * 2, .04 * 1, none below the one before
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06], atol=1e-12)
    assert holm([0.2]).tolist() == [0.2]
    assert holm([0.7, 0.6]).tolist() == [1.0, 1.0]
    assert holm([]).size == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_adjusted_p_values_reject_what_the_steps_of_holm_reject(values, alpha) -> None:
    rejected = set()
    for step, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[place] * (len(values) - step) > alpha:
            break
        rejected.add(place)
    assert {i for i, value in enumerate(holm(values)) if value <= alpha} == rejected


# What can be found


def test_the_detectable_difference_by_hand() -> None:
    # t of 30 degrees: 2.042272 + .853767
    assert minimum_detectable_difference(0.3, 31) == pytest.approx(2.896039 * 0.3 / math.sqrt(31), abs=1e-6)
    # unpaired, 58 degrees: 2.001717 + .847862
    unpaired = minimum_detectable_difference(0.3, 30, (0.4, 30))
    assert unpaired == pytest.approx(2.849579 * math.sqrt((0.09 + 0.16) / 30), abs=1e-6)
    assert minimum_detectable_difference(0.3, 31, power=0.9) > minimum_detectable_difference(0.3, 31)
    assert minimum_detectable_difference(0.0, 31) == 0


@pytest.mark.parametrize("paired", [True, False])
def test_the_detectable_difference_is_found_four_times_in_five(paired) -> None:
    rng = np.random.default_rng(0)
    spread, problems, runs = 0.4, 30, 4000
    if paired:
        gap = minimum_detectable_difference(spread, problems)
        values = rng.normal(gap, spread, (runs, problems))
        t, critical = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(problems)), 2.045230
    else:
        gap = minimum_detectable_difference(spread, problems, (spread, problems))
        a, b = rng.normal(gap, spread, (runs, problems)), rng.normal(0, spread, (runs, problems))
        error = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / problems)
        t, critical = (a.mean(1) - b.mean(1)) / error, 2.001717
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.02)  # three standard errors


# Length


def test_samples_of_like_length_are_counted_together() -> None:
    tokens = [10, 20, 30, 40, 50, 60, 70, 80]
    bins = accuracy_by_length(tokens, [1, 1, 1, 0, 1, 0, 0, 0], list("aabbccdd"), bins=4)
    assert [(b.low, b.high, b.samples, b.accuracy.estimate) for b in bins] == [
        (10, 20, 2, 1.0),
        (30, 40, 2, 0.5),
        (50, 60, 2, 0.5),
        (70, 80, 2, 0.0),
    ]
    assert accuracy_by_length([], [], []) == []


def test_samples_of_one_length_stay_together_and_problems_are_the_unit() -> None:
    found = accuracy_by_length([5] * 30 + [9] * 10, [1] * 20 + [0] * 20, ["a"] * 20 + ["b"] * 20, bins=8)
    assert [(b.low, b.high, b.samples) for b in found] == [(5, 5, 30), (9, 9, 10)]
    assert found[0].accuracy.estimate == pytest.approx(2 / 3)
    expected = share_interval([1.0, 0.0], weights=[20, 10])  # two problems, not 30 samples
    assert (found[0].accuracy.low, found[0].accuracy.high) == (expected.low, expected.high)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 10))
def test_every_sample_is_in_one_bin(tokens, bins) -> None:
    found = accuracy_by_length(tokens, [1] * len(tokens), list(range(len(tokens))), bins=bins)
    assert sum(b.samples for b in found) == len(tokens)
    assert len(found) <= bins
    assert all(before.high < after.low for before, after in pairwise(found))


# Wilson


def test_the_interval_of_a_share() -> None:
    # z = 1.959964: (.8 + z^2 / 20 +- z sqrt(.16 / 10 + z^2 / 400)) / (1 + z^2 / 10)
    interval = wilson(8, 10)
    np.testing.assert_allclose([interval.estimate, interval.low, interval.high], [0.8, 0.490162, 0.943318], atol=1e-6)


def test_the_interval_of_a_share_of_none_or_all_is_no_point() -> None:
    none, everyone = wilson(0, 10), wilson(10, 10)
    assert (none.low, everyone.high) == (0.0, 1.0)
    assert all(wilson(0, n).low == 0.0 and wilson(n, n).high == 1.0 for n in range(1, 200))  # rounding included
    assert none.high == pytest.approx(0.277533, abs=1e-6)  # z^2 / (10 + z^2)
    assert everyone.low == pytest.approx(1 - none.high, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_the_interval_of_a_share_holds_it(n, data) -> None:
    right = data.draw(st.integers(0, n))
    interval = wilson(right, n)
    assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
