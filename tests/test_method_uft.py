"""UFT: hints of a scheduled, random length; everything else is GRPO with an imitation term."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import problem

from reasonrl.core import Prefix, Problem, View, plan_rng
from reasonrl.methods.uft import CosineBinomialHint, build
from reasonrl.parts.rewards import DualLength

TEN_STEPS = tuple([i] for i in range(1, 11))
PART = CosineBinomialHint()


def hint_tokens(step: int, id: str = "p0", steps: tuple[list[int], ...] = TEN_STEPS, room: int = 100) -> int:
    of = Problem(id, [1], "4", solution_steps=steps)  # type: ignore[arg-type]
    (request,) = PART.plan(of, View(step, 500, plan_rng(0, step, id), room))
    assert request.n == 4
    return request.prefix.token_ids.size


@pytest.mark.parametrize(("step", "share"), [(1, 0.949975), (75, 0.818198), (150, 0.5), (300, 0.05), (301, 0.0)])
def test_the_share_falls_along_a_cosine_and_hints_end(step, share) -> None:
    assert PART.share(step) == pytest.approx(share, abs=1e-6)


def test_hints_are_whole_chunks_of_a_fifth_drawn_for_each_problem_and_never_all() -> None:
    drawn = [hint_tokens(150, f"p{i}") for i in range(400)]
    assert set(drawn) == {0, 2, 4, 6, 8, 9}  # chunks of two steps; five chunks would give the answer away
    assert np.mean(drawn) == pytest.approx(5.0, abs=0.3)  # binomial(5, 1/2) of ten steps
    assert [hint_tokens(301, f"p{i}") for i in range(20)] == [0] * 20


@pytest.mark.parametrize(("steps", "room", "most"), [((), 100, 0), (([1],), 100, 0), (TEN_STEPS, 3, 3)])
def test_without_steps_or_room_there_is_less_to_give(steps, room, most) -> None:
    assert max(hint_tokens(1, f"p{i}", steps, room) for i in range(50)) == most


def test_a_hint_is_imitated_with_the_weight_and_an_empty_one_not_at_all() -> None:
    of = problem(solution_steps=TEN_STEPS)
    (request,) = PART.plan(of, View(1, 500, plan_rng(0, 1, "p0"), 100))
    assert (request.prefix.loss, request.prefix.weight) == ("imitate", 0.001)
    (request,) = PART.plan(of, View(301, 500, plan_rng(0, 1, "p0"), 100))
    assert request.prefix == Prefix()


def test_the_plan_is_one_round() -> None:
    assert PART.plan(problem(), View(1, 500, plan_rng(0, 1, "p0"), 100, round=1)) == ()


@pytest.mark.filterwarnings("ignore:.*add method/difficulty=batch_relative")
def test_other_parts_go_with_it() -> None:
    assert build(n=6).prefix == replace(PART, n=6)
    assert build(reward=DualLength()).reward == DualLength()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"high must lie in \[0.5, 1\]"):
        CosineBinomialHint(low=0.5, high=0.2)
    with pytest.raises(ValueError, match="steps must lie in"):
        build(hint_steps=0)
