"""The judge's desk: a queue with an end, as many programs at work as there are cores, verdicts remembered.

A program that waits (asleep, or for input) gives its core to the next one, so that sleepers cost no throughput; there
are at most `SLEEPERS` of them for each core. A job that is asked again while it is under way is run once.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from reasonrl.eval.judge.sandbox import Sandbox
from reasonrl.verify.judge.types import VERDICTS, Job, Outcome, Program

SLEEPERS = 8  # programs at work for each core, at most
TRIES = 2  # of a sandbox that failed
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, math.inf)  # seconds
LARGEST_REMEMBERED = 4096  # characters of output; 65,536 verdicts are then at most some hundred MB, usually 60
REMEMBERED = ("passed", "failed", "error", "unparseable", "output_limit", "timeout_cpu", "memory")


class Full(Exception):
    """The queue is full; `after`: seconds until there may be room."""

    def __init__(self, waiting: int, after: int) -> None:
        super().__init__(f"{waiting} jobs are waiting: ask again in {after} s")
        self.after = after


class Conflict(Exception):
    """The same id for another job."""


@dataclass
class Answer:
    """An outcome, and whether it had to be run."""

    outcome: Outcome
    cached: bool


@dataclass(eq=False)
class Desk:
    """All of it runs in one event loop; only the sandboxes run in threads."""

    sandbox: Sandbox
    cores: int = 1
    queue: int = 1024  # jobs that may wait
    cache: int = 65_536  # verdicts remembered
    accepted: int = 0
    answered: int = 0
    rejected: int = 0
    hits: int = 0
    waiting: int = 0
    running: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0  # of waiting and running, summed over the answered

    def __post_init__(self) -> None:
        self.free = self.cores
        self.line: deque[asyncio.Future[None]] = deque()
        self.pool = ThreadPoolExecutor(SLEEPERS * self.cores, thread_name_prefix="judge")
        self.under_way: dict[str, asyncio.Task[Outcome]] = {}
        self.known: OrderedDict[str, Outcome] = OrderedDict()
        self.ids: OrderedDict[str, str] = OrderedDict()  # id -> key of its job
        self.recent: deque[float] = deque(maxlen=64)  # seconds of a core that the last jobs took

    async def judge(self, task: Job | Program, id: str | None = None) -> Answer:
        """The outcome of a job. Raises Full, and Conflict for an id that was another job's."""
        key = self._key(task)
        if id is not None:
            if self.ids.setdefault(id, key) != key:
                raise Conflict(f"id {id!r} was another job's: give each job an id of its own")
            self.ids.move_to_end(id)
            while len(self.ids) > max(self.cache, 2 * self.queue):
                self.ids.popitem(last=False)
        outcome = self.known.get(key)
        if outcome is not None:
            self.known.move_to_end(key)
            self.hits += 1
            return Answer(outcome, True)
        work = self.under_way.get(key)
        shared = work is not None
        if work is None:
            if self.waiting >= self.queue:
                self.rejected += 1
                raise Full(self.waiting, self.patience())
            self.accepted += 1
            work = self.under_way[key] = asyncio.create_task(self._work(key, task))
        self.hits += shared
        # A client that goes away does not end the work: whoever asks again finds the verdict.
        return Answer(await asyncio.shield(work), shared)

    def patience(self) -> int:
        """Seconds until half of the queue is done, at the present speed."""
        seconds = sum(self.recent) / len(self.recent) if self.recent else 0.1
        return max(1, min(60, round(self.waiting * seconds / self.cores / 2)))

    def _key(self, task: Job | Program) -> str:
        image: str = self.sandbox.image.identity
        if isinstance(task, Job):
            key: str = task.key(image)
            return key
        return hashlib.sha256(repr((image, task)).encode("utf-8", "surrogatepass")).hexdigest()

    async def _work(self, key: str, task: Job | Program) -> Outcome:
        begin = time.monotonic()
        outcome = Outcome("sandbox_error", "not tried")
        try:
            for _ in range(TRIES):
                outcome = await self._once(task)
                if outcome.verdict != "sandbox_error" or not outcome.again:
                    break
        except Exception as error:  # ours; whoever waits must hear of it, and not as a verdict on the program
            outcome = Outcome("sandbox_error", f"{type(error).__name__}: {error}")
        finally:
            del self.under_way[key]
        # Of a wall timeout a busy machine may be the cause, so that it is not remembered.
        small = len(outcome.stdout) + len(outcome.stderr) <= LARGEST_REMEMBERED
        if self.cache and small and outcome.verdict in REMEMBERED:
            self.known[key] = outcome
            while len(self.known) > self.cache:
                self.known.popitem(last=False)
        self.answered += 1
        self.verdicts[outcome.verdict] += 1
        took = time.monotonic() - begin
        self.seconds += took
        self.buckets[next(edge for edge in BUCKETS if took <= edge)] += 1
        return outcome

    async def _once(self, task: Job | Program) -> Outcome:
        loop = asyncio.get_running_loop()
        await self._take()
        lent = False

        def lend() -> None:
            nonlocal lent
            if not lent and self.running < SLEEPERS * self.cores:
                lent = True
                self._give()

        def on_idle() -> None:
            loop.call_soon_threadsafe(lend)

        self.running += 1
        begin = time.monotonic()
        try:
            return await loop.run_in_executor(self.pool, self.sandbox.run, task, on_idle)
        finally:
            self.running -= 1
            if not lent:
                lent = True
                self.recent.append(time.monotonic() - begin)
                self._give()

    async def _take(self) -> None:
        """A core, in the order of asking."""
        if self.free > 0 and not self.line:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(turn)
        self.waiting += 1
        try:
            await turn
        finally:
            self.waiting -= 1

    def _give(self) -> None:
        while self.line:
            turn = self.line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    async def drain(self) -> None:
        """Until everything accepted is answered."""
        while self.under_way:
            await asyncio.wait(list(self.under_way.values()))

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        self.pool.shutdown()

    def metrics(self) -> str:
        """Prometheus' text format."""
        lines = []
        for name, kind, text, value in (
            ("accepted_total", "counter", "Jobs taken into the queue.", self.accepted),
            ("answered_total", "counter", "Jobs that got a verdict.", self.answered),
            ("rejected_total", "counter", "Jobs refused because the queue was full.", self.rejected),
            ("cache_hits_total", "counter", "Jobs answered without another run.", self.hits),
            ("waiting", "gauge", "Jobs in the queue.", self.waiting),
            ("running", "gauge", "Programs at work.", self.running),
            ("cores", "gauge", "Programs that may compute at once.", self.cores),
        ):
            lines += [f"# HELP judge_{name} {text}", f"# TYPE judge_{name} {kind}", f"judge_{name} {value}"]
        lines += ["# HELP judge_verdicts_total Verdicts.", "# TYPE judge_verdicts_total counter"]
        lines += [f'judge_verdicts_total{{verdict="{name}"}} {self.verdicts[name]}' for name in VERDICTS]
        lines += ["# HELP judge_seconds From acceptance to verdict.", "# TYPE judge_seconds histogram"]
        total = 0
        for edge in BUCKETS:
            total += self.buckets[edge]
            lines.append(f'judge_seconds_bucket{{le="{"+Inf" if edge == math.inf else edge}"}} {total}')
        lines += [f"judge_seconds_sum {self.seconds:.6f}", f"judge_seconds_count {total}"]
        return "\n".join(lines) + "\n"
