"""`reasonrl tune`: supervised training on gold solutions, in one of five kinds. The baselines of arXiv 2502.15771, OpTune.

prepare   settings, data and the model's files are checked before it is loaded
fit       Hugging Face's Trainer (trainer.py) from the last checkpoint on
publish   a folder that loads as a model (publish.py)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.eval.tune.targets import Targets

HELP = """\
reasonrl tune kind=full|lora|ia3|layer_norm|adapter model=... data=... [key=value ...]

Trains a model on gold solutions: question, solution, answer in the form that the prompt asks for, end token. The folder it
makes is a model like any other, for reasonrl tts model=<folder> and reasonrl eval model=<folder>.

  reasonrl tune kind=lora model=tiny data=arithmetic epochs=1
  reasonrl tts method=best_of_n model=tuned/tiny-arithmetic-lora task=arithmetic

Kinds (learning rate; numbers trained of Llama-3.1-8B)
  full        all weights (1e-5; 8.03e9)
  lora        low rank on q_proj and v_proj of the upper quarter of layers (2e-5; 1,703,936)
              rank=16 alpha=16 dropout=0.05 layers=24,25,...
  ia3         factors on k_proj, v_proj, down_proj (5e-5; 524,288)
  layer_norm  gains of all norms (4e-4; 266,240)
  adapter     bottlenecks after attention and feed-forward of every layer (1e-4; 134,496,256)    reduction=16
              They cannot be merged: backend=transformers only. All others are merged into plain weights

What is learned
  data=               gsm8k, math, arithmetic, or any data with solutions; data.<knob>= as in training
  prompt= verify=     how the question is put, and who must accept the target; solutions it refuses are left out
  ending=             form of the answer, with {answer}; default: what verify and prompt ask for, \\boxed{{answer}}
  max_tokens=         of prompt and solution; longer ones are left out. Default: 1024 for full, else 4096

How
  epochs=1            the paper's: 3 MATH, 10 GSM8K, 100 MBPP      steps=  optimiser steps instead
  batch=20            solutions of an optimiser step      micro_batch=1  of a forward pass; batch is a multiple of it
  lr=                 default: the kind's      weight_decay=0 warmup=0 grad_clip=1 beta1=0.9 beta2=0.999    cosine to 0
  weights=float32     held in training; a GPU computes in bfloat16. bfloat16: half the memory, small steps are rounded away
  dtype=auto          of the folder: float32 from a CPU, bfloat16 from a GPU
  attention=sdpa      or eager, flash_attention_2      gradient_checkpointing=false
  device=auto seed=42 save_every=
  out=                default: tuned/MODEL-DATA-KIND

Stopped, it continues with the same command. Several GPUs: torchrun --nproc-per-node=4 -m reasonrl tune ...; each holds the
whole model.
"""
COMMAND = "reasonrl tune"
FILE = "tune.json"
FOLDER = Path("tuned")
KINDS = ("full", "lora", "ia3", "layer_norm", "adapter")
ELSEWHERE = {  # keys of a run that would not do here what they say
    "prefixes": "is what a run is given; here solutions are learned",
    "prm": "is what a run is given; here solutions are learned",
    "name": "is for run folders; the folder is out=",
    "resume": "is for run folders; the same command continues",
    "dry_run": "is for runs",
    "method": "is for runs; here it is kind=",
}


@dataclass(frozen=True)
class TuneKnobs:
    """See `HELP`."""

    kind: str
    out: str | None = None
    ending: str | None = None
    max_tokens: int | None = None
    epochs: int = 1
    steps: int | None = None
    batch: int = 20
    micro_batch: int = 1
    lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.0
    grad_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.05
    layers: tuple[int, ...] | None = None
    reduction: int = 16
    weights: str = "float32"
    dtype: str = "auto"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    device: str = "auto"
    save_every: int | None = None
    seed: int = 42
    min_lr = 0.0  # where the cosine ends; no knob

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        from reasonrl.eval.tune.kinds import LR

        for name, choices in (
            ("kind", KINDS),
            ("attention", ("sdpa", "eager", "flash_attention_2")),
            ("dtype", ("auto", "float32", "bfloat16")),
            ("weights", ("float32", "bfloat16")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in (
            "epochs",
            "steps",
            "batch",
            "micro_batch",
            "max_tokens",
            "rank",
            "alpha",
            "reduction",
            "save_every",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("seed", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        object.__setattr__(self, "lr", LR[self.kind] if self.lr is None else self.lr)
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be greater than 0, got {value}")
        for name in ("warmup", "dropout", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        require(
            self.batch % self.micro_batch == 0,
            f"batch={self.batch} must be a multiple of micro_batch={self.micro_batch}",
        )
        require(
            self.ending is None or "{answer}" in self.ending,
            f"ending={self.ending!r} must hold {{answer}}, which it states",
        )
        own = {"lora": ("rank", "alpha", "dropout", "layers"), "adapter": ("reduction",)}
        defaults = {f.name: f.default for f in fields(self)}
        for kind, names in own.items():
            given = [name for name in names if self.kind != kind and getattr(self, name) != defaults[name]]
            require(not given, f"{', '.join(given)}: for kind={kind}, and this is kind={self.kind}")

    @property
    def longest(self) -> int:
        """Tokens of prompt and solution, at most."""
        return self.max_tokens or (1024 if self.kind == "full" else 4096)

    def settings(self) -> dict[str, Any]:
        """What the result depends on, but for model and data, which go by their content."""
        return {**{k: v for k, v in asdict(self).items() if k not in ("out", "save_every")}, "max_tokens": self.longest}


@dataclass(frozen=True)
class Job:
    """A training that has been checked and can start."""

    knobs: TuneKnobs
    name: str  # of the model
    path: str
    trust_remote_code: bool
    tokenizer: Any
    targets: Targets
    settings: dict[str, Any]
    data: dict[str, Any]
    out: Path

    @property
    def work(self) -> Path:
        """Where it is until it is complete."""
        return self.out.with_name(f".{self.out.name}.training")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.sampled.arguments import composed_run, parse, wants_help

    if wants_help(args):
        print(HELP)
        return 0
    from rich.console import Console

    own, rest = parse(args, command=COMMAND, own=[f.name for f in fields(TuneKnobs)], elsewhere=ELSEWHERE)
    knobs = read_knobs(TuneKnobs, [f"{key}={value}" for key, value in own.items()], COMMAND)
    main = os.environ.get("RANK", "0") == "0"
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False, quiet=not main)
    tune(composed_run(rest), knobs, console=console)
    return 0


def tune(cfg: DictConfig, knobs: TuneKnobs, *, console: Console | None = None) -> Path:
    """Train, continuing what is there, and publish the folder in one step; returns it.

    cfg: a composed run, of which model, data, prompt and verify are read. Raises ConfigError for settings, data or a model
    that cannot work, RunFailed for gradients that are no numbers, KeyboardInterrupt saying how to continue.
    """
    from rich.console import Console

    from reasonrl.eval.prm.train import claim, holding, last_checkpoint

    console = console or Console(quiet=True)
    job = prepare(cfg, knobs, console)
    if job.out.exists():
        file = job.out / FILE
        have = json.loads(file.read_text()).get("settings") if file.is_file() else None
        require(
            have == job.settings,
            f"{job.out} exists and was not made by these settings: give another out=, or remove it",
        )
        console.print(f"{job.out} is complete already")
        return job.out
    if os.environ.get("RANK", "0") == "0":
        claim(job.work, job.settings)
    try:
        with holding(job.work):
            fit(job, console)
    except KeyboardInterrupt as stop:
        kept = last_checkpoint(job.work)
        done = f"step {kept.name.rpartition('-')[2]} is kept" if kept else "nothing is kept yet"
        raise KeyboardInterrupt(f"{done} in {job.work}. Continue with the same command") from stop
    return job.out


def prepare(cfg: DictConfig, knobs: TuneKnobs, console: Console) -> Job:
    """Everything that can be wrong with settings, model and data. Raises ConfigError."""
    from reasonrl.config import ConfigError, package_path, typed
    from reasonrl.data.prefixes import prompt_facts
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.launch import load_tokenizer
    from reasonrl.eval.prm.train import base_fingerprint
    from reasonrl.eval.tune.kinds import check_sizes
    from reasonrl.eval.tune.targets import make_targets
    from reasonrl.models import check_model, context, facts
    from reasonrl.sampled.problems import load_split
    from reasonrl.verify.pool import verify_from_config

    cfg = typed(cfg)
    cfg.max_new_tokens = 1  # nothing is sampled, so it need not fit into the model's context
    check_model(cfg)
    path = package_path(cfg.model.path)
    base = base_fingerprint(path)
    tokenizer = load_tokenizer(cfg)
    try:
        loaded, sha256 = load_split(cfg, tokenizer, "train")
        prompt, verify = prompt_from_config(cfg.prompt), verify_from_config(cfg.verify)
    except ValueError as error:  # DataError and friends say what, where and the way out
        raise ConfigError(str(error)) from error
    known = facts(folder) if (folder := model_folder(path)) else {}
    check_sizes(known, knobs)
    limit = context(known)
    longest = min(knobs.longest, limit or sys.maxsize)
    targets = make_targets(
        loaded, prompt, tokenizer, verify, ending=knobs.ending, max_tokens=longest, source=f"data={cfg.data.name}"
    )
    name = f"{cfg.model.name}-{cfg.data.name}-{knobs.kind}".replace("/", "-")
    out = Path(knobs.out).expanduser() if knobs.out else FOLDER / name
    how = {f"verify.{key}": value for key, value in verify.comparable.items()}
    settings = {
        **knobs.settings(),
        "base": base,
        "problems": sha256,
        "max_tokens": longest,
        **prompt_facts(prompt, tokenizer),
        **how,
    }
    settings = dict(json.loads(json.dumps(settings)))
    data = {
        "name": cfg.data.name,
        "sha256": sha256,
        "solutions": len(targets.train),
        "learned_tokens": targets.tokens,
        "dropped": dict(targets.dropped),
    }
    left = "".join(f"; {count} left out: {reason}" for reason, count in targets.dropped.items())
    console.print(
        f"{len(targets.train)} solutions of data={cfg.data.name}, {targets.tokens / len(targets.train):.0f} tokens each to "
        f"learn{left}"
    )
    return Job(
        knobs, cfg.model.name, path, cfg.model.trust_remote_code, tokenizer, targets, settings, data, out.absolute()
    )


def model_folder(path: str) -> Path | None:
    """Where a model's files are here."""
    from reasonrl.models import cached_snapshot

    return Path(path) if Path(path).is_dir() else cached_snapshot(path)


def fit(job: Job, console: Console) -> None:
    """Train from the last checkpoint on, and publish. Raises ConfigError, RunFailed."""
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    from reasonrl.config import ConfigError
    from reasonrl.engine.bottleneck import load_model
    from reasonrl.engine.prm.transformers_scorer import chosen_device
    from reasonrl.eval.prm.train import last_checkpoint
    from reasonrl.eval.tune.kinds import tuned
    from reasonrl.eval.tune.publish import publish
    from reasonrl.eval.tune.trainer import make_trainer

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    knobs = job.knobs
    device = chosen_device(knobs.device)
    require(device != "cpu" or knobs.weights == "float32", "weights=bfloat16 is for a GPU: a CPU trains in float32")
    set_seed(knobs.seed)
    try:
        model = load_model(
            job.path,
            dtype=getattr(torch, knobs.weights),
            attn_implementation=knobs.attention,
            use_safetensors=True,
            trust_remote_code=job.trust_remote_code,
        )
    except Exception as error:  # the libraries behind it raise a dozen kinds
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot load model {job.path}: {type(error).__name__}: {line}") from error
    made = tuned(model, knobs)
    console.print(f"kind={knobs.kind}: {made.trainable:,} of {model.num_parameters():,} numbers are trained")
    trainer = make_trainer(job, made, device, console)
    trainer.train(resume_from_checkpoint=str(kept) if (kept := last_checkpoint(job.work)) else None)
    if trainer.args.process_index == 0:
        publish(job, made, trainer.state.log_history, device, console)
        shutil.rmtree(job.work, ignore_errors=True)
