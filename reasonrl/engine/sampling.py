"""Sampling without training: prompts as token ids in, finished answers out, in whatever order they finish.

Two backends of one shape: `CPUSampler`, our continuous batching over transformers, and `VLLMSampler`, vLLM's offline
`LLM`. Neither needs Ray or verl. `open_sampler` makes the one that `engine=` names.

An answer's noise belongs to its `Sampling.seed`, so what else is sampled beside it changes no answer, up to the rounding
of the batch it happens to run in. The same asks in one call of `answers` give the same bits on the CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reasonrl.config import ConfigError, package_path
from reasonrl.engine.verl.cpu.generate import Generator, RowWeights, Sampling, Sequence_

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["Answer", "Ask", "CPUSampler", "RowWeights", "Sampler", "Sampling", "VLLMSampler", "open_sampler"]

MOST_THREADS = 8  # torch threads on the CPU, unless engine.threads says otherwise
WAVES = 2  # vLLM answers a call as a whole: more waves lose less to the longest answer, and more work when killed


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted. owner: of the weights it is sampled with; None: the model's alone."""

    key: Hashable  # comes back with the answer
    prompt_ids: Sequence[int]
    sampling: Sampling
    owner: str | None = None


@dataclass(frozen=True)
class Answer:
    """One answer."""

    key: Any
    token_ids: list[int]  # the end token included when it was emitted
    finished: bool  # False: cut at max_tokens
    logprobs: list[float] | None = None  # of token_ids under the distribution drawn from, where they were asked for


class Sampler(Protocol):
    """Holds a model; `asks` may be a generator, it is read no faster than answers are made."""

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """One answer an ask."""
        ...


class CPUSampler:
    """A transformers model in this process, on the device where it is; a finished answer makes room for the next at once."""

    def __init__(
        self,
        model: Any,
        *,
        end_ids: Sequence[int],
        decode: Any = None,
        max_rows: int = 256,
        logprobs: bool = False,
        weights: RowWeights | None = None,
    ) -> None:
        """logprobs: give the answers theirs. weights: of the owners that asks name.

        Raises ValueError for a model that is not full attention.
        """
        self._logprobs, self._weights = logprobs, weights
        self._make = lambda: Generator(model, end_ids=end_ids, decode=decode, max_rows=max_rows, weights=weights)
        self._make()

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """One answer an ask, each as soon as it is finished."""
        try:
            yield from self._answers(asks)
        finally:
            if self._weights is not None:
                self._weights.use(())

    def _answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        generator, asks = self._make(), iter(asks)
        finished: list[Answer] = []
        more = True
        while more or not generator.idle:
            # no more of them waiting than could run: a request owns its noise, 8 bytes a token
            for ask in islice(asks, generator.max_rows - len(generator.waiting)):
                generator.add(_sequence(ask, finished, self._logprobs))
            more = len(generator.waiting) == generator.max_rows
            generator.step()
            yield from finished
            finished.clear()


def _sequence(ask: Ask, finished: list[Answer], logprobs: bool) -> Sequence_:
    def done(row: Sequence_) -> None:
        finished.append(Answer(ask.key, row.token_ids, row.finished, row.logprobs if logprobs else None))

    return Sequence_(list(ask.prompt_ids), ask.sampling, done, ask.owner)


class VLLMSampler:
    """vLLM's `LLM.generate`, call by call: its engine takes single requests too, but not under a stable interface.

    Each request has a seed, so that an answer depends on neither its shard nor an interruption. In vLLM's older model runner
    (in 0.24.0 that of Qwen2) each is a generator, which halves its speed; in the newer one (Llama, Mistral, Qwen3; with
    VLLM_USE_V2_MODEL_RUNNER=1 others too) an argument of a kernel.
    """

    def __init__(self, llm: Any, make_params: Any, *, at_once: int, logprobs: bool = False) -> None:
        """llm: a `vllm.LLM`. make_params: `vllm.SamplingParams`. at_once: asks of one call. logprobs: give the answers
        theirs, of the distribution that the `llm` was told to report.
        """
        self._llm, self._make_params, self._at_once, self._logprobs = llm, make_params, at_once, logprobs

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """One answer an ask, `at_once` of them at a time."""
        asks = iter(asks)
        while some := list(islice(asks, self._at_once)):
            outputs = self._llm.generate(
                [self._prompt(ask) for ask in some],
                [self._params(ask.sampling) for ask in some],
                use_tqdm=False,
            )
            for ask, output in zip(some, outputs, strict=True):
                if list(output.prompt_token_ids) != list(ask.prompt_ids):
                    raise RuntimeError(f"vLLM answered another prompt than {ask.key!r} asked")
                (made,) = output.outputs
                logprobs = _sampled_logprobs(made) if self._logprobs else None
                yield Answer(ask.key, list(made.token_ids), made.finish_reason == "stop", logprobs)

    def _prompt(self, ask: Ask) -> dict[str, list[int]]:
        if ask.owner is not None:
            raise ValueError(f"{ask.key!r} asks for the weights of {ask.owner!r}, and this vLLM has one model for all")
        return {"prompt_token_ids": list(ask.prompt_ids)}

    def _params(self, sampling: Sampling) -> Any:
        return self._make_params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            ignore_eos=sampling.ignore_eos,
            seed=seed_number(sampling.seed),
            detokenize=bool(sampling.stop),  # nobody reads the text, unless strings are to be found in it
            **({"logprobs": 0} if self._logprobs else {}),  # 0: of the sampled token alone
        )


def _sampled_logprobs(made: Any) -> list[float] | None:
    """Of vLLM's output, which has a dictionary a token; None when it has none."""
    if made.logprobs is None:
        return None
    return [float(each[token].logprob) for token, each in zip(made.token_ids, made.logprobs, strict=True)]


def seed_number(key: Sequence[int]) -> int:
    """A request's noise key as the one number that vLLM takes, in 0..2**63 - 1."""
    return int(np.random.SeedSequence(tuple(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def open_sampler(cfg: DictConfig, tokenizer: Any, *, logprobs: bool = False) -> Iterator[Sampler]:
    """The sampler of a configuration's model and engine. Raises ConfigError when it cannot be started.

    logprobs: whether answers bring the log-probabilities of their tokens, of the distribution they were drawn from.
    """
    if cfg.engine.device == "cpu":
        with _threads(cfg.engine.threads or min(os.cpu_count() or 1, MOST_THREADS)):
            yield _cpu(cfg, tokenizer, logprobs)
    else:
        yield _vllm(cfg, logprobs)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu(cfg: DictConfig, tokenizer: Any, logprobs: bool) -> CPUSampler:
    """The same weights in float32, the same end tokens, as a run's CPU rollout."""
    import torch
    from transformers.utils import logging

    from reasonrl.engine.bottleneck import load_model

    logging.disable_progress_bar()
    path = package_path(cfg.model.path)
    try:
        model = load_model(
            path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=cfg.model.trust_remote_code
        )
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        end_ids = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
        return CPUSampler(
            model.eval().requires_grad_(False),
            end_ids=end_ids,
            decode=tokenizer.decode,
            max_rows=cfg.engine.max_sequences,
            logprobs=logprobs,
        )
    except Exception as error:  # the libraries behind it raise a dozen kinds
        raise ConfigError(f"cannot load model {path}: {_first_line(error)}") from error


def _vllm(cfg: DictConfig, logprobs: bool) -> VLLMSampler:
    """vLLM as a run's rollouts have it: bfloat16, the same memory, the same limits."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    path = package_path(cfg.model.path)
    try:
        from vllm import LLM, SamplingParams

        llm = LLM(
            model=path,
            trust_remote_code=cfg.model.trust_remote_code,
            dtype="bfloat16",
            seed=cfg.seed,
            tensor_parallel_size=cfg.engine.tensor_parallel,
            gpu_memory_utilization=cfg.engine.rollout_memory,
            enforce_eager=cfg.engine.eager,
            max_num_seqs=cfg.engine.max_sequences,
            max_model_len=cfg.max_prompt_tokens + cfg.max_new_tokens,
            # as verl has it: after temperature, top-k and top-p, which is what the CPU rollout reports too
            **({"logprobs_mode": "processed_logprobs"} if logprobs else {}),
        )
    except Exception as error:  # out of memory, a broken driver, a kernel that does not compile, ...
        raise ConfigError(
            f"vLLM did not start with model {path}: {_first_line(error)}. Out of memory: lower engine.max_sequences, set "
            f"engine.rollout_memory (now {cfg.engine.rollout_memory}) to what is free, or raise engine.tensor_parallel"
        ) from error
    return VLLMSampler(llm, SamplingParams, at_once=WAVES * cfg.engine.max_sequences, logprobs=logprobs)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"
