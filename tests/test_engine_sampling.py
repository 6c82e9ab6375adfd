"""Sampling without training: both backends give each ask its own answer, token ids in and token ids out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrl.cli import composed
from reasonrl.config import ConfigError, typed
from reasonrl.engine.sampling import Answer, Ask, CPUSampler, Sampling, VLLMSampler, open_sampler, seed_number

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


def asks(count: int, **fields: Any) -> list[Ask]:
    return [
        Ask(("p", i), PROMPTS[i % 3], Sampling(**{"max_tokens": 8, "seed": (1, i), **fields})) for i in range(count)
    ]


# transformers


def test_every_ask_gets_its_answer_whatever_is_sampled_beside_it(model) -> None:
    crowd = list(CPUSampler(model, end_ids=[1], max_rows=3).answers(asks(20)))
    alone = [next(CPUSampler(model, end_ids=[1], max_rows=1).answers([ask])) for ask in asks(20)]
    assert sorted(answer.key for answer in crowd) == [ask.key for ask in asks(20)]
    assert {answer.key: answer for answer in crowd} == {answer.key: answer for answer in alone}
    assert {len(answer.token_ids) == 8 for answer in crowd if not answer.finished} == {True}
    assert {answer.token_ids[-1] for answer in crowd if answer.finished} == {1}
    assert [answer.key for answer in crowd] != [ask.key for ask in asks(20)]  # as they finish, not as they were asked


def test_asks_are_read_no_faster_than_they_are_answered(model) -> None:
    read = 0

    def counted() -> Iterator[Ask]:
        nonlocal read
        for ask in asks(50):
            read += 1
            yield ask

    for number, _ in enumerate(CPUSampler(model, end_ids=[1], max_rows=4).answers(counted()), 1):
        assert read <= number + 2 * 4 + 4
    assert number == read == 50


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_any_number_of_asks_is_answered(model, count) -> None:
    sampler = CPUSampler(model, end_ids=[], max_rows=4)
    for _ in range(2):  # a sampler may be asked again
        assert len(list(sampler.answers(asks(count, max_tokens=2)))) == count


def test_a_model_the_generator_cannot_run_is_refused_before_it_is_asked() -> None:
    with pytest.raises(ValueError, match="full attention only"):
        CPUSampler(SimpleNamespace(config=SimpleNamespace(layer_types=["sliding_attention"])), end_ids=[])


def test_log_probabilities_come_when_they_are_asked_for(model) -> None:
    plain = {a.key: a for a in CPUSampler(model, end_ids=[1]).answers(asks(3, temperature=0.7, top_k=4))}
    told = {a.key: a for a in CPUSampler(model, end_ids=[1], logprobs=True).answers(asks(3, temperature=0.7, top_k=4))}
    for ask in asks(3):
        assert plain[ask.key].logprobs is None
        answer = told[ask.key]
        assert answer.token_ids == plain[ask.key].token_ids
        ids = torch.tensor([[*ask.prompt_ids, *answer.token_ids]])
        logits = model(ids).logits[0, len(ask.prompt_ids) - 1 : -1].float() / 0.7
        lowest = logits.topk(4).values[:, -1:]
        wanted = logits.masked_fill(logits < lowest, -torch.inf).log_softmax(-1).gather(1, ids[0, -len(logits) :, None])
        assert answer.logprobs == pytest.approx(wanted[:, 0].tolist(), abs=1e-5)


class Shifts:
    """Weights of an owner's own that make one token certain; it notes what every pass was told."""

    def __init__(self, model: LlamaForCausalLM, tokens: dict[str, int]) -> None:
        self.told: list[tuple[str | None, ...]] = []
        self._tokens = tokens
        self._now: tuple[str | None, ...] = ()
        self._hook = model.register_forward_hook(self._shift)

    def use(self, owners: Sequence[str | None]) -> None:
        self._now = tuple(owners)
        self.told.append(self._now)

    def _shift(self, module: Any, given: Any, out: Any) -> None:
        assert len(self._now) == len(out.logits), "not told of this pass"
        for row, owner in zip(out.logits, self._now, strict=True):
            if owner is not None:
                row[..., self._tokens[owner]] += 1e4

    def close(self) -> None:
        self._hook.remove()


def test_every_row_is_sampled_with_the_weights_of_its_owner(model) -> None:
    owners = ["a", None, "b", "a", None, "b", "a", None]
    bare = {answer.key: answer for answer in CPUSampler(model, end_ids=[1], max_rows=3).answers(asks(8))}
    weights = Shifts(model, {"a": 7, "b": 8})
    asked = [replace(ask, owner=owner) for ask, owner in zip(asks(8), owners, strict=True)]
    try:
        found = {a.key: a for a in CPUSampler(model, end_ids=[1], max_rows=3, weights=weights).answers(asked)}
    finally:
        weights.close()
    for ask in asked:
        if ask.owner is None:
            assert found[ask.key] == bare[ask.key]
        else:
            assert found[ask.key].token_ids == [weights._tokens[ask.owner]] * 8
    assert weights.told[0] == ("a", None, "b")
    assert weights.told[-1] == ()  # no row has weights of its own any more


def test_a_prompt_is_read_once_for_each_owner_that_asks_it(model) -> None:
    weights = Shifts(model, {"a": 7, "b": 8})
    owners = [None, "a", "a", "b", None]
    asked = [Ask(i, [5, 6], Sampling(max_tokens=1, seed=(i,)), owner) for i, owner in enumerate(owners)]
    try:
        found = {a.key: a.token_ids for a in CPUSampler(model, end_ids=[], weights=weights).answers(asked)}
    finally:
        weights.close()
    assert weights.told == [(None, "a", "b"), ()]
    assert [found[i] for i in (1, 2, 3)] == [[7], [7], [8]]


def test_an_owner_where_nobody_holds_weights_is_an_error(model) -> None:
    asked = [replace(ask, owner="a") for ask in asks(1)]
    with pytest.raises(ValueError, match="asks for the weights of 'a', and nobody here holds weights"):
        list(CPUSampler(model, end_ids=[1]).answers(asked))
    with pytest.raises(ValueError, match="asks for the weights of 'a', and this vLLM has one model for all"):
        list(VLLMSampler(FakeLLM(), Params, at_once=3).answers(asked))


# vLLM


@dataclass
class Params:
    """vLLM's SamplingParams, as far as we use it; an unknown field is a TypeError as there."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: list[str] | None
    stop_token_ids: list[int] | None
    ignore_eos: bool
    seed: int
    detokenize: bool
    logprobs: int | None = None


class FakeLLM:
    """vLLM's offline LLM: one output a prompt, in order. Answers `[len(prompt), seed % 100]`."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls = settings, []

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], params: Sequence[Params], *, use_tqdm: bool
    ) -> list[Any]:
        assert not use_tqdm
        self.calls.append(list(zip(prompts, params, strict=True)))
        return [self.output(prompt["prompt_token_ids"], own) for prompt, own in self.calls[-1]]

    def output(self, ids: list[int], own: Params) -> Any:
        reason = "length" if len(ids) == 1 else "stop"
        tokens = (len(ids), own.seed % 100)
        logprobs = [{token: SimpleNamespace(logprob=-0.5 - i)} for i, token in enumerate(tokens)]
        told = None if own.logprobs is None else logprobs
        made = SimpleNamespace(token_ids=tokens, finish_reason=reason, logprobs=told)
        return SimpleNamespace(prompt_token_ids=ids, outputs=[made])


def test_vllm_is_given_ids_and_gives_ids_call_by_call() -> None:
    llm = FakeLLM()
    answers = list(VLLMSampler(llm, Params, at_once=3).answers(iter(asks(7))))
    assert [len(call) for call in llm.calls] == [3, 3, 1]
    assert answers == [
        Answer(ask.key, [len(ask.prompt_ids), seed_number((1, i)) % 100], len(ask.prompt_ids) > 1)
        for i, ask in enumerate(asks(7))
    ]
    assert [prompt["prompt_token_ids"] for prompt, _ in llm.calls[0]] == PROMPTS


def test_vllm_samples_with_the_same_fields() -> None:
    llm = FakeLLM()
    list(VLLMSampler(llm, Params, at_once=9).answers(asks(1, temperature=0.7, top_p=0.9, top_k=5, max_tokens=3)))
    list(VLLMSampler(llm, Params, at_once=9).answers(asks(1, stop=("x",), stop_token_ids=(4,), ignore_eos=True)))
    ((_, plain),), ((_, stopping),) = llm.calls
    assert plain == Params(0.7, 0.9, 5, 3, None, None, False, seed_number((1, 0)), False)
    assert (stopping.stop, stopping.stop_token_ids, stopping.ignore_eos, stopping.detokenize) == (
        ["x"],
        [4],
        True,
        True,
    )


def test_vllm_tells_the_log_probability_of_the_sampled_token_when_it_is_asked_for() -> None:
    llm = FakeLLM()
    (plain,) = VLLMSampler(llm, Params, at_once=9).answers(asks(1))
    (told,) = VLLMSampler(llm, Params, at_once=9, logprobs=True).answers(asks(1))
    assert (plain.logprobs, told.logprobs) == (None, [-0.5, -1.5])
    assert [params.logprobs for ((_, params),) in llm.calls] == [None, 0]


def test_a_vllm_that_tells_no_log_probabilities_says_none() -> None:
    llm = FakeLLM()
    llm.output = lambda ids, own: FakeLLM.output(llm, ids, replace(own, logprobs=None))  # type: ignore[method-assign]
    (answer,) = VLLMSampler(llm, Params, at_once=9, logprobs=True).answers(asks(1))
    assert answer.logprobs is None


def test_noise_keys_are_numbers_that_vllm_takes() -> None:
    numbers = [
        seed_number((seed, a, b, n)) for seed in (0, 1) for a in (0, 2**32 - 1) for b in (0, 5) for n in range(8)
    ]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 and type(number) is int for number in numbers)


def test_an_answer_to_another_prompt_is_an_error() -> None:
    llm = FakeLLM()
    llm.output = lambda ids, own: FakeLLM.output(llm, ids[1:], own)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"vLLM answered another prompt than \('p', 0\) asked"):
        list(VLLMSampler(llm, Params, at_once=3).answers(asks(1)))


def vllm(monkeypatch: pytest.MonkeyPatch, llm: Any) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = llm, Params  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_vllm_starts_with_the_settings_of_the_engine(monkeypatch) -> None:
    vllm(monkeypatch, FakeLLM)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    args = ["engine=gpu", "engine.eager=true", "engine.rollout_memory=0.5", "engine.tensor_parallel=2", "seed=7"]
    cfg = typed(composed(["model=tiny", *args, "engine.max_sequences=6", "max_new_tokens=100"]))
    with open_sampler(cfg, None) as sampler:
        assert len(list(sampler.answers(asks(13)))) == 13
    llm = sampler._llm  # type: ignore[attr-defined]
    assert [len(call) for call in llm.calls] == [12, 1]
    assert llm.settings.pop("model").endswith("assets/tiny/model")
    assert llm.settings == {
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "seed": 7,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "max_num_seqs": 6,
        "max_model_len": 148,
    }


def test_vllm_reports_the_distribution_that_a_run_compares(monkeypatch) -> None:
    vllm(monkeypatch, FakeLLM)
    cfg = typed(composed(["model=tiny", "engine=gpu"]))
    with open_sampler(cfg, None, logprobs=True) as sampler:
        assert sampler._llm.settings["logprobs_mode"] == "processed_logprobs"  # type: ignore[attr-defined]
        assert [answer.logprobs for answer in sampler.answers(asks(1))] == [[-0.5, -1.5]]


def test_a_vllm_that_does_not_start_says_what_to_lower(monkeypatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("Engine core initialization failed.\nmore")

    vllm(monkeypatch, broken)
    cfg = typed(composed(["model=tiny", "engine=gpu"]))
    with (
        pytest.raises(ConfigError, match=r"RuntimeError: Engine core initialization failed\. .*engine\.rollout_memory"),
        open_sampler(cfg, None),
    ):
        pass


# the embedded model


def test_the_cpu_sampler_of_a_run_uses_its_threads_and_its_end_tokens() -> None:
    cfg = typed(composed(["model=tiny", "engine.threads=3"]))
    before = torch.get_num_threads()
    with open_sampler(cfg, SimpleNamespace(eos_token_id=5, decode=str)) as sampler:
        assert torch.get_num_threads() == 3
        assert len(list(sampler.answers(asks(2, max_tokens=3)))) == 2
        assert sampler._make().end_ids == {3, 5}  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before


def test_a_model_that_cannot_be_loaded_is_named(tmp_path) -> None:
    cfg = typed(composed([f"model={tmp_path}", "engine=cpu"]))
    with pytest.raises(ConfigError, match=f"cannot load model {tmp_path}: "), open_sampler(cfg, None):
        pass
