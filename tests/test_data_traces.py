"""Solutions are held against the gold answer: wrong ones are found, hostile ones end, nothing is started in vain."""

import pytest

from reasonrl.data import traces
from reasonrl.data.items import DataError, Item
from reasonrl.data.traces import stated_answer, wrong_traces
from reasonrl.verify import checkers, pool


def item(gold: str, *steps: str) -> Item:
    return Item("q", gold, steps)


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no worker process is needed here")

    monkeypatch.setattr(pool, "Verifier", refuse)


@pytest.mark.parametrize(
    ("steps", "answer"),
    [
        (("a ", "so \\boxed{1}, no: ", "\\fbox{2}. ", "Done."), "2"),
        (("a", "<answer>so \\boxed{3}.</answer>"), "3"),
        (("a", "#### 1,234"), "1,234"),
        (("#### Step 1: add\n1+1", "#### **2. Check** it\n2-1", "#### 2"), "2"),
        (("#### Step 1: add\n1+1", "#### Check\n", "That is all."), None),
        (("a", "#### Paris"), "Paris"),  # nothing stands below it: no heading
        (("a", "The answer is 5."), None),  # free text states no answer, as in a response
        (("a", "\\boxed{4"), None),
        ((), None),
    ],
)
def test_the_stated_answer_is_what_the_verifier_would_read(steps: tuple[str, ...], answer: str | None) -> None:
    assert stated_answer(steps) == answer


@pytest.mark.usefixtures("no_workers")
def test_numbers_equal_texts_and_options_need_no_process() -> None:
    right = [
        item("1234", "a", "#### 1,234.0"),
        item("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}"),
        item("C", "\\boxed{\\text{(c) } 12}"),
        item("7", "No answer is stated: 8."),
        item("7"),
    ]
    assert wrong_traces(right) == {}
    wrong = [*right, item("7", "x", "#### 7.5"), item("8", "\\boxed{9} ", "and so on")]
    assert wrong_traces(wrong) == {5: "'7.5' instead of '7'", 6: "'9' instead of '8'"}
    assert wrong_traces([]) == {}


def test_mathematics_is_compared_in_worker_processes() -> None:
    found = wrong_traces(
        [
            item("0.5", "\\boxed{\\frac{1}{2}}"),
            item("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}"),
            item("(x+1)^2", "\\boxed{x^2+2x+1}"),
            item("7", f"\\boxed{{{'1+' * 1500}1}}"),
        ]
    )
    assert list(found) == [1, 3]
    assert found[1] == "'\\\\frac{1}{3}' instead of '\\\\frac{1}{2}'"
    assert found[3].startswith("'1+1+1+")
    assert found[3].endswith("...' instead of '7' (3001 characters; more than 2000 are never compared)")


def test_a_hostile_answer_ends_at_its_deadline_and_is_not_the_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "SECONDS", 0.5)
    found = wrong_traces([item("7", "\\boxed{9^{9^{9^{9}}}}")])
    assert found == {0: "'9^{9^{9^{9}}}' instead of '7' (no verdict in 0.5 s)"}


def test_an_answer_without_a_verdict_is_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Busy:
        """No verdict on the first of several answers."""

        def __init__(self, config: pool.VerifyConfig) -> None: ...
        def __enter__(self) -> "Busy":
            return self

        def __exit__(self, *_: object) -> None: ...
        def warm_up(self) -> None: ...

        def verify_many(self, pairs: list[tuple[str, str]]) -> list[pool.Verdict]:
            asked.append(len(pairs))
            right = [pool.Verdict(True, "1/2", "ok") for _ in pairs]
            return right if len(pairs) == 1 else [pool.Verdict(False, "1/2", "timeout", "late"), *right[1:]]

    monkeypatch.setattr(pool, "Verifier", Busy)
    assert wrong_traces([item("0.5", "\\boxed{1/2}")] * 3) == {}
    assert asked == [3, 1]


def test_without_the_checkers_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "missing_library", lambda checker: "math_verify")
    with pytest.raises(
        DataError, match=r"cannot compare the answers.*'math_verify'.*steps=none leaves the solutions out"
    ):
        wrong_traces([item("0.5", "\\boxed{\\frac{1}{2}}")])
