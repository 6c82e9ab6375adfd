"""The table of test-time methods, made from folders of runs whose model is a script."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reasonrl.eval.tts.backends.fake import FakeBackend, written
from reasonrl.eval.tts.run import run_tts
from reasonrl.eval.tts.settings import read_settings
from reasonrl.runs import provenance

FILE = Path(__file__).parents[1] / "benchmarks" / "tts_table.py"
COMMON = ["model=tiny", "task=arithmetic", "verify=exact", "workers=1", "limit=4", "seeds=1"]


@pytest.fixture(scope="module")
def tts_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tts_table", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tts_table"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Question i (of four) is answered right by attempt i + 1, with i letters before; greedy answers the first."""
    out = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        for name, made in (("gpus", list), ("versions", dict), ("git_state", lambda folder: None)):
            patch.setattr(provenance, name, made)
        for label, args in {
            "greedy": ["method=greedy"],
            "best_of_n": ["method=best_of_n", "budget=4"],
            "self_consistency": ["method=self_consistency", "budget=4"],
        }.items():
            knobs = read_settings([*args, *COMMON, f"out={out / label}"])
            run_tts(knobs, open_backend=lambda plan: contextlib.nullcontext(Scripted(plan)))
    (out / "table.json").write_text(json.dumps({"labels": ["greedy", "best_of_n", "self_consistency"]}))
    return out


class Scripted(FakeBackend):
    """Writes \\boxed{} of the right answer or of 0, ten tokens a text."""

    def __init__(self, plan: Any) -> None:
        super().__init__(self.one)
        self.place = {posed.id: (i, posed.question.answer) for i, posed in enumerate(plan.posed)}
        self.made: dict[str, int] = {}

    def one(self, owner: str, ask: Any) -> Any:
        number = self.made[owner] = self.made.get(owner, -1) + 1
        place, right = self.place[owner]
        text = f"\\boxed{{{right if number == place else -1 - number}}}"
        return written(text.rjust(15), ask)  # 16 tokens with the end


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{label}`")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_each_method_s_own_measure_at_each_number_of_attempts(
    tts_table: ModuleType, folder: Path
) -> None:
    runs = [tts_table.read(folder, label) for label in ("greedy", "best_of_n", "self_consistency")]
    text = tts_table.table(runs)
    assert "| method | measure | @1 | @2 | @4 | within 40 tokens |" in text  # (1 + 2 + 3 + 4) / 4 attempts of 16 tokens
    assert "tiny on arithmetic: 4 questions, seeds 1 (" in text
    assert "40 tokens are what a question cost best_of_n on average" in text
    greedy, best, vote = (cells(text, label) for label in ("greedy", "best_of_n", "self_consistency"))
    assert (greedy[1], best[1], vote[1]) == ("accuracy", "coverage", "vote")
    assert [cell.split(" ")[0] for cell in greedy[2:6]] == ["25.0", "", "", "25.0"]
    assert [cell.split(" ")[0] for cell in best[2:6]] == ["25.0", "50.0", "100.0", "50.0"]  # 40 tokens: two attempts
    # every answer is given once, so the first one seen wins: question 0's alone is right
    assert [cell.split(" ")[0] for cell in vote[2:6]] == ["25.0", "25.0", "25.0", "25.0"]
    assert (greedy[6], best[6], vote[6]) == ("16", "40", "64")
    assert (greedy[7], best[7], vote[7]) == ("1.0", "2.5", "4.0")
    assert "(" in best[3]
    assert "–" in best[3]


def test_runs_are_compared_with_one_of_them_by_question_and_text(tts_table: ModuleType, folder: Path) -> None:
    runs = [tts_table.read(folder, label) for label in ("greedy", "best_of_n", "self_consistency")]
    text = tts_table.beside(runs, "best_of_n")
    # of four questions best of n solves all, greedy the first
    assert cells(text, "greedy")[1].startswith("-75.0 (")
    assert cells(text, "best_of_n")[1:3] == ["", ""]
    # attempts from the second on of questions that took 1, 2, 3 and 4: the same script wrote both
    assert cells(text, "self_consistency")[2] == "0 of 6 (0.0 %)"
    traces = list(runs[2].traces[0])
    last = max(range(4), key=lambda i: len(runs[1].traces[0][i].attempts))
    attempts = traces[last].attempts
    traces[last] = replace(traces[last], attempts=(*attempts[:3], replace(attempts[3], token_ids=(1,))))
    runs[2] = replace(runs[2], traces=[traces])
    assert cells(tts_table.beside(runs, "best_of_n"), "self_consistency")[2] == "1 of 6 (16.7 %)"
    assert tts_table.beside(runs, "fttt") == ""


def test_at_other_tokens_or_none(tts_table: ModuleType, folder: Path) -> None:
    runs = [tts_table.read(folder, label) for label in ("best_of_n", "self_consistency")]
    assert [runs[0].within(tokens)["estimate"] for tokens in (15, 16, 48, 64)] == [0.0, 0.25, 0.75, 1.0]
    assert "within 64 tokens" in tts_table.table(runs, ["fttt", "self_consistency"])
    assert "within" not in tts_table.table(runs, ["fttt"]).splitlines()[2]


def test_a_tuned_model_stands_beside_its_base_on_the_base_s_hard_set(tts_table: ModuleType, folder: Path) -> None:
    runs = [tts_table.read(folder, label) for label in ("best_of_n", "greedy")]
    runs[1].results["settings"]["model"] = "tuned"
    runs[1].results["hard"] = {"of_base": True}
    tts_table.require_comparable(runs)
    runs[1].results["settings"]["ids"] = "others"
    with pytest.raises(ValueError, match="another ids"):
        tts_table.require_comparable(runs)


@pytest.mark.parametrize(
    "name", ["model", "ids", "arithmetic.data", "arithmetic.prompt", "arithmetic.prompt_sha256", "arithmetic.checker"]
)
def test_runs_of_other_questions_stand_in_no_table(tts_table: ModuleType, folder: Path, name: str) -> None:
    runs = [tts_table.read(folder, label) for label in ("greedy", "best_of_n")]
    assert runs[1].results["settings"][name]
    runs[1].results["settings"][name] = "others"
    with pytest.raises(ValueError, match=f"greedy and best_of_n have another {name}: they cannot stand in one table"):
        tts_table.table(runs)


def test_equal_programs_are_one_vote_within_tokens_too(tts_table: ModuleType, folder: Path) -> None:
    one, two, other = "def f():\n    return 1", "def f():  # one\n    return 1", "def f():\n    return 2"
    attempts = [attempt(1, other, "wrong"), attempt(2, one, "correct"), attempt(3, two, "correct")]
    run = tts_table.read(folder, "self_consistency")
    run = replace(run, traces=[[SimpleNamespace(attempts=attempts, notes={})]])
    assert run.within(30)["estimate"] == 0.0  # as texts each is given once, so that the first one wins
    run.results["settings"]["arithmetic.checker"] = "code"
    assert run.within(30)["estimate"] == 1.0


def attempt(number: int, extracted: str, verdict: str) -> Any:
    return SimpleNamespace(number=number, extracted=extracted, verdict=verdict, tokens=10)


def test_runs_that_were_made_by_hand_are_found(tts_table: ModuleType, folder: Path, tmp_path: Path) -> None:
    for label in ("self_consistency", "a_new_one", "best_of_n", "under_way"):
        (tmp_path / label).mkdir()
        if label != "under_way":
            (tmp_path / label / "results.json").write_text("{}")
    assert tts_table.labels_in(tmp_path) == ["best_of_n", "self_consistency", "a_new_one"]
    assert tts_table.labels_in(folder) == ["greedy", "best_of_n", "self_consistency"]
    with pytest.raises(FileNotFoundError, match="holds no complete run of `reasonrl tts`: `run` first"):
        tts_table.labels_in(tmp_path / "under_way")


def test_a_run_that_is_not_complete_is_named(tts_table: ModuleType, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="revision is not a complete run: `run` first"):
        tts_table.read(folder, "revision")


def test_the_curves_are_drawn_and_the_table_written(tts_table: ModuleType, folder: Path, tmp_path: Path) -> None:
    image, file = tmp_path / "images" / "curves.png", tmp_path / "table.md"
    tts_table.main(["table", str(folder), "--image", str(image), "--markdown", str(file)])
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert file.read_text().count("\n| `") == 3


def test_every_method_is_asked_as_it_was_said(
    tts_table: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tts_table, "reasonrl", lambda *args: asked.append(" ".join(args)))
    monkeypatch.setattr(tts_table, "read", lambda folder_, label: None)
    monkeypatch.setattr(tts_table, "table", lambda runs, equal, seconds: "")
    args = ["run", str(tmp_path), "--methods", "greedy,fttt", "--budget", "8", "--seeds", "1", "--hard", "auto"]
    tts_table.main([*args, "--arm", "fast: method=fttt method.lr=1e-3 max_new_tokens=9", "max_new_tokens=64"])
    assert asked == [
        "tts hard model=tiny task=arithmetic max_new_tokens=64",
        *(
            f"tts {own} model=tiny task=arithmetic{more}{budget} hard=auto seeds=1 batch=64 out={tmp_path / label}"
            for label, own, more, budget in (
                ("greedy", "method=greedy", " max_new_tokens=64", ""),
                ("fttt", "method=fttt", " max_new_tokens=64", " budget=8"),
                ("fast", "method=fttt method.lr=1e-3 max_new_tokens=9", "", " budget=8"),  # its own word wins
            )
        ),
    ]
    with pytest.raises(SystemExit, match="unknown method lucky; there are greedy, revision"):
        tts_table.main(["run", str(tmp_path), "--methods", "lucky"])
