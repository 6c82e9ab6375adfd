"""The replay buffer's sampling rule, on a transfer queue that is a dictionary."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import transfer_queue
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer as verls

from reasonrl.engine.verl.replay import Pacer, ReasonReplayBuffer, RolloutFailed, constant, refill_count


class Queue:
    """`kv_list` and `kv_clear` of TransferQueue; `later` runs before each listing, as the workers would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: dict[str, dict[str, dict]] = {"train": {}, "val": {}}
        self.later: list[Callable[[], None]] = []
        self.cleared: list[str] = []
        for module in (verls.tq, transfer_queue):
            monkeypatch.setattr(module, "kv_list", self.kv_list)
            monkeypatch.setattr(module, "kv_clear", self.kv_clear)

    def kv_list(self) -> dict[str, dict[str, dict]]:
        if self.later:
            self.later.pop(0)()
        return {name: dict(items) for name, items in self.items.items()}

    def kv_clear(self, *, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            del self.items[partition_id][key]  # clearing twice is a bug
            self.cleared.append(key)

    def prompt(self, uid: str, status: str, partition: str = "train", **tag: Any) -> None:
        self.items[partition][uid] = {"is_prompt": True, "global_steps": 1, "status": status, **tag}

    def group(self, uid: str, scores: list[int], partition: str = "train", order: list[int] | None = None) -> None:
        for i in order or range(len(scores)):
            self.items[partition][f"{uid}_{i}_0"] = {
                "status": "success",
                "score": float(scores[i]),
                "is_padding": False,
            }
        self.prompt(uid, "finished", partition)


@pytest.fixture
def queue(monkeypatch) -> Queue:
    return Queue(monkeypatch)


def buffer(
    *,
    dynamic: bool = False,
    max_refills: int = 3,
    watchdog: float = 60.0,
    refill: Callable[[int], None] | None = None,
) -> ReasonReplayBuffer:
    made = ReasonReplayBuffer("sync", OmegaConf.create({}), None, "drop", OmegaConf.create({}), refill_fn=refill)
    made.configure(
        poll_seconds=0.001,
        dynamic=dynamic,
        max_refills=max_refills,
        watchdog_seconds=watchdog,
        describe=lambda uid: f"problem-{uid}",
        alive=lambda: None,
    )
    return made


def uids(keys: list[str]) -> list[str]:
    return list(dict.fromkeys(key.split("_")[0] for key in keys))


# pure parts


def test_a_group_is_constant_when_all_verdicts_agree() -> None:
    assert [constant(s) for s in ([1, 1], [0, 0, 0], [1], [], [1, 0], [0, 0, 1])] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("kept", "seen", "batch", "count"),
    [
        (6, 8, 8, 3),  # 2 missing at 3 of 4 kept: 2.67
        (4, 8, 8, 8),  # 4 missing at 1 of 2
        (5, 5, 8, 3),  # everything kept so far: exactly what is missing
        (6, 6, 8, 2),
        (0, 8, 8, 8),  # at least a quarter is assumed to be kept, at most a batch is sampled
        (7, 28, 8, 4),
        (0, 0, 4, 4),  # nothing came back at all
    ],
)
def test_refill_count_is_what_is_missing_over_the_share_kept_so_far(kept, seen, batch, count) -> None:
    assert refill_count(kept, seen, batch) == count


@given(batch=st.integers(1, 64), data=st.data())
def test_refill_count_is_enough_at_the_same_rate_and_never_more_than_a_batch(batch, data) -> None:
    kept = data.draw(st.integers(0, batch - 1))
    seen = data.draw(st.integers(kept, 4 * batch))
    count = refill_count(kept, seen, batch)
    assert min(batch - kept, batch) <= count <= batch
    if count < batch and seen:
        assert count * max(kept / seen, 0.25) >= batch - kept - 1e-9


def test_the_pacer_waits_twenty_polls_within_bounds() -> None:
    assert [Pacer(0.02, 2.0, cost).interval() for cost in (0.0, 0.001, 0.01, 0.05, 3.0)] == [0.02, 0.02, 0.2, 1.0, 2.0]


# waiting


def test_it_waits_until_every_problem_is_finished_or_failed(queue) -> None:
    queue.group("a", [1, 0])
    queue.prompt("b", "pending")
    queue.prompt("c", "running")
    queue.later = [
        lambda: None,
        lambda: queue.group("b", [0, 1]),
        lambda: None,
        lambda: queue.prompt("c", "failure", error="problem c: boom"),
    ]
    batch, _ = buffer().sample(1, "train", 3)
    assert not queue.later
    assert uids(batch.keys) == ["a", "b"]


def test_a_fatal_failure_ends_the_step_at_once(queue) -> None:
    """A judge that is gone: others still run, and in validation what never came would count as wrong."""
    for partition in ("train", "val"):
        queue.group("a", [1, 0], partition)
        queue.prompt("b", "running", partition)
        queue.prompt("c", "failure", partition, error="no judge at unix:/x (problem c)", fatal=True)
        with pytest.raises(RolloutFailed, match=r"^no judge at unix:/x \(problem c\)$"):
            buffer().sample(1, partition, 3)
        queue.items[partition].clear()


def test_a_long_wait_names_its_problems_and_then_gives_up(queue, caplog) -> None:
    queue.group("z", [1, 0])
    for uid in "abcdefg":
        queue.prompt(uid, "running" if uid < "d" else "pending")
    with (
        caplog.at_level(logging.WARNING, "reasonrl.engine.verl.replay"),
        pytest.raises(
            RolloutFailed, match=r"gave up after 0 minutes waiting for 7 problem\(s\): problem-a, problem-b.*2 more"
        ),
    ):
        buffer(watchdog=0.01).sample(1, "train", 8)
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1  # once, not at every poll
    assert (
        "waiting 0 minutes for 7 problem(s): problem-a, problem-b, problem-c, problem-d, problem-e and 2 more"
        in warnings[0]
    )
    assert "problem-z" not in warnings[0]


# without dynamic sampling


def test_rows_come_in_submission_and_rollout_order_whatever_order_they_finished_in(queue) -> None:
    queue.group("00000001-000010", [1] * 3, order=[2, 0, 1])
    queue.group("00000001-000002", [0] * 12, order=[11, 3, 10, 0, 1, 2, 4, 5, 6, 7, 8, 9])
    batch, metrics = buffer().sample(1, "train", 2)
    assert batch.keys == [f"00000001-000002_{i}_0" for i in range(12)] + [f"00000001-000010_{i}_0" for i in range(3)]
    assert [tag["score"] for tag in batch.tags] == [0.0] * 12 + [1.0] * 3
    assert (batch.partition_id, metrics) == ("train", {})


def test_constant_groups_are_trained_on_without_dynamic_sampling(queue) -> None:
    queue.group("a", [1, 1])
    queue.group("b", [1, 0])
    made = buffer()
    assert uids(made.sample(1, "train", 2)[0].keys) == ["a", "b"]
    assert (made.dropped_keys, made.unkept, made.refills) == ([], set(), 0)


def test_failed_groups_are_counted_and_the_rest_is_trained_on(queue) -> None:
    queue.group("a", [1, 0])
    queue.prompt("b", "failure", error="problem b: TimeoutError: too slow")
    made = buffer()
    assert uids(made.sample(1, "train", 2)[0].keys) == ["a"]
    assert made.failures == {"b": "problem b: TimeoutError: too slow"}
    assert sorted(queue.cleared) == ["a", "b"]
    assert sorted(queue.items["train"]) == ["a_0_0", "a_1_0"]  # rows stay for training


def test_a_step_without_any_rollout_fails_naming_problem_and_cause(queue) -> None:
    queue.prompt("a", "failure", error="problem 17: ValueError: no room")
    queue.prompt("b", "failure")
    with pytest.raises(RolloutFailed, match=r"2 problem\(s\) failed.*problem 17: ValueError: no room"):
        buffer().sample(1, "train", 2)


def test_validation_never_filters_and_leaves_training_alone(queue) -> None:
    queue.group("a", [1, 1], "val")
    queue.group("b", [0, 0], "val")
    queue.group("t", [1, 0], "train")
    refills: list[int] = []
    made = buffer(dynamic=True, refill=refills.append)
    made.dropped_keys, made.unkept = ["kept from training"], {"x"}
    batch, _ = made.sample(1, "val", 5)
    assert (batch.partition_id, uids(batch.keys)) == ("val", ["a", "b"])
    assert refills == []
    assert (made.dropped_keys, made.unkept) == (["kept from training"], {"x"})
    assert sorted(queue.items["train"]) == ["t", "t_0_0", "t_1_0"]


def test_a_problem_that_failed_in_validation_is_gone_at_the_next_one(queue) -> None:
    queue.group("a", [1], "val")
    queue.prompt("b", "failure", "val", error="gone")
    assert uids(buffer().sample(1, "val", 2)[0].keys) == ["a"]
    assert sorted(queue.items["val"]) == ["a_0_0"]


# dynamic sampling


def refiller(queue: Queue, groups: list[list[list[int]]]) -> tuple[list[int], Callable[[int], None]]:
    """Refill k makes `groups[k]`, running first and finished at the next listing."""
    asked: list[int] = []

    def refill(count: int) -> None:
        made = groups[len(asked)] if len(asked) < len(groups) else []
        asked.append(count)
        for i, scores in enumerate(made):
            uid = f"r{len(asked)}{i}"
            queue.prompt(uid, "running")
            queue.later.append(lambda uid=uid, scores=scores: queue.group(uid, scores))

    return asked, refill


def test_constant_groups_are_dropped_and_replaced_until_the_batch_is_full(queue) -> None:
    queue.group("a", [1, 0])
    queue.group("b", [1, 1])
    queue.group("c", [0, 0])
    asked, refill = refiller(queue, [[[0, 0], [1, 0], [1, 1]], [[0, 1]]])
    made = buffer(dynamic=True, refill=refill)
    batch, _ = made.sample(1, "train", 3)
    assert asked == [3, 3]  # 2 missing at 1/3 kept would be 6, a batch is 3; then 1 missing at 2/6 kept
    assert uids(batch.keys) == ["a", "r11", "r20"]
    assert sorted(made.dropped_keys) == ["b_0_0", "b_1_0", "c_0_0", "c_1_0", "r10_0_0", "r10_1_0", "r12_0_0", "r12_1_0"]
    assert (made.unkept, made.refills) == (set(), 2)
    assert set(made.dropped_keys) <= set(queue.items["train"])  # still there for credit; their prompts are not
    assert sorted(queue.cleared) == ["a", "b", "c", "r10", "r11", "r12", "r20"]


def test_refills_are_bounded_and_the_step_trains_on_what_is_kept(queue) -> None:
    queue.group("a", [1, 0])
    queue.group("b", [1, 1])
    asked, refill = refiller(queue, [[[1, 1]], [[0, 0]], [[1, 0]]])
    made = buffer(dynamic=True, max_refills=2, refill=refill)
    batch, _ = made.sample(1, "train", 2)
    assert len(asked) == made.refills == 2
    assert uids(batch.keys) == ["a"]
    assert uids(made.dropped_keys) == ["b", "r10", "r20"]


def test_surplus_groups_go_to_the_dropped_ones_and_are_not_lost(queue) -> None:
    for uid in "dcba":
        queue.group(uid, [1, 0])
    made = buffer(dynamic=True)
    batch, _ = made.sample(1, "train", 3)
    assert uids(batch.keys) == ["a", "b", "c"]
    assert made.dropped_keys == ["d_0_0", "d_1_0"]


def test_a_step_of_constant_groups_still_trains_and_is_marked_unkept(queue) -> None:
    for uid in "abc":
        queue.group(uid, [1, 1])
    asked, refill = refiller(queue, [])
    made = buffer(dynamic=True, max_refills=1, refill=refill)
    batch, _ = made.sample(1, "train", 2)
    assert asked == [2]
    assert uids(batch.keys) == ["a", "b"]
    assert made.unkept == {"a", "b"}
    assert uids(made.dropped_keys) == ["c"]


def test_the_next_step_forgets_what_the_last_one_dropped(queue) -> None:
    queue.group("a", [1, 1])
    made = buffer(dynamic=True, max_refills=0)
    made.sample(1, "train", 1)
    assert made.unkept == {"a"}
    queue.items["train"].clear()
    queue.group("b", [1, 0])
    made.sample(2, "train", 1)
    assert (made.unkept, made.dropped_keys, made.failures) == (set(), [], {})


def test_failures_are_refilled_like_dropped_groups(queue) -> None:
    queue.group("a", [1, 0])
    queue.prompt("b", "failure", error="gone")
    asked, refill = refiller(queue, [[[1, 0]]])
    made = buffer(dynamic=True, refill=refill)
    batch, _ = made.sample(1, "train", 2)
    assert asked == [1]
    assert uids(batch.keys) == ["a", "r10"]
    assert made.failures == {"b": "gone"}
