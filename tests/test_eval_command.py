"""What `reasonrl eval` can be told: keys, their types, which of several settings counts, and mistakes told at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reasonrl import cli
from reasonrl.config import ConfigError
from reasonrl.eval import settings
from reasonrl.eval.models import EvalModel
from reasonrl.eval.plan import chosen_backend, folder_path, grading_workers, tell_idle_gpus
from reasonrl.eval.settings import (
    EngineKnobs,
    Resolved,
    check_ks,
    read_protocol,
    read_settings,
    resolve,
    verify_config,
)
from reasonrl.eval.suites import read_suite
from reasonrl.eval.tasks import Source, Task, TaskSampling
from reasonrl.runs import provenance

TASK = Task(
    name="aime24",
    title="AIME",
    citation="",
    kind="answer",
    source=Source(),
    format="fields",
    size=None,
    prompt="boxed",
    base_prompt=None,
    verify="either",
    sampling=TaskSampling(n=1, max_new_tokens=100),
)


def knobs(*args: str) -> settings.EvalKnobs:
    return read_settings(["model=tiny", "task=arithmetic", *args])


@pytest.fixture
def conf(tmp_path, monkeypatch) -> Path:
    """An empty current folder, for files of one's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# keys


def test_keys_are_read_with_their_types() -> None:
    read = knobs("n=4", "temperature=1", "ks=1,2,4", "seeds=true", "engine.eager=yes", "verify.timeout=2", "limit=null")
    assert (read.task, read.n, read.temperature, read.ks, read.seeds) == (("arithmetic",), 4, 1.0, (1, 2, 4), True)
    assert (read.engine, read.limit) == (EngineKnobs(eager=True), None)
    assert read.given == {"n": 4, "temperature": 1.0, "seeds": True, "verify.timeout": 2.0}
    assert read_settings(["model=a/b", "suite=s"]).task is None
    assert read_settings(["model=m", "task=gsm8k,./my.yaml"]).task == ("gsm8k", "./my.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["temprature=1"], "Unknown key 'temprature' of reasonrl eval; did you mean temperature"),
        (["engine.treads=1"], r"Unknown key 'treads' of reasonrl eval .engine.*; did you mean threads"),
        (["verify.answer_afer=x"], "did you mean answer_after"),
        (["engin.threads=1"], "Unknown group 'engin' of reasonrl eval; did you mean engine"),
        (["engine=gpu"], "engine=gpu: give its knobs one by one, such as engine.threads=2"),
        (["tasks=a"], "tasks=a: the key is task="),
        (["n=four"], "n must be a whole number, got 'four'"),
        (["n=1", "n=2"], "n= is given twice"),
        (["--n", "4"], "'--n' is not key=value"),
        (["backend=vlm"], "Unknown backend 'vlm'; did you mean vllm"),
        (["baseline=x"], "baseline= is for the table of a suite"),
        (["out=a", "name=b"], "leave one of them out"),
        (["limit=0"], "limit must be at least 1, got 0"),
        (["workers=0"], "workers must be at least 1"),
        (["seed=-1"], "seed must be in 0"),
        (["ks=0"], "ks must be at least 1"),
        (["engine.memory=1.5"], r"engine.memory must be in \(0, 1\], got 1.5"),
        (["engine.dtype=int4"], "engine.dtype must be one of"),
        (["engine.data_parallel=0"], "engine.data_parallel must be at least 1"),
        (["backend=openai"], "give base_url=http://host:port/v1"),
        (["base_url=http://x/v1"], "base_url: for backend=openai, which is not given"),
    ],
)
def test_a_wrong_key_or_value_is_named(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        knobs(*args)


def test_a_model_and_a_task_are_needed() -> None:
    with pytest.raises(ConfigError, match="reasonrl eval needs model=...; --help"):
        read_settings(["task=arithmetic"])
    with pytest.raises(ConfigError, match="nothing to evaluate on: give task=... or suite=..."):
        read_settings(["model=tiny"])


# which setting counts


PROTOCOL: dict[str, Any] = {
    "name": "p",
    "temperature": 0.6,
    "top_p": 0.95,
    "max_new_tokens": 50,
    "prompt": "simplerl",
    "verify.answer_after": "last_think",
    "tasks": {"aime24": {"n": 32, "top_p": 0.9}, "gsm8k": {"n": 4}},
}


def test_the_command_line_counts_before_the_protocol_s_task_before_the_protocol_before_the_task() -> None:
    assert resolve(TASK, None, {}) == Resolved(1, 0.0, 1.0, -1, 100, "either")
    plain = resolve(TASK, PROTOCOL, {})
    assert (plain.n, plain.temperature, plain.top_p, plain.max_new_tokens, plain.prompt) == (
        32,
        0.6,
        0.9,
        50,
        "simplerl",
    )
    assert plain.verify_options == {"answer_after": "last_think"}
    asked = resolve(TASK, PROTOCOL, {"n": 2, "top_p": 1.0, "verify.answer_after": "none", "prompt": "boxed"})
    assert (asked.n, asked.temperature, asked.top_p, asked.prompt) == (2, 0.6, 1.0, "boxed")
    assert asked.verify_options == {"answer_after": "none"}


def test_what_a_model_brings_counts_before_the_task_and_after_the_protocol() -> None:
    own = {"prompt": "run:r1_zero", "verify.answer_after": "first_think"}
    assert resolve(TASK, None, {}, own).prompt == "run:r1_zero"
    assert resolve(TASK, None, {}, own).verify_options == {"answer_after": "first_think"}
    assert resolve(TASK, PROTOCOL, {}, own).prompt == "simplerl"
    assert resolve(TASK, None, {"prompt": "boxed"}, own).prompt == "boxed"


@pytest.mark.parametrize(
    ("protocol", "given", "message"),
    [
        ({"temprature": 1.0}, {}, "the protocol: unknown setting 'temprature'; did you mean temperature"),
        ({"tasks": {"aime24": {"m": 1}}}, {}, "the protocol's tasks.aime24: unknown setting 'm'"),
        ({"verify.after": "x"}, {}, "the protocol: unknown setting 'verify.after'|did you mean answer_after"),
        ({"n": "many"}, {}, "aime24.n must be int, got 'many'"),
        ({}, {"n": 0}, "task aime24: n must be at least 1, got 0"),
        ({}, {"n": 4}, "n=4 with temperature=0 gives the same answer 4 times: raise temperature, or n=1"),
        ({}, {"temperature": -1.0}, "temperature must be at least 0"),
        ({}, {"temperature": float("inf")}, "temperature must be at least 0, got inf"),
        ({}, {"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({}, {"top_k": 0}, "top_k must be -1"),
        ({}, {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({}, {"max_context": 1}, "max_context must be >= 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(protocol, given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(TASK, protocol, given)


def test_pass_at_k_with_too_few_answers_is_refused() -> None:
    resolved = {"a": resolve(TASK, None, {"n": 8, "temperature": 1.0}), "b": resolve(TASK, None, {})}
    check_ks(None, resolved)
    check_ks((1,), resolved)
    with pytest.raises(
        ConfigError, match="ks=1,8: pass@8 needs 8 answers a question, and task b samples n=1: give n=8"
    ):
        check_ks((1, 8), resolved)


def test_how_answers_are_compared_is_a_file_and_what_was_changed_of_it() -> None:
    config = verify_config(resolve(TASK, PROTOCOL, {"verify": "mathruler", "verify.timeout": 3.0}), 5)
    assert (config.checker, config.answer_after, config.timeout, config.workers) == ("mathruler", "last_think", 3.0, 5)
    with pytest.raises(ConfigError, match="Unknown verify 'maths'; did you mean .*mathruler or math_verify"):
        verify_config(resolve(TASK, None, {"verify": "maths"}), 1)
    with pytest.raises(ConfigError, match="answer_after"):
        verify_config(resolve(TASK, None, {"verify.answer_after": "never"}), 1)


# files


def test_protocols_and_suites_are_files(conf) -> None:
    (conf / "p.yaml").write_text("n: 4\ntemperature: 1.0\ntasks:\n  aime24: {n: 32, verify.answer_after: last_think}\n")
    (conf / "s.yaml").write_text("protocol: ./p.yaml\ntasks: [aime24, gsm8k]\ntitle: Some paper\n")
    protocol = read_protocol("p.yaml")
    assert (protocol["name"], resolve(TASK, protocol, {}).n) == ("p", 32)
    suite = read_suite("s.yaml")
    assert (suite.name, suite.tasks, suite.protocol) == ("s", ["aime24", "gsm8k"], "./p.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("temprature: 1", "protocol p.yaml: unknown setting 'temprature'; did you mean temperature"),
        ("tasks: {gsm8k: {tempratur: 1}}", "protocol p.yaml: tasks.gsm8k: unknown setting 'tempratur'"),
        ("tasks: [gsm8k]", "tasks must map a task's name to its settings"),
        ("- 1", "must hold key: value lines"),
        ("a: [", "p.yaml cannot be read"),
    ],
)
def test_a_protocol_with_a_mistake_is_refused(conf, content, message) -> None:
    (conf / "p.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_protocol("p.yaml")


def test_a_file_that_is_not_there_and_a_suite_without_tasks_are_told(conf) -> None:
    with pytest.raises(ConfigError, match="no file p.yaml .here: .*: protocol= takes a name or a file"):
        read_protocol("p.yaml")
    with pytest.raises(ConfigError, match="Unknown protocol 'nobody'"):
        read_protocol("nobody")
    (conf / "s.yaml").write_text("protocol: p")
    with pytest.raises(ConfigError, match="lacks tasks"):
        read_suite("s.yaml")


# what follows from them


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([], "evals/tiny-arithmetic"),
        (["n=4", "limit=20", "seed=2"], "evals/tiny-arithmetic-n4-limit20-seed2"),
        (["ks=1", "workers=3", "engine.threads=1"], "evals/tiny-arithmetic"),
        (
            ["prompt=./my/own.yaml", "verify.answer_after=last_think"],
            "evals/tiny-arithmetic-promptown-answer_afterlast_think",
        ),
        (["name=x"], "evals/x"),
        (["out=a/b"], "a/b"),
    ],
)
def test_the_folder_s_name_follows_from_what_the_numbers_follow_from(args, name) -> None:
    assert str(folder_path(knobs(*args), EvalModel("tiny", "x"))) == name


def test_the_name_of_many_tasks_stays_short() -> None:
    read = read_settings(["model=m", "task=a,b,./c d.yaml,e,f"])
    assert str(folder_path(read, EvalModel("a b/c", "x"))) == "evals/a_b_c-a+b+c_d+more"


def test_vllm_is_chosen_where_there_is_a_gpu_unless_the_model_is_small(monkeypatch) -> None:
    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"])
    assert chosen_backend(knobs(), EvalModel("m", "x")) == "vllm"
    assert chosen_backend(knobs(), EvalModel("m", "x", small=True)) == "transformers"
    assert chosen_backend(knobs("backend=transformers"), EvalModel("m", "x")) == "transformers"
    monkeypatch.setattr(provenance, "gpus", list)
    assert chosen_backend(knobs(), EvalModel("m", "x")) == "transformers"


def test_idle_gpus_are_told(monkeypatch, capsys) -> None:
    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"] * 8)
    console = Console(soft_wrap=True)
    tell_idle_gpus(knobs("engine.tensor_parallel=3"), console)
    assert capsys.readouterr().out == "3 of 8 GPUs are used: engine.data_parallel=2 uses 6\n"
    tell_idle_gpus(knobs("engine.tensor_parallel=4", "engine.data_parallel=2"), console)
    tell_idle_gpus(knobs("engine.tensor_parallel=5"), console)
    assert capsys.readouterr().out == ""


def test_a_process_a_core_grades(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert grading_workers(knobs()) == 6
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    assert (grading_workers(knobs()), grading_workers(knobs("workers=40"))) == (16, 40)


# the command


@pytest.mark.parametrize("args", [[], ["--help"], ["model=tiny", "-h"]])
def test_help_is_printed(args, capsys) -> None:
    assert cli.main(["eval", *args]) == 0
    assert "score a checkpoint on benchmarks" in capsys.readouterr().out


def test_help_names_every_key() -> None:
    from dataclasses import fields

    from reasonrl.eval.command import HELP

    named = {f.name for f in fields(settings.PlainKnobs)} | {f"engine.{f.name}" for f in fields(EngineKnobs)}
    named |= {f"verify.{f.name}" for f in fields(settings.VerifyKnobs)}
    assert sorted(name for name in named if f"{name}=" not in HELP) == []


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from reasonrl.cli import main; main(['eval', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for heavy in ("torch", "transformers", "ray", "verl", "vllm", "numpy", "pyarrow", "rich", "hydra", "pandas"):
        assert f"'{heavy}'" not in done.stdout, heavy


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["modle=tiny"], "Unknown key 'modle' of reasonrl eval; did you mean model"),
        (["comapre", "a"], "Unknown command 'eval comapre'; did you mean compare"),
        (["tasks", "all"], "reasonrl eval tasks takes nothing, got 'all'"),
        (["model=tiny", "task=arithmetc"], "Unknown task 'arithmetc'; did you mean arithmetic"),
        (["model=tinny", "task=arithmetic"], "Unknown model 'tinny', and no such folder .*did you mean tiny"),
        (["model=./none", "task=arithmetic"], "Unknown model './none', and no such folder"),
        (["model=tiny", "task=arithmetic,arithmetic"], "names a task twice"),
        (
            ["model=tiny", "task=arithmetic", "ks=8"],
            "pass@8 needs 8 answers a question, and task arithmetic samples n=4",
        ),
        (["model=tiny", "task=arithmetic", "temperature=0"], "gives the same answer 4 times"),
        (["model=tiny", "task=arithmetic", "backend=vllm"], "backend=vllm and no NVIDIA GPU found"),
        (["model=tiny", "task=arithmetic", "engine.tensor_parallel=2"], "are for backend=vllm"),
        (["model=tiny", "task=arithmetic", "engine.dtype=float16"], "backend=transformers computes in float32"),
        (["model=tiny", "task=gsm8k", "data_dir=./nowhere"], "no folder nowhere"),
        (["model=tiny", "task=humaneval", "verify=exact"], "task humaneval asks for programs, which have to be run"),
        (["model=tiny", "task=arithmetic", "verify.cpu_seconds=1"], "verify.cpu_seconds is for programs"),
        (["model=tiny", "task=arithmetic", "prompt=boxd"], "Unknown prompt 'boxd'; did you mean boxed"),
        (["model=tiny", "task=arithmetic", "max_context=4096"], "model tiny reads at most 512 tokens"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(args, message, conf, capsys, monkeypatch) -> None:
    import re

    monkeypatch.setattr(provenance, "gpus", list)
    assert cli.main(["eval", *args]) == 2
    error = capsys.readouterr().err
    assert re.search(f"reasonrl: .*{message}", error), error
    assert error.count("\n") == 1
    assert list(conf.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["engine.tensor_parallel=2", "engine.data_parallel=4"], "needs 8 GPUs and this machine has 4"),
        ([], "backend=vllm needs vllm, which is not installed: pip install 'reasonrl"),
    ],
)
def test_vllm_needs_its_package_and_its_gpus(args, message, monkeypatch) -> None:
    import importlib.util

    from reasonrl.eval.plan import check_backend

    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"] * 4)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))
    with pytest.raises(ConfigError, match=message):
        check_backend("vllm", knobs("backend=vllm", *args))


def test_the_tasks_are_listed(capsys) -> None:
    assert cli.main(["eval", "tasks"]) == 0
    shown = capsys.readouterr().out
    assert "gsm8k" in shown
    assert "1,319" in shown
