"""What a sampling command is told: its own settings beside those of a run, and whether this machine can do it.

Imports nothing heavy: a mistake is told, and help printed, before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported in the functions: help needs none of it
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.runs.journal import Shard


def wants_help(args: Sequence[str]) -> bool:
    """Whether these arguments ask for the help text; no argument does too."""
    return not args or any(arg in ("-h", "--help", "help") for arg in args)


def parse(
    args: Sequence[str], *, command: str, own: Sequence[str], elsewhere: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The command's own settings, and the arguments that a run composes. Raises ConfigError.

    own: keys of the command. elsewhere: keys of a run that would not do here what they say, and what to say of them.
    """
    from reasonrl.cli import check_key
    from reasonrl.config import ConfigError

    found: dict[str, str] = {}
    rest = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or arg.startswith(("-", "~")):
            raise ConfigError(f"'{arg}' is not key=value; {command} --help lists the keys")
        if key in elsewhere:
            raise ConfigError(f"{key}= {elsewhere[key]}")
        if key in own:
            if not value:
                raise ConfigError(f"{key}= is empty: give a value, or leave {key}= out")
            found[key] = value
        else:
            if key != "recipe":
                check_key(key, also=own)
            rest.append(arg)
    return found, rest


def composed_run(args: Sequence[str]) -> DictConfig:
    """The configuration of the run that these arguments would give. Raises ConfigError."""
    from reasonrl.cli import UsageError, composed, refuse_several, translate
    from reasonrl.config import ConfigError

    try:
        refuse_several(translate(args), sweep="this command makes one store")
        return composed(args)
    except UsageError as error:
        raise ConfigError(str(error)) from error


def whole_number(name: str, text: str, least: int = 1) -> int:
    """A whole number of at least `least`. Raises ConfigError."""
    from reasonrl.config import ConfigError

    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)


def checked(cfg: DictConfig, n: int, *, what: str, command: str) -> DictConfig:
    """The configuration, typed. Raises ConfigError for what cannot be sampled from; imports no torch.

    n: answers a problem. what: what is sampled, in the plural, for messages.
    """
    from reasonrl.config import ConfigError, typed
    from reasonrl.models import check_model
    from reasonrl.runs.provenance import gpus
    from reasonrl.train import check_nodes

    if cfg.engine.name == "cluster":
        raise ConfigError(
            f"engine=cluster: {what} are sampled without Ray. On each machine use engine=gpu and a shard of its own, "
            f"shard=0/2 and shard=1/2 for two of them; {command} --help says how the parts come together"
        )
    cfg = typed(cfg)
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    check_nodes(cfg)
    check_model(cfg)
    if cfg.engine.device == "cpu":
        return cfg
    if cfg.engine.rollout != "vllm":
        raise ConfigError(f"engine.rollout={cfg.engine.rollout}: {what} are sampled with vllm, or with engine=cpu")
    have = len(gpus())
    if not have:
        raise ConfigError("engine=gpu and no NVIDIA GPU found (nvidia-smi lists none): use engine=cpu, or a GPU host")
    if cfg.engine.tensor_parallel > have:
        raise ConfigError(f"engine.tensor_parallel={cfg.engine.tensor_parallel} but this machine has {have} GPUs")
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine=gpu samples with vllm, which is not installed: pip install 'reasonrl[gpu]', or engine=cpu"
        )
    return cfg


def tell_idle_gpus(cfg: DictConfig, part: Shard, console: Console) -> None:
    """Say how to use the GPUs that this process leaves alone."""
    from reasonrl.runs.provenance import gpus

    have, used = len(gpus()), cfg.engine.tensor_parallel
    if cfg.engine.device != "cpu" and part.of == 1 and have >= 2 * used:
        console.print(
            f"{used} of {have} GPUs (engine.tensor_parallel): to use all, CUDA_VISIBLE_DEVICES=... and shard=i/{have // used}"
        )


def given_again(asked: Sequence[str], cfg: DictConfig, own: Sequence[str]) -> list[str]:
    """The arguments that name the same model and data to another command, without the settings `own` of this one."""
    from reasonrl.cli import options

    if asked:
        return [arg for arg in asked if arg.partition("=")[0] not in own]
    return [
        f"model={cfg.model.name if cfg.model.name in options('model') else cfg.model.path}",
        f"data={cfg.data.name}",
    ]


def line(*words: str) -> str:
    """A command line of reasonrl, as a shell reads it."""
    return shlex.join(["reasonrl", *words])
