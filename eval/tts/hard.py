"""The hard set of a model on a task: the questions whose greedy answer fails, in one manifest.

    {schema, task, model, data, prompt, decoding, limit, questions, greedy_correct, ids, errors}

A manifest is used only with the model, the data and the prompt that it was made with. Questions whose greedy answer could not
be verified are in `errors`, and in neither set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.eval.tts.base import Trace
from reasonrl.runs.files import write_text

SCHEMA = 1


@dataclass(frozen=True)
class HardSet:
    """model, data, prompt: hashes. decoding: of the greedy answers; limit: only the first so many were asked."""

    task: str
    model: str
    data: str
    prompt: str
    decoding: Mapping[str, Any]
    limit: int | None
    questions: int
    greedy_correct: int
    ids: tuple[str, ...]
    errors: tuple[str, ...] = ()
    schema: int = SCHEMA

    @classmethod
    def of(cls, traces: Iterable[Trace], **about: Any) -> HardSet:
        """From the traces of the greedy method."""
        traces = list(traces)
        unknown = {t.id for t in traces if t.stop == "failed" or any(a.verdict == "error" for a in t.attempts)}
        ids = tuple(t.id for t in traces if not t.solved and t.id not in unknown)
        correct = sum(t.solved for t in traces)
        return cls(questions=len(traces), greedy_correct=correct, ids=ids, errors=tuple(sorted(unknown)), **about)

    def write(self, path: Path) -> None:
        """As JSON. Raises ConfigError where it cannot."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        except PermissionError as error:
            raise ConfigError(f"cannot write {path} ({error.strerror}): choose another hard=") from error

    def require(self, path: Path, command: str, **facts: Any) -> None:
        """Raise ConfigError unless it was made with these facts."""
        differing = [name for name, value in facts.items() if getattr(self, name) != value]
        if differing:
            raise ConfigError(
                f"the hard set {path} was made with another {', another '.join(differing)}: build it anew with `{command}`"
            )


def read_hard_set(path: Path, command: str) -> HardSet:
    """A manifest. command: what builds it. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"no hard set {path}: build it with `{command}`, or leave hard= out to ask every question")
    try:
        values = json.loads(path.read_text())
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema {values.get('schema')}")
        found = HardSet(**{**values, "ids": tuple(values["ids"]), "errors": tuple(values["errors"])})
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ConfigError(f"{path} is no hard set ({error}): build one with `{command}`") from error
    if not found.ids:
        raise ConfigError(f"the hard set {path} is empty: every greedy answer was right, nothing is left to try")
    return found
