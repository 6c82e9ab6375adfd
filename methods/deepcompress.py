"""DeepCompress: among right answers, short ones win on easy problems and long ones on hard problems.

DeepCompress: A Dual Reward Strategy for Dynamically Exploring and Compressing Reasoning Chains, arXiv 2510.27419.
GRPO with DAPO's asymmetric clipping and overlong ramp; only the scalar reward changes. A problem is easy if its group
does better than the recent average, P_g > P_b, so what counts as easy moves with the policy.
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
from reasonrl.parts.advantages import GroupNormalised
from reasonrl.parts.difficulty import BatchRelative
from reasonrl.parts.overlong import SoftOverlong
from reasonrl.parts.prefix import Plain
from reasonrl.parts.rewards import DualLength


def build(
    *,
    prefix: PrefixPolicy | None = None,
    difficulty: DifficultyEstimator | None = None,
    reward: RewardShaper | None = None,
    advantage: AdvantageEstimator | None = None,
    overlong: Overlong | None = None,
    n: int = 16,
    alpha: float = 0.2,
    smoothing: float = 0.99,
    initial_pass_rate: float = 1.0,
    p_true_scope: Literal["all_finished", "last_batch"] = "all_finished",
    only_correct: bool = True,
    slope: float = 1.0,
    filter_ratio: float | None = 1.0,
    direction: Literal["dual", "penalty", "bonus"] = "dual",
    ablation: Literal["shorten_simple", "lengthen_hard"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Method:
    """DeepCompress as its recipe runs it. A part that is given replaces the method's own.

    Meant to run with `dynamic_sampling.enable=true`: groups that are all right or all wrong earn no length bonus and
    teach nothing but the overlong ramp.

    Args:
        n: rollouts per problem (recipe 16, paper 32). Larger: a better estimate of difficulty and length spread.
        alpha: upper end of the length bonus beside an outcome of -1 or 1. Larger moves length faster; usual 0.1..1.
        smoothing: the paper's lambda, share of the past in P_b, [0, 1). Larger follows more slowly; 0 = this batch.
        initial_pass_rate: P_b before the first step, [0, 1]. At 1 nearly every problem is hard for the first 100-200
            steps: lengthen first, compress later. Smaller compresses sooner.
        p_true_scope: which groups enter P_b; only `all_finished`, kept and dropped alike, is available.
        only_correct: False gives the bonus to wrong answers too.
        slope: multiplies the difficulty. Larger makes the bonus more decided; usual 1.
        filter_ratio: of m mixed groups the int(q * m) easiest and as many hardest earn the bonus; 1 = all mixed groups,
            None = all groups, also those all right.
        direction: `penalty` or `bonus` rewards short or long answers everywhere: the paper's two baselines.
        ablation: act on easy problems only (`shorten_simple`) or hard ones only (`lengthen_hard`).
        clip_low, clip_high: DAPO's asymmetric clip range.

    The overlong ramp covers the last 20 % of the response limit, 2048 of 10240 tokens in the recipe.
    `method/overlong=none` switches it off.

    Deviations from the released code:
        P_b is saved with the checkpoint; the release restarts it at 1 on resume.
        P_b moves whether or not dynamic sampling is on; in the release it stands still without it.
        P_b averages all groups finished for the step. The release takes the last generation batch, which does not exist
            when problems are refilled one by one.
        `filter_ratio` with k = 0 keeps no group; in the release a slice `[-0:]` keeps all.
        Beyond the response limit the overlong ramp stays at its depth, as in DAPO; the release continues the line.
        Losses are averaged over all tokens of the batch; the release averages micro-batches, which depends on packing.
    From the paper:
        Its eps and ddof for the standardised length are not published: population deviation, equal lengths give 0.
        n = 16 as in the released scripts; a public summary of the paper says 32.
    """
    return Method(
        name="deepcompress",
        prefix=prefix or Plain(n=n),
        difficulty=difficulty or BatchRelative(smoothing, initial_pass_rate, p_true_scope),
        reward=reward
        or DualLength(
            alpha=alpha,
            slope=slope,
            only_correct=only_correct,
            filter_ratio=filter_ratio,
            direction=direction,
            ablation=ablation,
        ),
        advantage=advantage or GroupNormalised(eps=1e-6, ddof=1),
        overlong=overlong or SoftOverlong(),
        loss=Loss("token-mean", clip_low, clip_high, dual_clip=None, kl=0.0, entropy=0.0),
    )
