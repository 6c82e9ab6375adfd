"""What samples, and changes weights, for test-time methods. One shape for all; one call a round of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from reasonrl.eval.tts.base import Generate, Generated, Step, StepDone

__all__ = ["Backend", "Learner", "Outcome"]

Outcome: TypeAlias = Generated | tuple[Generated, ...]  # a tuple for beams > 1, best first


class Backend(Protocol):
    """Holds a model, and for each question that asked for it weights of its own.

    `owner` is a question's name in the run. A call that raises has changed nothing, so that it can be made again for fewer
    questions. What one owner is given must not depend on the others in the call.
    """

    capabilities: frozenset[str]  # of `base.CAPABILITIES`

    def generate(self, asks: Sequence[tuple[str, Generate]]) -> Sequence[Outcome]:
        """A continuation an ask, in their order, with the owner's own weights where the ask says so."""
        ...

    def step(self, asks: Sequence[tuple[str, Step]]) -> Sequence[StepDone]:
        """Change the owners' weights. Only of a backend that can `grad`."""
        ...

    def forget(self, owner: str) -> None:
        """This question has ended: nothing of it may survive."""
        ...

    def facts(self) -> dict[str, Any]:
        """What timing.json says of it."""
        ...


class Learner(Protocol):
    """Keeps weights of each question's own beside a transformers model whose own weights stay as they are.

    Made by a method's `learner(model, tokenizer, *, end_ids)`.
    """

    def use(self, owners: Sequence[str | None]) -> None:
        """Row i of the passes to come has the weights of `owners[i]`; None: the model's alone. (): sampling is over."""
        ...

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Change the owners' weights, all of one round together. Raises with nothing changed."""
        ...

    def forget(self, owner: str) -> None:
        """This question has ended: nothing of it may survive."""
        ...

    def facts(self) -> dict[str, Any]:
        """What timing.json says of it."""
        ...

    def close(self) -> None:
        """Take the hooks off the model."""
        ...
