"""Every knob reasonrl owns, typed and documented; an unknown or impossible value is an error before anything starts.

Imports neither torch nor verl nor ray: `--help`, `--cfg` and `--dry-run` stay fast. What verl itself can be told is
not listed here: `verl.<path>=value` is checked against verl's own configuration when training is prepared.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import pkgutil
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig, OmegaConf, ValueNode
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from reasonrl.core import Method


class ConfigError(ValueError):
    """A setting that cannot work. The message says what, where, and the way out."""


class RunFailed(RuntimeError):
    """A run that cannot go on. The message says why; a traceback would add nothing."""


@dataclass
class ModelConfig:
    """A causal language model in Hugging Face format.

    path: hub name, local folder, or `pkg://package/folder` inside an installed package.
    lora_rank: 0 trains all weights.
    """

    name: str = MISSING
    path: str = MISSING
    trust_remote_code: bool = False
    gradient_checkpointing: bool = True
    lora_rank: int = 0
    lora_alpha: int = 16


@dataclass
class EngineConfig:
    """Where the run's processes live.

    name: cpu (transformers rollout, gloo), gpu (vLLM), cluster (gpu on the Ray cluster at `ray_address`).
    max_tokens_per_gpu: tokens of one forward pass; null picks a number that fits the vocabulary. Without flash-attn
    a pass is padded to its longest sequence: lower it when memory runs out.
    attention: auto = flash_attention_2 where installed, else sdpa. offload: parameters and optimizer rest in host memory.
    rollout_memory: share of GPU memory that vLLM may take. eager: no CUDA graphs (faster start, slower decoding).
    tensor_parallel: GPUs of one rollout replica. agent_workers: processes that run the rounds of the problems.
    max_sequences: requests generated together by one rollout replica.
    threads: torch threads of each process on the CPU; null = all cores, at most 8.
    """

    name: str = MISSING
    device: str = "cuda"
    rollout: str = "vllm"
    attention: str = "auto"
    offload: bool = False
    rollout_memory: float = 0.6
    eager: bool = False
    tensor_parallel: int = 1
    agent_workers: int = 4
    max_sequences: int = 256
    threads: int | None = None
    max_tokens_per_gpu: int | None = None


@dataclass
class LoggerConfig:
    """Experiment trackers beside the run folder; names are verl's: wandb, tensorboard, mlflow."""

    name: str = "none"
    backends: list[str] = field(default_factory=list)
    project: str = "reasonrl"


@dataclass
class DynamicSampling:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): drop groups whose verdicts are all equal, sample anew.

    max_refills: how many times a step may sample replacements; then it trains on what it has and counts it.
    """

    enable: bool = False
    max_refills: int = 3


@dataclass
class TrainConfig:
    """One training run.

    name: run folder under `out`; null makes one from method, model, data, seed and the time.
    batch: problems a step. mini_batch: problems an optimiser update; null = batch (one update a step, on-policy).
    epochs: passes over the rollouts of one step.
    max_prompt_tokens, max_new_tokens: longer prompts are dropped and counted (`data.overlong`), longer answers are cut.
    min_new_tokens: a prefix must leave at least this much of `max_new_tokens`.
    prefixes: a store made by `reasonrl prefixes`, for a method whose rollouts start with stored openings.
    prm: a process reward model, folder or address, for a method that asks one during training.
    temperature, top_p, top_k: sampling of training rollouts. val_n, val_temperature, val_top_p: of validation
    (temperature 0 = greedy). val_tasks: benchmarks to validate on, with their own prompts and graders, instead of the
    data's own validation problems; val_data_dir: a folder with their files; val_limit: the first questions of each.
    validate_every, save_every: steps; 0 = after the last one only. Validation also runs before the first.
    keep_checkpoints: older ones are deleted.
    gpus: training processes on each of `nodes` nodes. ray_address: an existing cluster (engine=cluster).
    watchdog_minutes: name the problems a step waits for after this long; error after four times this long.
    deterministic: CPU only; two runs of one seed give the same metrics, at the price of waiting for whole waves.
    record: write rollouts/step_*.parquet.
    """

    method: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    prompt: Any = MISSING
    verify: Any = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    dynamic_sampling: DynamicSampling = field(default_factory=DynamicSampling)
    name: str | None = None
    out: str = "runs"
    seed: int = 1
    steps: int = 100
    batch: int = 128
    mini_batch: int | None = None
    epochs: int = 1
    lr: float = 1e-6
    lr_warmup_steps: int = 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 4096
    min_new_tokens: int = 1
    prefixes: str | None = None
    prm: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    validate_every: int = 20
    val_n: int = 1
    val_temperature: float = 0.0
    val_top_p: float = 1.0
    val_tasks: list[str] = field(default_factory=list)
    val_data_dir: str | None = None
    val_limit: int | None = None
    save_every: int = 20
    keep_checkpoints: int = 2
    gpus: int = 1
    nodes: int = 1
    ray_address: str | None = None
    watchdog_minutes: float = 15.0
    deterministic: bool = False
    record: bool = True
    dry_run: bool = False
    resume: str | None = None
    verl: dict[str, Any] = field(default_factory=dict)


POSITIVE = [
    "steps",
    "batch",
    "epochs",
    "max_prompt_tokens",
    "max_new_tokens",
    "min_new_tokens",
    "val_n",
    "val_limit",
    "keep_checkpoints",
    "gpus",
    "nodes",
    "model.lora_alpha",
    "engine.tensor_parallel",
    "engine.agent_workers",
    "engine.max_sequences",
    "engine.threads",
    "engine.max_tokens_per_gpu",
]
NOT_NEGATIVE = [
    "seed",
    "lr",
    "lr_warmup_steps",
    "weight_decay",
    "temperature",
    "val_temperature",
    "validate_every",
    "save_every",
    "model.lora_rank",
    "dynamic_sampling.max_refills",
]
CHOICES = {
    "engine.name": ("cpu", "gpu", "cluster"),
    "engine.device": ("cpu", "cuda"),
    "engine.rollout": ("reasonrl_cpu", "vllm", "sglang", "trtllm"),
    "engine.attention": ("auto", "sdpa", "eager", "flash_attention_2"),
}


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean a, b?` and the choices, for the end of an error message."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} Choices: {', '.join(choices)}"


def typed(cfg: DictConfig) -> DictConfig:
    """The composed configuration, merged into the schema. Raises ConfigError naming the key."""
    known = {f.name for f in fields(TrainConfig)}
    for key in cfg:
        if key not in known:
            raise ConfigError(f"Unknown key '{key}'{nearest(str(key), known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), cfg)
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "configuration"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}{_siblings(key)}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: set it on the command line")
    check_ranges(merged)
    assert isinstance(merged, DictConfig)
    return merged


def _siblings(key: str) -> str:
    """For an unknown nested key, the names its dataclass has."""
    *parents, leaf = key.split(".")
    node: Any = TrainConfig
    for parent in parents:
        found = [f for f in fields(node) if f.name == parent]
        if not found or not is_dataclass(found[0].default_factory):
            return ""
        node = found[0].default_factory
    names = {f.name for f in fields(node)}
    return "" if leaf in names else nearest(leaf, names)


def _numbers(cfg: DictConfig) -> Iterator[tuple[str, float]]:
    """(dotted key, value) of every number in the parts of the configuration whose types are ours."""
    for node, prefix in ((cfg, ""), *((cfg[name], f"{name}.") for name in ("model", "engine", "dynamic_sampling"))):
        for key in node:
            if isinstance(node._get_node(key), ValueNode) and type(node[key]) in (int, float):
                yield f"{prefix}{key}", node[key]


def check_ranges(cfg: DictConfig) -> None:
    """Raise ConfigError for a value outside its range, naming key, value and range."""
    values = dict(_numbers(cfg))
    for key, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, got {value}")
    for key in POSITIVE:
        if values.get(key, 1) < 1:
            raise ConfigError(f"{key} must be at least 1, got {values[key]}")
    for key in NOT_NEGATIVE:
        if values.get(key, 0) < 0:
            raise ConfigError(f"{key} must not be negative, got {values[key]}")
    for key in ("grad_clip", "watchdog_minutes"):
        if values[key] <= 0:
            raise ConfigError(f"{key} must be greater than 0, got {values[key]}")
    for key in ("top_p", "val_top_p", "engine.rollout_memory"):
        if not 0 < values[key] <= 1:
            raise ConfigError(f"{key} must be in (0, 1], got {values[key]}")
    if cfg.top_k != -1 and cfg.top_k < 1:
        raise ConfigError(f"top_k must be -1 (all tokens) or at least 1, got {cfg.top_k}")
    for key, choices in CHOICES.items():
        if (value := OmegaConf.select(cfg, key)) not in choices:
            raise ConfigError(f"Unknown {key.removesuffix('.name')} '{value}'{nearest(value, choices)}")
    if cfg.temperature == 0:
        raise ConfigError("temperature=0 samples the same answer n times, so no group can teach anything: use e.g. 1.0")
    mini = cfg.batch if cfg.mini_batch is None else cfg.mini_batch
    if mini < 1 or cfg.batch % mini:
        raise ConfigError(f"mini_batch={cfg.mini_batch} must divide batch={cfg.batch}")
    if cfg.min_new_tokens > cfg.max_new_tokens:
        raise ConfigError(f"min_new_tokens={cfg.min_new_tokens} exceeds max_new_tokens={cfg.max_new_tokens}")
    if cfg.engine.name == "cluster" and not cfg.ray_address:
        raise ConfigError("engine=cluster needs ray_address=<head node>:6379 (or auto on a node of the cluster)")
    if cfg.deterministic and cfg.engine.name != "cpu":
        raise ConfigError(
            "deterministic=true is kept on engine=cpu only: GPU kernels and vLLM's batching do not promise it. "
            "Leave it out; the data order follows the seed anyway, and resuming restores ledger and weights"
        )
    if cfg.deterministic and cfg.gpus * cfg.nodes > 1:
        raise ConfigError("deterministic=true needs one training process: set gpus=1 nodes=1")
    if cfg.engine.device == "cpu" and cfg.model.lora_rank > 0:
        raise ConfigError("model.lora_rank needs engine=gpu: the CPU rollout takes full weights only")
    if cfg.engine.device == "cpu" and cfg.engine.tensor_parallel != 1:
        raise ConfigError("engine.tensor_parallel must be 1 on the CPU")


def method_names() -> list[str]:
    """Names of the built-in methods, from the files in `methods/`."""
    package = importlib.import_module("reasonrl.methods")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def make_method(name: str, **knobs: Any) -> Method:
    """A built-in method with its paper's defaults, changed by `knobs`.

    Raises ConfigError for an unknown method or knob (with the nearest names) or a value out of range.
    """
    if name not in method_names():
        raise ConfigError(f"Unknown method '{name}'{nearest(name, method_names())}")
    return call_factory(f"reasonrl.methods.{name}.build", knobs)


def factory_at(path: str) -> Any:
    """The factory at `package.module.name` or `package.module:name`. Raises ConfigError naming the part that is missing."""
    from reasonrl.core import load_factory

    try:
        return load_factory(path)
    except ValueError as error:
        lost = "cannot import" in str(error)
        hint = ". Is its folder on PYTHONPATH, or the current folder?" if lost else ""
        raise ConfigError(f"{error}{hint}") from error
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise ConfigError(
            f"importing {path.rpartition(':' if ':' in path else '.')[0]} failed: {told(error)}"
        ) from error


def told(error: BaseException) -> str:
    """An error of somebody else's code in one line: kind, message, and the place it was raised at."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
    message = (str(error.msg if isinstance(error, SyntaxError) else error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {message} ({where})"


def call_factory(path: str, knobs: dict[str, Any]) -> Method:
    """Call a method factory with checked knobs. Raises ConfigError."""
    from reasonrl.core import make

    factory = factory_at(path)
    try:
        return make(factory, knobs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # likewise
        raise ConfigError(f"{path}: {told(error)}") from error


def build_node(node: Any) -> Any:
    """Turn a `_target_` mapping (a part chosen on the command line) into its object; other values pass through."""
    if isinstance(node, dict) and "_target_" in node:
        knobs = {k: build_node(v) for k, v in node.items() if k != "_target_"}
        factory = factory_at(node["_target_"])
        try:
            return factory(**knobs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{node['_target_']}: {error}") from error
    return node


def method_from(node: DictConfig) -> Method:
    """The `method` node of a configuration -> Method. Raises ConfigError."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    target = str(values.pop("_target_", ""))
    if not target or target == "???":
        raise ConfigError("method=custom needs method._target_=my_pkg.my_method.build")
    return call_factory(target, {str(k): build_node(v) for k, v in values.items()})


def package_path(path: str) -> str:
    """`pkg://package/folder` -> the folder on disk; any other path unchanged."""
    if not path.startswith("pkg://"):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    package, _, inside = path.removeprefix("pkg://").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{path}: no installed package '{package}'")
    return str(Path(next(iter(spec.submodule_search_locations))) / inside)
