"""A process reward model in this process, over transformers.

N items, B rows of a batch, T tokens of an input, P tags of a batch, D hidden width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reasonrl.config import ConfigError, package_path
from reasonrl.engine.prm.card import Card, identity_of, read_card, require_tokens
from reasonrl.engine.prm.layout import Layout, Steps
from reasonrl.models import check_weights, context, facts, model_fingerprint

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # on a CPU core more is slower: what a layer works on leaves the cache
PROBE = 8  # tokens of the input on which the short way to the logits is compared with the model's own
CLOSE = 1e-3  # of the largest logit: the two ways differ by rounding only


class TransformersScorer:
    """Batches of similar length, padded on the right; of the vocabulary only the logits of good and bad are made.

    Scores do not depend on what else is in a batch, up to rounding (1e-5 in float32).
    """

    def __init__(
        self, model: Any, layout: Layout, identity: str, *, batch_tokens: int = 2048, autocast: bool = False
    ) -> None:
        """model: a causal language model in evaluation mode. batch_tokens: padded tokens of one forward pass.

        autocast: compute in bfloat16 whatever the weights are, as a training on a GPU does.
        Raises ValueError when the model has no row for a token that it is asked with.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self.model, self.layout, self.identity, self.card = model, layout, identity, layout.card
        self.batch_tokens, self.autocast = batch_tokens, autocast
        self.limit = context(model.config.to_dict())
        self.rows = int(model.get_input_embeddings().weight.shape[0])
        if max(self.card.ids) >= self.rows:
            raise ValueError(f"the model has {self.rows} embeddings and its card names token {max(self.card.ids)}")
        with self._precision():
            self.short = _short_way_holds(model, self.card)

    @torch.inference_mode()
    def score(self, items: Sequence[Steps]) -> list[NDArray[np.float32]]:
        """(K,) for each item, in order; NaN at steps whose tag lies beyond the model's context. Raises ValueError."""
        laid = [self.layout(item) for item in items]
        scores = [np.full(positions.size, np.nan, dtype=np.float32) for _, positions in laid]
        for members in self._batches(laid):
            inputs = [laid[i][0][: self.limit] for i in members]
            tags = [self._readable(laid[i][1]) for i in members]
            with self._precision():
                found = self._forward(inputs, tags)
            require_numbers(found)
            start = 0
            for i, positions in zip(members, tags, strict=True):
                scores[i][: positions.size] = found[start : start + positions.size]
                start += positions.size
        return scores

    def _precision(self) -> Any:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast)

    def _readable(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions if self.limit is None else positions[positions < self.limit]

    def _batches(self, laid: Sequence[tuple[NDArray[np.int32], NDArray[np.int64]]]) -> Iterator[list[int]]:
        """Indices of items with something to score, longest first, so that the first batch needs the most memory."""
        for ids, _ in laid:
            if ids.size and (ids.min() < 0 or ids.max() >= self.rows):
                raise ValueError(
                    f"token {int(ids.max())} of a response is none of the process reward model's {self.rows}: the policy has "
                    "another vocabulary"
                )
        wanted = [i for i, (_, positions) in enumerate(laid) if self._readable(positions).size]
        wanted.sort(key=lambda i: (-laid[i][0].size, i))
        batch: list[int] = []
        for i in wanted:
            longest = min(laid[batch[0] if batch else i][0].size, self.limit or laid[i][0].size)
            if batch and (len(batch) + 1) * longest > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _forward(self, inputs: Sequence[NDArray[np.int32]], tags: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Scores of all tags of one batch, (P,)."""
        device = self.model.device
        longest = max(ids.size for ids in inputs)
        ids = torch.zeros((len(inputs), longest), dtype=torch.long)  # (B, T)
        mask = torch.zeros_like(ids)
        for row, given in enumerate(inputs):
            ids[row, : given.size] = torch.from_numpy(given.astype(np.int64))
            mask[row, : given.size] = 1
        rows = torch.from_numpy(np.repeat(np.arange(len(tags)), [t.size for t in tags])).to(device)  # (P,)
        columns = torch.from_numpy(np.concatenate(tags)).to(device)  # (P,)
        pair = tag_logits(self.model, ids.to(device), mask.to(device), rows, columns, self.card, short=self.short)
        return np.asarray(torch.softmax(pair, dim=-1)[:, 0].cpu().numpy(), dtype=np.float32)


def require_numbers(scores: NDArray[np.float32]) -> None:
    """Raise ValueError where a process reward model gave no number: NaN would pass for a step beyond its context."""
    if not np.isfinite(scores).all():
        raise ValueError(
            f"the process reward model gives {int((~np.isfinite(scores)).sum())} of {scores.size} scores that are not "
            "finite: its weights are damaged, or its training diverged; train it again"
        )


def tag_logits(
    model: Any, ids: Any, mask: Any, rows: Any, columns: Any, card: Card, *, short: bool = True
) -> torch.Tensor:
    """Logits (P, 2) float32 of good and bad at (rows, columns) of a batch ids (B, T), mask (B, T).

    short: read the final hidden states, and only two rows of the output matrix. False: the model's own logits of the
    whole vocabulary, for models that change them afterwards.
    """
    if not short:
        return whole_logits(model, {"input_ids": ids, "attention_mask": mask}, rows, columns)[:, [card.good, card.bad]]
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    pair = torch.tensor([card.good, card.bad], device=ids.device)
    weight, bias = head.weight[pair].float(), None if head.bias is None else head.bias[pair].float()
    return torch.nn.functional.linear(hidden[rows, columns].float(), weight, bias)


def whole_logits(model: Any, inputs: dict[str, Any], rows: Any, columns: Any) -> torch.Tensor:
    """The model's own logits (P, V) float32 at (rows, columns): only of columns that some row has a tag in."""
    kept, where = torch.unique(columns, return_inverse=True)
    logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits  # (B, columns kept, V)
    return logits[rows, where].float()


@torch.inference_mode()
def _short_way_holds(model: Any, card: Card) -> bool:
    """Whether the output matrix times the final hidden state is what the model itself gives (no soft-capping, scaling)."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):  # none, quantised, or one that an adapter changes
        return False
    ids = torch.tensor([[card.tag, card.good, card.bad] * PROBE], device=model.device)[:, :PROBE]
    mask, columns = torch.ones_like(ids), torch.arange(PROBE, device=model.device)
    rows = torch.zeros_like(columns)
    mine = tag_logits(model, ids, mask, rows, columns, card)
    own = tag_logits(model, ids, mask, rows, columns, card, short=False)
    rounded = model.dtype != torch.float32 or torch.is_autocast_enabled(model.device.type)
    close = 2**-6 if rounded else CLOSE  # in bfloat16 a model rounds its own logits to 8 bits
    return bool((mine - own).abs().max() <= close * own.abs().max().clamp(min=1.0))


def open_folder(where: str, *, policy: Any, device: str, batch_tokens: int | None) -> TransformersScorer:
    """The scorer of a PRM's folder. Raises ConfigError for a folder that cannot be read."""
    folder = Path(package_path(where))
    card, tokenizer = load_card(folder)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = chosen_device(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            attn_implementation="sdpa",
            use_safetensors=True,
        )
        model = model.to(device).eval().requires_grad_(False)
    except Exception as error:  # the libraries behind it raise a dozen kinds
        raise ConfigError(f"cannot load the process reward model {folder}: {_first_line(error)}") from error
    try:
        layout = Layout(card, tokenizer, policy)
        identity = identity_of(model_fingerprint(str(folder)), card)
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS["cpu" if device == "cpu" else "cuda"]
        return TransformersScorer(model, layout, identity, batch_tokens=batch_tokens)
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from error


def load_card(folder: Path) -> tuple[Card, Any]:
    """Card and tokenizer of a PRM's folder, checked against each other. Raises ConfigError; loads no weights."""
    from transformers import AutoTokenizer

    try:
        card = read_card(folder)
        facts(folder)
        if not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} has no *.safetensors: weights in other formats may run code when they are loaded, and are refused; "
                "train the model again"
            )
        check_weights(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        require_tokens(card, tokenizer, str(folder))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_first_line(error, kind=not isinstance(error, ValueError))) from error
    return card, tokenizer


def chosen_device(device: str) -> str:
    """`auto`: the GPU where there is one. Raises ConfigError for one that is not there, or no device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device} and PyTorch finds no GPU: use device=cpu")
    return device


def _first_line(error: Exception, *, kind: bool = True) -> str:
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line}" if kind else line
