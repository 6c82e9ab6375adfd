"""Scoring steps: by positions, by token ids, whatever else is in the batch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prm_builders import TAGS, ids_of, item, policy_tokenizer, prm_folder
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from reasonrl.config import ConfigError
from reasonrl.engine.prm import Card, Layout, Scorer, Steps, beyond_context, open_scorer
from reasonrl.engine.prm.card import card_from, read_card, write_card
from reasonrl.engine.prm.transformers_scorer import TransformersScorer
from reasonrl.engine.prm.vllm_scorer import open_vllm

CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PRM with a context of 128 tokens."""
    return prm_folder(tmp_path_factory.mktemp("prm") / "prm")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> TransformersScorer:
    return open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def by_hand(model: Any, card: Card, items: Sequence[Steps]) -> list[np.ndarray]:
    """One response at a time, all logits: question, response with tags, softmax of two logits at each tag."""
    found = []
    for one in items:
        ids, tags = ids_of(one.question), []
        for place, token in enumerate(one.response_ids):
            ids.append(token)
            if place in list(one.ends):
                tags.append(len(ids))
                ids.append(card.tag)
        logits = model(torch.tensor([ids])).logits[0].detach().double()
        pairs = logits[tags][:, [card.good, card.bad]].numpy()
        found.append(np.exp(pairs[:, 0]) / np.exp(pairs).sum(axis=1))
    return found


def close(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(np.allclose(x, y, rtol=0, atol=CLOSE) for x, y in zip(a, b, strict=True))


ITEMS = [
    item("two", [2]),
    item("1+1 is 2", [3, 6, 7]),
    item("abc", [0, 1, 2], question="a longer question"),
    item("x", [0]),
]


def test_a_score_is_the_softmax_of_good_and_bad_at_the_tag(scorer, model) -> None:
    found = scorer.score(ITEMS)
    assert close(found, by_hand(model, scorer.card, ITEMS))
    assert [s.size for s in found] == [1, 3, 3, 1]
    assert all(s.dtype == np.float32 and ((s > 0) & (s < 1)).all() for s in found)
    assert np.ptp(np.concatenate(found)) > 0.1  # a model whose scores hardly differ would show nothing


def test_probabilities_choose_otherwise_than_the_good_logit_alone() -> None:
    """Spec, section 9: logits (5, 4) and (3, 0); what is released compares 5 with 3."""
    pairs = torch.tensor([[5.0, 4.0], [3.0, 0.0]])
    assert torch.softmax(pairs, dim=-1)[:, 0].tolist() == pytest.approx([0.7311, 0.9526], abs=1e-4)
    assert pairs[:, 0].argmax() == 0
    assert torch.softmax(pairs, dim=-1)[:, 0].argmax() == 1


words = st.text("abc +=12", min_size=1, max_size=24)


@given(
    st.lists(st.tuples(words, st.integers(0, 2**24 - 1)), min_size=1, max_size=7), st.sampled_from([1, 40, 100, 4096])
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_else_is_in_the_batch_changes_no_score(scorer, some, batch_tokens) -> None:
    items = [item(text, [i for i in range(len(text)) if bits >> i & 1]) for text, bits in some]
    crowd = TransformersScorer(scorer.model, scorer.layout, "", batch_tokens=batch_tokens).score(items)
    alone = [scorer.score([one])[0] for one in items]
    assert close(crowd, alone)
    assert [s.size for s in crowd] == [len(one.ends) for one in items]


@given(words, st.integers(0, 2**24 - 1))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_without_its_tags_an_input_is_question_and_response(scorer, text, bits) -> None:
    one = item(text, [i for i in range(len(text)) if bits >> i & 1])
    ids, positions = scorer.layout(one)
    assert (ids[positions] == scorer.card.tag).all()
    read = ids_of(one.question) + ids_of(text)[: one.ends[-1] + 1] if one.ends else []
    assert np.delete(ids, positions).tolist() == read
    assert positions.size == len(one.ends)


def test_nothing_to_score_is_no_score(scorer) -> None:
    assert scorer.score([]) == []
    assert [s.size for s in scorer.score([item("abc", []), item("abc", [2]), Steps("q", [], [], [])])] == [0, 1, 0]


def test_a_response_that_holds_the_tag_is_scored_by_positions(scorer, model) -> None:
    tag = scorer.card.tag
    with_tag = Steps("1+1", [], [*ids_of("ab"), tag, tag, *ids_of("c")], [1, 4])
    (found,) = scorer.score([with_tag])
    assert close([found], by_hand(model, scorer.card, [with_tag]))
    ids, positions = scorer.layout(with_tag)
    assert (ids == tag).sum() == 4
    assert positions.tolist() == [5, 9]


def test_what_follows_the_last_step_is_not_read(scorer) -> None:
    end = ids_of("<|end|>")
    plain, ended = item("abc", [0, 2]), Steps("1+1", [], ids_of("abc") + end, [0, 2])
    assert scorer.layout(ended)[0].tolist() == scorer.layout(plain)[0].tolist()


def test_steps_beyond_the_context_have_no_score_and_those_before_keep_theirs(scorer, model) -> None:
    long = item("a" * 200, [10, 100, 120, 121, 122, 123, 150, 199])
    short = item("b" * 20, [19])
    found = scorer.score([long, short])
    # the tag of end e stands after 3 tokens of the question, e + 1 of the response and the tags before it:
    # 10 -> 14, 100 -> 105, 120 -> 126; 121 -> 128 is beyond the last place, 127
    assert np.isnan(found[0]).tolist() == [False] * 3 + [True] * 5
    assert beyond_context(found) == 5
    assert close([found[0][:3], found[1]], by_hand(model, scorer.card, [item("a" * 121, [10, 100, 120]), short]))


def test_a_question_longer_than_the_context_leaves_no_score(scorer) -> None:
    (found,) = scorer.score([item("abc", [0, 2], question="x" * 200)])
    assert np.isnan(found).all()


def test_ends_that_are_no_indices_are_refused(scorer) -> None:
    for ends in ([2, 1], [1, 1], [3], [-1]):
        with pytest.raises(ValueError, match="ends must be rising indices of the 3 response tokens"):
            scorer.score([item("abc", ends)])


def test_token_ids_that_the_model_lacks_are_refused(scorer) -> None:
    with pytest.raises(ValueError, match="token 9999 of a response is none of the process reward model's"):
        scorer.score([Steps("q", [], [9999], [0])])


def test_the_policys_prompt_stands_before_the_response_when_the_card_says_so(tmp_path) -> None:
    scorer = open_scorer(
        str(prm_folder(tmp_path, card={"input": "prompt"})), tokenizer=policy_tokenizer(), device="cpu"
    )
    ids, positions = scorer.layout(item("abc", [2], question="ignored", prompt="<|user|>hello"))
    assert ids[:-1].tolist() == ids_of("<|user|>hello") + ids_of("abc")
    assert positions.tolist() == [ids.size - 1]


def test_a_model_that_caps_its_logits_is_read_through_them(tmp_path) -> None:
    card = read_card(prm_folder(tmp_path))
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        final_logit_softcapping=1.0,
        initializer_range=0.3,
    )
    capped = Gemma2ForCausalLM(config).eval()
    layout = Layout(card, policy_tokenizer())
    scorer = TransformersScorer(capped, layout, "")
    assert not scorer.short
    assert close(scorer.score(ITEMS), by_hand(capped, card, ITEMS))
    config.final_logit_softcapping = None
    plain = TransformersScorer(capped, layout, "")
    assert plain.short
    assert close(plain.score(ITEMS), by_hand(capped, card, ITEMS))


# another tokenizer


def words_tokenizer(*, lower: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges of its own; `lower` loses capitals."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(["the answer is seven hundred, the answer is twelve"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> TransformersScorer:
    """A PRM with another vocabulary than the policy's."""
    folder = prm_folder(tmp_path_factory.mktemp("foreign") / "prm", tokenizer=words_tokenizer())
    return open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")  # type: ignore[return-value]


def test_another_tokenizers_tokens_are_found_by_their_characters(foreign) -> None:
    text = "the answer is twelve"
    ids, positions = foreign.layout(item(text, [2, 9, 12, 19], question="the"))
    own = words_tokenizer()
    assert np.delete(ids, positions).tolist() == ids_of("the", own) + ids_of(text, own)
    assert len(ids_of(text, own)) < len(text)
    for count, end in zip(positions, (2, 9, 12, 19), strict=True):
        before = np.delete(ids[:count], [p for p in positions if p < count])
        assert own.decode(before[len(ids_of("the", own)) :].tolist()) == text[: end + 1]
    (found,) = foreign.score([item(text, [2, 9, 12, 19])])
    assert np.isfinite(found).all()


@given(st.text("the answr is\n ü漢", min_size=1, max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_end_is_translated_to_its_character_or_refused(foreign, text) -> None:
    ids = ids_of(text)
    own = words_tokenizer()
    for end in range(len(ids)):
        try:
            read, positions = foreign.layout(Steps("", [], ids, [end]))
        except ValueError as error:
            assert "different tokenizers" in str(error)  # noqa: PT017
        else:
            assert own.decode(read[: positions[0]].tolist()) == policy_tokenizer().decode(ids[: end + 1])


def test_a_step_that_ends_inside_a_token_of_the_model_is_refused_with_the_way_out(foreign) -> None:
    with pytest.raises(ValueError, match=r"step 2 ends after 'the ans', inside a token .*the policy's own family"):
        foreign.score([item("the answer", [2, 6, 9])])


def test_a_step_that_ends_inside_a_character_is_refused(foreign) -> None:
    with pytest.raises(ValueError, match="step 1 of 'a漢' ends inside a character"):
        foreign.score([item("a漢", [1, 3])])


def test_text_that_the_models_tokenizer_does_not_give_back_is_refused(tmp_path) -> None:
    folder = prm_folder(tmp_path, tokenizer=words_tokenizer(lower=True))
    scorer = open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")
    assert np.isfinite(scorer.score([item("the", [2])])[0]).all()
    with pytest.raises(ValueError, match="does not give back the response 'The'"):
        scorer.score([item("The", [2])])


def test_prompt_ids_of_another_vocabulary_are_refused_at_the_start(tmp_path) -> None:
    folder = prm_folder(tmp_path, tokenizer=words_tokenizer(), card={"input": "prompt"})
    with pytest.raises(ConfigError, match="reads the policy's prompt ids .* train one with input=question"):
        open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")


def test_the_models_own_tokenizer_needs_no_translation(folder) -> None:
    from transformers import AutoTokenizer

    assert Layout(read_card(folder), AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)).same


# the folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def opened(folder: Path) -> Scorer:
    return open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")


def test_a_language_model_without_a_card_is_no_process_reward_model(copy) -> None:
    (copy / "prm.json").unlink()
    with pytest.raises(ConfigError, match=r"has no prm\.json, .*make one with `reasonrl prm train`"):
        opened(copy)
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        opened(copy / "nowhere")


def test_a_card_that_cannot_be_read_is_named(copy) -> None:
    (copy / "prm.json").write_text("{")
    with pytest.raises(ConfigError, match=r"prm\.json is not JSON"):
        opened(copy)
    (copy / "prm.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not the card of a process reward model"):
        opened(copy)
    (copy / "prm.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match="schema version 99, this reasonrl reads 1"):
        opened(copy)


def test_an_exchanged_tokenizer_is_found_out(copy) -> None:
    values = json.loads((copy / "prm.json").read_text())
    (copy / "prm.json").write_text(json.dumps({**values, "good": values["bad"], "bad": values["good"]}))
    with pytest.raises(ConfigError, match="the tokenizer was exchanged"):
        opened(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"good": 5, "bad": 5}, "three different tokens"),
        ({"input": "chat"}, "input must be one of question, prompt"),
        ({"labels": "any"}, "labels must be one of hard, soft"),
        ({"loss": "mse"}, "loss must be one of two_way, full_vocab"),
        ({"rollouts": -1}, "rollouts must not be negative"),
    ],
)
def test_a_card_has_no_other_values(folder, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        card_from({**read_card(folder).asdict(), **change}, "here")


def test_pickled_weights_are_refused(copy) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors: .*may run code"):
        opened(copy)


def test_weights_that_are_cut_short_are_refused(copy) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ConfigError, match="is cut short"):
        opened(copy)


def test_identity_follows_weights_tags_and_form_not_the_folders_name(folder, copy, tmp_path) -> None:
    assert opened(copy).identity == opened(folder).identity
    other = prm_folder(tmp_path / "other", seed=1)
    assert opened(other).identity != opened(folder).identity
    card = read_card(copy)
    for change in ({"labels": "soft"}, {"rollouts": 4}, {"input": "prompt"}):
        write_card(copy, card_from({**card.asdict(), **change}, ""))
        assert opened(copy).identity != opened(folder).identity
    write_card(copy, card_from({**card.asdict(), "training": {"lr": 1}}, ""))
    assert opened(copy).identity == opened(folder).identity


def test_a_gpu_that_is_not_there_is_refused(folder) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError, match="device=cuda and PyTorch finds no GPU: use device=cpu"):
        open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cuda")


def test_batch_tokens_must_be_positive(scorer) -> None:
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        TransformersScorer(scorer.model, scorer.layout, "", batch_tokens=0)


# vLLM: a fake of what vLLM 0.24.0's LLM takes and gives


class FakeLLM:
    """`LLM(runner="pooling", convert="classify")` and `LLM.encode`: two probabilities a token."""

    settings: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        FakeLLM.settings = settings
        self.model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        self.rows = tokenizer.convert_tokens_to_ids(settings["hf_overrides"]["classifier_from_token"])

    def encode(self, prompts: list[dict[str, list[int]]], *, pooling_task: str, use_tqdm: bool) -> list[Any]:
        assert pooling_task == "token_classify"
        assert not use_tqdm
        made = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            assert len(ids) <= self.settings["max_model_len"]
            logits = self.model(torch.tensor([ids])).logits[0].detach()
            data = torch.softmax(logits[:, self.rows], dim=-1)
            made.append(SimpleNamespace(prompt_token_ids=ids, outputs=SimpleNamespace(data=data)))
        return made


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = ModuleType("vllm"), ModuleType("vllm.config")
    module.LLM = FakeLLM  # type: ignore[attr-defined]
    config.PoolerConfig = lambda *, task: task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.config", config)


def test_vllm_gives_the_same_scores_by_position(vllm, folder, scorer) -> None:
    other = open_scorer(str(folder), tokenizer=policy_tokenizer(), backend="vllm", memory=0.25)
    items = [*ITEMS, item("a" * 200, [10, 199]), item("", []), Steps("q", [], [scorer.card.tag, 5], [1])]
    assert [np.isnan(s).tolist() for s in other.score(items)] == [np.isnan(s).tolist() for s in scorer.score(items)]
    assert close([np.nan_to_num(s) for s in other.score(items)], [np.nan_to_num(s) for s in scorer.score(items)])
    assert other.identity == scorer.identity
    assert FakeLLM.settings.pop("model") == str(folder)
    assert FakeLLM.settings == {
        "runner": "pooling",
        "convert": "classify",
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.25,
        "hf_overrides": {
            "classifier_from_token": list(TAGS[1:]),
            "method": "no_post_processing",
            "num_labels": 2,
        },
        "pooler_config": "token_classify",
        "max_model_len": 128,
    }


def test_a_vllm_that_pools_otherwise_is_found_out(vllm, folder, monkeypatch) -> None:
    other = open_vllm(str(folder), policy=policy_tokenizer())
    encode = FakeLLM.encode

    def one_vector(self: Any, *args: Any, **more: Any) -> list[Any]:
        made = encode(self, *args, **more)
        made[0].outputs.data = made[0].outputs.data[-1:]
        return made

    monkeypatch.setattr(FakeLLM, "encode", one_vector)
    with pytest.raises(RuntimeError, match="expected two probabilities a token"):
        other.score(ITEMS)


def test_vllm_that_is_not_installed_says_what_to_do(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="vLLM did not start .* Use backend=transformers"):
        open_scorer(str(folder), tokenizer=policy_tokenizer(), backend="vllm")
