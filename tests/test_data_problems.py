"""Loading problems: exact prompts and steps as tokens, nothing cut, errors that say what and where."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_builders import byte_tokenizer

from reasonrl.data.items import DataError, Item
from reasonrl.data.prepare import prepare
from reasonrl.data.problems import load, validate
from reasonrl.data.prompts import Prompt

PLAIN = Prompt("plain", "chat", "{question}")
TEXT = Prompt("t", "text", "Q: {question} A:")
ROW = {
    "data_source": "d",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0, "split": "train"},
}


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def items(*lengths: int) -> list[Item]:
    return [Item("x" * length, str(length), ("a", "b "), "s", f"s/{length}", float(length)) for length in lengths]


def test_problems_carry_prompt_answer_steps_and_identity(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = prepare(
        [Item("2+2?", "4", ("2+2=4", "so 4 "), "sums", "sums/1", 2.0)], tmp_path / "p.parquet", split="t"
    ).path
    loaded = load(path, PLAIN, tokenizer, max_prompt_tokens=50)
    (problem,) = loaded.problems
    assert (problem.id, problem.answer, problem.source) == ("sums/1", "4", "sums")
    assert problem.prompt_ids.tolist() == PLAIN.encode("2+2?", tokenizer)
    assert [tokenizer.decode(step) for step in problem.solution_steps] == ["2+2=4\n", "so 4 "]
    assert problem.stored_prefix == ()
    assert (loaded.questions, loaded.solutions, loaded.levels) == (["2+2?"], ["2+2=4\nso 4 "], [2.0])
    assert (len(loaded), loaded.dropped_too_long) == (1, 0)


def test_steps_hold_no_special_tokens(tmp_path: Path) -> None:
    path = prepare(items(3), tmp_path / "p.parquet", split="t").path
    plain = load(path, TEXT, byte_tokenizer(), max_prompt_tokens=50).problems[0]
    adding = load(path, TEXT, byte_tokenizer(bos=True, eos=True), max_prompt_tokens=50).problems[0]
    assert [s.tolist() for s in plain.solution_steps] == [s.tolist() for s in adding.solution_steps]
    assert len(adding.prompt_ids) == len(plain.prompt_ids) + 1  # its beginning token


def test_solutions_are_left_out_on_request(tmp_path: Path) -> None:
    path = prepare(items(3), tmp_path / "p.parquet", split="t").path
    assert load(path, TEXT, byte_tokenizer(), max_prompt_tokens=50, solutions=False).problems[0].solution_steps == ()


def test_prompts_over_the_limit_are_dropped_and_counted_never_cut(tmp_path: Path) -> None:
    path = prepare(items(5, 30, 10, 31), tmp_path / "p.parquet", split="t").path
    overhead = len(PLAIN.encode("", byte_tokenizer()))
    loaded = load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=30 + overhead)
    assert [problem.id for problem in loaded.problems] == ["s/5", "s/30", "s/10"]
    assert [len(problem.prompt_ids) - overhead for problem in loaded.problems] == [5, 30, 10]
    assert (loaded.dropped_too_long, loaded.longest_prompt_tokens) == (1, 31 + overhead)
    assert loaded.questions == ["x" * 5, "x" * 30, "x" * 10]
    assert loaded.levels == [5.0, 30.0, 10.0]


def test_prompts_over_the_limit_are_refused_on_request(tmp_path: Path) -> None:
    path = prepare(items(5, 40), tmp_path / "p.parquet", split="t").path
    with pytest.raises(DataError, match=r"1 of 2 prompts .*max_prompt_tokens=20; .*'s/40' with .*data\.overlong=drop"):
        load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=20, overlong="error")
    assert len(load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=80, overlong="error")) == 2


def test_all_prompts_too_long_is_an_error(tmp_path: Path) -> None:
    path = prepare(items(30, 40), tmp_path / "p.parquet", split="t").path
    with pytest.raises(
        DataError, match=r"2 of 2 prompts .*nothing is left; the shortest has \d+ .*Raise max_prompt_tokens"
    ):
        load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=8)


def test_verl_files_of_others_are_read(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
    rows = [ROW, {**ROW, "prompt": chat, "reward_model": {"style": "rule", "ground_truth": " 4 "}}]
    loaded = load(write(tmp_path, rows), PLAIN, byte_tokenizer(), max_prompt_tokens=50)
    assert loaded.questions == ["1+1?", "2+2?"]
    assert [problem.answer for problem in loaded.problems] == ["2", "4"]
    assert len({problem.id for problem in loaded.problems}) == 2
    again = load(write(tmp_path, rows[::-1]), PLAIN, byte_tokenizer(), max_prompt_tokens=50)
    assert {problem.id for problem in again.problems} == {problem.id for problem in loaded.problems}


def test_stored_prefixes_become_paragraphs_of_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [{**ROW, "extra_info": {"id": "a", "stored_prefix": ["First.\n\n", "Then"], "steps": ["s"]}}]
    (problem,) = load(write(tmp_path, rows), PLAIN, tokenizer, max_prompt_tokens=50).problems
    assert [tokenizer.decode(ids) for ids in problem.stored_prefix] == ["First.\n\n", "Then"]
    assert [tokenizer.decode(ids) for ids in problem.solution_steps] == ["s\n"]


def _with(**changes: Any) -> list[dict[str, Any]]:
    return [ROW, {**ROW, "extra_info": {"id": "b"}, **changes}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x"}], r"lacks reward_model; its columns are prompt; prepare the file with `reasonrl data`"),
        ([{k: v for k, v in ROW.items() if k != "prompt"}], r"lacks prompt"),
        ([ROW, ROW], r"rows 0 and 1 share the id 'd/"),
        ([{**ROW, "extra_info": {"id": "z"}}] * 2, r"rows 0 and 1 share the id 'z'"),
        (
            _with(reward_model={"style": "rule", "ground_truth": None}),
            r"row 1: .*ground_truth must be a text, got None",
        ),
        (_with(reward_model=None), r"row 1: .*ground_truth must be a text"),
        (_with(prompt=[]), r"row 1: prompt must be a chat with one user turn, got 0"),
        (_with(prompt=[{"role": "user", "content": "a"}] * 2), r"row 1: .*one user turn, got 2"),
        ([{**ROW, "prompt": "plain text"}], r"row 0: prompt must be a chat"),
        (
            [{**ROW, "reward_model": {"ground_truth": {"target": 3}}}],
            r"answer_field=reward_model\.ground_truth\.<name>",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        validate(path)
    with pytest.raises(DataError, match=message):
        load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=50)


def test_missing_empty_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*none\.parquet; prepare"):
        validate(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet is not a readable parquet file"):
        validate(tmp_path / "broken.parquet")
    empty = prepare(items(1), tmp_path / "e.parquet", split="t").path
    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    with pytest.raises(DataError, match=r"e\.parquet has no rows"):
        validate(empty)


def test_ten_thousand_problems_load_in_seconds(tmp_path: Path) -> None:
    many = [Item(f"what is {i} plus {i}?", str(2 * i), (f"{i}+{i}={2 * i}",), "s") for i in range(10_000)]
    path = prepare(many, tmp_path / "p.parquet", split="t").path
    started = time.monotonic()
    assert len(load(path, PLAIN, byte_tokenizer(), max_prompt_tokens=100)) == 10_000
    assert time.monotonic() - started < 30.0  # about 2 s on one idle core


def test_a_file_from_elsewhere_gives_its_answer_away_in_the_last_step_only(tmp_path: Path) -> None:
    rows = [{**ROW, "extra_info": {"id": "a", "steps": ["2+2 ", "\\boxed{4} ", "That is all."]}}]
    tokenizer = byte_tokenizer()
    (problem,) = load(write(tmp_path, rows), PLAIN, tokenizer, max_prompt_tokens=50).problems
    assert [tokenizer.decode(ids) for ids in problem.solution_steps] == ["2+2 ", "\\boxed{4} That is all.\n"]
