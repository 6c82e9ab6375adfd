"""Training through real Ray and verl on the CPU: four starts, everything else is tested without."""

from __future__ import annotations

import numpy as np
import pytest
from e2e import SMALL, finish
from prm_builders import prm_folder
from transformers import AutoTokenizer

from reasonrl import assign_credit, make_method
from reasonrl.config import package_path
from reasonrl.core import Ledger, Prefix, Problem, Rollout, RolloutGroup, with_limits
from reasonrl.runs.folder import RunFolder

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """Three steps of DeepCompress with dynamic sampling, which on this model always drops groups."""
    folder = tmp_path_factory.mktemp("deepcompress")
    text = finish(
        folder,
        "method=deepcompress",
        *SMALL,
        "dynamic_sampling.enable=true",
        "dynamic_sampling.max_refills=1",
        "steps=3",
        "save_every=2",
        "name=run",
        "logger=tensorboard",
    )
    return RunFolder.open(folder / "runs" / "run"), text


def test_the_run_folder_explains_itself(trained: tuple[RunFolder, str]) -> None:
    run, text = trained
    assert [line["step"] for line in run.lines()] == [0, 1, 2, 3]
    assert run.complete_checkpoints() == [2, 3]
    for step in (2, 3):
        run.verify_checkpoint(step)
    assert (run.path / "curves.png").stat().st_size > 5000
    assert list((run.path / "tensorboard").iterdir())
    facts = run.provenance()
    assert facts["packages"]["verl"] == "0.9.1"
    assert facts["method"]["parts"]["reward"].startswith("DualLength")
    assert "accuracy" in text
    assert "3/3" in text
    assert "Traceback" not in text


def test_rollout_and_actor_agree_on_probabilities(trained: tuple[RunFolder, str]) -> None:
    """Both sides are float32, so weight sync, masks, positions and log-probs after temperature must all be right."""
    for line in trained[0].lines()[1:]:
        assert line["training/rollout_probs_diff_max"] < 1e-4


def test_recorded_rollouts_give_the_recorded_credit(trained: tuple[RunFolder, str]) -> None:
    """assign_credit on what the file says, from the ledger of the step before, is what the step was trained on."""
    run, _ = trained
    method = with_limits(make_method("deepcompress", n=4), 112)
    ledger = Ledger.for_method(method)
    for step in (1, 2, 3):
        frame = run.rollouts(step)
        groups = []
        for _, rows in frame.groupby("group", sort=True):
            first = rows.iloc[0]
            problem = Problem(first.problem_id, first.prompt_ids, first.answer)
            rollouts = tuple(
                Rollout(Prefix(), r.token_ids, r.logprobs, float(r.score), bool(r.finished)) for r in rows.itertuples()
            )
            groups.append(RolloutGroup(problem, step, rollouts, kept=bool(first.kept)))
        credit = assign_credit(method, groups, ledger)
        assert np.concatenate(credit.rewards) == pytest.approx(frame.reward.to_numpy(), abs=1e-6)
        flat = [a for rows in credit.advantages for a in rows]
        for mine, recorded in zip(flat, frame.advantages, strict=True):
            np.testing.assert_allclose(mine, recorded, atol=1e-6)
        ledger.observe(groups, credit)
        assert ledger.scalar("difficulty/batch_pass_rate", np.nan) == pytest.approx(
            run.lines()[step]["ledger/difficulty/batch_pass_rate"]
        )


def test_dynamic_sampling_drops_by_the_verdict_and_credit_still_sees_the_group(trained: tuple[RunFolder, str]) -> None:
    run, _ = trained
    dropped = 0
    for step in (1, 2, 3):
        frame = run.rollouts(step)
        for _, rows in frame.groupby("group"):
            if not rows.kept.iloc[0]:
                dropped += 1
                assert not np.concatenate(rows.advantages.to_list()).any()
                assert rows.reward.notna().all()
        trained_groups = frame[frame.kept].groupby("group").score.nunique()
        assert (trained_groups == 2).all()
    assert dropped > 0


STRATEGY = '''
"""Two rounds, a probe and an imitated hint: what the engine must carry, with no method of ours."""

from dataclasses import dataclass

from reasonrl import Method, Prefix, Request


@dataclass(frozen=True)
class TwoRounds:
    n: int = 4
    needs = frozenset({"solution_steps"})

    def plan(self, problem, view):
        hint = problem.solution_steps[0]
        if view.round == 0:
            return [Request(Prefix(), 2), Request(Prefix(hint, loss="imitate", weight=0.5, rate=0.5), 1)]
        if view.round == 1:
            first = view.rollouts[1]
            cut = first.token_ids[:3]
            return [
                Request(Prefix(hint, loss="policy"), 1),
                Request(Prefix(cut, scored=True), 2, train=False, parent=(1, 2)),
            ]
        return ()


def build(*, n: int = 4) -> Method:
    return Method("two_rounds", prefix=TwoRounds(n))
'''


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("custom")
    (folder / "my_strategy.py").write_text(STRATEGY)
    finish(folder, "method=custom", "method._target_=my_strategy.build", *SMALL, "steps=2", "name=run")
    return RunFolder.open(folder / "runs" / "run")


def test_a_strategy_in_one_file_outside_the_package_trains(custom: RunFolder) -> None:
    assert [line["step"] for line in custom.lines()] == [0, 1, 2]
    assert custom.lines()[1]["rollout/rounds"] == 2.0
    assert custom.lines()[1]["rollout/probes"] == 8.0


def test_prefixes_and_probes_are_recorded_where_they_belong(custom: RunFolder) -> None:
    frame = custom.rollouts(1)
    for _, rows in frame.groupby("group"):
        assert rows[rows.trained].prefix_loss.tolist() == ["none", "none", "imitate", "policy"]
        assert rows[rows.trained]["round"].tolist() == [0, 0, 0, 1]
        probes = rows[~rows.trained]
        assert probes.parent_rollout.tolist() == [1, 1]
        parent = rows[rows.rollout == 1].iloc[0]
        for probe in probes.itertuples():
            assert probe.prefix_ids.tolist() == parent.token_ids[:3].tolist()
        hinted = rows[rows.prefix_loss == "imitate"].iloc[0]
        assert len(hinted.advantages) == len(hinted.token_ids)
        policy = rows[rows.prefix_loss == "policy"].iloc[0]
        assert len(policy.advantages) == len(policy.token_ids) + len(policy.prefix_ids)


def test_the_imitation_term_reaches_the_loss(custom: RunFolder) -> None:
    assert all(line["actor/imitation_loss"] > 0 for line in custom.lines()[1:])


@pytest.fixture(scope="module")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two epochs of SEELE on eight problems, with its reference policy."""
    folder = tmp_path_factory.mktemp("seele")
    small = [arg for arg in SMALL if not arg.startswith("data.size")]
    finish(folder, "method=seele", *small, "data.size=8", "data.min_terms=3", "method.rounds=2", "steps=4", "name=run")
    return RunFolder.open(folder / "runs" / "run")


def test_hints_are_planned_from_the_rounds_before_and_remembered_over_epochs(hinted: RunFolder) -> None:
    last: dict[str, float] = {}
    for step in (1, 2, 3, 4):
        frame = hinted.rollouts(step)
        for id, rows in frame.groupby("problem_id"):
            assert rows["round"].tolist() == [0, 0, 1, 1]
            rates = rows.prefix_rate.tolist()
            assert rates[0] == rates[1]
            if step > 2:
                assert rates[0] == pytest.approx(last[id], abs=1e-12)
            last[id] = rates[2]
    assert hinted.lines()[1]["hint/cold"] == 1.0
    assert hinted.lines()[3]["hint/cold"] == 0.0


def test_a_hint_is_imitated_and_never_scored_and_the_reference_policy_is_there(hinted: RunFolder) -> None:
    frame = hinted.rollouts(1)
    given = frame[frame.prefix_ids.map(len) > 0]
    assert set(given.prefix_loss) == {"imitate"}
    assert not given.prefix_scored.any()
    assert (given.advantages.map(len) == given.token_ids.map(len)).all()
    assert hinted.lines()[1]["actor/imitation_loss"] > 0
    assert hinted.lines()[1]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-6)  # before the first update
    assert hinted.lines()[4]["actor/kl_loss"] > 1e-6


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two steps of AdaptiveStep with a process reward model that has learned nothing."""
    folder = tmp_path_factory.mktemp("adaptivestep")
    own = AutoTokenizer.from_pretrained(package_path("pkg://reasonrl.assets.tiny/model"))
    prm_folder(folder / "prm", tokenizer=own, context=512)
    split = ["method.scorer=prm", "method.scope=fixed", "method.tau=0.6", "prm=prm"]
    finish(folder, "method=adaptivestep", *split, *SMALL, "steps=2", "name=run")
    return RunFolder.open(folder / "runs" / "run")


def test_a_process_reward_model_scores_the_ends_of_steps_beside_training(stepped: RunFolder) -> None:
    for line in stepped.lines()[1:]:
        assert line["prm/steps"] > 16  # four problems, four rollouts: some were cut
        assert 0 < line["prm/score"] < 1
        assert line["advantage/steps"] > 1
        assert line["advantage/step_missing"] == 0
    frame = stepped.rollouts(1)
    cut = frame[frame.advantages.map(lambda row: len(set(row)) > 1)]
    assert len(cut)
    for row in cut.itertuples():
        changes = np.flatnonzero(np.diff(row.advantages))  # a step ends with an uncertain token, and only there
        assert (np.exp(row.logprobs[changes]) < 0.6).all()
