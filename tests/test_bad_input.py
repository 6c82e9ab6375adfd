"""What goes wrong before a run: one message, the right exit code, no Ray, no traceback, and the run's name stays free."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import group
from omegaconf import OmegaConf

import reasonrl.engine.verl.launch as launching
from reasonrl import cli
from reasonrl.config import ConfigError, package_path
from reasonrl.core import Ledger, Problem, assign_credit, with_limits
from reasonrl.models import context, parameters
from reasonrl.runs import files as run_files
from reasonrl.runs.files import DiskFull
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.record import StepRecord

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
SMALL = ["model=tiny", "batch=4", "method.n=4", "steps=1", "data.size=16", "data.val_size=4", "name=r"]
OWN_MODEL = ["model=./m", "engine=cpu", "prompt=plain", "max_prompt_tokens=100", "max_new_tokens=100", *SMALL[1:]]
FILES = [*(arg for arg in SMALL if not arg.startswith("data.")), "max_prompt_tokens=60"]
Refused = Callable[..., str]


class ReachedRay(BaseException):
    """The run was about to start Ray."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; whoever starts Ray fails the test."""

    @contextlib.contextmanager
    def ray_cluster(cfg: Any) -> Iterator[None]:
        raise ReachedRay
        yield

    monkeypatch.setattr(launching, "ray_cluster", ray_cluster)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Refused:
    """Runs a command that must be refused; returns the message."""

    def run(*args: str, code: int = 2) -> str:
        before = set(here.rglob("*"))
        assert cli.main(list(args)) == code
        message = capsys.readouterr().err
        assert message.startswith(("reasonrl: ", "reasonrl data: "))
        assert "Traceback" not in message
        new = {path for path in here.rglob("*") if path not in before and "__pycache__" not in path.parts}
        assert not [path for path in new if path.is_file()]
        assert here / "runs" / "r" not in new
        return message

    return run


def reaches_ray(*args: str) -> None:
    with pytest.raises(ReachedRay):
        cli.main(list(args))


# arguments


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lr=nan"], "lr must be a finite number, got nan"),
        (["weight_decay=inf"], "weight_decay must be a finite number, got inf"),
        (["grad_clip=-1"], "grad_clip must be greater than 0, got -1.0"),
        (["watchdog_minutes=0"], "watchdog_minutes must be greater than 0, got 0.0"),
        (["top_k=0"], "top_k must be -1 (all tokens) or at least 1, got 0"),
        (["engine.rollout_memory=3"], "engine.rollout_memory must be in (0, 1], got 3.0"),
        (["engine.max_sequences=0"], "engine.max_sequences must be at least 1, got 0"),
        (["engine.agent_workers=0"], "engine.agent_workers must be at least 1, got 0"),
        (["engine.threads=-1"], "engine.threads must be at least 1, got -1"),
        (["model.lora_rank=-1"], "model.lora_rank must not be negative, got -1"),
        (["engine.attention=flash"], "Unknown engine.attention 'flash' Choices: auto, eager, flash_attention_2, sdpa"),
        (["engine.device=gpu"], "Unknown engine.device 'gpu'"),
        (["engine.rollout=vlm"], "Unknown engine.rollout 'vlm'; did you mean vllm?"),
        (["lr={"], "lr: Value '{' of type 'str' could not be converted to Float"),
        (["seed=1,2"], "seed=1,2 names several values: add -m to run each of them"),
        (["method=grpo,deepcompress"], "names several values: add -m"),
        (["--dryrun"], "Unknown option '--dryrun'; did you mean --dry-run"),
        (["verl.=1"], "'verl.=1' cannot be read: expected key=value"),
        (["model="], "Unknown model ''"),
        (["resume="], "resume= is empty: name a folder, or leave resume= out"),
        (["out="], "out= is empty"),
        (["prefixes="], "prefixes= is empty: name a folder, or leave prefixes= out"),
        (["steps.x=3"], ""),  # Hydra's own words
        (["verl.trainer.foo=1"], "Choices in verl.trainer: balance_batch, "),
        (["verl.trainer.balance_batch=hello"], "verl.trainer.balance_batch must be true or false, got 'hello'"),
        (["verl.trainer=foo"], "verl.trainer is a group: set verl.trainer.<one of>: balance_batch"),
        (["verl.actor_rollout_ref.actor=null"], "verl.actor_rollout_ref.actor is a group"),
        (["verl.actor_rollout_ref.actor.ppo_max_token_len_per_gpu=x"], "is decided by reasonrl|must be a number"),
        (["engine=gpu", "nodes=2"], "nodes=2 needs engine=cluster: engine=gpu is this machine alone"),
        (["ray_address=1.2.3.4:6379"], "ray_address=1.2.3.4:6379 is of engine=cluster, this run has engine=cpu"),
        (["engine=cluster", "ray_address=head"], "ray_address=head must be <head node>:6379, or auto"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, list) else "",
)
def test_an_argument_that_cannot_work(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|"))
    assert "Traceback" not in error
    assert not list(Path().iterdir())


@pytest.mark.parametrize("text", ["~/data", "it's", "a\\'b", "ends in \\", "{", '"', "x: y", "50%", "a=b"])
def test_a_text_reaches_its_knob_whatever_is_in_it(text: str) -> None:
    assert cli.composed(["data=gsm8k", f"data.path={text}", f"name={text}", "model=tiny"]).name == text
    assert cli.composed(["data=gsm8k", f"data.path={text}"]).data.path == text


def test_an_address_where_nothing_listens_is_told_at_once(refused: Refused) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = refused("engine=cluster", f"ray_address=127.0.0.1:{port}", "model=tiny", "engine.device=cpu")
    assert f"nothing answers at ray_address=127.0.0.1:{port} (" in message


# the run's folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "name=a/b is not the name of one folder below out=: out=a name=b puts it there"),
        ("/x/a", "out=/x name=a puts it there"),
        ("..", "name=.. is not the name of one folder"),
        ("a\nb", "name='a\\nb' holds characters that cannot be printed"),
        ("x" * 300, "name= has 300 characters, a folder's name at most 240"),
    ],
    ids=["slash", "absolute", "up", "newline", "long"],
)
def test_a_name_is_the_name_of_one_folder(name: str, message: str, refused: Refused) -> None:
    assert message in refused(*SMALL[:-1], f"name={name}")


def test_a_place_that_cannot_be_written_is_told(refused: Refused, here: Path) -> None:
    (here / "file").touch()
    assert f"{here}/file is a file, so no run folder" in refused(*SMALL, "out=file")
    assert "file is a file" in refused(*SMALL[:-1], "out=.", "name=file")
    assert "/dev/null is a file, so no run folder" in refused(*SMALL, "out=/dev/null/x")
    assert "cannot make the folder file (File exists): choose another out=" in refused(
        "data", "source=arithmetic", "size=8", "val_size=4", "out=file"
    )


def test_a_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    reaches_ray(*SMALL, "out=~/runs")
    assert (here / "home" / "runs" / "r" / "data" / "train.parquet").is_file()


def test_only_the_leftovers_of_a_run_are_written_over(refused: Refused, here: Path) -> None:
    reaches_ray(*SMALL)  # killed before it began, as far as the folder tells
    reaches_ray(*SMALL)
    shutil.rmtree(here / "runs" / "r")
    mine = here / "runs" / "r" / "data" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert "run folder runs/r exists: choose another name=, or delete it" in refused(*SMALL)
    assert mine.exists()


def test_a_run_that_is_starting_is_left_alone(refused: Refused, here: Path) -> None:
    reaches_ray(*SMALL)
    with RunFolder(here / "runs" / "r").locked():
        assert "another process is training in runs/r: wait for it" in refused(*SMALL)
    assert (here / "runs" / "r" / "data" / "train.parquet").is_file()


def test_a_refused_run_leaves_its_name_free(refused: Refused) -> None:
    assert "2 training problems are less than batch=4: lower batch" in refused(*SMALL, "data.size=2")
    reaches_ray(*SMALL)


def test_a_disk_too_small_for_one_checkpoint_is_told_before_the_start(
    refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    message = refused(*SMALL, code=3)
    assert "has 0.0 MiB free and the next checkpoint needs about 64.0 MiB: free some space" in message
    assert "put the run elsewhere with out=" in message


def test_a_disk_that_fills_up_while_weights_are_saved_is_told(
    started: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (started.checkpoint(2) / "actor").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), started.blaming_a_full_disk():  # there is room
        raise ZeroDivisionError
    monkeypatch.setattr(run_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    words = f"what was written before is intact.*resume={started.path}`"
    with pytest.raises(DiskFull, match=words), started.blaming_a_full_disk():
        raise RuntimeError("unexpected pos 264256 vs 264144")  # PyTorch's words for it
    assert started.complete_checkpoints() == [1]


def test_an_interrupt_before_the_run_began_leaves_nothing(
    refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "load_tokenizer", stopped)
    assert "interrupted; the run had not begun, and its folder is gone again" in refused(*SMALL, code=130)


def test_an_interrupt_of_a_run_names_the_command_that_continues_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(plan: Any, folder: RunFolder, console: Any) -> None:
        (folder.path / "config.yaml").write_text("seed: 1\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "launch", launch)
    assert cli.main(SMALL) == 130
    assert f"reasonrl resume={here}/runs/r" in capsys.readouterr().err


def test_a_run_that_trained_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "launch", lambda *_: None)
    assert cli.main(SMALL) == 1
    error = capsys.readouterr().err
    assert "no step was trained in" in error
    assert "Traceback" not in error


# models


@pytest.fixture
def model(here: Path) -> Callable[..., Path]:
    """A copy of the embedded model in ./m, without some files, with other values in config.json."""

    def make(*without: str, **changes: Any) -> Path:
        shutil.copytree(TINY, here / "m")
        for name in without:
            (here / "m" / name).unlink()
        config = json.loads((here / "m" / "config.json").read_text())
        (here / "m" / "config.json").write_text(json.dumps({**config, **changes}))
        return here / "m"

    return make


def test_a_whole_model_folder_passes(model: Callable[..., Path]) -> None:
    model()
    reaches_ray(*OWN_MODEL)


@pytest.mark.parametrize(
    ("without", "changes", "args", "message"),
    [
        (["config.json"], None, [], "has no config.json: not a Hugging Face model"),
        (["tokenizer.json"], {}, [], "has no tokenizer (none of tokenizer.json"),
        (["model.safetensors"], {}, [], "has no weights (*.safetensors or pytorch_model*.bin)"),
        (["chat_template.jinja"], {}, [], "has no chat template. Use a text prompt (prompt=r1_zero or prompt=orz)"),
        ([], {"architectures": ["BertForMaskedLM"]}, [], "is a BertForMaskedLM, not a causal language model"),
        ([], {"is_encoder_decoder": True}, [], "not a causal language model"),
        (
            [],
            {},
            ["max_new_tokens=4096"],
            "model m reads at most 512 tokens, max_prompt_tokens=100 + max_new_tokens=4096 are 4196: lower one of them",
        ),
        ([], {"model_type": "nothing"}, [], "cannot load the configuration of model"),
        (
            [],
            {"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}},
            [],
            "it brings its own code; if you trust its authors: model.trust_remote_code=true",
        ),
    ],
    ids=["config", "tokenizer", "weights", "template", "kind", "seq2seq", "context", "type", "code"],
)
def test_a_model_that_cannot_be_trained(
    without: list[str],
    changes: dict[str, Any] | None,
    args: list[str],
    message: str,
    model: Callable[..., Path],
    refused: Refused,
) -> None:
    folder = model(*(without if changes is not None else []), **(changes or {}))
    if changes is None:
        (folder / "config.json").unlink()
    assert message in refused(*OWN_MODEL, *args)


def test_a_model_without_chat_template_runs_with_a_text_prompt(model: Callable[..., Path]) -> None:
    model("chat_template.jinja")
    reaches_ray(*OWN_MODEL, "prompt=r1_zero", "max_prompt_tokens=440", "max_new_tokens=60")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json is not JSON ("),
        ("config.json", b"[1]", "config.json names no model_type"),
        ("tokenizer.json", b"{}", "cannot load the tokenizer of model"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "one cut short: copy or download it again",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x-1.safetensors"}}', "lacks 1 of 1 weight files, x-1"),
        ("model.safetensors.index.json", b"{}", "is not an index of weight files"),
    ],
    ids=["json", "record", "tokenizer", "pointer", "shard", "index"],
)
def test_a_damaged_file_of_a_model_is_named(
    file: str, content: bytes, message: str, model: Callable[..., Path], refused: Refused
) -> None:
    (model() / file).write_bytes(content)
    assert message in refused(*OWN_MODEL)


def test_weights_cut_short_are_told_by_their_header(model: Callable[..., Path], refused: Refused) -> None:
    weights = model() / "model.safetensors"
    whole = weights.read_bytes()
    assert parameters(weights) == 866_432
    (header,) = struct.unpack("<Q", whole[:8])
    weights.write_bytes(whole[: 8 + header + 10])
    assert f"is cut short: {8 + header + 10} bytes of {len(whole)}" in refused(*OWN_MODEL)


def test_a_run_folder_is_no_model_and_says_how_to_get_one(refused: Refused, here: Path) -> None:
    (here / "m" / "checkpoints").mkdir(parents=True)
    (here / "m" / "config.yaml").touch()
    assert f"It is a run: export a checkpoint, reasonrl export {here}/m" in refused(*OWN_MODEL)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512),
    ],
)
def test_the_longest_sequence_of_a_model(config: dict[str, Any], limit: int | None) -> None:
    assert context(config) == limit


def test_a_hub_model_without_network_names_the_way_out(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nmore")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    message = refused("model=no/where", *OWN_MODEL[1:])
    assert "Without a network, download it elsewhere and give the folder: model=<folder>" in message
    assert "couldn't connect" in message


def test_an_optional_package_that_is_missing_is_named_before_the_start(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launching.importlib.util.find_spec
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    assert "needs wandb, which is not installed: pip install 'wandb'" in refused(*SMALL, "logger=wandb")


# data


GSM8K = [{"question": f"What is {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(12)]
HELD = [{"question": "And 5+5?", "answer": "#### 10"}]


def put(rows: list[Any], name: str = "train.jsonl") -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_known_data_set_trains_on_the_embedded_model() -> None:
    put(GSM8K)
    put(HELD, "test.jsonl")
    reaches_ray(*FILES, "data=gsm8k", "data.path=.")


@pytest.mark.parametrize(
    ("rows", "args", "message"),
    [
        ([""], [], "no train problem is left"),
        ([{"a": 1, "b": 2}], [], "no question column for source=gsm8k (looked for question); the columns are a, b"),
        (
            [{"question": "q", "answer": "no gold"}] * 2,
            [],
            "dropped 2 x no '#### answer' line (for example no '#### answer' line: train.jsonl:1",
        ),
        (["{"], [], "dropped 1 x not JSON (for example not JSON: train.jsonl:1)"),
        (HELD, [], "also a validation question"),
        (GSM8K, ["max_prompt_tokens=3"], "12 of 12 prompts are longer than max_prompt_tokens=3, so nothing is left"),
        (
            [*GSM8K, {"question": "Why " * 40, "answer": "#### 1"}],
            ["data.overlong=error"],
            "1 of 13 prompts are longer than max_prompt_tokens=60; the longest is 'gsm8k/",
        ),
        (GSM8K, ["data.path=nope.jsonl"], "no file or folder nope.jsonl (here: "),
        (GSM8K, ["data.path=train.jsonl"], "is one file, and training and validation must not share it"),
        (
            [{"question": str(i), "answer": {"x": 1}} for i in range(9)],
            ["data=jsonl", "data.path=train.jsonl", "data.val_split=null", "data.val_size=2"],
            "dropped 9 x no answer",
        ),
        (GSM8K, ["data=verl", "data.path=nope"], "no file or folder nope"),
    ],
    ids=["blank", "columns", "gold", "json", "same", "long", "error", "missing", "one", "nested", "verl"],
)
def test_data_that_cannot_be_used(rows: list[Any], args: list[str], message: str, refused: Refused) -> None:
    put(rows)
    put(HELD, "test.jsonl")
    data = [] if any(arg.startswith("data=") for arg in args) else ["data=gsm8k"]
    place = [] if any(arg.startswith("data.path=") for arg in args) else ["data.path=."]
    assert message in refused(*FILES, *data, *place, *args)


def test_a_first_row_without_a_value_is_dropped_and_a_long_prompt_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    put([{"question": None, "answer": "#### 1"}, *GSM8K, {"question": "Why " * 40, "answer": "#### 1"}])
    put(HELD, "test.jsonl")
    reaches_ray(*FILES, "data=gsm8k", "data.path=.")
    shown = capsys.readouterr().out
    assert "data train: 13 problems (dropped: 1 no question)" in shown
    assert "data train: 1 prompts over max_prompt_tokens=60 dropped (longest " in shown


def test_the_data_command_leaves_no_empty_folder(refused: Refused, here: Path) -> None:
    put([])
    assert "train.jsonl is empty; copy it again" in refused(
        "data", "source=jsonl", "path=train.jsonl", "val_split=null", "val_size=2"
    )
    assert not (here / "data").exists()


# methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:\n", "importing bad_{i} failed: SyntaxError: invalid syntax ("),
        ("import math\n1 / 0\n", "importing bad_{i} failed: ZeroDivisionError: division by zero ({here}/bad_{i}.py:2)"),
        ("def build(*, n=1):\n    return {}['x']\n", "bad_{i}.build: KeyError: 'x' ({here}/bad_{i}.py:2)"),
    ],
    ids=["syntax", "import", "build"],
)
def test_a_strategy_that_fails_is_told_with_its_line(
    text: str,
    message: str,
    refused: Refused,
    here: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = request.node.callspec.id
    (here / f"bad_{number}.py").write_text(text)
    monkeypatch.syspath_prepend(str(here))
    told = refused(*SMALL, "method=custom", f"method._target_=bad_{number}.build")
    assert message.format(i=number, here=here) in told


# resuming


@pytest.fixture
def started(here: Path) -> RunFolder:
    """runs/r with a complete checkpoint of step 1 of 2."""
    from reasonrl.train import prepare

    plan = prepare(cli.composed([*SMALL, "steps=2"]))
    folder = RunFolder.create(plan.folder)
    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(plan.cfg))
    groups = [group([1, 0])]
    folder.record_step(StepRecord(1, groups, assign_credit(plan.method, groups, Ledger.for_method(plan.method)), {}))
    actor = folder.checkpoint(1) / "actor"
    actor.mkdir(parents=True)
    for part in ("model", "optim", "extra_state"):
        (actor / f"{part}_world_size_1_rank_0.pt").write_bytes(part.encode())
    ledger = Ledger.for_method(with_limits(plan.method, plan.cfg.max_new_tokens)).to_json()
    folder.publish_checkpoint(1, {"ledger": ledger, "order": json.dumps({"size": 16, "seed": 1, "position": 4})})
    return folder


def change(folder: RunFolder, key: str, value: Any) -> None:
    config = OmegaConf.load(folder.path / "config.yaml")
    OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder.path / "config.yaml")


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {str(f.relative_to(folder.path)): f.read_bytes() for f in folder.path.rglob("*") if f.is_file()}


def resume_refused(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> str:
    """The message; the run is what it was, byte for byte."""
    before = contents(folder)
    assert cli.main([f"resume={folder.path}"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert {name: text for name, text in contents(folder).items() if name != ".lock"} == before
    return message


def test_a_checkpoint_of_other_parts_names_both(started: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    change(started, "method.advantage", {"_target_": "reasonrl.parts.advantages.RLOO"})
    message = resume_refused(started, capsys)
    assert "ledger was written by 'grpo' with parts [" in message
    assert "but this run is 'grpo' with parts [" in message
    assert "resume with the method of the checkpoint, or start a new run from its weights" in message


def test_a_checkpoint_of_other_data_is_told(started: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    change(started, "data.size", 15)
    assert cli.main([f"resume={started.path}"]) == 2
    assert "the checkpoint's data order is for 16 problems and seed 1, this run has 15" in capsys.readouterr().err
    assert started.complete_checkpoints() == [1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "", "is not the configuration of a run"),
        ("provenance.json", "{", "provenance.json is not JSON"),
        ("checkpoints/global_step_1/reasonrl/COMPLETE", "{", "cannot be read"),
        ("checkpoints/global_step_1/reasonrl/state.json", "{}", "changed since the checkpoint was written"),
        (
            "checkpoints/global_step_1/actor/optim_world_size_1_rank_0.pt",
            "op",
            "was not written by this run|changed since",
        ),
        ("checkpoints/global_step_1/actor/foreign.pkl", "x", "can run code when it is loaded"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(
    file: str, content: str, message: str, started: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (started.path / file).write_text(content)
    told = resume_refused(started, capsys)
    assert any(part in told for part in message.split("|"))


def test_a_checkpoint_from_elsewhere_is_not_loaded(
    started: RunFolder, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance = json.loads((started.path / "provenance.json").read_text())
    (started.path / "provenance.json").write_text(json.dumps({**provenance, "checkpoints": {}}))
    for command in ([f"resume={started.path}"], ["export", str(started.path)]):
        assert cli.main(command) == 2
        assert "can run code when it is loaded and was not written by this run" in capsys.readouterr().err


def test_a_broken_line_of_metrics_is_named(started: RunFolder) -> None:
    with started.metrics_file.open("a") as file:
        file.write("{half\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 2 is not JSON \(.*\): remove it"):
        started.lines()


def test_a_path_beside_the_run_is_told_where_the_run_is(started: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"resume={started.checkpoint(1)}"]) == 2
    assert f"is no run folder (it lies in one: {started.path})" in capsys.readouterr().err
    assert cli.main([f"resume={started.path}r"]) == 2
    assert "nothing there; did you mean r?" in capsys.readouterr().err


def test_an_export_to_a_place_that_cannot_be_written_is_told(
    started: RunFolder, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    assert cli.main(["export", str(started.path), str(here / "file" / "out")]) == 2
    assert f"cannot make the folder {here}/file (" in capsys.readouterr().err


# solutions that nothing can be given away of


def test_solutions_of_one_step_are_refused_and_some_without_steps_are_counted(capsys) -> None:
    from rich.console import Console

    def problems(*steps: int) -> list[Problem]:
        return [Problem(f"p{i}", [1], "4", solution_steps=([5],) * count) for i, count in enumerate(steps)]  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="none of the 2 solutions has two steps or more.*data.steps=auto"):
        launching.tell_hintable(problems(1, 0, 1), Console())
    launching.tell_hintable(problems(3, 1, 2, 0), Console(soft_wrap=True))
    assert "2 of 4 problems have two steps or more, the others are given no hint" in capsys.readouterr().out
    launching.tell_hintable(problems(2, 3), Console())
    assert capsys.readouterr().out == ""
