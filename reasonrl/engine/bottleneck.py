"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751), and models that carry them.

    H hidden size, W = H / reduction width of an adapter

After attention and after the feed-forward network of each layer, before the residual connection: `h + up(relu(down(h)))`,
`down` (W, H) and `up` (H, W) with biases. `up` starts at 0, so that an untrained adapter changes nothing.

A relu between two matrices cannot be merged into the weights beside it, so such a model is a folder of its own shape:

    config.json          the base's, with KEY, which says that there are adapters and of which base
    adapter.safetensors  tokenizer files  tune.json
    base/                the base, unchanged

The base's weights lie deeper, so that what does not know adapters finds no model there, instead of the untrained one.

Why our own: peft 0.21 has no bottleneck between a layer's parts (its `shadow` is a network beside the model), and no release of
`adapters` up to 1.3.0 allows transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reasonrl.config import ConfigError
from reasonrl.models import BOTTLENECK as KEY
from reasonrl.models import bottleneck

BASE, WEIGHTS = "base", "adapter.safetensors"
PARTS = ("self_attn", "mlp")  # of a decoder layer
NAME = "bottleneck"  # of the adapter in its part
SPREAD = 0.02  # of the first weights of `down`


class Bottleneck(nn.Module):
    """Hidden states (..., H) -> (..., H)."""

    def __init__(self, hidden: int, width: int, *, noise: torch.Generator | None = None, **where: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width, **where), nn.Linear(width, hidden, **where)
        with torch.no_grad():
            if self.down.weight.device.type != "meta":
                drawn = torch.randn(width, hidden, generator=noise) * SPREAD
                self.down.weight.copy_(drawn)
            for weight in (self.down.bias, self.up.weight, self.up.bias):
                weight.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same shape and dtype."""
        inner = torch.relu(self.down(hidden.to(self.down.weight.dtype)))
        return hidden + self.up(inner).to(hidden.dtype)


def attach(model: Any, reduction: int, *, seed: int = 0, dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    """Put an adapter into both parts of every layer; returns their parameters. Raises ConfigError."""
    hidden = int(model.config.get_text_config().hidden_size)
    width = width_of(hidden, reduction)
    parts = [part for layer in _layers(model) for part in (getattr(layer, name) for name in PARTS)]
    if not parts:
        raise ConfigError(
            f"{type(model).__name__} has no layers with {' and '.join(PARTS)}, between which adapters go: choose another kind= "
            "or another model"
        )
    noise = torch.Generator().manual_seed(seed)
    made: list[nn.Parameter] = []
    for part in parts:
        like = next(part.parameters())
        adapter = Bottleneck(hidden, width, noise=noise, device=like.device, dtype=dtype or like.dtype)
        part.add_module(NAME, adapter)
        part.register_forward_hook(_adapted)
        made += adapter.parameters()
    return made


def width_of(hidden: int, reduction: int) -> int:
    """Of an adapter beside hidden states of this size. Raises ConfigError."""
    if hidden % reduction:
        raise ConfigError(f"reduction={reduction} does not divide the hidden size {hidden} of the model")
    return hidden // reduction


def _adapted(part: Any, _: Any, output: Any) -> Any:
    adapter = getattr(part, NAME)
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)


def _layers(model: Any) -> Iterator[nn.Module]:
    for module in model.modules():
        if all(isinstance(getattr(module, name, None), nn.Module) for name in PARTS):
            yield module


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapters' tensors by their names in the model."""
    return {name: value for name, value in model.state_dict().items() if f".{NAME}." in name}


def save_adapters(model: Any, file: Path) -> None:
    """Write them."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in adapter_state(model).items()}, file)


def read_adapters(model: Any, file: Path) -> None:
    """Read them into a model that has adapters. Raises ConfigError for a file of other ones."""
    from safetensors.torch import load_file

    found = load_file(file)
    own = adapter_state(model)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in found.items()}:
        raise ConfigError(f"{file} holds adapters of another model or another reduction: make the folder again")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(found[name])


def load_model(path: str, **how: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, and the same for a folder with adapters. Raises what that raises, ConfigError."""
    from transformers import AutoModelForCausalLM

    told = bottleneck(Path(path))
    if told is None:
        return AutoModelForCausalLM.from_pretrained(path, **how)
    folder = Path(path)
    model = AutoModelForCausalLM.from_pretrained(str(folder / BASE), **how)
    attach(model, int(told["reduction"]))
    read_adapters(model, folder / WEIGHTS)
    return model


__all__ = ["BASE", "KEY", "WEIGHTS", "Bottleneck", "attach", "load_model", "read_adapters", "save_adapters"]
