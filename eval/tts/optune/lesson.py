"""What an edit is computed from: question, attempt and the turn that says it is wrong, as one text of tokens.

One function for training and for use, so that an editor meets the tokens it was trained on. The attempt's tokens are as they
were sampled, its end token is the first of the turn, and nothing is tokenised anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reasonrl.eval.tts.base import Step
from reasonrl.eval.tts.feedback import FeedbackPolicy, body


def lesson(
    prompt_ids: Sequence[int],
    attempt_ids: Sequence[int],
    finished: bool,
    feedback: FeedbackPolicy,
    words: str,
    knobs: Mapping[str, Any] | None = None,
) -> Step:
    """The step of an attempt that was answered with `words`."""
    turn = feedback.turn(words, header=False)
    answer = body(attempt_ids, finished)
    return Step(tuple(prompt_ids), answer, turn, header_tokens=len(turn) - 1, knobs=dict(knobs or {}))


def tokens(step: Step) -> tuple[int, ...]:
    """All of it, in order."""
    return (*step.prompt_ids, *step.attempt_ids, *step.feedback_ids)
