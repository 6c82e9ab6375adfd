"""The main path of `reasonrl eval`, read first: model and tasks -> folder.

    prepare   everything that can fail is tried here: settings, tasks, data, model, prompts (plan.py)
    sample    answers come in the order they are finished, each written down and graded while others are written (work.py)
    finish    samples, numbers with intervals, speed, the page (results.py)

Which answer a question gets with the transformers backend depends on the seed, the task, its id and its number alone, so an
interruption changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from reasonrl.eval.backends import Backend
from reasonrl.eval.folder import EvalFolder
from reasonrl.eval.plan import Plan, chosen_prompt, comparable, prepare
from reasonrl.eval.results import finish
from reasonrl.eval.settings import EvalKnobs
from reasonrl.eval.work import Session, Work, opened_graders

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Plan", "chosen_prompt", "evaluate", "prepare"]


def evaluate(
    knobs: EvalKnobs,
    *,
    console: Console | None = None,
    command: Sequence[str] = (),
    open_backend: Callable[[Plan, int, Console], AbstractContextManager[Backend]] | None = None,
) -> Path:
    """Do an evaluation, or what is left of it; returns its folder.

    command: how a person asked for it, for the records. open_backend: as `backend_of`, which opens the one that the plan names.
    Raises ConfigError for settings that cannot work or that are not those of the folder, RunFailed when a server or a GPU
    process is lost, DiskFull, and KeyboardInterrupt saying how to continue.
    """
    from rich.console import Console

    console = console or Console(quiet=True)
    begun = time.monotonic()
    plan = prepare(knobs, console)
    about = {
        "command": list(command),
        "model": knobs.model,
        "backend": plan.backend,
        "protocol": plan.protocol,
        "suite": plan.suite,
        "engine": asdict(knobs.engine),
        **({"base_url": knobs.base_url} if knobs.base_url else {}),
    }
    with (
        opened_graders(plan) as graders,
        EvalFolder.opened(
            plan.path,
            [task.task.name for task in plan.tasks],
            comparable(plan),
            about,
            overwrite=knobs.overwrite,
        ) as folder,
    ):
        write_provenance(plan, folder, command)
        session = Session(folder, plan, time.monotonic() - begun)
        work = Work(plan, folder, graders, console, session)
        with telling_what_is_kept(folder, session):
            work.begin()
            if work.left:
                console.print("loading the model ..." if plan.backend != "openai" else f"asking {knobs.base_url} ...")
                with (open_backend or backend_of)(plan, folder.answers, console) as backend:
                    work.sample(backend)
            work.wait()
        finish(plan, folder, session, console)
    return plan.path


def write_provenance(plan: Plan, folder: EvalFolder, command: Sequence[str]) -> None:
    """What it was made of, of the session that wrote last."""
    from reasonrl.runs.provenance import provenance

    facts = provenance(
        model={"given": plan.knobs.model, "path": plan.model.path, "fingerprint": plan.fingerprint},
        data={
            task.task.name: {"origin": task.questions.origin, "sha256": task.questions.sha256} for task in plan.tasks
        },
        prompts={task.task.name: {"name": task.prompt.name, "sha256": task.prompt.hash} for task in plan.tasks},
    )
    folder.write_json("provenance.json", {**facts, "command": ["reasonrl", "eval", *command]})


@contextlib.contextmanager
def backend_of(plan: Plan, done: int, console: Console) -> Iterator[Backend]:
    """The backend that the plan names, its model loaded. done: answers that there are already. Raises ConfigError."""
    knobs, model = plan.knobs, plan.model
    if plan.backend == "transformers":
        from reasonrl.eval.backends.local import open_local

        opened: AbstractContextManager[Backend] = open_local(
            model.path,
            plan.tokenizer,
            trust_remote_code=model.trust_remote_code,
            threads=knobs.engine.threads or model.threads,
            max_sequences=knobs.engine.max_sequences,
        )
    elif plan.backend == "vllm":
        from reasonrl.eval.backends.vllm import open_vllm

        opened = open_vllm(
            model.path,
            knobs.engine,
            trust_remote_code=model.trust_remote_code,
            context=plan.longest,
            seed=knobs.seed,
            done=done,
        )
    else:
        from reasonrl.eval.backends.openai import open_server

        opened = open_server(knobs, console)
    with opened as backend:
        yield backend


@contextlib.contextmanager
def telling_what_is_kept(folder: EvalFolder, session: Session) -> Iterator[None]:
    """A Ctrl-C says what is kept and how to continue; timing.json holds this session too, whatever stops it."""
    try:
        yield
    except BaseException as stop:
        folder.flush()
        session.stopped()
        if not isinstance(stop, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(
            f"{folder.answers} answers are kept in {folder.path}. Continue with the same command"
        ) from stop
