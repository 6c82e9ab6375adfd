"""`reasonrl prm data`: what it samples, cuts and labels, and how it is stopped, divided and continued."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig
from rich.console import Console

from reasonrl import cli, models
from reasonrl.cli import composed
from reasonrl.config import ConfigError, package_path, typed
from reasonrl.engine import sampling
from reasonrl.engine.sampling import Answer, Ask
from reasonrl.engine.verl.launch import load_tokenizer
from reasonrl.eval.prm import responses
from reasonrl.eval.prm.cuts import cut_problem, pooled
from reasonrl.eval.prm.data import make_data, tau_of
from reasonrl.eval.prm.file import FILE, Row, file_at, read_facts, write
from reasonrl.eval.prm.kinds import Kinds, kind_of
from reasonrl.eval.prm.responses import Response, groups, read_back, written
from reasonrl.eval.prm.stages import Knobs
from reasonrl.runs import provenance
from reasonrl.sampled.problems import load_split
from reasonrl.verify.pool import Verdict, Verifier

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
SMALL = ["model=tiny", "data.size=6", "data.val_size=3", "verify=exact", "max_new_tokens=40", "engine.max_sequences=16"]
KNOBS = Knobs(n=6, rollouts=2)
COMMAND = ["prm", "data", *SMALL, "n=6", "rollouts=2"]


@functools.cache
def small() -> DictConfig:
    return composed(SMALL)


def run(*args: str) -> DictConfig:
    return composed([*SMALL, *args]) if args else copy.deepcopy(small())


@pytest.fixture(autouse=True, scope="module")
def groups_of_two_problems() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "TOGETHER", 12)
        yield


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 6 problems, 6 responses each, 2 continuations a cut. Not to be changed."""
    return make_data(run(), KNOBS, store=tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def store(whole: Path, here: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, here / "store"))


def rows(store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(store / FILE).to_pylist()
    return found


def journal(store: Path, stage: str, shard: str = "0-of-1") -> Path:
    return store / stage / f"shard-{shard}.jsonl"


def journaled(store: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal(store, stage).read_text().splitlines()[1:]]


def cut(store: Path, stage: str, kept: int, half: bytes = b"") -> None:
    """The store as a kill leaves it during a stage: so many finished rows of it, then half a line."""
    (store / FILE).unlink()
    path = journal(store, stage)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: 1 + kept]) + half)
    if stage == "responses":
        shutil.rmtree(store / "rollouts")


def no_sampling(*_: Any, **__: Any) -> Any:
    raise AssertionError("sampled")


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(typed(run()))


def ids(text: str, end: bool = False) -> list[int]:
    (found,) = tokenizer()([text], add_special_tokens=False)["input_ids"]
    return [*found, tokenizer().eos_token_id] if end else list(found)


class Scripted:
    """A sampler that says what it is told. respond: (place, number) -> answer; go_on: prompt ids, number -> answer.

    An answer is (token ids, log-probabilities, finished). Remembers what it was asked.
    """

    def __init__(self, respond: Callable[[int, int], Any], go_on: Callable[[Ask, int], Any] = no_sampling) -> None:
        self.respond, self.go_on = respond, go_on
        self.asked: list[Ask] = []

    def answers(self, asks: Any) -> Iterator[Answer]:
        for ask in asks:
            self.asked.append(ask)
            task, number = ask.key
            token_ids, logprobs, finished = (
                self.respond(task, number) if isinstance(task, int) else self.go_on(ask, number)
            )
            yield Answer(ask.key, token_ids, finished, logprobs)

    @property
    def continued(self) -> list[Ask]:
        return [ask for ask in self.asked if not isinstance(ask.key[0], int)]


def scripted(monkeypatch: pytest.MonkeyPatch, respond: Any, go_on: Any = no_sampling) -> Scripted:
    made = Scripted(respond, go_on)
    monkeypatch.setattr(sampling, "open_sampler", lambda *_, **__: contextlib.nullcontext(made))
    return made


def said(text: str, unsure: Sequence[int] = (), end: bool = True) -> tuple[list[int], list[float], bool]:
    """An answer of this text, with a confidence of 0.1 at the tokens `unsure` and of 0.9 elsewhere."""
    token_ids = ids(text, end)
    return token_ids, [math.log(0.1 if i in unsure else 0.9) for i in range(len(token_ids))], end


def one(**knobs: Any) -> Knobs:
    """Settings for hand-made responses: tau is 0.5."""
    return Knobs(**{"quantile": None, "tau": 0.5, "rollouts": 2, **knobs})


# what is made


def test_a_row_a_different_response_with_a_label_at_every_step_end(whole) -> None:
    found = rows(whole)
    special = set(tokenizer().all_special_ids)
    loaded, sha256 = load_split(typed(run()), tokenizer(), "train")
    order = [problem.id for problem in loaded.problems]
    assert [order.index(row["problem_id"]) for row in found] == sorted(order.index(row["problem_id"]) for row in found)
    for row in found:
        problem = loaded.problems[order.index(row["problem_id"])]
        assert (row["answer"], row["source"]) == (problem.answer, "arithmetic")
        assert row["question"] == problem.id.removeprefix("arithmetic/")
        assert row["prompt_ids"] == problem.prompt_ids.tolist()
        assert row["text"] == tokenizer().decode(row["response_ids"], skip_special_tokens=True)
        assert row["right"] == (row["given"] == row["answer"])
        assert len(row["logprobs"]) == len(row["response_ids"]) <= 40
        assert row["finished"] == (row["response_ids"][-1] == tokenizer().eos_token_id)
        plain = [i for i, token in enumerate(row["response_ids"]) if token not in special]
        assert row["step_ends"][-1] == plain[-1]
        assert len(row["hard"]) == len(row["soft"]) == len(row["step_ends"])
        assert row["hard"][-1] == row["soft"][-1] == row["right"]
        assert set(row["soft"]) <= {0.0, 0.5, 1.0}
    facts = read_facts(whole / FILE)
    assert facts.settings["data"] == sha256
    assert facts.settings["model"] == models.model_fingerprint(str(TINY))
    knobs = ("n", "rollouts", "quantile", "max_steps", "split", "seed")
    assert [facts.settings[name] for name in knobs] == [6, 2, 0.02, 16, "train", 1]
    total = facts.counts
    assert (total["problems"], total["responses"], total["distinct"]) == (6, 36, len(found))
    assert total["duplicates"] == 36 - len(found)
    assert total["ends"] == sum(len(row["step_ends"]) - 1 for row in found)
    assert total["hard"] == sum(sum(row["hard"][:-1]) for row in found)
    assert total["soft"] == sum(2 * sum(row["soft"][:-1]) for row in found)
    assert total["hard"] > 0


def test_tau_is_the_quantile_of_all_tokens_and_steps_end_below_it(whole) -> None:
    """By the definition, in plain loops, from the journal."""
    special = set(tokenizer().all_special_ids)
    pool = []
    for problem in journaled(whole, "responses"):
        for response in problem["responses"]:
            tokens = np.frombuffer(base64.b64decode(response["token_ids"]), "<i4")
            logprobs = np.frombuffer(base64.b64decode(response["logprobs"]), "<f4")
            pool += [math.exp(p) for t, p in zip(tokens, logprobs, strict=True) if t not in special] * len(
                response["numbers"]
            )
    facts = read_facts(whole / FILE)
    assert facts.counts["pool_tokens"] == len(pool) > 1000
    tau = facts.settings["tau"]
    assert tau == pytest.approx(float(np.quantile(pool, 0.02)), abs=1e-12)
    for row in rows(whole):
        plain = [i for i, token in enumerate(row["response_ids"]) if token not in special]
        below = [i for i in plain if math.exp(row["logprobs"][i]) < tau]
        assert row["step_ends"] == sorted({*below, plain[-1]})


def test_labels_are_what_the_journals_recount(whole) -> None:
    verdicts: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    by_problem = {row["id"]: read_back(row) for row in journaled(whole, "responses")}
    for row in journaled(whole, "rollouts"):
        number, problem = row["id"].split(" ", 1)
        (response,) = [r for r in by_problem[problem] if r.number == int(number)]
        for end, right in zip(row["ends"], row["right"], strict=True):
            key = (problem, tuple(response.token_ids[: end + 1].tolist()))
            assert key not in verdicts, "rolled out twice"
            assert len(right) == 2
            verdicts[key] = right
    used = set()
    for row in rows(whole):
        for end, hard, soft in zip(row["step_ends"][:-1], row["hard"], row["soft"], strict=False):
            key = (row["problem_id"], tuple(row["response_ids"][: end + 1]))
            used.add(key)
            assert (hard, soft) == (float(any(verdicts[key])), sum(verdicts[key]) / 2)
    assert used == set(verdicts)
    total = read_facts(whole / FILE).counts
    assert total["rolled_out"] == len(verdicts)
    assert total["rollout_tokens"] == sum(row["tokens"] for row in journaled(whole, "rollouts"))


def test_continuations_start_after_the_step_end_and_are_judged_with_what_precedes_it(monkeypatch) -> None:
    """`1+1=|2` is unsure of its last token: what follows `1+1=` decides whether the whole text is right."""
    loaded, _ = load_split(typed(run("data.size=1")), tokenizer(), "train")
    (problem,) = loaded.problems
    start = "\\boxed{" + problem.answer[0]
    end = len(ids(start)) - 1
    made = scripted(
        monkeypatch,
        lambda place, number: said(f"{start}x}}", [end]),
        lambda ask, number: said(f"{problem.answer[1:]}}}" if number == 0 else "y}"),
    )
    folder = make_data(run("data.size=1", "temperature=0.7", "top_k=9", "seed=3"), one(n=1, rollouts=4))
    assert [list(ask.prompt_ids) for ask in made.continued] == [[*problem.prompt_ids.tolist(), *ids(start)]] * 4
    assert {(a.sampling.temperature, a.sampling.top_k, a.sampling.max_tokens) for a in made.continued} == {
        (0.7, 9, 40 - end - 1)
    }
    assert len({ask.sampling.seed for ask in made.asked}) == 5
    (row,) = rows(folder)
    assert (row["step_ends"][0], row["hard"], row["soft"], row["right"]) == (end, [1.0, 0.0], [0.25, 0.0], False)


def test_equal_responses_are_kept_once_and_equal_prefixes_rolled_out_once(monkeypatch) -> None:
    """Two of four responses are equal; all but the last share their first cut, two of these also the second."""
    texts = {0: "1+1=3 no", 1: "1+1=3 no", 2: "1+1=3 ok", 3: "2+1=3 no"}
    made = scripted(
        monkeypatch, lambda place, number: said(texts[number], [1, 4]), lambda ask, number: said("", end=True)
    )
    folder = make_data(run("data.size=1"), one(n=4))
    found = rows(folder)
    assert [row["text"] for row in found] == ["1+1=3 no", "1+1=3 ok", "2+1=3 no"]
    assert [row["numbers"] for row in found] == [[0, 1], [2], [3]]
    total = read_facts(folder / FILE).counts
    assert (total["responses"], total["duplicates"], total["distinct"]) == (4, 1, 3)
    assert total["pool_tokens"] == sum(len(ids(text)) for text in texts.values())
    prompt = len(found[0]["prompt_ids"])
    assert [tokenizer().decode(ask.prompt_ids[prompt:]) for ask in made.continued] == [
        text for text in ("1+", "1+1=3", "2+", "2+1=3") for _ in range(2)
    ]
    assert (total["ends"], total["rolled_out"]) == (6, 4)
    assert len({ask.sampling.seed for ask in made.continued}) == 8
    assert [row["id"].split(" ")[0] for row in journaled(folder, "rollouts")] == ["0", "3"]


def test_of_more_steps_the_most_uncertain_cuts_stay(monkeypatch) -> None:
    def respond(place: int, number: int) -> Any:
        token_ids = ids("12345678")
        return token_ids, [math.log(p) for p in (0.1, 0.4, 0.3, 0.9, 0.2, 0.2, 0.4, 0.9)], False

    scripted(monkeypatch, respond, lambda ask, number: said("9"))
    folder = make_data(run("data.size=1"), one(n=1, max_steps=4))
    (row,) = rows(folder)
    assert row["step_ends"] == [0, 4, 5, 7]
    total = read_facts(folder / FILE).counts
    assert (total["boundaries"], total["ends"], total["steps"]) == (6, 3, 4)


def test_the_validation_problems_make_candidates_without_labels(monkeypatch, capsys, whole) -> None:
    scripted(monkeypatch, lambda place, number: said(f"{number % 2}+1=2", [2]))
    assert cli.main(["prm", "data", *SMALL, "n=3", "rollouts=0", "split=validation", f"tau={whole}"]) == 0
    folder = Path("prm/tiny-arithmetic-validation")
    loaded, _ = load_split(typed(run()), tokenizer(), "validation")
    assert {row["problem_id"] for row in rows(folder)} == {problem.id for problem in loaded.problems}
    assert {(tuple(row["hard"]), tuple(row["soft"])) for row in rows(folder)} == {((), ())}
    assert {tuple(row["step_ends"]) for row in rows(folder)} == {(2, 4)}
    facts = read_facts(folder / FILE)
    assert facts.settings["tau"] == read_facts(whole / FILE).settings["tau"]
    assert (facts.settings["rollouts"], facts.settings["quantile"], facts.settings["split"]) == (0, None, "validation")
    assert not (folder / "rollouts").exists()
    assert [row["numbers"] for row in rows(folder)] == [[0], [1], [2]] * 3
    assert [row["text"] for row in rows(folder)] == ["0+1=2", "1+1=2", "0+1=2"] * 3
    assert (facts.counts["responses"], facts.counts["distinct"]) == (9, 6)
    assert "choose from it with: reasonrl prm best-of-n " in capsys.readouterr().out


def test_a_policy_in_a_folder_of_its_own_gives_the_same(here) -> None:
    shutil.copytree(TINY, here / "m")
    made = Knobs(n=2, rollouts=1, quantile=None, tau=0.5)
    args = ["data.size=2", "max_new_tokens=24"]
    local = composed(
        [*SMALL[1:], *args, "model=./m", "engine=cpu", "prompt=plain", "max_prompt_tokens=48", "engine.threads=1"]
    )
    first, second = make_data(run(*args), made, store="a"), make_data(local, made, store="b")
    assert rows(first) == rows(second)
    assert read_facts(first / FILE).settings == read_facts(second / FILE).settings


# stopping, continuing, dividing


@pytest.mark.parametrize(
    ("stage", "kept", "half", "told"),
    [
        ("responses", 0, b"", "problems 6/6"),
        ("responses", 3, b'{"id": "arith', "has 3 of the 6 problems of this shard already"),
        ("rollouts", 4, b'{"ends": [4, 1', "has 4 of the "),
    ],
)
def test_a_killed_command_continues_to_the_same_bytes(stage, kept, half, told, whole, store, capsys) -> None:
    cut(store, stage, kept, half)
    make_data(run(), KNOBS, store=store, console=Console(soft_wrap=True))
    assert (store / FILE).read_bytes() == (whole / FILE).read_bytes()
    shown = capsys.readouterr().out
    assert told in shown
    assert ("right responses" in shown) == (stage == "responses")


def test_two_shards_make_the_file_of_one_without_ray_and_verl(whole, monkeypatch, capsys) -> None:
    for name in ("ray", "verl"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    console = Console(soft_wrap=True)
    told = []
    for shard in ("1/2", "0/2", "1/2"):
        make_data(run(), KNOBS, store="s", shard=shard, console=console)
        told.append(capsys.readouterr().out)
        assert Path("s", FILE).exists() == (len(told) == 3)
    assert (
        "shard 1/2 has its responses, shard 0/2 has those of 0 problems: once all shards have theirs, give" in told[0]
    )
    assert "shard 0/2 is complete, shard 1/2 has the rollouts of 0 responses: the one that finishes last" in told[1]
    assert Path("s", FILE).read_bytes() == (whole / FILE).read_bytes()
    assert [len(journal(Path("s"), "responses", f"{i}-of-2").read_text().splitlines()) for i in (0, 1)] == [5, 3]


def test_problems_are_sampled_in_the_same_groups_whatever_the_shards() -> None:
    assert groups(7, 6) == [range(2), range(2, 4), range(4, 6), range(6, 7)]
    assert groups(7, 5) == [range(3), range(3, 6), range(6, 7)]
    assert groups(3, 100) == [range(1), range(1, 2), range(2, 3)]
    assert groups(0, 6) == []


def test_a_finished_store_is_left_as_it_is(store, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    before = (store / FILE).stat().st_mtime_ns
    make_data(run(), KNOBS, store=store, shard="3/4", console=Console(soft_wrap=True))
    assert (store / FILE).stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "is complete already" in shown
    assert f"train on it with: reasonrl prm train 'model=<name>' data={store} 'out=<folder>'" in shown


@pytest.mark.parametrize(
    ("args", "knobs", "difference"),
    [
        (["seed=2"], KNOBS, r"seed 1 \(now 2\)"),
        (
            ["temperature=0.5", "verify=either"],
            KNOBS,
            r"temperature 1.0 \(now 0.5\), verify.checker exact \(now either",
        ),
        ([], Knobs(n=7, rollouts=2), r"n 6 \(now 7\)"),
        ([], Knobs(n=6, rollouts=3, max_steps=5), r"max_steps 16 \(now 5\), rollouts 2 \(now 3\)"),
        ([], Knobs(n=6, rollouts=2, quantile=0.05), r"quantile 0.02 \(now 0.05\)"),
        ([], Knobs(n=6, rollouts=2, quantile=None, tau=0.25), r"quantile 0.02 \(now None\), tau 0\..* \(now 0.25\)"),
    ],
)
def test_a_store_is_continued_with_its_own_settings_only(args, knobs, difference, store, monkeypatch) -> None:
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    with pytest.raises(ConfigError, match=f"{FILE} was made with other settings: {difference}"):
        make_data(run(*args), knobs, store=store)
    cut(store, "rollouts", 4)
    before = journal(store, "rollouts").read_bytes()
    with pytest.raises(ConfigError, match=f"shard-0-of-1.jsonl was made with other settings: .*{difference[-20:]}"):
        make_data(run(*args), knobs, store=store)
    assert journal(store, "rollouts").read_bytes() == before


def test_responses_serve_other_labels(store) -> None:
    cut(store, "rollouts", 0)
    before = journal(store, "responses").read_bytes()
    make_data(run(), Knobs(n=6, rollouts=1, quantile=0.01), store=store)
    assert journal(store, "responses").read_bytes() == before
    assert read_facts(store / FILE).settings["rollouts"] == 1


def test_rollouts_of_other_responses_are_refused(store) -> None:
    cut(store, "rollouts", 99)
    path = journal(store, "rollouts")
    first, row, *rest = path.read_text().splitlines()
    changed = json.loads(row)
    changed["ends"][0] += 1
    path.write_text("\n".join([first, json.dumps(changed), *rest, ""]))
    with pytest.raises(ConfigError, match="rollouts of response .* are not of the response that is in the store"):
        make_data(run(), KNOBS, store=store)


@pytest.mark.parametrize(("after", "stage", "what"), [(14, "responses", "problems"), (20, "rollouts", "responses")])
def test_an_interrupt_keeps_what_is_finished_and_says_how_to_continue(
    after, stage, what, whole, store, monkeypatch, capsys
) -> None:
    cut(store, stage, 0)
    real = sampling.open_sampler
    count = 0

    @contextlib.contextmanager
    def stopping(*args: Any, **settings: Any) -> Iterator[Any]:
        with real(*args, **settings) as sampler:

            class Stopping:
                def answers(self, asks: Any) -> Iterator[Answer]:
                    nonlocal count
                    for answer in sampler.answers(asks):
                        count += 1
                        if count > after:
                            raise KeyboardInterrupt
                        yield answer

            yield Stopping()

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "open_sampler", stopping)
        assert cli.main([*COMMAND, "store=store"]) == 130
    have = len(journaled(store, stage))
    assert have > 0
    message = f"reasonrl: interrupted; {have} {what} are kept in store/{stage}. Continue with the same command\n"
    assert capsys.readouterr().err == message
    assert cli.main([*COMMAND, "store=store"]) == 0
    assert rows(store) == rows(whole)


# bad input


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, r"problem 'arithmetic/.*', response 0: the engine gave no log-probabilities for 3 tokens, and steps"),
        ([-0.1, -0.1], "the engine gave 2 log-probabilities for 3 tokens"),
        ([-0.1, math.nan, -0.1], "response 0: .*got nan at token 1 of 3.*The model's numbers are broken"),
        ([-0.1, -math.inf, -0.1], "got -inf at token 1 of 3"),
        ([-0.1, -0.1, 0.3], r"got 0\.3.* at token 2 of 3"),
    ],
)
def test_log_probabilities_that_cannot_be_are_refused_at_once(logprobs, message, monkeypatch) -> None:
    scripted(monkeypatch, lambda place, number: (ids("123"), logprobs, False))
    with pytest.raises(ConfigError, match=message):
        make_data(run(), one(n=1), store="s")
    assert journaled(Path("s"), "responses") == []


def test_a_quantile_of_few_tokens_is_refused_and_the_responses_are_kept(monkeypatch) -> None:
    scripted(monkeypatch, lambda place, number: said("123"), lambda ask, number: said("4"))
    with pytest.raises(ConfigError, match=r"have 18 tokens, and a quantile of fewer than 1000 .* or give .* with tau="):
        make_data(run(), Knobs(n=1), store="s")
    assert len(journaled(Path("s"), "responses")) == 6
    make_data(run(), one(n=1), store="s")


def test_responses_of_no_and_of_one_token_have_no_and_one_step(monkeypatch) -> None:
    answers = {0: said("", end=True), 1: said("1", [0], end=False), 2: said("1", [0])}
    scripted(monkeypatch, lambda place, number: answers[number])
    found = rows(make_data(run("data.size=1"), one(n=3)))
    assert [row["step_ends"] for row in found] == [[], [0], [0]]
    assert [row["hard"] for row in found] == [[], [0.0], [0.0]]


def test_a_verdict_that_never_comes_is_wrong_and_counted(monkeypatch, capsys) -> None:
    def late(self: Any, text: str, answer: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        verdict.set_result(Verdict(False, "1", "timeout"))
        return verdict

    monkeypatch.setattr(Verifier, "submit", late)
    scripted(monkeypatch, lambda place, number: said(f"1{number}", [0]), lambda ask, number: said("4"))
    folder = make_data(run("data.size=1"), one(n=2), console=Console(soft_wrap=True))
    assert {tuple(row["hard"]) for row in rows(folder)} == {(0.0, 0.0)}
    assert read_facts(folder / FILE).counts["no_verdict"] == 4
    assert "4 comparisons ran out of time or failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("unsure", "n", "message"),
    [
        ([], 2, "no response has an interior end: every step is a whole response"),
        ([1], 2, "all 4 hard labels are 0: nothing can be told apart"),
        ([1], 1, "n=1: one response a problem"),
    ],
)
def test_data_that_teaches_nothing_is_told(unsure, n, message, monkeypatch, capsys) -> None:
    scripted(monkeypatch, lambda place, number: said(f"12{number}", unsure), lambda ask, number: said("4"))
    make_data(run("data.size=1"), one(n=n), console=Console(soft_wrap=True))
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rollout=2"], "Unknown key 'rollout'; did you mean rollouts"),
        (["temperatur=1"], "Unknown key 'temperatur'; did you mean temperature"),
        (["tiny"], "'tiny' is not key=value; reasonrl prm data --help lists the keys"),
        (["seed=1,2"], "seed=1,2 names several values: this command makes one store"),
        (["n=0"], "n must be a whole number of at least 1, got '0'"),
        (["rollouts=-1"], "rollouts must be a whole number of at least 0, got '-1'"),
        (["max_steps=0"], "max_steps must be a whole number of at least 1, got '0'"),
        (["quantile=2"], "quantile must be a share between 0 and 1, got 2.0; 2 percent is 0.02"),
        (["quantile=0"], "quantile must be a share between 0 and 1, got 0.0"),
        (["quantile=nan"], "quantile must be a share between 0 and 1, got nan"),
        (["quantile=few"], "quantile must be a number, got 'few'"),
        (["tau=55"], "tau must be a probability, above 0 and at most 1, got 55.0; 55 percent is 0.55"),
        (["tau=0"], "tau must be a probability"),
        (["tau=nowhere"], "tau=nowhere is neither a number nor a store: no prm.parquet at nowhere"),
        (["tau=0.5", "quantile=0.1"], "give quantile= or tau=, not both"),
        (["split=test"], "Unknown split 'test'"),
        (["shard=2/2"], "shard must be i/k with i in 0..k-1"),
        (["store="], "store= is empty: give a value, or leave store= out"),
        (["out=x"], "out= is for run folders; a store's folder is store="),
        (["engine=cluster", "ray_address=auto"], "engine=cluster: responses are sampled without Ray"),
        (["engine=gpu"], "engine=gpu and no NVIDIA GPU found"),
        (["max_prompt_tokens=2"], "12 of 12 prompts are longer than max_prompt_tokens=2, so nothing is left"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(args, message, here, capsys, monkeypatch) -> None:
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    assert cli.main(["prm", "data", "model=tiny", "data.size=12", "data.val_size=3", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("reasonrl: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"rollouts": -1}, "rollouts must be at least 0"),
        ({"tau": 0.5}, "give quantile= or tau=, not both"),
        ({"quantile": None}, "give quantile= or tau="),
        ({"split": "dev"}, "Unknown split 'dev'"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_made(knobs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Knobs(**knobs)


# the command


def test_the_command_tells_its_progress_what_it_made_and_what_to_do_next(monkeypatch, capsys) -> None:
    scripted(
        monkeypatch,
        lambda place, number: said(f"{place}+{number}=\n\\boxed{{x}}", [1, 3]),
        lambda ask, number: said("\\boxed{x}"),
    )
    assert cli.main(["prm", "data", *SMALL, "n=2", "rollouts=3", "tau=0.5"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "6 train problems, 2 responses each",
        "problems 6/6  right responses   0.0%",
        "tau 0.5000: 2.00 cuts a response, 18 of 24 cuts to roll out",
        "responses 12/12  right continuations   0.0%",
        "responses     12, 0.0% right; 0 equal to another of their problem",
        "tau           0.5000, given",
        "punctuation 100.0% of the boundaries",
        "labels        24 of interior ends, hard 0.000, soft 0.000 on average; 6 of them shared",
        "file          prm/tiny-arithmetic/prm.parquet",
        "train on it with: reasonrl prm train 'model=<name>' data=prm/tiny-arithmetic 'out=<folder>'",
    ):
        assert line in shown, shown
    assert read_facts(Path("prm/tiny-arithmetic", FILE)).about["command"] == [
        *("reasonrl", "prm", "data", *SMALL, "n=2", "rollouts=3", "tau=0.5")
    ]


@pytest.mark.parametrize("args", [[], ["--help"], ["model=tiny", "-h"]])
def test_help_is_printed(args, capsys) -> None:
    assert cli.main(["prm", "data", *args]) == 0
    assert "cuts each response where the model was unsure" in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["--help"], ["help"]])
def test_the_group_of_commands_lists_them(args, capsys) -> None:
    assert cli.main(["prm", *args]) == 0
    assert "reasonrl prm data " in capsys.readouterr().out


def test_an_unknown_command_of_the_group_is_told(capsys) -> None:
    assert cli.main(["prm", "dta"]) == 2
    assert "Unknown command 'prm dta'; did you mean data" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from reasonrl.cli import main\n"
        "main(['prm']); main(['prm', 'data', '--help']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for heavy in ("torch", "transformers", "ray", "verl", "vllm", "numpy", "pyarrow", "rich"):
        assert f"'{heavy}'" not in done.stdout, heavy


# its parts


def response(
    text: str, confidences: Sequence[float], *, finished: bool = False, numbers: tuple[int, ...] = (0,)
) -> Response:
    token_ids = np.array(ids(text, finished), np.int32)
    logprobs = np.log(np.array(confidences, np.float32))
    return Response(numbers, token_ids, logprobs, finished, True, None, True)


def test_a_journal_keeps_every_bit_of_a_response() -> None:
    before = [
        response("12", [0.123456789, 1e-7]),
        response("é\n", [0.5] * len(ids("é\n", True)), finished=True, numbers=(1, 4)),
    ]
    (first, second) = read_back(json.loads(json.dumps(written("p", before))))
    assert first.logprobs.tobytes() == before[0].logprobs.tobytes()
    assert second.token_ids.tolist() == before[1].token_ids.tolist()
    assert (second.finished, second.numbers, second.right, second.given) == (True, (1, 4), True, None)


def test_special_tokens_count_neither_for_tau_nor_as_cuts() -> None:
    special = np.array([tokenizer().eos_token_id], np.int32)
    unsure_end = response("123", [0.9, 0.2, 0.9, 0.1], finished=True, numbers=(0, 3))
    assert sorted(pooled([unsure_end], special)) == pytest.approx([0.2] * 2 + [0.9] * 4)
    (one_cut,) = cut_problem([unsure_end], 0.5, special, 16)
    assert one_cut.ends.tolist() == [1, 2]
    # an end token that the tokenizer does not call special, as generation_config may name
    (same,) = cut_problem([unsure_end], 0.5, np.array([], np.int32), 16)
    assert same.ends.tolist() == [1, 2]
    assert cut_problem([], 0.5, special, 16) == []


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("digit", ["7", " 12"]),
        ("punctuation", ["+", "}}\n", "½"]),
        ("space", ["\n\n", ""]),
        ("word", [" So", "x2", "é"]),
    ],
)
def test_a_token_is_of_one_kind(kind, texts) -> None:
    assert {kind_of(text) for text in texts} == {kind}


def test_kinds_are_counted_by_token() -> None:
    counted = Kinds(tokenizer())
    counted.add(np.array(ids("1+1=2\n"), np.int32))
    assert counted.totals() == {"digit": 3, "punctuation": 2, "space": 1, "word": 0}


def test_the_file_is_the_same_bytes_and_keeps_empty_lists(whole, here) -> None:
    none = np.array([], np.float32)
    row = Row("p", "s", "q", "a", np.arange(2), np.arange(3), none, "t", None, True, False, none, none, none, none)
    facts = read_facts(whole / FILE)
    for name in ("a", "b"):
        write(here / name, iter([row, row]), facts)
    assert (here / "a").read_bytes() == (here / "b").read_bytes()
    (*_, back) = pq.read_table(here / "a").to_pylist()
    assert {name: back[name] for name in ("prompt_ids", "response_ids", "logprobs", "given", "hard")} == {
        "prompt_ids": [0, 1],
        "response_ids": [0, 1, 2],
        "logprobs": [],
        "given": None,
        "hard": [],
    }
    assert read_facts(here / "a") == facts


def test_a_store_that_is_not_finished_or_not_there_says_so(store) -> None:
    assert file_at(store) == file_at(store / FILE) == store / FILE
    assert tau_of(str(store)) == read_facts(store / FILE).settings["tau"]
    (store / FILE).unlink()
    with pytest.raises(ConfigError, match=f"tau={store} is neither .* is not finished, it has no {FILE} yet"):
        tau_of(str(store))
    (store / FILE).write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a readable parquet file"):
        tau_of(str(store))
