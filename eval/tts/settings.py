"""What `reasonrl tts` is told, typed. Imports nothing heavy: a mistake is told before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import nearest
from reasonrl.eval.prm.knobs import read_knobs, require
from reasonrl.eval.settings import EngineKnobs, EvalKnobs, VerifyKnobs
from reasonrl.eval.tts.base import Budget
from reasonrl.eval.tts.methods import METHODS
from reasonrl.eval.tts.schedule import BATCH

if TYPE_CHECKING:
    from reasonrl.eval.tts.base import Method

COMMAND = "reasonrl tts"
FOLDER = Path("tts")
BACKENDS = ("auto", "transformers", "vllm")
BESIDE_ANOTHER = 0.5  # share of the GPU that vLLM takes beside a copy of the model for gradients, or a reward model
DEVICES = ("auto", "cpu", "cuda")
MOST_NEW_TOKENS = 2048  # unless the task has less, or more is asked for
AUTO = "auto"  # the hard set where `reasonrl tts hard` puts it


@dataclass(frozen=True)
class PlainKnobs:
    """Those of `TTSKnobs` whose keys have no dot."""

    method: str
    model: str
    task: str
    budget: int = 32
    tokens: int | None = None
    seconds: float | None = None
    seeds: tuple[int, ...] = (42, 85, 100)
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = -1
    max_new_tokens: int | None = None
    max_context: int | None = None
    free_unparsable: bool = False
    prompt: str | None = None
    verify: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    hard: str | None = None
    backend: str = "auto"
    batch: int = BATCH
    workers: int | None = None
    out: str | None = None
    name: str | None = None
    overwrite: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be right whatever the task."""
        require(self.method in METHODS, f"Unknown method '{self.method}'{nearest(self.method, METHODS)}")
        require(self.backend in BACKENDS, f"Unknown backend '{self.backend}'{nearest(self.backend, BACKENDS)}")
        require("," not in self.task, f"task={self.task}: one task at a time")
        require(bool(self.model), "model= is empty: give an alias, a folder or a hub name")
        for name in ("budget", "tokens", "batch", "limit", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(self.seconds is None or self.seconds > 0, f"seconds must be greater than 0, got {self.seconds}")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={','.join(map(str, self.seeds))} names one twice")
        require(all(0 <= seed < 2**32 for seed in self.seeds), f"seeds must be in 0..2**32 - 1, got {self.seeds}")
        require(
            self.out is None or self.name is None,
            "out= is the folder itself, name= one under tts/: leave one of them out",
        )


@dataclass(frozen=True)
class TTSEngineKnobs(EngineKnobs):
    """device: auto is a GPU where there is one, unless the model is meant for a CPU.

    max_loras: weights of questions' own that vLLM has in use at once; room for them is kept on the GPU, with rank 8 (which a
    smaller one is rounded up to) and q_proj+v_proj 9 MB each for a model of 8 billion weights. edit_rank: of the LoRA that vLLM
    is given in the place of an edit of optune.
    """

    device: str = "auto"
    max_loras: int = 16
    edit_rank: int = 64

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        super().__post_init__()
        require(self.device in DEVICES, f"engine.device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        require(self.max_loras >= 1, f"engine.max_loras must be at least 1, got {self.max_loras}")
        require(1 <= self.edit_rank <= 512, f"engine.edit_rank must be in 1..512, got {self.edit_rank}")
        require(
            self.data_parallel == 1,
            f"engine.data_parallel={self.data_parallel}: reasonrl tts runs one copy of the model; give each GPU a run of its "
            "own (CUDA_VISIBLE_DEVICES=0 reasonrl tts seeds=42 ...), or split the copy with engine.tensor_parallel",
        )


@dataclass(frozen=True)
class TTSKnobs(PlainKnobs):
    """Everything that `reasonrl tts` can be told; `reasonrl tts --help` explains them."""

    how: Any = None  # the method with its knobs
    engine: TTSEngineKnobs = field(default_factory=TTSEngineKnobs)
    verify_knobs: VerifyKnobs = field(default_factory=VerifyKnobs)
    given: tuple[str, ...] = ()  # keys of method knobs that were given, for the folder's name

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        super().__post_init__()
        how: Method = self.how if self.how is not None else METHODS[self.method]()
        object.__setattr__(self, "how", how)
        require(
            how.greedy or self.temperature > 0 or self.budget == 1,
            f"temperature={self.temperature:g}: method={self.method} would draw the same answer {self.budget} times; raise "
            "it, or choose budget=1",
        )

    @property
    def run_seeds(self) -> tuple[int, ...]:
        """The seeds that make a difference."""
        return self.seeds[:1] if self.how.greedy else self.seeds

    @property
    def attempts(self) -> Budget:
        """What a question may cost."""
        one = 1 if self.method == "greedy" else self.budget
        return Budget(one, self.tokens, self.seconds, self.free_unparsable)

    def as_eval(self, path: Path, limit: int | None, max_new_tokens: int, backend: str) -> EvalKnobs:
        """The same for `reasonrl.eval.plan.prepare`, which checks and reads model, task, prompts and questions."""
        return EvalKnobs(
            model=self.model,
            task=(self.task,),
            backend=backend,
            data_dir=self.data_dir,
            n=1,
            temperature=0.0 if self.how.greedy else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens or max_new_tokens,
            max_context=self.max_context,
            prompt=self.prompt,
            verify=self.verify,
            seed=self.seeds[0],
            limit=limit,
            out=str(path),
            overwrite=self.overwrite,
            workers=self.workers,
            trust_remote_code=self.trust_remote_code,
            engine=EngineKnobs(
                **{f.name: getattr(self.engine, f.name) for f in fields(EngineKnobs) if f.name != "dtype"}
            ),
            verify_knobs=self.verify_knobs,
        )


def read_settings(args: Sequence[str], *, fixed: Sequence[str] = ()) -> TTSKnobs:
    """The command's arguments, `key=value` each. Raises ConfigError, with the nearest names for an unknown key.

    fixed: arguments that the command gives itself, and that nobody else may.
    """
    plain: list[str] = list(fixed)
    nested: dict[str, list[str]] = {"engine": [], "verify": [], "method": []}
    for arg in args:
        group, dot, rest = arg.partition("=")[0].partition(".")
        if dot and rest:
            require(group in nested, f"Unknown group '{group}' of {COMMAND}{nearest(group, nested)}")
            nested[group].append(arg.removeprefix(f"{group}."))
        else:
            plain.append(arg)
    read = read_knobs(PlainKnobs, plain, COMMAND)
    how = read_knobs(METHODS[read.method], nested["method"], f"{COMMAND} (method.) with method={read.method}")
    engine = read_knobs(TTSEngineKnobs, nested["engine"], f"{COMMAND} (engine.)")
    crowded = "grad" in how.needs or getattr(how, "prm", None) is not None
    if crowded and not any(arg.startswith("memory=") for arg in nested["engine"]):
        engine = replace(engine, memory=BESIDE_ANOTHER)
    return TTSKnobs(
        **{f.name: getattr(read, f.name) for f in fields(read)},
        how=how,
        engine=engine,
        verify_knobs=read_knobs(VerifyKnobs, nested["verify"], f"{COMMAND} (verify.)"),
        given=tuple(nested["method"]),
    )


# Names of folders


DEFAULTS = {f.name: f.default for f in fields(PlainKnobs)}
# they move or limit the work, and change no trace
NOT_IN_NAME: tuple[str, ...] = (
    "method",
    "model",
    "task",
    "out",
    "name",
    "overwrite",
    "data_dir",
    "batch",
    "workers",
    "backend",
)
NOT_IN_NAME += ("trust_remote_code",)


def folder_path(knobs: TTSKnobs, model_name: str) -> Path:
    """out=, or tts/<name>; the name follows from the settings, so that the same command finds its folder again."""
    if knobs.out:
        return Path(knobs.out).expanduser()
    if knobs.name:
        return FOLDER / knobs.name
    parts = [model_name, Path(knobs.task).stem, knobs.method]
    for key, default in DEFAULTS.items():
        value = getattr(knobs, key)
        if (
            key in NOT_IN_NAME
            or (value == default and key != "budget")
            or (key == "budget" and knobs.method == "greedy")
        ):
            continue
        shown = "+".join(map(str, value)) if isinstance(value, tuple) else Path(str(value)).stem
        parts.append(f"{key}{shown if not isinstance(value, float) else format(value, 'g')}")
    parts += [f"{key}{value}" for key, value in asdict(knobs.verify_knobs).items() if value is not None]
    parts += [each.replace("=", "") for each in knobs.given]
    return FOLDER / _safe("-".join(parts))


def hard_path(model_name: str, task: str) -> Path:
    """Where the hard set of a model on a task lies unless told otherwise."""
    return FOLDER / "hard" / _safe(f"{model_name}-{Path(task).stem}.json")


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in name)[:200]
