"""Questions, a verifier and a tokenizer for the tests of `reasonrl tts`: no model, no process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from reasonrl.eval.grading import Grade
from reasonrl.eval.tasks.task import Question
from reasonrl.eval.tts.backends.fake import FakeBackend, scripted
from reasonrl.eval.tts.base import Budget, Posed, Trace, verdict_of
from reasonrl.eval.tts.feedback import FeedbackPolicy
from reasonrl.eval.tts.schedule import Schedule


class Letters:
    """A tokenizer of single letters with a chat template: [user:..] [answer:..] and an open [answer: for what comes next."""

    name_or_path = "letters"
    chat_template = "yes"

    def apply_chat_template(self, turns: Any, *, add_generation_prompt: bool, tokenize: bool) -> str:
        names = {"user": "u", "assistant": "a"}
        text = "".join(f"[{names[turn['role']]}:{turn['content']}]" for turn in turns)
        return text + ("[a:" if add_generation_prompt else "")

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(map(ord, text))}


class FakeVerifier:
    """T is right, N states no answer, E cannot be graded, X cannot be graded the first time; anything else is wrong."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def submit(self, posed: Posed, text: str) -> Future[Grade]:
        again = text in self.asked
        self.asked.append(text)
        found = {
            "": Grade(False, "no_answer"),
            "N": Grade(False, "no_answer"),
            "E": Grade(False, "error"),
            "X": Grade(True, "ok", "X") if again else Grade(False, "timeout"),
        }
        done: Future[Grade] = Future()
        done.set_result(found.get(text, Grade(text == posed.question.answer, "ok", text)))
        return done

    def verdict(self, grade: Grade) -> str:
        return verdict_of(grade)


def posed(id: str = "q", *, room: int = 50, context: int | None = None, answer: str = "T", seed: int = 42) -> Posed:
    """The question `id`, whose prompt is [u:id][a:"""
    return Posed(
        "task",
        Question(id, id, answer),
        letters(f"[u:{id}][a:"),
        room,
        seed,
        temperature=0.6,
        top_p=0.95,
        context=context,
        feedback=FeedbackPolicy(Letters()),
    )


def letters(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def play(
    method: Any, texts: Sequence[str], budget: int | Budget, question: Posed | None = None
) -> tuple[Trace, FakeBackend, FakeVerifier]:
    """The method on one question, the model writing these texts."""
    question = question or posed()
    backend, verifier = FakeBackend(scripted({question.id: texts})), FakeVerifier()
    allowed = budget if isinstance(budget, Budget) else Budget(budget)
    (trace,) = Schedule(method, backend, verifier, allowed).run([question])
    return trace, backend, verifier


def prompts(backend: FakeBackend) -> list[str]:
    """What the model was asked, as text."""
    return [text_of(ask.prompt_ids) for call in backend.calls for _, ask in call]


def numbers(trace: Trace) -> list[int]:
    return [each.number for each in trace.attempts]


def verdicts(trace: Trace) -> list[str]:
    return [each.verdict for each in trace.attempts]
