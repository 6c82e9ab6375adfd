"""A reward model chooses among the samples of best_of_n: which one, what it is asked, and what happens when it is away."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prm_builders import ids_of, policy_tokenizer, prm_folder
from tts_builders import FakeVerifier, posed

from reasonrl.config import ConfigError, RunFailed
from reasonrl.data.prompts import Prompt
from reasonrl.engine.prm import Steps, open_scorer
from reasonrl.eval.tasks.task import Question
from reasonrl.eval.tts import scorers
from reasonrl.eval.tts.backends.fake import FakeBackend, scripted, written
from reasonrl.eval.tts.base import Attempt, Budget, Posed, Score, Trace
from reasonrl.eval.tts.methods.best_of_n import AGGREGATES, BestOfN
from reasonrl.eval.tts.results import selected_by, summary
from reasonrl.eval.tts.run import run_tts
from reasonrl.eval.tts.schedule import Schedule
from reasonrl.eval.tts.scorers import HTTPScorer, PRMScorer
from reasonrl.eval.tts.settings import read_settings
from reasonrl.functional import choice
from reasonrl.runs import provenance

PROMPT = Prompt("p", "chat", "Q: {question}", system="Be brief.")


class Lengths:
    """Likes long texts; cannot score one that says N."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def score(self, asks: Sequence[tuple[Posed, Score]]) -> list[float | None]:
        self.calls.append([(one.id, want.text) for one, want in asks])
        return [None if want.text == "N" else float(len(want.text)) for _, want in asks]


def chosen(
    texts: dict[str, Sequence[str]], scorer: Any, budget: int = 3, recorded: Any = None
) -> tuple[dict[str, Trace], FakeBackend]:
    backend, method = FakeBackend(scripted(texts)), BestOfN(selector="orm", orm="http://nowhere")
    schedule = Schedule(method, backend, FakeVerifier(), Budget(budget), scorer=scorer)
    return {trace.id: trace for trace in schedule.run([posed(id) for id in texts], recorded)}, backend


def test_the_best_score_counts_right_or_not_and_it_is_an_accuracy() -> None:
    found, _ = chosen({"a": ["T", "FFF", "FF"], "b": ["F", "T" * 1, "N"]}, scorer := Lengths())
    assert (found["a"].chosen, found["a"].solved, found["a"].oracle) == (1, False, False)
    assert (found["b"].chosen, found["b"].solved) == (0, False)  # of equal ones the first
    assert found["b"].notes["scores"] == [1.0, 1.0, None]
    assert [each.verdict for each in found["a"].attempts] == ["correct", "wrong", "wrong"]  # nothing stopped it
    assert len(scorer.calls) == 1  # both questions in one call
    assert len(scorer.calls[0]) == 6
    numbers = summary({1: list(found.values())}, budget=3, votes=False)
    assert numbers["score"]["name"] == "accuracy"
    assert numbers["score"]["estimate"] == 0.0
    assert numbers["coverage"]["3"]["estimate"] == 1.0
    assert numbers["unscored"] == 1


def test_nothing_is_chosen_where_nothing_could_be_scored() -> None:
    found, _ = chosen({"a": ["N", "N", "N"]}, Lengths())
    assert (found["a"].chosen, found["a"].solved) == (None, False)


def test_the_curve_chooses_among_the_first_k() -> None:
    found, _ = chosen({"a": ["FF", "T", "FFF"], "b": ["T", "N", "N"]}, Lengths())
    both = list(found.values())
    assert [selected_by(both, k).tolist() for k in (1, 2, 3)] == [[0, 1], [0, 1], [0, 1]]
    right, _ = chosen({"a": ["F", "T", "GG"]}, Ranked([1.0, 2.0, 0.0]))
    assert [selected_by(list(right.values()), k).tolist() for k in (1, 2, 3)] == [[0], [1], [1]]
    numbers = summary({1: list(right.values())}, budget=3, votes=False)
    assert [numbers["selected"][k]["estimate"] for k in ("1", "2", "3")] == [0.0, 1.0, 1.0]


class Ranked:
    """Scores in order."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def score(self, asks: Sequence[Any]) -> list[float | None]:
        return [self.values.pop(0) for _ in asks]


def test_attempts_of_an_earlier_session_are_scored_and_not_sampled_again() -> None:
    before, _ = chosen({"a": ["T", "FFF", "FF"]}, Lengths())
    recorded: dict[str, list[Attempt]] = {"a": list(before["a"].attempts[:2])}
    again, backend = chosen({"a": ["FF"]}, scorer := Lengths(), recorded=recorded)
    assert again["a"] == before["a"]
    assert len(backend.calls) == 1
    assert scorer.calls == [[("a", "T"), ("a", "FFF"), ("a", "FF")]]


def test_without_a_reward_model_nothing_is_chosen_in_silence() -> None:
    with pytest.raises(ConfigError, match="method=best_of_n lets a reward model choose, and there is none here"):
        chosen({"a": ["T", "T", "T"]}, None)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"selector": "prm"}, r"selector=prm needs method.prm=, a folder of `reasonrl prm train` or an address"),
        ({"selector": "orm"}, r"selector=orm needs method.orm=, an address such as http"),
        ({"prm": "x"}, "prm is for selector=prm, got oracle"),
        ({"selector": "orm", "orm": "127.0.0.1:6003"}, "orm must be an address such as http://127.0.0.1:6003/"),
        ({"selector": "orm", "orm": "http://x", "orm_tokens": 0}, "orm_tokens must be at least 1, got 0"),
        ({"aggregate": "median"}, "aggregate must be one of min, mean, max, last, product, got 'median'"),
    ],
)
def test_what_does_not_go_together_is_told(knobs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        BestOfN(**knobs)


def test_the_aggregates_are_those_of_prm_best_of_n() -> None:
    assert tuple(choice.AGGREGATES) == AGGREGATES


# our process reward model


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm_folder(tmp_path_factory.mktemp("prm") / "model")


def asked(text: str, finished: bool = True) -> tuple[Posed, Score]:
    question = Question("q", "1+1", "2")
    ids = tuple(ids_of(text) + ids_of("<|end|>") * finished)
    return Posed("task", question, tuple(ids_of("<|user|>1+1")), 50, 1, 1.0), Score(ids, text, finished)


@pytest.mark.parametrize("how", ["min", "last"])
def test_a_step_is_a_line_and_its_scores_are_aggregated(reward_model: Path, how: str) -> None:
    scorer = open_scorer(str(reward_model), tokenizer=policy_tokenizer(), device="cpu")
    posed_, want = asked("ab\ncd\nef")
    # the end token is read but ends no step
    (steps,) = scorer.score([Steps("1+1", posed_.prompt_ids, want.token_ids, [2, 5, 7])])
    expected = float(steps.min() if how == "min" else steps[-1])
    assert PRMScorer(scorer, policy_tokenizer(), how).score([(posed_, want)]) == [pytest.approx(expected, abs=1e-6)]
    assert len(set(steps.tolist())) == 3


def test_an_attempt_that_is_empty_or_too_long_is_not_scored(reward_model: Path) -> None:
    method = BestOfN(selector="prm", prm=str(reward_model), prm_device="cpu")
    scorer = method.scorer(policy_tokenizer(), PROMPT)
    assert scorer is not None
    found = scorer.score([asked(""), asked("a" * 300), asked("ab")])  # it reads 128 tokens
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert 0 < found[2] < 1


def test_a_folder_that_is_no_reward_model_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prm\.json"):
        BestOfN(selector="prm", prm=str(tmp_path)).check("", None)


def test_other_weights_are_other_settings(reward_model: Path, tmp_path: Path) -> None:
    other = prm_folder(tmp_path / "other", seed=1)
    marks = [BestOfN(selector="prm", prm=str(folder)).fingerprints()["prm"] for folder in (reward_model, other)]
    assert marks[0] != marks[1]
    assert BestOfN().fingerprints() == {}


# a reward model over HTTP


class Serving:
    """answer: (the chat) -> status and JSON value."""

    def __init__(self, answer: Callable[[list[dict[str, str]]], tuple[int, Any]]) -> None:
        self.chats: list[list[dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert list(body) == ["chat"]
                outer.chats.append(body["chat"])
                status, value = answer(body["chat"])
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving(answer: Callable[[list[dict[str, str]]], tuple[int, Any]]) -> Iterator[Serving]:
    server = Serving(answer)
    try:
        yield server
    finally:
        server.close()


def over_http(url: str, **more: Any) -> HTTPScorer:
    return HTTPScorer(url, PROMPT, tokenizer=None, **more)


def test_the_released_schema_is_spoken() -> None:
    with serving(lambda chat: (200, len(chat[-1]["content"]) / 2)) as server:
        assert over_http(server.url).score([asked("abc"), asked("")]) == [1.5, 0.0]
    (chat,) = [chat for chat in server.chats if chat[-1]["content"]]
    assert chat == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1"},
        {"role": "assistant", "content": "abc"},
    ]


def test_a_busy_reward_model_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrl.engine.prm.http.FIRST_WAIT", 0.01)
    answers = iter([(503, {"error": "busy"}), (429, {"error": "busy"}), (200, -3)])
    with serving(lambda chat: next(answers)) as server:
        assert over_http(server.url).score([asked("abc")]) == [-3.0]


def test_one_that_stays_away_ends_the_run_with_a_way_on() -> None:
    with serving(lambda chat: (200, 1)) as server:
        pass
    with pytest.raises(
        RunFailed, match=r"the reward model at http.* gave no answer .* give the same command to continue"
    ):
        over_http(server.url, patience=0.2).score([asked("abc")])


def test_one_that_is_not_there_is_told_before_anything_is_sampled() -> None:
    with serving(lambda chat: (200, 1)) as server:
        assert BestOfN(selector="orm", orm=server.url).scorer(None, PROMPT) is not None
    for url in (server.url, "http://:6003/", "http://x:port/"):
        with pytest.raises(ConfigError, match=f"no reward model answers at {url} .*: start it, or correct method.orm="):
            BestOfN(selector="orm", orm=url).scorer(None, PROMPT)


@pytest.mark.parametrize("value", ["good", None, True, [1.0], float("nan")])
def test_what_is_no_number_ends_the_run(value: Any) -> None:
    with serving(lambda chat: (200, value)) as server, pytest.raises(RunFailed, match="not a number: it must answer"):
        over_http(server.url).score([asked("abc")])


def test_what_is_longer_than_it_reads_is_not_sent() -> None:
    tokens = len(asked("abc")[0].prompt_ids) + 4
    with serving(lambda chat: (200, 1)) as server:
        assert over_http(server.url, max_tokens=tokens).score([asked("abc"), asked("abcd")]) == [1.0, None]
    assert len(server.chats) == 1


def test_the_command_lets_it_choose_and_continues_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scorers, "PATIENCE", 0.1)
    for name, made in (("gpus", list), ("versions", dict), ("git_state", lambda folder: None)):
        monkeypatch.setattr(provenance, name, made)
    up = threading.Event()
    sampled: list[str] = []

    def model(owner: str, ask: Any) -> Any:
        answer = int(np.random.default_rng(ask.sampling.seed).integers(3))
        sampled.append(owner)
        return written(f"\\boxed{{{answer}}}", ask)

    def reward(chat: list[dict[str, str]]) -> tuple[int, Any]:
        return (200, float(chat[-1]["content"][7])) if up.is_set() else (500, {"error": "no GPU"})

    def go(url: str) -> Path:
        args = ["method=best_of_n", "method.selector=orm", f"method.orm={url}", "model=tiny", "task=arithmetic"]
        args += ["verify=exact", "workers=1", "limit=4", "budget=4", "seeds=1", "out=run"]
        backend = FakeBackend(model)
        return run_tts(read_settings(args), open_backend=lambda plan: contextlib.nullcontext(backend))

    with serving(reward) as server:
        with pytest.raises(RunFailed, match="failed with status 500: no GPU"):
            go(server.url)
        assert len(sampled) == 16
        up.set()
        folder = go(server.url)
    assert len(sampled) == 16  # nothing was sampled twice
    found = json.loads((folder / "results.json").read_text())
    assert found["score"]["name"] == "accuracy"
    assert found["score"]["estimate"] == found["selected"]["4"]["estimate"]
    traces = [json.loads(line) for line in (folder / "traces" / "seed1.jsonl").read_text().splitlines()]
    assert all(row["notes"]["scores"][row["chosen"]] == max(row["notes"]["scores"]) for row in traces)
