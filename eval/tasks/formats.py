r"""From one row of a benchmark to a `Question`, or the reason why it cannot be one. Pure functions of the row.

The options of a format name columns; dots lead into nested records. One name must be there, or the file is refused; of a
list of names the first that holds something counts.

What a gold answer goes through: 27.0 becomes 27, several texts are joined by ", ", and outer dollars and a final period
are taken off, as they are of a model's answer.

What a question with options looks like, and what its answer may be:

    Which planet is largest?            a letter (A to Z, either case), a whole number that counts from 0,
                                        or the text of exactly one option
    A) Mars
    B) Jupiter
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reasonrl.data import arithmetic, parsers
from reasonrl.data.items import DataError, Dropped, Item
from reasonrl.data.parsers import Columns, as_text
from reasonrl.data.programs import FENCED, MBPP_SPLITS, are_tests, humaneval_question, mbpp_question
from reasonrl.data.readers import Row, has
from reasonrl.data.typed import unknown_name
from reasonrl.eval.tasks.instructions import instructions_problem
from reasonrl.eval.tasks.task import Question, Task
from reasonrl.verify.extract import extract_answer

LETTERS = string.ascii_uppercase

Parse = Callable[[Row, int, Task], "Question | Dropped | None"]  # None: a row of another split
Parts = Mapping[str, tuple[str, ...]]  # question, answer, ... -> candidate columns, best first

_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_GOLD_HASHES = re.compile(r"####\s*(.*?)\s*$", re.DOTALL)
_OPTION_LINE = re.compile(r"^([A-Z1-9])\) (.*)$", re.MULTILINE)
NO_OPTIONS = f"no list of at most {len(LETTERS)} options"
NO_SUCH_OPTION = "the answer names none of the options"
MBPP_TEST = MBPP_SPLITS["test"]  # by task_id; the others are for few-shot prompts, tuning and validation


@dataclass(frozen=True)
class Format:
    """A kind of row.

    parse: (row, its place, task) -> Question. make: of a task without rows, its questions.
    columns: what the options name when the task does not say; optional: parts that may be missing.
    """

    kinds: tuple[str, ...]
    parse: Parse | None = None
    make: Callable[[Task], Iterator[Question]] | None = None
    columns: Mapping[str, tuple[str, ...]] | None = None
    optional: tuple[str, ...] = ("id", "category")
    knobs: tuple[str, ...] = ()  # further options

    def check(self, task: Task) -> None:
        """Raises ValueError for another kind, an unknown option or an ill-typed one."""
        if task.kind not in self.kinds:
            raise ValueError(f"format={task.format} is for kind {' or '.join(self.kinds)}, not {task.kind}")
        known = (*(f"{part}_field" for part in self.columns or {}), *self.knobs)
        for key, value in task.options.items():
            if key not in known:
                raise ValueError(unknown_name(f"option of format {task.format!r}:", key, known or ["(none)"]))
            if key == "options_field" and task.kind != "choice":
                raise ValueError(f"options.options_field is for kind choice, not {task.kind}")
            names = [value] if isinstance(value, str) else value
            if key.endswith("_field") and not (
                isinstance(names, list | tuple) and names and all(isinstance(name, str) and name for name in names)
            ):
                raise ValueError(f"options.{key} must be a column or a list of columns, got {value!r}")

    def parts(self, task: Task) -> Parts:
        """Candidate columns of each part, the task's own names first."""
        found = dict(self.columns or {})
        for part in found:
            given = task.options.get(f"{part}_field")
            if given is not None:
                found[part] = (given,) if isinstance(given, str) else tuple(given)
        return found

    def check_columns(self, row: Row, task: Task) -> None:
        """A file of another kind is an error, not a file of which every row is dropped. Raises DataError."""
        for part, names in self.parts(task).items():
            named = isinstance(task.options.get(f"{part}_field"), str)
            if not names or (part in self.optional and not named) or any(has(row.values, name) for name in names):
                continue
            raise DataError(
                f"{row.where}: no {part} column for task {task.name} (looked for {' or '.join(names)}); the columns are "
                f"{', '.join(map(str, row.values))}. Is it another file? In a task file of your own, name the column "
                f"with options.{part}_field"
            )


# Parts of a row


def gold_answer(value: object) -> str:
    """A gold answer as text; "" when there is none."""
    texts = [as_text(each) for each in value] if isinstance(value, list | tuple) else [as_text(value)]
    gold = ", ".join(text.strip() for text in texts if text.strip())
    whole = _WHOLE.fullmatch(gold)
    return whole[1] if whole else extract_answer(rf"\boxed{{{gold}}}", "boxed") or gold


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, an empty line, and a line `A) ...` for each option."""
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "", *lines])


def option_letter(answer: object, options: Sequence[str]) -> str | None:
    """The letter of the option that a gold answer names; None when it names none, or two with the same text."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return LETTERS[answer] if 0 <= answer < len(options) else None
    text = as_text(answer).strip()
    if len(text) == 1 and text.upper() in LETTERS[: len(options)]:
        return text.upper()
    return LETTERS[options.index(text)] if options.count(text) == 1 else None


def _texts(value: object) -> list[str] | None:
    """Options: a list of texts, or texts by letter. One is enough: five questions of MMLU-Pro have no second."""
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value) if value[key] is not None]
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= len(LETTERS):
        return None
    texts = [as_text(each).strip() for each in value]
    return texts if all(texts) else None


def _id(row: Row, index: int, names: tuple[str, ...], task: Task) -> str:
    own = as_text(parsers.first(row, names)).strip()
    return own if own and not own.isdigit() else f"{task.name}/{own or index}"


def _asked(row: Row, parts: Parts, answer: str) -> Item | Dropped:
    """Question and gold as the training data reads them: the last user turn of a chat, no request for a box."""
    return parsers.item(row, Columns(parts["question"], ()), "", answer=answer, steps=())


def _question(
    row: Row, index: int, task: Task, parts: Parts, item: Item | Dropped, options: Sequence[str] = ()
) -> Question | Dropped:
    if isinstance(item, Dropped):
        return item
    return Question(
        id=_id(row, index, parts.get("id", ()), task),
        text=with_options(item.question, options) if options else item.question,
        answer=item.answer,
        category=as_text(parsers.first(row, parts.get("category", ()))).strip(),
    )


# Formats


def fields(row: Row, index: int, task: Task) -> Question | Dropped:
    """Question, answer and options in columns of their own; the options may also stand in the question already."""
    parts = FORMATS["fields"].parts(task)
    gold: object = parsers.first(row, parts["answer"])
    if task.kind == "answer":
        return _question(row, index, task, parts, _asked(row, parts, gold_answer(gold)))
    options: list[str] | None = []
    if parts["options"]:
        options = _texts(parsers.first(row, parts["options"]))
        if options is None:
            return Dropped(NO_OPTIONS, row.where)
    return _choice(row, index, task, parts, gold, options or ())


def _choice(row: Row, index: int, task: Task, parts: Parts, gold: object, options: Sequence[str]) -> Question | Dropped:
    if gold is None or gold == "":
        return Dropped("no answer", row.where)
    letter = option_letter(gold, options or ["?"] * len(LETTERS))
    if letter is None:
        return Dropped(NO_SUCH_OPTION, row.where)
    return _question(row, index, task, parts, _asked(row, parts, letter), options)


def gsm8k(row: Row, index: int, task: Task) -> Question | Dropped:
    """`answer` holds the worked lines, then `#### 1,234`."""
    parts = FORMATS["gsm8k"].parts(task)
    gold = _GOLD_HASHES.search(parsers.text(row, parts["answer"]))
    if gold is None:
        return Dropped("no '#### answer' line", row.where)
    return _question(row, index, task, parts, _asked(row, parts, gold[1].replace(",", "")))


def arc(row: Row, index: int, task: Task) -> Question | Dropped:
    """AI2's own rows, with options labelled A to E or 1 to 5; or verl's, whose question ends with lines `A) ...`.

    Both give the same text: the options are lettered, whatever their labels.
    """
    parts = FORMATS["arc"].parts(task)
    gold = as_text(parsers.first(row, parts["answer"])).strip()
    choices, item = row.values.get("choices"), _asked(row, parts, gold)
    if isinstance(item, Dropped):
        return item
    if isinstance(choices, Mapping):
        labels, options = list(choices.get("label") or ()), _texts(choices.get("text"))
    else:
        lines = list(_OPTION_LINE.finditer(item.question))
        labels, options = [line[1] for line in lines], _texts([line[2] for line in lines])
        item = replace(item, question=item.question[: lines[0].start() if lines else None].strip())
    if options is None or len(labels) != len(options):
        return Dropped(NO_OPTIONS, row.where)
    if gold not in labels:
        return Dropped(NO_SUCH_OPTION, row.where)
    return _question(row, index, task, parts, replace(item, answer=LETTERS[labels.index(gold)]), options)


def gpqa(row: Row, index: int, task: Task) -> Question | Dropped:
    """The right answer and three wrong ones, in the order of the sha256 of `<Record ID>/<column>`: fixed, and not ours."""
    parts = FORMATS["gpqa"].parts(task)
    name = _id(row, index, parts["id"], task)
    columns = ("Correct Answer", *(f"Incorrect Answer {k}" for k in (1, 2, 3)))
    order = sorted(columns, key=lambda column: hashlib.sha256(f"{name}/{column}".encode()).digest())
    options = [as_text(row.values.get(column)).strip() for column in order]
    if not all(options):
        return Dropped(NO_OPTIONS, row.where)
    return _choice(row, index, task, parts, order.index(columns[0]), options)


def ifeval(row: Row, index: int, task: Task) -> Question | Dropped:
    """A prompt, the ids of its instructions, and for each the values that it checks; null ones are left out.

    Raises DataError for an instruction that does not exist or lacks a value: its checker would draw one at random.
    """
    parts = FORMATS["ifeval"].parts(task)
    prompt = as_text(parsers.first(row, parts["question"]))
    ids, given = row.values.get("instruction_id_list"), row.values.get("kwargs")
    if not prompt.strip() or not ids:
        return Dropped("no question" if not prompt.strip() else "no instructions", row.where)
    kwargs = [{k: v for k, v in each.items() if v is not None} for each in given or ()]
    if (problem := instructions_problem(ids, kwargs)) is not None:
        raise DataError(f"{row.where}: {problem}; mend the row, or leave it out of the file")
    extra = {"prompt": prompt, "instruction_id_list": list(ids), "kwargs": kwargs}
    return Question(_id(row, index, parts["id"], task), prompt, "", extra=extra)


def humaneval(row: Row, index: int, task: Task) -> Question | Dropped:
    """The head of a function to complete, and a `check` for it."""
    parts = FORMATS["humaneval"].parts(task)
    head, tests = (parsers.text(row, parts[part]) for part in ("question", "tests"))
    if not head.strip() or not tests.strip():
        return Dropped("no question" if not head.strip() else "no tests", row.where)
    text = humaneval_question(head)
    extra = {"prompt": head, "tests": tests, "entry_point": as_text(row.values.get("entry_point"))}
    return Question(_id(row, index, parts["id"], task), text, "", extra=extra)


def mbpp(row: Row, index: int, task: Task) -> Question | Dropped | None:
    """A task in a sentence, and asserts, which the prompt shows, because only they name the function."""
    parts = FORMATS["mbpp"].parts(task)
    number, tests = row.values.get("task_id"), parsers.first(row, parts["tests"])
    if isinstance(number, int) and number not in MBPP_TEST:
        return None
    what = parsers.text(row, parts["question"]).strip()
    if not what or not are_tests(tests):
        return Dropped("no question" if not what else "no tests", row.where)
    setup = row.values.get("test_setup_code") or "\n".join(row.values.get("test_imports") or ())
    text = mbpp_question(what, tests)
    extra = {"prompt": what, "tests": tests, "setup": setup, "entry_point": ""}
    return Question(_id(row, index, parts["id"], task), text, "", extra=extra)


def livecodebench(row: Row, index: int, task: Task) -> Question | Dropped:
    """A contest problem; with starter code it asks for a method, else for a program that reads stdin.

    The hidden tests stay as they are stored, packed, until a program is to be judged by them.
    """
    parts = FORMATS["livecodebench"].parts(task)
    what = parsers.text(row, parts["question"]).strip()
    if not what or not row.values.get("private_test_cases"):
        return Dropped("no question" if not what else "no tests", row.where)
    starter = as_text(row.values.get("starter_code")).rstrip()
    how = (
        f"Complete this Python code.\n\n{FENCED.format(starter)}"
        if starter
        else "Write a Python program that reads the input from stdin and writes the answer to stdout."
    )
    tests = {"public": row.values.get("public_test_cases"), "private": row.values.get("private_test_cases")}
    extra = {"prompt": what, "tests": tests, "starter_code": starter, "metadata": row.values.get("metadata")}
    category = as_text(parsers.first(row, parts["category"]))
    return Question(_id(row, index, parts["id"], task), f"{what}\n\n{how}", "", category, extra)


def made_arithmetic(task: Task) -> Iterator[Question]:
    """Questions made on the fly; the options are those of `reasonrl.data.arithmetic.items`. Raises DataError."""
    knobs = {"size": 256, "seed": 0, **task.options}
    try:
        items = arithmetic.items(task.source.split, **knobs)
    except (TypeError, ValueError) as error:
        raise DataError(f"task {task.name}: {error}") from error
    for item in items:
        terms = len(arithmetic.parse(item.question)[0])
        yield Question(item.id or item.question, item.question, item.answer, f"{terms} numbers")


FORMATS: dict[str, Format] = {
    "fields": Format(
        ("answer", "choice"),
        fields,
        columns={
            "question": ("question",),
            "answer": ("answer",),
            "id": ("id",),
            "category": (),
            "options": (),
        },
    ),
    "gsm8k": Format(("answer",), gsm8k, columns={"question": ("question",), "answer": ("answer",), "id": ("id",)}),
    "arc": Format(
        ("choice",),
        arc,
        columns={
            "question": ("question", "prompt"),
            "answer": ("answerKey", "reward_model.ground_truth"),
            "id": ("id", "extra_info.index"),
        },
    ),
    "gpqa": Format(
        ("choice",),
        gpqa,
        columns={
            "question": ("Question",),
            "answer": ("Correct Answer",),
            "id": ("Record ID",),
            "category": ("High-level domain",),
        },
    ),
    "ifeval": Format(
        ("instructions",),
        ifeval,
        columns={"question": ("prompt",), "instructions": ("instruction_id_list",), "id": ("key",)},
    ),
    "humaneval": Format(
        ("code",), humaneval, columns={"question": ("prompt",), "tests": ("test",), "id": ("task_id",)}
    ),
    "mbpp": Format(
        ("code",), mbpp, columns={"question": ("text", "prompt"), "tests": ("test_list",), "id": ("task_id",)}
    ),
    "livecodebench": Format(
        ("code",),
        livecodebench,
        columns={
            "question": ("question_content",),
            "tests": ("private_test_cases",),
            "id": ("question_id",),
            "category": ("difficulty",),
        },
    ),
    "arithmetic": Format(
        ("answer",),
        make=made_arithmetic,
        knobs=("size", "seed", "min_terms", "max_terms", "digits", "operations"),
    ),
}
