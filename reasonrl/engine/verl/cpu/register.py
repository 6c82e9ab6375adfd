"""Enters the CPU rollout into verl's two rollout registries."""

from __future__ import annotations

from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from reasonrl.engine.verl.names import ROLLOUT_NAME


def _load() -> type:
    from reasonrl.engine.verl.cpu.rollout import CPUReplica

    return CPUReplica


def register_rollout() -> None:
    """Both registries are needed: the replica on the driver, the server adapter in the training process."""
    RolloutReplicaRegistry.register(ROLLOUT_NAME, _load)
    _ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "reasonrl.engine.verl.cpu.rollout.CPUServerAdapter"
