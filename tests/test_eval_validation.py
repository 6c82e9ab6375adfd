"""Validating a run on the tasks of `reasonrl eval`: their questions, prompts and graders, and nothing of them trained on."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from reasonrl.cli import composed
from reasonrl.config import ConfigError, package_path
from reasonrl.data.items import Item
from reasonrl.data.prepare import build
from reasonrl.data.problems import load
from reasonrl.data.prompts import prompt_from_config
from reasonrl.engine.verl.trainer import accuracy_by_source
from reasonrl.eval.validation import TaskValidation
from reasonrl.train import prepare

TINY = package_path("pkg://reasonrl.assets.tiny/model")
SUMS = [("12+3=?", ["14", "15"], "B"), ("2+3=?", ["5", "6"], "A"), ("9-4=?", ["5", "4"], "A")]


def own_task(folder: Path, name: str, kind: str, rows: list[dict[str, Any]], **options: str) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": kind, "source": {"files": [f"{name}.jsonl"]}, "format": "fields", "options": options}
    file = folder / f"{name}.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(task)))
    return file


def choice(folder: Path) -> Path:
    rows = [{"question": q, "options": o, "answer": a} for q, o, a in SUMS]
    fields = {"question_field": "question", "answer_field": "answer", "options_field": "options"}
    return own_task(folder, "choices", "choice", rows, **fields)


def sums(folder: Path) -> Path:
    rows = [{"question": q, "answer": o["AB".index(a)]} for q, o, a in SUMS]
    return own_task(folder, "sums", "answer", rows, question_field="question", answer_field="answer")


def validation(*args: str) -> TaskValidation:
    found = prepare(composed(["model=tiny", "name=r", *args])).validation
    assert isinstance(found, TaskValidation)
    return found


def test_without_tasks_a_run_validates_on_its_own_data(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(composed(["model=tiny", "name=r"])).validation is None


def test_each_task_keeps_its_questions_prompt_and_grader(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = validation(f"val_tasks=[{choice(tmp_path)},{sums(tmp_path)}]")
    facts = made.write(tmp_path / "val.parquet")
    assert {source: fact["problems"] for source, fact in facts.items()} == {"eval/choices": 3, "eval/sums": 3}
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    nodes = made.prompts(tokenizer)
    prompts = {source: prompt_from_config(node) for source, node in nodes.items()}
    loaded = load(tmp_path / "val.parquet", prompts["eval/sums"], tokenizer, max_prompt_tokens=500, prompts=prompts)
    assert [problem.source for problem in loaded.problems] == ["eval/choices"] * 3 + ["eval/sums"] * 3
    texts = [tokenizer.decode(problem.prompt_ids) for problem in loaded.problems]
    assert "A) 14" in texts[0] or "A. 14" in texts[0] or "(A) 14" in texts[0]  # the task's prompt, with its options
    assert "boxed" in texts[0]
    assert "boxed" not in texts[3]  # the run's: model=tiny is asked plainly
    judges = {source: make() for source, make in pickle.loads(pickle.dumps(made.judges())).items()}

    def right(place: int, text: str) -> bool:
        problem = loaded.problems[place]
        return judges[problem.source](problem.id, problem.answer, text).result(30).correct

    assert right(0, r"\boxed{B}")
    assert not right(0, r"\boxed{15}")
    assert right(0, "The answer is (B).")
    assert right(3, r"\boxed{15}")
    assert not right(3, r"\boxed{14}")


def test_instructions_travel_as_the_gold_answer(tmp_path, monkeypatch) -> None:
    pytest.importorskip("if_verifiable")
    monkeypatch.chdir(tmp_path)
    row = {
        "key": 1,
        "prompt": "Write without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    (tmp_path / "ifeval").mkdir()
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(
        "reasonrl.eval.grading.require_checkers", lambda: None
    )  # a download that this kind does not need
    made = validation("val_tasks=[ifeval]", f"val_data_dir={tmp_path}")
    (item,) = made.items()
    (make,) = made.judges().values()
    submit = make()
    assert submit("1", item.answer, "No comma here.").result(60).correct
    assert not submit("1", item.answer, "One, two.").result(60).correct


def test_training_never_sees_a_question_of_a_task(tmp_path) -> None:
    rows = [{"question": q, "answer": "1"} for q in ("a?", "b?", "c  d?")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = composed(["data=jsonl", f"data.path={tmp_path}/train.jsonl", "data.name=mine"]).data
    reports = build(data, tmp_path / "out", instead=[Item("c d?", "1"), Item("z?", "2")])
    assert list(reports) == ["train"]
    assert reports["train"].rows == 2
    assert reports["train"].dropped == {"also a validation question": 1}
    assert not (tmp_path / "out" / "val.parquet").exists()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["val_tasks=[gms8k]"], "gsm8k"),
        (["val_tasks=[math500]", "val_data_dir=nowhere"], "val_data_dir"),
        (["val_data_dir=here"], "no task is given: val_tasks="),
        (
            ["val_tasks=[humaneval]", "val_data_dir=.", "engine=cluster", "ray_address=auto", "engine.device=cpu"],
            "humaneval",
        ),
        (["val_tasks=[arithmetic,arithmetic]"], "names arithmetic twice"),
        (["val_tasks=[arithmetic]", "val_limit=0"], "val_limit"),
    ],
)
def test_what_cannot_be_validated_on_is_told_before_anything_starts(tmp_path, monkeypatch, args, match) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=match):
        prepare(composed(["model=tiny", "name=r", *args]))


def test_each_task_has_its_own_accuracy() -> None:
    infos = {"acc": [1.0, 0.0, None, 1.0]}
    made = accuracy_by_source(infos, ["eval/a", "eval/a", "eval/a", "eval/b"])
    assert made == {"val/a/acc": 0.5, "val/b/acc": 1.0}
    assert accuracy_by_source(infos, ["eval/a"] * 4) == {}
    assert np.isfinite(list(made.values())).all()
