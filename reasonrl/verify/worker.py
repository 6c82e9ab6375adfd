"""What runs inside a verifier's worker process, and how such a process is started and dies.

A worker holds no state worth keeping, so it dies at once when told to, and by itself when its parent is gone.
"""

import contextlib
import logging
import multiprocessing
import resource
import signal
import types
from multiprocessing import popen_spawn_posix, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from reasonrl.verify.checkers import CHECKERS

MEMORY_BYTES = 4 << 30  # address space a worker may add while it computes; `9^{9^9}` asks for far more
GRACE_SECONDS = 10.0  # after its deadline a worker that nobody killed ends itself


def initialize(checker: str) -> None:
    """Prepare a fresh worker: load the libraries before any deadline runs, and make it easy to kill."""
    # pebble's handler runs Python code, which a worker deep in C (a giant integer power) never gets to.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns for each call that its alarms are off
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    # A failure is reported by the first check; a worker that died of it here would be started again without end.
    with contextlib.suppress(Exception):
        CHECKERS[checker](r"\frac{2}{4}", r"\frac{1}{2}")  # parsers load their tables at the first call
    _limit_memory()


def check(checker: str, extracted: str, gold: str, timeout: float) -> bool:
    """One comparison. The default action of SIGALRM ends the process even inside C code, if its parent is gone."""
    signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)
    try:
        return CHECKERS[checker](extracted, gold)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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
