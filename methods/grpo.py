"""GRPO, the baseline: the reward is the verifier's word, compared within a group of rollouts.

DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300, section 4.1.
What we changed is listed in `build`.
"""

from __future__ import annotations

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
from reasonrl.parts.advantages import GroupNormalised
from reasonrl.parts.difficulty import FailureRate
from reasonrl.parts.prefix import Plain
from reasonrl.parts.rewards import Correctness


def build(
    *,
    prefix: PrefixPolicy | None = None,
    difficulty: DifficultyEstimator | None = None,
    reward: RewardShaper | None = None,
    advantage: AdvantageEstimator | None = None,
    overlong: Overlong | None = None,
    n: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl: float = 0.0,
    entropy: float = 0.0,
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Method:
    """Plain GRPO. A part that is given replaces the method's own.

    Args:
        n: rollouts per problem. Larger: a better baseline, at n times the sampling; usual 4..64.
        clip_low, clip_high: how far the probability ratio may move before its gradient stops; usual 0.1..0.3.
        dual_clip: limit on the loss of one bad token, in units of its advantage; None = none.
        kl: pull towards the reference policy. Larger stays closer; usual 0..0.05. 0 loads no reference policy.
        entropy: bonus on the policy's entropy; usual 0..0.01.
        aggregation: how token losses become one number; the paper's averages tokens within a rollout, then rollouts.

    Deviations from the paper:
        n = 8, paper 64: the group that fits a small machine; `n=64` restores it.
        kl = 0, paper 0.04: a verifiable reward cannot be gamed the way a reward model can, and without the term no
            reference policy is held in memory; `kl=0.04` restores it.
        clip = 0.2: the value of PPO and of verl; we know of none published for the paper's runs.
        The standard deviation divides by n - 1 and adds 1e-6, as verl does; the paper says neither.
    """
    return Method(
        name="grpo",
        prefix=prefix or Plain(n=n),
        difficulty=difficulty or FailureRate(),
        reward=reward or Correctness(wrong=0.0, right=1.0),
        advantage=advantage or GroupNormalised(),
        overlong=overlong,
        loss=Loss(aggregation, clip_low, clip_high, dual_clip, kl, entropy),
    )
