"""Protocols: every paper's settings reach the tasks they are meant for, and what a person says wins."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reasonrl.cli import options
from reasonrl.config import ConfigError
from reasonrl.data.prompts import Prompt
from reasonrl.eval.models import EvalModel
from reasonrl.eval.plan import chosen_prompt
from reasonrl.eval.settings import Resolved, read_protocol, read_settings, resolve, verify_config
from reasonrl.eval.suites import read_suite
from reasonrl.eval.tasks import load_task, task_names

protocol_of, task_of = functools.cache(read_protocol), functools.cache(load_task)
CONF = Path(__file__).parents[1] / "conf" / "protocol"
SHARED = ("n", "temperature", "top_p", "top_k", "max_new_tokens", "max_context")
# of the papers and their repositories, n to max_context as in SHARED; then the checker
PAPERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "pace": dict.fromkeys(("aime24", "aime25", "math500", "gsm8k"), (16, 0.6, 0.95, -1, 30000, 32768, "math_verify")),
    "deepcompress": dict.fromkeys(
        ("math500", "amc23", "olympiadbench", "minerva", "aime24", "aime25", "polymath_en"),
        (16, 0.6, 0.95, -1, 32768, None, "either"),
    ),
    "seele": {
        **dict.fromkeys(("gsm8k", "math500", "minerva", "olympiadbench"), (1, 0.0, 1.0, -1, 16000, None, "mathruler")),
        **dict.fromkeys(("aime24", "amc23"), (32, 0.6, 1.0, -1, 16000, None, "mathruler")),
        **dict.fromkeys(("arc_c", "gpqa_diamond", "mmlu_pro"), (1, 0.0, 1.0, -1, 16000, None, "choice")),
    },
    "adaptivestep": dict.fromkeys(("gsm8k", "math500"), (1, 0.0, 1.0, -1, 1024, 1024, "either")),
    "fttt": {
        "gsm8k": (1, 0.0, 1.0, -1, 2048, None, "gsm8k_release"),
        "math500": (1, 0.0, 1.0, -1, 2048, None, "math_release"),
    },
}


def resolved(protocol: str, task: str, **given: Any) -> Resolved:
    return resolve(task_of(task), protocol_of(protocol), given)


@pytest.mark.parametrize(("protocol", "task"), [(name, task) for name, tasks in PAPERS.items() for task in tasks])
def test_a_task_is_sampled_and_judged_as_the_paper_does(protocol, task) -> None:
    found = resolved(protocol, task)
    assert (*(getattr(found, name) for name in SHARED), verify_config(found, 1).checker) == PAPERS[protocol][task]


def test_every_protocol_that_ships_is_of_a_paper_and_has_a_suite() -> None:
    assert set(options("protocol")) == set(PAPERS)
    assert {read_suite(name).protocol for name in options("suite")} == set(PAPERS)


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_every_value_says_where_it_comes_from(name) -> None:
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r" *[a-z_.0-9]+: \S", line)]
    assert len(values) >= 5
    assert [line for line in values if not re.search(r"# (paper|release|ours|not published|no effect)", line)] == []
    assert re.search(r"arXiv \d{4}\.\d{5}", "\n".join(lines))


@pytest.mark.parametrize("protocol", sorted(PAPERS))
@pytest.mark.parametrize("task", task_names())
def test_any_task_can_be_put_under_any_protocol(protocol, task) -> None:
    found = resolved(protocol, task)
    known = task_of(task)
    if known.kind != "answer":  # options and instructions are not asked and read as mathematics is
        assert (found.verify, found.prompt, found.chat_prompt, found.base_prompt) == (known.verify, None, None, None)
    verify_config(found, 1)


def test_a_thinking_gate_of_training_does_not_count_where_the_paper_has_none() -> None:
    own = {"prompt": "run:orz", "verify.answer_after": "last_think"}
    for name in ("deepcompress", "pace"):
        assert resolve(task_of("math500"), protocol_of(name), {}, own).verify_options == {"answer_after": "none"}
    assert resolve(task_of("math500"), protocol_of("seele"), {}, own).verify_options == {"answer_after": "last_think"}


def test_what_a_person_says_wins_over_a_protocol() -> None:
    found = resolved("pace", "math500", n=4, temperature=1.0, verify="mathruler", prompt="simplerl")
    assert (found.n, found.temperature, found.verify, found.prompt) == (4, 1.0, "mathruler", "simplerl")
    assert found.max_new_tokens == 30000


def test_a_protocol_speaks_of_a_task_of_another_kind_by_its_name() -> None:
    task = task_of("gpqa_diamond")
    protocol = {"verify": "mathruler", "prompt": "boxed", "verify.answer_after": "last_think", "n": 1}
    found = resolve(task, protocol, {})
    assert (found.verify, found.prompt, found.verify_options) == ("choice", None, {"answer_after": "last_think"})
    named = resolve(task, {**protocol, "tasks": {"gpqa_diamond": {"verify": "exact", "prompt": "boxed"}}}, {})
    assert (named.verify, named.prompt) == ("exact", "boxed")


# prompts


def prompt_of(protocol: str | None, template: str | None, given: dict[str, Any] | None = None, own: Any = None) -> str:
    task = task_of("math500")
    settings = resolve(task, protocol_of(protocol) if protocol else None, given or {}, own)
    model = EvalModel("m", "m", prompt=Prompt("own", "text", "{question}"))
    return chosen_prompt(task, settings, model, SimpleNamespace(chat_template=template)).name


def test_a_protocol_s_prompts_stand_in_for_the_task_s() -> None:
    assert (prompt_of(None, "chat"), prompt_of(None, None)) == ("boxed", "boxed_text")
    assert (prompt_of("deepcompress", "chat"), prompt_of("deepcompress", None)) == ("simplerl", "orz")
    assert (prompt_of("seele", "chat"), prompt_of("seele", None)) == ("boxed", "r1_zero")


def test_a_run_s_own_prompt_and_one_that_is_asked_for_come_first() -> None:
    assert prompt_of("deepcompress", "chat", own={"prompt": "run:own"}) == "run:own"
    assert prompt_of("deepcompress", None, given={"prompt": "r1_zero"}) == "r1_zero"
    assert prompt_of("deepcompress", "chat", given={"prompt": "orz"}, own={"prompt": "run:own"}) == "orz"


def test_prompts_by_template_are_a_protocol_s_alone() -> None:
    with pytest.raises(ConfigError, match="Unknown key 'chat_prompt' of reasonrl eval; did you mean"):
        read_settings(["model=tiny", "task=gsm8k", "chat_prompt=simplerl"])
