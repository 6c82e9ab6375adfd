"""SEELE: hints from the reference solution, as long as keeps the accuracy of every problem at one half.

Staying in the Sweet Spot: Responsive Reasoning Evolution via Capability-Adaptive Hint Scaffolding, arXiv 2509.06923.
What a step can gain is bounded by a term proportional to a (1 - a), a the accuracy (equation 9): largest at one half.
A step samples a problem in rounds; after each, a curve of accuracy against hint rate is fitted and inverted for the next.
All rollouts of the problem form one group. Hint tokens leave the policy loss and get a small supervised term.
What we changed is listed in `build`.
"""

from __future__ import annotations

from typing import Literal

from reasonrl.core import (
    AdvantageEstimator,
    DifficultyEstimator,
    Loss,
    Method,
    Overlong,
    PrefixPolicy,
    RewardShaper,
)
from reasonrl.core.method import Aggregation
from reasonrl.functional.item_response import Duplicates, Solver
from reasonrl.parts.advantages import DrGRPO
from reasonrl.parts.difficulty import FailureRate
from reasonrl.parts.hints import AdaptiveHint, HintLoss, Unit
from reasonrl.parts.rewards import Correctness


def build(
    *,
    prefix: PrefixPolicy | None = None,
    difficulty: DifficultyEstimator | None = None,
    reward: RewardShaper | None = None,
    advantage: AdvantageEstimator | None = None,
    overlong: Overlong | None = None,
    n: int = 32,
    rounds: int = 4,
    target: float = 0.5,
    unit: Unit = "step",
    record: Literal["raw", "effective"] = "raw",
    duplicates: Duplicates = "per_round",
    store: Literal["last_used", "refit"] = "last_used",
    solver: Solver = "grid",
    hint_loss: HintLoss = "nll_token_mean",
    hint_weight: float = 0.001,
    baseline: Literal["group", "round"] = "group",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: float = 0.001,
    aggregation: Aggregation = "seq-mean-token-sum-norm",
    scale: int | None = 2048,
) -> Method:
    """SEELE as its paper runs it. A part that is given replaces the method's own.

    Needs problems with a reference solution in steps. `method/prefix=fixed_hint` gives the same share away everywhere,
    `method/prefix=plain` nothing: the two comparisons with the hint plan switched off.

    Args:
        n: rollouts per problem over all rounds (the paper's m times n, 4 x 8).
        rounds: samplings of a problem in one step, n / rounds rollouts each. More come closer to the target and wait as
            many times for the longest answer; usual 3..6.
        target: accuracy aimed at, in (0, 1). Larger gives more away.
        unit: what hints are cut in. `token` gives finer hints, and nearly everything away on the first visit.
        record: what enters the fit, the rate asked for (`raw`) or the share given after rounding (`effective`).
        duplicates: rounds of equal rate count each, or once.
        store: what the next epoch starts with, the last round's rate or one more fit.
        solver: `grid` is ours, deterministic and global; `trf` is scipy's, as in the paper, and slower.
        hint_loss: the supervised term on hint tokens, as a mean or a sum; `policy` trains them like sampled tokens,
            `none` not at all.
        hint_weight: the paper's gamma. Larger pulls harder towards the reference solution.
        baseline: the mean that rewards are compared with, over the group or over the same round.
        clip_low, clip_high: how far the probability ratio may move; usual 0.1..0.3.
        kl: the paper's beta, pull towards the initial model. 0 loads no reference policy.
        aggregation, scale: token losses are summed within a rollout and divided by this constant.

    Deviations from the paper:
        The imitation term is the mean negative log-likelihood of the hint tokens. As printed (equations 10 and 47) it is
            a probability, whose product over hundreds of tokens underflows; the text says supervised loss.
        The first round uses the remembered or the pessimistic rate (S - 1) / S; algorithm 1 would fit two margin points
            with three parameters.
        A hint has at most S - 1 steps and never the one that states the answer; the paper names no cap.
        The curve is fitted on a grid instead of by lmfit's TRF from an unpublished start: the same within 1e-3 where the
            fit is unique, and the global minimum where TRF depends on its start.
    Not published, chosen here:
        The unit of a hint (step), its place (the start of the answer), lr, clip range, passes over a batch (1), how
        token losses are added up (sum over a constant 2048, so that gamma = 0.001 is on the scale it was tuned for), and
        the rate that is remembered (the last round's).
    """
    return Method(
        name="seele",
        prefix=prefix
        or AdaptiveHint(
            n=n,
            rounds=rounds,
            target=target,
            unit=unit,
            record=record,
            duplicates=duplicates,
            store=store,
            solver=solver,
            loss=hint_loss,
            weight=hint_weight,
        ),
        difficulty=difficulty or FailureRate(),
        reward=reward or Correctness(wrong=0.0, right=1.0),
        advantage=advantage or DrGRPO(baseline),
        overlong=overlong,
        loss=Loss(
            aggregation,
            clip_low,
            clip_high,
            dual_clip=None,
            kl=kl,
            entropy=0.0,
            scale=scale if aggregation == "seq-mean-token-sum-norm" else None,
        ),
    )
