"""`reasonrl eval report FOLDER`: write report.html anew from what the folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HELP = """\
reasonrl eval report FOLDER [text_mb=30]

Writes FOLDER/report.html from results.json and samples.parquet of an evaluation: one file that needs no network, to read or
to send. `reasonrl eval` writes it at its end; this command does it again, after an upgrade or with another limit.

  text_mb=30   megabytes of sample texts in the file; beyond, the middle of the longest texts is left out, and the page says so
"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.config import ConfigError
    from reasonrl.sampled.arguments import wants_help, whole_number

    if wants_help(args):
        print(HELP)
        return 0
    folders = [arg for arg in args if not arg.startswith(("text_mb=", "-"))]
    unknown = [arg for arg in args if arg.startswith("-")]
    if unknown or len(folders) != 1:
        wrong = f"unknown option {unknown[0]!r}" if unknown else f"one folder at a time, got {len(folders)}"
        raise ConfigError(f"reasonrl eval report FOLDER [text_mb=30]: {wrong}")
    limits = [arg.removeprefix("text_mb=") for arg in args if arg.startswith("text_mb=")]

    from reasonrl.eval.report.samples import TEXT_BYTES
    from reasonrl.eval.report.write import write_report

    text_bytes = whole_number("text_mb", limits[-1]) * 1_000_000 if limits else TEXT_BYTES
    page = write_report(Path(folders[0]).expanduser(), text_bytes=text_bytes)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
