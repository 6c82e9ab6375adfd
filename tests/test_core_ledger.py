"""What is remembered: keys, views, one tick a step, exact saving, refusal of foreign state."""

from __future__ import annotations

import json

import pytest
from builders import group
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.core import Credit, Ledger, Memory, Method
from reasonrl.parts.advantages import RLOO
from reasonrl.parts.difficulty import BatchRelative


def credit(memory: Memory) -> Credit:
    return Credit([], [], [], memory, {})


def filled(**scalars: float) -> Ledger:
    ledger = Ledger()
    memory = Memory({k.replace("__", "/"): v for k, v in scalars.items()}, {"p0": {"prefix/rate": 0.25}})
    ledger.observe([group()], credit(memory))
    return ledger


def test_observe_applies_scalars_and_numbers() -> None:
    ledger = filled(difficulty__p_b=0.5)
    assert ledger.scalar("difficulty/p_b", 1.0) == 0.5
    assert ledger.number("p0", "prefix/rate", 1.0) == 0.25
    assert ledger.number("unseen", "prefix/rate", 1.0) == 1.0
    assert ledger.step == 1


def test_a_part_reads_its_own_entries_by_plain_name() -> None:
    ledger = filled(difficulty__p_b=0.5, reward__scale=2.0)
    view = ledger.view("difficulty")
    assert view.scalar("p_b", 1.0) == 0.5
    assert view.scalar("reward/scale", 1.0) == 2.0
    assert view.scalar("scale", 1.0) == 1.0
    assert view.scalars() == {"p_b": 0.5, "reward/scale": 2.0}
    assert ledger.view("prefix").numbers("p0") == {"rate": 0.25}


def test_a_part_cannot_write() -> None:
    with pytest.raises(TypeError, match="return Memory"):
        filled().view("reward").observe([group(step=2)], credit(Memory()))


def test_copies_are_handed_out() -> None:
    ledger = filled(difficulty__p_b=0.5)
    ledger.scalars()["difficulty/p_b"] = 9.0
    ledger.numbers("p0")["prefix/rate"] = 9.0
    ledger.state_dict()["problems"]["p0"]["prefix/rate"] = 9.0
    assert (ledger.scalar("difficulty/p_b", 0), ledger.number("p0", "prefix/rate", 0)) == (0.5, 0.25)


def test_a_step_is_applied_once_and_in_order() -> None:
    ledger = filled()
    for step in (1, 0):
        with pytest.raises(ValueError, match=f"step {step} arrives after step 1"):
            ledger.observe([group(step=step)], credit(Memory()))
    ledger.observe([], credit(Memory()))
    assert ledger.step == 1


def test_a_number_that_is_not_finite_changes_nothing() -> None:
    ledger = filled(difficulty__p_b=0.5)
    bad = Memory({"difficulty/p_b": 0.1}, {"p7": {"prefix/rate": float("nan")}})
    with pytest.raises(ValueError, match="prefix/rate of problem 'p7' is nan"):
        ledger.observe([group(step=2)], credit(bad))
    assert ledger.scalar("difficulty/p_b", 0) == 0.5


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(), floats), st.dictionaries(st.text(), st.dictionaries(st.text(), floats)))
def test_saving_is_exact_and_deterministic(scalars, problems) -> None:
    ledger, reverse = Ledger("m", ("a=B",)), Ledger("m", ("a=B",))
    ledger.observe([group(step=3)], credit(Memory(scalars, problems)))
    backwards = dict(reversed(scalars.items())), dict(reversed(problems.items()))
    reverse.observe([group(step=3)], credit(Memory(*backwards)))
    text = ledger.to_json()
    assert text == reverse.to_json()
    assert Ledger.from_json(text).state_dict() == ledger.state_dict()
    assert Ledger.from_json(text).to_json() == text


def test_another_methods_ledger_is_refused_with_both_lists_named() -> None:
    ours, theirs = Method("a", difficulty=BatchRelative()), Method("a", advantage=RLOO())
    text = Ledger.for_method(ours).to_json()
    assert Ledger.from_json(text, ours).parts == ours.signature
    with pytest.raises(ValueError, match=r"difficulty=BatchRelative.*but this run is 'a'.*advantage=RLOO"):
        Ledger.from_json(text, theirs)


def test_another_schema_is_refused() -> None:
    state = json.loads(Ledger().to_json()) | {"schema": 99}
    with pytest.raises(ValueError, match="schema 99 cannot be read here, this version reads 1"):
        Ledger.from_state_dict(state)
