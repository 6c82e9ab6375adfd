"""verl's rollout replica and server adapter around `generate.Generator`: a plain Ray actor instead of vLLM."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Generator as Weights
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from reasonrl.engine.verl.cpu.generate import Generator, Sampling, Sequence_

CONCURRENT_CALLS = 1_000_000  # a wave is held until all of it has arrived: a limit below its size would be a deadlock
GATHER_SECONDS = 0.01  # an idle server waits this long for more requests before it prefills
PARAMETERS = {"temperature", "top_p", "top_k", "max_tokens", "stop", "stop_token_ids", "ignore_eos"}
NEUTRAL = {"repetition_penalty": 1.0, "logprobs": None, "n": 1, "min_p": 0.0, "presence_penalty": 0.0}


def server_name(replica_rank: int) -> str:
    return f"reasonrl_cpu_server_{replica_rank}"


def sampling_from(params: dict[str, Any], *, max_tokens: int) -> Sampling:
    """vLLM's sampling dictionary -> Sampling; a parameter that would be ignored is an error."""
    known = {name: value for name, value in params.items() if name in PARAMETERS}
    for name, value in params.items():
        if name in PARAMETERS or name == "extra_args" or (name in NEUTRAL and NEUTRAL[name] in (None, value)):
            continue
        raise ValueError(f"the CPU rollout cannot honour {name}={value!r}; leave it out or run with engine=gpu")
    for name in ("stop", "stop_token_ids"):
        if known.get(name) is None:
            known.pop(name, None)
        else:
            known[name] = (known[name],) if isinstance(known[name], str) else tuple(known[name])
    known.setdefault("max_tokens", max_tokens)
    seed = (params.get("extra_args") or {}).get("seed_key")
    # Without a key (plain verl, evaluation) noise is fresh each time, as an unseeded vLLM's is.
    known["seed"] = tuple(seed) if seed is not None else tuple(int(x) for x in os.urandom(8))
    return Sampling(**known)


class CPUServer:
    """Holds the rollout's copy of the model and generates on a thread of its own."""

    def __init__(self, config: Any, model_config: Any) -> None:
        from transformers import AutoModelForCausalLM
        from verl.utils.config import omega_conf_to_dataclass

        self.config = config
        model_config = omega_conf_to_dataclass(model_config)  # imports worker_setup, which sets the threads
        self.tokenizer = model_config.tokenizer
        model = AutoModelForCausalLM.from_pretrained(
            model_config.local_path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.model = model.requires_grad_(False)
        ends = getattr(model_config.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self.generator = Generator(
            self.model,
            end_ids=[e for e in {*ends, self.tokenizer.eos_token_id} if e is not None],
            decode=self.tokenizer.decode,
            max_rows=config.max_num_seqs,
        )
        self.global_steps: int | None = None
        self.arrived = threading.Condition()
        self.incoming: list[Sequence_] = []
        self.waves: dict[str, list[tuple[int, Sequence_ | None]]] = {}
        self.loop = asyncio.get_event_loop()
        threading.Thread(target=self._work, name="generate", daemon=True).start()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **ignored: Any
    ) -> TokenOutput:
        """verl's call: one continuation of `prompt_ids`. Raises ValueError for a prompt or parameter it cannot take."""
        wave = (sampling_params.get("extra_args") or {}).get("wave")
        try:
            finished, request = self._request(list(prompt_ids), dict(sampling_params))
        except ValueError:
            if wave:
                self._enter(wave, None)  # the others of the wave must not wait for this one
            raise
        self._enter(wave, request)
        row = await finished
        return TokenOutput(
            token_ids=row.token_ids,
            log_probs=row.logprobs,
            stop_reason="completed" if row.finished else "length",
            num_preempted=0,
            extra_fields={"global_steps": self.global_steps},
        )

    def _request(self, prompt_ids: list[int], params: dict[str, Any]) -> tuple[asyncio.Future[Sequence_], Sequence_]:
        room = self.config.max_model_len - len(prompt_ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens and the context {self.config.max_model_len}: no room to "
                "generate. Raise max_prompt_tokens or max_new_tokens."
            )
        finished: asyncio.Future[Sequence_] = self.loop.create_future()

        def done(row: Sequence_) -> None:
            self.loop.call_soon_threadsafe(_settle, finished, row)

        sampling = sampling_from(params, max_tokens=min(self.config.response_length, room))
        return finished, Sequence_(prompt_ids, sampling, done)

    def _enter(self, wave: tuple[str, int, int] | None, request: Sequence_ | None) -> None:
        with self.arrived:
            self.incoming.extend(self._whole_wave(wave, request) if wave else [request])
            self.arrived.notify()

    def _whole_wave(self, wave: tuple[str, int, int], request: Sequence_ | None) -> list[Sequence_]:
        """Hold requests of one wave until all `size` are here, then hand them over by slot (deterministic mode)."""
        name, size, slot = wave
        held = self.waves.setdefault(name, [])
        held.append((slot, request))
        if len(held) < size:
            return []
        ordered = sorted(self.waves.pop(name), key=lambda pair: pair[0])
        return [request for _, request in ordered if request is not None]

    def _work(self) -> None:
        while True:
            with self.arrived:
                while not self.incoming and self.generator.idle:
                    self.arrived.wait()
                if self.generator.idle:
                    self.arrived.release()
                    time.sleep(GATHER_SECONDS)
                    self.arrived.acquire()
                for request in self.incoming:
                    self.generator.add(request)
                self.incoming = []
            try:
                self.generator.step()
            except Exception as error:  # one bad batch must not leave its callers waiting for ever
                for row in self.generator.drop_all():
                    row.error = error
                    row.done(row)

    async def update_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> None:
        """Copy named full tensors into the model. Raises ValueError for a missing or unknown name."""
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        unknown = sorted(weights.keys() - own.keys())
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = sorted(name for name, _ in self.model.named_parameters() if name not in weights and name not in tied)
        if unknown or missing:
            raise ValueError(f"weight sync: unknown tensors {unknown[:5]}, missing tensors {missing[:5]}")
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        self.global_steps = global_steps

    async def ready(self) -> bool:
        return True

    async def nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


def _settle(future: asyncio.Future, row: Sequence_) -> None:
    if future.done():
        return
    error = getattr(row, "error", None)
    if error is None:
        future.set_result(row)
    else:
        future.set_exception(error)


class CPUReplica(RolloutReplica):
    """One CPUServer, beside the training process."""

    async def launch_servers(self) -> None:
        server = (
            ray.remote(CPUServer)
            .options(name=server_name(self.replica_rank), num_cpus=1, max_concurrency=CONCURRENT_CALLS)
            .remote(self.config, self.model_config)
        )
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.replica_rank)


class CPUServerAdapter(BaseRollout):
    """The training process's side: sends weights to its replica's server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        rank = int(os.environ["RANK"])
        world = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        self.replica_rank = rank // world if replica_rank == -1 else replica_rank
        self.leads = rank % world == 0
        self.server: Any = None

    async def resume(self, tags: list[str]) -> None:
        return None

    async def release(self) -> None:
        return None

    async def update_weights(
        self, weights: Weights[tuple[str, torch.Tensor], None, None], wire_format: str = "named_tensors", **kwargs: Any
    ) -> None:
        if wire_format != "named_tensors":
            raise ValueError(f"the CPU rollout takes full named tensors, not {wire_format!r}")
        named = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in weights}
        if not self.leads:
            return
        if self.server is None:
            self.server = ray.get_actor(server_name(self.replica_rank))
        await self.server.update_weights.remote(named, kwargs.get("global_steps"))
