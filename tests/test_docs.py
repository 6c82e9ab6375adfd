"""The documents agree with the tree: links, captions, method names; and the code blocks are found as they should be."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")


def tracked() -> list[Path]:
    """Every file that git tracks or would track. Skips the test outside a checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def pages() -> list[Path]:
    """All Markdown pages but those of recipes, which are records."""
    return [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "docker/README.md",
    ]


def tree() -> list[str]:
    """Paths of README's captioned tree, nested ones joined."""
    block = README[README.index("## What is where") :]
    lines = block.split("```")[1].splitlines()[1:]
    paths, parent = [], ""
    for line in lines:
        name, caption = line.split(maxsplit=1)
        assert caption, line
        if line.startswith(" "):
            paths.append(parent + name)
        else:
            parent = name
            paths.append(name)
    return paths


def load_run_blocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_blocks", ROOT / "docs" / "run_blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_blocks"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


run_blocks = load_run_blocks()


def test_every_path_of_the_tree_exists() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_the_tree_names_every_top_level_entry() -> None:
    named = {path.split("/")[0] for path in tree()}
    assert sorted(named ^ {path.parts[0] for path in tracked()}) == []


def test_a_caption_names_one_thing() -> None:
    """A caption that needs "and" is two files."""
    assert not re.search(r" and ", README[README.index("## What is where") :])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page) -> None:
    inside = [link.split("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in inside if link and not (page.parent / link).exists()] == []


def test_every_method_has_its_row() -> None:
    rows = {
        name for line in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    }
    methods = {f.stem for f in (ROOT / "conf" / "method").glob("*.yaml")} - {"custom"}
    assert methods
    assert methods <= rows
    assert methods == {f.stem for f in (ROOT / "methods").glob("*.py")} - {"__init__"}


def test_a_method_is_called_ready_when_it_is_there() -> None:
    for line in re.findall(r"^\| `.* \|$", README, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[-1] not in ("ready", "not yet"):
            continue
        for name in re.findall(r"`(\w+)`", cells[0]):
            assert (cells[-1] == "ready") == (ROOT / "methods" / f"{name}.py").exists(), line


def test_the_readme_starts_with_two_commands() -> None:
    first = next(run_blocks.blocks(README))
    assert [line.split("#")[0].strip() for line in first.code.splitlines()] == ["make quickstart", "make test"]


def test_nothing_names_a_folder_of_somebodys_machine() -> None:
    forbidden = re.compile(
        "|".join([r"(?<![\w.])/wo" + "rk/", r"\.\./sha" + "red", r"/home/" + r"\w", r"/Use" + r"rs/\w"])
    )
    found = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}:{n}" for n, line in enumerate(text.splitlines(), 1) if forbidden.search(line)]
    assert found == []


def test_every_changelog_line_belongs_to_a_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_make_stops_when_a_command_fails(tmp_path) -> None:
    """The timed targets run several commands in one shell; the first failure must end it."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "python").write_text("#!/bin/sh\nexit 7\n")
    (fake / "python").chmod(0o755)
    for target in ("install", "quickstart", "check"):
        done = subprocess.run(
            ["make", target, f"BIN={fake}"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
        )
        assert done.returncode != 0, done.stdout


# run_blocks

PAGE = """\
Text.

```bash
echo one steps=40 total_steps=9 > out.txt
```

<!-- skip: needs a GPU -->
```bash
exit 1
```

<!-- file: deep/my.py -->
```python
X = 1
```

<!-- steps: 3x -->
```bash
echo two steps=80 >> out.txt
```

```text
not code
```

```python
import sys
sys.path.insert(0, "deep")
import my
open("out.txt", "a").write(f"three {my.X}")
```
"""


def test_blocks_are_found_with_their_marks() -> None:
    found = list(run_blocks.blocks(PAGE))
    assert [(b.language, b.mark, b.value, b.runs) for b in found] == [
        ("bash", None, "", True),
        ("bash", "skip", "needs a GPU", False),
        ("python", "file", "deep/my.py", True),
        ("bash", "steps", "3x", True),
        ("text", None, "", False),
        ("python", None, "", True),
    ]
    assert found[0].line == 3


def test_blocks_run_in_order_in_one_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REASONRL_DOC_STEPS", "2")
    for block in run_blocks.blocks(PAGE):
        if block.runs:
            assert run_blocks.run_block(block, tmp_path)[0] == 0
    assert (tmp_path / "out.txt").read_text() == "one steps=2 total_steps=9\ntwo steps=6\nthree 1"


def test_without_the_variable_steps_stay() -> None:
    block = next(run_blocks.blocks(PAGE))
    assert "steps=40" in run_blocks.with_fewer_steps(block, None)


def test_a_failing_block_ends_its_file_and_is_reported(tmp_path, capfd) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nfalse | true\n```\n\n```bash\necho never\n```\n")
    assert run_blocks.main([str(page)]) == 1
    printed = capfd.readouterr().out
    assert "page.md:1 exited with 1" in printed
    assert "never" not in printed


@pytest.mark.parametrize("page", ["README.md", "docs/add_a_method.md"])
def test_every_fence_of_a_page_is_seen(page) -> None:
    """A mark with a blank line below it, or a fence that is indented, would silently change what runs."""
    text = (ROOT / page).read_text()
    found = list(run_blocks.blocks(text))
    assert len(found) == text.count("\n```") // 2
    assert len(re.findall(r"<!-- *(?:skip|file|steps):", text)) == sum(b.mark is not None for b in found)


@pytest.mark.parametrize("page", ["README.md", "docs/add_a_method.md"])
def test_a_skipped_block_gives_its_reason(page) -> None:
    assert all(b.value for b in run_blocks.blocks((ROOT / page).read_text()) if b.mark == "skip")
