"""Asks a judge, patiently. A verdict comes back, or JudgeError: a judge that cannot be reached says nothing about a program."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Generator
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from reasonrl.verify.judge.types import (
    TOKEN_FILE,
    TOKEN_VARIABLE,
    VERDICTS,
    BadJob,
    Job,
    JudgeError,
    JudgeGone,
    Outcome,
    Program,
)

FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between tries, doubled each time
PATIENCE = 60.0  # seconds without a judge
BUSY_PATIENCE = 1800.0  # seconds of being told to come again
SANDBOX_TRIES = 4  # of a judge that answers, whose sandbox fails
ANSWER_TIMEOUT = 900.0  # seconds for one answer: the queue and the program
AGAIN = (408, 425, 429, 500, 502, 503, 504)
UNIX = "unix:"


class JudgeClient:
    """Of one judge; safe to use from many threads, and from any event loop. Close it, or use `with`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        patience: float = PATIENCE,
        busy_patience: float = BUSY_PATIENCE,
        verify: str | bool | None = None,
    ) -> None:
        """url: `http://127.0.0.1:8078`, or `unix:/path/of/its.socket`.

        token: default REASONRL_JUDGE_TOKEN, or the file that a judge of this user makes. verify: the certificate
        authority of an https judge. patience: seconds without any judge before JudgeError.
        """
        self.url = url.rstrip("/")
        self.patience, self.busy_patience = patience, busy_patience
        self._socket = self.url[len(UNIX) :] if self.url.startswith(UNIX) else None
        base = "http://judge" if self._socket is not None else self.url
        token = token or (None if self._socket is not None else found_token())
        self._options: dict[str, Any] = {
            "base_url": base,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx.Timeout(ANSWER_TIMEOUT, connect=10.0, pool=None),
            "trust_env": False,  # a proxy of the environment is for the internet, not for the judge
        }
        self._transport: dict[str, Any] = {
            "uds": self._socket,
            "verify": os.environ.get("SSL_CERT_FILE") or True if verify is None else verify,
            "limits": httpx.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30.0),
        }
        self._lock = threading.Lock()
        self._sync: httpx.Client | None = None
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._async = weakref.WeakKeyDictionary()

    def judge(self, job: Job | Program) -> Outcome:
        """The verdict; of a Program what it wrote.

        Raises JudgeGone without a judge, JudgeError where there is no verdict, BadJob where there never is one.
        """
        client, path = self._client(), path_of(job)
        talk = self._talk(job)
        step = next(talk)
        while True:
            if isinstance(step, float):
                time.sleep(step)
                given: Any = None
            else:
                given = _caught(lambda step=step: client.post(path, json=step))
            try:
                step = talk.send(given)
            except StopIteration as end:
                return end.value

    async def judge_async(self, job: Job | Program) -> Outcome:
        """`judge` for asyncio."""
        loop = asyncio.get_running_loop()
        client = self._async.get(loop)
        if client is None:
            transport = httpx.AsyncHTTPTransport(**self._transport)
            client = self._async[loop] = httpx.AsyncClient(transport=transport, **self._options)
        talk, path = self._talk(job), path_of(job)
        step = next(talk)
        while True:
            given: Any = None
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                try:
                    given = await client.post(path, json=step)
                except httpx.HTTPError as error:
                    given = error
            try:
                step = talk.send(given)
            except StopIteration as end:
                return end.value

    def health(self) -> dict[str, Any]:
        """What the judge says of itself. Raises JudgeError."""
        answer = _caught(lambda: self._client().get("/healthz"))
        if isinstance(answer, Exception):
            raise JudgeGone(f"no judge at {self.url} ({_why(answer)}); start one with reasonrl judge")
        try:
            facts = dict(answer.json())
            if facts["status"] == "ok" and isinstance(facts["most"], dict):
                return facts
        except (ValueError, TypeError, KeyError):
            pass
        raise JudgeGone(
            f"{self.url} is no judge of this version (GET /healthz: status {answer.status_code}: {_told(answer)[:100]}); "
            "is it the address that reasonrl judge told?"
        )

    def close(self) -> None:
        """Close its connections; those of an event loop end with the loop."""
        with self._lock:
            client, self._sync = self._sync, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._sync is None:
                transport = httpx.HTTPTransport(**self._transport)
                self._sync = httpx.Client(transport=transport, **self._options)
            return self._sync

    def _talk(self, job: Job | Program) -> Generator[dict[str, Any] | float, Any, Outcome]:
        """Yields a body to post, and gets the response or what went wrong; or yields seconds to wait."""
        body = encode_job(job, uuid.uuid4().hex)  # one id for all tries: the judge runs it once
        start = silent_since = time.monotonic()
        wait, failures = FIRST_WAIT, 0
        while True:
            answer = yield body
            now = time.monotonic()
            pause = wait
            if isinstance(answer, httpx.Response) and answer.status_code not in AGAIN:
                return self._read(answer)
            if isinstance(answer, httpx.Response):
                cause = f"status {answer.status_code}: {_told(answer)}"
                if answer.status_code == 429:
                    silent_since = now  # it is there and says when to come again
                    pause = max(wait, _seconds(answer.headers.get("Retry-After")))
                elif _verdict(answer) == "sandbox_error":
                    silent_since = now
                    failures += 1
                    if failures >= SANDBOX_TRIES:
                        raise JudgeError(
                            f"the judge at {self.url} gave no verdict in {failures} tries: {_told(answer)}"
                        )
            else:
                cause = _why(answer)
            if now - silent_since + pause > self.patience:
                raise JudgeGone(
                    f"no judge at {self.url} for {now - silent_since:.0f} s ({cause}): see whether `reasonrl judge` is up"
                )
            if now - start > self.busy_patience:
                raise JudgeGone(f"the judge at {self.url} had no time for {now - start:.0f} s ({cause})")
            yield pause * random.uniform(0.5, 1.0) if pause == wait else pause * random.uniform(1.0, 1.25)
            wait = min(2 * wait, LONGEST_WAIT)

    def _read(self, answer: httpx.Response) -> Outcome:
        if answer.status_code == 200:
            try:
                return decode_outcome(answer.json())
            except (ValueError, TypeError, KeyError) as error:
                raise JudgeGone(f"{self.url} is no judge of this version: {error}") from error
        told = _told(answer)
        if answer.status_code in (413, 422):
            raise BadJob(f"the judge at {self.url} cannot judge this job: {told}")
        raise JudgeGone(f"the judge at {self.url} refused with status {answer.status_code}: {told}")


def path_of(job: Job | Program) -> str:
    """Where it is asked."""
    return "/v1/judge" if isinstance(job, Job) else "/v1/run"


def encode_job(job: Job | Program, id: str | None = None) -> dict[str, Any]:
    """The body of POST /v1/judge, or of POST /v1/run."""
    asked = ("cpu_seconds", "wall_seconds", "memory_mb", "output_bytes")
    limits = {name: value for name, value in asdict(job.limits).items() if name in asked and value is not None}
    if isinstance(job, Program):
        return {"code": job.code, "stdin": job.stdin, "limits": limits, "id": id}
    body: dict[str, Any] = {"code": job.code, "tests": job.tests, "prelude": job.prelude, "names": list(job.names)}
    return {**body, "mode": job.mode, "limits": limits, "id": id}


def decode_outcome(body: dict[str, Any]) -> Outcome:
    """The outcome in an answer. Raises ValueError, KeyError, TypeError."""
    if body["verdict"] not in VERDICTS:
        raise ValueError(f"an unknown verdict {body['verdict']!r}")
    return Outcome(**{f.name: body[f.name] for f in fields(Outcome)})


def found_token() -> str | None:
    """The token of this user's own judge, if there is one."""
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    if given:
        return given
    try:
        return Path(TOKEN_FILE).expanduser().read_text().strip() or None
    except OSError:
        return None


def _caught(ask: Any) -> Any:
    try:
        return ask()
    except httpx.HTTPError as error:
        return error


def _why(error: Any) -> str:
    return f"{type(error).__name__}: {error}"


def _told(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        return str(body.get("error") or body.get("message") or body)[:500]
    except (ValueError, AttributeError):
        return answer.text[:200]


def _verdict(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("verdict"))
    except (ValueError, AttributeError):
        return ""


def _seconds(text: str | None) -> float:
    try:
        return min(60.0, float(text or 0))
    except ValueError:
        return 0.0
