"""Choosing among candidates: the paper's rules, the baselines beside them, and what happens to those that failed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prm_builders import base_folder, data_file, ids_of, policy_tokenizer, prm_folder, row

from reasonrl.config import ConfigError
from reasonrl.engine.prm import Card, Steps
from reasonrl.engine.prm.card import read_card
from reasonrl.eval.prm import candidates as recorded
from reasonrl.eval.prm.best_of_n import ChoiceKnobs, best_of_n, compared, numbers, run
from reasonrl.eval.prm.candidates import Candidate, Candidates, Cutter, answer_key, read_candidates
from reasonrl.eval.prm.knobs import read_knobs

CLOSE = 1e-9
HOWS = ("min", "mean", "max", "last", "product")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return read_card(prm_folder(tmp_path_factory.mktemp("prm") / "prm"))


def candidate(right: bool, given: str | None = None, text: str = "ab") -> Candidate:
    ids = np.array(ids_of(text), np.int32)
    return Candidate(
        "q", np.empty(0, np.int32), ids, np.zeros(ids.size, np.float32), np.ones(ids.size, bool), given, right, False
    )


def chosen(
    *some: tuple[bool, str | None, Sequence[float]], n: int | None = None, hows: Sequence[str] = HOWS
) -> dict[str, float]:
    """How right each way to choose is, on one problem (beside it one that all ways get wrong)."""
    found = Candidates(
        "", None, {"p": [candidate(r, g) for r, g, _ in some], "wrong": [candidate(False, "0")] * len(some)}
    )
    scores = {
        "p": [np.array(s, np.float32) for *_, s in some],
        "wrong": [np.array([0.5], np.float32)] * len(some),
    }
    made = compared(found, scores, [n or len(some)], hows)["curve"][0]
    return {way: 2 * value["estimate"] for way, value in made.items() if way != "n"}


# choosing


@pytest.mark.parametrize(("how", "best"), [("min", "B"), ("mean", "C"), ("max", "C"), ("product", "B"), ("last", "C")])
def test_the_worked_example(how, best) -> None:
    """Spec, example 7."""
    scores = {"A": [0.9, 0.8, 0.3], "B": [0.6, 0.7, 0.65], "C": [0.99, 0.2, 0.95]}
    for name in "ABC":
        assert chosen(*[(n == name, n, s) for n, s in scores.items()])[f"prm_{how}"] == float(name == best)


def test_a_candidate_that_failed_keeps_its_place_and_is_never_chosen() -> None:
    """Spec, example 7: A fails, min still picks B; the released code exports A."""
    failed: list[float] = []
    assert chosen((False, "A", failed), (True, "B", [0.6, 0.7]), (False, "C", [0.99, 0.2]))["prm_min"] == 1.0
    assert chosen((False, "A", [0.9, math.nan]), (True, "B", [0.1]))["prm_min"] == 1.0
    assert chosen((True, "A", failed), (True, "B", failed))["prm_min"] == 0.0  # no choice


def test_votes_count_answers_and_weights_count_scores() -> None:
    some = [(False, "7", [0.1]), (True, "8", [0.9]), (False, "7.0", [0.2]), (False, None, [1.0])]
    made = chosen(*some)
    assert made["majority"] == 0.0  # 7 twice
    assert made["weighted_min"] == 1.0  # 0.9 against 0.3
    assert made["prm_min"] == 0.0  # the one without an answer, which is wrong
    assert chosen((True, "1", [0.5]), (False, "2", [0.5]))["majority"] == 1.0  # the first of equally many


def test_chance_is_the_mean_and_pass_at_n_counts_all_candidates() -> None:
    some = [(True, "1", [0.5]), (False, "2", [0.5]), (False, "3", [0.5]), (False, "1", [0.5])]
    two = chosen(*some, n=2)
    assert two["random"] == pytest.approx(0.5, abs=CLOSE)
    assert two["any_of_first"] == 1.0
    assert two["pass_at_n"] == pytest.approx(1 - 3 / 6, abs=CLOSE)  # 1 - C(3, 2) / C(4, 2)
    assert chosen(*some, n=1)["pass_at_n"] == pytest.approx(0.25, abs=CLOSE)
    assert chosen(*some, n=4)["random"] == pytest.approx(0.25, abs=CLOSE)
    assert chosen(*some, n=4)["pass_at_n"] == 1.0


def test_only_the_first_n_are_looked_at() -> None:
    some = [(False, "1", [0.5]), (False, "2", [0.4]), (True, "3", [0.9])]
    assert [chosen(*some, n=n)["prm_min"] for n in (1, 2, 3)] == [0.0, 0.0, 1.0]
    assert [chosen(*some, n=n)["any_of_first"] for n in (1, 2, 3)] == [0.0, 0.0, 1.0]


def test_differences_are_paired_over_problems() -> None:
    rng = np.random.default_rng(0)
    problems, scores = {}, {}
    for p in range(60):
        right = rng.random(4) < 0.4
        problems[f"p{p}"] = [candidate(bool(r), str(i)) for i, r in enumerate(right)]
        scores[f"p{p}"] = [np.array([0.6 if r else 0.4], np.float32) for r in right]
    made = compared(Candidates("", None, problems), scores, [1, 4], ["min"])
    (random, majority) = made["differences"]
    assert (random["n"], random["of"], random["less"]) == (4, "prm_min", "random")
    assert random["difference"]["low"] > 0.2
    assert majority["less"] == "majority"
    top = made["curve"][1]
    assert top["prm_min"]["estimate"] == top["any_of_first"]["estimate"]  # a perfect model finds what there is
    assert random["difference"]["estimate"] == pytest.approx(
        top["prm_min"]["estimate"] - top["random"]["estimate"], abs=CLOSE
    )
    assert made["auc"]["min"] == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "18.0"),
        ("1,080", "1080"),
        ("$18", " 18 "),
        ("1/2", "0.5"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("x", "x."),
    ],
)
def test_equal_answers_are_one_answer(a, b) -> None:
    assert answer_key(a) == answer_key(b)


def test_other_answers_are_not() -> None:
    assert len({answer_key(a) for a in ("18", "1,8", "-18", "x", "X", "0.18")}) == 5  # 1,8 is 18 to a checker too
    assert answer_key(None) is None
    assert answer_key(" ") is None
    assert answer_key("3/4") == Fraction(3, 4)
    assert answer_key("1/0") == "1/0"


def test_the_curve_doubles_up_to_all_there_are() -> None:
    assert numbers(None, 1) == [1]
    assert numbers(None, 6) == [1, 2, 4, 6]
    assert numbers(None, 8) == [1, 2, 4, 8]
    assert numbers((4, 1, 4), 8) == [1, 4]
    with pytest.raises(ConfigError, match="n=16: no problem has more than 8 candidates"):
        numbers((16,), 8)


# where steps end


def cut(split: str, text: str, logprobs: Sequence[float] | None = None, key: int = 0, **more: Any) -> list[int]:
    made = candidate(True, text=text)
    if logprobs is not None:
        made = Candidate(**{**made.__dict__, "logprobs": np.array(logprobs, np.float32), **more.pop("made", {})})
    return Cutter(split, policy_tokenizer(), **{"tau": 0.5, **more})(made, key).tolist()


def test_steps_end_where_the_policy_was_unsure() -> None:
    unsure, sure = math.log(0.3), math.log(0.9)
    assert cut("confidence", "abcd", [sure, unsure, sure, sure]) == [1, 3]
    assert cut("confidence", "abcd", [sure, unsure, unsure, sure], tau=0.2) == [3]
    assert cut("confidence", "abcd", [math.log(0.4), unsure, math.log(0.2), sure], max_steps=2) == [2, 3]
    ended = [sure, unsure, sure, unsure]
    assert cut("confidence", "abc<|end|>", ended) == [1, 2]  # the end token ends no step
    assert cut("confidence", "abcd", ended, made={"finished": True}) == [1, 2]  # whatever token it is
    given = {"sampled": np.array([False, False, True, True])}
    assert cut("confidence", "abcd", [0.0, 0.0, sure, sure], made=given) == [3]


def test_baselines_cut_at_lines_and_anywhere() -> None:
    assert cut("newline", "ab\ncd\n\ne") == [2, 5, 6, 7]
    given = {"sampled": np.array([False, False, True, True, True])}
    assert cut("newline", "a\nb\nc", [0.0] * 5, made=given) == [3, 4]  # a prefix is no step of the policy's
    ends = cut("random5", "abcdefghij", key=3)
    assert len(ends) == 5
    assert ends[-1] == 9
    assert ends == cut("random5", "abcdefghij", key=3)
    assert any(cut("random5", "abcdefghij", key=k) != ends for k in range(5))
    assert cut("random5", "ab") == [0, 1]


def test_a_confidence_split_needs_tau() -> None:
    with pytest.raises(ConfigError, match="split=confidence needs tau"):
        Cutter("confidence", policy_tokenizer())
    with pytest.raises(ConfigError, match="split must be one of"):
        Cutter("paragraph", policy_tokenizer(), tau=0.5)


# files


class Fake:
    """A scorer: a step is as good as the share of `a` up to its end."""

    def __init__(self, card: Card) -> None:
        self.card, self.identity, self.seen = card, "fake", []

    def score(self, items: Sequence[Steps]) -> list[np.ndarray]:
        self.seen += items
        (a,) = ids_of("a")
        return [
            np.array([np.mean(np.asarray(one.response_ids[: end + 1]) == a) for end in one.ends], np.float32)
            for one in items
        ]


def write_candidates(path: Path) -> Path:
    rows = []
    for p in range(6):
        rows += [
            row("aa", [1], problem=f"p{p}", given="1", right=p % 2 == 0, numbers=[0, 2]),
            row("ab", [1], problem=f"p{p}", given="2", right=p % 2 == 1, numbers=[1]),
            row("aab", [2], problem=f"p{p}", given="2", right=p % 2 == 1, numbers=[3], end=False),
        ]
    return data_file(path / "prm.parquet", rows, rollouts=0)


def test_from_a_file_to_a_table(tmp_path, policy, card) -> None:
    file = write_candidates(tmp_path)
    scorer = Fake(card)
    made = best_of_n(ChoiceKnobs(str(file), "unused", policy=str(policy), out=str(tmp_path / "out")), scorer=scorer)
    assert [r["n"] for r in made["curve"]] == [1, 2, 4]
    assert made["candidates_each"] == {"least": 4, "most": 4}
    assert made["identity"] == "fake"
    assert (made["tau"], made["split"]) == (0.5, "confidence")
    assert made["curve"][0]["random"]["estimate"] == pytest.approx(0.5)
    assert len(scorer.seen) == 18  # a response that came twice is scored once
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text())["curve"] == made["curve"]
    text = (out / "table.md").read_text()
    assert "| choice | N = 1 | N = 2 | N = 4 |" in text
    assert "prm_min - majority" in text
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert len(scores) == 24
    assert [s["candidate"] for s in scores[:4]] == [0, 1, 2, 3]
    assert [s["scores"] for s in scores[:4]] == [[1.0], [0.5], [1.0], [pytest.approx(2 / 3)]]
    assert sorted(p.name for p in out.iterdir()) == ["results.json", "scores.parquet", "table.md"]


def test_equal_candidates_stand_where_they_were_sampled(tmp_path) -> None:
    found = read_candidates(str(write_candidates(tmp_path)))
    texts = [policy_tokenizer().decode(c.response_ids, skip_special_tokens=True) for c in found.problems["p0"]]
    assert texts == ["aa", "ab", "aa", "aab"]
    assert found.most == 4
    assert len(read_candidates(str(tmp_path), limit=3).problems) == 3


def test_too_few_problems_or_no_policy_are_refused(tmp_path, card) -> None:
    file = write_candidates(tmp_path)
    with pytest.raises(ConfigError, match="candidates of 1 problem; intervals resample problems"):
        read_candidates(str(file), limit=1)
    with pytest.raises(ConfigError, match="cannot load the tokenizer of /nowhere .* give policy="):
        best_of_n(ChoiceKnobs(str(file), "unused"), scorer=Fake(card))
    with pytest.raises(ConfigError, match="make one with `reasonrl prm data`"):
        read_candidates(str(tmp_path / "nowhere"))


def test_what_the_scorer_refuses_is_a_clear_error(tmp_path, policy, card) -> None:
    file = write_candidates(tmp_path)
    scorer = Fake(card)

    def refuse(items: Any) -> Any:
        raise ValueError("step 1 ends inside a token")

    scorer.score = refuse  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="step 1 ends inside a token"):
        best_of_n(ChoiceKnobs(str(file), "unused", policy=str(policy)), scorer=scorer)


def test_a_runs_rollouts_are_candidates_too(tmp_path, policy, monkeypatch) -> None:
    import pyarrow as pa
    from omegaconf import OmegaConf

    from reasonrl.data import problems
    from reasonrl.runs import folder

    rows: dict[str, list[Any]] = {
        "problem_id": ["p0", "p0", "p1", "p1", "p1"],
        "trained": [True, True, True, True, False],
        "text": ["#### 1", "#### 2", "none", "#### 4", "probe"],
        "prompt_ids": [[1, 2]] * 5,
        "prefix_ids": [[], [7, 8], [], [], []],
        "token_ids": [[3, 4], [5], [6], [6, 6], [9]],
        "logprobs": [[-0.1, -0.2], [-0.3], [-0.4], [-0.5, -0.6], [-9.0]],
        "finished": [True, False, True, True, True],
        "score": [1.0, 0.0, 0.0, 1.0, 1.0],
    }
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    pq.write_table(pa.table(rows), tmp_path / "run" / "rollouts" / "step_000002.parquet")
    early = {name: [values[0], values[2]] for name, values in rows.items()}
    pq.write_table(pa.table(early), tmp_path / "run" / "rollouts" / "step_000001.parquet")
    OmegaConf.save(
        {
            "prompt": {"name": "plain"},
            "model": {"path": str(policy)},
            "max_prompt_tokens": 64,
            "verify": {"extract": "hash"},
        },
        tmp_path / "run" / "config.yaml",
    )
    loaded = problems.Loaded([_problem("p0"), _problem("p1")], ["1+0", "2+2"], ["", ""], [None, None], 0, 2)
    monkeypatch.setattr(problems, "load", lambda *_, **__: loaded)
    monkeypatch.setattr("reasonrl.data.prompts.prompt_from_config", lambda *_: None)
    monkeypatch.setattr("reasonrl.engine.verl.launch.load_tokenizer", lambda *_: policy_tokenizer())
    monkeypatch.setattr(folder.RunFolder, "open", classmethod(lambda cls, path: folder.RunFolder(path)))
    monkeypatch.setattr("reasonrl.verify.extract.extract_answer", lambda text, mode: text.partition("#### ")[2] or None)
    found = recorded.read_candidates(str(tmp_path / "run"))
    assert found.policy == str(policy)
    assert {name: len(some) for name, some in found.problems.items()} == {"p0": 2, "p1": 2}
    second = found.problems["p0"][1]
    assert second.response_ids.tolist() == [7, 8, 5]
    assert second.sampled.tolist() == [False, False, True]
    assert second.logprobs.tolist() == pytest.approx([0, 0, -0.3])
    assert (second.question, second.given, second.right, second.finished) == ("1+0", "2", False, False)
    assert [c.given for c in found.problems["p1"]] == [None, "4"]


def _problem(id: str) -> Any:
    from reasonrl.core import Problem

    return Problem(id=id, prompt_ids=[1, 2], answer="1")


# knobs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["aggregate=median"], "aggregate must be of .*, got 'median'"),
        (["split=words"], "split must be one of confidence, newline, random5"),
        (["n=0,2"], "n must be numbers of at least 1"),
        (["n=two"], "n must be a whole number, got 'two'"),
        (["tau=55"], r"tau must be a probability in \[0, 1\], got 55"),
        (["limit=0"], "limit must be at least 1"),
        (["backend=onnx"], "backend must be one of transformers, vllm"),
    ],
)
def test_knobs_out_of_range_are_named(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        read_knobs(ChoiceKnobs, ["candidates=c", "prm=p", *args], "reasonrl prm best-of-n")


def test_lists_are_read() -> None:
    made = read_knobs(ChoiceKnobs, ["candidates=c", "prm=p", "n=1,4,16", "aggregate=last,min"], "x")
    assert made.n == (1, 4, 16)
    assert made.aggregate == ("last", "min")
    assert ChoiceKnobs("c", "p").aggregate[0] == "min"  # the paper's


def test_every_knob_is_in_the_help(capsys) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ChoiceKnobs.__dataclass_fields__ if f"{name}=" not in text] == []
