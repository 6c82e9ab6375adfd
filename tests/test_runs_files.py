"""Files are whole or absent, and a full disk says so."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from reasonrl.runs.files import (
    WHOLE_FILE,
    DiskFull,
    append_line,
    fingerprint,
    replacing,
    require_space,
    size_of,
    write_text,
)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with a configuration."""
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    return tmp_path / "run"


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_write_text_replaces_the_whole_content(run) -> None:
    write_text(run / "a.json", "long old content")
    write_text(run / "a.json", "new")
    assert (run / "a.json").read_text() == "new"
    assert names(run) == ["a.json", "config.yaml", "rollouts"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(run) -> None:
    write_text(run / "a", "old")
    with replacing(run / "a") as scratch:
        scratch.write_text("ne")
        assert (run / "a").read_text() == "old"
        scratch.write_text("new")
    assert (run / "a").read_text() == "new"


def test_a_writer_that_raises_leaves_the_old_file_and_no_scratch(run) -> None:
    write_text(run / "a", "old")
    with contextlib.suppress(ZeroDivisionError), replacing(run / "a") as scratch:
        scratch.write_text("half")
        raise ZeroDivisionError
    assert (run / "a").read_text() == "old"
    assert names(run) == ["a", "config.yaml", "rollouts"]


@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_old_file_and_names_the_run(run, monkeypatch, where) -> None:
    path = run / "rollouts" / "step_000003.parquet"
    write_text(path, "old")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", no_space)
    else:
        monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(DiskFull, match=f"disk full while writing {path}.*`reasonrl resume={run}`"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(run / "rollouts") == ["step_000003.parquet"]


def test_the_way_out_names_the_run_for_files_deep_in_a_checkpoint(run, monkeypatch) -> None:
    deep = run / "checkpoints" / "global_step_4" / "reasonrl"
    deep.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFull, match=f"`reasonrl resume={run}`"):
        write_text(deep / "state.json", "{}")


def test_another_error_passes_through_as_it_is(run, monkeypatch) -> None:
    def denied(*args: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    for write in (write_text, append_line):
        with pytest.raises(PermissionError, match="Permission denied") as caught:
            write(run / "a", "x")
        assert caught.value.__cause__ is None


def test_lines_are_appended_whole(run) -> None:
    for line in ('{"step": 1}', '{"step": 2}'):
        append_line(run / "m.jsonl", line)
    assert (run / "m.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("where", ["short write", "fsync"])
def test_a_line_that_does_not_fit_leaves_nothing_of_itself(run, monkeypatch, where) -> None:
    path = run / "metrics.jsonl"
    append_line(path, "first")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        opened = Path.open

        def cramped(self: Path, *args: Any, **kwargs: Any) -> Any:
            return Cramped(opened(self, *args, **kwargs))

        monkeypatch.setattr(Path, "open", cramped)
    with pytest.raises(DiskFull, match=f"disk full while writing {path}.*resume={run}`"):
        append_line(path, "second")
    monkeypatch.undo()
    assert path.read_text() == "first\n"
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


class Cramped:
    """A file that takes three bytes of a write, as a disk that fills up does."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        return self.file.write(data[:3])


def test_too_little_space_is_told_before_writing_with_both_sizes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3 << 30))  # type: ignore[attr-defined]
    require_space(tmp_path, 3 << 30)
    with pytest.raises(
        DiskFull, match=r"has 3.0 GiB free and the next checkpoint needs about 4.5 GiB.*keep_checkpoints"
    ):
        require_space(tmp_path, 9 << 29)


def test_size_counts_all_files_below(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "x").write_bytes(b"123")
    (tmp_path / "a" / "b" / "y").write_bytes(b"4567")
    assert size_of(tmp_path) == 7


def test_the_fingerprint_of_a_small_file_is_its_sha256(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert fingerprint(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_fingerprint_of_a_large_file_sees_size_and_ends(tmp_path) -> None:
    """Sparse files: nothing of these 64 MiB is really written."""
    path, seen = tmp_path / "a", set()
    for size, place in (
        (WHOLE_FILE + 1, None),
        (WHOLE_FILE + 2, None),
        (WHOLE_FILE + 1, 0),
        (WHOLE_FILE + 1, WHOLE_FILE),
    ):
        with path.open("wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        assert fingerprint(path).startswith("ends-")
        seen.add(fingerprint(path))
    assert len(seen) == 4
