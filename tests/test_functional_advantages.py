"""Advantages of one group, against numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.functional.advantages import dr_grpo, group_normalised, rloo

rewards = st.lists(st.floats(-10, 10, allow_nan=False, width=32), min_size=2, max_size=16).map(np.array)
ESTIMATORS = [group_normalised, dr_grpo, rloo]


def test_group_normalised_divides_by_the_sample_deviation() -> None:
    # mean 1/2, sample deviation sqrt(4 * 1/4 / 3) = 0.577350; 0.5 / 0.577351 = 0.866024
    np.testing.assert_allclose(
        group_normalised(np.array([1.0, 0.0, 1.0, 0.0])), [0.866024, -0.866024, 0.866024, -0.866024], atol=1e-6
    )


def test_group_normalised_with_the_population_deviation() -> None:
    # deviation 1/2; 0.5 / 0.500001 = 0.999998
    np.testing.assert_allclose(group_normalised(np.array([1.0, 0.0]), ddof=0), [0.999998, -0.999998], atol=1e-7)


def test_dr_grpo_keeps_the_scale_of_the_rewards() -> None:
    np.testing.assert_allclose(dr_grpo(np.array([1.0, 0.0, 0.0, 0.0])), [0.75, -0.25, -0.25, -0.25], atol=1e-12)


def test_rloo_leaves_the_rollout_itself_out_of_its_baseline() -> None:
    # 1 - mean(0, 0, 0) = 1 and 0 - mean(1, 0, 0) = -1/3
    np.testing.assert_allclose(rloo(np.array([1.0, 0.0, 0.0, 0.0])), [1.0, -1 / 3, -1 / 3, -1 / 3], atol=1e-12)


@given(rewards)
def test_rloo_equals_the_three_line_loop(values: np.ndarray) -> None:
    loop = [r - np.delete(values, i).mean() for i, r in enumerate(values)]
    np.testing.assert_allclose(rloo(values), loop, atol=1e-9)


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_equal_rewards_give_exactly_zero(estimate) -> None:
    assert not estimate(np.full(3, 1.1)).any()  # the mean of three 1.1 is 1.1000000000000003


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_a_lone_rollout_has_baseline_zero_and_scale_one_as_in_verl(estimate) -> None:
    np.testing.assert_allclose(estimate(np.array([-1.0])), [-1.0], atol=1e-5)
    assert estimate(np.empty(0)).shape == (0,)


@pytest.mark.parametrize("estimate", ESTIMATORS)
@given(values=rewards, data=st.data())
def test_they_sum_to_zero_and_follow_a_permutation(estimate, values, data) -> None:
    order = data.draw(st.permutations(range(len(values))))
    scale = max(1.0, np.abs(estimate(values)).max())
    assert abs(estimate(values).sum()) < 1e-6 * scale
    np.testing.assert_allclose(estimate(values)[order], estimate(values[order]), atol=1e-6 * scale)


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_errors_say_what_was_wanted_and_what_came(estimate) -> None:
    with pytest.raises(ValueError, match=r"rewards must be one-dimensional \(n,\), got shape \(2, 2\)"):
        estimate(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        estimate(np.array([1.0, np.nan]))
