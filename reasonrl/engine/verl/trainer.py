"""verl's synchronous trainer with credit, data order, records and checkpoints of our own.

One step, in verl's words and ours:

    submit     the next problems of the data order, with what the ledger remembers of them
    sample     ReasonReplayBuffer: every group of the step, dropped ones kept aside
    credit     rows -> groups -> assign_credit -> advantages             (`_compute_advantage`)
    update     verl's, with loss_with_imitation
    record     metrics line and rollout file of the step, ledger, then the checkpoint   (`_compute_metrics`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.utils.padding import response_to_nested

from reasonrl.config import ConfigError
from reasonrl.core import Credit, Ledger, Method, RolloutGroup, assign_credit
from reasonrl.engine.prm import Scorer
from reasonrl.engine.step_scores import with_step_scores
from reasonrl.engine.verl.batch import (
    RECORD,
    Rows,
    advantages_of,
    flat,
    groups_of,
    imitation_of,
    mini_batch_scale,
    rewards_of,
)
from reasonrl.engine.verl.loss import COLUMN, loss_with_imitation
from reasonrl.engine.verl.names import TRAINER_NAME
from reasonrl.engine.verl.replay import ReasonReplayBuffer
from reasonrl.runs.order import DataOrder
from reasonrl.runs.record import StepRecord

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.02  # verl's own default is 2 s a poll
AUX = {"old_log_probs": "old_logprobs", "entropy": "entropy"}  # verl's column -> what a part calls it


class Recorder(Protocol):
    """What the trainer needs of a run folder; `runs.folder.RunFolder` is one."""

    def record_step(self, record: StepRecord) -> None: ...
    def record_validation(self, step: int, metrics: dict[str, float]) -> None: ...
    def before_checkpoint(self, step: int) -> None: ...
    def publish_checkpoint(self, step: int, state: dict[str, str]) -> None: ...


@register_trainer(TRAINER_NAME)
class ReasonTrainer(PPOTrainerSync):
    """Constructed on the driver by `launch.py`.

    state: what the checkpoint to resume from remembers. scorer: the process reward model, for a method that needs one.
    """

    def __init__(
        self,
        config: Any,
        *,
        method: Method,
        recorder: Recorder,
        state: dict[str, str] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.method, self.recorder, self.restored, self.scorer = method, recorder, state, scorer
        self.own = config.reasonrl
        self.ledger = Ledger.from_json(state["ledger"], method) if state else Ledger.for_method(method)
        self.submitted: dict[str, str] = {}  # uid -> problem id, of the step under way
        self.training = self.save_due = False
        super().__init__(config)

    # start-up

    def _build_replay_buffer(self) -> Any:
        # verl compares the mode with "sync" in nine places; a subclass under another name would get async parts.
        self.trainer_mode = "sync"
        buffer = super()._build_replay_buffer()
        buffer.__class__ = ReasonReplayBuffer  # built with verl's arguments, sampling by our rule
        buffer.configure(
            poll_seconds=POLL_SECONDS,
            dynamic=bool(self.own.dynamic),
            max_refills=int(self.own.max_refills),
            watchdog_seconds=60 * float(self.own.watchdog_minutes),
            describe=lambda uid: self.submitted.get(uid, uid),
            alive=lambda: self.agent_loop_manager.ping(),
        )
        return buffer

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.order = DataOrder(len(self.train_dataset), seed=int(self.own.seed))
        if self.restored:
            self.order.restore(self.restored["order"])

    def on_init_end(self) -> None:
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(partial(loss_with_imitation, actor))
        super().on_init_end()

    def on_train_begin(self) -> None:
        self.training = True

    # submitting

    def on_step_begin(self) -> None:
        self.submitted = {}

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The next problems of the data order; a refill continues where the step stopped."""
        count = num_prompts or self.config.data.train_batch_size
        first = len(self.submitted)
        columns = collate_fn([self.train_dataset[i] for i in self.order.take(count)])
        ids = [problem.id for problem in columns["problem"]]
        uids = [f"{self.global_steps:08d}-{first + i:06d}" for i in range(count)]  # sorts in submission order
        memory = self.ledger.view("prefix")
        columns["uid"] = np.array(uids, dtype=object)
        columns["order"] = list(range(first, first + count))
        columns["numbers"] = [memory.numbers(i) for i in ids]
        columns["scalars"] = [memory.scalars()] * count
        self.submitted.update(zip(uids, ids, strict=True))
        batch = tu.get_tensordict(columns)
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        return batch

    # credit

    def _fetch(self, keys: Sequence[str], extra: Sequence[str] = ()) -> Rows:
        """The rows behind `keys`. Raises KeyError when the queue left a column out, which it does without a word."""
        fields = ["prompts", "responses", "rollout_log_probs", "extra_fields", *extra]
        data = tq.kv_batch_get(keys=list(keys), partition_id="train", select_fields=fields)
        missing = [f for f in fields if f not in data.keys()]  # noqa: SIM118 - `in` on a TensorDict asks for rows
        if missing:
            raise KeyError(f"the queue returned no column {missing}: at least one row of the step lacks it")
        prompts, prompt_offsets = flat(data["prompts"])
        responses, offsets = flat(data["responses"])
        return Rows(
            uids=[key.split("_")[0] for key in keys],
            records=[getattr(value, "data", value)[RECORD] for value in data["extra_fields"]],
            prompts=prompts,
            prompt_offsets=prompt_offsets,
            responses=responses,
            offsets=offsets,
            logprobs=flat(data["rollout_log_probs"])[0],
            aux={AUX[name]: flat(data[name])[0] for name in extra},
        )

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Rows -> groups -> `assign_credit` -> advantages and shaped rewards, written back for every row."""
        started = time.perf_counter()
        if self._corrects_rollouts():
            metrics.update(self._rollout_correction(batch))
        rows = self._fetch(batch.keys, [name for name, need in AUX.items() if need in self.method.needs])
        padding = {r for r, tag in enumerate(batch.tags) if tag.get("is_padding", False)}
        self._refuse_invented_probabilities(rows)
        unkept = self.replay_buffer.unkept
        problems, step = self.train_dataset.problems, self.global_steps
        groups, where = groups_of(rows, problems, step, skip=padding, kept=lambda uid: uid not in unkept)
        if self.scorer is not None:
            groups = self._scored(groups, metrics)
        dropped = self._dropped_groups()
        credit = assign_credit(self.method, [*groups, *dropped], self.ledger)
        batch = self._write_back(batch, rows, groups, where, first_groups(credit, len(groups)), padding)
        self.step_groups, self.step_credit = [*groups, *dropped], credit
        metrics.update(credit.metrics)
        metrics.update(self._sampling_metrics(rows, where, len(padding)))
        metrics["time/credit_s"] = time.perf_counter() - started
        return batch

    def _scored(self, groups: Sequence[RolloutGroup], metrics: dict[str, Any]) -> list[RolloutGroup]:
        """The groups with the process reward model's scores."""
        assert self.scorer is not None
        started, loaded = time.perf_counter(), self.train_dataset.loaded
        places = self.train_dataset.places
        questions = {group.problem.id: loaded.questions[places[group.problem.id]] for group in groups}
        groups, own = with_step_scores(self.method, groups, self.ledger, questions, self.scorer)
        metrics.update(own)
        metrics["time/prm_s"] = time.perf_counter() - started
        return groups

    def _dropped_groups(self) -> list[RolloutGroup]:
        """Groups that dynamic sampling set aside, as `kept=False`; their rows leave the queue."""
        keys = self.replay_buffer.dropped_keys
        if not keys:
            return []
        rows = self._fetch(keys)
        groups, _ = groups_of(rows, self.train_dataset.problems, self.global_steps, kept=lambda uid: False)
        tq.kv_clear(partition_id="train", keys=keys)
        return groups

    def _write_back(
        self,
        batch: Any,
        rows: Rows,
        groups: Sequence[RolloutGroup],
        where: Sequence[Sequence[int]],
        credit: Credit,
        padding: set[int],
    ) -> Any:
        offsets = torch.from_numpy(rows.offsets)

        def nested(values: Any) -> torch.Tensor:
            return torch.nested.nested_tensor_from_jagged(torch.from_numpy(values), offsets=offsets)

        per_row = np.diff(rows.offsets)
        scale = np.repeat(self._mini_batch_scale(len(rows), padding), per_row) if padding else None
        flat_advantages = advantages_of(rows, groups, where, credit)
        if scale is not None and self.method.loss.aggregation.startswith("seq-mean"):
            flat_advantages *= scale
        advantages = nested(flat_advantages)
        columns = {
            "advantages": advantages,
            "returns": advantages,  # verl's metrics ask for the column; there is no value function
            "token_level_rewards": nested(rewards_of(rows, where, credit)),
        }
        imitation = imitation_of(rows, skip=padding)
        if imitation is not None:
            columns[COLUMN] = nested(imitation if scale is None else imitation * scale)
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(columns, batch_size=len(rows))
        )

    def _mini_batch_scale(self, rows: int, padding: set[int]) -> np.ndarray:
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        size = self.config.actor_rollout_ref.actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        return mini_batch_scale(np.isin(np.arange(rows), list(padding)), ranks, size)

    def _refuse_invented_probabilities(self, rows: Rows) -> None:
        """A trained prefix has no rollout log-probabilities; whatever reads them would read zeros."""
        correction = self.config.algorithm.get("rollout_correction") or {}
        reads = self._corrects_rollouts() or correction.get("bypass_mode", False)
        if reads and any(r["prefix_loss"] == "policy" and r["prefix_tokens"] for r in rows.records):
            raise ConfigError(
                "verl.algorithm.rollout_correction reads the rollout's log-probabilities, which the trained prefixes of "
                f"method {self.method.name} do not have: leave it out"
            )

    def _corrects_rollouts(self) -> bool:
        correction = self.config.algorithm.get("rollout_correction") or {}
        active = correction.get("rollout_is") or correction.get("rollout_rs")
        return bool(active) and not correction.get("bypass_mode", False)

    def _rollout_correction(self, batch: Any) -> dict[str, Any]:
        """verl's importance weights and rejection between rollout and actor; the columns it changes are stored."""
        fields = ["response_mask", "rm_scores", "rollout_log_probs", "old_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        mask = data["response_mask"]
        padded, metrics = compute_rollout_correction_and_add_to_batch(
            DataProto(batch=data.to_padded_tensor()), self.config.algorithm.rollout_correction
        )
        names = [n for n in ("response_mask", "rollout_is_weights") if n in padded.batch]
        changed = {n: response_to_nested(padded.batch[n], mask) for n in names}
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(changed, batch_size=len(batch))
        )
        return metrics

    def _sampling_metrics(self, rows: Rows, where: Sequence[Sequence[int]], padding: int) -> dict[str, float]:
        buffer = self.replay_buffer
        seconds = [rows.records[indices[0]]["seconds"] for indices in where]
        rounds = [max(rows.records[r]["round"] for r in indices) + 1 for indices in where]
        metrics = {
            "group/failed": float(len(buffer.failures)),
            "group/refills": float(buffer.refills),
            "group/padding_rows": float(padding),
            "rollout/rounds": float(np.mean(rounds)),
            "rollout/probes": float(sum(rows.records[r]["probe_count"] for indices in where for r in indices)),
            "time/generate_s": float(np.max([s["generate"] for s in seconds])),
            "time/verify_s": float(np.sum([s["verify"] for s in seconds])),
            "data/epoch": float(self.order.epoch),
        }
        lost = [error for indices in where for error in rows.records[indices[0]].get("failed", ())]
        metrics["rollout/failed"] = float(len(lost))
        for cause in [*buffer.failures.values(), *lost][:5]:
            logger.warning("step %d lost rollouts: %s", self.global_steps, cause)
        counts = self.agent_loop_manager.verify_counts()
        return metrics | {f"verify/{name}": float(count) for name, count in counts.items()}

    # validation

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        for name, count in self.agent_loop_manager.verify_counts().items():  # else they would land in the next step
            metrics[f"val/verify_{name}"] = float(count)
        if not self.training:  # afterwards they travel in the step's own line
            self.recorder.record_validation(self.global_steps, metrics)
        return metrics

    def _val_metrics_update(
        self, data_sources: Any, sample_uids: Any, infos: dict[str, list], sample_turns: Any, **kwargs: Any
    ) -> dict[str, float]:
        expected = sum((kwargs.get("expected_acc_counts") or {}).values())
        ours = validation_metrics(infos, sample_uids, expected) | accuracy_by_source(infos, data_sources)
        verls = {name: values for name, values in infos.items() if name in ("reward", "acc")}
        return super()._val_metrics_update(data_sources, sample_uids, verls, sample_turns, **kwargs) | ours

    # recording

    def _save_checkpoint(self) -> None:
        self.save_due = True  # verl saves before it logs; ours is published after the step's records are on disk

    def _save_weights(self) -> None:
        offloaded = bool(self.config.actor_rollout_ref.actor.fsdp_config.param_offload)
        if offloaded:  # saving brings the parameters back to the device, where the rollout engine is awake by now
            self.checkpoint_manager.sleep_replicas()
        super()._save_checkpoint()
        if offloaded:
            self.checkpoint_manager.update_weights(self.global_steps)

    def _compute_metrics(self, batch: Any, metrics: Any, timing_raw: Any, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        self.recorder.record_step(StepRecord(global_steps, self.step_groups, self.step_credit, dict(metrics)))
        self.ledger.observe(self.step_groups, self.step_credit)
        if self.save_due:
            self.save_due = False
            self.recorder.before_checkpoint(global_steps)
            self._save_weights()
            state = {"ledger": self.ledger.to_json(), "order": self.order.state()}
            if self.scorer is not None:
                state["prm"] = self.scorer.identity
            self.recorder.publish_checkpoint(global_steps, state)


def first_groups(credit: Credit, count: int) -> Credit:
    """Credit of the groups whose rows are in the batch; dropped ones come after them and have none."""
    return replace(credit, rewards=credit.rewards[:count], advantages=credit.advantages[:count])


def accuracy_by_source(infos: dict[str, list], sources: Sequence[str]) -> dict[str, float]:
    """`val/<source>/acc` of the answers that came, where they are of several sources."""
    acc = np.array([np.nan if a is None else float(a) for a in infos.get("acc", [])])
    names = np.asarray(sources)
    if len(set(sources)) < 2 or acc.shape != names.shape:
        return {}
    means = {name: acc[(names == name) & ~np.isnan(acc)] for name in sorted(set(sources))}
    return {
        f"val/{name.removeprefix('eval/')}/acc": float(values.mean()) for name, values in means.items() if values.size
    }


def validation_metrics(infos: dict[str, list], uids: Sequence[str], expected: int = 0) -> dict[str, float]:
    """`val/*` from the per-answer columns acc, tokens, finished. Shares are of answers; absent quantities are left out.

    expected: answers asked for; those that never came are counted as `val/failed` and as wrong.
    """
    acc = np.array([np.nan if a is None else float(a) for a in infos.get("acc", [])])
    if not acc.size or np.isnan(acc).all():
        return {}
    tokens = np.array([np.nan if t is None else float(t) for t in infos["tokens"]])
    finished = np.array([np.nan if f is None else float(f) for f in infos["finished"]])
    metrics = {
        "val/acc": float(np.nansum(acc) / max(acc.size, expected)),
        "val/failed": float(max(expected - acc.size, 0)),
        "val/tokens": float(np.nanmean(tokens)),
        "val/cut": float(1 - np.nanmean(finished)),
        "val/answers": float(acc.size),
        "val/problems": float(len(set(uids))),
    }
    for name, right in (("correct", 1.0), ("wrong", 0.0)):
        if (acc == right).any():
            metrics[f"val/tokens_{name}"] = float(np.nanmean(tokens[acc == right]))
    return metrics
