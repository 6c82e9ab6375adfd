"""The editor of weights: what it collects, how it edits, and that nothing of an edit reaches another question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import byte_tokenizer
from prm_builders import base_folder, small_model
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reasonrl.config import ConfigError
from reasonrl.engine.sampling import Sampling
from reasonrl.eval.tts.backends.local import LocalBackend
from reasonrl.eval.tts.base import Generate, Step
from reasonrl.eval.tts.feedback import INCORRECT, FeedbackPolicy
from reasonrl.eval.tts.methods.optune import OpTune
from reasonrl.eval.tts.optune.card import CARD, WEIGHTS, Card, read_card, read_editors, rendering, write_editor
from reasonrl.eval.tts.optune.editor import Edit, Editor, Editors, Factors
from reasonrl.eval.tts.optune.edits import EditLearner
from reasonrl.eval.tts.optune.factors import collected, edited, losses, passes
from reasonrl.eval.tts.optune.targets import Matrix, chosen, matrices, matrices_of, modules
from reasonrl.functional.editing import LowRank, Moments, delta
from reasonrl.models import model_fingerprint

Q, V = Matrix("model.layers.0.self_attn.q_proj", 4096, 4096), Matrix("model.layers.0.self_attn.v_proj", 1024, 4096)
TEXTS = [[1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [9, 8, 7, 6]]


def toy(**more: Any) -> Any:
    """A random model of 2 layers and 50 words, that takes no gradient."""
    return small_model(50, **more).requires_grad_(False)


def wanted(model: Any, targets: Sequence[str] = ("q_proj", "v_proj"), layers: Sequence[int] = (-2, -1)) -> list[Matrix]:
    return chosen(matrices(model), targets, layers)


def taught(model: Any, *, eta: float = 0.02, targets: Sequence[str] = ("q_proj", "v_proj")) -> Editors:
    """Editors whose every part does something, and that have seen tokens."""
    found = wanted(model, targets)
    editors = Editors(found, rank=4, eta=eta)
    noise = torch.Generator().manual_seed(7)
    for name, parameter in editors.named_parameters():
        if name.endswith(("up", "bias")):
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.1
    editors.observe(collected(model, modules(model, found, "x"), TEXTS)[1])
    return editors


def step(text: Sequence[int]) -> Step:
    return Step(tuple(text[:1]), tuple(text[1:2]), tuple(text[2:]))


def logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=torch.tensor(rows)).logits)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


# The editor


def test_the_papers_editor_has_the_papers_size() -> None:
    again = [replace(each, name=each.name.replace(".0.", ".1.")) for each in (Q, V)]
    editors = Editors([Q, V, *again])  # T2
    assert editors.size == {"4096x4096": 270_336, "1024x4096": 168_960}
    assert sum(editors.size.values()) == 439_296
    assert editors.eta.tolist() == pytest.approx([1e-4] * 4)


def test_an_editor_starts_as_the_identity() -> None:
    editor = Editor(3, 5)
    inputs, gradients = torch.randn(6, 5), torch.randn(6, 3)
    editor.observe([Factors(inputs, gradients, (6,))])
    found = torch.cat(editor(inputs, gradients, torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(found, editor.normalised(inputs, gradients))
    assert (editor.up == 0).all()
    assert (editor.bias == 0).all()
    bound = 1 / np.sqrt(8)  # Kaiming uniform with a = sqrt 5: 1 / sqrt(fan in)
    assert 0.8 * bound < float(editor.down.detach().abs().max()) <= bound


def test_the_editor_of_the_engine_is_that_of_the_mathematics() -> None:
    editor = Editors([Matrix("a.0.b", 3, 5)], rank=4, eta=0.3)
    part = editor.editors["3x5"]
    assert isinstance(part, Editor)
    noise = torch.Generator().manual_seed(1)
    for parameter in (part.up, part.bias):
        parameter.data = torch.randn(parameter.shape, generator=noise)
    inputs, gradients = torch.randn(9, 5, generator=noise), torch.randn(9, 3, generator=noise)
    for rows in (slice(0, 4), slice(4, 4), slice(4, 9)):  # in batches, one of them empty
        editor.observe([Factors(inputs[rows], gradients[rows], (len(inputs[rows]),))])
    rows = torch.cat([inputs, gradients], dim=1).double().numpy()
    moments = Moments.of(rows)
    assert int(part.count) == 9
    assert part.mean.numpy() == pytest.approx(moments.mean, abs=1e-12)
    assert part.m2.numpy() == pytest.approx(moments.m2, rel=1e-12)
    (made,) = editor([Factors(inputs, gradients, (6, 3))])
    whole = LowRank(*(each.detach().double().numpy() for each in (part.down, part.up, part.bias)))
    for row, tokens in enumerate((slice(0, 6), slice(6, 9))):
        found = delta(rows[tokens, :5], rows[tokens, 5:], moments, whole, 0.3)
        assert made.dense[row].detach().numpy() == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_factors_and_matrices_agree() -> None:
    noise = torch.Generator().manual_seed(0)  # T8
    rows = torch.randn(2, 4, 12, generator=noise)
    for tokens, factored in ((3, True), (40, False)):
        left, right = (torch.randn(2, tokens, width, generator=noise) for width in (12, 8))
        edit = Edit(left, right, (tokens, tokens))
        assert edit.factored is factored
        assert close((rows @ left.mT) @ right, rows @ edit.dense.mT, 1e-5)
        assert close(edit.of(rows), rows @ edit.dense.mT, 1e-5)


def test_dropout_is_of_the_inner_rank_and_of_its_seed() -> None:
    editor = Editor(3, 5, rank=64, dropout=0.5)
    editor.up.data.fill_(1.0)
    inputs, gradients = torch.randn(50, 5), torch.randn(50, 3)
    editor.observe([Factors(inputs, gradients, (50,))])

    def made(seed: int | None) -> torch.Tensor:
        noise = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.as_tensor(editor(inputs, gradients, noise)[0]).detach()

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    mean = torch.stack([made(seed) for seed in range(300)]).mean(dim=0)
    assert float((mean - made(None)).abs().mean()) < 0.15 * float(made(None).abs().mean())


# What is collected


def test_the_factors_of_all_tokens_are_the_gradient_of_the_matrix() -> None:
    model = toy()
    found = wanted(model, ("q_proj", "v_proj", "o_proj", "down_proj"))
    layers = modules(model, found, "x")
    loss, factors = collected(model, layers, TEXTS[:1])
    weights = [layer.weight.requires_grad_() for layer in layers]
    ids = torch.tensor(TEXTS[:1])
    whole = model(input_ids=ids, labels=ids).loss
    assert loss.tolist() == pytest.approx([float(whole.detach())], rel=1e-6)
    for each, gradient in zip(factors, torch.autograd.grad(whole, weights), strict=True):
        assert close(each.gradients.mT @ each.inputs, gradient, 1e-5)
        assert float(gradient.abs().max()) > 1e-3


def test_rows_of_a_pass_are_what_they_are_alone() -> None:
    model = toy()
    layers = modules(model, wanted(model), "x")
    together, factors = collected(model, layers, TEXTS)
    for row, text in enumerate(TEXTS):
        alone, own = collected(model, layers, [text])
        assert float(alone) == pytest.approx(float(together[row]), rel=1e-5)
        for all_rows, mine in zip(factors, own, strict=True):
            assert all_rows.tokens[row] == mine.tokens[0]
            rows = slice(sum(all_rows.tokens[:row]), sum(all_rows.tokens[: row + 1]))
            assert close(all_rows.inputs[rows], mine.inputs, 1e-5)
            assert close(all_rows.gradients[rows], mine.gradients, 1e-5)


def test_padding_and_tokens_without_a_gradient_are_left_out() -> None:
    model = toy()
    # the last token predicts nothing; the query of the first one has only itself to look at
    _, factors = collected(model, modules(model, wanted(model), "x"), TEXTS)
    assert [each.tokens for each in factors] == [(5, 1, 2), (6, 2, 3)] * 2
    _, factors = collected(model, modules(model, wanted(model), "x"), [[3]])
    assert [each.tokens for each in factors] == [(0,)] * 4


def test_another_attention_changes_nothing() -> None:
    made = []
    for attention in ("sdpa", "eager"):
        model = toy(attn_implementation=attention)
        assert model.config._attn_implementation == attention
        learner = EditLearner(model, taught(toy()))
        learner.step([("q", step(TEXTS[0]))])
        learner.use(["q"])
        made.append(logits(model, TEXTS[:1]))
        learner.close()
    assert close(made[0], made[1], 1e-4)


def test_no_gradient_is_kept_below_the_first_edited_layer() -> None:
    model = toy()
    layers = modules(model, wanted(model, layers=[-1]), "x")
    seen = []
    first = model.model.layers[0].register_forward_hook(lambda m, a, out: seen.append(out))
    collected(model, layers, TEXTS)
    first.remove()
    (below,) = seen
    assert not (below[0] if isinstance(below, tuple) else below).requires_grad


# Targets


def test_any_architecture_is_edited_by_names_and_layers() -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    found = wanted(model, ("query_key_value", "dense_4h_to_h"), (0, -1))
    assert [(each.name, each.shape) for each in found] == [
        ("gpt_neox.layers.0.attention.query_key_value", "96x32"),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h", "32x48"),
        ("gpt_neox.layers.2.attention.query_key_value", "96x32"),
        ("gpt_neox.layers.2.mlp.dense_4h_to_h", "32x48"),
    ]
    before = logits(model, TEXTS[:1])
    learner = EditLearner(model, taught(model, targets=("query_key_value", "dense_4h_to_h")))
    learner.step([("q", step(TEXTS[0]))])
    learner.use(["q"])
    assert not close(logits(model, TEXTS[:1]), before, 1e-3)


def test_the_last_two_layers_are_those_of_the_paper() -> None:
    names = [each.name for each in wanted(toy(num_key_value_heads=2))]
    assert names == [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
    assert [each.shape for each in wanted(toy(num_key_value_heads=2))] == ["32x32", "16x32"] * 2


@pytest.mark.parametrize(
    ("targets", "layers", "match"),
    [
        (("q_prj",), (-1,), "no linear layer q_prj; there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"),
        (("q_proj",), (-3,), r"layers: -3 is none of the model's 2 layers, 0\.\.1 or -2\.\.-1"),
    ],
)
def test_targets_that_match_nothing_are_told_with_what_there_is(targets: Any, layers: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        wanted(toy(), targets, layers)


def test_passes_hold_so_many_rows_and_tokens() -> None:
    assert [list(some) for some in passes([3, 3, 4, 9, 1], 2, 100)] == [[0, 1], [2, 3], [4]]
    assert [list(some) for some in passes([3, 3, 4, 9, 1], 9, 8)] == [[0, 1], [2], [3], [4]]
    assert list(passes([], 2, 8)) == []


# Edits of questions


def test_each_row_of_a_pass_has_its_own_edit() -> None:
    model = toy()
    learner = EditLearner(model, taught(model))
    base = logits(model, [TEXTS[0]] * 3)
    done = learner.step([("a", step(TEXTS[0])), ("b", step(TEXTS[2]))])
    assert done[0].loss == pytest.approx(float(losses(model, TEXTS[:1], [1])), rel=1e-5)
    learner.use(["a", None, "b"])
    mixed = logits(model, [TEXTS[0]] * 3)
    assert torch.equal(mixed[1], base[1])  # bit by bit: nobody else's edit touched it
    for row, owner in ((0, "a"), (2, "b")):
        learner.use([owner])
        alone = logits(model, [TEXTS[0]])
        assert close(alone[0], mixed[row], 1e-5)
        assert not close(alone[0], base[row], 1e-3)
    assert not close(mixed[0], mixed[2], 1e-3)
    learner.use(())
    assert torch.equal(logits(model, [TEXTS[0]] * 3), base)
    learner.use(["a", "b"])
    with pytest.raises(RuntimeError, match="a pass of 3 rows with the weights of 2 owners"):
        logits(model, [TEXTS[0]] * 3)


def test_an_edit_is_the_delta_of_the_base_weights() -> None:
    model = toy()
    editors = taught(model)
    learner = EditLearner(model, editors)
    learner.step([("a", step(TEXTS[0]))])
    learner.use(["a"])
    by_hook = logits(model, [TEXTS[1]])
    learner.close()
    layers = modules(model, editors.matrices, "x")
    _, factors = collected(model, layers, TEXTS[:1])
    for layer, edit in zip(layers, editors(factors), strict=True):
        layer.weight += edit.dense[0].detach()
    assert close(logits(model, [TEXTS[1]]), by_hook, 1e-5)


def test_the_next_edit_takes_the_place_of_the_last() -> None:
    model = toy()
    learner = EditLearner(model, taught(model))
    made = []
    for owner, number in (("q", 2), ("q", 0), ("r", 0)):
        learner.step([(owner, step(TEXTS[number]))])
        learner.use([owner])
        made.append(logits(model, [TEXTS[1]]))
    assert not close(made[0], made[1], 1e-3)
    assert torch.equal(made[1], made[2])  # nothing of the first is left, and the second was made from the base weights
    learner.forget("q")
    learner.use(["q"])
    assert not close(logits(model, [TEXTS[1]]), made[1], 1e-3)


def test_nothing_is_left_of_edits() -> None:
    model = toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    editors = taught(model)
    frozen = {name: value.clone() for name, value in editors.state_dict().items()}
    learner = EditLearner(model, editors)
    base = logits(model, TEXTS[:1])
    learner.step([(str(i), step(text)) for i, text in enumerate(TEXTS)])
    learner.use(["0"])
    logits(model, TEXTS[:1])
    learner.close()
    assert torch.equal(logits(model, TEXTS[:1]), base)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    # use never changes the moments
    assert all(torch.equal(value, frozen[name]) for name, value in editors.state_dict().items())


def test_an_attempt_without_usable_tokens_changes_nothing() -> None:
    model = toy()
    base = logits(model, [TEXTS[0]] * 2)
    learner = EditLearner(model, taught(model))
    learner.step([("empty", Step((3,), (), ())), ("full", step(TEXTS[0]))])
    learner.use(["empty", "full"])
    found = logits(model, [TEXTS[0]] * 2)
    assert torch.equal(found[0], base[0])
    assert not close(found[1], base[1], 1e-3)
    assert learner.facts() == {"edits": 2, "edit_tokens": 2.5, "empty_edits": 1}


def test_an_edit_that_is_not_finite_is_named_and_nothing_has_changed() -> None:
    model = toy()
    editors = taught(model)
    learner = EditLearner(model, editors)
    learner.step([("good", step(TEXTS[0])), ("bad", step(TEXTS[1]))])
    before = learner.factors("good")
    forward = editors.forward

    def broken(factors: Any, noise: Any) -> Any:
        edits = forward(factors, noise)
        edits[1].right[-1] = torch.inf  # of the longest
        return edits

    editors.forward = broken  # type: ignore[method-assign]
    longest = max(TEXTS, key=len)
    with pytest.raises(
        FloatingPointError, match=r"question bad: the edit of its attempt is not finite; train the editor"
    ):
        learner.step([("good", step(longest[:4])), ("bad", step(longest))])
    after = learner.factors("good")
    assert all(torch.equal(x, y) for name in before for x, y in zip(before[name], after[name], strict=True))


def test_edits_depend_on_no_neighbour() -> None:
    model = toy()
    learner = EditLearner(model, taught(model))
    for order in ([0, 1, 2], [2, 1, 0]):
        learner.step([(f"{order[0]}{i}", step(TEXTS[i])) for i in order])
    for i in range(3):
        learner.use([f"0{i}", f"2{i}"])
        found = logits(model, [TEXTS[0]] * 2)
        assert close(found[0], found[1], 1e-5)


def test_a_bfloat16_model_is_edited_by_a_float32_editor() -> None:
    model = toy().to(torch.bfloat16)
    editors = taught(model, eta=0.1)
    learner = EditLearner(model, editors)
    base = logits(model, TEXTS[:1])
    (done,) = learner.step([("q", step(TEXTS[0]))])
    learner.use(["q"])
    assert not torch.equal(logits(model, TEXTS[:1]), base)
    learner.use(())
    assert done.loss == pytest.approx(float(losses(model, TEXTS[:1], [1])), rel=1e-2)
    assert {parameter.dtype for parameter in editors.parameters()} == {torch.float32}
    assert {each.dtype for name, each in editors.named_buffers() if "count" not in name} == {torch.float64}


def test_samples_of_a_question_follow_its_edit_only_where_it_is_asked_for() -> None:
    model = toy()
    learner = EditLearner(model, taught(model, eta=0.5))
    backend = LocalBackend(model, byte_tokenizer(), learner, end_ids=[1])

    def made(owner: str, adapter: bool) -> Any:
        (found,) = backend.generate([(owner, Generate((3, 4), Sampling(max_tokens=12, seed=(9,)), adapter=adapter))])
        return found.token_ids

    base = made("a", True)
    backend.step([("a", step(TEXTS[0]))])
    assert made("a", True) != base
    assert made("a", False) == base
    assert made("b", True) == base
    backend.forget("a")
    assert made("a", True) == base


# The folder


def words_of(tokenizer: Any) -> str:
    return rendering(FeedbackPolicy(tokenizer), INCORRECT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return base_folder(tmp_path_factory.mktemp("base") / "model", tokenizer=byte_tokenizer())


def editor_folder(folder: Path, base: Path, **more: Any) -> Path:
    """An editor of that model."""
    tokenizer = byte_tokenizer()
    model = small_model(len(tokenizer)).requires_grad_(False)
    editors = taught(model)
    values = {
        "model": model_fingerprint(str(base)),
        "matrices": editors.matrices,
        "targets": ("q_proj", "v_proj"),
        "layers": (-2, -1),
        "rank": 4,
        "dropout": 0.1,
        "words": INCORRECT,
        "feedback": words_of(tokenizer),
    }
    folder.mkdir(parents=True)
    write_editor(folder, Card(**{**values, **more}), editors)
    return folder


def test_an_editor_is_read_back_bit_by_bit(base: Path, tmp_path: Path) -> None:
    folder = editor_folder(tmp_path / "editor", base)
    card = read_card(folder)
    editors = read_editors(folder, card)
    written = load_file(folder / WEIGHTS)
    assert all(torch.equal(value, written[name]) for name, value in editors.state_dict().items())
    assert not any(parameter.requires_grad for parameter in editors.parameters())
    assert card.matrices == editors.matrices
    method = OpTune(editor=str(folder))
    method.check(str(base), byte_tokenizer())
    learner = method.learner(small_model(len(byte_tokenizer())).requires_grad_(False), byte_tokenizer(), end_ids=[1])
    assert learner.facts()["edits"] == 0
    assert set(method.fingerprints()) == {"editor"}


def test_the_architecture_is_known_before_the_weights_are_read(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())  # and nothing else
    found = matrices_of(str(tmp_path))
    assert found == matrices(small_model(len(byte_tokenizer())))


def refused(base: Path, match: str, tokenizer: Any = None, **knobs: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        OpTune(**knobs).check(str(base), tokenizer or byte_tokenizer())


def test_an_editor_that_is_none_is_refused(base: Path, tmp_path: Path) -> None:
    refused(base, "needs method.editor=<folder>.*`reasonrl optune train ")
    refused(base, "no editor .*gone: train one with `reasonrl optune train`", editor=str(tmp_path / "gone"))
    released = tmp_path / "released"
    released.mkdir()
    refused(base, r"released has no editor\.json: it is not the folder of an editor", editor=str(released))
    torch.save({}, released / "checkpoint.pt")
    refused(base, r"checkpoint\.pt is a pickled checkpoint, which may run code .*refused", editor=str(released))
    refused(base, "is a pickled checkpoint", editor=str(released / "checkpoint.pt"))


def test_an_editor_of_another_model_is_refused_before_the_model_is_loaded(base: Path, tmp_path: Path) -> None:
    editor = str(editor_folder(tmp_path / "editor", base))
    for name, more, match in (
        ("wide", {"num_key_value_heads": 2}, r"v_proj of shape 32x32, and this model's has 16x32"),
        ("other", {"seed": 1}, r"other weights than those of .*method\.other_model=true"),
    ):
        folder = base_folder(tmp_path / name, tokenizer=byte_tokenizer(), **more)
        refused(folder, match, editor=editor)
    OpTune(editor=editor, other_model=True).check(str(folder), byte_tokenizer())
    lacking = editor_folder(tmp_path / "deep", base)
    text = (lacking / CARD).read_text().replace("layers.1.", "layers.9.")
    (lacking / CARD).write_text(text)
    refused(base, r"edits model\.layers\.9\.self_attn\.q_proj, which this model lacks", editor=str(lacking))


def test_an_editor_meets_the_feedback_it_was_trained_with_or_none(base: Path, tmp_path: Path) -> None:
    editor = str(editor_folder(tmp_path / "editor", base))
    refused(base, "with the words 'Your answer is incorrect.', and method.words is 'No.'", editor=editor, words="No.")
    other = byte_tokenizer()
    other.chat_template = other.chat_template.replace("<|end|>", "<|end|>\n")
    refused(base, "feedback in another markup than this tokenizer's chat template", other, editor=editor)


def test_a_damaged_editor_is_refused(base: Path, tmp_path: Path) -> None:
    folder = editor_folder(tmp_path / "editor", base)
    card, weights = (folder / CARD).read_text(), load_file(folder / WEIGHTS)
    values = json.loads(card)

    def bad(match: str, text: str = card, tensors: dict[str, torch.Tensor] = weights) -> None:
        (folder / CARD).write_text(text)
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(ConfigError, match=match):
            read_editors(folder, read_card(folder))

    bad("is not the card of an editor", text="{")
    bad("has schema 9, this reasonrl reads 1", text=json.dumps({**values, "schema": 9}))
    bad("is not the card of an editor", text=json.dumps({**values, "surprise": 1}))
    shapeless = [{**each, "outputs": None} for each in values["matrices"]]
    bad("is not the card of an editor", text=json.dumps({**values, "matrices": shapeless}))
    bad(r"eta has shape \(3,\), and editor\.json says \(4,\)", tensors={**weights, "eta": torch.zeros(3)})
    bad("extra has shape .*says that there is none", tensors={**weights, "extra": torch.zeros(3)})
    bad("eta is not finite", tensors={**weights, "eta": torch.full((4,), torch.nan)})
    count = {"editors.32x32.count": torch.tensor(0)}
    bad("editors.32x32.count has seen no tokens", tensors={**weights, **count})
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ConfigError, match="is no safetensors file, or one cut short"):
        read_card(folder)


def test_edited_passes_keep_their_hooks_to_themselves() -> None:
    model = toy()
    editors = taught(model)
    layers = modules(model, editors.matrices, "x")
    base = logits(model, TEXTS[:1])
    _, factors = collected(model, layers, TEXTS[:1])

    def stopped() -> None:
        with edited(layers, editors(factors)):
            assert not close(logits(model, TEXTS[:1]), base, 1e-3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert torch.equal(logits(model, TEXTS[:1]), base)
