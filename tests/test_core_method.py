"""Methods, loss settings, needs, limits, factories and knobs."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from reasonrl.core import Loss, Method, check_knobs, check_needs, load_factory, make, with_limits, with_parts
from reasonrl.core.defaults import Correctness, FailureRate, Plain
from reasonrl.core.knobs import check_number
from reasonrl.parts.advantages import RLOO, DrGRPO
from reasonrl.parts.overlong import SoftOverlong


@dataclass(frozen=True)
class NeedsEntropy(FailureRate):
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "prm"})


def build(*, alpha: float = 0.5, rounds: int = 2, mode: Literal["a", "b"] = "a", cap: int | None = None) -> Method:
    check_number("alpha", alpha, least=0.0, most=1.0)
    return Method("mine", prefix=Plain(rounds))


def test_a_bare_method_is_plain_grpo_and_pickles() -> None:
    method = Method("m")
    assert method.prefix.n == 8
    assert method.signature == (
        "prefix=Plain",
        "difficulty=FailureRate",
        "reward=Correctness",
        "advantage=GroupNormalised",
    )
    assert pickle.loads(pickle.dumps(method)) == method


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"difficulty": FailureRate}, r"must be an instance, got the class FailureRate; write FailureRate\(...\)"),
        ({"prefix": FailureRate()}, r"Method.prefix: FailureRate has no plan\(\)"),
        ({"reward": DrGRPO()}, "Method.reward: DrGRPO does not declare `bounds`"),
        ({"advantage": None}, r"Method.advantage: NoneType has no __call__\(\)"),
        ({"loss": {"kl": 1}}, r"must be a Loss\(...\)"),
    ],
)
def test_a_slot_takes_the_right_kind_of_part(fields, message) -> None:
    with pytest.raises(TypeError, match=message):
        Method("m", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregation": "mean"}, "loss.aggregation must be one of token-mean, .*; got 'mean'"),
        ({"clip_low": 1.5}, r"loss.clip_low must lie in \(0, 1\], got 1.5"),
        ({"dual_clip": 1.0}, r"loss.dual_clip must lie in \(1, inf\), got 1.0"),
        ({"kl": float("nan")}, "loss.kl must lie in"),
        ({"scale": 10}, "no effect with aggregation='token-mean'"),
    ],
)
def test_loss_settings_are_checked(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        Loss(**fields)


def test_needs_are_collected_and_refused_with_the_way_out() -> None:
    method = Method("m", difficulty=NeedsEntropy())
    assert method.needs == {"entropy", "prm"}
    check_needs(method, {"entropy", "prm", "logprobs"})
    with pytest.raises(
        ValueError, match=r"difficulty part NeedsEntropy needs `prm`.*prm=<folder.*method/difficulty=\.\.\."
    ):
        check_needs(method, {"entropy"})


def test_an_unknown_need_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd(FailureRate):
        needs: ClassVar[set[str]] = {"telepathy"}

    with pytest.raises(ValueError, match=r"telepathy.*choices: logprobs, "):
        Method("m", difficulty=Odd())


def test_limits_reach_the_overlong_ramp() -> None:
    assert with_limits(Method("m"), 100) == Method("m")
    limited = with_limits(Method("m", overlong=SoftOverlong()), 100)
    assert limited.overlong == SoftOverlong(max_tokens=100)
    assert with_limits(limited, 100) == limited


# knobs


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        ({"alhpa": 0.1}, ValueError, r"has no knob 'alhpa'. Did you mean alpha\? Choices: alpha, cap, mode, rounds"),
        ({"zzz": 0.1}, ValueError, "has no knob 'zzz'. Choices: alpha"),
        ({"alpha": "much"}, TypeError, "alpha must be float, got 'much'"),
        ({"alpha": True}, TypeError, "alpha must be float, got True"),
        ({"rounds": 2.0}, TypeError, "rounds must be int, got 2.0"),
        ({"mode": "c"}, TypeError, "mode must be 'a' or 'b', got 'c'"),
        ({"cap": "x"}, TypeError, "cap must be int or None, got 'x'"),
        ({"alpha": 2}, ValueError, r"alpha must lie in \[0, 1\], got 2"),
    ],
)
def test_bad_knobs_are_refused_by_name(knobs, error, message) -> None:
    with pytest.raises(error, match=message):
        make(build, knobs)


def test_good_knobs_pass() -> None:
    assert make(build, {"alpha": 1, "rounds": 3, "mode": "b", "cap": None}).prefix.n == 3


def test_a_knob_that_changes_nothing_is_refused() -> None:
    def two_part(*, prefix: Any = None, n: int = 8, scale: float = 1.0) -> Method:
        return Method("m", prefix=prefix or Plain(n), reward=Correctness(0.0, scale))

    assert make(two_part, {"n": 4, "scale": 2.0}).prefix == Plain(4)
    with pytest.raises(
        ValueError, match=r"n=4 has no effect beside prefix=Plain, which replaces the part that reads it"
    ):
        make(two_part, {"prefix": Plain(2), "n": 4})
    assert make(two_part, {"prefix": Plain(4), "n": 4}).prefix.n == 4  # it says what the part says
    assert make(two_part, {"prefix": Plain(2), "n": 8}).prefix.n == 2  # the default
    assert make(two_part, {"prefix": Plain(2), "scale": 2.0}).reward == Correctness(0.0, 2.0)


@pytest.mark.parametrize(
    ("name", "knobs", "idle"),
    [
        ("seele", {"prefix": Plain(16), "rounds": 8, "n": 16}, "rounds"),
        ("pace", {"difficulty": FailureRate(), "reward": Correctness(0.0, 1.0), "alpha_mode": "one"}, "alpha_mode"),
    ],
)
def test_so_it_is_for_the_built_in_methods(name: str, knobs: dict[str, Any], idle: str) -> None:
    with pytest.raises(ValueError, match=f"{idle}=.* has no effect"):
        make(load_factory(f"reasonrl.methods.{name}:build"), knobs)
    assert make(load_factory(f"reasonrl.methods.{name}:build"), {n: v for n, v in knobs.items() if n != idle})


def test_a_missing_knob_is_named() -> None:
    def needs_one(*, size: int) -> Method:
        return Method("m")

    with pytest.raises(ValueError, match=r"needs the knob 'size'; set method\.size="):
        check_knobs(needs_one, {})


def test_open_and_unannotated_factories_take_what_they_take() -> None:
    def open_ended(**knobs: Any) -> Method:
        return Method(knobs["title"])

    def untyped(title="x"):
        return Method(title)

    assert make(open_ended, {"title": "t"}).name == make(untyped, {"title": "t"}).name == "t"


def test_parts_reach_a_factory_that_has_no_slots() -> None:
    method = make(build, {"advantage": RLOO(), "reward": None})
    assert method.advantage == RLOO()
    assert method.reward == Method("m").reward


def test_a_factory_can_be_given_slots_for_all_parts() -> None:
    @with_parts
    def build(*, n: int = 3) -> Method:
        return Method("short", prefix=Plain(n))

    assert build() == Method("short", prefix=Plain(3))
    assert build(n=2, advantage=RLOO(), prefix=None) == Method("short", prefix=Plain(2), advantage=RLOO())
    assert make(build, {"reward": Correctness(-1.0, 1.0)}).reward == Correctness(-1.0, 1.0)
    with pytest.raises(
        ValueError, match="has no knob 'm'.*Choices: advantage, difficulty, n, overlong, prefix, reward"
    ):
        check_knobs(build, {"m": 1})
    with pytest.raises(TypeError, match="n must be int"):
        check_knobs(build, {"n": "two"})


def test_a_factory_must_return_a_method() -> None:
    def wrong() -> dict[str, int]:
        return {}

    with pytest.raises(TypeError, match="must return a Method, got dict"):
        make(wrong, {})  # type: ignore[arg-type]


def test_factories_are_found_by_either_spelling() -> None:
    from reasonrl.methods.grpo import build as grpo

    assert load_factory("reasonrl.methods.grpo:build") is load_factory("reasonrl.methods.grpo.build") is grpo


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("grpo", "package.module:function, got 'grpo'"),
        ("reasonrl.methods.nowhere:build", "cannot import 'reasonrl.methods.nowhere'"),
        ("reasonrl.methods.grpo:biuld", r"has no function 'biuld'. Did you mean build\?"),
    ],
)
def test_a_factory_that_is_not_there_is_named(path, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_factory(path)


@pytest.mark.parametrize(
    ("value", "limits", "error", "message"),
    [
        ("3", {}, TypeError, "k must be a number, got '3'"),
        (2.5, {"whole": True}, ValueError, "k must be a whole number, got 2.5"),
        (float("inf"), {"whole": True}, ValueError, "k must"),
        (float("nan"), {}, ValueError, r"k must lie in \(-inf, inf\), got nan"),
        (0, {"above": 0, "most": 2}, ValueError, r"k must lie in \(0, 2\], got 0"),
    ],
)
def test_number_checks_name_knob_value_and_range(value, limits, error, message) -> None:
    with pytest.raises(error, match=message):
        check_number("k", value, **limits)
