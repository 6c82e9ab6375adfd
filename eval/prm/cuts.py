"""Stage 2 of `reasonrl prm data`: one threshold for all responses, their step ends, and what each must roll out.

L tokens of a response, K steps of a response
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reasonrl.config import ConfigError
from reasonrl.eval.prm.file import Ids
from reasonrl.eval.prm.responses import Response
from reasonrl.functional.confidence import Array, Ends, capped, split, threshold

LEAST_TOKENS = 1000  # that a quantile may be taken of


@dataclass(frozen=True, eq=False)
class Cut:
    """A response in steps."""

    response: Response
    boundaries: Ends  # every end below tau but the last, before the cap
    ends: Ends  # (K,) after it
    owned: tuple[int, ...]  # interior ends to roll out: no earlier response of the problem has cut at the same prefix
    settled: int = 0  # so many of the interior ends, the last ones, are not: the verdict stands there, whatever follows

    @property
    def interior(self) -> Ends:
        """(K - 1,)"""
        return self.ends[:-1]

    def prefix(self, end: int) -> bytes:
        """What identifies the tokens up to an end, among those of its problem."""
        return self.response.token_ids[: end + 1].tobytes()


def pooled(responses: Iterable[Response], special_ids: Ids) -> Array:
    """Confidences of all tokens that were sampled, without special ones; a response that came twice counts twice."""
    kept = [np.repeat(r.confidence[~r.excluded(special_ids)][None], r.times, axis=0).ravel() for r in responses]
    return np.concatenate([*kept, np.empty(0)])


def calibrated(pool: Array, quantile: float) -> float:
    """tau of a pool. Raises ConfigError for one that is too small."""
    if pool.size < LEAST_TOKENS:
        raise ConfigError(
            f"the responses have {pool.size} tokens, and a quantile of fewer than {LEAST_TOKENS} says little about the "
            "model: raise n= or data.size= in another store=, or give the threshold itself with tau="
        )
    return threshold(pool, quantile, least=LEAST_TOKENS)


def cut_problem(
    responses: Sequence[Response],
    tau: float,
    special_ids: Ids,
    max_steps: int,
    stands: Callable[[Ids], bool] | None = None,
) -> list[Cut]:
    """All responses of one problem in steps. stands: whether no continuation of a prefix changes the verdict any more."""
    if not responses:
        return []
    confidences = [response.confidence for response in responses]
    excluded = np.concatenate([response.excluded(special_ids) for response in responses])
    flat, counts = split(np.concatenate(confidences), [c.size for c in confidences], tau, excluded=excluded)
    seen: set[bytes] = set()
    cuts = []
    for response, each, found in zip(responses, confidences, np.split(flat, counts.cumsum()[:-1]), strict=True):
        ends = capped(found, each, max_steps)
        settled = 0 if stands is None else _settled(response, ends[:-1], stands)
        cut = Cut(response, found[:-1], ends, (), settled)
        unsettled = cut.interior[: len(cut.interior) - settled]
        prefixes = [cut.prefix(int(end)) for end in unsettled]
        owned = tuple(int(end) for end, prefix in zip(unsettled, prefixes, strict=True) if prefix not in seen)
        seen.update(prefixes)
        cuts.append(Cut(response, found[:-1], ends, owned, settled))
    return cuts


def _settled(response: Response, interior: Ends, stands: Callable[[Ids], bool]) -> int:
    """How many of the interior ends, counted from the last, have a verdict that stands."""
    count = 0
    for end in interior[::-1]:
        if not stands(response.token_ids[: end + 1]):
            break
        count += 1
    return count
