"""The prefix store: what may be kept of a solution, the file, and how it is joined with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_builders import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from reasonrl.data.items import DataError, Item
from reasonrl.data.prefixes import (
    FILE,
    Facts,
    Kept,
    Store,
    Stored,
    beside,
    guarded,
    join,
    paragraphs,
    question_sha256,
    read,
    read_facts,
    statements,
    store_file,
    tokenise,
    tokenizer_fingerprint,
    within,
    write,
)
from reasonrl.data.prepare import prepare
from reasonrl.data.problems import load
from reasonrl.data.prompts import Prompt

BYTES = byte_tokenizer()  # one token a byte
PLAIN = Prompt("plain", "chat", "{question}")
FACTS = Facts({"model": "m", "n": 2}, {"model": "tiny"}, {"problems": 2})
TEXT = st.text(st.sampled_from("ab \né√"), max_size=40)


def row(id: str = "p/1", question: str = "q1", **fields: Any) -> Stored:
    own = {"paragraphs": ("one.\n\n", "two"), "prefix_tokens": 9, "sample_tokens": 20, "correct": True, "right": 1}
    return Stored(**{"id": id, "question_sha256": question_sha256(question), "leak": False, **own, **fields})


def keep(text: str, most: int = 1000, leaks: Any = lambda text: False) -> Kept:
    return guarded(text, BYTES, most=most, gives_away=leaks)


def kept(text: str, **how: Any) -> str:
    return "".join(keep(text, **how).paragraphs)


# cutting


@given(TEXT)
def test_paragraphs_are_the_text_cut_after_blank_lines(text) -> None:
    pieces = paragraphs(text)
    assert "".join(pieces) == text
    assert all(piece.endswith("\n\n") and "\n\n" not in piece[:-2] for piece in pieces[:-1])
    assert all(pieces)


def test_paragraphs_of_a_solution() -> None:
    assert paragraphs("Let x.\n\nThen\ny.\n\n") == ("Let x.\n\n", "Then\ny.\n\n")
    assert paragraphs("") == ()


@pytest.mark.parametrize(
    ("text", "left", "leak"),
    [
        ("think\n</think>\nanswer \\boxed{4}</think>", "think\n", False),
        ("so \\boxed{4}", "so ", True),
        ("put it in \\fbox {4}", "put it in ", True),
        ("a <answer>4</answer>", "a ", True),
        ("a\n#### 4\nb", "a\n", True),
        ("a\n  ####4", "a\n", True),
        ("\\boxed{1} and \\boxed{2}", "", True),
        ("no \\boxedness, a #### b, </thin", "no \\boxedness, a #### b, </thin", False),
    ],
)
def test_a_text_ends_before_its_thought_does_and_before_it_states_an_answer(text, left, leak) -> None:
    assert kept(text) == left
    assert keep(text).leak is leak


@given(TEXT, st.integers(0, 60))
def test_a_text_is_an_opening_of_the_sample_with_at_most_so_many_tokens(text, most) -> None:
    found = keep(text, most)
    joined = "".join(found.paragraphs)
    assert text.startswith(joined)
    assert found.tokens == sum(map(len, tokenise(found.paragraphs, BYTES))) <= most
    assert len(joined.encode()) >= min(most, len(text.encode())) - 2  # of a character cut through nothing is kept


def test_while_the_verifier_finds_the_answer_lines_go_then_tokens() -> None:
    assert kept("12+30=42\nso 42\nyes 42", leaks=lambda text: "42" in text) == "12+30=4"
    assert kept("a 42\n\nb\nc 42", leaks=lambda text: text.endswith("c 42")) == "a 42\n\nb\n"
    assert keep("always", leaks=lambda text: True) == Kept((), 0, True)
    assert keep("never") == Kept(("never",), 5, False)


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("1+2=3\n3+4=7\n", ["7"]),
        ("105-53=52, check 52+53=105 yes\n", ["52", "105"]),
        ("So the answer is 42.", ["42"]),
        ("so $x = \\frac{1}{2}$.", ["\\frac{1}{2}", "2"]),
        ("Thus \\( x = 3 \\) and more", ["3"]),
        ("**Total = 1,000**", ["1,000"]),
        ("x = -3, y = 2.5.", ["-3", "2.5"]),
        ("7-4", ["4"]),
        ("that is 3/4 of it", ["3/4"]),
        ("n \\approx 7", ["7"]),
        ("so we look again", []),
        ("", []),
    ],
)
def test_what_the_last_line_of_a_text_states(text, stated) -> None:
    assert statements(text) == stated


def test_the_first_tokens_of_paragraphs() -> None:
    assert within([[1, 2], [3], [4, 5, 6]], 4) == [[1, 2], [3], [4]]
    assert within([[1, 2], [3]], 2) == [[1, 2]]
    assert within([[1, 2]], 0) == within([[1, 2]], -1) == []


# the file


def test_a_store_is_read_as_it_was_written_and_written_alike(tmp_path: Path) -> None:
    rows = [row(), row("p/2", paragraphs=(), prefix_tokens=0, correct=False, right=0, leak=True)]
    for name in ("a", "b"):
        write(tmp_path / name, rows, FACTS)
    found = read(tmp_path / "a")
    assert found.rows == {stored.id: stored for stored in rows}
    assert found.facts == read_facts(tmp_path / "a") == FACTS
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_prefixes_names_a_store_or_its_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no store of prefixes at .*none \(here: .*`reasonrl prefixes`"):
        store_file(tmp_path / "none")
    (tmp_path / "shard-0-of-1.jsonl").touch()
    with pytest.raises(DataError, match="is not finished, it has no prefixes.parquet yet"):
        store_file(tmp_path)
    write(tmp_path / FILE, [row()], FACTS)
    assert store_file(tmp_path) == store_file(str(tmp_path / FILE)) == tmp_path / FILE


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not a readable parquet file"):
        read_facts(path)
    prepare([Item("q", "1")], path, split="t")
    with pytest.raises(DataError, match="is not a store of prefixes; make one with"):
        read_facts(path)
    write(path, [row()], Facts({}, schema=99))
    with pytest.raises(DataError, match="has schema version 99, this reasonrl reads 1"):
        read_facts(path)
    write(path, [row()], FACTS)
    pq.write_table(pq.read_table(path).drop_columns(["right"]), path)
    with pytest.raises(DataError, match="lacks the columns right"):
        read(path)


def test_only_training_problems_have_the_store_beside_them(tmp_path: Path) -> None:
    assert beside(tmp_path / "train.parquet") is None
    write(tmp_path / FILE, [row()], FACTS)
    assert beside(tmp_path / "train.parquet") == tmp_path / FILE
    assert beside(tmp_path / "val.parquet") is None


# joining


def test_a_join_counts_what_is_missing_empty_and_wrong() -> None:
    rows = [row(), row("p/2", "q2", paragraphs=(), correct=False), row("p/9", "q9")]
    store = Store(Path("s"), FACTS, {stored.id: stored for stored in rows})
    joined = join(store, [("p/1", "q1"), ("p/2", "q2"), ("p/3", "q3")])
    assert (joined.problems, joined.missing, joined.empty, joined.wrong) == (3, 1, 1, 1)
    assert str(joined) == (
        "1 of 3 problems have one; 1 are not in the store and 1 have an empty text, which start plain; "
        "1 (33.3%) come from a wrong answer, for want of a right one"
    )
    assert "plain" not in str(join(store, [("p/1", "q1")]))


def test_a_store_of_other_data_is_refused() -> None:
    store = Store(Path("s"), FACTS, {"p/1": row()})
    with pytest.raises(DataError, match="s is of other data: problem 'p/1' has another question there; make one with"):
        join(store, [("p/1", "Q1")])
    with pytest.raises(DataError, match="other data: none of the 2 training problems is among its 1; make one with"):
        join(store, [("a", "q1"), ("b", "q2")])


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Two problems, p/1 and p/2."""
    items = [Item(f"q{i}", str(i), ("step",), "d", f"p/{i}") for i in (1, 2)]
    return prepare(items, tmp_path / "train.parquet", split="train").path


def loaded(train: Path, rows: list[Stored], **how: Any) -> list[Any]:
    write(train.with_name(FILE), rows, FACTS)
    return load(train, PLAIN, BYTES, max_prompt_tokens=60, prefixes=train.with_name(FILE), **how).problems


def test_stored_paragraphs_become_tokens_of_their_problem(train: Path) -> None:
    first, second = loaded(train, [row()])
    assert [BYTES.decode(ids) for ids in first.stored_prefix] == ["one.\n\n", "two"]
    assert second.stored_prefix == ()  # not in the store
    assert (first.stored_right, second.stored_right) == (True, None)
    assert loaded(train, [row(correct=False)])[0].stored_right is False
    assert [BYTES.decode(ids) for ids in first.solution_steps] == ["step\n"]


def test_a_prefix_is_always_shorter_than_its_sample(train: Path) -> None:
    for tokens, left in ((10, ["one.\n\n", "two"]), (9, ["one.\n\n", "tw"]), (7, ["one.\n\n"]), (1, []), (0, [])):
        first, _ = loaded(train, [row(sample_tokens=tokens)])
        assert [BYTES.decode(ids) for ids in first.stored_prefix] == left


def test_an_empty_text_is_no_prefix_and_nothing_is_tokenised_that_nobody_reads(train: Path) -> None:
    assert loaded(train, [row(paragraphs=())])[0].stored_prefix == ()
    assert loaded(train, [row()], solutions=False)[0].stored_prefix == ()


def test_a_store_replaces_what_the_data_brings(train: Path) -> None:
    table = pq.read_table(train).to_pylist()
    for values in table:
        values["extra_info"]["stored_prefix"] = ["own"]
    pq.write_table(pa.Table.from_pylist(table), train)
    assert [len(p.stored_prefix) for p in load(train, PLAIN, BYTES, max_prompt_tokens=60).problems] == [1, 1]
    assert [len(p.stored_prefix) for p in loaded(train, [row()])] == [2, 0]


def test_loading_refuses_a_store_of_other_data(train: Path) -> None:
    with pytest.raises(DataError, match="has another question there"):
        loaded(train, [row(question="another")])


def test_many_texts_are_tokenised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrl.data.prefixes.AT_ONCE", 2)
    texts = ["a", "bc", "", "d", "ef"]
    assert [BYTES.decode(ids) for ids in tokenise(texts, BYTES)] == texts
    assert list(tokenise([], BYTES)) == []


def test_a_tokenizer_is_known_by_what_it_does() -> None:
    known = tokenizer_fingerprint(byte_tokenizer())
    used = byte_tokenizer()
    used.pad_token = used.eos_token
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)  # it remembers both
    assert tokenizer_fingerprint(used) == known
    special, cutting = byte_tokenizer(), byte_tokenizer()
    special.add_special_tokens({"pad_token": "<pad>"})
    cutting.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert len({known, tokenizer_fingerprint(special), tokenizer_fingerprint(cutting)}) == 3
