"""Preparing data: verl's schema, stable ids and hashes, counted drops, splits that never overlap, atomic files."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_builders import write_jsonl

from reasonrl.data.items import DataError, Dropped, Item
from reasonrl.data.prepare import SCHEMA, build, prepare, problem_id


def made(n: int, **changes: Any) -> list[Item]:
    return [Item(f"what is {i}?", str(i), source="s", **changes) for i in range(n)]


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def qa_file(path: Path, n: int, start: int = 0) -> Path:
    return write_jsonl(path, [{"question": f"q{i}", "answer": str(i)} for i in range(start, start + n)])


def jsonl(**settings: Any) -> dict[str, Any]:
    return {"name": "own", "source": "jsonl", **settings}


def ids(path: Path) -> list[str]:
    return [row["extra_info"]["id"] for row in rows(path)]


# -- prepare ---------------------------------------------------------------------------------------------------------


def test_a_row_is_in_verls_schema(tmp_path: Path) -> None:
    item = Item("2+2?", "4", ("2+2=4",), "sums", "sums/7", 3.0)
    report = prepare([item], tmp_path / "train.parquet", split="train")
    assert (report.rows, report.with_steps, report.dropped, report.path) == (1, 1, {}, tmp_path / "train.parquet")
    table = pq.read_table(report.path)
    assert table.schema.equals(SCHEMA, check_metadata=False)
    assert table.to_pylist() == [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": "2+2?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {
                "split": "train",
                "index": 0,
                "id": "sums/7",
                "question": "2+2?",
                "steps": ["2+2=4"],
                "level": 3.0,
            },
        }
    ]


def test_the_file_names_its_schema_and_the_hash_of_its_rows(tmp_path: Path) -> None:
    report = prepare(made(3), tmp_path / "a.parquet", split="train")
    metadata = pq.read_schema(report.path).metadata
    assert metadata[b"reasonrl.schema"] == b"1"
    assert metadata[b"reasonrl.sha256"].decode() == report.sha256
    assert report.sha256 == prepare(made(3), tmp_path / "b.parquet", split="train").sha256
    assert report.sha256 != prepare(made(4), tmp_path / "c.parquet", split="train").sha256
    assert report.sha256 != prepare(made(3, level=1.0), tmp_path / "d.parquet", split="train").sha256


def test_ids_come_from_the_content_and_are_pinned() -> None:
    assert problem_id(Item("q", "a", source="s", id="mine")) == "mine"
    assert problem_id(Item("q", "a", source="s")) == "s/abb9553debf40f9d"  # changing it orphans what runs remember
    different = [Item("q", "a"), Item("q2", "a"), Item("q", "a2"), Item("q", "a", source="t")]
    assert len({problem_id(item) for item in different}) == 4
    assert problem_id(Item("q", "a", ("steps",), "s", None, 5.0)) == problem_id(Item("q", "a", source="s"))


def test_every_dropped_row_is_counted_with_its_reason(tmp_path: Path) -> None:
    stream = [
        *made(2),
        Item("what  is\n1?", "1", source="s"),  # the same question, spaced differently
        Item("new", "1", source="s", id="x"),
        Item("newer", "2", source="s", id="x"),
        Item("  ", "1"),
        Item("q", " "),
        Item("bad \ud800", "1"),
        *[Dropped("no answer", f"f:{i}") for i in range(5)],
    ]
    report = prepare(stream, tmp_path / "t.parquet", split="train")
    assert report.rows == 3
    assert report.dropped == {
        "duplicate question": 1,
        "duplicate id": 1,
        "no question": 1,
        "no answer": 6,
        "not valid Unicode": 1,
    }
    assert [example for example in report.examples if example.startswith("no answer")] == [
        "no answer: item 6",
        "no answer: f:0",
        "no answer: f:1",
    ]
    assert [row["extra_info"]["index"] for row in rows(report.path)] == [0, 1, 2]


def test_the_step_with_the_answer_is_always_the_last_one(tmp_path: Path) -> None:
    item = Item("q", "1", ("a ", r"so \boxed{1}. ", "Done."))
    report = prepare([item], tmp_path / "t.parquet", split="train")
    assert rows(report.path)[0]["extra_info"]["steps"] == ["a ", r"so \boxed{1}. Done."]


def test_a_trace_with_a_wrong_answer_goes_and_its_problem_stays(tmp_path: Path) -> None:
    good, open_, bad = ("1+1=2", "#### 2"), ("1+1=2",), ("1+1=3 ", "so \\boxed{3}.")
    items = [Item(f"1+1? {i}", "2", steps, "s", f"s/{i}") for i, steps in enumerate([good, bad, open_, (), *[bad] * 4])]
    report = prepare(items, tmp_path / "t.parquet", split="train")
    assert (report.rows, report.with_steps, report.traces_dropped, report.dropped) == (8, 2, 5, {})
    assert report.trace_examples == tuple(f"s/{i}: '3' instead of '2'" for i in (1, 4, 5))
    kept = [row["extra_info"]["steps"] for row in rows(report.path)]
    assert kept == [["1+1=2", "#### 2"], [], ["1+1=2"], [], [], [], [], []]
    without = [replace(item, steps=()) if item.steps == bad else item for item in items]
    again = prepare(without, tmp_path / "u.parquet", split="train")
    assert (again.sha256, again.traces_dropped, again.trace_examples) == (report.sha256, 0, ())


def test_nothing_left_is_an_error_that_says_what_was_dropped(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="no train problem is left .*2 x no answer .*f:1"):
        prepare([Dropped("no answer", "f:1"), Dropped("no answer", "f:2")], out, split="train")
    with pytest.raises(DataError, match="the source is empty"):
        prepare([], out, split="train")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "t.parquet"
    prepare(made(2), out, split="train")
    before = out.read_bytes()

    def full(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DataError, match=r"cannot write .*t\.parquet: No space left"):
        prepare(made(3), out, split="train")
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.parquet"]


# -- build -----------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_train_and_val(tmp_path: Path) -> None:
    qa_file(tmp_path / "in" / "train.jsonl", 10)
    qa_file(tmp_path / "in" / "test.jsonl", 4, start=8)
    reports = build(jsonl(path=str(tmp_path / "in")), tmp_path / "out")
    assert (reports["train"].rows, reports["val"].rows) == (8, 4)
    assert reports["train"].dropped == {"also a validation question": 2}
    assert not set(ids(reports["train"].path)) & set(ids(reports["val"].path))
    assert sorted(os.listdir(tmp_path / "out")) == ["train.parquet", "val.parquet"]
    assert {row["extra_info"]["split"] for row in rows(tmp_path / "out" / "val.parquet")} == {"val"}


def test_problems_are_held_out_when_there_is_no_validation_split(tmp_path: Path) -> None:
    path = str(qa_file(tmp_path / "all.jsonl", 20))
    reports = build(jsonl(path=path, val_split=None, val_size=5), tmp_path / "out")
    train, val = (ids(reports[split].path) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 5)
    assert len(set(train) | set(val)) == 20
    smaller = build(jsonl(path=path, val_split=None, val_size=5, size=6), tmp_path / "out2")
    assert set(ids(smaller["val"].path)) == set(val)  # the training size does not move the validation set
    assert set(ids(smaller["train"].path)) < set(train)


def test_a_subsample_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    train = str(qa_file(tmp_path / "train.jsonl", 50))
    val = str(qa_file(tmp_path / "val.jsonl", 5, start=100))

    def answers(**settings: Any) -> list[int]:
        reports = build(jsonl(path=train, val_path=val, **settings), tmp_path / "out")
        return [int(row["reward_model"]["ground_truth"]) for row in rows(reports["train"].path)]

    ten = answers(size=10)
    assert len(ten) == 10
    assert ten == sorted(ten)
    assert ten == answers(size=10)
    assert ten != answers(size=10, seed=1)
    assert set(ten) < set(answers(size=20))  # more only adds
    assert len(answers(size=500)) == 50


def test_levels_select_problems_and_count_the_rest(tmp_path: Path) -> None:
    levelled = [{"question": f"q{i}", "answer": "1", "level": i} for i in range(6)]
    train = write_jsonl(tmp_path / "train.jsonl", [*levelled, {"question": "none", "answer": "1"}])
    val = write_jsonl(tmp_path / "val.jsonl", [{"question": "v", "answer": "1", "level": 3}])
    reports = build(jsonl(path=str(train), val_path=str(val), min_level=2, max_level=4.0), tmp_path / "out")
    assert [row["extra_info"]["level"] for row in rows(reports["train"].path)] == [2.0, 3.0, 4.0]
    assert reports["train"].dropped == {"level outside min_level..max_level": 3, "no level": 1}


def test_arithmetic_needs_no_file(tmp_path: Path) -> None:
    cfg = {"name": "arithmetic", "source": "arithmetic", "size": 40, "val_size": 8, "seed": 0, "digits": 1}
    reports = build(cfg, tmp_path)
    assert (reports["train"].rows, reports["val"].rows, reports["train"].with_steps) == (40, 8, 40)
    assert build(cfg, tmp_path / "again")["train"].sha256 == reports["train"].sha256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is one file, and training and validation must not share it"),
        ({"val_split": None}, "say how many training problems to hold out with val_size="),
        ({"val_split": None, "val_size": 5}, "val_size=5 leaves no training problem: own has 5"),
        ({"val_path": "/nowhere.jsonl"}, "no file or folder /nowhere.jsonl"),
        ({"val_split": None, "val_size": 1, "min_level": 1}, "no train|val_size=1 leaves no training problem"),
    ],
)
def test_splits_that_cannot_be_made_are_errors(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = qa_file(tmp_path / "all.jsonl", 5)
    with pytest.raises(DataError, match=message):
        build(jsonl(path=str(path), **settings), tmp_path / "out")


# -- ready files -----------------------------------------------------------------------------------------------------


def test_ready_files_are_checked_and_taken_unchanged(tmp_path: Path) -> None:
    first = prepare(made(4), tmp_path / "in" / "train.parquet", split="train")
    prepare(made(2), tmp_path / "in" / "val.parquet", split="val")
    ready = {"name": "verl", "source": "verl", "val_split": "validation"}
    for paths in ({"path": "in"}, {"path": "in/train.parquet", "val_path": "in/val.parquet"}):
        absolute = {key: str(tmp_path / value) for key, value in paths.items()}
        reports = build({**ready, **absolute}, tmp_path / "out")
        assert (reports["train"].rows, reports["val"].rows) == (4, 2)
        assert reports["train"].sha256 == first.sha256
        assert (tmp_path / "out" / "train.parquet").read_bytes() == first.path.read_bytes()


def test_ready_files_that_are_not_ready_are_refused(tmp_path: Path) -> None:
    good = prepare(made(4), tmp_path / "good.parquet", split="train").path
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), bad)
    ready = {"name": "verl", "source": "verl"}
    with pytest.raises(DataError, match=r"bad\.parquet lacks prompt, reward_model; its columns are text"):
        build({**ready, "path": str(bad), "val_path": str(good)}, tmp_path / "out")
    with pytest.raises(DataError, match=r"name the validation file as val_path="):
        build({**ready, "path": str(good)}, tmp_path / "out")
    with pytest.raises(DataError, match=r"source=verl needs files"):
        build(ready, tmp_path / "out")


def ready_file(path: Path, extras: list[dict[str, Any]]) -> Path:
    table = [
        {
            "data_source": f"set {i}",
            "prompt": [{"role": "user", "content": f"q{i}"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": extra,
            "note": i,
        }
        for i, extra in enumerate(extras)
    ]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table).replace_schema_metadata({"made": "elsewhere"}), path)
    return path


def test_ready_files_keep_all_but_their_steps_when_these_are_cut(tmp_path: Path) -> None:
    extras = [
        {"solution": "1. a\nb\n2. \\boxed{0}\n3. Done.\n", "stored_prefix": ["x"]},
        {"solution": "so \\boxed{7}", "stored_prefix": []},
        {"solution": None, "stored_prefix": None},
    ]
    path = str(ready_file(tmp_path / "in.parquet", extras))
    settings = {"name": "verl", "source": "verl", "path": path, "val_path": path}
    cut = {"steps_field": "extra_info.solution", "steps": "numbered"}
    report = build({**settings, **cut}, tmp_path / "out")["train"]
    assert (report.rows, report.with_steps, report.traces_dropped) == (3, 1, 1)
    assert report.trace_examples == ("in.parquet:1: '7' instead of '1'",)
    before, after = rows(Path(path)), rows(report.path)
    assert [row["extra_info"].pop("steps") for row in after] == [["1. a\nb\n", "2. \\boxed{0}\n3. Done.\n"], [], []]
    assert after == before
    metadata = pq.read_schema(report.path).metadata
    assert metadata[b"made"] == b"elsewhere"
    assert metadata[b"reasonrl.sha256"].decode() == report.sha256
    ours = {**settings, "path": str(report.path), "val_path": str(report.path)}
    again = build({**ours, "steps": "lines"}, tmp_path / "again")["train"]  # cut anew from what is stored
    assert rows(again.path)[0]["extra_info"]["steps"] == ["1. a", "b", "2. \\boxed{0}\n3. Done."]
    none = build({**ours, "steps": "none"}, tmp_path / "none")["train"]
    assert (none.with_steps, rows(none.path)[0]["extra_info"]["steps"]) == (0, [])


def test_ready_files_without_such_a_column_are_refused(tmp_path: Path) -> None:
    path = str(ready_file(tmp_path / "in.parquet", [{"solution": 3}]))
    settings = {"name": "verl", "source": "verl", "path": path, "val_path": path}
    with pytest.raises(DataError, match=r"in\.parquet:0: no steps column for source=verl \(looked for hints\)"):
        build({**settings, "steps_field": "hints"}, tmp_path / "out")
    with pytest.raises(DataError, match=r"in\.parquet:0: extra_info\.solution is neither a text nor a list of texts"):
        build({**settings, "steps_field": "extra_info.solution"}, tmp_path / "out")


def test_hostile_text_survives_the_round_trip(tmp_path: Path) -> None:
    questions = [
        "{question} \\boxed{}",
        "tab\tnew\nline",
        "漢字 ∑ 🙂",
        "\u0000 null",
        '"quotes" \'',
        "<answer>1</answer>",
    ]
    path = write_jsonl(tmp_path / "t.jsonl", [{"question": q, "answer": "1"} for q in questions])
    reports = build(jsonl(path=str(path), val_split=None, val_size=1), tmp_path / "out")
    read = [row["extra_info"]["question"] for split in reports for row in rows(reports[split].path)]
    assert sorted(read) == sorted(q.strip() for q in questions)
    assert json.dumps(read)
