"""A process reward model behind `reasonrl prm serve`: what travels, and the client.

    GET  /health   -> {"identity", "card", "vocabulary", "waiting"}: waiting items of all clients
    POST /score    {"items": [{"question", "prompt_ids", "response_ids", "ends"}, ...]} -> {"identity", "scores": [[...], ...]}

JSON knows no NaN: a step beyond the context is `null`. A refused request is 400 (or 413) with {"error"}; 503 means try again.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError, RunFailed
from reasonrl.engine.prm.card import card_from, vocabulary_sha256
from reasonrl.engine.prm.layout import Steps

AT_ONCE = 64  # items of one request
FIRST_WAIT = 0.25  # seconds, doubled each time
LONGEST_WAIT = 8.0
PATIENCE = 60.0  # seconds of failing before the client gives up
TIMEOUT = 600.0  # seconds for one answer
FIELDS = ("question", "prompt_ids", "response_ids", "ends")
AGAIN = (429, 502, 503, 504)


def encode_items(items: Sequence[Steps]) -> bytes:
    """The body of a request."""
    plain = [{name: _plain(value) for name, value in asdict(item).items()} for item in items]
    return json.dumps({"items": plain}).encode()


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else [int(v) for v in value]


def decode_items(body: bytes) -> list[Steps]:
    """The items of a request. Raises ValueError saying which one is wrong."""
    try:
        rows = json.loads(body)["items"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError('the body must be JSON: {"items": [...]}') from error
    if not isinstance(rows, list):
        raise ValueError('"items" must be a list')
    items = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or sorted(row) != sorted(FIELDS):
            raise ValueError(f"item {number} must have exactly {', '.join(FIELDS)}")
        whole = all(
            isinstance(row[name], list) and all(type(v) is int and abs(v) < 2**31 for v in row[name])
            for name in FIELDS[1:]
        )
        if not isinstance(row["question"], str) or not whole:
            raise ValueError(f"item {number}: question must be text, the others lists of token ids or indices")
        items.append(Steps(**row))
    return items


def encode_scores(scores: Sequence[NDArray[np.float32]]) -> list[list[float | None]]:
    """Scores for JSON."""
    return [[None if math.isnan(s) else float(s) for s in item] for item in scores]


def decode_scores(scores: Sequence[Sequence[float | None]]) -> list[NDArray[np.float32]]:
    """And back, exactly."""
    return [np.asarray([math.nan if s is None else s for s in item], dtype=np.float32) for item in scores]


class HTTPScorer:
    """A client of `reasonrl prm serve`. The server must stay the same one: the same model, the same tags."""

    def __init__(self, url: str, *, policy: Any = None, patience: float = PATIENCE) -> None:
        """policy: the policy's tokenizer, compared with what the server expects.

        patience: seconds of failing before giving up. Raises ConfigError when there is no such server, or one of
        another vocabulary.
        """
        self.url, self.patience = url.rstrip("/"), patience
        # a proxy of the environment is for the internet, not for this machine
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        try:
            health = self._asked("/health", None)
            self.identity, self.card = health["identity"], card_from(health["card"], self.url)
            vocabulary = health["vocabulary"]
        except (RunFailed, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"no process reward model at {self.url} ({error}): start one with reasonrl prm serve, or give its folder"
            ) from error
        if policy is not None and vocabulary_sha256(policy) != vocabulary:
            raise ConfigError(
                f"{self.url} expects the token ids of another tokenizer than the policy's: start it with "
                "reasonrl prm serve model=... policy=<the policy>"
            )

    def score(self, items: Sequence[Steps]) -> list[NDArray[np.float32]]:
        """(K,) for each item, in order; NaN at steps beyond the context.

        Raises ValueError for what the server refuses, RunFailed when it cannot be reached or is another one than before.
        """
        scores: list[NDArray[np.float32]] = []
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            answer = self._asked("/score", encode_items(some))
            if answer.get("identity") != self.identity:
                raise RunFailed(
                    f"the process reward model at {self.url} was exchanged ({self.identity[:12]} before, "
                    f"{str(answer.get('identity'))[:12]} now): its scores cannot be mixed. Start the former one again"
                )
            found = decode_scores(answer["scores"])
            if [s.size for s in found] != [len(item.ends) for item in some]:
                raise RunFailed(f"{self.url} gave another number of scores than steps were asked")
            scores += found
        return scores

    def _asked(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, data=body, headers={"Content-Type": "application/json"} if body else {}
        )

        def once() -> dict[str, Any]:
            with self._open(request, timeout=TIMEOUT) as answer:
                return dict(json.loads(answer.read()))

        return patiently(once, self.url, self.patience)


def patiently(
    once: Callable[[], dict[str, Any]],
    where: str,
    patience: float,
    *,
    hint: str = "is `reasonrl prm serve` up?",
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """`once()`, again and again with growing waits while the server cannot be reached. Raises RunFailed, ValueError.

    hint: the end of the message when it stays away.
    """
    start, wait = clock(), FIRST_WAIT
    while True:
        try:
            return once()
        except urllib.error.HTTPError as error:
            told = _told(error)
            if error.code in (400, 413):
                raise ValueError(told) from error
            if error.code not in AGAIN:
                raise RunFailed(f"{where} failed with status {error.code}: {told}") from error
            cause = f"status {error.code}: {told}"
        except (OSError, ValueError) as error:  # refused, reset, timed out; an answer cut short is no JSON
            cause = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        if clock() - start + wait > patience:
            raise RunFailed(f"{where} gave no answer for {clock() - start:.0f} s ({cause}); {hint}")
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
