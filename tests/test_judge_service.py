"""The service around a stand-in for the sandbox: who may ask, what is said, and what a queue with an end does."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from judge_builders import FakeSandbox

from reasonrl.eval.judge.desk import Desk
from reasonrl.eval.judge.service import LARGEST_BODY, make_app
from reasonrl.verify.judge.types import Job, Limits, Outcome, Program

TOKEN = "a-token-of-some-length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ASKED: dict[str, Any] = {"code": "x = 1", "tests": "assert True"}


def served(
    work: Callable[[httpx.AsyncClient, Desk], Awaitable[None]],
    sandbox: FakeSandbox | None = None,
    largest_body: int = LARGEST_BODY,
    **desk: int,
) -> FakeSandbox:
    """Run `work` against a service, all in one event loop."""
    fake = sandbox or FakeSandbox()

    async def main() -> None:
        own = Desk(fake, **{"cores": 1, **desk})  # type: ignore[arg-type]
        app = make_app(own, token=TOKEN, limits=Limits(), largest_body=largest_body)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://judge", headers=BEARER) as client:
            try:
                await work(client, own)
            finally:
                fake.gate.set()
                await own.drain()
                own.close()

    asyncio.run(main())
    return fake


async def until(held: Callable[[], bool]) -> None:
    for _ in range(1000):
        if held():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in 5 s")


def test_only_the_token_opens_it_and_healthz_needs_none() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for given in (
            "",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            TOKEN,
            "Basic !!",
            "Basic " + base64.b64encode(b":no").decode(),
        ):
            for method, path in (
                ("POST", "/v1/judge"),
                ("POST", "/v1/run"),
                ("POST", "/"),
                ("POST", "/run_code"),
                ("GET", "/metrics"),
                ("GET", "/x"),
            ):
                answer = await client.request(method, path, json=ASKED, headers={"Authorization": given})
                assert answer.status_code == 401, (given, path)
        basic = "Basic " + base64.b64encode(f":{TOKEN}".encode()).decode()
        assert (await client.post("/v1/judge", json=ASKED, headers={"Authorization": basic})).status_code == 200
        health = (await client.get("/healthz", headers={"Authorization": ""})).json()
        assert health["backend"] == "bwrap"
        assert health["limits"]["cpu_seconds"] == 3
        assert health["limits"]["wall_seconds"] == 12

    served(work)


def test_a_page_in_a_browser_a_long_body_and_unknown_fields_are_refused() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        assert (await client.post("/v1/judge", json=ASKED, headers={"Origin": "http://x"})).status_code == 403
        assert (await client.post("/v1/judge", json={**ASKED, "code": "x" * LARGEST_BODY})).status_code == 413
        chunks = iter([b"x" * 400_000] * 3)

        async def body() -> Any:
            for chunk in chunks:
                yield chunk

        assert (await client.post("/v1/judge", content=body())).status_code == 413
        answer = await client.post("/v1/judge", json={**ASKED, "cod": 1})
        assert answer.status_code == 422
        assert answer.json() == {"error": "cod: Extra inputs are not permitted"}
        answer = await client.post("/v1/judge", json={**ASKED, "limits": {"cpu_seconds": 1000}})
        assert answer.status_code == 422
        assert "more than this judge gives, 60" in answer.json()["error"]
        assert (await client.post("/v1/judge", json={**ASKED, "names": ["a b"]})).status_code == 422
        assert (await client.get("/docs")).status_code == 404

    assert served(work).ran == []


def test_a_judgement_tells_verdict_and_isolation() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        answer = await client.post("/v1/judge", json={**ASKED, "limits": {"cpu_seconds": 2}, "id": "j"})
        body = answer.json()
        assert (body["verdict"], body["passed"], body["cached"], body["id"]) == ("failed", False, False, "j")
        assert answer.headers["x-judge-isolation"] == body["isolation"] == "bwrap"

    fake = served(work, FakeSandbox(lambda task: Outcome("failed", "why")))
    assert fake.ran == [Job("x = 1", "assert True", limits=Limits(2.0, 8.0))]


def test_a_whole_program_is_run_with_its_input_and_what_it_wrote_comes_back() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        asked = {"code": "print(input())", "stdin": "7", "limits": {"output_bytes": 2 << 20}, "id": "r"}
        body = (await client.post("/v1/run", json=asked)).json()
        assert (body["verdict"], body["stdout"], body["id"], body["isolation"]) == ("passed", "7\n", "r", "bwrap")
        assert (await client.post("/v1/run", json={**asked, "tests": "x"})).status_code == 422

    fake = served(work, FakeSandbox(lambda task: Outcome("passed", stdout=f"{task.stdin}\n")))
    assert fake.ran == [Program("print(input())", "7", Limits(output_bytes=2 << 20))]


def test_a_judge_may_take_longer_bodies() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for count, status in ((LARGEST_BODY, 200), (2 * LARGEST_BODY, 413)):
            assert (await client.post("/v1/run", json={"code": "", "stdin": "x" * count})).status_code == status

    served(work, largest_body=2 * LARGEST_BODY)


def test_without_a_sandbox_every_response_says_so() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for answer in (
            await client.get("/healthz"),
            await client.post("/v1/judge", json=ASKED),
            await client.post("/v1/judge", json={}),
            await client.post("/", json={}, headers={"Authorization": ""}),
            await client.post("/run_code", json={"code": "x"}),
        ):
            assert "unsafe_local=true" in answer.headers["x-judge-isolation"]
        assert (await client.get("/healthz")).json()["unsafe"] is True

    served(work, FakeSandbox(isolation="none"))


def test_the_released_schema() -> None:
    verdicts = {
        "passed": 1,
        "timeout_cpu": 2,
        "timeout_wall": 2,
        "failed": 3,
        "error": 3,
        "unparseable": 3,
        "memory": 3,
    }

    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for verdict, number in verdicts.items():
            problem = {"prompt": "", "test": "def check(f):\n    pass", "entry_point": "f"}
            answer = await client.post("/", json={"problem": problem, "completion": verdict})
            assert answer.json() == {"passed": number == 1, "result": number}
        answer = await client.post("/", json={"problem": problem, "completion": "sandbox_error"})
        assert answer.status_code == 503

    served(work, FakeSandbox(lambda task: Outcome(task.code)))


def test_sandbox_fusions_schema() -> None:
    outcomes = {
        "a": (Outcome("passed", stdout="4\n", exit_code=0), "Success", "Finished", 0),
        "b": (Outcome("error", exit_code=1), "Failed", "Finished", 1),
        "c": (Outcome("timeout_cpu"), "Failed", "TimeLimitExceeded", None),
        "d": (Outcome("memory"), "Failed", "Finished", -9),
        "e": (Outcome("output_limit"), "Failed", "Error", None),
    }

    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for code, (outcome, status, ran, exit_code) in outcomes.items():
            asked = {
                "code": code,
                "stdin": "2",
                "run_timeout": 5,
                "compile_timeout": 5,
                "memory_limit_MB": 1024,
                "language": "python",
            }
            body = (await client.post("/run_code", json={**asked, "files": {}, "fetch_files": []})).json()
            assert (body["status"], body["run_result"]["status"]) == (status, ran)
            assert body["run_result"]["return_code"] == exit_code
            assert body["run_result"]["stdout"] == outcome.stdout
        body = (await client.post("/run_code", json={"code": "x", "language": "cpp"})).json()
        assert (body["status"], body["run_result"]) == ("SandboxError", None)
        assert (await client.post("/run_code", json={"code": "s"})).json()["status"] == "SandboxError"

    known = {code: outcome for code, (outcome, *_) in outcomes.items()}
    fake = served(work, FakeSandbox(lambda task: known.get(task.code, Outcome("sandbox_error"))))
    assert fake.ran[0] == Program("a", "2", Limits(5, 10, 1024, output_bytes=1 << 20))


def test_a_full_queue_says_when_to_come_again() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        fake.gate.clear()
        tasks = [asyncio.create_task(client.post("/v1/judge", json={**ASKED, "code": f"x = {k}"})) for k in range(3)]
        await until(lambda: desk.waiting == 2)
        answer = await client.post("/v1/judge", json={**ASKED, "code": "more"})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert (
            await client.post("/run_code", json={"code": "more"})
        ).status_code == 504  # what verl's client tries again
        fake.gate.set()
        assert [(await task).status_code for task in tasks] == [200] * 3
        assert (desk.accepted, desk.answered, desk.rejected) == (3, 3, 2)

    fake = FakeSandbox()
    served(work, fake, queue=2)


def test_the_same_job_is_run_once_and_remembered() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        fake.gate.clear()
        tasks = [asyncio.create_task(client.post("/v1/judge", json={**ASKED, "id": f"{k}"})) for k in range(3)]
        await until(lambda: desk.hits == 2)
        fake.gate.set()
        assert sorted([(await task).json()["cached"] for task in tasks]) == [False, True, True]
        assert (await client.post("/v1/judge", json=ASKED)).json()["cached"] is True
        assert (await client.post("/v1/judge", json={**ASKED, "limits": {"cpu_seconds": 1}})).json()["cached"] is False

    fake = FakeSandbox()
    assert len(served(work, fake).ran) == 2


def test_a_verdict_that_a_busy_machine_may_cause_is_not_remembered() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for _ in range(2):
            assert (await client.post("/v1/judge", json=ASKED)).json()["verdict"] == "timeout_wall"

    assert len(served(work, FakeSandbox(lambda task: Outcome("timeout_wall"))).ran) == 2


def test_a_long_output_is_not_remembered() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for cached in (False, False):
            answer = await client.post("/v1/judge", json=ASKED)
            assert (answer.json()["cached"], len(answer.json()["stdout"])) == (cached, 5000)
        assert len(desk.known) == 0

    served(work, FakeSandbox(lambda task: Outcome("passed", stdout="x" * 5000)))


def test_what_is_remembered_has_an_end() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        for k in range(5):
            await client.post("/v1/judge", json={**ASKED, "code": f"{k}"})
        assert len(desk.known) == 2
        assert (await client.post("/v1/judge", json={**ASKED, "code": "4"})).json()["cached"] is True
        assert (await client.post("/v1/judge", json={**ASKED, "code": "0"})).json()["cached"] is False

    served(work, cache=2)


def test_an_id_belongs_to_one_job() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        assert (await client.post("/v1/judge", json={**ASKED, "id": "a"})).status_code == 200
        assert (await client.post("/v1/judge", json={**ASKED, "id": "a"})).json()["cached"] is True
        assert (await client.post("/v1/judge", json={**ASKED, "code": "y", "id": "a"})).status_code == 409

    served(work)


def test_a_sandbox_that_fails_is_tried_again_and_never_a_wrong_answer() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        answer = await client.post("/v1/judge", json=ASKED)
        assert (answer.status_code, answer.json()["verdict"]) == (503, "sandbox_error")
        answer = await client.post("/v1/judge", json={**ASKED, "code": "never"})
        assert answer.status_code == 422
        answer = await client.post("/v1/judge", json={**ASKED, "code": "raises"})
        assert (answer.status_code, answer.json()["message"]) == (503, "RuntimeError: ours")
        assert desk.accepted == desk.answered == 3

    def fails(task: Job | Program) -> Outcome:
        if task.code == "raises":
            raise RuntimeError("ours")
        return Outcome("sandbox_error", again=task.code != "never")

    assert [task.code for task in served(work, FakeSandbox(fails)).ran] == ["x = 1", "x = 1", "never", "raises"]


def test_a_client_that_goes_away_does_not_end_the_job() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        fake.gate.clear()
        task = asyncio.create_task(desk.judge(Job("x = 1", "assert True")))
        await until(lambda: desk.running == 1)
        task.cancel()
        fake.gate.set()
        await until(lambda: desk.answered == 1)
        assert (await client.post("/v1/judge", json={**ASKED, "limits": {"wall_seconds": None}})).json()[
            "cached"
        ] is True

    fake = FakeSandbox()
    served(work, fake)


def test_a_program_that_waits_lends_its_core() -> None:
    """With one core, eight sleepers are at work at once, and no more."""

    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        fake.gate.clear()
        tasks = [asyncio.create_task(client.post("/v1/judge", json={**ASKED, "code": f"{k}"})) for k in range(12)]
        await until(lambda: desk.running == 8)
        await asyncio.sleep(0.05)
        assert (desk.running, desk.waiting) == (8, 4)
        fake.gate.set()
        assert {(await task).status_code for task in tasks} == {200}
        assert (desk.running, desk.waiting, desk.free) == (0, 0, 1)

    fake = FakeSandbox(idle=True)
    served(work, fake)


def test_metrics_are_prometheus_text() -> None:
    async def work(client: httpx.AsyncClient, desk: Desk) -> None:
        await client.post("/v1/judge", json=ASKED)
        await client.post("/v1/judge", json=ASKED)
        text = (await client.get("/metrics")).text
        for line in (
            "judge_accepted_total 1",
            "judge_cache_hits_total 1",
            'judge_verdicts_total{verdict="passed"} 1',
            'judge_verdicts_total{verdict="sandbox_error"} 0',
            'judge_seconds_bucket{le="+Inf"} 1',
            "judge_seconds_count 1",
        ):
            assert line in text.splitlines()

    served(work)
