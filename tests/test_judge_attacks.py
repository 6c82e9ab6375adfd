"""No program passes without being right, and none gets out: as root's nobody and as an ordinary user.

Two processes run the attacks, because each looks for what was left behind among its own descendants.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS
from judge_builders import need_judge

ORDINARY = 12345
BY_NAME = {attack.name: attack for attack in ATTACKS}
USERS = [
    "as this user",
    pytest.param("as an ordinary user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="not root")),
]


@pytest.fixture(scope="module", params=USERS)
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What became of each attack."""
    need_judge()
    user = [str(ORDINARY)] if request.param == "as an ordinary user" else []
    script = Path(__file__).parent / "attacks.py"
    halves = [
        subprocess.Popen(
            [sys.executable, str(script), str(half), "2", *user],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for half in (0, 1)
    ]
    rows = []
    for process in halves:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        rows += [json.loads(line) for line in out.splitlines()]
    return {row["name"]: row for row in rows}


def test_there_are_over_a_hundred_attacks_of_different_names() -> None:
    assert len(BY_NAME) == len(ATTACKS) > 100


@pytest.mark.parametrize("name", BY_NAME)
def test_an_attack_fails(found: dict[str, dict[str, Any]], name: str) -> None:
    row = found[name]
    assert row["verdict"] in BY_NAME[name].verdicts, row
    assert "LEAK" not in row["stdout"], row
    assert row["left"] == [], row
