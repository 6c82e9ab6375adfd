"""A judge of one's own, for as long as it is needed: a child process on a Unix socket that nobody else can open."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.verify.judge.client import JudgeClient

DRAIN_SECONDS = 60.0


@contextlib.contextmanager
def opened_judge(url: str | None = None, **knobs: Any) -> Iterator[JudgeClient]:
    """A client of the judge at `url`, or, without one, of a judge that lives as long as this context.

    knobs: those of `reasonrl judge`, such as cores=2 or cpu_seconds=1. It ends with this process in any case, also when
    that is killed: it watches its stdin. Raises ConfigError where no sandbox is possible, with the reason and the way
    out; JudgeError when there is no judge at `url`.
    """
    if url is not None:
        if knobs:
            raise ConfigError(f"judge={url} has limits of its own: {', '.join(knobs)} cannot be set from here")
        with JudgeClient(url) as client:
            client.health()
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="reasonrl-judge-") as folder, tempfile.TemporaryFile("w+") as log:
        path = os.path.join(folder, "socket")
        args = [f"{key}={_text(value)}" for key, value in knobs.items() if value is not None]
        process = subprocess.Popen(
            [sys.executable, "-m", "reasonrl.cli", "judge", f"socket={path}", "end_with_stdin=true", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a Ctrl-C is ours; the judge ends after what still waits for it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():  # said once it listens; it says nothing when it cannot
                process.wait()
                log.seek(0)
                raise ConfigError(log.read().strip().removeprefix("reasonrl: ") or "the judge did not start")
            with JudgeClient(f"unix:{path}") as client:
                yield client
        finally:
            process.stdin.close()
            try:
                process.wait(DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
