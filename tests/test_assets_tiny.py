"""The embedded model: it loads by the ordinary classes, is small, encodes any prompt, and is worth training further."""

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import reasonrl.assets.tiny
from reasonrl.assets.tiny import train_tiny
from reasonrl.data import arithmetic

FOLDER = Path(reasonrl.assets.tiny.__file__).parent / "model"
N = 4


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def samples(tok):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    problems = list(arithmetic.items("validation", 128, seed=0))
    yield train_tiny.sample(model, tok, problems, n=N, seed=0)
    torch.set_num_threads(threads)


def test_the_folder_is_at_most_three_megabytes_and_says_what_it_is():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 3_000_000
    assert "Apache-2.0" in (FOLDER / "README.md").read_text()


def test_it_is_a_llama_with_room_for_512_tokens():
    config = AutoModelForCausalLM.from_pretrained(FOLDER).config
    assert (config.model_type, config.max_position_embeddings) == ("llama", 512)


@pytest.mark.parametrize(
    "text",
    [
        string.printable.replace("\t", "").replace("\r", "").replace("\x0b", "").replace("\x0c", ""),
        "  two  spaces , and a dot . it's n't \n\n end ",
        r"so \boxed{46} or \boxed{ 4 } or \box",
    ],
)
def test_any_printable_text_comes_back_as_it_was(tok, text):
    assert tok.is_fast
    ids = tok.encode(text, add_special_tokens=False)
    assert tok.unk_token_id not in ids
    assert tok.decode(ids) == tok.decode(ids, skip_special_tokens=True) == text


def test_unknown_characters_and_the_box_are_one_token_each(tok):
    assert tok("é√", add_special_tokens=False)["input_ids"] == [tok.unk_token_id] * 2
    assert len(tok(r"\boxed{", add_special_tokens=False)["input_ids"]) == 1


def test_the_chat_template_adds_one_token_a_turn(tok):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "12+34-5=?"}]
    assert tok.apply_chat_template(talk[1:], tokenize=False, add_generation_prompt=True) == (
        "<|user|>12+34-5=?<|assistant|>"
    )
    assert len(tok.apply_chat_template(talk[1:], add_generation_prompt=True, return_dict=False)) == 11
    answered = [*talk, {"role": "assistant", "content": "41"}]
    assert tok.apply_chat_template(answered, tokenize=False) == "<|system|>s<|user|>12+34-5=?<|assistant|>41<|end|>"


def test_special_tokens_are_distinct_and_vanish_when_skipped(tok):
    special = [tok.pad_token_id, tok.unk_token_id, tok.bos_token_id, tok.eos_token_id]
    assert len(set(special)) == 4
    assert tok.decode([*tok.encode("4 2"), tok.eos_token_id, tok.pad_token_id], skip_special_tokens=True) == "4 2"


def test_it_has_something_to_learn_sampled_accuracy_is_30_to_60_percent(samples):
    assert 0.30 <= np.mean([s.right for s in samples]) <= 0.60


def test_harder_levels_are_harder(samples):
    rates = [np.mean([s.right for s in samples if s.problem.level == level]) for level in (1, 2, 3)]
    assert rates[0] > rates[1] + 0.05
    assert rates[1] > rates[2] + 0.05


def test_lengths_vary_a_lot_even_for_one_problem(samples):
    lengths = np.array([s.tokens for s in samples], dtype=float).reshape(-1, N)  # (problems, N)
    assert lengths.std() / lengths.mean() > 0.4
    assert np.median(lengths.max(1) / lengths.min(1)) > 1.6


def test_answers_end_by_themselves_within_128_tokens(samples):
    assert np.mean([s.tokens < 128 for s in samples]) > 0.98


def test_estimating_is_the_habit_to_unlearn(samples):
    exact = [s.right for s in samples if s.habit == "exact"]
    estimated = [s.right for s in samples if s.habit == "estimated"]
    assert min(len(exact), len(estimated)) > 0.3 * len(samples)
    assert np.mean(exact) > np.mean(estimated) + 0.3


@pytest.mark.parametrize("style", arithmetic.STYLES)
def test_every_style_is_common_and_none_is_the_accurate_one(samples, style):
    mine = [s.right for s in samples if s.style == style]
    assert len(mine) > 0.2 * len(samples)
    assert abs(np.mean(mine) - np.mean([s.right for s in samples])) < 0.12
