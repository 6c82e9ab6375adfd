"""What `reasonrl eval` is told, typed, and the settings of one task that follow from it.

Of one setting the last of these counts: the task's own value, the model's (the prompt that a run was trained with), the
protocol's, the protocol's for this task, the command line's.

Imports nothing heavy: a mistake is told before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, nearest
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from reasonrl.eval.tasks import Task
    from reasonrl.verify.pool import VerifyConfig

COMMAND = "reasonrl eval"
BACKENDS = ("auto", "transformers", "vllm", "openai")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_WORKERS = 16  # grading processes by default: one grades hundreds of answers a second


@dataclass(frozen=True)
class EngineKnobs:
    """How the model runs on this machine; `engine.<knob>=` on the command line. None: as the backend needs it.

    tensor_parallel: GPUs that one copy of the model is split over. data_parallel: copies of it.
    memory: share of a GPU's memory that vLLM may take. eager: no CUDA graphs (faster start, slower decoding).
    max_sequences: answers written together by one copy. threads: of torch on the CPU.
    """

    tensor_parallel: int = 1
    data_parallel: int = 1
    memory: float = 0.9
    eager: bool = False
    max_sequences: int | None = None
    threads: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in ("tensor_parallel", "data_parallel", "max_sequences", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"engine.{name} must be at least 1, got {value}")
        require(0 < self.memory <= 1, f"engine.memory must be in (0, 1], got {self.memory}")
        require(self.dtype in DTYPES, f"engine.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True)
class VerifyKnobs:
    """What is changed of the `verify` group; `verify.<knob>=` on the command line. The last three are of programs."""

    checker: str | None = None
    extract: str | None = None
    answer_after: str | None = None
    timeout: float | None = None
    judge: str | None = None
    cpu_seconds: float | None = None
    memory_mb: int | None = None
    answer_phrase: str | None = None


OF_PROGRAMS = ("judge", "cpu_seconds", "memory_mb")


@dataclass(frozen=True)
class PlainKnobs:
    """Those of `EvalKnobs` whose keys have no dot."""

    model: str
    task: tuple[str, ...] | None = None
    suite: str | None = None
    baseline: str | None = None
    protocol: str | None = None
    backend: str = "auto"
    data_dir: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    max_context: int | None = None
    prompt: str | None = None
    verify: str | None = None
    seeds: bool | None = None
    ks: tuple[int, ...] | None = None
    seed: int = 1
    limit: int | None = None
    out: str | None = None
    name: str | None = None
    overwrite: bool = False
    workers: int | None = None
    trust_remote_code: bool = False
    base_url: str | None = None
    served_model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    max_connections: int = 64
    request_timeout: float = 1800.0

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be right whatever the task."""
        require(self.backend in BACKENDS, f"Unknown backend '{self.backend}'{nearest(self.backend, BACKENDS)}")
        require(self.task is not None or self.suite is not None, "nothing to evaluate on: give task=... or suite=...")
        require(
            self.baseline is None or self.suite is not None, "baseline= is for the table of a suite: give suite= too"
        )
        require(
            self.out is None or self.name is None,
            "out= is the folder itself, name= one under evals/: leave one of them out",
        )
        for name in ("limit", "workers", "max_connections"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(0 <= self.seed < 2**32, f"seed must be in 0..2**32 - 1, got {self.seed}")
        require(self.request_timeout > 0, f"request_timeout must be greater than 0, got {self.request_timeout}")
        require(not self.ks or min(self.ks) >= 1, f"ks must be at least 1, got {self.ks}")
        given = [
            name
            for name, default in (("base_url", None), ("served_model", None), ("api_key_env", "OPENAI_API_KEY"))
            if getattr(self, name) != default
        ]
        require(not given or self.backend == "openai", f"{', '.join(given)}: for backend=openai, which is not given")
        require(
            self.backend != "openai" or self.base_url is not None,
            "backend=openai asks a server: give base_url=http://host:port/v1",
        )


@dataclass(frozen=True)
class EvalKnobs(PlainKnobs):
    """Everything that `reasonrl eval` can be told; `reasonrl eval --help` explains them."""

    engine: EngineKnobs = EngineKnobs()
    verify_knobs: VerifyKnobs = VerifyKnobs()

    @property
    def given(self) -> dict[str, Any]:
        """What the command line says of a task's settings."""
        asked = [name for name in OVERRIDES if name not in PROTOCOL_ONLY]
        found = {name: getattr(self, name) for name in asked if getattr(self, name) is not None}
        options = {f"verify.{name}": value for name, value in asdict(self.verify_knobs).items() if value is not None}
        return {**found, **options}


def read_settings(args: Sequence[str]) -> EvalKnobs:
    """The command's arguments, `key=value` each. Raises ConfigError, with the nearest names for an unknown key."""
    plain: list[str] = []
    nested: dict[str, list[str]] = {"engine": [], "verify": []}
    for arg in args:
        group, dot, rest = arg.partition("=")[0].partition(".")
        if dot and rest:
            require(group in nested, f"Unknown group '{group}' of {COMMAND}{nearest(group, nested)}")
            nested[group].append(arg.removeprefix(f"{group}."))
        else:
            require(group != "engine", f"{arg}: give its knobs one by one, such as engine.threads=2")
            require(group != "tasks", f"{arg}: the key is task=, for several tasks too")
            plain.append(arg)
    read = read_knobs(PlainKnobs, plain, COMMAND)
    return EvalKnobs(
        **{f.name: getattr(read, f.name) for f in fields(read)},
        engine=read_knobs(EngineKnobs, nested["engine"], f"{COMMAND} (engine.)"),
        verify_knobs=read_knobs(VerifyKnobs, nested["verify"], f"{COMMAND} (verify.)"),
    )


# One task


@dataclass(frozen=True)
class Resolved:
    """The settings of one task.

    n: answers a question. max_context: tokens of prompt and answer together; None is the model's own limit.
    prompt: name or file of a prompt that was asked for; None leaves it to the task.
    chat_prompt, base_prompt: instead of the task's own prompts, for models with and without a chat template; a protocol's.
    seeds: every answer has noise of its own, whatever is sampled beside it; on a GPU that costs speed.
    verify: option of the `verify` group; verify_options: what is changed of it.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    verify: str
    prompt: str | None = None
    chat_prompt: str | None = None
    base_prompt: str | None = None
    max_context: int | None = None
    limit: int | None = None
    seeds: bool = False
    verify_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in ("n", "max_new_tokens", "limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(self.max_context is None or self.max_context >= 2, f"max_context must be >= 2, got {self.max_context}")
        require(0 <= self.temperature < float("inf"), f"temperature must be at least 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        require(self.top_k == -1 or self.top_k >= 1, f"top_k must be -1 (all) or at least 1, got {self.top_k}")
        require(
            self.n == 1 or self.temperature > 0,
            f"n={self.n} with temperature=0 gives the same answer {self.n} times: raise temperature, or n=1",
        )


OVERRIDES = tuple(f.name for f in fields(Resolved) if f.name != "verify_options")
PROTOCOL_ONLY = ("chat_prompt", "base_prompt")
# How a protocol asks and compares is meant for answers that stand for themselves: options, instructions and programs keep
# their tasks' own prompts and checkers, unless it speaks of the task.
OF_ANSWERS = ("prompt", *PROTOCOL_ONLY, "verify", "verify.checker", "verify.extract")


def resolve(
    task: Task, protocol: Mapping[str, Any] | None, given: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> Resolved:
    """The settings of a task. protocol: as in conf/protocol. given: the command line's. own: the model's.

    Raises ConfigError for an unknown setting, an ill-typed one or one out of range.
    """
    from reasonrl.data.typed import typed

    protocol = protocol or {}
    without = ABOUT_PROTOCOL if task.kind == "answer" else (*ABOUT_PROTOCOL, *OF_ANSWERS)
    layers: list[tuple[str, Mapping[str, Any]]] = [
        (f"task {task.name}", {**asdict(task.sampling), "verify": task.verify}),
        ("the model", own or {}),
        ("the protocol", {key: value for key, value in protocol.items() if key not in without}),
        (f"the protocol's tasks.{task.name}", (protocol.get("tasks") or {}).get(task.name) or {}),
        ("the command line", given),
    ]
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for where, layer in layers:
        for key, value in layer.items():
            if key.startswith("verify."):
                name = key.removeprefix("verify.")
                known = {f.name for f in fields(VerifyKnobs)}
                require(name in known, f"{where}: unknown setting '{key}'{nearest(name, known)}")
                options[name] = value
            else:
                require(key in OVERRIDES, f"{where}: unknown setting '{key}'{nearest(key, OVERRIDES)}")
                values[key] = value
    try:
        return typed(Resolved, {**values, "verify_options": options}, task.name)
    except ConfigError as error:
        raise ConfigError(f"task {task.name}: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_ks(ks: Sequence[int] | None, resolved: Mapping[str, Resolved]) -> None:
    """Raise ConfigError when pass@k is asked for with more answers than a task samples."""
    for name, settings in resolved.items():
        if ks and max(ks) > settings.n:
            raise ConfigError(
                f"ks={','.join(map(str, ks))}: pass@{max(ks)} needs {max(ks)} answers a question, and task {name} samples "
                f"n={settings.n}: give n={max(ks)} or more, or leave the larger ks out"
            )


def verify_config(resolved: Resolved, workers: int) -> VerifyConfig:
    """How a task's answers are compared. Raises ConfigError."""
    from reasonrl.verify.pool import verify_from_config

    try:
        return verify_from_config(
            {**read_conf("verify", resolved.verify), **resolved.verify_options, "workers": workers}
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


# Files of conf/


ABOUT_PROTOCOL = ("name", "title", "citation", "notes", "tasks")


def read_conf(group: str, name: str) -> dict[str, Any]:
    """`conf/<group>/<name>.yaml`, or a file of one's own that ends in .yaml. Raises ConfigError."""
    from omegaconf import OmegaConf

    from reasonrl.cli import folder_of, options

    if name.endswith((".yaml", ".yml")):
        file = Path(name).expanduser()
        require(file.is_file(), f"no file {file} (here: {Path.cwd()}): {group}= takes a name or a file")
    else:
        known = options(group)
        require(name in known, f"Unknown {group} '{name}'{nearest(name, known)}")
        file = folder_of("reasonrl.conf") / group / f"{name}.yaml"
    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # YAML's and OmegaConf's own kinds
        raise ConfigError(f"{file} cannot be read: {(str(error).splitlines() or ['?'])[0]}") from error
    require(isinstance(values, dict), f"{file} must hold key: value lines")
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def read_protocol(name: str) -> dict[str, Any]:
    """The settings of a protocol, and for single tasks under `tasks`. Raises ConfigError."""
    protocol = {"name": Path(name).stem, **read_conf("protocol", name)}
    own = protocol.get("tasks") or {}
    require(isinstance(own, dict), f"protocol {name}: tasks must map a task's name to its settings")
    known = {*OVERRIDES, *(f"verify.{f.name}" for f in fields(VerifyKnobs))}
    for where, settings in (("", protocol), *((f"tasks.{task}: ", of) for task, of in own.items())):
        for key in settings or {}:
            require(
                key in known or (not where and key in ABOUT_PROTOCOL),
                f"protocol {name}: {where}unknown setting '{key}'{nearest(key, known)}",
            )
    return protocol
