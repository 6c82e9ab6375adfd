"""The table of perturbed answers: reading it, judging it, and the tables that `docs/verifiers.md` shows of it.

A row of `perturbed_answers.jsonl` is a gold, a response (`text`), what its verdict should be (right, wrong, debatable), and
the checkers that accept it, by letter: R MathRuler, V Math-Verify, E either, X exact, C choice.

    python tests/perturbed.py    judges all rows again and rewrites both files; read the difference before committing it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonrl.verify.checkers import CHECKERS, quick
from reasonrl.verify.extract import extract_answer

FILE = Path(__file__).with_name("perturbed_answers.jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "verifiers.md"
LETTERS = {"R": "mathruler", "V": "math_verify", "E": "either", "X": "exact", "C": "choice"}
TITLES = {"R": "`mathruler`", "V": "`math_verify`", "E": "`either`", "X": "`exact`", "C": "`choice`"}

Row = dict[str, Any]


def rows() -> list[Row]:
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def accepts(checker: str, text: str, gold: str) -> bool:
    """The verdict as `Verifier` comes to it, in this process."""
    extracted = extract_answer(text)
    if extracted is None:
        return False
    verdict = quick(checker, extracted, gold)
    return CHECKERS[checker](extracted, gold) if verdict is None else verdict


def verdicts(row: Row) -> str:
    """Letters of the checkers that accept the row, a dash for the others."""
    return "".join(x if accepts(name, row["text"], row["gold"]) else "-" for x, name in LETTERS.items())


def tables(all_rows: Sequence[Row]) -> dict[str, str]:
    """Name of a table in the page -> its Markdown."""
    return {"counts": _counts(all_rows), "either": _either(all_rows), "differ": _differ(all_rows)}


def placed(page: str, made: dict[str, str]) -> str:
    """The page with each table between its two marks."""
    for name, table in made.items():
        start, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        before, rest = page.split(start)
        page = before + start + "\n" + table + "\n" + end + rest.split(end, 1)[1]
    return page


def _counts(all_rows: Sequence[Row]) -> str:
    lines = ["| should be | rows | " + " | ".join(TITLES.values()) + " |", "|---|" + "---|" * 6]
    for should in ("right", "wrong", "debatable"):
        chosen = [row for row in all_rows if row["should"] == should]
        accepted = [sum(x in row["verdicts"] for row in chosen) for x in LETTERS]
        lines.append(f"| {should} | {len(chosen)} | " + " | ".join(map(str, accepted)) + " |")
    return "\n".join(lines) + "\n"


def _either(all_rows: Sequence[Row]) -> str:
    """What `either` still gets wrong; option letters are for `choice`."""
    lines = ["| gold | accepted, though wrong | refused, though right |", "|---|---|---|"]
    by_gold: dict[str, tuple[list[str], list[str]]] = {}
    for row in all_rows:
        accepted = "E" in row["verdicts"]
        if row["should"] != "debatable" and accepted != (row["should"] == "right") and "C" not in row["verdicts"]:
            by_gold.setdefault(row["gold"], ([], []))[not accepted].append(_code(row["text"]))
    lines += [f"| {_code(g)} | {', '.join(wrong)} | {', '.join(right)} |" for g, (wrong, right) in by_gold.items()]
    return "\n".join(lines) + "\n"


def _differ(all_rows: Sequence[Row]) -> str:
    lines = ["| gold | should be | only MathRuler accepts | only Math-Verify accepts |", "|---|---|---|---|"]
    groups: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for row in all_rows:
        ruler, verify = "R" in row["verdicts"], "V" in row["verdicts"]
        if ruler != verify:
            groups.setdefault((row["gold"], row["should"]), ([], []))[verify].append(_code(row["text"]))
    lines += [f"| {_code(g)} | {s} | {', '.join(r)} | {', '.join(v)} |" for (g, s), (r, v) in groups.items()]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A code span; the box around a whole answer is left out."""
    if text.startswith(r"\boxed{") and extract_answer(text) == text[7:-1].strip():
        text = text[7:-1]
    text = text.strip().replace("\n", "⏎").replace("|", r"\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    judged = [{**row, "verdicts": verdicts(row)} for row in rows()]
    FILE.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in judged))
    PAGE.write_text(placed(PAGE.read_text(), tables(judged)))


if __name__ == "__main__":
    main()
