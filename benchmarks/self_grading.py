r"""Does every benchmark grade its own gold answers as right? A Markdown table of all that are found below a folder.

    python benchmarks/self_grading.py DATA_DIR [--tasks gsm8k,math500] [--verify either] > self_grading.md

boxed      the gold as `\boxed{gold}`; of kind choice also in the sentence "The answer is (B)."
solution   the set's own worked solution, as it is
other      the gold of the next question that has another one, boxed: must be wrong

Every gold or solution that is graded wrong, and every other gold that is graded right, is listed below the table.
Instructions have no gold: an empty text must fail, and a text made for the first instruction that can be met blindly must pass.
Of programs the solution is the set's own, in a fenced block; other is the solution of the next question; a set without
solutions (LiveCodeBench) is loaded, and its tests are unpacked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from reasonrl.config import ConfigError
from reasonrl.data import parsers
from reasonrl.data.items import DataError, Dropped
from reasonrl.eval.grading import Grade, Grader
from reasonrl.eval.settings import read_conf
from reasonrl.eval.tasks import Question, Questions, Task, load_questions, load_task, task_names
from reasonrl.eval.tasks.formats import FORMATS
from reasonrl.eval.tasks.load import rows
from reasonrl.eval.tasks.programs import program_gold
from reasonrl.eval.work import with_judge
from reasonrl.verify.pool import VerifyConfig, verify_from_config

SOLUTION = {"gsm8k": ("answer",)}  # column of the worked solution, by format
SHOWN = 90  # characters of a text in the list of exceptions
HEAD = "| task | questions | dropped | boxed right | sentence right | solution right | other right | seconds |"


def solutions(task: Task, data_dir: Path) -> dict[str, str]:
    """Worked solutions by question id, where the set has them."""
    form, found = FORMATS[task.format], {}
    if form.parse is None:
        return {}
    for index, row in enumerate(rows(task, data_dir)[1]):
        question = None if isinstance(row, Dropped) else form.parse(row, index, task)
        if isinstance(question, Question) and not isinstance(row, Dropped):
            text = parsers.text(row, SOLUTION.get(task.format, ("solution", "Solution")))
            if text:
                found[question.id] = text
    return found


def grade(grader: Grader, pairs: Sequence[tuple[Question, str]]) -> list[Grade]:
    return [future.result() for future in [grader.submit(question, text) for question, text in pairs]]


def share(grades: Sequence[Grade]) -> str:
    """Right of all, `-` when there are none."""
    right = sum(each.correct for each in grades)
    return f"{100 * right / len(grades):.2f} % ({right}/{len(grades)})" if grades else "-"


def others(questions: Sequence[Question]) -> list[tuple[Question, str]]:
    """Each question with the next other gold."""
    found = []
    for place, question in enumerate(questions):
        later = (
            each.answer for each in (*questions[place + 1 :], *questions[:place]) if each.answer != question.answer
        )
        if (other := next(later, None)) is not None:
            found.append((question, rf"\boxed{{{other}}}"))
    return found


def answers(task: Task, loaded: Questions, data_dir: Path, verify: VerifyConfig) -> tuple[list[str], list[str]]:
    """Cells of the row, and lines about what was not as it must be."""
    started = time.monotonic()
    worked = solutions(task, data_dir)
    items = loaded.items
    sets = {
        "boxed": [(q, rf"\boxed{{{q.answer}}}") for q in items],
        "sentence": [(q, f"The answer is ({q.answer}).") for q in items if task.kind == "choice"],
        "solution": [(q, worked[q.id]) for q in items if q.id in worked],
        "other": others(items),
    }
    cells, lines = [], []
    with Grader(task, verify) as grader:
        for name, pairs in sets.items():
            grades = grade(grader, pairs)
            cells.append(share(grades))
            for (question, text), found in zip(pairs, grades, strict=True):
                if found.correct == (name == "other"):
                    lines.append(
                        f"- {task.name}, {name}, {question.id}: gold `{question.answer}`, read `{found.extracted}`, "
                        f"{found.status} {found.message} from `{text[-SHOWN:]!r}`"
                    )
    return [*cells, f"{time.monotonic() - started:.1f}"], lines


def programs(task: Task, loaded: Questions, data_dir: Path, verify: VerifyConfig) -> tuple[list[str], list[str]]:
    """As `answers`, of a task that asks for programs."""
    started = time.monotonic()
    gold = {}
    for index, row in enumerate(rows(task, data_dir)[1]):
        form = FORMATS[task.format].parse
        question = None if isinstance(row, Dropped) or form is None else form(row, index, task)
        if isinstance(question, Question) and not isinstance(row, Dropped):
            code = parsers.text(row, ("code",)) or parsers.text(row, ("canonical_solution",))
            if code:
                gold[question.id] = f"```python\n{'' if 'code' in row.values else question.extra['prompt']}{code}\n```"
    for question in loaded.items:
        program_gold(task, question)  # raises
    mine = [question for question in loaded.items if question.id in gold]
    sets = {
        "solution": [(question, gold[question.id]) for question in mine],
        "other": [(question, gold[later.id]) for question, later in zip(mine, [*mine[1:], *mine[:1]], strict=True)],
    }
    cells, lines = ["-", "-"], []
    with Grader(task, verify) as grader:
        for name, pairs in sets.items():
            grades = grade(grader, pairs)
            cells.append(share(grades))
            lines += [
                f"- {task.name}, {name}, {question.id}: {found.status} {found.message}"
                for (question, _), found in zip(pairs, grades, strict=True)
                if found.correct == (name == "other")
            ]
    return [*cells, f"{time.monotonic() - started:.1f}"], lines


def crafted(question: Question) -> str | None:
    """A text that obeys all instructions of the question, for the few kinds that can be met without thinking."""
    values_of = dict(zip(question.extra["instruction_id_list"], question.extra["kwargs"], strict=True))
    repeated = values_of.get("combination:repeat_prompt", {}).get("prompt_to_repeat", "")
    text, after = f"{repeated}\nso it is" if repeated else "so it is", ""
    for name, values in values_of.items():
        match name:
            case "punctuation:no_comma" | "change_case:english_lowercase":
                if repeated:
                    return None  # what is repeated may have commas and capitals
            case "detectable_format:title":
                text += "\n<<so it is>>"
            case "keywords:existence":
                text += "".join(f"\n{word.lower()}" for word in values["keywords"])
            case "startend:end_checker":
                after = f"\n{values['end_phrase']}"
            case "combination:repeat_prompt":
                pass
            case "detectable_content:number_placeholders":
                text += "".join(f"\n[place {k}]" for k in range(int(values["num_placeholders"])))
            case _:
                return None
    return text + after


def instructions(task: Task, loaded: Questions, verify: VerifyConfig) -> list[str]:
    """Lines about the empty text and the crafted ones."""
    made = [(question, text) for question in loaded.items if (text := crafted(question)) is not None]
    started = time.monotonic()
    with Grader(task, verify) as grader:
        empty = grade(grader, [(question, " \n") for question in loaded.items])
        right = grade(grader, made)
        plain = grade(grader, [(question, "So it is, I think.\n\nYes.") for question in loaded.items])
    parts = {name: sum(each.parts[name] for each in plain) / len(plain) for name in plain[0].parts}
    bad = [(q, found) for (q, _), found in zip(made, right, strict=True) if not found.correct]
    failed = [found for found in (*right, *plain) if found.status != "ok"]
    return [
        f"- {task.name}: {len(loaded.items)} prompts. Empty text: {share(empty)} right. Made texts, strict: {share(right)}.",
        f"- {task.name}: the text 'So it is, I think. Yes.' for all: "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items()),
        f"- {task.name}: {len(failed)} not graded {sorted({found.message for found in failed})[:3]}; "
        f"{time.monotonic() - started:.1f} s for {len(made) + len(plain)} texts",
        *(
            f"- {task.name}, made, {q.id}: {q.extra['instruction_id_list']} {found.parts} {found.message}"
            for q, found in bad
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--tasks", default=",".join(task_names()))
    parser.add_argument("--verify", help="instead of each task's own, of kind answer")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    print(f"{HEAD}\n|---|---|---|---|---|---|---|---|")
    notes: list[str] = []
    for name in args.tasks.split(","):
        task = load_task(name)
        try:
            loaded = load_questions(task, data_dir=args.data_dir)
        except DataError as error:
            notes.append(f"- {name}: not found. {str(error).split('. ')[0]}")
            continue
        size = str(len(loaded.items)) + (f" (of {task.size})" if task.size != len(loaded.items) else "")
        start = [name, size, str(len(loaded.dropped))]
        option = args.verify if args.verify and task.kind == "answer" else task.verify
        verify = verify_from_config({**read_conf("verify", option), "workers": args.workers})
        cells: list[str] = ["-"] * 5
        if task.kind in ("answer", "choice"):
            cells, lines = answers(task, loaded, args.data_dir, verify)
            notes += lines
        elif task.kind == "instructions":
            try:
                notes += instructions(task, loaded, verify)
            except ConfigError as error:
                notes.append(f"- {name}: loaded, not graded: {error}")
        else:
            try:
                with with_judge({name: verify}) as verifies:
                    cells, lines = programs(task, loaded, args.data_dir, verifies[name])
                notes += lines
            except (ConfigError, ValueError) as error:
                notes.append(f"- {name}: loaded, not graded: {error}")
        notes += [f"- {name}, dropped, {each.where}: {each.reason}" for each in loaded.dropped]
        print(f"| {' | '.join([*start, *cells])} |", flush=True)
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
