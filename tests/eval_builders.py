"""A server for the tests of `reasonrl eval`, which fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Of a `FakeServer`."""

    server: FakeServer

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.open.append(self.connection)

    def do_GET(self) -> None:
        models = {"data": [{"id": "m", "max_model_len": self.server.context}]}
        self._reply(200 if self.path.endswith("/models") else 404, models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append((self.path, body, self.headers.get("Authorization")))
            wrong = server.plan.pop(0) if server.plan else None
            if server.after is not None and len(server.asked) > server.after:
                threading.Thread(target=server.down).start()
                wrong = "drop"
        if wrong == "hang":
            time.sleep(1.0)
        if wrong == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(wrong, int):
            self._reply(wrong, {"error": {"message": f"wrong {wrong}"}})
            return
        if isinstance(wrong, dict):
            self._reply(wrong.pop("status"), wrong)
            return
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        length, limit = len(text), body.get("max_tokens") or body.get("max_completion_tokens")
        if length + limit > server.context:
            message = f"This model's maximum context length is {server.context} tokens"
            self._reply(400, {"error": {"message": message}})
            return
        written = min(limit, 8)
        choice = {"finish_reason": "length" if written == limit else "stop", **server.choice(text, body)}
        usage = {"prompt_tokens": length, "completion_tokens": written}
        self._reply(200, {"choices": [choice], **({"usage": usage} if server.counts else {})})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class FakeServer(ThreadingHTTPServer):
    """Speaks as much of OpenAI's API as `reasonrl eval` asks.

    plan: what goes wrong with the next requests: a status, "hang", "drop", an answer, None. asked: path, body, key of each.
    context: tokens, a letter each. choice: what is answered to a text. counts: whether it tells how many tokens.
    after: answers, then it goes down.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.open: list[socket.socket] = []
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.plan: list[Any] = []
        self.context = 1000
        self.counts = True
        self.after: int | None = None
        self.choice: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda text, body: (
            {"text": f"{text}!"} if "prompt" in body else {"message": {"content": f"{text}!"}}
        )
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""

    def down(self) -> None:
        """For good."""
        self.shutdown()
        self.server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
