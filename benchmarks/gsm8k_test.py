"""Accuracy of a model folder on the GSM8K test set, greedy, with vLLM: how the GPU table's checkpoints are tested.

    python benchmarks/gsm8k_test.py MODEL_FOLDER DATA_FOLDER OUT.json [--limit N]

DATA_FOLDER holds test.jsonl (question, answer). The prompt and the verifier are those of training (`prompt=boxed`,
`verify=either`). The interval is Wilson's, 95 %, over problems.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    args = parser.parse_args()

    import yaml
    from vllm import LLM, SamplingParams

    from reasonrl.cli import folder_of
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.verify.pool import Verifier, VerifyConfig

    prompt = prompt_from_config(yaml.safe_load((folder_of("reasonrl.conf") / "prompt" / "boxed.yaml").read_text()))
    rows = [json.loads(line) for line in (args.data / "test.jsonl").read_text().splitlines()][: args.limit]
    answers = [row["answer"].rpartition("####")[2].strip().replace(",", "") for row in rows]
    llm = LLM(args.model, dtype="bfloat16", enforce_eager=True, gpu_memory_utilization=0.5, max_model_len=2048)
    tokenizer = llm.get_tokenizer()
    requests = [{"prompt_token_ids": ids} for ids in prompt.encode_many([row["question"] for row in rows], tokenizer)]
    started = time.perf_counter()
    outputs = llm.generate(requests, SamplingParams(temperature=0.0, max_tokens=args.max_new_tokens))
    seconds = time.perf_counter() - started
    with Verifier(VerifyConfig(workers=4)) as verifier:
        verdicts = verifier.verify_many([(o.outputs[0].text, a) for o, a in zip(outputs, answers, strict=True)])
    tokens = [len(o.outputs[0].token_ids) for o in outputs]
    right = [v.correct for v in verdicts]
    low, high = wilson(sum(right), len(right))
    result = {
        "model": args.model,
        "problems": len(rows),
        "accuracy": sum(right) / len(right),
        "interval": [low, high],
        "tokens": sum(tokens) / len(tokens),
        "tokens_correct": sum(t for t, r in zip(tokens, right, strict=True) if r) / max(sum(right), 1),
        "cut": sum(t >= args.max_new_tokens for t in tokens) / len(tokens),
        "seconds": seconds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
