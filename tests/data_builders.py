"""Small tokenizers and files for the data tests: a byte-level tokenizer, made here, with and without chat template."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, chat: bool = True, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte; `bos` and `eos` say whether it adds them to a text by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|system|>", "<|assistant|>"]})
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' <|end|>' if eos else ''}"
        special = [(name, fast.convert_tokens_to_ids(name)) for name in ("<s>", "<|end|>")]
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    fast.chat_template = CHAT if chat else None
    return fast


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Rows as JSON lines, texts as they are; gzipped when the name says so."""
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path
