"""Prompts: how a bare question becomes the tokens a model is given.

One implementation for training, validation and evaluation: all of them call `Prompt.encode_many`. Two kinds:
- `chat`: `system` and `user` are turns, rendered by the tokenizer's own chat template;
- `text`: `user` is the whole text (base models), and no chat template is needed.

The prompts are data, in `conf/prompt/*.yaml`. `Prompt.hash` goes into a run's provenance, and so does
`chat_template_hash`, because the same chat prompt gives other tokens under another template.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonrl.data.typed import typed, unknown_name

SLOT = "{question}"  # the only thing that is ever filled in; other braces, such as \boxed{}, are text
KINDS = ("chat", "text")


@dataclass(frozen=True)
class Prompt:
    """One prompt template; the `prompt` group of the configuration."""

    name: str
    kind: str  # chat | text
    user: str  # the user's turn, or the whole text; holds `{question}` exactly once
    system: str | None = None  # chat only; None leaves it to the chat template (Qwen2.5's adds one of its own)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown_name("prompt.kind", self.kind, KINDS))
        if self.user.count(SLOT) != 1:
            raise ValueError(f"prompt.user of {self.name!r} must hold {SLOT} exactly once, got {self.user!r}")
        if self.kind == "text" and self.system is not None:
            raise ValueError(f"prompt {self.name!r} is of kind text, which has no system turn: put it into prompt.user")

    @property
    def hash(self) -> str:
        """sha256 of what reaches the model; the name is left out."""
        return _sha256([self.kind, self.system, self.user])

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat turns. For a text prompt, one user turn with the whole text."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*turns, {"role": "user", "content": self.user.replace(SLOT, question)}]

    def encode(self, question: str, tokenizer: Any) -> list[int]:
        """The prompt's token ids, up to where the assistant starts to write. Never cut."""
        return self.encode_many([question], tokenizer)[0]

    def encode_many(self, questions: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """`encode` for many questions; several times faster with a fast tokenizer.

        Raises ValueError when a chat prompt meets a tokenizer without chat template.
        """
        if not questions:
            return []
        if self.kind == "chat":
            # The chat template writes the special tokens itself.
            return _batch(tokenizer, self._rendered(questions, tokenizer), add_special_tokens=False)
        texts = [self.user.replace(SLOT, question) for question in questions]
        bos = getattr(tokenizer, "bos_token", None)
        written = bos is not None and self.user.startswith(bos)
        return [_without_eos(ids, tokenizer) for ids in _batch(tokenizer, texts, add_special_tokens=not written)]

    def _rendered(self, questions: Sequence[str], tokenizer: Any) -> list[str]:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"prompt={self.name} is a chat prompt, but the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} "
                f"has no chat template. Use a text prompt (prompt=r1_zero or prompt=orz), or a model that has one"
            )
        turns = [self.messages(question) for question in questions]
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def prompt_from_config(cfg: Mapping[str, Any]) -> Prompt:
    """The `prompt` node of a composed configuration as a Prompt. Raises ValueError naming what is wrong."""
    return typed(Prompt, cfg, "prompt")


def chat_template_hash(tokenizer: Any) -> str | None:
    """sha256 of the tokenizer's chat template(s); None when it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return _sha256(template) if template else None


def _batch(tokenizer: Any, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _without_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """A tokenizer that closes every text with its end token would close the prompt before the model can answer."""
    end = getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if len(ids) > 1 and end is not None and ids[-1] == end else ids


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
