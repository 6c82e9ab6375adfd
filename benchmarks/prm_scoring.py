"""How fast steps are scored in batches, beside one response at a time: the same model, the same items, the same process.

    python benchmarks/prm_scoring.py [items] [rounds]

The naive loop makes the logits of all tokens of one response after the other, as a first version would. The ratio is of the
medians over interleaved rounds, so that a busy machine slows both; the largest difference of the scores stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasonrl.config import package_path
from reasonrl.engine.prm import Card, Steps, open_scorer
from reasonrl.engine.prm.card import vocabulary_sha256, write_card
from reasonrl.eval.prm.examples import ADDED_TOKENS
from reasonrl.eval.prm.train import give_rows

MOST_DIFFERENCE = 1e-5


def folder_of(path: Path) -> Path:
    """The embedded model as an untrained process reward model."""
    tiny = package_path("pkg://reasonrl.assets.tiny/model")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    vocabulary = vocabulary_sha256(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    give_rows(model, tokenizer, ids, seed=1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_card(path, Card(*ids, ADDED_TOKENS, "question", "two_way", "hard", 8, vocabulary))  # type: ignore[arg-type]
    return path


def items_of(tokenizer: Any, count: int) -> list[Steps]:
    """Sums, worked out over 40 to 160 tokens, cut into 1 to 9 steps."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        a, b = rng.integers(1, 999, 2)
        text = (f"{a}+{b} = {a + b}\n" * 30)[: int(rng.integers(40, 161))]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = np.unique([*rng.integers(0, len(ids), int(rng.integers(0, 9))), len(ids) - 1])
        made.append(Steps(f"{a}+{b}", [], ids, ends.tolist()))
    return made


@torch.inference_mode()
def one_by_one(model: Any, scorer: Any, items: Sequence[Steps]) -> list[np.ndarray]:
    """A forward pass a response, over the whole vocabulary at every token."""
    found = []
    for item in items:
        ids, positions = scorer.layout(item)
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        pairs = logits[torch.from_numpy(positions)][:, [scorer.card.good, scorer.card.bad]]
        found.append(torch.softmax(pairs.float(), dim=-1)[:, 0].numpy())
    return found


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, and what it gives."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def main(count: int = 512, rounds: int = 5) -> float:
    """Prints a line a variant; returns the ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_of(Path(scratch) / "prm")
        tokenizer = AutoTokenizer.from_pretrained(package_path("pkg://reasonrl.assets.tiny/model"))
        scorer: Any = open_scorer(str(folder), tokenizer=tokenizer, device="cpu")
    items = items_of(tokenizer, count)
    tokens = sum(scorer.layout(item)[0].size for item in items)
    scorer.score(items[:8]), one_by_one(scorer.model, scorer, items[:8])  # warm
    batched, alone = [], []
    for _ in range(rounds):
        taken, mine = seconds(lambda: scorer.score(items))
        batched.append(taken)
        taken, theirs = seconds(lambda: one_by_one(scorer.model, scorer, items))
        alone.append(taken)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    ratio = statistics.median(alone) / statistics.median(batched)
    print(f"{count} responses, {tokens} tokens with tags, {torch.get_num_threads()} threads, {rounds} rounds")
    for name, taken in (("one by one", alone), ("batched", batched)):
        median = statistics.median(taken)
        print(f"{name:<10}  {median:6.3f} s  {count / median:8,.0f} responses/s  {tokens / median:10,.0f} tokens/s")
    print(f"ratio {ratio:.2f}, largest difference of a score {apart:.1e}")
    if apart > MOST_DIFFERENCE:
        raise SystemExit(f"the scores differ by more than {MOST_DIFFERENCE}")
    return ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
