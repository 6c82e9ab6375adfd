"""The worker that runs the rounds: plan, sample, verify, plan again, until the method is content; then one put a group.

Every problem is a coroutine of its own, so a problem's rounds never wait for another's. In deterministic mode they do:
requests of all problems are handed to the server as whole waves, in order (`Waves`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from reasonrl.config import RunFailed
from reasonrl.core import Method, Problem, Request, Rollout, View, plan_rng
from reasonrl.engine.validation import Judge, Judged
from reasonrl.engine.verl.batch import NO_PREFIX, RECORD, Row, to_row
from reasonrl.engine.verl.names import FATAL, ROLLOUT_NAME
from reasonrl.engine.verl.plugin import registered
from reasonrl.verify.judge.types import JudgeGone
from reasonrl.verify.pool import Verifier, VerifyConfig

BaseWorker = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # the Ray actor class itself cannot be subclassed
MAX_ROUNDS = 1000  # a plan that never ends is a bug in the method, not a reason to hang


def pack(thing: Any) -> str:
    """An object as text, to travel inside verl's configuration."""
    return base64.b64encode(ray.cloudpickle.dumps(thing)).decode()


def unpack(text: str) -> Any:
    """The inverse of `pack`; only ever reads what this run's driver wrote."""
    return pickle.loads(base64.b64decode(text))


def problem_key(problem_id: str) -> int:
    """A stable 32-bit number for a problem, to seed its sampling noise."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little")


class SamplingFailed(RuntimeError):
    """A problem whose rollouts could not be made."""


@dataclass
class Waves:
    """Holds the requests of all live problems until each has asked or left, then numbers them in order."""

    name: str
    live: set[str]
    asked: dict[str, tuple[int, int, asyncio.Future]] = field(default_factory=dict)  # uid -> order, count, answer
    count: int = 0

    async def slots(self, uid: str, order: int, requests: int) -> list[list[Any]]:
        """[wave name, wave size, slot] for each of my requests, once the wave is complete."""
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self.asked[uid] = (order, requests, answer)
        self._settle()
        return await answer

    def leave(self, uid: str) -> None:
        self.live.discard(uid)
        self.asked.pop(uid, None)  # it may have been cancelled while it waited
        self._settle()

    def _settle(self) -> None:
        if not self.live or set(self.asked) != self.live:
            return
        size = sum(requests for _, requests, _ in self.asked.values())
        name, slot = f"{self.name}/{self.count}", 0
        for _, requests, answer in sorted(self.asked.values(), key=lambda entry: entry[0]):
            answer.set_result([[name, size, slot + i] for i in range(requests)])
            slot += requests
        self.asked, self.count = {}, self.count + 1


class ReasonWorker(BaseWorker):
    """verl's agent-loop worker with our rounds. General: it knows prefixes, rounds and probes, no method by name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = self.config.reasonrl
        self.method: Method = unpack(own.method)
        self.verifier = Verifier(VerifyConfig(**unpack(own.verify)))
        self.judges: dict[str, Callable[[], Judge]] = unpack(own.judges)  # of the tasks that are validated on
        self.judging: dict[str, Judge] = {}  # those at work
        self.judged: Counter[str] = Counter()  # their verdicts, by status
        self.seed, self.total_steps = int(own.seed), int(own.total_steps)
        self.min_new_tokens = int(own.min_new_tokens)
        self.max_new_tokens = int(self.rollout_config.response_length)
        self.deterministic = bool(own.deterministic)
        self.own_rollout = self.rollout_config.name == ROLLOUT_NAME
        ends = getattr(self.model_config.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self.end_ids = {e for e in (*ends, self.tokenizer.eos_token_id) if e is not None}
        self.waves: dict[str, Waves] = {}

    async def registered(self) -> dict[str, str]:
        """For the start-up check: what verl's registries hold in this process."""
        return registered()

    async def ping(self) -> None:
        """Answers while the process lives."""

    async def verify_counts(self) -> dict[str, int]:
        """Counts of the verifier, and of the tasks' judges, since the last call."""
        judged, self.judged = self.judged, Counter()
        return {name: count + judged[name] for name, count in self.verifier.take_counts().items()}

    async def judge(self, text: str, problem: Problem, *, validate: bool) -> Judged:
        """The word on a text: the verifier's, or in validation that of the problem's task."""
        if not validate or problem.source not in self.judges:
            return await self.verifier.verify(text, problem.answer)
        if problem.source not in self.judging:
            self.judging[problem.source] = self.judges[problem.source]()
        verdict = await asyncio.wrap_future(self.judging[problem.source](problem.id, problem.answer, text))
        self.judged.update(("checked", verdict.status))
        return verdict

    async def generate_sequences(self, batch: Any) -> None:
        if self.deterministic:
            uids = [str(uid) for uid in batch["uid"]]
            waves = Waves(name=uids[0], live=set(uids))
            self.waves.update(dict.fromkeys(uids, waves))
        await super().generate_sequences(batch)

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        uid, validate = prompt["uid"], trajectory["validate"]
        partition = "val" if validate else "train"
        run = ProblemRun(self, prompt, sampling_params, step=int(trajectory["step"]), validate=validate)
        try:
            rows = await run.rows()
            await self._put(uid, partition, prompt, rows, run)
            tag = {"status": "finished"}
        except RunFailed as error:
            tag = {"status": "failure", "error": f"{error} (problem {prompt['problem'].id})", FATAL: True}
        except Exception as error:
            tag = {"status": "failure", "error": f"problem {prompt['problem'].id}: {type(error).__name__}: {error}"}
        finally:
            if uid in self.waves:
                self.waves.pop(uid).leave(uid)
        await tq.async_kv_put(key=uid, partition_id=partition, tag=tag)

    async def _put(
        self, uid: str, partition: str, prompt: dict[str, Any], rows: Sequence[Row], run: ProblemRun
    ) -> None:
        """Store all rows of a problem with one call; tags carry what the replay buffer decides on."""
        fields, tags = [], []
        for row in rows:
            prompts, responses, mask = (torch.tensor(x, dtype=torch.long) for x in (row.prompt, row.response, row.mask))
            scores = torch.zeros(len(row.response))
            scores[-1] = row.score
            ids = torch.cat([prompts, responses])
            info = {"acc": row.score, "tokens": int(row.mask.sum()), "finished": float(row.record["finished"])}
            fields.append(
                {
                    "prompts": prompts,
                    "responses": responses,
                    "response_mask": mask,
                    "loss_mask": mask,
                    "rollout_log_probs": torch.tensor(row.logprobs),
                    "rm_scores": scores,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "multi_modal_inputs": {},
                    "num_turns": 2,
                    "uid": uid,
                    "data_source": prompt["data_source"],
                    "reward_model": prompt["reward_model"],
                    "extra_fields": {RECORD: row.record, "reward_extra_info": info},
                }
            )
            tags.append(
                {
                    "status": "success",
                    "prompt_len": len(prompts),
                    "response_len": len(responses),
                    "seq_len": len(ids),
                    "score": row.score,
                    "global_steps": prompt["global_steps"],
                    "min_global_steps": run.weights_step,
                    "max_global_steps": run.weights_step,
                }
            )
        keys = [f"{uid}_{row.record['rollout']}_0" for row in rows]
        await tq.async_kv_batch_put(
            keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id=partition
        )


class ProblemRun:
    """One problem in one step: its rounds, its answers, its rows."""

    def __init__(
        self, worker: ReasonWorker, prompt: dict[str, Any], sampling: dict[str, Any], *, step: int, validate: bool
    ) -> None:
        self.worker, self.prompt, self.sampling = worker, prompt, sampling
        self.problem: Problem = prompt["problem"]
        self.step, self.validate = step, validate
        self.order = int(prompt.get("order", prompt["index"]))  # place in the step: submission order, or the data set's
        self.rollouts: list[Rollout] = []
        self.probes: list[Rollout] = []
        self.answers: list[dict[str, Any]] = []  # beside self.rollouts: what the verifier said
        self.sampled = 0
        self.failed: list[str] = []  # what went wrong with single rollouts
        self.seconds = {"generate": 0.0, "verify": 0.0}
        self.weights_step: int | None = None

    async def rows(self) -> list[Row]:
        """Run all rounds. Raises SamplingFailed when no trained rollout came out, RunFailed when no verdict can be had."""
        for round in range(MAX_ROUNDS):
            requests = self._plan(round)
            if not requests:
                break
            await self._sample(requests, round)
        else:
            raise SamplingFailed(f"the prefix policy still asks for more after {MAX_ROUNDS} rounds")
        if not self.rollouts:
            raise SamplingFailed("no trained rollout: the prefix policy asked for none, or all of them failed")
        return [self._row(i) for i in range(len(self.rollouts))]

    def _plan(self, round: int) -> Sequence[Request]:
        if self.validate:  # validation never calls plan
            return [Request(NO_PREFIX, self.worker.rollout_config.val_kwargs.n)] if round == 0 else ()
        worker = self.worker
        view = View(
            step=self.step,
            total_steps=worker.total_steps,
            rng=plan_rng(worker.seed, self.step, self.problem.id, round),
            room=worker.max_new_tokens - worker.min_new_tokens,
            round=round,
            rollouts=tuple(self.rollouts),
            probes=tuple(self.probes),
            numbers=self.prompt.get("numbers") or {},
            scalars=self.prompt.get("scalars") or {},
        )
        requests = worker.method.prefix.plan(self.problem, view)
        for request in requests:
            self._check(request)
        return requests

    def _check(self, request: Request) -> None:
        length, limit = request.prefix.token_ids.size, self.worker.max_new_tokens
        least = self.worker.min_new_tokens if request.train else 1  # a probe may continue where an answer nearly ends
        if length > limit - least:
            raise SamplingFailed(
                f"a prefix of {length} tokens leaves no room: max_new_tokens={limit} minus {least} for the response "
                f"allows {limit - least}. The prefix policy must heed view.room"
            )
        if request.parent is not None and request.parent[0] >= len(self.rollouts):
            raise SamplingFailed(f"a probe names rollout {request.parent[0]}, of {len(self.rollouts)} so far")

    async def _sample(self, requests: Sequence[Request], round: int) -> None:
        """All rollouts of all requests of a round at once; results keep the order they were asked for."""
        wanted = [request for request in requests for _ in range(request.n)]
        slots: list[Any] = [None] * len(wanted)
        waves = self.worker.waves.get(self.prompt["uid"])
        if waves is not None:
            slots = await waves.slots(self.prompt["uid"], self.order, len(wanted))
        first, self.sampled = self.sampled, self.sampled + len(wanted)
        results = await asyncio.gather(
            *(self._one(request, round, first + i, slots[i]) for i, request in enumerate(wanted)),
            return_exceptions=True,
        )
        errors = [r for r in results if isinstance(r, BaseException)]
        for error in errors:  # a rollout without a verdict is left out; in validation that would count as wrong
            if isinstance(error, JudgeGone) or (self.validate and isinstance(error, RunFailed)):
                raise error
        if len(errors) == len(results) and not self.rollouts:  # a later round that is lost leaves the earlier ones
            raise SamplingFailed(f"all {len(errors)} rollouts of round {round} failed: {errors[0]!r}")
        for request, result in zip(wanted, results, strict=True):
            if isinstance(result, BaseException):
                self.failed.append(f"problem {self.problem.id}: {type(result).__name__}: {result}")
                continue
            rollout, answer = result
            if request.train:
                self.rollouts.append(rollout)
                self.answers.append(answer)
            else:
                self.probes.append(rollout)

    async def _one(self, request: Request, round: int, number: int, slot: Any) -> tuple[Rollout, dict[str, Any]]:
        worker, prefix = self.worker, request.prefix
        limit = max(worker.max_new_tokens - prefix.token_ids.size, 1)
        params = {**self.sampling, "max_tokens": limit}
        if worker.own_rollout:
            # the place in the step belongs to it: a problem that comes twice must not be answered twice alike
            key = [worker.seed, self.step, int(self.validate), problem_key(self.problem.id), self.order, number]
            params["extra_args"] = {"seed_key": key, **({"wave": slot} if slot else {})}
        started = time.perf_counter()
        output = await worker.llm_client.generate(
            request_id=f"{self.prompt['uid']}-{number}",
            prompt_ids=np.concatenate([self.problem.prompt_ids, prefix.token_ids]).tolist(),
            sampling_params=params,
        )
        generated = time.perf_counter()
        self.weights_step = output.extra_fields.get("global_steps")
        if not output.token_ids:
            raise SamplingFailed(f"the rollout engine returned no token (stop reason {output.stop_reason!r})")
        text = worker.tokenizer.decode(
            [*prefix.token_ids.tolist(), *output.token_ids] if prefix.scored else output.token_ids,
            skip_special_tokens=True,
        )
        verdict = await worker.judge(text, self.problem, validate=self.validate)
        self.seconds["generate"] = max(self.seconds["generate"], generated - started)
        self.seconds["verify"] += time.perf_counter() - generated
        rollout = Rollout(
            prefix=prefix,
            token_ids=output.token_ids,
            logprobs=output.log_probs,
            score=float(verdict.correct),
            # vLLM's server says "completed" for both, so the end is read off the tokens.
            finished=output.token_ids[-1] in worker.end_ids or len(output.token_ids) < limit,
            round=round,
            parent=request.parent,
        )
        return rollout, {"verdict": verdict.status, "extracted": verdict.extracted}

    def _row(self, i: int) -> Row:
        probes = [p for p in self.probes if (p.parent[0] if p.parent else 0) == i]
        record = {
            "problem": int(self.prompt["index"]),
            "order": self.order,
            "rollout": i,
            **self.answers[i],
            **({"seconds": self.seconds, "failed": tuple(self.failed)} if i == 0 else {}),
        }
        return to_row(self.problem, self.rollouts[i], record, probes)


class ReasonManager(AgentLoopManagerTQ):
    """verl's manager over our workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(ReasonWorker)

    def registered(self) -> dict[str, str]:
        """What the first worker's registries hold."""
        return ray.get(self.agent_loop_workers[0].registered.remote())

    def ping(self, seconds: float = 5.0) -> None:
        """Raise RayActorError when a worker has died; a busy one is given `seconds` to answer, then left in peace."""
        ready, _ = ray.wait(
            [w.ping.remote() for w in self.agent_loop_workers],
            num_returns=len(self.agent_loop_workers),
            timeout=seconds,
        )
        ray.get(ready)

    def verify_counts(self) -> dict[str, int]:
        """Counts of all workers' verifiers since the last call."""
        total: dict[str, int] = {}
        for counts in ray.get([w.verify_counts.remote() for w in self.agent_loop_workers]):
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
        return total
