"""One forward pass of a process reward model in training: collated responses, logits at their tags, the loss of each tag.

B rows of a micro-batch, T tokens of a row, P tags of a micro-batch, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from reasonrl.eval.prm.knobs import require

if TYPE_CHECKING:
    from reasonrl.eval.prm.examples import Example

SAME = 1e-3  # packed and unpacked logits of one model differ by rounding only


def collated(some: Sequence[Example], packing: bool) -> dict[str, torch.Tensor]:
    """One forward pass: padded rows (B, T), or all responses in one row (1, T) with positions that begin anew.

    `labels` mark the tags, so that Trainer counts them over the micro-batches of an optimiser step; `targets` (P,) are
    what is trained towards, at (rows, columns).
    """
    sizes = [example.ids.size for example in some]
    targets = torch.from_numpy(np.concatenate([example.targets for example in some]))
    counts = [example.positions.size for example in some]
    if packing:
        ids = torch.from_numpy(np.concatenate([e.ids for e in some]).astype(np.int64))[None]  # (1, T)
        starts = np.cumsum([0, *sizes[:-1]])
        columns = torch.from_numpy(np.concatenate([e.positions + s for e, s in zip(some, starts, strict=True)]))
        rows = torch.zeros_like(columns)
        order = {"position_ids": torch.cat([torch.arange(size) for size in sizes])[None]}
    else:
        ids = torch.zeros((len(some), max(sizes)), dtype=torch.long)  # (B, T)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(some):
            ids[row, : sizes[row]] = torch.from_numpy(example.ids.astype(np.int64))
            mask[row, : sizes[row]] = 1
        columns = torch.from_numpy(np.concatenate([e.positions for e in some]))
        rows = torch.from_numpy(np.repeat(np.arange(len(some)), counts))
        order = {"attention_mask": mask}
    labels = torch.full_like(ids, -100)
    labels[rows, columns] = 1
    return {"input_ids": ids, **order, "labels": labels, "rows": rows, "columns": columns, "targets": targets}


def tags_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (P, V) float32 at the tags of a collated batch, through the model's own forward (as DDP wants it)."""
    rows, columns = inputs["rows"], inputs["columns"]
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    kept, where = torch.unique(columns, return_inverse=True)
    return model(**given, use_cache=False, logits_to_keep=kept).logits[rows, where].float()


def step_losses(
    logits: torch.Tensor, targets: torch.Tensor, good: int, bad: int, loss: Literal["two_way", "full_vocab"] | str
) -> torch.Tensor:
    """Cross-entropy (P,) of logits (P, V) towards targets (P,), the share of the good token."""
    pair = logits[:, [good, bad]]
    logs = torch.log_softmax(pair, dim=-1) if loss == "two_way" else pair - torch.logsumexp(logits, -1, keepdim=True)
    return -(targets * logs[:, 0] + (1.0 - targets) * logs[:, 1])


def check_packing(model: Any, some: Sequence[Example], *, flash: bool) -> None:
    """Raise ConfigError for a model whose attention goes across packed responses, found by trying it."""
    if flash:
        return  # its kernels read where positions begin anew; float32 weights cannot be tried with it
    was = model.training
    model.eval()
    with torch.inference_mode():
        both = [{k: v.to(model.device) for k, v in collated(some, packing).items()} for packing in (True, False)]
        packed, padded = (tags_logits(model, inputs) for inputs in both)
    model.train(was)
    apart = float((packed - padded).abs().max())
    require(
        apart <= SAME * max(float(padded.abs().max()), 1.0),
        f"packing=true: with attention={model.config._attn_implementation} this model looks from one packed response at "
        f"another (logits differ by {apart:.2g}): use attention=flash_attention_2, or packing=false",
    )
