"""Sampling and grading side by side: each answer is written down as it comes, and graded while others are written."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from reasonrl.config import RunFailed
from reasonrl.eval.backends import Answer, Ask, Backend, Key
from reasonrl.eval.folder import TOO_LONG, EvalFolder
from reasonrl.eval.plan import Plan
from reasonrl.eval.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.grading import Grade, Grader
    from reasonrl.eval.tasks.load import Question
    from reasonrl.verify.pool import VerifyConfig


@contextlib.contextmanager
def opened_graders(plan: Plan) -> Iterator[dict[str, Grader]]:
    """A grader a task; they start their processes when they are first asked, but the one judge of programs now.

    Raises ConfigError where no sandbox is possible, JudgeError where there is no judge.
    """
    from reasonrl.eval.grading import Grader

    with contextlib.ExitStack() as stack:
        verifies = stack.enter_context(with_judge({task.task.name: task.verify for task in plan.tasks}))
        graders = {
            task.task.name: stack.enter_context(Grader(task.task, verifies[task.task.name])) for task in plan.tasks
        }
        for grader in graders.values():
            grader.ready()
        yield graders


@contextlib.contextmanager
def with_judge(verifies: Mapping[str, VerifyConfig]) -> Iterator[dict[str, VerifyConfig]]:
    """Of each task; those of programs that name no judge share one, which lives as long as this. Raises as `open_judge`."""
    from reasonrl.verify.pool import CODE

    wanting = [each for each in verifies.values() if each.checker == CODE and each.judge is None]
    if not wanting:
        yield dict(verifies)
        return
    from reasonrl.verify.code import open_judge
    from reasonrl.verify.judge.types import Limits

    most = Limits(max(each.cpu_seconds for each in wanting), memory_mb=max(each.memory_mb for each in wanting))
    with open_judge(None, most) as judge:
        yield {name: replace(each, judge=judge.url) if each in wanting else each for name, each in verifies.items()}


class Work:
    """Sampling and grading side by side."""

    def __init__(
        self, plan: Plan, folder: EvalFolder, graders: Mapping[str, Grader], console: Console, session: Session
    ) -> None:
        self.plan, self.folder, self.graders, self.console, self.session = plan, folder, graders, console, session
        self._questions: dict[tuple[str, str], Question] = {
            (task.task.name, question.id): question for task in plan.tasks for question in task.questions.items
        }
        self._graded: SimpleQueue[tuple[Key, Future[Grade]]] = SimpleQueue()
        self._grading = 0  # answers
        self.progress = Progress(console, {task.task.name: task.wanted for task in plan.tasks})

    @property
    def left(self) -> int:
        """Answers that are still wanted."""
        return self.plan.wanted - self.folder.answers

    def begin(self) -> None:
        """Count what is there, grade what was not graded, and write down the prompts that leave no room."""
        from reasonrl.eval.grading import Grade

        if self.folder.answers:
            self.console.print(f"{self.folder.path} has {self.folder.answers} of {self.plan.wanted} answers already")
        for task in self.plan.tasks:
            name, kept = task.task.name, self.folder.kept[task.task.name]
            for (id, number), row in list(kept.answers.rows.items()):
                grade = kept.grades.rows.get((id, number))
                if grade is not None:
                    self.progress.had(name, bool(grade["correct"]))
                elif row.get("too_long"):
                    kept.graded((name, id, number), Grade(False, TOO_LONG))
                    self.progress.had(name, False)
                else:
                    self.progress.had(name, None)
                    self._grade((name, id, number), row["text"])
            for question, ids, room in zip(task.questions.items, task.prompt_ids, task.room, strict=True):
                for number in range(task.settings.n) if room == 0 else ():
                    if (question.id, number) not in kept.answers.rows:
                        self._took(Answer(name, question.id, number, "", 0, len(ids), True, too_long=True))

    def sample(self, backend: Backend) -> None:
        """All answers that are missing."""
        self.session.sampling()
        with self.progress.shown():
            for answer in backend.answers(self.asks()):
                self._took(answer)
                self._collect()
                self.folder.flush(due=True)
        self.session.sampled(backend.facts(), graded=self.session.answers - self._grading)

    def asks(self) -> Iterator[Ask]:
        """What is missing, task by task."""
        for task in self.plan.tasks:
            settings, kept = task.settings, self.folder.kept[task.task.name].answers.rows
            text = task.prompt.kind == "text"
            for question, ids, room in zip(task.questions.items, task.prompt_ids, task.room, strict=True):
                numbers = tuple(k for k in range(settings.n) if (question.id, k) not in kept)
                if not numbers:
                    continue
                turns = task.prompt.messages(question.text)
                yield Ask(
                    task=task.task.name,
                    id=question.id,
                    numbers=numbers,
                    prompt_ids=ids,
                    turns=turns[0]["content"] if text else turns,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k,
                    max_tokens=room,
                    seed=self.plan.knobs.seed,
                    own_noise=settings.seeds,
                )

    def wait(self) -> None:
        """For the last grades."""
        if self._grading:
            self.console.print(f"grading {self._grading} answers ...")
        while self._grading:
            self._collect(wait=True)
            self.folder.flush(due=True)
        self.folder.flush()
        self.session.graded()

    def _took(self, answer: Answer) -> None:
        from reasonrl.eval.grading import Grade

        kept = self.folder.kept[answer.task]
        kept.answered(answer)
        self.progress.answered(answer.task, answer.tokens)
        self.session.count(answer)
        if answer.too_long:
            kept.graded(answer.key, Grade(False, TOO_LONG))
            self.progress.graded(answer.task, False)
        else:
            self._grade(answer.key, answer.text)

    def _grade(self, key: Key, text: str) -> None:
        future = self.graders[key[0]].submit(self._questions[key[0], key[1]], text)
        self._grading += 1
        future.add_done_callback(lambda done: self._graded.put((key, done)))

    def _collect(self, wait: bool = False) -> None:
        """Write down the grades that have come. wait: for at least one. Raises RunFailed where there can be none."""
        while True:
            try:
                key, future = self._graded.get(block=wait, timeout=1.0 if wait else None)
            except Empty:
                return
            wait = False
            self._grading -= 1
            try:
                grade = future.result()
            except RunFailed as error:  # the judge has no word, so neither have we
                raise RunFailed(
                    f"task {key[0]}, question {key[1]}: {error}. {self.folder.answers} answers are kept in "
                    f"{self.folder.path}, this one without a grade: the same command grades what is left"
                ) from error
            self.folder.kept[key[0]].graded(key, grade)
            self.progress.graded(key[0], grade.correct)
            if self.progress.tasks[key[0]].ended:  # its processes would only take memory from those of other tasks
                threading.Thread(target=self.graders[key[0]].close, name="eval-close", daemon=True).start()


class Session:
    """What this process did and how long it took: timing.json, which is about speed alone."""

    def __init__(self, folder: EvalFolder, plan: Plan, prepared: float) -> None:
        self._folder, self._plan, self._started = folder, plan, time.time()
        self.seconds = {"prepare": prepared}
        self.answers = self.tokens = self.prompt_tokens = 0
        self.facts: dict[str, Any] = {}
        self._phase, self._mark = "load", time.monotonic()

    def _enter(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._mark
        self._phase, self._mark = phase, now

    def count(self, answer: Answer) -> None:
        """An answer came."""
        self.answers += 1
        self.tokens += answer.tokens
        self.prompt_tokens += answer.prompt_tokens

    def sampling(self) -> None:
        """The model is loaded."""
        self._enter("sample")

    def sampled(self, facts: dict[str, Any], graded: int) -> None:
        """The last answer came. facts: of the backend. graded: answers that have their grade already."""
        self._enter("grade_after_sampling")
        self.facts = {"graded_while_sampling": max(graded, 0), **facts}

    def graded(self) -> None:
        """The last grade came."""
        self._enter("write")

    def stopped(self) -> None:
        """It ends before its end."""
        self._enter("write")
        if self.answers:
            self.write()

    def write(self) -> dict[str, Any]:
        """timing.json: sessions, this one last if it did anything; returns it."""
        sessions = [
            each for each in self._folder.read_json("timing.json").get("sessions", ()) if isinstance(each, dict)
        ]
        sampled = self.seconds.get("sample", 0.0)
        if self.answers or not sessions:
            sessions.append(
                {
                    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
                    "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                    "answers": self.answers,
                    "tokens": self.tokens,
                    "prompt_tokens": self.prompt_tokens,
                    "tokens_per_second": round(self.tokens / sampled, 1) if sampled else None,
                    "workers": self._plan.workers,
                    **self.facts,
                }
            )
        timing = {
            "seconds": round(sum(sum(each["seconds"].values()) for each in sessions), 3),
            "note": "a session that was killed is not in here",
            "sessions": sessions,
        }
        self._folder.write_json("timing.json", timing)
        return timing
