"""What a benchmark is: one YAML file of `conf/task/`, or a file of one's own, read and checked.

    kind          what is asked for                            who grades it
    answer        an answer that can be compared               the verifier
    choice        the letter of an option                      the verifier, by letter
    instructions  a text that obeys instructions (IFEval)      one program an instruction
    code          a program                                    a judge that runs it

A file needs `kind` and `source`; everything else has a default that fits the kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError, nearest
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.data.items import Dropped
from reasonrl.data.typed import typed, unknown_name

KINDS = ("answer", "choice", "instructions", "code")
# What a file of one's own may leave out, by kind: prompt, prompt for models without a chat template, verify.
DEFAULTS: dict[str, tuple[str, str | None, str]] = {
    "answer": ("boxed", "boxed_text", "either"),
    "choice": ("choice", "choice_text", "choice"),
    "instructions": ("plain", None, "exact"),
    "code": ("code", None, "code"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it becomes the name of files


@dataclass(frozen=True)
class Source:
    """Where the rows of a benchmark are: files when a folder is given, else the Hugging Face hub."""

    hub: str | None = None  # name on the hub; None: files only
    subset: str | None = None  # configuration on the hub
    split: str = "test"
    revision: str | None = None  # commit on the hub
    # Patterns looked for in <data_dir>/<task>/, then in <data_dir>/; the first that matches counts, with all its files.
    files: tuple[str, ...] = ()
    gated: bool = False  # the hub wants a licence to be accepted first
    how: str = ""  # what else to say when it is missing: where it is published, under which licence


@dataclass(frozen=True)
class TaskSampling:
    """How answers are sampled unless a protocol or the command line says otherwise."""

    n: int = 1  # answers a question
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = -1  # -1 = all tokens
    max_new_tokens: int = 4096

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        check_number("sampling.n", self.n, least=1, whole=True)
        check_number("sampling.temperature", self.temperature, least=0)
        check_number("sampling.top_p", self.top_p, above=0, most=1)
        check_number("sampling.max_new_tokens", self.max_new_tokens, least=1, whole=True)
        if self.top_k != -1:
            check_number("sampling.top_k", self.top_k, least=1, whole=True)
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"sampling.n={self.n} with temperature 0 gives the same answer {self.n} times")


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    title: str
    citation: str
    kind: str  # one of KINDS
    source: Source
    format: str  # a key of formats.FORMATS: how a row becomes a Question
    size: int | None  # rows of the full set; another number is told, never refused
    prompt: str  # option of the prompt group, of kind chat
    base_prompt: str | None  # of kind text, for models without a chat template; None: they are refused
    verify: str  # option of the verify group; of kind instructions only `answer_after` and `timeout` count
    sampling: TaskSampling = field(default_factory=TaskSampling)
    options: Mapping[str, Any] = field(default_factory=dict)  # the format's own, such as question_field

    def __post_init__(self) -> None:
        """Raises ValueError naming what cannot be."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} becomes a file's name: use letters, digits, '_', '-' and '.'")
        check_choice("kind", self.kind, KINDS)
        if self.size is not None:
            check_number("size", self.size, least=1, whole=True)


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, before any prompt template."""

    # Unique in the task and the same on every machine: the set's own id; with the task's name before it when that is a
    # bare number, or when there is only the row's place (from 0).
    id: str
    text: str  # what fills the prompt's {question}; of kind choice with the lettered options
    answer: str  # the gold answer; "" for instructions and code
    category: str = ""  # subject or level, for break-downs
    extra: Mapping[str, Any] = field(default_factory=dict)  # instructions: ids and kwargs; code: tests


@dataclass(frozen=True)
class Questions:
    """The questions of a task as they were loaded."""

    task: Task
    items: tuple[Question, ...]
    sha256: str  # of ids, texts, answers and extras, in order
    origin: str  # "gsm8k/test.jsonl", relative to data_dir; or hub@revision
    dropped: tuple[Dropped, ...]  # rows that cannot be asked or graded


def task_names() -> list[str]:
    """The benchmarks that ship."""
    from reasonrl.cli import options

    return options("task")


def load_task(name_or_path: str) -> Task:
    """A benchmark by its name, or by the path of a YAML file of one's own, which ends in .yaml.

    The patterns of such a file are looked for beside it too, after `data_dir`. Raises ConfigError naming the file, the
    key and the nearest names.
    """
    from reasonrl.eval.settings import read_conf

    own = name_or_path.endswith((".yaml", ".yml"))
    if "/" in name_or_path and not own:
        raise ConfigError(f"task={name_or_path} is no name, and as a file it must end in .yaml")
    values = read_conf("task", name_or_path)
    where = name_or_path if own else f"task {name_or_path}"
    try:
        task = _built(values, Path(name_or_path).stem)
        _check(task)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if own:
        folder = Path(name_or_path).expanduser().absolute().parent
        beside = tuple(str(folder / pattern) for pattern in task.source.files)
        task = replace(task, source=replace(task.source, files=(*task.source.files, *beside)))
    return task


def _built(values: Mapping[str, Any], name: str) -> Task:
    kind = values.get("kind")
    if kind not in KINDS:
        raise ValueError(unknown_name("kind", kind, KINDS) if "kind" in values else f"kind= is missing: {_kinds()}")
    prompt, base_prompt, verify = DEFAULTS[kind]
    known = {
        "name": name,
        "title": values.get("name", name),
        "citation": "",
        "format": "fields",
        "size": None,
        "prompt": prompt,
        "base_prompt": base_prompt,
        "verify": verify,
        **values,
    }
    if "source" in values:
        known["source"] = _source(values["source"])
    for key, record in (("sampling", TaskSampling), ("options", None)):
        given = values.get(key)
        if given is None:
            known.pop(key, None)
        elif not isinstance(given, Mapping):
            raise ValueError(f"{key} must be key: value lines, got {given!r}")
        elif record is not None:
            known[key] = typed(record, given, key)
    return typed(Task, known, "the task")


def _source(values: Any) -> Source:
    if not isinstance(values, Mapping):
        raise ValueError(f"source must be key: value lines, got {values!r}")
    rest = {key: value for key, value in values.items() if key != "files"}
    files = values.get("files", ())
    files = (files,) if isinstance(files, str) else files
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) and file for file in files):
        raise ValueError(f"source.files must be a pattern or a list of patterns, got {files!r}")
    return replace(typed(Source, rest, "source"), files=tuple(files))


def _check(task: Task) -> None:
    """What needs other files: the format with its options, the prompts and the checker. Raises ValueError."""
    from reasonrl.cli import options
    from reasonrl.eval.settings import read_conf
    from reasonrl.eval.tasks.formats import FORMATS

    if task.format not in FORMATS:
        raise ValueError(unknown_name("format", task.format, FORMATS))
    FORMATS[task.format].check(task)
    for key, name, kind in (("prompt", task.prompt, "chat"), ("base_prompt", task.base_prompt, "text")):
        if name is None:
            continue
        if name not in options("prompt"):
            raise ValueError(f"Unknown {key} '{name}'{nearest(name, options('prompt'))}")
        if (found := read_conf("prompt", name).get("kind")) != kind:
            raise ValueError(f"{key}={name} is of kind {found}; it must be of kind {kind}")
    if task.verify not in options("verify"):
        raise ValueError(f"Unknown verify '{task.verify}'{nearest(task.verify, options('verify'))}")
    if FORMATS[task.format].make is None and not (task.source.hub or task.source.files):
        raise ValueError("source names neither hub= nor files=: where are the rows?")


def _kinds() -> str:
    return f"one of {', '.join(KINDS)}"
