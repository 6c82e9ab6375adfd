"""What the model is given before it writes.

B problems in a step, n rollouts of a problem; lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from reasonrl.core.defaults import Plain
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.types import Prefix, Problem, Request, RolloutGroup, View
from reasonrl.functional.schedules import adaptive_budget, halving_budget, linear_budget

__all__ = ["Plain", "StoredPrefix"]

PROTECTED_STEPS = 100
HALVING_FLOOR = 32  # tokens; the released code gives no budget that small


@dataclass(frozen=True)
class StoredPrefix:
    """Every rollout starts with the opening of one stored solution, shorter from step to step until nothing is given.

    PACE, arXiv 2602.11639, equations 1 and 2. The texts are prepared before the run and never change; all n rollouts
    of a problem share one. A prefix is the first S(step) tokens of the text, at most `view.room`: where the response
    limit is tight, the prefix is shortened and never the prompt or the minimum response. It may be all that is stored:
    whoever prepares the texts leaves out the answer and the last token. A problem without a text starts empty.

    The verifier reads prefix and continuation, for a right step may already stand in the prefix.

    schedule:
        linear: `initial_tokens * (1 - step / protected_steps)`, as in the paper.
        halving: half as much every 20 steps, nothing at 32 tokens or less, as released.
        adaptive: a budget per problem, doubled when its pass rate fell since the last visit and halved otherwise, 0
            below 64. Experimental: in the released code it never runs, and no result is published. Remembers `budget`
            and `pass_rate` of each problem; the first visit changes nothing, as there is no visit before it. A budget
            of 0 stays 0.
    """

    n: int = 8
    initial_tokens: int = 512  # S(0); larger protects more and leaves less to learn; 0 turns it off; paper 256..1024
    protected_steps: int = PROTECTED_STEPS  # linear: the step from which on nothing is given; larger compresses later
    schedule: Literal["linear", "halving", "adaptive"] = "linear"
    cut: Literal["token", "paragraph"] = "token"  # paragraph: whole paragraphs only, up to the first that does not fit
    loss: Literal["policy", "none"] = "policy"  # policy: prefix tokens are trained like sampled ones; none: masked

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)
        check_number("initial_tokens", self.initial_tokens, least=0, whole=True)
        check_number("protected_steps", self.protected_steps, least=1, whole=True)
        check_choice("schedule", self.schedule, ("linear", "halving", "adaptive"))
        check_choice("cut", self.cut, ("token", "paragraph"))
        check_choice("loss", self.loss, ("policy", "none"))
        if self.schedule != "linear" and self.protected_steps != PROTECTED_STEPS:
            raise ValueError(
                f"protected_steps={self.protected_steps} has no effect with schedule={self.schedule}; "
                f"use schedule=linear, or leave it at {PROTECTED_STEPS}"
            )
        if self.schedule == "halving" and 0 < self.initial_tokens <= HALVING_FLOOR:
            raise ValueError(
                f"initial_tokens={self.initial_tokens} with schedule=halving never gives a prefix: budgets of "
                f"{HALVING_FLOOR} tokens or less are dropped; use schedule=linear, or initial_tokens=0 for none"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Stored prefixes, unless none is ever given."""
        return frozenset({"stored_prefix"}) if self.initial_tokens else frozenset()

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """One round: all n rollouts behind the same prefix."""
        if view.round:
            return ()
        budget = self._budget(view.step, view.numbers)
        return (Request(self._prefix(problem, min(budget, view.room)), self.n),)

    def _budget(self, step: int, numbers: Mapping[str, float]) -> int:
        """S(step) of a problem of which this is remembered."""
        if self.schedule == "linear":
            return linear_budget(step, initial=self.initial_tokens, steps=self.protected_steps)
        if self.schedule == "halving":
            return halving_budget(step, initial=self.initial_tokens, floor=HALVING_FLOOR)
        return int(numbers.get("budget", self.initial_tokens))

    def _prefix(self, problem: Problem, limit: int) -> Prefix:
        tokens = self._fitting(problem, limit)
        if not tokens:
            return Prefix()
        return Prefix(np.concatenate(problem.stored_prefix)[:tokens], loss=self.loss, scored=True)

    def _fitting(self, problem: Problem, limit: int) -> int:
        """How many of the stored tokens a limit admits."""
        ends = [0, *accumulate(paragraph.size for paragraph in problem.stored_prefix)]
        return min(limit, ends[-1]) if self.cut == "token" else max(end for end in ends if end <= limit)

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """Of each problem its next budget and its pass rate, for the adaptive schedule only."""
        if self.schedule != "adaptive" or not self.initial_tokens:
            return Memory()
        scores: dict[str, list[float]] = {}  # a problem may come twice in a step
        for group in groups:
            if group.rollouts:
                scores.setdefault(group.problem.id, []).extend(group.scores.tolist())
        return Memory(problems={id: self._visited(own, ledger.numbers(id)) for id, own in scores.items()})

    def _visited(self, scores: Sequence[float], numbers: Mapping[str, float]) -> dict[str, float]:
        pass_rate = sum(scores) / len(scores)
        budget = int(numbers.get("budget", self.initial_tokens))
        if "pass_rate" in numbers:
            budget = adaptive_budget(budget, pass_rate < numbers["pass_rate"], cap=self.initial_tokens)
        return {"budget": budget, "pass_rate": pass_rate}

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """The budget in tokens; shares of problems with nothing stored, with a wrong answer's opening, and shortened; of
        rollouts with a prefix."""
        if not groups or not self.initial_tokens:
            return {}
        budgets = [self._budget(group.step, ledger.numbers(group.problem.id)) for group in groups]
        stored = [any(paragraph.size for paragraph in group.problem.stored_prefix) for group in groups]
        numbers = {"budget": float(np.mean(budgets)), "missing": 1.0 - float(np.mean(stored))}
        right = [group.problem.stored_right for group in groups if group.problem.stored_right is not None]
        if right:
            numbers["wrong"] = 1.0 - float(np.mean(right))
        given = [[rollout.prefix.token_ids.size for rollout in group.rollouts] for group in groups]
        if any(given):
            numbers["used"] = float(np.mean([tokens > 0 for own in given for tokens in own]))
            wanted = [self._fitting(group.problem, budget) for group, budget in zip(groups, budgets, strict=True)]
            short = [max(own) < tokens for own, tokens in zip(given, wanted, strict=True) if own]
            numbers["shortened"] = float(np.mean(short))
        return numbers
