"""The main path, read first: configuration -> method + engine -> run folder.

prepare   everything that can fail is tried here, before time is spent: method, model folder, data, prompts, verl
train     the run folder is made, the engine runs the steps, the summary is printed
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported in the functions: `reasonrl --help` loads this module and nothing that it uses
    import pandas as pd
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.core import Method
    from reasonrl.engine.validation import Validation
    from reasonrl.runs.folder import RunFolder

PROVIDED = frozenset({"logprobs", "old_logprobs", "entropy"})  # by the verl engine; the data adds its own


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and can start."""

    cfg: DictConfig
    method: Method
    folder: Path
    resume_step: int | None = None
    validation: Validation | None = None  # instead of the data's own validation problems
    judge: str | None = None  # address of the judge of programs, once it is there

    @property
    def programs(self) -> bool:
        """Whether any answer is a program."""
        return self.cfg.verify.checker == "code" or (self.validation is not None and self.validation.programs)


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step; `run.metrics["val/acc"]` is a series over the steps."""
        return self.folder.metrics()

    def rollouts(self, step: int) -> pd.DataFrame:
        """One row per rollout of a step."""
        return self.folder.rollouts(step)


def default_name(cfg: DictConfig, method: Method) -> str:
    """method-model-data-seed-time: never the name of an older run."""
    stamp = time.strftime("%m%d-%H%M%S")
    return f"{method.name}-{cfg.model.name.replace('/', '-')}-{cfg.data.name}-s{cfg.seed}-{stamp}"


def prepare(cfg: DictConfig, method: Method | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Check a composed configuration. Raises ConfigError. Imports no torch, verl or ray.

    overrides: the command line, to see what was asked for beside `resume=`.
    """
    from reasonrl.config import method_from, typed
    from reasonrl.core import with_limits
    from reasonrl.models import check_model
    from reasonrl.runs.folder import RunFolder

    cfg = typed(cfg)
    if cfg.resume:
        return prepare_resume(cfg, method, resume_changes(cfg, overrides))
    method = with_limits(method or method_from(cfg.method), cfg.max_new_tokens)
    check_nodes(cfg)
    check_data_needs(method, cfg)
    check_devices(cfg)
    check_model(cfg)
    check_prefixes(method, cfg)
    check_prm(method, cfg)
    if cfg.name:
        check_name(cfg.name)
    folder = Path(cfg.out).expanduser() / (cfg.name or default_name(cfg, method))
    RunFolder.refuse_existing(folder)
    cfg.name = folder.name
    check_verl(cfg, method, folder)
    plan = Plan(cfg, method, folder.absolute(), validation=validation_of(cfg))
    check_judge(plan)
    return plan


def validation_of(cfg: DictConfig) -> Validation | None:
    """The tasks to validate on; None: the data's own validation problems. Raises ConfigError."""
    if not cfg.val_tasks and cfg.val_data_dir is None:
        return None
    from reasonrl.eval.validation import validation_of

    cfg.val_tasks = [  # a run may be resumed from elsewhere
        str(Path(name).expanduser().absolute()) if name.endswith((".yaml", ".yml")) else name for name in cfg.val_tasks
    ]
    if cfg.val_data_dir is not None:
        cfg.val_data_dir = str(Path(cfg.val_data_dir).expanduser().absolute())
    return validation_of(cfg)


def check_name(name: str) -> None:
    """Raise ConfigError for a name that is no name of one folder."""
    from reasonrl.config import ConfigError

    if "/" in name or name in (".", ".."):
        outer, _, inner = name.rstrip("/").rpartition("/")
        hint = f": out={outer} name={inner} puts it there" if outer and inner not in (".", "..") else ""
        raise ConfigError(f"name={name} is not the name of one folder below out={hint}")
    if not name.isprintable():
        raise ConfigError(f"name={name!r} holds characters that cannot be printed: choose another name")
    if len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise ConfigError(
            f"name= has {len(name)} characters, a folder's name at most {LONGEST_NAME}: choose a shorter one"
        )


LONGEST_NAME = 240  # of 255 bytes; the rest is for scratch files beside it


def resume_changes(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The knobs given beside `resume=`. Raises ConfigError for one that would make it another run."""
    from reasonrl.config import ConfigError

    keys = [o.partition("=")[0].lstrip("+") for o in overrides if "=" in o]
    for key in keys:
        if key not in (*RESUMABLE, "resume", "dry_run"):
            raise ConfigError(
                f"resume= continues a run with its own settings; {key} cannot change. Allowed: {', '.join(RESUMABLE)}"
            )
    return {key: cfg[key] for key in keys if key in RESUMABLE}


def prepare_resume(cfg: DictConfig, method: Method | None, changes: Mapping[str, Any]) -> Plan:
    """Continue a run from its last complete checkpoint, with its own configuration. Raises ConfigError."""
    from omegaconf import DictConfig, OmegaConf

    from reasonrl.config import ConfigError, method_from, typed
    from reasonrl.core import Ledger, with_limits
    from reasonrl.models import check_model
    from reasonrl.runs.folder import RunFolder

    folder = RunFolder.open(Path(cfg.resume).expanduser().absolute())
    try:
        saved = OmegaConf.load(folder.path / "config.yaml")
    except Exception as error:  # yaml's own kinds
        raise ConfigError(f"{folder.path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(saved, DictConfig) or not saved:
        raise ConfigError(f"{folder.path / 'config.yaml'} is not the configuration of a run")
    for key, value in changes.items():
        OmegaConf.update(saved, key, value)
    saved.resume, saved.dry_run = str(folder.path), cfg.dry_run
    saved = typed(saved)
    if method is None and OmegaConf.select(saved, "method._target_") is None:
        raise ConfigError(
            f"{folder.path} was started from Python with a Method object: pass it again, "
            f"reasonrl.train(method, resume='{cfg.resume}')"
        )
    method = with_limits(method or method_from(saved.method), saved.max_new_tokens)
    done = folder.complete_checkpoints()
    if done:
        folder.verify_checkpoint(done[-1])
    step = done[-1] if done else 0
    if step:
        try:
            Ledger.from_json(folder.state(step)["ledger"], method)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"checkpoint {folder.checkpoint(step)}: {error}") from error
    if step >= saved.steps:
        raise ConfigError(f"{folder.path} already has {step} of {saved.steps} steps: nothing to do (steps= extends it)")
    check_own_prefixes(folder, saved)
    check_devices(saved)
    check_model(saved)
    plan = Plan(saved, method, folder.path, resume_step=step, validation=validation_of(saved))
    check_judge(plan)
    return plan


RESUMABLE = ("steps", "save_every", "validate_every", "keep_checkpoints", "ray_address")


def check_nodes(cfg: DictConfig) -> None:
    """Raise ConfigError for a key or value of the data, prompt or verify group that does not exist."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.data.sources import SOURCES, data_from_config
    from reasonrl.verify.pool import CODE, verify_from_config

    try:
        data = data_from_config(cfg.data)
        prompt_from_config(cfg.prompt)
        verify = verify_from_config(cfg.verify)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if SOURCES[data.source].programs and verify.checker != CODE:
        raise ConfigError(
            f"data={data.name} asks for programs, which have to be run: verify={verify.checker} cannot; give verify={CODE}"
        )


def check_verl(cfg: DictConfig, method: Method, folder: Path) -> None:
    """Raise ConfigError for a `verl.` override that verl does not know or that we decide."""
    from reasonrl.engine.verl.config import verl_config

    verl_config(cfg, method, data={"train": "?", "val": "?"}, run_folder=folder, own={})


def check_data_needs(method: Method, cfg: DictConfig) -> None:
    """Whether engine and data can provide what the parts read; the data's own columns are checked when it is built."""
    from reasonrl.config import ConfigError
    from reasonrl.core import check_needs

    try:
        check_needs(method, PROVIDED | {"solution_steps", "stored_prefix"} | ({"prm"} if cfg.prm else set()))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_prefixes(method: Method, cfg: DictConfig) -> None:
    """Raise ConfigError unless a method that starts from stored prefixes has a store that fits, and no other has one."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prefixes import store_file

    reads = "stored_prefix" in method.needs
    if cfg.prefixes is None:
        if reads and cfg.data.source != "verl":  # files in verl's schema may bring their own: seen when they are read
            raise ConfigError(no_prefixes(method, cfg))
        return
    if not reads:
        raise ConfigError(
            f"prefixes={cfg.prefixes}: {method.name} with these settings reads no stored prefixes: leave prefixes= out, or "
            "choose a method that starts from them"
        )
    try:
        check_store(store_file(cfg.prefixes), cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_judge(plan: Plan) -> None:
    """Raise ConfigError for a run on a cluster whose judge would be where only this machine reaches it."""
    from reasonrl.config import ConfigError

    if plan.programs and plan.cfg.engine.name == "cluster" and plan.cfg.verify.get("judge") is None:
        key = "verify.judge" if "judge" in plan.cfg.verify else "+verify.judge"
        raise ConfigError(
            "engine=cluster, and answers are programs: they need a judge that every node reaches. Start reasonrl judge on "
            "each node on the same port, with the same REASONRL_JUDGE_TOKEN, and give "
            f"{key}=http://127.0.0.1:<port>; or one for all, with host=, tls_cert= and tls_key="
        )


@contextlib.contextmanager
def with_judge(plan: Plan) -> Iterator[Plan]:
    """The plan with the address of a judge, where answers are programs; one of our own lives as long as this.

    Raises ConfigError where no sandbox is possible, or a judge gives less than is asked for; RunFailed without a judge.
    """
    if not plan.programs:
        yield plan
        return
    from reasonrl.verify.code import open_judge
    from reasonrl.verify.judge.types import Limits
    from reasonrl.verify.pool import verify_from_config

    verify = verify_from_config(plan.cfg.verify)
    with open_judge(verify.judge, Limits(verify.cpu_seconds, memory_mb=verify.memory_mb)) as client:
        yield replace(plan, judge=client.url)


def check_prm(method: Method, cfg: DictConfig) -> None:
    """Raise ConfigError for a process reward model that is not there, or that the method would not ask."""
    from reasonrl.config import ConfigError

    if cfg.prm is None:
        return
    if "prm" not in method.needs:
        raise ConfigError(
            f"prm={cfg.prm}: {method.name} with these settings asks no process reward model: leave prm= out"
        )
    if not cfg.prm.startswith(("http://", "https://")):
        from reasonrl.engine.prm import read_card

        cfg.prm = str(Path(cfg.prm).expanduser().absolute())  # a run may be resumed from elsewhere
        try:
            read_card(Path(cfg.prm))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def no_prefixes(method: Method, cfg: DictConfig) -> str:
    """What to say to a method that has nothing to start from."""
    from reasonrl.cli import options

    model = cfg.model.name if cfg.model.name in options("model") else cfg.model.path
    return (
        f"{method.name} starts its rollouts with stored prefixes, and there are none: make them once with `reasonrl prefixes "
        f"model={model} data={cfg.data.name}` and this run's other settings, then give prefixes=<store>"
    )


def check_store(file: Path, cfg: DictConfig) -> None:
    """Raise ConfigError or DataError unless the store at `file` was made by this run's model from its prompt."""
    from reasonrl.config import ConfigError, package_path
    from reasonrl.data.prefixes import read_facts
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.models import model_fingerprint

    facts = read_facts(file)
    mine, theirs = model_fingerprint(package_path(cfg.model.path)), facts.settings["model"]
    if mine != theirs:
        # before its weights are downloaded a model is known by its name on the hub only
        unseen = mine.startswith("hub-") and theirs.startswith("files-")
        if not (unseen and facts.about.get("path") == cfg.model.path):
            raise ConfigError(
                f"{file} was written by another model: {facts.about.get('model')} ({theirs[:18]}), this run trains "
                f"{cfg.model.name} ({mine[:18]}). Make a store with model={cfg.model.name}, or train the model it is of"
            )
    if facts.settings["prompt"] != prompt_from_config(cfg.prompt).hash:
        raise ConfigError(
            f"{file} was written after another prompt: {facts.about.get('prompt')}, this run has prompt={cfg.prompt.name} "
            "(or the same name with other words). Use that prompt, or make a store with this one"
        )


def check_own_prefixes(folder: RunFolder, cfg: DictConfig) -> None:
    """Raise ConfigError when the store in a run folder is gone or changed: what was outside it is never read again."""
    from reasonrl.config import ConfigError
    from reasonrl.data.prefixes import FILE, file_sha256

    file = folder.path / "data" / FILE
    wanted = folder.provenance().get("prefixes", {}).get("sha256")
    if wanted is None and cfg.prefixes is None:
        return
    if not file.is_file():
        raise ConfigError(
            f"{file} is gone: the run started from it. Restore it, from {cfg.prefixes} if that is the same"
        )
    if wanted is not None and file_sha256(file) != wanted:
        raise ConfigError(
            f"{file} changed since the run started from it (its sha256 is not in provenance.json): restore it"
        )


def check_devices(cfg: DictConfig) -> None:
    """Raise ConfigError when the engine's devices are not there."""
    from reasonrl.config import ConfigError
    from reasonrl.runs.provenance import gpus

    if cfg.engine.name != "cluster":
        if cfg.ray_address:
            raise ConfigError(
                f"ray_address={cfg.ray_address} is of engine=cluster, this run has engine={cfg.engine.name}"
            )
        if cfg.nodes > 1:
            raise ConfigError(f"nodes={cfg.nodes} needs engine=cluster: engine={cfg.engine.name} is this machine alone")
    else:
        check_reachable(cfg.ray_address)
    if cfg.engine.name == "gpu":
        found = gpus()
        if not found:
            raise ConfigError(
                "engine=gpu and no NVIDIA GPU found (nvidia-smi lists none): use engine=cpu, or a GPU host"
            )
        if cfg.gpus > len(found):
            raise ConfigError(f"gpus={cfg.gpus} but this machine has {len(found)}: lower gpus, or use engine=cluster")
    if cfg.engine.device != "cpu" and (cfg.gpus * cfg.nodes) % cfg.engine.tensor_parallel:
        raise ConfigError(
            f"engine.tensor_parallel={cfg.engine.tensor_parallel} must divide gpus x nodes = {cfg.gpus * cfg.nodes}"
        )
    mini = cfg.mini_batch or cfg.batch
    if mini % (cfg.gpus * cfg.nodes) and cfg.gpus * cfg.nodes > 1:
        raise ConfigError(f"mini_batch={mini} problems do not divide over {cfg.gpus * cfg.nodes} training processes")


def check_reachable(address: str) -> None:
    """Raise ConfigError when nothing listens at `address`: Ray itself would retry for minutes."""
    from reasonrl.config import ConfigError

    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"ray_address={address} must be <head node>:6379, or auto on a node of the cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nothing answers at ray_address={address} ({error}): is the cluster up (ray start --head on its head node), and "
            "the port open?"
        ) from error


CONNECT_SECONDS = 5.0


def train_plan(plan: Plan, console: Console | None = None) -> Run:
    """Run a checked plan to its end. Raises ConfigError before the engine starts, RunFailed if no step was trained."""
    from rich.console import Console

    console = console or Console(file=sys.stdout, soft_wrap=True)
    with with_judge(plan) as plan:
        return _trained(plan, console)


def _trained(plan: Plan, console: Console) -> Run:
    from reasonrl.config import ConfigError, RunFailed
    from reasonrl.engine.verl.launch import launch
    from reasonrl.runs.console import Progress, summary
    from reasonrl.runs.files import DiskFull
    from reasonrl.runs.folder import RunFolder

    started = time.monotonic()
    folder = RunFolder.create(plan.folder) if plan.resume_step is None else RunFolder.open(plan.folder)
    folder.keep_checkpoints, folder.record_rollouts = plan.cfg.keep_checkpoints, plan.cfg.record
    folder.ranks = plan.cfg.gpus * plan.cfg.nodes
    folder.listeners.append(Progress(console, plan.cfg.steps, plan.resume_step or 0))
    try:
        with folder.locked():
            if plan.resume_step is not None:
                folder.rewind(plan.resume_step or -1)  # without a checkpoint everything starts again, validation too
            launch(plan, folder, console)
    except (ConfigError, DiskFull):
        if plan.resume_step is None:
            folder.discard_if_unstarted()
        raise
    except KeyboardInterrupt as stop:
        if folder.begun:
            raise KeyboardInterrupt(f"Ray is down. Continue the run with: reasonrl resume={folder.path}") from stop
        folder.discard_if_unstarted()
        raise KeyboardInterrupt("the run had not begun, and its folder is gone again") from stop
    lines = folder.lines()
    if not any(line["step"] > (plan.resume_step or 0) for line in lines):
        raise RunFailed(f"no step was trained in {folder.path}; see {folder.path / 'log.txt'}")
    summary(folder, console, time.monotonic() - started)
    return Run(folder)


def train(
    method: Method | str = "grpo",
    *,
    model: str = "tiny",
    data: str = "arithmetic",
    resume: str | None = None,
    overrides: list[str] | None = None,
    **knobs: Any,
) -> Run:
    """Train from Python: `reasonrl.train("deepcompress", model="tiny", steps=40)`.

    method: a built-in method's name or your own Method. knobs: anything `reasonrl --help` lists, nested as mappings
    (`dynamic_sampling={"enable": True}`). overrides: further command-line overrides, e.g. "verl.trainer.balance_batch=false".
    Raises ConfigError before anything starts.
    """
    from reasonrl.cli import composed

    if isinstance(method, str):
        chosen, groups = None, [f"method={method}"]
    else:
        chosen, groups = method, []
    knobbed = [a for key, value in knobs.items() for a in as_overrides(key, value)]
    if resume is not None:
        cfg = composed([f"resume={resume}", *knobbed])
        return train_plan(prepare(cfg, chosen, knobbed))
    cfg = composed([*groups, f"model={model}", f"data={data}", *(overrides or []), *knobbed])
    if chosen is not None:
        cfg.method = {"name": chosen.name}
    return train_plan(prepare(cfg, chosen))


def as_overrides(key: str, value: Any) -> list[str]:
    """A keyword argument as Hydra overrides; mappings become dotted keys."""
    if isinstance(value, Mapping):
        return [a for inner, v in value.items() for a in as_overrides(f"{key}.{inner}", v)]
    return [f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"]


def describe(plan: Plan, console: Console) -> None:
    """What `--dry-run` prints: the resolved configuration, the parts, the devices, the model."""
    from omegaconf import OmegaConf

    from reasonrl.config import package_path
    from reasonrl.engine.verl.config import attention, tokens_per_pass

    console.print(OmegaConf.to_yaml(plan.cfg), highlight=False, markup=False)
    for slot, part in plan.method.parts.items():
        console.print(f"{slot:>10}: {part}", highlight=False, markup=False)
    console.print(f"{'loss':>10}: {plan.method.loss}", highlight=False, markup=False)
    console.print(
        f"\nmodel {package_path(plan.cfg.model.path)}; attention {attention(plan.cfg)}; "
        f"{tokens_per_pass(plan.cfg)} tokens a pass; run folder {plan.folder}\n"
        "dry run: checked settings, method, model folder and verl paths (not the data);\nnothing was started",
        highlight=False,
        markup=False,
    )
