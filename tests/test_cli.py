"""The command line: what it accepts, what it refuses, what it does not import, and sweeps."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from reasonrl import cli, sweep
from reasonrl.cli import UsageError, composed, guarded, main, translate
from reasonrl.config import ConfigError
from reasonrl.runs.files import DiskFull
from reasonrl.sweep import job_name, run_in_process

HEAVY = ("torch", "verl", "ray", "transformers", "vllm", "pandas", "matplotlib")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


# arguments


@pytest.mark.parametrize(
    ("arg", "overrides"),
    [
        ("steps=3", ["steps=3"]),
        ("method=grpo", ["method=grpo"]),
        ("method.n=4", ["++method.n=4"]),
        ("data.digits=3", ["++data.digits=3"]),
        ("verl.trainer.balance_batch=false", ["++verl.trainer.balance_batch=false"]),
        ("dynamic_sampling.enable=true", ["++dynamic_sampling.enable=true"]),
        ("method/reward=dual_length", ["method/reward=dual_length"]),
        ("method=grpo,deepcompress", ["method=grpo,deepcompress"]),
        ("method=choice(grpo,deepcompress)", ["method=choice(grpo,deepcompress)"]),
        ("model=glob(smol*)", ["model=glob(smol*)"]),
        ("model=qwen7b", ["model=qwen7b"]),
        ("model=Qwen/Qwen2.5-0.5B", ["model=local", "model.name='Qwen2.5-0.5B'", "model.path='Qwen/Qwen2.5-0.5B'"]),
        ("resume=runs/sweep/method=grpo,seed=1", ["resume='runs/sweep/method=grpo,seed=1'"]),
        ("out=my runs", ["out='my runs'"]),
        ("prefixes=my, store", ["prefixes='my, store'"]),
        ("prefixes=null", ["prefixes=null"]),
        ("name=null", ["name=null"]),
        ("name='a'", ["name='a'"]),
        ("hydra.sweep.dir=x", ["hydra.sweep.dir=x"]),
        ("hydra/launcher=basic", ["hydra/launcher=basic"]),
        ("--dry-run", ["dry_run=true"]),
        ("-m", ["-m"]),
    ],
)
def test_an_argument_in_hydras_grammar(arg, overrides) -> None:
    assert translate([arg]) == overrides


def test_options_with_a_value_keep_it() -> None:
    assert translate(["--cfg", "job", "-cd", "recipes", "steps=3"]) == ["--cfg", "job", "-cd", "recipes", "steps=3"]


@pytest.mark.parametrize("args", [["steps=3", "grpo"], ["method=grpo", "--cfg", "job", "extra"]])
def test_a_word_that_is_no_assignment_is_refused(args) -> None:
    with pytest.raises(UsageError, match="'(grpo|extra)' is not key=value"):
        translate(args)


def test_a_model_may_be_a_local_folder(tmp_path) -> None:
    (tmp_path / "my, model=1").mkdir()
    cfg = composed([f"model={tmp_path}/my, model=1"])
    assert (cfg.model.name, cfg.model.path) == ("my, model=1", f"{tmp_path}/my, model=1")


def test_a_model_may_be_a_hub_name_or_an_alias() -> None:
    assert composed(["model=Qwen/Qwen2.5-0.5B"]).model.path == "Qwen/Qwen2.5-0.5B"
    assert composed(["model=qwen7b"]).model == composed(["model=qwen2_5_7b"]).model


@pytest.mark.parametrize("value", ["./nothere", "no/such/folder", "/no/model"])
def test_a_folder_that_is_not_there_is_no_hub_name(value) -> None:
    with pytest.raises(ConfigError, match=f"Unknown model '{value}', and no such folder"):
        translate([f"model={value}"])


@pytest.mark.parametrize("value", ["choice(grpo,deepcompres)", "grpo,deepcompres"])
def test_every_option_of_a_sweep_is_checked(value) -> None:
    with pytest.raises(ConfigError, match="Unknown method 'deepcompres'; did you mean deepcompress"):
        translate([f"method={value}"])


def test_a_recipe_comes_after_the_defaults_and_before_the_command_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "recipes" / "grpo").mkdir(parents=True)
    (tmp_path / "recipes" / "grpo" / "small.yaml").write_text("# @package _global_\nsteps: 7\nbatch: 4\n")
    monkeypatch.setattr(cli, "folder_of", lambda name: tmp_path / "recipes")
    cfg = composed(["recipe=grpo/small", "batch=2"])
    assert (cfg.steps, cfg.batch) == (7, 2)
    with pytest.raises(ConfigError, match=r"Unknown recipe 'grpo/smal'; did you mean grpo/small\?"):
        translate(["recipe=grpo/smal"])


# exit codes


def test_an_unknown_command_lists_the_commands(capsys) -> None:
    assert main(["trian"]) == 2
    assert (
        capsys.readouterr().err == "reasonrl: Unknown command 'trian'; did you mean train? "
        "Choices: check, data, eval, export, judge, optune, prefixes, prm, train, tts, tune\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stepz=3"], "Unknown key 'stepz'; did you mean steps"),
        (["steps=0"], "steps must be at least 1, got 0"),
        (["dynamic_sampling.enabel=true"], "did you mean enable?"),
        (["resume=nothing"], "is no run folder"),
        (["steps=3", "grpo"], "'grpo' is not key=value"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(args, message, capsys, elsewhere) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("reasonrl: ")
    assert message in error
    assert error.count("\n") == 1
    assert files(elsewhere) == []


def raising(error: BaseException) -> Any:
    def work() -> int:
        raise error

    return work


def test_failures_a_user_can_cause_have_their_exit_codes(capsys) -> None:
    assert guarded(lambda: 0) == 0
    assert guarded(raising(ConfigError("wrong"))) == 2
    assert guarded(raising(DiskFull(28, "disk full while writing x"))) == 3
    assert guarded(raising(KeyboardInterrupt())) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["reasonrl: wrong", "reasonrl: disk full while writing x"]
    assert "resume=<run folder>" in lines[2]
    assert guarded(raising(ZeroDivisionError("a bug"))) == 1
    last = capsys.readouterr().err
    assert "Traceback" in last  # a bug keeps its traceback, and says where to look
    assert "log.txt" in last


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_dry_run_prints_the_plan_and_starts_nothing(capsys, elsewhere, monkeypatch, columns) -> None:
    monkeypatch.setenv("COLUMNS", columns)  # a line is never broken: paths can be copied, output can be searched
    assert main(["--dry-run", "method=deepcompress", "steps=7", "name=mine"]) == 0
    shown = capsys.readouterr().out
    assert "steps: 7" in shown
    assert "DualLength(" in shown
    assert "loss: Loss(" in shown
    assert "attention sdpa; 16384 tokens a" in shown
    assert "nothing was started" in shown
    assert files(elsewhere) == []


# imports


def loaded_after(*args: str) -> tuple[str, set[str]]:
    """Output of `python -m reasonrl <args>`, and the heavy packages it imported."""
    code = (
        "import atexit, sys, runpy\n"
        f"atexit.register(lambda: print('LOADED', *sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['reasonrl', *{list(args)!r}]\n"
        "runpy.run_module('reasonrl', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (("--help",), "Knobs (override with key=value)"),
        (("--cfg", "job", "method=deepcompress"), "_target_: reasonrl.methods.deepcompress.build"),
        (("--dry-run",), "nothing was started"),
    ],
    ids=["help", "cfg", "dry-run"],
)
def test_asking_imports_neither_torch_nor_verl_nor_ray(args, shown) -> None:
    out, heavy = loaded_after(*args)
    assert shown in out
    assert heavy == set()


def test_the_import_check_sees_an_import() -> None:
    """The control of the test above."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ray; print({'ray'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "{'ray'}"


# sweeps


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=grpo", "seed=1"], "method=grpo,seed=1"),
        (["++method.n=4", "out=x", "name=y", "hydra.sweep.dir=z"], "method.n=4"),
        (["model.path='a/b c'"], "model.path=-a-b-c--d61264"),
        (["out=x"], "job"),
        ([], "job"),
    ],
)
def test_a_job_is_named_after_its_overrides(overrides, name) -> None:
    assert job_name(overrides) == name


@given(st.lists(st.text(max_size=60), max_size=5))
def test_a_job_name_is_a_short_safe_folder_name(overrides) -> None:
    name = job_name(overrides)
    assert 1 <= len(name) <= 120
    assert not set("/\\'\" \n\t\0$") & set(name)


def test_two_jobs_never_share_a_name() -> None:
    long = [f"method.some_long_knob_{i}=0.123456" for i in range(9)]
    assert job_name([*long, "seed=1"]) != job_name([*long, "seed=2"])
    assert job_name(["data.path=a/b"]) != job_name(["data.path=a-b"])


def fake_reasonrl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m reasonrl` that prints its arguments and exits with what code= says."""
    script = tmp_path / "fake-python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nprint('ran', sys.argv[1:])\nprint('oh', file=sys.stderr)\n"
        "sys.exit(next((int(a[5:]) for a in sys.argv if a.startswith('code=')), 0))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sweep.sys, "executable", str(script))


def test_a_failing_job_keeps_code_and_log_and_the_next_job_runs(tmp_path, monkeypatch, capsys) -> None:
    fake_reasonrl(monkeypatch, tmp_path)
    monkeypatch.setenv(sweep.STAMP, "sweep-x")
    cfg = OmegaConf.create({"out": str(tmp_path / "runs"), "name": None})
    codes = [
        run_in_process(cfg, [f"code={code}", "seed=1", f"out={tmp_path}/runs"], i) for i, code in enumerate((3, 0))
    ]
    assert codes == [3, 0]
    folder = tmp_path / "runs" / "sweep-x"
    assert files(folder) == ["code=0,seed=1.log", "code=3,seed=1.log", "sweep.jsonl"]
    log = (folder / "code=3,seed=1.log").read_text()
    assert "oh" in log
    wanted = ["-m", "reasonrl", "code=3", "seed=1", f"out={folder}", "name='code=3,seed=1'"]
    assert f"ran {wanted}" in log
    records = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    assert [(r["job"], r["name"], r["exit_code"]) for r in records] == [
        (0, "code=3,seed=1", 3),
        (1, "code=0,seed=1", 0),
    ]
    shown = capsys.readouterr().out.replace("\n", "")
    assert "FAILED with exit code 3" in shown
    assert "code=3,seed=1.log" in shown
    assert "job 1: done" in shown


def test_a_named_sweep_has_a_folder_of_that_name(tmp_path, monkeypatch) -> None:
    fake_reasonrl(monkeypatch, tmp_path)
    monkeypatch.delenv(sweep.STAMP, raising=False)
    monkeypatch.setattr(sweep.os, "environ", dict(sweep.os.environ))
    run_in_process(OmegaConf.create({"out": str(tmp_path), "name": "mine"}), ["seed=1"], 0)
    assert files(tmp_path / "mine") == ["seed=1.log", "sweep.jsonl"]


def test_a_sweep_runs_every_job_in_a_process_of_its_own_and_returns_the_worst_code(monkeypatch, tmp_path) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **kwargs: Any) -> Any:
        commands.append(command)
        code = 4 if "seed=2" in command else 0
        return contextlib.nullcontext(SimpleNamespace(wait=lambda **_: code))

    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    monkeypatch.setattr(sweep.sys, "executable", "/nothing/runs")  # should another way of starting a job appear
    monkeypatch.setenv(sweep.STAMP, "sweep-x")
    assert main(["-m", "method=grpo,deepcompress", "seed=2,3", "method.n=4", f"out={tmp_path}/r"]) == 4
    jobs = [[a for a in command[3:] if a.startswith(("method=", "seed="))] for command in commands]
    assert jobs == [
        ["method=grpo", "seed=2"],
        ["method=grpo", "seed=3"],
        ["method=deepcompress", "seed=2"],
        ["method=deepcompress", "seed=3"],
    ]
    for command in commands:  # what the child is given is what this command line takes
        assert all("method.n=4" in " ".join(translate(c)) for c in [command[3:]])
        assert composed(command[3:]).method.n == 4
        assert composed(command[3:]).out == f"{tmp_path}/r/sweep-x"
