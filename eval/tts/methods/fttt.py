"""Feedback at test time: after a wrong attempt, a small gradient step on the words that say so, then the bare question again.

arXiv 2502.15771. Memory lies in weights that belong to the question and end with it; the context never grows. With `plus`
the step also learns a list of mistakes that the model, without those weights, writes about its attempt.
This file decides what is tried and learned, and in which order; how a step is taken is the backend's.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Attempt, Budget, Log, Posed, Step, Turns, Verifier, Yielded
from reasonrl.eval.tts.feedback import INCORRECT, REFLECT, body

if TYPE_CHECKING:
    import numpy as np

    from reasonrl.eval.tts.backends import Learner

OPTIMIZERS = ("adamw", "sgd")
SEEN_IN_16_BITS = 1e-3  # a learning rate whose steps outputs of 8 bits' precision can show
REFLECTIONS = 2  # drawn until one ends by itself; without one the step learns the words alone


@dataclass(frozen=True)
class FTTT:
    """plus, c: learn a reflection too, with weight c. lr, steps: of a gradient step, and steps a failed attempt.

    rank, alpha, dropout: of the LoRA on `targets`, names of linear modules joined by +, in all layers. prefix_grad: let
    gradients flow through question and attempt, which are else only read.
    sample_in_train_mode: dropout while sampling, as in the released code.
    """

    name: ClassVar[str] = "fttt"
    needs: ClassVar[frozenset[str]] = frozenset({"sample", "grad"})
    turns: ClassVar[bool] = True
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    plus: bool = False
    c: float = 1.0
    lr: float = 1e-5
    steps: int = 1
    rank: int = 4
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str = "q_proj+v_proj"
    optimizer: str = "adamw"
    prefix_grad: bool = False
    sample_in_train_mode: bool = False
    words: str = INCORRECT
    reflect: str = REFLECT

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name in ("lr", "alpha"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be greater than 0, got {value}")
        require(self.c >= 0 and math.isfinite(self.c), f"c must be at least 0, got {self.c}")
        require(self.steps >= 1 and self.rank >= 1, f"steps and rank must be at least 1, got {self.steps}, {self.rank}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        require(
            self.optimizer in OPTIMIZERS, f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
        )

    def check(self, model_path: str, tokenizer: Any) -> None:
        """Raises ConfigError for targets that the model lacks."""
        from reasonrl.eval.tts.adapters import check_targets

        check_targets(model_path, self.targets)

    def advice(self, dtype: str) -> str | None:
        """What should be known before the work, of a model in this dtype."""
        if dtype == "float32" or self.lr >= SEEN_IN_16_BITS:
            return None
        return f"in {dtype} most of what steps of method.lr={self.lr:g} change is rounded away: engine.dtype=float32 keeps it"

    def learner(self, model: Any, tokenizer: Any, *, end_ids: Sequence[int]) -> Learner:
        """What takes the steps. Raises ConfigError for targets that the model lacks."""
        from reasonrl.eval.tts.adapters import FeedbackLearner

        return FeedbackLearner(model, self)

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Attempts until one is right. Only an attempt that is known to be wrong is learned from."""
        log = Log(posed, budget, verifier)
        while not log.over:
            attempt = yield from log.attempt()
            if attempt.verdict == "correct":
                return log.trace("correct", oracle=True)
            if attempt.verdict == "wrong":
                yield from log.step((yield from self._lesson(posed, log, attempt)))
        return log.trace(log.over, oracle=True)

    def _lesson(self, posed: Posed, log: Log, attempt: Attempt) -> Generator[Yielded, Any, Step]:
        assert posed.feedback is not None
        knobs = asdict(self)
        answer = body(attempt.token_ids, attempt.finished)
        reflection = (yield from self._reflection(posed, log, attempt)) if self.plus else ()
        if not reflection:
            words = posed.feedback.turn(self.words, header=False)
            return Step(posed.prompt_ids, answer, words, header_tokens=len(words) - 1, knobs=knobs)
        around = posed.feedback.around(self.words)
        return Step(
            posed.prompt_ids,
            answer,
            around.opening_ids,
            reflection_ids=(*reflection, *around.closing_ids),
            header_tokens=len(around.opening_ids) - 1,
            knobs=knobs,
        )

    def _reflection(self, posed: Posed, log: Log, attempt: Attempt) -> Generator[Yielded, Any, tuple[int, ...]]:
        """The tokens of a list of mistakes; () where none was written to its end."""
        assert posed.feedback is not None
        asked = (*posed.prompt_ids, *posed.feedback.after(attempt.token_ids, attempt.finished, self.reflect))
        for _ in range(REFLECTIONS):
            if posed.room_after(asked) < 1:
                break
            made = yield from log.attempt(asked, phase="reflection", adapter=False)
            if made.finished:
                return body(made.token_ids, True)
        return ()
