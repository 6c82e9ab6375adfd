"""The editor: from what an attempt left in a linear layer to a change of its weights. arXiv 2502.15771.

    N rows (sequences) of a pass, K usable tokens of all of them, T of the longest, di inputs and do outputs, D = di + do

`reasonrl.functional.editing` says the same in numpy, for one row. One editor serves all matrices of one shape; each matrix has
a scale eta of its own. Parameters are float32 and moments float64, whatever the model is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from reasonrl.eval.tts.optune.targets import Matrix
from reasonrl.functional.editing import GUARD, cheaper_factored

RANK, DROPOUT, ETA = 16, 0.1, 1e-4


@dataclass(frozen=True, eq=False)
class Factors:
    """What a pass left in one matrix: inputs (K, di), gradients (K, do), row after row; tokens of each row (N,)."""

    inputs: Tensor
    gradients: Tensor
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Edit:
    """`dW = right^T left` of each row: left (N, T, di), right (N, T, do), eta in it, zeros after a row's own tokens."""

    left: Tensor
    right: Tensor
    tokens: tuple[int, ...]

    def row(self, number: int) -> Edit:
        """That row alone, without padding."""
        own = self.tokens[number]
        return Edit(self.left[number : number + 1, :own], self.right[number : number + 1, :own], (own,))

    @property
    def factored(self) -> bool:
        """Whether it is applied token by token; else as a matrix."""
        return cheaper_factored(self.left.shape[1], self.left.shape[2], self.right.shape[2])

    @property
    def dense(self) -> Tensor:
        """(N, do, di)."""
        return self.right.mT @ self.left

    def of(self, rows: Tensor) -> Tensor:
        """What it adds to the outputs for inputs rows (N, L, di): (N, L, do), in its own dtype."""
        rows = rows.to(self.left.dtype)
        return (rows @ self.left.mT) @ self.right if self.factored else rows @ self.dense.mT


class Editor(nn.Module):
    """`g(z) = z + U dropout(D z) + b` of normalised z = [u; d], with the moments of all tokens seen in training."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, outputs: int, inputs: int, *, rank: int = RANK, dropout: float = DROPOUT, seed: int = 0) -> None:
        super().__init__()
        width = inputs + outputs
        self.inputs, self.dropout = inputs, dropout
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, factors: Sequence[Factors]) -> None:
        """Merge the tokens of these matrices into the moments, all at once (Chan's formula). In training only."""
        rows = torch.cat([torch.cat([each.inputs, each.gradients], dim=1) for each in factors]).double()  # (K, D)
        if not len(rows):
            return
        mean = rows.mean(dim=0)
        m2 = (rows - mean).square().sum(dim=0)
        count, gap = self.count + len(rows), mean - self.mean
        share = len(rows) / count.double()  # float32 otherwise
        self.m2 += m2 + gap.square() * (self.count * share)
        self.mean += gap * share
        self.count.copy_(count)

    def normalised(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """(K, D) float32. Never changes the moments."""
        std = (self.m2 / (self.count - 1).clamp(min=1)).sqrt()
        rows = torch.cat([inputs, gradients], dim=1).double()
        return ((rows - self.mean) / (std + GUARD)).float()

    def forward(self, inputs: Tensor, gradients: Tensor, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """u' (K, di) and d' (K, do). noise: of the dropout, on the CPU; None: no dropout."""
        z = self.normalised(inputs, gradients)
        inner = z @ self.down.mT
        if noise is not None and self.dropout:
            kept = torch.rand(inner.shape, generator=noise).to(inner.device) >= self.dropout
            inner = inner * kept / (1 - self.dropout)
        z = z + inner @ self.up.mT + self.bias
        return z[:, : self.inputs], z[:, self.inputs :]


class Editors(nn.Module):
    """An editor a shape, and a scale a matrix."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        *,
        rank: int = RANK,
        dropout: float = DROPOUT,
        eta: float = ETA,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.matrices = tuple(matrices)
        shapes = {each.shape: each for each in self.matrices}
        self.editors = nn.ModuleDict(
            {
                shape: Editor(each.outputs, each.inputs, rank=rank, dropout=dropout, seed=seed + number)
                for number, (shape, each) in enumerate(shapes.items())
            }
        )
        self.eta = nn.Parameter(torch.full((len(self.matrices),), eta))

    @property
    def size(self) -> dict[str, int]:
        """Parameters of the editor of each shape, without the scales."""
        return {shape: sum(each.numel() for each in editor.parameters()) for shape, editor in self.editors.items()}

    def observe(self, factors: Sequence[Factors]) -> None:
        """Merge what a pass left, matrix by matrix, into the moments."""
        for shape, editor in self.editors.items():
            assert isinstance(editor, Editor)
            editor.observe([each for matrix, each in zip(self.matrices, factors, strict=True) if matrix.shape == shape])

    def forward(self, factors: Sequence[Factors], noise: torch.Generator | None = None) -> list[Edit]:
        """The edits of a pass, matrix by matrix."""
        return [
            self._edit(number, matrix, each, noise)
            for number, (matrix, each) in enumerate(zip(self.matrices, factors, strict=True))
        ]

    def _edit(self, number: int, matrix: Matrix, factors: Factors, noise: torch.Generator | None) -> Edit:
        left, right = self.editors[matrix.shape](factors.inputs, factors.gradients, noise)
        right = self.eta[number] * right
        rows = [pad_sequence(list(torch.split(each, list(factors.tokens))), batch_first=True) for each in (left, right)]
        return Edit(rows[0], rows[1], factors.tokens)
