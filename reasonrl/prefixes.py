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
import hashlib
import importlib.util
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported in the functions: `reasonrl prefixes --help` needs none of it
    from concurrent.futures import Future

    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.core import Problem
    from reasonrl.data.prefixes import Facts, Stored
    from reasonrl.data.problems import Loaded
    from reasonrl.engine.sampling import Sampler
    from reasonrl.runs.journal import Journal, Shard
    from reasonrl.verify.pool import Verdict, Verifier

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
TOLD_SECONDS = 10.0  # between two lines of progress


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
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
    tokenizer, loaded, facts = prepare(cfg, n, asked, console)
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
    from reasonrl.cli import check_key
    from reasonrl.config import ConfigError

    own: dict[str, str] = {}
    rest = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or arg.startswith(("-", "~")):
            raise ConfigError(f"'{arg}' is not key=value; reasonrl prefixes --help lists the keys")
        if key in ELSEWHERE:
            raise ConfigError(f"{key}= {ELSEWHERE[key]}")
        if key in OWN:
            if not value:
                raise ConfigError(f"{key}= is empty: give a value, or leave {key}= out")
            own[key] = value
        else:
            if key != "recipe":
                check_key(key, also=OWN)
            rest.append(arg)
    return own, rest


def composed_run(args: Sequence[str]) -> DictConfig:
    """The configuration of the run that these arguments would give. Raises ConfigError."""
    from reasonrl.cli import UsageError, composed, refuse_several, translate
    from reasonrl.config import ConfigError

    try:
        refuse_several(translate(args), sweep="this command makes one store")
        return composed(args)
    except UsageError as error:
        raise ConfigError(str(error)) from error


def whole_number(name: str, text: str) -> int:
    """A whole number of at least 1. Raises ConfigError."""
    from reasonrl.config import ConfigError

    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {text!r}")
    return int(text)


def checked(cfg: DictConfig, n: int) -> DictConfig:
    """The configuration, typed. Raises ConfigError for what cannot be sampled from; imports no torch."""
    from reasonrl.config import ConfigError, typed
    from reasonrl.models import check_model
    from reasonrl.runs.provenance import gpus
    from reasonrl.train import check_nodes

    if cfg.engine.name == "cluster":
        raise ConfigError(
            "engine=cluster: prefixes are sampled without Ray. On each machine use engine=gpu and a shard of its own, "
            "shard=0/2 and shard=1/2 for two of them; reasonrl prefixes --help says how the parts come together"
        )
    cfg = typed(cfg)
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    check_nodes(cfg)
    check_model(cfg)
    if cfg.engine.device == "cpu":
        return cfg
    if cfg.engine.rollout != "vllm":
        raise ConfigError(f"engine.rollout={cfg.engine.rollout}: prefixes are sampled with vllm, or with engine=cpu")
    have = len(gpus())
    if not have:
        raise ConfigError("engine=gpu and no NVIDIA GPU found (nvidia-smi lists none): use engine=cpu, or a GPU host")
    if cfg.engine.tensor_parallel > have:
        raise ConfigError(f"engine.tensor_parallel={cfg.engine.tensor_parallel} but this machine has {have} GPUs")
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine=gpu samples with vllm, which is not installed: pip install 'reasonrl[gpu]', or engine=cpu"
        )
    return cfg


def tell_idle_gpus(cfg: DictConfig, part: Shard, console: Console) -> None:
    """Say how to use the GPUs that this process leaves alone."""
    from reasonrl.runs.provenance import gpus

    have, used = len(gpus()), cfg.engine.tensor_parallel
    if cfg.engine.device != "cpu" and part.of == 1 and have >= 2 * used:
        console.print(
            f"{used} of {have} GPUs (engine.tensor_parallel): to use all, CUDA_VISIBLE_DEVICES=... and shard=i/{have // used}"
        )


# Preparing


def prepare(cfg: DictConfig, n: int, asked: Sequence[str], console: Console) -> tuple[Any, Loaded, Facts]:
    """Tokenizer, training problems with the prompts of training, and what the store is made with. Raises ConfigError."""
    from reasonrl.config import ConfigError, package_path
    from reasonrl.data.prefixes import Facts
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.launch import load_tokenizer
    from reasonrl.models import fetch

    tokenizer = load_tokenizer(cfg)
    try:
        loaded, data_sha256 = training_problems(cfg, tokenizer)
        prompt = prompt_from_config(cfg.prompt)
    except ValueError as error:  # DataError and friends say what, where and the way out
        raise ConfigError(str(error)) from error
    fetch(package_path(cfg.model.path))
    dropped = f" ({loaded.dropped_too_long} prompts over max_prompt_tokens dropped)" if loaded.dropped_too_long else ""
    console.print(f"{len(loaded)} training problems{dropped}, {n} answers each")
    about = {
        "model": cfg.model.name,
        "path": cfg.model.path,
        "data": cfg.data.name,
        "prompt": prompt.name,
        "command": ["reasonrl", "prefixes", *asked],
    }
    return tokenizer, loaded, Facts(settings(cfg, n, tokenizer, len(loaded), data_sha256), about)


def training_problems(cfg: DictConfig, tokenizer: Any) -> tuple[Loaded, str]:
    """As a run loads them, and the sha256 of the rows they come from. Raises DataError."""
    from reasonrl.data.items import DataError
    from reasonrl.data.prepare import build
    from reasonrl.data.problems import load
    from reasonrl.data.prompts import prompt_from_config

    with tempfile.TemporaryDirectory(prefix="reasonrl-prefixes-") as scratch:
        try:
            report = build(cfg.data, Path(scratch))["train"]
            loaded = load(
                report.path,
                prompt_from_config(cfg.prompt),
                tokenizer,
                max_prompt_tokens=cfg.max_prompt_tokens,
                overlong=cfg.data.get("overlong", "drop"),
                solutions=False,
            )
        except DataError as error:
            raise DataError(str(error).replace(f"{scratch}/", "")) from error  # nobody can look there
    return loaded, report.sha256


def settings(cfg: DictConfig, n: int, tokenizer: Any, problems: int, data_sha256: str) -> dict[str, Any]:
    """Everything that the content of a store depends on; a store is continued with the same ones only."""
    from reasonrl.config import package_path
    from reasonrl.data.prefixes import prompt_facts, tokenizer_fingerprint
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.models import model_fingerprint
    from reasonrl.verify.pool import verify_from_config

    verify = asdict(verify_from_config(cfg.verify))
    return {
        "model": model_fingerprint(package_path(cfg.model.path)),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": data_sha256,
        "problems": problems,
        **prompt_facts(prompt_from_config(cfg.prompt), tokenizer),
        **{f"verify.{name}": verify[name] for name in ("checker", "extract", "answer_after", "timeout")},
        "engine": cfg.engine.device,
        "n": n,
        **{name: cfg[name] for name in ("seed", "temperature", "top_p", "top_k")},
        **{name: cfg[name] for name in ("max_prompt_tokens", "max_new_tokens")},
    }


# Sampling


@dataclass(frozen=True)
class Sample:
    """One answer of the initial model."""

    number: int
    token_ids: list[int]  # the end token included when it was emitted
    finished: bool
    verdict: Future[Verdict]

    @property
    def correct(self) -> bool:
        return self.verdict.result().correct


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

    from reasonrl.config import ConfigError
    from reasonrl.engine.sampling import open_sampler
    from reasonrl.verify.pool import Verifier, VerifierError, verify_from_config

    verify = verify_from_config(cfg.verify)
    progress = Progress(console, len(indices))
    try:
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
    except VerifierError as error:
        raise ConfigError(str(error)) from error
    except KeyboardInterrupt as stop:
        journal.flush()
        raise KeyboardInterrupt(
            f"{len(journal.done)} problems are kept in {journal.path.parent}. Continue with the same command"
        ) from stop


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
    from reasonrl.engine.sampling import Ask, Sampling

    def asks() -> Iterator[Ask]:
        for index in indices:
            problem = loaded.problems[index]
            for number in range(n):
                sampling = Sampling(
                    temperature=cfg.temperature,
                    top_p=cfg.top_p,
                    top_k=cfg.top_k,
                    max_tokens=cfg.max_new_tokens,
                    seed=noise_key(cfg.seed, problem.id, number),
                )
                yield Ask((index, number), problem.prompt_ids.tolist(), sampling)

    started: dict[int, list[Sample]] = {}
    sampled: deque[int] = deque()  # all answers are there; some verdicts may be missing
    for answer in sampler.answers(asks()):
        index, number = answer.key
        text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        verdict = verifier.submit(text, loaded.problems[index].answer)
        samples = started.setdefault(index, [])
        samples.append(Sample(number, answer.token_ids, answer.finished, verdict))
        if len(samples) == n:
            sampled.append(index)
        while sampled and all(sample.verdict.done() for sample in started[sampled[0]]):
            index = sampled.popleft()
            yield index, sorted(started.pop(index), key=lambda sample: sample.number)
    for index in sampled:
        yield index, sorted(started.pop(index), key=lambda sample: sample.number)


def noise_key(seed: int, problem_id: str, number: int) -> tuple[int, ...]:
    """What an answer's noise follows from; numbers below 2**32."""
    digest = hashlib.blake2b(problem_id.encode("utf-8", "replace"), digest_size=8).digest()
    return (seed, int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"), number)


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


class Progress:
    """A line every few seconds: problems done, share of right answers, tokens a second, time left."""

    def __init__(self, console: Console, problems: int) -> None:
        self.console, self.problems = console, problems
        self.done = self.answers = self.right = self.tokens = 0

    def start(self) -> None:
        """The model is loaded."""
        self.started = self.told = time.monotonic()

    def __call__(self, samples: Sequence[Sample]) -> None:
        """Count a finished problem."""
        from reasonrl.runs.console import clock

        self.done += 1
        self.answers += len(samples)
        self.right += sum(sample.correct for sample in samples)
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        now = time.monotonic()
        if now - self.told < TOLD_SECONDS and self.done < self.problems:
            return
        self.told = now
        spent = max(now - self.started, 1e-3)
        self.console.print(
            f"problems {self.done:>{len(str(self.problems))}}/{self.problems}  right answers "
            f"{self.right / self.answers:6.1%}  {self.tokens / spent:,.0f} tokens/s  "
            f"left {clock(spent / self.done * (self.problems - self.done))}"
        )


# Merging


def merge(folder: Path, part: Shard, console: Console) -> bool:
    """Write the store's parquet file if all shards are complete; whether they are. Raises ConfigError, DiskFull."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prefixes import FILE, Facts, Stored, write
    from reasonrl.runs.files import replacing
    from reasonrl.runs.journal import read_journal, refuse_others, saying_how_to_continue

    with saying_how_to_continue(folder), (folder / ".merge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, rows = None, []
        for other in part.all:
            written = read_journal(other.file(folder))
            have = len(written.rows) if written else 0
            if written is None or have < len(other.own(written.settings["problems"])):
                console.print(
                    f"shard {part} is complete, shard {other} has {have} problems: the one that finishes last writes "
                    f"{folder / FILE}"
                )
                return False
            first = first or written
            refuse_others(other.file(folder), written.settings, first.settings)
            rows += [Stored(**{**row, "paragraphs": tuple(row["paragraphs"])}) for row in written.rows]
        rows.sort(key=lambda row: row.id)
        if len({row.id for row in rows}) < len(rows):
            raise ConfigError(f"two shards in {folder} hold the same problem: choose another store=, and start again")
        assert first is not None
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
    from reasonrl.cli import options
    from reasonrl.config import ConfigError, make_method, method_names

    kept = [arg for arg in asked if arg.partition("=")[0] not in OWN]
    if not asked:
        kept = [
            f"model={cfg.model.name if cfg.model.name in options('model') else cfg.model.path}",
            f"data={cfg.data.name}",
        ]
    if not any(arg.startswith(("method=", "recipe=")) for arg in kept):
        fitting = []
        for name in method_names():
            with contextlib.suppress(ConfigError):
                fitting += [name] * ("stored_prefix" in make_method(name).needs)
        kept = [f"method={fitting[0] if fitting else '<method>'}", *kept]
    return shlex.join(["reasonrl", *kept, f"prefixes={folder}"])
