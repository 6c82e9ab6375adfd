"""What every process that imports verl loads through the `verl.plugins` entry point, and what a run registers.

verl swallows a plug-in's import errors, so nothing heavy happens at import: the CPU platform, which must exist before
anything asks for the platform. `register` does the rest, and `registered` says what is in place; a run compares the
two on its driver and in a worker before a model is loaded.
"""

from __future__ import annotations

import os

from reasonrl.engine.verl.names import ROLLOUT_NAME, THREADS

ON_CPU = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"

if ON_CPU:
    import reasonrl.engine.verl.cpu.platform  # noqa: F401


def register() -> None:
    """Enter our classes into verl's registries. Safe to call again; imports verl's trainer, which takes seconds."""
    if ON_CPU:
        import torch

        import reasonrl.engine.verl.cpu.engine  # noqa: F401

        if os.environ.get(THREADS):
            torch.set_num_threads(int(os.environ[THREADS]))  # Ray gives an actor one
        from reasonrl.engine.verl.cpu.register import register_rollout

        register_rollout()
    else:
        from reasonrl.engine.attention import keep_from_cudnn

        keep_from_cudnn()  # without flash-attn, passes are padded and attention is PyTorch's


def registered() -> dict[str, str]:
    """What verl would use in this process: registry entry -> class. Compared between driver and worker."""
    from verl.plugin.platform import get_platform
    from verl.workers.engine import EngineRegistry
    from verl.workers.rollout.base import get_rollout_class

    found = {
        "platform": type(get_platform()).__name__,
        "engine": EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__,
    }
    if ON_CPU:
        found["rollout"] = get_rollout_class(ROLLOUT_NAME, "async").__name__
    return found


def expected() -> dict[str, str]:
    """What `registered` must return."""
    if ON_CPU:
        return {"platform": "PlatformCPU", "engine": "CPUEngine", "rollout": "CPUServerAdapter"}
    return {"platform": "PlatformCUDA", "engine": "FSDPEngineWithLMHead"}
