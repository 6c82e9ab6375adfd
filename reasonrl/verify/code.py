"""Programs as answers: what a problem's gold says of its tests, and a judge's word on the program in a text.

    text -> cut_reasoning -> extract_code -> job_of(gold, program) -> a judge (`reasonrl judge`) -> Verdict

The gold of a code problem is a JSON text, made by `code_answer`:

kind        fields                                    right when
humaneval   prompt, tests, entry_point, with_prompt   `check(entry_point)` passes; with_prompt: after the prompt
mbpp        tests, setup                              the setup and all asserts pass
stdin       inputs, outputs                           the whole program, run with each input, writes its output
functional  name, inputs, outputs                     `Solution().name(...)` returns each output; an argument a line, as JSON

What a program does is its own fault, a time-out too: wrong. Where there is no verdict (no judge, a sandbox that fails, a
gold that cannot be judged) nothing is known of the program, and the future raises JudgeError: it is never wrong.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, RunFailed
from reasonrl.data.typed import typed, unknown_name
from reasonrl.verify.judge.jobs import extract_code, humaneval_job, mbpp_job
from reasonrl.verify.judge.types import Job, JudgeError, Limits, Outcome, Program

if TYPE_CHECKING:
    from reasonrl.verify.judge.client import JudgeClient
    from reasonrl.verify.pool import VerifyConfig

PATIENCE = 60.0  # seconds without a judge, until all who wait for it are told
MAX_PROGRAM_CHARS = 200_000  # longer is never run; it would not fit a request
MOST_BODY_MB = 256  # of requests to a judge of one's own: inputs of contest problems
MOST_AT_ONCE = 256  # programs sent to a judge by one process
OUTPUT_BYTES = 1 << 20  # of a program that reads stdin; more where more is expected, up to MOST_OUTPUT_BYTES
MOST_OUTPUT_BYTES = 16 << 20
MOST_INPUT_BYTES = 15 << 20  # what a sandbox has room for
WRONG = ("failed", "error", "timeout_cpu", "timeout_wall", "memory", "output_limit")
# Before programs of contest problems, whose starter code names types without importing them.
CONTEST_PRELUDE = (
    "import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\n"
    "from itertools import *\nfrom math import *\nfrom typing import *\nsys.setrecursionlimit(50000)\n"
)


# Golds


@dataclass(frozen=True)
class HumanEval:
    """`check(candidate)`, as in HumanEval."""

    prompt: str
    tests: str
    entry_point: str
    with_prompt: bool = True

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise ValueError(f"entry_point must be the name of a function, got {self.entry_point!r}")
        if not re.search(r"^def check\b", self.tests, re.MULTILINE):  # a program could define its own
            raise ValueError("tests must define check(candidate)")

    def job(self, program: str, limits: Limits) -> Job:
        parts = (self.prompt, self.tests, self.entry_point, program)
        return humaneval_job(*parts, limits=limits, with_prompt=self.with_prompt)


@dataclass(frozen=True)
class MBPP:
    """Asserts, as in MBPP."""

    tests: list[str]
    setup: str = ""

    def __post_init__(self) -> None:
        if not all(map(str.strip, self.tests)) or not self.tests:
            raise ValueError("tests must not be empty: without a test every program is right")

    def job(self, program: str, limits: Limits) -> Job:
        return mbpp_job(self.tests, program, setup=self.setup, limits=limits)


@dataclass(frozen=True)
class Stdin:
    """Inputs and what is to be written for each."""

    inputs: list[str]
    outputs: list[str]

    def __post_init__(self) -> None:
        _check_cases(self.inputs, self.outputs)
        for name, texts, most in (
            ("an input", self.inputs, MOST_INPUT_BYTES),
            ("an output", self.outputs, MOST_OUTPUT_BYTES),
        ):
            if any(len(text.encode("utf-8", "replace")) > most for text in texts):
                raise ValueError(f"{name} has more than {most} bytes: no program could be right")

    def job(self, program: str, limits: Limits) -> Cases:
        code = with_prelude(program)
        return Cases(
            tuple(Program(code, text, _with_output(limits, out)) for text, out in self._pairs()), tuple(self.outputs)
        )

    def _pairs(self) -> list[tuple[str, str]]:
        return list(zip(self.inputs, self.outputs, strict=True))


@dataclass(frozen=True)
class Functional:
    """Calls of one method, as in LeetCode's problems."""

    name: str
    inputs: list[str]
    outputs: list[str]

    def __post_init__(self) -> None:
        _check_cases(self.inputs, self.outputs)
        if not self.name.isidentifier():
            raise ValueError(f"name must be the name of a method, got {self.name!r}")
        for text in (*self.inputs, *self.outputs):
            _literals(text)  # raises

    def job(self, program: str, limits: Limits) -> Job:
        # a fresh object for each call, as the harness of LiveCodeBench makes; lists and tuples are the same
        lines = ["def plain(value):", "    if isinstance(value, (list, tuple)):"]
        lines += ["        return [plain(each) for each in value]", "    return value"]
        for given, out in zip(self.inputs, self.outputs, strict=True):
            arguments = ", ".join(map(repr, _literals(given)))
            lines.append(f"assert plain(Solution().{self.name}({arguments})) == {_literals(out)[0]!r}")
        return Job(with_prelude(program), "\n".join(lines) + "\n", names=("Solution",), limits=limits)


@dataclass(frozen=True)
class Cases:
    """One program with each input, and what it must write."""

    programs: tuple[Program, ...]
    outputs: tuple[str, ...]


Gold = HumanEval | MBPP | Stdin | Functional
KINDS: dict[str, type[Gold]] = {"humaneval": HumanEval, "mbpp": MBPP, "stdin": Stdin, "functional": Functional}


def code_answer(kind: str, **fields: Any) -> str:
    """The gold of a code problem, as text. Raises ValueError for an unknown kind or field, or one that is missing."""
    gold = _gold(kind, fields)
    return json.dumps({"kind": kind, **asdict(gold)}, sort_keys=True)


def job_of(answer: str, program: str, limits: Limits) -> Job | Cases:
    """What a judge is asked. answer: of `code_answer`. Raises ValueError for another text."""
    return _read(answer).job(program, limits)


def check_answer(answer: str) -> None:
    """Raise ValueError for a text that `code_answer` would not have written."""
    _read(answer)


@functools.lru_cache(maxsize=256)  # a gold comes back for each of its n samples
def _read(answer: str) -> Gold:
    try:
        fields = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"the gold of a code problem is a JSON text, got {answer[:80]!r}") from error
    if not isinstance(fields, dict) or "kind" not in fields:
        raise ValueError(f"the gold of a code problem is a JSON record with a kind, got {answer[:80]!r}")
    kind = fields.pop("kind")
    return _gold(kind, fields)


def _gold(kind: Any, fields: dict[str, Any]) -> Gold:
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of code problem:", kind, KINDS))
    made: Gold = typed(KINDS[kind], fields, f"the {kind} problem")
    return made


def _check_cases(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"inputs and outputs must be equally many and not empty, got {len(inputs)} and {len(outputs)}")


def _literals(text: str) -> list[Any]:
    """A value a line, as JSON or else as a literal of Python. Raises ValueError."""
    found = []
    for line in filter(str.strip, text.split("\n")):
        try:
            found.append(json.loads(line))
        except ValueError:
            try:
                found.append(ast.literal_eval(line.strip()))
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise ValueError(f"neither JSON nor a literal: {line[:80]!r}") from error
    if not found:
        raise ValueError("an input or output without a value")
    return found


def with_prelude(program: str) -> str:
    """The program after the usual imports, which contest answers take for granted."""
    return program if "from __future__" in program else CONTEST_PRELUDE + program


def _with_output(limits: Limits, expected: str) -> Limits:
    room = min(max(OUTPUT_BYTES, 2 * len(expected.encode("utf-8", "replace"))), MOST_OUTPUT_BYTES)
    return Limits(limits.cpu_seconds, limits.wall_seconds, limits.memory_mb, room)


def same_output(written: str, expected: str) -> bool:
    """Line by line without outer white space; a line that differs may still hold the same numbers."""
    mine, theirs = (text.strip().split("\n") for text in (written, expected))
    return len(mine) == len(theirs) and all(
        a.strip() == b.strip() or (_numbers(a) is not None and _numbers(a) == _numbers(b))
        for a, b in zip(mine, theirs, strict=True)
    )


def _numbers(line: str) -> list[Decimal] | None:
    try:
        found = [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None
    return None if any(map(Decimal.is_nan, found)) else found  # to compare with sNaN raises


# Verdicts


@dataclass(frozen=True)
class Ruling:
    """A judge's word: status as of a `Verdict`."""

    correct: bool
    status: str
    message: str = ""


def ruling(outcome: Outcome) -> Ruling:
    """What an outcome says of the program. Raises JudgeError where it says nothing."""
    if outcome.verdict == "passed":
        return Ruling(True, "ok")
    told = f"{outcome.verdict}: {outcome.message}" if outcome.message else outcome.verdict
    if outcome.verdict in WRONG:
        return Ruling(False, "ok", told)
    if outcome.verdict == "unparseable":
        return Ruling(False, "no_answer", told)
    raise JudgeError(f"no verdict: {told}")


async def judged(client: JudgeClient, task: Job | Cases) -> Ruling:
    """Ask. Of a program with inputs the first one that fails decides; what it wrote is compared here. Raises JudgeError."""
    if isinstance(task, Job):
        return ruling(await client.judge_async(task))
    for number, (program, expected) in enumerate(zip(task.programs, task.outputs, strict=True), 1):
        outcome = await client.judge_async(program)
        found = ruling(outcome)
        where = f" (input {number} of {len(task.outputs)})"
        if not found.correct:
            last = outcome.stderr.strip().rpartition("\n")[2][:200]
            if outcome.verdict == "error" and last.startswith(("SyntaxError", "IndentationError", "TabError")):
                return Ruling(False, "no_answer", f"unparseable: {last}")
            return Ruling(False, found.status, f"{found.message}{': ' + last if last else ''}{where}")
        if not same_output(outcome.stdout, expected):
            return Ruling(False, "ok", f"failed: it wrote something else{where}")
    return Ruling(True, "ok")


def program_in(text: str, *, released: bool = False) -> str | None:
    """The program in a text that is to be scored; None when there is none that could be sent. released: `extract_code`."""
    program = extract_code(text, released=released)
    if program is None or not program.strip():
        return None
    try:
        program.encode()
    except UnicodeEncodeError:  # half a character: no Python either
        return None
    return program


def vote_key(program: str) -> str:
    """The same for programs that differ in layout, comments and doc strings only; what does not compile is its own key."""
    if len(program) > MAX_PROGRAM_CHARS:
        return program
    try:
        tree = ast.parse(program)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return program


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Asking


class Programs:
    """Programs of one process on their way to a judge; safe to use from many threads.

    All of them run in one event loop, in a thread that nothing waits for at exit: a judge that is gone holds up nobody.
    """

    def __init__(self, config: VerifyConfig) -> None:
        """Starts nothing yet. Raises ValueError for limits out of range."""
        self.limits = Limits(cpu_seconds=config.cpu_seconds, memory_mb=config.memory_mb)
        self._url = config.judge
        self._lock = threading.Lock()  # guards what follows
        self._stack = contextlib.ExitStack()
        self._client: JudgeClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Semaphore | None = None
        self._waiting: set[Future[Ruling]] = set()
        self._closed = False

    def open(self) -> str:
        """Find the judge, or start one, and see a program through; returns its address.

        Raises ConfigError where no sandbox is possible or where the judge gives less than is asked for, JudgeError where
        there is no judge.
        """
        return self._opened().url

    def submit(self, answer: str, program: str) -> Future[Ruling]:
        """Ask about a program. The future raises JudgeError where there is no verdict."""
        future: Future[Ruling] = Future()
        future.set_running_or_notify_cancel()
        if len(program) > MAX_PROGRAM_CHARS:
            told = f"{len(program)} characters; a program of more than {MAX_PROGRAM_CHARS} is never run"
            future.set_result(Ruling(False, "ok", told))
            return future
        try:
            task = job_of(answer, program, self.limits)
        except ValueError as error:
            future.set_exception(JudgeError(f"a gold that is none: {error}"))
            return future
        try:
            client = self._opened()
        except Exception as error:
            future.set_exception(_no_verdict(error))
            return future
        with self._lock:
            if self._closed or self._loop is None:
                future.set_exception(JudgeError("the verifier was closed"))
                return future
            self._waiting.add(future)
            loop = self._loop
            loop.call_soon_threadsafe(lambda: _keep(loop.create_task(self._ask(client, task, future))))
        return future

    def close(self) -> None:
        """End the judge, if it is ours. Whoever still waits is told so; it is no verdict."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
            client, self._client = self._client, None
            waiting = list(self._waiting)
        for future in waiting:
            self._settle(future, lambda future: future.set_exception(JudgeError("the verifier was closed")))
        if loop is not None:
            loop.call_soon_threadsafe(lambda: _keep(loop.create_task(_end(loop, client))))
        self._stack.close()

    # -- in the loop -------------------------------------------------------------------------------------------------

    async def _ask(self, client: JudgeClient, task: Job | Cases, future: Future[Ruling]) -> None:
        assert self._room is not None
        try:
            async with self._room:
                found = await judged(client, task)
        except Exception as error:
            told = _no_verdict(error)
            self._settle(future, lambda future: future.set_exception(told))
        else:
            self._settle(future, lambda future: future.set_result(found))

    def _settle(self, future: Future[Ruling], settle: Callable[[Future[Ruling]], None]) -> None:
        """Once."""
        with self._lock:
            if future not in self._waiting:
                return
            self._waiting.discard(future)
        settle(future)

    # -- the judge ---------------------------------------------------------------------------------------------------

    def _opened(self) -> JudgeClient:
        with self._lock:
            if self._closed:
                raise JudgeError("the verifier was closed")
            if self._client is None:
                client = self._stack.enter_context(open_judge(self._url, self.limits))
                cores = int(client.health().get("cores", 1))
                self._start(min(MOST_AT_ONCE, 8 * cores))
                self._client = client
            return self._client

    def _start(self, room: int) -> None:
        loop = self._loop = asyncio.new_event_loop()
        self._room = asyncio.Semaphore(room)

        def live() -> None:
            loop.run_forever()
            loop.close()

        threading.Thread(target=live, name="verify-code", daemon=True).start()


def _no_verdict(error: Exception) -> Exception:
    """A failure of ours, as one that nobody takes for a wrong answer."""
    if isinstance(error, ConfigError | RunFailed):
        return error
    return JudgeError(f"no verdict: {type(error).__name__}: {error}")


_TASKS: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """A loop holds its tasks weakly."""
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


async def _end(loop: asyncio.AbstractEventLoop, client: JudgeClient | None) -> None:
    """Leave nothing behind in a loop, then stop it."""
    others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if client is not None:
        await client.aclose()
    loop.stop()


@contextlib.contextmanager
def open_judge(url: str | None, limits: Limits | None = None) -> Iterator[JudgeClient]:
    """A client of the judge at `url`, or of one of our own, which has judged a right program as right.

    Raises ConfigError where no sandbox is possible, or where a judge gives less than `limits`; JudgeError where there is
    no judge or no verdict.
    """
    from reasonrl.verify.judge.embedded import opened_judge  # with a client of HTTP

    limits = limits or Limits()
    knobs: dict[str, Any] = {}
    if url is None:
        knobs = {
            "most_cpu_seconds": max(60.0, limits.cpu_seconds),
            "most_memory_mb": max(4096, limits.memory_mb),
            "most_body_mb": MOST_BODY_MB,
        }
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(opened_judge(url, **knobs))
        except ConfigError as error:
            raise ConfigError(
                f"programs cannot be judged here: {error}. A judge elsewhere: start `reasonrl judge` there and give its "
                "address as verify.judge=https://host:port"
            ) from error
        client.patience = PATIENCE
        most = client.health().get("most", {})
        for name in ("cpu_seconds", "memory_mb"):
            if getattr(limits, name) > most.get(name, getattr(limits, name)):
                raise ConfigError(
                    f"verify.{name}={getattr(limits, name):g} is more than the judge at {client.url} gives, "
                    f"{most[name]:g}: lower it, or start that judge with most_{name}={getattr(limits, name):g}"
                )
        outcome = client.judge(Job("def double(x):\n    return 2 * x\n", "assert double(2) == 4\n", limits=limits))
        if not outcome.passed:
            raise JudgeError(
                f"the judge at {client.url} calls a right program {outcome.verdict} ({outcome.message}): nothing that it "
                "says can be believed"
            )
        yield client
