"""`reasonrl eval` from end to end: what it asks, grades and writes; stopped and continued it gives the same numbers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from eval_builders import FakeServer
from rich.console import Console

from reasonrl import cli
from reasonrl.config import ConfigError, RunFailed, package_path
from reasonrl.data.arithmetic import parse, solve
from reasonrl.eval import report
from reasonrl.eval import run as running
from reasonrl.eval.backends import Answer, Ask, openai
from reasonrl.eval.folder import COLUMNS
from reasonrl.eval.models import locate
from reasonrl.eval.report import write_report
from reasonrl.eval.run import evaluate
from reasonrl.eval.settings import read_settings
from reasonrl.runs import provenance

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
SMALL = ["model=tiny", "task=arithmetic", "limit=8", "n=2", "verify=exact", "max_new_tokens=64", "workers=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, on a machine without a GPU. What has tests of its own and takes time is left out."""
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    return tmp_path


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")


class Fake:
    """Right for an even number of the answer, else wrong; last ask first. `stop` is raised after so many answers."""

    def __init__(self, stop: BaseException | None = None, after: int = 0) -> None:
        self.stop, self.after = stop, after
        self.asked: list[Ask] = []

    def facts(self) -> dict[str, Any]:
        return {"copies": 1}

    def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        self.asked = list(asks)
        wanted = [(ask, number) for ask in reversed(self.asked) for number in ask.numbers]
        for made, (ask, number) in enumerate(wanted):
            if self.stop is not None and made == self.after:
                raise self.stop
            text = ask.turns if isinstance(ask.turns, str) else ask.turns[-1]["content"]
            right = solve(*parse(re.search(r"\S+=\?", text).group()))[-1].result
            tokens = min(10 + number, ask.max_tokens)
            text = f"\\boxed{{{right + number % 2}}}"
            yield Answer(ask.task, ask.id, number, text, tokens, len(ask.prompt_ids), tokens < ask.max_tokens)


def made(*args: str, backend: Any = None, console: Console | None = None, base: Sequence[str] = SMALL) -> Path:
    """An evaluation; by a fake unless `backend` is "tiny"."""
    given = {arg.partition("=")[0] for arg in args}
    knobs = read_settings([*(arg for arg in base if arg.partition("=")[0] not in given), *args])
    if backend == "tiny":
        return evaluate(knobs, console=console, command=args)
    used = backend or Fake()
    return evaluate(knobs, console=console, command=args, open_backend=lambda *_: contextlib.nullcontext(used))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def lines(folder: Path, part: str, task: str = "arithmetic") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / part / f"{task}.jsonl").read_text().splitlines()]


def told() -> Console:
    return Console(record=True, file=io.StringIO(), width=300, soft_wrap=True)


# what it asks


def test_the_model_is_asked_every_question_as_often_as_it_is_to_answer() -> None:
    fake = Fake()
    made("temperature=0.7", "top_p=0.9", "top_k=7", "seed=5", "seeds=true", backend=fake)
    assert len({ask.id for ask in fake.asked}) == len(fake.asked) == 8
    how = {(a.numbers, a.temperature, a.top_p, a.top_k, a.max_tokens, a.seed, a.own_noise) for a in fake.asked}
    assert how == {((0, 1), 0.7, 0.9, 7, 64, 5, True)}
    assert fake.asked[0].turns == [{"role": "user", "content": fake.asked[0].id.removeprefix("arithmetic/")}]
    tokenizer = locate("tiny").load_tokenizer()
    shown = tokenizer.apply_chat_template(fake.asked[0].turns, add_generation_prompt=True, tokenize=False)
    assert fake.asked[0].prompt_ids == tokenizer(shown, add_special_tokens=False)["input_ids"]


def test_several_tasks_are_one_stream_of_asks() -> None:
    write_task("more", {"size": 4, "seed": 1})
    fake = Fake()
    folder = made("task=arithmetic,./more.yaml", "limit=3", backend=fake)
    assert [ask.task for ask in fake.asked] == ["arithmetic"] * 3 + ["more"] * 3
    found = results(folder)
    assert list(found["tasks"]) == ["arithmetic", "more"]
    assert found["mean"] == {"accuracy": 0.5, "tasks": ["arithmetic", "more"]}


def write_task(name: str, options: dict[str, Any], **changes: Any) -> None:
    task = {
        "name": name,
        "kind": "answer",
        "source": {"split": "test"},
        "format": "arithmetic",
        "prompt": "plain",
        "sampling": {"n": 2, "temperature": 1.0},
        "options": options,
        **changes,
    }
    Path(f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML


# prompts and room


@pytest.fixture
def copied(here: Path) -> Path:
    """The embedded model in ./m."""
    return Path(shutil.copytree(TINY, here / "m"))


def without_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def test_a_model_without_a_chat_template_gets_the_task_s_text_prompt(copied) -> None:
    without_chat_template(copied)
    write_task("own", {"size": 4}, base_prompt="r1_zero")
    fake = Fake()
    folder = made("model=./m", "task=./own.yaml", "max_context=null", backend=fake)
    assert results(folder)["tasks"]["own"]["settings"]["prompt"] == "r1_zero"
    assert results(folder)["tasks"]["own"]["chat_template_sha256"] is None
    assert isinstance(fake.asked[0].turns, str)
    assert fake.asked[0].turns.endswith("=?. Assistant:")


def test_without_a_text_prompt_it_is_refused_with_the_way_out(copied) -> None:
    without_chat_template(copied)
    with pytest.raises(
        ConfigError, match="task arithmetic has a prompt for chat models only, .*/m' has no chat template: "
    ):
        made("model=./m")
    with pytest.raises(
        ConfigError, match="task arithmetic: prompt=boxed is a chat prompt, but .* has no chat template"
    ):
        made("model=./m", "prompt=boxed")


def test_a_prompt_that_fills_the_context_is_counted_and_never_cut() -> None:
    fake = Fake()
    console = told()
    folder = made("max_context=10", backend=fake, console=console)
    lengths = {len(ask.prompt_ids) for ask in fake.asked}
    task = results(folder)["tasks"]["arithmetic"]
    left_out = task["rates"]["prompt_too_long"]["count"]
    assert lengths == {9}  # those of two numbers; the others take 12 and 15
    assert {ask.max_tokens for ask in fake.asked} == {1}
    assert left_out == 2 * (8 - len(fake.asked)) == 10
    assert task["samples"] == 16
    assert task["short_of_room"] == len(fake.asked) == 3
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert {(r["text"], r["tokens"], r["correct"]) for r in rows if r["status"] == "prompt_too_long"} == {
        ("", 0, False)
    }
    assert "5 prompts fill the context, counted as wrong; 3 leave less than max_new_tokens=64" in console.export_text()
    again = Fake()
    assert made("max_context=10", backend=again) == folder
    assert again.asked == []


# what is written


def test_a_folder_has_everything_and_the_numbers_are_right(monkeypatch) -> None:
    monkeypatch.setattr(report, "write_report", write_report)
    console = told()
    folder = made(console=console)
    assert folder == Path("evals/tiny-arithmetic-n2-max_new_tokens64-verifyexact-limit8")
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "answers",
        "config.yaml",
        "grades",
        "provenance.json",
        "report.html",
        "results.json",
        "samples.parquet",
        "timing.json",
    ]
    found = results(folder)
    task = found["tasks"]["arithmetic"]
    assert (task["problems"], task["samples"], task["accuracy"]["estimate"]) == (8, 16, 0.5)
    assert list(task["pass_at_k"]) == ["1", "2"]
    assert task["pass_at_k"]["2"]["estimate"] == 1.0
    assert task["tokens"]["correct"] == 10
    assert (found["schema"], found["backend"]["name"], found["model"]["dtype"]) == (1, "transformers", "float32")
    assert found["model"]["fingerprint"].startswith("files-")
    assert "arithmetic: the first 8 questions only (limit)" in found["notes"]
    assert pq.read_schema(folder / "samples.parquet").names == list(COLUMNS)
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["sessions"][0]["answers"] == 16
    assert not re.search(r"\d\d:\d\d|second", (folder / "results.json").read_text())  # no times
    shown = console.export_text()
    assert "arithmetic: 8 questions, 2 answers each, temperature 1, prompt plain" in shown
    assert "answers 16/16  accuracy  50.0%" in shown
    assert f"folder: {folder}" in shown


def test_ks_are_those_that_were_asked_for() -> None:
    assert list(results(made("n=4", "ks=1,3"))["tasks"]["arithmetic"]["maj_at_k"]) == ["1", "3"]


def test_a_grade_that_never_comes_is_in_the_numbers(monkeypatch) -> None:
    from concurrent.futures import Future

    from reasonrl.eval.grading import Grade, Grader

    def submit(self: Any, question: Any, text: str) -> Future[Grade]:
        done: Future[Grade] = Future()
        done.set_result(Grade(False, "timeout", message="no verdict in 10 s"))
        return done

    monkeypatch.setattr(Grader, "submit", submit)
    task = results(made())["tasks"]["arithmetic"]
    assert (task["ungraded"], task["accuracy"]["estimate"], task["accuracy_if_ungraded_right"]) == (16, 0.0, 1.0)


# stopped and continued


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        return made(f"out={tmp_path_factory.mktemp('whole') / 'x'}")


@pytest.fixture
def finished(whole: Path, here: Path) -> Path:
    """A copy of it, as name=x."""
    return Path(shutil.copytree(whole, Path("evals/x")))


def test_nothing_that_is_there_is_made_again() -> None:
    with pytest.raises(RunFailed, match="gone"):
        made(backend=Fake(RunFailed("gone"), after=5))
    folder = Path("evals/tiny-arithmetic-n2-max_new_tokens64-verifyexact-limit8")
    kept = {(row["id"], row["number"]) for row in lines(folder, "answers")}
    assert len(kept) == 5
    assert not (folder / "results.json").exists()
    fake = Fake()
    console = told()
    assert made(backend=fake, console=console) == folder
    assert {(ask.id, n) for ask in fake.asked for n in ask.numbers} & kept == set()
    assert sum(len(ask.numbers) for ask in fake.asked) == 11
    assert "has 5 of 16 answers already" in console.export_text()
    assert results(folder)["tasks"]["arithmetic"]["samples"] == 16


def test_an_answer_that_was_not_graded_is_graded_without_the_model(finished) -> None:
    whole = (finished / "results.json").read_bytes()
    grades = finished / "grades" / "arithmetic.jsonl"
    grades.write_bytes(b"".join(grades.read_bytes().splitlines(keepends=True)[:3]))
    made("name=x", backend=Fake(AssertionError("sampled")))
    assert (finished / "results.json").read_bytes() == whole


def test_a_finished_evaluation_is_only_read_again(finished) -> None:
    files = {
        p: p.read_bytes()
        for p in finished.rglob("*")
        if p.is_file() and p.name not in ("provenance.json", "config.yaml")
    }
    made("name=x", backend=Fake(AssertionError("sampled")))
    assert {p: p.read_bytes() for p in files} == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("n=4", r"arithmetic.n 2 \(now 4\)"),
        ("seed=2", r"seed 1 \(now 2\)"),
        ("verify=mathruler", r"arithmetic.checker exact \(now mathruler\), arithmetic.verify exact \(now mathruler\)"),
        ("prompt=simplerl", r"arithmetic.prompt plain \(now simplerl\), arithmetic.prompt_sha256"),
        ("limit=9", r"arithmetic.data .*, arithmetic.limit 8 \(now 9\)"),
        ("task=./other.yaml", r"tasks arithmetic \(now other\)"),
    ],
)
def test_a_folder_is_continued_with_the_same_settings_only(change, message, finished) -> None:
    write_task("other", {"size": 8})
    with pytest.raises(ConfigError, match=f"evals/x was begun with other settings: .*{message}"):
        made("name=x", change)


def test_overwrite_starts_a_folder_anew(finished) -> None:
    assert results(made("name=x", "n=4", "overwrite=true"))["tasks"]["arithmetic"]["samples"] == 32


@pytest.mark.parametrize("change", ["ks=1", "workers=2", "engine.threads=2", "engine.max_sequences=3"])
def test_what_no_answer_follows_from_may_change(change, finished) -> None:
    made("name=x", change, backend=Fake(AssertionError("sampled")))


def test_an_interruption_says_what_is_kept(here, capsys, monkeypatch) -> None:
    fake = Fake(KeyboardInterrupt(), after=5)
    monkeypatch.setattr(running, "backend_of", lambda *_: contextlib.nullcontext(fake))
    assert cli.main(["eval", *SMALL, "name=x"]) == 130
    assert "interrupted; 5 answers are kept in evals/x. Continue with the same command" in capsys.readouterr().err
    assert len(lines(Path("evals/x"), "answers")) == 5


@pytest.mark.parametrize("seed", range(2))
def test_cut_anywhere_and_continued_the_tiny_model_gives_the_same_bytes(seed) -> None:
    """As a kill leaves it: both journals cut at some byte, nothing else written."""
    import random

    folder = made("name=x", "n=4", backend="tiny")
    whole = (folder / "results.json").read_bytes()
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    rng = random.Random(seed)
    for part in ("answers", "grades"):
        file = folder / part / "arithmetic.jsonl"
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])
    for name in ("results.json", "samples.parquet", "timing.json"):
        (folder / name).unlink()
    made("name=x", "n=4", backend="tiny")
    assert (folder / "results.json").read_bytes() == whole
    assert pq.read_table(folder / "samples.parquet").to_pylist() == samples


def test_what_is_sampled_beside_an_answer_does_not_change_it() -> None:
    def texts(*args: str) -> dict[tuple[str, int], str]:
        rows = lines(made(*args, "n=4", backend="tiny"), "answers")
        return {(row["id"], row["number"]): row["text"] for row in rows}

    together = texts("name=x")
    assert texts("name=y", "engine.max_sequences=3") == together
    few = texts("name=z", "limit=3")
    assert few == {key: together[key] for key in few}
    assert len(set(together.values())) > 20
    assert texts("name=s", "seed=2") != together


@pytest.mark.slow
def test_killed_in_the_middle_and_continued_it_gives_the_same_bytes(here) -> None:
    command = [sys.executable, "-m", "reasonrl", "eval", "model=tiny", "task=arithmetic", "n=4", "workers=1", "name=x"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command[:-1], "out=whole/x"], env=environment, capture_output=True, check=True, timeout=300
    )
    assert b"answers 1024/1024" in whole.stdout
    journal = here / "evals" / "x" / "answers" / "arithmetic.jsonl"
    kept = 0
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while time.monotonic() < until and (not journal.is_file() or journal.read_bytes().count(b"\n") <= kept):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before, kept = kept, journal.read_bytes().count(b"\n")
        assert before < kept < 1024
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
    assert (here / "evals/x/results.json").read_bytes() == (here / "whole/x/results.json").read_bytes()
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len({(row["id"], row["number"]) for row in rows}) == len(rows) == 1024


# models


def test_an_alias_brings_its_prompt_and_where_it_runs() -> None:
    tiny = locate("tiny")
    assert (tiny.name, tiny.own, tiny.small, tiny.threads) == ("tiny", {"prompt": "plain"}, True, 1)
    assert locate("qwen7b").path == "Qwen/Qwen2.5-7B"  # an alias of an alias
    hub = locate("owner/model")
    assert (hub.name, hub.path, hub.own, hub.small) == ("model", "owner/model", {}, False)


def test_a_folder_is_a_model_only_with_a_configuration(copied, here) -> None:
    assert (locate("./m").name, locate("./m").path) == ("m", str(copied))
    (here / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty has no config.json: not a Hugging Face model"):
        locate("empty")
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match="model.safetensors is cut short"):
        made("model=./m")


@pytest.fixture
def run(here: Path) -> Path:
    """A run with the complete checkpoints 2 and 4, whose weights are not there; 6 is not complete."""
    folder = here / "runs" / "mine"
    for step in (2, 4, 6):
        checkpoint = folder / "checkpoints" / f"global_step_{step}"
        (checkpoint / "reasonrl").mkdir(parents=True)
        if step != 6:
            (checkpoint / "reasonrl" / "COMPLETE").write_text("{}")
    config = {
        "model": {"name": "tiny", "path": "x", "lora_rank": 0},
        "engine": {"device": "cpu", "threads": 1},
        "prompt": {"name": "mine", "kind": "text", "user": "Q: {question} A:"},
        "verify": {"checker": "exact", "answer_after": "last_think"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def merging(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """`export`, replaced by a copy of the embedded model; returns what it is asked for."""
    from reasonrl.engine.verl import export

    asked: list[Path] = []

    def copy(source: Path, out: Path, stamp: str) -> None:
        asked.append(source)
        scratch = out.with_name(".scratch")
        shutil.copytree(TINY, scratch)
        (scratch / export.STAMP).write_text(stamp)
        scratch.replace(out)

    monkeypatch.setattr(export, "merge", copy)
    monkeypatch.setattr("reasonrl.runs.folder.RunFolder.verify_checkpoint", lambda *_: None)
    return asked


@pytest.mark.parametrize("given", ["runs/mine", "runs/mine/checkpoints/global_step_2"])
def test_a_run_is_merged_once_and_brings_its_prompt(run, given, monkeypatch) -> None:
    asked = merging(monkeypatch)
    step = 2 if given.endswith("2") else 4
    fake = Fake()
    folder = made(f"model={given}", backend=fake)
    assert folder.name.startswith(f"mine-step{step}-arithmetic")
    found = results(folder)["tasks"]["arithmetic"]["settings"]
    assert (found["prompt"], found["answer_after"]) == ("run:mine", "last_think")
    assert fake.asked[0].turns.startswith("Q: ")
    assert made(f"model={given}", "name=again") != folder
    assert asked == [run / "checkpoints" / f"global_step_{step}"]
    assert locate(f"{given if step == 2 else run / 'checkpoints/global_step_4'}/huggingface").name == f"mine-step{step}"
    assert results(made(f"model={given}", "prompt=plain"))["tasks"]["arithmetic"]["settings"]["prompt"] == "plain"


def test_a_run_s_prompt_keeps_its_name_when_it_is_one_that_ships(run) -> None:
    config = json.loads((run / "config.yaml").read_text())
    config["prompt"] = {"name": "plain", "kind": "chat", "system": None, "user": "{question}"}
    (run / "config.yaml").write_text(json.dumps(config))
    assert locate("runs/mine").own["prompt"] == "plain"
    config["prompt"]["user"] = "{question}?"
    (run / "config.yaml").write_text(json.dumps(config))
    assert locate("runs/mine").own["prompt"] == "run:plain"


def test_two_processes_merge_a_checkpoint_once(run, monkeypatch) -> None:
    import threading

    from reasonrl.engine.verl import export

    asked = merging(monkeypatch)
    real, lock = export.merge, threading.Event()

    def slow(*args: Any) -> None:
        lock.wait(5)
        real(*args)

    monkeypatch.setattr(export, "merge", slow)
    made_by: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made_by.append(export.export(run / "checkpoints" / "global_step_4")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    lock.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert made_by == [run / "checkpoints" / "global_step_4" / "huggingface"] * 2


def test_a_run_that_cannot_be_evaluated_says_why(run, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="global_step_6 is not a complete checkpoint; complete ones: 2, 4"):
        locate("runs/mine/checkpoints/global_step_6")
    config = json.loads((run / "config.yaml").read_text())
    config["model"]["lora_rank"] = 8
    (run / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="trained a LoRA adapter .*merge it first"):
        locate("runs/mine")
    (run / "config.yaml").write_text("x: 1")
    with pytest.raises(ConfigError, match="config.yaml is not that of a run"):
        locate("runs/mine")


def test_another_model_in_the_same_folder_is_refused(copied) -> None:
    made("name=x")
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match="begun with other settings: .*model files-.*now files-"):
        made("model=./m", "name=x", "prompt=plain")


# a server


def test_a_server_needs_no_tokenizer_and_no_model_here(monkeypatch) -> None:
    fake = Fake()
    args = ["backend=openai", "base_url=http://127.0.0.1:9/v1", "served_model=org/big"]
    folder = made(*args, backend=fake)
    assert folder.name.startswith("big-arithmetic")
    assert fake.asked[0].turns[-1]["role"] == "user"
    found = results(folder)
    assert found["model"] == {"name": "big", "path": "http://127.0.0.1:9/v1", "fingerprint": None, "dtype": None}
    assert any("answered by a server" in note for note in found["notes"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    made(*args, "name=y", "api_key_env=OPENAI_API_KEY")
    assert not any(b"sk-very-secret" in p.read_bytes() for p in Path("evals").rglob("*") if p.is_file())
    with pytest.raises(ConfigError, match="no server answers at http://127.0.0.1:9/v1/models"):
        evaluate(read_settings(["model=m", "task=arithmetic", *args, "name=z"]))


def test_a_server_that_goes_down_in_the_middle_is_asked_for_the_rest_when_it_is_back(capsys, monkeypatch) -> None:
    monkeypatch.setattr(openai, "TRIES", 3)
    monkeypatch.setattr(openai, "FIRST_WAIT", 0.01)
    server = FakeServer()
    command = ["eval", *SMALL[1:], "model=m", "backend=openai", f"base_url={server.url}", "name=x", "max_connections=2"]
    server.after = 7
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "failed 3 times, at last: Conn" in error or "failed 3 times, at last: Remote" in error
    assert "when the server works again, the same command continues" in error
    kept = len(lines(Path("evals/x"), "answers"))
    assert 5 <= kept <= 7
    assert json.loads(Path("evals/x/timing.json").read_text())["sessions"][0]["answers"] == kept
    back = FakeServer(server.server_port)
    assert cli.main(command) == 0
    assert len(back.asked) == 16 - kept
    assert results(Path("evals/x"))["tasks"]["arithmetic"]["samples"] == 16
    sessions = json.loads(Path("evals/x/timing.json").read_text())["sessions"]
    assert [session["answers"] for session in sessions] == [kept, 16 - kept]
    back.down()


def test_questions_that_a_server_cut_short_are_counted() -> None:
    class Short(Fake):
        def answers(self, asks: Iterable[Ask]) -> Iterator[Answer]:
            for place, answer in enumerate(super().answers(asks)):
                yield replace(
                    answer, short_of_room=place < 3, too_long=place == 5, text="" if place == 5 else answer.text
                )

    args = ["backend=openai", "base_url=http://127.0.0.1:9/v1"]
    task = results(made(*args, backend=Short()))["tasks"]["arithmetic"]
    assert task["short_of_room"] == 2  # three answers of two questions
    assert task["rates"]["prompt_too_long"]["count"] == 1
