"""From a trained model to a folder that loads like any other, read back and compared before it gets its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError, RunFailed

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from reasonrl.eval.tune.command import Job
    from reasonrl.eval.tune.kinds import Tuned

SCHEMA = 1
COMPARED = 4  # solutions that the folder is read on
MOST_TOKENS = 512  # of each
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}  # largest difference of logits, as a share of the largest logit


def publish(job: Job, tuned: Tuned, history: Sequence[Mapping[str, Any]], device: str, console: Console) -> None:
    """Write weights, tokenizer and tune.json beside `out`, read them back, compare, rename.

    Raises RunFailed when the folder answers otherwise than what was trained, ConfigError when it cannot be written.
    """
    import torch

    from reasonrl.engine.bottleneck import load_model
    from reasonrl.eval.tune.command import FILE
    from reasonrl.runs.files import write_text
    from reasonrl.runs.provenance import git_state, versions

    knobs = job.knobs
    name = knobs.dtype if knobs.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
    wanted = logits_of(tuned.model, job)
    trainable, parameters = tuned.trainable, tuned.model.num_parameters()
    scratch = job.out.with_name(f".{job.out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if knobs.kind == "adapter":
        write_adapters(tuned.model, job, scratch)
    else:
        plain = tuned.model.merge_and_unload() if tuned.peft else tuned.model
        plain.config.use_cache = True
        plain.to(getattr(torch, name)).save_pretrained(str(scratch), safe_serialization=True)
    job.tokenizer.save_pretrained(str(scratch))
    again = load_model(
        str(scratch), dtype=getattr(torch, name), use_safetensors=True, trust_remote_code=job.trust_remote_code
    )
    apart = difference(wanted, logits_of(again.to(tuned.model.device), job))
    if not apart <= ROUNDING[name]:
        raise RunFailed(
            f"the folder {scratch} answers otherwise than the model that was trained (logits differ by {apart:.2g} of the "
            f"largest, more than rounding to {name}): this is a fault of merging, please report it"
        )
    losses = [{"step": row["step"], "loss": row["loss"]} for row in history if "loss" in row]
    about = {
        "schema": SCHEMA,
        "kind": knobs.kind,
        "base": {"name": job.name, "path": job.path, "fingerprint": job.settings["base"]},
        "trainable": trainable,
        "parameters": parameters,
        "settings": job.settings,
        "data": job.data,
        "dtype": name,
        "rounding": {"largest_logit_difference": apart, "allowed": ROUNDING[name]},
        "losses": losses,
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }
    write_text(scratch / FILE, json.dumps(about, indent=1) + "\n")
    for file in scratch.rglob("*"):
        if file.is_file():
            with file.open("rb") as content:
                os.fsync(content.fileno())  # before the name is there, so that no power cut leaves a hollow folder
    try:
        scratch.rename(job.out)
    except OSError as error:
        raise ConfigError(f"cannot publish {job.out} ({error.strerror}): the model is in {scratch}") from error
    console.print(f"model in {job.out}; read back, its logits differ by {apart:.1e} of the largest ({name})")


def write_adapters(model: Any, job: Job, folder: Path) -> None:
    """A folder as in `reasonrl.engine.bottleneck`."""
    from reasonrl.engine.bottleneck import BASE, KEY, WEIGHTS, save_adapters
    from reasonrl.eval.tune.command import model_folder
    from reasonrl.models import INDEXES, weight_files

    source = model_folder(job.path)
    assert source is not None
    (folder / BASE).mkdir()
    names = ("config.json", "generation_config.json", *INDEXES, *(file.name for file in weight_files(source)))
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / BASE / name)
    config = json.loads((source / "config.json").read_text())
    config[KEY] = {"reduction": job.knobs.reduction, "base": job.settings["base"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    save_adapters(model, folder / WEIGHTS)


def logits_of(model: Any, job: Job) -> list[torch.Tensor]:
    """Of the first few solutions (T, V), float32 on the CPU."""
    import torch

    was = model.training
    model.eval()
    # as in training: beside weights in bfloat16 those that are trained are float32
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=job.knobs.weights == "bfloat16")
    with torch.inference_mode(), mixed:
        found = []
        for each in job.targets.train[:COMPARED]:
            ids = torch.from_numpy(each.ids[:MOST_TOKENS].astype("int64"))[None].to(model.device)
            found.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    model.train(was)
    return found


def difference(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """The largest, as a share of the largest logit."""
    apart = max(float((a - b).abs().max()) for a, b in zip(wanted, got, strict=True))
    return apart / max(max(float(a.abs().max()) for a in wanted), 1e-9)
