"""`reasonrl prefixes key=value ...`: sample the initial model on every training problem, keep an opening of each.

    prepare   everything that can fail is tried here: settings, data, model, what the store already holds
    sample    n answers a problem, each problem judged, chosen, cut and written down as soon as it is finished
    merge     once every shard is complete: one parquet file, which a run takes as prefixes=<store>

A store is a folder. `shard-0-of-1.jsonl` is the journal of a shard: a line with its settings, then a line a finished
problem; it is all that is needed to continue. `prefixes.parquet` appears when all of them are complete.

Which answers a problem gets depends on the seed and its id alone, so neither shards nor interruptions change the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.sampled import arguments
from reasonrl.sampled.answers import Progress, Sample, judged, noise_key, sampling, telling_what_is_kept
from reasonrl.sampled.arguments import composed_run, tell_idle_gpus, wants_help, whole_number
from reasonrl.sampled.problems import Asked, asked_problems

if TYPE_CHECKING:  # imported in the functions: `reasonrl prefixes --help` needs none of it
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.core import Problem
    from reasonrl.data.prefixes import Facts, Stored
    from reasonrl.data.problems import Loaded
    from reasonrl.engine.sampling import Ask, Sampler
    from reasonrl.runs.journal import Journal, Shard
    from reasonrl.verify.pool import Verifier

__all__ = ["Sample", "make_store", "noise_key", "run", "tell_idle_gpus"]

HELP = """\
reasonrl prefixes model=... data=... [n=8] [store=FOLDER] [shard=i/k] [key=value ...]

Samples the initial model n times on every training problem and keeps the opening of its shortest right answer (of its
shortest answer where none is right). Methods that start their rollouts with stored prefixes train from the result:

  reasonrl prefixes model=tiny data=arithmetic n=8
  reasonrl method=pace model=tiny data=arithmetic prefixes=prefixes/tiny-arithmetic

  n=8             answers a problem. Larger: fewer problems without a right answer, shorter texts, n times the sampling
  store=FOLDER    default: prefixes/MODEL-DATA
  shard=i/k       this process does the i-th of k parts, i = 0..k-1; default 0/1. The one that finishes last writes
                  FOLDER/prefixes.parquet. Several GPUs: CUDA_VISIBLE_DEVICES=i reasonrl prefixes ... shard=i/k for
                  each. Several machines: the same on each, then copy the shard-*.jsonl files into one folder and give
                  the command once more

Everything else is what a run takes, and should be what the run is given: model, data, prompt, verify, seed, recipe,
max_prompt_tokens, max_new_tokens, temperature, top_p, top_k, engine=cpu|gpu (gpu: vLLM, with engine.tensor_parallel GPUs,
engine.rollout_memory, engine.max_sequences, engine.eager). reasonrl --help lists them.

Stopped, it continues with the same command. A stored text does not give the answer away: it ends before </think>, before
\\boxed, <answer> or ####, before a last line that states the right answer, and one token before the sample or earlier.
"""

OWN = ("n", "store", "shard")
ELSEWHERE = {  # keys of a run that would not do here what they say
    "prefixes": "is what a run is given; here the store's folder is store=",
    "out": "is for run folders; a store's folder is store=",
    "name": "is for run folders; a store's folder is store=",
    "resume": "is for run folders; a store is continued by the same command that started it",
    "dry_run": "is for training",
}


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if wants_help(args):
        print(HELP)
        return 0
    from rich.console import Console

    own, rest = parse(args)
    make_store(
        composed_run(rest),
        n=whole_number("n", own.get("n", "8")),
        store=own.get("store"),
        shard=own.get("shard", "0/1"),
        asked=[arg for arg in args if not arg.startswith(("store=", "shard="))],
        console=Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False),
    )
    return 0


def make_store(
    cfg: DictConfig,
    *,
    n: int = 8,
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

    from reasonrl.data.prefixes import FILE
    from reasonrl.runs.journal import Journal, Shard, refuse_others

    console = console or Console(quiet=True)
    part = Shard.parse(shard)
    cfg = checked(cfg, n)
    tell_idle_gpus(cfg, part, console)
    folder = Path(store or Path("prefixes") / f"{cfg.model.name}-{cfg.data.name}".replace("/", "-")).expanduser()
    problems, facts = prepare(cfg, n, asked, console)
    tokenizer, loaded = problems.tokenizer, problems.loaded
    mine = part.own(len(loaded))
    if (folder / FILE).is_file():
        refuse_others(folder / FILE, read_store(folder / FILE).settings, facts.settings)
        console.print(f"{folder / FILE} is complete already")
    else:
        with Journal.opened(folder, part, facts.settings, facts.about) as journal:
            left = [index for index in mine if loaded.problems[index].id not in journal.done]
            if left:
                if journal.done:
                    console.print(f"{folder} has {len(journal.done)} of the {len(mine)} problems of this shard already")
                sample(cfg, n, loaded, left, tokenizer, journal, console)
        if not merge(folder, part, console):
            return folder
    summary(folder, cfg, asked, console)
    return folder


# Settings


def parse(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own settings, and the arguments that a run composes. Raises ConfigError."""
    return arguments.parse(args, command="reasonrl prefixes", own=OWN, elsewhere=ELSEWHERE)


def checked(cfg: DictConfig, n: int) -> DictConfig:
    """The configuration, typed. Raises ConfigError for what cannot be sampled from; imports no torch."""
    return arguments.checked(cfg, n, what="prefixes", command="reasonrl prefixes")


def prepare(cfg: DictConfig, n: int, asked: Sequence[str], console: Console) -> tuple[Asked, Facts]:
    """Training problems with the prompts of training, and what the store is made with. Raises ConfigError."""
    from reasonrl.data.prefixes import Facts

    problems = asked_problems(cfg, n)
    console.print(f"{len(problems.loaded)} training problems{problems.dropped}, {n} answers each")
    about = {**problems.about, "command": ["reasonrl", "prefixes", *asked]}
    return problems, Facts(problems.settings, about)


# Sampling


def sample(
    cfg: DictConfig,
    n: int,
    loaded: Loaded,
    indices: Sequence[int],
    tokenizer: Any,
    journal: Journal,
    console: Console,
) -> None:
    """Sample and judge these problems, and write each down as soon as it is done. Raises ConfigError."""
    from dataclasses import replace

    from reasonrl.engine.sampling import open_sampler
    from reasonrl.verify.pool import Verifier, verify_from_config

    verify = verify_from_config(cfg.verify)
    progress = Progress(console, len(indices))
    with telling_what_is_kept(journal, "problems"):
        console.print("loading the model ...")
        with (
            Verifier(verify) as verifier,
            # What is kept ends before </think>, so nothing of it follows one: its guard reads all of it, boxes above all.
            Verifier(replace(verify, answer_after="none", extract="auto")) as guard,
            open_sampler(cfg, tokenizer) as sampler,
        ):
            verifier.warm_up()  # after vLLM, which may fork: no thread of a pool is running yet
            progress.start()
            for index, samples in solved(cfg, n, loaded, indices, sampler, verifier, tokenizer):
                row = stored(loaded.problems[index], loaded.questions[index], samples, tokenizer, guard)
                journal.add(asdict(row))
                progress(samples)


def solved(
    cfg: DictConfig,
    n: int,
    loaded: Loaded,
    indices: Sequence[int],
    sampler: Sampler,
    verifier: Verifier,
    tokenizer: Any,
) -> Iterator[tuple[int, list[Sample]]]:
    """Problems with all their n answers, sampled and judged, as they get done; answers in the order of their numbers."""
    from reasonrl.engine.sampling import Ask

    def asks() -> Iterator[Ask]:
        for index in indices:
            problem = loaded.problems[index]
            for number in range(n):
                how = sampling(cfg, noise_key(cfg.seed, problem.id, number))
                yield Ask((index, number), problem.prompt_ids.tolist(), how)

    return judged(
        asks(),
        lambda index: n,
        sampler,
        lambda answer: verifier.submit(
            tokenizer.decode(answer.token_ids, skip_special_tokens=True), loaded.problems[answer.key[0]].answer
        ),
    )


def chosen(samples: Sequence[Sample]) -> Sample:
    """The shortest right answer; without a right one, the shortest. Of equally long ones the first."""
    right = [sample for sample in samples if sample.correct]
    return min(right or samples, key=lambda sample: len(sample.token_ids))


def stored(problem: Problem, question: str, samples: Sequence[Sample], tokenizer: Any, guard: Verifier) -> Stored:
    """The row of a problem: the opening of its chosen answer, and what a person wants to know of it."""
    from reasonrl.data.prefixes import Stored, guarded, question_sha256, statements

    def gives_away(text: str) -> bool:
        texts = [text, *(f"\\boxed{{{value}}}" for value in statements(text))]
        verdicts = guard.verify_many((text, problem.answer) for text in texts)
        # what could not be compared in time may be the answer
        return any(verdict.correct or verdict.status in ("timeout", "error") for verdict in verdicts)

    best = chosen(samples)
    kept = guarded(
        thought(best, tokenizer),
        tokenizer,
        most=len(best.token_ids) - 1,
        gives_away=gives_away,
    )
    return Stored(
        id=problem.id,
        question_sha256=question_sha256(question),
        paragraphs=kept.paragraphs,
        prefix_tokens=kept.tokens,
        sample_tokens=len(best.token_ids),
        correct=best.correct,
        right=sum(sample.correct for sample in samples),
        leak=kept.leak,
    )


def thought(sample: Sample, tokenizer: Any) -> str:
    """The text of an answer, without its end token, up to a `</think>` that is a token of its own."""
    from reasonrl.data.prefixes import THINK_CLOSE

    ids = sample.token_ids[:-1] if sample.finished else sample.token_ids
    close = tokenizer.get_added_vocab().get(THINK_CLOSE)  # as a special token it would vanish from the text
    if close in ids:
        ids = ids[: ids.index(close)]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


# Merging


def merge(folder: Path, part: Shard, console: Console) -> bool:
    """Write the store's parquet file if all shards are complete; whether they are. Raises ConfigError, DiskFull."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prefixes import FILE, Facts, Stored, write
    from reasonrl.runs.files import replacing
    from reasonrl.runs.journal import Missing, read_shards, saying_how_to_continue

    with saying_how_to_continue(folder), (folder / ".merge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shards = read_shards(folder, part, lambda written, other: len(other.own(written.settings["problems"])))
        if isinstance(shards, Missing):
            console.print(
                f"shard {part} is complete, shard {shards.shard} has {shards.have} problems: the one that finishes last "
                f"writes {folder / FILE}"
            )
            return False
        first, *_ = shards
        rows = [Stored(**{**row, "paragraphs": tuple(row["paragraphs"])}) for written in shards for row in written.rows]
        rows.sort(key=lambda row: row.id)
        if len({row.id for row in rows}) < len(rows):
            raise ConfigError(f"two shards in {folder} hold the same problem: choose another store=, and start again")
        done = Facts(first.settings, first.about, counts(rows, first.settings["n"]))
        with replacing(folder / FILE) as scratch:
            write(scratch, rows, done)
    return True


def counts(rows: Sequence[Stored], n: int) -> dict[str, int]:
    """Totals over a store."""
    return {
        "problems": len(rows),
        "answers": n * len(rows),
        "right": sum(row.right for row in rows),
        "wrong_problems": sum(not row.correct for row in rows),
        "leaks": sum(row.leak for row in rows),
        "empty": sum(not row.paragraphs for row in rows),
        "sample_tokens": sum(row.sample_tokens for row in rows),
        "prefix_tokens": sum(row.prefix_tokens for row in rows),
    }


def read_store(file: Path) -> Facts:
    """What a finished store was made with. Raises ConfigError."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prefixes import read_facts

    try:
        return read_facts(file)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def summary(folder: Path, cfg: DictConfig, asked: Sequence[str], console: Console) -> None:
    """What the store holds, and how a run uses it."""
    from reasonrl.data.prefixes import FILE

    total = read_store(folder / FILE).counts
    problems = total["problems"]
    console.print(
        f"\nproblems                {problems}, {total['right'] / total['answers']:.1%} of {total['answers']} answers right\n"
        f"without a right answer  {total['wrong_problems']} ({total['wrong_problems'] / problems:.1%}); their prefix is "
        f"of a wrong one\n"
        f"tokens                  {total['sample_tokens'] / problems:.1f} a chosen answer, "
        f"{total['prefix_tokens'] / problems:.1f} of them stored\n"
        f"ended early             {total['leaks']} where the answer was stated; {total['empty']} are empty\n"
        f"store                   {folder / FILE}\n"
    )
    console.print(f"use it with: {usage(folder, cfg, asked)}")


def usage(folder: Path, cfg: DictConfig, asked: Sequence[str]) -> str:
    """The command line of a run that starts from this store."""
    from reasonrl.config import ConfigError, make_method, method_names

    kept = arguments.given_again(asked, cfg, OWN)
    if not any(arg.startswith(("method=", "recipe=")) for arg in kept):
        fitting = []
        for name in method_names():
            with contextlib.suppress(ConfigError):
                fitting += [name] * ("stored_prefix" in make_method(name).needs)
        kept = [f"method={fitting[0] if fitting else '<method>'}", *kept]
    return arguments.line(*kept, f"prefixes={folder}")
