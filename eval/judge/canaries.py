"""What must fail in the sandbox, tried at every start: a service with a leak does not serve.

Each canary is a program with what it must end with. Those that look for something of this machine (a file, a variable,
a socket) get one that is really there, made for them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from reasonrl.config import ConfigError
from reasonrl.eval.judge.sandbox import Sandbox
from reasonrl.verify.judge.types import Job, Limits, Outcome, Program

LIMITS = Limits(cpu_seconds=1.0)
DOUBLE = "assert double(2) == 4\nassert double(-3) == -6"
ATTEMPT = """\
import errno, os
def attempt(work):
    try:
        work()
    except MemoryError:
        print("MemoryError")
    except OSError as error:
        print(errno.errorcode.get(error.errno, error.errno))
    else:
        print("done")
"""


@dataclass(frozen=True)
class Canary:
    """A program and how it must end."""

    name: str
    task: Job | Program
    verdicts: tuple[str, ...]  # any of them
    stdout: tuple[str, ...] | None = None  # its words, any of them; None: not looked at


def judged(name: str, code: str, *verdicts: str, tests: str = DOUBLE) -> Canary:
    """A program that is to pass its tests, or not."""
    return Canary(name, Job(code, tests, limits=LIMITS), verdicts)


def tried(name: str, work: str, *words: str) -> Canary:
    """A program that attempts something, and prints what came of it."""
    return Canary(name, Program(f"{ATTEMPT}{work}\n", limits=LIMITS), ("passed",), words)


def canaries(file: str, variable: str, port: int, abstract: str) -> list[Canary]:
    """All of them. file, variable, port, abstract: things of this machine that they look for."""
    frames = (
        "import sys, os\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for space in (frame.f_locals, frame.f_globals):\n"
        "            for name in list(space):\n"
        "                if name in ('verdict', 'result', 'passed'):\n                    space[name] = 'passed'\n"
        "        frame = frame.f_back\n    return 0\n"
    )
    return [
        judged("a right program passes", "def double(x):\n    return 2 * x", "passed"),
        judged("a wrong one fails", "def double(x):\n    return 3 * x", "failed"),
        judged("an endless loop is ended", "def double(x):\n    while True:\n        pass", "timeout_cpu"),
        judged("sys.exit(0)", "import sys\nsys.exit(0)", "error"),
        judged("os._exit(0)", "import os\ndef double(x):\n    os._exit(0)", "error"),
        judged(
            "an object equal to everything",
            "class Any:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Any()",
            "failed",
        ),
        judged("a walk through the frames", frames, "failed"),
        judged(
            "the driver killed",
            "import os\ndef double(x):\n    for s in (2, 9, 15, 19):\n        os.kill(1, s)\n    return 0",
            "failed",
        ),
        tried("the driver's memory", "attempt(lambda: open('/proc/1/mem', 'rb'))", "EACCES", "EPERM"),
        tried("a file of this machine", f"attempt(lambda: open({file!r}))", "ENOENT"),
        tried("an environment variable", f"print(os.environ.get({variable!r}))", "None"),
        tried(
            "the environment",
            "print(*sorted(set(os.environ) - {'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'}))",
            "HOME LC_CTYPE PATH PWD",
            "HOME PATH PWD",
        ),
        tried(
            "the network",
            "import socket\ns = socket.socket()\ns.settimeout(1)\nattempt(lambda: s.connect(('1.1.1.1', 53)))",
            "ENETUNREACH",
        ),
        tried(
            "a server on this machine",
            f"import socket\ns = socket.socket()\ns.settimeout(1)\nattempt(lambda: s.connect(('127.0.0.1', {port})))",
            "ECONNREFUSED",
            "ENETUNREACH",
        ),
        tried(
            "an abstract socket",
            f"import socket\ns = socket.socket(socket.AF_UNIX)\nattempt(lambda: s.connect({abstract!r}))",
            "ECONNREFUSED",
        ),
        tried("a gigabyte", "attempt(lambda: bytearray(10**9 + 2**30))", "MemoryError"),
        tried("a file of 5 MiB", "attempt(lambda: open('big', 'wb').write(bytes(5 << 20)))", "EFBIG"),
        tried(
            "many files",
            "def fill(folder):\n"
            "    for k in range(40):\n        with open(f'{folder}/{k}', 'wb') as f:\n            f.write(bytes(1 << 20))\n"
            "attempt(lambda: fill('/tmp'))",
            "ENOSPC",
        ),
        *(
            tried(f"writing to {folder}", f"attempt(lambda: open('{folder}/x', 'w'))", "EROFS", "EACCES", "ENOENT")
            for folder in ("/usr", "", "/dev", "/dev/shm", "/proc", "/proc/sys/kernel")
        ),
        tried(
            "a new user namespace",
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            "print(errno.errorcode.get(ctypes.get_errno()) if libc.unshare(0x10000000) else 'done')",
            "ENOSPC",
            "EPERM",
        ),
        tried(
            "a hundred processes",
            "import signal\npids = []\ndef many():\n    for _ in range(100):\n        pid = os.fork()\n"
            "        if pid == 0:\n            signal.pause()\n        pids.append(pid)\nattempt(many)",
            "EAGAIN",
        ),
    ]


def check(sandbox: Sandbox, threads: int = 2) -> int:
    """Try them all; returns how many. Raises ConfigError naming each leak, or why there is no sandbox at all."""
    first = sandbox.run(Job("def double(x):\n    return 2 * x", DOUBLE, limits=LIMITS))
    if first.verdict == "sandbox_error":
        raise ConfigError(
            f"the sandbox does not work here: {first.message}. Nothing is run without it, unless you say "
            "unsafe_local=true (no protection at all; only for programs that you would run yourself)"
        )
    if sandbox.isolation == "none":
        return 0
    with bait() as (file, variable, port, abstract):
        tries = canaries(file, variable, port, abstract)
        with ThreadPoolExecutor(threads) as pool:
            outcomes = list(pool.map(lambda canary: sandbox.run(canary.task), tries))
    leaks = [leak for canary, outcome in zip(tries, outcomes, strict=True) if (leak := leak_of(canary, outcome))]
    if leaks:
        raise ConfigError("the sandbox leaks, so nothing is served:\n  " + "\n  ".join(leaks))
    return len(tries)


def leak_of(canary: Canary, outcome: Outcome) -> str:
    """What is wrong, or nothing."""
    said = outcome.stdout.strip()
    if outcome.verdict in canary.verdicts and (canary.stdout is None or said in canary.stdout):
        return ""
    expected = " or ".join(canary.stdout if canary.stdout is not None else canary.verdicts)
    got = replace(outcome, stdout="", stderr=outcome.stderr[-300:])
    return f"{canary.name}: expected {expected}, got {said[:100]!r} ({got.verdict}: {got.message} {got.stderr})"


@contextlib.contextmanager
def bait() -> Iterator[tuple[str, str, int, str]]:
    """A file that everybody may read, a variable, a port and an abstract socket that answer."""
    variable, abstract = f"JUDGE_CANARY_{secrets.token_hex(4)}", f"\0judge-canary-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="judge-canary-"))
        os.chmod(file.name, 0o644)
        os.environ[variable] = "1"
        stack.callback(os.environ.pop, variable, None)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(abstract)
        unix.listen()
        yield file.name, variable, tcp.getsockname()[1], abstract
