"""verl's own FSDP engine, registered for the CPU, and the process group it needs."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import verl.checkpoint_engine.base
import verl.utils.distributed
import verl.workers.engine_workers
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngine(FSDPEngineWithLMHead):
    """verl's engine without offloading."""

    def _build_fsdp_module(self, module: Any) -> Any:
        """Shard the module. verl offloads a reference policy to pinned host memory, which only exists beside a GPU."""
        configured = self.engine_config
        self.engine_config = replace(configured, forward_only=False, offload_policy=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = configured


def open_gloo_process_group(timeout_second: int | None = None, backend: str | None = None) -> None:
    """Open the global process group with gloo alone.

    verl always asks for `cpu:gloo,<device>:<backend>`, which is `cpu:gloo,cpu:gloo` here, and torch refuses a device
    named twice. No registry covers this, so the function is replaced where verl 0.9.1 looks it up.
    """
    if torch.distributed.is_initialized():
        return
    torch.distributed.init_process_group(
        backend="gloo",
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        timeout=timedelta(seconds=timeout_second) if timeout_second is not None else None,
        init_method=os.environ.get("DIST_INIT_METHOD"),
    )


for module in (verl.utils.distributed, verl.workers.engine_workers, verl.checkpoint_engine.base):
    module.initialize_global_process_group_ray = open_gloo_process_group
