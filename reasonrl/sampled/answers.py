"""Asking and judging: many answers a task, each judged while the next are sampled, told as it goes."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported in the functions: whoever only prints help needs none of it
    from concurrent.futures import Future

    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.engine.sampling import Answer, Ask, Sampler, Sampling
    from reasonrl.runs.journal import Journal
    from reasonrl.verify.pool import Verdict

TOLD_SECONDS = 10.0  # between two lines of progress


@dataclass(frozen=True)
class Sample:
    """One answer of the model."""

    number: int
    token_ids: list[int]  # the end token included when it was emitted
    finished: bool
    verdict: Future[Verdict]
    logprobs: list[float] | None = None  # of token_ids, when the sampler was opened for them

    @property
    def correct(self) -> bool:
        return self.verdict.result().correct


def judged(
    asks: Iterable[Ask],
    wanted: Callable[[Any], int],
    sampler: Sampler,
    judge: Callable[[Answer], Future[Verdict]],
) -> Iterator[tuple[Any, list[Sample]]]:
    """Tasks with all their answers, sampled and judged, as they get done; answers in the order of their numbers.

    asks: their keys are (task, number). wanted: how many answers a task has.
    """
    started: dict[Hashable, list[Sample]] = {}
    sampled: deque[Hashable] = deque()  # all answers are there; some verdicts may be missing
    for answer in sampler.answers(asks):
        task, number = answer.key
        samples = started.setdefault(task, [])
        samples.append(Sample(number, answer.token_ids, answer.finished, judge(answer), answer.logprobs))
        if len(samples) == wanted(task):
            sampled.append(task)
        while sampled and all(sample.verdict.done() for sample in started[sampled[0]]):
            task = sampled.popleft()
            yield task, sorted(started.pop(task), key=lambda sample: sample.number)
    for task in sampled:
        yield task, sorted(started.pop(task), key=lambda sample: sample.number)


def sampling(cfg: DictConfig, seed: tuple[int, ...], *, max_tokens: int | None = None) -> Sampling:
    """How a run samples its training rollouts, with this noise. max_tokens: default all of max_new_tokens."""
    from reasonrl.engine.sampling import Sampling

    return Sampling(
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        max_tokens=cfg.max_new_tokens if max_tokens is None else max_tokens,
        seed=seed,
    )


def noise_key(seed: int, name: str, number: int) -> tuple[int, ...]:
    """What an answer's noise follows from, numbers below 2**32. name: the problem's id, or what else was asked."""
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
    return (seed, int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"), number)


@contextlib.contextmanager
def telling_what_is_kept(journal: Journal, what: str) -> Iterator[None]:
    """A Ctrl-C or a judge that fails says what the journal keeps and how to continue.

    A verifier that cannot work is a ConfigError.
    """
    from reasonrl.config import ConfigError, RunFailed
    from reasonrl.verify.pool import VerifierError

    try:
        yield
    except VerifierError as error:
        raise ConfigError(str(error)) from error
    except (KeyboardInterrupt, RunFailed) as stop:
        journal.flush()
        kept = f"{len(journal.done)} {what} are kept in {journal.path.parent}. Continue with the same command"
        if isinstance(stop, RunFailed):
            raise RunFailed(f"{stop}. {kept}") from stop
        raise KeyboardInterrupt(kept) from stop


class Progress:
    """A line every few seconds: tasks done, share of right answers, tokens a second, time left."""

    def __init__(self, console: Console, tasks: int, *, what: str = "problems", answers: str = "answers") -> None:
        self.console, self.tasks, self.what, self.named = console, tasks, what, answers
        self.done = self.answers = self.right = self.tokens = 0

    def start(self) -> None:
        """The model is loaded."""
        self.started = self.told = time.monotonic()

    def __call__(self, samples: Sequence[Sample]) -> None:
        """Count a finished task."""
        from reasonrl.runs.console import clock

        self.done += 1
        self.answers += len(samples)
        self.right += sum(sample.correct for sample in samples)
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        now = time.monotonic()
        if now - self.told < TOLD_SECONDS and self.done < self.tasks:
            return
        self.told = now
        spent = max(now - self.started, 1e-3)
        self.console.print(
            f"{self.what} {self.done:>{len(str(self.tasks))}}/{self.tasks}  right {self.named} "
            f"{self.right / self.answers:6.1%}  {self.tokens / spent:,.0f} tokens/s  "
            f"left {clock(spent / self.done * (self.tasks - self.done))}"
        )
