"""A transformers model in this process: our continuous batching on the CPU, float32.

An answer's noise belongs to (seed, task, id, number), so what is sampled beside it changes no answer, up to the rounding of
the batch it happens to run in. Rounding could change a token whose draw falls on the border between two: with the embedded
model none of 16,384 answers (775,000 tokens) differed between batches of 256 and of 37 or 61.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from reasonrl.eval.backends import Answer, Ask, Backend

if TYPE_CHECKING:
    from reasonrl.engine.sampling import Ask as One
    from reasonrl.engine.sampling import Sampler

MOST_SEQUENCES = 256


class LocalBackend:
    """A sampler of `reasonrl.engine.sampling`, with the texts of its answers."""

    def __init__(self, sampler: Sampler, tokenizer: Any) -> None:
        self._sampler, self._tokenizer = sampler, tokenizer

    def facts(self) -> dict[str, Any]:
        return {"copies": 1}

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """One answer at a time."""
        for made in self._sampler.answers(_one_by_one(asks)):
            ask, number = made.key
            text = self._tokenizer.decode(made.token_ids, skip_special_tokens=True)
            yield Answer(ask.task, ask.id, number, text, len(made.token_ids), len(ask.prompt_ids), made.finished)


def _one_by_one(asks: Iterable[Ask]) -> Iterator[One]:
    from reasonrl.engine.sampling import Ask as One
    from reasonrl.engine.sampling import Sampling

    for ask in asks:
        for number in ask.numbers:
            how = Sampling(
                temperature=ask.temperature,
                top_p=ask.top_p,
                top_k=ask.top_k,
                max_tokens=ask.max_tokens,
                seed=ask.noise(number),
            )
            yield One((ask, number), ask.prompt_ids, how)


@contextlib.contextmanager
def open_local(
    path: str, tokenizer: Any, *, trust_remote_code: bool, threads: int | None, max_sequences: int | None
) -> Iterator[Backend]:
    """Load the model. Raises ConfigError."""
    from omegaconf import OmegaConf

    from reasonrl.engine.sampling import MOST_THREADS, open_sampler

    cfg = OmegaConf.create(
        {
            "model": {"path": path, "trust_remote_code": trust_remote_code},
            "engine": {
                "device": "cpu",
                "threads": threads or min(os.cpu_count() or 1, MOST_THREADS),
                "max_sequences": max_sequences or MOST_SEQUENCES,
            },
        }
    )
    with open_sampler(cfg, tokenizer) as sampler:
        yield LocalBackend(sampler, tokenizer)
