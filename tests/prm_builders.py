"""Small process reward models and labelled responses: a byte tokenizer, two layers of 32, a rule that can be learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_builders import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrl.data.prefixes import Facts, tokenizer_fingerprint
from reasonrl.engine.prm import Card, Steps
from reasonrl.engine.prm.card import vocabulary_sha256, write_card
from reasonrl.eval.prm.file import Row, write

TAGS = ("<step>", "<good>", "<bad>")


def policy_tokenizer() -> Any:
    """One token a byte."""
    return byte_tokenizer()


def small_model(rows: int, *, context: int = 128, tied: bool = True, seed: int = 0, **more: Any) -> LlamaForCausalLM:
    """A random one, large enough weights that scores differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        eos_token_id=1,
        **more,
    )
    return LlamaForCausalLM(config).eval()


def base_folder(path: Path, *, tokenizer: Any = None, **model: Any) -> Path:
    """A causal language model with its tokenizer, to train from."""
    tokenizer = tokenizer or policy_tokenizer()
    small_model(len(tokenizer), **model).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def prm_folder(path: Path, *, tokenizer: Any = None, card: dict[str, Any] | None = None, **model: Any) -> Path:
    """A process reward model that has learned nothing."""
    tokenizer = tokenizer or policy_tokenizer()
    vocabulary = vocabulary_sha256(tokenizer)
    tokenizer.add_tokens(list(TAGS), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(TAGS))
    small_model(len(tokenizer), **model).save_pretrained(path)
    tokenizer.save_pretrained(path)
    values = {"input": "question", "loss": "two_way", "labels": "hard", "rollouts": 8, "data": {"tau": 0.5}}
    write_card(path, Card(*ids, tokens=TAGS, vocabulary=vocabulary, **{**values, **(card or {})}))
    return path


def ids_of(text: str, tokenizer: Any = None) -> list[int]:
    """Token ids without special tokens."""
    return list((tokenizer or policy_tokenizer())(text, add_special_tokens=False)["input_ids"])


def item(text: str, ends: Sequence[int], question: str = "1+1", prompt: str = "<|user|>1+1") -> Steps:
    """Steps of a response of one byte a token."""
    return Steps(question, ids_of(prompt), ids_of(text), list(ends))


def row(
    text: str,
    ends: Sequence[int],
    hard: Sequence[float] = (),
    *,
    soft: Sequence[float] | None = None,
    problem: str = "p0",
    question: str = "q",
    given: str | None = None,
    right: bool = True,
    logprobs: Sequence[float] | None = None,
    end: bool = True,
    numbers: Sequence[int] = (0,),
) -> Row:
    """A row of prm.parquet; `end`: the end token follows the text."""
    ids = ids_of(text) + ids_of("<|end|>") * end
    return Row(
        problem_id=problem,
        source="test",
        question=question,
        answer="2",
        prompt_ids=np.array(ids_of(f"<|user|>{question}"), np.int32),
        response_ids=np.array(ids, np.int32),
        logprobs=np.array([-0.01] * len(ids) if logprobs is None else logprobs, np.float32),
        text=text,
        given=given,
        right=right,
        finished=end,
        step_ends=np.array(ends, np.int32),
        hard=np.array(hard, np.float32),
        soft=np.array(hard if soft is None else soft, np.float32),
        numbers=np.array(numbers, np.int32),
    )


def data_file(path: Path, rows: Sequence[Row], **settings: Any) -> Path:
    """prm.parquet of these rows."""
    made_with = {"rollouts": 8, "tau": 0.5, "tokenizer": tokenizer_fingerprint(policy_tokenizer()), **settings}
    write(path, rows, Facts(made_with, {"path": "/nowhere"}))
    return path


def learnable(problems: int = 16, each: int = 4, seed: int = 0) -> list[Row]:
    """Responses of 2 or 3 steps, each of 2 letters: a step is good as long as there was no `x`."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(problems):
        for _ in range(each):
            words = ["".join(rng.choice(list("abc"), 2)) for _ in range(int(rng.integers(2, 4)))]
            words = [w[0] + "x" if rng.random() < 0.35 else w for w in words]
            hard = np.cumprod(["x" not in w for w in words]).astype(float)
            ends = [2 * k + 1 for k in range(len(words))]
            rows.append(
                row("".join(words), ends, hard, soft=0.8 * hard + 0.1, problem=f"p{problem}", question=f"q{problem}")
            )
    return rows
