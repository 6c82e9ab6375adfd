"""Processes that compare, and the threads that feed them and kill them at the deadline.

    Workers.put(task) -> queue -> a thread -> its own pipe -> its own process (`worker.serve`) -> task.done(outcome)

A thread hands its process a batch and gets the verdicts back one by one, so a message serves many comparisons and each
of them still has a deadline of its own. Whoever is late or dies costs one verdict: the process is killed, the rest of
the batch goes to the front of the queue. No pipe or lock is shared, so a killed process leaves nothing locked behind.
Threads and processes start as the queue needs them, up to `count`.
"""

import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from reasonrl.verify import worker

Status = Literal["ok", "no_answer", "timeout", "error"]

BATCH = 16  # comparisons a message; a hang holds up at most the rest of its batch, for one deadline
MAX_TRIES = 3  # processes that may die before one says that it has the batch


class Outcome(NamedTuple):
    """How a comparison ended; anything but "ok" is wrong, and says why."""

    correct: bool
    status: Status
    message: str = ""


CLOSED = Outcome(False, "error", "the verifier was closed")


@dataclass(eq=False, slots=True)
class Task:
    """One comparison. `done` is called once, in a thread of `Workers`, and must not raise."""

    extracted: str
    gold: str
    done: Callable[[Outcome], None]
    tries: int = 0


class Workers:
    """At most `count` processes with one `checker`. Each comparison gets `timeout` seconds.

    `stall` is how long a process may take, beyond that, to start and say that it has its batch.
    """

    def __init__(self, checker: str, timeout: float, count: int, stall: float) -> None:
        """Starts nothing yet."""
        self._checker, self._timeout, self._count, self._stall = checker, timeout, count, stall
        self._changed = threading.Condition()  # guards everything below
        self._queue: deque[Task] = deque()
        self._threads: list[threading.Thread] = []
        self._processes: set[_Process] = set()
        self._idle = 0
        self._closed = False
        atexit.register(self.close)  # before multiprocessing waits for the processes

    def put(self, task: Task) -> None:
        """Queue a comparison."""
        with self._changed:
            if not self._closed:
                self._queue.append(task)
                self._changed.notify()
                if len(self._queue) > self._idle and len(self._threads) < self._count:
                    thread = threading.Thread(target=self._serve, name="verify", daemon=True)
                    self._threads.append(thread)
                    thread.start()
                return
        task.done(CLOSED)

    def close(self) -> None:
        """Kill the processes. What is not done ends with an error."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, deque()
            self._changed.notify_all()
            for process in self._processes:
                process.signal()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for task in waiting:
            task.done(CLOSED)
        for thread in threads:
            thread.join(5.0)  # it only has to collect a killed process
        atexit.unregister(self.close)

    # -- in a thread of its own --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        process: _Process | None = None
        while batch := self._take():
            try:
                process = process or self._start()
            except Exception as problem:  # no memory, no file left, a parent that may have no children
                self._try_again(batch, repr(problem))
                kept = False
            else:
                kept = self._ask(process, batch)
            if not kept:
                self._end(process)
                process = None
                self._put_back(batch)
        self._end(process)

    def _take(self) -> deque[Task]:
        """The next batch; empty when closed. A short queue is shared out."""
        with self._changed:
            while not self._queue and not self._closed:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            size = 0 if self._closed else min(BATCH, len(self._queue) // (2 * self._count) + 1)
            return deque(self._queue.popleft() for _ in range(size))

    def _ask(self, process: "_Process", batch: deque[Task]) -> bool:
        """Have a batch compared, taking what is done out of it. False when the process has to go."""
        patience = self._timeout + self._stall
        try:
            process.send([(task.extracted, task.gold) for task in batch])
            process.receive(patience)  # it has the batch
        except TimeoutError:
            while batch:
                batch.popleft().done(Outcome(False, "error", f"no worker answered for {patience:g} s"))
            return False
        except (EOFError, OSError):
            self._try_again(batch, f"it died, {process.kill()}")
            return False
        while batch:
            try:
                answer = process.receive(self._timeout)
            except TimeoutError:
                outcome = Outcome(False, "timeout", f"no verdict in {self._timeout:g} s")
            except (EOFError, OSError):
                outcome = Outcome(False, "error", f"the worker process died, {process.kill()}")
            else:
                batch.popleft().done(_outcome(answer))
                continue
            process.kill()
            batch.popleft().done(outcome)
            return False
        return True

    def _put_back(self, batch: deque[Task]) -> None:
        with self._changed:
            if not self._closed:
                self._queue.extendleft(reversed(batch))
                self._changed.notify(len(batch))
                return
        for task in batch:
            task.done(CLOSED)

    def _try_again(self, batch: deque[Task], why: str) -> None:
        """Nothing of the batch was begun. What was tried too often is given up, so that a broken start ends."""
        for _ in range(len(batch)):
            task = batch.popleft()
            task.tries += 1
            if task.tries < MAX_TRIES:
                batch.append(task)
            else:
                task.done(Outcome(False, "error", f"no worker process: {why}"))

    def _start(self) -> "_Process":
        process = _Process(self._checker, self._timeout)
        with self._changed:
            self._processes.add(process)
            if self._closed:
                process.signal()
        return process

    def _end(self, process: "_Process | None") -> None:
        if process is not None:
            with self._changed:
                self._processes.discard(process)
            process.kill()
            process.pipe.close()


class _Process:
    """A worker process and the pipe to it."""

    def __init__(self, checker: str, timeout: float) -> None:
        """Raises OSError when it cannot be started."""
        context = worker.spawn_context()
        self.pipe, theirs = context.Pipe()
        with theirs:  # only the process keeps its end, so that its death is seen here
            self._process = context.Process(
                target=worker.serve, args=(theirs, checker, timeout), name="reasonrl-verify", daemon=True
            )
            self._process.start()

    def send(self, batch: list[tuple[str, str]]) -> None:
        self.pipe.send(batch)

    def receive(self, timeout: float) -> bytes:
        """The next message. Raises TimeoutError when there is none in time, EOFError or OSError when it died."""
        if not self.pipe.poll(timeout):
            raise TimeoutError
        return self.pipe.recv_bytes()

    def signal(self) -> None:
        """Kill it, from any thread."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def kill(self) -> str:
        """Kill it, wait for its end, and say how it ended."""
        self.signal()
        self._process.join()
        return f"exit code {self._process.exitcode}"


def _outcome(answer: bytes) -> Outcome:
    if answer in (worker.RIGHT, worker.WRONG):
        return Outcome(answer == worker.RIGHT, "ok")
    return Outcome(False, "error", answer.decode(errors="replace"))
