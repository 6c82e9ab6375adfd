"""Each source on rows in its own form; files and folders of every kind; complaints that name the way out."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from data_builders import write_jsonl

from reasonrl import conf
from reasonrl.data import gym, readers
from reasonrl.data.items import DataError, Dropped, Item
from reasonrl.data.sources import SOURCES, DataConfig, data_from_config, items

CONF = Path(next(iter(conf.__path__))) / "data"
QA = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


def config(source: str, **settings: Any) -> DataConfig:
    return data_from_config({"name": source, "source": source, **settings})


def read(source: str, tmp_path: Path, rows: list[Any], **settings: Any) -> list[Item | Dropped]:
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    return list(items(config(source, path=str(path), **settings), "train"))


# -- parsers -------------------------------------------------------------------------------------------------------


def test_gsm8k_rows(tmp_path: Path) -> None:
    solution = "She has 500*2 = <<500*2=1000>>1000.\nSo 1000+234 = $<<1000+234=1234>>1,234.\n#### 1,234"
    made = read("gsm8k", tmp_path, [{"question": " How many? ", "answer": solution}, {"question": "q", "answer": "7"}])
    steps = ("She has 500*2 = 1000.", "So 1000+234 = $1,234.")
    assert made == [
        Item("How many?", "1234", steps, "gsm8k"),
        Dropped("no '#### answer' line", "train.jsonl:2"),
    ]


def test_math_rows_take_the_last_box_when_no_column_has_the_answer(tmp_path: Path) -> None:
    solution = r"First $x=1$. Then $\boxed{\frac{1}{2}}$."
    rows = [
        {"problem": "p1", "solution": solution, "answer": "0.5", "level": "Level 5", "unique_id": "test/1.json"},
        {"problem": "p2", "solution": solution, "level": "Level ?"},
        {"problem": "p3", "solution": "no box"},
        {"problem": "p4", "answer": 27.0},
        {"problem": "", "answer": "1"},
    ]
    steps = ("First $x=1$. ", r"Then $\boxed{\frac{1}{2}}$.")
    assert read("math", tmp_path, rows) == [
        Item("p1", "0.5", steps, "math", "math/test/1.json", 5.0),
        Item("p2", r"\frac{1}{2}", steps, "math"),
        Dropped("no answer", "train.jsonl:3"),
        Item("p4", "27", (), "math"),
        Dropped("no question", "train.jsonl:5"),
    ]


def test_deepmath_rows_in_both_published_forms(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "final_answer": "1", "difficulty": 4.5, "r1_solution_1": "long"},
        {"id": "9", "prompt": "b", "ground_truth": "2", "difficulty": "-1.0"},
    ]
    assert read("deepmath103k", tmp_path, rows) == [
        Item("a", "1", (), "deepmath103k", None, 4.5),
        Item("b", "2", (), "deepmath103k", "deepmath103k/9", -1.0),
    ]


def test_skywork_rows_lose_their_request_for_a_box(tmp_path: Path) -> None:
    def row(question: str, gold: str, ability: str = "math") -> dict[str, Any]:
        chat = [{"role": "system", "content": "s"}, {"role": "user", "content": question}]
        level = {"model_difficulty": {"m1": 4, "m2": 8, "m3": None}}
        return {"prompt": chat, "reward_model": {"ground_truth": gold}, "ability": ability, "extra_info": level}

    asked = r"What is $x$? Let's think step by step and output the final answer within \boxed{}."
    rows = [row(asked, '["204"]'), row("q2", '["1", "2"]'), row("q3", "[0, 1]"), row("q4", "5", "code")]
    assert read("skywork_or1", tmp_path, rows) == [
        Item("What is $x$?", "204", (), "skywork_or1", None, 6.0),
        Dropped("several gold answers", "train.jsonl:2"),
        Item("q3", "[0, 1]", (), "skywork_or1", None, 6.0),
        Dropped("ability is not math: code", "train.jsonl:4"),
    ]


def test_own_fields_reach_nested_columns(tmp_path: Path) -> None:
    rows = [{"q": "a", "gold": {"value": 3}, "hint": ["x\n", "y"], "key": 7, "hard": 2}]
    fields = {"question": "q", "answer": "gold.value", "steps": "hint", "id": "key", "level": "hard"}
    made = read("jsonl", tmp_path, rows, **{f"{part}_field": name for part, name in fields.items()})
    assert made == [Item("a", "3", ("x\n", "y"), "jsonl", "jsonl/7", 2.0)]


def test_own_steps_may_be_one_text_and_must_be_text(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "1", "steps": "x\n\ny"}, {"question": "b", "answer": "1", "steps": [1]}]
    made = read("jsonl", tmp_path, rows)
    assert made == [Item("a", "1", ("x", "y"), "jsonl"), Dropped("steps are not texts", "train.jsonl:2")]


def test_steps_are_cut_as_the_configuration_says(tmp_path: Path) -> None:
    def steps(source: str, row: dict[str, Any], **settings: Any) -> tuple[str, ...]:
        made = read(source, tmp_path, [row], **settings)[0]
        assert isinstance(made, Item)
        return made.steps

    numbered = "1. One. Two.\nThree.\n2. Four.\n"
    gsm8k = {"question": "q", "answer": f"{numbered}#### 4", "other": "x\ny"}
    assert steps("gsm8k", gsm8k, steps="numbered") == ("1. One. Two.\nThree.\n", "2. Four.\n")
    assert steps("gsm8k", gsm8k, steps="none") == ()
    assert steps("gsm8k", gsm8k, steps_field="other") == ("x", "y")
    math = {"problem": "p", "solution": numbered, "answer": "4"}
    assert steps("math", math, steps="lines") == ("1. One. Two.", "Three.", "2. Four.")
    own = {"question": "q", "answer": "4", "steps": ["1. One.", "Two.\n", "", "2. Four."], "text": numbered}
    assert steps("jsonl", own) == ("1. One.", "Two.\n", "", "2. Four.")  # a list is cut already
    assert steps("jsonl", own, steps="auto") == ("1. One.\nTwo.\n", "2. Four.\n")  # unless cutting is asked for
    assert steps("jsonl", own, steps="none") == ()
    assert steps("jsonl", own, steps_field="text") == ("1. One. Two.", "Three.", "2. Four.")
    assert steps("jsonl", own, steps_field="text", steps="paragraphs") == (numbered,)


def test_deepmath_and_skywork_solutions_are_what_follows_the_reasoning(tmp_path: Path) -> None:
    response = "Hm, \\boxed{3}?\n\nNo.\n</think>\n\nAdd.\n\nSo \\boxed{2}."
    row = {"question": "a", "final_answer": "2", "r1_solution_1": "1+1", "r1_solution_2": response}
    first, second = ("r1_solution_1", "r1_solution_2")
    assert read("deepmath103k", tmp_path, [row]) == [Item("a", "2", (), "deepmath103k")]
    assert read("deepmath103k", tmp_path, [row], steps_field=first) == [Item("a", "2", ("1+1",), "deepmath103k")]
    cut = ("\n\nAdd.\n\n", "So \\boxed{2}.")
    assert read("deepmath103k", tmp_path, [row], steps_field=second) == [Item("a", "2", cut, "deepmath103k")]
    chat = {"prompt": "a", "reward_model": {"ground_truth": "2"}, "r1": response}
    whole = ("".join(cut),)
    made = read("skywork_or1", tmp_path, [chat], steps_field="r1", steps="numbered")
    assert made == [Item("a", "2", whole, "skywork_or1")]


@pytest.mark.parametrize("steps", [5, {"a": "b"}, [None], [["a"]]])
def test_steps_of_another_type_drop_the_row(tmp_path: Path, steps: object) -> None:
    made = read("jsonl", tmp_path, [{"question": "a", "answer": "1", "steps": steps}])
    assert made == [Dropped("steps are not texts", "train.jsonl:1")]


@pytest.mark.parametrize("answer", [None, [1], {"a": 1}, True, "", "  "])
def test_answers_that_are_no_text_or_number_are_dropped(tmp_path: Path, answer: object) -> None:
    made = read("jsonl", tmp_path, [*QA, {"question": "c", "answer": answer}])
    assert made[2] == Dropped("no answer", "train.jsonl:3")


def test_broken_lines_are_dropped_by_number(tmp_path: Path) -> None:
    made = read("jsonl", tmp_path, [QA[0], "{broken", "[1]", "", QA[1]])
    assert made[1:3] == [Dropped("not JSON", "train.jsonl:2"), Dropped("not a JSON record", "train.jsonl:3")]
    assert len(made) == 4


# -- files and folders -----------------------------------------------------------------------------------------------


def _as_files(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(QA))
    (folder / "b.json").write_text(json.dumps({"version": 1, "data": QA}))
    (folder / "c.json.gz").write_bytes(gzip.compress(json.dumps(QA).encode()))
    pq.write_table(pa.Table.from_pylist(QA), folder / "d.parquet")
    write_jsonl(folder / "e.jsonl", QA)
    write_jsonl(folder / "f.jsonl.gz", QA)
    return {path.name: path for path in folder.iterdir()}


def test_every_file_form_gives_the_same_items(tmp_path: Path) -> None:
    for name, path in _as_files(tmp_path / "d").items():
        made = list(items(config("jsonl", path=str(path)), "train"))
        assert made == [Item("1+1?", "2", (), "jsonl"), Item("2+2?", "4", (), "jsonl")], name


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.jsonl", "train"),
        ("my_train_v2.jsonl", "train"),
        ("train/part-0.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("valid.jsonl", "validation"),
        ("val.jsonl.gz", "validation"),
        ("test.jsonl", "test"),
    ],
)
def test_a_folder_gives_the_files_named_after_the_split(tmp_path: Path, file: str, split: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    write_jsonl(tmp_path / "contest.jsonl", QA)  # ends in "test", but is not called so
    assert readers.split_files(tmp_path, split) == [tmp_path / file]


def test_a_subset_is_a_subfolder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "main" / "train.jsonl", QA)
    write_jsonl(tmp_path / "socratic" / "train.jsonl", QA)
    assert len(readers.split_files(tmp_path, "train")) == 2
    assert readers.split_files(tmp_path, "train", "main") == [tmp_path / "main" / "train.jsonl"]


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(QA)}).save_to_disk(str(tmp_path / "saved"))
    made = list(items(config("jsonl", path=str(tmp_path / "saved")), "train"))
    assert [item.answer for item in made if isinstance(item, Item)] == ["2", "4"]
    with pytest.raises(DataError, match="has no split 'test'; there are train"):
        list(items(config("jsonl", path=str(tmp_path / "saved")), "test"))


def _bad_files(folder: Path) -> dict[str, Path]:
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "junk.parquet").write_bytes(b"junk")
    (folder / "junk.json").write_bytes(b"{")
    (folder / "scalar.json").write_bytes(b"3")
    (folder / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "1", "answer": "1"}\n' * 9)[:-9])
    (folder / "table.csv").write_bytes(b"a,b")
    (folder / "void").mkdir()
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", r"no file or folder .*missing\.jsonl .*give the right one as path="),
        ("empty.jsonl", r"empty\.jsonl is empty"),
        ("junk.parquet", r"junk\.parquet is not a readable parquet file"),
        ("junk.json", r"junk\.json is not JSON.*needs the name \.jsonl"),
        ("scalar.json", r"scalar\.json holds no list of records"),
        ("latin.jsonl", r"latin\.jsonl: cannot be read as UTF-8"),
        ("cut.jsonl.gz", r"cut\.jsonl\.gz: cannot be read as UTF-8 lines: Compressed file ended"),
        ("table.csv", r"table\.csv: cannot read this kind of file; known are \.jsonl"),
        ("void", r"void holds no \.jsonl.* file; give a file or another folder"),
    ],
)
def test_bad_files_are_errors_with_the_way_out(tmp_path: Path, name: str, message: str) -> None:
    _bad_files(tmp_path)
    with pytest.raises(DataError, match=message):
        list(items(config("jsonl", path=str(tmp_path / name)), "train"))


def test_a_folder_without_the_split_lists_what_it_has(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", QA)
    with pytest.raises(DataError, match=r"no file in .* is named after the split 'train'; there are test\.jsonl"):
        list(items(config("jsonl", path=str(tmp_path)), "train"))


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("jsonl", {"q": "1", "answer": "2"}, r"train\.jsonl:1: no question column .*the columns are q, answer.*question_field"),
        ("jsonl", {"question": "1", "a": "2"}, r"no answer column .*looked for answer.*answer_field=\.\.\., in a run with"),
        ("gsm8k", {"problem": "1"}, r"no question column for source=gsm8k"),
        ("math", {"problem": "1", "other": "2"}, r"no answer column .*answer or final_answer or expected_answer or solution"),
        ("skywork_or1", {"prompt": [], "reward_model": 3}, r"no answer column .*reward_model\.ground_truth"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_names_its_columns(
    tmp_path: Path, source: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(source, tmp_path, [row])


def test_a_field_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no steps column .*looked for hints"):
        read("jsonl", tmp_path, QA, steps_field="hints")


def test_a_hub_that_cannot_be_reached_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"cannot load openai/gsm8k \(main\).*no network\. Download .*data\.path="):
        list(items(config("gsm8k", hub="openai/gsm8k", subset="main"), "train"))


def test_the_hub_is_asked_for_exactly_what_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[Any, ...]] = []

    def load(path: str, **keywords: Any) -> list[dict[str, str]]:
        asked.append((path, keywords))
        return QA

    monkeypatch.setattr(datasets, "load_dataset", load)
    made = list(items(config("jsonl", hub="me/set", subset="s", revision="abc"), "train"))
    assert asked == [("me/set", {"name": "s", "split": "train", "revision": "abc"})]
    assert len(made) == 2


def test_a_source_without_path_and_hub_asks_for_one() -> None:
    with pytest.raises(DataError, match="data=jsonl needs path="):
        list(items(config("jsonl"), "train"))


# -- sources that make their problems --------------------------------------------------------------------------------


def test_arithmetic_is_made_on_the_fly_with_its_own_knobs() -> None:
    settings = config("arithmetic", max_terms=2, digits=1, seed=3)
    made = [item for item in items(settings, "train", 20) if isinstance(item, Item)]
    assert len(made) == 20
    assert all(len(item.steps) == 1 for item in made)
    assert settings.val_split == "validation"
    plain = config("arithmetic", max_terms=2, digits=1, seed=3, steps="none")
    assert [item.steps for item in items(plain, "train", 3) if isinstance(item, Item)] == [()] * 3
    with pytest.raises(DataError, match="lower the size"):
        list(items(settings, "train", 10**6))


def test_reasoning_gym_without_its_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "reasonrl\[reasoning-gym\]"'):
        list(items(config("reasoning_gym"), "train", 3))


def test_reasoning_gym_tasks_with_many_answers_are_refused() -> None:
    with pytest.raises(DataError, match="'countdown' has many right answers.*not safe"):
        list(items(config("reasoning_gym", task="countdown"), "train", 3))


FAKE_GYM = """
import os
class factory: DATASETS = {"chain_sum": 1, "gcd": 1}
def create_dataset(name, seed, size, **options):
    rows = [{"question": f"{name} {seed} {i} {sorted(options)}", "answer": str(i), "metadata": {}} for i in range(size)]
    rows[0]["answer"] = None
    rows[1]["metadata"] = {"answer_cot": "one\\ntwo\\n#### 1"}
    rows[2]["question"] = os.environ["PYTHONHASHSEED"]
    if options.get("fail"): raise ValueError("bad option")
    return rows
"""


@pytest.fixture
def fake_gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym.py").write_text(FAKE_GYM)
    monkeypatch.setattr(gym, "find_spec", lambda name: object())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("fake_gym")
def test_reasoning_gym_rows_come_from_a_child_with_a_fixed_hash_seed() -> None:
    made = list(items(config("reasoning_gym", task="gcd", options={"n": 2}, seed=5), "train", 4))
    assert made == [
        Dropped("no single gold answer", "gcd[seed 5]:0"),
        Item("gcd 5 1 ['n']", "1", ("one", "two"), "reasoning_gym"),
        Item("0", "2", (), "reasoning_gym"),
        Item("gcd 5 3 ['n']", "3", (), "reasoning_gym"),
    ]
    whole = list(items(config("reasoning_gym", steps="sentences"), "train", 3))[1]
    assert isinstance(whole, Item)
    assert whole.steps == ("one\ntwo\n",)
    other = [item for item in items(config("reasoning_gym", seed=5), "validation", 4) if isinstance(item, Item)]
    assert other[-1].question.startswith("chain_sum 1000008 ")


@pytest.mark.usefixtures("fake_gym")
def test_reasoning_gym_failures_are_told() -> None:
    with pytest.raises(DataError, match=r"Unknown reasoning_gym task 'gcdd'\. Did you mean 'gcd'"):
        list(items(config("reasoning_gym", task="gcdd"), "train", 3))
    with pytest.raises(DataError, match="'gcd' failed: ValueError: bad option"):
        list(items(config("reasoning_gym", task="gcd", options={"fail": 1}), "train", 3))


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_data_configuration_is_valid(file: Path) -> None:
    loaded = data_from_config(yaml.safe_load(file.read_text()))
    assert loaded.name == file.stem
    assert loaded.overlong == "drop"


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"skywork_or1"}))
def test_a_configuration_names_how_solutions_are_cut(source: str) -> None:
    settings = yaml.safe_load((CONF / f"{source}.yaml").read_text())
    assert settings["steps"] is None  # the source's own way; a key that is not there could not be overridden
    assert data_from_config({**settings, "steps": "none"}).steps == "none"


def test_every_source_has_a_configuration() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} >= set(SOURCES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "gsmk"}, r"Unknown data\.source 'gsmk'\. Did you mean 'gsm8k'"),
        ({"source": "gsm8k", "sizes": 3}, r"'sizes'\. Did you mean 'size'"),
        ({"source": "gsm8k", "min_terms": 3}, r"Unknown setting of data source 'gsm8k': 'min_terms'"),
        ({"source": "arithmetic", "max_term": 3}, r"'max_term'\. Did you mean 'max_terms'"),
        ({"source": "gsm8k", "size": "many"}, r"data\.size must be int or null, got 'many'"),
        ({"source": "gsm8k", "size": 0}, r"data\.size must be >= 1"),
        ({"source": "gsm8k", "overlong": "cut"}, r"Unknown data\.overlong 'cut'"),
        ({"source": "gsm8k", "seed": True}, r"data\.seed must be int, got True"),
        (
            {"source": "gsm8k", "steps": "number"},
            r"Unknown data\.steps 'number'\. Did you mean 'numbered'\? Choices: auto",
        ),
        ({"source": "gsm8k", "steps": 3}, r"data\.steps must be str or null, got 3"),
        (
            {"source": "deepmath103k", "steps": "lines"},
            r"source=deepmath103k takes none by itself: .*data\.steps_field=",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_from_config({"name": "x", **settings})


def test_the_same_checks_hold_for_a_config_made_in_python() -> None:
    with pytest.raises(ValueError, match=r"Unknown data\.source"):
        DataConfig(name="x", source="gsm")
    assert replace(DataConfig(name="x", source="gsm8k"), size=3).size == 3


def test_sources_import_nothing_heavy() -> None:
    import subprocess

    code = "import sys, reasonrl.data.sources, reasonrl.data.prompts, reasonrl.verify.pool; print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "transformers", "datasets", "pyarrow", "sympy", "math_verify", "verl", "ray"):
        assert f"'{heavy}'" not in done.stdout, heavy
