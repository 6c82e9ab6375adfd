"""reasonrl: reinforcement learning of reasoning LLMs, every method a strategy on one engine.

Names are loaded on first use, so that `reasonrl --help` pays for none of them; only `train` is here at once, because the
module of the same name would take its place otherwise.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reasonrl.train import Run, train

if TYPE_CHECKING:
    from reasonrl.config import ConfigError, make_method
    from reasonrl.core import (
        Ledger,
        Loss,
        Memory,
        Method,
        Prefix,
        Problem,
        Request,
        Rollout,
        RolloutGroup,
        Shaped,
        assign_credit,
    )

HOMES = {
    "reasonrl.config": ("ConfigError", "make_method"),
    "reasonrl.core": (
        "Ledger",
        "Loss",
        "Memory",
        "Method",
        "Prefix",
        "Problem",
        "Request",
        "Rollout",
        "RolloutGroup",
        "Shaped",
        "assign_credit",
    ),
}
HOME = {name: module for module, names in HOMES.items() for name in names}

__all__ = [
    "ConfigError",
    "Ledger",
    "Loss",
    "Memory",
    "Method",
    "Prefix",
    "Problem",
    "Request",
    "Rollout",
    "RolloutGroup",
    "Run",
    "Shaped",
    "assign_credit",
    "make_method",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'reasonrl' has no attribute {name!r}")
    return getattr(import_module(HOME[name]), name)
