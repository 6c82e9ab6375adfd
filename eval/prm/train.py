"""`reasonrl prm train`: a process reward model from labelled step ends. AdaptiveStep, arXiv 2502.13943, section 3.

    R responses, B rows of a micro-batch, T tokens of a row, P tags of a micro-batch, V vocabulary

A causal language model reads question and response with a tag after each step; the logits *at* a tag (they predict the
token after it) are trained by cross-entropy towards the label: on the *good* and the *bad* token alone (`two_way`, the
paper's binary cross-entropy), or over the whole vocabulary (`full_vocab`, as released). The loss is the mean over the tags
of an optimiser batch, so that long responses weigh more.

Hugging Face's Trainer with our own collator and loss. TRL's PRMTrainer does not fit, and is gone: in 0.24 to 1.12 it
tokenises each step's text by itself and puts a separator's text between, so that a step ending inside a word gets other
tokens than were sampled; it trains a new classification head instead of two words the model has, and takes labels 0 and 1
only. TRL 1.16 has no PRM trainer.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.prm.examples import Examples, Preparation
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from rich.console import Console


HELP = """\
reasonrl prm train model=<name or folder> data=<store of reasonrl prm data> out=<folder> [key=value ...]

Trains a causal language model to say, after each step of a response, whether the right answer is still within reach.

  reasonrl prm train model=tiny data=prm/tiny-arithmetic out=prm/scorer lr=1e-3 batch=32 epochs=3

  loss=two_way          cross-entropy on the two label tokens; full_vocab: over the whole vocabulary, as released
  labels=hard           any of the continuations was right, as in the paper; soft: their share
  input=question        what stands before the response: the bare question, or prompt: what the policy was given
  tag= good= bad=       texts that are one token each. Default: the paper's " ки", " к", " и" where the vocabulary has
                        them, else three tokens <step> <good> <bad> are added
  epochs=1 batch=256 lr=1e-6    the paper's for Mistral-7B (Llama-3.1-8B: lr=2e-6; DeepSeek-Coder-6.7B: batch=32
                        lr=5e-6). A small model wants more: lr=1e-3 batch=32 for model=tiny
  steps=                optimiser steps instead of epochs
  micro_batch=4         responses of one forward pass; batch must be a multiple of it
  max_tokens=8192       longer inputs are cut, their last steps give no loss
  packing=false         true: the responses of a micro-batch in one row, without padding. false: padded, of similar length
  lora_rank=0           train an adapter of this rank instead of all weights (needs peft); it is merged in the end
  lora_alpha=16
  weight_decay=0 warmup=0.03 min_lr=0.1 grad_clip=1 beta1=0.9 beta2=0.95    cosine from lr to min_lr * lr
  val_share=0.05        of the problems, held out; accuracy and AUC are told of them
  eval_every= save_every=    optimiser steps; default: a tenth of the training
  attention=sdpa        or eager, flash_attention_2
  device=auto dtype=auto    cpu or cuda; dtype of the saved weights: auto = float32 on a CPU, bfloat16 on a GPU
  gradient_checkpointing=false seed=1

Stopped, it continues with the same command. Several GPUs: torchrun --nproc-per-node=4 -m reasonrl prm train ...
"""
COMMAND = "reasonrl prm train"
NOISE = 0.02  # of the embeddings' spread, around their mean: three equal new rows would learn the same


@dataclass(frozen=True)
class TrainKnobs:
    """See `HELP`."""

    model: str
    data: str
    out: str
    loss: str = "two_way"
    labels: str = "hard"
    input: str = "question"
    tag: str | None = None
    good: str | None = None
    bad: str | None = None
    epochs: int = 1
    steps: int | None = None
    batch: int = 256
    micro_batch: int = 4
    lr: float = 1e-6
    weight_decay: float = 0.0
    warmup: float = 0.03
    min_lr: float = 0.1
    grad_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    max_tokens: int = 8192
    packing: bool = False
    lora_rank: int = 0
    lora_alpha: int = 16
    val_share: float = 0.05
    eval_every: int | None = None
    save_every: int | None = None
    attention: str = "sdpa"
    device: str = "auto"
    dtype: str = "auto"
    gradient_checkpointing: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name, choices in (
            ("loss", ("two_way", "full_vocab")),
            ("labels", ("hard", "soft")),
            ("input", ("question", "prompt")),
            ("attention", ("sdpa", "eager", "flash_attention_2")),
            ("dtype", ("auto", "float32", "bfloat16")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("epochs", "steps", "batch", "micro_batch", "max_tokens", "lora_alpha", "eval_every", "save_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("seed", "lora_rank", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be greater than 0, got {value}")
        for name in ("warmup", "min_lr", "val_share", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        require(
            self.batch % self.micro_batch == 0,
            f"batch={self.batch} must be a multiple of micro_batch={self.micro_batch}",
        )
        named = [name for name in ("tag", "good", "bad") if getattr(self, name) is not None]
        require(len(named) in (0, 3), f"{' and '.join(named)} alone: give tag, good and bad together, or none of them")

    def settings(self) -> dict[str, Any]:
        """What the result depends on, but for model and data, which go by their content."""
        apart = ("model", "data", "out", "eval_every", "save_every")
        return {name: value for name, value in asdict(self).items() if name not in apart}


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    from rich.console import Console

    main = os.environ.get("RANK", "0") == "0"
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False, quiet=not main)
    train(read_knobs(TrainKnobs, args, COMMAND), console=console)
    return 0


def train(knobs: TrainKnobs, *, console: Console | None = None) -> Path:
    """Train, continuing what is there, and publish the folder `out` in one step; returns it.

    Raises ConfigError for settings, data or a model that cannot work, KeyboardInterrupt saying how to continue.
    """
    from rich.console import Console

    from reasonrl.engine.prm.card import FILE, read_card
    from reasonrl.eval.prm.labelled import read_responses

    console = console or Console(quiet=True)
    out = Path(knobs.out).expanduser().absolute()
    path = model_path(knobs.model)
    rows = read_responses(knobs.data, labels=True)
    settings = {**knobs.settings(), "base": base_fingerprint(path), "responses": rows.sha256}
    if out.exists():
        have = read_card(out).training.get("settings") if (out / FILE).is_file() else None
        require(have == settings, f"{out} exists and was not made by these settings: give another out=, or remove it")
        console.print(f"{out} is complete already")
        return out
    examples = Preparation(knobs, path, rows, console).examples()
    work = out.with_name(f".{out.name}.training")
    if os.environ.get("RANK", "0") == "0":
        claim(work, settings)
    try:
        with holding(work):
            fit(knobs, examples, work, out, settings, console)
    except KeyboardInterrupt as stop:
        kept = last_checkpoint(work)
        done = f"step {kept.name.rpartition('-')[2]} is kept" if kept else "nothing is kept yet"
        raise KeyboardInterrupt(f"{done} in {work}. Continue with the same command") from stop
    return out


# The model


def model_path(name: str) -> str:
    """What `model=` means in a run: a configured name, a folder, or a hub name. Raises ConfigError."""
    from reasonrl.cli import UsageError, composed
    from reasonrl.config import package_path

    try:
        return package_path(str(composed([f"model={name}"]).model.path))
    except UsageError as error:
        raise ConfigError(str(error)) from error


def base_fingerprint(path: str) -> str:
    """Which weights training starts from. Raises ConfigError for a folder without safetensors."""
    from reasonrl.models import check_weights, facts, fetch, model_fingerprint

    folder = Path(path)
    if folder.is_dir():
        facts(folder)
        require(
            any(folder.glob("*.safetensors")),
            f"model folder {folder} has no *.safetensors: weights in other formats may run code when they are loaded, and "
            "are refused; convert them where you trust them",
        )
        check_weights(folder)
    else:
        fetch(path)
    return model_fingerprint(path)


def give_rows(model: Any, tokenizer: Any, added: Sequence[int], seed: int) -> None:
    """Embeddings for added tokens: the mean of the old rows and a little noise, the same for one seed."""
    import torch

    if not added:
        return
    old = min(added)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    noise = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    with torch.no_grad():
        for matrix in matrices.values():  # one when they are tied
            weight, known = matrix.weight, matrix.weight[:old].float()
            mean, spread = known.mean(dim=0), known.std(dim=0)
            for row in added:
                drawn = torch.randn(weight.shape[1], generator=noise).to(weight.device)
                weight[row] = (mean + NOISE * spread * drawn).to(weight.dtype)
            if getattr(matrix, "bias", None) is not None:
                matrix.bias[list(added)] = matrix.bias[:old].mean()


# Fitting


def claim(work: Path, settings: dict[str, Any]) -> None:
    """Make the folder of an unfinished training, or find it made with the same settings. Raises ConfigError."""
    from reasonrl.runs.files import write_text

    file = work / "settings.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            have = json.loads(file.read_text())
            differing = sorted(name for name in {**have, **settings} if have.get(name) != settings.get(name))
            told = ", ".join(f"{name} {have.get(name)} (now {settings.get(name)})" for name in differing)
            require(
                not differing,
                f"{work} holds an unfinished training with other settings: {told}. Give the same ones, another out=, or remove "
                "that folder",
            )
        else:
            write_text(file, json.dumps(settings))
    except OSError as error:
        raise ConfigError(f"cannot write {work} ({error.strerror}): choose another out=") from error


@contextmanager
def holding(work: Path) -> Iterator[None]:
    """Let the folder go again when settings are refused before anything was kept, so that they can be corrected."""
    try:
        yield
    except ConfigError:
        if os.environ.get("RANK", "0") == "0" and last_checkpoint(work) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is whole: Trainer writes `trainer_state.json` last."""
    found = []
    for folder in work.glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            found.append((int(folder.name.rpartition("-")[2]), folder))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def fit(
    knobs: TrainKnobs, examples: Examples, work: Path, out: Path, settings: dict[str, Any], console: Console
) -> None:
    """Train from the last checkpoint on, and publish."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed
    from transformers.utils import logging

    from reasonrl.engine.prm.transformers_scorer import chosen_device
    from reasonrl.eval.prm.losses import check_packing
    from reasonrl.eval.prm.trainer import make_trainer

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = chosen_device(knobs.device)
    set_seed(knobs.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            examples.path, dtype=torch.float32, attn_implementation=knobs.attention, use_safetensors=True
        )
    except Exception as error:  # the libraries behind it raise a dozen kinds
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot load model {examples.path}: {type(error).__name__}: {line}") from error
    give_rows(model, examples.tokenizer, examples.added, knobs.seed)
    if knobs.packing:
        check_packing(model.to(device), examples.train[:2], flash=knobs.attention == "flash_attention_2")
    if knobs.gradient_checkpointing:
        model.config.use_cache = False
    tuned = with_adapter(model, knobs, examples) if knobs.lora_rank else model
    trainer = make_trainer(knobs, examples, tuned, work, device, console)
    trainer.train(resume_from_checkpoint=str(kept) if (kept := last_checkpoint(work)) else None)
    if trainer.args.process_index == 0:
        final = tuned.merge_and_unload() if knobs.lora_rank else model
        publish(final, examples, trainer.progress.history, device, knobs, settings, out, console)
        shutil.rmtree(work, ignore_errors=True)


def with_adapter(model: Any, knobs: TrainKnobs, examples: Examples) -> Any:
    """The model with LoRA matrices on every linear layer, and trainable rows for the tokens that it is asked with."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            "lora_rank needs peft, which is not installed: pip install peft, or leave lora_rank= out"
        ) from error
    name = next(n for n, m in model.named_modules() if m is model.get_input_embeddings()).rpartition(".")[2]
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=knobs.lora_rank,
            lora_alpha=knobs.lora_alpha,
            target_modules="all-linear",
            trainable_token_indices={name: sorted(examples.card.ids)},
        ),
    )


def publish(
    model: Any,
    examples: Examples,
    history: list[dict[str, float]],
    device: str,
    knobs: TrainKnobs,
    settings: dict[str, Any],
    out: Path,
    console: Console,
) -> None:
    """Write weights, tokenizer and card beside `out`, read them back, judge that, and rename the folder."""
    from dataclasses import replace

    import torch
    from transformers import AutoModelForCausalLM

    from reasonrl.engine.prm.card import write_card
    from reasonrl.engine.prm.transformers_scorer import TransformersScorer
    from reasonrl.eval.prm.held_out import judged, told_held_out

    name = knobs.dtype if knobs.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
    dtype = getattr(torch, name)
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model.config.use_cache = True
    model.to(dtype).save_pretrained(str(scratch), safe_serialization=True)
    examples.tokenizer.save_pretrained(str(scratch))
    final: dict[str, float] = {}
    if examples.held_out:
        again = AutoModelForCausalLM.from_pretrained(str(scratch), dtype=dtype, use_safetensors=True).to(device).eval()
        final = judged(TransformersScorer(again, examples.layout, "published"), examples, knobs.labels)
        console.print("published: " + told_held_out({"step": math.nan, **final}).partition(": ")[2])
    training = {"settings": settings, "held_out": history, "final": final, "base": examples.path}
    write_card(scratch, replace(examples.card, training=training))
    for file in scratch.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())  # before the name is there, so that no power cut leaves a hollow folder
    try:
        scratch.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot publish {out} ({error.strerror}): the model is in {scratch}") from error
    console.print(f"process reward model in {out}")
