"""Edits at test time: `EditLearner` computes one from an attempt, keeps it for its question, and samples with it.

    N rows of a forward pass, L tokens of each, T usable tokens of an attempt, di inputs and do outputs of a layer

An edit follows from the base weights and one attempt alone; the next one takes its place. Rows of one pass have edits of their
own, or none: `out += (h left^T) right` for those that have one, as factors while these are cheaper than the matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reasonrl.eval.tts.base import Step, StepDone
from reasonrl.eval.tts.optune.editor import Edit, Editors
from reasonrl.eval.tts.optune.factors import collected, passes
from reasonrl.eval.tts.optune.lesson import tokens
from reasonrl.eval.tts.optune.targets import modules

MOST_ROWS = 64  # sequences of one backward pass
MOST_TOKENS = {
    "cpu": 4096,
    "cuda": 8192,
}  # of one backward pass: the logits of each are a row of the vocabulary, in float32


class EditLearner:
    """The `Learner` of OpTune. The model's parameters are never written."""

    def __init__(self, model: Any, editors: Editors, *, where: str = "the editor") -> None:
        """Puts hooks on the edited layers. Raises ConfigError for a model without them. where: what to call the editor."""
        self._model, self._editors = model, editors.eval()
        self._layers = modules(model, editors.matrices, where)
        self._edits: dict[str, list[Edit]] = {}  # by owner, matrix by matrix
        self._owners: tuple[str | None, ...] = ()
        self._stacks: list[list[Stack]] = []
        self._made = self._tokens = self._empty = 0
        self._handles = [layer.register_forward_hook(self._hook(i)) for i, layer in enumerate(self._layers)]

    def use(self, owners: Sequence[str | None]) -> None:
        """Row i of the passes to come has the edit of `owners[i]`; None, or an owner without an edit: the base weights."""
        if tuple(owners) == self._owners:
            return
        self._owners = tuple(owners)
        rows = [i for i, owner in enumerate(self._owners) if owner in self._edits]
        self._stacks = [
            stacked(rows, [self._edits[str(self._owners[row])][number] for row in rows])
            for number in range(len(self._layers) if rows else 0)
        ]

    @torch.no_grad()
    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """Edit each owner's weights, from the base weights.

        Raises FloatingPointError naming the questions whose edit is not finite; then nothing has changed.
        """
        self.use(())
        texts = [tokens(step) for _, step in asks]
        made: list[tuple[list[Edit], StepDone]] = []
        device = next(self._model.parameters()).device
        order = sorted(range(len(asks)), key=lambda i: len(texts[i]))
        lengths = [len(texts[i]) for i in order]
        most = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
        for some in passes(lengths, MOST_ROWS, most):
            begun = time.monotonic()
            losses, factors = collected(self._model, self._layers, [texts[order[i]] for i in some])
            dtype = self._model.dtype
            edits = [
                Edit(each.left.to(dtype), each.right.to(dtype), each.tokens) for each in self._editors(factors, None)
            ]
            found = losses.tolist()  # waits for the device
            seconds = (time.monotonic() - begun) / len(some)
            for row in range(len(some)):
                made.append(([each.row(row) for each in edits], StepDone(found[row], seconds)))
        bad = [asks[place][0] for place, (edits, _) in zip(order, made, strict=True) if not _sound(edits)]
        if bad:
            raise FloatingPointError(
                f"question {', '.join(bad[:3])}{' ..' * (len(bad) > 3)}: the edit of its attempt is not finite; train the "
                "editor with a smaller lr= or eta=, or use engine.dtype=float32"
            )
        done: list[StepDone] = [made[0][1]] * len(asks)
        for place, (edits, each) in zip(order, made, strict=True):
            self._edits[asks[place][0]] = edits
            done[place] = each
            self._made += 1
            self._tokens += edits[0].tokens[0]
            self._empty += not any(edit.tokens[0] for edit in edits)
        return done

    def forget(self, owner: str) -> None:
        """Its edit is gone."""
        self._edits.pop(owner, None)
        self._owners, self._stacks = (), []

    def factors(self, owner: str) -> dict[str, tuple[Tensor, Tensor]]:
        """left (T, di) and right (T, do) of each matrix by its name: it changes by right^T left. KeyError without an edit."""
        named = zip(self._editors.matrices, self._edits[owner], strict=True)
        return {matrix.name: (edit.left[0], edit.right[0]) for matrix, edit in named}

    def facts(self) -> dict[str, Any]:
        """Edits made, their tokens on average, and those of no token, which change nothing."""
        return {"edits": self._made, "edit_tokens": self._tokens / max(self._made, 1), "empty_edits": self._empty}

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._edits.clear()
        self._owners, self._stacks = (), []

    def _hook(self, number: int) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not self._stacks:
                return None
            if len(output) != len(self._owners):
                raise RuntimeError(f"a pass of {len(output)} rows with the weights of {len(self._owners)} owners")
            for stack in self._stacks[number]:
                extra = stack.of(args[0][stack.rows]).to(output.dtype)
                output = output.index_add(0, stack.rows, extra)
            return output

        return add


class Stack:
    """The edits of some rows of a pass, together: rows (n,), as factors or as matrices."""

    def __init__(self, rows: Tensor, edit: Edit) -> None:
        self.rows, self._edit = rows, edit
        self._dense = None if edit.factored else edit.dense  # (n, do, di)

    def of(self, inputs: Tensor) -> Tensor:
        """(n, L, do) for inputs (n, L, di)."""
        return self._edit.of(inputs) if self._dense is None else inputs.to(self._dense.dtype) @ self._dense.mT


def stacked(rows: Sequence[int], edits: Sequence[Edit]) -> list[Stack]:
    """Those that are cheaper as factors, and the others. Edits without a token are left out."""
    found = []
    for factored in (True, False):
        some = [(row, e) for row, e in zip(rows, edits, strict=True) if e.tokens[0] and e.factored == factored]
        if not some:
            continue
        most = max(each.tokens[0] for _, each in some)
        left, right = (torch.cat([_padded(part, most) for part in parts]) for parts in zip(*_parts(some), strict=True))
        number = torch.tensor([row for row, _ in some], device=left.device)
        found.append(Stack(number, Edit(left, right, tuple(each.tokens[0] for _, each in some))))
    return found


def _sound(edits: Sequence[Edit]) -> bool:
    return all(bool(part.isfinite().all()) for edit in edits for part in (edit.left, edit.right))


def _parts(some: Sequence[tuple[int, Edit]]) -> list[tuple[Tensor, Tensor]]:
    return [(each.left, each.right) for _, each in some]


def _padded(part: Tensor, tokens: int) -> Tensor:
    """(1, T, d) -> (1, tokens, d), zeros after its own."""
    return torch.nn.functional.pad(part, (0, 0, 0, tokens - part.shape[1]))
