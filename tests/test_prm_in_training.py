"""`prm=` of a training run: what is refused before Ray starts, and what a resumed run insists on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prm_builders import prm_folder
from rich.console import Console
from transformers import AutoTokenizer

from reasonrl.cli import composed
from reasonrl.config import ConfigError, method_from, package_path, typed
from reasonrl.engine.verl.launch import process_reward_model
from reasonrl.train import Plan, prepare

QUIET = Console(quiet=True)
ASKS = ["method=adaptivestep", "method.scorer=prm", "model=tiny", "engine=cpu"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(package_path("pkg://reasonrl.assets.tiny/model"))


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    own = AutoTokenizer.from_pretrained(package_path("pkg://reasonrl.assets.tiny/model"))
    return prm_folder(tmp_path_factory.mktemp("prm") / "p", tokenizer=own, context=512)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*args: str) -> Plan:
    return prepare(composed(list(args)))


def test_a_method_that_asks_needs_a_model_and_is_told_where_one_comes_from() -> None:
    with pytest.raises(ConfigError, match=r"StepAdvantage needs `prm`.*prm=<folder or address> \(`reasonrl prm train`"):
        planned(*ASKS)


def test_a_method_that_asks_none_refuses_one(prm: Path) -> None:
    with pytest.raises(ConfigError, match="adaptivestep with these settings asks no process reward model"):
        planned(*ASKS, "method.scorer=probes", f"prm={prm}")


def test_a_folder_that_is_no_process_reward_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for where, message in (("nowhere", "no folder nowhere|no folder .*nowhere"), (".", "has no prm.json")):
        with pytest.raises(ConfigError, match=message):
            planned(*ASKS, f"prm={where}")


def test_the_folder_is_remembered_whole_so_that_a_run_resumes_from_elsewhere(prm: Path, monkeypatch) -> None:
    monkeypatch.chdir(prm.parent)
    assert planned(*ASKS, "prm=p").cfg.prm == str(prm)


def opened(prm: Path, tokenizer: Any, *knobs: str, resume: dict[str, str] | None = None) -> Any:
    cfg = typed(composed([*ASKS, f"prm={prm}", *knobs]))
    folder: Any = SimpleNamespace(state=lambda step: resume)
    return process_reward_model(
        Plan(cfg, method_from(cfg.method), Path("r"), 3 if resume else None), folder, tokenizer, QUIET
    )


def test_a_method_without_need_opens_none(prm: Path, tokenizer: Any) -> None:
    assert opened(prm, tokenizer, "method.scorer=probes") is None


def test_scores_of_soft_labels_are_not_read_as_hard_ones(tmp_path: Path, prm: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"trained on hard labels: use value=he_inverse"):
        opened(prm, tokenizer, "method.value_map=identity")
    assert opened(prm, tokenizer).card.labels == "hard"


def test_a_resumed_run_insists_on_the_model_it_began_with(prm: Path, tokenizer: Any) -> None:
    own = opened(prm, tokenizer).identity
    assert opened(prm, tokenizer, resume={"prm": own}).identity == own
    with pytest.raises(ConfigError, match=r"is another process reward model .* than the run was trained with \(other"):
        opened(prm, tokenizer, resume={"prm": "other"})
