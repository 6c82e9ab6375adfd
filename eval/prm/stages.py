"""The stages of `reasonrl prm data`, for one shard of a store: responses, cuts, rollouts, and the merge of all shards."""

from __future__ import annotations

import contextlib
import fcntl
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.config import ConfigError, nearest
from reasonrl.data.prefixes import Facts
from reasonrl.eval.prm import responses as responding
from reasonrl.eval.prm.cuts import Cut, calibrated, cut_problem, pooled
from reasonrl.eval.prm.file import FILE, Ids, read_facts, write
from reasonrl.eval.prm.labels import Task, roll_out, tasks_of, together
from reasonrl.eval.prm.merge import all_labels, counts, rows
from reasonrl.eval.prm.programs import complete
from reasonrl.eval.prm.responses import Engine, Response, own_groups, read_back, sample_responses
from reasonrl.runs.files import replacing
from reasonrl.runs.journal import Journal, Missing, Shard, Written, read_shards, refuse_others, saying_how_to_continue
from reasonrl.sampled.answers import Progress, telling_what_is_kept
from reasonrl.sampled.problems import SPLITS

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.sampled.problems import Asked

RESPONSES, ROLLOUTS = "responses", "rollouts"  # folders of a store, each with a journal a shard


@dataclass(frozen=True)
class Knobs:
    """What is made of a model and its problems.

    n: responses a problem. rollouts: J, continuations of a cut; 0 leaves the labels out. quantile: share of tokens that
    end a step, the paper's is 0.02. tau: the threshold itself, instead. max_steps: steps of a response, of more the
    surest cuts are dropped. split: train or validation.
    """

    n: int = 30
    rollouts: int = 8
    quantile: float | None = 0.02
    tau: float | None = None
    max_steps: int = 16
    split: str = "train"

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("rollouts", 0), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if (self.quantile is None) == (self.tau is None):
            raise ConfigError("give quantile= or tau=, not both: tau is the threshold that a quantile would find")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ConfigError(f"quantile must be a share between 0 and 1, got {self.quantile}; 2 percent is 0.02")
        if self.tau is not None and not 0 < self.tau <= 1:
            raise ConfigError(f"tau must be a probability, above 0 and at most 1, got {self.tau}; 55 percent is 0.55")
        if self.split not in SPLITS:
            raise ConfigError(f"Unknown split '{self.split}'{nearest(self.split, SPLITS)}")


@dataclass(frozen=True)
class Work:
    """One shard of a store, from the first response to the merged file."""

    cfg: DictConfig
    knobs: Knobs
    part: Shard
    folder: Path
    console: Console
    problems: Asked
    about: dict[str, Any]

    @property
    def sampling(self) -> dict[str, Any]:
        """What the responses depend on."""
        return {**self.problems.settings, "split": self.knobs.split, "together": responding.TOGETHER}

    def settings(self, tau: float) -> dict[str, Any]:
        """What everything depends on. confidence: whose log-probabilities they are."""
        own = {name: getattr(self.knobs, name) for name in ("quantile", "rollouts", "max_steps")}
        return {**self.sampling, **own, "tau": tau, "confidence": "rollout"}

    @functools.cached_property
    def special_ids(self) -> Ids:
        """Tokens that never end a step."""
        return np.array(sorted({int(i) for i in self.problems.tokenizer.all_special_ids}), np.int32)

    def refuse_others(self) -> None:
        """Raise ConfigError unless the finished file was made with the same settings."""
        theirs = read_store(self.folder / FILE).settings
        refuse_others(self.folder / FILE, theirs, self.settings(self.knobs.tau or theirs.get("tau", 0.0)))

    def done(self) -> bool:
        """Whether the store is complete, after doing what this shard can."""
        with contextlib.ExitStack() as stack:
            engine = functools.cache(
                lambda: stack.enter_context(opened(self.cfg, self.problems.tokenizer, self.console))
            )
            self.respond(engine)
            responses = self.responses()
            if responses is None:
                return False
            tau = self.knobs.tau or self.calibrated(responses)
            cuts = self.cut(responses, tau)
            if self.knobs.rollouts:
                self.roll_out(engine, cuts, tau)
        return self.merge(cuts, tau)

    def respond(self, engine: Callable[[], Engine]) -> None:
        """Stage 1, of this shard."""
        loaded = self.problems.loaded
        groups = own_groups(self.part, len(loaded), self.knobs.n)
        with Journal.opened(self.folder / RESPONSES, self.part, self.sampling, self.about) as journal:
            todo = [group for group in groups if any(loaded.problems[place].id not in journal.done for place in group)]
            if not todo:
                return
            if journal.done:
                mine = sum(map(len, groups))
                self.console.print(
                    f"{journal.path} has {len(journal.done)} of the {mine} problems of this shard already"
                )
            with telling_what_is_kept(journal, "problems"):
                made = engine()
                progress = Progress(self.console, sum(map(len, todo)), answers="responses")
                progress.start()
                sample_responses(made, self.knobs.n, loaded, todo, journal, progress)

    def responses(self) -> list[list[Response]] | None:
        """Of every problem, in the order of the data; None while a shard has not all of its own. Raises ConfigError."""
        loaded = self.problems.loaded

        def wanted(written: Written, other: Shard) -> int:
            return sum(map(len, own_groups(other, len(loaded), self.knobs.n)))

        shards = read_shards(self.folder / RESPONSES, self.part, wanted)
        if isinstance(shards, Missing):
            self.console.print(
                f"shard {self.part} has its responses, shard {shards.shard} has those of {shards.have} problems: once all "
                "shards have theirs, give the command of each of them again"
            )
            return None
        rows = {row["id"]: row for written in shards for row in written.rows}
        if sorted(rows) != sorted(problem.id for problem in loaded.problems):
            raise ConfigError(
                f"the shards in {self.folder} are of other problems: choose another store=, and start again"
            )
        return [read_back(rows[problem.id]) for problem in loaded.problems]

    def calibrated(self, responses: Sequence[Sequence[Response]]) -> float:
        """tau of all responses. Raises ConfigError for too few tokens."""
        assert self.knobs.quantile is not None  # or there would be a tau
        return calibrated(pooled((r for some in responses for r in some), self.special_ids), self.knobs.quantile)

    def cut(self, responses: Sequence[Sequence[Response]], tau: float) -> list[list[Cut]]:
        """Stage 2."""
        stands = self.stands if self.knobs.rollouts else None
        cuts = [cut_problem(some, tau, self.special_ids, self.knobs.max_steps, stands) for some in responses]
        every = list(chain.from_iterable(cuts))
        ends, rolled = sum(len(cut.interior) for cut in every), sum(len(cut.owned) for cut in every)
        settled = sum(cut.settled for cut in every)
        self.console.print(
            f"tau {tau:.4f}: {ends / len(every):.2f} cuts a response"
            + (f", {rolled} of {ends} cuts to roll out" if self.knobs.rollouts else "")
            + (f"; {settled} stand after the program, whose verdict they take" if settled else "")
        )
        return cuts

    @functools.cached_property
    def stands(self) -> Callable[[Ids], bool] | None:
        """Whether tokens hold a whole program; None where answers are no programs, as any answer can be taken back."""
        from reasonrl.verify.pool import CODE

        verify = self.cfg.verify
        if verify.checker != CODE:
            return None
        decode = functools.partial(self.problems.tokenizer.decode, skip_special_tokens=True)
        return lambda token_ids: complete(decode(token_ids), verify.answer_after)

    def roll_out(self, engine: Callable[[], Engine], cuts: Sequence[Sequence[Cut]], tau: float) -> None:
        """Stage 3, of this shard."""
        loaded, rollouts = self.problems.loaded, self.knobs.rollouts
        groups = [
            group
            for places in own_groups(self.part, len(loaded), self.knobs.n)
            for group in together(self.tasks(places, cuts), rollouts)
        ]
        with Journal.opened(self.folder / ROLLOUTS, self.part, self.settings(tau), self.about) as journal:
            todo = [group for group in groups if any(task.id not in journal.done for task in group)]
            if not todo:
                return
            if journal.done:
                mine = sum(map(len, groups))
                self.console.print(
                    f"{journal.path} has {len(journal.done)} of the {mine} responses of this shard already"
                )
            with telling_what_is_kept(journal, "responses"):
                made = engine()
                progress = Progress(self.console, sum(map(len, todo)), what="responses", answers="continuations")
                progress.start()
                roll_out(made, rollouts, loaded, todo, journal, progress)

    def tasks(self, places: Sequence[int], cuts: Sequence[Sequence[Cut]]) -> list[Task]:
        """What is to be rolled out for these problems."""
        return [
            task for place in places for task in tasks_of(place, self.problems.loaded.problems[place].id, cuts[place])
        ]

    def merge(self, cuts: Sequence[Sequence[Cut]], tau: float) -> bool:
        """Write the file if all shards are complete; whether they are. Raises ConfigError, DiskFull."""
        with saying_how_to_continue(self.folder), (self.folder / ".merge.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rolled = self.rolled(cuts) if self.knobs.rollouts else {}
            if rolled is None:
                return False
            labelled = all_labels(self.problems, cuts, rolled if self.knobs.rollouts else None)
            total = counts(cuts, labelled, rolled, self.knobs.rollouts, self.special_ids, self.problems.tokenizer)
            with replacing(self.folder / FILE) as scratch:
                write(
                    scratch,
                    rows(self.problems, cuts, labelled, repeated=not self.knobs.rollouts),
                    Facts(self.settings(tau), self.about, total),
                )
        return True

    def rolled(self, cuts: Sequence[Sequence[Cut]]) -> dict[str, dict[str, Any]] | None:
        """The rows of all rollout journals by id; None while a shard has not all of its own. Raises ConfigError."""

        def wanted(written: Written, other: Shard) -> int:
            groups = own_groups(other, len(self.problems.loaded), self.knobs.n)
            return sum(len(self.tasks(places, cuts)) for places in groups)

        shards = read_shards(self.folder / ROLLOUTS, self.part, wanted)
        if isinstance(shards, Missing):
            self.console.print(
                f"shard {self.part} is complete, shard {shards.shard} has the rollouts of {shards.have} responses: the one "
                f"that finishes last writes {self.folder / FILE}"
            )
            return None
        return {row["id"]: row for written in shards for row in written.rows}


@contextlib.contextmanager
def opened(cfg: DictConfig, tokenizer: Any, console: Console) -> Iterator[Engine]:
    """The model and the verifier. Raises ConfigError."""
    from reasonrl.engine.sampling import open_sampler
    from reasonrl.verify.pool import Verifier, verify_from_config

    console.print("loading the model ...")
    with Verifier(verify_from_config(cfg.verify)) as verifier, open_sampler(cfg, tokenizer, logprobs=True) as sampler:
        verifier.warm_up()  # after vLLM, which may fork: no thread of a pool is running yet
        yield Engine(cfg, tokenizer, sampler, verifier)


def read_store(file: Path) -> Facts:
    """What a finished store was made with. Raises ConfigError."""
    try:
        return read_facts(file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
