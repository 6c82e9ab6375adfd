"""`reasonrl [command] key=value ...`: dispatch only. Help and `--cfg` import neither torch nor verl nor ray.

Hydra composes the configuration. Before it sees the arguments they are put into its grammar, so that a person need not know
it: `model=<folder or hub name>`, `recipe=<method>/<model>`, `method.<knob>=`, `data.<knob>=` and `verl.<path>=` without `+`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = "pkg://reasonrl.conf"
COMMANDS = ("train", "eval", "data", "prefixes", "prm", "judge", "tts", "optune", "tune", "check", "export")
# Nodes whose keys are checked against the schema, the factory or verl later, with better messages than Hydra's.
FREE = ("method.", "data.", "verl.", "prompt.", "verify.", "engine.", "model.", "logger.", "dynamic_sampling.")
PATHS = ("resume", "out", "name", "prefixes", "prm")  # quoted for Hydra: a sweep's folders have commas in their names
TAKES_VALUE = ("-c", "--cfg", "-p", "--package", "-i", "--info", "-cp", "--config-path", "-cn", "--config-name")
TAKES_VALUE += ("-cd", "--config-dir", "--experimental-rerun")
SWEEP = ("-m", "--multirun")
OPTIONS = (*TAKES_VALUE, *SWEEP, "-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run")
OPTIONS += ("-sc", "--shell-completion", "--dry-run")
GROUPS = ("method", "model", "data", "prompt", "verify", "engine", "logger")


class UsageError(ValueError):
    """Arguments that cannot be understood."""


AGAIN = "give the same command again to continue: what was finished is kept"


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # method._target_=my_pkg... from the current folder, as `python -m` would
    command = args.pop(0) if args and args[0] in COMMANDS else "train"
    if command == "train" and args and "=" not in args[0] and not args[0].startswith("-"):
        from reasonrl.config import nearest

        return complain(f"Unknown command '{args[0]}'{nearest(args[0], COMMANDS)}")
    return RUN[command](args)


def complain(message: object) -> int:
    print(f"reasonrl: {message}", file=sys.stderr)
    return 2


def train(args: list[str]) -> int:
    """Train, sweep, resume, dry-run: everything that Hydra composes."""
    if args in (["--help"], ["-h"]):  # with overrides beside it, Hydra shows the knobs of the chosen options
        print(overview())
        return 0
    import hydra

    try:
        overrides = translate(args)
        if not set(SWEEP) & set(args):
            refuse_several(overrides)
    except ValueError as error:
        return complain(error)
    code = 0

    def job(cfg: DictConfig) -> None:
        nonlocal code
        code = max(code, run_job(cfg, overrides))

    saved, sys.argv = sys.argv, [sys.argv[0], *overrides]
    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="train")(job)()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:  # Hydra's way to refuse an argument, after it has said why
        code = 2 if stop.code == 1 else int(stop.code or 0)
    finally:
        sys.argv = saved
    return code


def overview() -> str:
    """What `reasonrl --help` prints: commands, options of every group, and train.yaml with its comments."""
    text = (folder_of("reasonrl.conf") / "train.yaml").read_text()
    block = text[text.index("    header: |\n") + len("    header: |\n") : text.index("    footer: |\n")]
    footer = text[text.index("    footer: |\n") + len("    footer: |\n") : text.index("    template: |\n")]
    knobs = text[text.index("# The run\n") : text.index("\nhydra:\n")]
    groups = "\n".join(f"  {group}: {', '.join(options(group))}" for group in (*GROUPS, *PART_GROUPS))
    header, footer = (part.replace("\n      ", "\n").strip() for part in (f"\n{block}", f"\n{footer}"))
    return (
        f"{header}\n\nGroups (choose with group=option; `reasonrl method=deepcompress --help` shows an option's knobs):\n"
        f"{groups}\n\nKnobs (override with key=value):\n\n{knobs}\n\n{footer}"
    )


def run_job(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """One job: in this process, or, in a sweep, in one of its own (Ray and CUDA outlive a verl run)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from reasonrl.sweep import run_in_process

        try:
            return run_in_process(cfg, list(HydraConfig.get().overrides.task), int(HydraConfig.get().job.num))
        except OSError as error:
            return complain(f"the sweep's folder cannot be written ({error}): choose another out= or name=")
    return guarded(lambda: train_or_describe(cfg, overrides))


def train_or_describe(cfg: DictConfig, overrides: Sequence[str]) -> int:
    from reasonrl.train import describe, prepare, train_plan

    plan = prepare(cfg, overrides=overrides)
    if plan.cfg.dry_run:
        from rich.console import Console

        describe(plan, Console(soft_wrap=True))
    else:
        train_plan(plan)
    return 0


IN_THE_LOG = "The run folder's log.txt holds what verl and Ray said before this."
RAY_IS_DOWN = "Ray is down and the run folder is consistent: continue it with resume=<run folder>"


def guarded(work: Callable[[], int], *, bug: str = IN_THE_LOG, interrupted: str = RAY_IS_DOWN) -> int:
    """Run `work`; turn the failures a user can cause into one message and an exit code.

    bug, interrupted: what to say after any other failure, and after a Ctrl-C that does not say it itself.
    """
    from reasonrl.config import ConfigError, RunFailed
    from reasonrl.runs.files import DiskFull

    try:
        return work()
    except ConfigError as error:
        return complain(error)
    except DiskFull as error:
        complain(error.strerror or error)
        return 3
    except KeyboardInterrupt as stop:
        complain(f"interrupted; {stop.args[0] if stop.args else interrupted}")
        return 130
    except RunFailed as error:
        complain(error)
        return 1
    except Exception as error:
        traceback.print_exc()
        complain(f"{type(error).__name__}: {error}\n{bug}")
        return 1


def translate(args: Sequence[str]) -> list[str]:
    """The user's arguments in Hydra's grammar. Raises UsageError or ConfigError with the nearest names."""
    out: list[str] = []
    before = ""
    for arg in args:
        if arg == "--dry-run":
            out.append("dry_run=true")
        elif arg.startswith("~") or before in TAKES_VALUE:
            out.append(arg)
        elif arg.startswith("-"):
            check_flag(arg)
            out.append(arg)
        elif "=" not in arg:
            raise UsageError(f"'{arg}' is not key=value; reasonrl --help lists the keys")
        else:
            out.extend(map(readable, translate_override(arg)))
        before = arg
    return out


def check_flag(arg: str) -> None:
    """Raise UsageError for a flag that neither we nor Hydra have."""
    from reasonrl.config import nearest

    flag = arg.partition("=")[0]
    if flag not in OPTIONS:
        raise UsageError(f"Unknown option '{flag}'{nearest(flag, OPTIONS)}")


@functools.cache
def parsed(override: str) -> Any:
    """The override as Hydra reads it. Raises HydraException where its grammar ends."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def readable(override: str) -> str:
    """`override`, its value in quotes if Hydra's grammar has no other place for it (`~/data`, `it's`)."""
    from hydra.errors import HydraException

    for attempt in (override, quoted(*override.partition("=")[::2])):
        try:
            parsed(attempt)
        except HydraException:
            continue
        return attempt
    raise UsageError(
        f"'{override.lstrip('+')}' cannot be read: expected key=value, with dots between the parts of a key"
    )


def quoted(key: str, value: str) -> str:
    """`key='value'`, which Hydra reads back as the same text."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def refuse_several(overrides: Sequence[str], sweep: str = "add -m to run each of them") -> None:
    """Raise UsageError for several values of one key outside a sweep; `sweep` says what to do instead."""
    for override in overrides:
        if "=" in override and not override.startswith("-") and parsed(override).is_sweep_override():
            key, _, value = override.lstrip("+").partition("=")
            raise UsageError(
                f"{key}={value} names several values: {sweep}; a text with commas needs two pairs of quotes, "
                f'"{quoted(key, value)}"'
            )


def translate_override(arg: str) -> list[str]:
    key, _, value = arg.partition("=")
    if key == "recipe":
        return recipe_overrides(value)
    if key == "model":
        return model_overrides(value)
    if key.startswith(FREE):
        return [f"++{arg}"]
    if key.startswith("hydra"):
        return [arg]
    check_key(key)
    if key in ("resume", "out", "prefixes", "prm") and not value:
        raise UsageError(f"{key}= is empty: name a folder, or leave {key}= out")
    if key in GROUPS or "/" in key:
        check_option(key, value)
    if key in PATHS and value and value != "null" and not value.startswith(("'", '"')):
        return [quoted(key, value)]
    return [arg]


def alternatives(value: str) -> list[str]:
    """The options that `a,b` or `choice(a,b)` names; none for a glob."""
    if value.startswith("glob("):
        return []
    if value.startswith("choice(") and value.endswith(")"):
        value = value[len("choice(") : -1]
    return [name.strip() for name in value.split(",")]


def check_key(key: str, also: Sequence[str] = ()) -> None:
    """Raise ConfigError for a first word that is no knob, group or Hydra setting, nor one of `also`."""
    from dataclasses import fields

    from reasonrl.config import ConfigError, TrainConfig, nearest

    first = key.lstrip("+~").split(".")[0].split("/")[0].split("@")[0]
    known = {f.name for f in fields(TrainConfig)} | {"hydra", *also}
    if first not in known:
        raise ConfigError(f"Unknown key '{first}'{nearest(first, known | {'recipe'})}")


def folder_of(package: str) -> Path:
    """The folder of a package that holds files only; nothing is executed."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def options(group: str) -> list[str]:
    """Names of the options of a configuration group."""
    return sorted(f.stem for f in (folder_of("reasonrl.conf") / group).glob("*.yaml"))


def check_option(group: str, value: str) -> None:
    """Raise ConfigError for an option that does not exist; lists (sweeps) are checked one by one."""
    from reasonrl.config import ConfigError, nearest

    have = options(group)
    if not have:
        raise ConfigError(f"Unknown group '{group}'{nearest(group, [*GROUPS, *PART_GROUPS])}")
    for name in alternatives(value):
        if name not in have:
            raise ConfigError(f"Unknown {group} '{name}'{nearest(name, have)}")


PART_GROUPS = tuple(f"method/{part}" for part in ("prefix", "difficulty", "reward", "advantage", "overlong"))


def model_overrides(value: str) -> list[str]:
    """`model=` takes a configured name (or several, to sweep), a local folder, or a hub name with a slash."""
    known = options("model")
    names = alternatives(value)
    if all(name in known for name in names):
        return [f"model={value}"]
    path = Path(value).expanduser()
    if value and path.is_dir():
        path = path.absolute()
        return ["model=local", quoted("model.name", path.name), quoted("model.path", str(path))]
    if value.count("/") == 1 and not value.startswith((".", "/", "~")):
        return ["model=local", quoted("model.name", value.split("/")[1]), quoted("model.path", value)]
    from reasonrl.config import ConfigError, nearest

    missing = next(name for name in names if name not in known)
    raise ConfigError(
        f"Unknown model '{missing}', and no such folder{nearest(missing, known)}; or a local folder, or a hub name like "
        "Qwen/Qwen2.5-0.5B"
    )


def recipe_overrides(value: str) -> list[str]:
    """`recipe=method/model` -> the recipe's file, composed after the defaults and before the command line's values."""
    from reasonrl.config import ConfigError, nearest

    folder = folder_of("reasonrl.recipes")
    have = sorted(f"{f.parent.name}/{f.stem}" for f in folder.glob("*/*.yaml"))
    if value not in have:
        raise ConfigError(f"Unknown recipe '{value}'{nearest(value, have)}")
    group, name = value.split("/")
    return [f"hydra.searchpath=[file://{folder}]", f"+{group}={name}"]


def composed(args: Sequence[str]) -> DictConfig:
    """The configuration that the command line `args` would give; for the Python API. Raises ConfigError."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import open_dict

    from reasonrl.config import ConfigError

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("reasonrl.conf", version_base="1.3"):
            cfg = compose("train", overrides=translate(args))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def data(args: list[str]) -> int:
    from reasonrl.data.command import run

    try:
        return run(args)
    except KeyboardInterrupt:
        complain("interrupted; no file was left half written")
        return 130


def resumable(module: str) -> Callable[[list[str]], int]:
    """The command that `run` of a module is: stopped at any moment, it continues. Imported when it is asked for."""

    def command(args: list[str]) -> int:
        run = importlib.import_module(module).run
        return guarded(lambda: int(run(args)), bug=AGAIN, interrupted=AGAIN)

    return command


def judge(args: list[str]) -> int:
    from reasonrl.eval.judge.serve import run

    return guarded(lambda: run(args), bug="Nothing was lost but what was under way.", interrupted="the judge has ended")


def check(args: list[str]) -> int:
    from reasonrl.check import run

    return run(args)


def export(args: list[str]) -> int:
    from reasonrl.engine.verl.export import run

    return guarded(lambda: run(args))


RUN: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "eval": resumable("reasonrl.eval.command"),
    "data": data,
    "prefixes": resumable("reasonrl.prefixes"),
    "prm": resumable("reasonrl.eval.prm.command"),
    "judge": judge,
    "tts": resumable("reasonrl.eval.tts.command"),
    "optune": resumable("reasonrl.eval.tts.optune.command"),
    "tune": resumable("reasonrl.eval.tune.command"),
    "check": check,
    "export": export,
}

if __name__ == "__main__":
    sys.exit(main())
