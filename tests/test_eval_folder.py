"""The folder of `reasonrl eval`: what a kill leaves, who may continue it, and what is written at the end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.config import ConfigError
from reasonrl.eval import folder as folders
from reasonrl.eval.backends import Answer
from reasonrl.eval.folder import COLUMNS, EvalFolder, Lines
from reasonrl.eval.grading import Grade
from reasonrl.eval.tasks import Question
from reasonrl.runs import files
from reasonrl.runs.files import DiskFull

SETTINGS = {"model": "files-1", "t.n": 2, "t.temperature": 0.7, "t.limit": None}
QUESTIONS = [Question("a", "1+1", "2", "easy"), Question("b", "2+2", "4")]


def attempt(path: Path, **changes: Any) -> None:
    """Open and close it."""
    with opened(path, **changes):
        pass


@contextmanager
def opened(path: Path, **changes: Any) -> Iterator[EvalFolder]:
    overwrite = changes.pop("overwrite", False)
    with EvalFolder.opened(path, ["t"], {**SETTINGS, **changes}, {"command": []}, overwrite=overwrite) as folder:
        yield folder


def answer(id: str = "a", number: int = 0, text: str = "2", **changes: Any) -> Answer:
    return Answer("t", id, number, text, **{"tokens": 3, "prompt_tokens": 5, "finished": True, **changes})


def grade(correct: bool = True, **changes: Any) -> Grade:
    return Grade(correct, **{"status": "ok", "extracted": "2", **changes})


def fill(folder: EvalFolder, *ids: str) -> None:
    for id in ids:
        folder.kept["t"].answered(answer(id))
        folder.kept["t"].graded(("t", id, 0), grade())


# what a kill leaves


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400))
def test_wherever_a_file_is_cut_whole_lines_stay_and_it_can_be_continued(tmp_path_factory, cut) -> None:
    path = tmp_path_factory.mktemp("cut") / "lines.jsonl"
    lines = Lines(path)
    for number in range(5):
        lines.add({"id": "α", "number": number, "text": "x\n\u2028y" * number})
    lines.flush()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = Lines.read(path)
    assert len(kept.rows) == whole[:cut].count(b"\n")
    assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
    for number in range(len(kept.rows), 5):
        kept.add({"id": "α", "number": number, "text": "x\n\u2028y" * number})
    kept.flush()
    assert path.read_bytes() == whole


def test_the_first_of_two_lines_of_one_answer_counts(tmp_path) -> None:
    lines = [{"id": "a", "number": 0, "text": text} for text in ("first", "second")]
    (tmp_path / "f").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Lines.read(tmp_path / "f").rows["a", 0]["text"] == "first"


@pytest.mark.parametrize("line", ["{]", "[1]", '{"id": "a"}', "null"])
def test_a_damaged_line_is_named(tmp_path, line) -> None:
    (tmp_path / "f").write_text(f'{{"id": "a", "number": 0}}\n{line}\n')
    with pytest.raises(ConfigError, match="f, line 2 is damaged: remove that line, or start anew with overwrite=true"):
        Lines.read(tmp_path / "f")


def test_lines_are_written_together_and_answers_before_their_grades(tmp_path, monkeypatch) -> None:
    written = []
    monkeypatch.setattr(folders, "append_line", lambda path, text: written.append((path.parent.name, text.count("\n"))))
    monkeypatch.setattr(folders, "FLUSH_ROWS", 3)
    with opened(tmp_path / "e") as folder:
        for id in "abcd":
            fill(folder, id)
            folder.flush(due=True)
        assert written == [("answers", 2), ("grades", 2)]
    assert written[2:] == [("answers", 0), ("grades", 0)]


def test_lines_are_written_after_a_while_even_if_they_are_few(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "FLUSH_SECONDS", 0.0)
    with opened(tmp_path / "e") as folder:
        fill(folder, "a")
        folder.flush(due=True)
        assert len(Lines.read(tmp_path / "e" / "answers" / "t.jsonl").rows) == 1


def test_a_grade_without_its_answer_is_dropped(tmp_path) -> None:
    with opened(tmp_path / "e") as folder:
        fill(folder, "a", "b")
    answers = tmp_path / "e" / "answers" / "t.jsonl"
    answers.write_bytes(answers.read_bytes().splitlines(keepends=True)[0])
    with opened(tmp_path / "e") as folder:
        assert list(folder.kept["t"].grades.rows) == [("a", 0)]
    assert len((tmp_path / "e" / "grades" / "t.jsonl").read_text().splitlines()) == 1


def test_what_was_added_is_kept_when_something_fails(tmp_path) -> None:
    with contextlib.suppress(ZeroDivisionError), opened(tmp_path / "e") as folder:
        fill(folder, "a")
        raise ZeroDivisionError
    with opened(tmp_path / "e") as folder:
        assert folder.answers == 1


def test_a_full_disk_says_that_the_same_command_continues(tmp_path, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> None:
        with opened(tmp_path / "e") as folder:
            fill(folder, "b")
            monkeypatch.setattr(files.os, "fsync", full)

    with opened(tmp_path / "e") as folder:
        fill(folder, "a")
    with pytest.raises(DiskFull) as caught:
        work()
    assert "what was written before is kept. Free some space and give the same command again" in caught.value.strerror
    monkeypatch.undo()
    with opened(tmp_path / "e") as folder:
        assert list(folder.kept["t"].answers.rows) == [("a", 0)]


# who may continue it


def test_another_setting_in_the_same_folder_is_refused_by_name(tmp_path) -> None:
    with opened(tmp_path / "e") as folder:
        fill(folder, "a")
    with pytest.raises(ConfigError, match=r"begun with other settings: t.limit None \(now 5\), t.n 2 \(now 4\)\. Give"):
        attempt(tmp_path / "e", **{"t.n": 4, "t.limit": 5})
    with pytest.raises(ConfigError, match=r"new None \(now 1\)"):
        attempt(tmp_path / "e", new=1)
    with opened(tmp_path / "e") as folder:
        assert folder.answers == 1


def test_overwrite_starts_anew(tmp_path) -> None:
    with opened(tmp_path / "e") as folder:
        fill(folder, "a")
        folder.write_json("results.json", {})
    with opened(tmp_path / "e", overwrite=True, **{"t.n": 4}) as folder:
        assert folder.answers == 0
        assert not (tmp_path / "e" / "results.json").exists()


def test_what_is_no_evaluation_is_left_alone(tmp_path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="e holds other things than an evaluation"):
            attempt(tmp_path / "e", overwrite=overwrite)
    assert [f.name for f in (tmp_path / "e").iterdir()] == ["thesis.tex"]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("method: grpo\n")  # a run's
    with pytest.raises(ConfigError, match="r/config.yaml is not that of an evaluation"):
        attempt(tmp_path / "r")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file, so no folder .*file/e can be made"):
        attempt(tmp_path / "file" / "e")


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path) -> None:
    with opened(tmp_path / "e"):
        pass
    with (tmp_path / "e" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is at work on .*e: wait for it, or stop it first"):
            attempt(tmp_path / "e", overwrite=True)


# what is written at the end


def test_samples_are_rows_in_the_order_of_the_questions(tmp_path) -> None:
    with opened(tmp_path / "e") as folder:
        kept = folder.kept["t"]
        kept.answered(answer("b", 0, "\ud83d no", finished=False))
        kept.answered(answer("a", 1, "3"))
        kept.answered(answer("a", 0))
        kept.answered(answer("b", 1))  # not graded
        kept.graded(("t", "b", 0), grade(False, status="no_answer", extracted=None, parts={"y": 0.5, "x": 0.0}))
        kept.graded(("t", "a", 1), grade(False, extracted="3"))
        kept.graded(("t", "a", 0), grade())
        rows = folder.samples("t", QUESTIONS)
        folder.write_samples(rows)
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [(row["id"], row["number"], row["correct"]) for row in rows] == [
        ("a", 0, True),
        ("a", 1, False),
        ("b", 0, False),
    ]
    found = pq.read_table(tmp_path / "e" / "samples.parquet").to_pylist()
    assert found[0] == {**rows[0], "category": "easy", "gold": "2", "parts": None}
    assert (found[2]["text"], found[2]["finished"], found[2]["extracted"]) == ("? no", False, None)
    assert dict(found[2]["parts"]) == {"x": 0.0, "y": 0.5}
