"""What kinds of tokens the boundaries are, beside what kinds all tokens are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from reasonrl.eval.prm.file import Ids

KINDS = ("digit", "punctuation", "space", "word")  # punctuation: operators too; space: newlines too


def kind_of(text: str) -> str:
    """Of a token's text: all blank, letters in it, digits in it, or neither."""
    bare = text.strip()
    if not bare:
        return "space"
    if any(character.isalpha() for character in bare):
        return "word"
    return "digit" if any(character.isdigit() for character in bare) else "punctuation"


class Kinds:
    """Counts token ids, and says what kinds they are."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.counted: Counter[int] = Counter()

    def add(self, token_ids: Ids) -> None:
        """Count these."""
        ids, counts = np.unique(token_ids, return_counts=True)
        self.counted.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))

    def totals(self) -> dict[str, int]:
        """Tokens of each kind."""
        found = dict.fromkeys(KINDS, 0)
        for token, count in self.counted.items():
            found[kind_of(self.tokenizer.decode([token]))] += count
        return found
