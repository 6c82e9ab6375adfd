"""The numbers of one benchmark from its graded samples: accuracy, pass@k, maj@k, lengths, and what went wrong.

    B problems, N samples, n samples of a problem, k of them drawn

Every accuracy is a mean over problems of the share of right samples, so a problem counts once however often it was sampled.
Everything that was asked counts: a sample without an answer, cut at the limit, not graded in time, or never written because
its prompt was too long is a wrong one. How many there are of each is part of the result. Only lengths leave out prompts that
were too long, of which nothing was written.

maj@k votes with the extracted text, in which runs of white space count as one blank; other spellings of an answer are other
answers. Nothing here depends on the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.functional.estimates import (
    Interval,
    accuracy_by_length,
    majority_at_k,
    minimum_detectable_difference,
    pass_at_k,
    share_interval,
)

KS = (1, 2, 4, 8, 16, 32, 64)
TOO_LONG = "prompt_too_long"
UNGRADED = ("timeout", "error", "no_judge")  # a right answer may be among them
STATUSES = ("ok", "no_answer", TOO_LONG, *UNGRADED)
INTERVAL = "Agresti and Coull, over problems"
POWER, ALPHA = 0.8, 0.05
DIGITS = 10
SAMPLES_A_BIN = 20
MOST_BINS = 8
FEW_PROBLEMS = 100
MANY_CUT = MANY_UNANSWERED = 0.05


@dataclass(frozen=True, eq=False)
class Samples:
    """Graded samples of one task, those of a problem in any order.

    Attributes:
        ids: N, the problem of each.
        correct: (N,) bool.
        tokens: (N,) int, of the answer.
        finished: (N,) bool, False where it was cut at max_new_tokens.
        status: N, of `STATUSES`.
        extracted: N, the answer found in each; None where none was, or where a task has no such thing.
        categories: N, of the problem of each; "" for none.
        parts: further scores in [0, 1], (N,) each.
    """

    ids: Sequence[str]
    correct: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    finished: NDArray[np.bool_]
    status: Sequence[str]
    extracted: Sequence[str | None]
    categories: Sequence[str]
    parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for columns of other lengths, no samples, or an unknown status."""
        lengths = {name: len(getattr(self, name)) for name in ("ids", "correct", "tokens", "finished", "status")}
        lengths |= {"extracted": len(self.extracted), "categories": len(self.categories)}
        lengths |= {f"parts[{name}]": len(values) for name, values in self.parts.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a task's samples differ in length: {lengths}")
        if not len(self.ids):
            raise ValueError("a task without samples has no result")
        unknown = sorted(set(self.status) - set(STATUSES))
        if unknown:
            raise ValueError(f"unknown status {unknown[0]!r} of a sample. Choices: {', '.join(STATUSES)}")

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Samples:
        """From the rows of a journal or of samples.parquet. A part that a row lacks is 0: nothing was fulfilled."""
        every = list(rows)
        parts = [dict(row["parts"] or ()) for row in every]
        return cls(
            ids=[row["id"] for row in every],
            correct=np.array([bool(row["correct"]) for row in every], dtype=np.bool_),
            tokens=np.array([row["tokens"] for row in every], dtype=np.int64),
            finished=np.array([bool(row["finished"]) for row in every], dtype=np.bool_),
            status=[row["status"] for row in every],
            extracted=[row["extracted"] for row in every],
            categories=[row["category"] or "" for row in every],
            parts={
                name: np.array([given.get(name, 0.0) for given in parts], dtype=np.float64)
                for name in sorted({name for given in parts for name in given})
            },
        )

    @cached_property
    def problems(self) -> NDArray[np.str_]:
        """(B,) ids, sorted."""
        return np.unique(np.asarray(self.ids, dtype=np.str_))

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(N,) which of `problems` each sample is of."""
        return np.searchsorted(self.problems, np.asarray(self.ids, dtype=np.str_))

    @cached_property
    def n(self) -> NDArray[np.int64]:
        """(B,) samples of each problem."""
        return np.bincount(self.place)

    @cached_property
    def written(self) -> NDArray[np.bool_]:
        """(N,) whether there is an answer at all, which a prompt that is too long never gets."""
        return np.array([status != TOO_LONG for status in self.status])

    def share(self, of: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(B,) share of each problem's samples for which `of` (N,) holds."""
        return np.asarray(np.bincount(self.place, weights=of) / self.n)

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B,) mean of `values` (N,) over each problem's samples; added up in an order that does not depend on theirs."""
        order = np.lexsort((values, self.place))
        return np.asarray(np.bincount(self.place[order], weights=values[order]) / self.n)


def summarise(samples: Samples, *, ks: Sequence[int] = KS, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """What results.json says of a task, ready for JSON: plain numbers rounded to 10 digits, None for what does not exist.

    Args:
        samples: of one task.
        ks: of pass@k and maj@k; those above a problem's samples are left out.
        level: of all intervals, (0, 1).
        seed: kept for estimates that draw; none does now, all are exact.
    Returns:
        The keys are those of `results.json`, schema 1.
    """
    shares = samples.share(samples.correct)
    least, most = int(samples.n.min()), int(samples.n.max())
    reached = sorted({k for k in ks if 1 <= k <= least})
    ungraded = np.array([status in UNGRADED for status in samples.status])
    found = {
        "problems": int(samples.problems.size),
        "samples": len(samples.ids),
        "n": {"min": least, "max": most},
        "accuracy": _interval(share_interval(shares, level)),
        "pass_at_k": {str(k): _interval(share_interval(_passed(samples, k), level)) for k in reached},
        "maj_at_k": _voted(samples, reached, level),
        "tokens": _tokens(samples),
        "rates": _rates(samples),
        "ungraded": int(ungraded.sum()),
        "accuracy_if_ungraded_right": float(samples.share(samples.correct | ungraded).mean()),
        "length_bins": _length_bins(samples, level),
        "minimum_detectable_difference": _detectable(samples, shares),
        "categories": _categories(samples, shares),
        "parts": {
            name: _interval(share_interval(samples.mean(samples.parts[name]), level)) for name in sorted(samples.parts)
        },
    }
    result: dict[str, Any] = rounded(found)
    return {**result, "notes": _notes(result)}


def vote_key(extracted: str | None) -> str | None:
    """Equal for answers that are one answer to a vote."""
    return None if extracted is None else " ".join(extracted.split())


def _passed(samples: Samples, k: int) -> NDArray[np.float64]:
    """(B,) pass@k."""
    return np.asarray(pass_at_k(samples.n, np.bincount(samples.place[samples.correct], minlength=samples.n.size), k))


def _voted(samples: Samples, ks: Sequence[int], level: float) -> dict[str, Any]:
    """maj@k; nothing where no sample has an answer to vote for."""
    if not ks or all(answer is None for answer in samples.extracted):
        return {}
    keys = [vote_key(answer) for answer in samples.extracted]
    order = np.argsort(samples.place, kind="stable")
    ends = np.cumsum(samples.n)
    values = np.array(
        [
            majority_at_k([keys[i] for i in order[end - n : end]], samples.correct[order[end - n : end]], ks)
            for end, n in zip(ends, samples.n, strict=True)
        ]
    )  # (B, K)
    return {str(k): _interval(share_interval(values[:, i], level)) for i, k in enumerate(ks)}


def _tokens(samples: Samples) -> dict[str, float | None]:
    """Of all samples, and means of the right, wrong and cut ones."""
    lengths = samples.tokens[samples.written]
    right, cut = samples.correct[samples.written], ~samples.finished[samples.written]

    def mean(of: NDArray[np.int64]) -> float | None:
        return float(of.mean()) if of.size else None

    return {
        "mean": mean(lengths),
        "median": float(np.median(lengths)) if lengths.size else None,
        "p90": float(np.quantile(lengths, 0.9)) if lengths.size else None,
        "max": int(lengths.max()) if lengths.size else None,
        "correct": mean(lengths[right]),
        "wrong": mean(lengths[~right]),
        "truncated": mean(lengths[cut]),
    }


def _rates(samples: Samples) -> dict[str, dict[str, float]]:
    """How many samples ended otherwise than in a graded answer, of all that were asked for."""
    cut = samples.written & ~samples.finished
    counts = {"truncated": int(cut.sum())}
    for name in ("no_answer", TOO_LONG, *UNGRADED):
        counts[name] = sum(status == name for status in samples.status)
    return {name: {"count": count, "share": count / len(samples.ids)} for name, count in counts.items()}


def _length_bins(samples: Samples, level: float) -> list[dict[str, Any]]:
    """Accuracy of samples of like length."""
    some = samples.written
    bins = accuracy_by_length(
        samples.tokens[some],
        samples.correct[some],
        samples.place[some],
        bins=int(np.clip(some.sum() // SAMPLES_A_BIN, 1, MOST_BINS)),
        level=level,
    )
    return [
        {
            "low": each.low,
            "high": each.high,
            "samples": each.samples,
            "accuracy": each.accuracy.estimate,
            "low_ci": each.accuracy.low,
            "high_ci": each.accuracy.high,
        }
        for each in bins
    ]


def _detectable(samples: Samples, shares: NDArray[np.float64]) -> dict[str, Any]:
    """From the spread of this one result: with results that have nothing in common, and at best on the same problems.

    At best: where both models solve each problem equally often, so that only sampling tells their results apart. That needs two
    samples of every problem. Results without spread, all right or all wrong, say nothing of either.
    """
    apart = together = None
    if np.ptp(shares) > 0.0:
        spread = float(shares.std(ddof=1))
        apart = minimum_detectable_difference(spread, shares.size, (spread, shares.size), power=POWER, alpha=ALPHA)
        if samples.n.min() > 1:
            noise = float((shares * (1.0 - shares) / (samples.n - 1)).mean())  # variance of a share around its chance
            together = minimum_detectable_difference(math.sqrt(2.0 * noise), shares.size, power=POWER, alpha=ALPHA)
    return {
        "value": apart,
        "same_problems_at_best": together,
        "power": POWER,
        "alpha": ALPHA,
        "note": (
            "value: of two unrelated results with this spread. Two results on the same problems tell smaller differences apart "
            "(reasonrl eval compare), at best same_problems_at_best, where only the noise of sampling differs."
        ),
    }


def _categories(samples: Samples, shares: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Accuracy by subject or level; nothing where no problem has one."""
    of_problem = {int(place): name for place, name in sorted(zip(samples.place, samples.categories, strict=True))}
    names = sorted(set(of_problem.values()))
    if names == [""]:
        return {}
    members = {name: [place for place, own in sorted(of_problem.items()) if own == name] for name in names}
    return {
        name: {"problems": len(places), "accuracy": float(shares[places].mean())} for name, places in members.items()
    }


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers should know."""
    problems, samples, rates, tell = found["problems"], found["samples"], found["rates"], []
    detectable = found["minimum_detectable_difference"]["value"]
    if problems < FEW_PROBLEMS:
        than = f": a difference of {100 * detectable:.1f} points can be chance" if detectable else ""
        tell.append(f"{problems} problem{'s' * (problems > 1)} only{than}")
    if found["n"]["max"] == 1:
        tell.append("one sample a problem: the noise of sampling cannot be told from how hard the problems are")
    if found["n"]["min"] < found["n"]["max"]:
        tell.append(f"problems have {found['n']['min']} to {found['n']['max']} samples; k goes up to the fewest")
    if found["ungraded"]:
        tell.append(
            f"{found['ungraded']} of {samples} samples could not be graded and count as wrong; were they right, the accuracy "
            f"would be {found['accuracy_if_ungraded_right']:.2%} and not {found['accuracy']['estimate']:.2%}"
        )
    if rates[TOO_LONG]["count"]:
        tell.append(
            f"{rates[TOO_LONG]['count']} of {samples} samples count as wrong because their prompt leaves no room for an answer"
        )
    if rates["truncated"]["share"] > MANY_CUT:
        tell.append(
            f"{rates['truncated']['share']:.1%} of the samples were cut at max_new_tokens; a larger limit may score higher"
        )
    if rates["no_answer"]["share"] > MANY_UNANSWERED:
        tell.append(
            f"{rates['no_answer']['share']:.1%} of the samples state no answer that was found: look at some of them"
        )
    return tell


def _interval(found: Interval) -> dict[str, Any]:
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "level": found.level,
        "method": INTERVAL,
    }


def rounded(value: Any) -> Any:
    """The same with floats of 10 digits, so that another way to add up gives the same bytes."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, DIGITS) + 0.0 if isinstance(value, float) else value
