"""Training an editor of weights: what it learns from, that it learns, and that it can be stopped at any moment."""

from __future__ import annotations

import fcntl
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_builders import byte_tokenizer, write_jsonl
from prm_builders import base_folder, small_model
from rich.console import Console
from safetensors.torch import load_file
from tts_builders import Letters, letters, play

from reasonrl.cli import main
from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.folder import locked
from reasonrl.eval.tts.feedback import INCORRECT, FeedbackPolicy
from reasonrl.eval.tts.methods.optune import OpTune
from reasonrl.eval.tts.optune import outer as outer_module
from reasonrl.eval.tts.optune.card import WEIGHTS, read_card
from reasonrl.eval.tts.optune.lesson import tokens
from reasonrl.eval.tts.optune.outer import Outer
from reasonrl.eval.tts.optune.pairs import CORRECT, Pair, pairs_of, split
from reasonrl.eval.tts.optune.targets import chosen, matrices, modules
from reasonrl.eval.tts.optune.train import OptuneKnobs, read, train
from reasonrl.eval.tts.run import comparable, prepare
from reasonrl.eval.tts.settings import read_settings
from reasonrl.runs.files import DiskFull

TINY = ["model=tiny", "data=arithmetic", "data.size=12", "samples=3", "epochs=1", "batch=4", "val_share=0.3", "lr=1e-4"]


def knobs(**more: Any) -> OptuneKnobs:
    values: dict[str, Any] = {
        "out": "editor",
        "device": "cpu",
        "dtype": "float32",
        "rank": 4,
        "batch": 6,
        "micro_batch": 2,
    }
    return OptuneKnobs(**{**values, **more})


def toy_pairs(count: int, *, offset: int = 0) -> list[Pair]:
    """The attempt's first token says which of two answers is wanted: what an edit can carry and the question does not."""
    found = []
    for i in range(count):
        kind = i % 2
        question = [3, 10 + (i + offset) % 20]
        lesson = (*question, *([5, 6] * 4 if kind else [7, 8] * 4), 2, 4)
        found.append(Pair(i, lesson, (*question, *([30, 31, 2] if kind else [40, 41, 2])), len(question)))
    return found


def outer(work: Path, *, seed: int = 1, model: Any = None, **more: Any) -> Outer:
    """A training on the toy, ready to run."""
    work.mkdir(parents=True, exist_ok=True)
    model = model if model is not None else small_model(50).requires_grad_(False)
    wanted = chosen(matrices(model), ("q_proj", "v_proj"), (-2, -1))
    console = Console(quiet=True)
    given = (toy_pairs(26), toy_pairs(8, offset=7))
    return Outer(knobs(**more), seed, model, modules(model, wanted, "x"), wanted, *given, work, console)


def same(a: Outer, b: Outer) -> bool:
    mine, theirs = a.editors.state_dict(), b.editors.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine) and a.history == b.history


# Learning


def test_training_lowers_the_loss_of_questions_that_were_held_out(tmp_path: Path) -> None:
    run = outer(tmp_path, epochs=8, lr=2e-2, eta=1e-2, micro_batch=6, rank=8, dropout=0.0)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.run()
    held_out = [row["held_out_loss"] for row in run.history if "held_out_loss" in row]
    assert held_out[-1] < 0.5 * run.history[0]["base_loss"]
    assert held_out[-1] < 0.5 * held_out[0]
    assert run.total == 8 * math.ceil(26 / 6)
    # it is the attempt's own edit that does it: that of another attempt does less
    own = run._mean(run.held_out[:-1], edit=True)
    others = [Pair(p.problem, q.lesson, p.target, p.start) for p, q in pairwise(run.held_out)]
    assert run._mean(others, edit=True) > 1.3 * own
    # one editor for all, and the model as it was
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_step_is_on_the_mean_loss_of_its_batch_however_it_is_cut(tmp_path: Path) -> None:
    for rows in (6, 1):
        run = outer(tmp_path / str(rows), micro_batch=rows, dropout=0.0)
        batch = run._batch(0)
        run.editors.observe(outer_module.collected(run.model, run.layers, [p.lesson for p in run.train])[1])
        run.editors.observe = lambda factors: None  # type: ignore[method-assign]  # the same moments for both
        step = run.optimizer.step
        gradients: list[torch.Tensor] = []

        def keep(run: Outer = run, gradients: list[torch.Tensor] = gradients, step: Any = step) -> None:
            gradients.extend(p.grad.clone() for p in run.parameters if p.grad is not None)
            step()

        run.optimizer.step = keep  # type: ignore[method-assign, assignment]
        alone = [run._losses([pair], torch.Generator()) for pair in batch]
        mean = torch.stack([each[0] for each in alone if each is not None]).mean()
        wanted = torch.autograd.grad(mean, run.parameters)
        assert run._update(batch) == pytest.approx(float(mean.detach()), rel=1e-5)
        for a, b in zip(gradients, wanted, strict=True):
            assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def test_every_attempt_is_learned_from_once_an_epoch(tmp_path: Path) -> None:
    run = outer(tmp_path)
    for epoch in range(2):
        seen = [pair.problem for step in range(run.batches) for pair in run._batch(epoch * run.batches + step)]
        assert sorted(seen) == list(range(26))
    assert [p.problem for p in run._batch(0)] != [p.problem for p in run._batch(run.batches)]
    assert [len(run._batch(step)) for step in range(run.batches)] == [6, 6, 6, 6, 2]


# Stopping


def test_a_continued_training_comes_to_the_same_bits(tmp_path: Path) -> None:
    whole = outer(tmp_path / "whole", epochs=2, save_every=1, lr=1e-3)
    whole.run()
    stopped = outer(tmp_path / "stopped", epochs=2, save_every=1, lr=1e-3)
    update = stopped._update

    def interrupted(batch: Sequence[Pair]) -> float:
        if stopped.step == 4:
            raise KeyboardInterrupt
        return update(batch)

    stopped._update = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert stopped.kept == 4
    continued = outer(tmp_path / "stopped", epochs=2, save_every=1, lr=1e-3)
    assert continued.step == 4
    continued.run()
    assert same(whole, continued)
    assert int(continued.editors.state_dict()["editors.32x32.count"]) > 0


def test_moments_are_of_training_alone(tmp_path: Path) -> None:
    run = outer(tmp_path)
    run._update(run._batch(0))
    before = {name: value.clone() for name, value in run.editors.state_dict().items()}
    run._mean(run.held_out, edit=True)
    assert all(torch.equal(value, before[name]) for name, value in run.editors.state_dict().items())
    tokens_of = [
        len(pair.lesson) - 1 for pair in run._batch(0)
    ]  # the last one has no gradient, for q the first neither
    assert int(before["editors.32x32.count"]) == 2 * sum(tokens_of) + 2 * (sum(tokens_of) - 6)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    run = outer(tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="checkpoint.safetensors is damaged .*remove it"):
        outer(tmp_path)
    assert run.step == 0


def test_passes_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = outer(tmp_path, dropout=0.0)
    collect, calls = outer_module.collected, Counter[str]()

    def broken(*args: Any) -> Any:
        calls["all"] += 1
        found, factors = collect(*args)
        if calls["all"] == 2:
            factors[0].gradients[0, 0] = math.nan
        return found, factors

    monkeypatch.setattr(outer_module, "collected", broken)
    loss = run._update(run._batch(0))
    assert math.isfinite(loss)
    assert (run.skipped, run.broken) == (1, 0)
    assert all(bool(value.isfinite().all()) for value in run.editors.state_dict().values())
    monkeypatch.setattr(outer_module, "losses", lambda *args: torch.tensor([math.nan], requires_grad=True))
    with pytest.raises(RunFailed, match=r"5 passes in a row had numbers that are not finite.*smaller lr="):
        run.run()


def test_a_training_that_came_to_no_editor_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = outer(
        tmp_path / "one", epochs=1, micro_batch=26, batch=26, lr=1e30
    )  # a step: what it leads to shows on others
    with pytest.raises(RunFailed, match=r"held out is not finite under the edits .*smaller lr="):
        run.run()
    with pytest.raises(RunFailed, match="held out is not finite"):
        outer(tmp_path / "one", epochs=1, micro_batch=26, batch=26, lr=1e30).run()  # from its last checkpoint
    run = outer(tmp_path / "none", epochs=1, micro_batch=26, batch=26)
    monkeypatch.setattr(run, "_losses", lambda *args: None)
    monkeypatch.setattr(run, "_mean", lambda *args, **more: 1.0)
    with pytest.raises(RunFailed, match="none of 1 steps had numbers that are finite, so nothing was learned"):
        run.run()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    run = outer(tmp_path)
    (tmp_path / ".checkpoint.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="disk full while writing .*checkpoint.safetensors"):
        run.save()


# What is learned from


def questions() -> Any:
    """Three questions with one target each, in the markup of the byte tokenizer."""
    tokenizer = byte_tokenizer()
    problems = [SimpleNamespace(prompt_ids=torch.tensor([1, 2, i]), id=str(i)) for i in range(3)]
    targets = {i: (9, 9, i) for i in range(3)}
    return SimpleNamespace(
        feedback=FeedbackPolicy(tokenizer), loaded=SimpleNamespace(problems=problems), targets=targets
    )


def attempt(*ids: int, finished: bool = True, correct: bool = False, known: bool = True) -> dict[str, Any]:
    return {"token_ids": list(ids), "finished": finished, "correct": correct, "known": known}


ATTEMPTS = {
    0: [attempt(5, 0), attempt(6, finished=False), attempt(7, 0, correct=True)],
    1: [attempt(8, 0, known=False)],
}


@pytest.mark.parametrize(("strategy", "kept"), [("exclude", [5]), ("include", [5, 7]), ("ground_truth", [5, 7])])
def test_right_attempts_are_learned_from_as_they_are_told(strategy: str, kept: list[int]) -> None:
    found, counts = pairs_of(knobs(correct_trial_strategy=strategy), questions(), ATTEMPTS, 1)
    assert [pair.lesson[3] for pair in found] == kept
    assert (counts["attempts"], counts["correct"], counts["cut"], counts["not judged"]) == (4, 1, 1, 1)
    said = [byte_tokenizer().decode(pair.lesson[5:], skip_special_tokens=True) for pair in found]
    assert said == [INCORRECT, CORRECT if strategy == "ground_truth" else INCORRECT][: len(kept)]
    turn = FeedbackPolicy(byte_tokenizer()).turn(INCORRECT, header=False)
    assert found[0].lesson == (1, 2, 0, 5, *turn)  # the attempt's end token gave its place to the turn's
    assert {(pair.target, pair.start) for pair in found} == {((1, 2, 0, 9, 9, 0), 3)}


def test_training_and_use_give_the_same_feedback() -> None:
    _, backend, _ = play(OpTune(), ["F", "T"], 2)
    used = backend.steps[0][1]
    given = SimpleNamespace(
        feedback=FeedbackPolicy(Letters()),
        loaded=SimpleNamespace(problems=[SimpleNamespace(prompt_ids=torch.tensor(letters("[u:q][a:")))]),
        targets={0: (9,)},
    )
    ((pair,), _) = pairs_of(knobs(), given, {0: [attempt(*letters("F"), 0)]}, 1)
    assert pair.lesson == tokens(used)  # token by token, end of turn included, no token at the seam


def test_what_is_too_long_or_too_much_is_left_out() -> None:
    with pytest.raises(
        ConfigError, match=r"none of 4 attempts can be learned from \(1 correct, 1 too long, 1 cut, 1 right"
    ):
        pairs_of(knobs(max_tokens=10), questions(), ATTEMPTS, 1)
    many = {i: [attempt(n, 0) for n in range(10)] for i in range(3)}
    found, counts = pairs_of(knobs(max_pairs=7), questions(), many, 1)
    assert (len(found), counts["over max_pairs"]) == (7, 23)
    learned, held_out = split(found, 0.3, 1)
    assert {p.problem for p in learned}.isdisjoint(p.problem for p in held_out)
    assert len(learned) + len(held_out) == 7
    assert held_out


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an editor of the embedded model in `editor` and its attempts in `store`."""
    folder = tmp_path_factory.mktemp("optune")
    knobs, cfg = read([*TINY, f"out={folder / 'editor'}", f"store={folder / 'store'}", "device=cpu"])
    train(cfg, knobs)
    return folder


def test_an_editor_is_published_whole(trained: Path) -> None:
    card = read_card(trained / "editor")
    assert [each.name.rpartition(".")[2] for each in card.matrices] == ["q_proj", "v_proj"] * 2
    assert card.words == INCORRECT
    rows = [json.loads(line) for line in (trained / "editor" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(card.training["steps"] + 1))
    assert card.training["final"] == rows[-1]
    assert card.training["counts"]["attempts"] == 36
    assert not list(trained.glob(".editor.*"))
    assert int(load_file(trained / "editor" / WEIGHTS)["editors.128x128.count"]) > 100


def command(trained: Path, *more: str, out: str = "editor") -> str:
    """The command again, with what it prints."""
    said = io.StringIO()
    knobs, cfg = read([*TINY, f"out={trained / out}", f"store={trained / 'store'}", "device=cpu", *more])
    train(cfg, knobs, console=Console(file=said, width=200))
    return said.getvalue()


def test_the_same_command_finds_its_editor_and_another_does_not(trained: Path) -> None:
    assert "is complete already" in command(trained)
    with pytest.raises(ConfigError, match="exists and was not made by these settings"):
        command(trained, "rank=8")


def test_another_training_takes_the_attempts_over(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("sampled again")

    monkeypatch.setattr("reasonrl.sampled.answers.judged", never)
    said = command(trained, "rank=8", out="other")
    assert "held out" in said
    assert read_card(trained / "other").rank == 8
    with pytest.raises(
        ConfigError, match=r"shard-0-of-1\.jsonl was made with other settings: temperature 0\.6 \(now 0\.7\)"
    ):
        command(trained, "temperature=0.7", out="warm")


def test_a_store_that_is_whole_is_read_by_several_at_once(trained: Path) -> None:
    with (trained / "store" / ".shard-0-of-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another training is reading it, or was sampling until now
        assert "editor of 4 matrices" in command(trained, "rank=6", out="beside")


def test_a_run_is_continued_however_the_path_of_its_editor_is_written(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    same = []
    for path in ("editor", f"{trained}/editor/"):
        asked = ["model=tiny", "task=arithmetic", "limit=2", "method=optune", "out=run", f"method.editor={path}"]
        same.append(comparable(prepare(read_settings(asked), Console(quiet=True))))
    assert same[0] == same[1]
    assert len(same[0]["method.editor.sha256"]) == 64


def test_what_nothing_could_be_learned_with_is_no_unfinished_training(trained: Path) -> None:
    with pytest.raises(ConfigError, match="can be learned from .*raise max_new_tokens or max_tokens"):
        command(trained, "max_tokens=2", out="short")
    assert "editor of 4 matrices" in command(trained, out="short")


def test_two_trainings_of_one_editor_do_not_mix(trained: Path) -> None:
    with locked(trained / ".twice.training"), pytest.raises(ConfigError, match="another process is at work on .*twice"):
        command(trained, "rank=5", out="twice")


def test_what_cannot_work_is_told_before_anything_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(8)])
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    bare = base_folder(tmp_path / "bare", tokenizer=byte_tokenizer(chat=False), context=512)
    for more, match in (
        (["data.steps=none"], "data=arithmetic has no solutions to learn from"),
        (
            ["data=jsonl", f"data.path={rows}", "data.val_size=2", "data.val_split=null"],
            "has no solutions to learn from",
        ),
        (["data=jsonl", f"data.path={empty}", "data.val_size=2", "data.val_split=null"], "empty.jsonl"),
        (
            [f"model={bare}", "max_prompt_tokens=256", "max_new_tokens=200"],
            "has no chat template, and feedback is given in turns",
        ),
        (["targets=q_prj"], "no linear layer q_prj; there are"),
        (["layers=7"], "layers: 7 is none of the model's"),
        (["prompt=r1_zero"], "prompt=r1_zero is a text, and an attempt is answered in turns"),
    ):
        keys = {arg.partition("=")[0] for arg in more}
        own = [arg for arg in TINY if arg.partition("=")[0] not in keys]
        with pytest.raises(ConfigError, match=match):
            train(*reversed(read([*own, "out=editor", "device=cpu", *more])))
        assert not (tmp_path / "editor").exists()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["model=tiny", "out=x"], "reasonrl optune train needs data=...; --help explains it"),
        (["model=tiny", "data=arithmetic"], "reasonrl optune train needs out=..."),
        ([*TINY, "out=x", "rnk=3"], "Unknown key 'rnk'"),
        ([*TINY, "out=x", "engine=gpu"], "engine= says where a run's processes are; here it is device=cpu"),
        ([*TINY, "out=x", "rank=0"], "rank must be at least 1, got 0"),
        ([*TINY, "out=x", "dropout=1"], r"dropout must lie in \[0, 1\), got 1.0"),
        ([*TINY, "out=x", "layers=last"], "layers must be whole numbers with [+] between, got 'last'"),
        (
            [*TINY, "out=x", "correct_trial_strategy=maybe"],
            "must be one of exclude, include, ground_truth, got 'maybe'",
        ),
        ([*TINY, "out=x", "words=No.\\nAgain."], "a backslash and an n, which stay two characters"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(args: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read(args)


def test_the_command_is_one_of_reasonrl(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optune"]) == 0
    assert "reasonrl optune train" in capsys.readouterr().out
    assert main(["optune", "train", "--help"]) == 0
    assert "correct_trial_strategy=exclude" in capsys.readouterr().out
    assert main(["optune", "trian"]) == 2
    assert "Unknown command 'optune trian'; did you mean train?" in capsys.readouterr().err
