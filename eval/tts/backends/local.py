"""A transformers model in this process, on the CPU or one GPU: our continuous batching for samples, transformers' beam search.

A sample's noise is its own, so what is sampled beside it changes it by rounding at most: see `reasonrl.eval.backends.local`.
Weights of a question's own are a learner's; without one, or before its first step, a question has the model's, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.eval.tts.backends import Learner, Outcome
from reasonrl.eval.tts.base import Generate, Generated, Step, StepDone

MOST_SEQUENCES = 256
MakeLearner = Callable[..., Learner]  # (model, tokenizer, *, end_ids)


class LocalBackend:
    """Samples, beams, and with a learner weights of a question's own."""

    capabilities = frozenset({"sample", "beam", "grad"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        learner: Learner | None = None,
        *,
        end_ids: Sequence[int],
        max_rows: int = MOST_SEQUENCES,
    ) -> None:
        """model: in evaluation mode. max_rows: sequences at once. Raises ValueError for a model that is not full attention."""
        from reasonrl.engine.sampling import CPUSampler

        self.model, self.tokenizer, self.end_ids, self.max_rows = model, tokenizer, tuple(end_ids), max_rows
        self._learner = learner
        self._changed: set[str] = set()  # owners with weights of their own
        self._sampler = CPUSampler(
            model, end_ids=end_ids, decode=tokenizer.decode, max_rows=max_rows, logprobs=True, weights=learner
        )

    def generate(self, asks: Sequence[tuple[str, Generate]]) -> list[Outcome]:
        """Raises FloatingPointError naming a question whose samples had probabilities that are no numbers."""
        from reasonrl.engine.sampling import Ask

        made: dict[int, Outcome] = {}
        plain = (
            Ask(i, ask.prompt_ids, ask.sampling, owner if ask.adapter and owner in self._changed else None)
            for i, (owner, ask) in enumerate(asks)
            if ask.beams == 1
        )
        for answer in self._sampler.answers(plain):
            if not math.isfinite(sum(answer.logprobs or ())):  # what was drawn from them is noise
                raise FloatingPointError(
                    f"question {asks[answer.key][0]}: the probabilities of its tokens are not finite; its own weights may be "
                    "too large, or engine.dtype too small: try engine.dtype=float32"
                )
            made[answer.key] = self._generated(answer.token_ids, answer.finished)
        wide = [i for i, (_, ask) in enumerate(asks) if ask.beams > 1]
        for i, beams in zip(wide, self._beams([asks[i][1] for i in wide]), strict=True):
            made[i] = beams
        return [made[i] for i in range(len(asks))]

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Raises RuntimeError where no learner was given, and what the learner raises."""
        if self._learner is None:
            raise RuntimeError("this backend was opened without a learner, so no question has weights of its own")
        done = self._learner.step(asks)
        self._changed |= {owner for owner, _ in asks}
        return done

    def forget(self, owner: str) -> None:
        if self._learner is not None:
            self._learner.forget(owner)
        self._changed.discard(owner)

    def facts(self) -> dict[str, Any]:
        learner = {} if self._learner is None else self._learner.facts()
        return {"max_rows": self.max_rows, "device": str(self.model.device), **learner}

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
    path: str,
    tokenizer: Any,
    *,
    trust_remote_code: bool,
    threads: int | None,
    max_sequences: int | None,
    device: str = "cpu",
    dtype: str = "float32",
    make_learner: MakeLearner | None = None,
) -> Iterator[LocalBackend]:
    """Load the model; device: cpu or cuda. Raises ConfigError."""
    import torch

    from reasonrl.engine.sampling import MOST_THREADS

    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(os.cpu_count() or 1, MOST_THREADS))
    learner: Learner | None = None
    try:
        model, end_ids = loaded(path, tokenizer, trust_remote_code, device, dtype)
        learner = make_learner(model, tokenizer, end_ids=end_ids) if make_learner else None
        try:
            backend = LocalBackend(model, tokenizer, learner, end_ids=end_ids, max_rows=max_sequences or MOST_SEQUENCES)
        except ValueError as error:
            raise ConfigError(f"cannot sample from model {path} with transformers: {error}") from error
        yield backend
    finally:
        if learner is not None:
            learner.close()
        torch.set_num_threads(before)


def loaded(path: str, tokenizer: Any, trust_remote_code: bool, device: str, dtype: str) -> tuple[Any, list[int]]:
    """The model in evaluation mode, without gradients of its own, and its end tokens. Raises ConfigError."""
    import torch
    from transformers.utils import logging

    from reasonrl.config import package_path
    from reasonrl.engine.attention import keep_from_cudnn
    from reasonrl.engine.bottleneck import load_model

    logging.disable_progress_bar()
    path = package_path(path)
    if device != "cpu":
        keep_from_cudnn()
    try:
        model = load_model(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=trust_remote_code
        ).to(device)
    except Exception as error:  # the libraries behind it raise a dozen kinds
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot load model {path} on {device}: {type(error).__name__}: {line}") from error
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return model.eval().requires_grad_(False), sorted(
        {int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None}
    )
