"""The client against a scripted server: it asks again, gives up with a reason, and never makes up a verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from reasonrl.verify.judge import client as judge_client
from reasonrl.verify.judge.client import JudgeClient
from reasonrl.verify.judge.types import BadJob, Job, JudgeError, JudgeGone, Limits, Outcome, Program

JOB = Job("def f(): pass", "assert f() is None", names=("f",), limits=Limits(cpu_seconds=2))
PASSED = (
    200,
    {**Outcome("passed", cpu_seconds=0.5).asdict(), "passed": True, "cached": False, "id": None, "isolation": "bwrap"},
)
FAILING = (503, {**Outcome("sandbox_error", "no namespace").asdict(), "passed": False})
DROPPED = (0, {})  # the connection is cut without an answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(judge_client, "LONGEST_WAIT", 0.05)
    monkeypatch.setenv("REASONRL_JUDGE_TOKEN", "a-token-of-some-length")


@contextlib.contextmanager
def scripted(*answers: tuple[int, dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers, the last one for ever; its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = answers[min(len(asked), len(answers) - 1)]
            asked.append({**body, "authorization": self.headers["Authorization"], "path": self.path})
            if not status:
                self.close_connection = True
                return
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def in_a_thread(client: JudgeClient) -> Outcome:
    return client.judge(JOB)


def in_a_loop(client: JudgeClient) -> Outcome:
    async def main() -> Outcome:
        try:
            return await client.judge_async(JOB)
        finally:
            await client.aclose()

    return asyncio.run(main())


both = pytest.mark.parametrize("ask", [in_a_thread, in_a_loop])
Ask = Callable[[JudgeClient], Outcome]


@both
def test_it_asks_again_with_the_same_id_until_there_is_a_verdict(ask: Ask) -> None:
    busy = (429, {"error": "3 jobs are waiting"})
    with scripted(busy, DROPPED, (502, {}), FAILING, PASSED) as (url, asked), JudgeClient(url) as client:
        assert ask(client) == Outcome("passed", cpu_seconds=0.5)
        assert len(asked) == 5
        assert len({each["id"] for each in asked}) == 1
        assert asked[0]["authorization"] == "Bearer a-token-of-some-length"
        assert asked[0]["limits"] == {"cpu_seconds": 2, "memory_mb": 1024, "output_bytes": 65536}
        assert ask(client).passed
        assert len({each["id"] for each in asked}) == 2


@both
def test_a_program_is_asked_for_elsewhere(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "JOB", Program("print(1)", "in", Limits(cpu_seconds=2)))
    with scripted((200, {**PASSED[1], "stdout": "1\n"})) as (url, asked), JudgeClient(url) as client:
        assert ask(client).stdout == "1\n"
    (body,) = asked
    assert (body["path"], body["code"], body["stdin"]) == ("/v1/run", "print(1)", "in")
    assert body["limits"] == {"cpu_seconds": 2, "memory_mb": 1024, "output_bytes": 65536}


@both
def test_who_has_no_judge_is_told_apart_from_who_has_no_verdict(ask: Ask) -> None:
    """Without a judge no other program will get a verdict either, so that a run has to stop."""
    for answer, gone in ((FAILING, False), ((422, {}), False), ((401, {}), True), ((200, {}), True)):
        with scripted(answer) as (url, _), JudgeClient(url) as client, pytest.raises(JudgeError) as error:
            ask(client)
        assert isinstance(error.value, JudgeGone) is gone, answer
    with JudgeClient("unix:/nowhere/socket", patience=0.1) as client, pytest.raises(JudgeGone):
        ask(client)


@both
def test_a_sandbox_that_keeps_failing_is_an_error(ask: Ask) -> None:
    with scripted(FAILING) as (url, asked), JudgeClient(url) as client:
        with pytest.raises(JudgeError, match="no verdict in 4 tries: no namespace"):
            ask(client)
        assert len(asked) == 4


@both
def test_without_a_judge_it_gives_up_after_its_patience(ask: Ask) -> None:
    with scripted(PASSED) as (url, _):
        pass
    with (
        JudgeClient(url, patience=0.2) as client,
        pytest.raises(JudgeError, match=r"no judge at http://.*reasonrl judge"),
    ):
        ask(client)
    with (
        JudgeClient("unix:/nowhere/socket", patience=0.1) as client,
        pytest.raises(JudgeError, match="no judge at unix:"),
    ):
        ask(client)


@both
def test_a_judge_that_stays_busy_is_an_error(ask: Ask) -> None:
    busy = (429, {"error": "all are waiting"})
    with (
        scripted(busy) as (url, _),
        JudgeClient(url, busy_patience=0.2) as client,
        pytest.raises(JudgeError, match="had no time for"),
    ):
        ask(client)


@both
@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        ((422, {"error": "the tests do not compile"}), BadJob, "the tests do not compile"),
        ((413, {"error": "too long"}), BadJob, "too long"),
        ((401, {"error": "no token"}), JudgeError, "status 401: no token"),
        ((200, {"verdict": "perhaps"}), JudgeError, "no judge of this version"),
        ((200, {}), JudgeError, "no judge of this version"),
    ],
)
def test_what_will_not_change_is_told_at_once(ask: Ask, answer: Any, kind: type[Exception], told: str) -> None:
    with scripted(answer) as (url, asked), JudgeClient(url) as client:
        with pytest.raises(kind, match=told):
            ask(client)
        assert len(asked) == 1


def test_many_threads_may_share_a_client() -> None:
    with scripted(PASSED) as (url, asked), JudgeClient(url) as client:
        threads = [threading.Thread(target=client.judge, args=(JOB,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({each["id"] for each in asked}) == 16


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b'{"status": "ok"}', b'{"status": "ok", "most": null}'])
def test_health_of_another_server_is_no_judges(body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with (
            JudgeClient(f"http://127.0.0.1:{server.server_address[1]}") as client,
            pytest.raises(JudgeGone, match="is no judge of this version"),
        ):
            client.health()
        server.shutdown()


def test_health_of_nobody_names_the_command() -> None:
    with (
        JudgeClient("unix:/nowhere/socket") as client,
        pytest.raises(JudgeError, match="start one with reasonrl judge"),
    ):
        client.health()
