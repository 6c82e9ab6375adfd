"""Hugging Face's Trainer with its own loss (the mean over all learned tokens of an optimiser step), our order and progress."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from reasonrl.engine.attention import keep_from_cudnn
from reasonrl.engine.bottleneck import WEIGHTS, read_adapters, save_adapters
from reasonrl.eval.prm.knobs import require
from reasonrl.eval.prm.trainer import OrderedTrainer, arguments
from reasonrl.eval.tune.targets import collated
from reasonrl.runs.console import clock

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.tune.command import Job
    from reasonrl.eval.tune.kinds import Tuned

LINES = 20  # of a training's losses
TOLD_SECONDS = 10.0


class Progress(TrainerCallback):
    """A line every few seconds: step, loss, time left."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.started = self.told = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.started, self.told = state.global_step, time.monotonic(), time.monotonic()
        if self.first:
            self.console.print(f"continuing after step {self.first} of {self.total}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        step, now = state.global_step, time.monotonic()
        if "loss" not in (logs or {}) or (now - self.told < TOLD_SECONDS and step < self.total):
            return
        self.told = now
        left = (now - self.started) / max(step - self.first, 1) * (self.total - step)
        self.console.print(
            f"step {step:>{len(str(self.total))}}/{self.total}  loss {float(logs['loss']):.4f}  left {clock(left)}"
        )


class TuneTrainer(OrderedTrainer):
    """Checkpoints of adapters without their base: peft's by itself, bottlenecks here."""

    bottlenecks = False

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.bottlenecks:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_adapters(self.model, folder / WEIGHTS)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.bottlenecks:
            read_adapters(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def make_trainer(job: Job, tuned: Tuned, device: str, console: Console) -> TuneTrainer:
    """The trainer of a model, on its device. Raises ConfigError for sizes that do not divide."""
    knobs, train = job.knobs, job.targets.train
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    require(
        knobs.batch % (knobs.micro_batch * processes) == 0,
        f"batch={knobs.batch} must be a multiple of micro_batch={knobs.micro_batch} times {processes} processes",
    )
    total = knobs.steps or knobs.epochs * math.ceil(len(train) / knobs.batch)
    args = arguments(knobs, total, processes, job.work, device)
    args.logging_strategy, args.logging_steps = "steps", max(total // LINES, 1)  # type: ignore[assignment]
    if args.n_gpu > 1:
        args._n_gpu = 1
        console.print(
            f"1 of {torch.cuda.device_count()} GPUs: to use all, torchrun --nproc-per-node=... -m reasonrl tune"
        )
    inner = tuned.model.get_base_model() if tuned.peft else tuned.model
    inner.to(args.device)
    tuned.model.to(args.device)
    if knobs.gradient_checkpointing:
        inner.config.use_cache = False
        inner.enable_input_require_grads()  # frozen embeddings would cut the graph
    keep_from_cudnn()
    trainer = TuneTrainer(
        knobs, train, model=tuned.model, args=args, data_collator=collated, callbacks=[Progress(total, console)]
    )
    trainer.bottlenecks = knobs.kind == "adapter"
    return trainer
