"""A process reward model beside training: it scores the ends of steps before credit is assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reasonrl.core import Ledger, Method, Rollout, RolloutGroup
from reasonrl.core.method import part_needs
from reasonrl.core.protocols import ScoresSteps
from reasonrl.engine.prm import Scorer, Steps, beyond_context


def scored_part(method: Method) -> tuple[str, ScoresSteps]:
    """The slot and the part that say where to score. Raises ValueError unless there is exactly one."""
    slots = [slot for slot, part in method.parts.items() if "prm" in part_needs(part)]
    part = method.parts[slots[0]] if len(slots) == 1 else None
    if not isinstance(part, ScoresSteps):
        raise ValueError(
            f"{method.name}: one part may need `prm`, and it must have step_ends(groups, ledger) and check_labels(labels); "
            f"these need it: {', '.join(slots) or 'none'}"
        )
    return slots[0], part


def with_step_scores(
    method: Method, groups: Sequence[RolloutGroup], ledger: Ledger, questions: Mapping[str, str], scorer: Scorer
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """The groups with `aux["step_scores"]` on each rollout of those that are kept, and what to record of it.

    questions: problem id -> bare question. Raises ValueError as `scored_part` does.
    """
    slot, part = scored_part(method)
    kept = [group for group in groups if group.kept]
    ends = part.step_ends(kept, ledger.view(slot))
    items = [
        Steps(
            question=questions[group.problem.id],
            prompt_ids=group.problem.prompt_ids.tolist(),
            response_ids=np.concatenate([rollout.prefix.token_ids, rollout.token_ids]).tolist(),
            ends=(own + rollout.prefix.token_ids.size).tolist(),
        )
        for group, rows in zip(kept, ends, strict=True)
        for rollout, own in zip(group.rollouts, rows, strict=True)
    ]
    scores = scorer.score(items)
    pairs = iter(zip(items, scores, strict=True))
    made = [
        replace(group, rollouts=tuple(_with_scores(r, *next(pairs)) for r in group.rollouts)) if group.kept else group
        for group in groups
    ]
    total = sum(len(item.ends) for item in items)
    metrics = {"prm/steps": float(total)}
    known = np.concatenate([np.zeros(0), *scores])
    if total:
        metrics["prm/beyond_context"] = beyond_context(scores) / total
    if np.isfinite(known).any():
        metrics["prm/score"] = float(np.nanmean(known))
    return made, metrics


def _with_scores(rollout: Rollout, item: Steps, scores: Any) -> Rollout:
    values = np.full(rollout.total_tokens, np.nan, dtype=np.float32)
    values[np.asarray(item.ends, dtype=np.int64)] = scores
    return replace(rollout, aux={**rollout.aux, "step_scores": values})
