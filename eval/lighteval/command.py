"""`reasonrl eval lighteval`: evaluate, ask lighteval, compare."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import nearest
from reasonrl.eval.lighteval.ask import LightevalKnobs, asked, model_folder, requests
from reasonrl.eval.lighteval.counterparts import COUNTERPARTS
from reasonrl.eval.lighteval.installed import INSTALL, Installed, check_model, check_versions, find
from reasonrl.eval.lighteval.read import Theirs, beside, markdown, model_of, read_theirs, results_file, table
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.settings import EvalKnobs
    from reasonrl.eval.tasks import Question

COMMAND = "reasonrl eval lighteval"
HELP = """\
reasonrl eval lighteval model=... task=... [key=value ...] [lighteval.<key>=...]

Evaluates as `reasonrl eval` with the same arguments does, or takes what that has written, then asks the same model lighteval's
own tasks with the same sampling, and prints both accuracies with their difference.

Tasks: TASKS (which needs lighteval[extended_tasks]).

  reasonrl eval lighteval model=Qwen/Qwen2.5-7B-Instruct task=gsm8k,math500 lighteval.command=~/lighteval/bin/lighteval

  lighteval.command=lighteval   where it is. It needs an environment of its own:
      INSTALL
  lighteval.backend=auto        vllm or transformers; auto: as ours
  lighteval.batch_size=         of transformers; default: lighteval tries
  lighteval.results=            a results_*.json of lighteval, or its folder: nothing is run

Its sets are downloaded from the Hugging Face hub. Everything goes to the evaluation's folder, under lighteval/.
"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError, and RunFailed when lighteval fails."""
    from reasonrl.eval.plan import chosen_backend, located
    from reasonrl.eval.settings import read_settings
    from reasonrl.sampled.arguments import wants_help

    if wants_help(args):
        print(HELP.replace("TASKS", ", ".join(COUNTERPARTS)).replace("INSTALL", INSTALL))
        return 0
    own = [arg.removeprefix("lighteval.") for arg in args if arg.startswith("lighteval.")]
    knobs = read_knobs(LightevalKnobs, own, f"{COMMAND} (lighteval.)")
    ours = read_settings([arg for arg in args if not arg.startswith("lighteval.")])
    check_asked(ours)
    installed = None
    if knobs.results:
        results_file(Path(knobs.results).expanduser())  # raises
    else:
        installed = find(knobs.command)
        backend = chosen_backend(ours, located(ours)) if knobs.backend == "auto" else knobs.backend
        check_versions(installed, backend)

    from rich.console import Console

    from reasonrl.eval.command import PIPE_WIDTH
    from reasonrl.eval.run import evaluate

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, soft_wrap=True, highlight=False, markup=False)
    folder = evaluate(ours, console=console, command=[arg for arg in args if not arg.startswith("lighteval.")])
    cross_check(folder, ours, knobs, installed, console)
    return 0


def check_asked(ours: EvalKnobs) -> None:
    """Raise ConfigError for what lighteval cannot be asked."""
    require(
        ours.suite is None, "lighteval has few of a suite's tasks: give task=, and protocol= for a paper's settings"
    )
    require(
        ours.backend != "openai",
        "backend=openai: lighteval runs the model itself, so give model= as a folder or hub name",
    )
    for task in ours.task or ():
        require(
            task in COUNTERPARTS, f"lighteval has nothing that compares with task '{task}'{nearest(task, COUNTERPARTS)}"
        )


def cross_check(
    folder: Path, ours: EvalKnobs, knobs: LightevalKnobs, installed: Installed | None, console: Console
) -> None:
    """Ask lighteval, or read what it wrote; print and write the comparison. Raises ConfigError and RunFailed."""
    from reasonrl.eval.compare import read_problems, read_results
    from reasonrl.runs.files import write_text

    results = read_results(folder)
    problems = read_problems(folder, list(results["tasks"]))
    found: dict[str, Theirs] = {}
    notes: dict[str, list[str]] = {task: [COUNTERPARTS[task].differs] for task in results["tasks"]}
    if knobs.results:
        file = results_file(Path(knobs.results).expanduser())
        found = read_theirs(file, list(results["tasks"]))
        console.print(f"lighteval's results of {model_of(file)}, from {file}")
    elif installed is not None:
        for request in requests(folder, results, ours, knobs):
            check_model(installed, request.backend, model_folder(results))
            found |= read_theirs(asked(request, folder, results, installed, console), list(request.tasks))
            for task, n in request.tasks.items():
                if n > 1 and not COUNTERPARTS[task].repeats:
                    notes[task].append(f"{n} answers a question here, one there")
                if request.lowered is not None:
                    there = request.parameters["generation_parameters"]["max_new_tokens"]
                    notes[task].append(
                        f"answers are cut at {there} tokens there, {request.lowered} here: its prompts are longer"
                    )
    rows = [
        beside(task, results["tasks"][task], problems[task], found[task], questions(task, ours, results), notes[task])
        for task in results["tasks"]
    ]
    (folder / "lighteval").mkdir(exist_ok=True)
    write_text(folder / "lighteval" / "lighteval.md", markdown(rows, results))
    console.print(table(rows, results), soft_wrap=False)
    console.print(f"lighteval's own results: {folder / 'lighteval'}")


def questions(task: str, ours: EvalKnobs, results: Mapping[str, Any]) -> Sequence[Question]:
    """Ours, to match problems by their text; () where that cannot be done."""
    from reasonrl.eval.tasks import load_questions, load_task

    if not COUNTERPARTS[task].paired:
        return ()
    data_dir = Path(ours.data_dir).expanduser() if ours.data_dir else None
    found = load_questions(load_task(task), data_dir=data_dir, limit=results["tasks"][task]["settings"].get("limit"))
    return found.items if found.sha256 == results["tasks"][task]["data_sha256"] else ()
