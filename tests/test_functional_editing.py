"""The mathematics of an editor of weights, in numpy: moments that merge, normalisation, the delta of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reasonrl.functional.editing import LowRank, Moments, cheaper_factored, delta

INPUTS = np.array([[1.0, 0.0], [0.0, 1.0]])  # u of two tokens
GRADIENTS = np.array([[2.0], [-2.0]])  # d of the same


def identity(width: int) -> LowRank:
    """U = 0, b = 0: what an editor starts as."""
    return LowRank(np.ones((3, width)), np.zeros((width, 3)), np.zeros(width))


def rows(count: int, width: int = 3) -> Any:
    numbers = st.floats(-100, 100, allow_subnormal=False)
    return arrays.arrays(np.float64, (count, width), elements=numbers)


def test_two_tokens_have_these_moments() -> None:
    # T6: u = [1, 0], [0, 1] -> mean 1/2, deviation sqrt(((1/2)^2 + (1/2)^2) / (2 - 1)); d = 2, -2 -> 0 and sqrt(8)
    of_inputs, of_gradients = Moments.of(INPUTS), Moments.of(GRADIENTS)
    assert of_inputs.mean == pytest.approx([0.5, 0.5])
    assert of_inputs.std == pytest.approx([0.70711, 0.70711], abs=5e-6)
    assert of_gradients.mean == pytest.approx([0.0])
    assert of_gradients.std == pytest.approx([2.82843], abs=5e-6)


def test_an_editor_that_changes_nothing_adds_the_normalised_outer_products() -> None:
    # T7: u^ = +-[.5, -.5] / .70711, d^ = +-2 / 2.82843: each token gives [.5, -.5], two of them [1, -1]; raw: [2, -2]
    moments = Moments.of(np.concatenate([INPUTS, GRADIENTS], axis=1))
    found = delta(INPUTS, GRADIENTS, moments, identity(3), eta=1e-4)
    assert found == pytest.approx(np.array([[1e-4, -1e-4]]), rel=4e-7)
    assert (GRADIENTS.T @ INPUTS).tolist() == [[2.0, -2.0]]


def test_no_token_changes_nothing() -> None:
    moments = Moments.of(np.concatenate([INPUTS, GRADIENTS], axis=1))
    assert delta(INPUTS[:0], GRADIENTS[:0], moments, identity(3), eta=1.0).tolist() == [[0.0, 0.0]]


@given(st.data(), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_parts_merged_in_any_order_are_all_rows_at_once(data: st.DataObject, sizes: list[int]) -> None:
    parts = [data.draw(rows(size)) for size in sizes]
    whole = Moments.of(np.concatenate(parts))
    for order in (parts, parts[::-1]):
        merged = Moments.empty(3)
        for part in order:
            merged = merged.merged(Moments.of(part))
        assert merged.count == whole.count
        assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
        assert merged.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-7)


def test_ranks_merge_to_what_one_process_sees() -> None:
    noise = np.random.default_rng(0).normal(3.0, 5.0, size=(400, 4))
    ranks = [Moments.of(noise[rank::4]) for rank in range(4)]
    two = [ranks[0].merged(ranks[1]), ranks[2].merged(ranks[3])]
    merged, whole = two[0].merged(two[1]), Moments.of(noise)
    assert merged.std == pytest.approx(noise.std(axis=0, ddof=1), rel=1e-12)
    assert (merged.count, merged.std) == (400, pytest.approx(whole.std, rel=1e-12))


@given(rows(7))
def test_normalised_rows_have_mean_0_and_deviation_1_where_they_differ(values: Any) -> None:
    found = Moments.of(values).normalised(values)
    assert found.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-4)
    wide = values.std(axis=0) > 1e-3  # against a guard of 1e-7
    assert found.std(axis=0, ddof=1)[wide] == pytest.approx(np.ones(int(wide.sum())), abs=1e-3)


def test_one_row_has_no_spread() -> None:
    assert Moments.of(np.array([[4.0, 5.0]])).std.tolist() == [0.0, 0.0]


def test_factors_are_cheaper_up_to_the_papers_numbers_of_tokens() -> None:
    # Llama-3.1-8B: 4096 * 4096 / 8192 = 2048 tokens for q, 4096 * 1024 / 5120 = 819.2 for v
    assert [cheaper_factored(t, 4096, 4096) for t in (2047, 2048)] == [True, False]
    assert [cheaper_factored(t, 4096, 1024) for t in (819, 820)] == [True, False]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Moments.of(np.zeros(3)), r"rows must be \(R, D\), got \(3,\)"),
        (lambda: Moments.empty(2).merged(Moments.empty(3)), r"\(2,\) and \(3,\) dimensions cannot be merged"),
        (
            lambda: delta(INPUTS, GRADIENTS[:1], Moments.empty(3), identity(3), 1.0),
            r"differ in tokens: \(2, 2\) vs \(1, 1\)",
        ),
    ],
    ids=["vector", "widths", "tokens"],
)
def test_shapes_that_cannot_be_are_refused(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
