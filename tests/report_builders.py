"""Made-up folders of evaluations, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.eval.summary import Samples, summarise

HASH = "3f" * 32
LIMIT = 256  # tokens
STRINGS = ("task", "id", "category", "gold", "text", "extracted", "status", "message")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in STRINGS),
        *((name, pa.int64()) for name in ("number", "tokens", "prompt_tokens")),
        *((name, pa.bool_()) for name in ("correct", "finished")),
        ("parts", pa.map_(pa.string(), pa.float64())),
    ]
)


def row(**fields: Any) -> dict[str, Any]:
    """One sample: right, finished, of 20 tokens, unless said otherwise."""
    own = {
        "task": "sums",
        "id": "sums/0",
        "number": 0,
        "category": "",
        "gold": "42",
        "text": "So the answer is \\boxed{42}.",
        "extracted": "42",
        "correct": True,
        "status": "ok",
        "message": "",
        "tokens": 20,
        "prompt_tokens": 9,
        "finished": True,
        "parts": None,
    }
    return {**own, **fields}


def arithmetic_rows(
    problems: int, n: int, *, task: str = "arithmetic", skill: float = 0.6, seed: int = 0, words: int = 30
) -> list[dict[str, Any]]:
    """`n` samples of each problem: sums worked out in steps; long ones are wrong more often, some are cut at the limit."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(problems):
        terms = [int(t) for t in rng.integers(10, 99, rng.integers(2, 7))]
        gold, ease = sum(terms), rng.normal(skill, 0.25) - 0.04 * len(terms)
        for number in range(n):
            tokens = int(min(LIMIT, rng.lognormal(np.log(18.0 * len(terms)), 0.55)))
            finished = tokens < LIMIT
            correct = bool(rng.random() < ease - 0.001 * tokens) and finished
            said = gold if correct else gold + int(rng.choice([-10, -2, 1, 9, 10]))
            silent = not finished or (not correct and rng.random() < 0.1)
            rows.append(
                row(
                    task=task,
                    id=f"{task}/{problem}",
                    number=number,
                    category=f"{len(terms)} numbers",
                    gold=str(gold),
                    text=worked(terms, said, closed=not silent, filler=int(rng.integers(words + 1))),
                    extracted=None if silent else str(said),
                    correct=correct,
                    status="no_answer" if silent else "ok",
                    tokens=tokens,
                    prompt_tokens=6 + 3 * len(terms),
                    finished=finished,
                )
            )
    return rows


def worked(terms: Sequence[int], said: int, *, closed: bool, filler: int) -> str:
    """A solution in LaTeX that ends with `said`, or breaks off."""
    lines, total = [f"We add the numbers one by one: ${' + '.join(map(str, terms))}$.", ""], 0
    for i, term in enumerate(terms):
        lines.append(f"Step {i + 1}: \\(s_{{{i + 1}}} = {total} + {term} = {total + term}\\).")
        total += term
    lines.append(
        "Let me check that " + "once more and " * filler + f"with the mean $\\frac{{{total}}}{{{len(terms)}}}$."
    )
    lines.append(f"\nThe answer is $\\boxed{{{said}}}$." if closed else "\nWait, I made a mis")
    return "\n".join(lines)


def results_of(rows: Sequence[Mapping[str, Any]], *, name: str = "first", **fields: Any) -> dict[str, Any]:
    """results.json of these samples."""
    tasks = {
        task: task_results([r for r in rows if r["task"] == task]) for task in dict.fromkeys(r["task"] for r in rows)
    }
    return {
        "schema": 1,
        "name": name,
        "model": {"name": "tiny", "path": "reasonrl/assets/tiny/model", "fingerprint": HASH, "dtype": "float32"},
        "backend": {"name": "local", "batch": 64},
        "protocol": None,
        "suite": None,
        "seed": 1,
        "versions": {
            "reasonrl": "0.1.0",
            "torch": "2.11.0",
            "transformers": "5.9.0",
            "vllm": None,
            "math_verify": "0.9.0",
        },
        "git": "d579a93",
        "tasks": tasks,
        "mean": {
            "accuracy": float(np.mean([task["accuracy"]["estimate"] for task in tasks.values()])),
            "tasks": list(tasks),
        },
        "notes": [],
        **fields,
    }


def task_results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of one task."""
    n = len({r["number"] for r in rows})
    return {
        "title": rows[0]["task"].capitalize(),
        "citation": "made up",
        "kind": "answer",
        "settings": {"n": n, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": LIMIT},
        "data_sha256": HASH,
        "prompt_sha256": HASH,
        "chat_template_sha256": None,
        "origin": "made up",
        "expected_size": None,
        "dropped": 0,
        **summarise(Samples.from_rows(rows)),
    }


def write_folder(folder: Path, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any] | None = None) -> Path:
    """results.json, samples.parquet and timing.json in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results_of(rows) if results is None else results))
    (folder / "timing.json").write_text(json.dumps({"sessions": [{"seconds": 12.5, "samples": len(rows)}]}))
    plain = [{**r, "parts": sorted(r["parts"].items()) if r["parts"] else None} for r in rows]
    pq.write_table(pa.Table.from_pylist(plain, SCHEMA), folder / "samples.parquet")
    return folder
