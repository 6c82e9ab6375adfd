"""Process reward models of programs: labels by tests, votes of equal programs, guidance until the program stands."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_builders import write_jsonl
from judge_builders import need_judge
from omegaconf import DictConfig
from prm_builders import data_file, policy_tokenizer, prm_folder, row
from rich.console import Console

from reasonrl.cli import composed
from reasonrl.config import ConfigError, RunFailed, package_path, typed
from reasonrl.data.items import DataError
from reasonrl.data.prepare import build
from reasonrl.data.problems import Loaded
from reasonrl.engine import sampling
from reasonrl.engine.prm import Card, Steps
from reasonrl.engine.prm.card import read_card
from reasonrl.engine.prm.guided import Row, greedy
from reasonrl.engine.sampling import Answer, Ask
from reasonrl.engine.verl.launch import load_tokenizer
from reasonrl.eval.prm.best_of_n import ChoiceKnobs, best_of_n
from reasonrl.eval.prm.candidates import program_key, read_candidates
from reasonrl.eval.prm.data import make_data
from reasonrl.eval.prm.decode import DecodeKnobs, compare
from reasonrl.eval.prm.file import FILE, read_facts
from reasonrl.eval.prm.programs import UntilComplete, complete
from reasonrl.eval.prm.stages import Knobs
from reasonrl.sampled.problems import load_split
from reasonrl.verify.code import code_answer, program_in
from reasonrl.verify.judge.embedded import opened_judge
from reasonrl.verify.judge.types import JudgeError
from reasonrl.verify.pool import Verdict, Verifier

DATA = ["data=jsonl", "data.path=train.jsonl", "data.val_path=val.jsonl"]
CODE = ["model=tiny", "verify=code", "max_new_tokens=120"]
OPEN, CLOSE = "```python\n", "\n```\n"


def run(*args: str) -> DictConfig:
    return composed([*CODE, *(DATA if not any(arg.startswith("data=") for arg in args) else []), *args])


def knobs(**more: Any) -> Knobs:
    return Knobs(**{"n": 2, "rollouts": 2, "quantile": None, "tau": 0.5, **more})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder but for four problems, f(x) = x + 1 to x + 4; the last two to validate."""
    monkeypatch.chdir(tmp_path)
    made = [
        {"question": f"f(x) is x + {i}", "answer": code_answer("mbpp", tests=[f"assert f(2) == {2 + i}"])}
        for i in range(1, 5)
    ]
    write_jsonl(tmp_path / "train.jsonl", made[:2])
    write_jsonl(tmp_path / "val.jsonl", made[2:])


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The address of a real one."""
    need_judge()
    with opened_judge() as client:
        yield f"verify.judge={client.url}"


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(typed(run()))


@functools.cache
def problems(split: str = "train") -> Loaded:
    return load_split(typed(run()), tokenizer(), split)[0]


def right_program(loaded: Loaded, place: int) -> str:
    """Of a problem."""
    return f"def f(x):\n    return {loaded.questions[place].removeprefix('f(x) is ')}"


Said = tuple[list[int], list[float], bool]


def said(text: str, unsure: str = "", end: bool = True) -> Said:
    """An answer, one token a character, with a confidence of 0.1 at the last character of `unsure` and of 0.9 elsewhere."""
    (ids,) = tokenizer()([text], add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    low = text.index(unsure) + len(unsure) - 1 if unsure else -1
    ids = [*ids, tokenizer().eos_token_id] if end else list(ids)
    return ids, [math.log(0.1 if i == low else 0.9) for i in range(len(ids))], end


class Scripted:
    """A sampler that says what it is told. respond: place, number -> answer; go_on: place, text so far, number -> answer."""

    def __init__(self, respond: Callable[[int, int], Said], go_on: Callable[[int, str, int], Said]) -> None:
        self.respond, self.go_on = respond, go_on
        self.continued: list[str] = []

    def answers(self, asks: Any) -> Iterator[Answer]:
        for ask in asks:
            task, number = ask.key
            if isinstance(task, int):
                token_ids, logprobs, finished = self.respond(task, number)
            else:
                place, text = self._said_so_far(ask)
                self.continued.append(text)
                token_ids, logprobs, finished = self.go_on(place, text, number % 2)
            yield Answer(ask.key, token_ids, finished, logprobs)

    def _said_so_far(self, ask: Ask) -> tuple[int, str]:
        ids = list(ask.prompt_ids)
        for place, problem in enumerate(problems().problems):
            prompt = problem.prompt_ids.tolist()
            if ids[: len(prompt)] == prompt:
                return place, tokenizer().decode(ids[len(prompt) :])
        raise AssertionError("no prompt of these problems")


def scripted(monkeypatch: pytest.MonkeyPatch, respond: Any, go_on: Any = None) -> Scripted:
    made = Scripted(respond, go_on or (lambda place, text, number: said("")))
    monkeypatch.setattr(sampling, "open_sampler", lambda *_, **__: contextlib.nullcontext(made))
    return made


def judged_by(monkeypatch: pytest.MonkeyPatch, word: Callable[[str], bool]) -> list[str]:
    """Programs get this word instead of a judge's, which may raise; the programs it was asked about."""
    asked: list[str] = []

    def submit(self: Verifier, text: str, answer: str) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        program = program_in(text)
        if program is None:
            future.set_result(Verdict(False, None, "no_answer"))
            return future
        asked.append(program)
        try:
            future.set_result(Verdict(word(program), program, "ok"))
        except JudgeError as error:
            future.set_exception(error)
        return future

    monkeypatch.setattr(Verifier, "submit", submit)
    monkeypatch.setattr(Verifier, "warm_up", lambda self: None)
    return asked


def gone(program: str) -> bool:
    raise JudgeError("no judge at unix:/x for 60 s")


def rows(store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(store / FILE).to_pylist()
    return found


class Fake:
    """A scorer that likes short responses."""

    def __init__(self, card: Card) -> None:
        self.card, self.identity = card, "fake"

    def score(self, items: Sequence[Steps]) -> list[np.ndarray]:
        return [np.array([1 / (2 + end) for end in item.ends], np.float32) for item in items]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return read_card(prm_folder(tmp_path_factory.mktemp("prm") / "prm"))


# labels by tests


def test_programs_are_labelled_by_their_tests_through_a_real_judge(judge, card, monkeypatch) -> None:
    """`return |` is unsure: one of two continuations makes a right program. The second response has no program at all."""

    def respond(place: int, number: int) -> Said:
        program = right_program(problems(), place)
        if number == 0:
            return said(f"{OPEN}{program}{CLOSE}Done.", "return ")
        if number == 1:
            return said("I cannot do it.")
        return said(f"{OPEN}def f(x):\n    return x{CLOSE}", "def f(x")

    def go_on(place: int, text: str, number: int) -> Said:
        expression = right_program(problems(), place).partition("return ")[2]
        return said((expression if number else "1/0") + CLOSE if text.endswith("return ") else "")

    made = scripted(monkeypatch, respond, go_on)
    store = make_data(run(judge), knobs(n=3), store="s")
    found = rows(store)
    assert [(r["hard"], r["soft"], r["right"]) for r in found] == [
        ([1.0, 1.0], [0.5, 1.0], True),
        ([0.0], [0.0], False),
        ([0.0, 0.0], [0.0, 0.0], False),
    ] * 2
    assert len(made.continued) == 2 * 2 * 2
    assert found[0]["given"] == right_program(problems(), 0) + "\n"
    assert found[1]["given"] is None
    assert read_facts(store / FILE).settings["verify.cpu_seconds"] == 3.0
    assert [c.right for _, _, c in read_candidates(str(store))] == [True, False, False] * 2  # labelled ones serve too

    def offer(place: int, number: int) -> Said:
        program = right_program(problems("validation"), place)
        texts = ("def f(x):\n    return x  # no", f"{program} # it is so", "def f(x):\n    return x", "2 +")
        return said(f"{OPEN}{texts[number]}{CLOSE}")

    scripted(monkeypatch, offer)
    store = make_data(run(judge), knobs(n=4, rollouts=0, split="validation"), store="v")
    made_of = best_of_n(ChoiceKnobs(str(store), "unused"), scorer=Fake(card))  # type: ignore[arg-type]
    (*_, four) = made_of["curve"]
    assert four["random"]["estimate"] == 0.25
    assert four["pass_at_n"]["estimate"] == 1.0
    assert four["majority"]["estimate"] == 0.0  # two of the four are one program
    assert four["prm_min"]["estimate"] == 0.0  # the shortest one
    assert [r["given"] for r in rows(store)[:4]][3] is None  # no Python


def test_what_stands_after_the_program_is_not_rolled_out(monkeypatch) -> None:
    """Two cuts: in the program, and in the words after it, where every continuation has the same verdict."""
    program = "def f(x):\n    return 1"
    ids, logprobs, _ = said(f"{OPEN}{program}{CLOSE}It works", "return ")
    logprobs[len(ids) - 3] = math.log(0.1)
    made = scripted(monkeypatch, lambda place, number: (ids, logprobs, True), lambda *_: said(f"2{CLOSE}"))
    judged_by(monkeypatch, lambda program: "return 1" in program)
    store = make_data(run(), knobs(), store="s")
    assert made.continued == [f"{OPEN}def f(x):\n    return "] * 4
    assert [(r["step_ends"], r["hard"]) for r in rows(store)] == [
        ([len(f"{OPEN}def f(x):\n    return ") - 1, len(ids) - 3, len(ids) - 2], [0.0, 1.0, 1.0])
    ] * 2
    total = read_facts(store / FILE).counts
    assert (total["ends"], total["rolled_out"], total["settled"], total["hard"]) == (4, 2, 2, 2)


@pytest.mark.parametrize(
    ("text", "answer_after", "has"),
    [
        (f"So:\n{OPEN}x = 1{CLOSE}", "none", True),
        (f"So:\n{OPEN}x = 1{CLOSE}And `x`", "none", True),
        (f"```bash\nls{CLOSE}{OPEN}x = 1{CLOSE}", "none", True),
        (f"So:\n{OPEN}x = 1\n```", "none", False),  # ```x would go on
        (f"So:\n{OPEN}x = 1\n", "none", False),
        (f"```bash\nls{CLOSE}", "none", False),  # a block of Python may follow
        ("x = 1  # so", "none", False),
        ("x = 1\n", "none", False),  # a program only as long as nothing follows that is none
        ("", "none", False),
        (f"{OPEN}x = 1{CLOSE}", "first_think", False),
        (f"hm</think>{OPEN}x = 1{CLOSE}", "first_think", False),  # the fence has to begin a line
        (f"hm</think>\n{OPEN}x = 1{CLOSE}", "first_think", True),
        (f"hm</think>\n{OPEN}x = 1{CLOSE}", "last_think", False),
    ],
)
def test_a_response_has_its_program_once_the_first_block_is_closed(text, answer_after, has) -> None:
    if "</think>```" in text:
        has = program_in(text.partition("</think>")[2]) is not None  # it begins the text that is scored
    assert complete(text, answer_after) is has


def test_without_a_verdict_there_is_no_label_and_the_command_goes_on_later(monkeypatch) -> None:
    """The judge is gone after the first problem: that one is kept; the second is no 0."""
    texts = [f"{OPEN}def f(x):\n    return {place}{CLOSE}" for place in range(2)]
    scripted(monkeypatch, lambda place, number: said(texts[place], "return "), lambda *_: said(f"7{CLOSE}"))
    judged_by(monkeypatch, lambda program: gone(program) if "return 1" in program else True)
    told = r"problem '.*': no judge at unix:/x for 60 s\. 1 problems are kept in s/responses\. Continue with the same command"
    with pytest.raises(RunFailed, match=told):
        make_data(run(), knobs(), store="s")
    journal = Path("s/responses/shard-0-of-1.jsonl")
    assert len(journal.read_text().splitlines()) == 2
    judged_by(monkeypatch, lambda program: gone(program) if "return 7" in program else True)
    with pytest.raises(RunFailed, match=r"no judge .* 0 responses are kept in s/rollouts"):
        make_data(run(), knobs(), store="s")
    assert not Path("s", FILE).exists()
    judged_by(monkeypatch, lambda program: "return 7" not in program)
    assert [r["hard"] for r in rows(make_data(run(), knobs(), store="s"))] == [[0.0, 1.0]] * 2


@pytest.mark.parametrize("limit", ["cpu_seconds=9", "memory_mb=2000"])
def test_labels_of_other_limits_are_other_labels(limit, monkeypatch) -> None:
    scripted(monkeypatch, lambda place, number: said(f"{OPEN}x = 1{CLOSE}", "x ="))
    judged_by(monkeypatch, lambda program: True)
    make_data(run(), knobs(), store="s")
    with pytest.raises(ConfigError, match=f"made with other settings: verify.{limit.partition('=')[0]} "):
        make_data(run(f"verify.{limit}"), knobs(), store="s")
    make_data(run("verify.judge=unix:/elsewhere"), knobs(), store="s")  # who judges is no setting


# choosing


def test_equal_programs_are_one_answer_whatever_their_layout() -> None:
    keys = [
        program_key(program)
        for program in (
            "def f(x):\n    return x+1\n",
            "def f(x):\n\n  # one more\n  return (x + 1)",
            'def f(x):\n    """One more."""\n    return x + 1',
            "def f(y):\n    return y + 1",
            "def f(x: return",
            None,
        )
    ]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 4
    assert keys[-1] is None


@pytest.mark.parametrize(("checker", "majority"), [("code", 1.0), ("either", 0.0)])
def test_a_vote_counts_programs_where_answers_are_programs(checker, majority, tmp_path, card) -> None:
    """By text the wrong one is first of three different ones; two of them are one program, which is right."""
    some = [("a", "x = 2", False), ("b", "x = 1", True), ("c", "x = 1 # one", True)]
    rows = [
        row(text, [0], problem=f"p{p}", given=given, right=right, numbers=[number])
        for p in range(2)
        for number, (text, given, right) in enumerate(some)
    ]
    file = data_file(tmp_path / "prm.parquet", rows, rollouts=0, **{"verify.checker": checker})
    policy_tokenizer().save_pretrained(tmp_path / "policy")
    asked = ChoiceKnobs(str(file), "unused", policy=str(tmp_path / "policy"), n=(3,))
    (curve,) = best_of_n(asked, scorer=Fake(card))["curve"]  # type: ignore[arg-type]
    assert curve["majority"]["estimate"] == majority
    assert read_candidates(str(file)).programs == (checker == "code")


# decoding


def test_nobody_is_asked_once_the_program_stands() -> None:
    """Row 0 has its program, row 1 has not; the guide would choose token 5 for both."""
    tokens = policy_tokenizer()
    asked: list[list[int]] = []

    def guide(rows: list[Row], logits: torch.Tensor) -> list[int]:
        asked.append([row.index for row in rows])
        assert logits.shape[0] == len(rows)
        return [5] * len(rows)

    made = UntilComplete(guide, greedy, tokens)
    texts = [f"{OPEN}x = 1{CLOSE}", f"{OPEN}x = 1\n"]
    rows = [Row(i, tokens(text, add_special_tokens=False)["input_ids"]) for i, text in enumerate(texts)]
    logits = torch.zeros(2, 9)
    logits[:, 3] = 1.0
    assert made(rows, logits) == [3, 5]
    rows[0].token_ids.append(3)
    assert made(rows, logits) == [3, 5]  # and it stays so
    assert made(rows[:1], logits[:1]) == [3]
    assert asked == [[1], [1]]
    assert made([Row(7)], logits[:1]) == [5]


def test_both_ways_to_decode_programs_are_judged(judge, card) -> None:
    """The tiny model writes no program: nothing is right, and the judge is there all the same."""
    knobs = DecodeKnobs("unused", tau=0.5, out="out")
    made = compare(run(judge, "max_new_tokens=6"), knobs, scorer=Fake(card))  # type: ignore[arg-type]
    assert (made["problems"], made["greedy"]["estimate"], made["guided"]["estimate"]) == (2, 0.0, 0.0)


def test_a_guide_that_is_never_asked_is_told(card, monkeypatch, capsys) -> None:
    judged_by(monkeypatch, lambda program: False)
    console = Console(soft_wrap=True)
    for tau in (0.0, 1.0):
        knobs = DecodeKnobs("unused", tau=tau, out="out")
        compare(run("max_new_tokens=4"), knobs, scorer=Fake(card), console=console)  # type: ignore[arg-type]
        told = "never asked: no best token had less probability than tau=0," in capsys.readouterr().out
        assert told is (tau == 0)


def test_responses_outlive_a_judge_that_is_gone(card, monkeypatch) -> None:
    def late(self: Verifier, text: str, answer: str) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        future.set_exception(JudgeError("no judge"))
        return future

    judged_by(monkeypatch, gone)
    monkeypatch.setattr(Verifier, "submit", late)
    knobs = DecodeKnobs("unused", tau=0.5, out="out")
    with pytest.raises(RunFailed, match=r"no judge\. The responses are in out/responses\.jsonl, without verdicts"):
        compare(run("max_new_tokens=6"), knobs, scorer=Fake(card))  # type: ignore[arg-type]
    found = [json.loads(line) for line in Path("out/responses.jsonl").read_text().splitlines()]
    assert [(r["greedy"]["right"], r["guided"]["right"]) for r in found] == [(None, None)] * 2
    assert not Path("out/results.json").exists()


# data


def humaneval(path: Path) -> Path:
    return write_jsonl(
        path / "HumanEval.jsonl.gz",
        [
            {
                "task_id": f"HumanEval/{i}",
                "prompt": f"def f{i}(x):\n",
                "test": f"def check(f):\n    assert f(1) == {i}",
                "entry_point": f"f{i}",
                "canonical_solution": f"    return {i}\n",
            }
            for i in range(4)
        ],
    )


def test_a_test_set_is_for_validation_only(tmp_path) -> None:
    humaneval(tmp_path / "humaneval")
    cfg = run("data=humaneval", "data.path=humaneval", "max_prompt_tokens=64")
    loaded, _ = load_split(typed(cfg), tokenizer(), "validation")
    assert sorted(problem.id for problem in loaded.problems) == [f"HumanEval/{i}" for i in range(4)]
    told = "data=humaneval is a test set, nothing to train on .* data.train_split=test data.val_split=null"
    with pytest.raises(DataError, match=told):
        load_split(typed(cfg), tokenizer(), "train")
    with pytest.raises(DataError, match=told):
        build(cfg.data, tmp_path / "run")
    cfg.data.train_split, cfg.data.val_split, cfg.data.val_size = "test", None, 1
    assert {name: report.rows for name, report in build(cfg.data, tmp_path / "run").items()} == {"train": 3, "val": 1}


# where code is cut


@functools.cache
def token_classes() -> ModuleType:
    file = Path(package_path("pkg://reasonrl")).parent / "benchmarks" / "token_classes.py"
    spec = importlib.util.spec_from_file_location("token_classes", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tokens_of_python_have_its_own_classes() -> None:
    text = "See\n```python\ndef f(x):\n    # why\n    return x + 1\n```\nDone 1"
    marked = token_classes().python_classes(text)
    assert {word: marked[text.index(word)] for word in text.split()} == {
        "See": "prose",
        "```python": "fence",
        "def": "keyword",
        "f(x):": "name",
        "#": "comment",
        "why": "comment",
        "return": "keyword",
        "x": "name",
        "+": "operator",
        "1": "number",
        "```": "fence",
        "Done": "prose",
    }
    assert marked[text.index("    #")] == "indentation"
    assert marked[text.index(":\n") + 1] == "line break"


def test_a_program_cut_short_keeps_the_classes_of_its_beginning() -> None:
    code = "x = 1\ny = '''abc"
    names = ["name", "space", "operator", "space", "number", "line break", "name"]
    assert token_classes().code_classes(code)[:7] == names
    assert token_classes().code_classes(code)[-1] == "broken"
    assert len(token_classes().python_classes(f"```\n{code}")) == len(code) + 4
