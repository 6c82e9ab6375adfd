"""Choosing one of several candidate answers to a question: by the scores of their steps, or by vote.

K steps of a candidate, N candidates. Candidates keep their place: one that failed is None, never left out, so an index
means the same candidate throughout. On ties the first wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from reasonrl.functional.arrays import Array, require_vector

AGGREGATES: Mapping[str, Callable[[Array], float]] = {
    "min": lambda scores: float(scores.min()),
    "mean": lambda scores: float(scores.mean()),
    "max": lambda scores: float(scores.max()),
    "last": lambda scores: float(scores[-1]),
    "product": lambda scores: float(scores.prod()),
}

Answer = TypeVar("Answer", bound=Hashable)


def aggregate(scores: ArrayLike, how: str = "min") -> float:
    """One number for a candidate from the scores of its steps.

    Args:
        scores: (K,) in the order of the steps, K at least 1.
        how: one of `AGGREGATES`. The paper's is `min`, which no rising map of the scores changes the choice of;
            `mean` and `product` depend on the scale.
    Raises:
        ValueError: an unknown `how`, no score, or one that is not finite: such a candidate failed, and is None.
    """
    if how not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {how!r}")
    values = np.asarray(scores, dtype=np.float64)
    require_vector("scores of a candidate's steps", values)
    if not values.size:
        raise ValueError("a candidate without step scores has no aggregate: it failed, pass None to `best`")
    return AGGREGATES[how](values)


def best(values: Sequence[float | None]) -> int | None:
    """Index of the highest value, the first on ties.

    Args:
        values: N, one a candidate; None (or -inf) for one that failed.
    Returns:
        An index into `values`; None where all failed or there are none.
    Raises:
        ValueError: a value that is NaN.
    """
    chosen, highest = None, -math.inf
    for index, value in enumerate(values):
        if value is None:
            continue
        if math.isnan(value):
            raise ValueError(f"the value of candidate {index} of {len(values)} is NaN; a candidate that failed is None")
        if value > highest:
            chosen, highest = index, value
    return chosen


def majority(answers: Sequence[Answer | None]) -> Answer | None:
    """The answer given most often, of equally many the one seen first.

    Args:
        answers: N, one a candidate, in a form in which equal answers are equal; None for a candidate without one, which
            has no vote.
    Returns:
        An answer; None where nobody votes.
    """
    return weighted_vote(answers, [1.0] * len(answers))


def weighted_vote(answers: Sequence[Answer | None], weights: Sequence[float | None]) -> Answer | None:
    """The answer whose candidates weigh most together, of equally heavy the one seen first.

    Args:
        answers: N, as in `majority`.
        weights: N, at least 0, such as aggregated scores; None for a candidate that failed, which has no vote.
    Returns:
        An answer; None where nobody votes.
    Raises:
        ValueError: numbers of answers and weights that differ, a weight that is negative or not finite.
    """
    if len(answers) != len(weights):
        raise ValueError(f"answers (N,) and weights (N,) differ: {len(answers)} vs {len(weights)}")
    votes: dict[Answer, list[float]] = {}
    for index, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None or weight is None:
            continue
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"the weight of candidate {index} must be finite and at least 0, got {weight}")
        votes.setdefault(answer, []).append(weight)
    # fsum: the order of the candidates must not decide between sums that are equal
    return max(votes, key=lambda answer: math.fsum(votes[answer]), default=None)
