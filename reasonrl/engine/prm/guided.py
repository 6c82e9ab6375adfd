"""Token-level value-guided decoding (TVD) of AdaptiveStep, arXiv 2502.13943, section 3.3 and figure 3.

    N rows under way, T columns of the key/value cache, V vocabulary, M candidates

Greedy decoding, but where the probability of the best next token is below tau the M most likely tokens are each put after
what is there, the process reward model scores the step that would end with it, and the best of them is kept, of equals the
more likely. On token ids: the released code goes through strings, where two tokens of one text are one candidate and the
text so far is tokenised anew each time.

As released, only the end of the candidate's step carries a tag (`tags="last"`); `tags="all"` also tags the earlier places
where the model was asked, which is what it read in training. The end token is no text: a candidate that ends the response
is scored by the response so far, and where it is the best token itself the response ends, as released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.cache_utils import DynamicCache

from reasonrl.engine.prm.layout import Steps
from reasonrl.functional.confidence import triggers

if TYPE_CHECKING:
    from reasonrl.engine.prm import Scorer

Choose = Callable[[list["Row"], torch.Tensor], list[int]]


@dataclass(eq=False)
class Row:
    """A response under way, and what the guide did to it."""

    index: int  # of its prompt
    token_ids: list[int] = field(default_factory=list)
    finished: bool = False  # True: ended by itself; False: cut at the limit
    asked: list[int] = field(default_factory=list)  # indices into token_ids at which the PRM was asked
    changed: int = 0  # how often it chose another token than the model's
    unscored: int = 0  # how often it could say nothing, for want of context: the model's token was kept


def greedy(rows: list[Row], logits: torch.Tensor) -> list[int]:
    """The most likely token of each row; logits (N, V)."""
    return list(map(int, logits.argmax(dim=-1).tolist()))


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    max_tokens: int,
    choose: Choose = greedy,
    rows: int = 64,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Row]:
    """One response a prompt, in order.

    Args:
        model: causal language model in evaluation mode.
        prompts: token ids, none empty.
        end_ids: tokens that end a response; they stay in it.
        max_tokens: of a response, at least 1.
        choose: the next token of each row from its logits (N, V) float32.
        rows: decoded together. Which ones are changes no response, up to rounding.
        tell: is given how many are done, after each `rows`.
    Raises:
        ValueError: an empty prompt, or a limit below 1.
    """
    if max_tokens < 1 or rows < 1:
        raise ValueError(f"max_tokens and rows must be at least 1, got {max_tokens} and {rows}")
    if not all(map(len, prompts)):
        raise ValueError("a prompt needs at least one token")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # little padding
    made = [Row(index) for index in range(len(prompts))]
    ends = set(end_ids)
    for start in range(0, len(order), rows):
        _wave(model, [made[i] for i in order[start : start + rows]], prompts, ends, max_tokens, choose)
        tell(min(start + rows, len(order)))
    return made


def _wave(
    model: Any, live: list[Row], prompts: Sequence[Sequence[int]], ends: set[int], max_tokens: int, choose: Choose
) -> None:
    """Decode these to their end. Prompts are padded on the left; a row that ends leaves the cache."""
    device, longest = model.device, max(len(prompts[row.index]) for row in live)
    ids = torch.zeros((len(live), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(live):
        prompt = prompts[row.index]
        ids[place, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[place, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    while True:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = choose(live, out.logits[:, -1].float())
        for row, token in zip(live, tokens, strict=True):
            row.token_ids.append(token)
            row.finished = token in ends
        kept = [i for i, row in enumerate(live) if not row.finished and len(row.token_ids) < max_tokens]
        if not kept:
            return
        last = positions[:, -1:]
        if len(kept) < len(live):
            places = torch.tensor(kept, device=device)
            cache.batch_select_indices(places)
            mask, last = mask[places], last[places]
            live, tokens = [live[i] for i in kept], [tokens[i] for i in kept]
        ids = torch.tensor(tokens, device=device)[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = last + 1


@dataclass(eq=False)
class Guide:
    """Asks the PRM where the model is unsure; all rows that are unsure at one token go to it together.

    scorer: of a PRM. questions, prompts: of the rows, by their index. tau: threshold of the best token's probability at
    temperature 1. candidates: M, the paper's is 8. round_percent: compare in hundredths of a percent, as released.
    """

    scorer: Scorer
    questions: Sequence[str]
    prompts: Sequence[Sequence[int]]
    tau: float
    end_ids: frozenset[int]
    candidates: int = 8
    round_percent: bool = False
    tags: Literal["last", "all"] | str = "last"
    calls: int = 0  # of the scorer
    scored: int = 0  # candidates

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau must be a probability in [0, 1], got {self.tau}; 55 percent is 0.55")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")
        if self.tags not in ("last", "all"):
            raise ValueError(f"tags must be last or all, got {self.tags!r}")

    def __call__(self, rows: list[Row], logits: torch.Tensor) -> list[int]:
        """The next token of each row; logits (N, V)."""
        best, tokens = torch.log_softmax(logits.double(), dim=-1).max(dim=-1)
        chosen = list(map(int, tokens.tolist()))
        unsure = [
            i
            for i, c in enumerate(best.exp().clamp(max=1.0).tolist())
            if chosen[i] not in self.end_ids and triggers(c, self.tau, round_percent=self.round_percent)
        ]
        if not unsure:
            return chosen
        many = min(self.candidates, logits.shape[1])
        ordered = logits[unsure].topk(many, dim=-1).indices.tolist()  # (n, M), most likely first
        offered = [
            [chosen[i], *(t for t in some if t != chosen[i])][:many] for i, some in zip(unsure, ordered, strict=True)
        ]
        items = [self._item(rows[i], token) for i, some in zip(unsure, offered, strict=True) for token in some]
        found = iter(self.scorer.score([item for item in items if item is not None]))
        scores = [-math.inf if item is None else float(next(found)[-1]) for item in items]
        self.calls += 1
        self.scored += sum(item is not None for item in items)
        for place, (i, some) in enumerate(zip(unsure, offered, strict=True)):
            row, own = rows[i], scores[place * many : (place + 1) * many]
            row.asked.append(len(row.token_ids))
            if any(map(math.isnan, own)):  # near the context's end only "stop here" may still have one
                row.unscored += 1
                continue
            token = some[max(range(many), key=lambda m: (own[m], -m))]
            row.changed += token != chosen[i]
            chosen[i] = token
        return chosen

    def _item(self, row: Row, token: int) -> Steps | None:
        """What is scored for a candidate; None where there is no text to score."""
        ids = row.token_ids if token in self.end_ids else [*row.token_ids, token]
        if not ids:
            return None
        last = len(ids) - 1
        before = [i for i in row.asked if i < last] if self.tags == "all" else []
        return Steps(self.questions[row.index], self.prompts[row.index], ids, [*before, last])
