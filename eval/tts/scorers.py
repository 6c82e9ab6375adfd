"""Reward models that choose among attempts: a process reward model of ours, or one that answers over HTTP.

    K steps of an attempt

    PRMScorer   `reasonrl prm train`'s folder or `reasonrl prm serve`'s address; a step a line, one number by an aggregate
    HTTPScorer  POST / {"chat": [{"role", "content"}, ...]} -> a number, the schema of the code released with arXiv 2502.15771

Attempts carry no confidence of their tokens, so steps are lines here; `reasonrl prm best-of-n` cuts by confidence.
"""

from __future__ import annotations

import json
import math
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.config import ConfigError, RunFailed

if TYPE_CHECKING:
    from reasonrl.data.prompts import Prompt
    from reasonrl.engine.prm import Scorer
    from reasonrl.eval.tts.base import Posed, Score

AT_ONCE = 8  # requests under way
PATIENCE = 60.0  # seconds of failing before the run stops
TIMEOUT = 600.0  # seconds for one answer
REACHED = 10.0  # seconds to be reached in


class PRMScorer:
    """The scores of an attempt's lines as one number."""

    def __init__(self, scorer: Scorer, tokenizer: Any, aggregate: str) -> None:
        """tokenizer: the policy's. aggregate: one of `functional.choice.AGGREGATES`."""
        from reasonrl.eval.prm.candidates import Cutter

        self._scorer, self._aggregate = scorer, aggregate
        self._cutter = Cutter("newline", tokenizer)

    def score(self, asks: Sequence[tuple[Posed, Score]]) -> list[float | None]:
        """None for an attempt without a step, or with one beyond the model's context."""
        from reasonrl.functional.choice import aggregate

        found = self._scorer.score([self._steps(posed, want) for posed, want in asks])
        return [aggregate(s, self._aggregate) if s.size and not np.isnan(s).any() else None for s in found]

    def _steps(self, posed: Posed, want: Score) -> Any:
        from reasonrl.engine.prm import Steps
        from reasonrl.eval.prm.candidates import Candidate

        ids, prompt = np.asarray(want.token_ids, np.int32), np.asarray(posed.prompt_ids, np.int32)
        made = Candidate(
            posed.question.text,
            prompt,
            ids,
            np.zeros(ids.size, np.float32),
            np.ones(ids.size, np.bool_),
            None,
            False,
            want.finished,
        )
        return Steps(made.question, prompt, ids, self._cutter(made, 0))  # type: ignore[arg-type]


class HTTPScorer:
    """A reward model of whole answers."""

    def __init__(
        self, url: str, prompt: Prompt, *, tokenizer: Any, max_tokens: int | None = None, patience: float = PATIENCE
    ) -> None:
        """prompt: how questions are put. max_tokens: of prompt and answer, by the policy's tokenizer; longer is not scored."""
        self.url, self._prompt, self._tokenizer = url, prompt, tokenizer
        self._max_tokens, self._patience = max_tokens, patience
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def require_there(self) -> None:
        """Raise ConfigError where nothing listens: the samples that it is to choose among may take hours."""
        try:
            at = urllib.parse.urlsplit(self.url)
            port = at.port or (443 if at.scheme == "https" else 80)
            socket.create_connection((at.hostname or "", port), timeout=REACHED).close()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no reward model answers at {self.url} ({error}): start it, or correct method.orm="
            ) from error

    def score(self, asks: Sequence[tuple[Posed, Score]]) -> list[float | None]:
        """Raises RunFailed when it cannot be reached or answers no number, ValueError for what it refuses."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda ask: self._asked(*ask), asks))

    def _asked(self, posed: Posed, want: Score) -> float | None:
        from reasonrl.engine.prm.http import patiently

        if self._max_tokens is not None and len(posed.prompt_ids) + len(want.token_ids) > self._max_tokens:
            return None
        chat = [*self._prompt.messages(posed.question.text), {"role": "assistant", "content": want.text}]
        body = json.dumps({"chat": chat}).encode()
        request = urllib.request.Request(self.url, data=body, headers={"Content-Type": "application/json"})

        def once() -> dict[str, Any]:
            with self._open(request, timeout=TIMEOUT) as answer:
                return {"score": json.loads(answer.read())}

        hint = "start it again, and give the same command to continue"
        found = patiently(once, f"the reward model at {self.url}", self._patience, hint=hint)["score"]
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise RunFailed(
                f"the reward model at {self.url} answered {json.dumps(found)[:80]}, not a number: it must answer "
                'POST {"chat": [{"role", "content"}, ...]} with one'
            )
        return float(found)
