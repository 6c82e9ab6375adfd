"""Continuous batching over a transformers causal LM, with vLLM's sampling parameters. No Ray, no verl.

    N rows generating now, T columns of the key/value cache in use, V vocabulary

Row i has a slot of the cache, filled from column 0 on. A waiting request joins between two decoding steps: its prompt is
prefilled apart and copied into a free slot. When a row finishes, the last row moves into its slot. So no row waits for the
longest, and joining or leaving copies one row, not all of them.

Sampling is inverse-CDF on uniforms that a request owns (Philox, keyed by the request's `seed`): token t of a request
uses its t-th uniform, whatever else is in the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

STOP_WINDOW = 16  # tokens decoded again after each step to look for a stop string
PATIENCE = 8  # decoding steps that a few waiting requests are held back for company
GROWTH = 64  # columns that the cache grows by


@dataclass(frozen=True)
class Sampling:
    """How one request samples; names and meanings are vLLM's.

    temperature: 0 is greedy. top_p in (0, 1], top_k: -1 or 0 keeps all. max_tokens: at least 1.
    stop: strings that end the response (they stay in the token ids, as verl's vLLM server leaves them).
    seed: key of this request's noise, any tuple of non-negative integers below 2**32.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < -1:
            raise ValueError(f"top_k must be -1 (all) or at least 0, got {self.top_k}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


class RowWeights(Protocol):
    """Weights of some rows' own, beside the model's."""

    def use(self, owners: Sequence[str | None]) -> None:
        """Row i of the passes to come has the weights of `owners[i]`; None: the model's alone. (): no row has its own."""
        ...


@dataclass(eq=False)
class Sequence_:
    """One request under way: its prompt, and what it has generated so far. owner: of the weights it is sampled with."""

    prompt_ids: list[int]
    sampling: Sampling
    done: Callable[[Sequence_], None]
    owner: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False  # True: ended by itself; False: cut at max_tokens
    uniforms: np.ndarray = field(init=False)  # (max_tokens,)

    def __post_init__(self) -> None:
        noise = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.sampling.seed)))
        self.uniforms = noise.random(self.sampling.max_tokens)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: row i has its own length and fills columns 0 .. length - 1 of slot i.

    A buffer (slots, heads, columns, width) that grows in steps. `place` tells where the next tokens of each row go.
    """

    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        values = key_states if value_states is None else value_states
        self.keys, self.values = (_empty_like(x) for x in (key_states, values))
        self.is_initialized = True

    def reserve(self, slots: int, columns: int) -> None:
        """Room for at least so many slots and columns. Copies only when a buffer grows."""
        assert self.keys is not None
        have = self.keys.shape
        if slots <= have[0] and columns <= have[2]:
            return
        slots = max(have[0], slots if slots <= have[0] else max(slots, 2 * have[0]))
        columns = max(have[2], -(-columns // GROWTH) * GROWTH)
        self.keys, self.values = (_grown(x, slots, columns) for x in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One new token a row: key_states (N, heads, 1, width)."""
        n, columns = key_states.shape[0], self.place.columns + 1
        self.reserve(n, columns)
        assert self.keys is not None
        assert self.values is not None
        slots, ends = torch.arange(n, device=key_states.device), self.place.ends
        self.keys[slots, :, ends] = key_states[:, :, 0]
        self.values[slots, :, ends] = value_states[:, :, 0]
        return self.keys[:n, :, :columns], self.values[:n, :, :columns]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.place.columns + int(query_length if isinstance(query_length, int) else len(query_length)), 0

    def get_seq_length(self) -> int:
        return self.place.columns

    def get_max_cache_shape(self) -> int:
        return -1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one slot to another."""
        for x in (self.keys, self.values):
            assert x is not None
            x[target, :, :length] = x[source, :, :length]

    def fill(self, first: int, read: Any, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Slots from `first` on get what the prompts left in `read`: row `rows[k]`, right-aligned, `lengths[k]` columns."""
        if not self.is_initialized:
            self.lazy_initialization(read.keys, read.values)
        self.reserve(first + len(rows), max(lengths))
        members: dict[int, list[int]] = {}  # a prompt is often asked for several times
        for k, row in enumerate(rows):
            members.setdefault(row, []).append(k)
        for row, ks in members.items():
            slots, length = torch.tensor([first + k for k in ks], device=read.keys.device), lengths[ks[0]]
            for mine, theirs in ((self.keys, read.keys), (self.values, read.values)):
                assert mine is not None
                mine[slots, :, :length] = theirs[row, :, theirs.shape[2] - length :]


class Place:
    """Where each running row stands; shared by the layers of a cache.

    The numbers live on the CPU, so that no layer waits for a GPU to read them, with a copy on the model's device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.lengths = torch.empty(0, dtype=torch.long)

    @property
    def lengths(self) -> torch.Tensor:
        """(N,) columns in use, on the CPU."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: torch.Tensor) -> None:
        self._lengths = lengths
        self.ends = lengths.to(self._device)  # (N,) the same, on the model's device
        self.columns = int(lengths.max()) if len(lengths) else 0  # T: columns that any row uses


def _empty_like(states: torch.Tensor) -> torch.Tensor:
    # zeros, not garbage: a masked column still takes part as 0 * value, and 0 * NaN is NaN
    return states.new_zeros(0, states.shape[1], 0, states.shape[3])


def _grown(x: torch.Tensor, slots: int, columns: int) -> torch.Tensor:
    grown = x.new_zeros(slots, x.shape[1], columns, x.shape[3])
    grown[: x.shape[0], :, : x.shape[2]] = x
    return grown


class Generator:
    """Runs requests through `model`; call `add`, then `step` until `idle`."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        end_ids: Sequence[int],
        decode: Callable[[list[int]], str] | None = None,
        max_rows: int = 256,
        weights: RowWeights | None = None,
    ) -> None:
        """weights: of owners, see `Sequence_`. Raises ValueError for a model that is not full attention."""
        kinds = getattr(model.config, "layer_types", None)
        if kinds is None and getattr(model.config, "sliding_window", None):
            kinds = ["sliding_attention"]  # Mistral: every layer, and no list of them
        sliding = {kind for kind in kinds or () if kind != "full_attention"}
        if sliding:
            raise ValueError(
                f"the CPU rollout handles full attention only, this model has layers of type {sorted(sliding)}: "
                "run it with engine=gpu"
            )
        self.model = model
        self.end_ids = frozenset(end_ids)
        self.decode = decode
        self.max_rows = max_rows
        self.weights = weights
        self.device = getattr(model, "device", torch.device("cpu"))
        self.waiting: deque[Sequence_] = deque()
        self.rows: list[Sequence_] = []
        self.place = Place(self.device)
        self.last = torch.empty(0, dtype=torch.long, device=self.device)  # (N,) newest token of each row
        self.cache: Cache | None = None
        self.patience = PATIENCE

    @property
    def idle(self) -> bool:
        return not self.rows and not self.waiting

    def add(self, request: Sequence_) -> None:
        if not request.prompt_ids:
            raise ValueError("a request needs at least one prompt token")
        if request.owner is not None and self.weights is None:
            raise ValueError(f"a request asks for the weights of {request.owner!r}, and nobody here holds weights")
        self.waiting.append(request)

    def drop_all(self) -> list[Sequence_]:
        """Forget every request, returning those that had not finished."""
        lost = [*self.rows, *self.waiting]
        self.waiting.clear()
        self._forget()
        return lost

    def _forget(self) -> None:
        self.rows, self.cache, self.place = [], None, Place(self.device)
        self.last = torch.empty(0, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Let waiting requests join, then generate one token for every row."""
        room = self.max_rows - len(self.rows)
        # Joining costs a pass over the prompts: let a few gather, for a few steps, unless nothing is running.
        if self.waiting and room > 0:
            enough = len(self.waiting) >= min(room, max(1, self.max_rows // 16))
            if not self.rows or enough or self.patience == 0:
                self._admit(min(room, len(self.waiting)))
                return
            self.patience -= 1
        if not self.rows:
            return
        assert self.cache is not None
        ends = self.place.ends
        columns = torch.arange(self.place.columns + 1, device=self.device)
        mask = _additive(columns[None, :] <= ends[:, None], self.model.dtype)[:, None, None, :]  # (N, 1, 1, T+1)
        self._use([row.owner for row in self.rows])
        out = self.model(
            input_ids=self.last[:, None],
            attention_mask=mask,
            position_ids=ends[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.place.lengths = self.place.lengths + 1
        self._accept(out.logits[:, -1])

    def _admit(self, count: int) -> None:
        """Prefill each distinct prompt of an owner once, sample its first tokens, join the running rows."""
        requests = [self.waiting[i] for i in range(count)]  # they leave the queue once the model has read them
        distinct: dict[tuple[str | None, tuple[int, ...]], int] = {}
        source = [distinct.setdefault((r.owner, tuple(r.prompt_ids)), len(distinct)) for r in requests]
        prompts = [prompt for _, prompt in distinct]
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        start = torch.tensor([width - len(p) for p in prompts])
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
        ids, start = ids.to(self.device), start.to(self.device)
        columns = torch.arange(width, device=self.device)
        real = columns[None, :] >= start[:, None]
        seen = (columns[None, :] <= columns[:, None])[None] & real[:, None, :]
        # a padded query must see something, or it becomes NaN
        seen = seen | torch.eye(width, dtype=torch.bool, device=self.device)[None]
        read = DynamicCache()
        self._use([owner for owner, _ in distinct])
        out = self.model(
            input_ids=ids,
            attention_mask=_additive(seen, self.model.dtype)[:, None],
            position_ids=(columns[None, :] - start[:, None]).clamp(min=0),
            past_key_values=read,
            use_cache=True,
            logits_to_keep=1,
        )
        before = len(self.rows)
        lengths = [len(r.prompt_ids) for r in requests]
        if self.cache is None:
            self.cache = Cache(layers=[SlotLayer(self.place) for _ in read.layers])
        for mine, theirs in zip(self.cache.layers, read.layers, strict=True):
            mine.fill(before, theirs, source, lengths)
        self.place.lengths = torch.cat([self.place.lengths, torch.tensor(lengths)])
        for _ in requests:
            self.waiting.popleft()
        self.rows.extend(requests)
        self.patience = PATIENCE
        self.last = torch.cat([self.last[:before], self.last.new_zeros(len(requests))])
        self._accept(out.logits[:, -1][torch.tensor(source, device=self.device)], first=before)

    def _use(self, owners: Sequence[str | None]) -> None:
        if self.weights is not None:
            self.weights.use(owners)

    def _accept(self, logits: torch.Tensor, first: int = 0) -> None:
        """Sample a token for the rows from `first` on, and let finished rows leave."""
        rows = self.rows[first:]
        tokens, logprobs = sample(logits.float(), rows)
        self.last[first:] = tokens
        leaving = []
        for i, (row, token, logprob) in enumerate(zip(rows, tokens.tolist(), logprobs.tolist(), strict=True), first):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if self._ends(row, token):
                row.finished = True
                leaving.append(i)
            elif len(row.token_ids) >= row.sampling.max_tokens:
                leaving.append(i)
        if leaving:
            self._leave(set(leaving))

    def _ends(self, row: Sequence_, token: int) -> bool:
        if token in row.sampling.stop_token_ids or (token in self.end_ids and not row.sampling.ignore_eos):
            return True
        if row.sampling.stop and self.decode is not None:
            tail = self.decode(row.token_ids[-STOP_WINDOW:])
            return any(text in tail for text in row.sampling.stop)
        return False

    def _leave(self, leaving: set[int]) -> None:
        gone = [self.rows[i] for i in sorted(leaving)]
        if len(leaving) == len(self.rows):
            self._forget()
        else:
            order = list(range(len(self.rows)))
            for i in sorted(leaving, reverse=True):
                if i != len(order) - 1:  # the last row moves into the free slot
                    self._move(source=len(order) - 1, target=i, length=int(self.place.lengths[order[-1]]))
                    order[i] = order[-1]
                order.pop()
            rows = torch.tensor(order)
            self.place.lengths, self.last = self.place.lengths[rows], self.last[rows.to(self.device)]
            self.rows = [self.rows[i] for i in order]
        for row in gone:
            row.done(row)

    def _move(self, source: int, target: int, length: int) -> None:
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.move(source, target, length)


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def sample(logits: torch.Tensor, rows: Sequence[Sequence_]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token for each row. logits (N, V) float32 -> token ids (N,), log-probabilities (N,).

    The log-probability is that of the distribution drawn from: after temperature and after top-k and top-p, which is
    vLLM's `processed_logprobs` and what verl compares with the trained policy.
    """
    vocabulary, device = logits.shape[1], logits.device
    temperature = torch.tensor([r.sampling.temperature for r in rows], device=device)
    greedy = temperature == 0
    logits = logits / torch.where(greedy, 1.0, temperature)[:, None]
    top_k = torch.tensor([r.sampling.top_k if r.sampling.top_k > 0 else vocabulary for r in rows])
    top_p = torch.tensor([r.sampling.top_p for r in rows], dtype=torch.float32)
    if bool((top_k < vocabulary).any()) or bool((top_p < 1).any()):
        logits = restrict(logits, top_k.clamp(max=vocabulary).to(device), top_p.to(device))
    logprobs = torch.log_softmax(logits, dim=-1)
    uniform = torch.tensor([r.uniforms[len(r.token_ids)] for r in rows], dtype=torch.float64, device=device)
    # in place: with 128 rows and 152,000 tokens each (N, V) in float64 is 0.16 GB
    cdf = logprobs.to(torch.float64, copy=True).exp_().cumsum_(dim=-1)
    # Scaling by the last value keeps the draw inside the support when rounding leaves the total just under one.
    drawn = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=vocabulary - 1)
    tokens = torch.where(greedy, logits.argmax(dim=-1), drawn)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def restrict(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set everything outside top-k, then outside the smallest set of mass top_p, to -inf. logits (N, V)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    ordered.masked_fill_(rank[None, :] >= top_k[:, None], float("-inf"))
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1).sub_(probability)
    drop = before >= top_p[:, None]
    drop[:, 0] = False
    ordered.masked_fill_(drop, float("-inf"))
    return torch.empty_like(logits).scatter_(1, order, ordered)
