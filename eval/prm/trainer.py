"""Hugging Face's Trainer with the loss, order and progress of a process reward model."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from reasonrl.config import RunFailed
from reasonrl.engine.attention import keep_from_cudnn
from reasonrl.engine.prm.transformers_scorer import BATCH_TOKENS, TransformersScorer
from reasonrl.eval.prm.held_out import judged, told_held_out
from reasonrl.eval.prm.knobs import require
from reasonrl.eval.prm.losses import collated, step_losses, tags_logits
from reasonrl.runs.console import clock

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.prm.examples import Examples
    from reasonrl.eval.prm.train import TrainKnobs

TOLD_SECONDS = 10.0


class Order:
    """Indices of an epoch: shuffled, cut into optimiser batches, each sorted by length so that micro-batches are even.

    The same for one seed and epoch, so that a continued training sees what it has not seen.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = np.asarray(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, 2, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            yield from some[np.argsort(-self.lengths[some], kind="stable")].tolist()


class Progress(TrainerCallback):
    """A line every few seconds: step, loss and accuracy at the tags since the last one, time left."""

    def __init__(
        self, knobs: TrainKnobs, examples: Examples, total: int, scorer: TransformersScorer, console: Console
    ) -> None:
        self.knobs, self.examples, self.total, self.scorer, self.console = knobs, examples, total, scorer, console
        self.main = int(os.environ.get("RANK", "0")) == 0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.history: list[dict[str, float]] = []
        self.started = self.told = time.monotonic()
        self.first = 0

    def count(self, losses: torch.Tensor, right: torch.Tensor) -> None:
        made = [losses.detach().sum(), right.sum(), torch.tensor(losses.numel())]
        self.sums += torch.stack([value.to("cpu", torch.float64) for value in made])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.started, self.told = state.global_step, time.monotonic(), time.monotonic()
        if self.first:
            self.console.print(f"continuing after step {self.first} of {self.total}")
        self.held_out(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, now = state.global_step, time.monotonic()
        if step % (self.knobs.eval_every or max(self.total // 10, 1)) == 0 and step < self.total:
            self.held_out(step)
        if now - self.told < TOLD_SECONDS and step < self.total:
            return
        self.told = now
        loss, right, tags = self.sums.tolist()
        self.sums.zero_()
        left = (now - self.started) / (step - self.first) * (self.total - step)
        self.console.print(
            f"step {step:>{len(str(self.total))}}/{self.total}  loss {loss / max(tags, 1):.4f}  accuracy at tags "
            f"{right / max(tags, 1):6.1%}  left {clock(left)}"
        )

    def held_out(self, step: int) -> None:
        if self.examples.held_out and self.main:
            self.history.append({"step": step, **judged(self.scorer, self.examples, self.knobs.labels)})
            self.console.print(told_held_out(self.history[-1]))


class OrderedTrainer(Trainer):
    """Trainer with our order, that takes no step on gradients that are no numbers."""

    def __init__(self, knobs: Any, train: Sequence[Any], **given: Any) -> None:
        """knobs: batch and seed. train: examples with their `ids`."""
        self.knobs, self.train_examples = knobs, train
        super().__init__(train_dataset=train, **given)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = True  # the loss wants the count of what is learned in the whole optimiser step
        self.remove_callback(PrinterCallback)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Called before every update. Raises RunFailed for gradients that would destroy the weights."""
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise RunFailed(
                f"the gradients of step {self.state.global_step + 1} are not finite, so the step was not taken. What was "
                f"saved before is in {self.args.output_dir}. Another attention= or a smaller lr= may help, in another out="
            )
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Order([example.ids.size for example in self.train_examples], self.knobs.batch, self.knobs.seed)


class StepTrainer(OrderedTrainer):
    """Trainer with the loss at the tags."""

    def __init__(self, knobs: TrainKnobs, examples: Examples, progress: Progress, **given: Any) -> None:
        self.examples, self.progress = examples, progress
        collate = lambda some: collated(some, knobs.packing)  # noqa: E731
        super().__init__(knobs, examples.train, data_collator=collate, callbacks=[progress], **given)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed over the tags of a micro-batch, divided by those of the optimiser step."""
        card = self.examples.card
        logits = tags_logits(model, inputs)
        targets = inputs["targets"].to(logits.dtype)
        losses = step_losses(logits, targets, card.good, card.bad, self.knobs.loss)
        right = (logits[:, card.good] > logits[:, card.bad]) == (targets >= 0.5)
        self.progress.count(losses, right)
        if num_items_in_batch is None:
            return losses.mean()
        # gradients are averaged over processes, while the count is of all of them
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes


def arguments(knobs: Any, total: int, processes: int, work: Path, device: str) -> TrainingArguments:
    """Trainer's settings for `total` optimiser steps. knobs: `TrainKnobs`, or others of the same names."""
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=knobs.micro_batch,
        gradient_accumulation_steps=knobs.batch // (knobs.micro_batch * processes),
        num_train_epochs=knobs.epochs,
        max_steps=knobs.steps or -1,
        learning_rate=knobs.lr,
        optim="adamw_torch",
        adam_beta1=knobs.beta1,
        adam_beta2=knobs.beta2,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.grad_clip,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": knobs.min_lr},
        warmup_steps=math.ceil(knobs.warmup * total),
        bf16=device != "cpu",  # autocast; the weights stay float32, or steps of 1e-6 would be rounded away
        use_cpu=device == "cpu",
        gradient_checkpointing=knobs.gradient_checkpointing,
        save_strategy="steps",
        save_steps=knobs.save_every or max(total // 10, 1),
        save_total_limit=2,
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        seed=knobs.seed,
    )


def make_trainer(
    knobs: TrainKnobs, examples: Examples, model: Any, work: Path, device: str, console: Console
) -> StepTrainer:
    """The trainer of a model, on its device. Raises ConfigError for sizes that do not divide or a model that cannot."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    require(
        knobs.batch % (knobs.micro_batch * processes) == 0,
        f"batch={knobs.batch} must be a multiple of micro_batch={knobs.micro_batch} times {processes} processes",
    )
    inner = model.get_base_model() if knobs.lora_rank else model
    require(
        "logits_to_keep" in inspect.signature(inner.forward).parameters,
        f"model {knobs.model} cannot give the logits of single positions (no logits_to_keep): choose another architecture",
    )
    total = knobs.steps or knobs.epochs * math.ceil(len(examples.train) / knobs.batch)
    args = arguments(knobs, total, processes, work, device)
    if args.n_gpu > 1:
        args._n_gpu = 1  # DataParallel would tear rows and targets apart
        console.print(
            f"1 of {torch.cuda.device_count()} GPUs: to use all, torchrun --nproc-per-node=... -m reasonrl prm train"
        )
    inner.to(args.device)
    batch_tokens = BATCH_TOKENS["cpu" if device == "cpu" else "cuda"]
    keep_from_cudnn()
    scorer = TransformersScorer(
        inner, examples.layout, "in training", batch_tokens=batch_tokens, autocast=device != "cpu"
    )
    progress = Progress(knobs, examples, total, scorer, console)
    return StepTrainer(knobs, examples, progress, model=model, args=args)
