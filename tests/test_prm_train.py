"""Training a process reward model: what is learned, what is refused, and that it can be stopped at any moment."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prm_builders import base_folder, data_file, ids_of, item, learnable, policy_tokenizer, row, small_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from reasonrl.config import ConfigError, RunFailed
from reasonrl.engine.prm import open_scorer, read_card
from reasonrl.eval.prm import train as training
from reasonrl.eval.prm import trainer
from reasonrl.eval.prm.examples import Example, choose_tokens
from reasonrl.eval.prm.held_out import auc
from reasonrl.eval.prm.knobs import read_knobs
from reasonrl.eval.prm.losses import check_packing, collated, step_losses, tags_logits
from reasonrl.eval.prm.train import TrainKnobs, give_rows, run, train
from reasonrl.eval.prm.trainer import Order
from reasonrl.functional.process import step_loss

FAST = {
    "batch": 16,
    "micro_batch": 16,
    "lr": 1e-2,
    "device": "cpu",
    "val_share": 0.2,
    "eval_every": 1000,
    "save_every": 1000,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of bytes with tied embeddings."""
    return base_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 responses in which an `x` spoils everything after it."""
    return data_file(tmp_path_factory.mktemp("data") / "prm.parquet", learnable())


def knobs(base: Path, data: Path, out: Path, *more: str) -> TrainKnobs:
    given = dict(arg.split("=") for arg in more)
    values = {"model": base, "data": data, "out": out, **FAST, **given}
    return read_knobs(TrainKnobs, [f"{name}={value}" for name, value in values.items()], "train")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path, tolerance: float = 0.0) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(bool((one[k] - two[k]).abs().max() <= tolerance) for k in one)


@pytest.fixture(scope="module")
def learned(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps."""
    return train(knobs(base, data, tmp_path_factory.mktemp("learned") / "prm", "steps=40"))


# what is learned


def test_it_learns_to_tell_good_steps_from_bad_ones(learned) -> None:
    card = read_card(learned)
    before, final = card.training["held_out"][0], card.training["final"]
    assert before["auc"] < 0.8
    assert final["auc"] > 0.95
    assert final["accuracy"] > 0.9
    assert final["loss"] < 0.4 < before["loss"]
    scorer = open_scorer(str(learned), tokenizer=policy_tokenizer(), device="cpu")
    good, spoiled = scorer.score([item("abca", [1, 3], "q1"), item("axbc", [1, 3], "q1")])
    assert good.min() > 0.6
    assert spoiled.max() < 0.4


def test_what_is_saved_scores_as_what_was_trained(learned, base, data) -> None:
    """Resized and tied embeddings come back: the last line of the training is of the folder, read again."""
    card = read_card(learned)
    assert card.training["final"]["tags"] == card.training["held_out"][0]["tags"]
    model = AutoModelForCausalLM.from_pretrained(learned)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.shape[0] == len(AutoTokenizer.from_pretrained(learned))
    assert "lm_head.weight" not in weights(learned)


def test_the_card_says_what_it_is(learned, base, data) -> None:
    card = read_card(learned)
    assert card.tokens == ("<step>", "<good>", "<bad>")
    assert len(set(card.ids)) == 3
    assert (card.input, card.loss, card.labels, card.rollouts) == ("question", "two_way", "hard", 8)
    assert card.data["tau"] == 0.5
    assert card.training["settings"]["lr"] == 1e-2


def test_two_trainings_of_one_seed_are_equal_and_of_another_are_not(base, data, tmp_path) -> None:
    first = train(knobs(base, data, tmp_path / "a", "steps=3"))
    again = train(knobs(base, data, tmp_path / "b", "steps=3"))
    other = train(knobs(base, data, tmp_path / "c", "steps=3", "seed=2"))
    assert same(first, again)
    assert not same(first, other, 1e-4)


def test_micro_batches_and_packing_do_not_change_what_is_learned(base, data, tmp_path) -> None:
    """The loss is the mean over the tags of the optimiser batch, however it is cut."""
    whole = train(knobs(base, data, tmp_path / "a", "steps=3"))
    cut = train(knobs(base, data, tmp_path / "b", "steps=3", "micro_batch=4"))
    packed = train(knobs(base, data, tmp_path / "c", "steps=3", "packing=true"))
    # AdamW divides by the root of tiny squares in its first steps, so rounding shows more than in the gradients
    assert same(whole, cut, 2e-3)
    assert same(whole, packed, 2e-3)


def test_gradients_that_are_no_numbers_stop_the_training_before_they_reach_the_weights(
    base, data, tmp_path, monkeypatch
) -> None:
    """As attention kernels have given them: the loss is a number, its gradient is none."""
    healthy = trainer.step_losses

    def spoiled(logits, *given):
        logits.register_hook(lambda grad: grad * (math.nan if spoiled.calls == 3 else 1.0))
        spoiled.calls += 1
        return healthy(logits, *given)

    spoiled.calls = 0
    monkeypatch.setattr(trainer, "step_losses", spoiled)
    with pytest.raises(RunFailed, match="the gradients of step 3 are not finite, so the step was not taken"):
        train(knobs(base, data, tmp_path / "out", "steps=6", "save_every=1"))
    assert not (tmp_path / "out").exists()
    kept = next(tmp_path.rglob("checkpoint-2/model.safetensors"))
    assert all(tensor.isfinite().all() for tensor in load_file(kept).values())


def test_a_model_that_gives_no_numbers_is_told(base, data, tmp_path) -> None:
    out = train(knobs(base, data, tmp_path / "out", "steps=1"))
    (file,) = out.glob("*.safetensors")
    save_file({name: tensor * math.nan for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    scorer = open_scorer(str(out), tokenizer=policy_tokenizer(), device="cpu")
    with pytest.raises(ValueError, match="2 of 2 scores that are not finite: its weights are damaged"):
        scorer.score([item("abca", [1, 3], "q1")])


def test_soft_labels_and_the_whole_vocabulary_are_learned_too(base, data, tmp_path) -> None:
    soft = train(knobs(base, data, tmp_path / "soft", "steps=30", "labels=soft"))
    scorer = open_scorer(str(soft), tokenizer=policy_tokenizer(), device="cpu")
    good, spoiled = scorer.score([item("abca", [1, 3], "q1"), item("axbc", [1, 3], "q1")])
    assert 0.6 < good.min() < good.max() < 0.97  # towards 0.9 and 0.1, not towards 1 and 0
    assert 0.03 < spoiled.min() < spoiled.max() < 0.4


def test_over_the_whole_vocabulary_other_tokens_lose_their_mass(base, data, tmp_path) -> None:
    out = train(knobs(base, data, tmp_path / "full", "steps=25", "loss=full_vocab"))
    card, model = read_card(out), AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[*ids_of("q1ab"), card.tag]])
    mass = torch.softmax(model(ids).logits[0, -1], dim=-1)[[card.good, card.bad]].sum()
    assert mass > 0.5  # of about 2 in 264 at the start


def test_lora_trains_little_and_is_merged(base, data, tmp_path) -> None:
    out = train(knobs(base, data, tmp_path / "lora", "steps=20", "lora_rank=8"))
    training_of = read_card(out).training
    assert training_of["final"]["loss"] < training_of["held_out"][0]["loss"] - 0.05
    assert not any("lora" in name for name in weights(out))
    assert not (out / "adapter_config.json").exists()
    made, old = weights(out), weights(base)
    embedding = "model.embed_tokens.weight"
    added = sorted(read_card(out).ids)
    rows = old[embedding].shape[0]
    assert added[0] == rows
    assert torch.equal(made[embedding][:rows], old[embedding])  # of the embeddings only the asked tokens' are trained
    assert not torch.equal(made["model.layers.0.mlp.up_proj.weight"], old["model.layers.0.mlp.up_proj.weight"])


def test_lora_without_peft_says_what_is_missing(base, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="lora_rank needs peft, which is not installed: pip install peft"):
        train(knobs(base, data, tmp_path / "out", "steps=1", "lora_rank=8"))


# the loss


def test_the_loss_of_the_worked_example() -> None:
    """Spec, example 6: good = 0, bad = 1; label 0 there is the good token."""
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    full = step_losses(logits, torch.tensor([1.0, 0.0]), 0, 1, "full_vocab")
    pair = step_losses(logits, torch.tensor([1.0, 0.0]), 0, 1, "two_way")
    assert [*full.tolist(), float(full.mean())] == pytest.approx([0.34075, 0.74367, 0.54221], abs=1e-5)
    assert [*pair.tolist(), float(pair.mean())] == pytest.approx([0.12693, 0.31326, 0.22009], abs=1e-5)


@given(
    st.lists(st.tuples(st.lists(st.floats(-8, 8), min_size=5, max_size=5), st.floats(0, 1)), min_size=1, max_size=6),
    st.sampled_from(["two_way", "full_vocab"]),
)
@settings(max_examples=40, deadline=None)
def test_the_loss_is_that_of_the_pure_function(rows, form) -> None:
    logits, targets = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    made = step_losses(torch.tensor(logits), torch.tensor(targets), 3, 1, form).numpy()
    assert made.mean() == pytest.approx(float(np.mean(step_loss(logits, targets, 3, 1, form=form))), abs=1e-9)


# batches


def example(text: str, positions: list[int], targets: list[float]) -> Example:
    return Example(np.array(ids_of(text), np.int32), np.array(positions), np.array(targets, np.float32), 0)


SOME = [example("abcdef", [2, 5], [1, 0]), example("xyz", [2], [0.5]), example("hello there", [0, 4, 10], [1, 1, 0])]


def test_packed_responses_do_not_see_each_other() -> None:
    model = small_model(300)
    padded, packed = collated(SOME, packing=False), collated(SOME, packing=True)
    assert packed["input_ids"].shape == (1, 20)
    assert packed["position_ids"][0].tolist() == [*range(6), *range(3), *range(11)]
    assert padded["input_ids"].shape == (3, 11)
    assert torch.equal(packed["targets"], padded["targets"])
    with torch.no_grad():
        apart = (tags_logits(model, packed) - tags_logits(model, padded)).abs().max()
        alone = torch.cat([tags_logits(model, collated([one], packing=False)) for one in SOME])
        assert (tags_logits(model, padded) - alone).abs().max() < 1e-4
    assert apart < 1e-4
    check_packing(model, SOME, flash=False)


def test_a_model_that_sees_packed_neighbours_is_refused() -> None:
    class Leaky(torch.nn.Module):
        """Adds up everything before a token, whatever its position."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model(300)
            self.config, self.device = self.inner.config, torch.device("cpu")

        def forward(self, input_ids: Any, logits_to_keep: Any, **_: Any) -> Any:
            logits = torch.nn.functional.one_hot(input_ids, 300).float().cumsum(dim=1)
            return type("Out", (), {"logits": logits[:, logits_to_keep]})()

    with pytest.raises(ConfigError, match="looks from one packed response at another .*flash_attention_2"):
        check_packing(Leaky(), SOME, flash=False)


def test_labels_mark_every_tag_once() -> None:
    for packing in (True, False):
        batch = collated(SOME, packing)
        assert int((batch["labels"] != -100).sum()) == 6
        marked = batch["input_ids"][batch["labels"] != -100].tolist()
        assert sorted(marked) == sorted(int(one.ids[p]) for one in SOME for p in one.positions)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 16), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_response_once_in_even_micro_batches(lengths, batch, epoch) -> None:
    order = Order(lengths, batch, seed=1)
    order.set_epoch(epoch)
    once = list(order)
    assert sorted(once) == list(range(len(lengths)))
    assert once == list(order)
    for start in range(0, len(once), batch):
        sizes = [lengths[i] for i in once[start : start + batch]]
        assert sizes == sorted(sizes, reverse=True)


def test_epochs_differ() -> None:
    order = Order([1] * 50, 8, seed=1)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auc(np.array([0.5, 0.5, 0.5]), np.array([True, False, True])) == 0.5
    assert math.isnan(auc(np.array([0.5, 0.6]), np.array([True, True])))


# tokens


def with_words(*texts: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has these texts as tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(list(texts) * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def plain_knobs(**more: Any) -> TrainKnobs:
    return replace(TrainKnobs("m", "d", "o"), **more)


def test_the_papers_tokens_are_used_where_the_vocabulary_has_them() -> None:
    tokenizer = with_words(" ки", " к", " и")
    size = len(tokenizer)
    ids = choose_tokens(plain_knobs(), tokenizer)
    assert [tokenizer.decode([i]) for i in ids] == [" ки", " к", " и"]
    assert len(tokenizer) == size


def test_three_tokens_are_added_where_it_has_not() -> None:
    tokenizer = policy_tokenizer()
    size = len(tokenizer)
    assert choose_tokens(plain_knobs(), tokenizer) == (size, size + 1, size + 2)
    assert choose_tokens(plain_knobs(), tokenizer) == (size, size + 1, size + 2)  # once
    assert ids_of("a<step>b", tokenizer) == [*ids_of("a"), size, *ids_of("b")]


def test_named_tokens_must_be_one_token_each_and_different() -> None:
    tokenizer = policy_tokenizer()
    assert choose_tokens(plain_knobs(tag="#", good="+", bad="-"), tokenizer) == tuple(ids_of("#+-"))
    with pytest.raises(ConfigError, match="tag='step' is 4 tokens .* must be one"):
        choose_tokens(plain_knobs(tag="step", good="+", bad="-"), tokenizer)
    with pytest.raises(ConfigError, match="three different tokens"):
        choose_tokens(plain_knobs(tag="#", good="+", bad="+"), tokenizer)
    with pytest.raises(ConfigError, match="good alone: give tag, good and bad together"):
        plain_knobs(good="+")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [0, 10])
def test_added_tokens_start_near_the_mean_of_the_others(tied, room) -> None:
    tokenizer = policy_tokenizer()
    model = small_model(len(tokenizer) + room, tied=tied)
    ids = choose_tokens(plain_knobs(), tokenizer)
    give_rows(model, tokenizer, ids, seed=1)
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert matrix.shape[0] == max(len(tokenizer), len(tokenizer) - 3 + room)
        known, new = matrix[: ids[0]].detach(), matrix[list(ids)].detach()
        assert (new - known.mean(dim=0)).abs().max() < known.std()
        assert len({tuple(r.tolist()) for r in new}) == 3  # equal rows would learn the same
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


# stopping and continuing


def stopping_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the loss after so many optimiser steps."""
    calls = 0
    own = step_losses

    def losses(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr("reasonrl.eval.prm.trainer.step_losses", losses)


@pytest.mark.parametrize("more", [[], ["lora_rank=4"]])
def test_a_stopped_training_continues_as_if_nothing_had_happened(base, data, tmp_path, monkeypatch, more) -> None:
    often = ["epochs=2", "save_every=2", *more]  # 51 or so responses: an epoch ends within
    whole = train(knobs(base, data, tmp_path / "whole", *often))
    with monkeypatch.context() as patch:
        stopping_after(patch, 5)
        with pytest.raises(KeyboardInterrupt, match=r"step 4 is kept in .* Continue with the same command"):
            train(knobs(base, data, tmp_path / "out", *often))
    assert not (tmp_path / "out").exists()
    told = Console(record=True, width=200, file=io.StringIO())
    continued = train(knobs(base, data, tmp_path / "out", *often), console=told)
    assert "continuing after step 4 of 8" in told.export_text()
    assert same(whole, continued)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_checkpoint_that_was_not_finished_is_passed_over(base, data, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stopping_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(knobs(base, data, tmp_path / "out", "steps=8", "save_every=2"))
    work = tmp_path / ".out.training"
    (work / "checkpoint-4" / "trainer_state.json").unlink()
    kept = training.last_checkpoint(work)
    assert kept is not None
    assert kept.name == "checkpoint-2"
    (work / "checkpoint-2" / "trainer_state.json").write_text("{")
    assert training.last_checkpoint(work) is None


def test_a_training_is_continued_with_its_own_settings_only(base, data, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stopping_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(knobs(base, data, tmp_path / "out", "steps=8"))
    with pytest.raises(ConfigError, match=r"unfinished training with other settings: lr 0.01 \(now 0.5\)"):
        train(knobs(base, data, tmp_path / "out", "steps=8", "lr=0.5"))


def test_a_finished_folder_is_kept(base, data, tmp_path) -> None:
    out = train(knobs(base, data, tmp_path / "out", "steps=1"))
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert train(knobs(base, data, tmp_path / "out", "steps=1")) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="exists and was not made by these settings: give another out="):
        train(knobs(base, data, tmp_path / "out", "steps=2"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists and was not made by these settings"):
        train(knobs(base, data, tmp_path / "mine", "steps=1"))


# data


def test_held_out_problems_are_never_trained_on(base, data, tmp_path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda knobs, examples, *_: seen.append(examples))
    train(knobs(base, data, tmp_path / "out"))
    (examples,) = seen
    parts = [{examples.rows.rows[e.row].problem_id for e in part} for part in (examples.train, examples.held_out)]
    assert len(parts[1]) == 3  # a fifth of 16
    assert not parts[0] & parts[1]
    assert len(examples.train) + len(examples.held_out) == 64


def test_tokens_beyond_max_tokens_are_cut_and_told(base, tmp_path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda knobs, examples, *_: seen.append(examples))
    # an input is q, 20 letters and 3 tags: the tags stand at places 3, 12 and 23
    rows = [row("ab" * 10, [1, 9, 19], [1, 0, 0], problem=f"p{i}") for i in range(4)]
    rows.append(row("ab" * 15, [29], [1], problem="p4"))  # its only tag stands at place 31
    told = Console(record=True, width=200, file=io.StringIO())
    train(knobs(base, data_file(tmp_path / "prm.parquet", rows), tmp_path / "out", "max_tokens=20"), console=told)
    assert [e.positions.tolist() for e in [*seen[0].train, *seen[0].held_out]] == [[3, 12]] * 4
    assert {e.ids.size for e in seen[0].train} == {20}
    assert "28 cut at 20, 1 responses lost all steps" in told.export_text()  # 4 * 4 + 12
    refused(
        base, tmp_path, rows, "none of its 5 responses has a step within 2 tokens; raise max_tokens", "max_tokens=2"
    )


def refused(base: Path, tmp_path: Path, rows: list[Any], message: str, *more: str, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        train(knobs(base, data_file(tmp_path / "prm.parquet", rows, **settings), tmp_path / "out", *more))


def test_equal_labels_teach_nothing(base, tmp_path) -> None:
    rows = [row("ab", [0, 1], [1, 1], problem=f"p{i}") for i in range(4)]
    refused(base, tmp_path, rows, "all 8 labels are 1, so there is nothing to tell apart")


def test_labels_that_do_not_fit_the_steps_are_named(base, tmp_path) -> None:
    rows = [row("ab", [0, 1], [1, 0]), row("ab", [0, 1], [1, 0, 0], problem="odd")]
    refused(base, tmp_path, rows, r"row 1 \(problem 'odd'\): 3 labels in column hard for 2 steps")
    refused(base, tmp_path, [row("ab", [1], [2.0])], r"labels in column hard must lie in \[0, 1\], got \[2.0\]")
    refused(base, tmp_path, [row("ab", [1], [math.nan])], r"labels in column hard must lie in \[0, 1\], got \[nan\]")
    refused(base, tmp_path, [row("ab", [1, 0], [1, 0])], "step_ends must be rising indices of its 3 tokens")
    refused(base, tmp_path, [row("ab", [3], [1])], "step_ends must be rising indices of its 3 tokens")


def test_a_file_without_labels_or_rows_is_refused(base, tmp_path) -> None:
    refused(base, tmp_path, [row("ab", [1])], "made with rollouts=0, so it has no labels", rollouts=0)
    refused(base, tmp_path, [], "has no rows; make one with `reasonrl prm data`")
    with pytest.raises(ConfigError, match="make one with `reasonrl prm data`"):
        train(knobs(base, tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "other.parquet").write_text("not parquet")
    with pytest.raises(ConfigError, match=r"other\.parquet"):
        train(knobs(base, tmp_path / "other.parquet", tmp_path / "out"))


def test_responses_of_another_policy_are_refused_when_they_cannot_be_translated(base, tmp_path) -> None:
    refused(
        base, tmp_path, learnable(), "sampled with another tokenizer .* cannot be loaded to translate", tokenizer="x"
    )
    rows = [replace_ids(row("ab", [0, 1], [1, 0]), [5, 9999])]
    refused(base, tmp_path, rows, "has token 9999, the tokenizer of .* has")


def replace_ids(made: Any, ids: list[int]) -> Any:
    return replace(made, response_ids=np.array(ids, np.int32), logprobs=np.zeros(len(ids), np.float32))


def test_one_problem_cannot_be_held_out(base, tmp_path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda knobs, examples, *_: seen.append(examples))
    train(knobs(base, data_file(tmp_path / "prm.parquet", [row("ab", [0, 1], [1, 0])]), tmp_path / "out"))
    assert (len(seen[0].train), len(seen[0].held_out)) == (1, 0)


# the model and the knobs


def test_pickled_weights_are_refused(base, data, tmp_path) -> None:
    foreign = Path(shutil.copytree(base, tmp_path / "foreign"))
    (foreign / "model.safetensors").rename(foreign / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors: .*may run code"):
        train(knobs(foreign, data, tmp_path / "out"))


def test_a_model_that_is_none_is_refused(data, tmp_path) -> None:
    with pytest.raises(ConfigError, match="Unknown model 'nowhere'"):
        train(read_knobs(TrainKnobs, ["model=nowhere", f"data={data}", f"out={tmp_path / 'out'}"], "train"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["loss=mse"], "loss must be one of two_way, full_vocab, got 'mse'"),
        (["labels=any"], "labels must be one of hard, soft"),
        (["batch=10", "micro_batch=4"], "batch=10 must be a multiple of micro_batch=4"),
        (["lr=0"], "lr must be greater than 0"),
        (["lr=nan"], "lr must be greater than 0, got nan"),
        (["val_share=1"], r"val_share must lie in \[0, 1\)"),
        (["epochs=0"], "epochs must be at least 1, got 0"),
        (["epochs=1.5"], "epochs must be a whole number, got '1.5'"),
        (["packing=perhaps"], "packing must be true or false"),
        (["lora_rank=-1"], "lora_rank must not be negative"),
        (["epoch=1"], "Unknown key 'epoch' of reasonrl prm train; did you mean epochs"),
        (["lr=1", "lr=2"], "lr= is given twice"),
        (["--lr=1"], "'--lr=1' is not key=value"),
        (["tag=x"], "tag alone: give tag, good and bad together"),
    ],
)
def test_knobs_out_of_range_are_named(args, message) -> None:
    needed = ["model=m", "data=d", "out=o"]
    with pytest.raises(ConfigError, match=message):
        read_knobs(TrainKnobs, [*needed, *args], "reasonrl prm train")


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(ConfigError, match=r"reasonrl prm train needs data=\.\.\. out=\.\.\.; --help"):
        read_knobs(TrainKnobs, ["model=m"], "reasonrl prm train")


def test_every_knob_is_in_the_help(capsys) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in TrainKnobs.__dataclass_fields__ if f"{name}=" not in text] == []


def test_the_paper_s_settings_are_the_defaults() -> None:
    made = plain_knobs()
    assert (made.batch, made.lr, made.micro_batch, made.epochs, made.max_tokens) == (256, 1e-6, 4, 1, 8192)
    assert (made.beta1, made.beta2, made.weight_decay) == (0.9, 0.95, 0.0)
    assert (made.warmup, made.min_lr, made.grad_clip) == (0.03, 0.1, 1.0)
    assert json.loads(json.dumps(made.settings()))["loss"] == "two_way"
