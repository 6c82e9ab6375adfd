"""AdaptiveStep inside GRPO: where responses are cut, what probes are asked for, and the advantage of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import group, ledger_with, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.core import Ledger, Method, Prefix, Rollout, RolloutGroup, View, assign_credit, plan_rng, run_contract
from reasonrl.core.defaults import GroupNormalised, Plain
from reasonrl.engine.prm import Steps
from reasonrl.engine.step_scores import with_step_scores
from reasonrl.methods.adaptivestep import build
from reasonrl.methods.grpo import build as build_grpo
from reasonrl.parts.steps import Splitter, StepAdvantage, StepProbes, UncertainTokens

SPEC = [0.99, 0.40, 0.98, 0.97, 0.55, 0.20, 0.10, 0.99, 0.95, 0.90]  # worked example 2; tau 0.55 cuts behind 1, 5, 6


def sampled(confidences: Sequence[float], score: int = 1, *, finished: bool = False, **fields: Any) -> Rollout:
    """A response whose tokens were sampled with these probabilities; cut at the limit unless said otherwise."""
    logprobs = np.log(np.asarray(confidences, dtype=np.float64)).astype(np.float32)
    ids = fields.pop("token_ids", np.arange(3, 3 + logprobs.size, dtype=np.int32))
    return Rollout(fields.pop("prefix", Prefix()), ids, logprobs, score, finished, **fields)


def probed(of: RolloutGroup, values: dict[tuple[int, int], Sequence[int]]) -> RolloutGroup:
    """The group with probes of these verdicts behind (rollout, token)."""
    probes = [
        Rollout(Prefix(of.rollouts[i].token_ids[: end + 1], scored=True), [9], [-0.1], verdict, True, parent=(i, end))
        for (i, end), verdicts in values.items()
        for verdict in verdicts
    ]
    return replace(of, probes=tuple(probes))


def fixed(tau: float = 0.55, **knobs: Any) -> Splitter:
    return Splitter(scope="fixed", tau=tau, **knobs)


BARE = build(scope="fixed", tau=0.55, outcome_weight=0.0)


def view(rollouts: Sequence[Rollout] = (), *, round: int = 0, **scalars: float) -> View:
    return View(2, 100, plan_rng(0, 2, "p0", round), 100, round, tuple(rollouts), scalars=scalars)


def advantages(method: Method, groups: Sequence[RolloutGroup], ledger: Ledger | None = None) -> list[list[Any]]:
    return [list(rows) for rows in assign_credit(method, groups, ledger or Ledger()).advantages]


# where a response is cut


def test_a_step_ends_with_the_uncertain_token_as_in_the_worked_example() -> None:
    assert fixed().ends(sampled(SPEC), 0.55).tolist() == [1, 5, 6, 9]
    assert fixed().ends(sampled([*SPEC[:-1], 0.1]), 0.55).tolist() == [1, 5, 6, 9]  # no empty step at the end
    assert fixed().ends(sampled([0.9] * 10), 0.55).tolist() == [9]
    assert fixed(max_steps=99).ends(sampled([0.1] * 10), 0.55).tolist() == list(range(10))


def test_the_end_token_is_no_boundary_but_part_of_the_last_step() -> None:
    ended = sampled([0.9, 0.1, 0.9, 0.1], finished=True)
    assert fixed().ends(ended, 0.55).tolist() == [1, 2]
    assert fixed().ends(sampled([0.9, 0.9, 0.1, 0.9], finished=True), 0.55).tolist() == [2]
    made = probed(RolloutGroup(problem(), 1, (ended, sampled([0.9], 0, token_ids=[70]))), {(0, 1): [1, 1, 1, 0]})
    assert np.allclose(advantages(BARE, [made])[0][0], [0.25] * 4)  # .5 -> .75, .75 -> 1 and its end token


def test_a_response_of_no_token_has_no_steps_and_one_of_one_token_has_one() -> None:
    for nothing in (sampled([], 0), sampled([0.1], 0, finished=True)):
        assert fixed().ends(nothing, 0.55).tolist() == []
        assert fixed().ends(nothing, None).tolist() == []
    assert fixed().ends(sampled([0.1]), 0.55).tolist() == [0]
    assert fixed().ends(sampled([0.1, 0.1]), None).tolist() == [1]  # no threshold known yet


def test_caps_keep_the_least_confident_ends() -> None:
    assert fixed(max_steps=3).ends(sampled(SPEC), 0.55).tolist() == [5, 6, 9]
    assert fixed(max_steps=1).ends(sampled(SPEC), 0.55).tolist() == [9]
    assert fixed(interval=2).ends(sampled(SPEC), 0.55).tolist() == [1, 6, 9]


def test_an_spo_cut_lets_the_uncertain_token_begin_the_next_step() -> None:
    assert fixed(boundary="spo_cut").ends(sampled(SPEC), 0.55).tolist() == [0, 4, 5, 9]
    assert fixed(boundary="spo_cut").ends(sampled([0.1, 0.9, 0.9]), 0.55).tolist() == [2]  # nothing stands before it


def test_recomputed_confidences_skip_the_prefix() -> None:
    part = fixed(source="recomputed")
    response = sampled([0.9] * 3, prefix=Prefix([1, 2]), aux={"old_logprobs": np.log([0.1, 0.1, 0.9, 0.2, 0.9])})
    assert part.ends(response, 0.55).tolist() == [1, 2]
    assert part.needs == {"old_logprobs"}
    with pytest.raises(ValueError, match="gave no recomputed log-probabilities"):
        part.ends(sampled([0.9]), 0.55)


@pytest.mark.parametrize("wrong", [float("nan"), 0.5])
def test_log_probabilities_that_none_can_be_are_refused(wrong) -> None:
    bad = Rollout(Prefix(), [3, 4], np.array([-0.1, wrong], dtype=np.float32), 0, False)
    with pytest.raises(ValueError, match="token 1 of 2"):
        fixed().ends(bad, 0.5)


# tau


def pool(tokens: int = 2000, step: int = 1) -> list[RolloutGroup]:
    """One response of distinct confidences i / tokens, which ends with an end token."""
    confidences = np.arange(1, tokens + 1) / (tokens + 1)
    return [RolloutGroup(problem(), step, (sampled([*confidences, 1e-6], finished=True),))]


def test_tau_is_the_quantile_of_all_tokens_but_the_end_tokens() -> None:
    found = Splitter(quantile=0.02).tau_of(pool(2000))
    assert found == pytest.approx(np.quantile(np.arange(1, 2001) / 2001, 0.02), rel=1e-6)


def test_too_few_tokens_give_no_tau() -> None:
    assert Splitter().tau_of(pool(999)) is None
    assert Splitter().remember(pool(999), Ledger()).scalars == {}
    assert Splitter().tau_now(pool(999), {"tau": 0.3}) == 0.3
    assert Splitter(scope="batch").tau_now(pool(999), {"tau": 0.3}) == 0.3  # falls back on what was calibrated


def test_tau_is_calibrated_at_once_and_then_every_refresh_steps() -> None:
    part = Splitter(refresh=20)
    assert part.remember(pool(step=1), Ledger()).scalars["calibrated_at"] == 1.0
    known = ledger_with(tau=0.3, calibrated_at=1.0)
    assert part.remember(pool(step=20), known).scalars == {}
    assert part.remember(pool(step=21), known).scalars["tau"] == part.tau_of(pool())
    assert part.tau_now(pool(), {"tau": 0.3}) == 0.3
    assert part.tau_now(pool(), {}) == part.tau_of(pool())  # the first step uses its own
    assert Splitter(scope="batch").tau_now(pool(), {"tau": 0.3}) == part.tau_of(pool())
    assert fixed(0.7).tau_now(pool(), {"tau": 0.3}) == 0.7
    assert fixed(0.7).remember(pool(), Ledger()).scalars == {}


# probes


def test_the_first_round_is_plain_and_the_second_continues_from_the_ends() -> None:
    part = StepProbes(n=2, probes=4, splitter=fixed())
    (plain,) = part.plan(problem(), view())
    assert (plain.n, plain.train, plain.prefix) == (2, True, Prefix())
    other = sampled([0.9, 0.9, 0.9], token_ids=[50, 51, 52])
    requests = part.plan(problem(), view([sampled(SPEC), other], round=1))
    assert [r.parent for r in requests] == [(0, 1), (0, 5), (0, 6)]
    assert all((r.n, r.train, r.prefix.scored) == (4, False, True) for r in requests)
    assert requests[0].prefix.token_ids.tolist() == [3, 4]
    assert part.plan(problem(), view([sampled(SPEC)], round=2)) == ()


def test_responses_that_agree_up_to_an_end_share_its_probes() -> None:
    part = StepProbes(n=2, probes=4, splitter=fixed())
    one, two = sampled([0.9, 0.1, 0.9, 0.9]), sampled([0.9, 0.1, 0.9, 0.9], 0, token_ids=[3, 4, 70, 71])
    assert [r.parent for r in part.plan(problem(), view([one, two], round=1))] == [(0, 1)]
    both = probed(RolloutGroup(problem(), 1, (one, two)), {(0, 1): [1, 0, 0, 0]})
    steps = advantages(BARE, [both])[0]
    assert np.allclose(steps[0], [-0.25, -0.25, 0.75, 0.75])  # V_0 = .5, V = .25, R = 1
    assert np.allclose(steps[1], [-0.25, -0.25, -0.25, -0.25])


def test_without_a_threshold_there_are_no_probes() -> None:
    assert StepProbes().plan(problem(), view([sampled(SPEC)], round=1)) == ()
    assert StepProbes(splitter=Splitter()).plan(problem(), view([sampled(SPEC)], round=1, tau=0.55))


def test_what_cannot_be_probed_is_refused_when_the_method_is_built() -> None:
    with pytest.raises(ValueError, match="comes after all sampling.*scorer=prm"):
        build(confidence="recomputed")
    with pytest.raises(ValueError, match="scope=batch takes tau from responses of all problems.*scorer=prm"):
        build(scope="batch")
    for credit in ("mask_only", "outcome_only"):
        build(confidence="recomputed", scope="batch", credit=credit)
    build(confidence="recomputed", scope="batch", scorer="prm")
    with pytest.raises(ValueError, match="reads probes that prefix part Plain does not sample"):
        build(prefix=Plain())
    with pytest.raises(ValueError, match="advantage part GroupNormalised does not read"):
        build(advantage=GroupNormalised())
    with pytest.raises(ValueError, match="tau=0.5 with scope=calibrated"):
        build(tau=0.5)
    with pytest.raises(ValueError, match="tau=None with scope=fixed"):
        build(scope="fixed")


# credit


def worked() -> RolloutGroup:
    """Worked example 11: V_0 = .5, values .25 and .75, R = 1; beside it a wrong response of one step."""
    right = sampled([0.9, 0.1, 0.9, 0.1, 0.9, 0.9])
    wrong = sampled([0.9, 0.9], 0, token_ids=[60, 61])
    return probed(RolloutGroup(problem(), 1, (right, wrong)), {(0, 1): [1, 0, 0, 0], (0, 3): [1, 1, 1, 0]})


def test_worked_example_11_telescoping_and_mixed() -> None:
    steps = advantages(BARE, [worked()])[0]
    assert np.allclose(steps[0], [-0.25, -0.25, 0.5, 0.5, 0.25, 0.25])
    assert np.allclose(steps[1], [-0.5, -0.5])  # one step: R - V_0
    outcome = float(advantages(build_grpo(), [worked()])[0][0][0])
    half = advantages(build(scope="fixed", tau=0.55), [worked()])[0][0]
    assert np.allclose(half, 0.5 * outcome + 0.5 * steps[0])
    assert outcome == pytest.approx(0.7071, abs=1e-4)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_step_advantages_add_up_to_the_verdict_minus_the_pass_rate_whatever_the_cuts(data) -> None:
    scores = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=5))
    answers, values = [], {}
    for i, score in enumerate(scores):
        length = data.draw(st.integers(1, 12))
        answers.append(sampled([0.9] * length, score, token_ids=np.arange(100 * i + 3, 100 * i + 3 + length)))
        for end in data.draw(st.sets(st.integers(0, length - 1))):
            values[i, end] = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4))
    made = probed(RolloutGroup(problem(), 1, tuple(answers)), values)
    part = StepAdvantage(outcome_weight=0.0)
    (rows,) = part([made], [made.scores], Ledger())
    for i, row in enumerate(rows):
        ends = [*sorted(end for j, end in values if j == i and end < len(row) - 1), len(row) - 1]
        assert sum(row[end] for end in ends) == pytest.approx(scores[i] - np.mean(scores))


def test_outcome_only_and_weight_one_are_plain_grpo_bit_for_bit() -> None:
    groups = [worked(), group([1, 1, 0], [5, 7, 9], id="p1"), group([1, 1], id="p2"), group([0], id="p3")]
    expected = assign_credit(build_grpo(), groups, Ledger())
    for method in (build(credit="outcome_only"), build(outcome_weight=1.0), build(scorer="prm", outcome_weight=1.0)):
        assert method.loss == build_grpo().loss
        found = assign_credit(method, groups, Ledger())
        for mine, theirs in zip(found.advantages, expected.advantages, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_group_of_equal_verdicts_keeps_its_step_advantages() -> None:
    right = sampled([0.9, 0.1, 0.9])
    made = probed(RolloutGroup(problem(), 1, (right, sampled([0.9], token_ids=[70]))), {(0, 1): [1, 0]})
    method = build(scope="fixed", tau=0.55)
    credit = assign_credit(method, [made], Ledger())
    assert np.allclose(credit.advantages[0][0], [-0.25, -0.25, 0.25])  # half of V - 1 and of 1 - V
    assert credit.metrics["advantage/step_value_only"] == 1.0
    assert credit.metrics["advantage/steps"] == 1.5
    assert credit.metrics["advantage/step_value"] == 0.5


def test_any_right_probe_counts_whole_with_hard_values() -> None:
    steps = advantages(build(scope="fixed", tau=0.55, outcome_weight=0.0, scorer="probes_any"), [worked()])[0][0]
    assert np.allclose(steps, [0.5, 0.5, 0.0, 0.0, 0.0, 0.0])


def test_a_boundary_whose_probes_were_all_lost_is_no_boundary() -> None:
    made = replace(worked(), probes=worked().probes[:4])  # those behind token 3 never came
    steps = advantages(BARE, [made])[0][0]
    assert np.allclose(steps, [-0.25, -0.25, 0.75, 0.75, 0.75, 0.75])


def test_process_supervision_sums_standardised_values_to_the_end() -> None:
    steps = advantages(build(scope="fixed", tau=0.55, outcome_weight=0.0, credit="process_supervision"), [worked()])[0]
    values = np.array([0.25, 0.75, 1.0, 0.0])  # of both responses; the last end has the verdict
    r = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    assert np.allclose(steps[0], np.repeat([r[:3].sum(), r[1:3].sum(), r[2]], 2))
    assert np.allclose(steps[1], r[3])
    one_step = RolloutGroup(
        problem(), 1, tuple(sampled([0.9], s, token_ids=[70 + i]) for i, s in enumerate([1, 0, 1, 0]))
    )
    alone = advantages(build(scope="fixed", tau=0.1, outcome_weight=0.0, credit="process_supervision"), [one_step])[0]
    assert np.allclose(np.concatenate(alone), [0.86602, -0.86602] * 2, atol=1e-5)  # worked example 10


def test_min_form_follows_the_worst_step() -> None:
    steps = advantages(build(scope="fixed", tau=0.55, outcome_weight=0.0, credit="min_form"), [worked()])[0]
    # rewards 2 V - 1 = -.5, .5, 1 and -1: returns about -.5, 0, 0 and -1, less their mean at the start
    assert np.allclose(steps[0], [0.25, 0.25, 0.75, 0.75, 0.75, 0.75], atol=2e-3)
    assert np.allclose(steps[1], [-0.25, -0.25], atol=2e-3)


def test_worked_example_9_verls_own_estimator_would_lose_the_steps() -> None:
    torch = pytest.importorskip("torch")
    algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    rewards = torch.zeros(2, 6)
    rewards[0, [2, 5]] = torch.tensor([0.8, 0.6])
    rewards[1, [1, 3, 4]] = torch.tensor([0.4, 0.2, 0.5])
    mask = torch.tensor([[1.0] * 6, [1.0] * 5 + [0.0]])
    found, _ = algos.compute_grpo_outcome_advantage(rewards, mask, np.array(["p", "p"]))
    assert np.allclose(found.numpy(), [[0.70710] * 6, [-0.70710] * 5 + [0.0]], atol=1e-5)


# a process reward model


class Given:
    """A scorer that gives what it is told and keeps what it was asked."""

    identity = "given"

    def __init__(self, *scores: Sequence[float]) -> None:
        self.scores, self.asked = scores, []

    def score(self, items: Sequence[Steps]) -> list[Any]:
        self.asked += items
        return [np.array(own, dtype=np.float32) for own in self.scores]


def scored(method: Method, groups: Sequence[RolloutGroup], *scores: Sequence[float]) -> tuple[Any, Any, Given]:
    scorer = Given(*scores)
    return *with_step_scores(method, groups, Ledger(), {"p0": "1+1=?"}, scorer), scorer


def pair() -> RolloutGroup:
    right = sampled([0.9, 0.1, 0.9, 0.1, 0.9, 0.9])
    return RolloutGroup(problem(), 1, (right, sampled([0.9, 0.9], 0, token_ids=[60, 61])))


PRM = {"scorer": "prm", "scope": "fixed", "tau": 0.55, "outcome_weight": 0.0}


def test_a_prm_is_asked_at_the_ends_and_read_there() -> None:
    method = build(**PRM, value_map="identity")
    (made,), metrics, scorer = scored(method, [pair()], [0.25, 0.75, 0.9], [0.5])
    assert scorer.asked[0] == Steps("1+1=?", [1, 2, 3], [3, 4, 5, 6, 7, 8], [1, 3, 5])
    assert np.allclose(advantages(method, [made])[0][0], [-0.25, -0.25, 0.5, 0.5, 0.25, 0.25])  # R, not the last score
    assert metrics["prm/steps"] == 4
    assert metrics["prm/score"] == pytest.approx(0.6)
    assert metrics["prm/beyond_context"] == 0


def test_a_prm_of_hard_labels_is_read_as_the_chance_of_one_continuation() -> None:
    method = build(**PRM)
    (made,), _, _ = scored(method, [pair()], [0.9, 0.337, 0.9], [0.5])
    assert np.allclose(advantages(method, [made])[0][0], np.repeat([0.2501 - 0.5, 0.05 - 0.2501, 0.95], 2), atol=1e-3)


def test_a_response_that_the_prm_cannot_read_to_its_end_has_its_outcome_advantage() -> None:
    method = build(**{**PRM, "outcome_weight": 0.5}, value_map="identity")
    (made,), metrics, _ = scored(method, [pair()], [0.25, np.nan, np.nan], [0.5])
    credit = assign_credit(method, [made], Ledger())
    outcome = advantages(build_grpo(), [pair()])[0]
    assert np.array_equal(credit.advantages[0][0], outcome[0])
    assert not np.array_equal(credit.advantages[0][1], outcome[1])
    assert credit.metrics["advantage/step_missing"] == 0.5
    assert metrics["prm/beyond_context"] == 0.5


def test_dropped_groups_are_not_scored() -> None:
    method = build(**PRM, value_map="identity")
    dropped = replace(pair(), kept=False)
    (made, left), metrics, scorer = scored(method, [pair(), dropped], [0.25, 0.75, 0.9], [0.5])
    assert left is dropped
    assert len(scorer.asked) == 2
    assert metrics["prm/steps"] == 4
    assert not np.any(advantages(method, [made, left])[1][0])


def test_labels_that_would_be_misread_are_refused() -> None:
    build(**PRM).advantage.check_labels("hard")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"trained on soft labels: use value=identity \(value_map=identity"):
        build(**PRM).advantage.check_labels("soft")  # type: ignore[attr-defined]


def test_without_a_part_that_says_where_nothing_can_be_scored() -> None:
    with pytest.raises(ValueError, match="these need it: none"):
        scored(build(), [pair()])


# uncertain tokens alone


def test_only_uncertain_tokens_are_trained_and_the_rest_scaled_up() -> None:
    method = build(credit="mask_only", scope="fixed", tau=0.55)
    rows = advantages(method, [pair()])[0]
    outcome = float(advantages(build_grpo(), [pair()])[0][0][0])
    assert np.allclose(rows[0], np.array([0, 1, 0, 1, 0, 0]) * outcome * 4)  # 2 of 8 tokens
    assert np.allclose(rows[1], 0)
    assert method.loss.aggregation == "token-mean"
    assert assign_credit(method, [pair()], Ledger()).metrics["advantage/trained_tokens"] == 0.25


def test_tokens_of_high_entropy_are_those_of_the_top_share_of_the_step() -> None:
    entropy = np.arange(1, 11) / 10  # worked example 14: the quantile .8 is .82, two are kept
    answers = (
        sampled([0.9] * 6, aux={"entropy": entropy[:6]}),
        sampled([0.9] * 4, 0, token_ids=[60, 61, 62, 63], aux={"entropy": entropy[6:]}),
    )
    part = UncertainTokens(by="entropy", share=0.2)
    (rows,) = part([RolloutGroup(problem(), 1, answers)], [np.array([1.0, -1.0])], Ledger())
    assert [np.flatnonzero(row).tolist() for row in rows] == [[], [2, 3]]
    assert part.needs == {"entropy"}


def test_before_anything_is_calibrated_all_tokens_are_trained() -> None:
    method = build(credit="mask_only")
    assert np.array_equal(advantages(method, [pair()])[0][0], advantages(build_grpo(), [pair()])[0][0])


# the whole


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"scorer": "probes_any", "boundary": "spo_cut", "scope": "fixed", "tau": 0.6},
        {"scorer": "prm", "confidence": "recomputed", "scope": "batch"},
        {"credit": "process_supervision", "max_steps": 3},
        {"credit": "min_form", "interval": 2},
        {"credit": "mask_only"},
        {"credit": "mask_only", "mask_by": "entropy"},
        {"credit": "outcome_only"},
    ],
)
def test_every_switch_keeps_every_law(knobs) -> None:
    broken = [r for r in run_contract(lambda: build(**knobs)) if not r.passed]
    assert not broken


def test_tau_and_the_cost_of_probes_are_recorded_and_tau_is_remembered() -> None:
    method = build(n=2)
    first = assign_credit(method, pool(), Ledger())
    assert first.memory.scalars["prefix/tau"] == pytest.approx(Splitter().tau_of(pool()))
    ledger = Ledger.for_method(method)
    ledger.observe(pool(), first)
    metrics = assign_credit(method, [worked()], ledger).metrics
    assert metrics["prefix/tau"] == first.memory.scalars["prefix/tau"]
    assert metrics["prefix/probes_per_rollout"] == 4.0
    assert metrics["prefix/probe_cost"] == 1.0  # 8 tokens of probes, 8 of rollouts
    assert metrics["prefix/probe_accuracy"] == 0.5
