"""The verifier: text in, verdict out, whatever the text does to the mathematics libraries behind it.

    text -> cut_reasoning -> extract_answer -> quick() -> cache -> a worker process with a deadline

What needs no library is answered at once in the caller's thread (no answer, equal text, whole numbers, options). The
rest goes to worker processes that are killed at the deadline: threads cannot be stopped, and `signal.alarm` works only
in a main thread. Workers start at the first need, by `spawn`, because this runs inside Ray actors with torch threads.
A worker that dies costs one `error` verdict and is replaced.

Programs (`checker=code`) go to a judge instead, which runs them: `code.py`. Without one there is no verdict at all.
"""

import asyncio
import ipaddress
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from reasonrl.data.typed import typed, unknown_name
from reasonrl.verify import checkers
from reasonrl.verify.extract import CUTS, MODES, cut_reasoning, extract_answer
from reasonrl.verify.release import PHRASE
from reasonrl.verify.workers import CLOSED, Outcome, Status, Task, Workers

if TYPE_CHECKING:
    from reasonrl.verify.code import Programs, Ruling

Key = tuple[str, str, str]  # checker, extracted, gold

CODE = "code"  # the checker that asks a judge
FIRST_FENCE = "first_fence"  # of code: the first fenced block, as released with arXiv 2502.15771
ADDRESSES = ("http://", "https://", "unix:")
MAX_ANSWER_CHARS = 2_000  # longer is never compared; the longest golds seen: MATH500 53, DeepMath 161
STALL_SECONDS = 60.0  # a worker that does not start and take its work for a deadline and this long is stuck
COUNTS = ("checked", "cached", "no_answer", "timeout", "error")


class VerifierError(RuntimeError):
    """The verifier itself cannot work: a library is missing, or it was closed."""


@dataclass(frozen=True)
class VerifyConfig:
    """How answers are found and compared; the `verify` group of the configuration."""

    # either | mathruler | math_verify | exact | choice | code | gsm8k_release | math_release
    checker: str = "either"
    extract: str = "auto"  # auto | boxed | answer_tag | hashes | phrase_number | last_box: where the answer may stand
    answer_after: str = "none"  # none | first_think | last_think: only text after </think> is scored
    timeout: float = 10.0  # seconds for one comparison; larger accepts slower mathematics, and waits longer for hangs
    workers: int = 1  # processes; one does about 1,000 comparisons a second; an evaluation takes one a core
    cache_size: int = 65_536  # verdicts remembered; 0 turns the cache off
    answer_phrase: str = PHRASE  # of extract=phrase_number: what stands before the answer
    # of code alone:
    judge: str | None = None  # address of a `reasonrl judge`; null: one of our own is started
    cpu_seconds: float = 3.0  # of a program, the clock of the verdict; of one that reads stdin for each input
    memory_mb: int = 1024  # of a program; below 600 numpy does not load

    def __post_init__(self) -> None:
        for kind, got, known in (
            ("verify.checker", self.checker, (*checkers.CHECKERS, CODE)),
            ("verify.extract", self.extract, (*MODES, FIRST_FENCE)),
            ("verify.answer_after", self.answer_after, CUTS),
        ):
            if got not in known:
                raise ValueError(unknown_name(kind, got, known))
        if (self.extract == FIRST_FENCE) > (self.checker == CODE):
            raise ValueError(
                f"verify.extract={FIRST_FENCE} finds programs, which verify.checker={self.checker} cannot compare"
            )
        if self.checker == CODE and self.extract not in ("auto", FIRST_FENCE):
            raise ValueError(f"verify.extract={self.extract} finds no programs: choose auto or {FIRST_FENCE}")
        if not self.answer_phrase:
            raise ValueError(
                "verify.answer_phrase is empty: give the words before the answer, such as 'The answer is: '"
            )
        if not self.timeout > 0:
            raise ValueError(f"verify.timeout must be > 0 seconds, got {self.timeout}")
        if self.workers < 1:
            raise ValueError(f"verify.workers must be >= 1, got {self.workers}")
        if self.cache_size < 0:
            raise ValueError(f"verify.cache_size must be >= 0, got {self.cache_size}")
        if not 0.1 <= self.cpu_seconds < float("inf"):
            raise ValueError(f"verify.cpu_seconds must be >= 0.1, got {self.cpu_seconds}")
        if self.memory_mb < 64:
            raise ValueError(f"verify.memory_mb must be >= 64, got {self.memory_mb}")
        if self.judge is not None and not is_address(self.judge):
            raise ValueError(
                f"verify.judge must be https://..., unix:... or, on this machine, http://127.0.0.1:..., got {self.judge!r}"
            )

    @property
    def mode(self) -> str:
        """Where the answer may stand: `extract`, or for auto the checker's own rule where it has one."""
        return checkers.OWN_EXTRACT.get(self.checker, self.extract) if self.extract == "auto" else self.extract

    def extract_from(self, text: str) -> str | None:
        """The answer that a text states."""
        return extract_answer(text, self.mode, phrase=self.answer_phrase)

    @property
    def comparable(self) -> dict[str, Any]:
        """What verdicts follow from."""
        names = ["checker", "extract", "answer_after", "timeout"]
        if self.checker == CODE:
            names += ["cpu_seconds", "memory_mb"]
        if self.mode == "phrase_number":
            names += ["answer_phrase"]
        return {name: getattr(self, name) for name in names}


def is_address(url: str) -> bool:
    """Whether a judge may be there: `https://host:port`, `unix:path`, and `http://` on this machine.

    Elsewhere http would send the token, and programs, for everybody to read; no judge of ours listens there without TLS.
    """
    try:
        parts = urlsplit(url)
        if not url.startswith(ADDRESSES) or parts.port == 0:
            return False
        if parts.scheme == "http":
            return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        return bool(parts.path if parts.scheme == "unix" else parts.hostname)
    except ValueError:  # no port, or half an address
        return False


def verify_from_config(cfg: Mapping[str, Any]) -> VerifyConfig:
    """The `verify` node of a composed configuration. Raises ValueError for unknown keys, naming the nearest ones."""
    return typed(VerifyConfig, cfg, "verify")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's word on one response."""

    correct: bool
    extracted: str | None  # the answer that was compared; None when the text states none
    status: Status  # anything but "ok" is wrong, and says why
    message: str = ""


@dataclass(eq=False)
class _Job:
    """One comparison under way, and everybody who waits for it."""

    key: Key
    waiting: list[Future[Verdict]]


class Verifier:
    """Scores texts against gold answers; safe to use from many threads and tasks at once. Close it, or use `with`."""

    def __init__(self, config: VerifyConfig | None = None) -> None:
        """Raises VerifierError when the checker's library is not installed. Starts no process yet."""
        self.config = config or VerifyConfig()
        if (name := checkers.missing_library(self.config.checker)) is not None:
            raise VerifierError(
                f"verify={self.config.checker} needs {name!r}, which is not installed: "
                f"pip install {name.replace('_', '-')}, or choose verify=exact"
            )
        self._lock = threading.RLock()  # guards everything below
        self._cache: OrderedDict[Key, bool] = OrderedDict()
        self._jobs: dict[Key, _Job] = {}
        self._pool: Workers | None = None
        self._closed = threading.Event()
        self._counts = dict.fromkeys(COUNTS, 0)
        self._taken = dict.fromkeys(COUNTS, 0)
        self._programs = _programs(self.config) if self.config.checker == CODE else None

    # -- asking ------------------------------------------------------------------------------------------------------

    def submit(self, text: str, answer: str) -> Future[Verdict]:
        """Score `text` against the gold `answer`. A bad text or answer never raises; it is a verdict.

        The future cannot be cancelled; of a program it raises JudgeError where nobody can say. Raises VerifierError only
        after `close`.
        """
        if self._closed.is_set():
            raise VerifierError("this Verifier is closed")
        future: Future[Verdict] = Future()
        future.set_running_or_notify_cancel()
        if self._programs is not None:
            self._run(self._programs, text, answer, future)
            return future
        verdict = self._at_once(text, answer)
        if verdict is not None:
            self._say(verdict, future)
        else:
            extracted = self._extract(text)
            assert extracted is not None  # otherwise there was a verdict at once
            self._enqueue((self.config.checker, extracted, answer.strip()), future)
        return future

    async def verify(self, text: str, answer: str) -> Verdict:
        """`submit` for asyncio."""
        future = self.submit(text, answer)
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Score (text, answer) pairs; verdicts in the same order."""
        return [future.result() for future in [self.submit(text, answer) for text, answer in pairs]]

    def warm_up(self) -> None:
        """Start the workers and see one right comparison through, so that a broken installation fails now.

        Raises VerifierError with the worker's own message; ConfigError or JudgeError without a judge for programs. Does
        nothing for checkers that need no process.
        """
        if self._programs is not None:
            self._programs.open()
        if self.config.checker not in checkers.LIBRARIES:
            return
        right = ("0.5" if self.config.checker == "mathruler" else r"\frac{2}{4}", r"\frac{1}{2}")
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        for _ in range(self.config.workers):  # none is idle yet, so each starts another process
            self._workers().put(Task(*right, outcomes.put))
        for _ in range(self.config.workers):
            outcome = outcomes.get()
            if outcome.status != "ok":
                raise VerifierError(f"verify={self.config.checker} does not work here: {outcome.message}")
            if not outcome.correct:
                raise VerifierError(f"verify={self.config.checker} calls {right[0]} and {right[1]} different")

    def counts(self) -> dict[str, int]:
        """Verdicts since the start: all of them `checked`; of these `cached`, `no_answer`, `timeout`, `error`."""
        with self._lock:
            return dict(self._counts)

    def take_counts(self) -> dict[str, int]:
        """Like `counts`, since the last call of `take_counts`."""
        with self._lock:
            new = {name: self._counts[name] - self._taken[name] for name in COUNTS}
            self._taken = dict(self._counts)
            return new

    def close(self) -> None:
        """Kill the workers. Whoever still waits gets an `error` verdict; of a program JudgeError."""
        self._closed.set()
        if self._programs is not None:
            self._programs.close()
        with self._lock:
            pool, self._pool = self._pool, None
            jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            self._answer(job, Verdict(False, job.key[1], CLOSED.status, CLOSED.message))
        if pool is not None:
            pool.close()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- answering at once -------------------------------------------------------------------------------------------

    def _at_once(self, text: str, answer: str) -> Verdict | None:
        if not isinstance(answer, str) or not answer.strip():
            return Verdict(False, None, "error", f"the gold answer must be a non-empty text, got {answer!r}")
        if len(answer) > MAX_ANSWER_CHARS:
            return Verdict(False, None, "error", f"the gold answer has over {MAX_ANSWER_CHARS} characters")
        extracted = self._extract(text)
        if extracted is None:
            return Verdict(False, None, "no_answer")
        if len(extracted) > MAX_ANSWER_CHARS:
            message = f"{len(extracted)} characters; more than {MAX_ANSWER_CHARS} are never compared"
            return Verdict(False, extracted[:MAX_ANSWER_CHARS], "ok", message)
        correct = checkers.quick(self.config.checker, extracted, answer.strip())
        return None if correct is None else Verdict(correct, extracted, "ok")

    def _extract(self, text: str) -> str | None:
        scored = cut_reasoning(text, self.config.answer_after) if isinstance(text, str) else None
        return self.config.extract_from(scored) if scored else None

    # -- asking a judge ----------------------------------------------------------------------------------------------

    def _run(self, programs: "Programs", text: str, answer: str, future: Future[Verdict]) -> None:
        from reasonrl.verify.code import program_in

        scored = cut_reasoning(text, self.config.answer_after) if isinstance(text, str) else None
        program = program_in(scored, released=self.config.extract == FIRST_FENCE) if scored else None
        if program is None:
            self._say(Verdict(False, None, "no_answer"), future)
            return

        def finish(asked: "Future[Ruling]") -> None:
            error = asked.exception()
            if error is not None:
                future.set_exception(error)
                return
            found = asked.result()
            given = None if found.status == "no_answer" else program
            self._say(Verdict(found.correct, given, cast(Status, found.status), found.message), future)

        programs.submit(answer, program).add_done_callback(finish)

    def _say(self, verdict: Verdict, future: Future[Verdict]) -> None:
        with self._lock:
            self._count(verdict)
        future.set_result(verdict)

    # -- answering in a worker ---------------------------------------------------------------------------------------

    def _enqueue(self, key: Key, future: Future[Verdict]) -> None:
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                verdict = Verdict(known, key[1], "ok")
                self._count(verdict, cached=True)
            elif key in self._jobs:
                self._jobs[key].waiting.append(future)
                return
            else:
                job = self._jobs[key] = _Job(key, [future])
        if known is not None:
            future.set_result(verdict)
        else:
            self._schedule(job)

    def _schedule(self, job: _Job) -> None:
        _, extracted, gold = job.key
        try:
            self._workers().put(Task(extracted, gold, lambda outcome: self._finish(job, outcome)))
        except VerifierError:  # closed since `submit` looked
            self._finish(job, CLOSED)

    def _workers(self) -> Workers:
        with self._lock:
            if self._closed.is_set():
                raise VerifierError("this Verifier is closed")
            if self._pool is None:
                self._pool = Workers(self.config.checker, self.config.timeout, self.config.workers, STALL_SECONDS)
            return self._pool

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        """Runs in a thread of the workers."""
        verdict = Verdict(outcome.correct, job.key[1], outcome.status, outcome.message)
        with self._lock:
            if self._jobs.get(job.key) is not job:
                return  # given up by `close`
            del self._jobs[job.key]
            if verdict.status == "ok" and self.config.cache_size:  # a timeout may be a busy machine: tried again
                self._cache[job.key] = verdict.correct
                while len(self._cache) > self.config.cache_size:
                    self._cache.popitem(last=False)
        self._answer(job, verdict)

    def _answer(self, job: _Job, verdict: Verdict) -> None:
        with self._lock:
            for rank in range(len(job.waiting)):
                self._count(verdict, cached=rank > 0)
        for future in job.waiting:
            future.set_result(verdict)

    def _count(self, verdict: Verdict, cached: bool = False) -> None:
        self._counts["checked"] += 1
        self._counts["cached"] += cached
        if verdict.status != "ok":
            self._counts[verdict.status] += 1


def _programs(config: VerifyConfig) -> "Programs":
    from reasonrl.verify.code import Programs  # and with it a client of HTTP

    return Programs(config)
