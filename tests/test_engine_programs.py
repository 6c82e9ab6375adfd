"""Rewards of programs, below Ray: a scripted policy, the run's own verifier, a judge that fails as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import problem
from judge_builders import FakeJudge, need_judge
from test_engine_agent_loop import Engine, problem_run, rows, worker

from reasonrl.cli import composed
from reasonrl.config import ConfigError
from reasonrl.engine.verl import agent_loop
from reasonrl.engine.verl.agent_loop import ReasonWorker, SamplingFailed, unpack
from reasonrl.engine.verl.launch import check_golds, own_settings
from reasonrl.train import check_nodes, prepare, with_judge
from reasonrl.verify import code
from reasonrl.verify.code import code_answer
from reasonrl.verify.judge.types import JudgeError, JudgeGone, Outcome
from reasonrl.verify.pool import Verifier, VerifyConfig

GOLD = code_answer("mbpp", tests=["assert double(2) == 4"])
WRITTEN = {  # what a token of the policy stands for
    4: "```python\ndef double(x):\n    return 2 * x\n```",
    5: "```python\ndef double(x):\n    return 4 * x\n```",
    6: "```python\nwhile True:\n    pass\n```",
    7: "I do not know.",
}


class Policy(Engine):
    """Writes one text a token."""

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return "".join(WRITTEN.get(i, "") for i in ids)


def run(tokens: list[int], verifier: Verifier, **prompt: Any) -> Any:
    policy = Policy(lambda k: [tokens[k], 1])

    async def judged(text: str, of: Any, *, validate: bool) -> Any:
        return await verifier.verify(text, of.answer)

    made = worker(policy, len(tokens), judge=judged)
    made.rollout_config.val_kwargs.n = len(tokens)
    return problem_run(made, problem=problem(answer=GOLD), **prompt)


def says(**verdicts: Any) -> Callable[[Any], Any]:
    """By the first word of interest in a program."""
    return lambda task: next(value for word, value in verdicts.items() if word in task.code)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeJudge]:
    def make(answer: Callable[[Any], Any]) -> FakeJudge:
        judge = FakeJudge(answer)
        monkeypatch.setattr(code, "open_judge", lambda url, limits: contextlib.nullcontext(judge))
        return judge

    return make


def test_a_program_that_passes_its_tests_is_rewarded() -> None:
    need_judge()
    with Verifier(VerifyConfig(checker="code", cpu_seconds=0.5)) as verifier:
        made = rows(run([4, 5, 6, 7], verifier))
    assert [row.score for row in made] == [1.0, 0.0, 0.0, 0.0]
    assert [row.record["verdict"] for row in made] == ["ok", "ok", "ok", "no_answer"]
    assert made[0].record["extracted"] == "def double(x):\n    return 2 * x\n"


def test_a_rollout_without_a_verdict_is_left_out_and_never_scored(fake) -> None:
    fake(lambda task: JudgeError("no verdict in 4 tries") if "while" in task.code else Outcome("passed"))
    with Verifier(VerifyConfig(checker="code")) as verifier:
        made = run([4, 6, 5], verifier)
        assert [row.score for row in rows(made)] == [1.0, 1.0]
        assert made.failed == ["problem p0: JudgeError: no verdict in 4 tries"]
        with pytest.raises(SamplingFailed, match="all 2 rollouts of round 0 failed"):
            rows(run([6, 6], verifier))


def test_in_validation_what_has_no_verdict_would_count_as_wrong_so_it_is_told(fake) -> None:
    fake(lambda task: JudgeError("no verdict in 4 tries") if "while" in task.code else Outcome("passed"))
    with Verifier(VerifyConfig(checker="code")) as verifier, pytest.raises(JudgeError, match="no verdict"):
        rows(run([4, 6, 5], verifier, validate=True))


@pytest.mark.parametrize("validate", [False, True])
def test_without_a_judge_the_problem_ends_even_where_others_have_a_verdict(fake, validate: bool) -> None:
    fake(lambda task: JudgeGone("no judge at unix:/x for 60 s") if "while" in task.code else Outcome("passed"))
    with Verifier(VerifyConfig(checker="code")) as verifier, pytest.raises(JudgeGone):
        rows(run([4, 6], verifier, validate=validate))


def test_a_judge_that_is_gone_is_a_fatal_tag_and_other_failures_are_not(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, dict[str, Any]] = {}

    async def put(key: str, partition_id: str, tag: dict[str, Any]) -> None:
        tags[key] = tag

    monkeypatch.setattr(agent_loop.tq, "async_kv_put", put)
    judge = fake(lambda task: JudgeGone("no judge at unix:/x for 60 s"))
    with Verifier(VerifyConfig(checker="code")) as verifier:
        for uid in ("gone", "bad"):
            made = run([4, 4], verifier, uid=uid)
            asyncio.run(
                ReasonWorker._run_prompt(
                    made.worker, {**made.prompt, "uid": uid}, made.sampling, {"step": 1, "validate": False}
                )
            )
            judge.says = lambda task: JudgeError("nothing")
    assert tags["gone"] == {
        "status": "failure",
        "error": "no judge at unix:/x for 60 s (problem p0)",
        "fatal": True,
    }
    assert tags["bad"]["status"] == "failure"
    assert "fatal" not in tags["bad"]


# before anything starts


RUN = ["model=tiny", "data=functions", "verify=code", "name=r"]


def test_a_run_on_programs_starts_one_judge_and_tells_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_judge()
    monkeypatch.chdir(tmp_path)
    plan = prepare(composed(RUN))
    with with_judge(plan) as ready:
        assert ready.judge is not None
        own = own_settings(ready)
        config = VerifyConfig(**unpack(own["verify"]))
        assert config == VerifyConfig(checker="code", judge=ready.judge)
        with Verifier(config) as verifier:
            assert verifier.submit(WRITTEN[4], GOLD).result(60).correct
        assert plan.cfg.verify.judge is None  # what is written down is what was asked for
    assert not Path(ready.judge.removeprefix("unix:")).exists()


def test_a_run_without_programs_starts_no_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code, "open_judge", lambda *_: pytest.fail("a judge was started"))
    with with_judge(prepare(composed(["model=tiny", "name=r"]))) as plan:
        assert plan.judge is None
        assert "judge" not in unpack(own_settings(plan)["verify"])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["data=functions"], "data=functions asks for programs, .*verify=either cannot; give verify=code"),
        (["data=mbpp", "verify=exact"], "data=mbpp asks for programs"),
        (["verify=code", "data=functions", "verify.judge=here"], "verify.judge must be http"),
    ],
)
def test_settings_that_cannot_work_together_are_told(args: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check_nodes(composed(["model=tiny", *args]))


def test_data_without_tests_is_no_data_for_programs(tmp_path: Path) -> None:
    class Loaded:
        problems = (problem("p1", answer=GOLD), problem("p2", answer="72"))

    with pytest.raises(ConfigError, match=r"train.parquet, problem p2: .*got '72'.*such as data=mbpp"):
        check_golds(Loaded, tmp_path / "train.parquet")  # type: ignore[arg-type]
