"""Where lighteval is, and whether it would work there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import require

OLDEST, BELOW = (0, 13), (0, 14)
# Found by starting it: newer ones have lost what lighteval 0.13 calls. huggingface_hub: list_models(model_name=). xxhash: str.
TOO_NEW = {"huggingface_hub": 2, "xxhash": 4}
PACKAGES = ("lighteval", "transformers", "vllm", *TOO_NEW)
INSTALL = (
    "python -m venv ~/lighteval && ~/lighteval/bin/pip install 'lighteval>=0.13,<0.14' 'huggingface_hub<2' 'xxhash<4'"
)
INSTALL_VLLM = INSTALL.replace("lighteval>=", "lighteval[vllm]>=")


@dataclass(frozen=True)
class Installed:
    """lighteval's command, and what is installed beside it."""

    path: Path
    versions: Mapping[str, str]

    def major(self, package: str) -> int:
        """Of its version; 0 where it is not installed."""
        return version(self.versions.get(package, "0"))[0]


def find(command: str) -> Installed:
    """lighteval's command and the versions beside it. Raises ConfigError."""
    given = shutil.which(str(Path(command).expanduser()))
    if given is None:
        raise ConfigError(
            f"lighteval is not installed (no command '{command}'). It needs an environment of its own: {INSTALL}; then "
            f"lighteval.command=~/lighteval/bin/lighteval. With a GPU: {INSTALL_VLLM}"
        )
    path = Path(given).absolute()
    python = path.parent / "python"
    code = (
        "import importlib.metadata as m, json\n"
        "have = {(d.metadata['Name'] or '').lower().replace('-', '_'): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{name: have[name] for name in {PACKAGES!r} if name in have}}))"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment()
        )
        versions = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{path} stands in no environment that can be looked at ({python} does not say what is installed): give "
            f"lighteval.command=<environment>/bin/lighteval; to make one: {INSTALL}"
        ) from error
    return Installed(path, versions)


def version(text: str) -> tuple[int, ...]:
    """The numbers it begins with."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3]) or (0,)


def check_versions(installed: Installed, backend: str) -> None:
    """Raise ConfigError for an environment in which lighteval would not start."""
    there, pip = installed.versions, installed.path.parent / "pip"
    require(
        OLDEST <= version(there.get("lighteval", "0"))[:2] < BELOW,
        f"{installed.path} is lighteval {there.get('lighteval', '(unknown)')}; its options and results are known for 0.13 "
        f"alone: {INSTALL}",
    )
    for package, most in TOO_NEW.items():
        require(
            installed.major(package) < most,
            f"lighteval 0.13 does not work with {package} {there.get(package)} beside it: {pip} install '{package}<{most}'",
        )
    require(
        backend != "vllm" or "vllm" in there,
        f"there is no vllm beside {installed.path}: {pip} install 'lighteval[vllm]>=0.13,<0.14', or "
        "lighteval.backend=transformers",
    )


def check_model(installed: Installed, backend: str, model: Path) -> None:
    """Raise ConfigError for a model that lighteval would read wrongly."""
    written = version(str(read_json(model / "config.json").get("transformers_version", "0")))[0]
    way_out = (
        "lighteval.backend=transformers, in an environment with transformers 5"
        if backend == "vllm"
        else f"{installed.path.parent / 'pip'} install 'transformers>=5'"
    )
    require(
        written < 5 or installed.major("transformers") >= 5,
        f"{model} was written by transformers {written}, and beside lighteval is {installed.versions.get('transformers')}, "
        f"which would read its rotary embedding and special tokens wrongly: {way_out}",
    )


def environment() -> dict[str, str]:
    """For its processes: nothing of ours on their path."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def read_json(file: Path) -> dict[str, Any]:
    """{} where there is none or none that can be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
