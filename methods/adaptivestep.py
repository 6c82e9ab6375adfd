"""AdaptiveStep inside GRPO: steps that end where the model hesitates, and credit for each of them.

AdaptiveStep: Automatically Dividing Reasoning Step through Model Confidence, arXiv 2502.13943. The paper cuts responses at
tokens of low confidence to train a process reward model; it does no reinforcement learning itself. Here the same cuts
serve GRPO: continuations from the end of a step, or such a model, say how likely the answer still comes out right, and
every token gets the change over its step, beside the outcome advantage. What is ours is listed in `build`.
"""

from __future__ import annotations

from typing import Literal

from reasonrl.core import AdvantageEstimator, Loss, Method, Plain, PrefixPolicy, with_parts
from reasonrl.core.method import Aggregation
from reasonrl.parts.advantages import GroupNormalised
from reasonrl.parts.steps import Splitter, StepAdvantage, StepProbes, UncertainTokens


@with_parts
def build(
    *,
    n: int = 8,
    scorer: Literal["probes", "probes_any", "prm"] = "probes",
    probes: int = 8,
    credit: Literal["telescoping", "process_supervision", "min_form", "mask_only", "outcome_only"] = "telescoping",
    outcome_weight: float = 0.5,
    value_map: Literal["identity", "he_inverse"] = "he_inverse",
    quantile: float = 0.02,
    scope: Literal["calibrated", "batch", "fixed"] = "calibrated",
    tau: float | None = None,
    refresh: int = 20,
    confidence: Literal["rollout", "recomputed"] = "rollout",
    max_steps: int = 16,
    interval: int = 1,
    boundary: Literal["end", "spo_cut"] = "end",
    mask_by: Literal["confidence", "entropy"] = "confidence",
    mask_share: float = 0.2,
    aggregation: Aggregation | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: float = 0.0,
) -> Method:
    """Advantages of steps, telescoping from the group's pass rate to the verdict, mixed with GRPO's.

    Args:
        n: rollouts per problem. Larger: a better baseline, at n times the sampling and the probes; usual 8..16.
        scorer: `probes` continues the response from each end and takes the share that comes out right, `probes_any`
            whether one does, as the paper labels; `prm` asks the process reward model of `prm=`.
        probes: continuations from an end. Larger: finer values, at that many times the sampling; the paper's data has 8.
        credit: `telescoping`: the change of value over a step. `process_supervision`: values as standardised rewards,
            summed to the end. `min_form`: the same with weight on the worst step. `mask_only`: the outcome advantage on
            uncertain tokens alone, no values. `outcome_only`: GRPO, no values.
        outcome_weight: of the outcome advantage in the mix, 0..1. 1 is plain GRPO.
        value_map: with scorer=prm, `he_inverse` for a model trained on hard labels, `identity` for one on soft labels.
        quantile: share of tokens behind which a response is cut. Larger: more steps, more probes; paper 0.005..0.02.
        scope: `calibrated`: the threshold of one training step serves the next `refresh`; `batch`: each has its own;
            `fixed`: `tau`.
        tau: the threshold, a probability, with scope=fixed.
        refresh: training steps between calibrations.
        confidence: the probability under which a token was sampled (`rollout`), or the trained policy's before the update
            (`recomputed`), better with top_p < 1 and only without probes.
        max_steps: of a response; the least confident ends stay. Larger: longer texts keep their cuts, more probes.
        interval: every how many ends are used. Larger: fewer, longer steps.
        boundary: whether the uncertain token closes its step (`end`) or begins the next (`spo_cut`, as SPO does).
        mask_by, mask_share: with credit=mask_only, tokens below the threshold, or the share of highest entropy.
        aggregation: how token losses become one number. None: as `method=grpo`, a mean within a response, then over
            responses; with credit=mask_only `token-mean`, a mean over the tokens that are left.
        clip_low, clip_high: how far the probability ratio may move; usual 0.1..0.3.
        kl: pull towards the reference policy; usual 0..0.05. 0 loads none.

    Beyond the paper, which trains no policy: everything after the cuts. The form is VinePPO's (arXiv 2410.01679) at
        AdaptiveStep's ends; the outcome keeps half the weight, as PRIME and PURE keep it on.
    Not published, chosen here: the quantile is numpy's linear one; the threshold is calibrated on the responses of one
        training step and again every 20, as the policy moves; at most 16 steps a response; the end token is no boundary;
        the first step of training, without threshold, has no probes.
    """
    splitter = Splitter(quantile, scope, tau, refresh, confidence, max_steps, interval, boundary)
    prefix: PrefixPolicy = Plain(n)
    advantage: AdvantageEstimator = GroupNormalised()
    if credit == "mask_only":
        advantage = UncertainTokens(mask_by, mask_share, splitter)
    elif credit != "outcome_only" and scorer == "prm":
        advantage = StepAdvantage(credit, outcome_weight, "prm", value_map, splitter=splitter)
    elif credit != "outcome_only":
        prefix = StepProbes(n, probes, splitter)
        value: Literal["mean", "any"] = "mean" if scorer == "probes" else "any"
        advantage = StepAdvantage(credit, outcome_weight, "probes", value)
    aggregation = aggregation or ("token-mean" if credit == "mask_only" else "seq-mean-token-mean")
    loss = Loss(aggregation, clip_low, clip_high, dual_clip=None, kl=kl)
    return Method("adaptivestep", prefix, advantage=advantage, loss=loss)
