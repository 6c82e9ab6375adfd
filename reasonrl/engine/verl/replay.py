"""verl's replay buffer with our sampling rule: wait for everything, drop by the verifier's word, lose nothing.

Differences from `ReplayBuffer.sample` of verl 0.9.1: it polls in milliseconds and slows down when listing is slow; it
names the problems it waits for; dynamic sampling reads the verdicts in the rows' tags, refills a bounded number of
times, and leaves dropped and surplus groups in the queue so that the trainer can show them to the method's parts.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from reasonrl.config import RunFailed
from reasonrl.engine.verl.names import FATAL

logger = logging.getLogger(__name__)
PING_SECONDS = 20.0  # how often a waiting step looks whether its workers live


class RolloutFailed(RunFailed):
    """A step whose rollouts cannot be used. The message names problems and causes."""


@dataclass
class Selection:
    """Which groups of a finished pool are trained on."""

    kept: list[str]  # uids
    dropped: list[str]  # constant verdicts, or surplus
    failed: dict[str, str]  # uid -> error


def constant(scores: list[float]) -> bool:
    """Whether a group can teach nothing: all verdicts equal (a single rollout always is)."""
    return len(set(scores)) <= 1


def refill_count(kept: int, seen: int, batch: int) -> int:
    """How many problems to sample anew so that `batch` groups are likely to be kept, judging by this step so far."""
    missing = batch - kept
    rate = max(kept / seen, 0.25) if seen else 1.0
    return min(math.ceil(missing / rate), batch)


@dataclass
class Pacer:
    """Poll interval: 20 times the cost of a poll, within bounds, so that listing a large queue does not eat the driver."""

    shortest: float = 0.02
    longest: float = 2.0
    cost: float = field(default=0.0)

    def interval(self) -> float:
        return min(max(self.shortest, 20 * self.cost), self.longest)


class ReasonReplayBuffer(ReplayBuffer):
    """Sync sampling. `configure` is called once by the trainer, after verl has built the buffer."""

    def configure(
        self,
        *,
        poll_seconds: float,
        dynamic: bool,
        max_refills: int,
        watchdog_seconds: float,
        describe: Callable[[str], str],
        alive: Callable[[], None],
    ) -> None:
        """describe: uid -> the problem's id, for messages. alive: raises when a worker has died."""
        self.poll_interval, self.dynamic, self.max_refills = poll_seconds, dynamic, max_refills
        self.watchdog_seconds, self.describe, self.alive = watchdog_seconds, describe, alive
        self.dropped_keys: list[str] = []  # rows of groups set aside; the trainer fetches and clears them
        self.unkept: set[str] = set()  # groups in the batch that train on nothing
        self.failures: dict[str, str] = {}
        self.refills = 0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """All groups of the step (train: at most `batch_size` kept ones); see the module's head."""
        train = partition_id == "train"
        refills = 0
        while True:
            self._wait_until_settled(partition_id)
            selection = self._select(partition_id, batch_size, filter=train and self.dynamic)
            short = batch_size - len(selection.kept)
            if not (train and self.dynamic) or short <= 0 or refills >= self.max_refills:
                break
            seen = len(selection.kept) + len(selection.dropped)
            self.refill_fn(refill_count(len(selection.kept), seen, batch_size))
            refills += 1
        rows = self._rows_of(partition_id)
        if not any(rows[uid] for uid in (*selection.kept, *selection.dropped)):
            raise RolloutFailed(self._why_nothing(selection))
        if not train:
            self._forget_prompts(partition_id, list(selection.failed))
            return self._take(partition_id, selection.kept, rows), {}
        trained, dropped = selection.kept, selection.dropped
        if not trained:  # nothing varies: the step still happens, with advantages of zero, and is counted
            trained, dropped = dropped[:batch_size], dropped[batch_size:]
            self.unkept = set(trained)
        else:
            self.unkept = set()
        self.dropped_keys = [key for uid in dropped for key in rows[uid]]
        self.failures, self.refills = selection.failed, refills
        self._forget_prompts(partition_id, [*dropped, *selection.failed])
        return self._take(partition_id, trained, rows), {}

    def _wait_until_settled(self, partition_id: str) -> None:
        started, warned, pinged, pacer = time.monotonic(), False, 0.0, Pacer(shortest=self.poll_interval)
        while True:
            before = time.monotonic()
            self._sync_metadata_from_transfer_queue()
            pacer.cost = time.monotonic() - before
            waiting = self.pending_keys[partition_id] | self.running_keys[partition_id]
            if not waiting:
                return
            waited = time.monotonic() - started
            if waited > pinged + PING_SECONDS:
                self.alive()
                pinged = waited
            if waited > 4 * self.watchdog_seconds:
                raise RolloutFailed(f"gave up after {waited / 60:.0f} minutes waiting for {self._names(waiting)}")
            if waited > self.watchdog_seconds and not warned:
                logger.warning("waiting %.0f minutes for %s", waited / 60, self._names(waiting))
                warned = True
            time.sleep(pacer.interval())

    def _names(self, uids: set[str]) -> str:
        names = sorted(self.describe(uid) for uid in uids)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"{len(names)} problem(s): {shown}"

    def _rows_of(self, partition_id: str) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = defaultdict(list)
        for key in self.partitions[partition_id]:
            rows[key.split("_")[0]].append(key)
        return rows

    def _select(self, partition_id: str, batch_size: int, *, filter: bool) -> Selection:
        partition, rows = self.partitions[partition_id], self._rows_of(partition_id)
        errors = {uid: self.errors.get(uid, "unknown error") for uid in self.failure_keys[partition_id]}
        usable = sorted(self.finished_keys[partition_id] | {uid for uid in errors if rows[uid]})
        if not filter:
            return Selection(usable, [], errors)
        flat = {uid for uid in usable if constant([partition[key]["score"] for key in rows[uid]])}
        kept = [uid for uid in usable if uid not in flat]
        return Selection(kept[:batch_size], [*kept[batch_size:], *(u for u in usable if u in flat)], errors)

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's, and the errors that our workers put into the tags of failed problems; raises a fatal one."""
        super()._sync_metadata_from_transfer_queue()
        self.errors: dict[str, str] = {}
        if any(self.failure_keys.values()):
            import transfer_queue as tq

            for items in tq.kv_list().values():
                self.errors.update({key: tag["error"] for key, tag in items.items() if "error" in tag})
                for tag in items.values():
                    if tag.get(FATAL):
                        raise RolloutFailed(tag["error"])

    def _why_nothing(self, selection: Selection) -> str:
        causes = list(selection.failed.values())[:3]
        return f"no rollout came back: {len(selection.failed)} problem(s) failed. First causes: {'; '.join(causes)}"

    def _forget_prompts(self, partition_id: str, uids: list[str]) -> None:
        if uids:
            import transfer_queue as tq

            tq.kv_clear(partition_id=partition_id, keys=uids)

    def _take(self, partition_id: str, uids: list[str], rows: dict[str, list[str]]) -> KVBatchMeta:
        partition = self.partitions[partition_id]
        self._forget_prompts(partition_id, uids)
        keys = [key for uid in uids for key in sorted(rows[uid], key=lambda k: int(k.split("_")[1]))]
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=[partition[key] for key in keys])
