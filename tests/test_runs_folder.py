"""The run folder: what a step writes, what a crash leaves, what a resumed run finds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import group, rollout, shards

from reasonrl.config import ConfigError
from reasonrl.core import Ledger, Prefix, assign_credit, with_limits
from reasonrl.methods import deepcompress, grpo
from reasonrl.runs.files import DiskFull
from reasonrl.runs.folder import COMPLETE, RunFolder, as_number
from reasonrl.runs.record import StepRecord
from reasonrl.runs.rollouts import COLUMNS


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / "config.yaml").write_text("seed: 1\n")
    (folder.path / "provenance.json").write_text('{"schema": 1}')
    return folder


def step_record(step: int = 1, method: Any = None, **metrics: Any) -> StepRecord:
    groups = [
        replace(
            group([1, 0], [3, 2], id="p0", step=step, prefix=Prefix([70, 71], "policy")),
            probes=(rollout(1, 2, parent=(1, 0), round=2),),
        ),
        replace(group([1, 1, 0], [1, 4, 2], id="p1", step=step), kept=False),
    ]
    method = method or grpo.build()
    credit = assign_credit(method, groups, Ledger.for_method(method))
    return StepRecord(step, groups, credit, {"score/mean": 0.6, **metrics})


def save(run: RunFolder, step: int, weights: bytes = b"weights") -> None:
    """What the trainer does at the end of a step that is saved."""
    run.record_step(step_record(step))
    run.before_checkpoint(step)
    shards(run.checkpoint(step), weights + bytes([step]))
    (run.checkpoint(step) / "actor" / "config.json").write_text("{}")
    run.publish_checkpoint(step, {"ledger": f"ledger {step}", "order": f"order {step}"})


# creating and opening


def test_a_new_run_refuses_a_folder_with_something_in_it(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder.create(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"run folder {tmp_path}/run exists: choose another name="):
        RunFolder.create(tmp_path / "run")


def test_a_folder_without_a_configuration_is_no_run(tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} is no run folder"):
        RunFolder.open(tmp_path)


# records


def test_a_step_is_one_metrics_line_and_one_row_per_rollout(run) -> None:
    heard = []
    run.listeners.append(lambda step, metrics: heard.append((step, metrics)))
    run.decode = lambda ids: f"{len(ids)} tokens"
    record = step_record(4)
    run.record_step(record)
    assert run.lines() == [{"step": 4, "score/mean": 0.6}]
    assert heard == [(4, {"score/mean": 0.6})]
    frame = run.rollouts(4)
    assert list(frame.columns) == [*COLUMNS, "reward_correctness"]
    assert frame["problem_id"].tolist() == ["p0", "p0", "p0", "p1", "p1", "p1"]
    assert frame["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["rollout"].tolist() == [0, 1, -1, 0, 1, 2]
    assert frame["trained"].tolist() == [True, True, False, True, True, True]
    assert frame["kept"].tolist() == [True] * 3 + [False] * 3
    assert frame["score"].tolist() == [1, 0, 1, 1, 1, 0]
    assert frame["tokens"].tolist() == [3, 2, 2, 1, 4, 2]
    assert frame["text"].tolist()[:2] == ["3 tokens", "2 tokens"]
    assert frame["prefix_loss"].tolist() == ["policy", "policy", "none", "none", "none", "none"]
    assert frame["prefix_ids"][0].tolist() == [70, 71]
    assert frame["token_ids"][0].tolist() == [3, 4, 5]
    assert frame["logprobs"][1].tolist() == [-0.5, -0.5]
    assert frame["prompt_ids"][0].tolist() == [1, 2, 3]
    assert frame["step"].tolist() == [4] * 6
    metadata = pq.read_schema(run.rollout_file(4)).metadata
    assert metadata[b"reasonrl_rollouts"] == b"1"


def test_rows_carry_reward_parts_and_one_advantage_per_trained_token(run) -> None:
    record = step_record(1, with_limits(deepcompress.build(n=2), 100))
    run.record_step(record)
    frame, credit = run.rollouts(1), record.credit
    trained = frame[frame["trained"]]
    for name, values in credit.parts[0].items():
        np.testing.assert_allclose(trained[f"reward_{name}"][:2], values)
    np.testing.assert_allclose(trained["reward"], np.concatenate(credit.rewards))
    rows = [row for rows in credit.advantages for row in rows]
    for got, wanted in zip(trained["advantages"], rows, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert [len(a) for a in trained["advantages"]] == [5, 4, 1, 4, 2]  # the policy prefix of 2 tokens included
    assert not any(a.any() for a in trained["advantages"][2:])  # dropped


def test_a_probe_is_a_row_without_reward_that_names_its_parent(run) -> None:
    run.record_step(step_record())
    probe = run.rollouts(1).iloc[2]
    assert (probe["parent_rollout"], probe["parent_token"], probe["round"]) == (1, 0, 2)
    assert np.isnan(probe["reward"])
    assert probe["advantages"] is None
    assert run.rollouts(1)["parent_rollout"].isna().tolist() == [True, True, False, True, True, True]


def test_without_recording_there_is_a_metrics_line_and_no_file(run) -> None:
    run.record_rollouts = False
    run.record_step(step_record())
    assert len(run.lines()) == 1
    assert list((run.path / "rollouts").iterdir()) == []


def test_rollouts_of_an_unrecorded_step_name_the_recorded_ones(run) -> None:
    for step in (1, 12):
        run.record_step(step_record(step))
    with pytest.raises(FileNotFoundError, match=r"no rollouts of step 5 in .*; recorded: \[1, 12\]"):
        run.rollouts(5)


def test_rollouts_are_on_disk_before_their_metrics_line(run, monkeypatch) -> None:
    import reasonrl.runs.folder as module

    seen = []
    monkeypatch.setattr(module, "append_line", lambda *_: seen.append(run.rollout_file(1).is_file()))
    run.record_step(step_record())
    assert seen == [True]


def test_a_full_disk_in_the_rollout_file_leaves_no_line_and_no_part_of_it(run, monkeypatch) -> None:
    import reasonrl.runs.rollouts as module

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_rollouts", full)
    with pytest.raises(DiskFull, match=f"resume={run.path}"):
        run.record_step(step_record())
    assert run.lines() == []
    assert list((run.path / "rollouts").iterdir()) == []


def test_metrics_are_finite_numbers_and_nothing_else(run) -> None:
    import torch

    run.record_step(
        step_record(a=np.float32(0.5), b=torch.tensor(2.0), c="text", d=float("nan"), e=[1, 2], f=True, g=None)
    )
    assert run.lines() == [{"step": 1, "a": 0.5, "b": 2.0, "f": 1.0, "score/mean": 0.6}]
    assert [as_number(x) for x in (1, "1.5", float("inf"), None)] == [1.0, 1.5, None, None]


def test_metrics_become_a_frame_indexed_by_step(run) -> None:
    assert run.metrics().empty
    run.record_validation(0, {"val/acc": 0.25})
    run.record_step(step_record(1))
    frame = run.metrics()
    assert frame.index.tolist() == [0, 1]
    assert frame["val/acc"].dropna().tolist() == [0.25]
    assert frame["score/mean"].dropna().tolist() == [0.6]


def test_a_half_written_last_line_is_ignored(run) -> None:
    run.record_step(step_record(1))
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "sco')
    assert [line["step"] for line in run.lines()] == [1]


# checkpoints


def test_a_checkpoint_without_its_last_file_does_not_exist(run) -> None:
    save(run, 1)
    save(run, 2)
    (run.checkpoint(2) / COMPLETE).unlink()
    (run.path / "checkpoints" / "global_step_x").mkdir()
    assert run.complete_checkpoints() == [1]
    run.verify_checkpoint(1)
    assert run.state(1) == {"step": 1, "ledger": "ledger 1", "order": "order 1"}


def test_steps_are_ordered_as_numbers(run) -> None:
    run.keep_checkpoints = 9
    for step in (9, 10, 100):
        save(run, step)
    assert run.complete_checkpoints() == [9, 10, 100]


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_old_checkpoints_are_deleted(run, keep, left) -> None:
    run.keep_checkpoints = keep
    for step in (1, 2, 3, 4):
        save(run, step)
    assert run.complete_checkpoints() == left
    assert sorted(f.name for f in (run.path / "checkpoints").iterdir()) == [f"global_step_{s}" for s in left]
    for step in left:
        run.verify_checkpoint(step)


def test_what_an_unfinished_checkpoint_left_is_gone_before_the_next_try(run) -> None:
    leftover = run.checkpoint(3) / "actor" / "model_rank_1.pt"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of another try")
    save(run, 3)
    assert not leftover.exists()
    run.verify_checkpoint(3)


def test_the_next_checkpoint_needs_room_for_one_like_the_last(run, monkeypatch) -> None:
    save(run, 1, weights=b"x" * 1000)
    asked = []
    monkeypatch.setattr("reasonrl.runs.folder.require_space", lambda folder, needed: asked.append(needed))
    run.before_checkpoint(2)
    size = sum(f.stat().st_size for f in run.checkpoint(1).rglob("*") if f.is_file())
    assert asked == [int(1.1 * size)]
    assert size > 1000


class Crash(BaseException):
    """The process is killed: nothing runs after it."""


class Killer:
    """Kills at the k-th write of any kind: half of a text is written, a folder is half deleted, a rename not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
        self.left, self.dead = k, False
        for owner, name, half in (
            (Path, "write_text", lambda path, text: Path.open(path, "w").write(text[: len(text) // 2])),
            (Path, "write_bytes", lambda path, data: Path.open(path, "wb").write(data[:1])),
            (Path, "replace", None),
            (Path, "unlink", None),
            (Path, "mkdir", None),
            (os, "fsync", None),
            (shutil, "rmtree", half_deleted),
        ):
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name), half))

    def wrapped(self, real: Callable[..., Any], half: Callable[..., Any] | None) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Crash
            self.left -= 1
            if self.left == 0:
                self.dead = True
                if half is not None:
                    half(*args)
                raise Crash
            return real(*args, **kwargs)

        return write


def half_deleted(folder: Path) -> None:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    for file in files[: len(files) // 2]:
        os.unlink(file)


def crashes(run: RunFolder, work: Callable[[], None]) -> Iterator[int]:
    """Do `work` again and again, killed at its first write, its second, ... until it survives; yields after each."""
    original = run.path.with_name("original")
    shutil.copytree(run.path, original)
    for k in range(1, 200):
        shutil.rmtree(run.path)
        shutil.copytree(original, run.path)
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, k)
            with contextlib.suppress(Crash):
                work()
        yield k
        if not killer.dead:
            return
    raise AssertionError("never survived")


def test_a_crash_at_any_write_leaves_the_old_or_the_new_checkpoint_complete(run) -> None:
    run.keep_checkpoints = 1
    save(run, 1)
    record = step_record(2)

    def step_two() -> None:
        run.record_step(record)
        run.before_checkpoint(2)
        shards(run.checkpoint(2), b"weights 2")
        run.publish_checkpoint(2, {"ledger": "ledger 2", "order": "order 2"})

    newest, lines = [], []
    for _ in crashes(run, step_two):
        found = RunFolder.open(run.path)
        last = found.complete_checkpoints()[-1]
        newest.append(last)
        for step in found.complete_checkpoints():  # the old one may be half deleted, but then it says so
            found.verify_checkpoint(step)
        assert found.state(last)["ledger"] == f"ledger {last}"
        lines.append(len(found.lines()))
        assert last == 1 or len(found.lines()) == 2  # a checkpoint's records are there before it is
        found.rewind(last)
        assert [line["step"] for line in found.lines()] == list(range(1, last + 1))
        assert sorted(f.name for f in (run.path / "rollouts").iterdir()) == [
            f"step_{s:06d}.parquet" for s in range(1, last + 1)
        ]
        found.before_checkpoint(last + 1)
    assert newest == sorted(newest)
    assert set(newest) == {1, 2}
    assert set(lines) == {1, 2}
    assert len(newest) > 12  # one for each write


def test_rewind_cuts_metrics_rollouts_and_unfinished_checkpoints(run) -> None:
    for step in (1, 2):
        save(run, step)
    for step in (3, 4):
        run.record_step(step_record(step))
    (run.checkpoint(4) / "actor").mkdir(parents=True)
    (run.path / "rollouts" / ".step_000005.parquet.tmp").write_bytes(b"half")
    with run.metrics_file.open("a") as file:
        file.write('{"step": 5, ')
    run.rewind(2)
    assert run.metrics_file.read_text().count("\n") == 2
    assert [line["step"] for line in run.lines()] == [1, 2]
    assert sorted(f.name for f in (run.path / "rollouts").iterdir()) == ["step_000001.parquet", "step_000002.parquet"]
    assert sorted(f.name for f in (run.path / "checkpoints").iterdir()) == ["global_step_1", "global_step_2"]
    run.record_step(step_record(3))
    assert [line["step"] for line in run.lines()] == [1, 2, 3]


def test_rewind_to_the_start_leaves_the_validation_before_the_first_step(run) -> None:
    run.record_validation(0, {"val/acc": 0.5})
    run.record_step(step_record(1))
    run.rewind(0)
    assert run.lines() == [{"step": 0, "val/acc": 0.5}]


# what may be loaded


def test_a_checkpoint_of_this_run_passes(run) -> None:
    save(run, 1)
    RunFolder.open(run.path).verify_checkpoint(1)


def manifest(run: RunFolder, step: int) -> dict[str, Any]:
    return json.loads((run.checkpoint(step) / COMPLETE).read_text())


def test_a_pickled_file_that_this_run_did_not_write_is_refused(run) -> None:
    """Also when the checkpoint's own manifest vouches for it: that file came with the checkpoint."""
    save(run, 1)
    foreign = run.checkpoint(1) / "actor" / "model_world_size_1_rank_0.pt"
    foreign.write_bytes(b"foreign")
    from reasonrl.runs.files import fingerprint

    changed = manifest(run, 1)
    changed["files"]["actor/model_world_size_1_rank_0.pt"] = fingerprint(foreign)
    (run.checkpoint(1) / COMPLETE).write_text(json.dumps(changed))
    with pytest.raises(
        ConfigError,
        match=r"model_world_size_1_rank_0.pt can run code .* not written by this run .*: refused.*reasonrl export",
    ):
        run.verify_checkpoint(1)


@pytest.mark.parametrize("name", ["actor/model_world_size_2_rank_0.pt", "data.pkl"])
def test_a_pickled_file_beside_the_manifest_is_refused(run, name) -> None:
    save(run, 1)
    (run.checkpoint(1) / name).write_bytes(b"foreign")
    with pytest.raises(ConfigError, match=f"{name} can run code when it is loaded and is not part of the checkpoint"):
        run.verify_checkpoint(1)


def test_a_whole_checkpoint_copied_from_another_run_is_refused(run, tmp_path) -> None:
    other = RunFolder.create(tmp_path / "other")
    save(other, 1)
    shutil.copytree(other.checkpoint(1), run.checkpoint(1))
    with pytest.raises(ConfigError, match=r"not written by this run"):
        run.verify_checkpoint(1)


def test_a_changed_file_is_refused(run) -> None:
    save(run, 1)
    (run.checkpoint(1) / "reasonrl" / "state.json").write_text('{"step": 1, "ledger": "edited"}')
    with pytest.raises(
        ConfigError, match=r"state.json changed since the checkpoint was written: delete .*global_step_1"
    ):
        run.verify_checkpoint(1)


def test_a_missing_file_is_refused(run) -> None:
    save(run, 1)
    (run.checkpoint(1) / "actor" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"global_step_1 lacks actor/config.json: resume from an older one"):
        run.verify_checkpoint(1)
