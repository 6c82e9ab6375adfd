"""`reasonrl judge` as a process: who can reach it, what it refuses, what SIGTERM leaves undone (nothing)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from judge_builders import DOUBLE, TESTS, job, need_judge

from reasonrl.config import ConfigError
from reasonrl.eval.judge.serve import HELP, JudgeKnobs, listen, loopback, own_token, run
from reasonrl.eval.prm.knobs import read_knobs
from reasonrl.verify.judge.client import JudgeClient, encode_job
from reasonrl.verify.judge.embedded import opened_judge
from reasonrl.verify.judge.types import BadJob, Job, JudgeError


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeClient]:
    """One for all tests of this file."""
    need_judge()
    with opened_judge(cores=2, cpu_seconds=1) as client:
        yield client


def test_an_embedded_judge_gives_verdicts_to_threads_and_loops(judge: JudgeClient) -> None:
    assert judge.judge(Job(DOUBLE, TESTS)).passed
    with ThreadPoolExecutor(4) as pool:
        codes = [f"def double(x):\n    return {k} * x" for k in range(8)]
        found = list(pool.map(lambda code: judge.judge(Job(code, TESTS)).verdict, codes))
    assert found == ["failed", "failed", "passed", *["failed"] * 5]

    async def main() -> list[str]:
        outcomes = await asyncio.gather(*(judge.judge_async(Job(f"{DOUBLE}# {k}", TESTS)) for k in range(8)))
        await judge.aclose()
        return [outcome.verdict for outcome in outcomes]

    assert asyncio.run(main()) == ["passed"] * 8
    with pytest.raises(BadJob, match="strict mode cannot send"):
        judge.judge(Job(DOUBLE, "double(lambda: 0)"))
    assert judge.health()["limits"]["cpu_seconds"] == 1


def test_its_socket_is_this_users_alone(judge: JudgeClient) -> None:
    path = Path(judge.url.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def started(tmp_path: Path, *args: str) -> tuple[subprocess.Popen[str], str, str]:
    """A judge on a free port, its address and its token."""
    file = tmp_path / "token"
    process = subprocess.Popen(
        [sys.executable, "-m", "reasonrl.cli", "judge", "port=0", f"token_file={file}", "cores=2", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(
        r"judge at (http://127\.0\.0\.1:\d+): (bwrap|none), python [\d.]+, 2 cores, (\d+) canaries held", line
    )
    assert found, (line, process.stderr and process.stderr.read())
    return process, found[1], file.read_text().strip()


def sandbox_fusion_client() -> ModuleType:
    """verl's, without importing verl."""
    found = importlib.util.find_spec("verl")
    assert found is not None
    assert found.submodule_search_locations
    path = Path(next(iter(found.submodule_search_locations))) / "utils/reward_score/sandbox_fusion/utils.py"
    spec = importlib.util.spec_from_file_location("sandbox_fusion_utils", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_verls_client_works_unchanged_and_sigterm_loses_nothing(tmp_path: Path) -> None:
    need_judge()
    process, url, token = started(tmp_path)
    verl = sandbox_fusion_client()
    address = url.replace("http://", f"http://:{token}@") + "/run_code"
    tests = {"inputs": ["2", "3"], "outputs": ["4", "7"]}
    assert verl.check_correctness(address, tests, "print(2 * int(input()))", timeout=2)[0] == [True, False]
    assert verl.check_correctness(address, {**tests, "fn_name": "double"}, DOUBLE, timeout=2)[0] == [True, False]
    assert verl.check_correctness(address, tests, "raise ValueError", timeout=2)[0] == [-2, -2]
    # a wrong token is an error of the client's, not a verdict
    assert verl.check_correctness(address.replace(token, "x"), tests, "print(4)", timeout=2)[0] == [-1, -1]

    async def main() -> list[int]:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(timeout=60, headers=headers, trust_env=False) as client:
            bodies = [encode_job(job(f"{DOUBLE}# {k}")) for k in range(40)]
            asks = [asyncio.create_task(client.post(f"{url}/v1/judge", json=body)) for body in bodies]
            while (await client.get(f"{url}/healthz")).json()["accepted"] < 20:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*asks, return_exceptions=True)
        assert all(isinstance(each, (httpx.Response, httpx.TransportError)) for each in answers)
        return [each.status_code for each in answers if isinstance(each, httpx.Response)]

    statuses = asyncio.run(main())
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    found = re.search(r"(\d+) jobs accepted, (\d+) answered", told)
    assert found is not None, told
    assert found[1] == found[2]
    assert statuses == [200] * (int(found[1]) - 6)  # verl's client had six programs run
    assert len(statuses) >= 20


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    need_judge()
    script = (
        "import os\nfrom reasonrl.verify.judge.embedded import opened_judge\n"
        "with opened_judge(unsafe_local=True) as judge:\n    print(judge.url, flush=True)\n    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    path = Path(done.stdout.strip().removeprefix("unix:"))
    with JudgeClient(f"unix:{path}") as client:
        for _ in range(200):
            try:
                client.health()
            except JudgeError:
                break
        else:
            raise AssertionError("it lives on")
    shutil.rmtree(path.parent)  # the killed one could not


def test_it_ends_also_when_whoever_started_it_ends_while_it_begins_to_serve(tmp_path: Path) -> None:
    """Between its own signal handlers and those of the server a SIGTERM is lost."""
    script = (
        "import os, sys, time, uvicorn\nfrom reasonrl.eval.judge.serve import run\n"
        "source, sink = os.pipe()\nos.dup2(source, 0)\nbegin = uvicorn.Server.run\n"
        "def late(server, **given):\n    os.close(sink)\n    time.sleep(0.5)\n    begin(server, **given)\n"
        "uvicorn.Server.run = late\n"
        "sys.exit(run(['end_with_stdin=true', 'unsafe_local=true', f'socket={sys.argv[1]}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "socket"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "stopped; 0 jobs accepted" in done.stderr


def test_unsafe_local_is_said_at_the_start_and_on_every_response(tmp_path: Path) -> None:
    process, url, token = started(tmp_path, "unsafe_local=true")
    answer = httpx.post(
        f"{url}/v1/judge", json=encode_job(job()), headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )
    assert answer.json()["passed"]
    assert answer.json()["isolation"] == "none"
    assert "protects nothing" in answer.headers["x-judge-isolation"]
    process.terminate()
    assert "NO SANDBOX" in process.communicate(timeout=60)[1]


def test_a_token_file_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REASONRL_JUDGE_TOKEN", raising=False)
    path = tmp_path / "deep" / "token"
    token = own_token(str(path))
    assert own_token(str(path)) == token
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it; chmod 600"):
        own_token(str(path))
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigError, match="at least 16 printable characters"):
        own_token(str(path))
    monkeypatch.setenv("REASONRL_JUDGE_TOKEN", "from-the-environment")
    assert own_token(None) == "from-the-environment"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["host=0.0.0.0"], "is open to others: give tls_cert= and tls_key="),
        (["host=0.0.0.0", "tls_cert=a"], "belong together"),
        (["host=192.168.1.5", "unsafe_local=true"], "runs on this machine only"),
        (["port=70000"], "port must be 0"),
        (["cores=0"], "cores must be at least 1"),
        (["cpu_seconds=0"], "cpu_seconds must be at least 0.1"),
        (["cpu_seconds=100"], "must not be more than most_cpu_seconds"),
        (["socket=/tmp/x", "host=::1"], "exclude each other"),
        (["prot=1"], "Unknown key 'prot'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(args: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run(args)


def test_a_place_that_is_taken_is_named(tmp_path: Path) -> None:
    listener, address, _ = listen(JudgeKnobs(port=0, token_file=str(tmp_path / "token")))
    port = int(address.rpartition(":")[2])
    with listener, pytest.raises(ConfigError, match="another port="):
        listen(JudgeKnobs(port=port, token_file=str(tmp_path / "token")))
    path = tmp_path / "socket"
    first, _, token = listen(JudgeKnobs(socket=str(path)))
    assert token is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with first, pytest.raises(ConfigError, match="another judge answers there"):
        listen(JudgeKnobs(socket=str(path)))
    second, _, _ = listen(JudgeKnobs(socket=str(path)))  # a socket that nobody listens at is left over
    second.close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        listen(JudgeKnobs(socket=str(path)))
    assert path.read_text() == "precious"


def test_an_embedded_judge_that_cannot_start_says_why() -> None:
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"), opened_judge(bwrap="/nowhere/bwrap"):
        pass
    with pytest.raises(ConfigError, match="Unknown key 'core'"), opened_judge(core=1):
        pass
    with pytest.raises(JudgeError, match="start one with reasonrl judge"), opened_judge("unix:/nowhere/socket"):
        pass
    with pytest.raises(ConfigError, match="limits of its own: cores"), opened_judge("http://127.0.0.1:1", cores=2):
        pass


def test_help_names_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    for name in JudgeKnobs.__dataclass_fields__:
        assert f"{name}=" in HELP
    assert capsys.readouterr().out.startswith("reasonrl judge")
    assert read_knobs(JudgeKnobs, [], "reasonrl judge") == JudgeKnobs()


def test_only_this_machine_is_loopback() -> None:
    assert [loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
    assert os.name == "posix"
