"""The judge under load: many clients, some hostile programs, a SIGTERM in the middle, and verl's own client.

    python benchmarks/judge_load.py [--jobs 2000] [--clients 64] [--cores 2] [--hostile 0.05]

1. Every submission has a known verdict; the figures are lost and wrong ones, latency, submissions a second, memory.
2. The same with a SIGTERM after a third: what the judge accepted, it must have answered.
3. verl's sandbox-fusion client, unchanged, against `/run_code`.
The exit code is 1 if a verdict was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from reasonrl.verify.judge.client import JudgeClient, encode_job
from reasonrl.verify.judge.types import Job, Limits

CPU_SECONDS = 1.0
TESTS = "assert shift('abc', 1) == 'bcd'\nassert shift('xyz', 3) == 'abc'\nassert shift('', 5) == ''"
RIGHT = "def shift(text, by):\n    return ''.join(chr((ord(c) - 97 + by) % 26 + 97) for c in text)\n"
WRONG = "def shift(text, by):\n    return ''.join(chr(ord(c) + by) for c in text)\n"
HOSTILE = (
    ("def shift(text, by):\n    while True:\n        pass\n", ("timeout_cpu",)),
    ("import time\ndef shift(text, by):\n    time.sleep(1000)\n", ("timeout_wall",)),
    ("def shift(text, by):\n    while True:\n        print('x' * 1000)\n", ("output_limit",)),
    ("def shift(text, by):\n    return bytearray(4 << 30)\n", ("memory",)),
    ("import os\nos._exit(0)\n", ("error",)),
    (
        "class E:\n    def __eq__(self, other):\n        return True\ndef shift(text, by):\n    return E()\n",
        ("failed",),
    ),
    ("import os\nos.kill(os.getppid(), 9)\ndef shift(text, by):\n    return 'bcd'\n", ("failed",)),
    ("import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n        time.sleep(1000)\n" + WRONG, ("failed",)),
    (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
        ("timeout_cpu", "timeout_wall"),
    ),
    ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)\n" + RIGHT, ("error",)),
)


@dataclass(frozen=True)
class Submission:
    """A job and the verdicts that are right."""

    job: Job
    verdicts: tuple[str, ...]


def submissions(count: int, hostile: float, seed: int = 0) -> list[Submission]:
    """All different, so that none is answered from memory."""
    rng = random.Random(seed)
    made = []
    for k in range(count):
        if rng.random() < hostile:
            code, verdicts = HOSTILE[rng.randrange(len(HOSTILE))]
        else:
            right = rng.random() < 0.5
            code, verdicts = (RIGHT, ("passed",)) if right else (WRONG, ("failed",))
        job = Job(f"# {seed} {k}\n{code}", TESTS, names=("shift",), limits=Limits(cpu_seconds=CPU_SECONDS))
        made.append(Submission(job, verdicts))
    return made


class Service:
    """`reasonrl judge` in a process of its own."""

    def __init__(self, cores: int) -> None:
        self.token = secrets.token_urlsafe(24)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reasonrl.cli", "judge", "port=0", f"cores={cores}", f"cpu_seconds={CPU_SECONDS:g}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "REASONRL_JUDGE_TOKEN": self.token},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[\d.:]+\d", line)
        if found is None:
            assert self.process.stderr is not None
            raise SystemExit(f"the judge did not start: {line}{self.process.stderr.read()}")
        self.url = found[0]

    def resident_mb(self) -> float:
        """What the service holds, its programs not counted."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    def stop(self) -> str:
        """SIGTERM, and its last words."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> str:
        """Its last words."""
        _, told = self.process.communicate(timeout=300)
        return told.strip()


def main() -> int:
    """All three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--hostile", type=float, default=0.05)
    args = parser.parse_args()
    wrong = asyncio.run(load(args.jobs, args.clients, args.cores, args.hostile))
    wrong += asyncio.run(drained(args.jobs // 2, args.clients, args.cores, args.hostile))
    wrong += verl_client(args.cores)
    return 1 if wrong else 0


async def load(jobs: int, clients: int, cores: int, hostile: float) -> int:
    """The first part; returns lost and wrong verdicts."""
    service = Service(cores)
    work = submissions(jobs, hostile)
    order, seconds, seen, wrong = iter(work), [], Counter[str](), []
    resident = []
    begin = time.monotonic()
    with JudgeClient(service.url, token=service.token) as judge:

        async def client() -> None:
            for each in order:
                start = time.monotonic()
                outcome = await judge.judge_async(each.job)
                seconds.append(time.monotonic() - start)
                seen[outcome.verdict] += 1
                if len(seconds) % max(1, jobs // 10) == 0:
                    resident.append(service.resident_mb())
                if outcome.verdict not in each.verdicts:
                    wrong.append((each, outcome))

        try:
            await asyncio.gather(*(client() for _ in range(clients)))
        finally:
            await judge.aclose()
    took = time.monotonic() - begin
    lost = jobs - len(seconds)
    print(
        f"{jobs} submissions, {clients} clients, {cores} cores, {hostile:.0%} hostile: {took:.1f} s, {jobs / took:.1f} a second"
    )
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    print(f"latency p50 {p50:.3f} s, p99 {p99:.3f} s; verdicts {dict(seen.most_common())}")
    print(f"lost {lost}, wrong {len(wrong)}; resident MB at each tenth: {' '.join(f'{mb:.0f}' for mb in resident)}")
    for each, outcome in wrong[:10]:
        print(f"WRONG {outcome.verdict} ({outcome.message}) for {each.verdicts}: {each.job.code[:200]!r}")
    print(service.stop())
    return lost + len(wrong)


async def drained(jobs: int, clients: int, cores: int, hostile: float) -> int:
    """The second part; returns how many accepted jobs got no answer, or a wrong one."""
    service = Service(cores)
    order = iter(submissions(jobs, hostile, seed=1))
    answers, wrong, refused = 0, 0, Counter[str]()
    headers = {"Authorization": f"Bearer {service.token}"}

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal answers, wrong
        for each in order:
            try:
                answer = await http.post(f"{service.url}/v1/judge", json=encode_job(each.job))
            except httpx.TransportError as error:
                refused[type(error).__name__] += 1
                continue
            if answer.status_code == 200:
                answers += 1
                wrong += answer.json()["verdict"] not in each.verdicts
            else:
                refused[str(answer.status_code)] += 1
            if answers == jobs // 3:
                service.process.send_signal(signal.SIGTERM)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=300, limits=limits, headers=headers, trust_env=False) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    told = service.ended()
    accepted = int(re.search(r"(\d+) jobs accepted", told)[1])  # type: ignore[index]
    print(
        f"SIGTERM after {jobs // 3} answers: {accepted} accepted, {answers} answered, {wrong} wrong; refused {dict(refused)}"
    )
    print(f"exit code {service.process.returncode}; {told}")
    return accepted - answers + wrong + (service.process.returncode != 0)


def verl_client(cores: int) -> int:
    """The third part; returns how many results differ from those that verl documents."""
    from verl.utils.reward_score.sandbox_fusion.utils import check_correctness

    service = Service(cores)
    url = service.url.replace("http://", f"http://:{service.token}@") + "/run_code"
    double = "print(2 * int(input()))"
    cases: list[tuple[str, str, dict[str, Any], list[Any]]] = [
        ("right and wrong", double, {"inputs": ["2", "3"], "outputs": ["4", "7"]}, [True, False]),
        ("raises", "raise ValueError", {"inputs": [""], "outputs": [""]}, [-2]),
        ("no Python", "def f(:", {"inputs": [""], "outputs": [""]}, [-2]),
        ("exit code 3", "import sys; print(4); sys.exit(3)", {"inputs": ["2"], "outputs": ["4"]}, [-2]),
        ("loops", "while True: pass", {"inputs": [""], "outputs": [""]}, [-3]),
        ("sleeps", "import time; time.sleep(100)", {"inputs": [""], "outputs": [""]}, [-3]),
        ("too much memory", "bytearray(4 << 30)", {"inputs": [""], "outputs": [""]}, [-2]),
        (
            "a function",
            "def double(x):\n    return 2 * x",
            {"inputs": ["2", "5"], "outputs": ["4", "11"], "fn_name": "double"},
            [True, False],
        ),
        (
            "asserts",
            "def double(x):\n    return 2 * x",
            {
                "inputs": [None] * 2,
                "outputs": [None] * 2,
                "assert_case": ["assert double(2) == 4", "assert double(2) == 5"],
            },
            [True, -2],
        ),
    ]
    wrong = 0
    for name, code, tests, expected in cases:
        results, metadata = check_correctness(url, tests, code, timeout=2)
        if results != expected:
            wrong += 1
            print(f"WRONG {name}: {results} for {expected}: {json.dumps(metadata)[:500]}")
    print(f"verl's client: {len(cases)} cases, {wrong} wrong")
    print(service.stop())
    return wrong


if __name__ == "__main__":
    sys.exit(main())
