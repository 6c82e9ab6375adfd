r"""Is this sampled text right? One grader a task, with an answer for every text, whatever the text does.

    answer        what the text states last, compared with the gold by the verifier (`verify.checker`)
    choice        its letter: a box, an answer tag or `#### B` first; without any of them, a sentence
    instructions  IFEval's checkers; right = every instruction obeyed as it is written (prompt, strict)
    code          its program, run with the tests by a judge; without a judge's word there is no grade

A sentence states an option when it says "answer is B", "Answer: (B)", "answer is **option B**": the word answer, then
`is` or a colon, then one capital letter alone. The last such sentence counts, unless a box or tag is opened after it.
This is the first and second rule of MMLU-Pro's own harness. Its third, any last capital letter, and its fourth, a random
option, are left out: a letter that merely stands there is not an answer. `verify.extract=boxed` takes boxes only.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.tasks.instructions import Asked, InstructionWorkers, Obeyed, require_checkers
from reasonrl.eval.tasks.programs import program_gold
from reasonrl.eval.tasks.task import Question, Task
from reasonrl.verify import checkers
from reasonrl.verify.extract import cut_reasoning
from reasonrl.verify.pool import CODE, Verdict, Verifier, VerifierError, VerifyConfig

STATUSES = ("ok", "no_answer", "timeout", "error", "no_judge")
PARTS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")

# Repeats are bounded, so that a page of blanks costs no more than its length.
_STATED = re.compile(
    r"(?i:\banswer)[*_]{0,3}(?i:\s{0,3}(?:is|:))[\s:*_$]{0,8}(?i:(?:the\s)?(?:option|choice)\s)?[*_$]{0,3}"
    r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?(?:\(\s?([A-Z])\s?\)|([A-HJ-Z])(?![\w’'])|(I)(?![\w’']|\s[a-z]))"
)
GOLDS_KEPT = 64  # of programs: unpacking the tests of a contest problem takes a while
_OPENED = ("\\boxed", "\\fbox", "<answer>")

T = TypeVar("T")


@dataclass(frozen=True)
class Grade:
    """The word on one text."""

    correct: bool
    status: str  # one of STATUSES; anything but "ok" is wrong, and says why
    extracted: str | None = None  # what was compared, of a choice the letter; None when the text states nothing
    message: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)  # instructions: PARTS, the last two as shares of this text


class Grader:
    """Grades the texts of one task; safe to use from many threads. Close it, or use `with`."""

    def __init__(self, task: Task, verify: VerifyConfig) -> None:
        """Raises ConfigError when the texts of this task cannot be graded here. Starts no process yet."""
        self.task = task
        self.verify = verify
        self._verifier: Verifier | None = None
        self._instructions: InstructionWorkers | None = None
        self._golds: dict[str, str] = {}  # of programs, by question
        if (task.kind == "code") != (verify.checker == CODE):
            raise ConfigError(
                f"task {task.name} asks for programs, which have to be run: verify={verify.checker} cannot; leave it out "
                "for this task, or give verify=code"
                if task.kind == "code"
                else f"task {task.name} asks for no programs: verify={CODE} has nothing to run; leave it out for this task"
            )
        if task.kind == "choice" and verify.checker != "choice":
            raise ConfigError(
                f"task {task.name} asks for an option's letter: verify={verify.checker} cannot compare those; leave it "
                f"out for this task, or give verify=choice"
            )
        if task.kind == "instructions":
            require_checkers()
            self._instructions = InstructionWorkers(verify.workers, verify.timeout)
            return
        try:
            self._verifier = Verifier(verify)
        except VerifierError as error:
            raise ConfigError(f"task {task.name}: {error}") from error

    def ready(self) -> None:
        """Find or start the judge of programs; other kinds need nothing.

        Raises ConfigError where no sandbox is possible, JudgeError where there is no judge.
        """
        if self.task.kind == "code" and self._verifier is not None:
            self._verifier.warm_up()

    def submit(self, question: Question, text: str) -> Future[Grade]:
        """Grade `text` as an answer to `question`. A bad text never raises; it is a grade.

        The future raises RunFailed where a judge has no word on a program: it may be right.
        """
        if self._instructions is not None:
            return self._obeys(self._instructions, question, text)
        assert self._verifier is not None
        if self.task.kind == "code":
            return _then(self._verifier.submit(text, self._gold(question)), _grade)
        if self.task.kind == "choice":
            return _then(
                self._verifier.submit(text, question.answer), lambda verdict: self._chosen(verdict, question, text)
            )
        return _then(self._verifier.submit(text, question.answer), _grade)

    def close(self) -> None:
        """End the processes. Whoever still waits gets a grade of status error."""
        for workers in (self._verifier, self._instructions):
            if workers is not None:
                workers.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gold(self, question: Question) -> str:
        """What its programs are judged by. Raises RunFailed for a row that cannot be judged."""
        if question.answer:  # it comes from a validation file, which holds golds
            return question.answer
        gold = self._golds.get(question.id)
        if gold is None:
            try:
                gold = program_gold(self.task, question)
            except ValueError as error:
                raise RunFailed(f"{error}: mend the row, or leave it out of the file") from error
            if len(self._golds) >= GOLDS_KEPT:
                self._golds.clear()
            self._golds[question.id] = gold
        return gold

    def _chosen(self, verdict: Verdict, question: Question, text: str) -> Grade:
        if verdict.status == "no_answer" and self.verify.extract == "auto":
            scored = cut_reasoning(text, self.verify.answer_after) if isinstance(text, str) else None
            letter = stated_option(scored) if scored else None
            if letter is not None:
                return Grade(checkers.choice(letter, question.answer), "ok", letter)
        extracted = verdict.extracted and (_letter(verdict.extracted) or verdict.extracted)
        return Grade(verdict.correct, verdict.status, extracted, verdict.message)

    def _obeys(self, workers: InstructionWorkers, question: Question, text: str) -> Future[Grade]:
        scored = cut_reasoning(text, self.verify.answer_after) if isinstance(text, str) else None
        if not scored or not scored.strip():
            done: Future[Grade] = Future()
            done.set_result(Grade(False, "no_answer", parts=dict.fromkeys(PARTS, 0.0)))
            return done
        extra = question.extra
        asked = Asked(str(extra["prompt"]), extra["instruction_id_list"], extra["kwargs"], scored)
        return _then(workers.submit(asked), _obeyed_grade, dict.fromkeys(PARTS, 0.0))


def _grade(verdict: Verdict) -> Grade:
    return Grade(verdict.correct, verdict.status, verdict.extracted, verdict.message)


def stated_option(text: str) -> str | None:
    """The letter that the last sentence of the form above states, or None."""
    found = list(_STATED.finditer(text))
    if not found or any(text.find(opened, found[-1].end()) >= 0 for opened in _OPENED):
        return None
    last = found[-1]
    return last[1] or last[2] or last[3]


@functools.lru_cache(maxsize=4096)
def _letter(extracted: str) -> str | None:
    """The letter that `B) 12` or `(b)` means for the checker, so that votes count them together."""
    return next((letter for letter in string.ascii_uppercase if checkers.choice(extracted, letter)), None)


def _obeyed_grade(obeyed: Obeyed) -> Grade:
    numbers = [float(all(obeyed.strict)), float(all(obeyed.loose)), _share(obeyed.strict), _share(obeyed.loose)]
    return Grade(all(obeyed.strict), "ok", parts=dict(zip(PARTS, numbers, strict=True)))


def _share(held: tuple[bool, ...]) -> float:
    return sum(held) / len(held)


def _then(future: Future[T], grade: Callable[[T], Grade], parts: Mapping[str, float] | None = None) -> Future[Grade]:
    """The grade of what `future` will hold; a failure is a grade too, unless it says that nobody knows (RunFailed).

    Calls `grade` at once when it is there.
    """
    graded: Future[Grade] = Future()
    graded.set_running_or_notify_cancel()

    def finish(done: Future[Any]) -> None:
        try:
            found = grade(done.result())
        except TimeoutError as error:
            found = Grade(False, "timeout", message=str(error), parts=parts or {})
        except (RunFailed, ConfigError) as error:
            graded.set_exception(error)
            return
        except Exception as error:  # whatever happened, the run must hear of it as a grade
            found = Grade(False, "error", message=f"{type(error).__name__}: {error}", parts=parts or {})
        graded.set_result(found)

    future.add_done_callback(finish)
    return graded
