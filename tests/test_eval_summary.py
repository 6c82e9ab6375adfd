"""The numbers of a benchmark from its samples, and the table that shows them."""

from __future__ import annotations

import io
import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.eval.summary import STATUSES, Samples, summarise, vote_key
from reasonrl.eval.table import markdown_table, results_table, row
from reasonrl.functional.estimates import minimum_detectable_difference, share_interval

CLOSE = 1e-9
KEYS = ["problems", "samples", "n", "accuracy", "pass_at_k", "maj_at_k", "tokens", "rates", "ungraded"]
KEYS += ["accuracy_if_ungraded_right", "length_bins", "minimum_detectable_difference", "categories", "parts", "notes"]


def sample(problem: str, right: bool = False, given: str | None = "0", **more: Any) -> dict[str, Any]:
    """A row of a journal."""
    row = {"id": problem, "correct": right, "extracted": given, "tokens": 10, "finished": True, "status": "ok"}
    return {**row, "category": "", "parts": None, **more}


def of(*rows: dict[str, Any], **options: Any) -> dict[str, Any]:
    return summarise(Samples.from_rows(rows), **options)


def too_long(problem: str) -> dict[str, Any]:
    return sample(problem, given=None, status="prompt_too_long", tokens=0, finished=False)


# accuracy


def test_a_problem_counts_once_however_often_it_was_sampled() -> None:
    found = of(sample("a", True), sample("b"), sample("b"), sample("b", True), sample("c", True))
    assert (found["problems"], found["samples"], found["n"]) == (3, 5, {"min": 1, "max": 3})
    assert found["accuracy"]["estimate"] == pytest.approx((1 + 1 / 3 + 1) / 3, abs=CLOSE)
    expected = share_interval([1, 1 / 3, 1])
    assert found["accuracy"]["low"] == pytest.approx(expected.low, abs=CLOSE)
    assert found["accuracy"]["high"] == pytest.approx(expected.high, abs=CLOSE)
    assert found["accuracy"]["level"] == 0.95
    assert any("problems have 1 to 3 samples" in note for note in found["notes"])


def test_pass_and_majority_at_k() -> None:
    some = [("7", True), ("7", True), ("8", False), ("9", False)]
    found = of(*[sample("a", right, given) for given, right in some], *[sample("b", False, str(i)) for i in range(4)])
    assert list(found["pass_at_k"]) == list(found["maj_at_k"]) == ["1", "2", "4"]  # 8 samples are not there
    estimates = [found["pass_at_k"][k]["estimate"] for k in ("1", "2", "4")]
    assert estimates == pytest.approx([0.25, (1 - 1 / 6) / 2, 0.5], abs=CLOSE)  # of b nothing is right
    voted = [found["maj_at_k"][k]["estimate"] for k in ("1", "2", "4")]
    assert voted == pytest.approx([0.25, (1 / 6 + 4 / 6 / 2) / 2, 0.5], abs=CLOSE)
    assert found["pass_at_k"]["1"] == found["accuracy"]
    assert found["maj_at_k"]["1"] == pytest.approx(found["accuracy"])
    assert list(of(*[sample("a")] * 3, ks=(3, 2, 5))["pass_at_k"]) == ["2", "3"]


def test_votes_collapse_white_space_and_nothing_else() -> None:
    assert vote_key(" 1 \n 2 ") == vote_key("1 2") != vote_key("12")
    assert vote_key(None) is None
    rows = [sample("a", True, "x  y"), sample("a", True, "x\ny"), sample("a", False, "z"), sample("a", False, "Z")]
    assert of(*rows)["maj_at_k"]["4"]["estimate"] == 1.0


def test_there_is_no_vote_where_nothing_is_extracted() -> None:
    found = of(*[sample(p, p == "a", None) for p in "aabb"])
    assert found["maj_at_k"] == {}
    assert found["pass_at_k"]["2"]["estimate"] == 0.5


def test_all_right_is_not_certain() -> None:
    found = of(*[sample(str(i), True) for i in range(30)])
    assert found["accuracy"]["estimate"] == found["accuracy"]["high"] == 1.0
    assert 0.8 < found["accuracy"]["low"] < 0.9
    assert found["minimum_detectable_difference"]["value"] is None  # no spread to go by


# what went wrong


def test_what_cannot_be_right_counts_as_wrong_and_is_told() -> None:
    rows = [sample(f"{i}", True) for i in range(94)]
    rows += [sample("t", status="timeout"), sample("e", status="error"), sample("n", given=None, status="no_answer")]
    rows += [sample("c", finished=False, tokens=100), too_long("l"), sample("m", True, finished=False, tokens=50)]
    found = of(*rows)
    counts = {name: rate["count"] for name, rate in found["rates"].items()}
    assert counts == {"truncated": 2, "no_answer": 1, "prompt_too_long": 1, "timeout": 1, "error": 1, "no_judge": 0}
    assert found["rates"]["truncated"]["share"] == 0.02
    assert found["accuracy"]["estimate"] == 0.95
    assert found["ungraded"] == 2
    assert found["accuracy_if_ungraded_right"] == 0.97
    assert any(
        "2 of 100 samples could not be graded" in note and "97.00% and not 95.00%" in note for note in found["notes"]
    )
    assert any("1 of 100 samples count as wrong because their prompt" in note for note in found["notes"])


def test_a_prompt_that_is_too_long_has_no_length() -> None:
    found = of(
        sample("a", True, tokens=10), sample("b", tokens=30), sample("c", tokens=50, finished=False), too_long("d")
    )
    tokens = {"mean": 30, "median": 30, "p90": 46, "max": 50, "correct": 10, "wrong": 40, "truncated": 50}
    assert found["tokens"] == pytest.approx(tokens, abs=CLOSE)
    assert sum(each["samples"] for each in found["length_bins"]) == 3
    assert found["accuracy"]["estimate"] == 0.25
    nothing = of(too_long("a"), too_long("b"))
    assert set(nothing["tokens"].values()) == {None}
    assert nothing["length_bins"] == []
    assert nothing["rates"]["truncated"]["count"] == 0


def test_many_cut_or_unanswered_samples_are_told() -> None:
    rows = [sample(str(i), i % 2 == 0) for i in range(200)]
    assert of(*rows)["notes"] == [
        "one sample a problem: the noise of sampling cannot be told from how hard the problems are"
    ]
    cut = [{**row, "finished": i >= 20} for i, row in enumerate(rows)]
    assert any("10.0% of the samples were cut at max_new_tokens" in note for note in of(*cut)["notes"])
    silent = [{**row, "status": "no_answer" if i < 30 else "ok"} for i, row in enumerate(rows)]
    assert any("15.0% of the samples state no answer" in note for note in of(*silent)["notes"])
    assert any("30 problems only" in note and "points can be chance" in note for note in of(*rows[:30])["notes"])


# other numbers


def test_what_two_results_must_differ_by() -> None:
    rows = [sample(str(p), k < p % 5) for p in range(40) for k in range(4)]
    found = of(*rows)["minimum_detectable_difference"]
    shares = np.tile(np.arange(5) / 4, 8)
    spread = float(shares.std(ddof=1))
    assert found["value"] == pytest.approx(minimum_detectable_difference(spread, 40, (spread, 40)), abs=CLOSE)
    noise = math.sqrt(2 * (shares * (1 - shares) / 3).mean())
    assert found["same_problems_at_best"] == pytest.approx(minimum_detectable_difference(noise, 40), abs=CLOSE)
    assert (found["power"], found["alpha"]) == (0.8, 0.05)
    assert (
        of(*[sample(str(p), p < 20) for p in range(40)])["minimum_detectable_difference"]["same_problems_at_best"]
        is None
    )
    assert of(sample("a"), sample("a", True))["minimum_detectable_difference"]["value"] is None  # one problem


def test_noise_alone_is_what_results_of_equal_models_differ_by() -> None:
    """The variance behind `same_problems_at_best`, against two results drawn from the same chances."""
    rng = np.random.default_rng(0)
    chance = rng.beta(0.5, 0.5, 4000)
    one, other = rng.random((2, 4000, 8)) < chance[:, None]
    found = of(*[sample(str(p), bool(v)) for p in range(4000) for v in one[p]], ks=())["minimum_detectable_difference"]
    real = minimum_detectable_difference(float((one.mean(1) - other.mean(1)).std()), 4000)
    assert found["same_problems_at_best"] == pytest.approx(real, rel=0.05)


def test_accuracy_by_category_and_parts() -> None:
    rows = [
        sample("a", True, category="algebra", parts={"strict": 1.0, "loose": 1.0}),
        sample("b", False, category="algebra", parts={"strict": 0.0, "loose": 0.5}),
        sample("c", False, category="geometry", status="timeout"),
    ]
    found = of(*rows)
    assert found["categories"] == {
        "algebra": {"problems": 2, "accuracy": 0.5},
        "geometry": {"problems": 1, "accuracy": 0.0},
    }
    assert found["parts"]["strict"]["estimate"] == pytest.approx(1 / 3)  # not graded, not fulfilled
    assert found["parts"]["loose"]["estimate"] == pytest.approx(0.5)
    assert of(sample("a"), sample("b"))["categories"] == {}


def test_accuracy_against_length() -> None:
    rows = [sample(str(i), i < 60, tokens=100 + i) for i in range(120)]
    bins = of(*rows)["length_bins"]
    assert len(bins) == 6  # of 20 samples
    assert (bins[0]["low"], bins[0]["high"], bins[0]["samples"], bins[0]["accuracy"]) == (100, 119, 20, 1.0)
    assert bins[-1]["accuracy"] == 0.0
    assert all(each["low_ci"] <= each["accuracy"] <= each["high_ci"] for each in bins)


# the form


row_of_any_kind = st.builds(
    sample,
    st.sampled_from("abc"),
    st.booleans(),
    st.sampled_from([None, "1", "2"]),
    tokens=st.integers(0, 50),
    finished=st.booleans(),
    status=st.sampled_from(STATUSES),
    category=st.just("x"),
    parts=st.none() | st.fixed_dictionaries({"strict": st.sampled_from([0.0, 0.1, 0.3, 1.0])}),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(row_of_any_kind, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_no_byte(rows: list[dict[str, Any]], shuffle: random.Random) -> None:
    found = of(*rows)
    moved = list(rows)
    shuffle.shuffle(moved)
    text = json.dumps(found, allow_nan=False)
    assert json.dumps(of(*moved), allow_nan=False) == text
    assert json.loads(text) == found  # plain numbers, text keys
    assert list(found) == KEYS


def test_means_are_added_up_in_one_order() -> None:
    parts = [0.1, 0.2, 0.3]  # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 are two floats
    one, other = (
        Samples.from_rows([sample("a", parts={"strict": part}) for part in order]) for order in (parts, parts[::-1])
    )
    assert one.mean(one.parts["strict"])[0] == other.mean(other.parts["strict"])[0]


def test_floats_have_ten_digits() -> None:
    assert of(sample("a", True), sample("b"), sample("c"))["accuracy"]["estimate"] == 0.3333333333


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "a task without samples has no result"),
        ([sample("a", status="lost")], "unknown status 'lost' of a sample. Choices: ok, no_answer"),
    ],
)
def test_samples_that_mean_nothing_are_refused(rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        of(*rows)


def test_columns_of_other_lengths_are_refused() -> None:
    one = np.array([True])
    with pytest.raises(ValueError, match="differ in length: .*'tokens': 2"):
        Samples(["a"], one, np.array([1, 2]), one, ["ok"], [None], [""])


# the table


def results(**tasks: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"name": "tiny"}, "protocol": None, "suite": "seele", "tasks": tasks, "notes": ["of a test"]}


def printed(*given: Any) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=220, force_terminal=True, color_system="standard")
    console.print(results_table(*given))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_a_row_a_task_and_their_mean() -> None:
    rows = [sample(f"{p}", k < p % 5, str(k < p % 5), tokens=1000 * p + 10 * k) for p in range(40) for k in range(4)]
    easy = of(*[sample(str(i), True) for i in range(10)])
    cells = row("gsm8k", of(*rows))
    assert cells[:3] == ["gsm8k", "40 x 4", "50.0% (39.1–60.9)"]  # 1.96 * sqrt((40 * .125 + 3.84 / 4) / 43.84^2)
    assert cells[3] == "80.0% @4"
    assert cells[4] == "50.0% @4"  # wins 3 of 4, ties 2 of 4
    assert cells[6:9] == ["0.0%", "0.0%", "0"]
    assert row("easy", easy)[3:5] == ["–", "–"]  # k = 1 is the accuracy
    text = markdown_table(results(gsm8k=of(*rows), easy=easy))
    assert "| mean | | 75.0% |" in text
    assert "tiny, suite seele" in text
    assert "- of a test" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "\nmean " in printed(results(gsm8k=of(*rows), easy=easy))
    assert "\nmean " not in printed(results(easy=easy))


def test_ungraded_samples_are_red() -> None:
    good, bad = of(sample("a", True), sample("b")), of(sample("a", True), sample("b", status="timeout"))
    assert "\x1b[1;31m1\x1b[0m" in printed(results(bad=bad))
    assert "\x1b[1;31m" not in printed(results(good=good))


def test_speed_is_told_below_the_table() -> None:
    speed = {
        "seconds": 60.0,
        "sessions": [
            {"answers": 100, "tokens": 5000, "seconds": {"load": 10, "sample": 25}},
            {"answers": 0, "seconds": {}},
        ],
    }
    text = markdown_table(results(easy=of(sample("a"), sample("b", True))), speed)
    assert "100 answers in 60 s, 200 tokens a second while sampling" in text
    assert "answers in" not in markdown_table(results(easy=of(sample("a"), sample("b"))), {"sessions": []})


def test_a_name_does_not_end_a_cell() -> None:
    assert "a\\|b" in markdown_table(results(**{"a|b": of(sample("a"), sample("b", True))}))
    assert "[red]" in printed(results(**{"[red]": of(sample("a"), sample("b", True))}))
