r"""The checkers released with arXiv 2502.15771 behave here as measured there, and the parity switch of programs too."""

from __future__ import annotations

import importlib.util
import random
import runpy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrl.eval.settings import read_conf, read_protocol, resolve, verify_config
from reasonrl.eval.tasks.task import load_task
from reasonrl.verify.extract import extract_answer
from reasonrl.verify.judge.jobs import extract_code
from reasonrl.verify.pool import Verifier, VerifyConfig, verify_from_config
from reasonrl.verify.release import last_box, math_release, normalized, phrase_number

SAYS = "The final answer is "


def word(name: str, text: str, gold: str, **options: Any) -> bool | None:
    """True, False, or None for no answer, as the released checkers return."""
    with Verifier(verify_from_config({**read_conf("verify", name), **options})) as verifier:
        verdict = verifier.submit(text, gold).result()
    assert verdict.status in ("ok", "no_answer")
    return None if verdict.status == "no_answer" else verdict.correct


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f"{SAYS}$1,234", True),
        (f"{SAYS}1234.0", False),
        ("answer 1234", None),
        (f"{SAYS}none", None),
        (f"{SAYS}...", False),
        ("The final answer is: 1234", None),
        (f"{SAYS}**1234**", True),
        (f"{SAYS}5. No: {SAYS}1234.", True),
        (f"{SAYS}1234. No: {SAYS}5.", False),
        (f"{SAYS}-1234", False),
        ("", None),
    ],
)
def test_gsm8k_as_released(text: str, right: bool | None) -> None:
    assert word("gsm8k_release", text, "1234") is right
    assert word("gsm8k_release", text, "1,234") is right  # golds are written with commas too


def test_the_answer_phrase_can_be_another_model_s() -> None:
    assert word("gsm8k_release", "The answer is: 7", "7", answer_phrase="The answer is: ") is True
    assert word("gsm8k_release", f"{SAYS}7", "7", answer_phrase="The answer is: ") is None
    with pytest.raises(ValueError, match="verify.answer_phrase is empty"):
        VerifyConfig(answer_phrase="")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac{1}{2}", r"\boxed{1/2}", True),
        (r"\frac12", r"\boxed{\dfrac{1}{2}}", True),
        ("5", r"\boxed{x=5}", True),
        ("5", r"\boxed{5.0}", False),
        ("90", r"\boxed{90^\circ}", True),
        ("10", r"\boxed{10\text{ cm}}", True),
        ("1000", r"\boxed{1,000}", False),
        ("2", r"\boxed{2", None),
        ("10", r"\fbox{10}", None),
        ("5", r"so $\boxed 5$ it is", True),
        ("5", r"\boxed{4}, no, \boxed{5}", True),
        ("5", "5", None),
        (r"\sqrt{3}", r"\boxed{\sqrt3}", True),
        (r"\frac{a}{b}", r"\boxed{\frac ab}", True),
        (".5", r"\boxed{\frac{1}{2}}", True),
        ("50", r"\boxed{50\%}", True),
        ("12", r"\boxed{\$12}", True),
        ("(1,2)", r"\boxed{\left(1,2\right)}", True),
        ("10", r"\boxed{10\text{ cm and 3\text{ m}}}", False),  # two units cannot be normalised
        ("f(x)=2=y", r"\boxed{2=y}", False),
    ],
)
def test_math_as_released(gold: str, answer: str, right: bool | None) -> None:
    assert word("math_release", answer, gold) is right


@given(st.text(alphabet=r"\frac{}12sqrt x=/.,%$^() text", max_size=30))
def test_every_answer_meets_itself_and_none_is_an_error(text: str) -> None:
    assert math_release(text, text)
    last_box(text)
    phrase_number(text)


WRITTEN = r"\frac \dfrac \sqrt { } 1 2 0 .5 0.5 / = x \^\circ ^{\circ} \% \$ \left( \right) \! \\ - \pi ,"
PIECES = [*WRITTEN.split(), " "]
PIECES += [r"\text{ cm}", r"\text{ ", "\n"]
BOXES = [r"\boxed", r"\boxed{", r"\boxed ", r"\fbox{", "{", "}", "1", "$", "x"]


def test_the_normaliser_is_that_of_math_s_harness() -> None:
    """verl ships a copy of it. Its file alone: the package would take seconds."""
    spec = importlib.util.find_spec("verl")
    assert spec is not None
    assert spec.submodule_search_locations
    theirs: dict[str, Any] = runpy.run_path(f"{spec.submodule_search_locations[0]}/utils/reward_score/math_reward.py")
    draw = random.Random(7)

    def some(pieces: list[str]) -> str:
        return "".join(draw.choices(pieces, k=draw.randint(0, 7)))

    for _ in range(4000):
        one, box = some(PIECES), some(BOXES)
        other = some(PIECES) if draw.random() < 0.5 else one.replace(draw.choice(PIECES), draw.choice(PIECES))
        assert math_release(one, other) == theirs["is_equiv"](one, other), (one, other)
        found = theirs["last_boxed_only_string"](box)
        try:
            expected = None if found is None else theirs["remove_boxed"](found)
        except AssertionError:
            expected = None
        assert last_box(box) == expected, box


@given(st.text(alphabet="0123456789ab+-xy", max_size=12))
def test_plain_answers_are_left_alone(text: str) -> None:
    assert normalized(text) == text


def test_a_box_that_is_spaced_reaches_to_the_dollar() -> None:
    assert last_box(r"$\boxed x + 1$ and more") == "x + 1"
    assert last_box(r"\boxed{a{b}c}") == "a{b}c"
    assert last_box(r"\boxed{1} \boxed5") is None


def test_where_an_answer_is_looked_for_follows_from_the_checker() -> None:
    assert VerifyConfig(checker="math_release").mode == "last_box"
    assert VerifyConfig(checker="gsm8k_release").mode == "phrase_number"
    assert VerifyConfig(checker="gsm8k_release", extract="boxed").mode == "boxed"
    assert VerifyConfig(checker="gsm8k_release").comparable["answer_phrase"] == SAYS
    assert "answer_phrase" not in VerifyConfig().comparable
    assert extract_answer("#### 5", "last_box") is None


def test_the_protocol_of_the_paper_uses_them() -> None:
    found = {}
    for task in ("gsm8k", "math500"):
        settings = resolve(load_task(task), read_protocol("fttt"), {})
        found[task] = (verify_config(settings, 1).checker, settings.prompt)
    assert found == {"gsm8k": ("gsm8k_release", "final_answer"), "math500": ("math_release", None)}
    assert '"The final answer is X."' in read_conf("prompt", "final_answer")["user"]


FENCED = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "released", "ours"),
    [
        (f"```python\n{FENCED}```", f"\n{FENCED}", FENCED),
        (f"```py\n{FENCED}```", f"py\n{FENCED}", FENCED),  # the tag stays in the program, which fails
        (f"```Python\n{FENCED}```", f"Python\n{FENCED}", FENCED),
        (f"```text\nhello\n```\n```python\n{FENCED}```", "text\nhello\n", FENCED),
        (f"```python\n{FENCED}", None, None),
        ("5", "5", "5"),
        ("no program here", None, None),
        ("", None, None),
    ],
)
def test_programs_as_released_and_as_ours(text: str, released: str | None, ours: str | None) -> None:
    assert extract_code(text, released=True) == released
    assert extract_code(text) == ours


def test_the_first_fence_is_for_programs() -> None:
    assert VerifyConfig(checker="code", extract="first_fence").extract == "first_fence"
    with pytest.raises(ValueError, match="extract=first_fence finds programs, which verify.checker=either cannot"):
        VerifyConfig(extract="first_fence")
