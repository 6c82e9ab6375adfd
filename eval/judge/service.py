"""HTTP around the judge's desk.

    POST /v1/judge  {"code", "tests", ...} -> {"verdict", "passed", "message", "cpu_seconds", ...}
    POST /v1/run    {"code", "stdin", ...} -> the same and "stdout": a whole program, no verdict on what it wrote
    POST /          {"problem": {"prompt", "test", "entry_point"}, "completion"} -> {"passed", "result": 1 | 2 | 3}
    POST /run_code  SandboxFusion's schema, so that verl's own client works with this address
    GET  /healthz   backend, limits, what is under way; needs no token
    GET  /metrics   Prometheus

A full queue is 429 with Retry-After; `/run_code` says 504 instead, the only status that verl's client tries again. No
verdict is 503 (try again) or 422 (it is of no use), never a wrong answer. Every response says how it was isolated.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reasonrl.eval.judge.desk import Conflict, Desk, Full
from reasonrl.verify.judge.jobs import compat_job
from reasonrl.verify.judge.types import MODES, Job, Limits, Outcome, Program

LARGEST_BODY = 1 << 20  # bytes
PYTHONS = ("python", "Python", "python3")
UNSAFE = "none: this judge was started with unsafe_local=true and protects nothing"


class Strict(BaseModel):
    """Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class LimitsIn(Strict):
    """What a client may ask for; the service has its own most."""

    cpu_seconds: float | None = Field(None, ge=0.1)
    wall_seconds: float | None = Field(None, ge=0.1)
    memory_mb: int | None = Field(None, ge=64)
    output_bytes: int | None = Field(None, ge=0, le=16 << 20)


class JobIn(Strict):
    """POST /v1/judge."""

    code: str
    tests: str
    prelude: str = ""
    names: tuple[str, ...] = ()
    mode: Literal["strict", "nonce"] = "strict"
    limits: LimitsIn = Field(default_factory=lambda: LimitsIn.model_validate({}))
    id: str | None = Field(None, max_length=200)


class ProgramIn(Strict):
    """POST /v1/run."""

    code: str
    stdin: str = ""
    limits: LimitsIn = Field(default_factory=lambda: LimitsIn.model_validate({}))
    id: str | None = Field(None, max_length=200)


class ProblemIn(Strict):
    """Of POST /."""

    prompt: str
    test: str
    entry_point: str


class CompletionIn(Strict):
    """POST /."""

    problem: ProblemIn
    completion: str


class RunIn(BaseModel):
    """POST /run_code; fields of SandboxFusion that mean nothing here are let through."""

    code: str
    language: str = "python"
    stdin: str | None = None
    compile_timeout: float = Field(10.0, gt=0)
    run_timeout: float = Field(10.0, gt=0)
    memory_limit_MB: int = -1
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []


class Gate:
    """Before anything is parsed: token, origin, size of the body; and on every answer, how it was isolated."""

    def __init__(self, app: ASGIApp, token: str | None, isolation: str, largest: int = LARGEST_BODY) -> None:
        self.app, self.token, self.largest = app, token, largest
        self.isolation = (UNSAFE if isolation == "none" else isolation).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-judge-isolation", self.isolation))
            await send(message)

        refused = self._refusal(scope)
        if refused is None:
            body = await _body(receive, scope, self.largest)
            if isinstance(body, bytes):
                await self.app(scope, _again(body, receive), told)
                return
            refused = body
        await refused(scope, receive, told)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if b"origin" in headers:
            return _error(403, "a page in a browser has no business here")
        if (
            scope["path"] != "/healthz"
            and self.token is not None
            and not self._known(headers.get(b"authorization", b""))
        ):
            response = _error(401, "no token, or a wrong one: Authorization: Bearer <token>")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return None

    def _known(self, given: bytes) -> bool:
        assert self.token is not None
        kind, _, word = given.partition(b" ")
        if kind.lower() == b"basic":  # http://:<token>@host/, for clients that know no tokens
            try:
                word = base64.b64decode(word, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(word.strip(), self.token.encode())


async def _body(receive: Receive, scope: Scope, largest: int) -> bytes | Response:
    """All of it, or the refusal of one that is too long."""
    too_long = _error(413, f"the body is longer than {largest} bytes; most_body_mb= of reasonrl judge allows more")
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if not told.isdigit() or int(told) > largest:
        return too_long
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return _error(400, "the request ended early")
        part = message.get("body", b"")
        size += len(part)
        if size > largest:
            return too_long
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already."""
    given = False

    async def give() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


def _error(status: int, why: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": why}, status, headers=headers)


def make_app(
    desk: Desk,
    *,
    token: str | None,
    limits: Limits,
    most_cpu_seconds: float = 60.0,
    most_memory_mb: int = 4096,
    largest_body: int = LARGEST_BODY,
) -> ASGIApp:
    """The service. limits: of jobs that ask for none; most_*: what a job may ask for; largest_body: bytes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await desk.drain()
        desk.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    most = {"cpu_seconds": most_cpu_seconds, "memory_mb": most_memory_mb}

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(Full)
    async def full(request: Request, error: Full) -> Response:
        status = 504 if request.url.path == "/run_code" else 429
        return _error(status, str(error), **{"Retry-After": str(error.after)})

    @app.exception_handler(Conflict)
    async def conflict(_: Request, error: Conflict) -> Response:
        return _error(409, str(error))

    @app.exception_handler(ValueError)
    async def wrong(_: Request, error: ValueError) -> Response:
        return _error(422, str(error))

    def limits_of(asked: LimitsIn) -> Limits:
        values = {name: value for name, value in asked.model_dump().items() if value is not None}
        for name, largest in (*most.items(), ("wall_seconds", 4 * most_cpu_seconds)):
            if values.get(name, 0) > largest:
                raise ValueError(f"limits.{name}={values[name]:g} is more than this judge gives, {largest:g}")
        if "cpu_seconds" in values:
            values.setdefault("wall_seconds", 4 * values["cpu_seconds"])
        return Limits(**{**_given(limits), **values})

    @app.post("/v1/judge")
    async def judge(asked: JobIn) -> Response:
        job = Job(asked.code, asked.tests, asked.prelude, asked.names, asked.mode, limits_of(asked.limits))
        return await answered(job, asked.id)

    @app.post("/v1/run")
    async def run(asked: ProgramIn) -> Response:
        return await answered(Program(asked.code, asked.stdin, limits_of(asked.limits)), asked.id)

    async def answered(task: Job | Program, id: str | None) -> Response:
        answer = await desk.judge(task, id)
        outcome = answer.outcome
        body = {
            **outcome.asdict(),
            "passed": outcome.passed,
            "cached": answer.cached,
            "id": id,
            "isolation": desk.sandbox.isolation,
        }
        return JSONResponse(body, _status(outcome))

    @app.post("/")
    async def released(asked: CompletionIn) -> Response:
        problem = asked.problem
        job = compat_job(problem.prompt, problem.test, problem.entry_point, asked.completion, limits)
        outcome = (await desk.judge(job)).outcome
        if outcome.verdict == "sandbox_error":
            return _error(_status(outcome), outcome.message)
        slow = outcome.verdict in ("timeout_cpu", "timeout_wall")
        return JSONResponse({"passed": outcome.passed, "result": 1 if outcome.passed else 2 if slow else 3})

    @app.post("/run_code")
    async def run_code(asked: RunIn) -> Response:
        refusal = _unsupported(asked)
        if refusal:
            return JSONResponse(_fusion("SandboxError", refusal, None))
        cpu = min(asked.run_timeout, most_cpu_seconds)
        memory = min(asked.memory_limit_MB if asked.memory_limit_MB > 0 else limits.memory_mb, most_memory_mb)
        # Its client waits for both timeouts and 10 s, the time in our queue among them.
        asks = Limits(cpu, cpu + min(asked.compile_timeout, 10.0), max(64, memory), output_bytes=1 << 20)
        outcome = (await desk.judge(Program(asked.code, asked.stdin or "", asks))).outcome
        return JSONResponse(fusion_answer(outcome))

    @app.get("/healthz")
    async def healthz() -> Response:
        names = ("waiting", "running", "accepted", "answered", "rejected")
        return JSONResponse(
            {
                "status": "ok",
                "backend": desk.sandbox.isolation,
                "unsafe": desk.sandbox.isolation == "none",
                "seccomp": desk.sandbox.filter is not None,
                "python": desk.sandbox.image.version,
                "image": desk.sandbox.image.identity,
                "modes": MODES,
                "limits": _given(limits) | {"wall_seconds": limits.wall},
                "most": most,
                "cores": desk.cores,
                "queue": desk.queue,
                **{name: getattr(desk, name) for name in names},
            }
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(desk.metrics(), media_type="text/plain; version=0.0.4")

    return Gate(app, token, desk.sandbox.isolation, largest_body)


def _given(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in Limits.__dataclass_fields__}


def _status(outcome: Outcome) -> int:
    if outcome.verdict != "sandbox_error":
        return 200
    return 503 if outcome.again else 422


def _unsupported(asked: RunIn) -> str:
    if asked.language not in PYTHONS:
        return f"language {asked.language!r}: this judge runs python only"
    if asked.files or asked.fetch_files:
        return "files and fetch_files: this judge gives programs no files"
    return ""


def fusion_answer(outcome: Outcome) -> dict[str, Any]:
    """SandboxFusion's words for an outcome."""
    if outcome.verdict == "sandbox_error":
        return _fusion("SandboxError", outcome.message, None)
    status = "TimeLimitExceeded" if outcome.verdict in ("timeout_cpu", "timeout_wall") else "Finished"
    if outcome.verdict == "output_limit":
        status = "Error"
    ran = {
        "status": status,
        "execution_time": outcome.wall_seconds,
        "return_code": outcome.exit_code if outcome.exit_code is not None else -9 if status == "Finished" else None,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
    }
    return _fusion("Success" if outcome.passed else "Failed", outcome.message, ran)


def _fusion(status: str, message: str, ran: dict[str, Any] | None) -> dict[str, Any]:
    empty: dict[str, Any] = {"executor_pod_name": None, "files": {}}
    return {"status": status, "message": message, "compile_result": None, "run_result": ran, **empty}
