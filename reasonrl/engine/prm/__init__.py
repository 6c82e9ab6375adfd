"""Scoring the steps of responses with a process reward model (PRM): AdaptiveStep, arXiv 2502.13943, section 3.

    card        prm.json: which tokens are asked, and what the PRM was taught
    layout      question + response with a tag after each step, by token ids
    transformers_scorer, vllm_scorer, http     three backends of one shape

The score of step k is `exp(z_good) / (exp(z_good) + exp(z_bad))` of the logits at its tag. (What is released compared raw
`z_good`, which is no monotone map of it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reasonrl.engine.prm.card import Card, read_card
from reasonrl.engine.prm.layout import Layout, Steps

__all__ = ["Card", "Layout", "Scorer", "Steps", "beyond_context", "open_scorer", "read_card"]


class Scorer(Protocol):
    """Holds a process reward model, or knows where one is.

    identity: hash of weights, tags and form of the value; never the same for two models whose scores differ.
    """

    identity: str
    card: Card

    def score(self, items: Sequence[Steps]) -> list[NDArray[np.float32]]:
        """(K,) in (0, 1) for each item, in order; NaN where the PRM's context ended before the step's tag."""
        ...


def open_scorer(
    where: str,
    *,
    tokenizer: Any,
    device: str = "auto",
    batch_tokens: int | None = None,
    backend: Literal["transformers", "vllm"] = "transformers",
    memory: float = 0.4,
) -> Scorer:
    """The scorer of a folder made by `reasonrl prm train`, or of a running `reasonrl prm serve`.

    Args:
        where: folder, or `http://host:port`.
        tokenizer: the policy's, whose token ids come in the items.
        device: cpu, cuda, cuda:1, or auto.
        batch_tokens: padded tokens of one forward pass, default 2048 on a CPU and 16384 on a GPU.
        backend: of a folder. memory: share of the GPU that vLLM may take.
    Raises:
        ConfigError: no PRM there, one that cannot be loaded, or one that does not fit the policy's tokenizer.
    """
    if where.startswith(("http://", "https://")):
        from reasonrl.engine.prm.http import HTTPScorer

        return HTTPScorer(where, policy=tokenizer)
    if backend == "vllm":
        from reasonrl.engine.prm.vllm_scorer import open_vllm

        return open_vllm(where, policy=tokenizer, memory=memory)
    from reasonrl.engine.prm.transformers_scorer import open_folder

    return open_folder(where, policy=tokenizer, device=device, batch_tokens=batch_tokens)


def beyond_context(scores: Sequence[NDArray[np.float32]]) -> int:
    """Steps without a score, because the PRM's context ended before them."""
    return sum(int(np.isnan(item).sum()) for item in scores)
