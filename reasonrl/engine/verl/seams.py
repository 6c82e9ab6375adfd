"""Every attribute of verl that reasonrl overrides, calls, replaces or mirrors, with the signature and source it was built on.

verl promises no stable extension API, so an upgrade must fail here, by name, and not in the middle of a run.
`python -m reasonrl.engine.verl.seams` prints the table of the installed version, to paste after the code was adapted.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

VERSIONS = ("0.9.1",)  # versions of verl this table was read from


@dataclass(frozen=True)
class Seam:
    """`module:Class.attribute`, what we do with it, its parameters, and a digest of its source."""

    path: str
    use: str
    parameters: str
    digest: str


SEAMS: tuple[Seam, ...] = (
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer.__init__", "extend", "self, config", "6f938d77859b"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer.fit", "run", "self, agent_loop_manager", "7d83a81c2e62"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer.step", "run", "self, metrics, timing_raw", "e22f53aadb78"),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._step_once",
        "run",
        "self, metrics, timing_raw, sample_batch_size",
        "efdd4abe161c",
    ),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._build_replay_buffer", "extend", "self", "c6c5bd078331"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._init_dataloader", "extend", "self", "86cf3749e087"),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._next_train_batch",
        "override",
        "self, num_prompts=None",
        "0a5487478c0e",
    ),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._submit_batch_to_rollout", "run", "self, batch", "333cd2695778"),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_advantage",
        "override",
        "self, batch, metrics",
        "2a4a2aa4a475",
    ),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_old_log_prob",
        "run",
        "self, batch, metrics",
        "b2630e6178ed",
    ),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._balance_batch",
        "run",
        "self, batch, metrics, logging_prefix='global_seqlen', keep_minibatch=False",
        "f9b6e887d750",
    ),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._update_actor", "run", "self, batch, metrics", "d7009bd8a69d"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._validate", "extend", "self", "f1d58a70e91d"),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._val_metrics_update",
        "extend",
        "self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None",
        "8cecd418b501",
    ),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._save_checkpoint", "defer", "self", "8c2435b577e5"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer._load_checkpoint", "run", "self", "bb446d77c48a"),
    Seam(
        "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics",
        "extend",
        "self, batch, metrics, timing_raw, global_steps, epoch",
        "9c5c55578788",
    ),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_step_begin", "override", "self", "325efc0715cf"),
    Seam("verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_train_begin", "override", "self", "975efb02e89f"),
    Seam("verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_init_end", "extend", "self", "0cc759a56864"),
    Seam("verl.trainer.ppo.v1.trainer_base:register_trainer", "call", "name", "40ec333837ab"),
    Seam(
        "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.__init__",
        "run",
        "self, trainer_mode, trainer_config, max_off_policy_threshold, max_off_policy_strategy, sampler_kwargs, poll_interval=2.0, refill_fn=None, filter_groups_metric=None, train_batch_size=None, gen_batch_size=None, max_inflight_gen_batches=1, sync_refill_failed_groups=False",
        "0c37a4862999",
    ),
    Seam(
        "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.sample",
        "override",
        "self, global_steps, partition_id, batch_size",
        "cdcecebeb7f0",
    ),
    Seam(
        "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._sync_metadata_from_transfer_queue",
        "extend",
        "self",
        "489dc320fdce",
    ),
    Seam(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.generate_sequences",
        "extend",
        "self, batch, _ray_trace_ctx=None",
        "4d7178988eae",
    ),
    Seam(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ._run_prompt",
        "override",
        "self, prompt, sampling_params, trajectory, trace=False, _ray_trace_ctx=None",
        "3d9bca6b0ea5",
    ),
    Seam(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ._agent_loop_postprocess",
        "mirror the columns of",
        "self, output, validate, _ray_trace_ctx=None, **kwargs",
        "523edacbff73",
    ),
    Seam(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ.__init__",
        "extend",
        "self, *args, **kwargs",
        "9f1e99d66170",
    ),
    Seam("verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ.create", "call", "*args, **kwargs", "95eb51e39507"),
    Seam(
        "verl.experimental.agent_loop.agent_loop:AgentLoopWorker.__init__",
        "extend",
        "self, config, llm_client, teacher_client=None, reward_loop_worker_handles=None",
        "822826272199",
    ),
    Seam(
        "verl.workers.rollout.llm_server:LLMServerClient.generate",
        "call",
        "self, request_id, prompt_ids, sampling_params, image_data=None, video_data=None, audio_data=None, mm_processor_kwargs=None, **kwargs",
        "45f4cf4029f0",
    ),
    Seam("verl.workers.utils.losses:ppo_loss", "call", "config, model_output, data, dp_group=None", "d7c0f8772b44"),
    Seam("verl.workers.utils.padding:no_padding_2_padding", "call", "tensor, data", "0868d5c4731b"),
    Seam("verl.workers.utils.padding:response_to_nested", "call", "tensor, response_mask", "a2272158cd69"),
    Seam("verl.workers.engine_workers:ActorRolloutRefWorker.set_loss_fn", "call", "self, loss_fn", "a655a9cfc08a"),
    Seam(
        "verl.workers.engine_workers:ActorRolloutRefWorker.update_weights",
        "serve",
        "self, global_steps=None, mode='auto'",
        "ea8f2ec1eb8a",
    ),
    Seam(
        "verl.utils.distributed:initialize_global_process_group_ray",
        "replace (CPU)",
        "timeout_second=None, backend=None",
        "761a94d1a2e0",
    ),
    Seam(
        "verl.workers.engine.base:EngineRegistry.register",
        "call",
        "model_type, backend, device='cuda', vendor=None",
        "6fd795c7149c",
    ),
    Seam("verl.workers.engine.base:EngineRegistry.get_engine_cls", "call", "model_type, backend", "b1290dce7fd3"),
    Seam(
        "verl.workers.rollout.replica:RolloutReplica",
        "subclass (CPU)",
        "replica_rank, config, model_config, gpus_per_node=8, is_reward_model=False, is_teacher_model=False, name_suffix=''",
        "5983e713558c",
    ),
    Seam("verl.workers.rollout.replica:RolloutReplicaRegistry.register", "call", "name, loader", "283ce5dd7be7"),
    Seam(
        "verl.workers.rollout.replica:TokenOutput",
        "return",
        "token_ids, log_probs=None, routed_experts=None, stop_reason=None, num_preempted=None, extra_fields={}",
        "56b095a183b7",
    ),
    Seam(
        "verl.workers.rollout.base:BaseRollout",
        "subclass (CPU)",
        "config, model_config, device_mesh, *args, **kwargs",
        "05c01b83ca41",
    ),
    Seam("verl.workers.rollout.base:_ROLLOUT_REGISTRY", "write into", "", ""),
    Seam("verl.plugin.platform.platform_base:PlatformBase", "subclass (CPU)", "", "a521d0ace428"),
    Seam("verl.plugin.platform.platform_manager:PlatformRegistry.register", "call", "platform", "81bf1fb5c8ae"),
    Seam("verl.trainer.main_ppo:TaskRunnerV1.run", "mirror", "self, config, _ray_trace_ctx=None", "26be986901db"),
    Seam("verl.trainer.main_ppo:run_ppo", "mirror", "config, task_runner_class", "a65eddb189e5"),
    Seam("verl.trainer.constants_ppo:get_ppo_ray_runtime_env", "call", "config=None", "188809cee31d"),
    Seam(
        "verl.trainer.ppo.rollout_corr_helper:compute_rollout_correction_and_add_to_batch",
        "call",
        "batch, rollout_corr_config",
        "6b7d1d5f4b79",
    ),
    Seam(
        "verl.trainer.ppo.padding_utils:construct_minimal_padding_template",
        "undo the copied records of",
        "source_td, source_tag, eos_token_id",
        "31f96671a074",
    ),
    Seam("verl.utils.config:validate_config", "call", "config, use_reference_policy, use_critic", "ab4096deecfe"),
    Seam("verl.utils.config:omega_conf_to_dataclass", "call", "config, dataclass_type=None", "39fe5df6274a"),
    Seam(
        "verl.utils.tracking:Tracking.__init__",
        "run",
        "self, project_name, experiment_name, default_backend='console', config=None",
        "dfd601439125",
    ),
    Seam("verl.model_merger.fsdp_model_merger:FSDPModelMerger.merge_and_save", "call", "self", "5c103d1cb1e4"),
    Seam(
        "verl.model_merger.base_model_merger:ModelMergerConfig",
        "call",
        "operation, backend, target_dir='tmp', hf_upload_path=None, private=False, test_hf_dir=None, tie_word_embedding=False, trust_remote_code=False, is_value_model=False, local_dir=None, hf_model_config_path=None, use_cpu_initialization=False",
        "b746e7ee9c6c",
    ),
)


class SeamDrift(RuntimeError):
    """verl is not the version this package was written for. The message names every attribute that differs."""


def resolve(path: str) -> Any:
    """The object at `module:Class.attribute`; a Ray actor class stands for the class it wraps."""
    module, _, attributes = path.partition(":")
    found = importlib.import_module(module)
    for name in attributes.split("."):
        found = getattr(found, name)
        found = getattr(getattr(found, "__ray_metadata__", None), "modified_class", found)
    return found


def parameters_of(thing: Any) -> str:
    """Parameter names in order, with their defaults; "" for what cannot be called."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in signature.parameters.values())


def digest_of(thing: Any) -> str:
    """Twelve hex digits of the source, "" for plain data."""
    try:
        return hashlib.sha256(inspect.getsource(inspect.unwrap(thing)).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return ""


def drift() -> Iterator[str]:
    """A sentence for each seam that is not as it was."""
    for seam in SEAMS:
        try:
            thing = resolve(seam.path)
        except (ImportError, AttributeError) as error:
            yield f"{seam.path} is gone ({error}); we {seam.use} it"
            continue
        parameters = parameters_of(thing)
        if parameters != seam.parameters:
            yield f"{seam.path}({parameters}) was ({seam.parameters}); we {seam.use} it"
        elif digest_of(thing) != seam.digest:
            yield f"the source of {seam.path} changed; we {seam.use} it"


def check_seams() -> None:
    """Raise SeamDrift for a verl this table was not read from, naming what differs.

    Of a known version only the number is compared: reading the sources takes seconds, and a released version does not
    change. The test suite reads them all.
    """
    version = metadata.version("verl")
    if version in VERSIONS:
        return
    differences = "\n  ".join(drift()) or "no known attribute differs, but nothing was tested with it"
    raise SeamDrift(f"reasonrl was written for verl {' or '.join(VERSIONS)}, found {version}:\n  {differences}")


def fingerprint() -> str:
    """One digest of all seams, for provenance."""
    return hashlib.sha256("".join(f"{s.path}{s.digest}" for s in SEAMS).encode()).hexdigest()[:16]


def table() -> str:
    """The rows of SEAMS for the installed verl."""
    rows = []
    for seam in SEAMS:
        thing = resolve(seam.path)
        rows.append(f"    Seam({seam.path!r}, {seam.use!r}, {parameters_of(thing)!r}, {digest_of(thing)!r}),")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
