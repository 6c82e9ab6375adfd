"""The wheel holds what the package is made of, works from anywhere, and leaves no bare `methods` behind.

Built once, from a copy of the sources without build isolation: no download, nothing written into the repository.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"reasonrl": "reasonrl", **{name: f"reasonrl/{name}" for name in ("methods", "eval", "conf", "recipes")}}
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
NOT_SHIPPED = (".md", ".png")  # notes and pictures beside recipes
METHOD_FILE = re.compile(r"^<!-- file: (?P<name>.*?) -->\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def files_of(folder: Path) -> list[Path]:
    """Every file of a package folder that git would track, relative to it."""
    found = sorted(f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return [f.relative_to(folder) for f in found if f.suffix not in (*NOT_SHIPPED, ".pyc")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, source / name)
    # what must stay out is there too, so that it could get in
    for name in (*PACKAGES, "tests", "benchmarks", "docs", "docker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = source / "dist"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, unpacked: a folder to put first on the path."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with `site` first on its path, elsewhere."""
    environment = {"PYTHONPATH": str(site), "PATH": "", "HOME": str(cwd), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, check=False, timeout=120, cwd=cwd, env=environment
    )


def test_the_wheel_holds_exactly_the_files_of_the_packages(wheel) -> None:
    expected = {f"{inside}/{f.as_posix()}" for name, inside in PACKAGES.items() for f in files_of(ROOT / name)}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(expected - names) == []
    assert sorted(names - expected) == []


@pytest.mark.parametrize(
    "file",
    [
        "reasonrl/py.typed",
        "reasonrl/methods/grpo.py",
        "reasonrl/methods/deepcompress.py",
        "reasonrl/eval/__init__.py",
        "reasonrl/conf/train.yaml",
        "reasonrl/conf/method/reward/own.yaml",
        "reasonrl/assets/tiny/model/model.safetensors",
        "reasonrl/assets/tiny/model/chat_template.jinja",
    ],
)
def test_the_wheel_holds(wheel, file) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert file in archive.namelist()


def test_the_wheel_is_small(wheel) -> None:
    assert wheel.stat().st_size < 8 << 20


def test_the_entry_points_are_there(installed) -> None:
    (file,) = installed.glob("*.dist-info/entry_points.txt")
    entries = configparser.ConfigParser()
    entries.read(file)
    assert dict(entries["console_scripts"]) == {"reasonrl": "reasonrl.cli:main"}
    assert dict(entries["verl.plugins"]) == {"reasonrl": "reasonrl.engine.verl.plugin"}


def test_the_unpacked_wheel_works_elsewhere(installed, tmp_path) -> None:
    code = (
        "import reasonrl, reasonrl.methods.grpo as grpo, reasonrl.conf, reasonrl.eval, reasonrl.recipes\n"
        "print(reasonrl.__file__); print(grpo.__file__); print(reasonrl.make_method('deepcompress').name)"
    )
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, name = done.stdout.splitlines()
    assert Path(first).is_relative_to(installed)
    assert Path(second).is_relative_to(installed)
    assert name == "deepcompress"


def test_the_unpacked_wheel_composes_a_run(installed, tmp_path) -> None:
    done = run(installed, "-m", "reasonrl", "method=deepcompress", "model=tiny", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was started" in done.stdout
    assert str(installed) in done.stdout.replace("\n", "")


def test_a_method_shipped_as_the_docs_say_is_found_by_name(installed, tmp_path) -> None:
    """The two files of docs/add_a_method.md, put where it says."""
    shown = {m["name"]: m["text"] for m in METHOD_FILE.finditer((ROOT / "docs" / "add_a_method.md").read_text())}
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    (site / "reasonrl" / "methods" / "shortest_first.py").write_text(shown["my_method.py"])
    (site / "reasonrl" / "conf" / "method" / "shortest_first.yaml").write_text(shown["conf/method/shortest_first.yaml"])
    command = ["-m", "reasonrl", "method=shortest_first", "method.bonus=0.2", "model=tiny", "--dry-run"]
    done = run(site, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ShortestFirst(bonus=0.2)" in done.stdout
    replaced = run(site, *command, "method/reward=correctness", cwd=tmp_path)
    assert replaced.returncode == 0, replaced.stderr
    assert "Correctness(wrong=0.0, right=1.0)" in replaced.stdout


@pytest.mark.parametrize("name", ["methods", "eval", "conf", "recipes"])
def test_a_bare_import_at_the_root_says_which_name_to_use(name) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    assert f"ImportError: import this folder as `reasonrl.{name}`, not `{name}`" in done.stderr


def test_no_bare_name_leads_into_the_repository(tmp_path) -> None:
    """An editable install that puts the root on the path would load every method twice, under two names."""
    names = ("methods", "eval", "conf", "recipes", "tests", "benchmarks", "docs")
    code = f"import importlib.util as u; print([str(s.origin) for n in {names!r} if (s := u.find_spec(n))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
    )
    inside = done.stdout.replace(
        f"{sys.prefix}/", ""
    )  # the environment may lie in the repository, and verl brings `tests`
    assert f"{ROOT}/" not in inside
