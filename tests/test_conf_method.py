"""Methods composed by Hydra: part groups land in their slot, YAML repeats the factories' defaults."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import reasonrl.conf
from reasonrl.core import SLOTS, Method, load_factory, make

hydra = pytest.importorskip("hydra")
CONF = Path(reasonrl.conf.__file__).parent / "method"
METHODS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "custom")
CHOICES = sorted((slot, path.stem) for slot in SLOTS for path in (CONF / slot).glob("*.yaml") if path.stem != "own")


def composed(*overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_module("reasonrl.conf", version_base=None):
        config = hydra.compose(overrides=list(overrides))
        from omegaconf import OmegaConf

        resolved: Any = OmegaConf.to_container(config.method, resolve=True)
        return resolved


def built(*overrides: str) -> Method:
    knobs = composed(*overrides)
    knobs |= {slot: hydra.utils.instantiate(knobs[slot]) for slot in SLOTS if knobs[slot] is not None}
    return make(load_factory(knobs.pop("_target_")), knobs)


@pytest.mark.parametrize("name", METHODS)
def test_yaml_and_factory_have_the_same_knobs_and_defaults(name) -> None:
    knobs = composed(f"+method={name}")
    factory = load_factory(knobs.pop("_target_"))
    assert knobs == {n: p.default for n, p in inspect.signature(factory).parameters.items()}
    assert built(f"+method={name}") == factory()


@pytest.mark.parametrize("name", METHODS)
def test_hydras_own_instantiate_builds_the_same(name) -> None:
    with hydra.initialize_config_module("reasonrl.conf", version_base=None):
        method = hydra.utils.instantiate(hydra.compose(overrides=[f"+method={name}"]).method)
    assert method == built(f"+method={name}")


TOGETHER = ("method/prefix=step_probes", "method/advantage=step_advantage")  # neither goes without the other


@pytest.mark.parametrize(("slot", "choice"), CHOICES)
@pytest.mark.filterwarnings("ignore:.*add method/difficulty=batch_relative")
def test_every_part_lands_in_its_slot_with_its_own_defaults(slot, choice) -> None:
    chosen = f"method/{slot}={choice}"
    arguments = ["+method=grpo", *(TOGETHER if chosen in TOGETHER else [chosen])]
    node = composed(*arguments)[slot]
    module, _, name = node["_target_"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    assert getattr(built(*arguments), slot) == kind()


def test_parts_recombine_on_the_command_line() -> None:
    method = built("+method=deepcompress", "method/advantage=rloo", "method/overlong=none", "method.alpha=0.5")
    assert [part.split("=")[1] for part in method.signature] == [
        "Plain",
        "BatchRelative",
        "DualLength",
        "RLOO",
        "NoOverlong",
    ]
    assert method.reward.alpha == 0.5  # type: ignore[attr-defined]


def test_a_plain_prefix_follows_the_methods_n() -> None:
    assert built("+method=deepcompress", "method/prefix=plain").prefix.n == 16
    assert built("+method=grpo", "method/prefix=plain", "method.n=5").prefix.n == 5


def tiny_factory(*, rollouts: int = 2) -> Method:
    from reasonrl.parts.prefix import Plain

    return Method("tiny", prefix=Plain(rollouts))


def test_a_custom_factory_needs_no_yaml() -> None:
    target = f"method._target_={__name__}.tiny_factory"
    assert built("+method=custom", target, "+method.rollouts=3").prefix.n == 3
    assert type(built("+method=custom", target, "method/advantage=rloo").advantage).__name__ == "RLOO"
    with pytest.raises(ValueError, match=r"no knob 'rollout'\. Did you mean rollouts\?"):
        built("+method=custom", target, "+method.rollout=3")


def test_every_folder_of_the_method_groups_is_a_package() -> None:
    assert all((folder / "__init__.py").exists() for folder in [CONF, *(CONF / slot for slot in SLOTS)])
