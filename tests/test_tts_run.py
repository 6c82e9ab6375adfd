"""`reasonrl tts` from end to end on the embedded model, and on scripts where a model would only take time."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tts_builders import FakeVerifier

from reasonrl import cli
from reasonrl.config import ConfigError, RunFailed, package_path
from reasonrl.eval.backends import Ask
from reasonrl.eval.backends.local import open_local as open_eval
from reasonrl.eval.models import locate
from reasonrl.eval.tts.backends import Backend
from reasonrl.eval.tts.backends.fake import FakeBackend, written
from reasonrl.eval.tts.backends.local import LocalBackend
from reasonrl.eval.tts.backends.local import open_local as open_tts
from reasonrl.eval.tts.base import Budget, Posed, Trace
from reasonrl.eval.tts.methods.beam_search import BeamSearch
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.greedy import Greedy
from reasonrl.eval.tts.methods.revision import Revision
from reasonrl.eval.tts.run import build_hard_set, prepare, run_tts
from reasonrl.eval.tts.schedule import Schedule
from reasonrl.eval.tts.settings import read_settings
from reasonrl.runs import provenance

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
BASE = ["model=tiny", "task=arithmetic", "verify=exact", "workers=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; what has tests of its own and takes time is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    return tmp_path


@pytest.fixture(scope="module")
def tiny() -> Iterator[LocalBackend]:
    with open_tts(str(TINY), tokenizer(), trust_remote_code=False, threads=1, max_sequences=64) as backend:
        before = [(name, weight.clone()) for name, weight in backend.model.state_dict().items()]
        yield backend
        after = backend.model.state_dict()
        assert all((weight == after[name]).all() for name, weight in before), "a method changed the base weights"


def tokenizer() -> Any:
    return locate("tiny").load_tokenizer()


def made(*args: str, backend: Any, console: Console | None = None) -> Path:
    given = {arg.partition("=")[0] for arg in args}
    knobs = read_settings([*(arg for arg in BASE if arg.partition("=")[0] not in given), *args])
    return run_tts(knobs, console=console, command=args, open_backend=lambda plan: contextlib.nullcontext(backend))


def fake(text: str = "\\boxed{7}") -> FakeBackend:
    return FakeBackend(lambda owner, ask: written(text, ask))


def told() -> Console:
    return Console(record=True, file=io.StringIO(), width=200, soft_wrap=True)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path, part: str, seed: int = 42) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / part / f"seed{seed}.jsonl").read_text().splitlines()]


# the whole


def test_coverage_with_intervals_and_where_the_folder_is(tiny: LocalBackend) -> None:
    console = told()
    folder = made("method=best_of_n", "budget=4", "limit=8", "seeds=42,85", backend=tiny, console=console)
    text = console.export_text()
    assert (
        "best_of_n on arithmetic: 8 questions, at most 4 attempts each, temperature 0.6, prompt plain, seeds 42, 85"
        in text
    )
    assert "coverage@k (95 %)" in text
    assert "of 8 questions x 2 seeds" in text
    assert "the verifier's word chose: a coverage, no accuracy" in text
    assert text.rstrip().endswith(f"folder: {folder}")
    assert folder == Path("tts/tiny-arithmetic-best_of_n-budget4-seeds42+85-verifyexact-limit8")
    found = results(folder)
    assert found["score"]["name"] == "coverage@4"
    rates = [found["coverage"][k]["estimate"] for k in ("1", "2", "4")]
    assert rates == sorted(rates)
    assert rates[-1] == found["score"]["estimate"] > rates[0] > 0
    assert found["score"]["low"] < rates[-1] < found["score"]["high"]
    attempts = [row for seed in (42, 85) for row in rows(folder, "attempts", seed)]
    assert len(attempts) == found["spent"]["generations"] == found["spent"]["charged"]
    ended = rows(folder, "traces")
    assert len(ended) == 8
    assert all(row["solved"] == (row["stop"] == "correct") for row in ended)


def asked(method: str, limit: int) -> list[Posed]:
    args = [*BASE, f"method={method}", f"limit={limit}", "max_new_tokens=40"]
    return list(prepare(read_settings(args), Console(quiet=True)).posed)


def traces(backend: Backend, method: Any, questions: Sequence[Posed], budget: int, batch: int = 64) -> list[Trace]:
    """Nothing is right, so every attempt is made."""
    schedule = Schedule(method, backend, FakeVerifier(), Budget(budget), batch=batch)
    return sorted(schedule.run(questions), key=lambda trace: trace.id)


@pytest.mark.parametrize("method", [BestOfN(), Revision()])
def test_on_a_real_model_too_a_trace_depends_on_neither_order_nor_batch(tiny: LocalBackend, method: Any) -> None:
    questions = asked(method.name, 4)
    together = traces(tiny, method, questions, 2)
    assert traces(tiny, method, questions[::-1], 2, batch=3) == together
    assert traces(tiny, method, questions, 2, batch=1) == together
    assert len({attempt.text for trace in together for attempt in trace.attempts}) > 4


def test_an_attempt_is_the_answer_that_an_evaluation_samples(tiny: LocalBackend) -> None:
    questions = asked("best_of_n", 2)
    found = {trace.id: trace for trace in traces(tiny, BestOfN(), questions, 2)}
    asks = [Ask("arithmetic", p.id, (0, 1), p.prompt_ids, "", 0.6, 0.95, -1, p.room, 42) for p in questions]
    with open_eval(str(TINY), tokenizer(), trust_remote_code=False, threads=1, max_sequences=8) as backend:
        for answer in backend.answers(asks):
            assert found[answer.id].attempts[answer.number].text == answer.text


def test_a_beam_search_of_width_one_is_greedy_and_a_wider_one_has_other_beams(tiny: LocalBackend) -> None:
    questions = asked("beam_search", 2)
    single, greedy = traces(tiny, BeamSearch(), questions, 1), traces(tiny, Greedy(), questions, 1)
    assert [t.attempts[0].token_ids for t in single] == [t.attempts[0].token_ids for t in greedy]
    for trace in traces(tiny, BeamSearch(), questions, 3):
        assert len({attempt.token_ids for attempt in trace.attempts}) == 3
        assert all(a.finished == (a.token_ids[-1] in tiny.end_ids) for a in trace.attempts)


def test_too_wide_a_beam_is_halved_until_it_fits(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    search = tiny._search

    def small(ask: Any, width: int) -> Any:
        if width > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return search(ask, width)

    monkeypatch.setattr(tiny, "_search", small)
    (trace,) = traces(tiny, BeamSearch(), asked("beam_search", 1), 8)
    assert trace.notes == {"beams": 2}


# stopped and continued


class Stopping(FakeBackend):
    """A Ctrl-C in call `at`."""

    def __init__(self, at: int) -> None:
        super().__init__(lambda owner, ask: written(f"\\boxed{{{sum(ask.sampling.seed) % 5}}}", ask))
        self.left = at

    def generate(self, asks: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().generate(asks)


def test_a_run_that_was_stopped_continues_and_gives_the_same_files() -> None:
    args = ["method=best_of_n", "budget=4", "limit=6", "seeds=42,85", "batch=3"]
    whole = made(*args, "out=whole", backend=Stopping(0))
    with pytest.raises(KeyboardInterrupt, match=r"kept in parts. Continue with the same command"):
        made(*args, "out=parts", backend=Stopping(3))
    assert not (Path("parts") / "results.json").exists()
    assert len(rows(Path("parts"), "attempts")) == 6  # two rounds of three
    console = told()
    again = Stopping(0)
    parts = made(*args, "out=parts", backend=again, console=console)
    for seed in (42, 85):
        ours, theirs = (
            {(r["id"], r["number"]): {k: v for k, v in r.items() if k != "seconds"} for r in rows(f, "attempts", seed)}
            for f in (parts, whole)
        )
        assert ours == theirs
        assert len(rows(parts, "attempts", seed)) == len(ours)  # no attempt twice
    assert {**results(parts), "name": ""} == {**results(whole), "name": ""}
    silent = fake()
    made(*args, "out=parts", backend=silent, console=console)
    assert silent.calls == []


def test_other_settings_are_refused_in_the_same_folder() -> None:
    made("method=best_of_n", "budget=2", "limit=2", "seeds=42", "out=x", backend=fake())
    with pytest.raises(ConfigError, match=r"x was begun with other settings: budget.attempts 2 .now 3."):
        made("method=best_of_n", "budget=3", "limit=2", "seeds=42", "out=x", backend=fake())
    made("method=best_of_n", "budget=3", "limit=2", "seeds=42", "out=x", "overwrite=true", backend=fake())
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    with pytest.raises(ConfigError, match="mine holds other things than a test-time run: choose another out= or name="):
        made("method=best_of_n", "out=mine", backend=fake())
    assert Path("mine/thesis.tex").exists()


def test_a_half_line_that_a_kill_left_is_made_again() -> None:
    args = ["method=best_of_n", "budget=2", "limit=2", "seeds=42", "out=x"]
    made(*args, backend=fake())
    whole = results(Path("x"))
    file = Path("x/attempts/seed42.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    made(*args, backend=fake())
    assert results(Path("x")) == whole


def test_steps_that_a_dtype_would_hide_are_told() -> None:
    def said(*more: str) -> str:
        console = told()
        prepare(read_settings(["method=fttt", *BASE, "limit=1", *more]), console)
        return console.export_text()

    assert "in bfloat16 most of what steps of method.lr=1e-05 change is rounded away" in said("engine.dtype=bfloat16")
    assert "rounded away" not in said("engine.dtype=bfloat16", "method.lr=0.003")
    assert "rounded away" not in said()


# the hard set


def test_the_hard_set_is_what_greedy_decoding_fails_on(tiny: LocalBackend) -> None:
    console = told()
    knobs = read_settings([*BASE, "limit=12"], fixed=("method=greedy",))
    path = build_hard_set(knobs, console=console, open_backend=lambda plan: contextlib.nullcontext(tiny))
    manifest = json.loads(path.read_text())
    assert path == Path("tts/hard/tiny-arithmetic.json")
    assert f"hard set: {len(manifest['ids'])} of 12 questions: {path}" in console.export_text()
    wrong = [
        row["id"] for row in rows(Path("tts/tiny-arithmetic-greedy-verifyexact-limit12"), "traces") if not row["solved"]
    ]
    assert sorted(manifest["ids"]) == sorted(wrong)
    assert len(wrong) + manifest["greedy_correct"] == 12
    asked = fake("\\boxed{no}")
    folder = made("method=best_of_n", "budget=1", "seeds=42", "hard=auto", backend=asked)
    assert sorted(owner for owner, _ in asked.calls[0]) == sorted(wrong)
    found = results(folder)["hard"]
    assert found["full_accuracy"] == pytest.approx(manifest["greedy_correct"] / 12, abs=1e-12)
    # with another prompt its answers would be others
    with pytest.raises(
        ConfigError, match="was made with another prompt: build it anew with `reasonrl tts hard model=tiny"
    ):
        made("method=best_of_n", "hard=auto", "prompt=boxed", backend=asked)


def test_a_tuned_model_is_asked_what_its_base_fails_on(tiny: LocalBackend) -> None:
    knobs = read_settings([*BASE, "limit=6"], fixed=("method=greedy",))
    hard = build_hard_set(knobs, open_backend=lambda plan: contextlib.nullcontext(tiny))
    manifest = json.loads(hard.read_text())
    shutil.copytree(package_path("pkg://reasonrl.assets.tiny/model"), "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "initializer_range": 0.5}))
    assert locate("other").threads == locate("tiny").threads == 1
    asked = ("method=best_of_n", "budget=1", "seeds=42", f"hard={hard}", "model=other")
    with pytest.raises(ConfigError, match="was made with another model"):
        made(*asked, backend=fake("\\boxed{no}"))
    Path("other/tune.json").write_text(json.dumps({"base": {"fingerprint": manifest["model"]}}))
    found = results(made(*asked, backend=fake("\\boxed{no}")))["hard"]
    assert found["of_base"]
    assert found["questions"] == len(manifest["ids"])
    assert found["full_accuracy"] is None  # nobody asked it the questions that its base solves


def test_a_hard_set_that_is_missing_is_told_with_the_command_that_builds_it() -> None:
    with pytest.raises(
        ConfigError,
        match="no hard set tts/hard/tiny-arithmetic.json: build it with `reasonrl tts hard model=tiny task=arithmetic verify",
    ):
        made("method=best_of_n", "hard=auto", backend=fake())
    Path("h.json").write_text("[]")
    with pytest.raises(ConfigError, match="h.json is no hard set"):
        made("method=best_of_n", "hard=h.json", backend=fake())


# bad input


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["method=best_of"], "Unknown method 'best_of'; did you mean best_of_n"),
        (["method=best_of_n", "budget=0"], "budget must be at least 1, got 0"),
        (["method=best_of_n", "tokens=0"], "tokens must be at least 1, got 0"),
        (["method=best_of_n", "seconds=0"], "seconds must be greater than 0, got 0.0"),
        (["method=best_of_n", "seeds=1,1"], "seeds=1,1 names one twice"),
        (["method=best_of_n", "seeds=-1"], "seeds must be in 0"),
        (["method=best_of_n", "temperature=0"], "temperature=0: method=best_of_n would draw the same answer 32 times"),
        (["method=best_of_n", "task=gsm8k,math500"], "task=gsm8k,math500: one task at a time"),
        (["method=best_of_n", "backend=vlm"], "Unknown backend 'vlm'"),
        (
            ["method=best_of_n", "method.select=vote"],
            "Unknown key 'select' of reasonrl tts .method.. with method=best_of_n",
        ),
        (["method=best_of_n", "model.x=1"], "Unknown group 'model' of reasonrl tts"),
        (["method=best_of_n", "budgets=3"], "Unknown key 'budgets' of reasonrl tts; did you mean budget"),
        (["method=best_of_n", "task=humaneval", "verify=exact"], "task humaneval asks for programs"),
        (["method=best_of_n", "task=gsm9k"], "Unknown task 'gsm9k'; did you mean gsm8k"),
        (["method=best_of_n", "model=tinny"], "Unknown model 'tinny', and no such folder"),
        (["method=self_consistency", "task=ifeval"], "compares answers with each other, and those of task ifeval"),
        (
            ["method=fttt", "method.targets=query"],
            "method.targets=query: this model has no linear module 'query'; it has",
        ),
        (["method=fttt", "engine.device=cuda"], "engine.device=cuda and no NVIDIA GPU found"),
        (
            ["method=revision", "prompt=boxed_text"],
            "method=revision answers attempts in turns of a chat, and prompt=boxed",
        ),
        (["method=best_of_n", "out=a", "name=b"], "out= is the folder itself, name= one under tts/"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_made(here: Path, args: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        made(*args, backend=None)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("method", ["revision", "self_refine"])
def test_a_model_without_a_chat_template_cannot_be_answered_in_turns(here: Path, method: str) -> None:
    folder = Path(shutil.copytree(TINY, here / "m"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ConfigError, match=f"method={method} answers attempts in turns of a chat, and prompt=boxed_text is"
    ):
        made(f"method={method}", "model=m", "prompt=boxed_text", backend=None)
    with pytest.raises(ConfigError, match="has no chat template|prompt for chat models only"):
        made(f"method={method}", "model=m", backend=None)
    made("method=best_of_n", "model=m", "prompt=boxed_text", "limit=2", "budget=1", "seeds=42", backend=fake())


def test_a_run_in_which_everything_failed_says_so() -> None:
    def broken(owner: str, ask: Any) -> Any:
        raise RuntimeError("cannot")

    with pytest.raises(RunFailed, match="all 1 questions failed, the first with: RuntimeError: cannot"):
        made("method=best_of_n", "limit=1", "seeds=42", "out=x", backend=FakeBackend(broken))


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tts"]) == 0
    assert "reasonrl tts hard model=... task=..." in capsys.readouterr().out
    assert cli.main(["tts", "hards"]) == 2
    assert "Unknown command 'tts hards'; did you mean hard" in capsys.readouterr().err
    assert cli.main(["tts", "hard", "model=tiny", "task=arithmetic", "budget=3"]) == 2
    assert (
        "budget=3: `reasonrl tts hard` is greedy decoding of all questions; leave budget= out"
        in capsys.readouterr().err
    )
    assert cli.main(["tts", "method=greedy", "model=tiny"]) == 2
    assert "reasonrl tts needs task=...; --help explains them" in capsys.readouterr().err
