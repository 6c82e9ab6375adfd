"""PACE: protect the opening of the solution first, and ask for short answers where the problem is easy.

PACE: Prefix-Protected and Difficulty-Aware Compression for Efficient Reasoning, arXiv 2602.11639.
GRPO on a model that already thinks too long. For the first steps every rollout starts behind a short prefix that the
initial model wrote, so compression cannot eat it (equations 1 and 2); the length penalty is scaled by the pass rate of
the group, so hard problems keep their length (equations 3 to 5). What we changed is listed in `build`.
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
from reasonrl.parts.difficulty import FailureRate
from reasonrl.parts.prefix import StoredPrefix
from reasonrl.parts.rewards import DifficultyPenalty


def build(
    *,
    prefix: PrefixPolicy | None = None,
    difficulty: DifficultyEstimator | None = None,
    reward: RewardShaper | None = None,
    advantage: AdvantageEstimator | None = None,
    overlong: Overlong | None = None,
    n: int = 8,
    initial_tokens: int = 512,
    protected_steps: int = 100,
    prefix_schedule: Literal["linear", "halving", "adaptive"] = "linear",
    prefix_cut: Literal["token", "paragraph"] = "token",
    mask_prefix_in_loss: bool = False,
    reward_variant: Literal["paper", "release"] = "paper",
    penalty: Literal["relative", "sigmoid"] = "relative",
    alpha_mode: Literal["cosine", "one"] = "cosine",
    anneal_steps: int = 600,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    kl: float = 0.0,
) -> Method:
    """PACE as its paper has it; what its released code does otherwise is a switch. A given part replaces the method's own.

    Needs data with stored prefixes, one opening for each problem, written by the model that training starts from.
    `initial_tokens=0` needs none.

    Args:
        n: rollouts per problem. Larger: a finer pass rate and length scale, at n times the sampling; usual 8..16.
        initial_tokens: budget of the prefix at step 0. Larger protects more; the paper's accuracy falls again at 1024,
            where many prefixes are whole solutions. 0 = no prefix, the ablation without sequence-level control.
        protected_steps: the budget falls linearly to 0 over these steps. Larger: compression starts later; usual 100.
        prefix_schedule: `halving` (released): half as much every 20 steps, nothing at 32 or less. `adaptive`: a budget
            for each problem; experimental.
        prefix_cut: `paragraph` (released): only whole paragraphs that fit the budget, possibly none.
        mask_prefix_in_loss: True takes the prefix out of the loss; False trains it like sampled tokens.
        reward_variant: `release`: alpha(rho) * (0.5 - P) on right answers, wrong ones only lose, fading over
            `anneal_steps`.
        penalty: `sigmoid`: lengths standardised within the group, the rival penalty of the paper's equation 8.
        alpha_mode: `one`: the full penalty at any pass rate, the ablation without group-level control.
        anneal_steps: with reward_variant=release, the step at which the length term is gone. Larger compresses longer.
        clip_low, clip_high: how far the probability ratio may move before its gradient stops; usual 0.1..0.3.
        dual_clip: limit on the loss of one bad token, in units of its advantage; None = none.
        kl: pull towards the reference policy; usual 0..0.05. 0 loads no reference policy.

    `method/difficulty=batch_relative`: a problem counts as easy when its group does at least as well as the recent
    average, and then pays the full penalty; alpha falls with the distance below it.

    Deviations from the paper:
        kl = 0: the paper writes a KL term and gives no weight; the released code has it off. clip = 0.2 likewise.
        dual_clip = 3: not in the paper; the released code runs on verl, which always applies it.
        Token losses are averaged within a rollout, then over rollouts; the standard deviation divides by n - 1 and adds
            1e-6. The paper is silent; both as released.
        Prefix tokens are in the loss, as released, with log-probabilities recomputed by the current policy. The paper
            calls the prefix an anchor and does not say; `mask_prefix_in_loss=true` masks it.
        A stored text ends before </think>, as in the paper, and also before the first \\boxed, <answer> or #### and before a
            last line that states the right answer, so that a prefix never gives the answer away.
        Shortest and longest of a group are taken over right and wrong answers, as released. Equal lengths give P = 0,
            where equation 4 is 0/0.
        The sigmoid's deviation divides by n and is guarded by 1e-7: the paper prints neither.
    From the released code, beyond its own schedule, reward and cut above:
        A prefix that does not fit the response limit is shortened. The release cuts the end of the response, or moves
            prompt tokens into it, and keeps the old prefix length.
        Lengths count the end token; the release drops it where the tokenizer pads with it.
        Groups are formed by problem in a step; the release pools duplicates by prompt text.
        Without a stored prefix a rollout starts empty; the release reads the length of another one.
        The adaptive budgets are remembered in the ledger and saved; the release keeps them in memory, and its trigger is
            never set. A first visit leaves the budget as it is.
    """
    return Method(
        name="pace",
        prefix=prefix
        or StoredPrefix(
            n=n,
            initial_tokens=initial_tokens,
            protected_steps=protected_steps,
            schedule=prefix_schedule,
            cut=prefix_cut,
            loss="none" if mask_prefix_in_loss else "policy",
        ),
        difficulty=difficulty or FailureRate(),
        reward=reward
        or DifficultyPenalty(variant=reward_variant, penalty=penalty, weight=alpha_mode, anneal_steps=anneal_steps),
        advantage=advantage or GroupNormalised(eps=1e-6, ddof=1),
        overlong=overlong,
        loss=Loss("seq-mean-token-mean", clip_low, clip_high, dual_clip, kl=kl, entropy=0.0),
    )
