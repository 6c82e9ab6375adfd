"""vLLM, stepped in a loop: an answer is given, graded and written down while others are still being written.

Of vLLM this uses `LLM(...)`, `SamplingParams`, and of `llm.llm_engine` add_request, step, abort_request. `LLM.generate` would
return when the longest answer is finished.

Answers to a question are one request with `n`, and come together when the longest of them is finished; so only a few are
where answers may be long. Without `own_noise` the noise is the engine's: generators of single requests cost much of its speed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from reasonrl.config import ConfigError, RunFailed, package_path
from reasonrl.eval.backends import Answer, Ask, Backend, seed_number
from reasonrl.eval.backends.replicas import Replicas, Serve, visible_gpus

if TYPE_CHECKING:
    from reasonrl.eval.settings import EngineKnobs

MOST_SEQUENCES = 1024
AHEAD = 2  # times as many answers are under way as are written together, so that the engine never waits for us
TOGETHER_TOKENS = 16384  # max_tokens times the answers of one request: 4 of 4096, 1 of 16384 and more
CONTINUE = "What was finished is kept: the same command continues"


class Source(Protocol):
    """Where asks come from."""

    over: bool  # nothing comes any more

    def take(self, *, wait: bool) -> Ask | None:
        """The next; None when there is none at the moment, which with `wait` means that it is over."""
        ...


class Listed:
    """Asks from an iterable, which always has one until it is over."""

    def __init__(self, asks: Iterable[Ask]) -> None:
        self._asks, self.over = iter(asks), False

    def take(self, *, wait: bool) -> Ask | None:
        del wait
        ask = next(self._asks, None)
        self.over = ask is None
        return ask


def parts(asks: Iterable[Ask]) -> Iterator[Ask]:
    """The asks of single requests."""
    for ask in asks:
        size = 1 if ask.own_noise else max(1, TOGETHER_TOKENS // ask.max_tokens)
        for start in range(0, len(ask.numbers), size):
            yield replace(ask, numbers=ask.numbers[start : start + size])


class VLLMBackend:
    """One engine in this process."""

    def __init__(self, llm: Any, make_params: Any, *, at_once: int) -> None:
        """llm: a `vllm.LLM`. make_params: `vllm.SamplingParams` with its output kind. at_once: answers under way."""
        self.llm = llm
        self._engine, self._make_params, self._at_once = llm.llm_engine, make_params, at_once
        self._names = count()
        self._params: dict[tuple[Any, ...], Any] = {}

    def facts(self) -> dict[str, Any]:
        return {"copies": 1}

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """As requests are finished."""
        return self.run(Listed(parts(asks)))

    def run(self, source: Source) -> Iterator[Answer]:
        """The answers to all that the source has. Raises ConfigError for a request that vLLM refuses, RunFailed."""
        waiting: dict[str, Ask] = {}
        under_way = 0
        try:
            while True:
                while not source.over and under_way < self._at_once:
                    ask = source.take(wait=not waiting)
                    if ask is None:
                        break
                    waiting[self._add(ask)] = ask
                    under_way += len(ask.numbers)
                if not waiting:
                    return
                for output in self._step():
                    if output.finished:
                        ask = waiting.pop(output.request_id)
                        under_way -= len(ask.numbers)
                        yield from _answers(ask, output)
        finally:
            if waiting:
                with contextlib.suppress(Exception):  # it may be dead
                    self._engine.abort_request(list(waiting))

    def _add(self, ask: Ask) -> str:
        name = f"eval-{next(self._names)}"
        try:
            self._engine.add_request(
                name, {"type": "token", "prompt_token_ids": list(ask.prompt_ids)}, self._params_of(ask)
            )
        except ValueError as error:
            raise ConfigError(f"vLLM refuses {ask.task}, question {ask.id}: {_first_line(error)}") from error
        return name

    def _params_of(self, ask: Ask) -> Any:
        seed = ask.seed_of(ask.numbers[0]) if ask.own_noise and ask.temperature > 0 else None
        key = (len(ask.numbers), ask.temperature, ask.top_p, ask.top_k, ask.max_tokens, seed)
        if key not in self._params:
            if len(self._params) > 1024:
                self._params.clear()
            n, temperature, top_p, top_k, max_tokens, seed = key
            self._params[key] = self._make_params(
                n=n,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_tokens=max_tokens,
                seed=seed,
            )
        return self._params[key]

    def _step(self) -> list[Any]:
        try:
            return list(self._engine.step())
        except Exception as error:  # the engine's process died, or CUDA failed in it
            raise RunFailed(f"vLLM stopped: {_first_line(error)}. {CONTINUE}") from error


def _answers(ask: Ask, output: Any) -> Iterator[Answer]:
    for made in output.outputs:
        if made.finish_reason not in ("stop", "length"):
            raise RunFailed(f"vLLM gave up {ask.task}, question {ask.id}: {made.finish_reason}. {CONTINUE}")
        yield Answer(
            ask.task,
            ask.id,
            ask.numbers[made.index],
            made.text,
            len(made.token_ids),
            len(ask.prompt_ids),
            made.finish_reason == "stop",
        )


def final_params() -> Any:
    """`vllm.SamplingParams` of requests that say nothing before they are finished."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return partial(SamplingParams, output_kind=RequestOutputKind.FINAL_ONLY)


@dataclass(frozen=True)
class Opening:
    """How to load the model; a process of its own can be told to.

    context: tokens of the longest prompt with its answer. noise: what the engine's own noise follows from.
    """

    path: str
    engine: EngineKnobs
    trust_remote_code: bool
    context: int
    noise: tuple[int, ...]

    @property
    def at_once(self) -> int:
        """Answers that are to be under way."""
        return AHEAD * (self.engine.max_sequences or MOST_SEQUENCES)

    def __call__(self, rank: int) -> VLLMBackend:
        """Load it. Raises ConfigError."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        path, engine = package_path(self.path), self.engine
        try:
            from vllm import LLM

            make_params = final_params()
            llm = LLM(
                model=path,
                trust_remote_code=self.trust_remote_code,
                dtype="bfloat16" if engine.dtype == "auto" else engine.dtype,
                seed=seed_number((*self.noise, rank)) % 2**31,
                tensor_parallel_size=engine.tensor_parallel,
                gpu_memory_utilization=engine.memory,
                enforce_eager=engine.eager,
                max_num_seqs=engine.max_sequences or MOST_SEQUENCES,
                max_model_len=self.context,
                enable_prefix_caching=True,
            )
        except Exception as error:  # out of memory, a broken driver, a kernel that does not compile, ...
            raise ConfigError(
                f"vLLM did not start with model {path}: {_first_line(error)}. Out of memory: lower engine.max_sequences, set "
                f"engine.memory (now {engine.memory}) to what is free, or raise engine.tensor_parallel"
            ) from error
        return VLLMBackend(llm, make_params, at_once=self.at_once)


@contextlib.contextmanager
def open_vllm(
    path: str, engine: EngineKnobs, *, trust_remote_code: bool, context: int, seed: int, done: int
) -> Iterator[Backend]:
    """Load the model, once or in several processes. done: answers there are already, whose noise must not come again.

    Raises ConfigError.
    """
    opening = Opening(path, engine, trust_remote_code, context, (seed, done))
    if engine.data_parallel == 1:
        yield opening(0)
        return
    gpus = visible_gpus()
    share = engine.tensor_parallel
    devices = [",".join(gpus[rank * share : (rank + 1) * share]) for rank in range(engine.data_parallel)]
    with Replicas(
        partial(_served, opening), [{"CUDA_VISIBLE_DEVICES": some} for some in devices], at_once=opening.at_once
    ) as replicas:
        yield _Split(replicas)


def _served(opening: Opening, rank: int) -> Serve:
    return opening(rank).run


class _Split:
    """Replicas that are given single requests."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def facts(self) -> dict[str, Any]:
        return self._replicas.facts()

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        return self._replicas.answers(parts(asks))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"
