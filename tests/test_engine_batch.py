"""Rollouts -> verl's rows -> groups, and credit back onto exactly the right tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from builders import group, problem, rollout
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.core import Credit, Memory, Prefix, Problem, Rollout, RolloutGroup
from reasonrl.engine.verl.batch import (
    Row,
    Rows,
    advantages_of,
    flat,
    groups_of,
    imitation_of,
    mini_batch_scale,
    rewards_of,
    to_row,
)

STEP = 3


def rows_of(groups: Sequence[RolloutGroup], *, aux: bool = False) -> tuple[list[str], list[Row]]:
    """What the workers would put: one row per rollout, probes in the record of the rollout they continue."""
    uids, made = [], []
    for place, g in enumerate(groups):
        for i, r in enumerate(g.rollouts):
            probes = [p for p in g.probes if (p.parent[0] if p.parent else 0) == i]
            record = {"problem": len(groups) - 1 - place, "order": place, "rollout": i}
            made.append(to_row(g.problem, r, record, probes))
            uids.append(f"uid{place}")
    return uids, made


def fetched(uids: Sequence[str], made: Sequence[Row], order: Sequence[int], padding: int = 0) -> tuple[Rows, set[int]]:
    """verl's side: rows concatenated in any order, then padding rows that copy the first one under a uid of their own."""
    uids = [uids[i] for i in order] + [f"pad{i}" for i in range(padding)]
    made = [made[i] for i in order]
    made = made + [made[0]] * padding
    prompts, prompt_offsets = flat(
        torch.nested.as_nested_tensor([torch.tensor(r.prompt) for r in made], layout=torch.jagged)
    )
    responses, offsets = flat(
        torch.nested.as_nested_tensor([torch.tensor(r.response) for r in made], layout=torch.jagged)
    )
    logprobs = np.concatenate([r.logprobs for r in made])
    rows = Rows(uids, [r.record for r in made], prompts, prompt_offsets, responses, offsets, logprobs)
    return rows, set(range(len(order), len(order) + padding))


def same(a: Rollout, b: Rollout) -> None:
    assert (a.prefix, a.score, a.finished, a.round, a.parent) == (b.prefix, b.score, b.finished, b.round, b.parent)
    assert a.token_ids.tolist() == b.token_ids.tolist()
    assert a.logprobs.tolist() == b.logprobs.tolist()


prefixes = st.builds(
    lambda ids, loss, weight, scored, rate: Prefix(ids, loss, weight if loss == "imitate" else 0.0, scored, rate),
    st.lists(st.integers(0, 99), max_size=4),
    st.sampled_from(["none", "policy", "imitate"]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.25]),
)


@st.composite
def rollouts(draw: Any) -> Rollout:
    ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))
    logprobs = np.array(draw(st.lists(st.floats(-9, 0, width=32), min_size=len(ids), max_size=len(ids))), np.float32)
    how = {"score": draw(st.integers(0, 1)), "finished": draw(st.booleans()), "round": draw(st.integers(0, 3))}
    return Rollout(prefix=draw(prefixes), token_ids=ids, logprobs=logprobs, **how)


@st.composite
def steps(draw: Any) -> list[RolloutGroup]:
    """1-4 groups of 1-4 rollouts each, uneven, some with probes."""
    made = []
    for g in range(draw(st.integers(1, 4))):
        answers = tuple(draw(st.lists(rollouts(), min_size=1, max_size=4)))
        parents = draw(st.lists(st.integers(0, len(answers) - 1), max_size=2).map(sorted))
        probes = tuple(rollout(1, 2 + i, parent=(parent, 1)) for i, parent in enumerate(parents))
        prompt = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5))
        made.append(RolloutGroup(problem(f"p{g}", prompt_ids=prompt), STEP, answers, probes))
    return made


@settings(max_examples=80, deadline=None)
@given(groups=steps(), data=st.data(), padding=st.integers(0, 3))
def test_groups_come_back_whole_from_shuffled_padded_rows(groups, data, padding) -> None:
    uids, made = rows_of(groups)
    order = data.draw(st.permutations(range(len(made))))
    rows, skip = fetched(uids, made, order, padding)
    problems = [g.problem for g in groups][::-1]  # the record says which one
    found, where = groups_of(rows, problems, STEP, skip=skip)
    assert [g.problem for g in found] == [g.problem for g in groups]  # in the order they were submitted
    for got, wanted, indices in zip(found, groups, where, strict=True):
        assert (got.step, got.kept, len(got.rollouts)) == (STEP, True, len(wanted.rollouts))
        for a, b, r in zip(got.rollouts, wanted.rollouts, indices, strict=True):
            same(a, b)
            assert rows.records[r]["rollout"] == wanted.rollouts.index(b)
        assert len(got.probes) == len(wanted.probes)
        for a, b in zip(got.probes, wanted.probes, strict=True):
            same(a, b)


@settings(max_examples=60, deadline=None)
@given(groups=steps(), data=st.data(), padding=st.integers(0, 2))
def test_advantages_and_rewards_land_on_their_tokens(groups, data, padding) -> None:
    uids, made = rows_of(groups)
    order = data.draw(st.permutations(range(len(made))))
    rows, skip = fetched(uids, made, order, padding)
    found, where = groups_of(rows, [g.problem for g in groups][::-1], STEP, skip=skip)
    credit, number = empty_credit(), 0.0
    for g in found:
        credit.rewards.append(np.arange(len(g.rollouts)) + 0.5)
        credit.advantages.append([])
        for r in g.rollouts:  # every token of the step gets a number of its own
            credit.advantages[-1].append(np.arange(r.trained_tokens) + number + 1)
            number += r.trained_tokens
    advantages = np.split(advantages_of(rows, found, where, credit), rows.offsets[1:-1])
    rewards = np.split(rewards_of(rows, where, credit), rows.offsets[1:-1])
    for g, indices in enumerate(where):
        for i, r in enumerate(indices):
            padded = [0.0] * (len(made[order[r]].response) - len(credit.advantages[g][i])) + [*credit.advantages[g][i]]
            assert advantages[r].tolist() == padded
            assert rewards[r].tolist() == [0.0] * (len(padded) - 1) + [i + 0.5]
            assert (advantages[r] != 0).tolist() == made[order[r]].mask.astype(bool).tolist()  # trained where masked in
    for r in skip:
        assert not advantages[r].any()
        assert not rewards[r].any()


@settings(max_examples=60, deadline=None)
@given(groups=steps(), data=st.data(), padding=st.integers(0, 2))
def test_imitation_weights_land_on_imitated_prefixes(groups, data, padding) -> None:
    uids, made = rows_of(groups)
    order = data.draw(st.permutations(range(len(made))))
    rows, skip = fetched(uids, made, order, padding)
    flat_rollouts = [r for g in groups for r in g.rollouts]
    wanted = []
    for r in order:
        prefix, n = flat_rollouts[r].prefix, flat_rollouts[r].token_ids.size
        if prefix.loss == "none":
            wanted += [0.0] * n
        else:
            size = prefix.token_ids.size
            wanted += [prefix.weight / max(size, 1) if prefix.loss == "imitate" else 0.0] * size + [0.0] * n
    found = imitation_of(rows, skip=skip)
    if any(r.prefix.loss == "imitate" and r.prefix.token_ids.size for r in flat_rollouts):
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-6)
        assert not found[len(wanted) :].any()
    else:
        assert found is None


def test_no_imitation_column_when_only_a_padding_row_asks_for_it() -> None:
    asking = group([1], prefix=Prefix([7, 8], "imitate", 1.0))
    rows, skip = fetched(*rows_of([asking]), [0], padding=1)
    assert imitation_of(rows, skip={0, *skip}) is None
    assert imitation_of(rows, skip=skip) is not None


def empty_credit() -> Credit:
    return Credit([], [], [], Memory(), {})


@pytest.mark.parametrize(
    ("loss", "prompt", "response", "mask", "logprobs"),
    [
        ("none", [1, 2, 3, 70, 71], [3, 4], [1, 1], [-0.5, -0.5]),
        ("policy", [1, 2, 3], [70, 71, 3, 4], [1, 1, 1, 1], [0, 0, -0.5, -0.5]),
        ("imitate", [1, 2, 3], [70, 71, 3, 4], [0, 0, 1, 1], [0, 0, -0.5, -0.5]),
    ],
)
def test_a_prefix_is_placed_and_masked_by_its_loss(loss, prompt, response, mask, logprobs) -> None:
    row = to_row(problem(), rollout(1, 2, prefix=Prefix([70, 71], loss)), {"problem": 0})
    assert row.prompt.tolist() == prompt
    assert row.response.tolist() == response
    assert row.mask.tolist() == mask
    assert row.logprobs.tolist() == logprobs
    assert (row.score, row.record["prefix_tokens"], row.record["problem"]) == (1.0, 2, 0)


def test_aux_covers_prefix_and_generated_tokens_wherever_the_prefix_was_put() -> None:
    groups = [
        group([1], [2], id="p0", prefix=Prefix([70, 71], "none")),
        group([1], [2], id="p1", prefix=Prefix([70, 71], "policy")),
        group([1], [3], id="p2"),
    ]
    rows, _ = fetched(*rows_of(groups), [2, 0, 1])
    rows.aux = {"entropy": np.arange(1, 10, dtype=np.float64)}  # 3 tokens, 2 (the prefix is in the prompt), 4
    found, _ = groups_of(rows, [g.problem for g in groups][::-1], STEP)
    entropy = [g.rollouts[0].aux["entropy"].tolist() for g in found]
    assert entropy == [[0, 0, 4, 5], [6, 7, 8, 9], [1, 2, 3]]


def test_rollouts_are_read_only_views_of_the_flat_arrays() -> None:
    rows, _ = fetched(*rows_of([group([1, 0])]), [1, 0])
    found, _ = groups_of(rows, [problem()], STEP)
    for r in found[0].rollouts:
        assert np.shares_memory(r.token_ids, rows.responses)
        assert np.shares_memory(r.logprobs, rows.logprobs)
        assert not r.token_ids.flags.writeable


def test_dropped_groups_are_marked_by_their_uid() -> None:
    groups = [group([1, 0], id="p0"), group([1, 1], id="p1")]
    rows, _ = fetched(*rows_of(groups), [3, 0, 2, 1])
    found, _ = groups_of(rows, [g.problem for g in groups][::-1], STEP, kept=lambda uid: uid != "uid1")
    assert [(g.problem.id, g.kept) for g in found] == [("p0", True), ("p1", False)]


def test_a_missing_rollout_leaves_a_smaller_group_whose_probes_follow_their_parents() -> None:
    answers = (rollout(1, 2), rollout(0, 3))
    made = RolloutGroup(problem(), STEP, answers, (rollout(0, 1, parent=(1, 2)), rollout(1, 1, parent=(0, 1))))
    rows, _ = fetched(*rows_of([made]), [1, 0])
    found, where = groups_of(rows, [problem()], STEP)
    assert where == [[1, 0]]
    assert [(p.parent, p.score) for p in found[0].probes] == [((0, 1), 1.0), ((1, 2), 0.0)]


def test_equal_rows_in_an_ordinary_tensor_are_flattened_too() -> None:
    values, offsets = flat(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    assert values.tolist() == [1, 2, 3, 4, 5, 6]
    assert offsets.tolist() == [0, 2, 4, 6]


def test_problem_of_the_record_is_looked_up_by_index() -> None:
    problems: list[Problem] = [problem("a"), problem("b")]
    row = to_row(problems[1], rollout(), {"problem": 1, "order": 0, "rollout": 0})
    rows, _ = fetched(["u"], [row], [0])
    assert groups_of(rows, problems, STEP)[0][0].problem is problems[1]


def test_padding_in_the_last_mini_batch_does_not_weaken_its_rollouts() -> None:
    """Two ranks of 4 rows, mini-batches of 4 rows over both: rows 2, 3 and 6, 7 are the second; 3 of its 4 are padding."""
    padding = np.array([False, False, False, True, False, False, True, True])
    scale = mini_batch_scale(padding, ranks=2, rows=4)
    np.testing.assert_array_equal(scale, [1, 1, 4, 1, 1, 1, 1, 1])


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from([1, 2, 3]))
def test_a_scaled_sum_over_a_padded_mini_batch_is_a_mean_over_its_rollouts(flags: list[bool], ranks: int) -> None:
    padding = np.array(flags)
    rows = 6
    values = np.where(padding, 0.0, np.arange(1.0, 13.0))
    scaled = values * mini_batch_scale(padding, ranks, rows)
    share, part = 12 // ranks, rows // ranks
    for m in range(2):
        members = [r * share + m * part + i for r in range(ranks) for i in range(part)]
        real = [values[i] for i in members if not padding[i]]
        wanted = sum(real) / len(real) if real else 0.0
        assert sum(scaled[i] for i in members) / rows == pytest.approx(wanted)
