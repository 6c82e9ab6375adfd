"""UFT: hints whose length is drawn from a schedule that falls from nearly all to nothing, the same for every problem.

UFT: Unifying Supervised and Reinforcement Fine-Tuning, arXiv 2505.16984. Hint tokens get a supervised term.
What we changed is listed in `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrl.core import Loss, Method, Prefix, Problem, Request, View, check_number, with_parts
from reasonrl.functional.schedules import cosine
from reasonrl.parts.hints import cap, hint, hint_ids, longest_hint


@dataclass(frozen=True)
class CosineBinomialHint:
    """Of the solution in at most `chunks` chunks a binomial number, with probability `share(step)`: one draw a problem."""

    n: int = 4
    high: float = 0.95  # share at the start; larger gives more away
    low: float = 0.05  # share at the end of the schedule
    steps: int = 300  # length of the schedule; no hints after it
    chunks: int = 5
    weight: float = 0.001  # of the imitation term; larger pulls harder towards the reference solution

    needs = frozenset({"solution_steps"})

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)
        check_number("low", self.low, least=0.0, most=1.0)
        check_number("high", self.high, least=self.low, most=1.0)
        check_number("steps", self.steps, least=1, whole=True)
        check_number("chunks", self.chunks, least=1, whole=True)
        check_number("weight", self.weight, least=0.0)

    def share(self, step: int) -> float:
        """p(step), steps counted from 1; 0 after the schedule."""
        return cosine(step, steps=self.steps, high=self.high, low=self.low) if step <= self.steps else 0.0

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """One round: all rollouts behind the same hint."""
        if view.round:
            return ()
        units = len(problem.solution_steps)
        chunks = min(self.chunks, units)
        drawn = int(view.rng.binomial(chunks, self.share(view.step)))
        asked = min(round(drawn / max(chunks, 1) * units), cap(problem, "step"))
        ids = hint_ids(problem, longest_hint(problem, asked, "step", view.room), "step")
        return (Request(hint(ids, drawn / chunks, "nll_token_mean", self.weight) if ids.size else Prefix(), self.n),)


@with_parts
def build(*, n: int = 4, hint_steps: int = 300, hint_weight: float = 0.001, kl: float = 0.001) -> Method:
    """UFT as its code runs it.

    Args:
        n: rollouts per problem. Larger: a better baseline.
        hint_steps: steps until hints end; 300 of the paper's 500.
        hint_weight: weight of the mean negative log-likelihood of hint tokens.
        kl: pull towards the initial model. 0 loads no reference policy.

    Deviations from the released code: the step that states the answer is never given, a right format earns nothing, and
    the logits of hint tokens are not clamped.
    """
    prefix = CosineBinomialHint(n=n, steps=hint_steps, weight=hint_weight)
    return Method("uft", prefix, loss=Loss("token-mean", kl=kl))
