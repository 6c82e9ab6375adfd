"""Several copies of a model, each in a process of its own, fed from one list.

An ask goes to the copy that has the fewest answers under way. A copy that dies is an error that says so; its unfinished
answers are made when the same command is given again.

Each copy leads a process group, so that what it started (an engine has processes of its own) ends with it, also when this
process is killed: the copy sees its pipe close.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.backends import Answer, Ask

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

LOOK_SECONDS = 1.0  # between two looks whether all copies live
END_SECONDS = 20.0  # for a copy to end by itself
GROUP = 64  # answers of one message

# A copy's main loop: from a source of asks to answers; see `reasonrl.eval.backends.vllm.Source`.
Serve = Callable[[Any], Iterator[Answer]]


class Replicas:
    """Copies that `make(rank)` opens in processes of their own. Use `with`."""

    def __init__(
        self, make: Callable[[int], Serve], environments: Sequence[Mapping[str, str]], *, at_once: int
    ) -> None:
        """make: is pickled; its modules are imported before the copy's environment is set, so it must import torch itself.

        environments: one a copy. at_once: answers that one copy may have under way.
        """
        self._make, self._environments, self._at_once = make, environments, at_once
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def facts(self) -> dict[str, Any]:
        return {"copies": len(self._environments)}

    def __enter__(self) -> Replicas:
        """Start all of them, and wait until they are ready. Raises ConfigError when one cannot start."""
        spawn = multiprocessing.get_context("spawn")
        try:
            for rank, environment in enumerate(self._environments):
                mine, theirs = spawn.Pipe()
                process = spawn.Process(
                    target=_work, args=(self._make, rank, dict(environment), theirs), name=f"eval-replica-{rank}"
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(mine)
            ready: set[int] = set()
            while len(ready) < len(self._pipes):
                for rank, kind, _ in self._messages(starting=True):
                    assert kind == "ready"
                    ready.add(rank)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.send(None)
            until = time.monotonic() + END_SECONDS
            for process in self._processes:
                process.join(max(0.0, until - time.monotonic()))
        self._kill()

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """As they come, from whichever copy. Raises RunFailed when a copy is lost."""
        asks, over = iter(asks), False
        under_way = [0] * len(self._pipes)
        while True:
            while not over and min(under_way) < self._at_once:
                ask = next(asks, None)
                if ask is None:
                    over = True
                else:
                    free = under_way.index(min(under_way))
                    under_way[free] += len(ask.numbers)
                    self._send(free, ask)
            if over and not any(under_way):
                return
            for rank, kind, made in self._messages():
                assert kind == "answers"
                under_way[rank] -= len(made)
                yield from made

    def _send(self, rank: int, ask: Ask) -> None:
        try:
            self._pipes[rank].send(ask)
        except OSError:
            self._lost(rank)

    def _messages(self, *, starting: bool = False) -> Iterator[tuple[int, str, Any]]:
        """What has come within `LOOK_SECONDS`. Raises RunFailed (ConfigError when starting) for what failed or died."""
        for pipe in wait(self._pipes, timeout=LOOK_SECONDS):
            rank = self._pipes.index(pipe)  # type: ignore[arg-type]
            try:
                kind, content = self._pipes[rank].recv()
            except (EOFError, OSError):
                self._lost(rank)
            if kind == "failed":
                user, text = content
                raise (ConfigError if user or starting else RunFailed)(text)
            yield rank, kind, content
        for rank, process in enumerate(self._processes):
            if not process.is_alive() and not self._pipes[rank].poll():
                self._lost(rank)

    def _lost(self, rank: int) -> None:
        process = self._processes[rank]
        process.join(END_SECONDS)
        code = process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        out_of_memory = ", which is often memory running out" if code == -signal.SIGKILL else ""
        raise RunFailed(
            f"replica {rank} of {len(self._processes)} died ({how}{out_of_memory}). What was finished is kept: the same "
            "command continues; engine.data_parallel= lower asks for fewer"
        )

    def _kill(self) -> None:
        """End what is left of every group, and of those that lead none yet."""
        for hurt, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for process in self._processes:
                if process.pid is None:
                    continue
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, hurt)
                if process.is_alive():
                    os.kill(process.pid, hurt)
            until = time.monotonic() + seconds
            for process in self._processes:
                process.join(max(0.0, until - time.monotonic()))
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


class Received:
    """Asks that come through a pipe, read by a thread so that the sender never waits for this copy."""

    def __init__(self, pipe: Connection) -> None:
        self.over = False
        self._asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._pipe = pipe
        threading.Thread(target=self._read, name="eval-asks", daemon=True).start()

    def _read(self) -> None:
        try:
            while (ask := self._pipe.recv()) is not None:
                self._asks.put(ask)
            self._asks.put(None)
        except (EOFError, OSError):  # whoever asked is gone
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def take(self, *, wait: bool) -> Ask | None:
        """The next; None when there is none at the moment, which with `wait` means that it is over."""
        try:
            ask = self._asks.get(block=wait)
        except queue.Empty:
            return None
        self.over = ask is None
        return ask


def _work(make: Callable[[int], Serve], rank: int, environment: dict[str, str], pipe: Connection) -> None:
    """A copy's process."""
    os.setsid()  # a group of its own; Ctrl-C is for the one that asked
    os.environ.update(environment)
    try:
        serve = make(rank)
        pipe.send(("ready", None))
        batch: list[Answer] = []
        source = Received(pipe)
        for answer in serve(_Telling(source, pipe, batch)):
            batch.append(answer)
            if len(batch) >= GROUP:
                _tell(pipe, batch)
        _tell(pipe, batch)
    except Exception as error:
        text = (
            f"replica {rank}: {error}" if isinstance(error, ConfigError | RunFailed) else f"replica {rank}: {error!r}"
        )
        with contextlib.suppress(OSError):
            pipe.send(("failed", (isinstance(error, ConfigError), text)))


class _Telling:
    """A source that sends the answers made so far before more asks are taken: once a step of the engine."""

    def __init__(self, source: Received, pipe: Connection, batch: list[Answer]) -> None:
        self._source, self._pipe, self._batch = source, pipe, batch

    @property
    def over(self) -> bool:
        return self._source.over

    def take(self, *, wait: bool) -> Ask | None:
        _tell(self._pipe, self._batch)
        return self._source.take(wait=wait)


def _tell(pipe: Connection, batch: list[Answer]) -> None:
    if batch:
        pipe.send(("answers", list(batch)))
        batch.clear()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from reasonrl.runs.provenance import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(len(gpus()))]
