"""`reasonrl prm data key=value ...`: responses in steps, with labels that a process reward model learns from.

AdaptiveStep: Automatically Dividing Reasoning Step through Model Confidence, arXiv 2502.13943, section 3.

    responses  n a problem with the confidence of each token, judged; equal ones are kept once
    cuts       tau = a quantile of all confidences; a step ends with each token below it, and with the last one
    rollouts   J continuations from each interior end, judged on prefix and continuation
    merge      once every shard is complete: one parquet file (see `file.py`), which `reasonrl prm train` takes

A store is a folder. `responses/` and `rollouts/` hold a journal a shard: a line with its settings, then a line a finished
problem or response; they are all that is needed to continue. On the CPU the same settings give the same bytes, whatever
the shards and interruptions; on a GPU a batch's rounding may change a token.

The paper publishes neither its temperatures nor its tau; no code was released. T = 1 for both, as in training.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.sampled import arguments
from reasonrl.sampled.arguments import composed_run, tell_idle_gpus, wants_help, whole_number

if TYPE_CHECKING:  # imported in the functions: `reasonrl prm data --help` needs none of it
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.eval.prm.stages import Knobs
    from reasonrl.sampled.problems import Asked

HELP = """\
reasonrl prm data model=... data=... [n=30] [rollouts=8] [quantile=0.02] [store=FOLDER] [shard=i/k] [key=value ...]

Samples the model n times on every problem, cuts each response where the model was unsure of the token it sampled, and
labels every cut by continuing from it: hard = any continuation is right, soft = the share of right ones.

  reasonrl prm data model=tiny data=arithmetic data.size=64 n=8 rollouts=4
  reasonrl prm train data=prm/tiny-arithmetic
  reasonrl prm data model=... data=mbpp prompt=code verify=code         programs: right = a judge saw all tests pass

  n=30            responses a problem; equal ones are kept once
  rollouts=8      continuations of each cut. Larger: finer soft labels, hard labels nearer to 1, so many times the
                  sampling. 0: none and no labels, for candidates to choose from; equal ones are all kept then
  quantile=0.02   share of all tokens that end a step. Larger: more, shorter steps
  tau=...         the threshold itself, a probability, or another store to take it from; instead of quantile=
  max_steps=16    steps of a response; of more, the surest cuts are dropped
  split=train     or validation: problems to choose answers for
  store=FOLDER    default: prm/MODEL-DATA, for validation prm/MODEL-DATA-validation
  shard=i/k       this process does the i-th of k parts, i = 0..k-1; default 0/1. Several GPUs:
                  CUDA_VISIBLE_DEVICES=i reasonrl prm data ... shard=i/k for each. tau needs the responses of all
                  parts: once all have theirs, give the same commands again for the rollouts. Several machines: copy
                  responses/shard-*.jsonl, later rollouts/shard-*.jsonl, into one folder each

Everything else is what a run takes: model, data, prompt, verify, seed, recipe, max_prompt_tokens, max_new_tokens,
temperature, top_p, top_k, engine=cpu|gpu (gpu: vLLM, with engine.tensor_parallel GPUs, engine.rollout_memory,
engine.max_sequences, engine.eager). reasonrl --help lists them. data.size= limits the problems.

Stopped, it continues with the same command. FOLDER/prm.parquet appears when everything is there. To label the same
responses in another way, copy FOLDER/responses into another store.
"""

OWN = ("n", "rollouts", "quantile", "tau", "max_steps", "split", "store", "shard")
ELSEWHERE = {  # keys of a run that would not do here what they say
    "prefixes": "is what a run is given; here the store's folder is store=",
    "prm": "is what a run is given; here the store's folder is store=",
    "out": "is for run folders; a store's folder is store=",
    "name": "is for run folders; a store's folder is store=",
    "resume": "is for run folders; a store is continued by the same command that started it",
    "dry_run": "is for training",
}
COMMAND = "reasonrl prm data"


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if wants_help(args):
        print(HELP)
        return 0
    from rich.console import Console

    own, rest = arguments.parse(args, command=COMMAND, own=OWN, elsewhere=ELSEWHERE)
    make_data(
        composed_run(rest),
        knobs(own),
        store=own.get("store"),
        shard=own.get("shard", "0/1"),
        asked=[arg for arg in args if not arg.startswith(("store=", "shard="))],
        console=Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False),
    )
    return 0


# Settings


def knobs(own: dict[str, str]) -> Knobs:
    """The command's settings from their texts. Raises ConfigError."""
    from reasonrl.config import ConfigError
    from reasonrl.eval.prm.stages import Knobs

    if "quantile" in own and "tau" in own:
        raise ConfigError("give quantile= or tau=, not both: tau is the threshold that a quantile would find")
    tau = own.get("tau")
    return Knobs(
        n=whole_number("n", own.get("n", "30")),
        rollouts=whole_number("rollouts", own.get("rollouts", "8"), 0),
        quantile=None if tau else number("quantile", own.get("quantile", "0.02")),
        tau=None if tau is None else tau_of(tau),
        max_steps=whole_number("max_steps", own.get("max_steps", "16")),
        split=own.get("split", "train"),
    )


def number(name: str, text: str) -> float:
    """Any number. Raises ConfigError."""
    from reasonrl.config import ConfigError

    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a number, got {text!r}") from error


def tau_of(text: str) -> float:
    """The threshold that `tau=` names: a number, or that of another store. Raises ConfigError."""
    from reasonrl.config import ConfigError

    with contextlib.suppress(ValueError):
        return float(text)
    from reasonrl.eval.prm.file import file_at, read_facts

    try:
        return float(read_facts(file_at(text)).settings["tau"])
    except ValueError as error:
        raise ConfigError(f"tau={text} is neither a number nor a store: {error}") from error


def make_data(
    cfg: DictConfig,
    knobs: Knobs | None = None,
    *,
    store: str | Path | None = None,
    shard: str = "0/1",
    asked: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Do one shard of a store, continuing what is there, and merge when all of them are complete; returns its folder.

    cfg: a composed run. asked: the command's arguments, for the store's records. Raises ConfigError for settings that
    cannot work or that are not those of the store, DiskFull, and KeyboardInterrupt saying how to continue.
    """
    from rich.console import Console

    from reasonrl.eval.prm.file import FILE
    from reasonrl.eval.prm.stages import Knobs, Work
    from reasonrl.runs.journal import Shard

    console, knobs = console or Console(quiet=True), knobs or Knobs()
    part = Shard.parse(shard)
    cfg = arguments.checked(cfg, knobs.n, what="responses", command=COMMAND)
    tell_idle_gpus(cfg, part, console)
    name = f"{cfg.model.name}-{cfg.data.name}".replace("/", "-") + "-validation" * (knobs.split == "validation")
    folder = Path(store or Path("prm") / name).expanduser()
    work = Work(cfg, knobs, part, folder, console, *prepare(cfg, knobs, asked, console))
    if (folder / FILE).is_file():
        work.refuse_others()
        console.print(f"{folder / FILE} is complete already")
    elif not work.done():
        return folder
    summary(folder, console)
    return folder


def prepare(cfg: DictConfig, knobs: Knobs, asked: Sequence[str], console: Console) -> tuple[Asked, dict[str, Any]]:
    """The problems with the prompts of training, and what to note about the store. Raises ConfigError."""
    from reasonrl.sampled.problems import asked_problems

    problems = asked_problems(cfg, knobs.n, split=knobs.split)
    console.print(f"{len(problems.loaded)} {knobs.split} problems{problems.dropped}, {knobs.n} responses each")
    if knobs.n == 1:
        console.print("n=1: one response a problem leaves nothing to choose from, and no group of answers to compare")
    return problems, {**problems.about, "command": [*COMMAND.split(), *asked]}


def summary(folder: Path, console: Console) -> None:
    """What the store holds, and what to do with it."""
    from reasonrl.eval.prm.file import FILE
    from reasonrl.eval.prm.kinds import KINDS
    from reasonrl.eval.prm.stages import read_store

    facts = read_store(folder / FILE)
    total, made = facts.counts, facts.settings
    kept = total["distinct"]
    of = (
        "given" if made["quantile"] is None else f"the lowest {made['quantile']:.1%} of {total['pool_tokens']:,} tokens"
    )
    lines = {
        "problems": f"{total['problems']}",
        "responses": f"{total['responses']}, {total['right'] / total['responses']:.1%} right; "
        f"{total['duplicates']} equal to another of their problem",
        "tau": f"{made['tau']:.4f}, {of}",
        "boundaries": f"{total['boundaries'] / kept:.2f} a response, {total['boundaries'] / max(total['tokens'], 1):.2%} of "
        f"the tokens; steps {total['steps'] / kept:.2f} a response",
    }
    for kind in KINDS:
        lines[f"  {kind}"] = (
            f"{total[f'boundaries.{kind}'] / max(total['boundaries'], 1):.1%} of the boundaries, "
            f"{total[f'tokens.{kind}'] / max(total['tokens'], 1):.1%} of the tokens"
        )
    if made["rollouts"]:
        ends, rolled, settled = max(total["ends"], 1), total["rolled_out"], total.get("settled", 0)
        lines["labels"] = (
            f"{total['ends']} of interior ends, hard {total['hard'] / ends:.3f}, soft "
            f"{total['soft'] / ends / made['rollouts']:.3f} on average; {total['ends'] - rolled - settled} of them shared"
            + (f", {settled} behind the program" if settled else "")
        )
    lines["generated"] = f"{total['response_tokens']:,} tokens of responses, {total['rollout_tokens']:,} of rollouts"
    if total["no_verdict"]:
        lines["no verdict"] = f"{total['no_verdict']} comparisons ran out of time or failed, which counts as wrong"
    lines["file"] = f"{folder / FILE}"
    console.print("\n" + "\n".join(f"{name:<14}{text}" for name, text in lines.items()) + "\n")
    for warning in warnings(total, made):
        console.print(warning)
    if made["rollouts"]:
        console.print(
            f"train on it with: {arguments.line('prm', 'train', 'model=<name>', f'data={folder}', 'out=<folder>')}"
        )
    else:
        console.print(
            f"choose from it with: {arguments.line('prm', 'best-of-n', f'candidates={folder}', 'prm=<folder>')}"
        )


def warnings(total: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """What would make the file a poor one to learn from."""
    found = []
    if not total["ends"]:
        found.append(
            "no response has an interior end: every step is a whole response, and a model learns outcomes only. Raise "
            "quantile= or tau= in another store="
        )
    labels, ones = (total["ends"] + total["closed"], total["hard"] + total["closed_right"])
    if made["rollouts"] and ones in (0, labels):
        found.append(
            f"all {labels} hard labels are {ones // max(labels, 1)}: nothing can be told apart. Choose problems that the "
            "model solves sometimes, or raise n="
        )
    return found
