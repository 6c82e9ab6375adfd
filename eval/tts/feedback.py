"""The turns that answer an attempt, written by the tokenizer's own chat template.

A turn starts with f_0, the token that ends the attempt's turn: an attempt that ended by itself gives its own end token up for
it, one that was cut lacks it. The attempt's tokens stay as they were sampled; nothing is tokenised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasonrl.config import ConfigError

INCORRECT = "Your answer is incorrect."
TRY_AGAIN = "Your answer is incorrect. Please try again."
REFINE = (
    "There is an error in the solution above, because the question was misread somewhere. To find it, go through the solution "
    "block by block and check each against the question. Then write the whole solution again with the error corrected."
)
REFLECT = (
    "The answer above is wrong. Inspect it and list briefly every mistake in it. Do not give the corrected solution, and do "
    'not say "my solution".'
)
QUESTION, ANSWER, WORDS = "QUESTION0", "ANSWER0", "WORDS0"  # stand for contents, to find the markup around them


@dataclass(frozen=True)
class Closed:
    """A turn around its words, as tokens: f_0 with the user's header, and what ends the turn."""

    opening_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]


class FeedbackPolicy:
    """User turns in the markup of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ConfigError for a tokenizer whose chat template cannot hold a turn after an answer."""
        self._tokenizer = tokenizer
        self._cache: dict[tuple[str, bool], tuple[int, ...]] = {}
        name = getattr(tokenizer, "name_or_path", "")
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the tokenizer {name!r} has no chat template, and feedback is given in turns: choose a chat model, or a "
                "method that asks once, such as best_of_n"
            )
        try:
            self._markup(WORDS, True)
        except Exception as error:  # templates raise what they like
            raise ConfigError(
                f"the chat template of {name!r} cannot hold a user's turn after an answer "
                f"({(str(error).splitlines() or ['?'])[0]}): choose another model, or a method that asks once"
            ) from error

    def turn(self, words: str, *, header: bool = True) -> tuple[int, ...]:
        """f_0 and a user's turn. header: with the header of the answer that is wanted next."""
        key = (words, header)
        if key not in self._cache:
            self._cache[key] = self._ids(self._markup(words, header))
        return self._cache[key]

    def around(self, words: str) -> Closed:
        """A turn that starts with `words` and goes on with words to come, without them."""
        before, after = self._markup(f"{words}\n\n{WORDS}", False).split(WORDS)
        return Closed(self._ids(before), self._ids(after))

    def after(self, attempt_ids: Sequence[int], finished: bool, words: str, *, header: bool = True) -> tuple[int, ...]:
        """An attempt and the turn that answers it."""
        return (*body(attempt_ids, finished), *self.turn(words, header=header))

    def _markup(self, words: str, header: bool) -> str:
        turns = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": words},
        ]
        text = str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=header, tokenize=False))
        before, found, after = text.rpartition(ANSWER)
        if not found or QUESTION not in before or words.strip() not in after:
            raise ValueError("it leaves a turn out")
        return after

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def body(attempt_ids: Sequence[int], finished: bool) -> tuple[int, ...]:
    """An attempt without its end token, whose place f_0 takes."""
    return tuple(attempt_ids[:-1] if finished else attempt_ids)
