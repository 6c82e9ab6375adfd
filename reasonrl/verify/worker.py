"""What runs inside a verifier's worker process, and how such a process is started and ends.

A worker holds no state worth keeping, so it can be killed at any moment. It ends by itself when its parent is gone, and
when it has grown large.
"""

import contextlib
import logging
import multiprocessing
import resource
import signal
import types
from multiprocessing import popen_spawn_posix, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from reasonrl.verify.checkers import CHECKERS, LIBRARIES
from reasonrl.verify.speed import speed_up

MEMORY_BYTES = 4 << 30  # address space a worker may add while it computes; `9^{9^9}` asks for far more
RETIRE_BYTES = 1 << 29  # ANTLR remembers what it has seen: 60 MB at the start, 210 MB after 8,000 random expressions
GRACE_SECONDS = 10.0  # after its deadline a worker that nobody killed ends itself


RIGHT, WRONG, HAVE_IT = b"1", b"0", b""  # what a worker sends; anything else is the text of an error
MESSAGE_CHARS = 1_000


def serve(pipe: Connection, checker: str, timeout: float) -> None:
    """The life of a worker: batches of (extracted, gold) come in, `HAVE_IT` and one message each go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    initialize(checker)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while _resident_bytes() < RETIRE_BYTES:  # one that retires is replaced with the next batch
            batch = pipe.recv()
            pipe.send_bytes(HAVE_IT)
            for extracted, gold in batch:
                pipe.send_bytes(_answer(checker, extracted, gold, timeout))


def initialize(checker: str) -> None:
    """Prepare a fresh worker: load the libraries before any deadline runs."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns for each call that its alarms are off
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    # A failure is reported by the first check; a worker that died of it here would be started again without end.
    with contextlib.suppress(Exception):
        CHECKERS[checker](r"\frac{2}{4}", r"\frac{1}{2}")  # parsers load their tables at the first call
        if "math_verify" in LIBRARIES[checker]:
            speed_up()
    _limit_memory()


def check(checker: str, extracted: str, gold: str, timeout: float) -> bool:
    """One comparison. The default action of SIGALRM ends the process even inside C code, if its parent is gone."""
    signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)
    try:
        return CHECKERS[checker](extracted, gold)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(checker: str, extracted: str, gold: str, timeout: float) -> bytes:
    try:
        return RIGHT if check(checker, extracted, gold, timeout) else WRONG
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"[:MESSAGE_CHARS].encode(errors="replace")


def spawn_context() -> SpawnContext:
    """`spawn` without running the parent's main module again: Ray's is slow, a user's script may have no guard."""
    return _Context()


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (OSError, ValueError):
        pass  # no /proc, or a lower hard limit already: the deadline still holds


def _resident_bytes() -> int:
    """0 where there is no /proc: such a worker never retires."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _preparation_without_main(name: str) -> dict[str, Any]:
    return {k: v for k, v in spawn.get_preparation_data(name).items() if not k.startswith("init_main_from")}


class _Popen(popen_spawn_posix.Popen):
    """The standard one, except that it sees a `spawn` module whose preparation leaves the main module out.

    `_launch` is the same in Python 3.8 to 3.13. It is copied with other globals rather than patched in place, which
    would change how everybody else in this process spawns.
    """

    _launch = types.FunctionType(
        popen_spawn_posix.Popen._launch.__code__,  # type: ignore[attr-defined]
        {
            **vars(popen_spawn_posix),
            "spawn": types.SimpleNamespace(**{**vars(spawn), "get_preparation_data": _preparation_without_main}),
        },
    )


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: multiprocessing.process.BaseProcess) -> _Popen:
        return _Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process
