"""Imports point one way: functional <- core <- parts <- methods <- engine <- train, sampled, eval <- cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reasonrl"
PURE = ("reasonrl.functional", "reasonrl.core", "reasonrl.parts", "reasonrl.methods")
HEAVY = ("torch", "ray", "verl", "hydra", "omegaconf", "transformers", "vllm")
# what a room may import of the package, besides itself
ALLOWED = {
    "reasonrl.functional": (),
    "reasonrl.core": ("reasonrl.functional",),
    "reasonrl.parts": ("reasonrl.core", "reasonrl.functional"),
    "reasonrl.methods": ("reasonrl.core", "reasonrl.functional", "reasonrl.parts"),
    # data and verify stand on one level and may use each other; conf is YAML
    "reasonrl.data": (
        "reasonrl.core",
        "reasonrl.functional",
        "reasonrl.parts",
        "reasonrl.verify",
        "reasonrl.conf",
        "reasonrl.assets",
    ),
    # reasonrl.config for its two kinds of error, which a judge's client raises
    "reasonrl.verify": (
        "reasonrl.core",
        "reasonrl.functional",
        "reasonrl.parts",
        "reasonrl.data",
        "reasonrl.conf",
        "reasonrl.config",
    ),
}
NAMED_ON_PURPOSE = {
    ("reasonrl/engine/verl/config.py", "grpo"): "verl's word for an advantage estimator without a critic",
    ("reasonrl/train.py", "grpo"): "the default of a public function, the same as the default of train.yaml",
}
METHOD_NAMES = sorted(path.stem for path in (ROOT / "methods").glob("*.py") if path.stem != "__init__")


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module that ships."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield _dotted(path.relative_to(ROOT)), path
    for folder in ("methods", "eval", "conf", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield "reasonrl." + _dotted(path.relative_to(ROOT)), path


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything a module imports, in functions and type-checking blocks too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


ALL = [(name, path, list(imports(name, path))) for name, path in modules()]


def test_only_the_verl_engine_imports_verl_or_ray() -> None:
    wrong = [
        f"{path}:{line} imports {target}"
        for name, path, found in ALL
        for line, target in found
        if target.split(".")[0] in ("verl", "ray") and not inside(name, "reasonrl.engine.verl")
    ]
    assert wrong == []


def test_pure_rooms_import_nothing_heavy() -> None:
    wrong = [
        f"{path}:{line} imports {target}"
        for name, path, found in ALL
        for line, target in found
        if any(inside(name, room) for room in PURE) and target.split(".")[0] in HEAVY
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_from_below(room) -> None:
    wrong = [
        f"{path}:{line} imports {target}"
        for name, path, found in ALL
        for line, target in found
        if inside(name, room)
        and inside(target, "reasonrl")
        and not any(inside(target, allowed) for allowed in (room, *ALLOWED[room]))
    ]
    assert wrong == []


def test_only_the_top_imports_an_evaluation() -> None:
    """An engine never does: a run that validates on tasks is handed what it needs of them."""
    wrong = [
        f"{path}:{line} imports {target}"
        for name, path, found in ALL
        for line, target in found
        if inside(target, "reasonrl.eval")
        and name not in ("reasonrl.cli", "reasonrl.train")
        and not inside(name, "reasonrl.eval")
    ]
    assert wrong == []


def test_no_method_imports_another() -> None:
    wrong = [
        f"{path}:{line} imports {target}"
        for name, path, found in ALL
        for line, target in found
        if inside(name, "reasonrl.methods") and inside(target, "reasonrl.methods") and not inside(target, name)
    ]
    assert wrong == []


def test_no_code_names_a_method() -> None:
    """A string or identifier equal to a method's name, outside its own file, is a branch waiting to happen."""
    wrong = []
    for name, path, _ in ALL:
        if inside(name, "reasonrl.methods"):
            continue
        tree = ast.parse(path.read_text())
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
        for node in ast.walk(tree):
            spelled = node.value if isinstance(node, ast.Constant) and id(node) not in docs else None
            spelled = node.id if isinstance(node, ast.Name) else spelled
            known = (path.relative_to(ROOT).as_posix(), spelled) in NAMED_ON_PURPOSE
            if isinstance(spelled, str) and spelled in METHOD_NAMES and not known:
                wrong.append(f"{path}:{node.lineno} names {spelled!r}")
    assert wrong == []


def test_importing_the_core_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, reasonrl.core, reasonrl.parts.rewards, reasonrl.methods.grpo\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
