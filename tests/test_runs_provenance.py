"""What a run was made of."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reasonrl.runs import provenance as module
from reasonrl.runs.provenance import git_state, gpus, hardware, provenance, versions


def test_provenance_is_json_with_versions_command_hardware_and_the_callers_facts(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/reasonrl", "seed=3", "steps=2"])
    facts = json.loads(json.dumps(provenance(seed=3, data={"train": "abc"})))
    assert facts["command"] == ["reasonrl", "seed=3", "steps=2"]
    assert (facts["seed"], facts["data"], facts["schema"]) == (3, {"train": "abc"}, 1)
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["packages"]["verl"] == "0.9.1"
    assert set(facts["hardware"]) == {"machine", "cpus", "memory_gib", "gpus"}


def test_absent_packages_are_left_out(monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ["numpy", "no-such-package"])
    assert versions() == {"numpy": importlib.metadata.version("numpy")}


def test_hardware_has_memory_and_processors() -> None:
    found = hardware()
    assert found["cpus"] >= 1
    assert found["memory_gib"] > 0.1


@pytest.fixture
def repository(tmp_path) -> Path:
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    return tmp_path


def test_git_state_is_the_commit_and_whether_tracked_files_differ(repository) -> None:
    clean = git_state(repository)
    assert clean is not None
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (repository / "new").write_text("untracked files do not count")
    assert git_state(repository) == clean
    subprocess.run(["git", "-C", str(repository), "add", "new"], check=True)
    assert git_state(repository) == {**clean, "dirty": True}


def test_git_state_outside_a_checkout_or_without_git_is_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert git_state(Path(__file__).parent) is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H200", "NVIDIA H200"]),
        ("0", ["NVIDIA H200"]),
        ("1,0", ["NVIDIA H200", "NVIDIA H200"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_those_the_driver_lists_and_the_environment_shows(tmp_path, monkeypatch, visible, names) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nprintf "NVIDIA H200\\nNVIDIA H200\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(tool))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == names


def test_no_gpus_without_a_driver_or_when_it_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'could not communicate with the driver'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(tool))
    assert gpus() == []
