"""Losses of sequences, what their gradients leave in linear layers, and forward passes with edited weights.

    N rows (sequences) of a pass, L tokens of the longest, T usable tokens, di inputs and do outputs of a layer

The base weights take no gradient: the graph starts at the outputs of the first edited layer, so a backward pass costs what lies
above it, for any architecture. Hooks on the layers work with every attention implementation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonrl.config import ConfigError
from reasonrl.eval.tts.optune.editor import Edit, Factors

# Where mathematics gives 0 (the query of a first token: a softmax over one key), a kernel may leave a rounding error, up to
# 2e-7 of the row's largest in float32. Kept, it would be normalised like a gradient: below this share it counts as 0.
ZERO = 1e-6


def losses(model: nn.Module, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
    """(N,) mean cross-entropy, float32, of each row's tokens from its start (1 or more) on; 0 for a row without any."""
    device = next(model.parameters()).device
    length = max(map(len, sequences))
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    ids = ids.to(device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask.to(device), use_cache=False).logits  # (N, L, V)
    found = []
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        wanted = ids[row, start : len(sequence)]
        made = logits[row, start - 1 : len(sequence) - 1].float()
        found.append(F.cross_entropy(made, wanted, reduction="sum") / max(len(wanted), 1))
    return torch.stack(found)


def collected(
    model: nn.Module, layers: Sequence[nn.Linear], sequences: Sequence[Sequence[int]]
) -> tuple[Tensor, list[Factors]]:
    """Mean next-token cross-entropy of each row (N,), and what its gradient leaves in each layer.

    Rows are independent: their losses are summed, and one row's tokens see no other's. Tokens whose input or gradient is all
    zero are left out, and so is padding. Raises ConfigError for a layer that does not read all tokens.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(number: int) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            made = output if output.requires_grad else output.detach().requires_grad_()
            seen[number] = (args[0].detach(), made)
            return made

        return hook

    rows, length = len(sequences), max(map(len, sequences))
    with torch.enable_grad(), _hooks(layers, keep):
        found = losses(model, sequences, [1] * rows)
        if len(seen) < len(layers) or any(each.shape[:2] != (rows, length) for each, _ in seen.values()):
            raise ConfigError(
                "one of the edited layers does not read every token, as an expert does: choose other targets="
            )
        gradients = torch.autograd.grad(found.sum(), [seen[i][1] for i in range(len(layers))], allow_unused=True)
    real = torch.arange(length) < torch.tensor([len(each) for each in sequences])[:, None]  # (N, L)
    made = []
    for number, gradient in enumerate(gradients):
        inputs, outputs = seen[number]
        made.append(_usable(inputs, torch.zeros_like(outputs) if gradient is None else gradient, real))
    return found.detach(), made


def _usable(inputs: Tensor, gradients: Tensor, real: Tensor) -> Factors:
    inputs, gradients = inputs.float(), gradients.float()
    size = gradients.abs().amax(dim=-1)  # (N, L)
    used = (size > ZERO * size.amax(dim=-1, keepdim=True)) & (inputs != 0).any(dim=-1)
    # what is not finite stays, so that whoever uses it can see it
    used = (used | ~size.isfinite()) & real.to(used.device)
    return Factors(inputs[used], gradients[used], tuple(used.sum(dim=1).tolist()))


@contextlib.contextmanager
def edited(layers: Sequence[nn.Linear], edits: Sequence[Edit]) -> Iterator[None]:
    """Forward passes in here give every row its own edited weights."""

    def add(number: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + edits[number].of(args[0]).to(output.dtype)

        return hook

    with _hooks(layers, add):
        yield


@contextlib.contextmanager
def _hooks(layers: Sequence[nn.Linear], hook: Callable[[int], Callable[..., Tensor | None]]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def passes(lengths: Sequence[int], most_rows: int, most_tokens: int) -> Iterator[range]:
    """Neighbours that go through the model together: at most so many rows, and so many tokens with padding."""
    start, longest = 0, 0
    for number, length in enumerate(lengths):
        wider = max(longest, length)
        if number > start and (number - start >= most_rows or wider * (number - start + 1) > most_tokens):
            yield range(start, number)
            start, wider = number, length
        longest = wider
    if lengths:
        yield range(start, len(lengths))
