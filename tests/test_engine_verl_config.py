"""Our flat settings as verl's configuration: the values that matter, and the combinations that are refused."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from reasonrl.cli import composed
from reasonrl.config import ConfigError, make_method, method_from, typed
from reasonrl.core import Loss, Method, Plain
from reasonrl.engine.verl import config as module
from reasonrl.engine.verl.config import OWNED, attention, check_overrides, leaves, tokens_per_pass, verl_config

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
FOLDER = Path("runs") / "mine"


def made(*args: str, method: Method | None = None, **how: Any) -> DictConfig:
    cfg = typed(composed(args))
    data = {"train": "train.parquet", "val": "val.parquet"}
    return verl_config(cfg, method or method_from(cfg.method), data=data, run_folder=FOLDER, own={"seed": 1}, **how)


def wanted(config: DictConfig, values: dict[str, Any]) -> None:
    assert {path: OmegaConf.select(config, path, throw_on_missing=True) for path in values} == values


def no_flash(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: installed or None if name == "flash_attn" else real(name)
    )


def test_the_tiny_run_on_a_cpu() -> None:
    config = made("seed=5")
    wanted(
        config,
        {
            "trainer.device": "cpu",
            "trainer.v1.trainer_mode": "reasonrl",
            "trainer.use_v1": True,
            "trainer.n_gpus_per_node": 1,
            "trainer.total_training_steps": 50,
            "trainer.test_freq": 20,
            "trainer.resume_mode": "disable",
            "trainer.logger": [],
            "trainer.default_local_dir": "runs/mine/checkpoints",
            "data.train_files": "train.parquet",
            "data.train_batch_size": 16,
            "data.max_prompt_length": 48,
            "data.max_response_length": 128,
            "data.shuffle": False,
            "data.seed": 5,
            "data.reasonrl.overlong": "drop",
            "data.reasonrl.prompt.kind": "chat",
            f"{MODEL}.override_config.attn_implementation": "sdpa",
            f"{MODEL}.use_remove_padding": False,
            f"{MODEL}.enable_gradient_checkpointing": False,
            f"{ACTOR}.strategy": "fsdp2",
            f"{ACTOR}.ppo_mini_batch_size": 16,
            f"{ACTOR}.optim.lr": 3e-4,
            f"{ACTOR}.use_torch_compile": False,
            f"{ACTOR}.fsdp_config.dtype": "float32",
            f"{ACTOR}.fsdp_config.mixed_precision.param_dtype": "fp32",
            f"{ROLLOUT}.name": "reasonrl_cpu",
            f"{ROLLOUT}.dtype": "float32",
            f"{ROLLOUT}.load_format": "auto",
            f"{ROLLOUT}.n": 8,
            f"{ROLLOUT}.max_model_len": 176,
            f"{ROLLOUT}.calculate_log_probs": True,
            f"{ROLLOUT}.free_cache_engine": False,
            f"{ROLLOUT}.val_kwargs.do_sample": True,
            "algorithm.adv_estimator": "grpo",
            "reasonrl.seed": 1,
        },
    )
    assert (Path(config.actor_rollout_ref.model.path) / "config.json").is_file()


@pytest.mark.parametrize(("flash", "kind"), [(True, "flash_attention_2"), (False, "sdpa")])
def test_a_run_on_gpus(monkeypatch, flash, kind) -> None:
    no_flash(monkeypatch, installed=flash)
    config = made(
        "model=qwen7b",
        "engine=gpu",
        "gpus=4",
        "engine.tensor_parallel=2",
        "engine.offload=true",
        "batch=64",
        "mini_batch=16",
        "val_temperature=0.6",
        "logger=wandb",
        "logger.project=mine",
    )
    wanted(
        config,
        {
            "trainer.device": "cuda",
            "trainer.n_gpus_per_node": 4,
            "trainer.logger": ["wandb"],
            "trainer.project_name": "mine",
            "trainer.experiment_name": "mine",
            f"{MODEL}.override_config.attn_implementation": kind,
            f"{MODEL}.use_remove_padding": flash,  # packing needs variable-length attention
            f"{ACTOR}.ppo_mini_batch_size": 16,
            f"{ACTOR}.use_torch_compile": True,
            f"{ACTOR}.fsdp_config.param_offload": True,
            f"{ACTOR}.fsdp_config.optimizer_offload": True,
            f"{ACTOR}.ppo_max_token_len_per_gpu": 16384,
            f"{ROLLOUT}.name": "vllm",
            f"{ROLLOUT}.dtype": "bfloat16",
            f"{ROLLOUT}.load_format": "dummy",
            f"{ROLLOUT}.tensor_model_parallel_size": 2,
            f"{ROLLOUT}.free_cache_engine": True,
            f"{ROLLOUT}.val_kwargs.do_sample": True,
            f"{ROLLOUT}.max_num_batched_tokens": 8192,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 4,
        },
    )


def test_attention_can_be_chosen(monkeypatch) -> None:
    no_flash(monkeypatch, installed=True)
    assert attention(typed(composed(["engine.attention=eager"]))) == "eager"


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        (
            Loss(),
            {
                "loss_agg_mode": "token-mean",
                "clip_ratio_low": 0.2,
                "clip_ratio_high": 0.2,
                "clip_ratio_c": 1e9,
                "use_kl_loss": False,
                "kl_loss_coef": 0.0,
                "entropy_coeff": 0.0,
                "loss_scale_factor": None,
            },
        ),
        (
            Loss(dual_clip=3.0, clip_low=0.1, clip_high=0.28),
            {"clip_ratio_c": 3.0, "clip_ratio_low": 0.1, "clip_ratio_high": 0.28},
        ),
        (Loss(kl=0.04, entropy=0.01), {"use_kl_loss": True, "kl_loss_coef": 0.04, "entropy_coeff": 0.01}),
        (Loss("seq-mean-token-sum-norm"), {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 128}),
        (Loss("seq-mean-token-sum-norm", scale=77), {"loss_scale_factor": 77}),
        (Loss("seq-mean-token-mean"), {"loss_agg_mode": "seq-mean-token-mean", "loss_scale_factor": None}),
    ],
    ids=str,
)
def test_the_methods_loss_becomes_verls(loss, values) -> None:
    wanted(made(method=Method("mine", loss=loss)), {f"{ACTOR}.{name}": value for name, value in values.items()})


def test_a_dual_clip_that_is_off_is_never_reached() -> None:
    """verl clamps the log-ratio at 20, so the largest ratio is exp(20)."""
    config = made()
    assert config.actor_rollout_ref.actor.clip_ratio_c > math.exp(20)


def test_rollouts_and_kl_follow_the_method() -> None:
    config = made(method=Method("mine", prefix=Plain(3)))
    assert config.actor_rollout_ref.rollout.n == 3


@pytest.mark.parametrize(("every", "frequency"), [("5", 5), ("0", 50)])
def test_never_is_only_after_the_last_step(every, frequency) -> None:
    config = made(f"validate_every={every}", f"save_every={every}")
    assert (config.trainer.test_freq, config.trainer.save_freq) == (frequency, frequency)


def test_deterministic_runs_have_one_worker() -> None:
    assert made("deterministic=true").actor_rollout_ref.rollout.agent.num_workers == 1


def test_a_resumed_run_names_its_checkpoint() -> None:
    config = made(resume_from=FOLDER / "checkpoints" / "global_step_4")
    wanted(
        config,
        {
            "trainer.resume_mode": "resume_path",
            "trainer.resume_from_path": "runs/mine/checkpoints/global_step_4",
            "trainer.val_before_train": False,
        },
    )


# tokens of a pass


def model_of(tmp_path: Path, vocabulary: int) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))
    return f"model={tmp_path}"


@pytest.mark.parametrize(("vocabulary", "tokens"), [(100, 16384), (20_000, 10_000), (200_000, 1000), (10**7, 176)])
def test_a_cpu_pass_holds_what_its_logits_budget_allows_and_at_least_one_sequence(tmp_path, vocabulary, tokens) -> None:
    args = [model_of(tmp_path, vocabulary), "engine=cpu", "max_prompt_tokens=48", "max_new_tokens=128"]
    assert tokens_per_pass(typed(composed(args))) == tokens


def test_a_gpu_pass_holds_two_of_the_longest_sequences() -> None:
    cfg = typed(composed(["model=qwen7b", "engine=gpu", "max_new_tokens=20000"]))
    assert tokens_per_pass(cfg) == 2 * (20000 + cfg.max_prompt_tokens)


def test_a_pass_can_be_chosen_and_must_hold_one_sequence() -> None:
    assert tokens_per_pass(typed(composed(["engine.max_tokens_per_gpu=176"]))) == 176
    with pytest.raises(ConfigError, match="max_tokens_per_gpu=175 is less than one sequence.*= 176"):
        made("engine.max_tokens_per_gpu=175")


# overrides of verl


def test_overrides_come_last() -> None:
    config = made("verl.trainer.balance_batch=false", f"verl.{ROLLOUT}.gpu_memory_utilization=0.3")
    assert config.trainer.balance_batch is False
    assert config.actor_rollout_ref.rollout.gpu_memory_utilization == 0.3


def test_a_mapping_that_is_empty_in_verl_takes_any_key() -> None:
    config = made(f"verl.{ROLLOUT}.engine_kwargs.vllm.swap_space=4")
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.swap_space == 4


def test_a_key_without_a_value_in_verl_can_be_set() -> None:
    """verl's rollout.name is `???`."""
    assert made(f"verl.{ROLLOUT}.name=sglang").actor_rollout_ref.rollout.name == "sglang"


@pytest.mark.parametrize("path", ["nothing", "trainer.nothing", "trainer.balance_batch.deeper", f"{ROLLOUT}.nn.x"])
def test_an_unknown_path_is_refused(path) -> None:
    with pytest.raises(ConfigError, match=f"verl 0.9.1 has no setting '{path}'.*Choices"):
        made(f"verl.{path}=1")


@pytest.mark.parametrize("path", sorted(OWNED))
def test_every_key_that_we_decide_exists_in_verl_and_cannot_be_overridden(path) -> None:
    assert module._exists(module.verl_defaults(), path)
    with pytest.raises(ConfigError, match=f"verl.{path} is decided by reasonrl"):
        check_overrides(nested(path, 1), module.verl_defaults())


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def test_every_setting_that_we_imply_exists_in_verl() -> None:
    cfg, defaults = typed(composed([])), module.verl_defaults()
    implied = module.implied(cfg, method_from(cfg.method), {"train": "a", "val": "b"}, FOLDER)
    missing = {path for path in implied if not module._exists(defaults, path)}
    # verl's YAML leaves this one out and its dataclass has it
    assert missing == {f"actor_rollout_ref.{role}.fsdp_config.mixed_precision" for role in ("actor", "ref")}
    from verl.workers.config import FSDPEngineConfig

    assert "mixed_precision" in {f.name for f in fields(FSDPEngineConfig)}


def test_defaults_are_not_shared_between_runs() -> None:
    made("verl.trainer.balance_batch=false")
    assert made().trainer.balance_batch is True


def test_leaves_are_dotted_paths() -> None:
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": [2]})) == {"a.b": 1, "a.c": {}, "d": [2]}


# conflicts


@dataclass(frozen=True)
class Needing:
    """A prefix policy that reads something."""

    needs: tuple[str, ...]
    n: int = 4

    def plan(self, problem: Any, view: Any) -> Any:
        return ()


def needing(*needs: str) -> Method:
    return Method("mine", prefix=Needing(needs))


CORRECTED = "verl.algorithm.rollout_correction.rollout_is=token"
BYPASSED = "verl.algorithm.rollout_correction.bypass_mode=true"


@pytest.mark.parametrize(
    ("args", "method", "message"),
    [
        ([CORRECTED], make_method("pace"), "rollout_correction.rollout_is weighs tokens .* prefixes that method pace trains"),
        ([BYPASSED], make_method("pace"), "rollout_correction.bypass_mode weighs tokens"),
        ([CORRECTED], make_method("seele", hint_loss="policy"), "rollout_correction.rollout_is .* method seele trains"),
        ([CORRECTED], make_method("prefix_rft"), "take the prefixes out of the policy loss"),
        (["dynamic_sampling.enable=true"], needing("old_logprobs"), "mine reads log-probabilities recomputed .*enable=false"),
        (["dynamic_sampling.enable=true"], needing("entropy"), "mine reads log-probabilities recomputed"),
        (["dynamic_sampling.enable=true"], Method("mine", prefix=Plain(1)), "drops every group of one rollout"),
    ],
)  # fmt: skip
def test_combinations_that_would_mean_something_else_are_refused(args, method, message) -> None:
    with pytest.raises(ConfigError, match=message):
        made(*args, method=method)


def test_each_half_of_such_a_combination_is_accepted() -> None:
    accepted: list[Callable[[], Any]] = [
        lambda: made(CORRECTED),
        lambda: made(CORRECTED.replace("token", "null"), method=make_method("pace")),
        lambda: made(CORRECTED, method=make_method("pace", mask_prefix_in_loss=True)),
        lambda: made(CORRECTED, method=make_method("seele")),
        lambda: made(method=needing("old_logprobs", "entropy")),
        lambda: made("dynamic_sampling.enable=true", method=needing("logprobs")),
        lambda: made(method=Method("mine", prefix=Plain(1))),
    ]
    for make in accepted:
        make()


def test_verl_missing_is_told(monkeypatch) -> None:
    module._verl_defaults.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="verl is not installed: pip install"):
        module.verl_defaults()


def test_replacing_the_loss_replaces_its_settings() -> None:
    base = method_from(typed(composed([])).method)
    assert made(method=replace(base, loss=Loss(kl=0.5))).actor_rollout_ref.actor.kl_loss_coef == 0.5
