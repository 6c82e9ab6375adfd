"""What a person sees while an evaluation samples: a line every few seconds, in a terminal as in a pipe."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

TOLD_SECONDS = 5.0  # between two lines
SILENT_SECONDS = 60.0  # at most, also when nothing has changed: long answers take minutes


@dataclass
class Count:
    """Answers of one task."""

    wanted: int
    done: int = 0
    graded: int = 0
    right: int = 0

    @property
    def ended(self) -> bool:
        return self.graded == self.wanted


class Progress:
    """Task, answers done, accuracy so far, tokens a second, time left. Counts may come from one thread only."""

    def __init__(self, console: Console, wanted: Mapping[str, int]) -> None:
        """wanted: answers of each task."""
        self.console = console
        self.tasks = {task: Count(answers) for task, answers in wanted.items()}
        self.answers = self.tokens = 0  # of this process
        self._task = next(iter(self.tasks))
        self._seen = (0, 0)
        self._told = self._started = time.monotonic()

    def had(self, task: str, correct: bool | None) -> None:
        """An answer that was there already. correct: None when it is not graded yet."""
        self.tasks[task].done += 1
        if correct is not None:
            self.graded(task, correct)

    def answered(self, task: str, tokens: int) -> None:
        """An answer came."""
        self._task = task
        self.tasks[task].done += 1
        self.answers += 1
        self.tokens += tokens

    def graded(self, task: str, correct: bool) -> None:
        """A grade came."""
        self.tasks[task].graded += 1
        self.tasks[task].right += correct

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Tell from a thread of its own, for answers may take minutes; the last line when it ends well."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(0.5):
                self._tell()

        self._told = self._started = time.monotonic()
        self.answers = self.tokens = 0
        teller = threading.Thread(target=tell, name="eval-progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
        self._tell(last=True)

    def _tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        seen = (self.answers, sum(task.graded for task in self.tasks.values()))
        if last or now - self._told >= (SILENT_SECONDS if seen == self._seen else TOLD_SECONDS):
            self._told, self._seen = now, seen
            self.console.print(self.line(now))

    def line(self, now: float) -> str:
        """The line."""
        from reasonrl.runs.console import clock

        count = self.tasks[self._task]
        spent = max(now - self._started, 1e-3)
        left = sum(task.wanted - task.done for task in self.tasks.values())
        accuracy = f"{count.right / count.graded:6.1%}" if count.graded else "     -"
        ahead = f"left {clock(spent / self.answers * left)}" if self.answers else f"after {clock(spent)}"
        width = max(map(len, self.tasks))
        return (
            f"{self._task:<{width}}  answers {count.done:>{len(str(count.wanted))}}/{count.wanted}  accuracy {accuracy}  "
            f"{self.tokens / spent:>7,.0f} tokens/s  {ahead}"
        )
