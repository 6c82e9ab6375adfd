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

import inspect
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from reasonrl.engine.prm import Card, Layout
    from reasonrl.eval.prm.labelled import Responses

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
PAPER_TOKENS = (" ки", " к", " и")
ADDED_TOKENS = ("<step>", "<good>", "<bad>")
NOISE = 0.02  # of the embeddings' spread, around their mean: three equal new rows would learn the same
TOLD_SECONDS = 10.0
SAME = 1e-3  # packed and unpacked logits of one model differ by rounding only


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


def one_token(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token; None when it is not."""
    known = tokenizer.get_vocab()
    if text in known:
        return int(known[text])
    # a tokenizer that puts a space before every text has " x" as the token of "x"
    for form in (text, text.strip()):
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    return None


def choose_tokens(knobs: TrainKnobs, tokenizer: Any) -> tuple[int, int, int]:
    """Ids of tag, good and bad; the tokenizer gets three more tokens where it has none. Raises ConfigError."""
    if knobs.tag is not None:
        named = {name: getattr(knobs, name) for name in ("tag", "good", "bad")}
        ids = {name: one_token(tokenizer, text) for name, text in named.items()}
        for name, text in named.items():
            count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            require(
                ids[name] is not None,
                f"{name}={text!r} is {count} tokens or unknown to this tokenizer, and must be one: choose another text, or "
                f"leave tag= good= bad= out",
            )
        require(
            len(set(ids.values())) == 3, f"tag, good and bad must be three different tokens, got {list(named.values())}"
        )
        return ids["tag"], ids["good"], ids["bad"]  # type: ignore[return-value]
    paper = [one_token(tokenizer, text) for text in PAPER_TOKENS]
    if None not in paper and len(set(paper)) == 3:
        return paper[0], paper[1], paper[2]  # type: ignore[return-value]
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    tag, good, bad = (int(tokenizer.get_vocab()[text]) for text in ADDED_TOKENS)
    return tag, good, bad


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


# The examples


@dataclass(frozen=True, eq=False)
class Example:
    """One response: input ids (T,), positions (K,) of its tags and their targets (K,), share of the good token."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    targets: NDArray[np.float32]
    row: int


@dataclass(frozen=True, eq=False)
class Examples:
    """What is trained on and what is held out."""

    path: str
    tokenizer: Any
    card: Card
    layout: Layout
    rows: Responses
    train: list[Example]
    held_out: list[Example]
    added: tuple[int, ...]
    cut_tokens: int


class Preparation:
    """Everything that can be wrong with the data is found here, before a model is loaded."""

    def __init__(self, knobs: TrainKnobs, path: str, rows: Responses, console: Console) -> None:
        self.knobs, self.path, self.rows, self.console = knobs, path, rows, console

    def examples(self) -> Examples:
        """Raises ConfigError."""
        from transformers import AutoTokenizer

        from reasonrl.engine.prm import Card, Layout
        from reasonrl.engine.prm.card import vocabulary_sha256
        from reasonrl.eval.prm.labelled import steps

        knobs, rows = self.knobs, self.rows
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        policy = self._policy(tokenizer)
        vocabulary, size = vocabulary_sha256(tokenizer), len(tokenizer)
        ids = choose_tokens(knobs, tokenizer)
        card = Card(
            *ids,
            tokens=tuple(tokenizer.convert_ids_to_tokens(list(ids))),  # type: ignore[arg-type]
            input=knobs.input,  # type: ignore[arg-type]
            loss=knobs.loss,  # type: ignore[arg-type]
            labels=knobs.labels,  # type: ignore[arg-type]
            rollouts=int(rows.settings.get("rollouts", 0)),
            vocabulary=vocabulary,
            data=dict(rows.settings),
        )
        limit = min(knobs.max_tokens, self._context())
        made, cut, lost = [], 0, 0
        try:
            layout = Layout(card, tokenizer, policy)
            for number, row in enumerate(rows.rows):
                labels = row.hard if knobs.labels == "hard" else row.soft
                given, positions = layout(steps(row))
                kept = positions < limit
                cut += max(given.size - limit, 0)
                if kept.any():
                    made.append(Example(given[:limit], positions[kept], labels[kept].astype(np.float32), number))
                else:
                    lost += 1
        except ValueError as error:
            raise ConfigError(f"{rows.path}: {error}") from error
        self._refuse(made, lost, limit)
        if layout.same:
            self._refuse_foreign_ids(size)
        train, held_out = self._split(made)
        self._tell(train, held_out, cut, lost, limit, card)
        added = tuple(i for i in ids if i >= size)
        return Examples(self.path, tokenizer, card, layout, rows, train, held_out, added, cut)

    def _policy(self, tokenizer: Any) -> Any:
        """The tokenizer that the responses were sampled with, if it is another one; else None. Raises ConfigError."""
        from transformers import AutoTokenizer

        from reasonrl.config import package_path
        from reasonrl.data.prefixes import tokenizer_fingerprint

        made_by, path = self.rows.settings.get("tokenizer"), self.rows.about.get("path")
        if made_by in (None, tokenizer_fingerprint(tokenizer)):
            return None
        try:
            policy = AutoTokenizer.from_pretrained(package_path(str(path)))
        except Exception as error:  # the libraries behind it raise a dozen kinds
            raise ConfigError(
                f"{self.rows.path} was sampled with another tokenizer than that of {self.knobs.model}, and that of {path} "
                "cannot be loaded to translate: train from a model of the policy's own family"
            ) from error
        require(
            tokenizer_fingerprint(policy) == made_by,
            f"{self.rows.path} was sampled with another tokenizer than {path} has now: restore it, or train from a model of "
            "the policy's own family",
        )
        return policy

    def _context(self) -> int:
        from reasonrl.models import cached_snapshot, context, facts

        folder = Path(self.path) if Path(self.path).is_dir() else cached_snapshot(self.path)
        limit = context(facts(folder)) if folder else None
        return limit or sys.maxsize

    def _refuse_foreign_ids(self, size: int) -> None:
        highest = max((int(row.response_ids.max()) for row in self.rows.rows if len(row.response_ids)), default=0)
        require(
            highest < size,
            f"{self.rows.path} has token {highest}, the tokenizer of {self.knobs.model} has {size}: train from a model with "
            "the vocabulary of the policy that wrote the responses",
        )

    def _refuse(self, made: Sequence[Example], lost: int, limit: int) -> None:
        require(
            bool(made),
            f"{self.rows.path}: none of its {len(self.rows)} responses has a step within {limit} tokens; raise max_tokens"
            if lost
            else f"{self.rows.path} has no steps to train on",
        )
        targets = np.concatenate([example.targets for example in made])
        require(
            bool((targets != targets[0]).any()),
            f"{self.rows.path}: all {targets.size} labels are {targets[0]:g}, so there is nothing to tell apart: sample "
            "problems that the policy sometimes solves and sometimes does not, or use labels=soft",
        )

    def _split(self, made: Sequence[Example]) -> tuple[list[Example], list[Example]]:
        """By problem: responses to a held-out problem are never trained on."""
        names = sorted({row.problem_id for row in self.rows.rows})
        count = round(self.knobs.val_share * len(names))
        if self.knobs.val_share > 0:
            count = min(max(count, 1), len(names) - 1)
        order = np.random.default_rng([self.knobs.seed, 1]).permutation(len(names))
        held = {names[i] for i in order[:count]}
        parts: tuple[list[Example], list[Example]] = ([], [])
        for example in made:
            parts[self.rows.rows[example.row].problem_id in held].append(example)
        require(bool(parts[0]), f"val_share={self.knobs.val_share} leaves no response to train on: lower it")
        return parts

    def _tell(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        cut: int,
        lost: int,
        limit: int,
        card: Card,
    ) -> None:
        targets = np.concatenate([example.targets for example in train])
        tokens = sum(example.ids.size for example in train)
        held = len({self.rows.rows[example.row].problem_id for example in held_out})
        self.console.print(
            f"responses   {len(train)} to train on, {len(held_out)} of {held} problems held out\n"
            f"steps       {targets.size}, {targets.size / len(train):.2f} a response; {targets.mean():.1%} of the labels "
            f"good ({self.knobs.labels})\n"
            f"tokens      {tokens}, {tokens / len(train):.1f} a response; {cut} cut at {limit}"
            + (f", {lost} responses lost all steps" if lost else "")
            + f"\ntokens of   tag {card.tokens[0]!r}, good {card.tokens[1]!r}, bad {card.tokens[2]!r} {card.ids}"
        )


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
        publish(final, examples, trainer.history, device, knobs, settings, out, console)
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


def collated(some: Sequence[Example], packing: bool) -> dict[str, torch.Tensor]:
    """One forward pass: padded rows (B, T), or all responses in one row (1, T) with positions that begin anew.

    `labels` mark the tags, so that Trainer counts them over the micro-batches of an optimiser step; `targets` (P,) are
    what is trained towards, at (rows, columns).
    """
    import torch

    sizes = [example.ids.size for example in some]
    targets = torch.from_numpy(np.concatenate([example.targets for example in some]))
    counts = [example.positions.size for example in some]
    if packing:
        ids = torch.from_numpy(np.concatenate([e.ids for e in some]).astype(np.int64))[None]  # (1, T)
        starts = np.cumsum([0, *sizes[:-1]])
        columns = torch.from_numpy(np.concatenate([e.positions + s for e, s in zip(some, starts, strict=True)]))
        rows = torch.zeros_like(columns)
        order = {"position_ids": torch.cat([torch.arange(size) for size in sizes])[None]}
    else:
        ids = torch.zeros((len(some), max(sizes)), dtype=torch.long)  # (B, T)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(some):
            ids[row, : sizes[row]] = torch.from_numpy(example.ids.astype(np.int64))
            mask[row, : sizes[row]] = 1
        columns = torch.from_numpy(np.concatenate([e.positions for e in some]))
        rows = torch.from_numpy(np.repeat(np.arange(len(some)), counts))
        order = {"attention_mask": mask}
    labels = torch.full_like(ids, -100)
    labels[rows, columns] = 1
    return {"input_ids": ids, **order, "labels": labels, "rows": rows, "columns": columns, "targets": targets}


def tags_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (P, V) float32 at the tags of a collated batch, through the model's own forward (as DDP wants it)."""
    import torch

    rows, columns = inputs["rows"], inputs["columns"]
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    kept, where = torch.unique(columns, return_inverse=True)
    return model(**given, use_cache=False, logits_to_keep=kept).logits[rows, where].float()


def step_losses(
    logits: torch.Tensor, targets: torch.Tensor, good: int, bad: int, loss: Literal["two_way", "full_vocab"] | str
) -> torch.Tensor:
    """Cross-entropy (P,) of logits (P, V) towards targets (P,), the share of the good token."""
    import torch

    pair = logits[:, [good, bad]]
    logs = torch.log_softmax(pair, dim=-1) if loss == "two_way" else pair - torch.logsumexp(logits, -1, keepdim=True)
    return -(targets * logs[:, 0] + (1.0 - targets) * logs[:, 1])


def check_packing(model: Any, some: Sequence[Example], *, flash: bool) -> None:
    """Raise ConfigError for a model whose attention goes across packed responses, found by trying it."""
    import torch

    if flash:
        return  # its kernels read where positions begin anew; float32 weights cannot be tried with it
    was = model.training
    model.eval()
    with torch.inference_mode():
        both = [{k: v.to(model.device) for k, v in collated(some, packing).items()} for packing in (True, False)]
        packed, padded = (tags_logits(model, inputs) for inputs in both)
    model.train(was)
    apart = float((packed - padded).abs().max())
    require(
        apart <= SAME * max(float(padded.abs().max()), 1.0),
        f"packing=true: with attention={model.config._attn_implementation} this model looks from one packed response at "
        f"another (logits differ by {apart:.2g}): use attention=flash_attention_2, or packing=false",
    )


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


def make_trainer(knobs: TrainKnobs, examples: Examples, model: Any, work: Path, device: str, console: Console) -> Any:
    """Hugging Face's Trainer with our loss, order and progress."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from reasonrl.engine.prm.transformers_scorer import BATCH_TOKENS, TransformersScorer
    from reasonrl.runs.console import clock

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    require(
        knobs.batch % (knobs.micro_batch * processes) == 0,
        f"batch={knobs.batch} must be a multiple of micro_batch={knobs.micro_batch} times {processes} processes",
    )
    an_epoch = math.ceil(len(examples.train) / knobs.batch)
    total = knobs.steps or knobs.epochs * an_epoch
    card = examples.card
    inner = model.get_base_model() if knobs.lora_rank else model
    require(
        "logits_to_keep" in inspect.signature(inner.forward).parameters,
        f"model {knobs.model} cannot give the logits of single positions (no logits_to_keep): choose another architecture",
    )

    class StepTrainer(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            logits = tags_logits(model, inputs)
            targets = inputs["targets"].to(logits.dtype)
            losses = step_losses(logits, targets, card.good, card.bad, knobs.loss)
            right = (logits[:, card.good] > logits[:, card.bad]) == (targets >= 0.5)
            progress.count(losses, right)
            if num_items_in_batch is None:
                return losses.mean()
            # gradients are averaged over processes, while the count is of all of them
            return losses.sum() / num_items_in_batch * self.accelerator.num_processes

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return Order([example.ids.size for example in examples.train], knobs.batch, knobs.seed)

    class Progress(TrainerCallback):
        """A line every few seconds: step, loss and accuracy at the tags since the last one, time left."""

        def __init__(self) -> None:
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
                console.print(f"continuing after step {self.first} of {total}")
            self.held_out(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, now = state.global_step, time.monotonic()
            if step % (knobs.eval_every or max(total // 10, 1)) == 0 and step < total:
                self.held_out(step)
            if now - self.told < TOLD_SECONDS and step < total:
                return
            self.told = now
            loss, right, tags = self.sums.tolist()
            self.sums.zero_()
            left = (now - self.started) / (step - self.first) * (total - step)
            console.print(
                f"step {step:>{len(str(total))}}/{total}  loss {loss / max(tags, 1):.4f}  accuracy at tags "
                f"{right / max(tags, 1):6.1%}  left {clock(left)}"
            )

        def held_out(self, step: int) -> None:
            if examples.held_out and self.main:
                self.history.append({"step": step, **judged(self.scorer, examples, knobs.labels)})
                console.print(told_held_out(self.history[-1]))

    args = TrainingArguments(
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
    if args.n_gpu > 1:
        args._n_gpu = 1  # DataParallel would tear rows and targets apart
        console.print(
            f"1 of {torch.cuda.device_count()} GPUs: to use all, torchrun --nproc-per-node=... -m reasonrl prm train"
        )
    progress = Progress()
    progress.main = args.process_index == 0  # type: ignore[attr-defined]
    trainer = StepTrainer(
        model=model,
        args=args,
        train_dataset=examples.train,  # type: ignore[arg-type]
        data_collator=lambda some: collated(some, knobs.packing),  # type: ignore[arg-type]
        callbacks=[progress],
    )
    trainer.model_accepts_loss_kwargs = True  # our loss wants the count of tags of the whole optimiser step
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    inner.to(trainer.args.device)
    progress.scorer = TransformersScorer(  # type: ignore[attr-defined]
        inner, examples.layout, "in training", batch_tokens=BATCH_TOKENS["cpu" if device == "cpu" else "cuda"]
    )
    trainer.history = progress.history  # type: ignore[attr-defined]
    return trainer


# Judging


def judged(scorer: Any, examples: Examples, labels: str) -> dict[str, float]:
    """Loss and accuracy against the labels trained on, and AUC against the hard ones, at all held-out tags it can read."""
    from reasonrl.eval.prm.labelled import steps

    was = scorer.model.training
    scorer.model.eval()
    rows = [examples.rows.rows[example.row] for example in examples.held_out]
    found = scorer.score([steps(row) for row in rows])
    scorer.model.train(was)
    scores = np.concatenate(found).astype(np.float64)
    hard = np.concatenate([row.hard for row in rows])
    targets = hard if labels == "hard" else np.concatenate([row.soft for row in rows])
    readable = ~np.isnan(scores)
    scores, hard, targets = scores[readable], hard[readable], targets[readable].astype(np.float64)
    safe = np.clip(scores, 1e-7, 1 - 1e-7)
    return {
        "loss": float(-(targets * np.log(safe) + (1 - targets) * np.log1p(-safe)).mean()) if safe.size else math.nan,
        "accuracy": float(((scores > 0.5) == (targets >= 0.5)).mean()) if safe.size else math.nan,
        "auc": auc(scores, hard > 0.5),
        "tags": int(scores.size),
    }


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, a tie counting half; NaN without one of either."""
    wins = int(positive.sum())
    if wins in (0, positive.size):
        return math.nan
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # 1-based, ties share their mean
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * (positive.size - wins)))


def told_held_out(found: dict[str, float]) -> str:
    """A line for people."""
    return (
        f"held out at step {found['step']:.0f}: loss {found['loss']:.4f}, accuracy at tags {found['accuracy']:.1%}, "
        f"AUC {found['auc']:.3f} ({found['tags']} tags)"
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
