"""What is sampled: the problems of a split with the prompts of training, and the settings that answers follow from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported in the functions: whoever only prints help needs none of it
    from omegaconf import DictConfig

    from reasonrl.data.problems import Loaded

SPLITS = {"train": "train", "validation": "val"}  # as a person calls it -> as `reasonrl.data.prepare.build` does


@dataclass(frozen=True)
class Asked:
    """Problems, ready to be sampled."""

    tokenizer: Any
    loaded: Loaded
    settings: dict[str, Any]  # everything that a model's answers to them follow from
    about: dict[str, Any]  # names, for people

    @property
    def dropped(self) -> str:
        """What was left out, to be told after the number of problems."""
        count = self.loaded.dropped_too_long
        return f" ({count} prompts over max_prompt_tokens dropped)" if count else ""


def asked_problems(cfg: DictConfig, n: int, *, split: str = "train") -> Asked:
    """Tokenizer and problems; a hub model is downloaded. Raises ConfigError."""
    from reasonrl.config import ConfigError, package_path
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.launch import load_tokenizer
    from reasonrl.models import fetch

    tokenizer = load_tokenizer(cfg)
    try:
        loaded, data_sha256 = load_split(cfg, tokenizer, split)
        prompt = prompt_from_config(cfg.prompt)
    except ValueError as error:  # DataError and friends say what, where and the way out
        raise ConfigError(str(error)) from error
    fetch(package_path(cfg.model.path))
    about = {"model": cfg.model.name, "path": cfg.model.path, "data": cfg.data.name, "prompt": prompt.name}
    return Asked(tokenizer, loaded, settings(cfg, n, tokenizer, len(loaded), data_sha256), about)


def load_split(cfg: DictConfig, tokenizer: Any, split: str) -> tuple[Loaded, str]:
    """As a run loads them, and the sha256 of the rows they come from. Raises DataError."""
    from reasonrl.data.items import DataError
    from reasonrl.data.prepare import build
    from reasonrl.data.problems import load
    from reasonrl.data.prompts import prompt_from_config

    with tempfile.TemporaryDirectory(prefix="reasonrl-sampled-") as scratch:
        try:
            report = build(cfg.data, Path(scratch), train=split == "train")[SPLITS[split]]
            loaded = load(
                report.path,
                prompt_from_config(cfg.prompt),
                tokenizer,
                max_prompt_tokens=cfg.max_prompt_tokens,
                overlong=cfg.data.get("overlong", "drop"),
                solutions=False,
            )
        except DataError as error:
            raise DataError(str(error).replace(f"{scratch}/", "")) from error  # nobody can look there
    return loaded, report.sha256


def settings(cfg: DictConfig, n: int, tokenizer: Any, problems: int, data_sha256: str) -> dict[str, Any]:
    """Everything that n judged answers a problem depend on; a store is continued with the same ones only."""
    from reasonrl.config import package_path
    from reasonrl.data.prefixes import prompt_facts, tokenizer_fingerprint
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.models import model_fingerprint
    from reasonrl.verify.pool import verify_from_config

    return {
        "model": model_fingerprint(package_path(cfg.model.path)),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": data_sha256,
        "problems": problems,
        **prompt_facts(prompt_from_config(cfg.prompt), tokenizer),
        **{f"verify.{name}": value for name, value in verify_from_config(cfg.verify).comparable.items()},
        "engine": cfg.engine.device,
        "n": n,
        **{name: cfg[name] for name in ("seed", "temperature", "top_p", "top_k")},
        **{name: cfg[name] for name in ("max_prompt_tokens", "max_new_tokens")},
    }
