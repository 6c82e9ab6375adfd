"""Independent samples. Who says which one counts?

    oracle  the verifier: one after the other until one is right, which is a coverage, coverage@N or pass@N
    vote    the answer given most often
    prm     a process reward model of ours, by the scores of the lines of a sample
    orm     a reward model of whole answers, over HTTP

All but the first make all N samples and choose without the gold answer: an accuracy. A sample that cannot be scored keeps its
place and is never chosen; of equal ones the first is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from reasonrl.eval.prm.knobs import require
from reasonrl.eval.tts.base import Budget, Log, Posed, Scorer, Turns, Verifier, voted

if TYPE_CHECKING:
    import numpy as np

    from reasonrl.data.prompts import Prompt

SELECTORS = ("oracle", "vote", "prm", "orm")
SCORED = ("prm", "orm")
AGGREGATES = ("min", "mean", "max", "last", "product")


@dataclass(frozen=True)
class BestOfN:
    """selector: see the module. oracle_stop: false makes all N samples, right one or not.

    prm: folder of `reasonrl prm train`, or http://host:port of `reasonrl prm serve`. aggregate: of the scores of a sample's
    lines. prm_device: of a folder. orm: address. orm_tokens: longer samples, prompt included, are not scored.
    """

    name: ClassVar[str] = "best_of_n"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    turns: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    selector: str = "oracle"
    oracle_stop: bool = True
    prm: str | None = None
    aggregate: str = "min"
    prm_device: str = "auto"
    orm: str | None = None
    orm_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, choices in (("selector", SELECTORS), ("aggregate", AGGREGATES)):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in SCORED:
            given = getattr(self, name)
            require(
                given is not None or self.selector != name,
                f"selector={name} needs method.{name}=, {WHERE[name]}",
            )
            require(given is None or self.selector == name, f"{name} is for selector={name}, got {self.selector}")
        require(
            self.orm is None or self.orm.startswith(("http://", "https://")),
            f"orm must be {WHERE['orm']}, got {self.orm!r}",
        )
        require(
            self.orm_tokens is None or self.orm_tokens >= 1, f"orm_tokens must be at least 1, got {self.orm_tokens}"
        )

    def check(self, model_path: str, tokenizer: Any) -> None:
        """Raise ConfigError for a process reward model that is none."""
        if self.prm is not None and not self.prm.startswith(("http://", "https://")):
            from pathlib import Path

            from reasonrl.config import ConfigError
            from reasonrl.engine.prm import read_card

            try:
                read_card(Path(self.prm).expanduser())
            except ValueError as error:
                raise ConfigError(str(error)) from error

    def fingerprints(self) -> dict[str, str]:
        """What else the choice follows from: which weights the folder holds."""
        if self.prm is None or self.prm.startswith(("http://", "https://")):
            return {}
        from pathlib import Path

        from reasonrl.models import model_fingerprint

        return {"prm": model_fingerprint(str(Path(self.prm).expanduser()))}

    def scorer(self, tokenizer: Any, prompt: Prompt) -> Scorer | None:
        """The reward model, opened; None where none chooses. Raises ConfigError."""
        if self.selector not in SCORED:
            return None
        from reasonrl.eval.tts.scorers import HTTPScorer, PRMScorer

        if self.orm is not None:
            scorer = HTTPScorer(self.orm, prompt, tokenizer=tokenizer, max_tokens=self.orm_tokens)
            scorer.require_there()
            return scorer
        from reasonrl.engine.prm import open_scorer

        assert self.prm is not None
        return PRMScorer(open_scorer(self.prm, tokenizer=tokenizer, device=self.prm_device), tokenizer, self.aggregate)

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """Attempts until one is right or the budget ends."""
        from reasonrl.functional.choice import best

        log = Log(posed, budget, verifier)
        stop = self.oracle_stop and self.selector == "oracle"
        while not log.over:
            attempt = yield from log.attempt()
            if stop and attempt.verdict == "correct":
                return log.trace("correct", oracle=True)
        if self.selector == "oracle":
            return log.trace(log.over, oracle=True)
        if self.selector == "vote":
            chosen = voted([each.extracted for each in log.attempts], programs=posed.programs)
            return log.trace(log.over, oracle=False, chosen=chosen)
        scores = yield from log.scores()
        return log.trace(log.over, oracle=False, chosen=best(scores), notes={"scores": scores})


WHERE = {
    "prm": "a folder of `reasonrl prm train` or an address of `reasonrl prm serve`",
    "orm": "an address such as http://127.0.0.1:6003/ that answers POST {chat: [{role, content}, ...]} with a number",
}
