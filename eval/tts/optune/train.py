"""`reasonrl optune train`: an editor of weights from a model's own wrong attempts. OpTune, arXiv 2502.15771, section 3.

    attempts   a few a training question, from the plain model, judged (`pairs.py`)
    edits      inner loss on question, attempt and "incorrect"; its token gradients -> editor -> dW of a few matrices
    loss       cross-entropy of the reference solution, given the question, under W + dW
    editor     editor.safetensors and editor.json, which `reasonrl tts method=optune` takes (`card.py`)

First-order: the token gradients are constants, only the editor and its scales learn. What we changed: several questions go
through the model together, each with an edit of its own; the loss is divided by the size of the batch; right attempts are
left out, which nobody should call incorrect; the moments are merged in batches and saved.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import read_knobs, require
from reasonrl.eval.tts.feedback import INCORRECT
from reasonrl.eval.tts.optune.pairs import STRATEGIES
from reasonrl.sampled import arguments

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.eval.tts.optune.targets import Matrix

HELP = """\
reasonrl optune train model=... data=... out=<folder> [key=value ...]

Trains an editor, which changes a few weight matrices after a wrong attempt so that the next one is better. First the model is
sampled on every training question; then the editor learns from the attempts that were wrong.

  reasonrl optune train model=tiny data=arithmetic data.size=256 samples=4 lr=3e-4 out=optune/tiny
  reasonrl tts method=optune model=tiny task=arithmetic method.editor=optune/tiny

  samples=10        attempts a question
  correct_trial_strategy=exclude    of right attempts; include: learn from them too, told that they are incorrect, as released;
                    ground_truth: learn from them too, told that they are correct
  words="Your answer is incorrect."    what an attempt is answered with, here and later
  targets=q_proj+v_proj layers=-2+-1   linear layers that are edited: names, and layers from 0 or from the last
  rank=16 dropout=0.1 eta=1e-4    of the editor; eta: what the scale of an edit starts from
  lr=1e-5 epochs=3 batch=20       AdamW, constant, no decay; batch: attempts an optimiser step
  micro_batch=4     attempts of one pass, each with its own edit
  max_tokens=4096   longer attempts and solutions are left out      max_pairs=12000    attempts to learn from, at most
  val_share=0.05    of the questions, held out; the loss under edited weights is told of them
  save_every=       optimiser steps; default: a tenth of the training
  store=FOLDER      the attempts; default: optune/MODEL-DATA. Another training with the same sampling takes them over
  device=auto dtype=auto    cpu or cuda; dtype of the model: auto = float32 on a CPU, bfloat16 on a GPU

Attempts are sampled with temperature=0.6 top_p=0.95. Everything else is what a run takes: model, data, prompt, verify, seed,
max_prompt_tokens, max_new_tokens. data.size= limits the questions. reasonrl --help lists them.

Stopped, it continues with the same command.
"""
COMMAND = "reasonrl optune train"
ELSEWHERE = {
    "prefixes": "is what a run is given; here the store of the attempts is store=",
    "prm": "is what a run is given, and nothing here",
    "name": "is for run folders; here the editor's folder is out=",
    "resume": "is for run folders; a training of an editor is continued by the same command that started it",
    "dry_run": "is for training",
    "engine": "says where a run's processes are; here it is device=cpu or device=cuda",
    "steps": "is for training; here it is epochs= and data.size=",
}
SAMPLED = {"temperature": "0.6", "top_p": "0.95"}
APART = ("out", "store", "save_every")  # they change no number


@dataclass(frozen=True)
class OptuneKnobs:
    """See `HELP`."""

    out: str
    samples: int = 10
    correct_trial_strategy: str = "exclude"
    words: str = INCORRECT
    targets: str = "q_proj+v_proj"
    layers: str = "-2+-1"
    rank: int = 16
    dropout: float = 0.1
    eta: float = 1e-4
    lr: float = 1e-5
    epochs: int = 3
    batch: int = 20
    micro_batch: int = 4
    max_tokens: int = 4096
    max_pairs: int = 12000
    val_share: float = 0.05
    save_every: int | None = None
    store: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name, choices in (
            ("correct_trial_strategy", STRATEGIES),
            ("device", ("auto", "cpu", "cuda")),
            ("dtype", ("auto", "float32", "bfloat16")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("samples", "rank", "epochs", "batch", "micro_batch", "max_tokens", "max_pairs", "save_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("lr", "eta"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be greater than 0, got {value}")
        for name in ("dropout", "val_share"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        require(bool(self.words.strip()), "words= is empty: say what an attempt is answered with")
        require(
            "\\n" not in self.words,
            "words= has a backslash and an n, which stay two characters: write a line break as the shell does, $'...\\n...'",
        )
        require(all(self.target_names), f"targets must be names with + between, got {self.targets!r}")
        require(bool(self.layer_numbers), f"layers must be whole numbers with + between, got {self.layers!r}")

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.targets.split("+"))

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """() for a text that names none."""
        try:
            return tuple(int(number) for number in self.layers.split("+"))
        except ValueError:
            return ()

    def store_path(self, cfg: DictConfig) -> Path:
        """Where the attempts are."""
        name = f"{cfg.model.name}-{cfg.data.name}".replace("/", "-")
        return Path(self.store).expanduser() if self.store else Path("optune") / name

    def settings(self) -> dict[str, Any]:
        """What an editor depends on besides its attempts."""
        return {name: value for name, value in asdict(self).items() if name not in APART}


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if arguments.wants_help(args):
        print(HELP)
        return 0
    from rich.console import Console

    knobs, cfg = read(args)
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False)
    train(cfg, knobs, asked=args, console=console)
    return 0


def read(args: Sequence[str]) -> tuple[OptuneKnobs, DictConfig]:
    """The command's settings, and the run that they would give. Raises ConfigError."""
    from dataclasses import fields

    own, rest = arguments.parse(args, command=COMMAND, own=[f.name for f in fields(OptuneKnobs)], elsewhere=ELSEWHERE)
    for name in ("model", "data"):
        require(any(arg.startswith(f"{name}=") for arg in rest), f"{COMMAND} needs {name}=...; --help explains it")
    knobs = read_knobs(OptuneKnobs, [f"{name}={value}" for name, value in own.items()], COMMAND)
    given = {arg.partition("=")[0] for arg in rest}
    more = [f"{name}={value}" for name, value in SAMPLED.items() if name not in given]
    cfg = arguments.composed_run(["engine=cpu", *more, *rest])  # no engine of a run: the model is in this process
    return knobs, arguments.checked(cfg, knobs.samples, what="attempts", command=COMMAND)


def train(cfg: DictConfig, knobs: OptuneKnobs, *, asked: Sequence[str] = (), console: Console | None = None) -> Path:
    """Sample, train, continuing what is there, and publish the folder `out` in one step; returns it.

    Raises ConfigError for settings, data or a model that cannot work, RunFailed for numbers that are not finite, DiskFull,
    and KeyboardInterrupt saying how to continue.
    """
    from rich.console import Console

    from reasonrl.config import package_path
    from reasonrl.engine.prm.transformers_scorer import chosen_device
    from reasonrl.eval.folder import locked
    from reasonrl.eval.tts.backends.local import open_local
    from reasonrl.eval.tts.optune import pairs
    from reasonrl.eval.tts.optune.outer import Outer
    from reasonrl.eval.tts.optune.targets import chosen, matrices, matrices_of, modules
    from reasonrl.models import fetch

    console = console or Console(quiet=True)
    knobs = resolved(knobs, chosen_device(knobs.device))
    out, path = Path(knobs.out).expanduser().absolute(), package_path(cfg.model.path)
    fetch(path)
    known = matrices_of(path)
    wanted = None if known is None else chosen(known, knobs.target_names, knobs.layer_numbers)
    questions = pairs.read_questions(cfg, knobs, end_ids(path, _tokenizer(cfg)), console)
    settings = {**questions.settings, **knobs.settings()}
    if complete(out, settings):
        console.print(f"{out} is complete already")
        return out
    work = out.with_name(f".{out.name}.training")
    with locked(work):
        begin(work, settings)  # before anything is sampled
    with contextlib.ExitStack() as stack:

        @functools.cache
        def backend() -> Any:
            console.print("loading the model ...")
            opened = open_local(
                path,
                questions.tokenizer,
                trust_remote_code=cfg.model.trust_remote_code,
                threads=cfg.engine.threads,
                max_sequences=None,
                device=knobs.device,
                dtype=knobs.dtype,
            )
            return stack.enter_context(opened)

        pairs.sample_attempts(cfg, knobs, questions, backend, console)
        found, counts = pairs.pairs_of(knobs, questions, pairs.read_attempts(cfg, knobs, questions), cfg.seed)
        learned, held_out = pairs.split(found, knobs.val_share, cfg.seed)
        tell(console, learned, held_out, counts)
        model = backend().model
        wanted = wanted or chosen(matrices(model), knobs.target_names, knobs.layer_numbers)
        stack.enter_context(locked(work))  # not while attempts are made, which have a lock and a store of their own
        begin(work, settings)
        outer = Outer(
            knobs, cfg.seed, model, modules(model, wanted, "the editor"), wanted, learned, held_out, work, console
        )
        try:
            outer.run()
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"step {outer.kept} of {outer.total} is kept in {work}. Continue with the same command"
            ) from stop
        training = {
            "settings": settings,
            "about": questions.about,
            "counts": {**counts, "trained_on": len(learned), "held_out": len(held_out)},
            "steps": outer.total,
            "skipped": outer.skipped,
            "final": outer.history[-1] if outer.history else {},
            "command": [*COMMAND.split(), *asked],
        }
        publish(out, knobs, questions, wanted, outer, training)
    shutil.rmtree(work, ignore_errors=True)
    console.print(f"editor of {len(wanted)} matrices in {out}. Use it with: " + use_it(questions.about, out))
    return out


def begin(work: Path, settings: dict[str, Any]) -> None:
    """Make the folder of an unfinished training, or find it with these settings. Raises ConfigError for others.

    One without a checkpoint holds nothing that other settings would lose.
    """
    from reasonrl.eval.prm.train import claim
    from reasonrl.eval.tts.optune.outer import CHECKPOINT

    if not (work / CHECKPOINT).is_file():
        (work / "settings.json").unlink(missing_ok=True)
    claim(work, settings)


def resolved(knobs: OptuneKnobs, device: str) -> OptuneKnobs:
    """With device and dtype in the place of auto."""
    dtype = knobs.dtype if knobs.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
    return replace(knobs, device=device, dtype=dtype)


def end_ids(path: str, tokenizer: Any) -> list[int]:
    """What ends an answer of this model, without loading it."""
    from transformers import GenerationConfig

    ends: Any = None
    with contextlib.suppress(OSError):  # a model without generation_config.json
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None})


def _tokenizer(cfg: DictConfig) -> Any:
    from reasonrl.engine.verl.launch import load_tokenizer

    return load_tokenizer(cfg)


def complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether this editor is there. Raises ConfigError for something else."""
    from reasonrl.eval.tts.optune.card import CARD, read_card

    if not out.exists():
        return False
    have = read_card(out).training.get("settings") if (out / CARD).is_file() else None
    require(have == settings, f"{out} exists and was not made by these settings: give another out=, or remove it")
    return True


def tell(console: Console, learned: Sequence[Any], held_out: Sequence[Any], counts: Mapping[str, int]) -> None:
    """What is learned from."""
    left = [f"{count} {why}" for why, count in counts.items() if why not in ("attempts", "correct")]
    tokens = sum(len(pair.lesson) + len(pair.target) for pair in learned)
    console.print(
        f"{counts['attempts']} attempts, {counts['correct'] / max(counts['attempts'], 1):.1%} right"
        + (f"; left out: {', '.join(left)}" if left else "")
        + f"\n{len(learned)} to learn from, {tokens / len(learned):.0f} tokens each; {len(held_out)} held out"
    )


def publish(
    out: Path, knobs: OptuneKnobs, questions: Any, wanted: Sequence[Matrix], outer: Any, training: Mapping[str, Any]
) -> None:
    """Write beside `out`, read it back, and rename."""
    from reasonrl.eval.tts.optune.card import Card, read_card, read_editors, rendering, write_editor

    card = Card(
        model=questions.settings["model"],
        matrices=tuple(wanted),
        targets=knobs.target_names,
        layers=knobs.layer_numbers,
        rank=knobs.rank,
        dropout=knobs.dropout,
        words=knobs.words,
        feedback=rendering(questions.feedback, knobs.words),
        training=training,
    )
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_editor(scratch, card, outer.editors)
    outer.write_history(scratch / "train.jsonl")
    read_editors(scratch, read_card(scratch))
    try:
        scratch.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot publish {out} ({error.strerror}): the editor is in {scratch}") from error


def use_it(about: Mapping[str, Any], out: Path) -> str:
    """The command that tries it."""
    from reasonrl.cli import options

    model = about["model"] if about["model"] in options("model") else about["path"]
    return arguments.line("tts", "method=optune", f"model={model}", "task=...", f"method.editor={out}")
