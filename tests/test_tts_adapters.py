"""Feedback steps on weights of each question's own: the formulas, peft's LoRA, many questions in a pass, and whole runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from tts_builders import FakeVerifier, play, posed

from reasonrl.config import ConfigError, package_path
from reasonrl.engine.sampling import Sampling
from reasonrl.eval.models import locate
from reasonrl.eval.tts.adapters import FeedbackLearner, kept, linear_names, matched, weighted_losses
from reasonrl.eval.tts.backends.local import LocalBackend
from reasonrl.eval.tts.base import Attempt, Budget, Generate, Posed, Step, Trace
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.fttt import FTTT
from reasonrl.eval.tts.run import prepare, run_tts
from reasonrl.eval.tts.schedule import Schedule
from reasonrl.eval.tts.settings import read_settings
from reasonrl.functional.feedback import feedback_loss, lora_bound, lora_parameters, token_losses, token_weights
from reasonrl.runs import provenance

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
BASE = ["model=tiny", "task=arithmetic", "verify=exact", "workers=1", "max_new_tokens=12"]
HIGH = 1e-1  # a rate at which one step changes what is sampled
PROMPT, WORDS = (5, 70, 71, 72, 6), (3, 5, 66, 88, 94)  # f_0 and four tokens


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    return tmp_path


def load() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The embedded model, whose weights must be the same bits at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = load()
    before = sha256(made)
    yield made
    assert sha256(made) == before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def double() -> Iterator[Any]:
    """The same in float64 beside float32 adapters: what is left of a difference is no matter of the order of sums.

    In float32 it is 1e-5 of a step's length, and Adam's first step, the sign of a gradient, turns where that is nearly 0.
    """
    made = load().double()
    before = sha256(made)
    yield made
    assert sha256(made) == before


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return locate("tiny").load_tokenizer()


def sha256(made: Any) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(made.state_dict().items()):
        found.update(name.encode() + weight.cpu().numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def learner(model: Any, **knobs: Any) -> Iterator[FeedbackLearner]:
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    made = FeedbackLearner(model, FTTT(**{"dropout": 0.0, **knobs}))
    try:
        yield made
    finally:
        made.close()
        assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def a_step(number: int = 0, attempt: Sequence[int] = (80, 81, 82), **fields: Any) -> Step:
    given = {"header_tokens": len(WORDS) - 1, "seed": (1, number), **fields}
    return Step(PROMPT, tuple(attempt), WORDS, **given)


# formulas


def test_the_adapters_of_the_paper_have_1_703_936_weights() -> None:
    query, value = (4096, 4096), (1024, 4096)  # T1: Llama-3.1-8B and Mistral-7B, (do, di)
    assert lora_parameters([query, value] * 32, rank=4) == 1_703_936
    assert lora_parameters([query, value] * 8, rank=16) == 1_703_936
    assert FTTT().alpha / FTTT().rank == 4.0


def test_words_and_reflection_have_a_mean_each() -> None:
    losses = np.array([1.0, 2, 3, 4, 6])  # T3
    assert feedback_loss(losses, 3, c=1.0) == pytest.approx(7.0, abs=1e-12)
    assert feedback_loss(losses, 3, c=0.5) == pytest.approx(4.5, abs=1e-12)
    assert losses.mean() == pytest.approx(3.2)
    assert feedback_loss(losses[:3], 3) == pytest.approx(2.0, abs=1e-12)  # k = 0: the term is left out
    with pytest.raises(ValueError, match="words must be >= 1"):
        token_weights(0, 2)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary() -> None:
    losses = token_losses(np.zeros((3, 4)), np.array([0, 1, 3]))  # T4
    assert feedback_loss(losses, 3) == pytest.approx(np.log(4), abs=1e-12)
    assert np.log(4) == pytest.approx(1.3863, abs=5e-5)
    with pytest.raises(ValueError, match="logits must be finite"):
        token_losses(np.array([[np.nan, 0.0]]), np.array([0]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4), st.integers(0, 9))
def test_a_batch_of_losses_is_each_rows_formula(parts: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = max(m + k for m, k in parts)
    logits, wanted = rng.normal(size=(len(parts), width, 6)) * 3, rng.integers(6, size=(len(parts), width))
    counted = np.zeros((len(parts), width))
    for row, (m, k) in zip(counted, parts, strict=True):
        row[: m + k] = token_weights(m, k, c=0.7)
    found = weighted_losses(torch.from_numpy(logits), torch.from_numpy(wanted), torch.from_numpy(counted))
    for i, (m, k) in enumerate(parts):
        losses = token_losses(logits[i, : m + k], wanted[i, : m + k])
        assert float(found[i]) == pytest.approx(feedback_loss(losses, m, c=0.7), abs=2e-6)


# a step


def test_the_first_adam_step_moves_every_b_by_the_rate_and_no_a(model: Any) -> None:
    with learner(model, optimizer="sgd", lr=1.0) as plain, learner(model) as adam:  # T5
        plain.step([("q", a_step())])
        adam.step([("q", a_step())])
        start = adam._matrices(adam._begun(a_step()).weights[None])[0]
        moved = large = 0
        for i, (name, (a, b)) in enumerate(adam.weights("q").items()):
            gradient = -plain.weights("q")[name][1]  # B was 0, and the rate is 1
            assert torch.equal(a, start[i][0])
            assert float(a.abs().max()) <= lora_bound(a.shape[1])
            clear = gradient.abs() > 1e-5  # 1e-8 beside it changes the quotient by less than 0.1 %
            assert torch.allclose(b[clear], -1e-5 * gradient[clear].sign(), rtol=2e-3, atol=0)
            moved, large = moved + int((b != 0).sum()), large + int(clear.sum())
        assert large > 0.9 * moved > 0
        adam.forget("q")
        assert adam._own == {}
        begun = adam._matrices(adam._begun(a_step()).weights[None])
        assert all(int((b != 0).sum()) == 0 for b in begun[1])
        adam.step([("q", a_step())])  # after a reset the step is the first again, bit for bit
        with learner(model) as fresh:
            fresh.step([("q", a_step())])
            assert torch.equal(fresh._own["q"].weights, adam._own["q"].weights)


def through_peft(how: FTTT, mine: FeedbackLearner, asked: Step) -> tuple[Any, list[float]]:
    """The same steps by peft and torch, one question alone; A as ours starts."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=how.rank, lora_alpha=how.alpha, lora_dropout=how.dropout, target_modules=how.targets.split("+")
    )
    theirs = get_peft_model(load(), config).eval()
    sizes = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
    assert sum(weight.numel() for weight in sizes.values()) == mine.parameters
    for name, weight in sizes.items():
        bound = lora_bound(weight.shape[1])
        if "lora_A" in name:
            assert 0.98 * bound < float(weight.abs().max()) <= bound
        else:
            assert int((weight != 0).sum()) == 0
    start = mine._matrices(mine._begun(asked).weights[None])[0]
    with torch.no_grad():
        for layer, a in zip(mine._layers, start, strict=True):
            assert 0.98 * lora_bound(layer.inputs) < float(a.abs().max()) <= lora_bound(layer.inputs)
            theirs.get_submodule(f"base_model.model.{layer.name}").lora_A["default"].weight.copy_(a[0])
    kind: Any = torch.optim.AdamW if how.optimizer == "adamw" else torch.optim.SGD
    optimizer = kind(list(sizes.values()), lr=how.lr, weight_decay=0.0)
    read = torch.tensor([[*asked.prompt_ids, *asked.attempt_ids]])
    told = torch.tensor([[*asked.feedback_ids, *asked.reflection_ids]])
    losses = []
    for _ in range(how.steps):
        if how.prefix_grad:
            logits = theirs(input_ids=torch.cat([read, told], dim=1)).logits[0, read.shape[1] : -1]
        else:
            cache = DynamicCache()
            with torch.no_grad():
                theirs(input_ids=read, past_key_values=cache, use_cache=True)
            logits = theirs(input_ids=told, past_key_values=cache, use_cache=True).logits[0, :-1]
        each = -logits.log_softmax(-1).gather(1, told[0, 1:, None])[:, 0]
        m = asked.header_tokens
        loss = each[:m].mean() + (how.c * each[m:].mean() if len(each) > m else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return theirs, losses


@pytest.mark.parametrize("prefix_grad", [False, True])
@pytest.mark.parametrize(("optimizer", "steps"), [("adamw", 1), ("sgd", 2)])
def test_steps_and_what_they_add_are_those_of_peft(model: Any, prefix_grad: bool, optimizer: str, steps: int) -> None:
    targets = "q_proj+v_proj+down_proj"
    lr = 1e-3 if optimizer == "adamw" else 1e-2
    how = FTTT(prefix_grad=prefix_grad, optimizer=optimizer, steps=steps, lr=lr, dropout=0.0, targets=targets, c=0.5)
    asked = a_step(reflection_ids=(90, 91, 92, 9, 9, 9))
    mine = FeedbackLearner(model, how)
    theirs, losses = through_peft(how, mine, asked)
    other = a_step(7, attempt=(70,) * 9)
    done = mine.step([("other", other), ("q", asked)])  # padded, and beside another
    assert done[1].loss == pytest.approx(losses[0], abs=1e-6)
    for name, (a, b) in mine.weights("q").items():
        lora = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(a, lora.lora_A["default"].weight.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(b, lora.lora_B["default"].weight.detach(), atol=1e-6, rtol=0)
        assert float(b.abs().max()) > 2e-4
    ids = torch.tensor([[5, 70, 71, 6], [5, 80, 81, 6]])
    with torch.no_grad():
        mine.use([None, "q"])
        found = model(input_ids=ids).logits
        mine.use(())
        torch.testing.assert_close(found[1], theirs(input_ids=ids).logits[1], atol=1e-5, rtol=0)
        bare = model(input_ids=ids).logits
    assert torch.equal(found[0], bare[0])  # a row without weights of its own is the model's, bit for bit
    assert float((found[1] - bare[1]).abs().max()) > 0.01
    mine.close()


def test_the_optimiser_of_many_is_torchs_of_each(model: Any) -> None:
    rng = torch.Generator().manual_seed(3)
    weights, counts = torch.randn(3, 50, generator=rng), np.array([0, 4, 0])
    mean, square = 0.1 * torch.randn(3, 50, generator=rng), torch.rand(3, 50, generator=rng)
    mean[counts == 0] = square[counts == 0] = 0.0
    single = [torch.nn.Parameter(row.clone()) for row in weights]
    theirs = torch.optim.AdamW(single, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for row, m, v, count in zip(single, mean, square, counts, strict=True):
        theirs.state[row] = {"step": torch.tensor(float(count)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    with learner(model, lr=1e-2) as some:
        for _ in range(3):
            gradient = torch.randn(3, 50, generator=rng)
            counts += 1
            some._update(weights, mean, square, gradient, counts)
            for row, g in zip(single, gradient, strict=True):
                row.grad = g
            theirs.step()
    torch.testing.assert_close(weights, torch.stack([row.detach() for row in single]), atol=1e-6, rtol=0)


def test_gradients_through_the_question_change_the_step(model: Any) -> None:
    with (
        learner(model, lr=1.0, optimizer="sgd") as cheap,
        learner(model, lr=1.0, optimizer="sgd", prefix_grad=True) as whole,
    ):
        losses = [each.step([("q", a_step())])[0].loss for each in (cheap, whole)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # the same loss
        ours, theirs = cheap._own["q"].weights, whole._own["q"].weights
        assert float((ours - theirs).norm() / theirs.norm()) > 0.1


def test_a_reflection_without_tokens_is_left_out_and_one_that_counts_nothing_too(model: Any) -> None:
    with learner(model, c=0.0) as nothing, learner(model) as plain:
        nothing.step([("q", a_step(reflection_ids=(90, 91)))])
        plain.step([("q", a_step())])
        torch.testing.assert_close(nothing._own["q"].weights, plain._own["q"].weights, atol=1e-7, rtol=0)
    with learner(model) as bad, pytest.raises(ValueError, match="a step needs a prompt, f_0 and header_tokens >= 1"):
        bad.step([("q", a_step(header_tokens=0))])


# dropout


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropout_keeps_its_share_and_its_expectation(dropout: float) -> None:
    found = kept(torch.tensor([3, -(2**62)]), 200, 64, 200, dropout)
    assert found.shape == (2, 200, 64)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / (1 - dropout))]
    error = 4 * (dropout / (1 - dropout) / found[0].numel()) ** 0.5
    assert float(found[0].mean()) == pytest.approx(1, abs=error)
    agree = float((found[0] == found[1]).float().mean())
    assert agree == pytest.approx(dropout**2 + (1 - dropout) ** 2, abs=0.02)


def test_padding_moves_no_noise() -> None:
    key = torch.tensor([11])
    assert torch.equal(kept(key, 9, 8, 9, 0.5)[:, 4:], kept(key, 5, 8, 5, 0.5))  # left, as in a prompt
    assert torch.equal(kept(key, 9, 8, 0, 0.5)[:, :5], kept(key, 5, 8, 0, 0.5))  # right, as in a lesson


@pytest.mark.parametrize(
    "knobs", [{}, {"optimizer": "adamw", "lr": HIGH}, {"prefix_grad": True}, {"sample_in_train_mode": True}], ids=str
)
def test_a_step_follows_from_its_question_alone(double: Any, knobs: dict[str, Any]) -> None:
    asks = [(f"q{i}", a_step(i, attempt=(80,) * (1 + 7 * i), reflection_ids=(9,) * (3 * i))) for i in range(4)]
    how = {"dropout": 0.3, "steps": 2, "optimizer": "sgd", "lr": 0.1, **knobs}
    with learner(double, **how) as together, learner(double, **how) as alone, learner(double, **how) as again:
        together.step(asks)
        for ask in asks[::-1]:
            alone.step([ask])
        for name, _ in asks:
            ours, theirs = together._own[name].weights, alone._own[name].weights
            torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)
        again.step(asks[:1])
        for each, seed in ((alone, (1, 98)), (again, (1, 99))):  # from the same weights, with other dropout
            each.step([("q0", replace(asks[0][1], seed=seed))])
        assert float((again._own["q0"].weights - alone._own["q0"].weights).abs().max()) > 1e-3
        fresh = [alone._begun(replace(asks[0][1], seed=(1, number))).weights for number in (98, 99)]
        assert float((fresh[0] - fresh[1]).abs().max()) > 0.1


# many at once, and what goes wrong


def test_a_batch_holds_no_more_tokens_than_memory_is_meant_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrl.eval.tts.adapters.MOST_TOKENS", 40)
    asks = [(f"q{i}", a_step(i, attempt=(80,) * (1 + i))) for i in range(6)]
    sizes = []
    with learner(model) as some:
        at_once = some._learned_at_once

        def small(batch: Any) -> Any:
            sizes.append(len(batch))
            if len(batch) == 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return at_once(batch)

        monkeypatch.setattr(some, "_learned_at_once", small)
        done = some.step(asks)
    assert sizes == [3, 1, 2, 2, 1]  # three fit in 40 tokens; where memory ended all the same, two halves
    with learner(model) as whole:
        assert [each.loss for each in whole.step(asks)] == pytest.approx([each.loss for each in done], abs=1e-5)


def test_one_question_that_is_not_finite_is_named_and_the_others_keep_their_weights(model: Any) -> None:
    with learner(model, lr=HIGH) as some:
        some.step([("good", a_step(0)), ("bad", a_step(1))])
        some._own["bad"].weights.fill_(torch.nan)
        before = some._own["good"]
        with pytest.raises(FloatingPointError, match=r"question bad: the loss or its gradient is not finite; lower"):
            some.step([("good", a_step(2)), ("bad", a_step(3))])
        assert some._own["good"] is before  # nothing has changed, so the good one can be asked for alone
        some.step([("good", a_step(2))])
        assert some._own["good"].count == 2


def test_targets_that_match_nothing_are_told_with_those_there_are(model: Any) -> None:
    there = "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ConfigError, match=f"method.targets=q_proj.c_attn: .* no linear module 'c_attn'; {there}"):
        FeedbackLearner(model, FTTT(targets="q_proj+c_attn"))
    with pytest.raises(ConfigError, match=there):
        prepare(read_settings([*BASE, "method=fttt", "method.targets=query"]), Console(quiet=True))
    with pytest.raises(ConfigError, match="no linear module ''"):
        matched(linear_names(model), "q_proj+")
    assert matched(linear_names(model), "0.self_attn.q_proj") == ["model.layers.0.self_attn.q_proj"]


# whole runs


def test_the_noise_of_a_step_follows_from_seed_question_and_number() -> None:
    def seeds(id: str, seed: int) -> list[tuple[int, ...]]:
        _, backend, _ = play(FTTT(), ["F", "N", "F", "F"], 4, posed(id, seed=seed))
        return [step.seed for _, step in backend.steps]

    found = [seeds(id, seed) for id in ("a", "b") for seed in (42, 85)]
    assert len({key for each in found for key in each}) == 4 * 3
    assert seeds("a", 42) == found[0]


def questions(limit: int) -> list[Posed]:
    args = [*BASE, "method=fttt", f"limit={limit}"]
    return list(prepare(read_settings(args), Console(quiet=True)).posed)


def traces(
    model: Any,
    tokenizer: Any,
    method: Any,
    asked: Sequence[Posed],
    *,
    budget: int = 3,
    batch: int = 64,
    recorded: dict[str, Sequence[Attempt]] | None = None,
) -> list[Trace]:
    """Nothing is right, so every attempt is made, and learned from. Nothing of them may survive."""
    own = method.learner(model, tokenizer, end_ids=[3]) if isinstance(method, FTTT) else None
    backend = LocalBackend(model, tokenizer, own, end_ids=[3])
    found = list(Schedule(method, backend, FakeVerifier(), Budget(budget), batch=batch).run(asked, recorded))
    if own is not None:
        assert (own._own, own._passes, own._pass, own._stacked, backend._changed) == ({}, {}, None, None, set())
        own.close()
    return sorted(found, key=lambda trace: trace.id)


@pytest.mark.parametrize("knobs", [{}, {"plus": True}, {"sample_in_train_mode": True, "dropout": 0.3}], ids=str)
def test_a_trace_with_weights_of_its_own_depends_on_neither_order_nor_batch(
    double: Any, tokenizer: Any, knobs: dict[str, Any]
) -> None:
    asked, how = questions(3), FTTT(lr=HIGH, **knobs)
    together = traces(double, tokenizer, how, asked)
    assert traces(double, tokenizer, how, asked[::-1], batch=1) == together  # T17
    if not knobs:
        assert traces(double, tokenizer, how, asked[::-1], batch=3) == together
        assert traces(double, tokenizer, how, asked, batch=1) == together
    bare = traces(double, tokenizer, BestOfN(), asked)
    others = 0
    for ours, theirs in zip(together, bare, strict=True):
        tried = [each.token_ids for each in ours.attempts if each.phase == "attempt"]
        drawn = [each.token_ids for each in theirs.attempts]
        assert tried[0] == drawn[0]
        others += tried[1:] != drawn[1:]
    assert others >= 2  # the weights made a difference
    if how.plus:
        assert {each.phase for trace in together for each in trace.attempts} == {"attempt", "reflection"}


def test_what_asks_for_the_models_own_weights_gets_them_after_a_step_too(double: Any, tokenizer: Any) -> None:
    with learner(double, lr=HIGH) as own:
        backend = LocalBackend(double, tokenizer, own, end_ids=[3])
        asks = [("q", Generate(PROMPT, Sampling(temperature=1.5, max_tokens=12, seed=(i,)), False)) for i in range(3)]
        asks.append(("q", Generate(PROMPT, Sampling(temperature=0.0, max_tokens=6), beams=2)))
        mine = [(name, replace(ask, adapter=True)) for name, ask in asks[:3]]
        before = backend.generate(asks + mine)
        backend.step([("q", a_step())])
        after = backend.generate(asks + mine)
        assert after[:4] == before[:4]  # a reflection, and a beam search
        assert after[4:] != before[4:]
        backend.forget("q")
        assert backend.generate(asks + mine) == before


def test_samples_of_probabilities_that_are_no_numbers_are_refused(double: Any, tokenizer: Any) -> None:
    with learner(double, lr=HIGH) as own:
        backend = LocalBackend(double, tokenizer, own, end_ids=[3])
        asks = [(name, Generate(PROMPT, Sampling(max_tokens=4, seed=(1,)))) for name in ("good", "bad")]
        backend.step([(name, a_step()) for name in ("good", "bad")])
        good = backend.generate(asks[:1])
        own._own["bad"].weights.fill_(torch.nan)
        with pytest.raises(FloatingPointError, match="question bad: the probabilities of its tokens are not finite"):
            backend.generate(asks)
        assert backend.generate(asks[:1]) == good


@pytest.mark.parametrize(
    ("name", "value"), [("lr", "inf"), ("alpha", "0"), ("alpha", "inf"), ("c", "inf"), ("c", "-1")]
)
def test_a_number_that_can_teach_nothing_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be "):
        FTTT(**{name: float(value)})  # type: ignore[arg-type]


def test_a_backend_without_a_learner_takes_no_step(double: Any, tokenizer: Any) -> None:
    backend = LocalBackend(double, tokenizer, end_ids=[3])
    with pytest.raises(RuntimeError, match="opened without a learner"):
        backend.step([("q", a_step())])


def test_knobs_of_the_step_reach_what_is_sampled(double: Any, tokenizer: Any) -> None:
    asked = questions(3)
    plain = traces(double, tokenizer, FTTT(lr=HIGH, dropout=0.3), asked)
    for knobs in ({"prefix_grad": True}, {"sample_in_train_mode": True}, {"optimizer": "sgd"}, {"steps": 3}):
        assert traces(double, tokenizer, FTTT(lr=HIGH, dropout=0.3, **knobs), asked) != plain


@pytest.mark.parametrize("knobs", [{}, {"sample_in_train_mode": True, "dropout": 0.3, "steps": 2}], ids=str)
def test_a_question_stopped_in_the_middle_goes_on_as_if_it_had_not_been(
    double: Any, tokenizer: Any, knobs: dict[str, Any]
) -> None:
    asked, how = questions(2), FTTT(lr=HIGH, **knobs)
    whole = traces(double, tokenizer, how, asked)
    for kept_ in (1, 2):
        recorded = {trace.id: trace.attempts[:kept_] for trace in whole}
        assert traces(double, tokenizer, how, asked, recorded=recorded) == whole


def test_a_question_whose_step_fails_does_not_stop_the_others(
    double: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, how = questions(3), FTTT(lr=HIGH)
    whole = {trace.id: trace for trace in traces(double, tokenizer, how, asked)}
    poisoned = asked[1].id
    losses = FeedbackLearner._losses

    def one_is_nan(self: Any, batch: Any, *rest: Any) -> Any:
        found = losses(self, batch, *rest)
        return found * torch.tensor([torch.nan if each.owner == poisoned else 1.0 for each in batch])

    monkeypatch.setattr(FeedbackLearner, "_losses", one_is_nan)
    found = {trace.id: trace for trace in traces(double, tokenizer, how, asked)}
    assert found[poisoned].stop == "failed"
    assert f"question {poisoned}: the loss or its gradient is not finite" in found[poisoned].notes["error"]
    assert all(found[name] == trace for name, trace in whole.items() if name != poisoned)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "attempts/seed42.jsonl").read_text().splitlines()]
    return sorted(
        ({k: v for k, v in row.items() if k != "seconds"} for row in lines), key=lambda r: (r["id"], r["number"])
    )


def test_with_one_attempt_fttt_writes_what_best_of_n_writes_and_with_more_it_learns() -> None:
    def made(method: str, *args: str) -> Path:
        given = [
            *BASE[:-1],
            "max_new_tokens=24",
            f"method={method}",
            "limit=6",
            "seeds=42",
            f"out={method}{len(args)}{args[0]}",
        ]
        return run_tts(read_settings([*given, *args]))

    assert rows(made("fttt", "budget=1")) == rows(made("best_of_n", "budget=1"))  # T16
    folder = made("fttt", "budget=3", f"method.lr={HIGH}", "engine.device=cpu")
    tried = rows(folder)
    assert any(row["steps"] for row in tried)
    found = json.loads((folder / "timing.json").read_text())["sessions"][0]
    assert found["device"] == "cpu"
    assert found["adapters"] == {"layers": 8, "parameters": 8 * 4 * 256}
    assert found["learning"]["steps"] > 0
    assert json.loads((folder / "results.json").read_text())["settings"]["dtype"] == "float32"


def test_a_gpu_that_is_not_there_is_told_before_anything_is_made(here: Path) -> None:
    with pytest.raises(ConfigError, match="engine.device=cuda and no NVIDIA GPU found"):
        run_tts(read_settings([*BASE, "method=fttt", "engine.device=cuda"]))
    with pytest.raises(ConfigError, match="engine.device must be one of auto, cpu, cuda, got 'gpu'"):
        read_settings([*BASE, "method=fttt", "engine.device=gpu"])
    assert list(here.iterdir()) == []
