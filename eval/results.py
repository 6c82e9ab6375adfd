"""What an evaluation says at its end: results.json, samples.parquet, timing.json, the page and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.eval.folder import EvalFolder
from reasonrl.eval.plan import Plan, dtype_of, read_baseline, task_settings
from reasonrl.eval.work import Session

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1


def finish(plan: Plan, folder: EvalFolder, session: Session, console: Console) -> None:
    """Write samples, results, timing, the page and a suite's table; print the tables."""
    from reasonrl.eval.report import write_report
    from reasonrl.eval.table import results_table

    samples = {task.task.name: folder.samples(task.task.name, task.questions.items) for task in plan.tasks}
    folder.write_samples(row for rows in samples.values() for row in rows)
    results = results_of(plan, samples, {name: kept.short_of_room for name, kept in folder.kept.items()})
    folder.write_json("results.json", results)
    timing = session.write()
    page = write_report(folder.path)
    console.print(results_table(results, timing), soft_wrap=False)
    if plan.knobs.suite:
        from reasonrl.eval.suites import read_suite, suite_markdown, suite_table

        suite, baseline = read_suite(plan.knobs.suite), read_baseline(plan.knobs)
        folder.write_text("suite.md", suite_markdown(results, suite, baseline))
        console.print(suite_table(results, suite, baseline), soft_wrap=False)
    console.print(f"folder: {folder.path}   page: {page}")


def results_of(
    plan: Plan, samples: Mapping[str, Sequence[Mapping[str, Any]]], short_of_room: Mapping[str, int]
) -> dict[str, Any]:
    """results.json. No times: an evaluation that was killed and continued gives the same bytes.

    short_of_room: by task, questions of which a server said so.
    """
    from reasonrl.eval.summary import KS, Samples, summarise
    from reasonrl.runs.provenance import git_state, versions

    ks = plan.knobs.ks or KS
    tasks = {}
    for task in plan.tasks:
        found = summarise(Samples.from_rows(samples[task.task.name]), ks=ks, seed=plan.knobs.seed)
        tasks[task.task.name] = {
            **{name: getattr(task.task, name) for name in ("title", "citation", "kind")},
            "settings": task_settings(task, plan.knobs.seed),
            "data_sha256": task.questions.sha256,
            "prompt_sha256": task.prompt.hash,
            "chat_template_sha256": task.chat_template_sha256,
            "origin": task.questions.origin,
            "expected_size": task.task.size,
            "dropped": len(task.questions.dropped),
            "short_of_room": task.short_of_room or short_of_room[task.task.name],
            **found,
        }
    accuracies = [tasks[task.task.name]["accuracy"]["estimate"] for task in plan.tasks]
    return {
        "schema": SCHEMA,
        "name": plan.path.name,
        "model": {
            "name": plan.model.name,
            "path": plan.model.path,
            "fingerprint": plan.fingerprint,
            "dtype": dtype_of(plan),
        },
        "backend": {"name": plan.backend, **engine_facts(plan)},
        "protocol": plan.protocol,
        "suite": plan.suite,
        "seed": plan.knobs.seed,
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "tasks": tasks,
        "mean": {"accuracy": round(sum(accuracies) / len(accuracies), 10), "tasks": list(tasks)},
        "notes": notes(plan),
    }


def engine_facts(plan: Plan) -> dict[str, Any]:
    """Settings of the backend that touch the numbers."""
    engine = plan.knobs.engine
    if plan.backend == "vllm":
        return {"dtype": dtype_of(plan), "tensor_parallel": engine.tensor_parallel, "eager": engine.eager}
    if plan.backend == "openai":
        return {"served_model": plan.knobs.served_model or plan.knobs.model}
    return {"dtype": dtype_of(plan)}


def notes(plan: Plan) -> list[str]:
    """What a reader of the numbers should know and the settings do not say."""
    found = []
    for task in plan.tasks:
        name = task.task.name
        if task.settings.limit is not None:
            found.append(f"{name}: the first {len(task.questions.items)} questions only (limit)")
        elif task.task.size is not None and len(task.questions.items) != task.task.size:
            found.append(f"{name}: {len(task.questions.items)} questions, the full set has {task.task.size}")
        if task.short_of_room:
            found.append(
                f"{name}: {task.short_of_room} questions leave less than max_new_tokens to their answers in the context"
            )
    if plan.backend == "openai":
        found.append("answered by a server: its weights, precision and chat template are not known here")
    if plan.backend == "vllm" and not all(task.settings.seeds for task in plan.tasks):
        found.append("sampled without noise of each answer's own (seeds=false): a second run draws other answers")
    return found
