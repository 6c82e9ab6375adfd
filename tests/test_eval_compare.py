"""`reasonrl eval compare`: folders made by hand, paired numbers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonrl.config import ConfigError
from reasonrl.eval.compare import CompareKnobs, compare, markdown, run
from reasonrl.functional.estimates import difference_interval, minimum_detectable_difference, ratio_interval

CLOSE = 1e-9
SETTINGS = {"n": 2, "temperature": 0.6, "prompt": "boxed", "verify": "math", "seed": 1}


def problem(right: int, n: int = 2, tokens: Sequence[int] = (10, 10), status: str = "ok") -> list[dict[str, Any]]:
    """The samples of one problem, `right` of them right."""
    return [{"correct": i < right, "tokens": tokens[i % len(tokens)], "status": status} for i in range(n)]


def evaluation(folder: Path, tasks: Mapping[str, Mapping[str, list[dict[str, Any]]]], **changed: Any) -> str:
    """A finished one; `changed` goes over what results.json says of every task, or of its settings."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("settings: {}\n")
    about = {"data_sha256": "d" * 64, "prompt_sha256": "p" * 64, "chat_template_sha256": None, "origin": "test.jsonl"}
    about |= {key: value for key, value in changed.items() if key not in SETTINGS}
    told = {**SETTINGS, **{key: value for key, value in changed.items() if key in SETTINGS}}
    backend = changed.pop("backend", {"name": "transformers"})
    results = {
        "schema": 1,
        "name": folder.name,
        "model": {"name": "tiny"},
        "backend": backend,
        "tasks": {task: {**about, "settings": told, "ungraded": 0} for task in tasks},
    }
    (folder / "results.json").write_text(json.dumps(results))
    rows = [
        {"task": task, "id": name, "number": i, **sample}
        for task, problems in tasks.items()
        for name, samples in problems.items()
        for i, sample in enumerate(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    return str(folder)


def verdicts(*right: int, **more: Any) -> dict[str, list[dict[str, Any]]]:
    return {f"q{i}": problem(r, **more) for i, r in enumerate(right)}


# numbers


def test_results_are_compared_problem_by_problem(tmp_path: Path) -> None:
    ours, theirs = (2, 2, 1, 0, 1, 2, 2, 1), (1, 2, 0, 1, 1, 0, 1, 1)
    a = evaluation(tmp_path / "a", {"t": verdicts(*theirs, tokens=(10, 20))})
    b = evaluation(tmp_path / "b", {"t": dict(reversed(verdicts(*ours, tokens=(30, 60)).items()))})  # in another order
    found = compare([a, b])
    task = found["tasks"]["t"]
    (row,) = task["others"]
    assert (found["baseline"], found["comparisons"], task["problems"]) == ("a", 1, 8)
    assert task["baseline"]["accuracy"]["estimate"] == pytest.approx(7 / 16, abs=CLOSE)
    assert row["accuracy"]["estimate"] == pytest.approx(11 / 16, abs=CLOSE)
    assert (row["gained"], row["lost"]) == (4, 1)
    shares = np.array(ours) / 2, np.array(theirs) / 2
    expected = difference_interval(*shares)
    assert row["difference"]["estimate"] == pytest.approx(0.25, abs=CLOSE)
    assert row["difference"]["low"] == pytest.approx(expected.low, abs=CLOSE)
    assert row["difference"]["high"] == pytest.approx(expected.high, abs=CLOSE)
    # gaps 1/2 x3, 1, -1/2 sum to 2; as far or further: 2 * (++++ any of the last, 3 flips of a half and others) / 32
    assert row["p_value"] == row["p_adjusted"] == pytest.approx(10 / 32, abs=CLOSE)
    assert (task["baseline"]["tokens"], row["tokens"]) == (15, 45)
    assert row["tokens_ratio"]["estimate"] == pytest.approx(3, abs=CLOSE)
    spread = float((shares[0] - shares[1]).std(ddof=1))
    assert row["minimum_detectable_difference"] == pytest.approx(minimum_detectable_difference(spread, 8), abs=CLOSE)


def test_the_first_is_the_baseline_of_all_and_several_p_values_are_adjusted(tmp_path: Path, capsys) -> None:
    right = {"a": [0] * 12, "b": [2] * 9 + [0] * 3, "c": [2] * 6 + [0] * 6}
    folders = [evaluation(tmp_path / name, {"t": verdicts(*each)}) for name, each in right.items()]
    found = compare(folders)
    b, c = found["tasks"]["t"]["others"]
    assert (b["p_value"], c["p_value"]) == (2 / 2**9, 2 / 2**6)
    assert (b["p_adjusted"], c["p_adjusted"]) == (4 / 2**9, 2 / 2**6)
    assert run(folders) == 0
    told = capsys.readouterr().out
    assert "p: adjusted for 2 comparisons (Holm)" in told
    assert run(folders[:2]) == 0
    assert "Holm" not in capsys.readouterr().out


def test_every_task_counts_as_a_comparison(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", {"s": verdicts(*[0] * 8), "t": verdicts(*[0] * 8), "only": verdicts(1, 2)})
    b = evaluation(tmp_path / "b", {"t": verdicts(*[2] * 8), "s": verdicts(*[2] * 8)})
    found = compare([a, b])
    assert list(found["tasks"]) == ["s", "t"]
    assert found["tasks"]["t"]["others"][0]["p_adjusted"] == 2 * 2 / 2**8
    assert any("not compared, because not all have them: only of a" in note for note in found["notes"])
    one = compare([a, b], CompareKnobs(task=("t",)))
    assert list(one["tasks"]) == ["t"]
    assert one["tasks"]["t"]["others"][0]["p_adjusted"] == 2 / 2**8
    assert not any("not compared" in note for note in one["notes"])


def test_tokens_leave_out_prompts_that_were_too_long(tmp_path: Path) -> None:
    many = {"x": problem(0, tokens=(100, 300)), "y": problem(0, tokens=(50,)), "z": problem(0, tokens=(40,))}
    gone = problem(0, tokens=(0,), status="prompt_too_long")
    a = evaluation(tmp_path / "a", {"t": many})
    b = evaluation(tmp_path / "b", {"t": {**many, "z": gone, "x": problem(1, tokens=(100,))}})
    (row,) = compare([a, b])["tasks"]["t"]["others"]
    assert row["tokens"] == 75  # of x and y
    expected = ratio_interval([100, 50], [200, 50])
    assert row["tokens_ratio"]["estimate"] == pytest.approx(0.6, abs=CLOSE)
    assert row["tokens_ratio"]["high"] == pytest.approx(expected.high, abs=CLOSE)


def test_equal_results_have_no_difference_and_no_detectable_one(tmp_path: Path, capsys) -> None:
    a, b = (evaluation(tmp_path / name, {"t": verdicts(1, 2, 0, tokens=(0,))}) for name in "ab")
    (row,) = compare([a, b])["tasks"]["t"]["others"]
    assert (row["difference"]["low"], row["difference"]["high"], row["p_value"]) == (0, 0, 1)
    assert row["minimum_detectable_difference"] is None
    assert row["tokens_ratio"] is None  # nobody wrote anything
    assert run([a, b]) == 0
    assert "–" in capsys.readouterr().out


def test_a_narrow_terminal_shows_every_number(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rng = np.random.default_rng(0)
    names = ("qwen2_5_0_5b_instruct-gsm8k", "deepcompress-qwen2_5_0_5b-gsm8k")
    folders = [
        evaluation(tmp_path / name, {"t": verdicts(*rng.integers(0, 3, 40), tokens=(12345, 9876))}) for name in names
    ]
    (row,) = compare(folders)["tasks"]["t"]["others"]
    assert run(folders) == 0
    told = capsys.readouterr().out
    gap = row["difference"]
    assert f"{100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}" in told
    assert f"{100 * row['accuracy']['low']:.1f}–{100 * row['accuracy']['high']:.1f}" in told
    assert "…" not in told


# what differs


def test_other_data_or_prompts_are_refused_unless_allowed(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", {"t": verdicts(1, 2, 0)})
    b = evaluation(
        tmp_path / "b", {"t": {**verdicts(2, 2), "new": problem(0)}}, data_sha256="e" * 64, origin="other.jsonl"
    )
    c = evaluation(tmp_path / "c", {"t": verdicts(1, 2, 0)}, prompt_sha256="q" * 64, prompt="r1")
    with pytest.raises(
        ConfigError,
        match=r"t: a and b differ in data \(d{8} and e{8}, from test.jsonl and other.jsonl\).*allow=data to",
    ):
        compare([a, b])
    with pytest.raises(
        ConfigError, match=r"t: a and c differ in prompt \(p{8} and q{8}, boxed and r1\).*allow=prompt to"
    ):
        compare([a, c])
    with pytest.raises(ConfigError, match="a and c differ in prompt .*allow=data,prompt to"):
        compare([a, b, c], CompareKnobs(allow=("data",)))
    found = compare([a, b, c], CompareKnobs(allow=("data", "prompt")))
    task = found["tasks"]["t"]
    assert task["problems"] == 2  # q0 and q1
    assert task["left_out"] == {"a": 1, "b": 1, "c": 1}
    assert task["others"][0]["difference"]["estimate"] == pytest.approx(0.25, abs=CLOSE)
    text = markdown(found)
    assert "- data of a and b differ: compared are the 2 problems whose ids all have (allow=data,prompt)" in text
    assert "- prompt of a and c differ" in text
    assert "- 1 problems of b are not in every evaluation and left out" in text


def test_other_settings_are_told_and_not_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", {"t": verdicts(1, 2, 0)})
    b = evaluation(
        tmp_path / "b", {"t": verdicts(1, 4, 0, n=4)}, n=4, temperature=1.0, seed=2, backend={"name": "vllm"}
    )
    found = compare([a, b])
    task = found["tasks"]["t"]
    assert task["notes"] == ["a and b differ in n 2 and 4, temperature 0.6 and 1.0"]
    assert any("backends differ (a: name transformers; b: name vllm)" in note for note in found["notes"])
    assert task["others"][0]["difference"]["estimate"] == pytest.approx((0.25 - 0.5) / 3, abs=CLOSE)
    c = evaluation(tmp_path / "c", {"t": verdicts(1, 2, 0)}, chat_template_sha256="c", ungraded=3)
    notes = compare([a, c])["tasks"]["t"]["notes"]
    assert notes[0] == "a and c have other chat templates"


def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "alpha", {"t": verdicts(1, 2, 0)})
    b = evaluation(tmp_path / "beta", {"u": verdicts(1, 2, 0)})
    half, other = tmp_path / "half", tmp_path / "other"
    half.mkdir()
    other.mkdir()
    (half / "config.yaml").write_text("")

    def refused(*folders: Any, match: str, **knobs: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            compare([str(folder) for folder in folders], CompareKnobs(**knobs))

    refused(a, match="needs two folders or more, got")
    refused(a, tmp_path / "." / "alpha", match="alpha is given twice")
    refused(a, tmp_path / "alpa", match="there is no folder .*alpa; did you mean alpha")
    refused(a, tmp_path / "no" / "where", match="there is no folder .*where$")
    refused(a, half, match=r"half is an evaluation that has not finished \(no results.json\): give the command")
    refused(a, other, match="other is not the folder of an evaluation")
    refused(a, b, match="no task in common .alpha: t; beta: u.")
    refused(a, b, match="beta has no task 't' Choices: u", task=("t",))
    (half / "results.json").write_text("{")
    refused(a, half, match="cannot read .*half/results.json")
    (half / "results.json").write_text('{"schema": 2, "tasks": {}}')
    refused(a, half, match=r"not a result that this version reads \(schema 1\)")
    (tmp_path / "beta" / "samples.parquet").unlink()
    refused(b, evaluation(tmp_path / "gamma", {"u": verdicts(1, 2)}), match="cannot read .*beta/samples.parquet")
    single = evaluation(tmp_path / "single", {"t": {"q0": problem(1)}})
    refused(a, single, match="t: 1 problems are in every evaluation, and a comparison needs 2 or more")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"allow": ("model",)}, "allow must be of data, prompt, got 'model'"),
        ({"level": 95.0}, r"level must lie in \(0, 1\), got 95"),
        ({"out": "table.txt"}, "out=table.txt: a comparison is written as .json or .md"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        CompareKnobs(**knobs)


# the command


def test_the_command_writes_what_it_is_asked_to_and_nothing_else(tmp_path: Path, capsys) -> None:
    a = evaluation(tmp_path / "lr=1" / "a", {"t": verdicts(1, 2, 0)})
    b = evaluation(tmp_path / "lr=2" / "a", {"t": verdicts(2, 2, 0)})
    before = sorted(tmp_path.rglob("*"))
    assert run([a, b]) == 0
    told = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "t: 3 problems" in told
    assert "lr=2/a" in told  # both are named a
    assert run([a, b, f"out={tmp_path}/new/c.json"]) == 0
    assert json.loads((tmp_path / "new" / "c.json").read_text()) == compare([a, b])
    assert run([a, b, f"out={tmp_path}/c.md"]) == 0
    lines = [line for line in (tmp_path / "c.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0] == "| result | accuracy | difference | p | gained | lost | tokens | tokens / first | detectable |"
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write .*file/c.md .*choose another out="):
        run([a, b, f"out={tmp_path}/file/c.md"])


def test_help_and_unknown_keys(tmp_path: Path, capsys) -> None:
    assert run(["--help"]) == run([]) == 0
    assert "reasonrl eval compare <folder> <folder>" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Unknown key 'alow' of reasonrl eval compare; did you mean allow"):
        run(["a", "b", "alow=data"])
