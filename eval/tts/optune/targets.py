"""Which weight matrices are edited: the linear layers of a model by name and by layer, whatever its architecture.

`targets=q_proj+v_proj layers=-2+-1`: names are the last part of a module's name, layers are counted from 0 or, below 0, from
the last one. Shapes are those of the modules, read from the model's configuration alone when no weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.models import architecture

if TYPE_CHECKING:
    from torch import nn

NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Matrix:
    """A linear layer. name: of its module, `model.layers.30.self_attn.q_proj`."""

    name: str
    outputs: int
    inputs: int

    @property
    def shape(self) -> str:
        """What matrices that share an editor have in common."""
        return f"{self.outputs}x{self.inputs}"


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of a model that stand in a numbered layer, by name. Quantised ones are none."""
    from torch import nn

    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and NUMBER.search(f"{name}.") and "lora_" not in name
    }


def matrices(model: nn.Module) -> list[Matrix]:
    """The same as shapes."""
    return [Matrix(name, each.out_features, each.in_features) for name, each in linears(model).items()]


def chosen(have: Sequence[Matrix], targets: Sequence[str], layers: Sequence[int]) -> list[Matrix]:
    """Those that the settings name, layer by layer. Raises ConfigError listing what there is."""
    count = 1 + max((_layer(each) for each in have), default=-1)
    names = sorted({_last(each) for each in have})
    if not have:
        raise ConfigError("the model has no linear layers (torch.nn.Linear) in numbered layers: it cannot be edited")
    unknown = [name for name in targets if name not in names]
    if unknown:
        raise ConfigError(
            f"targets: the model has no linear layer {' or '.join(unknown)}; there are {', '.join(names)}"
        )
    outside = [layer for layer in layers if not -count <= layer < count]
    if outside:
        raise ConfigError(f"layers: {outside[0]} is none of the model's {count} layers, 0..{count - 1} or -{count}..-1")
    wanted = {layer % count for layer in layers}
    found = [each for each in have if _last(each) in targets and _layer(each) in wanted]
    if not found:
        raise ConfigError(
            f"no layer among {', '.join(map(str, sorted(wanted)))} has {' or '.join(targets)}: choose other layers="
        )
    return sorted(found, key=_layer)


def modules(model: nn.Module, wanted: Sequence[Matrix], where: str) -> list[nn.Linear]:
    """The layers of these matrices. Raises ConfigError when one is missing or of another shape."""
    have = linears(model)
    require_shapes(matrices(model), wanted, where)
    return [have[each.name] for each in wanted]


def require_shapes(have: Sequence[Matrix], wanted: Sequence[Matrix], where: str) -> None:
    """Raise ConfigError unless a model has all these matrices in these shapes. where: what wants them."""
    shapes: Mapping[str, Matrix] = {each.name: each for each in have}
    for each in wanted:
        there = shapes.get(each.name)
        if there is None:
            raise ConfigError(f"{where} edits {each.name}, which this model lacks: it was trained for another model")
        if there != each:
            raise ConfigError(
                f"{where} edits {each.name} of shape {each.shape}, and this model's has {there.shape}: it was trained for "
                "another model"
            )


def matrices_of(path: str) -> list[Matrix] | None:
    """Those of the model that lies there, from its configuration: no weight is read.

    None where the architecture is code of the model's own, which nothing before the model itself should run.
    Raises ConfigError for a configuration that no model can be made from.
    """
    model = architecture(path)
    return None if model is None else matrices(model)


def _layer(matrix: Matrix) -> int:
    found: Any = NUMBER.search(f"{matrix.name}.")
    return int(found[1])


def _last(matrix: Matrix) -> str:
    return matrix.name.rpartition(".")[2]
