"""What tests of the judge share: a sandbox, where there can be one, and a stand-in where none is needed."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from reasonrl.config import ConfigError
from reasonrl.eval.judge.sandbox import Sandbox
from reasonrl.verify.judge.types import Job, Limits, Outcome, Program

QUICK = Limits(cpu_seconds=0.4, wall_seconds=1.2)
DOUBLE = "def double(x):\n    return 2 * x\n"
TESTS = "assert double(2) == 4\nassert double(-3) == -6\n"


@functools.cache
def why_no_judge() -> str:
    """Nothing where sandboxes work here."""
    try:
        outcome = Sandbox().run(Job(DOUBLE, TESTS))
    except ConfigError as error:
        return str(error)
    return "" if outcome.passed else outcome.message


def need_judge() -> None:
    """Skip where there can be no sandbox, unless REASONRL_NEED_JUDGE=1 says that there must be one."""
    if why_no_judge() and os.environ.get("REASONRL_NEED_JUDGE") != "1":
        pytest.skip(f"no sandbox here: {why_no_judge()}")


def judges() -> set[psutil.Process]:
    """Judges that this process has started."""
    return {child for child in psutil.Process().children() if "judge" in child.cmdline()}


def job(code: str = DOUBLE, tests: str = TESTS, **fields: object) -> Job:
    return Job(code, tests, **{"limits": QUICK, **fields})  # type: ignore[arg-type]


@dataclass
class FakeSandbox:
    """Gives what it is told to, or waits until it may."""

    answer: Callable[[Job | Program], Outcome] = lambda task: Outcome("passed")
    gate: threading.Event = field(default_factory=threading.Event)
    isolation: str = "bwrap"
    ran: list[Job | Program] = field(default_factory=list)
    idle: bool = False  # says at once that it waits
    image: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(identity="image", version="3.11"))
    filter: bytes = b""

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, task: Job | Program, on_idle: Callable[[], None] | None = None) -> Outcome:
        self.ran.append(task)
        if self.idle and on_idle is not None:
            on_idle()
        assert self.gate.wait(30)
        return self.answer(task)


class FakeJudge:
    """Says what it is told to, and keeps what it was asked."""

    url = "unix:/fake"

    def __init__(self, says: Callable[[Any], Any]) -> None:
        self.says, self.asked, self.most, self.now = says, [], 0, 0

    def health(self) -> dict[str, Any]:
        return {"cores": 1}

    async def judge_async(self, task: Job | Program) -> Outcome:
        self.asked.append(task)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        found = self.says(task)
        if isinstance(found, Exception):
            raise found
        return found

    async def aclose(self) -> None:
        pass
