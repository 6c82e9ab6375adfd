"""What writes answers for `reasonrl eval`: noise, streaming, several copies, and servers that fail."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eval_builders import FakeServer
from rich.console import Console

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.backends import Answer, Ask
from reasonrl.eval.backends.openai import Server, ServerBackend, server_of
from reasonrl.eval.backends.replicas import Replicas
from reasonrl.eval.backends.vllm import VLLMBackend, open_vllm, parts
from reasonrl.eval.settings import EngineKnobs, read_settings

ASK = Ask(
    task="t",
    id="q0",
    numbers=(0,),
    prompt_ids=(5, 6, 7),
    turns=[{"role": "user", "content": "1+1?"}],
    temperature=1.0,
    top_p=1.0,
    top_k=-1,
    max_tokens=16,
    seed=1,
)


def asks(count: int, n: int = 1, **changes: Any) -> list[Ask]:
    """Asks of questions q0, q1, ..., whose prompts are 1, 2, ... tokens long."""
    return [
        replace(ASK, id=f"q{i}", numbers=tuple(range(n)), prompt_ids=(3,) * (i + 1), **changes) for i in range(count)
    ]


def keys(answers: list[Answer]) -> list[tuple[str, int]]:
    return [(answer.id, answer.number) for answer in answers]


# noise


def test_every_answer_has_noise_of_its_own_that_follows_from_seed_task_id_and_number() -> None:
    noises = [replace(ASK, **change).noise(number) for change in CHANGES for number in (0, 1)]
    assert len(set(noises)) == 2 * len(CHANGES)
    assert ASK.noise(3) == replace(ASK, prompt_ids=(1,), temperature=0.5, numbers=(3,)).noise(3)


CHANGES: tuple[dict[str, Any], ...] = ({}, {"seed": 2}, {"task": "u"}, {"id": "q1"}, {"task": "t\nq0", "id": ""})


# vLLM, by an engine of its shape


@dataclass
class Params:
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None


@dataclass
class Made:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass
class Output:
    request_id: str
    outputs: list[Made]
    finished: bool = True


class Engine:
    """Like `vllm.LLMEngine`: a request takes as many steps as its prompt has tokens, and gives its n answers at the end."""

    def __init__(self, reason: str = "stop") -> None:
        self.left: dict[str, tuple[int, Params, int]] = {}
        self.seen: list[Params] = []
        self.most = self.steps = 0
        self.aborted: list[str] = []
        self.reason = reason

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Params) -> str:
        assert isinstance(prompt["prompt_token_ids"], list)
        if len(prompt["prompt_token_ids"]) > 50:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        self.left[request_id] = (len(prompt["prompt_token_ids"]), params, len(prompt["prompt_token_ids"]))
        self.seen.append(params)
        self.most = max(self.most, sum(params.n for _, params, _ in self.left.values()))
        return f"{request_id}-a1b2c3d4"  # the internal name, which no output carries

    def step(self) -> list[Output]:
        self.steps += 1
        done = []
        for name, (left, params, length) in list(self.left.items()):
            if left > 1:
                self.left[name] = (left - 1, params, length)
                continue
            del self.left[name]
            made = [Made(i, f"{length} {i}", [1] * length, self.reason) for i in range(params.n)]
            done.append(Output(name, made[::-1]))
        return done

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names


class LLM:
    def __init__(self, **knobs: Any) -> None:
        self.llm_engine = Engine(**knobs)


def backend(at_once: int = 8, **knobs: Any) -> tuple[VLLMBackend, Engine]:
    llm = LLM(**knobs)
    return VLLMBackend(llm, Params, at_once=at_once), llm.llm_engine


def test_answers_come_when_they_are_finished_and_not_at_the_end() -> None:
    made, engine = backend()
    stream = made.answers([*reversed(asks(5))])
    first = next(stream)
    assert (first.id, engine.steps) == ("q0", 1)  # asked for last
    assert [answer.id for answer in stream] == ["q1", "q2", "q3", "q4"]


def test_an_answer_says_what_it_is() -> None:
    made, _ = backend()
    found = list(made.answers(asks(3, n=2)))
    assert sorted(keys(found)) == [(f"q{i}", k) for i in range(3) for k in range(2)]
    assert found[-1].prompt_tokens == found[-1].tokens == 3
    assert {answer.text for answer in found if answer.id == "q1"} == {"2 0", "2 1"}
    assert all(answer.finished for answer in found)
    cut, _ = backend(reason="length")
    assert not any(answer.finished for answer in cut.answers(asks(2)))


def test_the_numbers_asked_for_are_those_that_come() -> None:
    made, _ = backend()
    assert sorted(keys(list(made.answers([replace(ASK, numbers=(2, 5, 6))])))) == [("q0", 2), ("q0", 5), ("q0", 6)]


def test_answers_to_a_question_are_one_request_unless_they_are_long_or_have_noise_of_their_own() -> None:
    def sizes(**changes: Any) -> list[int]:
        return [len(part.numbers) for part in parts([replace(ASK, numbers=tuple(range(8)), **changes)])]

    assert sizes() == [8]
    assert sizes(max_tokens=4096) == [4, 4]
    assert sizes(max_tokens=32768) == [1] * 8
    assert sizes(own_noise=True) == [1] * 8


def test_seeds_are_given_only_where_they_are_asked_for() -> None:
    made, engine = backend()
    list(made.answers(asks(3, n=2)))
    assert {params.seed for params in engine.seen} == {None}
    made, engine = backend()
    list(made.answers(asks(3, n=2, own_noise=True)))
    assert len({params.seed for params in engine.seen}) == 6
    assert all(0 <= params.seed < 2**63 for params in engine.seen)
    made, engine = backend()
    list(made.answers(asks(3, own_noise=True, temperature=0.0)))
    assert {params.seed for params in engine.seen} == {None}  # greedy has no noise


def test_asks_are_read_no_faster_than_they_are_worked_on() -> None:
    read = []

    def some() -> Iterator[Ask]:
        for ask in asks(40, n=2):
            read.append(ask.id)
            yield ask

    made, engine = backend(at_once=8)
    stream = made.answers(some())
    next(stream)
    assert len(read) < 10
    assert len(list(stream)) == 79
    assert engine.most <= 9


def test_what_is_under_way_is_taken_back_when_nobody_wants_it_any_more() -> None:
    made, engine = backend()
    stream = made.answers(asks(3))
    next(stream)
    stream.close()
    assert len(engine.aborted) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"id": "q60"}, ConfigError, "vLLM refuses t, question q60: ValueError: The decoder prompt is longer"),
        ({"reason": "abort"}, RunFailed, "vLLM gave up t, question q0: abort. .* the same command continues"),
    ],
)
def test_what_vllm_does_not_do_is_told(change, error, message) -> None:
    made, _ = backend(reason=change.get("reason", "stop"))
    long = replace(ASK, prompt_ids=(3,) * (60 if "id" in change else 1), id=change.get("id", "q0"))
    with pytest.raises(error, match=message):
        list(made.answers([long]))


def test_an_engine_that_dies_says_how_to_continue() -> None:
    made, engine = backend()
    engine.step = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="vLLM stopped: ZeroDivisionError: .* the same command continues"):
        list(made.answers(asks(1)))


def test_vllm_is_opened_with_what_was_asked_for(monkeypatch) -> None:
    opened: list[dict[str, Any]] = []

    def llm(**knobs: Any) -> LLM:
        opened.append(knobs)
        return LLM()

    def params(output_kind: str, **knobs: Any) -> Params:
        assert output_kind == "final only"
        return Params(**knobs)

    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final only"))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, SamplingParams=params))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)

    def seed(**changes: Any) -> int:
        engine = EngineKnobs(memory=0.5, eager=True, max_sequences=7)
        how = {"trust_remote_code": False, "context": 900, "seed": 1, "done": 0, **changes}
        with open_vllm("org/model", engine, **how) as made:
            assert len(list(made.answers(asks(3, n=2)))) == 6
        return opened[-1]["seed"]

    seeds = {seed(), seed(seed=2), seed(done=5)}
    assert len(seeds) == 3  # what is sampled after an interruption has noise of its own
    assert all(0 <= each < 2**31 for each in seeds)
    wanted = {"model": "org/model", "dtype": "bfloat16", "gpu_memory_utilization": 0.5, "enforce_eager": True}
    wanted |= {"max_num_seqs": 7, "max_model_len": 900, "tensor_parallel_size": 1, "enable_prefix_caching": True}
    assert opened[0].items() >= wanted.items()


FAKE_VLLM = """
import os

class LLM:
    def __init__(self, **knobs):
        assert "torch" not in __import__("sys").modules
        self.llm_engine, self.waiting, self.knobs = self, [], knobs

    def add_request(self, name, prompt, params):
        self.waiting.append((name, prompt["prompt_token_ids"], params))

    def step(self):
        name, ids, params = self.waiting.pop(0)
        text = f"{os.environ['CUDA_VISIBLE_DEVICES']} {self.knobs['seed']}"
        made = [Thing(index=i, text=text, token_ids=[1, 2], finish_reason="stop") for i in range(params.n)]
        return [Thing(request_id=name, outputs=made, finished=True)]

class Thing:
    def __init__(self, **values):
        self.__dict__.update(values)

SamplingParams = Thing
"""


def test_copies_of_vllm_have_gpus_and_noise_of_their_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    (tmp_path / "vllm" / "sampling_params.py").write_text("class RequestOutputKind:\n    FINAL_ONLY = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    engine = EngineKnobs(data_parallel=2, tensor_parallel=2, max_sequences=2)
    with open_vllm("org/model", engine, trust_remote_code=False, context=900, seed=1, done=0) as made:
        found = list(made.answers(asks(20, n=2)))
    assert sorted(keys(found)) == sorted((f"q{i}", k) for i in range(20) for k in range(2))
    devices, seeds = zip(*{tuple(answer.text.split()) for answer in found}, strict=True)
    assert sorted(devices) == ["4,5", "6,7"]
    assert len(set(seeds)) == 2


def test_a_model_that_vllm_cannot_load_is_told_with_the_way_out(monkeypatch) -> None:
    def llm(**_: Any) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, SamplingParams=Params))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    opened = open_vllm("m", EngineKnobs(), trust_remote_code=False, context=9, seed=1, done=0)
    with pytest.raises(ConfigError, match="vLLM did not start with model m: RuntimeError: CUDA out of memory. Out of"):
        opened.__enter__()


# several copies


def copy(rank: int, *, dies: str = "") -> Callable[[Any], Iterator[Answer]]:
    """In a process of its own: answers that name the copy and a variable of its environment."""
    if dies == "loading" and rank == 1:
        raise ConfigError("out of memory")

    def serve(source: Any) -> Iterator[Answer]:
        while not source.over:
            ask = source.take(wait=True)
            if ask is None:
                return
            if dies == "killed" and rank == 1 and ask.id == "q5":
                os.kill(os.getpid(), signal.SIGKILL)
            if dies == "failing" and rank == 1 and ask.id == "q5":
                raise RuntimeError("CUDA error")
            for number in ask.numbers:
                yield Answer(ask.task, ask.id, number, f"{rank} {os.environ['WHICH']}", 1, 1, True)

    return serve


WHICH = [{"WHICH": "a"}, {"WHICH": "b"}]


def test_copies_share_the_work_each_with_its_own_environment() -> None:
    with Replicas(copy, WHICH, at_once=4) as replicas:
        found = list(replicas.answers(asks(40, n=2)))
        again = list(replicas.answers(asks(3)))  # they stay open
        pids = [process.pid for process in replicas._processes]
    assert sorted(keys(found)) == sorted((f"q{i}", k) for i in range(40) for k in range(2))
    assert set(Counter(answer.text for answer in found)) == {"0 a", "1 b"}
    assert len(again) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("dies", "error", "message"),
    [
        ("loading", ConfigError, "replica 1: out of memory"),
        ("killed", RunFailed, "replica 1 of 2 died .killed by signal 9, .* memory.*the same command continues"),
        ("failing", RunFailed, "replica 1: RuntimeError.'CUDA error'."),
    ],
)
def test_a_copy_that_is_lost_ends_all_of_them_and_says_so(dies, error, message) -> None:
    found: list[Answer] = []
    pids: list[int] = []

    def work() -> None:
        with Replicas(partial(copy, dies=dies), WHICH, at_once=4) as replicas:
            pids.extend(process.pid for process in replicas._processes)
            found.extend(replicas.answers(asks(40)))

    with pytest.raises(error, match=message):
        work()
    assert len(found) < 40
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_copies_end_with_the_process_that_started_them(tmp_path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_eval_backends import WHICH, Replicas, copy\n"
        "if __name__ == '__main__':\n"
        "    with Replicas(copy, WHICH, at_once=4) as replicas:\n"
        "        print(*(p.pid for p in replicas._processes), flush=True)\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, str(tmp_path / "main.py"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# a server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.down()


def client(server: FakeServer, console: Console | None = None, **changes: Any) -> ServerBackend:
    knobs = {"key": None, "connections": 4, "timeout": 5.0, "max_context": None, "first_wait": 0.01, "tries": 4}
    return ServerBackend(Server(server.url, "m", **{**knobs, **changes}), console)


def test_a_server_is_asked_once_for_each_answer_with_a_seed_of_its_own(server) -> None:
    made = client(server)
    made.check()
    found = list(made.answers(asks(3, n=2, top_p=0.9)))
    assert sorted(keys(found)) == [(f"q{i}", k) for i in range(3) for k in range(2)]
    assert {answer.text for answer in found} == {"1+1?!"}
    assert {(answer.tokens, answer.prompt_tokens, answer.finished) for answer in found} == {(8, 4, True)}
    paths, bodies, keys_sent = zip(*server.asked, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    assert len({body["seed"] for body in bodies}) == 6
    assert {(b["model"], b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {("m", 1.0, 0.9, 16)}
    assert all("n" not in body and "top_k" not in body for body in bodies)
    assert set(keys_sent) == {None}


def test_a_text_prompt_goes_to_completions_and_greedy_answers_have_no_seed(server) -> None:
    (found,) = client(server).answers([replace(ASK, turns="2+2=", temperature=0.0, top_k=5)])
    (path, body, _) = server.asked[0]
    assert (found.text, path) == ("2+2=!", "/v1/completions")
    assert body["top_k"] == 5
    assert "seed" not in body


def test_an_answer_that_was_cut_is_not_finished(server) -> None:
    (found,) = client(server).answers([replace(ASK, max_tokens=3)])
    assert (found.tokens, found.finished) == (3, False)


@pytest.mark.parametrize("wrong", [429, 500, 503, "drop", "hang"])
def test_what_fails_for_a_moment_is_tried_again(server, wrong) -> None:
    server.plan = [wrong, wrong]
    console = Console(record=True, file=io.StringIO(), width=200)
    made = client(server, console, timeout=0.2 if wrong == "hang" else 5.0)
    assert sorted(keys(list(made.answers(asks(3))))) == [("q0", 0), ("q1", 0), ("q2", 0)]
    assert made.facts()["tried_again"] == 2
    assert "again in" in console.export_text()


def test_a_server_that_stays_away_stops_the_work_and_says_how_to_continue(server) -> None:
    server.plan = [503] * 1000
    with pytest.raises(RunFailed, match="failed 4 times, at last: 503: wrong 503. .*the same command continues"):
        list(client(server).answers(asks(9)))


def test_a_server_that_goes_down_in_the_middle_keeps_what_it_answered() -> None:
    fake = FakeServer()
    found: list[Answer] = []

    def ask() -> None:
        for answer in client(fake, connections=1).answers(asks(50)):
            found.append(answer)
            if len(found) == 5:
                fake.down()

    with pytest.raises(RunFailed, match="failed 4 times, at last: Connect.*same command continues"):
        ask()
    assert 5 <= len(found) < 50
    back = FakeServer(fake.server_port)
    rest = [ask for ask in asks(50) if (ask.id, 0) not in keys(found)]
    assert len(list(client(back).answers(rest))) == 50 - len(found)
    back.down()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (401, "wants a key .401; no key is set.: put it into the variable that api_key_env= names"),
        (404, r"refuses t, question q0 \(404\): wrong 404"),
        ({"status": 422, "error": "no such setting: top_k"}, "refuses .* no such setting: top_k"),
    ],
)
def test_what_a_server_refuses_is_told_at_once(server, wrong, message) -> None:
    server.plan = [wrong]
    with pytest.raises(ConfigError, match=message):
        list(client(server).answers([ASK]))
    assert len(server.asked) == 1


def test_a_prompt_over_the_context_is_one_answer_without_a_text(server) -> None:
    server.context = 20
    made = client(server)
    made.check()
    long, short = replace(ASK, id="long", turns="x" * 30), replace(ASK, id="short", turns="x" * 15)
    found = {answer.id: answer for answer in made.answers([long, short])}
    assert (found["long"].too_long, found["long"].text, found["long"].tokens) == (True, "", 0)
    assert (found["short"].too_long, found["short"].short_of_room, found["short"].tokens) == (False, True, 5)


def test_a_context_that_the_server_does_not_tell_must_be_given(server) -> None:
    server.context = 20
    short = replace(ASK, turns="x" * 15)
    with pytest.raises(ConfigError, match="give max_context=, or lower max_new_tokens"):
        list(client(server).answers([short]))
    (found,) = client(server, max_context=20).answers([short])
    assert found.tokens == 5


def test_newer_models_are_given_the_newer_name_of_the_limit(server) -> None:
    server.plan = [{"status": 400, "error": {"message": "Use 'max_completion_tokens' instead"}}]
    list(client(server, connections=1).answers(asks(2)))
    assert [("max_tokens" in body, "max_completion_tokens" in body) for _, body, _ in server.asked] == [
        (True, False),
        (False, True),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"reasoning_content": "r", "content": "a"}, "<think>r</think>a"),
        ({"reasoning": "r", "content": None}, "<think>r"),
        ({"content": None}, ""),
    ],
)
def test_reasoning_that_a_server_took_apart_is_put_back(server, message, text) -> None:
    server.choice = lambda *_: {"message": message}
    (found,) = client(server).answers([ASK])
    assert found.text == text


def test_a_server_that_does_not_count_is_refused(server) -> None:
    server.counts = False
    with pytest.raises(ConfigError, match="does not tell how many tokens it wrote"):
        list(client(server).answers([ASK]))


def test_a_wrong_address_or_model_is_told_before_anything_is_asked(server) -> None:
    with pytest.raises(ConfigError, match="has no model 'other': give served_model=, of m"):
        ServerBackend(replace(client(server)._server, model="other")).check()
    server.down()
    with pytest.raises(ConfigError, match="no server answers at .*/v1/models .*mend base_url="):
        client(server).check()


def test_the_key_comes_from_the_environment_alone(server, monkeypatch) -> None:
    knobs = read_settings(["model=m", "task=t", "backend=openai", f"base_url={server.url}", "api_key_env=MY_KEY"])
    with pytest.raises(ConfigError, match="environment variable MY_KEY is not set"):
        server_of(knobs)
    monkeypatch.setenv("MY_KEY", "secret")
    list(ServerBackend(server_of(knobs)).answers([ASK]))
    assert server.asked[0][2] == "Bearer secret"


@pytest.mark.parametrize(
    ("url", "message"),
    [("localhost:8000", "is no address"), ("ftp://host/v1", "is no address"), ("http://me:pw@host/v1", "a password")],
)
def test_an_address_that_cannot_be_one_is_refused(url, message) -> None:
    with pytest.raises(ConfigError, match=message):
        server_of(read_settings(["model=m", "task=t", "backend=openai", f"base_url={url}"]))
