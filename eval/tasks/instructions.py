"""Does a text obey instructions? IFEval (arXiv 2311.07911): 25 kinds of them, each checked by a program.

The programs are not ours: `pip install "reasonrl[ifeval]"` brings `if-verifiable`, which carries those of
google-research/instruction_following_eval unchanged (compared by syntax tree with the copies in lm-eval, evalscope,
opencompass and lighteval: nothing differs that decides one of the 25) under Apache-2.0, with eight small packages.
Refused: lm-eval (29 packages, and it downloads when it is imported), lighteval and evalscope (their antlr4 breaks
Hydra), inspect-evals (its checkers come from a git address).

What surrounds them follows the same repository's evaluation_lib: strict is the text as it is; loose is right when one of
eight texts is, without the first line, the last line, both, and each of these without asterisks. Ours are two things: a
null value counts as left out, as the hub's copy of the set needs; and all chance is seeded, because otherwise two
gradings of one text differ: the language detector draws, and of two prompts (1122 and 1129, which count `#` and `!`)
the checker counts a letter drawn at random instead.

Two kinds (number of sentences, words in capitals) cut text with NLTK's Punkt tables, which no package carries.

The programs search a model's text with regular expressions, so they run in processes that are killed at a deadline.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from reasonrl.config import ConfigError
from reasonrl.data.typed import unknown_name
from reasonrl.verify.worker import GRACE_SECONDS, spawn_context

# Every kind, and the values without which its checker would draw some at random.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "change_case:capital_word_frequency": ("capital_frequency", "capital_relation"),
    "change_case:english_capital": (),
    "change_case:english_lowercase": (),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "combination:two_responses": (),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:constrained_response": (),
    "detectable_format:json_format": (),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:title": (),
    "keywords:existence": ("keywords",),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:frequency": ("keyword", "frequency", "relation"),
    "keywords:letter_frequency": ("letter", "let_frequency", "let_relation"),
    "language:response_language": ("language",),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs", "nth_paragraph", "first_word"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_sentences": ("num_sentences", "relation"),
    "length_constraints:number_words": ("num_words", "relation"),
    "punctuation:no_comma": (),
    "startend:end_checker": ("end_phrase",),
    "startend:quotation": (),
}
PUNKT = "tokenizers/punkt_tab/english/"
START_SECONDS = 120.0  # for a process to import the library; 1.5 s on a quiet machine


class Obeyed(NamedTuple):
    """Of each instruction in turn, whether the text obeys it."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


class Asked(NamedTuple):
    """What the text was asked for, and the text."""

    prompt: str
    ids: Sequence[str]
    kwargs: Sequence[Mapping[str, Any]]
    text: str


def instructions_problem(ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why these instructions cannot be checked: an unknown one, a value that is missing or too much. None: they can."""
    if len(ids) != len(kwargs):
        return f"{len(ids)} instructions, but kwargs for {len(kwargs)}"
    for name, given in zip(ids, kwargs, strict=True):
        if name not in INSTRUCTIONS:
            return unknown_name("instruction", name, INSTRUCTIONS)
        known = set(INSTRUCTIONS[name])
        for wrong, what in ((known - set(given), "lacks"), (set(given) - known, "has no")):
            if wrong:
                return f"instruction {name} {what} {', '.join(sorted(wrong))}"
    return None


def require_checkers() -> None:
    """Raise ConfigError unless library and tables are here, with the command that brings them."""
    if find_spec("if_verifiable") is None:
        raise ConfigError('instructions are checked by a library that is not installed: pip install "reasonrl[ifeval]"')
    import nltk.data

    try:
        nltk.data.find(PUNKT)
    except LookupError as error:
        raise ConfigError(
            "instructions about sentences and capitals need NLTK's Punkt tables (1.6 MB), which are not here. With a "
            "network: python -m nltk.downloader punkt_tab. Without: bring that folder from another machine and say "
            f"where it is, NLTK_DATA=<folder>, which then holds {PUNKT}. Looked in {', '.join(nltk.data.path)}"
        ) from error


# In the worker's process


def obeyed(asked: Asked) -> Obeyed:
    """Every checker on the text, and on its loose forms."""
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    strict, loose = [], []
    random.seed(asked.prompt)  # the same on every machine, unlike hash()
    forms = [form for form in loose_forms(asked.text) if form.strip()]
    for name, values in zip(asked.ids, asked.kwargs, strict=True):
        checker = INSTRUCTION_DICT[name](name)
        checker.build_description(**values)
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=asked.prompt)
        strict.append(bool(asked.text.strip() and checker.check_following(asked.text)))
        loose.append(any(checker.check_following(form) for form in forms))
    return Obeyed(tuple(strict), tuple(loose))


def loose_forms(text: str) -> list[str]:
    """The text, and without its first line, its last line, both; then these four without asterisks. No form twice."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(form.replace("*", "") for form in cut)]))


def _serve(link: Connection, timeout: float) -> None:
    """A worker's life: import, then answer until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        import langdetect
        from if_verifiable.ifeval import instructions_registry  # noqa: F401  before a deadline runs

        langdetect.DetectorFactory.seed = 0
        langdetect.detect("so that its tables are there")
        link.send(None)
    except Exception as error:
        link.send(f"{type(error).__name__}: {error}")
        return
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone, or closed
        while True:
            asked = link.recv()
            # Its default action ends the process even inside one long search, when no parent is left to kill it.
            signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)
            try:
                reply: Obeyed | str = obeyed(asked)
            except Exception as error:
                reply = f"{type(error).__name__}: {error}"
            signal.setitimer(signal.ITIMER_REAL, 0)
            link.send(reply)


# In the caller's process


class InstructionWorkers:
    """Processes that check texts, one thread before each: it sends, waits until the deadline, kills, starts anew.

    There is no lock that a killed process could keep: each thread talks to its own process through a pipe.
    """

    def __init__(self, workers: int = 1, timeout: float = 10.0) -> None:
        """Starts no process yet."""
        self.timeout = timeout
        self._jobs: SimpleQueue[tuple[Future[Obeyed], Asked] | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the two below
        self._processes: set[Any] = set()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"instructions-{k}", daemon=True) for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, asked: Asked) -> Future[Obeyed]:
        """The future raises TimeoutError after the deadline, RuntimeError when the checker or its process failed."""
        future: Future[Obeyed] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise RuntimeError("these workers are closed")
            self._jobs.put((future, asked))
        return future

    def close(self) -> None:
        """Kill the processes. Whoever still waits gets a RuntimeError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        link: Connection | None = None
        process: Any = None
        while (job := self._jobs.get()) is not None:
            future, asked = job
            try:
                if link is None:
                    process, link = self._started()
                future.set_result(self._checked(link, asked))
                continue
            except _CheckerFailed as error:  # the process lives
                future.set_exception(RuntimeError(str(error)))
                continue
            except TimeoutError as error:
                future.set_exception(error)
            except (EOFError, OSError) as error:
                why = "closed" if self._closed else f"the checker's process died ({type(error).__name__})"
                future.set_exception(RuntimeError(why))
            except RuntimeError as error:
                future.set_exception(error)
            self._ended(process, link)
            process = link = None
        self._ended(process, link)

    def _started(self) -> tuple[Any, Connection]:
        context = spawn_context()
        link, inner = context.Pipe()
        process = context.Process(target=_serve, args=(inner, self.timeout), daemon=True)
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            process.start()
            self._processes.add(process)
        inner.close()
        try:
            if not link.poll(START_SECONDS):
                raise RuntimeError(f"the checker's process did not start in {START_SECONDS:g} s")
            problem = link.recv()
        except (EOFError, OSError, RuntimeError):
            self._ended(process, link)
            raise
        if problem is not None:
            self._ended(process, link)
            raise RuntimeError(f"the checkers cannot be loaded: {problem}")
        return process, link

    def _checked(self, link: Connection, asked: Asked) -> Obeyed:
        link.send(asked)
        if not link.poll(self.timeout):
            raise TimeoutError(f"no verdict in {self.timeout:g} s")
        reply = link.recv()
        if isinstance(reply, str):
            raise _CheckerFailed(reply)
        return Obeyed(*reply)

    def _ended(self, process: Any, link: Connection | None) -> None:
        if process is None or link is None:
            return
        link.close()
        process.kill()
        process.join()
        with self._lock:
            self._processes.discard(process)


class _CheckerFailed(Exception):
    """A checker raised; its process goes on."""
