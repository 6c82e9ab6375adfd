"""vLLM: one `LLM.generate` a round, and weights of a question's own as LoRA adapters that are swapped in.

    a learner, on a transformers copy of the model                    vLLM
    step: the question's A and B change
    generate: what changed is written, adapters/7/ (PEFT's format) -> LoRARequest("adapter-7", 7, folder) of its asks
    forget: the folder is removed

An edit of optune has a rank as large as its attempt is long: it is cut to the LoRA of `engine.edit_rank` that comes closest,
and timing.json says how far that is from it.

vLLM keeps adapters by number and the keys and values of prompts by the adapter's name, so each version of a question's weights
has a number and a name that never come again. Of more adapters than `max_loras` vLLM's own scheduler holds some back, so all
asks of a round are one call, which waits for its longest answer once.

A sample's noise is its own, but on a GPU what is sampled beside it changes roundings, and thereby now and then a token. vLLM
rounds A and B to the model's dtype, which a learner keeps in float32; and in bfloat16 a change of less than one part in 500 of
an output moves few of its numbers, here as with transformers.

Of vLLM this uses `LLM(...)`, `generate`, `beam_search`, `SamplingParams`, `BeamSearchParams` and `LoRARequest` (0.24.0).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reasonrl.config import ConfigError, RunFailed, package_path
from reasonrl.eval.tts.backends import Learner, Outcome
from reasonrl.eval.tts.base import Generate, Generated, Step, StepDone

if TYPE_CHECKING:
    from torch import Tensor

    from reasonrl.eval.tts.backends.local import MakeLearner
    from reasonrl.eval.tts.base import Method
    from reasonrl.eval.tts.optune.edits import EditLearner
    from reasonrl.eval.tts.settings import TTSEngineKnobs

CAPABILITIES = frozenset({"sample", "beam", "prefix_cache", "lora_swap"})
MOST_SEQUENCES = 256  # a round has an ask a live question, 64 by default
RANKS = (8, 16, 32, 64, 128, 256, 512)  # that vLLM has room for
LEAST_LOGPROBS = 20  # vLLM's own limit unless beams need more
TMPFS = Path("/dev/shm")
TMPFS_ROOM = 2**30  # bytes free, else adapters go to the disk: a container's tmpfs may have 64 MiB
CONTINUE = "What was tried is kept: the same command continues"


def able(method: Method) -> frozenset[str]:
    """What this backend can do for a method: with one that has a learner, `grad` too."""
    return CAPABILITIES | ({"grad"} if hasattr(method, "learner") else set())


def require_swappable(method: Method, dtype: str) -> None:
    """Raise ConfigError for a method whose own weights vLLM cannot sample with."""
    if "grad" not in method.needs:
        return
    if getattr(method, "rank", 1) > RANKS[-1]:
        raise ConfigError(
            f"method.rank={getattr(method, 'rank', 1)}: backend=vllm takes at most {RANKS[-1]}; lower it or use "
            "backend=transformers"
        )
    if dtype == "float32":
        raise ConfigError(
            "engine.dtype=float32: vLLM's adapters have 16 bits; use engine.dtype=bfloat16, or backend=transformers"
        )
    if getattr(method, "sample_in_train_mode", False):
        raise ConfigError("method.sample_in_train_mode=true: vLLM samples without dropout; use backend=transformers")


class LoRALearner(Learner, Protocol):
    """A learner whose weights are LoRA matrices."""

    def weights(self, owner: str) -> Mapping[str, tuple[Any, Any]]:
        """A (r, inputs) and B (outputs, r) of each changed module, by its name, as copies."""
        ...


@dataclass(frozen=True)
class LoRA:
    """How a method's matrices change weights: by B A alpha / rank. targets: ends of the names of the modules changed."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, method: Any, edit_rank: int) -> LoRA:
        """From the knobs of a method that learns; edit_rank: for one with an editor, whose edits are cut to it."""
        if getattr(method, "editor", None) is None:
            return cls(method.rank, method.alpha, tuple(name.rpartition(".")[2] for name in method.targets.split("+")))
        from reasonrl.eval.tts.optune.card import read_card

        edited = {matrix.name.rpartition(".")[2] for matrix in read_card(method.editor).matrices}
        return cls(edit_rank, float(edit_rank), tuple(sorted(edited)))


class CutEdits:
    """The edits of optune as LoRA matrices of one rank."""

    def __init__(self, learner: EditLearner, rank: int) -> None:
        self._learner, self._rank = learner, rank
        self.step, self.forget, self.use, self.close = learner.step, learner.forget, learner.use, learner.close
        self._errors: list[float] = []

    def weights(self, owner: str) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, (left, right) in self._learner.factors(owner).items():
            a, b, error = cut(left.float(), right.float(), self._rank)
            found[name] = (a, b)
            self._errors.append(error)
        return found

    def facts(self) -> dict[str, Any]:
        """Beside the learner's: how far the matrices are from the edits, relative to these (Frobenius norms)."""
        errors = self._errors or [0.0]
        error = {"mean": round(sum(errors) / len(errors), 4), "max": round(max(errors), 4)}
        return {**self._learner.facts(), "edit_rank": self._rank, "edit_error": error}


def cut(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A (rank, di) and B (do, rank) with B A as close to right^T left as rank allows, and the relative distance.

    left (T, di), right (T, do). B's columns are the directions of the outputs in which the change is largest: the eigenvectors
    of (right^T left)(right^T left)^T, found among the at most T that it has.
    """
    import torch

    basis, inner = torch.linalg.qr(right.mT)  # (do, k), (k, T)
    core = inner @ left  # (k, di)
    _, directions = torch.linalg.eigh(core @ core.mT)  # ascending
    b = basis @ directions[:, -rank:]
    a = b.mT @ right.mT @ left
    change = right.mT @ left
    size = float(change.norm())
    error = float((change - b @ a).norm()) / size if size else 0.0
    missing = rank - b.shape[1]
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing)), error


def write_adapter(folder: Path, weights: Mapping[str, tuple[Any, Any]], lora: LoRA) -> None:
    """An adapter in PEFT's format. weights: A and B by the name of their module."""
    from safetensors.torch import save

    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(weights),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix.cpu().contiguous()
        for name, pair in weights.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    folder.mkdir()
    # `save_file` has an error of its own for a full disk
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Adapters:
    """Each question's newest weights as vLLM reads them: written when they are first asked for."""

    def __init__(self, learner: LoRALearner, lora: LoRA, folder: Path, make_request: Callable[..., Any]) -> None:
        """folder: for these adapters alone. make_request: `LoRARequest`."""
        self.learner, self._lora, self._folder, self._make_request = learner, lora, folder, make_request
        self._numbers = count(1)
        self._requests: dict[str, Any] = {}
        self._stale: set[str] = set()
        self.written = 0

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Change the owners' weights."""
        done = self.learner.step(asks)
        self._stale |= {owner for owner, _ in asks}
        return done

    def of(self, owner: str) -> Any:
        """The request that brings the owner's weights; None before its first step. Raises RunFailed for a full disk."""
        if owner in self._stale:
            number = next(self._numbers)
            folder = self._folder / str(number)
            try:
                write_adapter(folder, self.learner.weights(owner), self._lora)
            except OSError as error:
                raise RunFailed(
                    f"cannot write an adapter to {folder}: {error.strerror or error}. {CONTINUE}"
                ) from error
            self._drop(owner)
            self._requests[owner] = self._make_request(f"adapter-{number}", number, str(folder))
            self._stale.discard(owner)
            self.written += 1
        return self._requests.get(owner)

    def forget(self, owner: str) -> None:
        self.learner.forget(owner)
        self._stale.discard(owner)
        self._drop(owner)

    def _drop(self, owner: str) -> None:
        before = self._requests.pop(owner, None)
        if before is not None:
            shutil.rmtree(before.lora_path)


@dataclass(frozen=True)
class Makers:
    """Constructors of vLLM's: `SamplingParams`, `BeamSearchParams`."""

    params: Callable[..., Any]
    beams: Callable[..., Any]


class VLLMBackend:
    """An engine of vLLM's and, for methods that learn, the adapters of their questions."""

    def __init__(
        self,
        llm: Any,
        makers: Makers,
        tokenizer: Any,
        *,
        end_ids: Sequence[int],
        at_once: int = MOST_SEQUENCES,
        adapters: Adapters | None = None,
    ) -> None:
        """llm: a `vllm.LLM`, with enable_lora where there are adapters. at_once: beams of the searches of one call."""
        self.capabilities = CAPABILITIES | ({"grad"} if adapters else set())
        self.llm, self._makers, self._tokenizer, self._end_ids = llm, makers, tokenizer, tuple(end_ids)
        self._adapters, self._at_once = adapters, at_once
        self._searches = 0

    def generate(self, asks: Sequence[tuple[str, Generate]]) -> list[Outcome]:
        """One call for all samples.

        Raises ValueError for a prompt that vLLM refuses, with nothing under way; RunFailed when the engine is lost.
        """
        wanted = [(ask, self._adapter(owner) if ask.adapter else None) for owner, ask in asks]
        made: dict[int, Outcome] = {}
        plain = [place for place, (ask, _) in enumerate(wanted) if ask.beams == 1]
        if plain:
            made |= zip(plain, self._samples([wanted[place] for place in plain]), strict=True)
        alike: dict[tuple[int, int], list[int]] = {}  # searches of one width and length
        for place, (ask, _) in enumerate(wanted):
            if ask.beams > 1:
                alike.setdefault((ask.beams, ask.sampling.max_tokens), []).append(place)
        for (width, _), places in alike.items():
            # no more than fit: vLLM keeps the probabilities of all beams of a call, about 0.5 GB for 32 beams of 2048 tokens
            size = max(1, self._at_once // width)
            for start in range(0, len(places), size):
                some = places[start : start + size]
                made |= zip(some, self._search([wanted[place] for place in some]), strict=True)
        return [made[place] for place in range(len(wanted))]

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Raises RuntimeError where no learner was given, and what the learner raises."""
        if self._adapters is None:
            raise RuntimeError("this backend was opened without a learner, so no question has weights of its own")
        return self._adapters.step(asks)

    def forget(self, owner: str) -> None:
        if self._adapters:
            self._adapters.forget(owner)

    def facts(self) -> dict[str, Any]:
        beams = {"beam_search": "vLLM's, not transformers'"} if self._searches else {}
        if self._adapters is None:
            return beams
        return {**beams, "adapters_written": self._adapters.written, **self._adapters.learner.facts()}

    def _adapter(self, owner: str) -> Any:
        """The owner's weights for vLLM, None for the model's. Raises ConfigError for adapters that vLLM cannot use."""
        if self._adapters is None:
            return None
        first = self._adapters.written == 0
        request = self._adapters.of(owner)
        if first and request is not None:
            try:
                self.llm.llm_engine.add_lora(request)  # one that fails during a call ends the engine without a word
            except Exception as error:
                raise ConfigError(
                    f"vLLM cannot use the adapters of this method on this model: {_first_line(error)}. Choose other "
                    "method.targets, or backend=transformers"
                ) from error
        return request

    def _samples(self, wanted: Sequence[tuple[Generate, Any]]) -> list[Generated]:
        outputs = self._called(self.llm.generate, wanted, [self._params(ask) for ask, _ in wanted])
        found = []
        for (ask, _), output in zip(wanted, outputs, strict=True):
            (made,) = output.outputs
            if list(output.prompt_token_ids) != list(ask.prompt_ids) or made.finish_reason not in ("stop", "length"):
                raise RunFailed(f"vLLM gave an answer up ({made.finish_reason}), or mixed two up. {CONTINUE}")
            found.append(self._generated(made.token_ids, made.finish_reason == "stop"))
        return found

    def _params(self, ask: Generate) -> Any:
        from reasonrl.engine.sampling import seed_number

        sampling = ask.sampling
        return self._makers.params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=sorted({*self._end_ids, *sampling.stop_token_ids}),
            seed=seed_number(sampling.seed) if sampling.temperature > 0 else None,
            detokenize=False,  # the tokenizer does it once, as for every backend
        )

    def _search(self, wanted: Sequence[tuple[Generate, Any]]) -> list[tuple[Generated, ...]]:
        """Beams as vLLM searches them, which differ from transformers' in more than rounding.

        A beam ends with the tokenizer's end token alone, and its score counts the prompt's tokens in the length that it is
        divided by. Nothing ends a search before max_tokens, and beams without an end compete with those that have one.
        """
        self._searches += len(wanted)
        ask = wanted[0][0]
        outputs = self._called(
            self.llm.beam_search, wanted, self._makers.beams(beam_width=ask.beams, max_tokens=ask.sampling.max_tokens)
        )
        return [
            tuple(self._beam(beam.tokens[len(ask.prompt_ids) :]) for beam in output.sequences)
            for (ask, _), output in zip(wanted, outputs, strict=True)
        ]

    def _beam(self, token_ids: Sequence[int]) -> Generated:
        """Up to the first of all end tokens: vLLM knows one of them."""
        end = next((place for place, token in enumerate(token_ids) if token in self._end_ids), None)
        return self._generated(token_ids if end is None else token_ids[: end + 1], end is not None)

    def _generated(self, token_ids: Sequence[int], finished: bool) -> Generated:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return Generated(tuple(token_ids), text, finished)

    def _called(self, call: Callable[..., Any], wanted: Sequence[tuple[Generate, Any]], params: Any) -> Any:
        prompts = [{"prompt_token_ids": list(ask.prompt_ids)} for ask, _ in wanted]
        adapters = [adapter for _, adapter in wanted]
        try:
            return call(prompts, params, lora_request=adapters if any(adapters) else None, use_tqdm=False)
        except ValueError:  # of one prompt: vLLM has taken the others of the call back
            raise
        except Exception as error:  # the engine's process died, or CUDA failed in it
            raise RunFailed(f"vLLM stopped: {_first_line(error)}. {CONTINUE}") from error


@dataclass(frozen=True)
class Opening:
    """How to load the model.

    context: tokens of the longest prompt with its answer; None: what the model reads. width: of the widest beam search.
    lora: of the adapters that will be swapped in; None: none will.
    """

    path: str
    engine: TTSEngineKnobs
    dtype: str
    trust_remote_code: bool
    context: int | None
    seed: int
    width: int = 1
    lora: LoRA | None = None

    def __call__(self) -> tuple[Any, Makers, Any]:
        """A `vllm.LLM`, and constructors of vLLM's, the last `LoRARequest`. Raises ConfigError."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        path, engine = package_path(self.path), self.engine
        try:
            from vllm import LLM, SamplingParams
            from vllm.lora.request import LoRARequest
            from vllm.sampling_params import BeamSearchParams

            llm = LLM(
                model=path,
                trust_remote_code=self.trust_remote_code,
                dtype=self.dtype,
                seed=self.seed % 2**31,
                tensor_parallel_size=engine.tensor_parallel,
                gpu_memory_utilization=engine.memory,
                enforce_eager=engine.eager,
                max_num_seqs=engine.max_sequences or MOST_SEQUENCES,
                max_model_len=self.context,
                max_logprobs=max(LEAST_LOGPROBS, 2 * self.width),  # a search weighs twice its width of tokens
                enable_prefix_caching=True,
                **self.swapping,
            )
        except Exception as error:  # out of memory, a broken driver, a kernel that does not compile, ...
            raise ConfigError(
                f"vLLM did not start with model {path}: {_first_line(error)}. Out of memory: lower engine.max_sequences or "
                f"max_context, set engine.memory (now {engine.memory}) to what is free, or raise engine.tensor_parallel"
            ) from error
        return llm, Makers(SamplingParams, BeamSearchParams), LoRARequest

    @property
    def swapping(self) -> dict[str, Any]:
        """What vLLM is told of adapters. Room is kept for max_loras of them, and for the modules that they change alone."""
        if self.lora is None:
            return {}
        return {
            "enable_lora": True,
            "max_loras": self.engine.max_loras,
            "max_lora_rank": next(rank for rank in RANKS if rank >= self.lora.rank),
            "lora_target_modules": list(self.lora.targets) or None,
        }


@contextlib.contextmanager
def open_vllm(opening: Opening, tokenizer: Any, make_learner: MakeLearner | None = None) -> Iterator[VLLMBackend]:
    """Load the model, and for a learner a second copy of it on the same GPU. Raises ConfigError."""
    llm, makers, make_request = opening()
    at_once = opening.engine.max_sequences or MOST_SEQUENCES
    if make_learner is None or opening.lora is None:
        end_ids = end_tokens(opening.path, tokenizer, opening.trust_remote_code)
        yield VLLMBackend(llm, makers, tokenizer, end_ids=end_ids, at_once=at_once)
        return
    from reasonrl.eval.tts.backends.local import loaded

    try:
        model, end_ids = loaded(opening.path, tokenizer, opening.trust_remote_code, "cuda", opening.dtype)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. It is the copy for gradients, beside vLLM: out of memory, lower engine.memory (now "
            f"{opening.engine.memory}), or use backend=transformers"
        ) from error
    learner: Any = make_learner(model, tokenizer, end_ids=end_ids)
    if not hasattr(learner, "weights"):
        learner = CutEdits(learner, opening.lora.rank)
    try:
        with tempfile.TemporaryDirectory(prefix="reasonrl-adapters-", dir=_roomy()) as folder:
            adapters = Adapters(learner, opening.lora, Path(folder), make_request)
            yield VLLMBackend(llm, makers, tokenizer, end_ids=end_ids, at_once=at_once, adapters=adapters)
    finally:
        learner.close()


def end_tokens(path: str, tokenizer: Any, trust_remote_code: bool = False) -> list[int]:
    """The tokens that end an answer: those of the model's generation settings, and the tokenizer's."""
    from transformers import AutoConfig, GenerationConfig

    folder = package_path(path)
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # a model without generation_config.json
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        ends = getattr(config.get_text_config(), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None})


def _roomy() -> Path | None:
    """Where adapters are written: in memory if there is room."""
    with contextlib.suppress(OSError):
        if os.access(TMPFS, os.W_OK) and shutil.disk_usage(TMPFS).free >= TMPFS_ROOM:
            return TMPFS
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"
