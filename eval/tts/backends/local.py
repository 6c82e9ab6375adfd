"""A transformers model in this process, float32 on the CPU: our continuous batching for samples, transformers' beam search.

A sample's noise is its own, so what is sampled beside it changes it by rounding at most: see `reasonrl.eval.backends.local`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from reasonrl.eval.tts.backends import Outcome
from reasonrl.eval.tts.base import Generate, Generated, Step, StepDone

MOST_SEQUENCES = 256


class LocalBackend:
    """Samples and beams; no weights of a question's own."""

    capabilities = frozenset({"sample", "beam"})

    def __init__(self, model: Any, tokenizer: Any, *, end_ids: Sequence[int], max_rows: int = MOST_SEQUENCES) -> None:
        """model: in evaluation mode. max_rows: sequences at once. Raises ValueError for a model that is not full attention."""
        from reasonrl.engine.sampling import CPUSampler

        self.model, self.tokenizer, self.end_ids, self.max_rows = model, tokenizer, tuple(end_ids), max_rows
        self._sampler = CPUSampler(model, end_ids=end_ids, decode=tokenizer.decode, max_rows=max_rows)

    def generate(self, asks: Sequence[tuple[str, Generate]]) -> list[Outcome]:
        from reasonrl.engine.sampling import Ask

        made: dict[int, Outcome] = {}
        plain = (Ask(i, ask.prompt_ids, ask.sampling) for i, (_, ask) in enumerate(asks) if ask.beams == 1)
        for answer in self._sampler.answers(plain):
            made[answer.key] = self._generated(answer.token_ids, answer.finished)
        wide = [i for i, (_, ask) in enumerate(asks) if ask.beams > 1]
        for i, beams in zip(wide, self._beams([asks[i][1] for i in wide]), strict=True):
            made[i] = beams
        return [made[i] for i in range(len(asks))]

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Never reached by a run: methods that need `grad` are refused when it is prepared. Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} can {', '.join(sorted(self.capabilities))}, not grad")

    def forget(self, owner: str) -> None:
        """It keeps nothing of a question."""

    def facts(self) -> dict[str, Any]:
        return {"max_rows": self.max_rows}

    def _beams(self, asks: Sequence[Generate]) -> list[tuple[Generated, ...]]:
        """Question by question: beside another a prompt would be padded, and a tie of beams could fall otherwise."""
        found = []
        for ask in asks:
            width = ask.beams
            while True:
                try:
                    found.append(self._search(ask, width))
                    break
                except (MemoryError, RuntimeError) as error:
                    if width == 1 or not _out_of_memory(error):
                        raise
                    width //= 2
        return found

    def _search(self, ask: Generate, width: int) -> tuple[Generated, ...]:
        import torch

        ids = torch.tensor([ask.prompt_ids], device=self.model.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=width,
                num_return_sequences=width,
                length_penalty=1.0,
                early_stopping=False,
                max_new_tokens=ask.sampling.max_tokens,
                eos_token_id=list(self.end_ids),
                pad_token_id=self.end_ids[0],
                temperature=None,
                top_p=None,
                top_k=None,
            )
        return tuple(self._cut(row) for row in out[:, ids.shape[1] :].tolist())

    def _cut(self, row: list[int]) -> Generated:
        """A beam up to its end token; what follows is padding."""
        end = next((i for i, token in enumerate(row) if token in self.end_ids), None)
        return self._generated(row if end is None else row[: end + 1], end is not None)

    def _generated(self, token_ids: Sequence[int], finished: bool) -> Generated:
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return Generated(tuple(token_ids), text, finished)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def open_local(
    path: str, tokenizer: Any, *, trust_remote_code: bool, threads: int | None, max_sequences: int | None
) -> Iterator[LocalBackend]:
    """Load the model. Raises ConfigError."""
    import torch
    from omegaconf import OmegaConf

    from reasonrl.config import ConfigError
    from reasonrl.engine.sampling import MOST_THREADS
    from reasonrl.eval.prm.decode import loaded

    cfg = OmegaConf.create(
        {"model": {"path": path, "trust_remote_code": trust_remote_code}, "engine": {"device": "cpu"}}
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(os.cpu_count() or 1, MOST_THREADS))
    try:
        model, end_ids = loaded(cfg, tokenizer)
        try:
            backend = LocalBackend(model, tokenizer, end_ids=end_ids, max_rows=max_sequences or MOST_SEQUENCES)
        except ValueError as error:
            raise ConfigError(f"cannot sample from model {path} on the CPU: {error}") from error
        yield backend
    finally:
        torch.set_num_threads(before)
