"""Low-rank weights of each question's own, sampled with and trained for many questions in one pass.

    K rows with weights of their own, of the N rows of a pass; L tokens of a row, W of its question and attempt, F of its lesson
    r rank, di inputs and do outputs of a linear layer, P weights of a question

A hook on each target layer adds `alpha / r * B_k A_k dropout(x_k)` to the rows that have weights: LoRA as peft computes it
(scale, Kaiming-uniform A, B = 0, dropout before A, float32 beside a model of lower precision). peft holds one adapter a pass;
here row k of a pass has its own, so that a round of questions takes one.

A question's numbers follow from itself: A and the dropout of a step come from `Step.seed`, the loss is a row's own, and the
rows' gradients are separate. What else is in the batch changes them by rounding alone: with the embedded model a step beside
three others differs from the same one alone by 1e-5 of its length in float32, and by 1e-15 beside a float64 model. In bfloat16,
on a GPU, it is 3 to 8 %. Adam's first step is the sign of a gradient, which rounding turns where it is nearly 0: 0.6 % of the
weights, between a CPU and a GPU. The model's weights are never written to: to forget a question is to drop its tensors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from reasonrl.config import ConfigError
from reasonrl.eval.tts.base import Step, StepDone
from reasonrl.functional.feedback import lora_bound, lora_parameters, token_weights

if TYPE_CHECKING:
    from reasonrl.eval.tts.methods.fttt import FTTT

MOST_TOKENS = 16_384  # of a batch of steps, padding included: about 13 GiB with a model of 8 B
MOST_GRAD_TOKENS = 4_096  # the same, where gradients flow through question and attempt: about 27 GiB
MOST_LOGITS = 2**28  # of a batch: 1 GiB in float32
BETAS, EPS = (0.9, 0.999), 1e-8
PREFIX, SAMPLING = 2**20, 2**21  # purposes of noise beside that of gradient steps 1, 2, ..; 0 is A's


@dataclass(frozen=True, eq=False)
class Own:
    """The weights of one question, and its optimiser."""

    weights: torch.Tensor  # (P,) float32
    mean: torch.Tensor  # (P,) of gradients; empty for sgd
    square: torch.Tensor  # (P,) of their squares; empty for sgd
    count: int  # gradient steps so far
    noise: int  # key of dropout while sampling


@dataclass(eq=False)
class Pass:
    """What the hooks add in the passes to come.

    rows: those with weights of their own; None: all. origin: the column that noise counts from, -1 for the one behind the
    last; a padded column left or right of a row's tokens then moves no noise.
    """

    size: int  # N
    rows: torch.Tensor | None  # (K,)
    a: list[torch.Tensor]  # a layer each: (K, r, di)
    b: list[torch.Tensor]  # (K, do, r)
    noise: torch.Tensor | None = None  # (K,) keys of dropout; None: no dropout
    origin: int = -1


@dataclass(frozen=True)
class Layer:
    """A linear layer with adapters, and where its weights lie among a question's."""

    name: str
    module: torch.nn.Linear
    at: int

    @property
    def inputs(self) -> int:
        return self.module.in_features

    @property
    def outputs(self) -> int:
        return self.module.out_features


@dataclass(frozen=True)
class Lesson:
    """A step as token ids. read: question and attempt. asked, wanted: f_0 .. and what should follow each."""

    owner: str
    step: Step
    read: tuple[int, ...]
    asked: tuple[int, ...]
    wanted: tuple[int, ...]
    weights: np.ndarray = field(compare=False)

    @classmethod
    def of(cls, owner: str, step: Step, c: float) -> Lesson:
        """Raises ValueError for a step whose tokens are not as `Step` says."""
        if len(step.feedback_ids) != step.header_tokens + 1 or step.header_tokens < 1 or not step.prompt_ids:
            raise ValueError(
                f"question {owner}: a step needs a prompt, f_0 and header_tokens >= 1 behind it, got "
                f"{len(step.prompt_ids)}, {len(step.feedback_ids)} and {step.header_tokens}"
            )
        told = (*step.feedback_ids, *step.reflection_ids)
        weights = token_weights(step.header_tokens, len(step.reflection_ids), c=c)
        return cls(owner, step, (*step.prompt_ids, *step.attempt_ids), told[:-1], told[1:], weights)


class FeedbackLearner:
    """A `Learner` (see `reasonrl.eval.tts.backends`): gradient steps on feedback."""

    def __init__(self, model: Any, how: FTTT) -> None:
        """model: in evaluation mode, none of its weights requiring gradients. Raises ConfigError for targets it lacks."""
        self._model, self._how = model, how
        self._layers: list[Layer] = []
        at = 0
        for name in matched(linear_names(model), how.targets):
            module = model.get_submodule(name)
            self._layers.append(Layer(name, module, at))
            at += lora_parameters([(module.out_features, module.in_features)], how.rank)
        self.parameters = at  # P
        self._own: dict[str, Own] = {}
        self._passes: dict[str, int] = {}  # by owner: passes of this sampling
        self._pass: Pass | None = None
        self._stacked: tuple[tuple[str | None, ...], Pass] | None = None
        self._vocabulary = model.config.get_text_config().vocab_size
        self._steps, self._seconds = 0, 0.0
        self._hooks = [
            layer.module.register_forward_hook(self._hook(number)) for number, layer in enumerate(self._layers)
        ]

    # sampling

    def use(self, owners: Sequence[str | None]) -> None:
        """Row i of the passes to come has the weights of `owners[i]`, where it has taken a step. (): sampling is over."""
        owned = [owner for owner in owners if owner is not None and owner in self._own]
        if not owned:
            self._pass = None
            if not owners:
                self._stacked = None
                self._passes.clear()
            return
        if self._stacked is None or self._stacked[0] != tuple(owners):
            rows = [i for i, owner in enumerate(owners) if owner is not None and owner in self._own]
            a, b = self._matrices(torch.stack([self._own[owner].weights for owner in owned]))
            device = self._model.device
            chosen = None if len(rows) == len(owners) else torch.tensor(rows, device=device)
            self._stacked = tuple(owners), Pass(len(owners), chosen, a, b)
        self._pass = self._stacked[1]
        if self._how.sample_in_train_mode and self._how.dropout:
            keys = [self._own[owner].noise + _PASS * self._passes.get(owner, 0) for owner in owned]
            self._pass.noise = _keys(keys, self._model.device)
            self._passes |= {owner: self._passes.get(owner, 0) + 1 for owner in owned}

    # learning

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        """The gradient steps of one failed attempt for each owner.

        Raises FloatingPointError naming the questions whose loss or gradient is not finite, ValueError for a malformed step;
        then nothing has changed.
        """
        begun = time.monotonic()
        if len({owner for owner, _ in asks}) < len(asks):
            raise ValueError("a question takes one step a round")
        lessons = [Lesson.of(owner, step, self._how.c) for owner, step in asks]
        made: dict[str, tuple[Own, float]] = {}
        for batch in self._batches(lessons):
            made |= self._learned(batch)
        bad = [owner for owner, (own, loss) in made.items() if not _sound(own, loss)]
        if bad:
            raise FloatingPointError(
                f"question {', '.join(bad[:3])}{' ..' * (len(bad) > 3)}: the loss or its gradient is not finite; lower "
                f"method.lr (now {self._how.lr:g}), or engine.dtype=float32"
            )
        self._own |= {owner: own for owner, (own, _) in made.items()}
        self._stacked = None
        self._steps += len(asks)
        self._seconds += time.monotonic() - begun
        return [StepDone(made[owner][1]) for owner, _ in asks]

    def forget(self, owner: str) -> None:
        """The question's weights, optimiser and noise are dropped."""
        self._own.pop(owner, None)
        self._passes.pop(owner, None)
        self._stacked = None

    def facts(self) -> dict[str, Any]:
        return {
            "adapters": {"layers": len(self._layers), "parameters": self.parameters},
            "learning": {"steps": self._steps, "seconds": round(self._seconds, 3)},
        }

    def close(self) -> None:
        """Take the hooks off; nothing else of the model was touched."""
        for hook in self._hooks:
            hook.remove()
        self._own.clear()
        self._pass = self._stacked = None

    def weights(self, owner: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A (r, di) and B (do, r) of each layer, as copies. Raises KeyError for a question that has taken no step."""
        a, b = self._matrices(self._own[owner].weights[None])
        return {layer.name: (x[0].clone(), y[0].clone()) for layer, x, y in zip(self._layers, a, b, strict=True)}

    def _begun(self, step: Step) -> Own:
        """A as it starts, from the step's seed alone; B = 0."""
        noise = np.random.Generator(np.random.Philox(np.random.SeedSequence((*step.seed, 0))))
        weights = np.zeros(self.parameters, dtype=np.float32)
        for layer in self._layers:
            size, bound = self._how.rank * layer.inputs, lora_bound(layer.inputs)
            weights[layer.at : layer.at + size] = (2 * noise.random(size, dtype=np.float32) - 1) * np.float32(bound)
        flat = torch.from_numpy(weights).to(self._model.device)
        moments = 0 if self._how.optimizer == "sgd" else self.parameters
        return Own(flat, flat.new_zeros(moments), flat.new_zeros(moments), 0, 0)

    def _matrices(self, weights: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Views of (K, P) by layer."""
        r, count = self._how.rank, len(weights)
        a, b = [], []
        for layer in self._layers:
            middle, end = layer.at + r * layer.inputs, layer.at + r * (layer.inputs + layer.outputs)
            a.append(weights[:, layer.at : middle].view(count, r, layer.inputs))
            b.append(weights[:, middle:end].view(count, layer.outputs, r))
        return a, b

    def _batches(self, lessons: Sequence[Lesson]) -> Iterator[list[Lesson]]:
        """Lessons of like length together, as many as memory is meant for."""
        most = MOST_GRAD_TOKENS if self._how.prefix_grad else MOST_TOKENS
        batch: list[Lesson] = []
        read = asked = 0
        for lesson in sorted(lessons, key=lambda each: (len(each.asked), len(each.read))):
            wide, long = max(read, len(lesson.read)), max(asked, len(lesson.asked))
            rows = len(batch) + 1
            if batch and (rows * (wide + long) > most or rows * long * self._vocabulary > MOST_LOGITS):
                yield batch
                batch, wide, long = [], len(lesson.read), len(lesson.asked)
            batch.append(lesson)
            read, asked = wide, long
        if batch:
            yield batch

    def _learned(self, batch: Sequence[Lesson]) -> dict[str, tuple[Own, float]]:
        """New weights and the loss before them; in two halves where memory ended."""
        try:
            return self._learned_at_once(batch)
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not (isinstance(error, MemoryError) or "out of memory" in str(error)):
                raise
        half = len(batch) // 2
        return self._learned(batch[:half]) | self._learned(batch[half:])

    def _learned_at_once(self, batch: Sequence[Lesson]) -> dict[str, tuple[Own, float]]:
        own = [self._own.get(each.owner) or self._begun(each.step) for each in batch]
        weights = torch.stack([each.weights for each in own])  # (K, P)
        mean, square = torch.stack([each.mean for each in own]), torch.stack([each.square for each in own])
        counts = np.array([each.count for each in own])
        first = torch.zeros(len(batch))
        for number in range(1, self._how.steps + 1):
            leaves = [each.detach().requires_grad_() for part in self._matrices(weights) for each in part]
            a, b = leaves[: len(self._layers)], leaves[len(self._layers) :]
            try:
                losses = self._losses(batch, a, b, number)
            finally:
                self._pass = None
            found = torch.autograd.grad(losses.sum(), leaves)
            gradient = torch.cat(
                [each.flatten(1) for pair in zip(found[: len(a)], found[len(a) :], strict=True) for each in pair], dim=1
            )  # (K, P)
            counts += 1
            self._update(weights, mean, square, gradient, counts)
            if number == 1:
                first = losses.detach()
        return {
            lesson.owner: (
                Own(
                    weights[k].clone(), mean[k].clone(), square[k].clone(), int(counts[k]), self._key(lesson, SAMPLING)
                ),
                loss,
            )
            for k, (lesson, loss) in enumerate(zip(batch, first.tolist(), strict=True))
        }

    def _update(
        self,
        weights: torch.Tensor,
        mean: torch.Tensor,
        square: torch.Tensor,
        gradient: torch.Tensor,
        counts: np.ndarray,
    ) -> None:
        """AdamW without decay at a constant rate, or plain descent; in place, all (K, P), counts (K,)."""
        lr = self._how.lr
        if self._how.optimizer == "sgd":
            weights.sub_(gradient, alpha=lr)
            return
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrected = [torch.from_numpy(1 - beta**counts).to(weights)[:, None] for beta in BETAS]  # (K, 1)
        weights.sub_(lr / corrected[0] * mean / (square.sqrt() / corrected[1].sqrt() + EPS))

    def _losses(
        self, batch: Sequence[Lesson], a: list[torch.Tensor], b: list[torch.Tensor], number: int
    ) -> torch.Tensor:
        """(K,) the loss of each lesson, with a graph to `a` and `b`. number: of the gradient step, from 1."""
        device, how = self._model.device, self._how
        read = _filled([each.read for each in batch], left=True)  # (K, W)
        asked = _filled([each.asked for each in batch], left=False)  # (K, F)
        wanted = _filled([each.wanted for each in batch], left=False).to(device)
        counted = torch.zeros(asked.shape)
        for k, lesson in enumerate(batch):
            counted[k, : len(lesson.weights)] = torch.from_numpy(lesson.weights)
        width, long = read.shape[1], asked.shape[1]
        lengths = torch.tensor([len(each.read) for each in batch])
        columns = torch.arange(width + long)
        start = (width - lengths)[:, None]  # of each row's first token
        seen = (columns[None, :] <= columns[:, None])[None] & (columns[None, :] >= start)[:, None, :]
        seen |= torch.eye(width + long, dtype=torch.bool)[None]  # a padded query must see something, or it becomes NaN
        mask = torch.zeros(seen.shape, dtype=self._model.dtype).masked_fill_(~seen, torch.finfo(self._model.dtype).min)
        mask = mask[:, None].to(device)
        places = (columns[None, :] - start).clamp(min=0).to(device)
        read, asked = read.to(device), asked.to(device)
        step = Pass(len(batch), None, a, b, self._noise(batch, number))
        if how.prefix_grad:
            step.origin = width
            self._pass = step
            with torch.enable_grad():
                out = self._model(
                    input_ids=torch.cat([read, asked], dim=1),
                    attention_mask=mask,
                    position_ids=places,
                    use_cache=False,
                    logits_to_keep=long,
                )
        else:
            cache = DynamicCache()
            noise = self._noise(batch, PREFIX + number) if how.sample_in_train_mode else None
            self._pass = Pass(len(batch), None, a, b, noise)
            # question and attempt are context, read anew for each gradient step with the weights that it starts from
            with torch.no_grad():
                self._model(
                    input_ids=read,
                    attention_mask=mask[:, :, :width, :width],
                    position_ids=places[:, :width],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            step.origin = 0
            self._pass = step
            with torch.enable_grad():
                out = self._model(
                    input_ids=asked,
                    attention_mask=mask[:, :, width:],
                    position_ids=places[:, width:],
                    past_key_values=cache,
                    use_cache=True,
                )
        return weighted_losses(out.logits, wanted, counted.to(device))

    def _noise(self, batch: Sequence[Lesson], purpose: int) -> torch.Tensor | None:
        if not self._how.dropout:
            return None
        return _keys([self._key(each, purpose) for each in batch], self._model.device)

    def _key(self, lesson: Lesson, purpose: int) -> int:
        return int(np.random.SeedSequence((*lesson.step.seed, purpose)).generate_state(1, np.uint64)[0])

    def _hook(self, number: int) -> Any:
        scale = self._how.alpha / self._how.rank

        def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            now = self._pass
            if now is None:
                return None
            x = given[0]
            if x.dim() != 3 or len(x) != now.size:
                raise RuntimeError(
                    f"layer {self._layers[number].name} is given {tuple(x.shape)} for {now.size} sequences: leave it out "
                    "of method.targets"
                )
            x = (x if now.rows is None else x[now.rows]).to(now.a[number].dtype)
            if now.noise is not None:
                origin = x.shape[1] if now.origin < 0 else now.origin
                x = x * kept(now.noise + _signed(_LAYER * number), x.shape[1], x.shape[2], origin, self._how.dropout)
            added = scale * ((x @ now.a[number].mT) @ now.b[number].mT)  # (K, L, do)
            if now.rows is None:
                return (out + added).to(out.dtype)
            out[now.rows] = (out[now.rows] + added).to(out.dtype)
            return out

        return add


def weighted_losses(logits: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Each row's loss (K,): logits (K, F, V), token ids (K, F), what each token counts (K, F), as in `token_weights`."""
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return (losses.view(wanted.shape) * counted).sum(dim=1)


def linear_names(model: torch.nn.Module) -> list[str]:
    """The linear modules of a model, in order."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def matched(names: Sequence[str], targets: str) -> list[str]:
    """The modules that `targets`, such as q_proj+v_proj, names by the ends of their names, as peft does.

    Raises ConfigError for one that names nothing.
    """
    wanted = targets.split("+")
    found = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in wanted}
    missing = [target for target in wanted if not target or not found[target]]
    if missing:
        there = sorted({name.rpartition(".")[2] for name in names})
        raise ConfigError(
            f"method.targets={targets}: this model has no linear module {', '.join(map(repr, missing))}; it has "
            f"{', '.join(there) or 'none'} (join several with +)"
        )
    chosen = {name for each in found.values() for name in each}
    return [name for name in names if name in chosen]


def check_targets(model_path: str, targets: str) -> None:
    """Raise ConfigError for targets that the model lacks, before its weights are read.

    A model with code of its own is checked when it is loaded.
    """
    from reasonrl.config import package_path
    from reasonrl.models import architecture

    model = architecture(package_path(model_path))
    if model is not None:
        matched(linear_names(model), targets)


# Noise of dropout: a hash of key, layer, place and input, so that it is the same on every device and in every batch


_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64
_LAYER, _PASS = 0xD1342543DE82EF95, 0x2545F4914F6CDD1D  # odd, far apart


def kept(keys: torch.Tensor, length: int, inputs: int, origin: int, dropout: float) -> torch.Tensor:
    """(K, length, inputs) float32: 0 with probability `dropout`, else 1 / (1 - dropout).

    keys (K,) int64. The number at column t follows from key, t - origin and the input alone. SplitMix64.
    """
    places = torch.arange(length, device=keys.device)[:, None] - origin  # (length, 1)
    counter = places * inputs + torch.arange(inputs, device=keys.device)
    z = keys[:, None, None] + counter * _signed(_GOLDEN)
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    drawn = _shifted(z ^ _shifted(z, 31), 40)  # 24 bits
    return (drawn >= int(dropout * 2**24)).float() / (1 - dropout)


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """Without the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def _keys(numbers: Sequence[int], device: Any) -> torch.Tensor:
    return torch.tensor([_signed(number) for number in numbers], dtype=torch.int64, device=device)


def _filled(rows: Sequence[Sequence[int]], *, left: bool) -> torch.Tensor:
    """(K, width) token ids, padded on one side."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        begin = width - len(row) if left else 0
        ids[k, begin : begin + len(row)] = torch.tensor(row)
    return ids


def _sound(own: Own, loss: float) -> bool:
    """A gradient that is not finite is found in what follows from it."""
    return bool(np.isfinite(loss)) and all(bool(each.isfinite().all()) for each in (own.weights, own.mean, own.square))
