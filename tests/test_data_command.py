"""`reasonrl data`: what is typed, what is made, what is printed, and how it fails."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_builders import write_jsonl

from reasonrl.data.command import parse, run


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    for split, start, n in (("train", 0, 6), ("test", 5, 3)):
        rows = [{"question": f"q{i}", "answer": f"{i}+0 = <<{i}+0={i}>>{i}\n#### {i}"} for i in range(start, start + n)]
        write_jsonl(tmp_path / "raw" / f"{split}.jsonl", [*rows, {"question": "none", "answer": "no mark"}])
    return tmp_path / "raw"


def test_a_data_set_is_made_and_reported(gsm8k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([f"path={gsm8k}", "source=gsm8k", "name=mine", f"out={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "train: dropped 1 x also a validation question" in printed
    assert "val: dropped 1 x no '#### answer' line" in printed
    assert "no '#### answer' line: test.jsonl:4" in printed
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["data_source"] for row in table] == ["mine"] * 5
    assert pq.read_table(tmp_path / "out" / "val.parquet").num_rows == 3


def test_cut_solutions_and_wrong_traces_are_told_apart_from_dropped_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solved = [{"question": f"q{i}", "answer": i, "s": f"1. a\nb\n2. so \\boxed{{{min(i, 3)}}}"} for i in range(5)]
    path = write_jsonl(tmp_path / "own.jsonl", [*solved, {"question": "q"}])
    settings = ["source=jsonl", f"path={path}", "steps_field=s", "val_split=null", "val_size=1"]
    assert run([*settings, "steps=numbered", "seed=2", f"out={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "train: dropped 1 x no answer" in printed
    assert "train: left out 1 x trace with a wrong answer, the problems kept" in printed
    assert "'3' instead of '4'" in printed
    assert "val: left out" not in printed
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [len(row["extra_info"]["steps"]) for row in table] == [2, 2, 2, 0]
    assert run([*settings, "steps=none", f"out={tmp_path}/out"]) == 0
    assert "wrong answer" not in capsys.readouterr().out


def test_out_defaults_to_a_folder_of_the_name(gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["source=gsm8k", f"path={gsm8k}"]) == 0
    assert (tmp_path / "data" / "gsm8k" / "train.parquet").is_file()


def test_arguments_lie_over_the_sources_own_configuration() -> None:
    settings = parse(["source=deepmath103k", "val_size=7", "path=2024-01-01", "min_level=3.5", "val_split=null"])
    assert settings["hub"] == "zwhe99/DeepMath-103K"
    assert (settings["val_size"], settings["path"], settings["min_level"]) == (7, "2024-01-01", 3.5)
    assert settings["val_split"] is None
    assert parse(["source=reasoning_gym", "options.min_terms=3"])["options"] == {"min_terms": 3}
    assert parse(["source=jsonl", "path=null"])["path"] is None
    assert [parse(["source=jsonl", f"steps={how}"])["steps"] for how in ("none", "null")] == ["none", None]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gsm8k"], "expected key=value, got 'gsm8k'"),
        (["name=x"], "Give source="),
        (["source=gsmk"], "Did you mean 'gsm8k'"),
        (["source=gsm8k", "pat=x"], "'pat'. Did you mean 'path'"),
        (["source=gsm8k", "path=/nowhere"], "no file or folder /nowhere"),
        (["source=gsm8k", "size=many"], "data.size must be int or null"),
        (
            ["source=gsm8k", "steps=number"],
            "Unknown data.steps 'number'. Did you mean 'numbered'? Choices: auto, lines,",
        ),
        (["source=arithmetic", "size=[1"], "size=[1"),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*args, f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("reasonrl data: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["source=gsm8k", "--help"]])
def test_help_is_printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 0
    assert "verl's parquet schema" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from reasonrl.data.command import run; run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "pyarrow", "numpy", "rich", "transformers", "sympy"):
        assert f"'{heavy}'" not in done.stdout, heavy
