"""The model behind `model=`: an alias, a folder, a hub name, or a run of ours, whose checkpoint is merged on the fly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, nearest, package_path
from reasonrl.eval.settings import read_conf

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.data.prompts import Prompt

RUN_PROMPT = "run:"  # before the name of a prompt that is a run's own
ADAPTER = "lora_adapter"  # folder beside merged weights that lack it
SMALL_BYTES = (
    64 << 20
)  # of weights: below it a second thread makes nothing faster, and many processes slower (docs/log.md)


@dataclass(frozen=True)
class EvalModel:
    """A model, located; `ready` makes it one that can be loaded.

    path: folder or hub name. checkpoint: of a run, still to be merged. own: settings that it brings, as `resolve` takes
    them. prompt: behind `run:<name>`. small: meant for a CPU. threads: of torch, that it asks for.
    """

    name: str
    path: str
    trust_remote_code: bool = False
    checkpoint: Path | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    prompt: Prompt | None = None
    small: bool = False
    threads: int | None = None

    def load_tokenizer(self) -> Any:
        """The tokenizer. Raises ConfigError."""
        from reasonrl.engine.verl.launch import load_tokenizer

        return load_tokenizer(self._cfg())

    def check(self) -> None:
        """Raise ConfigError for a folder without a causal language model."""
        from reasonrl.models import check_model

        check_model(self._cfg(), adapters=True)

    def _cfg(self) -> Any:
        """As much of a run's configuration as those two look at. The lengths fit whatever the model."""
        model = SimpleNamespace(name=self.name, path=self.path, trust_remote_code=self.trust_remote_code)
        return SimpleNamespace(model=model, max_prompt_tokens=1, max_new_tokens=1)

    @property
    def folder(self) -> Path | None:
        """Where its files lie here; None for a hub model that is not in the local cache."""
        from reasonrl.models import cached_snapshot

        path = Path(package_path(self.path))
        return path if path.is_dir() else cached_snapshot(self.path)

    @property
    def context(self) -> int | None:
        """The longest sequence it reads; None when its configuration does not say."""
        from reasonrl.models import context, facts

        return None if self.folder is None else context(facts(self.folder))


def locate(given: str, *, trust_remote_code: bool = False) -> EvalModel:
    """What `model=` names. Raises ConfigError; imports no torch, downloads and merges nothing."""
    from reasonrl.cli import options

    aliases = [name for name in options("model") if name != "local"]
    if given in aliases:
        return _alias(given, trust_remote_code)
    path = Path(given).expanduser()
    if path.is_dir():
        return _from_run(path.absolute(), trust_remote_code) or _folder(path.absolute(), trust_remote_code)
    if given.count("/") == 1 and not given.startswith((".", "/", "~")) and not path.exists():
        return EvalModel(given.split("/")[1], given, trust_remote_code)
    raise ConfigError(
        f"Unknown model '{given}', and no such folder (here: {Path.cwd()}){nearest(given, aliases)}; or a folder, a run "
        "(runs/NAME), one of its checkpoints, or a hub name like Qwen/Qwen2.5-0.5B"
    )


def _alias(name: str, trust: bool) -> EvalModel:
    """A file of conf/model; of what it chooses beside the model, engine and prompt count here."""
    values: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    for layer in reversed(list(_chain(name))):
        for entry in layer.get("defaults") or []:
            if isinstance(entry, Mapping):
                chosen |= {str(key).removeprefix("override ").lstrip("/"): str(value) for key, value in entry.items()}
        values |= layer
    model = values.get("model") or {}
    return EvalModel(
        name,
        str(model["path"]),
        trust or bool(model.get("trust_remote_code", False)),
        own={"prompt": chosen["prompt"]} if "prompt" in chosen else {},
        small=chosen.get("engine") == "cpu",
        threads=(values.get("engine") or {}).get("threads"),
    )


def _chain(name: str) -> Iterator[dict[str, Any]]:
    """The file, then those it stands on."""
    layer = read_conf("model", name)
    yield layer
    for entry in layer.get("defaults") or []:
        if isinstance(entry, str) and entry != "_self_":
            yield from _chain(entry)


def _folder(path: Path, trust: bool) -> EvalModel:
    from reasonrl.models import facts, weight_files

    facts(path)  # raises: no Hugging Face model
    size = sum(file.stat().st_size for file in weight_files(path))
    return EvalModel(path.name, str(path), trust, threads=1 if 0 < size < SMALL_BYTES else None)


def _from_run(path: Path, trust: bool) -> EvalModel | None:
    """A run folder, or `global_step_N` of one, or its exported `huggingface`; None for any other folder."""
    from omegaconf import OmegaConf

    checkpoint = path.parent if path.name == "huggingface" and path.parent.name.startswith("global_step_") else path
    at_step = checkpoint.name.startswith("global_step_") and checkpoint.parent.name == "checkpoints"
    run = checkpoint.parents[1] if at_step else path
    if not ((run / "config.yaml").is_file() and (run / "checkpoints").is_dir()):
        return None
    from reasonrl.cli import options
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.export import locate as locate_checkpoint

    _, step = locate_checkpoint(checkpoint)  # raises: no complete checkpoint
    try:
        cfg = OmegaConf.load(run / "config.yaml")
        prompt = prompt_from_config(OmegaConf.to_container(cfg.prompt, resolve=True))  # type: ignore[arg-type]
        model, engine = cfg.model, cfg.engine
        shipped = prompt.name in options("prompt") and prompt_from_config(read_conf("prompt", prompt.name)) == prompt
        own = {
            "prompt": prompt.name if shipped else f"{RUN_PROMPT}{prompt.name}",
            "verify.answer_after": str(cfg.verify.answer_after),
        }
        if int(model.get("lora_rank") or 0) > 0:
            raise ConfigError(
                f"{run} trained a LoRA adapter (model.lora_rank={model.lora_rank}), which an export leaves beside the weights "
                f"it belongs to: merge it first (peft: PeftModel.from_pretrained(...).merge_and_unload(), with the folder "
                f"{ADAPTER} of `reasonrl export`) and give model=<merged folder>"
            )
        return EvalModel(
            f"{run.name}-step{step}",
            str(run / "checkpoints" / f"global_step_{step}"),
            trust or bool(model.get("trust_remote_code", False)),
            checkpoint=run / "checkpoints" / f"global_step_{step}",
            own=own,
            prompt=prompt,
            small=engine.device == "cpu",
            threads=engine.get("threads"),
        )
    except ConfigError:
        raise
    except Exception as error:  # YAML's, OmegaConf's and the prompt's own kinds
        raise ConfigError(
            f"{run / 'config.yaml'} is not that of a run ({(str(error).splitlines() or ['?'])[0]}): export the checkpoint "
            f"with `reasonrl export {checkpoint}` and give that folder"
        ) from error


def ready(model: EvalModel, console: Console) -> EvalModel:
    """The model as a folder in Hugging Face format, or a hub model in the local cache. Raises ConfigError."""
    from reasonrl.models import fetch

    if model.checkpoint is not None:
        from reasonrl.engine.verl.export import STAMP, export

        if not (model.checkpoint / "huggingface" / STAMP).is_file():
            if not os.access(model.checkpoint, os.W_OK):
                raise ConfigError(
                    f"{model.checkpoint} cannot be written, where its merged weights would go: `reasonrl export "
                    f"{model.checkpoint} OUT`, then model=OUT"
                )
            console.print(f"merging {model.checkpoint} ...")
        model = replace(model, path=str(export(model.checkpoint)))
    model.check()
    if Path(package_path(model.path)).is_dir():
        return model
    fetch(model.path)
    return model


def fingerprint(model: EvalModel) -> str:
    """Which model it is, whatever its folder is called."""
    from reasonrl.models import model_fingerprint

    return model_fingerprint(package_path(model.path))


def tuned_from(model: EvalModel) -> str | None:
    """The fingerprint of the model that `reasonrl tune` trained this one from; None for another."""
    from reasonrl.eval.tune.command import FILE

    file = Path(package_path(model.path)) / FILE
    try:
        return str(json.loads(file.read_text())["base"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
