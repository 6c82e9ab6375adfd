"""What follows the step: PACE's prefix budgets and the anneal of its released reward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.functional.schedules import adaptive_budget, cosine, halving_budget, linear_anneal, linear_budget

steps = st.integers(0, 1000)
tokens = st.integers(0, 20_000)


def test_the_linear_budget_of_the_paper() -> None:
    # floor(512 * (1 - k / 100))
    ks = [0, 1, 20, 50, 80, 99, 100, 101, 600]
    assert [linear_budget(k, initial=512, steps=100) for k in ks] == [512, 506, 409, 256, 102, 5, 0, 0, 0]


def test_the_linear_budget_equals_equation_2_in_floating_point() -> None:
    assert [linear_budget(k, initial=512, steps=100) for k in range(101)] == [
        int(np.floor(512 * (1 - k / 100))) for k in range(101)
    ]


def test_the_halving_budget_of_the_release() -> None:
    # 512, 256, 128, 64, 20 steps each from step 0 on; 32 is not more than 32
    budgets = [halving_budget(k, initial=512) for k in range(1, 101)]
    assert budgets == [512] * 19 + [256] * 20 + [128] * 20 + [64] * 20 + [0] * 21


def test_the_linear_budget_gives_more_than_the_halving_one() -> None:
    # over steps 1..99: (19 * 512 + 20 * (256 + 128 + 64)) / 99 = 18688 / 99, and 25296 / 99
    halving = np.mean([halving_budget(k, initial=512) for k in range(1, 100)])
    linear = np.mean([linear_budget(k, initial=512, steps=100) for k in range(1, 100)])
    assert halving == pytest.approx(188.77, abs=0.005)
    assert linear == pytest.approx(255.515, abs=0.005)


@given(steps, tokens, st.integers(0, 500))
def test_the_linear_budget_only_falls_and_ends_at_zero(step, initial, last) -> None:
    budget = linear_budget(step, initial=initial, steps=last)
    assert 0 <= linear_budget(step + 1, initial=initial, steps=last) <= budget <= initial
    assert linear_budget(last, initial=initial, steps=last) == 0


@given(steps, tokens, st.integers(1, 50), st.integers(0, 200))
def test_the_halving_budget_only_falls_and_is_never_small(step, initial, every, floor) -> None:
    budget = halving_budget(step, initial=initial, every=every, floor=floor)
    assert halving_budget(step + 1, initial=initial, every=every, floor=floor) <= budget <= initial
    assert budget == 0 or budget > floor


@pytest.mark.parametrize(
    ("previous", "fell", "after"),
    [
        (256, True, 512),
        (512, True, 512),
        (300, True, 512),
        (512, False, 256),
        (129, False, 64),
        (128, False, 64),
        (127, False, 0),
        (64, False, 0),
        (64, True, 128),
        (0, True, 0),
        (0, False, 0),
    ],
)
def test_the_adaptive_budget_doubles_after_a_fall_and_halves_otherwise(previous, fell, after) -> None:
    assert adaptive_budget(previous, fell, cap=512) == after


@given(tokens, st.booleans(), tokens)
def test_the_adaptive_budget_stays_below_its_cap(previous, fell, cap) -> None:
    assert 0 <= adaptive_budget(previous, fell, cap=cap) <= cap


def test_the_anneal_of_the_release() -> None:
    assert [linear_anneal(k, 600) for k in (0, 150, 300, 600, 9999)] == [1.0, 0.75, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_budget(-1, initial=512, steps=100), "step must be at least 0, got -1"),
        (lambda: linear_budget(1, initial=-512, steps=100), "initial must be at least 0, got -512"),
        (lambda: halving_budget(1, initial=512, every=0), "every must be at least 1, got 0"),
        (lambda: adaptive_budget(-1, True, cap=512), "previous must be at least 0, got -1"),
        (lambda: linear_anneal(1, 0), "steps must be at least 1, got 0"),
    ],
)
def test_schedules_without_a_meaning_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("step", "value"), [(1, 0.949975), (75, 0.818198), (150, 0.5), (300, 0.05), (301, 0.05)])
def test_the_cosine_falls_from_high_to_low(step, value) -> None:
    assert cosine(step, steps=300, high=0.95, low=0.05) == pytest.approx(value, abs=1e-6)


def test_the_cosine_is_in_the_middle_halfway() -> None:
    assert cosine(250, steps=500, high=0.95, low=0.05) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        cosine(-1, steps=3, high=1.0, low=0.0)
