"""Prefix-RFT: one rollout of a group continues a piece of the reference solution, and the piece is trained with it.

Blending Supervised and Reinforcement Fine-Tuning with Prefix Sampling, arXiv 2507.01679.
What we changed is listed in `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasonrl.core import Floats, Ledger, Loss, Method, Prefix, Problem, Request, RolloutGroup, View, with_parts
from reasonrl.core.knobs import check_number
from reasonrl.functional.schedules import cosine
from reasonrl.parts.hints import cap, hint, hint_ids, longest_hint, units

HIGH, LOW = 0.95, 0.05  # share of the solution's tokens given away: at most, and at least at the end of the run


@dataclass(frozen=True)
class Demonstration:
    """n - 1 plain rollouts, and one behind a share of the solution drawn from [low(step), 0.95]."""

    n: int = 8
    needs = frozenset({"solution_steps"})

    def __post_init__(self) -> None:
        check_number("n", self.n, least=2, whole=True)

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """One round; n plain rollouts where nothing can be given."""
        share = view.rng.uniform(cosine(view.step, steps=view.total_steps, high=HIGH, low=LOW), HIGH)
        asked = min(int(share * units(problem, "token")), cap(problem, "token"))
        ids = hint_ids(problem, longest_hint(problem, asked, "token", view.room), "token")
        hybrid = (Request(hint(ids, share, "policy", 0.0), 1),) if ids.size else ()
        return () if view.round else (Request(Prefix(), self.n - len(hybrid)), *hybrid)


@dataclass(frozen=True)
class SplitAdvantage:
    """Plain rollouts against their own mean; a continuation its whole reward; its prefix the gain over the plain ones.

    Of all prefix tokens of a step only the share `keep` with the highest entropy is trained. Larger imitates more.
    """

    keep: float = 0.2
    needs = frozenset({"entropy"})

    def __post_init__(self) -> None:
        check_number("keep", self.keep, least=0.0, most=1.0)

    def __call__(self, groups: Sequence[RolloutGroup], rewards: Sequence[Floats], ledger: Ledger) -> list[list[Floats]]:
        """B times n rows (L,), prefix tokens first. Dropped groups, of which entropy may be unknown, train nothing."""
        hybrids = [r for g in groups for r in g.rollouts if r.prefix.loss == "policy" and "entropy" in r.aux]
        entropy = np.concatenate([np.zeros(0), *(r.aux["entropy"][: r.prefix.token_ids.size] for r in hybrids)])
        least = float(np.quantile(entropy, 1.0 - self.keep)) if entropy.size else np.inf
        pairs = zip(groups, rewards, strict=True)
        return [self._rows(g, np.array(r), least) if g.kept else g.per_token(np.array(r)) for g, r in pairs]

    def _rows(self, group: RolloutGroup, rewards: Floats, least: float) -> list[Floats]:
        plain = np.array([r.prefix.loss != "policy" for r in group.rollouts], dtype=bool)
        baseline = rewards[plain].mean() if plain.any() else 0.0
        rows = list(group.per_token(np.where(plain, rewards - baseline * (plain.sum() > 1), rewards)))
        for i in np.flatnonzero(~plain):
            entropy = group.rollouts[i].aux["entropy"][: group.rollouts[i].prefix.token_ids.size]
            trained = np.where(entropy >= least, rewards[i] - baseline, 0.0)
            rows[i] = np.concatenate([trained, rows[i][entropy.size :]])
        return rows


@with_parts
def build(*, n: int = 8, keep: float = 0.2) -> Method:
    """`n` rollouts, one of them hybrid; `keep`: the share of prefix tokens that is trained.

    Deviations: the most uncertain tokens are chosen over the step (released: a micro-batch, which depends on packing);
    the step that states the answer is never given away; the continuation alone is scored.
    """
    return Method("prefix_rft", Demonstration(n), advantage=SplitAdvantage(keep), loss=Loss("token-mean"))
