"""Steps of a response, cut where the generator was unsure of the token it sampled.

AdaptiveStep: Automatically Dividing Reasoning Step through Model Confidence, arXiv 2502.13943. Confidence is the
probability of the sampled token: not the entropy, not the highest probability. The splitting code was never released;
the rule follows the paper and the data it ships. What we decided: the quantile is numpy's linear one in float64, and
a token exactly at the threshold is not a boundary.

L tokens of a response, N tokens of R responses one after the other, K steps of a response, C cuts.
Ends are indices of tokens within their response, inclusive and rising: the steps of ends [1, 4] are 0..1 and 2..4.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasonrl.functional.arrays import Array, require_same_length, require_vector

Ends: TypeAlias = NDArray[np.int64]
Ids: TypeAlias = NDArray[np.int32]
Mask: TypeAlias = NDArray[np.bool_]

LARGEST_LOGPROB = 1e-4  # rounding may leave this much above 0; more is no log-probability


def confidence(logprobs: ArrayLike) -> Array:
    """The probability of each sampled token, `exp(logprob)`.

    Args:
        logprobs: (L,) of the tokens that were sampled, in any float type. Padding and tool output were not sampled:
            leave them out.
    Returns:
        (L,) float64 in [0, 1].
    Raises:
        ValueError: a log-probability that is NaN, infinite or above 1e-4; up to there it counts as 0.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"logprobs must be one-dimensional (L,), got shape {values.shape}")
    wrong = ~((values > -np.inf) & (values <= LARGEST_LOGPROB))  # so written, NaN is wrong too
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"logprobs (L,) must be finite and at most 0, got {values[index]} at token {index} of {values.size}: "
            "no sampled token has that; a mask is shifted, or padding was taken for a token"
        )
    return np.asarray(np.exp(np.minimum(values, 0.0)))


def threshold(pool: ArrayLike, quantile: float, *, least: int = 1000) -> float:
    """tau: the confidence below which a share `quantile` of the tokens lies, interpolated linearly.

    Of N distinct values exactly `ceil(quantile * (N - 1))` lie below it: one token of any 2 to 51 at 0.02, however sure
    the model is. Hence `least`.

    Args:
        pool: (N,) confidences of all tokens of all responses of one domain and one generator, masked tokens left out.
        quantile: share of tokens that become boundaries, [0, 1]; the paper's is 0.02. Larger gives more, shorter steps;
            0 gives one step a response.
        least: tokens that the pool must hold.
    Returns:
        A probability.
    Raises:
        ValueError: a quantile outside [0, 1], confidences outside [0, 1], or fewer than `least` tokens.
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}; 2 percent is 0.02")
    values = _confidences(pool)
    if values.size < max(least, 1):
        raise ValueError(
            f"a threshold from {values.size} tokens says little about the generator, at least {max(least, 1)} are "
            "wanted: pool more responses, keep the threshold calibrated before, or lower `least`"
        )
    return float(np.quantile(values, quantile, method="linear"))


def step_ends(confidence: ArrayLike, tau: float, *, excluded: ArrayLike | None = None) -> Ends:
    """Where the steps of one response end: with each token of `confidence < tau`, and with the last token.

    Args:
        confidence: (L,) probability of each sampled token.
        tau: threshold, [0, 1]. Larger gives more steps.
        excluded: (L,) True at tokens that never end a step: tool output, the end token, other special tokens. Where a
            response ends with such tokens, the last step closes before them.
    Returns:
        (K,) ends. None for an empty response, and none where every token is excluded.
    Raises:
        ValueError: shapes that differ, a confidence or threshold outside [0, 1].
    """
    return split(confidence, [np.size(confidence)], tau, excluded=excluded)[0]


def split(
    confidence: ArrayLike, lengths: ArrayLike, tau: float, *, excluded: ArrayLike | None = None
) -> tuple[Ends, Ends]:
    """`step_ends` of many responses at once.

    Args:
        confidence: (N,) probability of each sampled token, one response after the other.
        lengths: (R,) tokens of each response, in the same order; 0 is allowed.
        tau: threshold, [0, 1].
        excluded: (N,) as in `step_ends`.
    Returns:
        Ends (sum of K,), each within its response, one response after the other; and counts (R,), the K of each.
        `np.split(ends, counts.cumsum()[:-1])` takes them apart.
    Raises:
        ValueError: lengths that do not add up to N, shapes that differ, a confidence or threshold outside [0, 1].
    """
    _require_probability("tau", tau)
    values = _confidences(confidence)
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != values.size:
        raise ValueError(
            f"lengths (R,) must be counts of tokens that add up to the {values.size} confidences, "
            f"got shape {sizes.shape} with sum {sizes.sum()}"
        )
    return _closed(values < tau, sizes, _excluded(excluded, values.size))


def capped(ends: ArrayLike, confidence: ArrayLike, most: int) -> Ends:
    """At most `most` steps: the interior ends of lowest confidence and the last end. On ties the earlier stay.

    Args:
        ends: (K,) ends.
        confidence: (L,) of the same response.
        most: steps to keep, at least 1.
    Returns:
        (min(K, most),) ends, a subset of those given.
    Raises:
        ValueError: ends that are no rising indices of the tokens, `most` below 1.
    """
    if most < 1:
        raise ValueError(f"a response has at least 1 step, got most={most}")
    values = np.asarray(confidence)
    indices = _ends(ends, values.size)
    interior = indices[:-1]
    kept = np.argsort(values[interior], kind="stable")[: most - 1]
    return np.concatenate((interior[np.sort(kept)], indices[-1:]))


def every(ends: ArrayLike, m: int) -> Ends:
    """The first of every `m` interior ends, and the last end (SPO's `cutpoint_interval`, arXiv 2505.23564).

    Raises:
        ValueError: ends that do not rise, `m` below 1.
    """
    if m < 1:
        raise ValueError(f"every m-th end needs m of at least 1, got {m}")
    indices = _ends(ends)
    return np.concatenate((indices[:-1][::m], indices[-1:]))


def line_ends(newline: ArrayLike, *, excluded: ArrayLike | None = None) -> Ends:
    """The baseline that cuts at line breaks: a step ends with each token whose text holds a newline, and with the last.

    The paper's files put the tag before each newline. On tokens the step ends with it: one token may hold the line's
    last character and the newline, and no text of a line may pass to the next step.

    Args:
        newline: (L,) True where the token's text holds a newline.
        excluded: (L,) as in `step_ends`.
    Returns:
        (K,) ends.
    Raises:
        ValueError: masks that are not bool or differ in length.
    """
    mask = np.asarray(newline)
    if mask.ndim != 1 or (mask.size and mask.dtype != np.bool_):
        raise ValueError(f"newline must be a bool mask (L,), got {mask.dtype} of shape {mask.shape}")
    size = np.array([mask.size])
    return _closed(mask.astype(np.bool_), size, _excluded(excluded, mask.size))[0]


def random_ends(length: int, rng: np.random.Generator, *, steps: int = 5, excluded: ArrayLike | None = None) -> Ends:
    """The baseline that cuts anywhere: `steps - 1` tokens drawn without repetition, and the last token.

    The paper's files draw four characters of the text, with repetition, so steps may be empty there; here none is.

    Args:
        length: L, tokens of the response.
        rng: where the randomness comes from.
        steps: wanted steps, at least 1; a shorter response gets one a token.
        excluded: (L,) as in `step_ends`.
    Returns:
        (K,) ends.
    Raises:
        ValueError: `steps` below 1, a mask of another length.
    """
    if steps < 1:
        raise ValueError(f"a response has at least 1 step, got steps={steps}")
    hidden = _excluded(excluded, length)
    allowed = np.arange(length) if hidden is None else np.flatnonzero(~hidden)
    interior = rng.choice(allowed[:-1], size=min(steps - 1, max(allowed.size - 1, 0)), replace=False)
    return np.concatenate((np.sort(interior), allowed[-1:])).astype(np.int64)


def step_of_token(ends: ArrayLike, length: int) -> Ends:
    """Which step each token belongs to.

    Args:
        ends: (K,) ends.
        length: L, tokens of the response.
    Returns:
        (L,) in 0..K-1, never falling. Tokens after the last end, such as the end token, belong to the last step;
        -1 throughout where there is no step.
    Raises:
        ValueError: ends that are no rising indices of the tokens.
    """
    indices = _ends(ends, length)
    return np.minimum(np.searchsorted(indices, np.arange(length)), indices.size - 1).astype(np.int64)


def spread(values: ArrayLike, ends: ArrayLike, length: int | None = None) -> Array:
    """One value a step as one value a token.

    Args:
        values: (K,) value of each step.
        ends: (K,) ends.
        length: L, tokens of the response; None where the last end is its last token.
    Returns:
        (L,) float64. Tokens after the last end get the last value; zeros where there is no step.
    Raises:
        ValueError: another number of values than of ends, ends that are no rising indices of the tokens.
    """
    indices, each = _ends(ends), np.asarray(values, dtype=np.float64)
    if each.shape != indices.shape:
        raise ValueError(f"values (K,) and ends (K,) differ: {each.shape} vs {indices.shape}")
    size = (int(indices[-1]) + 1 if indices.size else 0) if length is None else length
    if not indices.size:
        return np.zeros(size)
    return np.asarray(each[step_of_token(indices, size)])


def spo_cuts(confidence: ArrayLike, tau: float = 0.9, *, interval: int = 5) -> Ends:
    """SPO-chain's cuts: the token *before* each unsure one, every `interval`-th of them (arXiv 2505.23564).

    A cut is the state in which the unsure token is still to be drawn; an end of `step_ends` is the unsure token itself.
    The same difference of values belongs to other tokens under each: do not mix them.

    Args:
        confidence: (L,) probability of each sampled token.
        tau: threshold, [0, 1]; SPO's is 0.9.
        interval: keeps the first of every so many cuts; SPO's is 5.
    Returns:
        (C,) rising indices in -1..L-2; -1 is the state after the prompt.
    Raises:
        ValueError: a confidence or threshold outside [0, 1], `interval` below 1.
    """
    _require_probability("tau", tau)
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}")
    return (np.flatnonzero(_confidences(confidence) < tau) - 1)[::interval].astype(np.int64)


def spo_advantages(
    values: ArrayLike, cuts: ArrayLike, outcome: float, confidence: ArrayLike, *, tau: float = 0.9
) -> Array:
    """SPO-chain's advantages: what the value gains from one cut to the next (arXiv 2505.23564).

    Args:
        values: (C,) value of the state at each cut, in units of reward.
        cuts: (C,) of `spo_cuts`.
        outcome: reward of the response: the value after its last token.
        confidence: (L,) of the same response.
        tau: tokens above it get 0, as released; exactly at it they keep theirs. SPO's loss reads only tokens below it.
    Returns:
        (L,) float64; 0 before the first cut.
    Raises:
        ValueError: another number of values than of cuts, cuts that are no rising indices, values that are not finite.
    """
    probabilities = _confidences(confidence)
    _require_probability("tau", tau)
    states, indices = np.asarray(values, dtype=np.float64), np.asarray(cuts, dtype=np.int64)
    require_vector("values", states)
    require_same_length("values", states, "cuts", indices)
    _require_rising("cuts", indices, -1, probabilities.size)
    gains = np.concatenate(([0.0], np.diff(states, append=outcome)))  # (1 + C,), 0 for what precedes the first cut
    advantages = gains[np.searchsorted(indices, np.arange(probabilities.size))]
    advantages[probabilities > tau] = 0.0
    return np.asarray(advantages)


def triggers(probability: float, tau: float, *, round_percent: bool = False) -> bool:
    """Whether value-guided decoding asks the reward model here: the model's best token has `probability < tau`.

    Args:
        probability: of the most likely next token.
        tau: threshold, [0, 1].
        round_percent: compare in hundredths of a percent, as released: 0.54996 is then 55.00 and not below 55.
    Raises:
        ValueError: a probability or threshold outside [0, 1].
    """
    _require_probability("probability", probability)
    _require_probability("tau", tau)
    if round_percent:
        return round(100.0 * probability, 2) < round(100.0 * tau, 9)  # 100 * 0.55 is 55.00000000000001
    return probability < tau


def tagged(token_ids: ArrayLike, ends: ArrayLike, tag: int) -> tuple[Ids, Ends]:
    """A response as the reward model reads it: the tag after the last token of each step.

    Score by the positions: a response may hold the tag itself. `np.delete(ids, positions)` gives the response back.

    Args:
        token_ids: (L,) of the response.
        ends: (K,) ends.
        tag: id of the tag token.
    Returns:
        Ids (L + K,) int32, and positions (K,) of the tags among them.
    Raises:
        ValueError: ends that are no rising indices of the tokens.
    """
    ids = np.asarray(token_ids, dtype=np.int32)
    indices = _ends(ends, ids.size)
    return np.insert(ids, indices + 1, tag), indices + 1 + np.arange(indices.size)


def top_share(values: ArrayLike, share: float, how: Literal["quantile", "count"] = "quantile") -> Mask:
    """The tokens with the highest values: the mask of "Beyond the 80/20 rule" (arXiv 2506.01939).

    Args:
        values: (L,) what is compared, there the entropy.
        share: of the tokens, (0, 1]; there 0.2.
        how: `quantile` keeps values at or above the linear quantile `1 - share`, as TRL does, so ties may exceed the
            share; `count` keeps `max(1, int(share * L + 0.9999))`, as released, of equal values the earlier.
    Returns:
        (L,) bool.
    Raises:
        ValueError: values that are no finite vector, a share outside (0, 1], an unknown `how`.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if how not in ("quantile", "count"):
        raise ValueError(f"how must be one of quantile, count, got {how!r}")
    numbers = np.asarray(values, dtype=np.float64)
    require_vector("values", numbers)
    if not numbers.size:
        return np.zeros(0, dtype=np.bool_)
    if how == "quantile":
        return np.asarray(numbers >= np.quantile(numbers, 1.0 - share, method="linear"))
    mask = np.zeros(numbers.size, dtype=np.bool_)
    mask[np.argsort(-numbers, kind="stable")[: max(1, int(share * numbers.size + 0.9999))]] = True
    return mask


def _closed(boundary: Mask, lengths: Ends, excluded: Mask | None) -> tuple[Ends, Ends]:
    """Ends and counts from the boundaries (N,), which are overwritten: each response closes at its last kept token."""
    stops = np.cumsum(lengths)
    starts = stops - lengths
    first, last = starts[lengths > 0], stops[lengths > 0] - 1
    if excluded is not None and excluded.size:
        np.greater(boundary, excluded, out=boundary)
        opens = excluded.copy()
        np.greater(excluded[1:], excluded[:-1], out=opens[1:])
        runs = np.flatnonzero(opens)  # where excluded tokens begin
        hidden = excluded[last]
        last[hidden] = runs[np.searchsorted(runs, last[hidden], side="right") - 1] - 1
    boundary[last[last >= first]] = True
    flat = np.flatnonzero(boundary)
    counts = np.diff(np.searchsorted(flat, np.append(starts, stops[-1:])))
    return flat - np.repeat(starts, counts), counts


def _confidences(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"confidences must be one-dimensional (L,), got shape {array.shape}")
    if array.size and not (array.min() >= 0.0 and array.max() <= 1.0):  # a NaN is its own minimum
        index = int((~((array >= 0.0) & (array <= 1.0))).argmax())
        raise ValueError(
            f"confidences (L,) must be probabilities in [0, 1], got {array[index]} at token {index} of {array.size}; "
            "`confidence` makes them from log-probabilities"
        )
    return array


def _excluded(mask: ArrayLike | None, length: int) -> Mask | None:
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.shape != (length,) or (length and array.dtype != np.bool_):
        raise ValueError(f"excluded must be bool of shape ({length},), got {array.dtype} of shape {array.shape}")
    return array.astype(np.bool_, copy=False)


def _ends(ends: ArrayLike, length: int | None = None) -> Ends:
    indices = np.asarray(ends)
    if indices.size and indices.dtype.kind not in "iu":
        raise ValueError(f"ends must be integers, got dtype {indices.dtype}")
    indices = indices.astype(np.int64, copy=False)
    _require_rising("ends", indices, 0, length)
    return indices


def _require_rising(name: str, indices: Ends, low: int, stop: int | None) -> None:
    if indices.ndim != 1 or (np.diff(indices) <= 0).any():
        raise ValueError(f"{name} must be a vector of rising token indices, got {indices}")
    if indices.size and (indices[0] < low or (stop is not None and indices[-1] >= stop)):
        within = f"{low} or above" if stop is None else f"{low}..{stop - 1}"
        raise ValueError(f"{name} must be token indices {within}, got {indices[0]}..{indices[-1]}")


def _require_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value}; 55 percent is 0.55")
