"""What `reasonrl eval` costs over bare vLLM: the same requests through `vllm.LLM.generate` and through our whole evaluation.

    python benchmarks/eval_throughput.py MODEL DATA_DIR OUT.json [--limit N] [--n 4] [--max-new-tokens 1024] [--rounds 2]
        [--eager]

GSM8K test, 1,319 questions, n answers each, temperature 1, for a machine with a GPU. One engine for both. The bare run makes
token ids and texts and nothing else. Ours also grades every answer in worker processes, while others are written, writes the
journals, samples.parquet, results.json and the page; its speed is over the seconds from the first ask to the last grade on
disk, and the whole command is timed too. Rounds alternate; the first of each is a warm-up that is not counted. The prefix cache
is emptied before each.

With noise that is the engine's, each run draws other answers: what is compared is tokens a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonrl.eval.backends.vllm import Opening, VLLMBackend
from reasonrl.eval.run import Plan, evaluate, prepare
from reasonrl.eval.settings import read_settings


def bare(llm: Any, plan: Plan, max_new_tokens: int, n: int, temperature: float) -> dict[str, float]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(ids)} for ids in plan.tasks[0].prompt_ids]
    llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate(
        prompts, SamplingParams(n=n, temperature=temperature, max_tokens=max_new_tokens), use_tqdm=False
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(made.token_ids) for output in outputs for made in output.outputs)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def ours(llm: Any, backend: VLLMBackend, args: list[str], out: Path) -> dict[str, Any]:
    llm.reset_prefix_cache()
    started = time.perf_counter()
    folder = evaluate(
        read_settings([*args, f"out={out}", "overwrite=true"]),
        console=Console(quiet=True),
        open_backend=lambda *_: contextlib.nullcontext(backend),
    )
    ended = time.perf_counter()
    session = json.loads((folder / "timing.json").read_text())["sessions"][-1]
    seconds = session["seconds"]
    spent = seconds["sample"] + seconds["grade_after_sampling"]
    return {
        "tokens": session["tokens"],
        "seconds": spent,
        "tokens_per_second": session["tokens"] / spent,
        "seconds_grading_after_the_last_answer": seconds["grade_after_sampling"],
        "graded_before_the_last_answer": session["graded_while_sampling"] / session["answers"],
        "seconds_of_the_whole_command": ended - started,
        "accuracy": json.loads((folder / "results.json").read_text())["tasks"]["gsm8k"]["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2, help="that are counted")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: starts sooner, decodes slower")
    args = parser.parse_args()

    given = [
        f"model={args.model}",
        "task=gsm8k",
        f"data_dir={args.data_dir}",
        f"n={args.n}",
        f"temperature={args.temperature}",
        f"max_new_tokens={args.max_new_tokens}",
        "backend=vllm",
        *([f"limit={args.limit}"] if args.limit else []),
        *([f"workers={args.workers}"] if args.workers else []),
        *(["engine.eager=true"] if args.eager else []),
    ]
    knobs = read_settings(given)
    plan = prepare(knobs, Console())
    opening = Opening(plan.model.path, knobs.engine, False, plan.longest, (1, 0))
    started = time.perf_counter()
    backend = opening(0)
    llm = backend.llm
    loaded = time.perf_counter() - started
    scratch = args.out.with_suffix("")
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(args.rounds + 1):
        plain = bare(llm, plan, args.max_new_tokens, args.n, args.temperature)
        whole = ours(llm, backend, given, scratch)
        print(
            f"round {number}: bare {plain['tokens_per_second']:,.0f} tokens/s, evaluation {whole['tokens_per_second']:,.0f}",
            flush=True,
        )
        rounds.append((plain, whole))
    counted = rounds[1:]
    medians = [statistics.median(each[which]["tokens_per_second"] for each in counted) for which in (0, 1)]
    found = {
        "model": args.model,
        "questions": len(plan.tasks[0].questions.items),
        "n": args.n,
        "workers": plan.workers,
        "seconds_to_load": loaded,
        "bare_tokens_per_second": medians[0],
        "evaluation_tokens_per_second": medians[1],
        "ratio": medians[1] / medians[0],
        "graded_before_the_last_answer": min(each["graded_before_the_last_answer"] for _, each in counted),
        "seconds_grading_after_the_last_answer": max(
            each["seconds_grading_after_the_last_answer"] for _, each in counted
        ),
        "rounds": rounds,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"bare {medians[0]:,.0f} tokens/s, evaluation {medians[1]:,.0f} tokens/s with grading and journals: ratio "
        f"{found['ratio']:.3f}; {found['graded_before_the_last_answer']:.1%} graded before the last answer came, the rest "
        f"in {found['seconds_grading_after_the_last_answer']:.2f} s"
    )


if __name__ == "__main__":
    main()
