"""Are the values of steps right, and are the cuts where the model decides? AdaptiveStep on the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/step_values.py [--problems 300] [--truth 64]

Held-out arithmetic, one sampled response a problem, cut at the 2 % of its tokens that were least likely. The truth of a
cut is the share of right answers among `truth` continuations; what training has is that of 1, 2, 4 or 8 others.

values      rank correlation of estimate and truth, and the truth behind estimates of each size
places      what tokens the cuts stand behind, for cuts at low confidence, at line breaks, and at random
decisions   by how much the truth changes with the token that ends a step
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import spearmanr

from reasonrl.cli import composed
from reasonrl.config import typed
from reasonrl.data import arithmetic
from reasonrl.data.prompts import prompt_from_config
from reasonrl.engine.sampling import Ask, Sampler, Sampling, open_sampler
from reasonrl.engine.verl.launch import load_tokenizer
from reasonrl.functional.confidence import confidence, line_ends, random_ends, step_ends, threshold
from reasonrl.verify.pool import Verifier, verify_from_config

QUANTILE = 0.02
ESTIMATES = (1, 2, 4, 8)
RANDOM_STEPS = 5


@dataclass(frozen=True)
class Response:
    """A sampled response and where each splitter ends its steps, the last end left out."""

    prompt: list[int]
    answer: str
    tokens: list[int]
    confidence: Any  # (L,)
    text: list[str]  # of each token


def sample(sampler: Sampler, asks: dict[Any, list[int]], seed: int, most: int) -> dict[Any, Any]:
    """An answer for each key, its noise from the seed and the key's place."""
    made = (
        Ask(key, prompt, Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=most, seed=(seed, place)))
        for place, (key, prompt) in enumerate(asks.items())
    )
    return {answer.key: answer for answer in sampler.answers(made)}


def values(
    sampler: Sampler,
    verifier: Verifier,
    tokenizer: Any,
    cuts: Sequence[tuple[Response, int]],
    n: int,
    seed: int,
    most: int,
) -> Any:
    """(cuts, n) verdicts of continuations behind the token of each cut; -1 is the empty prefix."""
    kept = {(c, k): r.prompt + r.tokens[: end + 1] for c, (r, end) in enumerate(cuts) for k in range(n)}
    answers = sample(sampler, kept, seed, most)
    texts = []
    for (c, _), answer in sorted(answers.items()):
        response, end = cuts[c]
        text = tokenizer.decode([*response.tokens[: end + 1], *answer.token_ids], skip_special_tokens=True)
        texts.append((text, response.answer))
    verdicts = verifier.verify_many(iter(texts))
    return np.array([verdict.correct for verdict in verdicts], dtype=float).reshape(len(cuts), n)


def kind(response: Response, end: int) -> str:
    """What a token is in the arithmetic: a digit the model worked out or copied, its choice to work out exactly or not."""
    token = response.text[end]
    if token == "\n":
        return "line break"
    line = "".join(response.text[:end]).rpartition("\n")[2]
    if token in "=~":
        return "= or ~"
    if not token.isdigit():
        return "other"
    # a check behind a comma copies, and so does what stands in the box
    return "digit worked out" if ("=" in line or "~" in line) and "," not in line else "other digit"


def main(problems: int, truth: int) -> None:
    cfg = typed(composed(["model=tiny", "data=arithmetic"]))
    tokenizer = load_tokenizer(cfg)
    prompt, most = prompt_from_config(cfg.prompt), cfg.max_new_tokens
    items = list(arithmetic.items("validation", problems, seed=0, min_terms=2, max_terms=4))
    prompts = prompt.encode_many([item.question for item in items], tokenizer)
    with Verifier(verify_from_config(cfg.verify)) as verifier, open_sampler(cfg, tokenizer, logprobs=True) as sampler:
        first = sample(sampler, {i: list(ids) for i, ids in enumerate(prompts)}, 1, most)
        responses = []
        for i, answer in sorted(first.items()):
            tokens = answer.token_ids[:-1] if answer.finished else answer.token_ids
            sure = confidence(answer.logprobs[: len(tokens)])
            text = [tokenizer.decode([token]) for token in tokens]
            responses.append(Response(list(prompts[i]), items[i].answer, tokens, sure, text))
        tau = threshold(np.concatenate([r.confidence for r in responses]), QUANTILE)
        tokens = sum(len(r.tokens) for r in responses)
        rng = np.random.default_rng(0)
        cuts = {
            "low confidence": [(r, int(e)) for r in responses for e in step_ends(r.confidence, tau)[:-1]],
            "line breaks": [
                (r, int(e)) for r in responses for e in line_ends(np.array([t == "\n" for t in r.text]))[:-1]
            ],
            "random": [(r, int(e)) for r in responses for e in random_ends(len(r.tokens), rng, steps=RANDOM_STEPS)[:-1]],
        }  # fmt: skip
        print(f"{len(responses)} responses, {tokens} tokens, tau {tau:.3f}, {len(cuts['low confidence'])} cuts\n")

        true = values(sampler, verifier, tokenizer, cuts["low confidence"], truth, 2, most).mean(axis=1)
        probes = values(sampler, verifier, tokenizer, cuts["low confidence"], max(ESTIMATES), 3, most)
        again = values(sampler, verifier, tokenizer, cuts["low confidence"], truth, 4, most).mean(axis=1)
        print("| continuations | rank correlation with the truth | mean absolute error |")
        print("|---|---|---|")
        for n in ESTIMATES:
            estimate = probes[:, :n].mean(axis=1)
            print(f"| {n} | {spearmanr(estimate, true).statistic:.2f} | {np.abs(estimate - true).mean():.3f} |")
        print(f"| {truth}, once more | {spearmanr(again, true).statistic:.2f} | {np.abs(again - true).mean():.3f} |")
        estimate = probes.mean(axis=1)
        print(f"\n| estimate of {max(ESTIMATES)} | cuts | mean estimate | mean truth |\n|---|---|---|---|")
        for low, high in ((0.0, 0.0), (0.01, 0.25), (0.26, 0.5), (0.51, 0.75), (0.76, 0.99), (1.0, 1.0)):
            inside = (estimate >= low) & (estimate <= high)
            if inside.any():
                name = f"{low:.0%}" if low == high else f"{round(low, 2):.0%} to {high:.0%}"
                print(f"| {name} | {inside.sum()} | {estimate[inside].mean():.2f} | {true[inside].mean():.2f} |")

        kinds = ("digit worked out", "= or ~", "other digit", "line break", "other")
        print(f"\n| cuts behind | {' | '.join(kinds)} | cuts a response |\n|---|{'---|' * (len(kinds) + 1)}")
        everything = [(r, e) for r in responses for e in range(len(r.tokens))]
        for name, where in {"any token": everything, **cuts}.items():
            found = [kind(r, e) for r, e in where]
            shares = " | ".join(f"{found.count(k) / len(found):.1%}" for k in kinds)
            print(f"| {name} | {shares} | {len(where) / len(responses):.1f} |")

        print("\n| cuts behind | change of the truth with that token, mean absolute | without noise, rms | cuts |")
        print("|---|---|---|---|")
        for name, where in cuts.items():
            some = [where[i] for i in sorted(rng.permutation(len(where))[:200])]
            after = values(sampler, verifier, tokenizer, some, truth, 5, most).mean(axis=1)
            before = values(sampler, verifier, tokenizer, [(r, e - 1) for r, e in some], truth, 6, most).mean(axis=1)
            # what two samples of the same truth differ by is taken off: their variances add
            noise = 2 * np.mean([v * (1 - v) / truth for v in (before + after) / 2])
            changed = np.sqrt(max(np.mean((after - before) ** 2) - noise, 0.0))
            print(f"| {name} | {np.abs(after - before).mean():.3f} | {changed:.3f} | {len(some)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--truth", type=int, default=64)
    main(**vars(parser.parse_args()))
