"""verl's PPO loss with the imitation term: bit-identical without it, and exactly its gradient with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from builders import problem
from tensordict import TensorDict
from transformers import LlamaConfig, LlamaForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss

from reasonrl.core import Prefix, Rollout
from reasonrl.engine.verl.batch import Row, Rows, imitation_of, to_row
from reasonrl.engine.verl.loss import COLUMN, loss_with_imitation

MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
# R = 4 rollouts: two imitate a prefix, one trains on its prefix, one has none
PREFIXES = [Prefix([5, 6, 7], "imitate", 0.5), Prefix(), Prefix([8, 9], "policy"), Prefix([4], "imitate", 2.0)]
LENGTHS = [2, 4, 3, 1]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_rows() -> list[Row]:
    rng = np.random.default_rng(0)
    made = []
    for i, (prefix, n) in enumerate(zip(PREFIXES, LENGTHS, strict=True)):
        ids = rng.integers(3, 30, n)
        answer = Rollout(prefix=prefix, token_ids=ids, logprobs=-rng.random(n, np.float32), score=1, finished=True)
        prompt = rng.integers(3, 30, 1 + i)
        made.append(to_row(problem(prompt_ids=prompt), answer, {"problem": 0, "order": i, "rollout": 0}))
    return made


def jagged(parts: Sequence[Any]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(p) for p in parts], layout=torch.jagged)


def micro_batch(made: Sequence[Row], *, imitate: bool, of: Sequence[Row] | None = None) -> TensorDict:
    """What verl's FSDP engine hands to the loss for these rows of the mini-batch `of`."""
    rng = np.random.default_rng(1)
    of = of or made
    lengths = np.array([r.response.size for r in made])
    data = TensorDict(
        {
            "prompts": jagged([r.prompt for r in made]),
            "responses": jagged([r.response for r in made]),
            "response_mask": jagged([r.mask for r in made]),
            "loss_mask": jagged([r.mask for r in made]),
            "old_log_probs": jagged([-rng.random(n, np.float32) for n in lengths]),
            "advantages": jagged([rng.standard_normal(n, np.float32) for n in lengths]),
        },
        batch_size=len(made),
    )
    if imitate:
        offsets = np.concatenate([[0], lengths.cumsum()])
        rows = Rows(
            ["u"] * len(made), [r.record for r in made], np.empty(0), offsets, np.empty(0), offsets, np.empty(0)
        )
        weights = imitation_of(rows)
        weights = np.zeros(lengths.sum(), np.float32) if weights is None else weights
        data[COLUMN] = jagged(np.split(weights, offsets[1:-1]))
    tokens = int(sum(r.mask.sum() for r in of))
    tu.assign_non_tensor(data, batch_num_tokens=tokens, dp_size=1, global_batch_size=len(of), sp_size=1)
    return data


def config(mode: str = "token-mean", **fields: Any) -> FSDPActorConfig:
    defaults = {"ppo_micro_batch_size_per_gpu": 4, "rollout_n": 1, "clip_ratio_c": 1e9, "loss_agg_mode": mode}
    return FSDPActorConfig(strategy="fsdp2", **{**defaults, **fields})


def log_probs(made: Sequence[Row], *, seed: int = 2) -> torch.Tensor:
    """A model's log-probabilities of all tokens, prompt first, as a leaf; (tokens,)"""
    total = sum(r.prompt.size + r.response.size for r in made)
    return (-torch.rand(total, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def nested(values: torch.Tensor, made: Sequence[Row]) -> torch.Tensor:
    offsets = torch.tensor([0, *np.cumsum([r.prompt.size + r.response.size for r in made])])
    return torch.nested.nested_tensor_from_jagged(values, offsets=offsets)


def of_responses(values: torch.Tensor, made: Sequence[Row]) -> list[torch.Tensor]:
    """Per row, the values that belong to its response tokens: the model's output at t scores token t + 1."""
    found, end = [], 0
    for r in made:
        end += r.prompt.size + r.response.size
        found.append(values[end - r.response.size - 1 : end - 1])
    return found


def gradient(loss: Any, cfg: Any, made: Sequence[Row], data: TensorDict) -> torch.Tensor:
    values = log_probs(made)
    loss(cfg, {"log_probs": nested(values, made)}, data)[0].backward()
    assert values.grad is not None
    return values.grad


@pytest.mark.parametrize("mode", MODES)
def test_without_the_column_it_is_verls_loss_bit_for_bit(mode) -> None:
    made = made_rows()
    outputs = []
    for loss in (ppo_loss, loss_with_imitation):
        values = log_probs(made)
        total, metrics = loss(config(mode), {"log_probs": nested(values, made)}, micro_batch(made, imitate=False))
        total.backward()
        outputs.append((total.detach(), values.grad, {k: m.aggregate() for k, m in metrics.items()}))
    (a, grad_a, metrics_a), (b, grad_b, metrics_b) = outputs
    assert torch.equal(a, b)
    assert torch.equal(grad_a, grad_b)
    assert metrics_a == metrics_b


@pytest.mark.parametrize("mode", MODES)
def test_the_term_adds_minus_weight_over_length_and_rollouts_on_prefix_tokens_and_nothing_elsewhere(mode) -> None:
    made = made_rows()
    plain = gradient(ppo_loss, config(mode), made, micro_batch(made, imitate=False))
    ours = gradient(loss_with_imitation, config(mode), made, micro_batch(made, imitate=True))
    wanted = [
        [-0.5 / (3 * 4)] * 3 + [0, 0],  # weight 0.5, 3 prefix tokens, R = 4
        [0] * 4,
        [0] * 5,
        [-2.0 / (1 * 4), 0],
    ]
    added = of_responses(ours - plain, made)
    for got, want in zip(added, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-7)
    # and the prompts get none at all
    assert (ours - plain).abs().sum().item() == pytest.approx(0.5 / 4 + 2.0 / 4, abs=1e-6)


def test_the_policy_term_gives_imitated_tokens_no_gradient_and_policy_prefixes_one() -> None:
    made = made_rows()
    grads = of_responses(gradient(ppo_loss, config(), made, micro_batch(made, imitate=False)), made)
    assert not grads[0][:3].any()
    assert not grads[3][:1].any()
    assert grads[2][:2].any()


def test_the_metric_is_the_weighted_mean_nll() -> None:
    made = made_rows()
    values = log_probs(made)
    _, metrics = loss_with_imitation(config(), {"log_probs": nested(values, made)}, micro_batch(made, imitate=True))
    rows = of_responses(values.detach(), made)
    by_hand = (-0.5 * rows[0][:3].mean() - 2.0 * rows[3][0]) / 4
    metric = metrics["actor/imitation_loss"]
    assert metric.aggregation is AggregationType.SUM
    assert metric.aggregate().item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_two_micro_batches_add_up_to_one_batch() -> None:
    made = made_rows()
    whole = gradient(loss_with_imitation, config(), made, micro_batch(made, imitate=True))
    base = gradient(ppo_loss, config(), made, micro_batch(made, imitate=False))
    values, losses = log_probs(made), []
    for part, tokens in ((made[:1], slice(0, 6)), (made[1:], slice(6, None))):
        data = micro_batch(part, imitate=True, of=made)
        both = [
            loss(config(), {"log_probs": nested(values[tokens], part)}, data)[0]
            for loss in (loss_with_imitation, ppo_loss)
        ]
        losses.append(both[0] - both[1])
    sum(losses).backward()
    np.testing.assert_allclose(values.grad, whole - base, atol=1e-7)


def test_two_ranks_average_to_one_batch() -> None:
    """FSDP averages the gradients of its ranks, so each rank's term carries dp_size."""
    made = made_rows()
    grads = []
    for part in (made[:2], made[2:]):
        data = micro_batch(part, imitate=True, of=made)
        tu.assign_non_tensor(data, dp_size=2)
        ours, plain = (gradient(loss, config(), part, data) for loss in (loss_with_imitation, ppo_loss))
        grads.append(sum(g.sum() for g in of_responses(ours - plain, part)).item())
    assert sum(grads) / 2 == pytest.approx(-(0.5 + 2.0) / 4, abs=1e-6)


def test_the_gradient_of_a_real_model_is_that_of_a_hand_written_nll() -> None:
    torch.manual_seed(0)
    made = made_rows()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
        )
    ).double()

    def logps() -> torch.Tensor:
        """As verl's engine computes them: for each row, position t scores token t + 1, the last one rolls over."""
        parts = []
        for r in made:
            ids = torch.tensor(np.concatenate([r.prompt, r.response])).long()
            scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            parts.append(scores.gather(1, ids.roll(-1)[:, None])[:, 0])
        return torch.cat(parts)

    def grads(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    data = micro_batch(made, imitate=True)
    output = {"log_probs": nested(logps(), made)}
    ours = loss_with_imitation(config(), output, data)[0]
    output = {"log_probs": nested(logps(), made)}
    found = grads(ours) - grads(ppo_loss(config(), output, data)[0])

    nll = torch.zeros((), dtype=torch.float64)
    for r, prefix in zip(made, PREFIXES, strict=True):
        if prefix.loss != "imitate":
            continue
        ids = torch.tensor(np.concatenate([r.prompt, r.response])).long()
        scores, first = model(input_ids=ids[None]).logits[0], r.prompt.size
        for t, token in enumerate(prefix.token_ids.tolist()):
            chosen = torch.nn.functional.cross_entropy(scores[first + t - 1], torch.tensor(token))
            nll = nll + prefix.weight * chosen / prefix.token_ids.size / len(made)
    np.testing.assert_allclose(found, grads(nll), atol=1e-6)
    assert found.abs().max() > 1e-2
