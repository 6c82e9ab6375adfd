"""A process reward model over HTTP: the same numbers, several clients at once, and failures that say what to do."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prm_builders import item, policy_tokenizer, prm_folder

from reasonrl.config import ConfigError, RunFailed
from reasonrl.engine.prm import Steps, open_scorer
from reasonrl.engine.prm.card import read_card, vocabulary_sha256
from reasonrl.engine.prm.http import HTTPScorer, decode_items, decode_scores, encode_items, encode_scores, patiently
from reasonrl.eval.prm import serve
from reasonrl.eval.prm.knobs import read_knobs
from reasonrl.eval.prm.serve import Desk, ServeKnobs, opened, run, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm_folder(tmp_path_factory.mktemp("prm") / "prm")


@pytest.fixture(scope="module")
def direct(folder: Path) -> Any:
    return open_scorer(str(folder), tokenizer=policy_tokenizer(), device="cpu")


@pytest.fixture(scope="module")
def url(direct: Any) -> Iterator[str]:
    with served(direct, direct.card.vocabulary) as address:
        yield address


class Slow:
    """A scorer that gives each step its response's length, after a while; `broken` responses fail."""

    def __init__(self, folder: Path, seconds: float = 0.0, identity: str = "slow") -> None:
        self.card, self.identity, self.seconds = read_card(folder), identity, seconds
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def score(self, items: Sequence[Steps]) -> list[np.ndarray]:
        self.go.wait(10)
        self.sizes.append(len(items))
        if any(one.question == "broken" for one in items):
            raise ValueError("broken is refused")
        if any(one.question == "burnt" for one in items):
            raise RuntimeError("out of memory")
        return [np.full(len(one.ends), len(one.response_ids), np.float32) for one in items]


def asked(url: str, body: bytes | None, path: str = "/score", **headers: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + path, data=body, headers=headers), timeout=10
        ) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def until_waiting(url: str, count: int) -> None:
    """Until so many items of all clients are at the server."""
    for _ in range(1000):
        if asked(url, None, "/health")[1]["waiting"] == count:
            return
        time.sleep(0.01)
    raise AssertionError(f"never {count} waiting")


ITEMS = [item("abc", [0, 2]), item("hello", [4], question="longer"), item("x" * 200, [5, 199]), item("", [])]


def test_over_http_come_the_same_numbers(url, direct) -> None:
    client = open_scorer(url, tokenizer=policy_tokenizer())
    found, wanted = client.score(ITEMS), direct.score(ITEMS)
    assert [s.tolist() for s in map(np.nan_to_num, found)] == [s.tolist() for s in map(np.nan_to_num, wanted)]
    assert np.isnan(found[2]).tolist() == [False, True]
    assert {s.dtype for s in found} == {np.dtype(np.float32)}
    assert client.identity == direct.identity
    assert client.card == direct.card
    assert client.score([]) == []


def test_health_says_who_is_there(url, direct) -> None:
    status, health = asked(url, None, "/health")
    assert status == 200
    assert health["identity"] == direct.identity
    assert health["vocabulary"] == vocabulary_sha256(policy_tokenizer())
    assert [health["card"][name] for name in ("tag", "good", "bad")] == list(direct.card.ids)


def test_many_clients_each_get_their_own_scores_and_share_the_work(folder) -> None:
    scorer = Slow(folder)
    with served(scorer, scorer.card.vocabulary) as url:
        scorer.go.clear()
        with ThreadPoolExecutor(16) as pool:
            clients = [HTTPScorer(url) for _ in range(16)]
            waiting = [pool.submit(client.score, [item("a" * (i + 1), [0])] * 3) for i, client in enumerate(clients)]
            until_waiting(url, 48)
            scorer.go.set()
            found = [job.result() for job in waiting]
    assert [[float(s[0]) for s in each] for each in found] == [[float(i + 1)] * 3 for i in range(16)]
    assert sum(scorer.sizes) == 48
    assert len(scorer.sizes) <= 2  # the first was alone, the others had gathered


def test_a_large_request_goes_in_pieces(folder, monkeypatch) -> None:
    scorer = Slow(folder)
    with served(scorer, scorer.card.vocabulary) as url:
        found = HTTPScorer(url).score([item("a" * (i % 7 + 1), [0]) for i in range(150)])
    assert [float(s[0]) for s in found] == [float(i % 7 + 1) for i in range(150)]
    assert scorer.sizes == [64, 64, 22]


def test_one_bad_request_spoils_no_other(folder) -> None:
    scorer = Slow(folder)
    with served(scorer, scorer.card.vocabulary) as url:
        scorer.go.clear()
        with ThreadPoolExecutor(8) as pool:
            good = [pool.submit(HTTPScorer(url).score, [item("ab", [1])]) for _ in range(4)]
            bad = pool.submit(HTTPScorer(url).score, [item("ab", [1], question="broken")])
            until_waiting(url, 5)
            scorer.go.set()
            assert [float(job.result()[0][0]) for job in good] == [2.0] * 4
            with pytest.raises(ValueError, match="broken is refused"):
                bad.result()
        with pytest.raises(RunFailed, match="status 500: RuntimeError: out of memory"):
            HTTPScorer(url).score([item("ab", [1], question="burnt")])
        assert HTTPScorer(url).score([item("abc", [1])])[0].tolist() == [3.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body must be JSON"),
        (b"[]", "the body must be JSON"),
        (b'{"items": 3}', '"items" must be a list'),
        (b'{"items": [{"question": "q"}]}', "item 0 must have exactly question, prompt_ids, response_ids, ends"),
        (
            b'{"items": [{"question": 1, "prompt_ids": [], "response_ids": [], "ends": []}]}',
            "item 0: question must be text",
        ),
        (b'{"items": [{"question": "", "prompt_ids": [], "response_ids": [1.5], "ends": []}]}', "lists of token ids"),
        (b'{"items": [{"question": "", "prompt_ids": [], "response_ids": [true], "ends": []}]}', "lists of token ids"),
        (b'{"items": [{"question": "", "prompt_ids": [], "response_ids": [1], "ends": [1]}]}', "ends must be rising"),
        (
            b'{"items": [{"question": "", "prompt_ids": [], "response_ids": [99999], "ends": [0]}]}',
            "another vocabulary",
        ),
        (
            b'{"items": [{"question": "", "prompt_ids": [], "response_ids": [4294967296], "ends": [0]}]}',
            "lists of token",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(url, body, message) -> None:
    status, answer = asked(url, body)
    assert status == 400
    assert message in answer["error"]


def test_other_paths_and_sizes_are_refused(url, monkeypatch) -> None:
    assert asked(url, None, "/")[0] == 404
    assert asked(url, b"{}", "/else")[0] == 404
    monkeypatch.setattr(serve, "LARGEST_BODY", 10)
    status, answer = asked(url, b"x" * 11)
    assert status == 413
    assert "ask for fewer items at once" in answer["error"]
    monkeypatch.undo()
    monkeypatch.setattr(serve, "MOST_ITEMS", 1)
    assert asked(url, encode_items(ITEMS))[0] == 413


def test_a_full_desk_asks_to_come_again(folder, monkeypatch) -> None:
    monkeypatch.setattr(serve, "MOST_WAITING", 2)
    scorer = Slow(folder)
    with served(scorer, scorer.card.vocabulary) as url:
        scorer.go.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(HTTPScorer(url).score, [item("ab", [1])] * 2)
            until_waiting(url, 2)
            assert asked(url, encode_items([item("ab", [1])])) == (503, {"error": "2 items are waiting"})
            second = pool.submit(HTTPScorer(url).score, [item("abc", [1])])  # waits and comes again
            scorer.go.set()
            assert [float(s[0]) for s in (*first.result(), *second.result())] == [2.0, 2.0, 3.0]


def test_items_and_scores_travel_unchanged() -> None:
    travelled = decode_items(encode_items([Steps("ü?", np.array([1, 2]), np.array([3], np.int32), (0,))]))  # type: ignore[arg-type]
    assert travelled == [Steps("ü?", [1, 2], [3], [0])]
    scores = [np.array([0.1, np.nan, 1e-30], np.float32), np.array([], np.float32)]
    back = decode_scores(json.loads(json.dumps(encode_scores(scores))))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(scores, back, strict=True))


# the client when things go wrong


def waiting(results: Sequence[Any]) -> tuple[Callable[[], dict[str, Any]], list[float], Callable[[], float]]:
    """A call that gives or raises these one by one, and a clock that only sleeping moves."""
    left, slept = list(results), [0.0]

    def once() -> dict[str, Any]:
        result = left.pop(0) if left else ConnectionRefusedError("gone")
        if isinstance(result, Exception):
            raise result
        return dict(result)

    return once, slept, lambda: sum(slept)


def status(code: int, text: str = "why") -> urllib.error.HTTPError:
    return urllib.error.HTTPError("u", code, "r", {}, io.BytesIO(json.dumps({"error": text}).encode()))  # type: ignore[arg-type]


def test_the_client_waits_longer_each_time_and_then_gives_up() -> None:
    once, slept, clock = waiting([ConnectionRefusedError("gone"), status(503), TimeoutError(), {"a": 1}])
    assert patiently(once, "u", 60, sleep=slept.append, clock=clock) == {"a": 1}
    assert slept[1:] == [0.25, 0.5, 1.0]
    once, slept, clock = waiting([])
    with pytest.raises(
        RunFailed, match=r"u gave no answer for 56 s \(ConnectionRefusedError: gone\); is `reasonrl prm serve` up"
    ):
        patiently(once, "u", 60, sleep=slept.append, clock=clock)
    assert max(slept) == 8.0


def test_what_the_server_refuses_is_not_asked_again() -> None:
    once, slept, clock = waiting([status(400, "no such token"), {"a": 1}])
    with pytest.raises(ValueError, match="no such token"):
        patiently(once, "u", 60, sleep=slept.append, clock=clock)
    once, slept, clock = waiting([status(500, "broken")])
    with pytest.raises(RunFailed, match="u failed with status 500: broken"):
        patiently(once, "u", 60, sleep=slept.append, clock=clock)
    assert slept == [0.0]


def test_an_exchanged_server_is_refused(folder) -> None:
    first, second = Slow(folder), Slow(folder, identity="other")
    with served(first, first.card.vocabulary) as url:
        port = int(url.rpartition(":")[2])
        client = HTTPScorer(url)
        client.score([item("ab", [1])])
    with (
        served(second, second.card.vocabulary, port=port),
        pytest.raises(RunFailed, match="was exchanged .*slow before, other"),
    ):
        client.score([item("ab", [1])])


def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"no process reward model at http://127\.0\.0\.1:9 .*start one with reasonrl prm serve"
    ):
        HTTPScorer("http://127.0.0.1:9", patience=0)


def test_a_server_for_another_vocabulary_is_refused(direct) -> None:
    with (
        served(direct, "another") as url,
        pytest.raises(ConfigError, match="expects the token ids of another tokenizer"),
    ):
        open_scorer(url, tokenizer=policy_tokenizer())


# the command


def test_a_folder_is_opened_for_the_vocabulary_of_its_family(folder) -> None:
    scorer, vocabulary = opened(ServeKnobs(str(folder), device="cpu"))
    assert vocabulary == vocabulary_sha256(policy_tokenizer())
    assert scorer.score(ITEMS[:1])[0].size == 2


def test_a_port_that_is_taken_is_told(direct, url) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port} .*give another port="),
        served(direct, "", port=port),
    ):
        pass


def test_the_command_tells_its_address_and_ends_with_ctrl_c(folder, capsys, monkeypatch) -> None:
    def ctrl_c(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        serve,
        "threading",
        SimpleNamespace(
            Event=lambda: SimpleNamespace(wait=lambda: ctrl_c(None)), Thread=threading.Thread, Lock=threading.Lock
        ),
    )
    assert run([f"model={folder}", "port=0", "device=cpu"]) == 0
    assert "at http://127.0.0.1:" in capsys.readouterr().out


def test_knobs_out_of_range_are_named() -> None:
    for args, message in (
        (["port=70000"], "port must be 0 .* to 65535"),
        (["backend=onnx"], "backend must be one of transformers, vllm"),
        (["batch_tokens=0"], "batch_tokens must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_knobs(ServeKnobs, ["model=x", *args], "serve")
    with pytest.raises(ConfigError, match="serve a folder, not another server"):
        ServeKnobs("http://127.0.0.1:1")


def test_every_knob_is_in_the_help(capsys) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ServeKnobs.__dataclass_fields__ if f"{name}=" not in text] == []


def test_the_desk_answers_what_waits_before_it_closes(folder) -> None:
    desk = Desk(Slow(folder))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(desk.score, [item("ab", [1])]) for _ in range(4)]
        assert [float(job.result()[0][0]) for job in jobs] == [2.0] * 4
    desk.close()
    assert not desk.thread.is_alive()
    assert desk.count == 0
