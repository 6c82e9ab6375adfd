"""The main path of `reasonrl tts`, read first: model, task and method -> folder.

prepare   everything that can fail is tried here: settings, capabilities, task, hard set, model, prompts
run       seed by seed, all live questions in lock step (schedule.py), each attempt written down as it comes (folder.py)
finish    curves with intervals (results.py)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.tts.backends import Backend
from reasonrl.eval.tts.backends.local import LocalBackend, open_local
from reasonrl.eval.tts.backends.vllm import LoRA, Opening, able, open_vllm, require_swappable
from reasonrl.eval.tts.base import Attempt, Posed, TaskVerifier, Trace
from reasonrl.eval.tts.feedback import FeedbackPolicy
from reasonrl.eval.tts.folder import TTSFolder, refuse_foreign
from reasonrl.eval.tts.hard import HardSet, read_hard_set
from reasonrl.eval.tts.results import legend, over_seconds, summary, told
from reasonrl.eval.tts.schedule import Schedule, require_able
from reasonrl.eval.tts.settings import AUTO, MOST_NEW_TOKENS, TTSKnobs, folder_path, hard_path

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.grading import Grader
    from reasonrl.eval.plan import Plan, TaskPlan

SCHEMA = 1
TOLD_SECONDS = 5.0  # between two lines


@dataclass(frozen=True)
class TTSPlan:
    """A run that has been checked and can start. posed: the questions with the first seed. dtype: of the model's weights."""

    knobs: TTSKnobs
    path: Path
    plan: Plan
    posed: Sequence[Posed]
    hard: HardSet | None
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def task(self) -> TaskPlan:
        return self.plan.tasks[0]

    @property
    def cuts_edits(self) -> bool:
        """Whether an editor's changes of weights are cut to `engine.edit_rank`."""
        return self.plan.backend == "vllm" and getattr(self.knobs.how, "editor", None) is not None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest prompt with its answer; where prompts grow, all that the model reads, None if unknown."""
        return self.posed[0].context if self.knobs.how.turns and self.posed else self.plan.longest


def run_tts(
    knobs: TTSKnobs,
    *,
    console: Console | None = None,
    command: Sequence[str] = (),
    open_backend: Callable[[TTSPlan], AbstractContextManager[Backend]] | None = None,
) -> Path:
    """Do a run, or what is left of it; returns its folder.

    open_backend: as `backend_of`. Raises ConfigError for settings that cannot work or that are not those of the folder,
    RunFailed when the backend is broken, DiskFull, and KeyboardInterrupt saying how to continue.
    """
    return _ran(knobs, console, command, open_backend)[0].path


def build_hard_set(
    knobs: TTSKnobs,
    *,
    console: Console | None = None,
    command: Sequence[str] = (),
    open_backend: Callable[[TTSPlan], AbstractContextManager[Backend]] | None = None,
) -> Path:
    """The manifest of the questions on which greedy decoding fails; raises as `run_tts`."""
    plan, traces, console = _ran(knobs, console, command, open_backend)
    task = plan.task
    found = HardSet.of(
        traces[knobs.run_seeds[0]],
        task=task.task.name,
        model=str(plan.plan.fingerprint),
        data=task.questions.sha256,
        prompt=task.prompt.hash,
        limit=knobs.limit,
        decoding={"temperature": 0.0, "max_new_tokens": task.settings.max_new_tokens},
    )
    path = hard_path(plan.plan.model.name, knobs.task)
    found.write(path)
    unknown = f", {len(found.errors)} could not be verified" if found.errors else ""
    console.print(f"hard set: {len(found.ids)} of {found.questions} questions{unknown}: {path}")
    return path


def _ran(
    knobs: TTSKnobs,
    console: Console | None,
    command: Sequence[str],
    open_backend: Callable[[TTSPlan], AbstractContextManager[Backend]] | None,
) -> tuple[TTSPlan, dict[int, list[Trace]], Console]:
    from rich.console import Console

    console = console or Console(quiet=True)
    begun = time.monotonic()
    plan = prepare(knobs, console)
    about = {"command": list(command), "model": knobs.model}
    with TTSFolder.opened(plan.path, knobs.run_seeds, comparable(plan), about, overwrite=knobs.overwrite) as folder:
        write_provenance(plan, folder, command)
        session = {"prepare": time.monotonic() - begun, "run": 0.0}
        facts: dict[str, Any] = {"questions": 0, "attempts": 0, "tokens": 0, "rounds": 0, "batch": knobs.batch}
        with telling_what_is_kept(folder):
            if folder.ended < len(plan.posed) * len(knobs.run_seeds):
                work(plan, folder, open_backend or backend_of, console, session, facts)
        return plan, finish(plan, folder, session, facts, console), console


# Before


def prepare(knobs: TTSKnobs, console: Console) -> TTSPlan:
    """Check everything, the quickest first. Raises ConfigError."""
    from rich.console import Console as Rich

    from reasonrl.eval.models import locate, tuned_from
    from reasonrl.eval.plan import prepare as prepare_eval
    from reasonrl.eval.tasks.task import load_task

    method = knobs.how
    task = load_task(knobs.task)
    votes = method.votes or getattr(method, "selector", "") == "vote"
    if votes and task.kind not in ("answer", "choice", "code"):
        raise ConfigError(
            f"method={knobs.method} compares answers with each other, and those of task {task.name} (kind {task.kind}) "
            "state nothing that could be compared: choose another method"
        )
    model = locate(knobs.model, trust_remote_code=knobs.trust_remote_code)
    backend = chosen_backend(knobs, small=model.small)
    path = folder_path(knobs, model.name)
    refuse_foreign(path)
    hard, file = None, None
    same = ("data_dir", "prompt", "verify", "max_context")
    given = [f"{name}={value}" for name in same if (value := getattr(knobs, name)) is not None]
    builds = " ".join(["reasonrl tts hard", f"model={knobs.model}", f"task={knobs.task}", *given])
    if knobs.hard is not None:
        file = hard_path(model.name, knobs.task) if knobs.hard == AUTO else Path(knobs.hard).expanduser()
        hard = read_hard_set(file, builds)
    most = min(MOST_NEW_TOKENS, task.sampling.max_new_tokens)
    # of the hard set the whole set is read, for its hash says which data it is of
    plan = prepare_eval(knobs.as_eval(path, hard.limit if hard else knobs.limit, most, backend), Rich(quiet=True))
    asked = plan.tasks[0]
    if hard is not None and file is not None:
        # a model that was tuned answers the questions on which its base fails, beside whom it stands in a table
        known = hard.model if hard.model == tuned_from(plan.model) else plan.fingerprint
        facts = {"model": known, "data": asked.questions.sha256, "prompt": asked.prompt.hash}
        hard.require(file, builds, task=task.name, **facts)
    feedback = None
    if method.turns:
        if asked.prompt.kind != "chat":
            raise ConfigError(
                f"method={knobs.method} answers attempts in turns of a chat, and prompt={asked.prompt.name} is a text: "
                "choose a prompt of kind chat with a model that has a chat template, or a method that asks once, such as "
                "best_of_n"
            )
        feedback = FeedbackPolicy(plan.tokenizer)
    posed = posed_of(plan, knobs, feedback, hard)
    device, dtype = placed(knobs, backend, small=model.small)
    if check := getattr(method, "check", None):
        check(plan.model.path, plan.tokenizer)
    result = TTSPlan(knobs, path, plan, posed, hard, device, dtype)
    tell(result, console)
    return result


def chosen_backend(knobs: TTSKnobs, *, small: bool) -> str:
    """The one that was given; else vLLM for a method that only samples, where there are a GPU and vLLM.

    small: the model is meant for a CPU. Raises ConfigError for a method that needs what the backend cannot.
    """
    import importlib.util

    from reasonrl.runs import provenance

    method, backend = knobs.how, knobs.backend
    if backend == "auto":
        plain = method.needs <= {"sample"} and knobs.engine.device != "cpu" and not small
        fit = plain and importlib.util.find_spec("vllm") is not None and bool(provenance.gpus())
        backend = "vllm" if fit else "transformers"
    can = able(method) if backend == "vllm" else LocalBackend.capabilities
    require_able(method, can, f"backend={backend}")
    if backend == "vllm":
        require_swappable(method, knobs.engine.dtype)
    return backend


def placed(knobs: TTSKnobs, backend: str, *, small: bool) -> tuple[str, str]:
    """Device and dtype of the model. small: it is meant for a CPU. Raises ConfigError for a GPU that is not there."""
    from reasonrl.runs import provenance

    wanted = "cuda" if backend == "vllm" else knobs.engine.device
    if wanted != knobs.engine.device == "cpu":
        raise ConfigError("engine.device=cpu: backend=vllm runs on a GPU; use backend=transformers")
    device = wanted
    if wanted != "cpu":
        found = bool(provenance.gpus())
        if wanted == "cuda" and not found:
            raise ConfigError(
                "engine.device=cuda and no NVIDIA GPU found (nvidia-smi lists none): use engine.device=cpu"
            )
        device = "cuda" if found and (wanted == "cuda" or not small) else "cpu"
    given = knobs.engine.dtype
    return device, given if given != "auto" else "float32" if device == "cpu" else "bfloat16"


def posed_of(plan: Plan, knobs: TTSKnobs, feedback: FeedbackPolicy | None, hard: HardSet | None) -> list[Posed]:
    """The questions as they are put to the model, with the first seed."""
    task = plan.tasks[0]
    wanted = None if hard is None else set(hard.ids)
    found = [
        Posed(
            task.task.name,
            question,
            tuple(ids),
            room,
            knobs.run_seeds[0],
            knobs.temperature,
            knobs.top_p,
            knobs.top_k,
            task.settings.max_context or plan.model.context,
            feedback,
            programs=task.task.kind == "code",
        )
        for question, ids, room in zip(task.questions.items, task.prompt_ids, task.room, strict=True)
        if wanted is None or question.id in wanted
    ]
    return found[: knobs.limit]


def tell(plan: TTSPlan, console: Console) -> None:
    """A line before the work."""
    knobs, task = plan.knobs, plan.task
    which = "questions" if plan.hard is None else f"questions of a hard set of {len(plan.hard.ids)}"
    how = "greedy" if knobs.how.greedy else f"temperature {knobs.temperature:g}"
    seeds = f", seeds {', '.join(map(str, knobs.run_seeds))}" if len(knobs.run_seeds) > 1 else ""
    notes = [f"{len(task.questions.dropped)} rows dropped"] if task.questions.dropped else []
    advice = getattr(knobs.how, "advice", None)
    if advice is not None and (told := advice(plan.dtype)) is not None:
        notes.append(told)
    attempts = knobs.attempts.attempts
    console.print(
        f"{knobs.method} on {task.task.name}: {len(plan.posed)} {which}, at most {attempts} attempt"
        f"{'s' * (attempts > 1)} each, {how}, prompt {task.prompt.name}{seeds}" + "".join(f"; {n}" for n in notes)
    )


def comparable(plan: TTSPlan) -> dict[str, Any]:
    """Everything that the numbers follow from, flat."""
    from reasonrl.eval.plan import comparable as comparable_eval

    knobs = plan.knobs
    files = fingerprints(knobs.how)  # in the place of their paths, which may be written in many ways
    ids = "\n".join(posed.id for posed in plan.posed)
    found = {
        **{key: value for key, value in comparable_eval(plan.plan).items() if key != "seed"},
        "dtype": plan.dtype,
        **({"edit_rank": knobs.engine.edit_rank} if plan.cuts_edits else {}),
        "method": knobs.method,
        **{f"method.{name}": value for name, value in asdict(knobs.how).items() if name not in files},
        **{f"method.{name}.sha256": value for name, value in files.items()},
        **{f"budget.{name}": value for name, value in asdict(knobs.attempts).items()},
        "seeds": ",".join(map(str, knobs.run_seeds)),
        "ids": hashlib.sha256(ids.encode()).hexdigest(),
    }
    return dict(json.loads(json.dumps(found)))


def fingerprints(method: Any) -> dict[str, str]:
    """Of files that a method brings: its numbers follow from what is in them."""
    own = getattr(method, "fingerprints", None)
    return dict(own()) if own else {}


def write_provenance(plan: TTSPlan, folder: TTSFolder, command: Sequence[str]) -> None:
    """What it was made of, of the session that wrote last."""
    from reasonrl.runs.provenance import provenance

    task = plan.task
    facts = provenance(
        model={"given": plan.knobs.model, "path": plan.plan.model.path, "fingerprint": plan.plan.fingerprint},
        data={task.task.name: {"origin": task.questions.origin, "sha256": task.questions.sha256}},
        prompts={task.task.name: {"name": task.prompt.name, "sha256": task.prompt.hash}},
    )
    folder.write_json("provenance.json", {**facts, "command": ["reasonrl", "tts", *command]})


# The work


@contextlib.contextmanager
def backend_of(plan: TTSPlan) -> Iterator[Backend]:
    """The backend, its model loaded. Raises ConfigError."""
    model, engine, method = plan.plan.model, plan.knobs.engine, plan.knobs.how
    if plan.plan.backend == "vllm":
        opening = Opening(
            model.path,
            engine,
            plan.dtype,
            model.trust_remote_code,
            plan.longest,
            plan.knobs.seeds[0],
            width=plan.knobs.attempts.attempts if "beam" in method.needs else 1,
            lora=LoRA.of(method, engine.edit_rank) if "grad" in method.needs else None,
        )
        with open_vllm(opening, plan.plan.tokenizer, getattr(method, "learner", None)) as found:
            yield found
        return
    with open_local(
        model.path,
        plan.plan.tokenizer,
        trust_remote_code=model.trust_remote_code,
        threads=engine.threads or model.threads,
        max_sequences=engine.max_sequences,
        device=plan.device,
        dtype=plan.dtype,
        make_learner=getattr(method, "learner", None),
    ) as backend:
        yield backend


def work(
    plan: TTSPlan,
    folder: TTSFolder,
    open_backend: Callable[[TTSPlan], AbstractContextManager[Backend]],
    console: Console,
    seconds: dict[str, float],
    facts: dict[str, Any],
) -> None:
    """All traces that are missing. seconds, facts: of this session, for timing.json."""
    from dataclasses import replace

    from reasonrl.eval.grading import Grader

    if folder.ended:
        wanted = len(plan.posed) * len(plan.knobs.run_seeds)
        console.print(f"{folder.path} has {folder.ended} of {wanted} questions already")
    opened = getattr(plan.knobs.how, "scorer", None)
    scorer = opened(plan.plan.tokenizer, plan.task.prompt) if opened else None  # before the model, which takes longer
    with Grader(plan.task.task, plan.task.verify) as grader, _ready(grader), open_backend(plan) as backend:
        begun = time.monotonic()
        for seed, kept in folder.seeds.items():
            progress = Progress(console, seed, len(plan.posed))

            def wrote(posed: Posed, attempt: Attempt, kept: Any = kept, progress: Progress = progress) -> None:
                kept.wrote(posed.id, attempt)
                kept.flush(due=True)
                facts["attempts"] += 1
                facts["tokens"] += attempt.tokens
                progress.tell()

            schedule = Schedule(
                plan.knobs.how,
                backend,
                TaskVerifier(grader),
                plan.knobs.attempts,
                batch=plan.knobs.batch,
                scorer=scorer,
                wrote=wrote,
            )
            progress.done = sum(kept.has(posed.id) for posed in plan.posed)
            left = [replace(posed, seed=seed) for posed in plan.posed if not kept.has(posed.id)]
            for trace in schedule.run(left, kept.recorded()):
                kept.ended(trace)
                facts["questions"] += 1
                progress.ended(trace)
            kept.flush()
            facts["rounds"] += schedule.rounds
        seconds["run"] = time.monotonic() - begun
        facts |= backend.facts()


@contextlib.contextmanager
def _ready(grader: Grader) -> Iterator[None]:
    """Its judge is found or started before the model is loaded."""
    grader.ready()
    yield


class Progress:
    """A line every few seconds."""

    def __init__(self, console: Console, seed: int, wanted: int) -> None:
        self._console, self._seed, self._wanted = console, seed, wanted
        self.done = self.solved = 0
        self._told = time.monotonic()

    def ended(self, trace: Trace) -> None:
        """A question ended."""
        self.done += 1
        self.solved += trace.solved
        self.tell()

    def tell(self) -> None:
        """Say where it stands, if it is time."""
        if time.monotonic() - self._told >= TOLD_SECONDS:
            self._told = time.monotonic()
            self._console.print(
                f"seed {self._seed}: {self.done}/{self._wanted} questions ended, {self.solved} solved now"
            )


@contextlib.contextmanager
def telling_what_is_kept(folder: TTSFolder) -> Iterator[None]:
    """A Ctrl-C, or a judge that is gone, says what is kept and how to continue."""
    from reasonrl.verify.judge.types import JudgeError

    try:
        yield
    except (KeyboardInterrupt, JudgeError) as stop:
        attempts = sum(len(seed.attempts.rows) for seed in folder.seeds.values())
        kept = f"{folder.ended} questions and {attempts} attempts are kept in {folder.path}. Continue with the same command"
        if isinstance(stop, JudgeError):
            raise RunFailed(f"{stop}. {kept}") from stop
        raise KeyboardInterrupt(kept) from stop


# After


def finish(
    plan: TTSPlan, folder: TTSFolder, seconds: dict[str, float], facts: dict[str, Any], console: Console
) -> dict[int, list[Trace]]:
    """results.json, timing.json and the table; returns the traces of each seed. Raises RunFailed where all failed."""
    from reasonrl.runs.provenance import git_state, versions

    knobs, method = plan.knobs, plan.knobs.how
    traces = {seed: kept.found(posed.id for posed in plan.posed) for seed, kept in folder.seeds.items()}
    flat = [trace for each in traces.values() for trace in each]
    if all(trace.stop == "failed" for trace in flat):
        raise RunFailed(
            f"all {len(flat)} questions failed, the first with: {flat[0].notes.get('error')}. What was written is in "
            f"{plan.path}; start anew with overwrite=true"
        )
    votes = method.votes or getattr(method, "selector", "") == "vote"
    found = summary(
        traces,
        budget=knobs.attempts.attempts,
        votes=votes,
        raw=getattr(method, "raw_vote", False),
        programs=plan.task.task.kind == "code",
        hard=plan.hard,
        hard_of_base=plan.hard is not None and plan.hard.model != plan.plan.fingerprint,
    )
    results = {
        "schema": SCHEMA,
        "name": plan.path.name,
        "model": {
            "name": plan.plan.model.name,
            "path": plan.plan.model.path,
            "fingerprint": plan.plan.fingerprint,
        },
        "task": plan.task.task.name,
        "method": {"name": knobs.method, **asdict(method)},
        "settings": comparable(plan),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        **found,
    }
    folder.write_json("results.json", results)
    sessions = list(folder.read_json("timing.json").get("sessions", ()))
    if facts["attempts"] or facts["questions"] or not sessions:
        sessions.append({"seconds": {name: round(value, 3) for name, value in seconds.items()}, **facts})
    timing = {"sessions": sessions, "over_seconds": over_seconds(list(traces.values()))}
    folder.write_json("timing.json", timing)
    console.print(told(found), soft_wrap=False)
    for line in legend(found, timing):
        console.print(line)
    console.print(f"folder: {plan.path}")
    return traces
