"""The rounds of one problem, with a rollout engine and a verifier that are plain objects; and the waves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import problem
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.core import Method, Plain, Prefix, Problem, Request, View
from reasonrl.engine.verl.agent_loop import (
    MAX_ROUNDS,
    ProblemRun,
    SamplingFailed,
    Waves,
    pack,
    problem_key,
    unpack,
)
from reasonrl.engine.verl.batch import probes_of

END = 1
Plan = Callable[[Problem, View], Sequence[Request]]


@dataclass(frozen=True)
class Planned:
    """A prefix policy made of a function."""

    function: Plan
    n: int = 2

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        return self.function(problem, view)


class Engine:
    """`llm_client` and judge. Answers number k writes `answers(k)`; a text is right when it ends in 4."""

    def __init__(self, answers: Callable[[int], list[int]] = lambda k: [4, END], order: Sequence[int] = ()) -> None:
        self.answers, self.order = answers, list(order)
        self.calls: list[dict[str, Any]] = []
        self.texts: list[str] = []

    async def generate(self, *, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        k = len(self.calls)
        self.calls.append({"id": request_id, "prompt": prompt_ids, **sampling_params})
        for _ in range(self.order[k] if k < len(self.order) else 0):  # later ones may be ready earlier
            await asyncio.sleep(0)
        ids = self.answers(k)[: sampling_params["max_tokens"]]
        logprobs = [-0.5 - k] * len(ids)
        return SimpleNamespace(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields={"global_steps": 6}
        )

    async def judge(self, text: str, problem: Problem, *, validate: bool) -> Any:
        self.texts.append(text)
        return SimpleNamespace(
            correct=text.endswith(problem.answer), status="ok", extracted=text.split()[-1] if text else None
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(str(i) for i in ids if i != END)


def worker(engine: Engine, plan: Plan | int = 2, **fields: Any) -> Any:
    prefix = Plain(plan) if isinstance(plan, int) else Planned(plan)
    return SimpleNamespace(
        **{
            "method": Method("mine", prefix=prefix),
            "llm_client": engine,
            "judge": engine.judge,
            "tokenizer": engine,
            "rollout_config": SimpleNamespace(val_kwargs=SimpleNamespace(n=3)),
            "seed": 11,
            "total_steps": 50,
            "min_new_tokens": 2,
            "max_new_tokens": 8,
            "end_ids": {END},
            "own_rollout": True,
            "waves": {},
            **fields,
        }
    )


def problem_run(of: Any, *, validate: bool = False, **prompt: Any) -> ProblemRun:
    columns = {"uid": "u", "problem": problem(), "index": 7, "order": 3, **prompt}
    return ProblemRun(of, columns, {"temperature": 0.7, "top_p": 0.9}, step=5, validate=validate)


def rows(run: ProblemRun) -> list[Any]:
    return asyncio.run(run.rows())


# one round


def test_plain_sampling_is_one_round_of_n_rollouts_in_the_order_asked() -> None:
    engine = Engine(lambda k: [[4, END], [5, END], [9, 9, 9, 9, 9, 9, 9, 9, 9]][k], order=[5, 0, 2])
    run = problem_run(worker(engine, 3))
    made = rows(run)
    assert [r.response.tolist() for r in made] == [[4, END], [5, END], [9] * 8]
    assert [r.score for r in made] == [1.0, 0.0, 0.0]
    assert [r.record["finished"] for r in made] == [True, True, False]
    assert [r.record["rollout"] for r in made] == [0, 1, 2]
    assert [(r.record["problem"], r.record["order"], r.record["verdict"]) for r in made] == [(7, 3, "ok")] * 3
    assert [r.record["extracted"] for r in made] == ["4", "5", "9"]
    assert ["seconds" in r.record for r in made] == [True, False, False]
    assert made[1].logprobs.tolist() == [-1.5, -1.5]
    assert run.weights_step == 6
    assert [c["prompt"] for c in engine.calls] == [[1, 2, 3]] * 3
    assert all((c["max_tokens"], c["temperature"], c["top_p"]) == (8, 0.7, 0.9) for c in engine.calls)


def test_every_rollout_of_the_run_has_noise_of_its_own() -> None:
    engine = Engine()
    for validate, step_problem in ((False, "a"), (False, "b"), (True, "a")):
        rows(problem_run(worker(engine), validate=validate, problem=problem(step_problem)))
    keys = [tuple(c["extra_args"]["seed_key"]) for c in engine.calls]
    assert len(set(keys)) == len(keys) == 7
    assert keys[0] == (11, 5, 0, problem_key("a"), 3, 0)  # run seed, step, training, problem, its place, rollout
    assert len({c["id"] for c in engine.calls}) == 3  # unique within a problem


def test_an_engine_that_is_not_ours_gets_only_parameters_it_knows() -> None:
    engine = Engine()
    rows(problem_run(worker(engine, own_rollout=False)))
    assert set(engine.calls[0]) == {"id", "prompt", "temperature", "top_p", "max_tokens"}


# rounds


def test_later_rounds_are_planned_from_the_accuracies_so_far() -> None:
    seen: list[tuple[int, list[float]]] = []

    def plan(_: Problem, view: View) -> Sequence[Request]:
        seen.append((view.round, [r.score for r in view.rollouts]))
        if view.round == 0:
            return [Request(Prefix(), 2)]
        if view.round == 1 and np.mean([r.score for r in view.rollouts]) == 0:
            return [Request(Prefix([50, 51], "policy", rate=0.5), 1), Request(Prefix([60], "imitate", 0.3), 1)]
        return ()

    engine = Engine(lambda k: [[9, END], [9, END], [4, END], [4, END]][k])
    made = rows(problem_run(worker(engine, plan)))
    assert seen == [(0, []), (1, [0.0, 0.0]), (2, [0.0, 0.0, 1.0, 1.0])]
    assert [r.record["round"] for r in made] == [0, 0, 1, 1]
    assert [r.record["prefix_rate"] for r in made] == [None, None, 0.5, None]
    assert [r.response.tolist() for r in made] == [[9, END], [9, END], [50, 51, 4, END], [60, 4, END]]
    assert engine.calls[2]["prompt"] == [1, 2, 3, 50, 51]
    assert [c["max_tokens"] for c in engine.calls] == [8, 8, 6, 7]  # the response limit counts the prefix
    assert len({tuple(c["extra_args"]["seed_key"]) for c in engine.calls}) == 4


def test_a_right_first_round_asks_for_no_hint() -> None:
    def plan(_: Problem, view: View) -> Sequence[Request]:
        return [Request(Prefix(), 2)] if view.round == 0 else ()

    engine = Engine()
    assert len(rows(problem_run(worker(engine, plan)))) == len(engine.calls) == 2


def test_the_plan_sees_what_the_ledger_remembers_the_room_and_the_step() -> None:
    views: list[View] = []

    def plan(_: Problem, view: View) -> Sequence[Request]:
        views.append(view)
        return [Request(Prefix(), 1)] if view.round == 0 else ()

    run = problem_run(worker(Engine(), plan), numbers={"prefix/tokens": 3.0}, scalars={"prefix/x": 0.5})
    rows(run)
    assert (views[0].step, views[0].total_steps, views[0].room) == (5, 50, 6)
    assert (views[0].numbers, views[0].scalars) == ({"prefix/tokens": 3.0}, {"prefix/x": 0.5})
    again = problem_run(worker(Engine(), plan))
    rows(again)
    draws = [view.rng.random() for view in views]
    assert draws[:2] == draws[2:]  # from run seed, step, problem and round
    assert draws[0] != draws[1]


def test_the_verifier_reads_the_prefix_only_when_it_is_scored() -> None:
    def plan(_: Problem, view: View) -> Sequence[Request]:
        both = [Request(Prefix([50], scored=scored), 1) for scored in (True, False)]
        return both if view.round == 0 else ()

    engine = Engine()
    rows(problem_run(worker(engine, plan)))
    assert engine.texts == ["50 4", "4"]


def test_probes_travel_with_the_rollout_they_continue_and_are_never_rows() -> None:
    def plan(_: Problem, view: View) -> Sequence[Request]:
        if view.round == 0:
            return [Request(Prefix(), 2)]
        if view.round == 1:
            cut = Prefix(view.rollouts[1].token_ids[:1])
            return [Request(cut, 2, train=False, parent=(1, 0)), Request(Prefix(), 1, train=False, parent=(0, 1))]
        assert [p.parent for p in view.probes] == [(1, 0), (1, 0), (0, 1)]
        return ()

    engine = Engine(lambda k: [[7, 4, END], [8, 4, END], [4, END], [9, END], [4, END]][k])
    made = rows(problem_run(worker(engine, plan)))
    assert len(made) == 2
    probes = [[(p.parent, p.score, p.round, p.token_ids.tolist()) for p in probes_of(r.record)] for r in made]
    assert probes == [[((0, 1), 1.0, 1, [4, END])], [((1, 0), 1.0, 1, [4, END]), ((1, 0), 0.0, 1, [9, END])]]
    assert engine.calls[2]["prompt"] == [1, 2, 3, 8]


# what goes wrong


def once(*requests: Request) -> Plan:
    return lambda _, view: requests if view.round == 0 else ()


@pytest.mark.parametrize("tokens", [7, 8, 20])
def test_a_prefix_that_leaves_too_little_room_is_an_error_and_nothing_is_sampled(tokens) -> None:
    engine = Engine()
    run = problem_run(worker(engine, once(Request(Prefix([9] * tokens, "policy"), 1))))
    with pytest.raises(
        SamplingFailed, match=f"a prefix of {tokens} tokens .* max_new_tokens=8 minus 2 for the response allows 6"
    ):
        rows(run)
    assert engine.calls == []


def test_a_prefix_that_fills_the_room_leaves_the_minimum() -> None:
    engine = Engine()
    rows(problem_run(worker(engine, once(Request(Prefix([9] * 6, "policy"), 1)))))
    assert engine.calls[0]["max_tokens"] == 2


def test_a_probe_may_use_the_minimum_response_but_never_the_whole_limit() -> None:
    def plan(tokens: int) -> Plan:
        return once(Request(Prefix(), 1), Request(Prefix([9] * tokens), 1, train=False))

    engine = Engine()
    rows(problem_run(worker(engine, plan(7))))
    assert engine.calls[1]["max_tokens"] == 1
    with pytest.raises(SamplingFailed, match="a prefix of 8 tokens leaves no room"):
        rows(problem_run(worker(Engine(), plan(8))))


def test_a_probe_of_a_rollout_that_is_not_there_is_an_error() -> None:
    run = problem_run(worker(Engine(), once(Request(Prefix(), 1, train=False, parent=(0, 0)))))
    with pytest.raises(SamplingFailed, match="a probe names rollout 0, of 0 so far"):
        rows(run)


class Broken(Engine):
    """Fails for some calls."""

    def __init__(self, failing: set[int], **fields: Any) -> None:
        super().__init__(**fields)
        self.failing = failing

    async def generate(self, **asked: Any) -> Any:
        if len(self.calls) in self.failing:
            self.calls.append(asked)
            raise ConnectionError("server gone")
        return await super().generate(**asked)


def test_a_failed_generation_leaves_a_smaller_group() -> None:
    made = rows(problem_run(worker(Broken({1}, answers=lambda k: [k + 3, END]), 3)))
    assert [r.response.tolist() for r in made] == [[3, END], [5, END]]
    assert [r.record["rollout"] for r in made] == [0, 1]


def test_an_empty_answer_counts_as_failed() -> None:
    made = rows(problem_run(worker(Engine(lambda k: [] if k == 0 else [4, END]), 2)))
    assert len(made) == 1


def test_a_later_round_that_is_lost_leaves_the_rollouts_of_the_earlier_ones() -> None:
    def plan(problem: Problem, view: View) -> Sequence[Request]:
        return (Request(Prefix(), 2),) if view.round < 3 else ()

    engine = Engine(lambda k: [] if k in (2, 3) else [4, END])  # nothing comes back in round 1
    run = problem_run(worker(engine, plan))
    assert [row.record["round"] for row in rows(run)] == [0, 0, 2, 2]
    assert len(run.failed) == 2


@pytest.mark.parametrize("engine", [Broken({0, 1}), Engine(lambda k: [])], ids=["raising", "empty"])
def test_a_round_in_which_everything_failed_is_an_error_with_the_cause(engine) -> None:
    with pytest.raises(SamplingFailed, match="all 2 rollouts of round 0 failed: .*(server gone|returned no token)"):
        rows(problem_run(worker(engine, 2)))


def test_a_plan_of_probes_alone_is_an_error() -> None:
    with pytest.raises(SamplingFailed, match="no trained rollout"):
        rows(problem_run(worker(Engine(), once(Request(Prefix(), 1, train=False)))))


def test_a_plan_that_never_ends_is_an_error() -> None:
    run = problem_run(worker(Engine(), lambda _, view: [Request(Prefix(), 1)]))
    with pytest.raises(SamplingFailed, match=f"still asks for more after {MAX_ROUNDS} rounds"):
        rows(run)


# validation


def test_validation_never_asks_the_method() -> None:
    def never(_: Problem, view: View) -> Sequence[Request]:
        raise AssertionError("plan was called")

    engine = Engine()
    run = problem_run(worker(engine, never), validate=True)
    run.prompt.pop("order")
    made = rows(run)
    assert len(made) == len(engine.calls) == 3  # val_kwargs.n
    assert all(c["prompt"] == [1, 2, 3] and c["max_tokens"] == 8 for c in engine.calls)
    assert ProblemRun(run.worker, run.prompt, {}, step=0, validate=True).order == 7  # the data set's, not the step's


# what travels inside verl's configuration


def test_a_method_survives_the_journey_as_text() -> None:
    method = Method("mine", prefix=Plain(3))
    assert unpack(pack(method)) == method


def test_problem_keys_are_stable_and_fit_a_seed() -> None:
    assert problem_key("p0") == 2257538359
    assert len({problem_key(f"p{i}") for i in range(2000)}) == 2000


# waves


async def walk(waves: Waves, uid: str, order: int, rounds: Sequence[int], delays: Sequence[int]) -> list[list[Any]]:
    """A problem that asks `rounds[r]` requests in round r, arriving after `delays[r]` turns of the loop, then leaves."""
    got = []
    for requests, delay in zip(rounds, delays, strict=True):
        for _ in range(delay):
            await asyncio.sleep(0)
        got.append(await waves.slots(uid, order, requests))
    waves.leave(uid)
    return got


@settings(max_examples=100, deadline=None)
@given(data=st.data(), problems=st.integers(1, 5))
def test_waves_hand_out_the_same_slots_whatever_the_order_of_arrival(data, problems) -> None:
    plans = [data.draw(st.lists(st.integers(1, 3), max_size=3)) for _ in range(problems)]  # some leave at once

    def played() -> list[list[list[Any]]]:
        delays = [data.draw(st.lists(st.integers(0, 4), min_size=len(p), max_size=len(p))) for p in plans]
        start = data.draw(st.permutations(range(problems)))

        async def together() -> list[Any]:
            waves = Waves("w", {f"u{i}" for i in range(problems)})
            tasks = {i: asyncio.create_task(walk(waves, f"u{i}", i, plans[i], delays[i])) for i in start}
            return [await asyncio.wait_for(tasks[i], 5) for i in range(problems)]

        return asyncio.run(together())

    first = played()
    assert played() == first
    for r in range(3):
        asked = [(i, got[r]) for i, got in enumerate(first) if len(got) > r]
        slots = [slot for _, got in asked for slot in got]
        size = sum(plans[i][r] for i, _ in asked)
        assert slots == [[f"w/{r}", size, place] for place in range(size)]  # problems in their order, no gap


def test_a_problem_that_fails_while_it_waits_does_not_hold_up_the_others() -> None:
    async def play() -> list[list[Any]]:
        waves = Waves("w", {"a", "b"})
        gone = asyncio.create_task(waves.slots("a", 0, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        waves.leave("a")
        return await asyncio.wait_for(waves.slots("b", 1, 1), 1)

    assert asyncio.run(play()) == [["w/0", 1, 0]]


def test_rounds_of_a_deterministic_run_carry_their_slots() -> None:
    engine = Engine()
    waves = Waves("w", {"u0", "u1"})
    of = worker(engine, 2, waves={"u0": waves, "u1": waves})

    async def together() -> None:
        # the later problem arrives first
        await asyncio.gather(*(problem_run(of, uid=f"u{i}", order=i).rows() for i in (1, 0)))

    asyncio.run(together())
    slots = sorted((c["id"], c["extra_args"]["wave"]) for c in engine.calls)
    assert slots == [("u0-0", ["w/0", 4, 0]), ("u0-1", ["w/0", 4, 1]), ("u1-0", ["w/0", 4, 2]), ("u1-1", ["w/0", 4, 3])]
