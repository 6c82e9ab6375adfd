"""Made-up problems, a made-up model and odd groups: what the contract shows to a strategy.

Nothing here is a language model: responses are random token ids, and right more often the longer the hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reasonrl.core.ledger import Ledger
from reasonrl.core.method import Method
from reasonrl.core.types import Prefix, Problem, Request, Rollout, RolloutGroup, View, plan_rng

MAX_ROUNDS = 64  # a plan that still asks after this many rounds is taken not to end
MOST_TOKENS = 48  # longest made-up response, also the run limit that the contract assumes
TOTAL_STEPS = 100
ROOM = 1000
AUX = {"old_logprobs": -1, "entropy": 1, "step_scores": 1}  # and their sign


class EndlessPlan(RuntimeError):
    """A plan kept asking."""


def problems(count: int = 6) -> list[Problem]:
    """Problems with everything a part may need: four solution steps, three paragraphs of stored prefix."""
    rng = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(3, 400, size=int(rng.integers(least, most))).tolist()  # type: ignore[no-any-return]

    return [
        Problem(
            id=f"specimen-{i}",
            prompt_ids=ids(4, 12),  # type: ignore[arg-type]
            answer=str(i),
            solution_steps=tuple(ids(3, 9) for _ in range(4)),  # type: ignore[misc]
            stored_prefix=tuple(ids(5, 20) for _ in range(3)),  # type: ignore[misc]
            source="contract",
        )
        for i in range(count)
    ]


def rollout(
    rng: np.random.Generator,
    prefix: Prefix | None = None,
    *,
    tokens: int | None = None,
    score: int | None = None,
    request: Request | None = None,
    round: int = 0,
) -> Rollout:
    """One made-up response; what is not given is drawn."""
    prefix = prefix or Prefix()
    length = int(rng.integers(0, MOST_TOKENS + 1)) if tokens is None else tokens
    drawn = int(rng.random() < 0.2 + 0.6 * (prefix.rate or 0.0)) if score is None else score
    total = prefix.token_ids.size + length
    return Rollout(
        prefix=prefix,
        token_ids=rng.integers(3, 400, size=length).astype(np.int32),
        logprobs=-rng.exponential(0.5, size=length).astype(np.float32),
        score=drawn if length else 0,
        finished=length < MOST_TOKENS,
        round=round,
        parent=request.parent if request else None,
        aux={name: sign * rng.uniform(0.01, 0.99, size=total).astype(np.float32) for name, sign in AUX.items()},
    )


def plan_once(method: Method, problem: Problem, view: View) -> tuple[Request, ...]:
    """What the prefix policy asks for."""
    return tuple(method.prefix.plan(problem, view))


def first_view(
    problem: Problem, *, step: int = 1, room: int = ROOM, seed: int = 0, ledger: Ledger | None = None
) -> View:
    """The view of a problem's first round."""
    own = (ledger or Ledger()).view("prefix")
    rng = plan_rng(seed, step, problem.id)
    return View(step, TOTAL_STEPS, rng, room, numbers=own.numbers(problem.id), scalars=own.scalars())


def play(
    method: Method, problem: Problem, *, step: int = 1, room: int = ROOM, seed: int = 0, ledger: Ledger | None = None
) -> tuple[list[Request], RolloutGroup]:
    """Sample one problem to the end of its plan, with a made-up model: every request, and the group.

    Raises:
        EndlessPlan: the plan still asks after `MAX_ROUNDS` rounds.
    """
    view = first_view(problem, step=step, room=room, seed=seed, ledger=ledger)
    model = plan_rng(seed + 1, step, problem.id)
    asked: list[Request] = []
    for round in range(MAX_ROUNDS):
        requests = plan_once(method, problem, replace(view, rng=plan_rng(seed, step, problem.id, round), round=round))
        if not requests:
            return asked, RolloutGroup(problem, step, view.rollouts, view.probes)
        asked += requests
        answers = [(r, rollout(model, r.prefix, request=r, round=round)) for r in requests for _ in range(r.n)]
        view = replace(
            view,
            rollouts=view.rollouts + tuple(answer for r, answer in answers if r.train),
            probes=view.probes + tuple(answer for r, answer in answers if not r.train),
        )
    raise EndlessPlan(f"problem {problem.id!r}: plan still asks after {MAX_ROUNDS} rounds; return () to end")


def trains_prefixes(method: Method) -> bool:
    """Whether some plan, for a made-up problem that has everything, puts tokens in front that are trained like sampled ones."""
    asked = (request for problem in problems() for request in play(method, problem)[0])
    return any(request.prefix.loss == "policy" and request.prefix.token_ids.size > 0 for request in asked)


def played_step(method: Method, step: int, ledger: Ledger) -> list[RolloutGroup]:
    """One step over all specimens, sampled by the method's own plan."""
    return [play(method, problem, step=step, ledger=ledger)[1] for problem in problems()]


def made_group(
    index: int, scores: Sequence[int], lengths: Sequence[int], *, kept: bool = True, prefix: Prefix | None = None
) -> RolloutGroup:
    """A group with these verdicts and lengths."""
    rng = np.random.default_rng([1, index])
    pairs = zip(scores, lengths, strict=True)
    answers = tuple(rollout(rng, prefix, tokens=length, score=score) for score, length in pairs)
    return RolloutGroup(problems(index + 1)[index], 1, answers, kept=kept)


def odd_groups() -> list[RolloutGroup]:
    """What training meets: all right, all wrong, alone, uneven, equal lengths, nothing written, dropped."""
    shapes: list[tuple[list[int], list[int]]] = [
        ([1, 0, 1, 0], [10, 20, 30, 40]),
        ([1, 1, 1, 1], [10, 20, 30, 40]),
        ([0, 0, 0, 0], [10, 20, 30, 48]),
        ([1], [12]),
        ([0], [12]),
        ([1, 0, 0, 1, 1, 0, 0], [1, 2, 3, 5, 8, 13, 21]),
        ([1, 0, 1], [16, 16, 16]),
        ([1, 1, 1], [16, 16, 16]),
        ([0, 1, 0], [0, 9, 0]),
        ([0, 0], [0, 0]),
        ([], []),
    ]
    groups = [made_group(i, scores, lengths) for i, (scores, lengths) in enumerate(shapes)]
    return [*groups, made_group(len(shapes), [1, 0, 1, 0], [5, 15, 25, 35], kept=False)]


def prefixed_groups() -> list[RolloutGroup]:
    """Groups behind a masked prefix and behind an imitated one: neither may be trained as policy."""
    masked = Prefix(np.arange(3, 10, dtype=np.int32), rate=0.5)
    imitated = Prefix(np.arange(3, 8, dtype=np.int32), loss="imitate", weight=0.001, rate=0.25)
    return [
        made_group(0, [1, 0, 1, 0], [10, 20, 30, 40], prefix=masked),
        made_group(1, [1, 0, 0], [7, 0, 9], prefix=imitated),
    ]
