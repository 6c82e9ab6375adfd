"""Runs the code blocks of Markdown files: `python docs/run_blocks.py README.md docs/add_a_method.md`.

Fenced `bash` and `python` blocks of a file run in order in one temporary folder; a block that fails ends its file. Two files
run at once, and what a block prints is shown when it has ended. A comment on the line above a block changes what is done
with it:

    <!-- skip: why -->      listed, not run
    <!-- file: name.py -->  written to that file, not run; works for any language
    <!-- steps: 2x -->      `steps=NN` becomes twice REASONRL_DOC_STEPS

With REASONRL_DOC_STEPS=2 in the environment every `steps=NN` becomes `steps=2`, so that CI can afford to train.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- *(?P<mark>skip|file|steps): *(?P<value>[^\n]*?) *-->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STEPS = re.compile(r"\bsteps=\d+")
AT_ONCE = 2  # files: much of a training run's start is one process that works while others wait
INTERPRETER = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@dataclass(frozen=True)
class Block:
    """One fenced block and the comment above it."""

    line: int
    language: str
    code: str
    mark: str | None = None  # skip | file | steps
    value: str = ""

    @property
    def runs(self) -> bool:
        """Whether it is executed or written; other languages (text, yaml) are for the eye."""
        return self.mark == "file" or (self.language in INTERPRETER and self.mark != "skip")


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a Markdown text."""
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        yield Block(line, found["language"], found["code"], found["mark"], found["value"] or "")


def with_fewer_steps(block: Block, steps: str | None) -> str:
    """The block's code, with `steps=NN` replaced when `steps` is given."""
    if not steps:
        return block.code
    factor = int(block.value.removesuffix("x")) if block.mark == "steps" else 1
    return STEPS.sub(f"steps={factor * int(steps)}", block.code)


def run_block(block: Block, folder: Path) -> tuple[int, str]:
    """Execute or write one block in `folder`; the exit code, and what it printed."""
    if block.mark == "file":
        file = folder / block.value
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code)
        return 0, ""
    code = with_fewer_steps(block, os.environ.get("REASONRL_DOC_STEPS"))
    # the commands of the Python that runs this file come first, whatever else is on PATH
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    done = subprocess.run(
        [*INTERPRETER[block.language], code],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def run_file(file: Path) -> list[str]:
    """Run the blocks of a Markdown file; what failed."""
    with tempfile.TemporaryDirectory(prefix="reasonrl-docs-") as folder:
        for block in blocks(file.read_text()):
            where = f"{file}:{block.line}"
            if block.mark == "skip":
                print(f"SKIP {where} {block.language}: {block.value}", flush=True)
            if not block.runs:
                continue
            print(f"RUN  {where} {block.language}", flush=True)
            started = time.monotonic()
            code, printed = run_block(block, Path(folder))
            verdict = f"{'FAIL' if code else 'OK  '} {where} ({time.monotonic() - started:.0f} s)"
            print(f"{printed.rstrip()}\n{verdict}".lstrip("\n"), flush=True)  # at once: the other file prints too
            if code:
                return [f"{where} exited with {code}:\n{block.code}"]
    return []


def main(files: Sequence[str]) -> int:
    """Run all files, also after a failure; 1 when one failed."""
    if not files:
        print(__doc__)
        return 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for found in pool.map(run_file, map(Path, files)) for failure in found]
    print("\n".join(failures) or f"all blocks of {', '.join(files)} ran")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
