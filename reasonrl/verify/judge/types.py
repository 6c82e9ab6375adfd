"""What travels to and from the judge: a job, its limits, a verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reasonrl.config import RunFailed

VERDICTS = (
    "passed",
    "failed",  # a test does not hold
    "error",  # the program raised, or ended itself
    "timeout_cpu",  # it used up its CPU time: its own fault, on a busy machine too
    "timeout_wall",  # it waited: asleep, or for input
    "memory",
    "output_limit",
    "unparseable",  # no program, or one that does not compile
    "sandbox_error",  # nobody knows; never to be taken for "incorrect"
)
TOKEN_VARIABLE = "REASONRL_JUDGE_TOKEN"
TOKEN_FILE = "~/.cache/reasonrl/judge-token"
Mode = Literal["strict", "nonce"]
MODES = ("strict", "nonce")


class JudgeError(RunFailed):
    """No verdict could be had. Never a wrong answer: nothing is known about the program."""


class JudgeGone(JudgeError):
    """There is no judge, or none that answers us: no other program will get a verdict either."""


class BadJob(JudgeError):
    """The job itself cannot be judged, so that asking again is of no use."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: float = 3.0  # of the program and all that it starts; the clock of the verdict
    wall_seconds: float | None = None  # the safety net for programs that wait; default 4 times cpu_seconds
    memory_mb: int = 1024  # address space of a process, and what all together hold; below 600 numpy does not load
    output_bytes: int = 64 << 10  # of stdout and of stderr
    processes: int = 32  # threads count too
    file_bytes: int = 1 << 20
    open_files: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        for name, value, least in (
            ("cpu_seconds", self.cpu_seconds, 0.1),
            ("wall_seconds", self.wall, 0.1),
            ("memory_mb", self.memory_mb, 64),
            ("output_bytes", self.output_bytes, 0),
            ("processes", self.processes, 1),
            ("file_bytes", self.file_bytes, 0),
            ("open_files", self.open_files, 16),
        ):
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    @property
    def wall(self) -> float:
        """Seconds after which the sandbox is ended in any case."""
        return 4 * self.cpu_seconds if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Job:
    """A program and its tests.

    strict: the tests run in a process of their own and see values of the program only, never its objects.
    nonce: both run in one process, which says itself that it passed, with a word that is hard but not impossible to
    find. It hinders an honest model from cheating by accident; it does not stop one that wants to. For tests that hand
    the program functions or objects.
    """

    code: str
    tests: str
    prelude: str = ""  # trusted code that the tests need, run beside them: HumanEval's helper functions
    names: tuple[str, ...] = ()  # what the program must define and the tests get, even where it hides a built-in
    mode: Mode = "strict"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown mode or a name that is none."""
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in self.names:
            if not name.isidentifier():
                raise ValueError(f"names: {name!r} is no name of Python")

    def key(self, image: str) -> str:
        """The job's identity: the same key means the same verdict. image: what runs it."""
        return hashlib.sha256(json.dumps([image, asdict(self)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Program:
    """A whole program that reads stdin and writes stdout; no verdict on what it wrote."""

    code: str
    stdin: str = ""
    limits: Limits = field(default_factory=lambda: Limits(output_bytes=1 << 20))


@dataclass(frozen=True)
class Outcome:
    """What happened to one program."""

    verdict: str  # one of VERDICTS; of a Program "passed" says that it ended with exit code 0
    message: str = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None  # below 0: the signal; None where we ended it
    again: bool = True  # of sandbox_error: whether another try may help

    @property
    def passed(self) -> bool:
        """Right."""
        return self.verdict == "passed"

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
