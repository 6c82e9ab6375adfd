"""A learned editor changes the weights after an attempt, in the place of a gradient step. arXiv 2502.15771, OpTune.

This file decides which attempts come from edited weights; how an edit is made is `reasonrl.eval.tts.optune`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Budget, Log, Posed, Turns, Verifier
from reasonrl.eval.tts.feedback import INCORRECT, FeedbackPolicy
from reasonrl.eval.tts.optune.lesson import lesson

if TYPE_CHECKING:
    import numpy as np

    from reasonrl.eval.tts.backends import Learner
    from reasonrl.eval.tts.optune.card import Card

SCHEDULES = ("alternate", "chain")


@dataclass(frozen=True)
class OpTune:
    """editor: the folder that `reasonrl optune train` made. schedule: `alternate` edits for every second attempt, `chain` for
    every one but the first. other_model: use an editor with other weights than it was trained on.

    An edit starts from the base weights and follows from the attempt just before it; edits do not add up.
    """

    name: ClassVar[str] = "optune"
    needs: ClassVar[frozenset[str]] = frozenset({"sample", "grad"})
    turns: ClassVar[bool] = True
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    editor: str | None = None
    schedule: str = "alternate"
    words: str = INCORRECT
    other_model: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        require(self.schedule in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Attempts until one is right. After an attempt that could not be verified the next comes from the base weights."""
        assert posed.feedback is not None
        log = Log(posed, budget, verifier)
        edited = False
        while not log.over:
            attempt = yield from log.attempt(adapter=edited)
            if attempt.verdict == "correct":
                return log.trace("correct", oracle=True)
            edited = attempt.verdict != "error" and (self.schedule == "chain" or not edited)
            if edited and not log.over:
                made = (attempt.token_ids, attempt.finished)
                yield from log.step(lesson(posed.prompt_ids, *made, posed.feedback, self.words, asdict(self)))
        return log.trace(log.over, oracle=True)

    # The editor

    def fingerprints(self) -> dict[str, str]:
        """Which editor it is, whatever its folder is called."""
        from reasonrl.eval.tts.optune.card import sha256

        return {"editor": sha256(self.editor)} if self.editor else {}

    def check(self, model_path: str, tokenizer: Any) -> None:
        """Raise ConfigError for an editor that is missing, or of another model or other feedback. Loads no model."""
        from reasonrl.config import package_path
        from reasonrl.eval.tts.optune.card import rendering
        from reasonrl.eval.tts.optune.targets import matrices_of, require_shapes
        from reasonrl.models import model_fingerprint

        card, path = self._card(), package_path(model_path)
        have = matrices_of(path)
        if have is not None:
            require_shapes(have, card.matrices, f"the editor {self.editor}")
        require(
            card.words == self.words,
            f"the editor {self.editor} was trained with the words {card.words!r}, and method.words is {self.words!r}: give "
            "the same",
        )
        require(
            card.feedback == rendering(FeedbackPolicy(tokenizer), self.words),
            f"the editor {self.editor} was trained with feedback in another markup than this tokenizer's chat template "
            "writes: use the model and the template that it was trained with",
        )
        require(
            self.other_model or card.model == model_fingerprint(path),
            f"the editor {self.editor} was trained on other weights than those of {model_path}: train one for these, or try "
            "it with method.other_model=true",
        )

    def learner(self, model: Any, tokenizer: Any, *, end_ids: Sequence[int]) -> Learner:
        """What edits this model's weights. Raises ConfigError."""
        from reasonrl.eval.tts.optune.card import read_editors
        from reasonrl.eval.tts.optune.edits import EditLearner

        card = self._card()
        editors = read_editors(str(self.editor), card, model.device)
        return EditLearner(model, editors, where=f"the editor {self.editor}")

    def _card(self) -> Card:
        from reasonrl.eval.tts.optune.card import read_card

        if self.editor is None:
            raise ConfigError(
                "method=optune needs method.editor=<folder>, an editor for this model: train one with `reasonrl optune train "
                "model=... data=... out=<folder>`"
            )
        return read_card(self.editor)
