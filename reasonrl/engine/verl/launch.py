"""From a checked plan to a running verl trainer on this process, and back to a clean machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from reasonrl.config import ConfigError, package_path
from reasonrl.core import Problem, check_needs
from reasonrl.engine.verl.config import attention
from reasonrl.engine.verl.names import THREADS
from reasonrl.models import INDEXES, check_facts, checkpoint_bytes, fetch
from reasonrl.runs.files import fingerprint as file_fingerprint
from reasonrl.runs.files import replacing, require_space, write_text
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.order import DataOrder
from reasonrl.runs.provenance import provenance

if TYPE_CHECKING:
    from reasonrl.data.prefixes import Store
    from reasonrl.data.problems import Loaded
    from reasonrl.engine.prm import Scorer
    from reasonrl.train import Plan

VAL_TASKS = "val_tasks.json"  # beside the validation file, in a run that validates on tasks
LOGICAL_CPUS = 64  # Ray's count for scheduling, not cores: verl's small actors each claim one


def launch(plan: Plan, folder: RunFolder, console: Console) -> None:
    """Build data, start Ray, train, shut down. Whatever happens, Ray and its children are gone afterwards."""
    started = time.monotonic()
    console.print(f"run folder {folder.path}", highlight=False)
    require_packages(plan.cfg)
    folder.first_checkpoint = max(checkpoint_bytes(plan.cfg), 64 << 20)
    require_space(folder.path, folder.first_checkpoint)
    tokenizer = load_tokenizer(plan.cfg)
    prompts = plan.validation.prompts(tokenizer) if plan.validation else {}
    data = build_data(plan, folder, tokenizer, console, prompts)
    scorer = process_reward_model(plan, folder, tokenizer, console)
    prepare_environment(plan.cfg, folder)
    if plan.cfg.engine.device != "cpu" and attention(plan.cfg) == "sdpa":
        console.print(
            "flash-attn is not installed: attention is PyTorch's (sdpa), and passes are padded", highlight=False
        )
    console.print("starting Ray, the model and the rollout engine ...", highlight=False)
    with quiet(folder.path / "log.txt"), ray_cluster(plan.cfg):
        config = final_config(plan, folder, tokenizer, data, prompts)
        folder.decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
        state = folder.state(plan.resume_step) if plan.resume_step else None
        with trainer_on(config, plan, folder, state, scorer) as trainer:
            manager = start_engine(trainer, config)
            console.print(f"started in {time.monotonic() - started:.0f} s", highlight=False)
            with folder.blaming_a_full_disk():
                trainer.fit(manager)


def final_config(
    plan: Plan, folder: RunFolder, tokenizer: Any, data: dict[str, str], prompts: Mapping[str, Mapping[str, Any]]
) -> Any:
    """verl's configuration of this run, checked by us and by verl; a new run's config.yaml and provenance.json."""
    from reasonrl.engine.verl.config import verl_config
    from reasonrl.engine.verl.plugin import expected, register, registered
    from reasonrl.engine.verl.seams import check_seams, fingerprint

    check_seams()
    register()
    require_registered("driver", registered(), expected())
    step = plan.resume_step
    config = verl_config(
        plan.cfg,
        plan.method,
        data=data,
        run_folder=folder.path,
        own=own_settings(plan),
        resume_from=folder.checkpoint(step) if step else None,
        prompts=prompts,
    )
    check_with_verl(config)
    OmegaConf.resolve(config)
    if step is None:
        start_records(plan, folder, tokenizer, data, fingerprint())
    else:
        write_text(folder.path / "config.yaml", OmegaConf.to_yaml(plan.cfg))  # with the knobs changed beside resume=
    return config


def own_settings(plan: Plan) -> dict[str, Any]:
    """What our trainer and workers read: the node `reasonrl` of verl's configuration."""
    from reasonrl.engine.verl.agent_loop import pack

    cfg = plan.cfg
    return {
        "method": pack(plan.method),
        "verify": pack({**dict(cfg.verify), **({} if plan.judge is None else {"judge": plan.judge})}),
        "judges": pack(plan.validation.judges(plan.judge) if plan.validation else {}),
        "seed": cfg.seed,
        "total_steps": cfg.steps,
        "min_new_tokens": cfg.min_new_tokens,
        "deterministic": cfg.deterministic,
        "dynamic": cfg.dynamic_sampling.enable,
        "max_refills": cfg.dynamic_sampling.max_refills,
        "watchdog_minutes": cfg.watchdog_minutes,
    }


@contextlib.contextmanager
def trainer_on(
    config: Any, plan: Plan, folder: RunFolder, state: dict[str, str] | None, scorer: Scorer | None
) -> Iterator[Any]:
    """The trainer with verl's queue around it; trackers and queue are closed whatever happens."""
    import transfer_queue as tq

    from reasonrl.engine.verl.trainer import ReasonTrainer

    tq.init(config.transfer_queue)
    trainer = None
    try:
        trainer = ReasonTrainer(config, method=plan.method, recorder=folder, state=state, scorer=scorer)
        yield trainer
    finally:
        tracking = getattr(trainer, "logger", None)
        if tracking is not None:
            tracking.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
        tq.close()


def start_engine(trainer: Any, config: Any) -> Any:
    """Load the model, start the rollout engine and the agent-loop workers; returns the workers' manager."""
    from reasonrl.engine.verl.agent_loop import ReasonManager
    from reasonrl.engine.verl.plugin import expected

    trainer.init()
    manager = ReasonManager.create(
        config=config,
        llm_client=trainer.get_llm_client(),
        teacher_client=None,
        reward_loop_worker_handles=trainer.get_reward_handles(),
    )
    require_registered("agent-loop worker", manager.registered(), expected())
    return manager


def load_tokenizer(cfg: Any) -> Any:
    """The model's tokenizer. Raises ConfigError for a folder without one, or an unreachable hub name."""
    from transformers import AutoConfig, AutoTokenizer

    path = package_path(cfg.model.path)
    trust = cfg.model.trust_remote_code
    what, way_out = "configuration", "copy or download the model again"
    if not Path(path).exists():
        way_out = "is the name right? Without a network, download it elsewhere and give the folder: model=<folder>"
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        what = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:  # the libraries behind it raise a dozen kinds for files that are missing or damaged
        if "trust_remote_code" in str(error):
            way_out = "it brings its own code; if you trust its authors: model.trust_remote_code=true"
        cause = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"cannot load the {what} of model {path}: {way_out}. ({type(error).__name__}: {cause})"
        ) from error
    if not Path(path).exists():
        check_facts(found.to_dict(), cfg)
        require_cached_weights(path)
    return tokenizer


def require_cached_weights(name: str) -> None:
    """Raise ConfigError when there is no network and the local cache of the hub lacks the model's weights."""
    from huggingface_hub import constants, try_to_load_from_cache

    names = [*INDEXES, *(index.removesuffix(".index.json") for index in INDEXES)]
    if constants.HF_HUB_OFFLINE and not any(isinstance(try_to_load_from_cache(name, file), str) for file in names):
        raise ConfigError(
            f"model {name} has no weights in the local cache, and HF_HUB_OFFLINE is set: unset it where there is a network, "
            "or give a folder: model=<folder>"
        )


def require_packages(cfg: Any) -> None:
    """Raise ConfigError when an optional package that the run needs is not installed."""
    for wanted, package, install in (
        (cfg.engine.device != "cpu" and cfg.engine.rollout == "vllm", "vllm", "reasonrl[gpu]"),
        (cfg.engine.attention == "flash_attention_2", "flash_attn", "reasonrl[flash-attn]"),
        ("wandb" in cfg.logger.backends, "wandb", "wandb"),
        ("mlflow" in cfg.logger.backends, "mlflow", "reasonrl[mlflow]"),
        ("tensorboard" in cfg.logger.backends, "tensorboard", "tensorboard"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(f"this run needs {package}, which is not installed: pip install '{install}'")


def build_data(
    plan: Plan,
    folder: RunFolder,
    tokenizer: Any,
    console: Console,
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Prepare the parquet files in the run folder (or reuse them on resume) and load them once, to fail early.

    prompts: of sources that have one of their own. Raises ConfigError.
    """
    from reasonrl.data.prepare import build
    from reasonrl.data.problems import load
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.train import PROVIDED
    from reasonrl.verify.pool import CODE

    cfg = plan.cfg
    files = {split: folder.path / "data" / f"{split}.parquet" for split in ("train", "val")}
    try:
        if not all(file.is_file() for file in files.values()):
            instead = plan.validation.items() if plan.validation else None
            if plan.validation:
                write_tasks(plan.validation.write(files["val"]), files["val"], console)
            for split, report in build(cfg.data, folder.path / "data", instead=instead).items():
                drops = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
                wrong = f"; {report.traces_dropped} without their solution, which states a wrong answer"
                console.print(
                    f"data {split}: {report.rows} problems"
                    + (f" (dropped: {drops})" if drops else "")
                    + (wrong if report.traces_dropped else ""),
                    highlight=False,
                )
        prompt = prompt_from_config(cfg.prompt)
        store = own_store(plan, folder, tokenizer)
        for split, file in files.items():
            loaded = load(
                file,
                prompt,
                tokenizer,
                max_prompt_tokens=cfg.max_prompt_tokens,
                overlong=cfg.data.get("overlong", "drop"),
                prompts={source: prompt_from_config(each) for source, each in (prompts or {}).items()},
            )
            if cfg.verify.checker == CODE and (split == "train" or not plan.validation):
                check_golds(loaded, file)
            if loaded.dropped_too_long:
                console.print(
                    f"data {split}: {loaded.dropped_too_long} prompts over max_prompt_tokens={cfg.max_prompt_tokens} "
                    f"dropped (longest {loaded.longest_prompt_tokens})",
                    highlight=False,
                )
            if split == "train":
                if len(loaded) < cfg.batch:
                    raise ConfigError(f"{len(loaded)} training problems are less than batch={cfg.batch}: lower batch")
                if plan.resume_step:
                    DataOrder(len(loaded), cfg.seed).restore(folder.state(plan.resume_step)["order"])  # raises
                provided = set(PROVIDED) | carried(plan, loaded, store, console) | ({"prm"} if cfg.prm else set())
        check_needs(plan.method, provided)
    except ConfigError:
        raise
    except ValueError as error:  # DataError and friends say what, where and the way out
        raise ConfigError(str(error)) from error
    return {split: str(file) for split, file in files.items()}


def check_golds(loaded: Loaded, file: Path) -> None:
    """Raise ConfigError for a problem whose answer is no gold of a program."""
    from reasonrl.verify.code import check_answer

    for problem in loaded.problems:
        try:
            check_answer(problem.answer)
        except ValueError as error:
            raise ConfigError(
                f"{file}, problem {problem.id}: {error}. verify=code is for data of programs, such as data=mbpp; golds of "
                "your own are made by reasonrl.verify.code.code_answer"
            ) from error


def write_tasks(tasks: Mapping[str, Any], file: Path, console: Console) -> None:
    """What the run validates on, beside its validation file."""
    write_text(file.with_name(VAL_TASKS), json.dumps(tasks, indent=1))
    for source, facts in tasks.items():
        console.print(f"validation on {source}: {facts['problems']} problems of {facts['origin']}", highlight=False)


def process_reward_model(plan: Plan, folder: RunFolder, tokenizer: Any, console: Console) -> Scorer | None:
    """The model behind `prm=`, loaded. Raises ConfigError; on resume also when it is not the one the run began with."""
    if "prm" not in plan.method.needs:
        return None
    from reasonrl.engine.prm import open_scorer
    from reasonrl.engine.step_scores import scored_part

    device = "cpu" if plan.cfg.engine.device == "cpu" else "cuda"
    scorer = open_scorer(plan.cfg.prm, tokenizer=tokenizer, device=device)
    try:
        scored_part(plan.method)[1].check_labels(scorer.card.labels)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    before = folder.state(plan.resume_step).get("prm") if plan.resume_step else None
    if before not in (None, scorer.identity):
        raise ConfigError(
            f"prm={plan.cfg.prm} is another process reward model ({scorer.identity[:18]}) than the run was trained with "
            f"({before[:18]}): put that one there, or start a new run"
        )
    console.print(f"process reward model {plan.cfg.prm} ({scorer.identity[:18]})", highlight=False)
    return scorer


def carried(plan: Plan, loaded: Loaded, store: Store | None, console: Console) -> set[str]:
    """What of solutions and prefixes the training problems bring; says how many of them do. Raises ConfigError."""
    from reasonrl.data.prefixes import join
    from reasonrl.train import no_prefixes

    needs, problems = plan.method.needs, loaded.problems
    prefixed = sum(bool(p.stored_prefix) for p in problems)
    if "solution_steps" in needs:
        tell_hintable(problems, console)
    if store is not None:
        joined = join(store, zip((p.id for p in problems), loaded.questions, strict=True))
        console.print(f"prefixes: {joined}", highlight=False)
    elif "stored_prefix" in needs:
        if not prefixed:
            raise ConfigError(no_prefixes(plan.method, plan.cfg))
        console.print(
            f"prefixes: {prefixed} of {len(problems)} problems bring one, the others start plain", highlight=False
        )
    found = {"solution_steps"} if any(p.solution_steps for p in problems) else set()
    return found | ({"stored_prefix"} if store is not None or prefixed else set())


def tell_hintable(problems: Sequence[Problem], console: Console) -> None:
    """Say how many solutions can be given away in part. Raises ConfigError when solutions are there and none can."""
    solved = sum(bool(p.solution_steps) for p in problems)
    several = sum(len(p.solution_steps) > 1 for p in problems)
    if solved and not several:
        raise ConfigError(
            f"none of the {solved} solutions has two steps or more, so nothing could be given away: cut them otherwise with "
            "data.steps=auto (or numbered, paragraphs, lines, sentences)"
        )
    if several < len(problems):
        console.print(
            f"solutions: {several} of {len(problems)} problems have two steps or more, the others are given no hint",
            highlight=False,
        )


def own_store(plan: Plan, folder: RunFolder, tokenizer: Any) -> Store | None:
    """The prefixes of the run, from its folder: copied there by a new run. None when it has none.

    Raises ConfigError or DataError for a store that was made with something else.
    """
    from reasonrl.data.prefixes import FILE, prompt_facts, read, store_file, tokenizer_fingerprint
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.train import check_store

    if plan.cfg.prefixes is None:
        return None
    own = folder.path / "data" / FILE
    if not own.is_file():
        with replacing(own) as scratch:
            shutil.copyfile(store_file(plan.cfg.prefixes), scratch)
    fetch(package_path(plan.cfg.model.path))  # a hub model is known by its weights from here on
    check_store(own, plan.cfg)
    store = replace(read(own), path=Path(plan.cfg.prefixes))  # as the user knows it, for errors
    put = prompt_facts(prompt_from_config(plan.cfg.prompt), tokenizer)
    for name, value in {"tokenizer": tokenizer_fingerprint(tokenizer), **put}.items():
        if store.facts.settings[name] != value:
            raise ConfigError(
                f"{store.path} was made with another {name.replace('_', ' ')} than that of model {plan.cfg.model.path}: "
                "make a store with this model's files"
            )
    return store


def prepare_environment(cfg: Any, folder: RunFolder) -> None:
    """Environment variables that verl, Ray and the trackers read at import or start."""
    of_this_run = {
        "TENSORBOARD_DIR": str(folder.path / "tensorboard"),
        "MLFLOW_TRACKING_URI": f"file://{folder.path / 'mlruns'}",
        "WANDB_DIR": str(folder.path),
        "WANDB_RUN_ID": folder.tracker_id(),  # a resumed run continues the same curve
        "WANDB_RESUME": "allow",
    }
    os.environ.update(of_this_run)
    values = {
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "RAY_DEDUP_LOGS": "0",
        "TRANSFER_QUEUE_ENABLE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if cfg.engine.device == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"
        os.environ[THREADS] = str(cfg.engine.threads or min(os.cpu_count() or 1, 8))
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what verl and Ray print to the run's log file; our console writes to the terminal it was made for."""
    with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        import logging

        handler = logging.StreamHandler(file)
        root = logging.getLogger()
        root.addHandler(handler)
        # torch bound its own handler to the terminal when it was imported; this one only announces a renaming
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.removeHandler(handler)


@contextlib.contextmanager
def ray_cluster(cfg: Any) -> Iterator[None]:
    """A Ray cluster for this run: a private local one, or the existing one at `ray_address`."""
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    verls = get_ppo_ray_runtime_env()["env_vars"]  # leaves out what this process has set, which FORWARDED adds
    env = {**verls, **{name: os.environ[name] for name in FORWARDED if name in os.environ}}
    kwargs: dict[str, Any] = {
        "runtime_env": {"env_vars": env},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if cfg.engine.name == "cluster":
        kwargs["address"] = cfg.ray_address
    else:
        kwargs |= {"address": "local", "include_dashboard": False, "num_cpus": LOGICAL_CPUS, "num_gpus": cfg.gpus}
    try:
        ray.init(**kwargs)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = cfg.ray_address or "this machine"
        raise ConfigError(f"Ray did not start on {where}: {error}") from error
    try:
        if cfg.engine.name == "cluster":
            require_cluster(cfg, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


FORWARDED = [
    "VERL_PLATFORM",
    THREADS,
    "TOKENIZERS_PARALLELISM",
    "TQDM_DISABLE",
    "TRANSFER_QUEUE_ENABLE",
    "VLLM_LOGGING_LEVEL",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "PYTHONPATH",
    "NCCL_DEBUG",
    "VLLM_USE_FLASHINFER_SAMPLER",
    "VLLM_ATTENTION_BACKEND",
]


def require_cluster(cfg: Any, resources: dict[str, float]) -> None:
    """Raise ConfigError when the cluster has fewer GPUs than the run wants."""
    have, want = int(resources.get("GPU", 0)), cfg.gpus * cfg.nodes
    # one each for the queue's controller and its 4 storage units, three a training process, and our workers
    cpus = 5 + 3 * want + cfg.engine.agent_workers
    if resources.get("CPU", 0) < cpus:
        raise ConfigError(
            f"the Ray cluster at {cfg.ray_address} declares {int(resources.get('CPU', 0))} CPUs and the run's actors claim "
            f"{cpus}: start its nodes with --num-cpus=<more> (a count for scheduling, not cores)"
        )
    if have < want:
        raise ConfigError(f"the Ray cluster at {cfg.ray_address} has {have} GPUs, nodes x gpus asks for {want}")


def require_registered(where: str, found: dict[str, str], wanted: dict[str, str]) -> None:
    """Raise RuntimeError when verl lost our plug-in, which it does without a word."""
    if found != wanted:
        raise RuntimeError(
            f"verl's registries in the {where} hold {found}, expected {wanted}: the plug-in did not load there. Is the "
            "same reasonrl installed on every node, and VERL_USE_EXTERNAL_PLUGINS unset?"
        )


def check_with_verl(config: Any) -> None:
    """verl's own validation, as a ConfigError."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"verl refuses this configuration: {error}") from error


def start_records(plan: Plan, folder: RunFolder, tokenizer: Any, data: dict[str, str], seams: str) -> None:
    """config.yaml and provenance.json, before the first step."""
    from reasonrl.data.prefixes import beside, file_sha256, read_facts
    from reasonrl.data.prompts import chat_template_hash, prompt_from_config

    store = beside(Path(data["train"]))
    tasks = Path(data["val"]).with_name(VAL_TASKS)
    facts = provenance(
        seed=plan.cfg.seed,
        method={"name": plan.method.name, "parts": {slot: repr(part) for slot, part in plan.method.parts.items()}},
        data={split: file_fingerprint(Path(file)) for split, file in data.items()},
        prompt={"hash": prompt_from_config(plan.cfg.prompt).hash, "chat_template": chat_template_hash(tokenizer)},
        **({"prefixes": {"sha256": file_sha256(store), **asdict(read_facts(store))}} if store else {}),
        **({"validation": json.loads(tasks.read_text())} if tasks.is_file() else {}),
        verl_seams=seams,
        tracker_id=folder.tracker_id(),
    )
    write_text(folder.path / "provenance.json", json.dumps(facts, indent=1))
    write_text(folder.path / "config.yaml", OmegaConf.to_yaml(plan.cfg))
