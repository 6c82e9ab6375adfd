"""What is different where the answer is a program: once a response has it, nothing that follows changes the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonrl.verify.extract import cut_reasoning
from reasonrl.verify.judge.jobs import extract_code

if TYPE_CHECKING:
    import torch

    from reasonrl.engine.prm.guided import Row

    Choose = Callable[[list[Row], torch.Tensor], list[int]]

NEVER_PYTHON = "?"  # as a line of its own


def complete(text: str, answer_after: str = "none") -> bool:
    """Whether a response that begins with `text` has its program already, and so its verdict, whatever follows.

    It has once its first block of Python is closed and the line of the closing fence has ended. answer_after: as in
    `VerifyConfig`; after the last `</think>` there may always come another one.
    """
    if answer_after == "last_think":
        return False
    scored = cut_reasoning(text[: text.rfind("\n") + 1], answer_after)
    return scored is not None and extract_code(scored + NEVER_PYTHON) is not None


@dataclass(eq=False)
class UntilComplete:
    """Decodes as `guide` says until a response has its program, then as `otherwise` says: the verdict stands."""

    guide: Choose
    otherwise: Choose
    tokenizer: Any
    answer_after: str = "none"
    done: set[int] = field(default_factory=set)  # indices of rows

    def __call__(self, rows: list[Row], logits: torch.Tensor) -> list[int]:
        """The next token of each row; logits (N, V)."""
        for row in rows:
            ended_line = row.token_ids and "\n" in self._text(row.token_ids[-1:])  # nothing else completes it
            if ended_line and row.index not in self.done and complete(self._text(row.token_ids), self.answer_after):
                self.done.add(row.index)
        chosen = self.otherwise(rows, logits)
        under_way = [i for i, row in enumerate(rows) if row.index not in self.done]
        if under_way:
            guided = self.guide([rows[i] for i in under_way], logits[under_way])
            for i, token in zip(under_way, guided, strict=True):
                chosen[i] = token
        return chosen

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
