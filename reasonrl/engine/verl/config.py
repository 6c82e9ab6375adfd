"""reasonrl's flat settings -> verl's configuration. Imports hydra and omegaconf only: `--dry-run` stays fast.

Three layers, later wins: verl's own defaults, what our settings and the method's loss imply, the user's `verl.` overrides.
A `verl.` override of a key that the method or a knob of ours decides is an error, not a silent second opinion.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from reasonrl.config import ConfigError, nearest, package_path
from reasonrl.core import Method
from reasonrl.core.specimens import trains_prefixes

ROLLOUT = "actor_rollout_ref.rollout"
ACTOR = "actor_rollout_ref.actor"
MODEL = "actor_rollout_ref.model"
LOGITS_BUDGET = 2e8  # tokens x vocabulary of one forward pass on the CPU: 0.8 GB of float32 logits
OWNED = {  # keys that a knob of ours or the method decides -> what to set instead
    f"{ROLLOUT}.n": "the method's n (method.n=...)",
    f"{ACTOR}.loss_agg_mode": "the method's loss",
    f"{ACTOR}.clip_ratio_low": "the method's loss (method.clip_low=...)",
    f"{ACTOR}.clip_ratio_high": "the method's loss (method.clip_high=...)",
    f"{ACTOR}.clip_ratio_c": "the method's loss",
    f"{ACTOR}.use_kl_loss": "the method's loss",
    f"{ACTOR}.kl_loss_coef": "the method's loss",
    f"{ACTOR}.entropy_coeff": "the method's loss",
    f"{ACTOR}.loss_scale_factor": "the method's loss",
    "algorithm.adv_estimator": "method/advantage=...",
    "algorithm.filter_groups.enable": "dynamic_sampling.enable=true",
    "algorithm.use_kl_in_reward": "nothing: rewards are the method's alone",
    "data.train_batch_size": "batch=...",
    "data.max_prompt_length": "max_prompt_tokens=...",
    "data.max_response_length": "max_new_tokens=...",
    f"{ACTOR}.ppo_mini_batch_size": "mini_batch=...",
    f"{ACTOR}.optim.lr": "lr=...",
    f"{ROLLOUT}.temperature": "temperature=...",
    "trainer.total_training_steps": "steps=...",
    "trainer.default_local_dir": "out=... and name=...",
    "trainer.save_freq": "save_every=...",
    "trainer.resume_mode": "resume=<run folder>",
    "trainer.resume_from_path": "resume=<run folder>",
    f"{ACTOR}.checkpoint.save_contents": "nothing: a checkpoint that can be resumed needs all three parts",
    f"{ACTOR}.checkpoint.load_contents": "nothing: a checkpoint that can be resumed needs all three parts",
    "trainer.use_v1": "nothing: reasonrl runs on the V1 trainer",
}


def verl_defaults() -> DictConfig:
    """verl's `ppo_trainer`, composed from its folder without importing verl. Raises ConfigError when verl is missing."""
    return copy.deepcopy(_verl_defaults())


@functools.cache  # preparing and launching both need it
def _verl_defaults() -> DictConfig:
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("verl is not installed: pip install 'verl[verl-core]==0.9.1'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf of nested mappings."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def check_overrides(overrides: Mapping[str, Any], defaults: DictConfig) -> dict[str, Any]:
    """The user's `verl.` overrides as dotted paths. Raises ConfigError for an unknown path or one that we decide."""
    flat = dict(leaves(overrides))
    known = None
    for path in flat:
        if path in OWNED:
            raise ConfigError(f"verl.{path} is decided by reasonrl; set {OWNED[path]} instead")
        if not _exists(defaults, path):
            if known is None:
                known = [p for p, _ in leaves(OmegaConf.to_container(defaults, resolve=False))]  # type: ignore[arg-type]
            raise ConfigError(f"verl 0.9.1 has no setting '{path}'{_hint(path, known)}")
        _check_kind(path, flat[path], defaults)
    return flat


def _hint(path: str, known: Sequence[str]) -> str:
    """The nearest settings, and those beside the unknown one; verl has too many to list them all."""
    meant = nearest(path, known).partition(" Choices: ")[0]
    folder = path.rpartition(".")[0]
    while folder and not any(name.startswith(f"{folder}.") for name in known):
        folder = folder.rpartition(".")[0]
    start = f"{folder}." if folder else ""
    beside = sorted({name.removeprefix(start).partition(".")[0] for name in known if name.startswith(start)})
    return f"{meant} Choices in verl{folder and '.'}{folder}: {', '.join(beside)}"


def _check_kind(path: str, value: Any, defaults: DictConfig) -> None:
    """Raise ConfigError for a value in the place of a group, and for a text in that of a number or a truth value."""
    node: Any = defaults
    for part in path.split("."):
        node = node._get_node(part, validate_access=False) if isinstance(node, DictConfig) else None
    if isinstance(node, DictConfig) and len(node):
        raise ConfigError(f"verl.{path} is a group: set verl.{path}.<one of>: {', '.join(map(str, node))}")
    default = None if node is None else node._value()
    if isinstance(default, bool) and not isinstance(value, bool | None):
        raise ConfigError(f"verl.{path} must be true or false, got {value!r}")
    if isinstance(default, int | float) and not isinstance(value, int | float | None):
        raise ConfigError(f"verl.{path} must be a number, got {value!r}")


def _exists(config: DictConfig, path: str) -> bool:
    node: Any = config
    for part in path.split("."):
        # `part in node` would deny a key whose value is missing (???), rollout.name for one
        found = node._get_node(part, validate_access=False) if isinstance(node, DictConfig) else None
        if found is not None:
            node = found
        else:  # an empty mapping in verl's defaults (engine_kwargs.vllm, override_config) takes any key
            return isinstance(node, DictConfig) and len(node) == 0 and node is not config
    return True


def model_facts(path: str) -> dict[str, Any]:
    """`config.json` of a local model folder, or {} for a hub name."""
    file = Path(path) / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def tokens_per_pass(cfg: DictConfig) -> int:
    """Tokens of one forward pass on one device, before padding to the longest of the pass (none with flash-attn)."""
    longest = cfg.max_prompt_tokens + cfg.max_new_tokens
    if cfg.engine.max_tokens_per_gpu is not None:
        if cfg.engine.max_tokens_per_gpu < longest:
            raise ConfigError(
                f"engine.max_tokens_per_gpu={cfg.engine.max_tokens_per_gpu} is less than one sequence: "
                f"max_prompt_tokens + max_new_tokens = {longest}"
            )
        return int(cfg.engine.max_tokens_per_gpu)
    if cfg.engine.device != "cpu":
        return max(2 * longest, 16384)
    vocabulary = model_facts(package_path(cfg.model.path)).get("vocab_size", 32000)
    return int(max(longest, min(16384, LOGITS_BUDGET / vocabulary)))


def attention(cfg: DictConfig) -> str:
    """flash_attention_2 where it can run, else sdpa."""
    if cfg.engine.attention != "auto":
        return str(cfg.engine.attention)
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def implied(cfg: DictConfig, method: Method, data: Mapping[str, str], run_folder: Path) -> dict[str, Any]:
    """Everything of verl's configuration that our settings decide, as dotted paths."""
    return {
        **_data_settings(cfg, data),
        **_model_settings(cfg),
        **_actor_settings(cfg, method),
        **_rollout_settings(cfg, method),
        **_trainer_settings(cfg, run_folder),
    }


def _data_settings(cfg: DictConfig, data: Mapping[str, str]) -> dict[str, Any]:
    return {
        "data.train_files": data["train"],
        "data.val_files": data["val"],
        "data.custom_cls.path": "pkg://reasonrl.engine.verl.dataset",
        "data.custom_cls.name": "ProblemDataset",
        "data.train_batch_size": cfg.batch,
        "data.max_prompt_length": cfg.max_prompt_tokens,
        "data.max_response_length": cfg.max_new_tokens,
        "data.shuffle": False,  # runs.order.DataOrder decides
        "data.seed": cfg.seed,
        "data.dataloader_num_workers": 0,
        "data.trust_remote_code": cfg.model.trust_remote_code,
    }


def _model_settings(cfg: DictConfig) -> dict[str, Any]:
    kind = attention(cfg)
    return {
        f"{MODEL}.path": package_path(cfg.model.path),
        f"{MODEL}.trust_remote_code": cfg.model.trust_remote_code,
        f"{MODEL}.enable_gradient_checkpointing": cfg.model.gradient_checkpointing,
        f"{MODEL}.lora_rank": cfg.model.lora_rank,
        f"{MODEL}.lora_alpha": cfg.model.lora_alpha,
        f"{MODEL}.external_lib": "reasonrl.engine.verl.worker_setup",
        f"{MODEL}.override_config": {"attn_implementation": kind},
        f"{MODEL}.use_remove_padding": kind == "flash_attention_2",  # packing needs variable-length attention
    }


def _actor_settings(cfg: DictConfig, method: Method) -> dict[str, Any]:
    loss, cpu = method.loss, cfg.engine.device == "cpu"
    settings: dict[str, Any] = {
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.ppo_mini_batch_size": cfg.mini_batch or cfg.batch,
        f"{ACTOR}.ppo_epochs": cfg.epochs,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": tokens_per_pass(cfg),
        f"{ACTOR}.optim.lr": cfg.lr,
        f"{ACTOR}.optim.lr_warmup_steps": cfg.lr_warmup_steps,
        f"{ACTOR}.optim.weight_decay": cfg.weight_decay,
        f"{ACTOR}.optim.clip_grad": cfg.grad_clip,
        f"{ACTOR}.grad_clip": cfg.grad_clip,
        f"{ACTOR}.data_loader_seed": cfg.seed,
        f"{ACTOR}.fsdp_config.seed": cfg.seed,
        f"{ACTOR}.loss_agg_mode": loss.aggregation,
        f"{ACTOR}.loss_scale_factor": _scale(cfg, method),
        f"{ACTOR}.clip_ratio": loss.clip_low,
        f"{ACTOR}.clip_ratio_low": loss.clip_low,
        f"{ACTOR}.clip_ratio_high": loss.clip_high,
        # verl always applies the dual clip; exp(20), its clamp of the log-ratio, never reaches 1e9
        f"{ACTOR}.clip_ratio_c": 1e9 if loss.dual_clip is None else loss.dual_clip,
        f"{ACTOR}.use_kl_loss": loss.kl > 0,
        f"{ACTOR}.kl_loss_coef": loss.kl,
        f"{ACTOR}.entropy_coeff": loss.entropy,
        f"{ACTOR}.use_torch_compile": not cpu,
    }
    for role in (f"{ACTOR}.fsdp_config", "actor_rollout_ref.ref.fsdp_config"):
        settings[f"{role}.param_offload"] = cfg.engine.offload
        settings[f"{role}.optimizer_offload"] = cfg.engine.offload
        settings[f"{role}.use_torch_compile"] = not cpu
        if cpu:  # the rollout is float32 too: sampled and trained probabilities then agree to rounding
            settings[f"{role}.mixed_precision"] = {
                "param_dtype": "fp32",
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            }
            settings[f"{role}.dtype"] = "float32"
    return settings


def _scale(cfg: DictConfig, method: Method) -> int | None:
    """Divisor of `seq-mean-token-sum-norm`; left to itself verl would divide by the width of each padded micro-batch."""
    if method.loss.aggregation == "seq-mean-token-sum-norm":
        return method.loss.scale or int(cfg.max_new_tokens)
    return method.loss.scale


def _rollout_settings(cfg: DictConfig, method: Method) -> dict[str, Any]:
    cpu = cfg.engine.device == "cpu"
    longest = cfg.max_prompt_tokens + cfg.max_new_tokens
    return {
        f"{ROLLOUT}.name": cfg.engine.rollout,
        f"{ROLLOUT}.n": method.prefix.n,
        f"{ROLLOUT}.temperature": cfg.temperature,
        f"{ROLLOUT}.top_p": cfg.top_p,
        f"{ROLLOUT}.top_k": cfg.top_k,
        f"{ROLLOUT}.dtype": "float32" if cpu else "bfloat16",
        f"{ROLLOUT}.load_format": "auto" if cpu else "dummy",
        f"{ROLLOUT}.tensor_model_parallel_size": cfg.engine.tensor_parallel,
        f"{ROLLOUT}.gpu_memory_utilization": cfg.engine.rollout_memory,
        f"{ROLLOUT}.enforce_eager": cfg.engine.eager,
        f"{ROLLOUT}.max_num_seqs": cfg.engine.max_sequences,
        f"{ROLLOUT}.max_model_len": longest,
        f"{ROLLOUT}.max_num_batched_tokens": max(8192, longest),
        f"{ROLLOUT}.free_cache_engine": not cpu,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{ROLLOUT}.seed": cfg.seed,
        f"{ROLLOUT}.val_kwargs.n": cfg.val_n,
        f"{ROLLOUT}.val_kwargs.temperature": cfg.val_temperature,
        f"{ROLLOUT}.val_kwargs.top_p": cfg.val_top_p,
        f"{ROLLOUT}.val_kwargs.do_sample": cfg.val_temperature > 0,
        f"{ROLLOUT}.agent.num_workers": 1 if cfg.deterministic else cfg.engine.agent_workers,
    }


def _trainer_settings(cfg: DictConfig, run_folder: Path) -> dict[str, Any]:
    cpu = cfg.engine.device == "cpu"
    return {
        "algorithm.adv_estimator": "grpo",  # only says "no critic": advantages come from assign_credit
        "reward.num_workers": 1,  # idle: our agent loop verifies, but verl's trainer insists on one
        "trainer.device": cfg.engine.device,
        "trainer.n_gpus_per_node": cfg.gpus,
        "trainer.nnodes": cfg.nodes,
        "trainer.project_name": cfg.logger.project,
        "trainer.experiment_name": run_folder.name,
        "trainer.logger": list(cfg.logger.backends),
        "trainer.total_training_steps": cfg.steps,
        "trainer.total_epochs": 1_000_000_000,
        "trainer.test_freq": cfg.validate_every or cfg.steps,
        "trainer.save_freq": cfg.save_every or cfg.steps,
        "trainer.default_local_dir": str(run_folder / "checkpoints"),
        "trainer.resume_mode": "disable",
        "trainer.v1.trainer_mode": "reasonrl",
        "transfer_queue.enable": True,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1 if cpu else 4,
    }


def verl_config(
    cfg: DictConfig,
    method: Method,
    *,
    data: Mapping[str, str],
    run_folder: Path,
    own: Mapping[str, Any],
    resume_from: Path | None = None,
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
) -> DictConfig:
    """The complete configuration for verl; `own` becomes its top-level node `reasonrl`. Raises ConfigError.

    prompts: of sources that have one of their own, each as the `prompt` group has it.
    """
    config = verl_defaults()
    overrides = check_overrides(OmegaConf.to_container(cfg.verl, resolve=True), config)  # type: ignore[arg-type]
    refuse_conflicts(cfg, method, overrides)
    OmegaConf.set_struct(config, False)
    settings = implied(cfg, method, data, run_folder) | overrides
    if resume_from is not None:
        settings |= {
            "trainer.resume_mode": "resume_path",
            "trainer.resume_from_path": str(resume_from),
            "trainer.val_before_train": False,
        }
    for path, value in settings.items():
        OmegaConf.update(config, path, value, merge=False, force_add=True)
    with open_dict(config):
        config.reasonrl = dict(own)
        config.data.reasonrl = {
            "prompt": OmegaConf.to_container(cfg.prompt, resolve=True),
            "overlong": cfg.data.get("overlong", "drop"),
            "prompts": {source: dict(prompt) for source, prompt in (prompts or {}).items()},
        }
    return config


def refuse_conflicts(cfg: DictConfig, method: Method, overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError for combinations that would run and mean something else than they say."""
    reads = ("algorithm.rollout_correction.rollout_", "algorithm.rollout_correction.bypass_mode")
    correction = [p for p in overrides if p.startswith(reads) and overrides[p]]
    if correction and trains_prefixes(method):
        raise ConfigError(
            f"verl.{correction[0]} weighs tokens by their rollout log-probabilities, which the prefixes that method "
            f"{method.name} trains do not have: leave it out, or take the prefixes out of the policy loss"
        )
    if cfg.dynamic_sampling.enable and {"old_logprobs", "entropy"} & set(method.needs):
        raise ConfigError(
            f"method {method.name} reads log-probabilities recomputed before the update, which groups dropped by "
            "dynamic sampling do not have: set dynamic_sampling.enable=false"
        )
    if cfg.dynamic_sampling.enable and method.prefix.n == 1:
        raise ConfigError("dynamic_sampling.enable=true drops every group of one rollout: set method.n to 2 or more")
