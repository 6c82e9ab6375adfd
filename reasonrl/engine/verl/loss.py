"""verl's PPO loss, plus the imitation term of prefixes with `loss="imitate"`.

    loss = ppo_loss + (1 / R) * sum_i weight_i / |prefix_i| * sum_{t in prefix_i} -log pi(prefix_it)

R is the number of rollouts of the mini-batch, over all data-parallel ranks; the driver has already put
`weight_i / |prefix_i|` on the prefix tokens (column `imitation_weights`).
"""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

COLUMN = "imitation_weights"


def loss_with_imitation(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[torch.Tensor, dict]:
    """Same contract as verl's `ppo_loss`; identical to it when no row asks for imitation."""
    loss, metrics = ppo_loss(config, model_output, data, dp_group)
    if COLUMN not in data:
        return loss, metrics
    weights = data.select(COLUMN).to_padded_tensor()[COLUMN]  # (rows, L)
    log_prob = no_padding_2_padding(model_output["log_probs"], data)  # (rows, L)
    total = -(weights * log_prob)[weights > 0].sum()
    # Gradients are averaged over ranks and summed over micro-batches, so a plain sum over the mini-batch needs dp_size.
    term = total * data["dp_size"] / data["global_batch_size"]
    metrics["actor/imitation_loss"] = Metric(value=term.detach(), aggregation=AggregationType.SUM)
    return loss + term, metrics
