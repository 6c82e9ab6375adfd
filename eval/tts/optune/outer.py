"""The outer training of an editor: passes, batches, checkpoints. It knows pairs of token ids and a model, nothing else.

    N pairs of a pass, each with an edit of its own; a batch is what one optimiser step learns from

A training that was stopped and continued comes to the same bits on the CPU: noise follows from seed, step and pass, the order
from seed and epoch, and a checkpoint has editor, scales, moments, optimiser and position.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reasonrl.config import ConfigError, RunFailed
from reasonrl.engine.attention import keep_from_cudnn
from reasonrl.eval.tts.optune.editor import Editors
from reasonrl.eval.tts.optune.edits import MOST_TOKENS
from reasonrl.eval.tts.optune.factors import collected, edited, losses, passes
from reasonrl.eval.tts.optune.pairs import Pair
from reasonrl.eval.tts.optune.targets import Matrix
from reasonrl.runs.console import clock
from reasonrl.runs.files import replacing, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.eval.tts.optune.train import OptuneKnobs

CHECKPOINT = "checkpoint.safetensors"
TOLD_SECONDS = 10.0
MOST_BROKEN = 5  # passes in a row whose numbers are not finite
EVALUATIONS = 5  # on what is held out, in a whole training


class Outer:
    """One training. kept: steps that are in a checkpoint. skipped: passes whose numbers were not finite."""

    def __init__(
        self,
        knobs: OptuneKnobs,
        seed: int,
        model: nn.Module,
        layers: Sequence[nn.Linear],
        matrices: Sequence[Matrix],
        train: Sequence[Pair],
        held_out: Sequence[Pair],
        work: Path,
        console: Console,
    ) -> None:
        """Takes up the checkpoint in `work`, if there is one. Raises ConfigError for one that is damaged."""
        keep_from_cudnn()
        self.knobs, self.seed, self.model, self.layers = knobs, seed, model, layers
        self.train, self.held_out, self.work, self.console = train, held_out, work, console
        device = next(model.parameters()).device
        self.most_tokens = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
        self.editors = Editors(
            matrices, rank=knobs.rank, dropout=knobs.dropout, eta=knobs.eta, seed=_number(seed, 4, 0)
        ).to(device)
        self.parameters = list(self.editors.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=knobs.lr, weight_decay=0.0)
        self.batches = math.ceil(len(train) / knobs.batch)
        self.total = knobs.epochs * self.batches
        self.step = self.kept = self.skipped = self.broken = 0
        self.history: list[dict[str, float]] = []
        self._restore()

    def run(self) -> None:
        """Up to the last step. Raises RunFailed when numbers stay not finite, or when no editor came of them."""
        if self.step:
            self.console.print(f"continuing after step {self.step} of {self.total}")
        elif self.held_out:
            base = self._mean(self.held_out, edit=False)
            self.history.append({"step": 0, "base_loss": base})
            self.console.print(f"held out: loss {base:.4f} without an edit")
        begun, told, first = time.monotonic(), time.monotonic(), self.step
        every = self.knobs.save_every or max(self.total // 10, 1)
        while self.step < self.total:
            loss = self._update(self._batch(self.step))
            self.step += 1
            row: dict[str, float] = {"step": self.step, "loss": loss}
            if self.held_out and (self.step in (1, self.total) or self.step % max(self.total // EVALUATIONS, 1) == 0):
                row["held_out_loss"] = self._mean(self.held_out, edit=True)
                self.console.print(f"held out: loss {row['held_out_loss']:.4f} with edits, after step {self.step}")
            self.history.append(row)
            now = time.monotonic()
            if now - told >= TOLD_SECONDS or self.step == self.total:
                told = now
                left = (now - begun) / (self.step - first) * (self.total - self.step)
                self.console.print(
                    f"step {self.step:>{len(str(self.total))}}/{self.total}  loss {loss:.4f}"
                    + (f"  {self.skipped} passes skipped" if self.skipped else "")
                    + f"  left {clock(left)}"
                )
            if self.step % every == 0 or self.step == self.total:
                self.save()
        self._require_sound()

    def _require_sound(self) -> None:
        rows = [row for row in self.history if row["step"]]
        if all(math.isnan(row["loss"]) for row in rows):
            what = f"none of {self.total} steps had numbers that are finite, so nothing was learned"
        elif not math.isfinite(rows[-1].get("held_out_loss", 0.0)):
            what = "the loss of what is held out is not finite under the edits of this editor"
        else:
            return
        raise RunFailed(f"{what}. A smaller lr= or eta=, or dtype=float32, may help, in another out=")

    def _batch(self, step: int) -> list[Pair]:
        """Shuffled anew each epoch; within a batch by length, so that passes are even."""
        epoch, place = divmod(step, self.batches)
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.train))
        some = [self.train[i] for i in order[place * self.knobs.batch : (place + 1) * self.knobs.batch]]
        return sorted(some, key=_length)

    def _passes(self, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
        for some in passes([_length(pair) for pair in pairs], self.knobs.micro_batch, self.most_tokens):
            yield [pairs[i] for i in some]

    def _update(self, batch: Sequence[Pair]) -> float:
        """One optimiser step on the mean loss of a batch; returns it. NaN where every pass was skipped."""
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        loss, used = 0.0, 0
        for number, some in enumerate(self._passes(batch)):
            noise = torch.Generator().manual_seed(_number(self.seed, 5, self.step, number))
            found = self._losses(some, noise)
            gradients = None
            if found is not None:
                gradients = torch.autograd.grad(found.sum(), self.parameters, allow_unused=True)
            if found is None or gradients is None or not _finite([found, *(g for g in gradients if g is not None)]):
                self._skip()
                continue
            self.broken = 0
            loss, used = loss + float(found.detach().sum()), used + len(some)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        if not used:
            return math.nan
        for parameter, total in zip(self.parameters, sums, strict=True):
            parameter.grad = total / used
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss / used

    def _losses(self, some: Sequence[Pair], noise: torch.Generator) -> Tensor | None:
        """(N,) of the solutions under each pair's own edit; None when the attempts' gradients are not finite."""
        _, factors = collected(self.model, self.layers, [pair.lesson for pair in some])
        if not _finite([part for each in factors for part in (each.inputs, each.gradients)]):
            return None  # before the moments see it: they would never recover
        self.editors.observe(factors)
        with torch.enable_grad(), edited(self.layers, self.editors(factors, noise)):
            return losses(self.model, [pair.target for pair in some], [pair.start for pair in some])

    def _skip(self) -> None:
        self.skipped += 1
        self.broken += 1
        if self.broken >= MOST_BROKEN:
            raise RunFailed(
                f"{self.broken} passes in a row had numbers that are not finite, the last in step {self.step + 1}. Step "
                f"{self.kept} is kept in {self.work}. A smaller lr= or eta=, or dtype=float32, may help, in another out="
            )

    @torch.no_grad()
    def _mean(self, pairs: Sequence[Pair], *, edit: bool) -> float:
        """Mean loss; the moments stay as they are."""
        total = 0.0
        for some in self._passes(sorted(pairs, key=_length)):
            targets, starts = [pair.target for pair in some], [pair.start for pair in some]
            if edit:
                _, factors = collected(self.model, self.layers, [pair.lesson for pair in some])
                with edited(self.layers, self.editors(factors)):
                    found = losses(self.model, targets, starts)
            else:
                found = losses(self.model, targets, starts)
            total += float(found.sum())
        return total / len(pairs)

    # Checkpoints: one file, so that there is never half of one

    def save(self) -> None:
        """Everything that the rest of the training follows from."""
        from safetensors.torch import save

        tensors = {f"editors.{name}": value for name, value in self.editors.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        position = {name: getattr(self, name) for name in ("step", "skipped", "broken", "history")}
        with replacing(self.work / CHECKPOINT) as scratch:
            whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            # `save_file` has an error of its own for a full disk
            scratch.write_bytes(save(whole, metadata={"position": json.dumps(position)}))
        self.kept = self.step

    def _restore(self) -> None:
        from safetensors import SafetensorError, safe_open

        file = self.work / CHECKPOINT
        if not file.is_file():
            return
        try:
            with safe_open(file, framework="pt") as content:
                position = json.loads(content.metadata()["position"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            self.editors.load_state_dict(_under("editors.", tensors))
            state: dict[int, dict[str, Any]] = {}
            for name, value in _under("optimizer.", tensors).items():
                number, _, part = name.partition(".")
                state.setdefault(int(number), {})[part] = value
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise ConfigError(f"{file} is damaged ({error}): remove it, and the training starts anew") from error
        for name, value in position.items():
            setattr(self, name, value)
        self.kept = self.step

    def write_history(self, file: Path) -> None:
        """A line a step."""
        write_text(file, "".join(json.dumps(row) + "\n" for row in self.history))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _length(pair: Pair) -> int:
    return max(len(pair.lesson), len(pair.target))


def _number(*key: int) -> int:
    """A seed for torch that follows from all of these."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
