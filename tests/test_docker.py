"""The container files, as far as they can be judged without Docker: versions, structure, a few lint rules.

hadolint is a Haskell program and not on PyPI; the rules here are the ones of it that matter to us.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import reasonrl.config

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile; comments dropped, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def pinned() -> dict[str, str]:
    """package -> version, for everything pyproject.toml pins with `==`, in the image's extras and in the base."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["gpu"], *extras["flash-attn"]]
    found = (re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)", line) for line in wanted)
    return {m[1]: m[2] for m in found if m}


@pytest.mark.parametrize("package", ["torch", "vllm", "transformers", "verl", "flash-attn"])
def test_the_image_installs_the_versions_of_pyproject(package) -> None:
    argument = package.upper().replace("-", "_") + "_VERSION"
    assert re.findall(rf"^ARG {argument}=(.+)$", DOCKERFILE, re.MULTILINE) == [pinned()[package]]
    installed = " ".join(args for name, args in instructions() if name == "RUN")
    assert re.search(rf'"{package}(\[[\w-]+\])?==\$\{{{argument}\}}"', installed)


def test_the_image_has_a_python_that_the_project_allows() -> None:
    versions = set(re.findall(r"python(3\.\d+)", DOCKERFILE))
    assert versions == {"3.12"}
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


def test_the_base_image_has_a_version() -> None:
    (base,) = [args for name, args in instructions() if name == "FROM"]
    assert re.fullmatch(r"nvidia/cuda:13\.\d+\.\d+-devel-ubuntu24\.04(@sha256:[0-9a-f]{64})?", base)


def test_nothing_is_latest() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    for image in images:
        assert ":" in image
        assert not image.endswith(":latest")
    assert ":latest" not in DOCKERFILE
    assert {image.split(":")[1] for image in images} == {PROJECT["version"]}


def test_nothing_is_fetched_by_add_or_piped_into_a_shell() -> None:
    assert [args for name, args in instructions() if name == "ADD"] == []
    for name, args in instructions():
        if name == "RUN":
            assert not re.search(r"(curl|wget)[^|&]*\|\s*(ba)?sh", args)


def test_every_apt_layer_cleans_up_after_itself() -> None:
    layers = [args for name, args in instructions() if name == "RUN" and "apt-get" in args]
    assert layers
    for layer in layers:
        assert layer.startswith("apt-get update")
        assert "--no-install-recommends" in layer
        assert layer.rstrip().endswith("rm -rf /var/lib/apt/lists/*")


def test_every_package_of_pip_has_a_version() -> None:
    for name, args in instructions():
        if name != "RUN":
            continue
        for command in re.findall(r"pip install ([^&]*)", args):
            wanted = [word for word in re.findall(r'"([^"]+)"', command) if not word.startswith(".")]
            assert all(re.search(r"[=<>]=", word) for word in wanted), command


def test_what_is_copied_exists_and_is_all_that_the_package_is_made_of() -> None:
    copied = [word for name, args in instructions() if name == "COPY" for word in args.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"pyproject.toml", "setup.py", "reasonrl", "methods", "eval", "conf", "recipes"} <= set(copied)
    allowed = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}


def test_compose_has_a_cluster_and_a_run_on_it() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"head", "worker", "train"}
    assert "--head" in services["head"]["entrypoint"]
    assert "--address=head:6379" in services["worker"]["entrypoint"]
    command = services["train"]["command"][0]
    assert "reasonrl engine=cluster ray_address=auto" in command
    for service in services.values():
        assert "runs:/runs" in service["volumes"]
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
    for name in ("head", "worker"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_the_run_of_compose_asks_for_what_the_cluster_has() -> None:
    command = COMPOSE["services"]["train"]["command"][0]
    gpus = int(re.search(r" gpus=(\d+)", command)[1]) * int(re.search(r" nodes=(\d+)", command)[1])
    have = [f for s in COMPOSE["services"].values() for f in s["entrypoint"] if f.startswith("--num-gpus=")]
    assert gpus == sum(int(flag.split("=")[1]) for flag in have)


def test_the_arguments_of_compose_compose() -> None:
    from reasonrl.cli import composed

    given = COMPOSE["services"]["train"]["environment"]["REASONRL_ARGS"]
    default = re.fullmatch(r"\$\{REASONRL_ARGS:-(.*)\}", given)[1]
    words = ["engine=cluster", "ray_address=auto", "nodes=2", "gpus=1", "out=/runs"]
    cfg = reasonrl.config.typed(composed([*words, *default.split()]))
    assert (cfg.engine.name, cfg.nodes, cfg.gpus) == ("cluster", 2, 1)
