"""Seconds a step: reasonrl against plain `verl.trainer.main_ppo`, same model, data, engine and settings, alternating.

    python benchmarks/overhead.py [--rounds 2] [--steps 14] [--work DIR]

Three arms, each a training process of its own, in turn: ours, verl, verl with our poll interval. A step's seconds are read
off the clock when its metrics line reaches the disk, so recording, logging and everything between steps count on both
sides. The first three steps are left out, steps are paired by number, and the figure is the median ratio with a 95 %
bootstrap interval over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WARM_UP = 3
SETTINGS = {"batch": 16, "n": 8, "prompt": 48, "response": 128}


def ours(folder: Path, steps: int) -> tuple[list[str], Path, dict[str, str]]:
    command = [sys.executable, "-m", "reasonrl", "method=grpo", "method.n=8", f"steps={steps}", "validate_every=0"]
    command += [
        "save_every=0",
        "verl.trainer.val_before_train=false",
        "verl.trainer.test_freq=-1",
        f"out={folder}",
        "name=run",
    ]
    return command, folder / "run" / "metrics.jsonl", {}


def verls(folder: Path, steps: int, *, fast: bool) -> tuple[list[str], Path, dict[str, str]]:
    from reasonrl.config import package_path

    data = folder / "data"
    if not data.exists():
        subprocess.run(
            [sys.executable, "-m", "reasonrl", "data", "name=arithmetic", "source=arithmetic", f"out={data}"],
            check=True,
        )
    actor, rollout, model = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
    fp32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
    settings = {
        "data.train_files": data / "train.parquet",
        "data.val_files": data / "val.parquet",
        "data.train_batch_size": 16,
        "data.max_prompt_length": 48,
        "data.max_response_length": 128,
        "data.dataloader_num_workers": 0,
        f"{model}.path": package_path("pkg://reasonrl.assets.tiny/model"),
        f"{model}.external_lib": "reasonrl.engine.verl.worker_setup",
        f"+{model}.override_config.attn_implementation": "sdpa",
        f"{model}.use_remove_padding": False,
        f"{model}.enable_gradient_checkpointing": False,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": 16,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": 16384,
        f"{actor}.optim.lr": 3e-4,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"+{actor}.fsdp_config.mixed_precision": fp32,
        f"{actor}.fsdp_config.dtype": "float32",
        f"{rollout}.name": "reasonrl_cpu",
        f"{rollout}.n": 8,
        f"{rollout}.dtype": "float32",
        f"{rollout}.load_format": "auto",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.max_model_len": 176,
        f"{rollout}.free_cache_engine": False,
        f"{rollout}.agent.num_workers": 1,
        "algorithm.adv_estimator": "grpo",
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": HERE / "stock_reward.py",
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": 1,
        "trainer.logger": "[file]",
        "trainer.project_name": "bench",
        "trainer.experiment_name": "run",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 100,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.default_local_dir": folder / "checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 64,
        "+ray_kwargs.ray_init.num_gpus": 1,
        "+ray_kwargs.ray_init.include_dashboard": False,
    }
    log = folder / "metrics.jsonl"
    env = {
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(log),
        "REASONRL_THREADS": str(min(os.cpu_count() or 1, 8)),
        "TOKENIZERS_PARALLELISM": "false",
        # verl's own wheel has no CPU rollout: register ours on the driver and in the trainer's process
        "VERL_USE_EXTERNAL_MODULES": "reasonrl.engine.verl.worker_setup" + (",fast_poll" if fast else ""),
        "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
    }
    return [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{k}={v}" for k, v in settings.items())], log, env


def steps_of(command: list[str], log: Path, env: dict[str, str], out: Path) -> dict[int, float]:
    """Run to the end; step -> seconds since the step before was written."""
    seen: dict[int, float] = {}
    with out.open("w") as file:
        process = subprocess.Popen(command, env=os.environ | env, stdout=file, stderr=subprocess.STDOUT, cwd=out.parent)
        while process.poll() is None:
            time.sleep(0.01)
            if log.exists():
                for line in log.read_text().splitlines():
                    try:
                        step = json.loads(line)["step"]
                    except json.JSONDecodeError:
                        continue
                    seen.setdefault(step, time.perf_counter())
    if process.returncode != 0:
        sys.exit(f"{command[2]} failed, see {out}")
    return {step: at - seen[step - 1] for step, at in seen.items() if step - 1 in seen and step > WARM_UP}


def interval(ratios: np.ndarray) -> str:
    draws = np.median(np.random.default_rng(0).choice(ratios, (4000, ratios.size)), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="overhead-"))
    seconds: dict[str, list[float]] = {"ours": [], "verl": [], "verl, our poll": []}
    for k in range(args.rounds):
        for arm in seconds:
            folder = work / f"{arm.replace(', ', '-').replace(' ', '-')}-{k}"
            folder.mkdir(parents=True)
            command, log, env = (
                ours(folder, args.steps) if arm == "ours" else verls(folder, args.steps, fast="poll" in arm)
            )
            measured = steps_of(command, log, env, folder / "out.txt")
            seconds[arm] += [measured[s] for s in sorted(measured)]
            print(f"round {k + 1}, {arm}: median {np.median(list(measured.values())):.2f} s a step", flush=True)
    mine = np.array(seconds["ours"])
    print(f"\n{mine.size} paired steps of 16 problems x 8 rollouts, {os.cpu_count()} cores")
    for arm, promised in (("verl", 1.0), ("verl, our poll", 1.05)):
        theirs = np.array(seconds[arm])
        print(f"ours / {arm}: {interval(mine / theirs)} (promised at most {promised})")


if __name__ == "__main__":
    main()
