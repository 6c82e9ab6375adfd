"""The CPU rollout's generator against a full forward pass, transformers' own greedy search, and naive loops."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

from reasonrl.engine.verl.cpu.generate import PATIENCE, Generator, Sampling, Sequence_, restrict, sample

VOCABULARY, END = 40, 1
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [5, 6, 7], [21, 22]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # peaked enough that tokens differ between prompts
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=0,
    )
    # float64: what is left of a difference then comes from the generator, not from the order of sums
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def singles(model) -> list[Sequence_]:
    return [alone(model, p, i) for i, p in enumerate(PROMPTS)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(model: Any, end_ids: Sequence[int] = (), **fields: Any) -> Generator:
    return Generator(model, end_ids=end_ids, **fields)


def request(prompt: Sequence[int], seed: int = 0, **fields: Any) -> Sequence_:
    sampling = Sampling(**{"max_tokens": 12, "seed": (7, seed), **fields})
    done: list[Sequence_] = []
    made = Sequence_(list(prompt), sampling, done.append)
    made.calls = done  # type: ignore[attr-defined]
    return made


def finish(gen: Generator, requests: Sequence[Sequence_], steps: int = 1000) -> None:
    for r in requests:
        gen.add(r)
    for _ in range(steps):
        if gen.idle:
            return
        gen.step()
    raise AssertionError(f"not idle after {steps} steps")


def alone(model: Any, prompt: Sequence[int], seed: int = 0, **fields: Any) -> Sequence_:
    made = request(prompt, seed, **fields)
    finish(generator(model), [made])
    return made


def teacher_forced(model: Any, r: Sequence_, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list:
    """Log-probabilities of the sampled tokens from one full forward pass, renormalised the long way."""
    ids = torch.tensor([[*r.prompt_ids, *r.token_ids]])
    logits = model(input_ids=ids).logits[0, len(r.prompt_ids) - 1 : -1].double() / temperature
    found = []
    for row, token in zip(logits, r.token_ids, strict=True):
        probability = naive_restrict(row.softmax(-1).tolist(), top_k or VOCABULARY, top_p)
        found.append(float(np.log(probability[token])))
    return found


def naive_restrict(probability: Sequence[float], top_k: int, top_p: float) -> list[float]:
    """Top-k, renormalise, then the smallest set of at least `top_p`; one token at a time."""
    order = sorted(range(len(probability)), key=lambda i: -probability[i])[:top_k]
    total, mass, kept = sum(probability[i] for i in order), 0.0, []
    for i in order:
        kept.append(i)
        mass += probability[i] / total
        if mass >= top_p:
            break
    total = sum(probability[i] for i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(probability)]


# log-probabilities


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 9, "top_p": 0.8},
    ],
    ids=str,
)
def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(model, how) -> None:
    requests = [request(p, i, **how) for i, p in enumerate(PROMPTS)]
    finish(generator(model), requests)
    for r in requests:
        np.testing.assert_allclose(r.logprobs, teacher_forced(model, r, **how), atol=2e-6)


def test_different_settings_live_in_one_batch(model) -> None:
    settings_ = [{"temperature": 0.5}, {"top_k": 3}, {}, {"temperature": 0.0}, {"top_p": 0.5}]
    requests = [request(p, i, **how) for i, (p, how) in enumerate(zip(PROMPTS, settings_, strict=True))]
    finish(generator(model), requests)
    for r, how in zip(requests, settings_, strict=True):
        if "temperature" not in how or how["temperature"]:
            np.testing.assert_allclose(r.logprobs, teacher_forced(model, r, **how), atol=2e-6)
        assert r.token_ids == alone(model, r.prompt_ids, r.sampling.seed[1], **how).token_ids


def test_a_float32_model_agrees_to_rounding(model) -> None:
    single = copy.deepcopy(model).float()
    requests = [request(p, i) for i, p in enumerate(PROMPTS)]
    finish(generator(single), requests)
    for r in requests:
        np.testing.assert_allclose(r.logprobs, teacher_forced(single, r), atol=2e-4)


# batching changes nothing


@settings(max_examples=25, deadline=None)
@given(
    joins=st.lists(st.integers(0, 6), min_size=5, max_size=5),
    lengths=st.lists(st.integers(1, 12), min_size=5, max_size=5),
    max_rows=st.integers(1, 6),
)
def test_a_request_gets_the_same_tokens_alone_or_in_a_crowd_that_comes_and_goes(
    model, singles, joins, lengths, max_rows
):
    gen = generator(model, max_rows=max_rows)
    requests = [request(p, i, max_tokens=n) for i, (p, n) in enumerate(zip(PROMPTS, lengths, strict=True))]
    for step in range(200):
        for r, at in zip(requests, joins, strict=True):
            if at == step:
                gen.add(r)
        gen.step()
    assert gen.idle
    for r, single, n in zip(requests, singles, lengths, strict=True):
        assert r.token_ids == single.token_ids[:n]
        np.testing.assert_allclose(r.logprobs, single.logprobs[:n], atol=2e-6)


def test_a_row_outgrows_the_cache_buffer_without_a_change(model) -> None:
    long = request([5, 6, 7], 3, max_tokens=150)  # two growths of 64 columns
    finish(generator(model), [long, request([8], 4, max_tokens=70)])
    np.testing.assert_allclose(long.logprobs, teacher_forced(model, long), atol=2e-6)


def test_noise_depends_on_the_seed_key_alone(model) -> None:
    tokens = [alone(model, [5, 6, 7], seed).token_ids for seed in (1, 2, 1)]
    assert tokens[0] == tokens[2]
    assert tokens[0] != tokens[1]


def test_a_prompt_shared_by_many_rows_is_prefilled_once(model, monkeypatch) -> None:
    shapes = []
    forward = type(model).forward

    def counting(self, input_ids, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    requests = [request([5, 6, 7], i, max_tokens=2) for i in range(6)] + [request([9], 9, max_tokens=2)]
    finish(generator(model), requests)
    assert shapes == [(2, 3), (7, 1)]  # two distinct prompts, then one token for seven rows
    assert len({tuple(r.token_ids) for r in requests[:6]}) > 1


def test_a_few_latecomers_join_running_rows_after_a_bounded_wait(model) -> None:
    gen = generator(model, max_rows=64)  # gathers 4 before it copies the cache
    running, late = request([5, 6], 1, max_tokens=100), request([9], 2, max_tokens=1)
    gen.add(running)
    gen.step()
    gen.add(late)
    for _ in range(PATIENCE + 1):
        assert not late.token_ids
        gen.step()
    assert len(late.token_ids) == 1
    assert len(running.token_ids) == PATIENCE + 1


def test_more_requests_than_rows_are_all_served(model) -> None:
    gen = generator(model, max_rows=3)
    requests = [request(PROMPTS[i % 5], i, max_tokens=1 + i % 4) for i in range(11)]
    most = 0
    for r in requests:
        gen.add(r)
    while not gen.idle:
        gen.step()
        most = max(most, len(gen.rows))
    assert most <= 3
    assert [len(r.token_ids) for r in requests] == [1 + i % 4 for i in range(11)]
    assert [len(r.calls) for r in requests] == [1] * 11


# greedy, and how a response ends


def test_greedy_is_transformers_greedy_search(model) -> None:
    requests = [request(p, i, temperature=0.0, max_tokens=20) for i, p in enumerate(PROMPTS)]
    finish(generator(model), requests)
    for r in requests:
        ids = model.generate(
            torch.tensor([r.prompt_ids]), do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0
        )
        assert r.token_ids == ids[0, len(r.prompt_ids) :].tolist()


def test_a_response_is_cut_at_max_tokens_and_not_finished(model) -> None:
    r = alone(model, [5, 6, 7], max_tokens=4)
    assert (len(r.token_ids), len(r.logprobs), r.finished) == (4, 4, False)


def ended(model: Any, end_ids: Sequence[int] = (), **fields: Any) -> tuple[Sequence_, list[int]]:
    """A request under way with these settings, and the 12 tokens the same noise gives when nothing ends it."""
    free = alone(model, [5, 6, 7], 5)
    r = request([5, 6, 7], 5, **fields)
    finish(Generator(model, end_ids=end_ids, decode=lambda ids: " ".join(f"<{i}>" for i in ids)), [r])
    return r, free.token_ids


def test_an_end_token_finishes_and_stays_in_the_response(model) -> None:
    tokens = alone(model, [5, 6, 7], 5).token_ids
    stop = tokens[6]
    cut = tokens.index(stop) + 1
    for end_ids, fields in (([stop], {}), ([], {"stop_token_ids": (stop,)})):
        r, free = ended(model, end_ids, **fields)
        assert r.token_ids == free[:cut]
        assert r.finished


def test_an_end_token_in_the_last_place_counts_as_finished(model) -> None:
    tokens = alone(model, [5, 6, 7], 5).token_ids
    r, free = ended(model, [tokens[0]], max_tokens=1)
    assert (r.token_ids, r.finished) == (free[:1], True)


def test_ignore_eos_ignores_end_tokens_but_not_stop_token_ids(model) -> None:
    tokens = alone(model, [5, 6, 7], 5).token_ids
    r, free = ended(model, [tokens[0]], ignore_eos=True)
    assert (r.token_ids, r.finished) == (free, False)
    r, free = ended(model, [tokens[0]], ignore_eos=True, stop_token_ids=(tokens[0],))
    assert (r.token_ids, r.finished) == (free[:1], True)


def test_a_stop_string_may_span_tokens_and_stays_in_the_response(model) -> None:
    tokens = alone(model, [5, 6, 7], 5).token_ids
    text = f"{tokens[3]}> <{tokens[4]}"
    r, free = ended(model, stop=("never", text))
    assert (r.token_ids, r.finished) == (free[:5], True)


# failures


def test_a_request_whose_prompt_the_model_cannot_read_is_not_lost(model) -> None:
    gen = generator(model)
    bad, good = request([VOCABULARY + 5]), request([5])
    gen.add(bad)
    gen.add(good)
    with pytest.raises(IndexError):
        gen.step()
    assert gen.drop_all() == [bad, good]
    assert gen.idle


def test_drop_all_returns_running_and_waiting_requests_and_leaves_a_usable_generator(model) -> None:
    gen = generator(model, max_rows=2)
    requests = [request(p, i) for i, p in enumerate(PROMPTS[:4])]
    for r in requests:
        gen.add(r)
    gen.step()
    gen.step()
    assert gen.drop_all() == requests
    assert gen.idle
    after = request([5, 6, 7], 1)
    finish(gen, [after])
    assert after.token_ids == alone(model, [5, 6, 7], 1).token_ids
    assert all(not r.calls for r in requests)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_k": -2}, r"top_k must be -1 \(all\) or at least 0, got -2"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_impossible_sampling_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)


def test_an_empty_prompt_is_refused(model) -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        generator(model).add(request([]))


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=16),
        Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1, num_hidden_layers=2),
    ],
    ids=lambda c: c.model_type,
)
def test_a_sliding_window_model_is_refused(config) -> None:
    holder = torch.nn.Module()
    holder.config = config
    with pytest.raises(ValueError, match=r"full attention only.*sliding_attention.*engine=gpu"):
        Generator(holder, end_ids=[])


def test_a_window_that_is_switched_off_is_accepted() -> None:
    holder = torch.nn.Module()
    for config in (MistralConfig(sliding_window=None), Qwen2Config(use_sliding_window=False)):
        holder.config = config
        Generator(holder, end_ids=[])


# drawing


class Noise:
    """A row with given uniforms."""

    def __init__(self, uniform: float, **fields: Any) -> None:
        self.sampling, self.uniforms, self.token_ids = Sampling(**fields), np.array([uniform]), []


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}], ids=str)
def test_frequencies_follow_the_probabilities(how) -> None:
    """Chi-square of 20,000 draws by 20,000 seed keys, against the 99.9 % quantile; seeds are fixed, so it cannot flake."""
    probability = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02])
    wanted = probability ** (1 / how.get("temperature", 1.0))
    wanted = np.array(naive_restrict(wanted / wanted.sum(), how.get("top_k", 7), how.get("top_p", 1.0)))
    rows = [request([1], i, max_tokens=1, **how) for i in range(20_000)]
    tokens, _ = sample(torch.from_numpy(np.log(probability)).float().repeat(len(rows), 1), rows)
    seen = np.bincount(tokens.numpy(), minlength=7)
    assert (seen[wanted == 0] == 0).all()
    inside = wanted > 0
    chi_square = (((seen - len(rows) * wanted) ** 2)[inside] / (len(rows) * wanted[inside])).sum()
    quantile = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5}[int(inside.sum()) - 1]
    assert chi_square < quantile


def test_the_ends_of_the_unit_interval_draw_a_token_that_is_possible() -> None:
    logits = torch.tensor([-np.inf, 0.0, 0.0, -np.inf]).repeat(2, 1)
    tokens, logprobs = sample(logits, [Noise(0.0), Noise(1.0 - 2**-53)])  # type: ignore[list-item]
    assert tokens.tolist() == [1, 2]
    np.testing.assert_allclose(logprobs, np.log(0.5), atol=1e-6)


def test_token_t_is_drawn_with_the_t_th_uniform_of_its_request() -> None:
    row = Noise(0.1)
    row.uniforms, drawn = np.array([0.15, 0.95, 0.65]), []
    for _ in range(3):
        drawn += sample(torch.zeros(1, 10), [row])[0].tolist()  # type: ignore[list-item]
        row.token_ids.append(drawn[-1])
    assert drawn == [1, 9, 6]  # ten equal tokens: the first digit of the uniform


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.25, 0.15]]))
    for top_p, kept in (
        (0.5, [1]),
        (0.51, [1, 2]),
        (0.75, [1, 2]),
        (0.76, [1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
        (1e-6, [1]),
    ):
        found = restrict(logits, torch.tensor([4]), torch.tensor([top_p - 1e-7 if top_p == 0.75 else top_p]))
        assert torch.isfinite(found)[0].nonzero()[:, 0].tolist() == kept, top_p


def test_top_p_is_measured_after_top_k() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    # of the two kept by top-k the first has 2/3 of the mass
    assert torch.isfinite(restrict(logits, torch.tensor([2]), torch.tensor([0.6])))[0].tolist() == [1, 0, 0, 0]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True),
    top_k=st.integers(1, 8),
    percent=st.integers(1, 100),
)
def test_restrict_keeps_what_the_naive_loop_keeps(weights, top_k, percent) -> None:
    probability = np.array(weights) / sum(weights)
    top_k = min(top_k, len(weights))
    top_p = percent / 100 + 1e-4 if percent < 100 else 1.0  # off the sums that rounding decides
    wanted = naive_restrict(probability.tolist(), top_k, top_p)
    found = restrict(torch.from_numpy(np.log(probability))[None], torch.tensor([top_k]), torch.tensor([top_p]).double())
    np.testing.assert_allclose(found.softmax(-1)[0], wanted, atol=1e-9)
