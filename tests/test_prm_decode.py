"""Value-guided decoding on token ids: greedy where the model is sure, the reward model's choice where it is not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prm_builders import policy_tokenizer, prm_folder, small_model

from reasonrl.cli import composed
from reasonrl.config import ConfigError
from reasonrl.engine.prm import Card, Steps, open_scorer
from reasonrl.engine.prm.card import read_card
from reasonrl.engine.prm.guided import Guide, Row, decode, greedy
from reasonrl.eval.prm.decode import DecodeKnobs, compare, run
from reasonrl.eval.prm.knobs import read_knobs

END = 1
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15], [20, 21], [30, 31, 32], [40]]


@pytest.fixture(scope="module")
def model() -> Any:
    """A random policy of 60 tokens that is rarely sure."""
    return small_model(60, seed=3).double()


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return read_card(prm_folder(tmp_path_factory.mktemp("prm") / "prm"))


class Fake:
    """A scorer of token ids: the better the larger the last id; NaN beyond `context` tokens."""

    def __init__(self, card: Card, context: int = 1000, reverse: bool = False) -> None:
        self.card, self.identity, self.context, self.sign = card, "fake", context, -1 if reverse else 1
        self.calls: list[list[Steps]] = []

    def score(self, items: Sequence[Steps]) -> list[np.ndarray]:
        self.calls.append(list(items))
        assert all((np.diff(one.ends) > 0).all() for one in items)
        return [
            np.array(
                [
                    math.nan if end >= self.context else 0.5 + self.sign * one.response_ids[end] / 1000
                    for end in one.ends
                ],
                np.float32,
            )
            for one in items
        ]


def guide(scorer: Any, tau: float, **more: Any) -> Guide:
    return Guide(scorer, [f"q{i}" for i in range(len(PROMPTS))], PROMPTS, tau, frozenset({END}), **more)


def decoded(model: Any, choose: Any = greedy, *, rows: int = 64, most: int = 12) -> list[Row]:
    return decode(model, PROMPTS, end_ids=[END], max_tokens=most, choose=choose, rows=rows)


def by_hand(model: Any, scorer: Any, tau: float, many: int, most: int = 12, tags: str = "last") -> list[list[int]]:
    """One problem at a time, without a cache, one candidate at a time."""
    made = []
    for i, prompt in enumerate(PROMPTS):
        ids: list[int] = []
        asked: list[int] = []
        while len(ids) < most:
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].detach()
            probabilities = torch.softmax(logits.double(), dim=-1)
            token = int(probabilities.argmax())
            if token != END and float(probabilities.max()) < tau:
                scores = {}
                for candidate in probabilities.topk(many).indices.tolist():
                    text = ids if candidate == END else [*ids, candidate]
                    if text:
                        ends = [*(a for a in asked if tags == "all" and a < len(text) - 1), len(text) - 1]
                        scores[candidate] = scorer.score([Steps(f"q{i}", prompt, text, ends)])[0][-1]
                asked.append(len(ids))
                token = max(scores, key=lambda t: scores[t])
            ids.append(token)
            if token == END:
                break
        made.append(ids)
    return made


# greedy


def test_greedy_is_transformers_greedy(model) -> None:
    made = decoded(model, most=10)
    for row, prompt in zip(made, PROMPTS, strict=True):
        own = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=10, eos_token_id=END, pad_token_id=0
        )
        assert row.token_ids == own[0, len(prompt) :].tolist()
        assert row.finished == (row.token_ids[-1] == END)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_what_is_decoded_beside_a_problem_changes_nothing(model, card, rows) -> None:
    assert [r.token_ids for r in decoded(model, rows=rows)] == [r.token_ids for r in decoded(model)]
    together, apart = (decoded(model, guide(Fake(card), 0.6), rows=r) for r in (64, rows))
    assert [(r.token_ids, r.asked, r.changed) for r in together] == [(r.token_ids, r.asked, r.changed) for r in apart]


def test_a_response_ends_with_its_end_token_or_at_the_limit(model) -> None:
    free = decoded(model, most=12)
    last = free[0].token_ids[4]  # an end token that the first response meets for certain
    made = decode(model, PROMPTS, end_ids=[last], max_tokens=12)
    for row, whole in zip(made, free, strict=True):
        stop = whole.token_ids.index(last) + 1 if last in whole.token_ids else 12
        assert row.token_ids == whole.token_ids[:stop]
        assert row.finished == (last in whole.token_ids)
    assert made[0].finished


def test_bad_requests_are_refused(model) -> None:
    with pytest.raises(ValueError, match="max_tokens and rows must be at least 1, got 0"):
        decode(model, PROMPTS, end_ids=[END], max_tokens=0)
    with pytest.raises(ValueError, match="a prompt needs at least one token"):
        decode(model, [[]], end_ids=[END], max_tokens=3)


# guided


@pytest.mark.parametrize("tags", ["last", "all"])
@pytest.mark.parametrize(("tau", "many"), [(0.5, 8), (1.0, 3), (0.3, 60), (0.9, 1)])
def test_it_does_what_a_loop_without_cache_and_batch_does(model, card, tau, many, tags) -> None:
    made = decoded(model, guide(Fake(card), tau, candidates=many, tags=tags))
    assert [row.token_ids for row in made] == by_hand(model, Fake(card), tau, many, tags=tags)


def test_a_real_reward_model_is_asked_about_the_text_it_was_trained_on(tmp_path) -> None:
    scorer = open_scorer(str(prm_folder(tmp_path)), tokenizer=policy_tokenizer(), device="cpu")
    policy = small_model(200, seed=3).double()
    for tags in ("last", "all"):
        made = decoded(policy, guide(scorer, 0.9, tags=tags), most=4)
        assert [row.token_ids for row in made] == by_hand(policy, scorer, 0.9, 8, most=4, tags=tags)


def test_a_sure_model_is_never_asked_about(model, card) -> None:
    scorer = Fake(card)
    made = decoded(model, guide(scorer, 0.0))
    assert [r.token_ids for r in made] == [r.token_ids for r in decoded(model)]
    assert scorer.calls == []
    assert all(not r.asked for r in made)


def test_all_unsure_rows_of_a_token_go_together(model, card) -> None:
    scorer = Fake(card)
    made = decoded(model, guided := guide(scorer, 1.0, candidates=4))
    assert len(scorer.calls) == guided.calls == 12 == max(len(r.token_ids) for r in made)
    assert len(scorer.calls[0]) == sum(4 for _ in PROMPTS)
    assert guided.scored == sum(map(len, scorer.calls))
    assert {one.ends[-1] for one in scorer.calls[5]} <= {4, 5}  # 4: a candidate that would end the response
    assert all(r.asked == list(range(len(r.asked))) for r in made)


def logits(*probabilities: float) -> torch.Tensor:
    return torch.log(torch.tensor([probabilities], dtype=torch.float64))


def test_the_worked_example_of_triggers(card) -> None:
    """Spec, example 4: tau 55 %."""
    for probability, plain, rounded in ((0.5499, True, True), (0.54996, True, False), (0.55, False, False)):
        for round_percent, wanted in ((False, plain), (True, rounded)):
            row = Row(0)
            guide(Fake(card), 0.55, round_percent=round_percent)([row], logits(0.0, 0.0, probability, 1 - probability))
            assert bool(row.asked) == wanted


def test_ties_go_to_the_likelier_token(card) -> None:
    class Equal(Fake):
        def score(self, items: Sequence[Steps]) -> list[np.ndarray]:
            return [np.array([0.5], np.float32) for _ in items]

    row = Row(0)
    assert guide(Equal(card), 0.9)([row], logits(0.1, 0.1, 0.2, 0.6)) == [3]
    assert (row.asked, row.changed) == ([0], 0)


def test_the_best_token_is_replaced_only_by_a_better_one(card) -> None:
    row = Row(0)
    assert guide(Fake(card), 0.9, candidates=2)([row], logits(0.1, 0.0, 0.6, 0.3)) == [3]
    assert guide(Fake(card, reverse=True), 0.9, candidates=2)([row], logits(0.1, 0.0, 0.6, 0.3)) == [2]
    assert row.changed == 1


def test_an_end_token_is_scored_by_the_text_before_it_and_ends_when_it_is_best(card) -> None:
    scorer = Fake(card)
    row = Row(0, token_ids=[50])
    assert guide(scorer, 0.9, candidates=2)([row], logits(0.0, 0.4, 0.6)) == [END]  # 50 before it against 2
    assert [list(one.response_ids) for one in scorer.calls[0]] == [[50, 2], [50]]
    assert guide(scorer, 0.9, candidates=2)([Row(0, token_ids=[50])], logits(0.0, 0.6, 0.4)) == [END]
    assert len(scorer.calls) == 1  # as released: the end token that is best ends the response
    empty = Row(0)
    assert guide(scorer, 0.9, candidates=2)([empty], logits(0.0, 0.4, 0.6)) == [2]  # no text to score


def test_beyond_the_reward_models_context_the_policy_decides(model, card) -> None:
    made = decoded(model, guide(Fake(card, context=5, reverse=True), 1.0, candidates=30))
    for row in made:
        # at 5 the end token alone would have a score, that of the text before it, and would win
        assert row.unscored == sum(place >= 5 for place in row.asked)
        rest = decode(model, [[*PROMPTS[row.index], *row.token_ids[:5]]], end_ids=[END], max_tokens=7)
        assert row.token_ids[5:] == rest[0].token_ids or row.finished
    assert sum(row.unscored for row in made) > 0


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6), st.floats(0, 1), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_only_unsure_tokens_are_changed_and_only_into_likely_ones(card, weights, tau, many) -> None:
    p = np.array(weights) / sum(weights)
    row = Row(0, token_ids=[2])
    (token,) = guide(Fake(card), tau, candidates=many)([row], logits(*p))
    assert p[token] >= sorted(p)[-min(many, p.size)] - 1e-12
    if p.max() > tau + 1e-9:
        assert p[token] == p.max()
        assert not row.asked


def test_impossible_settings_are_refused(card) -> None:
    with pytest.raises(ValueError, match="55 percent is 0.55"):
        guide(Fake(card), 55)
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        guide(Fake(card), 0.5, candidates=0)
    with pytest.raises(ValueError, match="tags must be last or all"):
        guide(Fake(card), 0.5, tags="none")


# the command

TINY = [
    "model=tiny",
    "data=arithmetic",
    "data.size=8",
    "data.val_size=4",
    "verify=exact",
    "max_new_tokens=12",
    "engine=cpu",
]


class Spoiler(Fake):
    """Prefers small ids, which in the embedded tokenizer are no digits."""

    def __init__(self, card: Card) -> None:
        super().__init__(card, reverse=True)


def test_both_ways_are_compared_on_the_same_problems(tmp_path, card) -> None:
    made = compare(
        composed(TINY),
        DecodeKnobs("unused", tau=0.9, out=str(tmp_path / "out")),
        scorer=Spoiler(card),  # type: ignore[arg-type]
    )
    assert made["problems"] == 4
    assert made["identity"] == "fake"
    gap = made["difference"]["difference"]["estimate"]
    assert gap == pytest.approx(made["guided"]["estimate"] - made["greedy"]["estimate"])
    assert made["prm_candidates"] <= 8 * made["triggers_a_response"] * 4
    assert set(made["seconds"]) == {"greedy", "guided"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert sum(len(r["guided"]["asked"]) for r in rows) == made["triggers_a_response"] * 4 > 0
    assert all(not r["greedy"]["asked"] for r in rows)
    assert "| greedy |" in (tmp_path / "out" / "table.md").read_text()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tau"] == 0.9


def test_tau_comes_from_the_data_the_reward_model_learned_from(tmp_path, card) -> None:
    knobs = DecodeKnobs("unused", out=str(tmp_path / "out"), limit=2)
    assert compare(composed(TINY), knobs, scorer=Fake(card))["tau"] == 0.5  # type: ignore[arg-type]
    silent = Fake(Card(**{**card.asdict(), "data": {}}))
    with pytest.raises(ConfigError, match="does not say its tau: give tau="):
        compare(composed(TINY), knobs, scorer=silent)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leaves 1 problem; intervals need 2 or more"):
        compare(composed(TINY), DecodeKnobs("unused", limit=1), scorer=Fake(card))  # type: ignore[arg-type]


def test_arguments_are_the_commands_or_the_runs(capsys) -> None:
    with pytest.raises(ConfigError, match="Unknown key 'candidate'"):
        run(["model=tiny", "prm=x", "candidate=4"])
    with pytest.raises(ConfigError, match="resume= is for run folders"):
        run(["model=tiny", "prm=x", "resume=y"])
    with pytest.raises(ConfigError, match=r"needs prm=\.\.\."):
        run(["model=tiny"])
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in DecodeKnobs.__dataclass_fields__ if f"{name}=" not in text] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["candidates=0"], "candidates must be at least 1"),
        (["tau=55"], r"tau must be a probability in \[0, 1\]"),
        (["tags=none"], "tags must be one of last, all"),
        (["split=test"], "split must be one of validation, train"),
    ],
)
def test_knobs_out_of_range_are_named(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        read_knobs(DecodeKnobs, ["prm=p", *args], "reasonrl prm decode")


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        compare(composed(TINY), DecodeKnobs(str(tmp_path / "nowhere")))
