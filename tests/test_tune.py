"""`reasonrl tune`: what is learned, which weights change, what the folder loads as, and that it can be stopped."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prm_builders import base_folder, policy_tokenizer, small_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from reasonrl import cli
from reasonrl.cli import composed
from reasonrl.config import ConfigError, RunFailed
from reasonrl.data.prompts import Prompt
from reasonrl.engine.bottleneck import BASE, attach, load_model
from reasonrl.eval.models import fingerprint, locate
from reasonrl.eval.prm.knobs import read_knobs
from reasonrl.eval.tts.backends.local import open_local
from reasonrl.eval.tune import trainer
from reasonrl.eval.tune.command import ELSEWHERE, KINDS, TuneKnobs, run, tune
from reasonrl.eval.tune.kinds import tuned, upper_layers
from reasonrl.eval.tune.publish import logits_of
from reasonrl.eval.tune.targets import IGNORED, collated, ending_of, make_targets, target_text
from reasonrl.models import check_model, refuse_bottleneck
from reasonrl.verify.pool import VerifyConfig

FAST = {"device": "cpu", "batch": 8, "micro_batch": 8, "lr": 1e-2, "steps": 4, "save_every": 1000}
CHAT = Prompt("p", "chat", r"{question} in \boxed{}")
TEXT = Prompt("t", "text", r"Q: {question}\nA:")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reasonrl.runs.provenance.versions", dict)
    monkeypatch.setattr("reasonrl.runs.provenance.git_state", lambda folder: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of bytes."""
    return base_folder(tmp_path_factory.mktemp("base") / "model", tied=False)


def knobs(kind: str, *more: str) -> TuneKnobs:
    given = dict(arg.split("=", 1) for arg in more)
    return read_knobs(TuneKnobs, [f"{k}={v}" for k, v in {"kind": kind, **FAST, **given}.items()], "tune")


def make(base: Path, kind: str, *more: str, data: tuple[str, ...] = (), console: Console | None = None) -> Path:
    args = [f"model={base}", "data=arithmetic", "data.size=24", "data.val_size=2", "engine=cpu", "prompt=plain", *data]
    cfg = composed([*args, "max_prompt_tokens=60"])  # max_new_tokens stays larger than the context of 128
    return tune(cfg, knobs(kind, *more), console=console)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[65, 66, 67, 10, 49, 50]])).logits


# which weights


def llama_8b() -> LlamaForCausalLM:
    """Shapes of Llama-3.1-8B without numbers."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("lora", 1_703_936),  # 8 layers x 16 x ((4096 + 4096) + (4096 + 1024))
        ("adapter", 134_496_256),  # 64 x (2 x 4096 x 256 + 256 + 4096)
        ("ia3", 524_288),  # 32 x (1024 + 1024 + 14336)
        ("layer_norm", 266_240),  # 65 x 4096
        ("full", 8_030_261_248),
    ],
)
def test_as_many_numbers_are_trained_of_llama_8b_as_in_the_paper_s_table(kind: str, count: int) -> None:
    assert tuned(llama_8b(), TuneKnobs(kind)).trainable == count


def test_lora_trains_the_upper_quarter() -> None:
    assert upper_layers(32, None) == list(range(24, 32))
    assert upper_layers(4, None) == [3]
    assert upper_layers(4, (2, 0)) == [0, 2]
    with pytest.raises(ConfigError, match="layers=4: the model has layers 0 to 3"):
        upper_layers(4, (4,))


def test_the_defaults_are_those_of_the_table() -> None:
    rates = {kind: TuneKnobs(kind).lr for kind in KINDS}
    assert rates == {"full": 1e-5, "lora": 2e-5, "ia3": 5e-5, "layer_norm": 4e-4, "adapter": 1e-4}
    made = TuneKnobs("lora")
    assert (made.rank, made.alpha, made.dropout, made.reduction) == (16, 16, 0.05, 16)
    assert (made.batch, made.micro_batch, made.weight_decay, made.warmup) == (20, 1, 0.0, 0.0)
    assert (TuneKnobs("full").longest, TuneKnobs("lora").longest) == (1024, 4096)


def test_an_untrained_adapter_changes_nothing_and_a_trained_one_does() -> None:
    model, same = small_model(300), small_model(300)
    attach(model, 16)
    assert torch.equal(logits(model), logits(same))
    model.model.layers[0].self_attn.bottleneck.up.bias.data += 1.0
    assert not torch.equal(logits(model), logits(same))


def test_a_bottleneck_is_a_residual_relu_between_two_matrices() -> None:
    model = small_model(300)
    made = attach(model, 8, seed=3)
    assert len(made) == 2 * 2 * 4
    part = model.model.layers[1].mlp
    part.bottleneck.up.weight.data.normal_()
    h = torch.randn(2, 32)
    inner = part.down_proj(part.act_fn(part.gate_proj(h)) * part.up_proj(h))
    down, up = part.bottleneck.down, part.bottleneck.up
    expected = inner + torch.relu(inner @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert torch.allclose(part(h), expected, atol=1e-5)


def test_a_model_without_what_a_kind_trains_is_refused() -> None:
    odd = torch.nn.Linear(2, 2)
    odd.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=32, num_hidden_layers=2))
    for kind, what in (
        ("lora", "kind=lora trains q_proj, v_proj, and Linear has no q_proj, v_proj"),
        ("ia3", "kind=ia3 trains k_proj, v_proj, down_proj, and Linear has no"),
        ("layer_norm", "kind=layer_norm: Linear has no norms"),
        ("adapter", "Linear has no layers with self_attn and mlp"),
    ):
        with pytest.raises(ConfigError, match=what):
            tuned(odd, TuneKnobs(kind))
    with pytest.raises(ConfigError, match="reduction=5 does not divide the hidden size 32"):
        attach(small_model(300), 5)


def test_without_peft_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="kind=ia3 needs peft, which is not installed: pip install peft"):
        tuned(small_model(300), TuneKnobs("ia3"))


# the folder


CHANGED = {
    "lora": {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"},
    "ia3": {
        f"model.layers.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    },
    "layer_norm": {
        *(
            f"model.layers.{i}.{name}.weight"
            for i in (0, 1)
            for name in ("input_layernorm", "post_attention_layernorm")
        ),
        "model.norm.weight",
    },
}


@pytest.mark.parametrize("kind", ["lora", "ia3", "layer_norm", "full"])
def test_a_tuned_folder_is_a_plain_model_in_which_only_the_kind_s_weights_differ(kind: str, base: Path) -> None:
    folder = make(base, kind)
    assert folder == Path(f"tuned/{base.name}-arithmetic-{kind}").absolute()
    old, new = weights(base), weights(folder)
    assert old.keys() == new.keys()
    differing = {name for name in old if not torch.equal(old[name], new[name])}
    assert differing == CHANGED.get(kind, set(old))
    assert AutoTokenizer.from_pretrained(folder).chat_template == policy_tokenizer().chat_template
    told = json.loads((folder / "tune.json").read_text())
    assert (told["kind"], told["data"]["solutions"], told["data"]["dropped"]) == (kind, 24, {})
    assert len(told["data"]["sha256"]) == 64
    assert told["settings"]["seed"] == 42
    assert told["rounding"]["largest_logit_difference"] < 1e-4
    assert [row["step"] for row in told["losses"]] == [1, 2, 3, 4]
    same_shapes = AutoModelForCausalLM.from_pretrained(base)
    assert told["trainable"] == tuned(same_shapes, knobs(kind)).trainable
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_a_folder_in_bfloat16_differs_by_rounding_alone(base: Path) -> None:
    folder = make(base, "lora", "dtype=bfloat16", "steps=1")
    assert {weight.dtype for weight in weights(folder).values()} == {torch.bfloat16}
    told = json.loads((folder / "tune.json").read_text())
    assert 1e-4 < told["rounding"]["largest_logit_difference"] < 0.05
    with pytest.raises(ConfigError, match="weights=bfloat16 is for a GPU: a CPU trains in float32"):
        make(base, "lora", "weights=bfloat16", "out=other")


@pytest.mark.parametrize("kind", KINDS)
def test_beside_weights_in_bfloat16_few_are_trained_in_float32(kind: str) -> None:
    model = tuned(small_model(300).to(torch.bfloat16), TuneKnobs(kind)).model
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert trained == {torch.bfloat16 if kind == "full" else torch.float32}
    target = SimpleNamespace(ids=np.arange(5))
    job = SimpleNamespace(knobs=TuneKnobs(kind, weights="bfloat16"), targets=SimpleNamespace(train=[target]))
    assert logits_of(model, job)[0].shape == (5, 300)


def test_it_learns_the_solutions(base: Path) -> None:
    folder = make(base, "full", "steps=40")
    losses = json.loads((folder / "tune.json").read_text())["losses"]
    assert losses[-1]["loss"] < 2.0 < 4.0 < losses[0]["loss"]
    assert len(losses) == 20


def test_an_adapter_keeps_its_base_apart_and_loads_here_alone(base: Path) -> None:
    folder = make(base, "adapter", "reduction=8")
    assert {p.name for p in (folder / BASE).iterdir()} >= {"config.json", "model.safetensors"}
    assert (folder / BASE / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match=r"model\.safetensors"):  # and not the base without its adapters
        AutoModelForCausalLM.from_pretrained(folder)
    ours, plain = load_model(str(folder)), AutoModelForCausalLM.from_pretrained(base)
    assert (logits(ours) - logits(plain)).abs().max() > 0.1
    model = locate(str(folder))
    model.check()
    with open_local(
        str(folder), model.load_tokenizer(), trust_remote_code=False, threads=1, max_sequences=4
    ) as backend:
        assert torch.equal(logits(backend.model), logits(ours))
    with pytest.raises(ConfigError, match=r"cannot be merged .* used with backend=vllm: .* backend=transformers"):
        refuse_bottleneck(folder, "with backend=vllm")
    cfg = SimpleNamespace(
        model=SimpleNamespace(name="x", path=str(folder), trust_remote_code=False),
        max_prompt_tokens=1,
        max_new_tokens=1,
    )
    with pytest.raises(ConfigError, match="cannot be used here"):
        check_model(cfg)


def test_other_adapters_are_another_model(base: Path) -> None:
    one, two = make(base, "adapter", "out=one"), make(base, "adapter", "out=two", "steps=3")
    assert fingerprint(locate(str(one))) != fingerprint(locate(str(two))) != fingerprint(locate(str(base)))


def test_adapters_of_another_shape_are_refused(base: Path) -> None:
    folder = make(base, "adapter", "steps=1")
    config = json.loads((folder / "config.json").read_text())
    config["reasonrl_bottleneck"]["reduction"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="holds adapters of another model or another reduction"):
        load_model(str(folder))


def test_a_folder_that_answers_otherwise_than_what_was_trained_is_not_published(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(path: str, **how: Any) -> Any:
        if Path(path).name.startswith("."):  # what is about to be published
            (file,) = Path(path).glob("model*.safetensors")
            save_file({name: w * 1.01 for name, w in load_file(file).items()}, file, {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(path, **how)

    monkeypatch.setattr("reasonrl.engine.bottleneck.load_model", spoiled)
    with pytest.raises(RunFailed, match="answers otherwise than the model that was trained"):
        make(base, "lora", "out=out", "steps=1")
    assert not Path("out").exists()


# how it is trained


def same(one: Path, two: Path, tolerance: float = 0.0) -> bool:
    a, b = weights(one), weights(two)
    return all(float((a[name] - b[name]).abs().max()) <= tolerance for name in a)


def test_micro_batches_do_not_change_what_is_learned_and_seeds_do(base: Path) -> None:
    plain = ("steps=3", "lr=1e-3")
    whole = make(base, "full", *plain, "out=a")
    cut = make(base, "full", *plain, "out=b", "micro_batch=2")
    other = make(base, "full", *plain, "out=c", "seed=1")
    assert same(whole, cut, 2e-4)  # AdamW's first steps divide by roots of tiny squares
    assert not same(whole, other, 2e-4)


class Stopping(trainer.Progress):
    """Ctrl-C at the start of step `at`."""

    at = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_stopped_training_continues_as_if_nothing_had_happened(
    kind: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("steps=4", "save_every=2", "batch=20", "micro_batch=10")  # an epoch ends within
    whole = make(base, kind, *often, "out=whole")
    with monkeypatch.context() as patch:
        patch.setattr(Stopping, "at", 3)
        patch.setattr(trainer, "Progress", Stopping)
        with pytest.raises(KeyboardInterrupt, match=r"step 2 is kept in .* Continue with the same command"):
            make(base, kind, *often, "out=out")
    assert not Path("out").exists()
    if kind == "adapter":
        assert not list(Path().rglob("checkpoint-2/model*.safetensors"))  # the base is not saved again
    with pytest.raises(ConfigError, match=r"unfinished training with other settings: lr 0.01 \(now 0.5\)"):
        make(base, kind, *often, "out=out", "lr=0.5")
    told = Console(record=True, width=200, file=io.StringIO())
    again = make(base, kind, *often, "out=out", console=told)
    assert "continuing after step 2 of 4" in told.export_text()
    files = ("adapter.safetensors",) if kind == "adapter" else ("model.safetensors",)
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in files)
    losses = [json.loads((folder / "tune.json").read_text())["losses"] for folder in (whole, again)]
    assert losses[0] == losses[1]
    assert sorted(p.name for p in Path().iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    ("kind", "wrong", "match"),
    [
        ("lora", "layers=9", "layers=9: the model has layers 0 to"),
        ("adapter", "reduction=7", "reduction=7 does not divide the hidden size"),
        ("lora", "device=gpu", "device must be auto, cpu or cuda, got 'gpu'"),
        ("lora", "weights=bfloat16", "weights=bfloat16 is for a GPU"),
    ],
)
def test_what_was_refused_does_not_stand_in_the_way_of_what_is_right(
    kind: str, wrong: str, match: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("reasonrl.engine.bottleneck.load_model", lambda *args, **how: pytest.fail("loaded"))
        with pytest.raises(ConfigError, match=match):
            make(base, kind, wrong, "out=out")
    assert not list(Path().iterdir())
    assert make(base, kind, "steps=1", "out=out").is_dir()


def test_a_refusal_keeps_a_training_that_has_begun(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often = ("steps=4", "save_every=2", "out=out")
    with monkeypatch.context() as patch:
        patch.setattr(Stopping, "at", 3)
        patch.setattr(trainer, "Progress", Stopping)
        with pytest.raises(KeyboardInterrupt):
            make(base, "lora", *often)

    def gone(*args: Any, **how: Any) -> None:
        raise OSError("disk away")

    with monkeypatch.context() as patch:
        patch.setattr("reasonrl.engine.bottleneck.load_model", gone)
        with pytest.raises(ConfigError, match="cannot load model"):
            make(base, "lora", *often)
    assert [folder.name for folder in Path(".out.training").glob("checkpoint-*")]


def test_a_finished_folder_is_kept(base: Path) -> None:
    folder = make(base, "lora", "out=out", "steps=1")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make(base, "lora", "out=out", "steps=1") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="exists and was not made by these settings: give another out="):
        make(base, "lora", "out=out", "steps=2")


def test_gradients_that_are_no_numbers_stop_the_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer.make_trainer

    def spoiled(*given: Any) -> Any:
        one = made(*given)
        weight = next(w for w in one.model.parameters() if w.requires_grad)
        weight.register_hook(lambda grad: grad * (math.nan if one.state.global_step == 2 else 1.0))
        return one

    monkeypatch.setattr(trainer, "make_trainer", spoiled)
    with pytest.raises(RunFailed, match="the gradients of step 3 are not finite, so the step was not taken"):
        make(base, "lora", "out=out", "save_every=1")
    assert not Path("out").exists()


# what is learned


def loaded(*rows: tuple[str, str, str], too_long: int = 0) -> Any:
    """(question, answer, solution) each."""
    tokenizer = policy_tokenizer()
    problems = [
        SimpleNamespace(id=f"p{i}", answer=answer, prompt_ids=np.array(CHAT.encode(question, tokenizer)))
        for i, (question, answer, _) in enumerate(rows)
    ]

    class Some(SimpleNamespace):
        def __len__(self) -> int:
            return len(rows)

    return Some(problems=problems, solutions=[row[2] for row in rows], dropped_too_long=too_long)


def targets(*rows: tuple[str, str, str], **more: Any) -> Any:
    given = {"ending": None, "max_tokens": 200, "source": "data=x", **more}
    return make_targets(
        loaded(*rows), given.pop("prompt", CHAT), policy_tokenizer(), VerifyConfig(checker="exact"), **given
    )


def text_of(ids: Any) -> str:
    return str(policy_tokenizer().decode(ids))


def test_the_solution_the_answer_and_the_end_are_learned_and_the_question_is_not() -> None:
    (one,) = targets(("1+1", "2", "one and one\nare two\n")).train
    assert text_of(one.ids[: one.start]) == r"<|user|>1+1 in \boxed{}<|end|><|assistant|>"
    assert text_of(one.ids[one.start :]) == "one and one\nare two\n\\boxed{2}<|end|>"
    batch = collated([one, *targets(("2+2", "4", "4")).train])
    assert batch["labels"][0].tolist() == [IGNORED] * one.start + one.ids[one.start :].tolist()
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [one.ids.size - one.start, len("4\n\\boxed{4}") + 1]
    assert batch["attention_mask"].sum(1).tolist()[0] == one.ids.size


def test_a_text_prompt_is_followed_by_a_space() -> None:
    (one,) = targets(("1+1", "2", "two"), prompt=TEXT).train
    assert text_of(one.ids[one.start :]) == " two\n\\boxed{2}<|end|>"


def test_a_solution_that_states_the_answer_as_asked_is_left_alone() -> None:
    exact = VerifyConfig(checker="exact")
    assert target_text(r"so \boxed{2}.", "2", r"\boxed{{answer}}", exact) == r"so \boxed{2}."
    assert target_text("two\n#### 2", "2", r"\boxed{{answer}}", exact) == "two\n\\boxed{2}"


@pytest.mark.parametrize(
    ("verify", "prompt", "ending"),
    [
        ({}, CHAT, r"\boxed{{answer}}"),
        ({"extract": "boxed"}, Prompt("o", "chat", "{question} <answer>"), r"\boxed{{answer}}"),
        ({}, Prompt("o", "chat", "{question} in <answer> </answer>"), "<answer>{answer}</answer>"),
        ({"extract": "hashes"}, CHAT, "#### {answer}"),
        ({"checker": "gsm8k_release"}, CHAT, "The final answer is {answer}."),
        ({"checker": "math_release"}, CHAT, r"\boxed{{answer}}"),
    ],
)
def test_the_answer_is_stated_as_the_verifier_and_the_prompt_want_it(
    verify: dict[str, str], prompt: Prompt, ending: str
) -> None:
    config = VerifyConfig(**{"checker": "exact", **verify})
    assert ending_of(config, prompt) == ending
    text = target_text("so", "72", ending, config)
    assert config.extract_from(text) == "72"


@pytest.mark.parametrize("solution", ["def f():\n    return 1\n", "```python\ndef f():\n    return 1\n```\n"])
def test_a_program_is_learned_in_one_fence(solution: str) -> None:
    made = make_targets(
        loaded(("sum", '{"kind": "mbpp"}', solution)),
        CHAT,
        policy_tokenizer(),
        VerifyConfig(checker="code"),
        ending=None,
        max_tokens=200,
        source="data=x",
    )
    (one,) = made.train
    assert text_of(one.ids[one.start :]) == "```python\ndef f():\n    return 1\n```<|end|>"


def test_what_is_left_out_is_counted() -> None:
    rows = [("a", "1", "x"), ("b", "2", ""), ("c", "3", "y" * 300), ("d", "4", "no")]
    made = make_targets(
        loaded(*rows, too_long=2),
        CHAT,
        policy_tokenizer(),
        VerifyConfig(checker="exact"),
        ending=None,
        max_tokens=200,
        source="data=x",
    )
    assert [each.id for each in made.train] == ["p0", "p3"]
    assert made.dropped == {"prompt over max_prompt_tokens": 2, "no solution": 1, "longer than 200 tokens": 1}


@pytest.mark.parametrize(
    ("rows", "more", "match"),
    [
        ([("a", "1", "")], {}, "data=x has no solutions to learn from"),
        ([("a", "1", "x" * 300)], {}, "all 1 solutions are longer than max_tokens=200 .*raise max_tokens"),
        (
            [("a", "1", "x")],
            {"ending": "it is {answer}"},
            r"the verifier .*accepts none of 1 solutions, .*'x\\nit is 1'",
        ),
    ],
)
def test_data_that_teaches_nothing_is_refused(rows: Any, more: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        targets(*rows, **more)


def test_data_without_solutions_is_refused_by_the_command(base: Path) -> None:
    with pytest.raises(ConfigError, match="data=arithmetic has no solutions to learn from"):
        make(base, "lora", data=("data.steps=none",))


# the command


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["kind=prefix"], "kind must be one of full, lora, ia3, layer_norm, adapter, got 'prefix'"),
        (["kind=lora", "batch=10", "micro_batch=4"], "batch=10 must be a multiple of micro_batch=4"),
        (["kind=lora", "lr=0"], "lr must be greater than 0, got 0.0"),
        (["kind=lora", "dropout=1"], r"dropout must lie in \[0, 1\), got 1.0"),
        (["kind=ia3", "rank=8"], "rank: for kind=lora, and this is kind=ia3"),
        (["kind=lora", "reduction=8"], "reduction: for kind=adapter, and this is kind=lora"),
        (["kind=lora", "ending=done"], "must hold {answer}"),
        (["kind=lora", "weights=float8"], "weights must be one of float32, bfloat16"),
        (["kind=lora", "epochs=0"], "epochs must be at least 1, got 0"),
        (["kind=lora", "rnk=0"], "Unknown key 'rnk'"),
        ([], "reasonrl tune needs kind="),
    ],
)
def test_knobs_out_of_range_are_named(args: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_knobs(TuneKnobs, args, "reasonrl tune")


@pytest.mark.parametrize("key", ELSEWHERE)
def test_keys_of_a_run_that_mean_nothing_here_are_told(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}= is for|{key}= is what"):
        run(["kind=lora", f"{key}=x"])


def test_every_knob_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in TuneKnobs.__dataclass_fields__ if f"{name}=" not in text] == []


def test_the_command_tunes_the_embedded_model_and_others_load_it(capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "kind=layer_norm",
        "model=tiny",
        "data=arithmetic",
        "data.size=40",
        "steps=2",
        "device=cpu",
        "micro_batch=20",
    ]
    assert cli.main(["tune", *args]) == 0
    assert "40 solutions of data=arithmetic" in capsys.readouterr().out
    model = locate("tuned/tiny-arithmetic-layer_norm")
    model.check()
    assert model.context == 512


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree("tuned", ignore_errors=True)
