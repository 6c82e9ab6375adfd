"""What a run needs of the tasks that it validates on; `reasonrl.eval.validation` is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from reasonrl.data.items import Item


class Judged(Protocol):
    """The word on one text."""

    @property
    def correct(self) -> bool: ...

    @property
    def status(self) -> str: ...

    @property
    def extracted(self) -> str | None: ...


Judge = Callable[[str, str, str], "Future[Judged]"]  # problem id, its gold answer as in the data, the text


class Validation(Protocol):
    """Tasks to validate on instead of the data's own validation problems."""

    def items(self) -> Sequence[Item]:
        """Their problems; an item's `source` tells the task."""
        ...

    def write(self, file: Path) -> Mapping[str, Any]:
        """The problems as a validation file; facts for the run's provenance, by source."""
        ...

    def prompts(self, tokenizer: Any) -> Mapping[str, Mapping[str, Any]]:
        """The prompt of each source, as the `prompt` group has it. Raises ConfigError for a tokenizer that cannot."""
        ...

    def judges(self, programs: str | None = None) -> Mapping[str, Callable[[], Judge]]:
        """For each source what makes its judge in the process where it is wanted; can be pickled.

        programs: address of the judge that runs those.
        """
        ...

    @property
    def programs(self) -> bool:
        """Whether any of them asks for programs."""
        ...
