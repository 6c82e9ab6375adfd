"""What a step on feedback minimises, and the size of the weights that it changes. FTTT, arXiv 2502.15771.

    n = m + k tokens that are learned: m of the words that say that the attempt is wrong, k of a reflection
    V vocabulary, r rank of a low-rank adapter, di inputs and do outputs of a linear layer

Losses are in nats. Everything is float64; the engine's version is tested against this one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from reasonrl.functional.arrays import Array, require_vector


def token_losses(logits: Array, token_ids: Array) -> Array:
    """`-log p` of each token.

    Args:
        logits: (n, V) finite.
        token_ids: (n,) in 0..V - 1.
    Returns:
        (n,) nats.
    Raises:
        ValueError: other shapes, or logits that are not finite.
    """
    values, ids = np.asarray(logits, dtype=np.float64), np.asarray(token_ids, dtype=np.int64)
    if values.ndim != 2 or ids.shape != values.shape[:1]:
        raise ValueError(f"logits must be (n, V) and token_ids (n,), got {values.shape} and {ids.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite")
    top = values.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(values - top).sum(axis=1))
    return np.asarray(total - values[np.arange(len(ids)), ids])


def token_weights(words: int, reflection: int = 0, *, c: float = 1.0) -> Array:
    """What each token's loss counts: 1/m for the words, c/k for the reflection.

    Each part has a mean of its own, so that a long reflection does not drown the verdict. Without a reflection its term is
    left out: the mean of nothing is not a number.

    Args:
        words: m >= 1. reflection: k >= 0. c: weight of the reflection, >= 0.
    Returns:
        (m + k,) with sum 1 + c, or 1 without a reflection.
    Raises:
        ValueError: nothing to learn, or a negative number.
    """
    if words < 1 or reflection < 0 or not c >= 0:
        raise ValueError(f"words must be >= 1, reflection and c >= 0, got {words}, {reflection}, {c}")
    return np.concatenate([np.full(words, 1 / words), np.full(reflection, c / max(reflection, 1))])


def feedback_loss(losses: Array, words: int, *, c: float = 1.0) -> float:
    """FTTT: the mean over the words; FTTT+: with c times the mean over the reflection.

    Args:
        losses: (m + k,) of the words, then of the reflection, nats. words: m. c: see `token_weights`.
    Raises:
        ValueError: fewer losses than words, or ones that are not finite.
    """
    require_vector("losses", losses)
    return float(np.asarray(losses, dtype=np.float64) @ token_weights(words, len(losses) - words, c=c))


def lora_parameters(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """Weights of adapters `B A`, A (r, di) and B (do, r), on layers of these shapes (do, di); no bias."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def lora_bound(inputs: int) -> float:
    """A starts uniform in plus or minus this: Kaiming with a = sqrt 5, whose gain is sqrt(1/3), so 1/sqrt(di). B: 0."""
    return float(1 / np.sqrt(inputs))
