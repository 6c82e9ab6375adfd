"""Best-of-N and votes: the worked example of AdaptiveStep, failed candidates, ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.functional.choice import AGGREGATES, aggregate, best, majority, weighted_vote

A, B, C = [0.9, 0.8, 0.3], [0.6, 0.7, 0.65], [0.99, 0.2, 0.95]

# distinct enough that float rounding of a map cannot make two of them equal
scores = st.lists(st.lists(st.integers(1, 99).map(lambda s: s / 100), min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("how", "values", "chosen"),
    [
        ("min", [0.3, 0.6, 0.2], 1),
        ("mean", [0.6667, 0.65, 0.7133], 2),
        ("max", [0.9, 0.7, 0.99], 2),
        ("product", [0.216, 0.273, 0.1881], 1),
        ("last", [0.3, 0.65, 0.95], 2),
    ],
)
def test_best_of_three(how, values, chosen) -> None:
    found = [aggregate(steps, how) for steps in (A, B, C)]
    np.testing.assert_allclose(found, values, atol=5e-5)
    assert best(found) == chosen
    assert how in AGGREGATES


def test_a_failed_candidate_keeps_its_place() -> None:
    assert best([None, aggregate(B), aggregate(C)]) == 1
    assert best([-np.inf, 0.6, 0.2]) == 1


def test_without_a_candidate_there_is_no_choice() -> None:
    assert best([None, None]) is None
    assert best([-np.inf]) is None
    assert best([]) is None


def test_the_first_of_equals_is_chosen() -> None:
    assert best([0.1, 0.6, None, 0.6]) == 1


def test_the_minimum_is_the_default() -> None:
    assert aggregate(A) == 0.3


@settings(max_examples=60, deadline=None)
@given(scores)
def test_a_rising_map_never_changes_the_choice_by_minimum(candidates) -> None:
    margins = [[np.log(s / (1 - s)) for s in steps] for steps in candidates]  # z_good - z_bad
    assert best([aggregate(steps) for steps in candidates]) == best([aggregate(steps) for steps in margins])


def test_a_rising_map_changes_the_choice_by_mean() -> None:
    # means .5 and .51; margins ln(.01/.99) = -4.6 and its opposite cancel against +.04, but not against .999
    steps = [[0.51, 0.51], [0.999, 0.01]]
    margins = [[np.log(s / (1 - s)) for s in own] for own in steps]
    assert best([aggregate(own, "mean") for own in steps]) == 0
    assert best([aggregate(own, "mean") for own in margins]) == 1


def test_the_logit_of_the_good_token_alone_is_no_map_of_the_probability() -> None:
    logits = [(5.0, 4.0), (3.0, 0.0)]
    probabilities = [1 / (1 + np.exp(bad - good)) for good, bad in logits]
    np.testing.assert_allclose(probabilities, [0.731, 0.953], atol=5e-4)
    assert best([good for good, _ in logits]) == 0
    assert best(probabilities) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate(A, "median"), "aggregate must be one of min, mean, max, last, product, got 'median'"),
        (lambda: aggregate([]), "without step scores .* failed, pass None to `best`"),
        (lambda: aggregate([0.5, np.nan]), "scores of a candidate's steps .* must be finite"),
        (lambda: best([0.5, np.nan]), "value of candidate 1 of 2 is NaN; a candidate that failed is None"),
        (lambda: weighted_vote(["1"], [0.5, 0.5]), r"answers \(N,\) and weights \(N,\) differ: 1 vs 2"),
        (lambda: weighted_vote(["1"], [-0.5]), "weight of candidate 0 must be finite and at least 0, got -0.5"),
        (lambda: weighted_vote(["1"], [np.nan]), "weight of candidate 0 must be finite and at least 0, got nan"),
    ],
)
def test_choices_refuse_what_they_cannot_compare(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_most_frequent_answer_wins() -> None:
    assert majority(["7", "18", "18", None, None, None]) == "18"


def test_of_equally_frequent_answers_the_one_seen_first_wins() -> None:
    assert majority(["7", "18", "18", "7"]) == "7"
    assert majority([None, "18", "7"]) == "18"


def test_nobody_votes() -> None:
    assert majority([None, None]) is None
    assert majority([]) is None
    assert weighted_vote(["7"], [None]) is None


def test_weights_outvote_numbers() -> None:
    assert weighted_vote(["7", "7", "18"], [0.2, 0.3, 0.9]) == "18"
    assert weighted_vote(["7", "7", "18"], [0.2, 0.3, None]) == "7"
    assert weighted_vote(["7", "18"], [0.0, 0.0]) == "7"


def test_equal_sums_tie_in_whatever_order_they_were_added() -> None:
    # .1 + .2 + .3 is .6000000000000001 from the left, .6 from the right
    assert weighted_vote(["7", "18", "18", "18", "7", "7"], [0.3, 0.1, 0.2, 0.3, 0.2, 0.1]) == "7"
    assert weighted_vote(["7", "18", "18", "18", "7", "7"], [0.1, 0.3, 0.2, 0.1, 0.2, 0.3]) == "7"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12))
def test_equal_weights_are_a_majority(answers) -> None:
    assert majority(answers) == weighted_vote(answers, [0.25] * len(answers))
    counts = [answers.count(answer) for answer in "abc"]
    winner = majority(answers)
    assert winner is None if not any(counts) else answers.count(winner) == max(counts)
