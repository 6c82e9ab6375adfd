"""What an evaluation will ask, checked: model, tasks with their questions, prompts and settings, and the folder's name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.eval.folder import refuse_foreign
from reasonrl.eval.models import RUN_PROMPT, EvalModel, fingerprint, locate, ready
from reasonrl.eval.settings import (
    MOST_WORKERS,
    OF_PROGRAMS,
    EvalKnobs,
    Resolved,
    check_ks,
    read_conf,
    read_protocol,
    resolve,
    verify_config,
)

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.data.prompts import Prompt
    from reasonrl.eval.tasks.load import Questions
    from reasonrl.eval.tasks.task import Task
    from reasonrl.verify.pool import VerifyConfig

FOLDER = Path("evals")


@dataclass(frozen=True)
class TaskPlan:
    """One task, ready to be sampled.

    room: tokens that the context leaves for the answers to each question, at most max_new_tokens; 0 where the prompt alone
    fills it. prompt_ids: () where a server has the tokenizer.
    """

    task: Task
    settings: Resolved
    verify: VerifyConfig
    questions: Questions
    prompt: Prompt
    prompt_ids: Sequence[Sequence[int]]
    room: Sequence[int]
    chat_template_sha256: str | None

    @property
    def wanted(self) -> int:
        """Answers."""
        return len(self.questions.items) * self.settings.n

    @property
    def short_of_room(self) -> int:
        """Questions whose answers cannot have all of max_new_tokens."""
        return sum(0 < room < self.settings.max_new_tokens for room in self.room)


@dataclass(frozen=True)
class Plan:
    """An evaluation that has been checked and can start."""

    knobs: EvalKnobs
    path: Path
    backend: str
    model: EvalModel
    fingerprint: str | None
    tokenizer: Any
    tasks: Sequence[TaskPlan]
    protocol: str | None = None
    suite: str | None = None

    @property
    def wanted(self) -> int:
        """Answers."""
        return sum(task.wanted for task in self.tasks)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        lengths = [
            len(ids) + room for task in self.tasks for ids, room in zip(task.prompt_ids, task.room, strict=True) if room
        ]
        return max(lengths, default=1)

    @property
    def workers(self) -> int:
        """Processes that grade."""
        return grading_workers(self.knobs)


def prepare(knobs: EvalKnobs, console: Console) -> Plan:
    """Check everything, the quickest first; data is read, a run is merged, a hub model downloaded. Raises ConfigError."""
    from reasonrl.eval.grading import Grader
    from reasonrl.eval.suites import chosen_tasks, read_suite
    from reasonrl.eval.tasks.task import load_task
    from reasonrl.models import refuse_bottleneck

    suite = read_suite(knobs.suite) if knobs.suite else None
    names = list(knobs.task or ())
    if len(set(names)) < len(names):
        raise ConfigError(f"task={','.join(names)} names a task twice")
    if suite:
        names = chosen_tasks(suite, knobs.task)
    if knobs.baseline:
        read_baseline(knobs)  # raises
    protocol_given = knobs.protocol or (suite.protocol if suite else None)
    protocol = read_protocol(protocol_given) if protocol_given else None
    tasks = [load_task(name) for name in names]
    model = located(knobs)
    path = folder_path(knobs, model)
    refuse_foreign(path)
    resolved = {
        task.name: resolve(task, protocol, knobs.given, model.own if task.kind == "answer" else None) for task in tasks
    }
    check_ks(knobs.ks, resolved)
    for settings in resolved.values():
        for name in (settings.prompt, settings.chat_prompt, settings.base_prompt):
            if name is not None and not name.startswith(RUN_PROMPT):
                read_prompt(name)  # raises
    backend = chosen_backend(knobs, model)
    check_backend(backend, knobs)
    workers = grading_workers(knobs)
    verifies = {name: verify_config(settings, workers) for name, settings in resolved.items()}
    for task in tasks:
        Grader(task, verifies[task.name]).close()  # raises, and starts no process yet
    if not any(task.kind == "code" for task in tasks):
        for name in OF_PROGRAMS:
            if getattr(knobs.verify_knobs, name) is not None:
                raise ConfigError(f"verify.{name} is for programs, and no task here asks for one: leave it out")
    data_dir = Path(knobs.data_dir).expanduser() if knobs.data_dir else None
    questions = {task.name: read_questions(task, data_dir, resolved[task.name].limit) for task in tasks}
    if backend == "openai":
        tokenizer, known, context = None, None, None
    else:
        model = ready(model, console)
        if backend == "vllm" and model.folder is not None:
            refuse_bottleneck(model.folder, "with backend=vllm")
        known, context = fingerprint(model), model.context
        for settings in resolved.values():
            check_context(settings, model, context)
        tokenizer = model.load_tokenizer()
        tokenizer.model_max_length = sys.maxsize  # what is too long is told by us, once
    plans = [
        plan_task(task, resolved[task.name], verifies[task.name], questions[task.name], model, tokenizer, context)
        for task in tasks
    ]
    for plan in plans:
        tell(plan, console)
    if backend == "vllm":
        tell_idle_gpus(knobs, console)
    names_of = (protocol["name"] if protocol else None, suite.name if suite else None)
    return Plan(knobs, path, backend, model, known, tokenizer, plans, *names_of)


def read_baseline(knobs: EvalKnobs) -> dict[str, Any] | None:
    """results.json of baseline=. Raises ConfigError."""
    from reasonrl.eval.compare import read_results

    return read_results(Path(knobs.baseline).expanduser()) if knobs.baseline else None


def located(knobs: EvalKnobs) -> EvalModel:
    """What `model=` names; a server's model is known by its name alone."""
    if knobs.backend == "openai":
        name = knobs.served_model or knobs.model
        return EvalModel(name.rstrip("/").rpartition("/")[2], str(knobs.base_url))
    return locate(knobs.model, trust_remote_code=knobs.trust_remote_code)


def grading_workers(knobs: EvalKnobs) -> int:
    """Processes that grade: one a core, unless told."""
    return knobs.workers or min(os.cpu_count() or 1, MOST_WORKERS)


def folder_path(knobs: EvalKnobs, model: EvalModel) -> Path:
    """out=, or evals/<name>; the name follows from the settings, so that the same command finds its folder again."""
    if knobs.out:
        return Path(knobs.out).expanduser()
    if knobs.name:
        return FOLDER / knobs.name
    names = [Path(name).stem for name in knobs.task or ()]
    what = "+".join([*names[:3], *(["more"] if len(names) > 3 else [])])
    parts = [model.name, *([Path(knobs.suite).stem] if knobs.suite else []), *([what] if what else [])]
    if knobs.protocol:
        parts.append(Path(knobs.protocol).stem)
    parts += [
        f"{key.removeprefix('verify.')}{Path(str(value)).stem if key in ('prompt', 'verify') else value}"
        for key, value in knobs.given.items()
        if key != "verify.judge"  # an address changes no verdict
    ]
    if knobs.seed != 1:
        parts.append(f"seed{knobs.seed}")
    return FOLDER / "-".join("".join(c if c.isalnum() or c in "._+-" else "_" for c in part) for part in parts)


def chosen_backend(knobs: EvalKnobs, model: EvalModel) -> str:
    """The one that was given; else vLLM where there is a GPU, unless the model is meant for a CPU."""
    from reasonrl.runs.provenance import gpus

    if knobs.backend != "auto":
        return knobs.backend
    return "transformers" if model.small or not gpus() else "vllm"


def check_backend(backend: str, knobs: EvalKnobs) -> None:
    """Raise ConfigError for a backend that cannot run here; imports no torch."""
    import importlib.util

    from reasonrl.runs.provenance import gpus

    engine = knobs.engine
    if backend == "transformers":
        if engine.tensor_parallel > 1 or engine.data_parallel > 1:
            raise ConfigError(
                "engine.tensor_parallel and engine.data_parallel are for backend=vllm; a CPU has one copy"
            )
        if engine.dtype not in ("auto", "float32"):
            raise ConfigError(f"engine.dtype={engine.dtype}: backend=transformers computes in float32")
    if backend == "vllm":
        have, needed = len(gpus()), engine.tensor_parallel * engine.data_parallel
        if not have:
            raise ConfigError("backend=vllm and no NVIDIA GPU found (nvidia-smi lists none): use backend=transformers")
        if needed > have:
            raise ConfigError(
                f"engine.tensor_parallel={engine.tensor_parallel} times engine.data_parallel={engine.data_parallel} needs "
                f"{needed} GPUs and this machine has {have}"
            )
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "backend=vllm needs vllm, which is not installed: pip install 'reasonrl[gpu]', or backend=transformers"
            )


def tell_idle_gpus(knobs: EvalKnobs, console: Console) -> None:
    """Say how to use the GPUs that are left alone."""
    from reasonrl.runs.provenance import gpus

    have, share = len(gpus()), knobs.engine.tensor_parallel
    used = share * knobs.engine.data_parallel
    if have >= used + share:
        console.print(
            f"{used} of {have} GPUs are used: engine.data_parallel={have // share} uses {have // share * share}"
        )


def read_questions(task: Task, data_dir: Path | None, limit: int | None) -> Questions:
    """The questions of a task. Raises ConfigError."""
    from reasonrl.eval.tasks.load import load_questions

    try:
        questions = load_questions(task, data_dir=data_dir, limit=limit)
    except ConfigError:
        raise
    except ValueError as error:  # DataError says what, where and the way out
        raise ConfigError(str(error)) from error
    if not questions.items:
        raise ConfigError(f"task {task.name} has no questions in {questions.origin}")
    return questions


def check_context(settings: Resolved, model: EvalModel, context: int | None) -> None:
    """Raise ConfigError for a max_context= that the model cannot read."""
    if settings.max_context and context and settings.max_context > context:
        raise ConfigError(
            f"max_context={settings.max_context}, and model {model.name} reads at most {context} tokens "
            "(max_position_embeddings of its config.json): lower it"
        )


def plan_task(
    task: Task,
    settings: Resolved,
    verify: VerifyConfig,
    questions: Questions,
    model: EvalModel,
    tokenizer: Any,
    context: int | None,
) -> TaskPlan:
    """Prompt and room of every question. tokenizer: None for a server. Raises ConfigError."""
    from reasonrl.data.prompts import chat_template_hash

    prompt = chosen_prompt(task, settings, model, tokenizer)
    limit = settings.max_context or context
    if tokenizer is None:
        room = [settings.max_new_tokens] * len(questions.items)
        return TaskPlan(task, settings, verify, questions, prompt, [()] * len(room), room, None)
    try:
        ids = prompt.encode_many([question.text for question in questions.items], tokenizer)
    except ValueError as error:
        raise ConfigError(f"task {task.name}: {error}") from error
    room = [
        settings.max_new_tokens if limit is None else max(0, min(settings.max_new_tokens, limit - len(each)))
        for each in ids
    ]
    template = chat_template_hash(tokenizer) if prompt.kind == "chat" else None
    return TaskPlan(task, settings, verify, questions, prompt, ids, room, template)


def chosen_prompt(task: Task, settings: Resolved, model: EvalModel, tokenizer: Any) -> Prompt:
    """The prompt that was asked for; else the protocol's or the task's for models with, or without, a chat template.

    Raises ConfigError.
    """
    name = settings.prompt
    if name is not None and name.startswith(RUN_PROMPT):
        assert model.prompt is not None
        return replace(model.prompt, name=name)
    if name is None:
        chats = tokenizer is None or bool(getattr(tokenizer, "chat_template", None))
        name = settings.chat_prompt or task.prompt if chats else settings.base_prompt or task.base_prompt
        if name is None:
            raise ConfigError(
                f"task {task.name} has a prompt for chat models only, and the tokenizer "
                f"{getattr(tokenizer, 'name_or_path', '')!r} has no chat template: "
                "give prompt=<one of kind text, such as r1_zero>, or choose a model that has one"
            )
    return read_prompt(name)


def read_prompt(name: str) -> Prompt:
    """An option of the prompt group, or a file. Raises ConfigError."""
    from reasonrl.data.prompts import prompt_from_config

    try:
        return prompt_from_config(read_conf("prompt", name))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def tell(plan: TaskPlan, console: Console) -> None:
    """A line for a task."""
    settings, items = plan.settings, plan.questions.items
    notes = []
    if plan.questions.dropped:
        notes.append(
            f"{len(plan.questions.dropped)} rows dropped, the first because: {plan.questions.dropped[0].reason}"
        )
    if plan.task.size is not None and settings.limit is None and len(items) != plan.task.size:
        notes.append(f"the full set has {plan.task.size}")
    too_long = sum(room == 0 for room in plan.room)
    if too_long:
        notes.append(f"{too_long} prompts fill the context, counted as wrong")
    if plan.short_of_room:
        notes.append(f"{plan.short_of_room} leave less than max_new_tokens={settings.max_new_tokens} to their answers")
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    console.print(
        f"{plan.task.name}: {len(items)} questions, {settings.n} answer{'s' * (settings.n > 1)} each, {how}, prompt "
        f"{plan.prompt.name}" + "".join(f"; {note}" for note in notes)
    )


# What the numbers follow from


def comparable(plan: Plan) -> dict[str, Any]:
    """Everything that the numbers follow from, flat; a folder is continued with the same ones only."""
    found: dict[str, Any] = {
        "model": plan.fingerprint or f"{plan.knobs.served_model or plan.knobs.model} behind a server",
        "backend": plan.backend,
        "dtype": dtype_of(plan),
        "seed": plan.knobs.seed,
        "tasks": ",".join(task.task.name for task in plan.tasks),
    }
    for task in plan.tasks:
        values = {
            **task_settings(task, plan.knobs.seed),
            "data": task.questions.sha256,
            "prompt_sha256": task.prompt.hash,
            "chat_template": task.chat_template_sha256,
        }
        found |= {f"{task.task.name}.{key}": value for key, value in values.items() if key != "seed"}
    return dict(json.loads(json.dumps(found)))


def dtype_of(plan: Plan) -> str | None:
    """What the model computes in; None where a server decides."""
    if plan.backend == "openai":
        return None
    if plan.knobs.engine.dtype != "auto":
        return plan.knobs.engine.dtype
    return "float32" if plan.backend == "transformers" else "bfloat16"


def task_settings(task: TaskPlan, seed: int) -> dict[str, Any]:
    """The settings of a task for results.json."""
    values = {name: getattr(task.settings, name) for name in ("n", "temperature", "top_p", "top_k", "max_new_tokens")}
    return {
        **values,
        "max_context": task.settings.max_context,
        "limit": task.settings.limit,
        "seeds": task.settings.seeds,
        "prompt": task.prompt.name,
        "verify": task.settings.verify,
        **task.verify.comparable,
        "seed": seed,
    }
