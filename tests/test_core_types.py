"""Problems, prefixes, requests, rollouts and groups: conversion, checks, sharing, pickling."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from builders import group, problem, rollout

from reasonrl.core import EMPTY, Prefix, Request, RolloutGroup, View, plan_rng


def locked(values: Any, dtype: Any) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def test_sequences_become_read_only_int32_arrays() -> None:
    made = problem(solution_steps=[[1, 2], (3,)], stored_prefix=[np.array([4, 5])])
    assert made.prompt_ids.dtype == np.int32
    assert [step.tolist() for step in made.solution_steps] == [[1, 2], [3]]
    for array in (made.prompt_ids, *made.solution_steps, *made.stored_prefix, EMPTY):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_a_read_only_array_of_the_right_type_is_shared() -> None:
    ids, logprobs = locked([1, 2], np.int32), locked([-1, -2], np.float32)
    made = rollout(token_ids=ids, logprobs=logprobs)
    assert made.token_ids is ids
    assert made.logprobs is logprobs


def test_a_writable_array_is_copied_and_left_alone() -> None:
    ids, logprobs = np.array([1, 2], np.int32), np.array([-1, -2], np.float32)
    made = rollout(token_ids=ids, logprobs=logprobs)
    ids[0], logprobs[0] = 9, 9
    assert made.token_ids.tolist() == [1, 2]
    assert made.logprobs.tolist() == [-1, -2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1]], r"prompt_ids must be one-dimensional, got shape \(1, 1\)"),
        ([1.5], "must be integers, got dtype float64"),
        ([-1], r"must lie in 0\.\.2147483647, got -1\.\.-1"),
        ([2**31], r"must lie in 0\.\.2147483647"),
    ],
)
def test_bad_ids_are_refused_with_the_problem_named(ids, message) -> None:
    with pytest.raises(ValueError, match="problem 'p0': " + message if "prompt" in message else message):
        problem(prompt_ids=ids)


def test_a_problem_needs_an_id() -> None:
    with pytest.raises(ValueError, match="non-empty string, got ''"):
        problem(id="")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "sft"}, "must be one of none, policy, imitate, got 'sft'"),
        ({"weight": 0.1}, "no effect with loss='none'; use loss='imitate'"),
        ({"loss": "imitate", "weight": -1.0}, "at least 0, got -1.0"),
        ({"loss": "imitate", "weight": float("nan")}, "finite"),
        ({"rate": 1.2}, r"rate must lie in \[0, 1\], got 1.2"),
    ],
)
def test_bad_prefixes_are_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        Prefix([1, 2], **fields)


def test_prefixes_and_requests_compare_by_content() -> None:
    assert Prefix([1, 2]) == Prefix((1, 2))
    assert Prefix([1, 2]) != Prefix([1, 2], loss="policy")
    assert Request(Prefix([1, 2]), 3) == Request(Prefix([1, 2]), 3)
    assert len({Prefix([1, 2]), Prefix([1, 2]), Prefix()}) == 2
    assert problem() == problem()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1, got 0"),
        ({"n": 1.5}, "whole number"),
        ({"n": 1, "parent": (0, 1)}, "set train=False"),
        ({"n": 1, "train": False, "parent": (-1, 1)}, "both at least 0"),
    ],
)
def test_bad_requests_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Request(Prefix(), **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": [-1.0]}, "10 generated tokens but 1 log-probabilities"),
        ({"score": 0.5}, "0 or 1, got 0.5; shape rewards in a part"),
        ({"score": float("nan")}, "0 or 1, got nan"),
        ({"aux": {"entropy": [0.1]}}, r"aux\['entropy'\] has 1 values for 10 tokens"),
    ],
)
def test_bad_rollouts_are_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(**fields)


def test_an_empty_text_cannot_be_right() -> None:
    with pytest.raises(ValueError, match="an empty text is wrong"):
        rollout(1, 0)
    with pytest.raises(ValueError, match="an empty text is wrong"):
        rollout(1, 0, prefix=Prefix([1, 2]))
    assert rollout(1, 0, prefix=Prefix([1, 2], scored=True)).score == 1.0


def test_trained_tokens_include_a_prefix_trained_as_policy_only() -> None:
    for loss, trained in (("none", 10), ("imitate", 10), ("policy", 13)):
        made = rollout(prefix=Prefix([1, 2, 3], loss=loss))
        assert (made.trained_tokens, made.total_tokens) == (trained, 13)


def test_aux_covers_prefix_and_generated_tokens() -> None:
    made = rollout(prefix=Prefix([1, 2]), aux={"entropy": np.zeros(12)})
    assert made.aux["entropy"].dtype == np.float32


def test_group_columns() -> None:
    made = group([1, 0, 1, 1], [1, 2, 3, 4], prefix=Prefix([7, 8]))
    assert made.scores.tolist() == [1, 0, 1, 1]
    assert made.lengths.tolist() == [1, 2, 3, 4]
    assert made.total_lengths.tolist() == [3, 4, 5, 6]
    assert made.pass_rate == 0.75
    with pytest.raises(ValueError, match="read-only"):
        made.scores[0] = 0


def test_an_empty_group_is_defined() -> None:
    made = group([])
    assert (made.scores.shape, made.lengths.shape, made.pass_rate) == ((0,), (0,), 0.0)
    assert made.per_token(np.empty(0)) == []


def test_per_token_rows_are_views_of_one_number_each() -> None:
    rows = group([1, 0], [5, 3]).per_token(np.array([2.0, -1.0]))
    assert [row.tolist() for row in rows] == [[2.0] * 5, [-1.0] * 3]
    assert all(row.strides == (0,) and not row.flags.writeable for row in rows)
    with pytest.raises(ValueError, match=r"one value per rollout \(2,\), got shape \(3,\)"):
        group([1, 0]).per_token(np.zeros(3))


def test_everything_pickles_and_stays_read_only() -> None:
    made = group([1, 0], [5, 3], prefix=Prefix([1, 2], loss="policy"), probes=(rollout(),))
    assert made.pass_rate == 0.5  # a cached column travels too
    copy: RolloutGroup = pickle.loads(pickle.dumps(made))
    assert copy.problem == made.problem
    assert copy.rollouts[1].prefix == made.rollouts[1].prefix
    for array in (copy.problem.prompt_ids, copy.rollouts[0].token_ids, copy.rollouts[0].logprobs, copy.lengths):
        assert not array.flags.writeable


def test_plan_randomness_depends_on_seed_step_problem_and_round_alone() -> None:
    def draw(*key: Any) -> float:
        return plan_rng(*key).random()

    first = draw(1, 2, "p", 0)
    assert first == draw(1, 2, "p", 0)
    assert len({first, draw(2, 2, "p", 0), draw(1, 3, "p", 0), draw(1, 2, "q", 0), draw(1, 2, "p", 1)}) == 5


def test_a_view_needs_no_history() -> None:
    view = View(step=1, total_steps=10, rng=plan_rng(0, 1, "p"), room=5)
    assert (view.rollouts, view.probes, dict(view.numbers), dict(view.scalars)) == ((), (), {}, {})
