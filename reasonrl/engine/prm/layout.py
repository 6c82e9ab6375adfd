"""From a response cut into steps to the token ids that a process reward model reads, and where its tags are.

    L tokens of a response, K steps, T tokens of an input

Tags are put between token ids. Tagged text is never tokenised: it may come out with other tokens, or with more tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.engine.prm.card import Card, vocabulary_sha256
from reasonrl.functional.confidence import tagged

QUESTIONS = 4096  # tokenised questions that are remembered: a question has many responses


@dataclass(frozen=True)
class Steps:
    """A response and where its steps end: what is scored.

    question: bare text. prompt_ids: what the policy was given. response_ids: (L,) as it was sampled.
    ends: (K,) rising indices into `response_ids`, each the last token of a step; what follows the last one is not read.
    """

    question: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    ends: Sequence[int]


class Layout:
    """Inputs of one PRM, from the tokens of one policy.

    The ids of a policy with the PRM's own vocabulary are taken as they are, though the PRM has its tags besides. Another
    policy's response is decoded, tokenised as a whole, and each step end is found by its character: an end inside one of
    the PRM's tokens is refused, and so is text that the PRM's tokenizer does not give back.
    """

    def __init__(self, card: Card, tokenizer: Any, policy: Any = None) -> None:
        """tokenizer: the PRM's. policy: the policy's tokenizer; None: it has the PRM's vocabulary.

        Raises ValueError when there is no way between them.
        """
        self.card, self.tokenizer, self.policy = card, tokenizer, policy
        self.same = policy is None or vocabulary_sha256(policy) in (card.vocabulary, vocabulary_sha256(tokenizer))
        if not self.same and card.input == "prompt":
            raise ValueError(
                "the process reward model reads the policy's prompt ids (input=prompt), and this policy has another "
                "vocabulary: train one with input=question"
            )
        if not self.same and not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                "policy and process reward model have different vocabularies, and the latter's tokenizer knows no "
                "character offsets (not a fast tokenizer): use a process reward model of the policy's own family"
            )
        self._question = lru_cache(QUESTIONS)(self._tokenised)

    def __call__(self, item: Steps) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Input ids (T,), the last of them the last tag, and positions (K,) of the tags. Raises ValueError."""
        ends = np.asarray(item.ends, dtype=np.int64)
        ids = np.asarray(item.response_ids, dtype=np.int32)
        if not ends.size:
            return np.empty(0, np.int32), ends
        if (np.diff(ends) <= 0).any() or ends[0] < 0 or ends[-1] >= ids.size:
            raise ValueError(f"ends must be rising indices of the {ids.size} response tokens, got {ends.tolist()}")
        ids = ids[: ends[-1] + 1]
        if not self.same:
            ids, ends = self.translated(ids, ends)
        if self.card.input == "prompt":
            before = np.asarray(item.prompt_ids, dtype=np.int32)
        else:
            before = self._question(item.question)
        response, positions = tagged(ids, ends, self.card.tag)
        return np.concatenate([before, response]), positions + before.size

    def _tokenised(self, question: str) -> NDArray[np.int32]:
        return np.asarray(self.tokenizer(question, add_special_tokens=False)["input_ids"], dtype=np.int32)

    def translated(
        self, ids: NDArray[np.int32], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The policy's ids and ends in the PRM's tokens, by the characters at which steps end. Raises ValueError."""
        text = _decoded(self.policy, ids)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        theirs = np.asarray(encoded["input_ids"], dtype=np.int32)
        if _decoded(self.tokenizer, theirs) != text:
            raise _lossy(f"the process reward model's tokenizer does not give back the response {_shown(text)}")
        stops = np.asarray([stop for _, stop in encoded["offset_mapping"]])
        found = []
        for number, end in enumerate(ends):
            upto = _decoded(self.policy, ids[: end + 1])
            if not text.startswith(upto):
                raise _lossy(f"step {number + 1} of {_shown(text)} ends inside a character")
            token = self._token_ending(upto, theirs, stops)
            if token is None:
                raise _lossy(
                    f"step {number + 1} ends after {_shown(upto[-20:])}, inside a token of the process reward model"
                )
            found.append(token)
        if (np.diff(found) <= 0).any():
            raise _lossy(f"two steps of {_shown(text)} end with the same token of the process reward model")
        return theirs, np.asarray(found, dtype=np.int64)

    def _token_ending(self, upto: str, ids: NDArray[np.int32], stops: NDArray[np.int64]) -> int | None:
        """The token with which the text `upto` ends; None when it ends inside one.

        Offsets only say where to look: some tokenizers leave spaces out of them, and the bytes of one character may be
        several tokens with the same offsets.
        """
        near = int(np.searchsorted(stops, len(upto)))
        for token in range(max(near - 1, 0), min(near + 5, ids.size)):
            if _decoded(self.tokenizer, ids[: token + 1]) == upto:
                return token
        return None


def _decoded(tokenizer: Any, ids: NDArray[np.int32]) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _lossy(what: str) -> ValueError:
    return ValueError(
        f"{what}: policy and process reward model have different tokenizers. Use a process reward model that was trained "
        "from the policy's own family, or cut steps at line ends"
    )
