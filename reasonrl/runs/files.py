"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHOLE_FILE = 64 << 20  # larger files are hashed by their size and both ends


class DiskFull(OSError):
    """No space left for the run folder. Everything written before is intact."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; on success it takes the place of `path` in one step, else it is removed."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        explain(error, path)
        raise
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content in one step."""
    with replacing(path) as scratch:
        scratch.write_text(text)


def append_line(path: Path, line: str) -> None:
    """Append one line with a single write, and have it on disk before returning."""
    try:
        with path.open("ab", buffering=0) as file:
            start = file.tell()
            data = line.encode() + b"\n"
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "short write")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise
    except OSError as error:
        explain(error, path)
        raise


def explain(error: OSError, path: Path) -> None:
    """Raise DiskFull when that is what happened."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    run = next((parent for parent in path.parents if (parent / "config.yaml").is_file()), path.parent)
    raise DiskFull(
        error.errno,
        f"disk full while writing {path}: what was written before is intact. Free some space and continue with "
        f"`reasonrl resume={run}`",
    ) from error


def require_space(folder: Path, needed: int) -> None:
    """Raise DiskFull unless `needed` bytes are free at `folder`."""
    free, begun = shutil.disk_usage(folder).free, (folder / "config.yaml").is_file()
    if free < needed:
        raise DiskFull(
            errno.ENOSPC,
            f"{folder} has {_amount(free)} free and the next checkpoint needs about {_amount(needed)}: free some space, "
            "lower keep_checkpoints, "
            + (f"then continue with `reasonrl resume={folder}`" if begun else "or put the run elsewhere with out="),
        )


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def fingerprint(path: Path) -> str:
    """sha256 of a file; of a large one its size, first and last MiB."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_FILE:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
        digest.update(f"{size}:".encode())
        digest.update(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        digest.update(file.read())
    return f"ends-{digest.hexdigest()}"
