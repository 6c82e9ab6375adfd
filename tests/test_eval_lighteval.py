"""`reasonrl eval lighteval`: what it is asked, what it wrote read in its own shape, both accuracies beside each other."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from report_builders import results_of, write_folder
from report_builders import row as sample
from rich.console import Console

from reasonrl import cli
from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.compare import Problems
from reasonrl.eval.lighteval.ask import LightevalKnobs, command_line, last_words, link_model, requests
from reasonrl.eval.lighteval.command import check_asked, cross_check
from reasonrl.eval.lighteval.counterparts import COUNTERPARTS
from reasonrl.eval.lighteval.installed import Installed, check_model, check_versions, find
from reasonrl.eval.lighteval.read import Theirs, beside, matched, read_theirs, results_file
from reasonrl.eval.settings import EvalKnobs, read_settings
from reasonrl.eval.tasks import Question, task_names

DATE = "2026-11-20T15-09-15.406822"
VERSIONS = {"lighteval": "0.13.0", "transformers": "5.10.4", "huggingface_hub": "1.33.0", "xxhash": "3.8.2"}
PROMPT = "Solve the following problem.\n\n{}\n\nThink step by step."


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def write_model(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 4096, "transformers_version": "5.10.4", **config})
    )
    (folder / "model.safetensors").write_text("")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [3, 4], "pad_token_id": 0, "temperature": 0.7, "repetition_penalty": 1.05})
    )
    return folder


def write_questions(folder: Path, task: str, texts: Sequence[str]) -> None:
    """As gsm8k's or math500's own files."""
    rows = [
        {"question": text, "answer": "so\n#### 4"}
        if task == "gsm8k"
        else {"problem": text, "answer": "4", "unique_id": f"u/{place}"}
        for place, text in enumerate(texts)
    ]
    (folder / task).mkdir(parents=True)
    (folder / task / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def knobs(*args: str) -> EvalKnobs:
    return read_settings(["model=m", "task=math500", *args])


def ours(tasks: Mapping[str, Sequence[float]], backend: str = "transformers", **settings: Any) -> dict[str, Any]:
    """An evaluation in ./e of the model in ./m, two samples a problem: how many of them are right, by task."""
    rows = [
        sample(
            task=task,
            id=f"u/{p}" if task == "math500" else f"{task}/{p}",
            number=k,
            correct=k < right,
            prompt_tokens=50,
        )
        for task, problems in tasks.items()
        for p, right in enumerate(problems)
        for k in range(2)
    ]
    results = results_of(
        rows, model={"name": "mine", "path": str(Path("m").absolute()), "fingerprint": "f", "dtype": "float32"}
    )
    results["backend"] = {"name": backend}
    for task in results["tasks"].values():
        task["settings"] |= {"n": 2, "max_new_tokens": 1000, "max_context": None, "limit": None, **settings}
    write_folder(Path("e"), rows, results)
    return results


def write_theirs(
    folder: Path, task: str, metric: str, values: Sequence[tuple[str, float]], *, details: bool = True, **more: Any
) -> Path:
    """Results and details, in the folders and the shape that lighteval 0.13.0 writes."""
    name = f"{task}|0"
    scores = [score for _, score in values]
    error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
    found = {metric: float(np.mean(scores)), f"{metric}_stderr": error}
    file = folder / "out" / "results" / "model" / f"results_{DATE}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "config_general": {"lighteval_sha": "?", "max_samples": None, "job_id": "0", "model_name": "model"},
        "results": {name: found, "all": found},
        "versions": {},
        "config_tasks": {name: {"name": task, "num_fewshots": 0}},
        "summary_tasks": {name: {"hashes": {}, "truncated": 0}},
        "summary_general": {"hashes": {}, "truncated": 0},
        **more,
    }
    file.write_text(json.dumps(results))
    if details:
        rows = [
            {
                "doc": {"query": text, "choices": ["ANSWER: 4"], "gold_index": 0, "id": str(i), "task_name": name},
                "metric": {metric: score},
                "model_response": {"text": ["ANSWER: 4"], "output_tokens": [[1, 2]]},
            }
            for i, (text, score) in enumerate(values)
        ]
        place = folder / "out" / "details" / "model" / DATE
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), place / f"details_{name}_{DATE}.parquet")
    return file


# what is asked


def test_every_counterpart_is_of_a_task_of_ours() -> None:
    assert set(COUNTERPARTS) <= set(task_names())


def test_tasks_that_are_sampled_alike_are_one_call() -> None:
    write_model(Path("m"))
    results = ours({"math500": [1, 0], "gsm8k": [2], "aime24": [1]})
    results["tasks"]["aime24"]["settings"] |= {"n": 16, "temperature": 0.6, "top_p": 0.95}
    made = requests(Path("e"), results, knobs(), LightevalKnobs())
    assert [request.spec for request in made] == ["math_500@n=2|0,gsm8k|0", "aime24@n=16|0"]
    assert command_line(made[0], Path("/env/bin/lighteval")) == [
        "/env/bin/lighteval",
        "accelerate",
        "model.yaml",
        "math_500@n=2|0,gsm8k|0",
        "--output-dir",
        "out",
        "--save-details",
    ]
    assert made[1].parameters["generation_parameters"] == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,  # all
        "max_new_tokens": 1000,
        "seed": 1,
    }


def test_one_answer_a_question_needs_no_number_of_samples() -> None:
    write_model(Path("m"))
    (request,) = requests(Path("e"), ours({"math500": [1]}, n=1, temperature=0.0), knobs(), LightevalKnobs())
    assert request.spec == "math_500|0"
    assert not request.sampled


def test_transformers_get_what_the_model_was_evaluated_with() -> None:
    write_model(Path("m"))
    results = ours({"math500": [1]}, max_context=2048, limit=20)
    (request,) = requests(Path("e"), results, knobs("trust_remote_code=true"), LightevalKnobs(batch_size=4))
    parameters = dict(request.parameters)
    del parameters["generation_parameters"]
    assert parameters == {
        "model_name": "model",  # relative: with an absolute path lighteval writes its cache into the model's folder
        "cache_dir": "cache",
        "dtype": "float32",
        "trust_remote_code": True,
        "device": "cpu",
        "max_length": 2048,
        "batch_size": 4,
    }
    assert command_line(request, Path("x"))[-2:] == ["--max-samples", "20"]


def test_vllm_gets_the_engine_s_settings_and_the_context() -> None:
    write_model(Path("m"))
    results = ours({"math500": [1]}, backend="vllm")
    engine = ("engine.tensor_parallel=2", "engine.data_parallel=4", "engine.memory=0.8", "seed=7")
    (request,) = requests(Path("e"), results, knobs(*engine), LightevalKnobs())
    assert command_line(request, Path("x"))[1] == "vllm"
    wanted = {"tensor_parallel_size": 2, "data_parallel_size": 4, "gpu_memory_utilization": 0.8, "seed": 7}
    assert wanted.items() <= request.parameters.items()
    assert request.parameters["max_model_length"] == 4096
    (request,) = requests(Path("e"), results, knobs(), LightevalKnobs(backend="transformers"))
    assert (command_line(request, Path("x"))[1], request.parameters["device"]) == ("accelerate", "cuda")


def test_answers_are_shortened_rather_than_its_prompts() -> None:
    write_model(Path("m"))
    (request,) = requests(Path("e"), ours({"math500": [1]}, max_new_tokens=4096), knobs(), LightevalKnobs())
    assert (
        request.parameters["generation_parameters"]["max_new_tokens"] == 4096 - 50 - 256
    )  # our longest prompt, and spare
    assert request.lowered == 4096
    with pytest.raises(ConfigError, match="math500: a context of 300 tokens leaves nothing to answers"):
        requests(Path("e"), ours({"math500": [1]}, max_context=300), knobs(), LightevalKnobs())


def test_a_model_is_linked_with_a_generation_config_of_its_own() -> None:
    source = write_model(Path("m"))
    link_model(source, Path("view"), sampling=True)
    assert sorted(file.name for file in Path("view").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert Path("view/model.safetensors").resolve() == (source / "model.safetensors").resolve()
    written = json.loads(Path("view/generation_config.json").read_text())
    assert written == {"eos_token_id": [3, 4], "pad_token_id": 0, "do_sample": True}
    assert "repetition_penalty" in (source / "generation_config.json").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["task=arithmetic"], "lighteval has nothing that compares with task 'arithmetic'.*Choices: aime24"),
        (["suite=pace"], "lighteval has few of a suite's tasks: give task="),
        (["task=gsm8k", "backend=openai", "base_url=http://x"], "lighteval runs the model itself"),
    ],
)
def test_what_it_cannot_be_asked_is_told(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_asked(read_settings(["model=m", *args]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "vlm"}, "Unknown lighteval.backend 'vlm'; did you mean vllm"),
        ({"batch_size": 0}, "lighteval.batch_size must be at least 1, got 0"),
    ],
)
def test_a_knob_of_the_wrong_value_is_told(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        LightevalKnobs(**given)


# where it is


def environment(versions: Mapping[str, str], script: str = "") -> Path:
    """An environment's bin/ whose python says these versions, and whose lighteval is `script`."""
    folder = Path("env/bin")
    folder.mkdir(parents=True)
    for name, text in (
        ("python", f"#!/bin/sh\necho '{json.dumps(versions)}'\n"),
        ("lighteval", script or "#!/bin/sh\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "lighteval"


def test_without_lighteval_it_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"no command 'lighteval'.*pip install 'lighteval>=0.13,<0.14'.*With a GPU"):
        find("lighteval")


def test_what_is_installed_beside_it_is_asked_of_its_own_python() -> None:
    found = find(str(environment({"lighteval": "0.13.1"})))
    assert found == Installed(Path("env/bin/lighteval").absolute(), {"lighteval": "0.13.1"})
    Path("env/bin/python").unlink()
    with pytest.raises(ConfigError, match="stands in no environment that can be looked at"):
        find("env/bin/lighteval")


@pytest.mark.parametrize(
    ("versions", "backend", "message"),
    [
        (
            {"lighteval": "0.10.0"},
            "transformers",
            "is lighteval 0.10.0; its options and results are known for 0.13 alone",
        ),
        ({"lighteval": "0.14.0"}, "transformers", "is lighteval 0.14.0"),
        (
            {"huggingface_hub": "2.4.0"},
            "transformers",
            r"huggingface_hub 2.4.0 beside it: .*install 'huggingface_hub<2'",
        ),
        ({"xxhash": "4.1.0"}, "transformers", "does not work with xxhash 4.1.0"),
        ({}, "vllm", r"there is no vllm beside .*lighteval.backend=transformers"),
    ],
)
def test_an_environment_in_which_it_would_fail_is_refused(versions, backend, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_versions(Installed(Path("/env/bin/lighteval"), {**VERSIONS, **versions}), backend)


def test_the_environment_that_it_was_tried_in_is_taken() -> None:
    check_versions(Installed(Path("x"), VERSIONS), "transformers")
    check_versions(Installed(Path("x"), {**VERSIONS, "vllm": "0.10.1.1"}), "vllm")


def test_a_model_that_an_older_transformers_would_misread_is_refused() -> None:
    model = write_model(Path("m"))
    old = Installed(Path("/env/bin/lighteval"), {**VERSIONS, "transformers": "4.57.6"})
    with pytest.raises(
        ConfigError, match="was written by transformers 5, and beside lighteval is 4.57.6.*install 'trans"
    ):
        check_model(old, "transformers", model)
    with pytest.raises(ConfigError, match="rotary embedding.*lighteval.backend=transformers"):
        check_model(old, "vllm", model)
    check_model(Installed(Path("x"), VERSIONS), "transformers", model)
    check_model(old, "vllm", write_model(Path("older"), transformers_version="4.40.0"))


# what it wrote


def test_its_results_and_the_score_of_every_question_are_read() -> None:
    file = write_theirs(Path("x"), "math_500", "pass@k:k=1&n=1", [("one", 1.0), ("two", 0.5)])
    found = read_theirs(results_file(Path("x")), ["math500"])["math500"]
    assert found == Theirs(0.75, pytest.approx(0.25), [("one", 1.0), ("two", 0.5)])
    assert results_file(Path("x")) == results_file(file) == file


def test_without_its_details_there_is_the_total() -> None:
    file = write_theirs(Path("x"), "gsm8k", "extractive_match", [("one", 1.0), ("two", 0.0)], details=False)
    assert read_theirs(file, ["gsm8k"])["gsm8k"] == Theirs(0.5, pytest.approx(0.5), [])


def test_of_several_results_the_newest_counts() -> None:
    file = write_theirs(Path("x"), "gsm8k", "extractive_match", [("one", 1.0)])
    newer = file.with_name("results_2026-11-21T00-00-00.000000.json")
    newer.write_text(file.read_text())
    assert results_file(Path("x")) == newer


def test_what_is_no_result_of_its_is_told() -> None:
    Path("none").mkdir()
    with pytest.raises(ConfigError, match=r"there is no results_\*.json of lighteval in none"):
        results_file(Path("none"))
    Path("x.json").write_text("{}")
    with pytest.raises(ConfigError, match="x.json is no results file of lighteval 0.13"):
        read_theirs(Path("x.json"), ["gsm8k"])
    file = write_theirs(Path("x"), "math_500", "pass@k:k=1&n=1", [("one", 1.0)])
    with pytest.raises(ConfigError, match=r"has no gsm8k; it has math_500\|0"):
        read_theirs(file, ["gsm8k"])
    file = write_theirs(Path("x"), "gsm8k", "bleu", [("one", 1.0)])
    with pytest.raises(ConfigError, match=r"gsm8k\|0 has no extractive_match; it has bleu"):
        read_theirs(file, ["gsm8k"])


# beside each other


def asked(*texts: str) -> list[Question]:
    return [Question(f"q/{place}", text, "4") for place, text in enumerate(texts)]


def test_problems_are_matched_by_their_text() -> None:
    theirs = [(PROMPT.format("What  is\n2+2?"), 1.0), (PROMPT.format("What is 3+3?"), 0.0)]
    assert matched(asked("What is 3+3?", "What is 2+2?"), theirs) == {"q/0": 0.0, "q/1": 1.0}


def test_a_question_that_stands_in_two_of_theirs_is_not_matched() -> None:
    theirs = [(PROMPT.format("What is 2+2?"), 1.0), (PROMPT.format("What is 2+2? Explain."), 0.0)]
    assert matched(asked("What is 2+2?", "What is 2+2? Explain."), theirs) == {"q/1": 0.0}
    assert matched(asked("is 2+2", "What is"), theirs[:1]) == {}  # both in one of theirs


def compared(shares: Sequence[float], theirs: Theirs, texts: Sequence[str] = ()) -> Any:
    problems = Problems(np.array([f"q/{p}" for p in range(len(shares))]), np.array(shares), np.ones(len(shares)))
    accuracy = {"estimate": float(np.mean(shares)), "low": 0.0, "high": 1.0, "level": 0.95}
    return beside("gsm8k", {"accuracy": accuracy}, problems, theirs, asked(*texts), ["as ever"])


def test_the_difference_is_paired_where_all_problems_are_matched() -> None:
    texts = ["one?", "two?", "three?", "four?"]
    theirs = Theirs(0.5, 0.29, [(f"Q: {text}", score) for text, score in zip(texts, (1, 0, 0, 1), strict=True)])
    found = compared([1, 0, 1, 1], theirs, texts)
    assert found.paired
    # gaps 0 0 1 0: mean .25, deviation .5, and t of 3 degrees 3.18245: .25 +- 3.18245 * .5 / 2
    interval = found.difference
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.25, -0.5456, 1.0456), abs=1e-4)
    assert found.notes == ["as ever"]


def test_else_it_is_that_of_two_samples() -> None:
    texts = ["one?", "two?", "three?", "four?"]
    theirs = Theirs(0.5, 0.2, [("Q: one?", 1.0), ("Q: other", 0.0)])
    found = compared([1, 0, 1, 1], theirs, texts)
    assert not found.paired
    # standard errors .5 / 2 and .2: .25 +- 1.95996 * sqrt(.0625 + .04)
    interval = found.difference
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.25, -0.3775, 0.8775), abs=1e-4)
    assert "4 problems here, 2 there" in found.notes
    assert any("1 of 4 problems could be matched" in note for note in found.notes)


def test_without_an_error_there_is_no_interval() -> None:
    found = compared([1, 0], Theirs(0.5, None, []))
    assert found.difference is None
    assert any("details are not beside its results" in note for note in found.notes)


# the whole


SCRIPT = """\
#!{python}
import json, os, shutil, sys
assert sys.argv[1:3] == ["accelerate", "model.yaml"], sys.argv
assert os.path.isfile("model/config.json") and "PYTHONPATH" not in os.environ
open("{log}", "a").write(" ".join(sys.argv[3:]) + "\\n")
shutil.copytree("{made}", ".", dirs_exist_ok=True)
"""


@pytest.fixture
def evaluated(here: Path) -> dict[str, Any]:
    """An evaluation of two problems, one of them solved, and the questions it was asked."""
    write_model(Path("m"))
    texts = ["What is 2+2?", "What is 1+3?"]
    write_questions(Path("data"), "math500", texts)
    results = ours({"math500": [2, 0]})
    from reasonrl.eval.tasks import load_questions, load_task

    sha = load_questions(load_task("math500"), data_dir=Path("data")).sha256
    results["tasks"]["math500"]["data_sha256"] = sha
    Path("e/results.json").write_text(json.dumps(results))
    write_theirs(Path("theirs"), "math_500", "pass@k:k=1&n=1", [(PROMPT.format(text), 1.0) for text in texts])
    return results


def checked(given: LightevalKnobs, installed: Installed | None) -> str:
    console = Console(file=io.StringIO(), width=150, soft_wrap=True, markup=False)
    cross_check(Path("e"), knobs("data_dir=data"), given, installed, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_it_is_asked_once_and_stands_beside_ours(here, evaluated, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "of ours")
    script = SCRIPT.format(python=sys.executable, log=here / "calls", made=here / "theirs")
    installed = find(str(environment(VERSIONS, script)))
    text = checked(LightevalKnobs(), installed)
    assert "lighteval math_500@n=2|0 ..." in text
    place = Path("e/lighteval/math500")
    assert yaml.safe_load((place / "model.yaml").read_text())["model_parameters"]["model_name"] == "model"
    table = Path("e/lighteval/lighteval.md").read_text()
    assert "| math500 | 2 | 50.0% (9.5–90.5) | 100.0% | -50.0 (" in table  # Agresti and Coull of 1 in 2
    assert "| paired |" in table
    assert "- math500: its prompt wants a last line 'ANSWER: ..'" in table

    assert "lighteval has answered math_500@n=2|0 already" in checked(LightevalKnobs(), installed)
    assert Path("calls").read_text().splitlines() == ["math_500@n=2|0 --output-dir out --save-details"]
    (place / "request.json").write_text("{}")  # as of another model or other settings
    checked(LightevalKnobs(), installed)
    assert len(Path("calls").read_text().splitlines()) == 2


def test_results_that_are_there_need_no_lighteval(evaluated) -> None:
    text = checked(LightevalKnobs(results="theirs"), None)
    assert "lighteval's results of model, from theirs/out/results" in text
    assert "100.0%" in text


def test_other_questions_than_ours_are_not_paired(evaluated) -> None:
    write_questions(Path("other"), "math500", ["What is 2+2?", "What is 5+5?"])
    console = Console(file=io.StringIO(), width=150)
    cross_check(Path("e"), knobs("data_dir=other"), LightevalKnobs(results="theirs"), None, console)
    assert "| unpaired |" in Path("e/lighteval/lighteval.md").read_text()


def test_its_failure_is_told_with_its_last_word(evaluated) -> None:
    script = (
        "#!/bin/sh\necho '│ ❱ 87 │ line │'\necho \"ConnectionError: Couldn't reach 'openai/gsm8k'\"\necho bye\nexit 3\n"
    )
    installed = find(str(environment(VERSIONS, script)))
    with pytest.raises(
        RunFailed, match="exit code 3: ConnectionError: Couldn't reach 'openai/gsm8k' .*log.txt.*hf auth login"
    ):
        checked(LightevalKnobs(), installed)
    assert not Path("e/lighteval/math500/request.json").exists()


def test_a_log_without_an_error_ends_with_its_last_line() -> None:
    Path("log").write_text("one\n│ two │\n\n")
    assert last_words(Path("log")) == "two"
    Path("log").write_text("")
    assert last_words(Path("log")) == "it said nothing"


# the command


def test_mistakes_are_told_before_anything_is_evaluated(capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["eval", "lighteval", "model=tiny", "task=gsm8k"]) == 2
    assert "lighteval is not installed" in capsys.readouterr().err
    assert cli.main(["eval", "lighteval", "model=tiny", "task=gsm8k", "lighteval.comand=x"]) == 2
    assert "did you mean command" in capsys.readouterr().err
    assert cli.main(["eval", "lighteval", "model=tiny", "task=gsm8k", "lighteval.results=nowhere"]) == 2
    assert "there is no results_*.json" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_help_names_the_tasks_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from reasonrl import cli; cli.main(['eval', 'lighteval', '--help'])\n"
        "heavy = {'torch', 'transformers', 'vllm', 'pyarrow', 'ray', 'verl'} & set(sys.modules); print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == "[]"
    assert all(task in done.stdout for task in COUNTERPARTS)
    assert "lighteval>=0.13,<0.14" in done.stdout
