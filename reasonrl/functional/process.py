"""Labels, losses and advantages of steps: what a process reward model learns, and what its scores become.

AdaptiveStep, arXiv 2502.13943, gives the labels and the loss; it does no reinforcement learning. Advantages come from
VinePPO (telescoping), DeepSeekMath (process supervision), PURE (min-form) and PRIME.

n rollouts of a group, L tokens of a rollout, K steps of a rollout, J continuations from the end of a step,
P step ends of a batch, V tokens of a vocabulary. Ends are those of `functional.confidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from reasonrl.functional.advantages import group_normalised, rloo
from reasonrl.functional.arrays import Array, require_same_length, require_vector
from reasonrl.functional.confidence import spread

StepLoss: TypeAlias = Literal["two_way", "full_vocab"]
PrimeForm: TypeAlias = Literal["formula", "released"]

LARGEST_HARD_SCORE = 1.0 - 1e-6  # a score of 1 would say that every continuation is right


def hard_label(rollouts: ArrayLike) -> Array:
    """1 where any continuation is right, else 0: whether the step leaves the answer within reach.

    Args:
        rollouts: (..., J) verdicts, 0 or 1.
    Returns:
        (...) 0 or 1.
    Raises:
        ValueError: no continuation, or a verdict that is neither 0 nor 1.
    """
    return np.asarray(_verdicts(rollouts).max(axis=-1))


def soft_label(rollouts: ArrayLike) -> Array:
    """The share of right continuations, unbiased for the value of the step's end.

    Args:
        rollouts: (..., J) verdicts, 0 or 1.
    Returns:
        (...) in [0, 1].
    Raises:
        ValueError: no continuation, or a verdict that is neither 0 nor 1.
    """
    return np.asarray(_verdicts(rollouts).mean(axis=-1))


def he_inverse(h: ArrayLike, rollouts: int = 8) -> Array:
    """`p = 1 - (1 - h)^(1 / J)`: the pass rate behind the probability that any of J continuations is right.

    A model trained on hard labels predicts h, near 1 for most prefixes: 0.57 for a pass rate of 0.1. Holds as far as
    the model is calibrated.

    Args:
        h: scores in [0, 1], any shape; above `1 - 1e-6` they count as that. NaN, a missing score, stays NaN.
        rollouts: J behind each label, at least 1; 1 changes nothing but the cap.
    Returns:
        Pass rates in [0, 1), same shape.
    Raises:
        ValueError: a score outside [0, 1], `rollouts` below 1.
    """
    if rollouts < 1:
        raise ValueError(f"a hard label comes from at least 1 continuation, got rollouts={rollouts}")
    scores = np.asarray(h, dtype=np.float64)
    if ((scores < 0.0) | (scores > 1.0)).any():
        raise ValueError(f"scores must be probabilities in [0, 1], got {scores.min()}..{scores.max()}")
    return np.asarray(-np.expm1(np.log1p(-np.minimum(scores, LARGEST_HARD_SCORE)) / rollouts))


def telescoping(first: float, interior: ArrayLike, last: float) -> Array:
    """`A_k = V_k - V_(k-1)`: what each step gained (VinePPO, arXiv 2410.01679). The sum is `last - first`, whatever the cuts.

    Args:
        first: V_0, value before the first step, in units of reward.
        interior: (K - 1,) values at the ends of all steps but the last.
        last: V_K, the reward of the rollout.
    Returns:
        (K,) in units of reward.
    Raises:
        ValueError: a value that is not finite.
    """
    values = np.concatenate(([first], np.asarray(interior, dtype=np.float64), [last]))
    require_vector("values of a rollout's step ends", values)
    return np.asarray(np.diff(values))


def mixed(outcome: ArrayLike, steps: ArrayLike, weight: float) -> Array:
    """`weight * outcome + (1 - weight) * steps`; with weight 1 the outcome, with weight 0 the steps, bit for bit.

    Args:
        outcome: advantages of the outcome, same for all tokens or one each.
        steps: advantages of the steps, one each or one a token.
        weight: share of the outcome, [0, 1].
    Returns:
        Of the broadcast shape, float64.
    Raises:
        ValueError: a weight outside [0, 1], or shapes that do not broadcast.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must lie in [0, 1], got {weight}")
    a, b = np.broadcast_arrays(np.asarray(outcome, dtype=np.float64), np.asarray(steps, dtype=np.float64))
    if weight in (0.0, 1.0):  # 0 * inf would be NaN, and -0.0 + 0.0 another zero
        return (a if weight else b).copy()
    return np.asarray(weight * a + (1.0 - weight) * b)


def process_supervision(
    rewards: Sequence[ArrayLike],
    ends: Sequence[ArrayLike],
    *,
    lengths: Sequence[int] | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
) -> list[Array]:
    """Process supervision of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.3), for one group.

    All step rewards of the group are normalised together, and a token gets the sum of its step's and all later ones:
    more steps give larger sums, and one step below the mean lowers all tokens before it. With one step a rollout it is
    GRPO. Meant for rewards of single steps; values of prefixes are counted twice, see `telescoping`.

    Args:
        rewards: n vectors (K_i,), the reward of each step.
        ends: n vectors (K_i,), where each step ends.
        lengths: n lengths L_i in tokens; None where the last end is the last token.
        ddof: 1 divides by the number of rewards less 1 (torch.std), 0 by their number. The paper does not say.
        eps: added to the standard deviation, in units of reward.
    Returns:
        n rows (L_i,), in standard deviations. Zeros where all rewards of the group are equal. In a group of one
        nothing is normalised: its mean is 0 and its deviation 1, as in `group_normalised`.
    Raises:
        ValueError: numbers of rollouts, rewards and ends that differ, or a reward that is not finite.
    """
    each = [np.asarray(values, dtype=np.float64) for values in rewards]
    sizes = [None] * len(each) if lengths is None else list(lengths)
    if not len(each) == len(ends) == len(sizes):
        raise ValueError(f"a group of {len(each)} rows of rewards, {len(ends)} of ends and {len(sizes)} lengths")
    for values in each:
        require_vector("rewards of a rollout's steps", values)
    if len(each) < 2:
        normalised = [values / (1.0 + eps) for values in each]
    else:
        pooled = group_normalised(np.concatenate(each), eps=eps, ddof=ddof)
        normalised = np.split(pooled, np.cumsum([values.size for values in each])[:-1])
    return [spread(_to_go(r), e, length) for r, e, length in zip(normalised, ends, sizes, strict=True)]


@dataclass(frozen=True, eq=False)
class MinForm:
    """Weights (K,) of a rollout's steps, which sum to 1, and returns-to-go (K,) of the weighted rewards."""

    weights: Array
    returns: Array


def min_form(rewards: ArrayLike, temperature: float = 0.1) -> MinForm:
    """PURE's credit: `w = softmax(-r / T)`, and the sum of `w r` from a step on (arXiv 2504.15275).

    Up to the worst step the return is about the lowest reward, after it about 0.

    Args:
        rewards: (K,) of each step; PURE's are `p_good - p_bad`, in [-1, 1].
        temperature: T, in units of reward; PURE's is 0.1. Smaller is closer to the minimum.
    Returns:
        Weights and returns-to-go; empty for no step.
    Raises:
        ValueError: `rewards` is no finite vector, `temperature` not above 0.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    values = np.asarray(rewards, dtype=np.float64)
    require_vector("rewards of a rollout's steps", values)
    weights = np.exp((values.min(initial=np.inf) - values) / temperature)
    weights /= weights.sum()
    return MinForm(weights, _to_go(weights * values))


def prime(
    rewards: Sequence[ArrayLike],
    *,
    outcomes: ArrayLike | None = None,
    gamma: float = 1.0,
    form: PrimeForm = "formula",
) -> list[Array]:
    """PRIME's advantages from implicit token rewards (arXiv 2502.01456), for one group.

    Each token reward less the mean reward of the other rollouts, summed from the token on, plus the leave-one-out
    advantage of the outcome. The released code baselines otherwise; the two agree only on average over a rollout.

    Args:
        rewards: n vectors (L_i,), `beta * log(pi / pi_ref)` of each token. For credit a step, put a step's sum on its
            last token.
        outcomes: (n,) reward of each rollout; None leaves the outcome out.
        gamma: discount a token, [0, 1]; 0 leaves each token its own baselined reward.
        form: `formula` takes x less the mean of the other rollouts' means; `released` takes `x n / (n - 1)` less the
            sum of all means over `n - 1`.
    Returns:
        n rows (L_i,). A group of one has nothing to be compared with, its baseline is 0.
    Raises:
        ValueError: rewards that are no finite vectors, another number of outcomes, `gamma` outside [0, 1], an unknown
            `form`.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if form not in ("formula", "released"):
        raise ValueError(f"form must be one of formula, released, got {form!r}")
    each = [np.asarray(values, dtype=np.float64) for values in rewards]
    for values in each:
        require_vector("token rewards of a rollout", values)
    n = len(each)
    means = np.array([values.mean() if values.size else 0.0 for values in each])
    rewarded = np.zeros(n) if outcomes is None else np.asarray(outcomes, dtype=np.float64)
    require_same_length("outcomes", rewarded, "rollouts", means)
    if n > 1:
        each = [
            values - (means.sum() - mean) / (n - 1) if form == "formula" else (values * n - means.sum()) / (n - 1)
            for values, mean in zip(each, means, strict=True)
        ]
    return [_to_go(values, gamma) + outcome for values, outcome in zip(each, rloo(rewarded), strict=True)]


def step_loss(logits: ArrayLike, labels: ArrayLike, good: int, bad: int, *, form: StepLoss = "two_way") -> Array:
    """Cross-entropy of a process reward model at its step ends.

    The logits are those *at* the tag, which predict the token after it. Both forms agree once all mass is on the two
    tokens. The loss a model is trained with has its own code in torch and is held against this one.

    Args:
        logits: (P, V) at each step end.
        labels: (P,) in [0, 1], the share of the good token; a hard label is 0 or 1.
        good: id of the token that says the step is good.
        bad: id of the other.
        form: `two_way` takes the softmax over the two tokens, which is the paper's binary cross-entropy; `full_vocab`
            over the vocabulary, as released.
    Returns:
        (P,) in nats, at least 0.
    Raises:
        ValueError: shapes that differ, a label outside [0, 1], ids outside the vocabulary or equal, an unknown `form`.
    """
    if form not in ("two_way", "full_vocab"):
        raise ValueError(f"form must be one of two_way, full_vocab, got {form!r}")
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise ValueError(f"logits (P, V) and labels (P,) differ: {z.shape} vs {y.shape}")
    if not ((y >= 0.0) & (y <= 1.0)).all():
        raise ValueError(f"labels (P,) must lie in [0, 1], got {y}")
    if good == bad or not (0 <= good < z.shape[1] and 0 <= bad < z.shape[1]):
        raise ValueError(f"good and bad must be two token ids in 0..{z.shape[1] - 1}, got {good} and {bad}")
    pair = z[:, [good, bad]]
    over = pair if form == "two_way" else z
    highest = over.max(axis=1)
    scale = highest + np.log(np.exp(over - highest[:, None]).sum(axis=1))
    return np.asarray(scale - y * pair[:, 0] - (1.0 - y) * pair[:, 1])


def _verdicts(rollouts: ArrayLike) -> Array:
    values = np.asarray(rollouts, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] < 1:
        raise ValueError(f"a label needs the verdicts of at least 1 continuation (..., J), got shape {values.shape}")
    if not ((values == 0.0) | (values == 1.0)).all():
        raise ValueError(f"verdicts of continuations must be 0 or 1, got {values}")
    return values


def _to_go(rewards: Array, gamma: float = 1.0) -> Array:
    """Discounted sums from each entry to the last."""
    if gamma == 1.0:
        return np.asarray(np.cumsum(rewards[::-1])[::-1])
    sums = rewards.copy()
    for t in range(sums.size - 2, -1, -1):
        sums[t] += gamma * sums[t + 1]
    return sums
