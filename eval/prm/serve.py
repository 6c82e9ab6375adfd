"""`reasonrl prm serve`: a process reward model over HTTP, for a training run beside it or for several commands at once.

Requests are answered by a thread each; one thread scores, taking together what is waiting, so that many small requests
cost little more than one large. What travels is in `reasonrl.engine.prm.http`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from reasonrl.engine.prm import Scorer, Steps

HELP = """\
reasonrl prm serve model=<prm folder> [host=127.0.0.1] [port=8077] [key=value ...]

Scores the steps of responses for others: prm=http://127.0.0.1:8077 instead of prm=<folder>.

  port=8077             0: any free one; it is told in the first line
  host=127.0.0.1        there is no password: another host= lets everybody in that network ask
  policy=               model whose token ids come, where it is not of the process reward model's family
  device=auto backend=transformers (or vllm)
  batch_tokens=         padded tokens of one forward pass; default 2048 on a CPU, 16384 on a GPU

GET /health, POST /score. Ctrl-C ends it.
"""
COMMAND = "reasonrl prm serve"
LARGEST_BODY = 64 << 20  # bytes
MOST_ITEMS = 4096  # of one request
MOST_WAITING = 65536  # items of all requests; then 503 until some are done
TOGETHER = 4096  # items scored in one go


@dataclass(frozen=True)
class ServeKnobs:
    """See `HELP`."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8077
    policy: str | None = None
    device: str = "auto"
    batch_tokens: int | None = None
    backend: str = "transformers"

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        require(0 <= self.port < 65536, f"port must be 0 (any free one) to 65535, got {self.port}")
        require(
            self.batch_tokens is None or self.batch_tokens >= 1,
            f"batch_tokens must be at least 1, got {self.batch_tokens}",
        )
        choices = ("transformers", "vllm")
        require(self.backend in choices, f"backend must be one of {', '.join(choices)}, got {self.backend!r}")
        require("://" not in self.model, f"model={self.model}: serve a folder, not another server")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    knobs = read_knobs(ServeKnobs, args, COMMAND)
    with served(*opened(knobs), host=knobs.host, port=knobs.port) as url:
        print(f"process reward model {knobs.model} at {url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print("stopped", file=sys.stderr)
    return 0


def opened(knobs: ServeKnobs) -> tuple[Scorer, str]:
    """The scorer, and the vocabulary that it expects ids of. Raises ConfigError."""
    from transformers import AutoTokenizer

    from reasonrl.engine.prm import open_scorer
    from reasonrl.engine.prm.card import vocabulary_sha256
    from reasonrl.eval.prm.train import model_path

    policy = AutoTokenizer.from_pretrained(model_path(knobs.policy)) if knobs.policy else None
    scorer = open_scorer(
        knobs.model,
        tokenizer=policy,
        device=knobs.device,
        batch_tokens=knobs.batch_tokens,
        backend=knobs.backend,  # type: ignore[arg-type]
    )
    return scorer, scorer.card.vocabulary if policy is None else vocabulary_sha256(policy)


@contextlib.contextmanager
def served(scorer: Scorer, vocabulary: str, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A server in threads of this process, and its address. Raises ConfigError for a port that cannot be had."""
    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): give another port=, 0 for any free one"
        ) from error
    server.desk = desk = Desk(scorer)
    server.health = {"identity": scorer.identity, "card": scorer.card.asdict(), "vocabulary": vocabulary}
    thread = threading.Thread(target=server.serve_forever, name="prm-serve", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        desk.close()
        thread.join()


class Busy(Exception):
    """Too much is waiting."""


@dataclass(eq=False)
class Desk:
    """Items of all requests, scored together by one thread in the order in which they came."""

    scorer: Scorer
    waiting: queue.Queue[tuple[list[Steps], Future[Any]] | None] = field(default_factory=queue.Queue)
    count: int = 0  # items waiting or being scored
    rounds: int = 0  # how often the scorer was asked
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._work, name="prm-score", daemon=True)
        self.thread.start()

    def score(self, items: list[Steps]) -> list[NDArray[np.float32]]:
        """Wait for these scores. Raises Busy, and whatever the scorer raises for them."""
        future: Future[Any] = Future()
        with self.lock:
            if self.count and self.count + len(items) > MOST_WAITING:
                raise Busy(f"{self.count} items are waiting")
            self.count += len(items)
        self.waiting.put((items, future))
        try:
            return future.result()  # type: ignore[no-any-return]
        finally:
            with self.lock:
                self.count -= len(items)

    def close(self) -> None:
        """End the thread after what is waiting."""
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while (first := self.waiting.get()) is not None:
            jobs, size = [first], len(first[0])
            while size < TOGETHER:
                try:
                    job = self.waiting.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    self.waiting.put(None)  # for the outer loop
                    break
                jobs.append(job)
                size += len(job[0])
            self._answer(jobs)

    def _answer(self, jobs: list[tuple[list[Steps], Future[Any]]]) -> None:
        try:
            self.rounds += 1
            scores = self.scorer.score([item for items, _ in jobs for item in items])
        except Exception as error:  # whatever it is belongs to the one who asked, and the thread must live on
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        start = 0
        for items, future in jobs:
            future.set_result(scores[start : start + len(items)])
            start += len(items)


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads = True
    request_queue_size = 128
    desk: Desk
    health: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    """GET /health and POST /score."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a client to send what it announced

    def do_GET(self) -> None:
        """Who is here."""
        if self.path == "/health":
            self._reply(200, {**self.server.health, "waiting": self.server.desk.count})
        else:
            self._refuse(404, f"no {self.path}: GET /health or POST /score")

    def do_POST(self) -> None:
        """Scores of items."""
        text = self.headers.get("Content-Length") or ""
        if self.path != "/score":
            self._refuse(404, f"no {self.path}: GET /health or POST /score")
        elif not text.isdecimal():
            self._refuse(411, "the request must say its Content-Length")
        elif int(text) > LARGEST_BODY:
            self._refuse(413, f"{text} bytes, at most {LARGEST_BODY}: ask for fewer items at once")
        else:
            self._score(self.rfile.read(int(text)))

    def _score(self, body: bytes) -> None:
        from reasonrl.engine.prm.http import decode_items, encode_scores

        try:
            items = decode_items(body)
            if len(items) > MOST_ITEMS:
                self._refuse(413, f"{len(items)} items, at most {MOST_ITEMS}: ask for fewer at once")
                return
            scores = self.server.desk.score(items)
        except Busy as error:
            self._refuse(503, str(error))
        except ValueError as error:
            self._refuse(400, str(error))
        except Exception as error:  # the client is told, and the server lives on
            self._refuse(500, f"{type(error).__name__}: {error}")
        else:
            self._reply(200, {"identity": self.server.health["identity"], "scores": encode_scores(scores)})

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # what was not read of the body would be taken for the next request
        self._reply(status, {"error": why})

    def _reply(self, status: int, values: dict[str, Any]) -> None:
        body = json.dumps(values).encode()
        with contextlib.suppress(ConnectionError):  # a client that went away wants nothing more
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A line a request would drown everything else."""
