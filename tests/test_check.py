"""`reasonrl check` from the outside: what it prints, and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reasonrl.cli import main
from reasonrl.core import LAWS, MEANING

BROKEN = Path(__file__).parent / "broken"


@pytest.fixture
def check(monkeypatch, capsys):
    """Run `reasonrl check ...` in the folder of broken strategies: (exit code, stdout, stderr)."""
    monkeypatch.chdir(BROKEN)
    monkeypatch.syspath_prepend(str(BROKEN))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["check", *args])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def row(printed: str, law: str) -> str:
    """The table's row of a law."""
    return next(line for line in printed.splitlines() if line.startswith(f"│ {law} "))


@pytest.mark.parametrize("target", ["reasonrl.methods.grpo:build", "reasonrl.methods.deepcompress:build", "grpo"])
def test_a_built_in_method_keeps_all_laws(check, target) -> None:
    code, out, _ = check(target)
    assert code == 0
    assert f"{len(LAWS)} of {len(LAWS)} laws kept" in out


@pytest.mark.parametrize(
    ("module", "law", "numbers"),
    [
        ("trained_prefix", "prefix-untrained", "prefix of 4 tokens"),
        ("unbounded_reward", "reward-bounds", "declares bounds [0.0, 1.0] but returned"),
        ("first_come", "permutation", "permuted"),
        ("nan_all_wrong", "finite", "total is [nan nan"),
    ],
)
def test_a_broken_strategy_fails_and_is_told_the_law(check, module, law, numbers) -> None:
    code, out, _ = check(f"{module}:build")
    assert code == 1
    assert "broken" in row(out, law)
    assert numbers in out


def test_a_law_that_cannot_be_judged_names_the_one_in_its_way(check) -> None:
    _, out, _ = check("unbounded_reward:build")
    assert "cannot be judged until reward-bounds is kept" in row(out, "state")


def test_knobs_reach_the_factory(check) -> None:
    code, out, _ = check("deepcompress", "alpha=5e-1", "direction=penalty")
    assert code == 0
    code, out, _ = check("deepcompress", "alpha=-1")
    assert code == 1
    assert "alpha must lie in [0, inf), got -1" in row(out, "builds")


def test_an_unknown_knob_lists_the_choices(check) -> None:
    code, out, _ = check("grpo", "nn=3")
    assert code == 1
    assert "has no knob 'nn'" in out


def test_a_part_can_be_put_into_a_slot(check) -> None:
    code, out, _ = check("grpo", "advantage._target_=reasonrl.parts.advantages.RLOO")
    assert code == 0, out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no_such_module:build"], "cannot import 'no_such_module'"),
        (["first_come:make"], "'first_come' has no function 'make'"),
        (["gpro"], "did you mean grpo?"),
        (["does_not_import:build"], "importing 'does_not_import' failed: RuntimeError: no licence for this file"),
        (["n=3"], "the first argument is the factory"),
        (["grpo", "--fast"], "arguments after the factory look like knob=value, got '--fast'"),
    ],
)
def test_arguments_that_cannot_be_used_are_explained(check, args, message) -> None:
    code, out, err = check(*args)
    assert code == 2
    assert out == ""
    assert message in err


def test_every_law_is_put_in_words() -> None:
    assert list(MEANING) == list(LAWS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from reasonrl.cli import main; main(['check', '--help'])\n"
        "print(sorted({'torch', 'ray', 'verl', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
