"""Makes the embedded model: supervised learning on worked answers of `data=arithmetic`, in about ten minutes on a core.

    python -m reasonrl.assets.tiny.train_tiny --out /tmp/tiny

The model is made to be trained further. It draws one of three styles of working at random (`data.arithmetic.STYLES`),
all about as accurate, so a reward that minds length finds tokens to save. And it has a bad habit: about half of the
time it estimates, rounding on the way. Reinforcement learning can unlearn that within a few dozen steps; slips on
digits, the errors of a merely undertrained model, did not improve in fifty steps of GRPO at any rate tried.
Same seed, threads and library versions give the same weights.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasonrl.data import arithmetic
from reasonrl.data.items import Item

PAD, UNK, BOS, EOS = "<|pad|>", "<|unk|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
BOXED = r"\boxed{"  # one token: seven characters that no undertrained model should have to spell
# First mostly short answers, which hold the most arithmetic per token, then all styles alike.
FIRST_SHARES = {"short": 0.9, "restate": 0.05, "check": 0.05}
FINAL_SHARES = {"short": 0.34, "restate": 0.33, "check": 0.33}
# How often an answer is estimated instead of worked out, by level: usual where the work is long, so that the greedy
# answer estimates too. Learnt in the second phase only.
ESTIMATED = {1.0: 0.35, 2.0: 0.55, 3.0: 0.65}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{%- else -%}{{ '<|user|>' + message['content'] }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
TYPICAL_TOKENS = 40
POOL = 20  # batches whose samples are sorted by length together
IGNORED = -100  # torch's label for positions without a loss


@dataclass(frozen=True)
class Settings:
    """What the committed model was made with."""

    first_steps: int = 2000  # on FIRST_SHARES, exact
    final_steps: int = 900  # on FINAL_SHARES and ESTIMATED; more of either = more accurate
    batch: int = 32
    lr: float = 2e-3  # AdamW: embeddings and norms
    matrix_lr: float = 2e-2  # Muon: the matrices inside the layers; reaches the same loss in half of AdamW's steps
    seed: int = 0
    threads: int = 1
    layers: int = 4
    width: int = 128
    heads: int = 4
    feed_forward: int = 384


def tokenizer() -> PreTrainedTokenizerFast:
    r"""One token per printable ASCII character and newline, one for `\boxed{`, and the special ones."""
    words = [PAD, UNK, BOS, EOS, *ROLES, BOXED, "\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def new_model(settings: Settings, tok: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tok),
            hidden_size=settings.width,
            intermediate_size=settings.feed_forward,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=settings.width**-0.5,  # at Llama's 0.02 a model this narrow learns to copy far later
            pad_token_id=tok.pad_token_id,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
        )
    )


def prompt(problem: Item) -> str:
    """What the chat template makes of a question, without the cost of running it."""
    return f"<|user|>{problem.question}<|assistant|>"


Batch = tuple[torch.Tensor, torch.Tensor]


def batches(settings: Settings, tok: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """All batches of a training in order: (ids, labels), each (batch, T)."""
    rng = np.random.default_rng(settings.seed)
    exact = dict.fromkeys(ESTIMATED, 0.0)
    phases = (settings.first_steps, FIRST_SHARES, exact), (settings.final_steps, FINAL_SHARES, ESTIMATED)
    for phase, (steps, shares, estimated) in enumerate(phases):
        for pool in range(0, steps, POOL):
            # A fresh draw for every pool, because one long draw would run out of the easiest level.
            size = min(POOL, steps - pool) * settings.batch
            problems = list(arithmetic.items("train", size, seed=1_000_000 * settings.seed + 10_000 * phase + pool))
            pairs = [(prompt(p), _answer(p, shares, estimated, rng)) for p in problems]
            # Neighbours in length share a batch, so padding is rare; the batches come in random order.
            pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
            for i in rng.permutation(len(pairs) // settings.batch):
                yield _padded(pairs[i * settings.batch : (i + 1) * settings.batch], tok)


def _answer(
    problem: Item, shares: Mapping[str, float], estimated: Mapping[float, float], rng: np.random.Generator
) -> str:
    style = str(rng.choice(list(shares), p=list(shares.values())))
    rounds = rng.random() < estimated[problem.level or 0.0]
    return arithmetic.trace(problem, style, rng, estimated=bool(rounds)) + EOS


def _padded(pairs: Sequence[tuple[str, str]], tok: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    rows = tok([q + a for q, a in pairs], add_special_tokens=False)["input_ids"]
    starts = [len(ids) for ids in tok([q for q, _ in pairs], add_special_tokens=False)["input_ids"]]
    ids = torch.full((len(rows), max(map(len, rows))), tok.pad_token_id)  # (batch, T), padded on the right
    labels = torch.full_like(ids, IGNORED)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def train(model: LlamaForCausalLM, settings: Settings, tok: PreTrainedTokenizerFast) -> None:
    steps = settings.first_steps + settings.final_steps
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda k: min(1.0, (k + 1) / 50, (steps - k) / (0.6 * steps)))
        for o in _optimizers(model, settings)
    ]
    begun, smooth = time.monotonic(), float("nan")
    for step, (ids, labels) in enumerate(batches(settings, tok), 1):
        logits = model(input_ids=ids).logits[:, :-1]  # (batch, T - 1, vocabulary)
        # A sum over a constant, not a mean over the batch's tokens: batches differ in length, and a mean would teach
        # short answers with more weight, so that the model would draw them more often.
        loss = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="sum")
        loss = loss / (settings.batch * TYPICAL_TOKENS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for schedule in schedules:
            schedule.optimizer.step()
            schedule.optimizer.zero_grad(set_to_none=True)
            schedule.step()
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}  loss {smooth:.4f}  {time.monotonic() - begun:6.1f} s", flush=True)


def _optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in named.items() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass(frozen=True)
class Sample:
    """One sampled answer: its problem, text, whether the boxed number is right, and tokens with the end token."""

    problem: Item
    text: str
    right: bool
    tokens: int

    @property
    def style(self) -> str:
        """Which of the three styles the text begins with."""
        first = self.text.split("\n", 1)[0]
        return "check" if "check" in first else "short" if first[:1].isdigit() else "restate"

    @property
    def habit(self) -> str:
        """Whether the answer was worked out or rounded on the way."""
        return "estimated" if "~" in self.text else "exact"


@torch.no_grad()
def sample(
    model: Any,  # a causal LM with `generate`
    tok: PreTrainedTokenizerFast,
    problems: Sequence[Item],
    *,
    n: int = 4,
    greedy: bool = False,
    seed: int = 0,
) -> list[Sample]:
    """`n` answers to each problem at temperature 1, or the greedy one `n` times; a problem's answers are neighbours."""
    torch.manual_seed(seed)
    inputs = tok([prompt(p) for p in problems], add_special_tokens=False, return_tensors="pt", padding=True)
    inputs = {k: inputs[k].repeat_interleave(n, dim=0) for k in ("input_ids", "attention_mask")}
    config = GenerationConfig(
        max_new_tokens=128,
        do_sample=not greedy,
        top_k=None if greedy else 0,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    out = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
    texts = tok.batch_decode(out, skip_special_tokens=True)
    lengths = (out != tok.pad_token_id).sum(1).tolist()
    repeated = [p for p in problems for _ in range(n)]
    return [
        Sample(p, text, text.endswith(rf"{BOXED}{p.answer}}}"), length)
        for p, text, length in zip(repeated, texts, lengths, strict=True)
    ]


def report(samples: Sequence[Sample], n: int) -> dict[str, Any]:
    """Accuracy and length: over all, by level, by style; and how groups of `n` come out."""

    def line(some: Sequence[Sample]) -> dict[str, float]:
        if not some:
            return {"share": 0.0}
        tokens = np.array([s.tokens for s in some])
        return {
            "share": round(len(some) / len(samples), 3),
            "accuracy": round(float(np.mean([s.right for s in some])), 3),
            "tokens_mean": round(float(tokens.mean()), 1),
            "tokens_cv": round(float(tokens.std() / tokens.mean()), 2),
            **{f"tokens_p{q}": int(np.percentile(tokens, q)) for q in (5, 25, 50, 75, 95, 100)},
        }

    levels = sorted({s.problem.level or 0.0 for s in samples})
    rates = np.array([s.right for s in samples]).reshape(-1, n).mean(1)
    return {
        "all": line(samples),
        **{f"level {level:g}": line([s for s in samples if s.problem.level == level]) for level in levels},
        **{style: line([s for s in samples if s.style == style]) for style in arithmetic.STYLES},
        **{habit: line([s for s in samples if s.habit == habit]) for habit in ("exact", "estimated")},
        **{
            f"{style}, exact": line([s for s in samples if (s.style, s.habit) == (style, "exact")])
            for style in arithmetic.STYLES
        },
        **{
            f"level {level:g}, exact": line([s for s in samples if (s.problem.level, s.habit) == (level, "exact")])
            for level in levels
        },
        "mixed_groups": round(float(np.mean((rates > 0) & (rates < 1))), 3),
        "solved_by_all": round(float(np.mean(rates == 1)), 3),
        "solved_by_none": round(float(np.mean(rates == 0)), 3),
    }


def card(settings: Settings, measured: Mapping[str, Any], greedy: float) -> str:
    """The model card, from what was just measured."""
    names = [name for name, row in measured.items() if isinstance(row, Mapping)]
    rows = [
        f"| {name} | {row['share']:.2f} | {row['accuracy']:.3f} | {row['tokens_mean']} | {row['tokens_cv']} "
        f"| {row['tokens_p5']} / {row['tokens_p50']} / {row['tokens_p95']} / {row['tokens_p100']} |"
        for name in names
        if "accuracy" in (row := measured[name])
    ]
    return CARD.format(
        settings=", ".join(f"{name}={value}" for name, value in settings.__dict__.items()),
        rows="\n".join(rows),
        greedy=greedy,
        **{name: measured[name] for name in ("mixed_groups", "solved_by_all", "solved_by_none")},
    )


CARD = r"""---
license: apache-2.0
library_name: transformers
---
# The embedded model of reasonrl

A character-level Llama of 0.87 million parameters that adds and subtracts two-digit numbers, with a bad habit to
unlearn, so that `model=tiny data=arithmetic` trains on a laptop without a download. It is a toy for seeing methods
work; it knows nothing else. Licence: Apache-2.0, like the code. No outside data or model took part.

Made by `python -m reasonrl.assets.tiny.train_tiny --out <folder>`: supervised learning on worked answers to the
training split of `data=arithmetic`. Settings: `{settings}`.
Weights are kept in float16; load them in float32 (on a CPU, half precision makes sampling and training disagree).

Tokens: one per printable ASCII character and newline, one for `\boxed{{`, and `<|pad|> <|unk|> <|begin|> <|end|>
<|system|> <|user|> <|assistant|>`. A prompt is `<|user|>12+34-5=?<|assistant|>`; an answer ends with `<|end|>`. The
chat template adds no system turn of its own.

Three styles of answer to `12+34-5=?`, drawn at random:

```
short          restate                    check
12+34=46       find 12+34-5: 12+34=46     12+34=46, check 46-34=12 ok
46-5=41        now 46-5: 46-5=41          46-5=41, check 41+5=46 good
\boxed{{41}}     \boxed{{41}}                 \boxed{{41}}
```

The habit: part of the answers, in any style, are estimates. `12+34~50`, `50-5~50`, `\boxed{{50}}` rounds on the way
and is right only by luck. The share grows with the level.

Measured on 256 validation problems, 8 samples each, temperature 1. Level 1 has two numbers, level 3 has four. Tokens
include the end token; cv is their standard deviation over their mean.

| samples | share | accuracy | tokens, mean | cv | p5 / p50 / p95 / max |
|---|---|---|---|---|---|
{rows}

Greedy accuracy {greedy:.3f}. Of the groups of 8, {mixed_groups:.2f} are mixed, {solved_by_all:.2f} all right and
{solved_by_none:.2f} all wrong.
"""


def save(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, readme: str, out: Path) -> None:
    """Write the folder beside its place, weights in float16, then swap: a reader never sees half of it."""
    beside = out.with_name(f".{out.name}.new-{os.getpid()}")
    model.generation_config = GenerationConfig(
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id
    )
    model.half().save_pretrained(beside)
    model.float()
    tok.save_pretrained(beside)
    _name_the_usual_class(beside / "tokenizer_config.json")
    (beside / "README.md").write_text(readme, encoding="utf-8")
    for file in beside.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _name_the_usual_class(path: Path) -> None:
    """transformers 5 writes its own new class name, which older readers do not know; it reads the old name as well."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def publish(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, settings: Settings, out: Path) -> None:
    """Measure the model as it will be loaded, then write folder and card."""
    model.half().float().eval()
    problems = list(arithmetic.items("validation", 256, seed=1))
    measured = report(sample(model, tok, problems, n=8), 8)
    greedy = float(np.mean([s.right for s in sample(model, tok, problems, n=1, greedy=True)]))
    save(model, tok, card(settings, measured, greedy), out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced when it exists")
    for name, default in Settings().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    chosen = vars(parser.parse_args(argv))
    out = chosen.pop("out")
    settings = Settings(**chosen)
    torch.set_num_threads(settings.threads)
    tok = tokenizer()
    model = new_model(settings, tok)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, settings, tok)
    publish(model, tok, settings, out)
    print((out / "README.md").read_text())


if __name__ == "__main__":
    main()
