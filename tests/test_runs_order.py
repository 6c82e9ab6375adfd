"""The data order: shuffled epochs, and one number to resume from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.runs.order import DataOrder

sizes = st.integers(1, 30)


@given(size=sizes, seed=st.integers(0, 5), batches=st.lists(st.integers(1, 17), min_size=1, max_size=12))
def test_every_epoch_is_a_permutation_and_batches_cross_epochs(size, seed, batches) -> None:
    order = DataOrder(size, seed)
    taken = [i for count in batches for i in order.take(count)]
    assert len(taken) == sum(batches)
    for epoch in range(0, len(taken), size):
        part = taken[epoch : epoch + size]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(size))
    assert order.epoch == sum(batches) // size


@given(size=sizes, seed=st.integers(0, 5), before=st.integers(0, 70), after=st.integers(1, 70))
def test_a_restored_order_continues_where_it_was(size, seed, before, after) -> None:
    whole, saved = DataOrder(size, seed), DataOrder(size, seed)
    uninterrupted = whole.take(before) and whole.take(after) if before else whole.take(after)
    saved.take(before)
    resumed = DataOrder(size, seed)
    resumed.take(3)  # whatever it did before
    resumed.restore(saved.state())
    assert resumed.take(after) == uninterrupted
    assert resumed.state() == whole.state()


def test_one_take_is_the_same_as_many() -> None:
    one, many = DataOrder(7, 1), DataOrder(7, 1)
    assert one.take(20) == [i for _ in range(10) for i in many.take(2)]


def test_epochs_and_seeds_shuffle_differently() -> None:
    first, second = DataOrder(50, 1), DataOrder(50, 2)
    epochs = [tuple(first.take(50)), tuple(first.take(50)), tuple(second.take(50)), tuple(range(50))]
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("saved", [DataOrder(8, 1), DataOrder(7, 2)], ids=["other data", "other seed"])
def test_the_state_of_other_data_or_another_seed_is_refused(saved) -> None:
    with pytest.raises(ValueError, match=f"is for {saved.size} problems and seed {saved.seed}, this run has 7 and 1"):
        DataOrder(7, 1).restore(saved.state())


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no training problem"):
        DataOrder(0, 1)
