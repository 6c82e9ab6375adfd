"""What a test-time method asks for, what it leaves behind, and what it may spend.

A method is a generator: it yields what it wants of its one question and is sent the outcome, so that one scheduler can serve
all live questions together. It holds no model, no grader and no noise of its own.

    yields                        is sent
    Generate                      Generated, or a tuple of them, best first, for beams > 1
    Verify                        Grade
    Step                          StepDone
    Score                         float, or None where it cannot be scored
    a tuple of one of these       a tuple, in the same order
    Attempt                       None: it is written down

What is charged: every attempt, one that states no answer too, and the draft that a method refines. Reflections are counted as
generations and tokens. `Budget.free_unparsable` redraws attempts without an answer for free, up to 2 B + 1 generations, as
the released code of arXiv 2502.15771 does in one of its methods.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from reasonrl.engine.sampling import (
        Sampling,  # imports torch, which a mistake on the command line should not wait for
    )
    from reasonrl.eval.grading import Grade, Grader
    from reasonrl.eval.tasks.task import Question
    from reasonrl.eval.tts.feedback import FeedbackPolicy

CAPABILITIES = ("sample", "beam", "prefix_cache", "lora_swap", "grad")
VERDICTS = ("correct", "wrong", "unparseable", "error", "unchecked")
PHASES = ("attempt", "draft", "reflection")
CHARGED = ("attempt", "draft")


# What a method yields


@dataclass(frozen=True)
class Generate:
    """One continuation of a prompt; with beams > 1 the best `beams` of a beam search.

    adapter: False leaves the question's own weights out, as for a reflection.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    adapter: bool = True
    beams: int = 1


@dataclass(frozen=True)
class Generated:
    """A continuation. seconds: its share of the call that made it."""

    token_ids: tuple[int, ...]  # the end token included when it was emitted
    text: str
    finished: bool  # False: cut at max_tokens
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Verify:
    """Is this text a right answer to the question?"""

    text: str


@dataclass(frozen=True)
class Step:
    """A change of the question's own weights: a gradient step, or an edit.

    feedback_ids: f_0, which ends the attempt's turn and is context only, then what is learned from. header_tokens: m, those
    after f_0. reflection_ids: r with its closing markup; () without one. knobs: the method's own. seed: key of its noise,
    and of the weights that the question's first one starts from; `Log.step` gives it.
    """

    prompt_ids: tuple[int, ...]
    attempt_ids: tuple[int, ...]
    feedback_ids: tuple[int, ...]
    reflection_ids: tuple[int, ...] = ()
    header_tokens: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    seed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Score:
    """How good is this attempt, in the eyes of a reward model? It knows no gold answer."""

    token_ids: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True)
class StepDone:
    """A change was made."""

    loss: float
    seconds: float = field(default=0.0, compare=False)


# What a method leaves behind


@dataclass(frozen=True)
class Attempt:
    """One generation, as it is written down."""

    number: int  # from 1, of those charged; 0: not charged
    generation: int  # from 0, of all that the question was given
    phase: str  # one of PHASES
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    verdict: str  # one of VERDICTS; "error": nobody knows, and nobody was told that it is wrong
    extracted: str | None
    prompt_tokens: int
    steps: int = 0  # changes of the question's own weights before it
    seconds: float = field(default=0.0, compare=False)

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Trace:
    """All that was done for one question.

    solved: by the chosen attempt where the method chooses one, else by any. oracle: the verifier's word ended the search, so
    what is counted is coverage, never accuracy. chosen: index into attempts. stop: why it ended.
    """

    id: str
    attempts: tuple[Attempt, ...]
    solved: bool
    oracle: bool
    stop: str
    chosen: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_correct(self) -> int | None:
        """Number of the first attempt that is right."""
        return next((each.number for each in self.attempts if each.verdict == "correct"), None)

    @property
    def failures(self) -> int:
        """Charged attempts before the first right one; all of them without one."""
        return sum(each.number > 0 for each in self.attempts) if self.first_correct is None else self.first_correct - 1

    @property
    def generations(self) -> int:
        return len(self.attempts)

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.attempts)

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.attempts)


# What a method is given


@dataclass(frozen=True)
class Budget:
    """What one question may cost.

    attempts: B, charged ones. tokens: no attempt begins once so many were written. seconds: the same for the question's share
    of the model's time; then traces depend on the machine. free_unparsable: see the module.
    """

    attempts: int
    tokens: int | None = None
    seconds: float | None = None
    free_unparsable: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a budget that allows nothing."""
        for name in ("attempts", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"a budget of {name}={value} allows no attempt: it must be greater than 0")

    @property
    def generations(self) -> int:
        """Attempts and redraws, at most."""
        return 2 * self.attempts + 1 if self.free_unparsable else self.attempts


@dataclass(frozen=True)
class Posed:
    """A question as it is put to the model.

    room: tokens that the context leaves to the first attempt; 0: the prompt alone fills it. context: tokens that the model
    reads; None: unlimited. feedback: the turns that may follow an attempt; None for a model or a prompt without turns.
    """

    task: str
    question: Question
    prompt_ids: tuple[int, ...]
    room: int
    seed: int
    temperature: float
    top_p: float = 1.0
    top_k: int = -1
    context: int | None = None
    feedback: FeedbackPolicy | None = field(default=None, compare=False, repr=False)
    programs: bool = False  # its answers are programs

    @property
    def id(self) -> str:
        return self.question.id

    def room_after(self, prompt_ids: Sequence[int]) -> int:
        """Tokens that this prompt leaves to an attempt."""
        return self.room if self.context is None else min(self.room, self.context - len(prompt_ids))

    def sampling(
        self, number: int, *, prompt_ids: Sequence[int] | None = None, greedy: bool = False, phase: str = "attempt"
    ) -> Sampling:
        """How the question's generation `number` is sampled: its noise follows from seed, question and number alone.

        That of an attempt is the noise of `reasonrl eval`'s answer `number`. Other phases have noise of their own, so that
        they change no attempt.
        """
        from reasonrl.engine.sampling import Sampling
        from reasonrl.sampled.answers import noise_key

        name = f"{self.task}\n{self.id}" + (f"\n{phase}" if phase not in CHARGED else "")
        return Sampling(
            temperature=0.0 if greedy else self.temperature,
            top_p=1.0 if greedy else self.top_p,
            top_k=-1 if greedy else self.top_k,
            max_tokens=self.room if prompt_ids is None else self.room_after(prompt_ids),
            seed=noise_key(self.seed, name, number),
        )

    def noise(self, purpose: str, number: int) -> tuple[int, ...]:
        """Key of noise for something else than an answer: it follows from seed, question, purpose and number alone."""
        from reasonrl.sampled.answers import noise_key

        return noise_key(self.seed, f"{self.task}\n{self.id}\n{purpose}", number)


class Verifier(Protocol):
    """One object for rewards in training and for feedback here, so that both say the same of a text."""

    def submit(self, posed: Posed, text: str) -> Future[Grade]:
        """Grade a text."""
        ...

    def verdict(self, grade: Grade) -> str:
        """One of VERDICTS."""
        ...


class TaskVerifier:
    """The grader of a task."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader

    def submit(self, posed: Posed, text: str) -> Future[Grade]:
        """A program that a judge gives no verdict on cannot be graded; without any judge the future raises RunFailed."""
        return _known(self._grader.submit(posed.question, text))

    def verdict(self, grade: Grade) -> str:
        return verdict_of(grade)


def _known(future: Future[Grade]) -> Future[Grade]:
    from reasonrl.eval.grading import Grade
    from reasonrl.verify.judge.types import JudgeError, JudgeGone

    found: Future[Grade] = Future()
    found.set_running_or_notify_cancel()

    def finish(done: Future[Grade]) -> None:
        error = done.exception()
        if isinstance(error, JudgeError) and not isinstance(error, JudgeGone):
            found.set_result(Grade(False, "error", message=str(error)))
        elif error is not None:
            found.set_exception(error)
        else:
            found.set_result(done.result())

    future.add_done_callback(finish)
    return found


def verdict_of(grade: Grade) -> str:
    """A grade as a verdict. Whatever kept the grader from comparing is an error: the text may be right."""
    if grade.status == "ok":
        return "correct" if grade.correct else "wrong"
    return "unparseable" if grade.status == "no_answer" else "error"


class Scorer(Protocol):
    """A reward model, for methods that let one choose."""

    def score(self, asks: Sequence[tuple[Posed, Score]]) -> Sequence[float | None]:
        """A number an ask, in their order, larger is better; None: it cannot be scored, and is not chosen.

        Raises RunFailed when there is no reward model any more.
        """
        ...


Action: TypeAlias = Generate | Verify | Step | Score
Yielded: TypeAlias = Action | tuple[Action, ...] | Attempt
Turns: TypeAlias = Generator[Yielded, Any, Trace]


class Method(Protocol):
    """A test-time method: a frozen dataclass of knobs with one generator."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]  # of CAPABILITIES
    turns: ClassVar[bool]  # it answers attempts in turns of a chat
    votes: ClassVar[bool]  # it compares answers with each other
    greedy: ClassVar[bool]  # it samples nothing, so one seed is all of them

    def run(self, posed: Posed, budget: Budget, verifier: Verifier, rng: np.random.Generator) -> Turns:
        """The search for one question."""
        ...


class Log:
    """What a method has done for its question so far, and whether it may go on."""

    def __init__(self, posed: Posed, budget: Budget, verifier: Verifier) -> None:
        self._posed, self._budget, self._verifier = posed, budget, verifier
        self.attempts: list[Attempt] = []
        self.charged = self.drawn = self.steps = 0  # drawn: attempts and drafts, redraws included
        self.spent = 0.0  # seconds

    @property
    def over(self) -> str | None:
        """Why no attempt may begin; None when one may."""
        if self._posed.room < 1:
            return "prompt_too_long"
        if self.charged >= self._budget.attempts or self.drawn >= self._budget.generations:
            return "budget"
        if self._budget.tokens is not None and sum(each.tokens for each in self.attempts) >= self._budget.tokens:
            return "tokens"
        if self._budget.seconds is not None and self.spent >= self._budget.seconds:
            return "seconds"
        return None

    @property
    def left(self) -> int:
        """Attempts that may still be charged."""
        return 0 if self.over else self._budget.attempts - self.charged

    def attempt(
        self,
        prompt_ids: Sequence[int] | None = None,
        *,
        greedy: bool = False,
        phase: str = "attempt",
        adapter: bool = True,
    ) -> Generator[Yielded, Any, Attempt]:
        """One generation, verified unless it is a draft or a reflection, and written down.

        prompt_ids: None for the question alone.
        """
        made = yield self._ask(prompt_ids, greedy=greedy, phase=phase, adapter=adapter)
        grade = (yield Verify(made.text)) if phase == "attempt" else None
        return (yield from self._written(made, grade, phase, prompt_ids))

    def several(self, count: int) -> Generator[Yielded, Any, list[Attempt]]:
        """So many attempts at the question at once, each as `attempt` would have made it."""
        made = yield tuple(self._ask(None, ahead=ahead) for ahead in range(count))
        return (yield from self._all_written(made))

    def beams(self, width: int) -> Generator[Yielded, Any, list[Attempt]]:
        """The best `width` beams of one search, best first; fewer where memory ended."""
        sampling = self._posed.sampling(len(self.attempts), greedy=True)
        made = yield Generate(self._posed.prompt_ids, sampling, beams=width)
        return (yield from self._all_written(made if isinstance(made, tuple) else (made,)))

    def step(self, step: Step) -> Generator[Yielded, Any, StepDone]:
        """Change the question's own weights."""
        done: StepDone = yield replace(step, seed=self._posed.noise("weights", self.steps))
        self.steps += 1
        self.spent += done.seconds
        return done

    def scores(self) -> Generator[Yielded, Any, list[float | None]]:
        """What a reward model thinks of each attempt so far."""
        asked = tuple(Score(each.token_ids, each.text, each.finished) for each in self.attempts)
        return list((yield asked))

    def trace(
        self,
        stop: str,
        *,
        oracle: bool,
        chosen: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Trace:
        """The end. chosen: index of the attempt that counts; None where any right one does."""
        counted = self.attempts if oracle else [self.attempts[chosen]] if chosen is not None else []
        solved = any(each.verdict == "correct" for each in counted)
        told = {**(notes or {}), **({"steps": self.steps} if self.steps else {})}
        return Trace(self._posed.id, tuple(self.attempts), solved, oracle, stop, chosen, told)

    def _ask(
        self,
        prompt_ids: Sequence[int] | None,
        *,
        ahead: int = 0,
        greedy: bool = False,
        phase: str = "attempt",
        adapter: bool = True,
    ) -> Generate:
        prompt = self._posed.prompt_ids if prompt_ids is None else tuple(prompt_ids)
        # attempts are counted by themselves: reflections between them change no attempt
        number = (self.drawn if phase in CHARGED else len(self.attempts)) + ahead
        how = self._posed.sampling(number, prompt_ids=prompt, greedy=greedy, phase=phase)
        return Generate(prompt, how, adapter=adapter)

    def _all_written(self, made: Sequence[Generated]) -> Generator[Yielded, Any, list[Attempt]]:
        grades = yield tuple(Verify(each.text) for each in made)
        found = []
        for each, grade in zip(made, grades, strict=True):
            found.append((yield from self._written(each, grade, "attempt", None)))
        return found

    def _written(
        self, made: Generated, grade: Grade | None, phase: str, prompt_ids: Sequence[int] | None
    ) -> Generator[Yielded, Any, Attempt]:
        verdict = "unchecked" if grade is None else self._verifier.verdict(grade)
        charged = phase in CHARGED and not (self._budget.free_unparsable and verdict == "unparseable")
        self.charged += charged
        self.drawn += phase in CHARGED
        self.spent += made.seconds
        attempt = Attempt(
            number=self.charged if charged else 0,
            generation=len(self.attempts),
            phase=phase,
            token_ids=tuple(made.token_ids),
            text=made.text,
            finished=made.finished,
            verdict=verdict,
            extracted=None if grade is None else grade.extracted,
            prompt_tokens=len(self._posed.prompt_ids if prompt_ids is None else prompt_ids),
            steps=self.steps,
            seconds=made.seconds,
        )
        self.attempts.append(attempt)
        yield attempt
        return attempt


def answer_keys(extracted: Sequence[str | None], *, raw: bool = False, programs: bool = False) -> list[Hashable | None]:
    """Answers in a form in which equal ones are equal; raw: as they were extracted."""
    from reasonrl.eval.prm.candidates import answer_key, program_key

    key = program_key if programs else answer_key
    return list(extracted) if raw else [key(each) for each in extracted]


def voted(extracted: Sequence[str | None], *, raw: bool = False, programs: bool = False) -> int | None:
    """Index of the last answer that agrees with most others; of equally many, those seen first. None where nobody votes."""
    from reasonrl.functional.choice import majority

    keys = answer_keys(extracted, raw=raw, programs=programs)
    winner = majority(keys)
    return None if winner is None else max(i for i, key in enumerate(keys) if key == winner)
