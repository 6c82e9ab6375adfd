"""Problems whose answer is a program: MBPP, HumanEval, and functions made on the fly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.data import functions
from reasonrl.data.items import DataError, Dropped, Item, step_text
from reasonrl.data.prepare import build
from reasonrl.data.programs import solution_in
from reasonrl.data.sources import data_from_config, items
from reasonrl.verify.judge.jobs import extract_code

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
HEAD = 'def half(x):\n    """Half."""\n'


def config(name: str, **fields: Any) -> Any:
    return data_from_config({**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **fields})


def mbpp_rows() -> list[dict[str, Any]]:
    code = "def f(x):\r\n\treturn x"
    fields = {
        "code": code,
        "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    return [{"task_id": k, "text": f"Return x, {k}.", **fields} for k in (1, 10, 11, 510, 511, 600, 601, 602, 974)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def numbers(found: Any) -> list[int]:
    return [int(item.id.partition("/")[2]) for item in found]


@pytest.mark.parametrize("given", ["mbpp.jsonl", "", "mbpp.jsonl.gz"])
def test_one_file_holds_all_splits_of_mbpp_as_the_paper_cuts_them(tmp_path: Path, given: str) -> None:
    write(tmp_path / "m" / (given or "mbpp.jsonl"), mbpp_rows())
    of = config("mbpp", path=str(tmp_path / "m" / given))
    found = {split: numbers(items(of, split)) for split in ("prompt", "test", "validation", "train")}
    assert found == {"prompt": [1, 10], "test": [11, 510], "validation": [511, 600], "train": [601, 602, 974]}
    with pytest.raises(DataError, match="has no split 'dev'; there are prompt, test, validation, train"):
        list(items(of, "dev"))
    reports = build(of, tmp_path / "out")
    assert {split: report.rows for split, report in reports.items()} == {"train": 3, "val": 2}


def test_a_row_of_mbpp_shows_its_asserts_and_brings_its_solution(tmp_path: Path) -> None:
    rows = mbpp_rows()[-3:]
    rows[1] |= {"test_list": []}
    rows[2] |= {"text": " ", "test_setup_code": "y = 1"}
    found = list(items(config("mbpp", path=str(write(tmp_path / "mbpp.jsonl", rows))), "train"))
    question = (
        "Return x, 601.\n\nThe solution must pass these tests:\n\n```python\nassert f(1) == 1\nassert f(2) == 2\n```"
    )
    gold = json.dumps({"kind": "mbpp", "setup": "", "tests": rows[0]["test_list"]})
    steps = ("```python\ndef f(x):\n", "\treturn x\n", "```")
    assert found == [
        Item(question, gold, steps, "mbpp", "mbpp/601"),
        Dropped("no tests", "mbpp.jsonl:2"),
        Dropped("no question", "mbpp.jsonl:3"),
    ]


def test_half_of_humaneval_may_be_trained_on(tmp_path: Path) -> None:
    rows = [
        {
            "task_id": f"HumanEval/{k}",
            "prompt": HEAD.replace("Half", f"Half {k}"),
            "canonical_solution": "    return x / 2\n",
            "test": "def check(f):\n    pass\n",
            "entry_point": "half",
        }
        for k in range(164)
    ]
    file = write(tmp_path / "HumanEval.jsonl.gz", rows)
    half = config("humaneval", path=str(tmp_path), train_split="test", val_split=None, val_size=82)
    reports = build(half, tmp_path / "out")
    assert {split: report.rows for split, report in reports.items()} == {"train": 82, "val": 82}
    item = next(iter(items(config("humaneval", path=str(file)), "test")))
    assert item.question.startswith("Complete this Python function.\n\n```python\ndef half(x):")
    assert json.loads(item.answer)["entry_point"] == "half"
    assert extract_code("".join(map(step_text, item.steps))) == rows[0]["prompt"] + "    return x / 2\n"


def test_another_file_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "mbpp.jsonl", [{"question": "a", "answer": "1"}])
    with pytest.raises(
        DataError, match=r"mbpp.jsonl:1: no column task_id for source=mbpp; the columns are question, answer"
    ):
        list(items(config("mbpp", path=str(file)), "train"))
    with pytest.raises(DataError, match="no column task_id for source=humaneval"):
        list(items(config("humaneval", path=str(file)), "test"))
    with pytest.raises(DataError, match="no file or folder"):
        list(items(config("mbpp", path=str(tmp_path / "none")), "train"))


@pytest.mark.parametrize(
    "code", ["x = 1", "def f(x):\n\n    return 1 << x >> 2\n\n\nprint(f(1))  # #### 5\n", "a\r\nb\rc"]
)
def test_a_solution_in_steps_is_still_the_program(code: str) -> None:
    steps = solution_in(code, None)
    assert (
        extract_code("".join(map(step_text, steps)))
        == code.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"
    )
    assert solution_in(code, "none") == ()
    assert solution_in("\n", None) == ()


# functions


def passes(item: Item, program: str) -> bool:
    space: dict[str, Any] = {}
    exec(program, space)
    for test in json.loads(item.answer)["tests"]:
        try:
            exec(test, space)
        except AssertionError:
            return False
    return True


def test_every_solution_passes_its_tests_and_that_of_another_question_does_not() -> None:
    made = list(functions.items("train", 120, 0))
    programs = [extract_code("".join(map(step_text, item.steps))) for item in made]
    assert all(passes(item, program) for item, program in zip(made, programs, strict=True))
    assert not any(passes(item, program) for item, program in zip(made, [*programs[1:], programs[0]], strict=True))
    assert {item.level for item in made} == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), size=st.integers(1, 200), low=st.integers(1, 6), high=st.integers(1, 6))
def test_no_question_comes_twice_or_in_two_splits(seed: int, size: int, low: int, high: int) -> None:
    levels = {"min_level": min(low, high), "max_level": max(low, high)}
    train = [item.question for item in functions.items("train", size, seed, **levels)]
    held_out = [item.question for item in functions.items("validation", size, seed + 1, **levels)]
    assert len(set(train)) == len(train) == size
    assert not set(train) & set(held_out)
    assert train == [item.question for item in functions.items("train", size, seed, **levels)]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"min_level": 3, "max_level": 2}, "need 1 <= min_level <= max_level <= 6, got 3 and 2"),
        ({"max_level": 7}, "<= 6, got 1 and 7"),
        ({"min_level": 1.5}, "data.min_level must be a whole number, got 1.5"),
        ({"max_level": 1, "size": 6001}, "has at most 6000 train questions with these levels, but 6001"),
    ],
)
def test_functions_that_do_not_exist_are_refused(fields: dict[str, Any], match: str) -> None:
    of = config("functions", **fields)
    with pytest.raises(DataError, match=match):
        list(items(of, "train", of.size))


def test_levels_are_chosen_before_the_size(tmp_path: Path) -> None:
    of = config("functions", size=50, val_size=20, min_level=2, max_level=3)
    assert {split: report.rows for split, report in build(of, tmp_path).items()} == {"train": 50, "val": 20}
    assert {item.level for item in items(of, "train", 50)} == {2.0, 3.0}


def test_the_smallest_levels_have_as_many_questions_as_is_said() -> None:
    for split, most in functions.MOST.items():
        assert len(list(functions.items(split, most, 0, min_level=1, max_level=1))) == most
