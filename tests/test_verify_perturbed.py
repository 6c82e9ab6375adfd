"""Every checker's verdict on the table of perturbed answers, what the table must hold, and its tables in the docs."""

from collections import Counter
from collections.abc import Iterator

import pytest
from perturbed import LETTERS, PAGE, Row, placed, rows, tables, verdicts
from test_verify_speed import speed

from reasonrl.verify.checkers import quick
from reasonrl.verify.extract import extract_answer
from reasonrl.verify.pool import Verifier, VerifyConfig

ROWS = rows()


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """As the workers run it; `test_verify_speed.py` shows that no verdict depends on it."""
    with speed():
        yield


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in ROWS}))
def test_every_checker_gives_the_verdict_of_the_table(kind: str) -> None:
    chosen = [row for row in ROWS if row["kind"] == kind]
    found = [(row["gold"], row["text"], verdicts(row)) for row in chosen]
    assert found == [(row["gold"], row["text"], row["verdicts"]) for row in chosen]


def test_the_table_is_large_and_varied() -> None:
    assert len(ROWS) == len({(row["gold"], row["text"]) for row in ROWS}) >= 900
    should = Counter(row["should"] for row in ROWS)
    assert set(should) == {"right", "wrong", "debatable"}
    assert min(should["right"], should["wrong"]) >= 400
    assert {len(row["verdicts"]) for row in ROWS} == {len(LETTERS)}


def test_either_accepts_what_one_of_the_libraries_accepts() -> None:
    lost = [row for row in ROWS if {"R", "V"} & set(row["verdicts"]) and "E" not in row["verdicts"]]
    assert lost == []


def test_nothing_but_the_same_text_or_letter_is_exact_or_a_choice() -> None:
    assert [row for row in ROWS if set("XC") & set(row["verdicts"]) and row["should"] != "right"] == []


def share(letter: str, should: str) -> float:
    chosen = [row for row in ROWS if row["should"] == should and row["kind"] != "choice"]
    return sum(letter in row["verdicts"] for row in chosen) / len(chosen)


def test_how_often_either_errs_is_bounded() -> None:
    assert share("E", "wrong") <= 0.015
    assert share("E", "right") >= 0.95
    assert share("E", "right") >= max(share("R", "right"), share("V", "right")) + 0.1


def test_the_pool_gives_the_verdicts_of_the_table() -> None:
    """A few through a real process; every one here needs a library."""
    slow = [row for row in ROWS if quick("either", extract_answer(row["text"]) or "", row["gold"]) is None]
    chosen: list[Row] = slow[::25]
    with Verifier(VerifyConfig(checker="either")) as verifier:
        found = verifier.verify_many((row["text"], row["gold"]) for row in chosen)
    assert [verdict.correct for verdict in found] == ["E" in row["verdicts"] for row in chosen]


def test_the_page_shows_the_table_as_it_is() -> None:
    page = PAGE.read_text()
    assert placed(page, tables(ROWS)) == page, "run python tests/perturbed.py"
