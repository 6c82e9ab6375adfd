"""Length maths: DeepCompress's length and bonus, PACE's lengths and weight, DAPO's ramp, the moving average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.functional.lengths import (
    length_bonus,
    overlong_penalty,
    pass_rate_weight,
    relative_length,
    sigmoid_length,
    standardised_length,
)
from reasonrl.functional.schedules import smoothed

lengths = st.lists(st.integers(0, 10_240), min_size=1, max_size=32).map(np.array)


def test_standardised_length_uses_the_population_deviation() -> None:
    z = standardised_length(np.array([1000, 2000, 3000, 4000]))  # deviation 1118.033989
    np.testing.assert_allclose(z, [-1.341641, -0.447214, 0.447214, 1.341641], atol=1e-6)


@pytest.mark.parametrize("equal", [[1500] * 4, [7], [0, 0], [], [0.1 + 0.2, 0.3]])
def test_equal_lengths_have_no_direction(equal) -> None:
    assert not standardised_length(np.array(equal)).any()


@given(lengths, st.floats(0.1, 50), st.floats(0, 1000))
def test_standardised_length_ignores_shift_and_scale(values, scale, shift) -> None:
    np.testing.assert_allclose(standardised_length(values), standardised_length(scale * values + shift), atol=1e-6)


@given(lengths)
def test_standardised_length_is_bounded_by_the_group_size(values) -> None:
    assert (np.abs(standardised_length(values)) <= np.sqrt(max(len(values) - 1, 0)) + 1e-9).all()


def test_length_bonus_of_the_papers_figure() -> None:
    # alpha .1, beta .2, z = -4: 1 + .1 * sigmoid(.8)
    assert 1 + length_bonus(np.array([-4.0]), -0.2, alpha=0.1)[0] == pytest.approx(1.068997, abs=1e-6)


@given(lengths, st.floats(-1, 1))
def test_length_bonus_is_inside_zero_and_alpha(values, difficulty) -> None:
    bonus = length_bonus(standardised_length(values), difficulty, alpha=0.2)
    assert ((bonus > 0) & (bonus < 0.2)).all()


@given(st.floats(-4, 4), st.floats(-1, 1))
def test_length_bonus_symmetries(z, beta) -> None:
    def ratio(beta: float, z: float) -> float:
        return float(length_bonus(np.array([z]), -beta, alpha=1.0)[0])

    assert ratio(beta, z) == pytest.approx(ratio(-beta, -z), abs=1e-12)
    assert ratio(beta, z) + ratio(-beta, z) == pytest.approx(1.0, abs=1e-12)
    assert ratio(0.0, z) == 0.5


def test_length_bonus_survives_a_steep_slope() -> None:
    np.testing.assert_array_equal(length_bonus(np.array([-4.0, 4.0]), 1e6, alpha=0.2), [0.0, 0.2])


def test_relative_length_places_a_response_between_shortest_and_longest() -> None:
    # (L - 1000) / 4000
    assert relative_length(np.array([1000, 2000, 3000, 5000])).tolist() == [0.0, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("equal", [[2000] * 4, [7], [0, 0], []])
def test_equal_lengths_lie_at_zero(equal) -> None:
    assert relative_length(np.array(equal)).tolist() == [0.0] * len(equal)


@given(lengths, st.integers(0, 10_000))
def test_relative_length_ignores_what_all_responses_share(values, shared) -> None:
    np.testing.assert_array_equal(relative_length(values), relative_length(values + shared))


@given(lengths)
def test_relative_length_runs_from_zero_to_one(values) -> None:
    position = relative_length(values)
    assert position.min() == 0.0
    assert position.max() == (0.0 if len(set(values.tolist())) == 1 else 1.0)


def test_sigmoid_length_of_equation_8() -> None:
    # mean 2750, population deviation 1479.019946: sigmoid of -1.183216, -.507093, .169031, 1.521278
    position = sigmoid_length(np.array([1000, 2000, 3000, 5000]))
    np.testing.assert_allclose(position, [0.234474, 0.375875, 0.542157, 0.820727], atol=1e-6)


def test_sigmoid_length_of_equal_lengths_is_the_middle() -> None:
    assert sigmoid_length(np.array([16, 16, 16])).tolist() == [0.5] * 3
    assert sigmoid_length(np.array([])).shape == (0,)


@given(lengths)
def test_sigmoid_length_keeps_the_order_and_stays_inside_zero_and_one(values) -> None:
    position = sigmoid_length(np.sort(values))
    assert ((position > 0) & (position < 1)).all()
    assert (np.diff(position) >= 0).all()


def test_the_weight_of_a_pass_rate() -> None:
    # 1 - cos(pi * rho / 2) at 0, 1/8, ..., 1
    expected = [0, 0.019215, 0.076120, 0.168530, 0.292893, 0.444430, 0.617317, 0.804910, 1]
    np.testing.assert_allclose([pass_rate_weight(k / 8) for k in range(9)], expected, atol=1e-5)
    assert pass_rate_weight(0.0) == 0.0
    assert pass_rate_weight(1.0) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"pass_rate must lie in \[0, 1\], got 1.5"):
        pass_rate_weight(1.5)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_weight_rises_with_the_pass_rate(a, b) -> None:
    low, high = sorted((pass_rate_weight(a), pass_rate_weight(b)))
    assert 0.0 <= low <= high <= 1.0
    if abs(a - b) > 1e-3:
        assert (pass_rate_weight(a) < pass_rate_weight(b)) == (a < b)


@pytest.mark.parametrize("length", [relative_length, sigmoid_length])
@pytest.mark.parametrize(
    ("wrong", "message"), [([[1.0]], r"lengths must be one-dimensional"), ([np.nan], "lengths .* must be finite")]
)
def test_lengths_that_are_no_finite_vector_are_refused(length, wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        length(np.array(wrong))


def test_overlong_ramp() -> None:
    penalty = overlong_penalty(np.array([0, 8192, 8212, 8397, 8602, 9216, 10240, 20000]), max_tokens=10240, buffer=2048)
    np.testing.assert_allclose(penalty, [0, 0, -0.009766, -0.100098, -0.200195, -0.5, -1, -1], atol=1e-6)


@given(lengths, st.integers(1, 10_240), st.floats(0, 3))
def test_overlong_ramp_never_rises(values, buffer, factor) -> None:
    penalty = overlong_penalty(np.sort(values), max_tokens=10_240, buffer=buffer, factor=factor)
    assert (np.diff(penalty) <= 0).all()
    assert ((penalty <= 0) & (penalty >= -factor)).all()


def test_a_ramp_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 <= buffer <= max_tokens, got buffer=11, max_tokens=10"):
        overlong_penalty(np.array([1]), max_tokens=10, buffer=11)


def test_smoothing() -> None:
    assert smoothed(0.50, 0.30, weight=0.99) == pytest.approx(0.498, abs=1e-12)
    assert smoothed(0.7, 0.3, weight=0.0) == 0.3
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\), got 1.0"):
        smoothed(0.5, 0.5, weight=1.0)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_smoothing_stays_between_its_inputs(previous, current, weight) -> None:
    assert min(previous, current) <= smoothed(previous, current, weight=weight) <= max(previous, current)
