"""Benchmarks: their YAML files, the layouts in which their rows are found, what is refused and what is dropped."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from reasonrl import conf
from reasonrl.config import ConfigError
from reasonrl.data.items import DataError, Dropped
from reasonrl.data.prompts import prompt_from_config
from reasonrl.eval.tasks import Question, Questions, load, load_questions, load_task, task_names
from reasonrl.eval.tasks.formats import gold_answer, option_letter, with_options
from reasonrl.eval.tasks.task import KINDS

CONF = Path(next(iter(conf.__path__)))
REQUEST = "Let's think step by step and output the final answer within \\boxed{}."
PLANETS = {"question": "Which planet is largest?", "options": ["Mars", "Jupiter", "Venus"]}


def write_jsonl(file: Path, rows: Sequence[Mapping[str, Any] | str]) -> None:
    """Rows as JSON lines, texts as they are; gzipped when the name says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(lines) if file.suffix == ".gz" else lines)


def write(file: Path, rows: Sequence[Any]) -> Path:
    """The rows in the format that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    elif file.name.endswith(".csv"):
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_jsonl(file, rows)
    return file


def loaded(folder: Path, task: str, file: str, rows: Sequence[Any], **more: Any) -> Questions:
    """The task's questions, from these rows in a folder that holds nothing else."""
    write(folder / file, rows)
    return load_questions(load_task(task), data_dir=folder, **more)


def own_task(folder: Path, **values: Any) -> str:
    """The path of a task file of one's own."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"kind": "answer", "source": {"files": ["rows.jsonl"]}, **values}))
    return str(file)


def verl_row(question: str, answer: str, index: int = 0) -> dict[str, Any]:
    return {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": question}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index, "split": "test"},
    }


# The files of conf/task


def test_the_tasks_of_the_papers_are_there() -> None:
    assert set(task_names()) == {
        *("arithmetic", "gsm8k", "math500", "aime24", "aime25", "amc23", "olympiadbench", "minerva", "polymath_en"),
        *("arc_c", "gpqa_diamond", "mmlu_pro", "ifeval", "humaneval", "mbpp", "livecodebench"),
    }


@pytest.mark.parametrize("name", task_names())
def test_a_task_says_where_it_comes_from_and_how_it_is_asked(name) -> None:
    task = load_task(name)
    written = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())
    assert task.name == written["name"] == name
    assert task.kind in KINDS
    assert task.citation
    assert task.size
    for key in ("title", "citation", "kind", "source", "format", "size", "prompt", "base_prompt", "verify", "sampling"):
        assert key in written, "nothing about a benchmark is left to a default"
    assert {"n", "temperature", "max_new_tokens"} <= set(written["sampling"])
    assert load_task(str(CONF / "task" / f"{name}.yaml")).options == task.options


@pytest.mark.parametrize("name", task_names())
def test_every_prompt_asks_for_the_form_in_which_its_answer_is_looked_for(name) -> None:
    task = load_task(name)
    for prompt in filter(None, (task.prompt, task.base_prompt)):
        user = yaml.safe_load((CONF / "prompt" / f"{prompt}.yaml").read_text())["user"]
        asks = {"answer": r"\boxed{}", "choice": r"letter of the right option within \boxed{}", "code": "code block"}
        assert asks.get(task.kind, "") in user or name == "arithmetic"  # the embedded model needs no request


def test_greedy_is_greedy_and_small_sets_are_sampled_often() -> None:
    assert load_task("gsm8k").sampling.temperature == 0
    assert load_task("gsm8k").sampling.n == 1
    for name in ("aime24", "aime25", "amc23"):
        assert (load_task(name).sampling.n, load_task(name).sampling.temperature) == (32, 0.6)  # SEELE's avg@32


# The layouts in which rows are found: task, file, row, then what becomes of it

LAYOUTS: list[tuple[str, str, dict[str, Any], Question]] = [
    (
        "gsm8k",
        "gsm8k/test.jsonl",
        {"question": "How much?", "answer": "a <<1+1=2>>2\n#### 1,234"},
        Question("gsm8k/0", "How much?", "1234"),
    ),
    (
        "gsm8k",
        "gsm8k/main/test-00000-of-00001.parquet",
        {"question": "How much?", "answer": "#### -2"},
        Question("gsm8k/0", "How much?", "-2"),
    ),
    (
        "math500",
        "math500/test.jsonl",
        {
            "problem": "P",
            "solution": r"so $\boxed{7}$",
            "answer": r"\frac{1}{2}",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        },
        Question("test/algebra/1.json", "P", r"\frac{1}{2}", "Algebra"),
    ),
    (
        "aime24",
        "aime24/aime24.parquet",
        verl_row(f"Find $x$. {REQUEST}", "025", 3),
        Question("aime24/3", "Find $x$.", "025"),
    ),
    (
        "aime24",
        "aime24/data/train-00000-of-00001.parquet",
        {"id": 60, "problem": "Find $x$.", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
        Question("aime24/60", "Find $x$.", "204"),
    ),
    ("aime25", "aime25/test.jsonl", {"problem": "P", "answer": "70", "id": "0"}, Question("aime25/0", "P", "70")),
    (
        "amc23",
        "amc23/test.jsonl",
        {"id": 4, "problem": "P", "answer": 27.0, "url": "u", "question": "P"},
        Question("amc23/4", "P", "27"),
    ),
    (
        "amc23",
        "amc23/test-00000-of-00001.parquet",
        {"id": 4, "question": "P", "answer": "27.0", "url": "u"},
        Question("amc23/4", "P", "27"),
    ),
    (
        "olympiadbench",
        "olympiadbench/test.jsonl",
        {
            "id": 1606,
            "question": "P",
            "solution": ["s"],
            "final_answer": ["$2 m$"],
            "subfield": "Algebra",
            "context": None,
        },
        Question("olympiadbench/1606", "P", "2 m", "Algebra"),
    ),
    (
        "olympiadbench",
        "olympiadbench/data/test-00000-of-00001.parquet",
        {"id": 1, "question": "P", "final_answer": ["1", "$-1$"], "subfield": "Algebra"},
        Question("olympiadbench/1", "P", "1, $-1$", "Algebra"),
    ),
    (
        "minerva",
        "minerva/test.jsonl",
        {"problem": "P", "solution": r"first \boxed{1}, so \boxed{4.5e33}.", "type": "Astronomy", "idx": 0},
        Question("minerva/0", "P", "4.5e33", "Astronomy"),
    ),
    (
        "polymath_en",
        "polymath_en/en/low.parquet",
        {"id": "low-en-0", "question": "P", "answer": "3"},
        Question("low-en-0", "P", "3"),
    ),
    (
        "arc_c",
        "arc_c/ARC-Challenge/test-00000-of-00001.parquet",
        {
            "id": "Mercury_7",
            "question": "Which?",
            "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        Question("Mercury_7", "Which?\n\nA) a\nB) b\nC) c", "B"),
    ),
    (
        "arc_c",
        "arc_c/valid.arc_c.parquet",
        verl_row("Which?\n\nA) a\nB) b\nC) c\n", "C", 7),
        Question("arc_c/7", "Which?\n\nA) a\nB) b\nC) c", "C"),
    ),
    (
        "arc_c",
        "arc_c/valid.arc_c.parquet",
        verl_row("Which?\n\n1) a\n2) b\n", "2"),
        Question("arc_c/0", "Which?\n\nA) a\nB) b", "B"),
    ),
    (
        "mmlu_pro",
        "mmlu_pro/test.jsonl.gz",
        {"question_id": 70, "question": "Q", "options": list("qrstuvwxyz"), "answer": "J", "category": "law"},
        Question("mmlu_pro/70", "Q\n\nA) q\nB) r\nC) s\nD) t\nE) u\nF) v\nG) w\nH) x\nI) y\nJ) z", "J", "law"),
    ),
    (
        "mmlu_pro",
        "mmlu_pro/data/test-00000-of-00001.parquet",
        {"question_id": 1, "question": "Q", "options": ["only"], "answer": "A", "answer_index": 0, "category": "law"},
        Question("mmlu_pro/1", "Q\n\nA) only", "A", "law"),
    ),
    (
        "ifeval",
        "ifeval/input_data.jsonl",
        {"key": 1001, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        Question(
            "ifeval/1001",
            "No commas.",
            "",
            extra={"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        ),
    ),
    (
        "ifeval",
        "ifeval/data/train-00000-of-00001.parquet",
        {
            "key": 1,
            "prompt": "Long.",
            "instruction_id_list": ["length_constraints:number_words"],
            "kwargs": [{"num_words": 300, "relation": "at least", "keywords": None, "letter": None}],
        },
        Question(
            "ifeval/1",
            "Long.",
            "",
            extra={
                "prompt": "Long.",
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 300, "relation": "at least"}],
            },
        ),
    ),
    (
        "humaneval",
        "humaneval/HumanEval.jsonl.gz",
        {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f): ..."},
        Question(
            "HumanEval/0",
            "Complete this Python function.\n\n```python\ndef f(x):\n```",
            "",
            extra={"prompt": "def f(x):\n", "tests": "def check(f): ...", "entry_point": "f"},
        ),
    ),
    (
        "mbpp",
        "mbpp/mbpp.jsonl",
        {"task_id": 11, "text": "Add.", "code": "c", "test_list": ["assert f(1) == 2"], "test_setup_code": "import re"},
        Question(
            "mbpp/11",
            "Add.\n\nThe solution must pass these tests:\n\n```python\nassert f(1) == 2\n```",
            "",
            extra={"prompt": "Add.", "tests": ["assert f(1) == 2"], "setup": "import re", "entry_point": ""},
        ),
    ),
    (
        "livecodebench",
        "livecodebench/test6.jsonl",
        {
            "question_id": "abc301_a",
            "question_content": "Sum.",
            "starter_code": "",
            "difficulty": "easy",
            "public_test_cases": "[]",
            "private_test_cases": "packed",
            "metadata": "{}",
        },
        Question(
            "abc301_a",
            "Sum.\n\nWrite a Python program that reads the input from stdin and writes the answer to stdout.",
            "",
            "easy",
            {"prompt": "Sum.", "tests": {"public": "[]", "private": "packed"}, "starter_code": "", "metadata": "{}"},
        ),
    ),
]


@pytest.mark.parametrize(
    ("task", "file", "row", "expected"),
    LAYOUTS,
    ids=[f"{t}-{Path(f).name}-{k}" for k, (t, f, *_) in enumerate(LAYOUTS)],
)
def test_a_row_of_each_layout_becomes_its_question(tmp_path, task, file, row, expected) -> None:
    found = loaded(tmp_path, task, file, [row])
    assert found.items == (expected,)
    assert (found.origin, found.dropped) == (file, ())


def test_gpqa_puts_the_options_in_the_order_of_a_hash_and_the_gold_follows(tmp_path) -> None:
    rows = [
        {
            "Question": f"Q{k}",
            "Correct Answer": "right ",
            **{f"Incorrect Answer {j}": f"wrong {j}" for j in (1, 2, 3)},
            "High-level domain": "Physics",
            "Record ID": f"rec{k}",
        }
        for k in range(60)
    ]
    found = loaded(tmp_path, "gpqa_diamond", "gpqa_diamond/gpqa_diamond.csv", rows)
    assert len(found.items) == 60
    assert found.items[0].id == "rec0"
    assert found.items[0].category == "Physics"
    for item in found.items:
        assert f"\n{item.answer}) right\n" in item.text + "\n"
        assert sorted(line[3:] for line in item.text.splitlines()[2:]) == ["right", "wrong 1", "wrong 2", "wrong 3"]
    counts = [sum(item.answer == letter for item in found.items) for letter in "ABCD"]
    assert min(counts) >= 5  # 15 expected of each
    # sha256sum of "rec0/Correct Answer" begins with 32, of the wrong ones 69, aa and 4f
    assert found.items[0].text == "Q0\n\nA) right\nB) wrong 3\nC) wrong 1\nD) wrong 2"


def test_mbpp_asks_the_test_split_only(tmp_path) -> None:
    rows = [{"task_id": k, "text": "t", "test_list": ["assert f()"]} for k in (10, 11, 510, 511)]
    found = loaded(tmp_path, "mbpp", "mbpp/mbpp.jsonl", rows)
    assert [item.id for item in found.items] == ["mbpp/11", "mbpp/510"]
    assert found.dropped == ()


def test_livecodebench_gives_starter_code_when_there_is_some(tmp_path) -> None:
    row = {
        "question_id": "2919",
        "question_content": "Sum.",
        "starter_code": "class Solution:\n    ",
        "private_test_cases": "packed",
    }
    found = loaded(tmp_path, "livecodebench", "livecodebench/test.jsonl", [row])
    assert found.items[0].text == "Sum.\n\nComplete this Python code.\n\n```python\nclass Solution:\n```"
    assert found.items[0].id == "livecodebench/2919"


def test_one_box_is_asked_for_and_never_two(tmp_path) -> None:
    found = loaded(tmp_path, "aime24", "aime24/aime24.parquet", [verl_row(f"Find $x$. {REQUEST}", "25")])
    prompt = prompt_from_config(yaml.safe_load((CONF / "prompt" / "boxed.yaml").read_text()))
    assert prompt.messages(found.items[0].text)[0]["content"].count(r"\boxed") == 1


def test_arithmetic_is_made_and_shares_nothing_with_training() -> None:
    from reasonrl.data.arithmetic import split_of

    found = load_questions(load_task("arithmetic"))
    assert len(found.items) == 256
    assert {split_of(item.text) for item in found.items} == {"test"}
    assert {item.category for item in found.items} == {"2 numbers", "3 numbers", "4 numbers"}
    assert found.sha256 == load_questions(load_task("arithmetic")).sha256
    assert found.items[0] == Question("arithmetic/85+69=?", "85+69=?", "154", "2 numbers")


# Golds and options


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("72", "72"),
        (27.0, "27"),
        ("27.0", "27"),
        ("-3.00", "-3"),
        ("2.50", "2.50"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("x \\in \\{1, 2\\}", "x \\in \\{1, 2\\}"),
        ("\\text{(C)}", "\\text{(C)}"),
        ("{1", "{1"),  # unbalanced: kept
        (["1", "2"], "1, 2"),
        (["$5$"], "5"),
        (7, "7"),
        (True, ""),
        (None, ""),
        ([], ""),
    ],
)
def test_a_gold_answer_is_trimmed_as_a_models_answer_is(value, gold) -> None:
    assert gold_answer(value) == gold


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[("B", "B"), ("c", "C"), (0, "A"), (2, "C"), ("Jupiter", "B")],
        *[(3, None), (-1, None), ("D", None), ("2", None), ("", None), (True, None), ("Mars and Venus", None)],
    ],
)
def test_a_gold_names_an_option_by_letter_number_or_text(answer, letter) -> None:
    assert option_letter(answer, ["Mars", "Jupiter", "Venus"]) == letter


def test_two_options_of_one_text_cannot_be_told_apart() -> None:
    assert option_letter("Mars", ["Mars", "Mars"]) is None
    assert option_letter("B", ["Mars", "Mars"]) == "B"


def test_the_form_of_a_question_with_options() -> None:
    assert (
        with_options("Which planet is largest?", ["Mars", "Jupiter"])
        == "Which planet is largest?\n\nA) Mars\nB) Jupiter"
    )


# Tasks of one's own


def test_a_task_of_ones_own_is_one_file_beside_its_rows(tmp_path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "1+1?", "answer": 2}, {"question": "2+2?", "answer": "4"}])
    task = load_task(own_task(tmp_path))
    assert (task.name, task.title, task.size) == ("mine", "mine", None)
    assert (task.prompt, task.base_prompt, task.verify) == ("boxed", "boxed_text", "either")
    found = load_questions(task)
    assert found.items == (Question("mine/0", "1+1?", "2"), Question("mine/1", "2+2?", "4"))
    expected = b'["mine/0", "1+1?", "2", {}]\n["mine/1", "2+2?", "4", {}]\n'
    assert found.sha256 == hashlib.sha256(expected).hexdigest()
    assert found.origin == str(tmp_path / "rows.jsonl")


def test_its_columns_may_have_any_name_and_be_nested(tmp_path) -> None:
    options = {"question_field": "q.text", "answer_field": ["gold", "a"], "id_field": "key", "category_field": "topic"}
    row = {"q": {"text": "1+1?"}, "a": "2", "key": "sum", "topic": 3}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    found = load_questions(load_task(own_task(tmp_path, name="sums", options=options)))
    assert found.items == (Question("sum", "1+1?", "2", "3"),)


@pytest.mark.parametrize("gold", ["B", "b", 1, "Jupiter"])
@pytest.mark.parametrize("options", [PLANETS["options"], {"A": "Mars", "B": "Jupiter", "C": "Venus", "D": None}])
def test_a_choice_of_ones_own(tmp_path, gold, options) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{**PLANETS, "options": options, "answer": gold}])
    task = load_task(own_task(tmp_path, kind="choice", options={"options_field": "options"}))
    assert (task.prompt, task.verify) == ("choice", "choice")
    text = "Which planet is largest?\n\nA) Mars\nB) Jupiter\nC) Venus"
    assert load_questions(task).items == (Question("mine/0", text, "B"),)


def test_a_choice_may_bring_its_options_in_the_question(tmp_path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "Which?\n(A) x (B) y", "answer": "b"}])
    assert load_questions(load_task(own_task(tmp_path, kind="choice"))).items[0].answer == "B"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "anwser"}, r"mine.yaml: Unknown kind 'anwser'. Did you mean 'answer'"),
        ({"promt": "boxed"}, r"Unknown setting in the task 'promt'. Did you mean 'prompt'"),
        ({"prompt": "boxd"}, r"Unknown prompt 'boxd'; did you mean boxed"),
        ({"prompt": "orz"}, r"prompt=orz is of kind text; it must be of kind chat"),
        ({"base_prompt": "boxed"}, r"base_prompt=boxed is of kind chat; it must be of kind text"),
        ({"verify": "eether"}, r"Unknown verify 'eether'; did you mean either"),
        ({"format": "field"}, r"Unknown format 'field'. Did you mean 'fields'"),
        ({"format": "gpqa"}, r"format=gpqa is for kind choice, not answer"),
        (
            {"options": {"question": "q"}},
            r"Unknown option of format 'fields': 'question'. Did you mean 'question_field'",
        ),
        ({"options": {"question_field": 3}}, r"options.question_field must be a column or a list of columns, got 3"),
        ({"options": {"options_field": "o"}}, r"options.options_field is for kind choice, not answer"),
        ({"options": ["question"]}, r"options must be key: value lines"),
        ({"source": {"hub": "a/b", "splitt": "test"}}, r"Unknown setting in source 'splitt'. Did you mean 'split'"),
        ({"source": {"files": [1]}}, r"source.files must be a pattern or a list of patterns"),
        ({"source": {}}, r"source names neither hub= nor files="),
        ({"source": "rows.jsonl"}, r"source must be key: value lines"),
        ({"sampling": {"n": 0}}, r"sampling.n must lie in \[1, inf\), got 0"),
        ({"sampling": {"n": 4}}, r"sampling.n=4 with temperature 0 gives the same answer 4 times"),
        ({"sampling": {"temprature": 1}}, r"Unknown setting in sampling 'temprature'"),
        ({"sampling": {"top_k": 0}}, r"sampling.top_k must lie in \[1, inf\)"),
        ({"name": "my task"}, r"name='my task' becomes a file's name"),
        ({"size": 0}, r"size must lie in \[1, inf\)"),
    ],
)
def test_an_impossible_task_is_refused_before_anything_is_read(tmp_path, values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(own_task(tmp_path, **values))


def test_a_task_needs_a_kind_and_a_source(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("source: {hub: a/b}\n")
    with pytest.raises(ConfigError, match=r"kind= is missing: one of answer, choice, instructions, code"):
        load_task(str(file))
    file.write_text("kind: answer\n")
    with pytest.raises(ConfigError, match=r"the task lacks source"):
        load_task(str(file))
    with pytest.raises(ConfigError, match=r"no file .*other.yaml"):
        load_task(str(tmp_path / "other.yaml"))


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"Unknown task 'gsm8'; did you mean gsm8k\?.*Choices: aime24"):
        load_task("gsm8")
    with pytest.raises(ConfigError, match=r"task=my/gsm8k is no name, and as a file it must end in .yaml"):
        load_task("my/gsm8k")


# Finding files


def gsm(question: str, answer: str = "#### 1") -> dict[str, str]:
    return {"question": question, "answer": answer}


def test_the_tasks_own_folder_comes_before_the_folder_itself(tmp_path) -> None:
    write_jsonl(tmp_path / "gsm8k.jsonl", [gsm("outer")])
    assert load_questions(load_task("gsm8k"), data_dir=tmp_path).items[0].text == "outer"
    write_jsonl(tmp_path / "gsm8k" / "test.jsonl", [gsm("inner")])
    assert load_questions(load_task("gsm8k"), data_dir=tmp_path).items[0].text == "inner"


def test_several_files_of_one_pattern_are_one_set_in_order_of_name(tmp_path) -> None:
    for k in (1, 0):
        write(tmp_path / f"gsm8k/main/test-0000{k}-of-00002.parquet", [gsm(f"part {k}")])
    found = load_questions(load_task("gsm8k"), data_dir=tmp_path)
    assert [item.text for item in found.items] == ["part 0", "part 1"]
    assert [item.id for item in found.items] == ["gsm8k/0", "gsm8k/1"]
    assert found.origin == "gsm8k/main/test-00000-of-00002.parquet, gsm8k/main/test-00001-of-00002.parquet"


def test_a_file_that_could_be_any_sets_is_not_taken_for_this_one(tmp_path) -> None:
    """data_dir=<folder of MATH500> task=math500,amc23 must not score MATH500 twice."""
    write_jsonl(tmp_path / "test.jsonl", [{"problem": "P", "answer": "1"}])
    with pytest.raises(DataError, match=r"test.jsonl lies in .*, but its name does not say whose it is.*amc23/\."):
        load_questions(load_task("amc23"), data_dir=tmp_path)
    write_jsonl(tmp_path / "MATH-500" / "test.jsonl", [{"problem": "P", "answer": "1"}])
    assert load_questions(load_task("math500"), data_dir=tmp_path / "MATH-500").items[0].text == "P"


def test_what_is_missing_is_told_with_the_way_to_get_it(tmp_path) -> None:
    with pytest.raises(DataError) as told:
        load_questions(load_task("gsm8k"), data_dir=tmp_path)
    message = str(told.value)
    assert f"Looked in {tmp_path}/gsm8k/ and {tmp_path}/ for test.jsonl" in message
    assert f"hf download openai/gsm8k --repo-type dataset --local-dir {tmp_path}/gsm8k" in message
    assert f"put it there as {tmp_path}/gsm8k/test.jsonl" in message
    assert "MIT" in message


def test_a_gated_set_says_which_terms_to_accept(tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa, then: hf auth login"
    ):
        load_questions(load_task("gpqa_diamond"), data_dir=tmp_path)


def test_a_set_that_the_hub_cannot_give_says_how_to_get_it_otherwise() -> None:
    with pytest.raises(DataError, match=r"livecodebench: no data.*hf download livecodebench/code_generation_lite"):
        load_questions(load_task("livecodebench"))


def test_a_hub_that_does_not_answer_is_told_in_the_words_of_this_command(monkeypatch) -> None:
    def unreachable(*_: object) -> None:
        raise DataError("give path=") from ConnectionError("no network\nand more")

    monkeypatch.setattr(load, "from_hub", unreachable)
    with pytest.raises(DataError) as told:
        load_questions(load_task("gsm8k"))
    assert "openai/gsm8k cannot be loaded from the hub (ConnectionError: no network)" in str(told.value)
    assert "give data_dir=<data_dir>" in str(told.value)
    assert "path=" not in str(told.value)


def test_the_hub_is_asked_for_the_set_and_named_as_its_origin(monkeypatch) -> None:
    asked = []

    def hub(*args: object) -> Any:
        asked.append(args)
        return iter([load.Row("openai/gsm8k[test]:0", gsm("from the hub"))])

    monkeypatch.setattr(load, "from_hub", hub)
    found = load_questions(load_task("gsm8k"))
    assert asked == [("openai/gsm8k", "test", "main", None)]
    assert (found.origin, found.items[0].text) == ("openai/gsm8k@main", "from the hub")


def test_with_a_folder_nothing_is_ever_downloaded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(load, "from_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no data"):
        load_questions(load_task("gsm8k"), data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load_questions(load_task("gsm8k"), data_dir=tmp_path / "nowhere")


# Rows that cannot be used


def test_rows_without_an_answer_are_dropped_and_counted_with_their_place(tmp_path) -> None:
    rows = [gsm("ok"), gsm("no mark", "72"), gsm("empty", "#### "), gsm("", "#### 5"), "{not json", gsm("ok too")]
    found = loaded(tmp_path, "gsm8k", "gsm8k/test.jsonl", rows)
    assert [item.id for item in found.items] == ["gsm8k/0", "gsm8k/5"]  # a row keeps its place
    assert found.dropped == (
        Dropped("no '#### answer' line", "test.jsonl:2"),
        Dropped("no answer", "test.jsonl:3"),
        Dropped("no question", "test.jsonl:4"),
        Dropped("not JSON", "test.jsonl:5"),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": None}, "no answer"),
        ({"answer": "K"}, "the answer names none of the options"),
        ({"options": None}, "no list of at most 26 options"),
        ({"options": ["a", ""]}, "no list of at most 26 options"),
        ({"options": list(range(27))}, "no list of at most 26 options"),
        ({"question": " "}, "no question"),
    ],
)
def test_choices_that_cannot_be_asked_are_dropped(tmp_path, row, reason) -> None:
    good = {"question": "Q", "options": ["a", "b"], "answer": "A"}
    found = loaded(tmp_path, "mmlu_pro", "mmlu_pro/test.jsonl", [{**good, "question_id": 1}, {**good, **row}])
    assert found.dropped == (Dropped(reason, "test.jsonl:2"),)


def test_a_set_of_which_every_row_is_dropped_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"gsm8k/test.jsonl holds no question: all 2 rows were dropped \(2 x no '####"):
        loaded(tmp_path, "gsm8k", "gsm8k/test.jsonl", [gsm("a", "1"), gsm("b", "2")])


def test_an_empty_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"test.jsonl is empty; copy it again"):
        loaded(tmp_path, "gsm8k", "gsm8k/test.jsonl", [])


def test_a_file_of_another_kind_is_refused_by_its_columns(tmp_path) -> None:
    with pytest.raises(
        DataError,
        match=r"test.jsonl:1: no question column for task math500 \(looked for problem or question\); the columns are prompt",
    ):
        loaded(tmp_path, "math500", "math500/test.jsonl", [{"prompt": "P", "answer": "1"}])


def test_a_column_that_is_named_must_be_there(tmp_path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "1+1?", "answer": 2}])
    with pytest.raises(DataError, match=r"no id column for task mine \(looked for key\).*options.id_field"):
        load_questions(load_task(own_task(tmp_path, options={"id_field": "key"})))


def test_an_id_that_comes_twice_is_refused(tmp_path) -> None:
    rows = [{"problem": "P", "answer": "1", "unique_id": name} for name in ("a", "b", "a")]
    with pytest.raises(
        DataError, match=r"question 3 of math500/test.jsonl has the id 'a' of question 1; leave one out"
    ):
        loaded(tmp_path, "math500", "math500/test.jsonl", rows)


def test_a_limit_takes_the_first_and_changes_the_hash(tmp_path) -> None:
    rows = [gsm("a"), gsm("dropped", "1"), gsm("b"), gsm("c")]
    whole = loaded(tmp_path, "gsm8k", "gsm8k/test.jsonl", rows)
    two = load_questions(load_task("gsm8k"), data_dir=tmp_path, limit=2)
    assert [item.text for item in two.items] == ["a", "b"]
    assert len(two.dropped) == 1
    assert two.sha256 != whole.sha256


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction_id_list": ["punctuation:no_coma"]},
            r"jsonl:1: Unknown instruction 'punctuation:no_coma'. Did you mean 'punctuation:no_comma'",
        ),
        ({"kwargs": [{"num_words": 3}]}, r"input_data.jsonl:1: instruction punctuation:no_comma has no num_words"),
        ({"kwargs": []}, r"input_data.jsonl:1: 1 instructions, but kwargs for 0"),
        (
            {"instruction_id_list": ["startend:end_checker"]},
            r"instruction startend:end_checker lacks end_phrase; mend the row",
        ),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_when_they_are_loaded(tmp_path, row, message) -> None:
    good = {"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, "ifeval", "ifeval/input_data.jsonl", [{**good, **row}])


def test_the_hash_sees_ids_texts_answers_and_extras(tmp_path) -> None:
    def hashed(**changes: Any) -> str:
        good = {
            "key": 1,
            "prompt": "P",
            "instruction_id_list": ["startend:end_checker"],
            "kwargs": [{"end_phrase": "x"}],
        }
        return loaded(tmp_path, "ifeval", "ifeval/input_data.jsonl", [{**good, **changes}]).sha256

    changed = [hashed(), hashed(key=2), hashed(prompt="Q"), hashed(kwargs=[{"end_phrase": "y"}])]
    assert len(set(changed)) == 4
    assert hashed() == changed[0]


def test_rows_of_json_survive_what_json_allows(tmp_path) -> None:
    """Half of an emoji, a whole one and a line separator stay what they are, and can be hashed."""
    found = loaded(tmp_path, "gsm8k", "gsm8k/test.jsonl", [json.dumps(gsm("\ud83d \u2028 \U0001f600"))])
    assert found.items[0].text == "\ud83d \u2028 \U0001f600"
