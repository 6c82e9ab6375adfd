"""`reasonrl tts` with backend=vllm: what vLLM is asked, how adapters reach it, and what happens when it fails."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from tts_builders import FakeVerifier, posed

from reasonrl.config import ConfigError, RunFailed, package_path
from reasonrl.engine.sampling import Sampling, seed_number
from reasonrl.eval.tts.adapters import FeedbackLearner
from reasonrl.eval.tts.backends import local, vllm
from reasonrl.eval.tts.backends.local import LocalBackend
from reasonrl.eval.tts.backends.vllm import (
    Adapters,
    CutEdits,
    LoRA,
    Makers,
    Opening,
    VLLMBackend,
    able,
    cut,
    end_tokens,
    open_vllm,
    write_adapter,
)
from reasonrl.eval.tts.base import Budget, Generate, Step, StepDone
from reasonrl.eval.tts.methods.beam_search import BeamSearch
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.fttt import FTTT
from reasonrl.eval.tts.methods.optune import OpTune
from reasonrl.eval.tts.optune import card
from reasonrl.eval.tts.optune.editor import Editors
from reasonrl.eval.tts.optune.edits import EditLearner
from reasonrl.eval.tts.optune.targets import Matrix, chosen, matrices
from reasonrl.eval.tts.run import backend_of, chosen_backend, placed, prepare, run_tts
from reasonrl.eval.tts.schedule import Schedule
from reasonrl.eval.tts.settings import BESIDE_ANOTHER, TTSEngineKnobs, read_settings
from reasonrl.runs import provenance

TINY = package_path("pkg://reasonrl.assets.tiny/model")
LORA = LoRA(4, 16.0, ("q_proj", "v_proj"))
END, STOP = 3, 9  # END is the tokenizer's, STOP another of the model's end tokens


# vLLM, as far as we use it; an unknown field is a TypeError, as there


@dataclass
class Params:
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop_token_ids: list[int]
    seed: int | None
    detokenize: bool


@dataclass
class BeamParams:
    beam_width: int
    max_tokens: int
    length_penalty: float = 1.0


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """vLLM's offline LLM: an output a prompt, in order. Answers its prompt's first token `max_tokens` times, or END earlier.

    read: the adapters that a call came with, as their folders were at that time.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.calls: list[list[tuple[list[int], Any, LoRARequest | None]]] = []
        self.searches: list[tuple[int, BeamParams]] = []
        self.read: dict[int, dict[str, Any]] = {}
        self.added: list[int] = []
        self.fails: Exception | None = None
        self.reason = "stop"
        self.llm_engine = self

    def add_lora(self, request: LoRARequest) -> bool:
        self.added.append(request.lora_int_id)
        return True

    def generate(
        self,
        prompts: Sequence[Mapping[str, list[int]]],
        sampling_params: Sequence[Params],
        *,
        use_tqdm: bool = True,
        lora_request: Sequence[LoRARequest | None] | None = None,
    ) -> list[Any]:
        ids = self._told(prompts, lora_request, use_tqdm)
        adapters = lora_request or [None] * len(ids)
        self.calls.append(list(zip(ids, sampling_params, adapters, strict=True)))
        if self.fails:
            raise self.fails
        return [
            SimpleNamespace(
                prompt_token_ids=each,
                outputs=[SimpleNamespace(token_ids=(each[0], END), finish_reason=self.reason)],
            )
            for each in ids
        ]

    def beam_search(
        self,
        prompts: Sequence[Mapping[str, list[int]]],
        params: BeamParams,
        lora_request: Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool = False,
    ) -> list[Any]:
        ids = self._told(prompts, lora_request, use_tqdm)
        assert 2 * params.beam_width <= self.settings.get("max_logprobs", 10**6)  # else a ValueError
        self.searches.append((len(ids), params))
        kinds: list[Callable[[int], list[int]]] = [lambda k: [k, END], lambda k: [k, STOP, k], lambda k: [k] * 3]
        return [
            SimpleNamespace(
                sequences=[SimpleNamespace(tokens=[*each, *kinds[k % 3](k + 20)]) for k in range(params.beam_width)]
            )
            for each in ids
        ]

    def _told(self, prompts: Any, adapters: Any, use_tqdm: bool) -> list[list[int]]:
        assert not use_tqdm
        for request in adapters or ():
            if request is not None:
                config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
                self.read.setdefault(request.lora_int_id, config)
        return [prompt["prompt_token_ids"] for prompt in prompts]


class Words:
    """A tokenizer that says its tokens' numbers, and is asked to leave special ones out."""

    eos_token_id = END

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(str(token) for token in ids if token not in (END, STOP))


class Learner:
    """Steps are counted; an owner's A is the number of its steps."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.forgotten: list[str] = []
        self.closed = False

    def step(self, asks: Sequence[tuple[str, Step]]) -> list[StepDone]:
        for owner, _ in asks:
            self.steps[owner] = self.steps.get(owner, 0) + 1
        return [StepDone(1.0) for _ in asks]

    def weights(self, owner: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        count = float(self.steps[owner])
        return {"model.layers.0.q_proj": (torch.full((4, 2), count), torch.zeros(2, 4))}

    def forget(self, owner: str) -> None:
        self.forgotten.append(owner)

    def facts(self) -> dict[str, Any]:
        return {"learned": sum(self.steps.values())}

    def close(self) -> None:
        self.closed = True


def backend(folder: Path | None = None, **knobs: Any) -> tuple[VLLMBackend, LLM]:
    llm = LLM()
    adapters = None if folder is None else Adapters(Learner(), LORA, folder, LoRARequest)  # type: ignore[arg-type]
    made = VLLMBackend(llm, Makers(Params, BeamParams), Words(), end_ids=[END, STOP], adapters=adapters, **knobs)
    return made, llm


def ask(first: int = 5, *, number: int = 0, beams: int = 1, adapter: bool = True, **changes: Any) -> Generate:
    how = Sampling(
        **{"temperature": 0.6, "top_p": 0.9, "top_k": 7, "max_tokens": 4, "seed": (1, first, number), **changes}
    )
    return Generate((first, 6), how, adapter=adapter, beams=beams)


def step(backend: VLLMBackend, *owners: str) -> None:
    assert [done.loss for done in backend.step([(owner, Step((5,), (6,), (7,))) for owner in owners])] == [1.0] * len(
        owners
    )


# samples


def test_a_round_is_one_call_and_every_sample_has_noise_of_its_own() -> None:
    made, llm = backend()
    asks = [(f"q{i}", ask(5 + i, number=k)) for i in range(3) for k in range(2)]
    found = made.generate(asks)
    (call,) = llm.calls
    assert [prompt for prompt, _, _ in call] == [[5 + i, 6] for i in range(3) for _ in range(2)]
    assert [params.seed for _, params, _ in call] == [seed_number((1, 5 + i, k)) for i in range(3) for k in range(2)]
    assert [one.text for one in found] == ["5", "5", "6", "6", "7", "7"]  # type: ignore[union-attr]
    assert all(adapter is None for _, _, adapter in call)


def test_vllm_samples_with_the_same_numbers_and_stops_at_all_end_tokens() -> None:
    made, llm = backend()
    made.generate([("q", ask(stop_token_ids=(2,)))])
    ((_, params, _),) = llm.calls[0]
    assert params == Params(0.6, 0.9, 7, 4, [2, END, STOP], seed_number((1, 5, 0)), False)


def test_greedy_has_no_noise() -> None:
    made, llm = backend()
    made.generate([("q", ask(temperature=0.0))])
    assert llm.calls[0][0][1].seed is None


@pytest.mark.parametrize(("reason", "finished"), [("stop", True), ("length", False)])
def test_an_answer_says_whether_it_was_cut(reason: str, finished: bool) -> None:
    made, llm = backend()
    llm.reason = reason
    (found,) = made.generate([("q", ask())])
    assert (found.token_ids, found.finished) == ((5, END), finished)  # type: ignore[union-attr]


# weights of a question's own


def test_an_owner_has_the_models_weights_until_it_steps_and_where_it_asks_for_them(tmp_path: Path) -> None:
    made, llm = backend(tmp_path)
    made.generate([("a", ask()), ("b", ask())])
    step(made, "a")
    made.generate([("a", ask()), ("a", ask(adapter=False)), ("b", ask())])
    adapters = [[adapter and adapter.lora_int_id for _, _, adapter in call] for call in llm.calls]
    assert adapters == [[None, None], [1, None, None]]
    assert llm.read[1] == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 16.0,
        "lora_dropout": 0.0,
        "target_modules": ["model.layers.0.q_proj"],
        "bias": "none",
        "inference_mode": True,
    }


def test_every_version_has_a_number_and_a_name_that_never_come_again(tmp_path: Path) -> None:
    made, llm = backend(tmp_path)
    for owners in (["a", "b"], ["b"], ["a", "c"], []):
        step(made, *owners)
        made.generate([(owner, ask()) for owner in "abc"])
    made.forget("a")
    step(made, "a")
    made.generate([("a", ask())])
    seen = [[adapter and adapter.lora_int_id for _, _, adapter in call] for call in llm.calls]
    assert seen == [[1, 2, None], [1, 3, None], [4, 3, 5], [4, 3, 5], [6]]  # without a step in between the same one
    names = {adapter.lora_int_id: adapter.lora_name for call in llm.calls for _, _, adapter in call if adapter}
    assert len(set(names.values())) == 6


def test_folders_of_old_versions_and_of_ended_questions_are_gone(tmp_path: Path) -> None:
    made, _ = backend(tmp_path)
    there = lambda: sorted(path.name for path in tmp_path.iterdir())  # noqa: E731
    for owners, folders in ((["a", "b"], ["1", "2"]), (["b"], ["1", "3"])):
        step(made, *owners)
        made.generate([("a", ask()), ("b", ask())])
        assert there() == folders
    step(made, "b")
    made.forget("b")  # its newest version was never asked for
    assert there() == ["1"]
    made.forget("a")
    assert there() == []
    assert made._adapters.learner.forgotten == ["b", "a"]  # type: ignore[union-attr]


def test_more_adapters_than_vllm_has_room_for_are_still_one_call(tmp_path: Path) -> None:
    made, llm = backend(tmp_path)
    owners = [f"q{i}" for i in range(40)]
    step(made, *owners)
    made.generate([(owner, ask()) for owner in owners])
    (call,) = llm.calls
    assert [adapter.lora_int_id for _, _, adapter in call if adapter] == list(range(1, 41))
    assert made.facts() == {"adapters_written": 40, "learned": 40}


def test_the_first_adapter_is_tried_before_a_call_that_would_end_the_engine(tmp_path: Path) -> None:
    made, llm = backend(tmp_path)
    step(made, "a", "b")
    made.generate([("a", ask()), ("b", ask())])
    assert llm.added == [1]

    def refuse(request: LoRARequest) -> bool:
        raise RuntimeError("Call to add_lora method failed: expected target modules in ...\nmore")

    made, llm = backend(tmp_path / "other")
    (tmp_path / "other").mkdir()
    llm.add_lora = refuse  # type: ignore[method-assign]
    step(made, "a")
    with pytest.raises(ConfigError, match=r"cannot use the adapters .* add_lora method failed: .*method\.targets"):
        made.generate([("a", ask())])
    assert llm.calls == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = backend(tmp_path)
    step(made, "a")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vllm, "write_adapter", full)
    with pytest.raises(RunFailed, match="cannot write an adapter to .*: No space left on device. .* the same command"):
        made.generate([("a", ask())])


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_adapter(tmp_path / "1", {"q": (torch.zeros(8, 64), torch.zeros(64, 8))}, LORA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_fttt_samples_each_attempt_with_the_weights_of_the_steps_before_it(tmp_path: Path) -> None:
    made, llm = backend(tmp_path)
    questions = [replace(posed(id), prompt_ids=(first, 6), room=4) for id, first in (("a", 5), ("b", 7))]
    traces = list(Schedule(FTTT(), made, FakeVerifier(), Budget(3)).run(questions))
    assert [[attempt.steps for attempt in trace.attempts] for trace in traces] == [[0, 1, 2], [0, 1, 2]]
    seen = [[adapter and adapter.lora_int_id for _, _, adapter in call] for call in llm.calls]
    assert seen == [[None, None], [1, 2], [3, 4]]
    assert list(tmp_path.iterdir()) == []


def test_without_a_learner_nothing_can_be_changed() -> None:
    made, _ = backend()
    assert made.capabilities == {"sample", "beam", "prefix_cache", "lora_swap"}
    with pytest.raises(RuntimeError, match="opened without a learner"):
        made.step([])
    made.forget("a")
    assert made.facts() == {}


# the weights themselves


@pytest.fixture(scope="module")
def learned() -> Iterator[tuple[Any, FeedbackLearner]]:
    """The embedded model with a question that has taken two large steps."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval().requires_grad_(False)
    learner = FeedbackLearner(model, FTTT(lr=0.05, rank=2, alpha=6.0))
    for number in range(2):
        learner.step([("q", Step((5, 6, 7), (8, 9), (3, 10, 11), header_tokens=2, seed=(1, number)))])
    yield model, learner
    learner.close()


def logits(model: Any, ids: Sequence[int] = (5, 6, 7, 8, 9, 10)) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def test_peft_reads_the_folder_as_the_same_model(learned: tuple[Any, FeedbackLearner], tmp_path: Path) -> None:
    from peft import PeftModel

    model, learner = learned
    plain = logits(model)
    learner.use(["q"])
    wanted = logits(model)
    learner.use(())
    assert (wanted - plain).abs().max() > 0.1
    write_adapter(tmp_path / "1", learner.weights("q"), LoRA(2, 6.0, ("q_proj", "v_proj")))
    fresh = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    read = PeftModel.from_pretrained(fresh, str(tmp_path / "1")).eval()
    assert logits(read) == pytest.approx(wanted, abs=1e-4)


def test_names_are_those_that_vllm_reads(learned: tuple[Any, FeedbackLearner], tmp_path: Path) -> None:
    from safetensors import safe_open

    model, learner = learned
    write_adapter(tmp_path / "1", learner.weights("q"), LORA)
    with safe_open(tmp_path / "1" / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        head, module, matrix, weight = (
            name.partition("base_model.model.")[2].rsplit(".", 2)[0],
            *name.rsplit(".", 3)[1:],
        )
        linear = modules[head]
        assert (module, weight) == (head.rpartition(".")[2], "weight")
        assert shape == ([2, linear.in_features] if matrix == "lora_A" else [linear.out_features, 2])
    assert len(shapes) == 2 * 2 * model.config.num_hidden_layers


# edits


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_cut_edit_is_the_closest_of_its_rank_and_says_how_close(rank: int) -> None:
    left, right = (torch.randn(5, size, generator=torch.Generator().manual_seed(size)) for size in (7, 6))
    a, b, error = cut(left, right, rank)
    assert (a.shape, b.shape) == ((rank, 7), (6, rank))
    change = right.mT @ left
    u, values, v = torch.linalg.svd(change, full_matrices=False)
    assert b @ a == pytest.approx(u[:, :rank] * values[:rank] @ v[:rank], abs=1e-4)
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-5)
    assert (error < 1e-5) == (rank >= 5)


def test_an_edit_of_no_token_changes_nothing() -> None:
    a, b, error = cut(torch.zeros(0, 7), torch.zeros(0, 6), 2)
    assert (a.abs().sum(), b.abs().sum(), error) == (0.0, 0.0, 0.0)
    assert (a.shape, b.shape) == ((2, 7), (6, 2))


@pytest.mark.parametrize(("rank", "alike"), [(16, True), (1, False)])
def test_peft_reads_an_edit_as_the_same_model_where_its_rank_suffices(tmp_path: Path, rank: int, alike: bool) -> None:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval().requires_grad_(False)
    edited = chosen(matrices(model), ["q_proj", "v_proj"], [-1])
    learner = EditLearner(model, Editors(edited, rank=2, eta=0.02))
    plain = logits(model)
    cuts = CutEdits(learner, rank)
    cuts.step([("q", Step((5, 6, 7), (8, 9), (3, 10, 11), header_tokens=2))])
    learner.use(["q"])
    wanted = logits(model)
    learner.use(())
    write_adapter(tmp_path / "1", cuts.weights("q"), LoRA(rank, float(rank)))
    fresh = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    read = logits(PeftModel.from_pretrained(fresh, str(tmp_path / "1")).eval())
    moved = (wanted - plain).abs().max()
    assert moved > 0.01
    assert ((read - wanted).abs().max() < 1e-3 * moved) == alike
    error = cuts.facts()["edit_error"]
    assert (error["max"] == 0) == alike
    assert cuts.facts().items() >= {"edit_rank": rank, "edits": 1}.items()
    cuts.close()


# beams


def test_beams_come_best_first_and_end_at_any_end_token() -> None:
    made, _ = backend()
    (found,) = made.generate([("q", ask(beams=3))])
    assert isinstance(found, tuple)
    assert [(beam.token_ids, beam.finished, beam.text) for beam in found] == [
        ((20, END), True, "20"),
        ((21, STOP), True, "21"),
        ((22, 22, 22), False, "22 22 22"),
    ]
    assert made.facts() == {"beam_search": "vLLM's, not transformers'"}


def test_searches_of_one_width_and_length_go_together_as_far_as_they_fit() -> None:
    made, llm = backend(at_once=8)
    wide = [("a", ask(beams=4)), ("b", ask(beams=4)), ("c", ask(beams=4)), ("d", ask(beams=2)), ("e", ask(beams=16))]
    found = made.generate([*wide, ("f", ask()), ("g", ask(beams=4, max_tokens=9))])
    assert [len(one) if isinstance(one, tuple) else 1 for one in found] == [4, 4, 4, 2, 16, 1, 4]
    assert [(count, how.beam_width, how.max_tokens) for count, how in llm.searches] == [
        (2, 4, 4),
        (1, 4, 4),
        (1, 2, 4),
        (1, 16, 4),
        (1, 4, 9),
    ]


# failures


def test_an_engine_that_dies_says_what_is_kept() -> None:
    made, llm = backend()
    llm.fails = RuntimeError("EngineCore encountered an issue.\nmore")
    with pytest.raises(
        RunFailed, match="vLLM stopped: RuntimeError: EngineCore encountered an issue. What was tried is"
    ):
        made.generate([("q", ask())])


def test_a_prompt_that_vllm_refuses_stops_its_question_alone() -> None:
    made, llm = backend()
    answer = llm.generate

    def picky(prompts: Any, params: Any, **how: Any) -> Any:
        if any(prompt["prompt_token_ids"][0] == 7 for prompt in prompts):
            raise ValueError("The decoder prompt (length 9) is longer than the maximum model length")
        return answer(prompts, params, **how)

    llm.generate = picky  # type: ignore[method-assign]
    questions = [replace(posed(id), prompt_ids=(first, 6), room=4) for id, first in (("a", 5), ("b", 7), ("c", 8))]
    traces = {each.id: each for each in Schedule(BestOfN(), made, FakeVerifier(), Budget(2)).run(questions)}
    assert {id: trace.stop for id, trace in traces.items()} == {"a": "budget", "b": "failed", "c": "budget"}
    assert "longer than the maximum model length" in traces["b"].notes["error"]


def test_an_answer_that_vllm_gave_up_is_no_attempt() -> None:
    made, llm = backend()
    llm.reason = "abort"
    with pytest.raises(RunFailed, match=r"gave an answer up \(abort\)"):
        made.generate([("q", ask())])


# which backend, and how it is opened


def settings(*args: str, model: str = TINY) -> Any:
    budget = [] if any(arg.startswith("budget=") for arg in args) else ["budget=2"]
    return read_settings([f"model={model}", "task=arithmetic", "workers=1", *budget, *args])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A machine with a GPU and vLLM; returns the settings that engines are opened with."""
    opened: list[dict[str, Any]] = []

    def llm(**given: Any) -> LLM:
        opened.append(given)
        return LLM(**given)

    fake = {name: ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.lora", "vllm.lora.request")}
    fake["vllm"].__spec__ = SimpleNamespace()  # type: ignore[assignment]
    fake["vllm"].LLM, fake["vllm"].SamplingParams = llm, Params  # type: ignore[attr-defined]
    fake["vllm.sampling_params"].BeamSearchParams = BeamParams  # type: ignore[attr-defined]
    fake["vllm.lora.request"].LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for name, module in fake.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"])
    monkeypatch.chdir(tmp_path)
    return opened


@pytest.mark.parametrize(
    ("args", "small", "chosen"),
    [
        (["method=best_of_n"], False, "vllm"),
        (["method=revision"], False, "vllm"),
        (["method=best_of_n"], True, "transformers"),  # a model that is meant for a CPU
        (["method=best_of_n", "engine.device=cpu"], False, "transformers"),
        (["method=fttt"], False, "transformers"),  # gradients
        (["method=beam_search"], False, "transformers"),  # whose beams are the released ones
        (["method=fttt", "backend=vllm"], False, "vllm"),
        (["method=beam_search", "backend=vllm"], False, "vllm"),
        (["method=best_of_n", "backend=transformers"], False, "transformers"),
    ],
)
def test_auto_takes_vllm_for_methods_that_only_sample(gpu: Any, args: list[str], small: bool, chosen: str) -> None:
    assert chosen_backend(settings(*args), small=small) == chosen


def test_auto_takes_transformers_without_a_gpu_or_without_vllm(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(provenance, "gpus", list)
        assert chosen_backend(settings("method=best_of_n"), small=False) == "transformers"
    monkeypatch.delitem(sys.modules, "vllm")
    assert chosen_backend(settings("method=best_of_n"), small=False) == "transformers"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["method=fttt", "method.sample_in_train_mode=true"], "vLLM samples without dropout"),
        (["method=fttt", "method.rank=513"], "takes at most 512"),
        (["method=fttt", "engine.dtype=float32"], "adapters have 16 bits"),
    ],
)
def test_weights_that_vllm_cannot_sample_with_are_refused(gpu: Any, args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen_backend(settings("backend=vllm", *args), small=False)


def test_vllm_needs_a_gpu_and_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "gpus", list)
    with pytest.raises(ConfigError, match="backend=vllm and no NVIDIA GPU found"):
        prepare(settings("method=best_of_n", "backend=vllm"), Console(quiet=True))
    with pytest.raises(ConfigError, match="backend=vllm runs on a GPU"):
        placed(settings("method=best_of_n", "engine.device=cpu"), "vllm", small=False)
    with pytest.raises(ConfigError, match=r"engine.data_parallel=2: reasonrl tts runs one copy"):
        settings("method=best_of_n", "engine.data_parallel=2")
    with pytest.raises(ConfigError, match=r"engine.max_loras must be at least 1"):
        settings("method=best_of_n", "engine.max_loras=0")


def test_what_lies_beside_vllm_leaves_it_half_of_the_gpu_unless_told() -> None:
    assert settings("method=best_of_n").engine.memory == 0.9
    assert settings("method=fttt").engine.memory == BESIDE_ANOTHER
    assert settings("method=optune").engine.memory == BESIDE_ANOTHER
    assert settings("method=fttt", "engine.memory=0.7").engine.memory == 0.7
    assert settings("method=best_of_n", "method.selector=prm", "method.prm=p").engine.memory == BESIDE_ANOTHER


def opened(*args: str) -> VLLMBackend:
    plan = prepare(settings("backend=vllm", "max_new_tokens=40", "limit=4", *args), Console(quiet=True))
    assert (plan.device, plan.plan.backend) == ("cuda", "vllm")
    with backend_of(plan) as made:
        assert isinstance(made, VLLMBackend)
        return made


def test_a_run_opens_vllm_for_what_it_will_ask(gpu: list[dict[str, Any]]) -> None:
    made = opened("method=best_of_n", "engine.memory=0.4", "engine.max_sequences=7", "engine.eager=true", "seeds=11")
    assert made._end_ids == (END,)
    (given,) = gpu
    longest = given.pop("max_model_len")
    assert 40 < longest < 200  # the longest prompt with its answer
    assert given == {
        "model": TINY,
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "seed": 11,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.4,
        "enforce_eager": True,
        "max_num_seqs": 7,
        "max_logprobs": 20,
        "enable_prefix_caching": True,
    }


def test_a_growing_prompt_may_fill_the_context_and_beams_need_probabilities(gpu: list[dict[str, Any]]) -> None:
    opened("method=revision", "max_context=300", "prompt=boxed")
    opened("method=beam_search", "budget=32")
    assert gpu[0]["max_model_len"] == 300
    assert [given["max_logprobs"] for given in gpu] == [20, 64]


def test_fttt_opens_a_copy_for_gradients_and_room_for_adapters(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    load = local.loaded

    def on_the_cpu(path: str, tokenizer: Any, trust: bool, device: str, dtype: str) -> Any:
        seen.append((device, dtype))
        return load(path, tokenizer, trust, "cpu", "float32")

    monkeypatch.setattr(local, "loaded", on_the_cpu)
    opening = Opening(TINY, TTSEngineKnobs(max_loras=5), "bfloat16", False, 90, 42, lora=LoRA.of(FTTT(rank=9), 64))
    with open_vllm(opening, AutoTokenizer.from_pretrained(TINY), FTTT(rank=9).learner) as made:
        assert "grad" in made.capabilities
        folder = made._adapters._folder  # type: ignore[union-attr]
        assert folder.is_dir()
        learner = made._adapters.learner  # type: ignore[union-attr]
        made.step([("q", Step((5, 6, 7), (8, 9), (3, 10, 11), header_tokens=2, seed=(1, 0)))])
        made.generate([("q", ask())])
        assert made.llm.read[1]["r"] == 9
    assert not folder.exists()
    assert learner._hooks[0].id not in learner._layers[0].module._forward_hooks
    assert seen == [("cuda", "bfloat16")]
    swap = {name: gpu[0][name] for name in ("enable_lora", "max_loras", "max_lora_rank", "lora_target_modules")}
    assert swap == {
        "enable_lora": True,
        "max_loras": 5,
        "max_lora_rank": 16,
        "lora_target_modules": ["q_proj", "v_proj"],
    }


def test_edits_are_cut_to_the_rank_that_the_engine_is_opened_for(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    edited: list[Any] = []

    def make(model: Any, tokenizer: Any, *, end_ids: Any) -> EditLearner:
        edited.extend(chosen(matrices(model), ["v_proj"], [-1]))
        return EditLearner(model, Editors(edited, rank=2, eta=0.02))

    load = local.loaded
    monkeypatch.setattr(local, "loaded", lambda path, tokenizer, *_: load(path, tokenizer, False, "cpu", "float32"))
    monkeypatch.setattr(
        card, "read_card", lambda folder: SimpleNamespace(matrices=edited or [Matrix("a.1.v_proj", 2, 2)])
    )
    lora = LoRA.of(OpTune(editor="somewhere"), 20)
    assert lora == LoRA(20, 20.0, ("v_proj",))
    with open_vllm(Opening(TINY, TTSEngineKnobs(), "bfloat16", False, 90, 42, lora=lora), Words(), make) as made:
        made.step([("q", Step((5, 6, 7), (8, 9), (3, 10, 11), header_tokens=2))])
        made.generate([("q", ask())])
        assert (made.llm.read[1]["r"], made.llm.read[1]["target_modules"]) == (20, [edited[0].name])
        assert made.facts()["edit_error"]["max"] == 0  # of at most 8 tokens
    assert (gpu[0]["max_lora_rank"], gpu[0]["lora_target_modules"]) == (32, ["v_proj"])


def test_a_run_from_end_to_end(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    args = ("method=best_of_n", "limit=3", "verify=exact", "seeds=1", "max_new_tokens=40", "out=run")
    folder = run_tts(settings("backend=vllm", *args))
    found = json.loads((folder / "results.json").read_text())
    assert (found["settings"]["backend"], found["settings"]["dtype"]) == ("vllm", "bfloat16")
    (session,) = json.loads((folder / "timing.json").read_text())["sessions"]
    assert (session["attempts"], session["rounds"]) == (6, 2)
    with pytest.raises(ConfigError, match="backend"):
        run_tts(settings("backend=transformers", *args))


def test_a_vllm_that_does_not_start_says_what_to_lower(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise ValueError("Free memory on device cuda:0 is less than desired GPU memory utilization.\nmore")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", broken)
    opening = Opening("org/model", TTSEngineKnobs(), "bfloat16", False, 90, 42)
    with (
        pytest.raises(
            ConfigError, match=r"did not start with model org/model: ValueError: Free memory.*engine\.memory"
        ),
        open_vllm(opening, Words()),
    ):
        pass


def test_a_copy_that_does_not_fit_beside_vllm_is_told(gpu: Any, tmp_path: Path) -> None:
    opening = Opening(str(tmp_path), TTSEngineKnobs(memory=0.5), "bfloat16", False, 90, 42, lora=LORA)
    with (
        pytest.raises(ConfigError, match=r"cannot load model .* lower engine\.memory \(now 0\.5\)"),
        open_vllm(opening, Words(), FTTT().learner),
    ):
        pass


def test_a_model_without_full_attention_is_for_vllm(gpu: Any) -> None:
    sliding = SimpleNamespace(config=SimpleNamespace(layer_types=["sliding_attention"]))
    with pytest.raises(ValueError, match="full attention only"):
        LocalBackend(sliding, Words(), end_ids=[END])
    with open_vllm(Opening(TINY, TTSEngineKnobs(), "bfloat16", False, 90, 42), Words()) as made:
        assert made.generate([("q", ask())])


def test_end_tokens_are_those_of_the_other_backend(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    _, wanted = local.loaded(TINY, tokenizer, False, "cpu", "float32")
    assert end_tokens(TINY, tokenizer) == wanted
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [8, 4]}))
    assert end_tokens(str(tmp_path), Words()) == [END, 4, 8]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert end_tokens(str(tmp_path), Words()) == [END, 7]


def test_what_a_backend_can_follows_from_its_method() -> None:
    assert able(BeamSearch()) == {"sample", "beam", "prefix_cache", "lora_swap"}
    assert able(FTTT()) == {"sample", "beam", "prefix_cache", "lora_swap", "grad"}
    assert "grad" in able(OpTune())
