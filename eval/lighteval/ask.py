"""Asking lighteval: one call for the tasks that are sampled alike, each in a folder of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, RunFailed, nearest
from reasonrl.eval.lighteval.counterparts import COUNTERPARTS
from reasonrl.eval.lighteval.installed import Installed, environment, read_json
from reasonrl.eval.lighteval.read import results_file
from reasonrl.eval.prm.knobs import require

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.settings import EvalKnobs

BACKENDS = ("auto", "transformers", "vllm")
ALIKE = ("temperature", "top_p", "top_k", "max_new_tokens", "max_context", "limit")  # settings of one call
SPARE = 256  # tokens that lighteval's wording of a prompt may take beyond ours
HUB = "its data sets come from the Hugging Face hub; gated ones need `hf auth login`"


@dataclass(frozen=True)
class LightevalKnobs:
    """`lighteval.<knob>=`, as the command's help explains them."""

    command: str = "lighteval"
    backend: str = "auto"
    batch_size: int | None = None
    results: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        require(
            self.backend in BACKENDS, f"Unknown lighteval.backend '{self.backend}'{nearest(self.backend, BACKENDS)}"
        )
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"lighteval.batch_size must be at least 1, got {self.batch_size}",
        )


@dataclass(frozen=True)
class Request:
    """One call of lighteval: tasks of ours that are sampled alike. parameters: of its model file. limit: questions of each."""

    tasks: Mapping[str, int]  # -> answers a question
    backend: str
    parameters: Mapping[str, Any]
    limit: int | None
    lowered: int | None  # max_new_tokens as it was, where the context leaves less

    @property
    def sampled(self) -> bool:
        """Whether its answers are drawn, not greedy."""
        return bool(self.parameters["generation_parameters"]["temperature"])

    @property
    def spec(self) -> str:
        """Tasks for its command line."""
        named = []
        for task, n in self.tasks.items():
            other = COUNTERPARTS[task]
            named.append(f"{other.task}@n={n}|0" if n > 1 and other.repeats else f"{other.task}|0")
        return ",".join(named)


def requests(folder: Path, results: Mapping[str, Any], ours: EvalKnobs, knobs: LightevalKnobs) -> list[Request]:
    """Calls of lighteval, one for tasks that are sampled alike. Raises ConfigError."""
    from reasonrl.eval.models import EvalModel

    backend = results["backend"]["name"] if knobs.backend == "auto" else knobs.backend
    reads = EvalModel("", str(model_folder(results))).context
    longest = longest_prompts(folder)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for task, found in results["tasks"].items():
        key = tuple(found["settings"].get(name) for name in ALIKE)
        alike.setdefault(key, []).append(task)
    made = []
    for values, tasks in alike.items():
        settings = dict(zip(ALIKE, values, strict=True))
        context = min((each for each in (settings["max_context"], reads) if each), default=None)
        room = settings["max_new_tokens"]
        if context is not None:
            room = min(room, context - max(longest[task] for task in tasks) - SPARE)
        if room < 1:
            raise ConfigError(
                f"{' and '.join(tasks)}: a context of {context} tokens leaves nothing to answers beside lighteval's prompts, "
                f"which may take {SPARE} tokens more than ours"
            )
        sampling = {
            **{name: settings[name] for name in ("temperature", "top_p")},
            "top_k": max(settings["top_k"], 0),  # 0: all
            "max_new_tokens": room,
            "seed": ours.seed,
        }
        made.append(
            Request(
                {task: results["tasks"][task]["settings"]["n"] for task in tasks},
                backend,
                model_parameters(results, ours, knobs, backend, context, sampling),
                settings["limit"],
                settings["max_new_tokens"] if room < settings["max_new_tokens"] else None,
            )
        )
    return made


def model_parameters(
    results: Mapping[str, Any],
    ours: EvalKnobs,
    knobs: LightevalKnobs,
    backend: str,
    context: int | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """`model_parameters` of its model file. Names are relative to the folder that it runs in."""
    common = {
        "model_name": "model",
        "cache_dir": "cache",
        "dtype": results["model"]["dtype"],
        "trust_remote_code": ours.trust_remote_code,
        "generation_parameters": dict(sampling),
    }
    if backend == "vllm":
        engine = ours.engine
        found = {
            **common,
            "seed": ours.seed,
            "tensor_parallel_size": engine.tensor_parallel,
            "data_parallel_size": engine.data_parallel,
            "gpu_memory_utilization": engine.memory,
            "max_model_length": context,
        }
    else:
        device = "cuda" if results["backend"]["name"] == "vllm" else "cpu"
        found = {**common, "device": device, "max_length": context, "batch_size": knobs.batch_size}
    return {name: value for name, value in found.items() if value is not None}


def command_line(request: Request, executable: Path) -> list[str]:
    """How lighteval is called, in the folder that holds model.yaml."""
    name = "vllm" if request.backend == "vllm" else "accelerate"
    limit = ["--max-samples", str(request.limit)] if request.limit else []
    return [str(executable), name, "model.yaml", request.spec, "--output-dir", "out", "--save-details", *limit]


def asked(request: Request, folder: Path, results: Mapping[str, Any], installed: Installed, console: Console) -> Path:
    """Its results file: of now, or of the same request before. Raises RunFailed."""
    import yaml

    from reasonrl.runs.files import write_text

    place = folder / "lighteval" / "+".join(request.tasks)
    command = command_line(request, installed.path)
    wanted = {
        "fingerprint": results["model"]["fingerprint"],
        "versions": dict(installed.versions),
        "command": command,
        "parameters": dict(request.parameters),
    }
    if read_json(place / "request.json") == json.loads(json.dumps(wanted)):
        console.print(f"lighteval has answered {request.spec} already")
        return results_file(place)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    link_model(model_folder(results), place / "model", sampling=request.sampled)
    write_text(place / "model.yaml", yaml.safe_dump({"model_parameters": dict(request.parameters)}, sort_keys=False))
    env = environment() | ({"CUDA_VISIBLE_DEVICES": ""} if request.parameters.get("device") == "cpu" else {})
    log = place / "log.txt"
    console.print(f"lighteval {request.spec} ... (its words: {log})")
    with log.open("w") as out:
        done = subprocess.run(command, cwd=place, env=env, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RunFailed(f"lighteval stopped with exit code {done.returncode}: {last_words(log)} ({log}; {HUB})")
    found = results_file(place)
    write_text(place / "request.json", json.dumps(wanted, indent=1) + "\n")
    return found


def link_model(source: Path, folder: Path, *, sampling: bool) -> None:
    """A folder of links to a model's files. Of generation_config.json only the ends of a text stay, and whether to sample."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file.resolve())
    ends = {
        key: value for key, value in read_json(source / "generation_config.json").items() if key.endswith("_token_id")
    }
    (folder / "generation_config.json").write_text(json.dumps({**ends, "do_sample": sampling}) + "\n")


def model_folder(results: Mapping[str, Any]) -> Path:
    """Where the evaluated model lies. Raises ConfigError."""
    from reasonrl.eval.models import EvalModel

    folder = EvalModel("", results["model"]["path"]).folder
    if folder is None:
        raise ConfigError(f"the model {results['model']['path']} is not on this machine any more")
    return folder


def longest_prompts(folder: Path) -> dict[str, int]:
    """Tokens, by task."""
    import pyarrow.parquet as pq

    columns = pq.read_table(folder / "samples.parquet", columns=["task", "prompt_tokens"]).to_pydict()
    longest: dict[str, int] = {}
    for task, tokens in zip(columns["task"], columns["prompt_tokens"], strict=True):
        longest[task] = max(longest.get(task, 0), tokens)
    return longest


def last_words(log: Path) -> str:
    """The end of a log: the error where there is one."""
    lines = [line.strip(" │╭╮╰╯─\t") for line in log.read_text(errors="replace").splitlines()]
    named = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception)\b", line)]
    return (named or [line for line in lines if line] or ["it said nothing"])[-1][:300]
