"""Whether a model can be trained here at all, and which one it is: before torch is imported and Ray is started."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, package_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WRITES_TEXT = ("CausalLM", "LMHead", "ConditionalGeneration")  # in the names of architectures
BOTTLENECK = "reasonrl_bottleneck"  # in config.json: a model that is a base with adapters, see engine/bottleneck.py
STRETCHES = ("linear", "dynamic", "yarn")  # rope types whose factor is not in max_position_embeddings yet


def check_model(cfg: DictConfig, *, adapters: bool = False) -> None:
    """Raise ConfigError for a folder without a causal language model that fits the run's lengths.

    A hub name passes: what the hub has is known when the tokenizer is loaded. adapters: whether a base with adapters may be.
    """
    path = package_path(cfg.model.path)
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
            raise ConfigError(
                f"no model folder {path} (here: {Path.cwd()}): give a folder, or a hub name like owner/model"
            )
        return
    check_facts(facts(folder), cfg)
    if not adapters:
        refuse_bottleneck(folder, "here")
    check_weights(folder)
    if not cfg.model.trust_remote_code and not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(
            f"model folder {folder} has no tokenizer (none of {', '.join(TOKENIZERS)}): copy the tokenizer's files from "
            "the model that it was made from"
        )


def facts(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder. Raises ConfigError."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"model folder {folder} has no config.json: not a Hugging Face model"
            + (f". It is a run: export a checkpoint, reasonrl export {folder}" if _is_run(folder) else "")
        )
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}): copy or download the model again") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise ConfigError(f"{file} names no model_type: not the configuration of a Hugging Face model")
    return found


def bottleneck(folder: Path) -> dict[str, Any] | None:
    """What a folder made by `reasonrl tune kind=adapter` says of its adapters; None for any other model."""
    if not (folder / "config.json").is_file():
        return None
    found = facts(folder).get(BOTTLENECK)
    return found if isinstance(found, dict) else None


def refuse_bottleneck(folder: Path, where: str) -> None:
    """Raise ConfigError for a model with adapters, which few can load."""
    if bottleneck(folder) is not None:
        raise ConfigError(
            f"model folder {folder} is a base with bottleneck adapters, which cannot be merged into its weights and cannot be "
            f"used {where}: `reasonrl eval` and `reasonrl tts` take it with backend=transformers; a model tuned with "
            "kind=lora, ia3, layer_norm or full goes everywhere"
        )


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def check_facts(found: Mapping[str, Any], cfg: DictConfig) -> None:
    """Raise ConfigError unless `config.json` says: writes text, and as many tokens as the run wants."""
    kinds = found.get("architectures") or []
    own_code = "AutoModelForCausalLM" in (found.get("auto_map") or {})
    if found.get("is_encoder_decoder") or (
        kinds and not own_code and not any(w in k for k in kinds for w in WRITES_TEXT)
    ):
        raise ConfigError(
            f"model {cfg.model.path} is a {', '.join(kinds) or found.get('model_type')}, not a causal language model: "
            "choose one whose config.json names a ...ForCausalLM"
        )
    limit, wanted = context(found), cfg.max_prompt_tokens + cfg.max_new_tokens
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"model {cfg.model.name} reads at most {limit} tokens, max_prompt_tokens={cfg.max_prompt_tokens} + "
            f"max_new_tokens={cfg.max_new_tokens} are {wanted}: lower one of them, or choose a model with a longer context"
        )


def context(found: Mapping[str, Any]) -> int | None:
    """The longest sequence a model reads; None when its configuration does not say."""
    text = found.get("text_config") or found
    limit = text.get("max_position_embeddings") or text.get("n_positions")
    if not isinstance(limit, int):
        return None
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in STRETCHES:
        origin = rope.get("original_max_position_embeddings") or limit
        return max(limit, int(origin * float(rope.get("factor") or 1)))
    return limit


def check_weights(folder: Path) -> None:
    """Raise ConfigError for weights that are missing or cut short."""
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    for index in (folder / name for name in INDEXES):
        if index.is_file():
            named = _shards(index)
            missing = sorted(name for name in named if not (folder / name).is_file())
            if missing:
                raise ConfigError(
                    f"model folder {folder} lacks {len(missing)} of {len(named)} weight files, {missing[0]} first: download "
                    "it again"
                )
    if not files:
        raise ConfigError(
            f"model folder {folder} has no weights ({' or '.join(WEIGHTS)}): copy or download them, or export a "
            "checkpoint again"
        )
    for file in files:
        if file.suffix == ".safetensors":
            parameters(file)


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is not an index of weight files: download the model again") from error


def parameters(file: Path) -> int:
    """Numbers in a safetensors file, from its header. Raises ConfigError for a file that is cut short."""
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(content.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{file} is no safetensors file, or one cut short: copy or download it again") from error
    if end > size:
        raise ConfigError(f"{file} is cut short: {size} bytes of {end}. Copy or download it again")
    count = 0
    for entry in tensors:
        numbers = 1
        for dimension in entry["shape"]:
            numbers *= dimension
        count += numbers
    return count


ENDS = 1 << 20  # bytes at each end of a weight file that are hashed


def model_fingerprint(path: str) -> str:
    """Which model this is, whatever its folder is called: a hash of config.json and of what its weight files end with.

    path: a folder or a hub name, which means its snapshot in the local cache. `hub-<name>@<commit>` when there are no
    weights to look at yet. Raises ConfigError for a folder that is no model.
    """
    folder = Path(path) if Path(path).is_dir() else cached_snapshot(path)
    if folder is None or not weight_files(folder):
        return f"hub-{path}@{folder.name if folder else 'main'}"
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            content.seek(max(size - ENDS, 0), os.SEEK_SET)
            digest.update(content.read())
    return f"files-{digest.hexdigest()}"


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are loaded from: those an index names, else safetensors, else PyTorch's.

    [] when some of those that an index names are missing.
    """
    indexes = [folder / name for name in INDEXES if (folder / name).is_file()]
    for index in indexes:
        files = sorted(folder / name for name in _shards(index))
        if all(file.is_file() for file in files):
            return files
    if indexes:
        return []
    return next((sorted(folder.glob(pattern)) for pattern in WEIGHTS if any(folder.glob(pattern))), [])


def cached_snapshot(name: str) -> Path | None:
    """Where the local cache of the hub keeps this model; None when it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def fetch(path: str) -> None:
    """Have a hub model's weights in the local cache, so that its fingerprint is theirs. Raises ConfigError."""
    if Path(path).is_dir():
        return
    from huggingface_hub import snapshot_download

    try:
        for pattern in WEIGHTS:
            if weight_files(Path(snapshot_download(path, allow_patterns=["*.json", pattern]))):
                return
    except Exception as error:  # no network, no such model, no permission: a dozen kinds
        cause = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"cannot download model {path}: is the name right? Without a network, download it elsewhere and give the folder: "
            f"model=<folder>. ({type(error).__name__}: {cause})"
        ) from error
    raise ConfigError(f"model {path} has no weights on the hub ({' or '.join(WEIGHTS)})")


def checkpoint_bytes(cfg: DictConfig) -> int:
    """What a checkpoint takes at least: float32 weights and, unless only an adapter is trained, AdamW's two moments.

    0 for a model that is not in a folder. With `verl.` overrides, which may lower the precision, only 2 bytes a number.
    """
    folder = Path(package_path(cfg.model.path))
    count = sum(parameters(file) for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    if cfg.verl:
        return 2 * count
    return (4 if cfg.model.lora_rank else 12) * count


def architecture(path: str) -> Any:
    """The modules of the model that lies there, from its configuration: no weight is read.

    None where the architecture is code of the model's own, which nothing before the model itself should run. Raises
    ConfigError for a configuration that no model can be made from.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(path)
        if hasattr(config, "auto_map") and type(config).__module__.startswith("transformers_modules"):
            return None
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the libraries behind it raise a dozen kinds
        if "trust_remote_code" in str(error):
            return None
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot read the architecture of model {path}: {type(error).__name__}: {line}") from error
    finally:
        logging.set_verbosity(before)
