"""The schema of the knobs: defaults, ranges, names that do not exist, and what a run can be prepared from."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import group, shards
from omegaconf import MISSING, DictConfig, OmegaConf

import reasonrl
import reasonrl.conf
from reasonrl import train as train_module
from reasonrl.cli import composed
from reasonrl.config import (
    ConfigError,
    EngineConfig,
    LoggerConfig,
    ModelConfig,
    TrainConfig,
    make_method,
    method_names,
    nearest,
    package_path,
    typed,
)
from reasonrl.core import Loss, Method, Plain
from reasonrl.parts.advantages import RLOO
from reasonrl.runs import provenance
from reasonrl.train import Plan, as_overrides, check_devices, prepare

CONF = Path(reasonrl.conf.__file__).parent
POSITIVE = ("steps", "batch", "epochs", "max_new_tokens", "gpus", "nodes", "val_n", "keep_checkpoints")
NOT_NEGATIVE = ("seed", "lr", "lr_warmup_steps", "weight_decay", "validate_every", "save_every")
GROUPS = {"method", "model", "data", "prompt", "verify", "engine", "logger"}


def plan(*args: str, **how: Any) -> Plan:
    return prepare(composed(args), **how)


def schema() -> DictConfig:
    return OmegaConf.structured(TrainConfig)


# defaults


def test_train_yaml_repeats_every_default_of_the_schema() -> None:
    written = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    assert isinstance(written, dict)
    for outside in ("defaults", "hydra"):
        written.pop(outside)
    defaults = OmegaConf.to_container(schema())
    assert isinstance(defaults, dict)
    assert written == {name: value for name, value in defaults.items() if name not in GROUPS}


@pytest.mark.parametrize(
    ("group_name", "kind"), [("engine", EngineConfig), ("logger", LoggerConfig), ("model", ModelConfig)]
)
def test_options_of_a_typed_group_use_only_keys_of_its_schema(group_name, kind) -> None:
    known = {f.name for f in fields(kind)}
    for file in (CONF / group_name).glob("*.yaml"):
        option = OmegaConf.load(file)
        node = option.get(group_name, {} if "defaults" in option else option)
        assert set(node) - {"defaults"} <= known, file


@pytest.mark.parametrize("kind", [TrainConfig, EngineConfig, ModelConfig])
def test_every_missing_value_has_no_default(kind) -> None:
    """A group that is chosen fills its own name in."""
    assert {f.name for f in fields(kind) if f.default == MISSING} <= {
        "name",
        "path",
        "method",
        "data",
        "prompt",
        "verify",
    }


def test_every_composed_default_passes_the_schema() -> None:
    cfg = typed(composed([]))
    assert (cfg.model.name, cfg.engine.name, cfg.data.name, cfg.prompt.name) == ("tiny", "cpu", "arithmetic", "plain")
    assert cfg.batch == 16  # the tiny model sizes the run


@pytest.mark.parametrize("model", sorted(f.stem for f in (CONF / "model").glob("*.yaml") if f.stem != "local"))
def test_every_model_composes(model) -> None:
    cfg = typed(composed([f"model={model}"]))
    assert cfg.model.path


@pytest.mark.parametrize("engine", ["cpu", "gpu", "cluster"])
def test_every_engine_composes(engine) -> None:
    assert typed(composed([f"engine={engine}", "ray_address=auto"])).engine.name == engine


# names and types


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stepz=3"], r"Unknown key 'stepz'; did you mean steps.*Choices:.*batch"),
        (["recipee=x"], "Unknown key 'recipee'; did you mean recipe"),
        (
            ["method=grp"],
            r"Unknown method 'grp'; did you mean grpo\? Choices: adaptivestep, custom, deepcompress, grpo",
        ),
        (["method/reward=dual_lenght"], "Unknown method/reward 'dual_lenght'; did you mean dual_length"),
        (["method/rewards=own"], "Unknown group 'method/rewards'; did you mean method/reward"),
        (["engine=gpus"], r"Unknown engine 'gpus'; did you mean gpu.*Choices: cluster, cpu, gpu"),
        (["data=gsm8"], "Unknown data 'gsm8'; did you mean gsm8k"),
        (["prompt=boxd"], "Unknown prompt 'boxd'; did you mean boxed"),
        (["model=qwen2_5_7"], "Unknown model 'qwen2_5_7', and no such folder; did you mean qwen2_5_7b"),
        (["recipe=grpo/nothing"], "Unknown recipe 'grpo/nothing'"),
        (
            ["dynamic_sampling.enabel=true"],
            r"dynamic_sampling.enabel.*did you mean enable\? Choices: enable, max_refills",
        ),
        (["engine.offlod=true"], r"engine.offlod.*did you mean offload"),
        (["model.lora_rnk=8"], r"model.lora_rnk.*did you mean lora_rank"),
        (["logger.projct=x"], r"logger.projct.*did you mean project"),
        (["data.digit=3"], "Unknown setting of data source 'arithmetic': 'digit'. Did you mean 'digits'"),
        (["verify.timout=3"], "Unknown setting in verify 'timout'. Did you mean 'timeout'"),
        (["prompt.usr=3"], "Unknown setting in prompt 'usr'. Did you mean 'user'"),
        (["method.clip_hihg=0.3"], "reasonrl.methods.grpo.build has no knob 'clip_hihg'. Did you mean clip_high"),
        (
            ["verl.trainer.balance_bach=false"],
            "verl 0.9.1 has no setting 'trainer.balance_bach'; did you mean trainer.balance_batch",
        ),
        (["steps=many"], "steps: Value 'many'"),
        (["engine.offload=maybe"], "engine.offload: Value 'maybe'"),
        (["data.size=many"], "data.size must be int or null, got 'many'"),
        (["method.n=two"], "n must be int, got 'two'"),
        (["method.n=0"], r"n must lie in \[1, inf\), got 0"),
        (["method=custom"], r"no value for method._target_|method=custom needs"),
        (["method=custom", "method._target_=nopkg.build"], r"cannot import 'nopkg'.*PYTHONPATH"),
        (
            ["method=custom", "method._target_=reasonrl.methods.grpo.biuld"],
            "has no function 'biuld'. Did you mean build",
        ),
        (["method=custom", "method._target_=build"], "a factory is named package.module:function, got 'build'"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_a_name_or_type_that_does_not_exist_is_told_with_the_nearest_ones(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        *(([f"{key}=0"], f"{key} must be at least 1, got 0") for key in POSITIVE),
        *(([f"{key}=-1"], f"{key} must not be negative, got -1") for key in NOT_NEGATIVE),
        (["top_p=0"], r"top_p must be in \(0, 1\], got 0.0"),
        (["val_top_p=1.5"], r"val_top_p must be in \(0, 1\], got 1.5"),
        (["temperature=0"], "temperature=0 samples the same answer n times"),
        (["batch=16", "mini_batch=5"], "mini_batch=5 must divide batch=16"),
        (["mini_batch=0"], "mini_batch=0 must divide batch=16"),
        (["min_new_tokens=129"], "min_new_tokens=129 exceeds max_new_tokens=128"),
        (["dynamic_sampling.max_refills=-1"], "dynamic_sampling.max_refills must not be negative"),
        (["engine=cluster"], "engine=cluster needs ray_address"),
        (["engine=gpu", "deterministic=true"], "deterministic=true is kept on engine=cpu only"),
        (["engine.tensor_parallel=2"], "engine.tensor_parallel must be 1 on the CPU"),
        (["engine.max_tokens_per_gpu=100"], "max_tokens_per_gpu=100 is less than one sequence.*176"),
        (["dynamic_sampling.enable=true", "method.n=1"], "drops every group of one rollout"),
        (["verify.timeout=0"], "verify.timeout must be > 0 seconds, got 0.0"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, list) else "",
)
def test_a_value_out_of_range_is_told_with_its_range(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(*args)


def test_values_at_the_edge_of_their_range_pass() -> None:
    cfg = plan("mini_batch=16", "min_new_tokens=128", "top_p=1", "lr=0", "validate_every=0").cfg
    assert (cfg.mini_batch, cfg.min_new_tokens, cfg.lr) == (16, 128, 0.0)


def test_nearest_lists_all_choices_and_hints_only_at_close_ones() -> None:
    assert nearest("stepz", ["steps", "batch"]) == "; did you mean steps? Choices: batch, steps"
    assert nearest("zzz", ["steps", "batch"]) == " Choices: batch, steps"


# verl


def test_overrides_of_verl_reach_existing_and_open_keys() -> None:
    cfg = plan(
        "verl.trainer.balance_batch=false", "verl.actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs=5"
    ).cfg
    assert cfg.verl.trainer.balance_batch is False


@pytest.mark.parametrize(
    ("override", "way_out"),
    [
        ("actor_rollout_ref.rollout.n=4", r"method.n="),
        ("actor_rollout_ref.actor.optim.lr=1e-5", "set lr="),
        ("actor_rollout_ref.actor.clip_ratio_high=0.3", r"method.clip_high="),
        ("data.train_batch_size=4", "set batch="),
        ("data.max_response_length=4", "set max_new_tokens="),
        ("algorithm.filter_groups.enable=true", "dynamic_sampling.enable=true"),
        ("trainer.use_v1=false", "runs on the V1 trainer"),
    ],
)
def test_a_verl_key_that_a_knob_decides_is_refused_with_the_way_out(override, way_out) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"verl.{key} is decided by reasonrl; set .*{way_out}|{way_out}"):
        plan(f"verl.{override}")


# methods


def test_make_method_is_the_factory_with_checked_knobs() -> None:
    from reasonrl.methods import grpo

    assert make_method("grpo") == grpo.build()
    assert make_method("grpo", n=4, kl=0.04) == grpo.build(n=4, kl=0.04)
    assert set(method_names()) >= {"grpo", "deepcompress"}


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("grop", {}, r"Unknown method 'grop'; did you mean grpo\?"),
        ("grpo", {"N": 4}, r"reasonrl.methods.grpo.build has no knob 'N'.*Choices:.*aggregation"),
        ("grpo", {"n": "4"}, "n must be int, got '4'"),
        ("grpo", {"clip_low": -1.0}, r"clip_low must lie in \(0, 1\], got -1.0"),
    ],
)
def test_make_method_refuses_with_a_config_error(name, knobs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(name, **knobs)


def own_factory(*, rollouts: int = 2, loss: Any = None) -> Method:
    return Method("own", prefix=Plain(rollouts), loss=Loss())


def wrong_factory() -> str:
    return "no method"


def test_a_custom_factory_needs_no_part_slots_of_its_own() -> None:
    made = plan("method=custom", f"method._target_={__name__}:own_factory", "method.rollouts=3").method
    assert made == own_factory(rollouts=3)
    made = plan("method=custom", f"method._target_={__name__}.own_factory", "method/advantage=rloo").method
    assert made.advantage == RLOO()


def test_a_factory_that_makes_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="wrong_factory must return a Method, got str"):
        plan("method=custom", f"method._target_={__name__}.wrong_factory")


def test_limits_of_the_run_reach_the_method() -> None:
    made = plan("method=deepcompress", "max_new_tokens=100", "method/overlong=soft").method
    assert made.overlong.max_tokens == 100  # type: ignore[union-attr]


# models


def test_a_package_path_is_a_folder_on_disk() -> None:
    assert (Path(package_path("pkg://reasonrl.assets.tiny/model")) / "config.json").is_file()
    assert package_path("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    with pytest.raises(ConfigError, match="no installed package 'nothere'"):
        package_path("pkg://nothere/model")


# devices


def devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"] * count)


def test_a_gpu_engine_without_a_gpu_names_the_way_out(monkeypatch) -> None:
    devices(monkeypatch, 0)
    with pytest.raises(ConfigError, match="engine=gpu and no NVIDIA GPU found .*use engine=cpu"):
        plan("engine=gpu")


def test_more_gpus_than_there_are_is_refused(monkeypatch) -> None:
    devices(monkeypatch, 2)
    check_devices(typed(composed(["engine=gpu", "gpus=2"])))
    with pytest.raises(ConfigError, match="gpus=4 but this machine has 2"):
        plan("engine=gpu", "gpus=4")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gpus=4", "engine.tensor_parallel=3"], "tensor_parallel=3 must divide gpus x nodes = 4"),
        (["gpus=4", "batch=18"], "mini_batch=18 problems do not divide over 4 training processes"),
    ],
)
def test_processes_must_divide(monkeypatch, args, message) -> None:
    devices(monkeypatch, 4)
    with pytest.raises(ConfigError, match=message):
        plan("engine=gpu", *args)


# the run's folder, and resuming


def test_a_run_is_named_after_what_it_is(tmp_path) -> None:
    made = plan(f"out={tmp_path}", "seed=7")
    assert made.folder.parent == tmp_path
    assert made.folder.name.startswith("grpo-tiny-arithmetic-s7-")
    assert made.cfg.name == made.folder.name
    assert list(tmp_path.iterdir()) == []  # preparing writes nothing


def test_a_name_that_is_taken_is_refused(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    plan(f"out={tmp_path}", "name=a")
    (tmp_path / "a" / "file").touch()
    with pytest.raises(ConfigError, match="run folder .* exists: choose another name="):
        plan(f"out={tmp_path}", "name=a")


@pytest.fixture
def started(tmp_path) -> Path:
    """A run folder with a complete checkpoint of step 4 of 10."""
    from reasonrl.core import Ledger, assign_credit
    from reasonrl.runs.folder import RunFolder
    from reasonrl.runs.record import StepRecord

    made = plan(f"out={tmp_path}", "name=method=grpo,seed=3", "seed=3", "steps=10")  # a sweep names folders so
    folder = RunFolder.create(made.folder)
    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(made.cfg))
    groups = [group([1, 0], step=4)]
    credit = assign_credit(made.method, groups, Ledger.for_method(made.method))
    folder.record_step(StepRecord(4, groups, credit, {}))
    shards(folder.checkpoint(4))
    ledger = Ledger.for_method(made.method)
    ledger.observe(groups, credit)
    folder.publish_checkpoint(4, {"ledger": ledger.to_json(), "order": "{}"})
    return made.folder


def resume(folder: Path, *args: str) -> Plan:
    return plan(f"resume={folder}", *args, overrides=[f"resume={folder}", *args])


def test_resume_takes_everything_from_the_run(started) -> None:
    made = resume(started)
    assert (made.folder, made.resume_step) == (started, 4)
    assert (made.cfg.seed, made.cfg.steps, made.cfg.name) == (3, 10, "method=grpo,seed=3")
    assert made.method == make_method("grpo")


def test_resume_may_extend_the_run(started) -> None:
    assert resume(started, "steps=12", "save_every=1").cfg.steps == 12
    with pytest.raises(ConfigError, match=r"already has 4 of 4 steps: nothing to do \(steps= extends it\)"):
        resume(started, "steps=4")


@pytest.mark.parametrize("arg", ["seed=4", "method=deepcompress", "lr=1e-3", "data.seed=1", "+batch=3"])
def test_resume_refuses_a_setting_that_would_make_it_another_run(started, arg) -> None:
    key = arg.partition("=")[0].lstrip("+")
    with pytest.raises(ConfigError, match=f"; {key} cannot change. Allowed: steps, save_every"):
        resume(started, arg) if not arg.startswith("+") else prepare(
            composed([f"resume={started}"]), overrides=[f"resume={started}", arg]
        )


def test_resume_of_no_run_or_of_a_damaged_one_is_refused(started, tmp_path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        resume(tmp_path / "nothing")
    (started / "checkpoints" / "global_step_4" / "reasonrl" / "state.json").unlink()
    with pytest.raises(ConfigError, match="lacks reasonrl/state.json"):
        resume(started)


def test_resume_of_a_run_with_a_method_object_asks_for_the_object(started) -> None:
    config = OmegaConf.load(started / "config.yaml")
    config.method = {"name": "mine"}
    OmegaConf.save(config, started / "config.yaml")
    with pytest.raises(ConfigError, match="started from Python with a Method object: pass it again"):
        resume(started)
    assert plan(f"resume={started}", method=make_method("grpo")).method.name == "grpo"
    with pytest.raises(ConfigError, match="ledger was written by 'grpo' .* but this run is 'mine'"):
        plan(f"resume={started}", method=Method("mine"))


# the Python face


def test_keyword_arguments_become_overrides() -> None:
    assert as_overrides("dynamic_sampling", {"enable": True, "max_refills": 2}) == [
        "dynamic_sampling.enable=true",
        "dynamic_sampling.max_refills=2",
    ]
    assert as_overrides("name", None) == ["name=null"]


def test_train_from_python_prepares_the_same_plan_as_the_command_line(monkeypatch, tmp_path) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(train_module_object(), "train_plan", plans.append)
    reasonrl.train(
        "deepcompress", steps=3, out=str(tmp_path), name="a, b", dynamic_sampling={"enable": True}, mini_batch=None
    )
    reasonrl.train(Method("mine", prefix=Plain(3)), overrides=["verl.trainer.balance_batch=false"])
    first, second = plans
    assert (first.cfg.steps, first.cfg.dynamic_sampling.enable, first.folder) == (3, True, tmp_path / "a, b")
    assert first.method.name == "deepcompress"
    assert (second.method.prefix.n, second.cfg.method) == (3, {"name": "mine"})


def train_module_object() -> Any:
    """`reasonrl.train` is the function; the module lies behind it."""
    return sys.modules["reasonrl.train"]


def test_the_function_train_stands_before_the_module() -> None:
    assert callable(reasonrl.train)
    assert train_module is reasonrl.train
    assert is_dataclass(reasonrl.Run)
