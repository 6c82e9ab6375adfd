"""How well a process reward model tells held-out steps apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.eval.prm.labelled import steps

if TYPE_CHECKING:
    from reasonrl.eval.prm.examples import Examples


def judged(scorer: Any, examples: Examples, labels: str) -> dict[str, float]:
    """Loss and accuracy against the labels trained on, and AUC against the hard ones, at all held-out tags it can read."""
    was = scorer.model.training
    scorer.model.eval()
    rows = [examples.rows.rows[example.row] for example in examples.held_out]
    found = scorer.score([steps(row) for row in rows])
    scorer.model.train(was)
    scores = np.concatenate(found).astype(np.float64)
    hard = np.concatenate([row.hard for row in rows])
    targets = hard if labels == "hard" else np.concatenate([row.soft for row in rows])
    readable = ~np.isnan(scores)
    scores, hard, targets = scores[readable], hard[readable], targets[readable].astype(np.float64)
    safe = np.clip(scores, 1e-7, 1 - 1e-7)
    return {
        "loss": float(-(targets * np.log(safe) + (1 - targets) * np.log1p(-safe)).mean()) if safe.size else math.nan,
        "accuracy": float(((scores > 0.5) == (targets >= 0.5)).mean()) if safe.size else math.nan,
        "auc": auc(scores, hard > 0.5),
        "tags": int(scores.size),
    }


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, a tie counting half; NaN without one of either."""
    wins = int(positive.sum())
    if wins in (0, positive.size):
        return math.nan
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # 1-based, ties share their mean
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * (positive.size - wins)))


def told_held_out(found: dict[str, float]) -> str:
    """A line for people."""
    return (
        f"held out at step {found['step']:.0f}: loss {found['loss']:.4f}, accuracy at tags {found['accuracy']:.1%}, "
        f"AUC {found['auc']:.3f} ({found['tags']} tags)"
    )
