"""Any server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, a provider.

The client is httpx, which transformers brings already (through huggingface_hub); two kinds of request need no more.
Each answer is a request of its own, with a seed of its own: some servers ignore `n`.

What fails for a moment (no connection, 408, 429, 5xx) is tried again, waiting longer each time. What was answered by then is
kept, and the same command continues. The key comes from an environment variable and is written nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.backends import Answer, Ask, Backend

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

    from reasonrl.eval.settings import EvalKnobs

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
TRIES = 8  # of one request
FIRST_WAIT = 1.0  # seconds, doubled each time
LONGEST_WAIT = 60.0
CONNECT_SECONDS = 10.0
TOLD_SECONDS = 10.0  # between two lines about what fails
CONTEXT = re.compile(
    r"context[ _](length|window|size)|max_model_len|maximum (model|input|sequence) length", re.IGNORECASE
)


@dataclass(frozen=True)
class Server:
    """Where to ask, and how."""

    base_url: str
    model: str
    key: str | None
    connections: int
    timeout: float  # seconds for one answer
    max_context: int | None  # of prompt and answer together; None: the server's own
    first_wait: float
    tries: int


class _Refused(Exception):
    """A final answer that is no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class ServerBackend:
    """Asks with many connections at once, from a thread of its own."""

    def __init__(self, server: Server, console: Console | None = None) -> None:
        self._server, self._console = server, console
        self._context = server.max_context
        self._limit_key = "max_tokens"
        self._retried = 0
        self._told = -TOLD_SECONDS

    def facts(self) -> dict[str, Any]:
        return {"connections": self._server.connections, "tried_again": self._retried}

    def check(self) -> None:
        """Raise ConfigError unless something answers at the address, and knows the model."""
        import httpx

        url = f"{self._server.base_url}/models"
        try:
            with httpx.Client(timeout=CONNECT_SECONDS, headers=self._headers(), trust_env=True) as client:
                got = client.get(url)
        except httpx.HTTPError as error:
            raise ConfigError(
                f"no server answers at {url} ({type(error).__name__}: {error}): start it, or mend base_url= (most end in /v1)"
            ) from error
        if got.status_code in (401, 403):
            raise ConfigError(self._unauthorised(got.status_code))
        try:
            listed = {str(each["id"]): each for each in got.json()["data"]} if got.status_code == 200 else {}
        except (ValueError, KeyError, TypeError):
            listed = {}
        if listed and self._server.model not in listed:
            names = ", ".join(sorted(listed)[:20])
            raise ConfigError(
                f"{self._server.base_url} has no model {self._server.model!r}: give served_model=, of {names}"
            )
        length = listed.get(self._server.model, {}).get("max_model_len")
        if self._context is None and isinstance(length, int):
            self._context = length

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """As they come. Raises ConfigError for what the server refuses, RunFailed when it stays away."""
        todo = iter([(ask, number) for ask in asks for number in ask.numbers])
        found: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._work(todo, found, stop)), name="eval-server", daemon=True
        )
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(CONNECT_SECONDS)

    # in the thread

    async def _work(
        self,
        todo: Iterator[tuple[Ask, int]],
        found: queue.SimpleQueue[Answer | BaseException | None],
        stop: threading.Event,
    ) -> None:
        import httpx

        server = self._server
        limits = httpx.Limits(max_connections=server.connections, max_keepalive_connections=server.connections)
        timeout = httpx.Timeout(server.timeout, connect=CONNECT_SECONDS, pool=None)

        async def worker(client: httpx.AsyncClient) -> None:
            for ask, number in todo:
                found.put(await self._answer(client, ask, number))

        async def watch() -> None:
            while not stop.is_set():
                await asyncio.sleep(0.1)

        try:
            async with httpx.AsyncClient(limits=limits, timeout=timeout, headers=self._headers()) as client:
                workers = [asyncio.ensure_future(worker(client)) for _ in range(server.connections)]
                watching = asyncio.ensure_future(watch())
                everything: asyncio.Future[Any] = asyncio.ensure_future(asyncio.gather(*workers))
                done, _ = await asyncio.wait({everything, watching}, return_when=asyncio.FIRST_COMPLETED)
                for task in (everything, *workers, watching):
                    task.cancel()
                await asyncio.gather(everything, *workers, watching, return_exceptions=True)
                if everything in done:
                    everything.result()
        except BaseException as error:  # told in the thread that waits for answers
            found.put(error)
        found.put(None)

    async def _answer(self, client: httpx.AsyncClient, ask: Ask, number: int) -> Answer:
        """Raises ConfigError, RunFailed."""
        limit = ask.max_tokens
        try:
            return _read(ask, number, await self._post(client, ask, number, limit), self._server.base_url)
        except _Refused as refused:
            if refused.status not in (400, 413, 422) or not CONTEXT.search(refused.message):
                raise self._final(refused, ask) from refused
        # Prompt and max_tokens together are over the context. One token tells how long the prompt is.
        try:
            probe = await self._post(client, ask, number, 1)
        except _Refused as refused:
            if refused.status in (400, 413, 422) and CONTEXT.search(refused.message):
                return Answer(ask.task, ask.id, number, "", 0, 0, True, too_long=True)
            raise self._final(refused, ask) from refused
        length = _usage(probe, self._server.base_url)[0]
        if self._context is None:
            raise ConfigError(
                f"{ask.task}, question {ask.id}: prompt and max_new_tokens={limit} are over the server's context, whose "
                "length it does not tell: give max_context=, or lower max_new_tokens"
            )
        room = self._context - length
        if room < 1:
            return Answer(ask.task, ask.id, number, "", 0, length, True, too_long=True)
        try:
            answer = await self._post(client, ask, number, min(limit, room))
        except _Refused as refused:
            raise self._final(refused, ask) from refused
        return replace(_read(ask, number, answer, self._server.base_url), short_of_room=room < limit)

    async def _post(self, client: httpx.AsyncClient, ask: Ask, number: int, max_tokens: int) -> dict[str, Any]:
        """The server's answer; tries again while that may help. Raises _Refused, RunFailed."""
        import httpx

        server = self._server
        path = "completions" if isinstance(ask.turns, str) else "chat/completions"
        wait = server.first_wait
        for tries in range(1, server.tries + 1):
            told, limit_key = None, self._limit_key
            try:
                got = await client.post(
                    f"{server.base_url}/{path}", json=self._body(ask, number, limit_key, max_tokens)
                )
            except httpx.TimeoutException as error:
                problem = f"no answer in time ({type(error).__name__}, request_timeout={server.timeout:g} s)"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if got.status_code == 200:
                    try:
                        answer = got.json()
                    except ValueError:
                        answer = None
                    if isinstance(answer, dict):
                        return answer
                    problem = "an answer that is not JSON"
                elif got.status_code not in AGAIN:
                    message = _message(got)
                    if got.status_code == 400 and "max_completion_tokens" in message and limit_key == "max_tokens":
                        self._limit_key = "max_completion_tokens"  # newer models of OpenAI refuse the older name
                        continue
                    raise _Refused(got.status_code, message)
                else:
                    problem = f"{got.status_code}: {_message(got)}"
                    told = _seconds(got.headers.get("retry-after"))
            if tries == server.tries:
                break
            pause = max(told or 0.0, wait * random.uniform(0.75, 1.25))
            self._tell(f"{server.base_url}: {problem}; again in {pause:.0f} s (try {tries} of {server.tries})")
            self._retried += 1
            await asyncio.sleep(min(pause, LONGEST_WAIT))
            wait = min(2 * wait, LONGEST_WAIT)
        raise RunFailed(
            f"{server.base_url} failed {server.tries} times, at last: {problem}. What was answered is kept: when the server "
            "works again, the same command continues"
        )

    def _body(self, ask: Ask, number: int, limit_key: str, max_tokens: int) -> dict[str, Any]:
        what = {"prompt": ask.turns} if isinstance(ask.turns, str) else {"messages": list(ask.turns)}
        body = {
            "model": self._server.model,
            **what,
            limit_key: max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
        }
        if ask.top_k != -1:
            body["top_k"] = ask.top_k  # not OpenAI's; vLLM and SGLang take it, others refuse rather than ignore it
        if ask.temperature > 0:
            body["seed"] = ask.seed_of(number) % 2**31
        return body

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._server.key}"} if self._server.key else {}

    def _unauthorised(self, status: int) -> str:
        have = "the key was refused" if self._server.key else "no key is set"
        return (
            f"{self._server.base_url} wants a key ({status}; {have}): put it into the variable that api_key_env= names"
        )

    def _final(self, refused: _Refused, ask: Ask) -> ConfigError:
        if refused.status in (401, 403):
            return ConfigError(self._unauthorised(refused.status))
        return ConfigError(
            f"{self._server.base_url} refuses {ask.task}, question {ask.id} ({refused.status}): {refused.message}"
        )

    def _tell(self, line: str) -> None:
        now = time.monotonic()
        if self._console is not None and now - self._told >= TOLD_SECONDS:
            self._told = now
            self._console.print(line)


def _read(ask: Ask, number: int, answer: Mapping[str, Any], where: str) -> Answer:
    """Raises ConfigError for an answer without a text, or without its number of tokens."""
    try:
        (choice,) = answer["choices"][:1]
        if isinstance(ask.turns, str):
            text = str(choice["text"] or "")
        else:
            message = choice["message"]
            text = _with_reasoning(
                message.get("reasoning_content") or message.get("reasoning"), message.get("content") or ""
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where} gave an answer without a text: {str(answer)[:200]}") from error
    prompt_tokens, tokens = _usage(answer, where)
    return Answer(ask.task, ask.id, number, text, tokens, prompt_tokens, choice.get("finish_reason") != "length")


def _with_reasoning(reasoning: Any, content: str) -> str:
    """The answer as the model wrote it, where the server has taken its reasoning apart."""
    if not isinstance(reasoning, str) or not reasoning:
        return content
    return f"<think>{reasoning}</think>{content}" if content else f"<think>{reasoning}"


def _usage(answer: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Tokens of the prompt and of the answer. Raises ConfigError."""
    try:
        usage = answer["usage"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} does not tell how many tokens it wrote (no usage in its answers), so lengths cannot be counted: "
            "use a server that does"
        ) from error


def _message(got: httpx.Response) -> str:
    """What the server says of an error."""
    try:
        found = got.json()
        inner = found.get("error", found)
        text = inner.get("message", inner) if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        text = got.text
    return " ".join(str(text).split())[:300] or got.reason_phrase


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:
        return None  # a date


@contextlib.contextmanager
def open_server(knobs: EvalKnobs, console: Console | None = None) -> Iterator[Backend]:
    """Look whether the server is there. Raises ConfigError."""
    backend = ServerBackend(server_of(knobs), console)
    backend.check()
    yield backend


def server_of(knobs: EvalKnobs) -> Server:
    """Raises ConfigError for an address that cannot be one, and for a variable that was named and is not set."""
    url = str(knobs.base_url).rstrip("/")
    found = urlsplit(url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ConfigError(f"base_url={url} is no address: give http://host:port/v1")
    if found.username or found.password:
        raise ConfigError(
            "base_url= holds a password, which would be recorded: put the key into an environment variable"
        )
    key = os.environ.get(knobs.api_key_env)
    if not key and knobs.api_key_env != "OPENAI_API_KEY":
        raise ConfigError(f"the environment variable {knobs.api_key_env} is not set (api_key_env)")
    return Server(
        base_url=url,
        model=knobs.served_model or knobs.model,
        key=key or None,
        connections=knobs.max_connections,
        timeout=knobs.request_timeout,
        max_context=knobs.max_context,
        first_wait=FIRST_WAIT,
        tries=TRIES,
    )
