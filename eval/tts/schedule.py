"""All live questions in lock step: their wishes are collected, and the backend is called once a round.

    live questions      waiting      finished
    [Generate] x 64  -> one call
    [Verify]   x 64  -> all at once, in the graders' processes
    [Step]     x 9   -> one call     next questions take the places of those that ended

A question's trace depends on neither the others nor the size of the batch: methods know only their own question, and noise
belongs to (seed, question, attempt). Only where seconds are the budget it does.

One question cannot stop the others: a call that fails is made again for each question alone, and one that keeps failing is
recorded with the error. When all of them fail, the backend is broken, and the run ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.tts.base import (
    Action,
    Attempt,
    Budget,
    Generate,
    Generated,
    Method,
    Posed,
    Score,
    Scorer,
    Step,
    StepDone,
    Trace,
    Turns,
    Verifier,
    Verify,
)
from reasonrl.runs.files import DiskFull

if TYPE_CHECKING:
    from reasonrl.eval.grading import Grade
    from reasonrl.eval.tts.backends import Backend, Outcome

BATCH = 64
FATAL = (ConfigError, RunFailed, DiskFull)  # no question's own fault
RETRIES = 2  # of a call that failed, for one question alone; of a text that could not be graded
ORDER = (Verify, Step, Score, Generate)  # what is served first: then all live questions wait for the same call

Asked = TypeVar("Asked", Generate, Step, Score)
Given = TypeVar("Given")


@dataclass(eq=False)
class Live:
    """A question under way. recorded: attempts of an earlier session, still to be taken instead of new ones."""

    posed: Posed
    turns: Turns
    recorded: deque[Attempt]
    grades: dict[str, Grade]
    wants: tuple[Action, ...] = ()
    alone: bool = True  # it wants one thing, and is sent one
    attempts: list[Attempt] = field(default_factory=list)
    trace: Trace | None = None


class Schedule:
    """Runs one method on many questions."""

    def __init__(
        self,
        method: Method,
        backend: Backend,
        verifier: Verifier,
        budget: Budget,
        *,
        batch: int = BATCH,
        retries: int = RETRIES,
        scorer: Scorer | None = None,
        wrote: Callable[[Posed, Attempt], None] = lambda posed, attempt: None,
    ) -> None:
        """batch: live questions. wrote: hears of every attempt that was made now. Raises ConfigError, see `require_able`."""
        require_able(method, backend.capabilities, type(backend).__name__)
        self._method, self._backend, self._verifier, self._budget = method, backend, verifier, budget
        self._batch, self._retries, self._scorer, self._wrote = batch, retries, scorer, wrote
        self.rounds = 0  # calls of backend.generate
        self.live: list[Live] = []

    def run(
        self, questions: Iterable[Posed], recorded: Mapping[str, Sequence[Attempt]] | None = None
    ) -> Iterator[Trace]:
        """A trace a question, in the order they end.

        recorded: by id, attempts that an earlier session made of a question it did not end. They are not made again; steps
        are, from the same attempts.
        """
        waiting, recorded = iter(questions), recorded or {}
        while True:
            while len(self.live) < self._batch and (posed := next(waiting, None)) is not None:
                self.live.append(self._begun(posed, recorded.get(posed.id, ())))
                yield from self._ended()
            if not self.live:
                return
            kind = next(kind for kind in ORDER if any(isinstance(live.wants[0], kind) for live in self.live))
            asking = [live for live in self.live if isinstance(live.wants[0], kind)]
            if kind is Verify:
                self._verify(asking)
            elif kind is Step:
                self._serve(asking, self._step)
            elif kind is Score:
                self._serve(asking, self._score)
            else:
                self._serve(asking, self._generate)
            yield from self._ended()

    def _begun(self, posed: Posed, recorded: Sequence[Attempt]) -> Live:
        from reasonrl.sampled.answers import noise_key

        rng = np.random.default_rng(noise_key(posed.seed, f"{posed.task}\n{posed.id}\nmethod", 0))
        turns = self._method.run(posed, self._budget, self._verifier, rng)
        live = Live(posed, turns, deque(recorded), {each.text: _grade(each) for each in recorded if _graded(each)})
        self._advance(live, None)
        return live

    def _ended(self) -> Iterator[Trace]:
        ended = [live for live in self.live if live.trace is not None]
        self.live = [live for live in self.live if live.trace is None]
        for live in ended:
            self._backend.forget(live.posed.id)
            assert live.trace is not None
            yield live.trace

    def _advance(self, live: Live, answer: Any) -> None:
        """Send a method its answer, until it wants what must be asked for."""
        try:
            while True:
                wanted = live.turns.send(answer)
                answer = None
                if isinstance(wanted, Attempt):
                    if wanted.generation >= len(live.attempts):
                        live.attempts.append(wanted)
                        self._wrote(live.posed, wanted)
                    continue
                live.alone = not isinstance(wanted, tuple)
                live.wants = wanted if isinstance(wanted, tuple) else (wanted,)
                if live.wants:
                    return
                answer = ()
        except StopIteration as end:
            live.trace = end.value
        except FATAL:
            raise
        except Exception as error:
            self._failed(live, error)

    def _failed(self, live: Live, error: Exception) -> None:
        live.turns.close()
        what = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        live.trace = Trace(live.posed.id, tuple(live.attempts), False, False, "failed", notes={"error": what})

    def _reply(self, live: Live, answers: Sequence[Any]) -> None:
        self._advance(live, answers[0] if live.alone else tuple(answers))

    def _verify(self, asking: Sequence[Live]) -> None:
        """All texts at once; one that could not be graded is graded again a few times."""
        futures = [[self._submit(live, want.text) for want in live.wants] for live in asking]
        for live, submitted in zip(asking, futures, strict=True):
            grades = []
            for want, future in zip(live.wants, submitted, strict=True):
                grade = future.result()
                for _ in range(self._retries):
                    if want.text in live.grades or self._verifier.verdict(grade) != "error":
                        break
                    grade = self._verifier.submit(live.posed, want.text).result()
                grades.append(grade)
            self._reply(live, grades)

    def _submit(self, live: Live, text: str) -> Future[Grade]:
        if text not in live.grades:
            return self._verifier.submit(live.posed, text)
        known: Future[Grade] = Future()
        known.set_result(live.grades[text])
        return known

    def _serve(self, asking: Sequence[Live], call: Callable[[list[tuple[Live, Any]]], list[Any]]) -> None:
        """One call for all; if it fails, one for each question alone."""
        requests = [(live, want) for live in asking for want in live.wants]
        try:
            answers = dict(zip(map(id, asking), _split(asking, call(requests)), strict=True))
        except FATAL:
            raise
        except Exception as error:
            answers = {}
            failed: dict[int, Exception] = {}
            for live in asking:
                found = self._alone(live, call)
                if isinstance(found, Exception):
                    failed[id(live)] = found
                else:
                    answers[id(live)] = found
            if len(failed) == len(asking) > 1:
                raise RunFailed(f"all {len(asking)} questions of a round failed, the first with: {error}") from error
            for live in asking:
                if id(live) in failed:
                    self._failed(live, failed[id(live)])
        for live in asking:
            if id(live) in answers:
                self._reply(live, answers[id(live)])

    def _alone(self, live: Live, call: Callable[[list[tuple[Live, Any]]], list[Any]]) -> list[Any] | Exception:
        last: Exception | None = None
        for _ in range(max(1, self._retries)):
            try:
                return call([(live, want) for want in live.wants])
            except FATAL:
                raise
            except Exception as error:
                last = error
        assert last is not None
        return last

    def _generate(self, requests: list[tuple[Live, Generate]]) -> list[Outcome]:
        answers: dict[int, Outcome] = {}
        taken: dict[int, int] = {}  # by question: recorded attempts that this call uses
        for place, (live, want) in enumerate(requests):
            used = taken.get(id(live), 0)
            if want.beams == 1 and used < len(live.recorded):
                row = live.recorded[used]
                answers[place] = Generated(row.token_ids, row.text, row.finished, row.seconds)
                taken[id(live)] = used + 1
        asked = [place for place in range(len(requests)) if place not in answers]
        if asked:
            begun = time.monotonic()
            made = self._backend.generate([(requests[place][0].posed.id, requests[place][1]) for place in asked])
            self.rounds += 1
            answers |= dict(zip(asked, _timed(made, time.monotonic() - begun), strict=True))
        for live in {id(live): live for live, _ in requests}.values():
            for _ in range(taken.get(id(live), 0)):
                live.attempts.append(live.recorded.popleft())  # they are written down already
        return [answers[place] for place in range(len(requests))]

    def _score(self, requests: list[tuple[Live, Score]]) -> list[float | None]:
        if self._scorer is None:
            raise ConfigError(f"method={self._method.name} lets a reward model choose, and there is none here")
        return list(self._scorer.score([(live.posed, want) for live, want in requests]))

    def _step(self, requests: list[tuple[Live, Step]]) -> list[StepDone]:
        begun = time.monotonic()
        done = self._backend.step([(live.posed.id, want) for live, want in requests])
        share = (time.monotonic() - begun) / len(requests)
        return [replace(each, seconds=share) for each in done]


def require_able(method: Method, capabilities: frozenset[str], backend: str) -> None:
    """Raise ConfigError for a method that needs what the backend cannot."""
    missing = sorted(method.needs - capabilities)
    if missing:
        raise ConfigError(
            f"method={method.name} needs a backend that can {', '.join(sorted(method.needs))}, and {backend} can "
            f"{', '.join(sorted(capabilities))} only (no {', '.join(missing)}): choose another method or backend"
        )


def _split(asking: Sequence[Live], answers: Sequence[Given]) -> list[list[Given]]:
    """The answers of each question."""
    left = iter(answers)
    return [list(islice(left, len(live.wants))) for live in asking]


def _timed(made: Sequence[Outcome], seconds: float) -> list[Outcome]:
    """A call's time, shared by the tokens that it made."""
    tokens = sum(len(each.token_ids) for one in made for each in _all(one)) or 1
    found: list[Outcome] = []
    for one in made:
        shared = tuple(replace(each, seconds=seconds * len(each.token_ids) / tokens) for each in _all(one))
        found.append(shared if isinstance(one, tuple) else shared[0])
    return found


def _all(one: Outcome) -> tuple[Generated, ...]:
    return one if isinstance(one, tuple) else (one,)


def _graded(attempt: Attempt) -> bool:
    """One that could not be graded too: what is written down stays, or the trace would say something else."""
    return attempt.verdict != "unchecked"


def _grade(attempt: Attempt) -> Grade:
    """The grade that a recorded attempt was given."""
    from reasonrl.eval.grading import Grade

    status = {"unparseable": "no_answer", "error": "error"}.get(attempt.verdict, "ok")
    return Grade(attempt.verdict == "correct", status, attempt.extracted)
