"""Which weights are trained: all of them, or few, by kept libraries (peft) where they have the kind.

full        all weights
lora        low-rank matrices beside q_proj and v_proj of the upper quarter of the layers
ia3         a factor for each output of k_proj and v_proj and each input of down_proj
layer_norm  the gains of all norms
adapter     a bottleneck after attention and after the feed-forward network of every layer (engine/bottleneck.py)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError

if TYPE_CHECKING:
    from reasonrl.eval.tune.command import TuneKnobs

LR: Mapping[str, float] = {"full": 1e-5, "lora": 2e-5, "adapter": 1e-4, "ia3": 5e-5, "layer_norm": 4e-4}
LORA_PARTS = ("q_proj", "v_proj")
IA3_PARTS, IA3_INPUTS = ("k_proj", "v_proj", "down_proj"), ("down_proj",)
UPPER = 0.75  # LoRA begins at this share of the layers: 24 of 32


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model of which some weights are trained. model: what is called. peft: whether it is peft's."""

    model: Any
    peft: bool

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)


def tuned(model: Any, knobs: TuneKnobs) -> Tuned:
    """The model, ready to be trained in one of the kinds. Raises ConfigError for one that lacks what the kind trains."""
    if knobs.kind == "full":
        return Tuned(model, peft=False)
    model.requires_grad_(False)
    if knobs.kind == "adapter":
        import torch

        from reasonrl.engine.bottleneck import attach

        for weight in attach(model, knobs.reduction, seed=knobs.seed, dtype=torch.float32):
            weight.requires_grad_(True)
        return Tuned(model, peft=False)
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ConfigError(f"kind={knobs.kind} needs peft, which is not installed: pip install peft") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of norms it says that they are no linear layers
        made = Tuned(get_peft_model(model, peft_config(model, knobs)), peft=True)
    for weight in made.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # in bfloat16 most of its small steps would be rounded away
    return made


def peft_config(model: Any, knobs: TuneKnobs) -> Any:
    """peft's configuration of a kind. Raises ConfigError."""
    from peft import IA3Config, LNTuningConfig, LoraConfig

    if knobs.kind == "lora":
        require_parts(model, LORA_PARTS, knobs.kind)
        layers = int(model.config.get_text_config().num_hidden_layers)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=knobs.rank,
            lora_alpha=knobs.alpha,
            lora_dropout=knobs.dropout,
            target_modules=list(LORA_PARTS),
            layers_to_transform=upper_layers(layers, knobs.layers),
        )
    if knobs.kind == "ia3":
        require_parts(model, IA3_PARTS, knobs.kind)
        return IA3Config(task_type="CAUSAL_LM", target_modules=list(IA3_PARTS), feedforward_modules=list(IA3_INPUTS))
    norms = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
    if not norms:
        raise ConfigError(f"kind={knobs.kind}: {type(model).__name__} has no norms: choose another kind=")
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=norms)


def check_sizes(found: Mapping[str, Any], knobs: TuneKnobs) -> None:
    """Raise ConfigError where a kind does not fit what the model's config.json says of its sizes."""
    from reasonrl.engine.bottleneck import width_of

    sizes = found.get("text_config") or found
    layers, hidden = sizes.get("num_hidden_layers"), sizes.get("hidden_size")
    if knobs.kind == "lora" and layers is not None:
        upper_layers(int(layers), knobs.layers)
    if knobs.kind == "adapter" and hidden is not None:
        width_of(int(hidden), knobs.reduction)


def upper_layers(layers: int, given: Sequence[int] | None) -> list[int]:
    """The layers that LoRA trains, the upper quarter unless told. Raises ConfigError."""
    if given is None:
        return list(range(int(layers * UPPER), layers))
    if not all(0 <= layer < layers for layer in given):
        raise ConfigError(f"layers={','.join(map(str, given))}: the model has layers 0 to {layers - 1}")
    return sorted(set(given))


def require_parts(model: Any, parts: Sequence[str], kind: str) -> None:
    """Raise ConfigError for a model without linear layers of these names."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [part for part in parts if part not in names]
    if missing:
        raise ConfigError(
            f"kind={kind} trains {', '.join(parts)}, and {type(model).__name__} has no {', '.join(missing)}: choose another "
            "kind= (full, layer_norm), or a model built like Llama"
        )
