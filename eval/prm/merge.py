"""The last stage of `reasonrl prm data`: rows of the file, and totals over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.eval.prm.cuts import Cut
from reasonrl.eval.prm.file import Ids, Row
from reasonrl.eval.prm.kinds import Kinds
from reasonrl.eval.prm.labels import Labels, labels

if TYPE_CHECKING:
    from reasonrl.sampled.problems import Asked

NONE = np.empty(0, np.float32)


def all_labels(
    problems: Asked, cuts: Sequence[Sequence[Cut]], rolled: Mapping[str, Mapping[str, Any]] | None
) -> list[list[Labels]]:
    """Of every response of every problem; rolled: the journals' rows by id, None for no labels. Raises ConfigError."""
    if rolled is None:
        return [[(NONE, NONE)] * len(some) for some in cuts]
    return [labels(problem.id, some, rolled) for problem, some in zip(problems.loaded.problems, cuts, strict=True)]


def rows(
    problems: Asked, cuts: Sequence[Sequence[Cut]], labelled: Sequence[Sequence[Labels]], *, repeated: bool
) -> Iterator[Row]:
    """Of every response, in the order of the problems and of their responses. repeated: equal ones have a row each."""
    loaded = problems.loaded
    for problem, question, some, pairs in zip(loaded.problems, loaded.questions, cuts, labelled, strict=True):
        each = [
            (numbers, cut, pair)
            for cut, pair in zip(some, pairs, strict=True)
            for numbers in ([(number,) for number in cut.response.numbers] if repeated else [cut.response.numbers])
        ]
        for numbers, cut, (hard, soft) in sorted(each, key=lambda row: row[0]):
            response = cut.response
            yield Row(
                problem_id=problem.id,
                source=problem.source,
                question=question,
                answer=problem.answer,
                prompt_ids=np.asarray(problem.prompt_ids, np.int32),
                response_ids=response.token_ids,
                logprobs=response.logprobs,
                text=problems.tokenizer.decode(response.token_ids, skip_special_tokens=True),
                given=response.given,
                right=response.right,
                finished=response.finished,
                numbers=np.array(numbers, np.int32),
                step_ends=cut.ends.astype(np.int32),
                hard=hard,
                soft=soft,
            )


def counts(
    cuts: Sequence[Sequence[Cut]],
    labelled: Sequence[Sequence[Labels]],
    rolled: Mapping[str, Mapping[str, Any]],
    rollouts: int,
    special_ids: Ids,
    tokenizer: Any,
) -> dict[str, int]:
    """Totals. responses, right, response_tokens and pool_tokens count equal responses, everything else does not.

    boundaries: interior ends before the cap; ends: after it. tokens: without special ones. hard: labels of interior ends
    that are 1; soft: right continuations of interior ends, of settled ones as if all were rolled out. settled: behind
    the program. closed: last ends. no_verdict: counted as wrong.
    """
    every = list(chain.from_iterable(cuts))
    responses = [cut.response for cut in every]
    sizes = [int((~response.excluded(special_ids)).sum()) for response in responses]
    at, all_tokens = Kinds(tokenizer), Kinds(tokenizer)
    for cut in every:
        at.add(cut.response.token_ids[cut.boundaries])
        all_tokens.add(cut.response.token_ids[~cut.response.excluded(special_ids)])
    interior = [(hard[:-1], soft[:-1]) for pairs in labelled for hard, soft in pairs]
    return {
        "problems": len(cuts),
        "responses": sum(r.times for r in responses),
        "distinct": len(every),
        "duplicates": sum(r.times - 1 for r in responses),
        "right": sum(r.times * r.right for r in responses),
        "finished": sum(r.times * r.finished for r in responses),
        "response_tokens": sum(r.times * len(r.token_ids) for r in responses),
        "pool_tokens": sum(r.times * size for r, size in zip(responses, sizes, strict=True)),
        "tokens": sum(sizes),
        "boundaries": sum(len(cut.boundaries) for cut in every),
        "ends": sum(len(cut.interior) for cut in every),
        "settled": sum(cut.settled for cut in every),
        "steps": sum(len(cut.ends) for cut in every),
        "closed": sum(len(cut.ends) > 0 for cut in every),
        "closed_right": sum(cut.response.right for cut in every if len(cut.ends)),
        "rolled_out": sum(len(row["ends"]) for row in rolled.values()),
        "rollout_tokens": sum(row["tokens"] for row in rolled.values()),
        "hard": round(sum(float(hard.sum()) for hard, _ in interior)),
        "soft": round(sum(rollouts * float(soft.sum(dtype=np.float64)) for _, soft in interior)),
        "no_verdict": sum(r.times * (not r.judged) for r in responses)
        + sum(row["no_verdict"] for row in rolled.values()),
        **{f"boundaries.{kind}": count for kind, count in at.totals().items()},
        **{f"tokens.{kind}": count for kind, count in all_tokens.totals().items()},
    }
