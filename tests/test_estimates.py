"""pass@k, intervals and comparisons: against brute force, exact tests and small simulations."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reasonrl.functional.estimates as estimates
from reasonrl.functional.estimates import mean_interval, paired_interval, pass_at_k, wilson

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
