"""Every recipe composes, builds its method, and says what the run folder will say."""

from __future__ import annotations

from pathlib import Path

import pytest

import reasonrl.recipes
from reasonrl.cli import composed
from reasonrl.config import method_from, typed
from reasonrl.core import with_limits
from reasonrl.train import check_nodes

FOLDER = Path(reasonrl.recipes.__file__).parent
RECIPES = sorted(f"{file.parent.name}/{file.stem}" for file in FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_complete_run_of_the_method_it_is_filed_under(name) -> None:
    cfg = typed(composed([f"recipe={name}"]))
    method = with_limits(method_from(cfg.method), cfg.max_new_tokens)
    assert method.name == name.split("/")[0]
    check_nodes(cfg)
    assert cfg.batch % (cfg.mini_batch or cfg.batch) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_listed_with_its_numbers(name) -> None:
    page = (FOLDER / "README.md").read_text()
    assert f"recipe={name}" in page or f"[{name}](" in page
