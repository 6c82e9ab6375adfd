"""Groups, credit and writing back, against verl's own advantage step on the same arrays: 512 problems x 16 x 2,000 tokens.

    python benchmarks/credit.py [--problems 512] [--repeats 5]

Both sides start from the same columns as the queue hands them over (jagged tensors) and end with the columns they give
back to it; the queue itself is replaced by a dictionary on both sides. Sides alternate; the figure is the median of the
paired ratios with its range over the repeats.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")

import numpy as np
import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1 import trainer_base
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from reasonrl import Ledger, Prefix, Problem, Rollout, make_method
from reasonrl.core import with_limits
from reasonrl.engine.verl import trainer as ours
from reasonrl.engine.verl.batch import RECORD, to_row


class Batch(SimpleNamespace):
    """What a sampled batch is to both sides."""

    def __len__(self) -> int:
        return len(self.keys)


class Queue:
    """The two calls both sides make, answered from memory."""

    def __init__(self, columns: TensorDict) -> None:
        self.columns = columns

    def kv_batch_get(self, keys: Any, partition_id: str, select_fields: list[str]) -> TensorDict:
        return self.columns.select(*[f for f in select_fields if f in self.columns.keys()])  # noqa: SIM118

    def kv_batch_put(self, keys: Any, partition_id: str, fields: TensorDict) -> Any:
        return Batch(keys=keys, partition_id=partition_id, tags=[{}] * len(keys))

    def kv_clear(self, **_: Any) -> None:
        return None


def arrays(problems: int, n: int, length: int, rng: np.random.Generator) -> tuple[list[Problem], TensorDict, list[str]]:
    """Rows of a step: lengths spread around `length`, half the answers right."""
    chosen = [Problem(f"p{i}", [1] * 100, "0") for i in range(problems)]
    fields, keys = [], []
    for i, problem in enumerate(chosen):
        for k in range(n):
            tokens = int(rng.integers(length // 2, length * 3 // 2))
            rollout = Rollout(
                Prefix(),
                rng.integers(0, 30000, tokens).astype(np.int32),
                -rng.random(tokens, dtype=np.float32),
                float(rng.random() < 0.5),
                True,
            )
            row = to_row(
                problem, rollout, {"problem": i, "order": i, "rollout": k, "seconds": {"generate": 1.0, "verify": 1.0}}
            )
            scores = torch.zeros(tokens)
            scores[-1] = rollout.score
            fields.append(
                {
                    "uid": f"{i:06d}",
                    "prompts": torch.tensor(row.prompt, dtype=torch.long),
                    "responses": torch.tensor(row.response, dtype=torch.long),
                    "response_mask": torch.tensor(row.mask, dtype=torch.long),
                    "rollout_log_probs": torch.tensor(row.logprobs),
                    "old_log_probs": torch.tensor(row.logprobs),
                    "rm_scores": scores,
                    "extra_fields": {RECORD: row.record},
                }
            )
            keys.append(f"{i:06d}_{k}_0")
    return chosen, list_of_dict_to_tensordict(fields), keys


def verls_step(columns: TensorDict, keys: list[str], n: int) -> Any:
    config = SimpleNamespace(
        algorithm={
            "rollout_correction": None,
            "use_kl_in_reward": False,
            "adv_estimator": "grpo",
            "gamma": 1.0,
            "lam": 1.0,
        },
        actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(n=n)),
    )
    config.algorithm = _Node(config.algorithm)
    trainer = SimpleNamespace(config=config)
    batch = Batch(keys=keys, partition_id="train", tags=[{}] * len(keys))
    return lambda: trainer_base.PPOTrainer._compute_advantage(trainer, batch, {})


class _Node(dict):
    __getattr__ = dict.__getitem__


def our_step(problems: list[Problem], keys: list[str], n: int, name: str) -> Any:
    method = with_limits(make_method(name, n=n), 4096)
    trainer = object.__new__(ours.ReasonTrainer)
    trainer.method, trainer.ledger, trainer.global_steps = method, Ledger.for_method(method), 1
    trainer.config = SimpleNamespace(algorithm={})
    trainer.train_dataset = SimpleNamespace(problems=problems)
    trainer.replay_buffer = SimpleNamespace(unkept=set(), dropped_keys=[], failures={}, refills=0)
    trainer.order = SimpleNamespace(epoch=0)
    trainer.agent_loop_manager = SimpleNamespace(verify_counts=dict)
    batch = Batch(keys=keys, partition_id="train", tags=[{}] * len(keys))
    return lambda: trainer._compute_advantage(batch, {})


def seconds(step: Any) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    problems, columns, keys = arrays(args.problems, args.n, args.length, np.random.default_rng(0))
    queue = Queue(columns)
    trainer_base.tq = ours.tq = queue
    verls = verls_step(columns, keys, args.n)
    print(f"{args.problems} problems x {args.n} rollouts x about {args.length} tokens; {os.cpu_count()} cores")
    for name in ("grpo", "deepcompress"):
        step = our_step(problems, keys, args.n, name)
        step(), verls()  # warm up
        pairs = [(seconds(step), seconds(verls)) for _ in range(args.repeats)]
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"{name}: ours {np.median([a for a, _ in pairs]):.2f} s, verl {np.median([b for _, b in pairs]):.2f} s, "
            f"ratio {np.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] (at most 2 promised)"
        )
        if np.median(ratios) > 2:
            sys.exit("more than twice verl's own advantage step")


if __name__ == "__main__":
    main()
