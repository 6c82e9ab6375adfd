"""What a method remembers between steps: named scalars, and named numbers per problem.

The only mutable state of an algorithm. It is read by the parts, changed once a step by `observe` on the driver, and
saved beside the weights. Every entry has a key `<part>/<name>`, where the part is the slot that wrote it (prefix,
difficulty, ...).

A part reads through a view of its own slot: there a plain name is its own entry and a name with a slash any other's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonrl.core.types import RolloutGroup

if TYPE_CHECKING:
    from reasonrl.core.credit import Credit
    from reasonrl.core.method import Method

SCHEMA = 1


@dataclass(frozen=True)
class Memory:
    """What a part wants remembered after this step. Plain names, without a slash."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # problem id -> name -> number


class Ledger:
    """Named scalars and named numbers per problem. During step t it holds the values of step t - 1."""

    def __init__(self, method: str = "", parts: Sequence[str] = ()) -> None:
        self.method = method
        self.parts = tuple(parts)
        self.step: int | None = None  # the last step observed
        self._scalars: dict[str, float] = {}
        self._problems: dict[str, dict[str, float]] = {}

    @classmethod
    def for_method(cls, method: Method) -> Ledger:
        """An empty ledger that only this combination of parts may restore."""
        return cls(method.name, method.signature)

    # reading

    def _key(self, name: str) -> str:
        return name

    def scalar(self, name: str, default: float) -> float:
        """A remembered scalar, or `default` before anything was remembered."""
        return self._scalars.get(self._key(name), default)

    def number(self, problem_id: str, name: str, default: float) -> float:
        """A number remembered of one problem, or `default` if there is none."""
        return self._problems.get(problem_id, {}).get(self._key(name), default)

    def scalars(self) -> dict[str, float]:
        """All scalars, copied, under the names that `scalar` takes here."""
        return self._named(self._scalars)

    def numbers(self, problem_id: str) -> dict[str, float]:
        """All numbers of one problem, copied, under the names that `number` takes here."""
        return self._named(self._problems.get(problem_id, {}))

    def _named(self, entries: dict[str, float]) -> dict[str, float]:
        return dict(entries)

    def view(self, part: str) -> LedgerView:
        """The same entries, read-only, as the part in this slot sees them."""
        return LedgerView(self, part)

    # writing: once a step

    def observe(self, groups: Sequence[RolloutGroup], credit: Credit) -> None:
        """Apply what the parts want remembered of this step. A step is applied once, in order.

        Raises:
            ValueError: this step or a later one was applied already, or a number is not finite. Nothing is changed
                then.
        """
        if not groups:
            return
        step = max(group.step for group in groups)
        if self.step is not None and step <= self.step:
            raise ValueError(
                f"ledger: step {step} arrives after step {self.step} was applied; "
                "restore the ledger of the checkpoint you resume from, and observe each step once"
            )
        _require_finite(credit.memory)
        self._scalars.update((key, float(value)) for key, value in credit.memory.scalars.items())
        for problem_id, numbers in credit.memory.problems.items():
            self._problems.setdefault(problem_id, {}).update((key, float(value)) for key, value in numbers.items())
        self.step = step

    # saving and restoring

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "parts": list(self.parts),
            "step": self.step,
            "scalars": dict(self._scalars),
            "problems": {problem_id: dict(numbers) for problem_id, numbers in self._problems.items()},
        }

    def to_json(self) -> str:
        """The same text for the same content; floats come back bit for bit."""
        return json.dumps(self.state_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], method: Method | None = None) -> Ledger:
        """Rebuild a ledger. With `method`, refuse one that other parts wrote.

        Raises:
            ValueError: another schema, or another method or list of parts; both are named.
        """
        if state.get("schema") != SCHEMA:
            raise ValueError(f"ledger: schema {state.get('schema')!r} cannot be read here, this version reads {SCHEMA}")
        ledger = cls(state["method"], state["parts"])
        if method is not None:
            _require_same_writer(ledger, cls.for_method(method))
        ledger.step = state["step"]
        ledger._scalars = {key: float(value) for key, value in state["scalars"].items()}
        ledger._problems = {
            problem_id: {key: float(value) for key, value in numbers.items()}
            for problem_id, numbers in state["problems"].items()
        }
        return ledger

    @classmethod
    def from_json(cls, text: str, method: Method | None = None) -> Ledger:
        """The inverse of `to_json`; see `from_state_dict`."""
        return cls.from_state_dict(json.loads(text), method)


class LedgerView(Ledger):
    """A ledger as one part sees it: own entries by plain name, the others by `<part>/<name>`. It cannot be written."""

    def __init__(self, ledger: Ledger, part: str) -> None:
        self.method, self.parts, self.step = ledger.method, ledger.parts, ledger.step
        self._scalars, self._problems = ledger._scalars, ledger._problems
        self._own = f"{part}/"

    def _key(self, name: str) -> str:
        return name if "/" in name else self._own + name

    def _named(self, entries: dict[str, float]) -> dict[str, float]:
        return {key.removeprefix(self._own): value for key, value in entries.items()}

    def observe(self, groups: Sequence[RolloutGroup], credit: Credit) -> None:
        """Refused: a part says what to remember by returning `Memory` from `remember`."""
        raise TypeError("a part cannot write the ledger: return Memory(...) from remember(groups, ledger)")


def _require_finite(memory: Memory) -> None:
    entries = dict(memory.scalars)
    for problem_id, numbers in memory.problems.items():
        entries.update((f"{key} of problem {problem_id!r}", value) for key, value in numbers.items())
    for key, value in entries.items():
        if not math.isfinite(value):
            raise ValueError(f"ledger: {key} is {value}; a remembered number must be finite")


def _require_same_writer(saved: Ledger, wanted: Ledger) -> None:
    if (saved.method, saved.parts) != (wanted.method, wanted.parts):
        raise ValueError(
            f"ledger was written by {saved.method!r} with parts [{', '.join(saved.parts)}], "
            f"but this run is {wanted.method!r} with parts [{', '.join(wanted.parts)}]; "
            "resume with the method of the checkpoint, or start a new run from its weights"
        )
