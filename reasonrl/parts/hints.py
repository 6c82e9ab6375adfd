"""Hints: the opening of a problem's reference solution, given away so that the policy has something to learn from.

    S units of a solution (its steps, or its tokens), m rounds of a problem in one step, n its rollouts over all rounds

A hint is cut in whole units, at the start of the assistant's turn. The last step states the answer and is never given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.types import EMPTY, Ids, Prefix, Problem, Request, Rollout, RolloutGroup, View
from reasonrl.functional.item_response import Duplicates, ItemResponse, Solver, descent_bound, fit_item_response

Unit: TypeAlias = Literal["step", "token"]
HintLoss: TypeAlias = Literal["nll_token_mean", "nll_token_sum", "policy", "none"]

HINT_LOSSES: tuple[HintLoss, ...] = ("nll_token_mean", "nll_token_sum", "policy", "none")


@dataclass(frozen=True)
class Round:
    """What one round of one problem came to."""

    number: int
    rate: float  # the rate that goes into the fit
    accuracy: float
    hint_tokens: int


def units(problem: Problem, unit: Unit) -> int:
    """S: units of the whole solution, the part that is never given included."""
    steps = problem.solution_steps
    return len(steps) if unit == "step" else sum(step.size for step in steps)


def cap(problem: Problem, unit: Unit) -> int:
    """The most units a hint may have: S - 1, and never the last step, which states the answer."""
    steps = problem.solution_steps
    if unit == "step":
        return max(len(steps) - 1, 0)
    return min(max(units(problem, unit) - 1, 0), sum(step.size for step in steps[:-1]))


def hint_ids(problem: Problem, count: int, unit: Unit) -> Ids:
    """The first `count` units of the solution as tokens."""
    if not count:
        return EMPTY
    steps = problem.solution_steps
    return np.concatenate(steps[:count]) if unit == "step" else np.concatenate(steps)[:count]


def longest_hint(problem: Problem, count: int, unit: Unit, room: int) -> int:
    """`count`, lowered by whole units until the hint leaves the response its room."""
    if unit == "token":
        return min(count, room)
    lengths = np.cumsum([step.size for step in problem.solution_steps[:count]])
    return int(np.searchsorted(lengths, room, side="right"))


def hint(ids: Ids, rate: float, loss: HintLoss, weight: float) -> Prefix:
    """The prefix that gives `ids` away. Nothing is trained on an empty one."""
    if not ids.size or loss == "none":
        return Prefix(ids, rate=rate)
    if loss == "policy":
        return Prefix(ids, "policy", rate=rate)
    return Prefix(ids, "imitate", weight * (ids.size if loss == "nll_token_sum" else 1), rate=rate)


@dataclass(frozen=True)
class AdaptiveHint:
    """As much of the solution as keeps accuracy at `target`, re-planned in every round of a step.

    SEELE, arXiv 2509.06923, section 4.2 and algorithm 1. After each round a three-parameter logistic curve of accuracy
    against hint rate is fitted to the rounds of this step and inverted at `target`; the rate of the last round is
    remembered for the problem's next epoch. `Prefix.rate` is the rate that enters the fit.

    A problem without a solution, or with one step, gets no hint and all n rollouts at once.
    """

    n: int = 8  # rollouts of a problem in one step, over all rounds
    rounds: int = 4  # more: closer to the target, and as many more waits for the longest answer; usual 3..6
    target: float = 0.5  # accuracy aimed at, in (0, 1); larger gives more away
    unit: Unit = "step"
    record: Literal["raw", "effective"] = (
        "raw"  # what enters the fit: the rate asked for, or the share given after rounding
    )
    duplicates: Duplicates = "per_round"  # rounds of equal rate count each (equation 13), or once
    store: Literal["last_used", "refit"] = "last_used"  # remembered: the last round's rate, or one more fit
    solver: Solver = "grid"
    loss: HintLoss = "nll_token_mean"
    weight: float = 0.001  # gamma of the imitation term; larger pulls harder towards the reference solution

    needs = frozenset({"solution_steps"})

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)
        check_number("rounds", self.rounds, least=1, whole=True)
        if self.n % self.rounds:
            raise ValueError(
                f"n={self.n} rollouts do not divide into rounds={self.rounds}: choose n as a multiple of rounds, "
                f"for example n={self.rounds * max(1, round(self.n / self.rounds))}"
            )
        check_number("target", self.target, above=0.0, below=1.0)
        check_choice("unit", self.unit, ("step", "token"))
        check_choice("record", self.record, ("raw", "effective"))
        check_choice("duplicates", self.duplicates, ("per_round", "per_distinct_rate"))
        check_choice("store", self.store, ("last_used", "refit"))
        check_choice("solver", self.solver, ("grid", "trf"))
        check_choice("loss", self.loss, HINT_LOSSES)
        check_number("weight", self.weight, least=0.0)

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """n / rounds rollouts behind this round's hint; all n at once where nothing can be given."""
        most = cap(problem, self.unit)
        if view.round >= (self.rounds if most else 1):
            return ()
        if not most:
            return (Request(Prefix(), self.n),)
        rate = self.rate(problem, view)
        asked = min(round(rate * units(problem, self.unit)), most)
        count = longest_hint(problem, asked, self.unit, view.room)
        if count < asked or self.record == "effective":  # a shortened hint says nothing about the rate asked for
            rate = count / units(problem, self.unit)
        ids = hint_ids(problem, count, self.unit)
        return (Request(hint(ids, rate, self.loss, self.weight), self.n // self.rounds),)

    def rate(self, problem: Problem, view: View) -> float:
        """The hint rate of this round, in [0, 1]: remembered or pessimistic at first, then where the fit says."""
        seen = rounds_of(view.rollouts)
        if seen:
            return float(self._fit([seen]).rate_for(self.target)[0])
        s = units(problem, self.unit)
        return view.numbers.get("rate", (s - 1) / s)

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """Per problem, the `rate` that its next epoch starts with."""
        played = [(group.problem.id, seen) for group in groups if (seen := rounds_of(group.rollouts))]
        rates = [seen[-1].rate for _, seen in played]
        if self.store == "refit" and played:
            rates = self._fit([seen for _, seen in played]).rate_for(self.target).tolist()
        return Memory(problems={id: {"rate": rate} for (id, _), rate in zip(played, rates, strict=True)})

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """`hint/*`: over the problems that got a hint plan, except `hint/no_solution`, which is over all."""
        filled = [group for group in groups if group.rollouts]
        if not filled:
            return {}
        played = [(group, seen) for group in filled if (seen := rounds_of(group.rollouts))]
        metrics = {"hint/no_solution": 1.0 - len(played) / len(filled)}
        if not played:
            return metrics
        every = [one for _, seen in played for one in seen]
        last = [(group, seen[-1]) for group, seen in played]
        capped = [one.hint_tokens == hint_ids(g.problem, cap(g.problem, self.unit), self.unit).size for g, one in last]
        metrics |= {
            "hint/rate": float(np.mean([one.rate for one in every])),
            "hint/tokens": float(np.mean([one.hint_tokens for one in every])),
            "hint/at_cap": float(np.mean(capped)),
            "hint/unsolved_at_cap": float(
                np.mean([c and not one.accuracy for c, (_, one) in zip(capped, last, strict=True)])
            ),
            # what can be learned behind these hints, as a share of what accuracies of one half would allow
            "hint/learnable": float(np.mean(descent_bound([one.accuracy for one in every], beta=0.125))),
            "hint/target_distance": float(np.mean([abs(one.accuracy - self.target) for _, one in last])),
            "hint/fit_error": float(np.mean(self._fit([seen for _, seen in played]).sse)),
            "hint/cold": float(np.mean([ledger.number(g.problem.id, "rate", -1.0) < 0 for g, _ in played])),
        }
        for number in range(self.rounds):
            accuracies = [one.accuracy for one in every if one.number == number]
            if accuracies:
                metrics[f"hint/accuracy_round_{number + 1}"] = float(np.mean(accuracies))
        return metrics

    def _fit(self, problems: Sequence[Sequence[Round]]) -> ItemResponse:
        rates, accuracies = np.zeros((2, len(problems), self.rounds))
        known = np.zeros(rates.shape, dtype=bool)
        for i, seen in enumerate(problems):
            rates[i, : len(seen)] = [one.rate for one in seen]
            accuracies[i, : len(seen)] = [one.accuracy for one in seen]
            known[i, : len(seen)] = True
        return fit_item_response(rates, accuracies, known=known, duplicates=self.duplicates, solver=self.solver)


def rounds_of(rollouts: Sequence[Rollout]) -> list[Round]:
    """The hinted rounds in order. A round of which no rollout survived is missing: it says nothing."""
    if not rollouts or all(rollout.prefix.rate is None for rollout in rollouts):
        return []
    rounds: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.prefix.rate is not None:
            rounds.setdefault(rollout.round, []).append(rollout)
    return [
        Round(
            number,
            float(members[0].prefix.rate or 0.0),
            sum(r.score for r in members) / len(members),
            members[0].prefix.token_ids.size,
        )
        for number, members in sorted(rounds.items())
    ]


@dataclass(frozen=True)
class FixedHint:
    """The same share of every solution, in every step: what adapting is compared with."""

    n: int = 8
    rate: float = 0.5  # share of the units, rounded; larger gives more away
    unit: Unit = "step"
    loss: HintLoss = "nll_token_mean"
    weight: float = 0.001

    needs = frozenset({"solution_steps"})

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)
        check_number("rate", self.rate, least=0.0, most=1.0)
        check_choice("unit", self.unit, ("step", "token"))
        check_choice("loss", self.loss, HINT_LOSSES)
        check_number("weight", self.weight, least=0.0)

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """One round."""
        if view.round:
            return ()
        asked = min(round(self.rate * units(problem, self.unit)), cap(problem, self.unit))
        ids = hint_ids(problem, longest_hint(problem, asked, self.unit, view.room), self.unit)
        return (Request(hint(ids, self.rate, self.loss, self.weight) if ids.size else Prefix(), self.n),)
