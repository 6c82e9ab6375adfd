"""A process reward model in this process, over vLLM's pooling engine.

Read in vLLM 0.24.0: `convert="classify"` with the override `method="no_post_processing"` makes a classifier of the rows of
the output matrix that `classifier_from_token` names (float32 by default), the task `token_classify` gives the softmax over
them at every token, and `skip_reading_prefix_cache` is set for it. Its STEP pooling is not used: there
`returned_token_ids` picks columns of the hidden state of a converted causal model, not logits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError, package_path
from reasonrl.engine.prm.card import identity_of
from reasonrl.engine.prm.layout import Layout, Steps
from reasonrl.engine.prm.transformers_scorer import load_card, require_numbers
from reasonrl.models import context, facts, model_fingerprint


class VLLMScorer:
    """`LLM.encode` over token ids; vLLM makes its own batches."""

    def __init__(self, llm: Any, layout: Layout, identity: str, *, limit: int | None) -> None:
        """llm: a `vllm.LLM` started by `open_vllm`. limit: tokens that it reads at most."""
        self._llm, self.layout, self.identity, self.card, self.limit = llm, layout, identity, layout.card, limit

    def score(self, items: Sequence[Steps]) -> list[NDArray[np.float32]]:
        """(K,) for each item, in order; NaN at steps whose tag lies beyond the model's context. Raises ValueError."""
        laid = [self.layout(item) for item in items]
        scores = [np.full(positions.size, np.nan, dtype=np.float32) for _, positions in laid]
        readable = [p if self.limit is None else p[p < self.limit] for _, p in laid]
        wanted = [i for i, positions in enumerate(readable) if positions.size]
        inputs = [laid[i][0][: self.limit].tolist() for i in wanted]
        outputs = self._llm.encode(
            [{"prompt_token_ids": ids} for ids in inputs], pooling_task="token_classify", use_tqdm=False
        )
        for i, ids, output in zip(wanted, inputs, outputs, strict=True):
            data = np.asarray(output.outputs.data.float().cpu().numpy())  # (T, 2): good, bad
            if list(output.prompt_token_ids) != ids or data.shape != (len(ids), 2):
                raise RuntimeError(
                    f"vLLM gave {data.shape} for {len(ids)} tokens, expected two probabilities a token: its version differs "
                    "from the one this was written for (0.24); use backend=transformers"
                )
            require_numbers(data[readable[i], 0])
            scores[i][: readable[i].size] = data[readable[i], 0]
        return scores


def open_vllm(where: str, *, policy: Any, memory: float = 0.4) -> VLLMScorer:
    """vLLM with a PRM's folder. memory: share of the GPU that it may take. Raises ConfigError."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    folder = Path(package_path(where))
    card, tokenizer = load_card(folder)
    limit = context(facts(folder))
    try:
        layout = Layout(card, tokenizer, policy)
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from error
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig

        llm = LLM(
            model=str(folder),
            runner="pooling",
            convert="classify",
            dtype="bfloat16",
            gpu_memory_utilization=memory,
            hf_overrides={
                "classifier_from_token": list(card.tokens[1:]),
                "method": "no_post_processing",
                "num_labels": 2,
            },
            pooler_config=PoolerConfig(task="token_classify"),
            **({} if limit is None else {"max_model_len": limit}),
        )
    except Exception as error:  # not installed, out of memory, a broken driver, ...
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(
            f"vLLM did not start with the process reward model {folder}: {type(error).__name__}: {line}. Use "
            "backend=transformers"
        ) from error
    return VLLMScorer(llm, layout, identity_of(model_fingerprint(str(folder)), card), limit=limit)
