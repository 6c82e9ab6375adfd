r"""Reference solutions whose own answer is not the gold: as hints they would lead a model astray, so they go.

The stated answer is what the verifier would read in a response (`\boxed`, `<answer>`, `#### 72`, by the rules of
`verify/extract.py`); a solution that states none is kept. Most answers are compared at once; the rest goes to the
verifier's worker processes, which are killed at a deadline and start only when there is something to compare.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reasonrl.data.items import DataError, Item, step_text
from reasonrl.data.steps import HEADING
from reasonrl.verify import checkers
from reasonrl.verify.extract import extract_answer

if TYPE_CHECKING:  # the pool is imported only when there is something to compare in it
    from reasonrl.verify.pool import Verdict

CHECKER = "either"  # the most lenient that compares mathematics, and option letters before it
SECONDS = 5.0  # for one comparison, tried twice; as long as Math-Verify's own alarm
SHOWN = 60  # characters of an answer in a message


def wrong_traces(items: Sequence[Item]) -> dict[int, str]:
    """Index of each item whose solution states another answer than the gold -> "'5' instead of '7'".

    An answer that cannot be compared (no verdict in `SECONDS`, twice) is not the gold either. Raises DataError when the
    checkers do not work here.
    """
    stated = {i: answer for i, item in enumerate(items) if (answer := stated_answer(item.steps)) is not None}
    verdicts = {i: _at_once(answer, items[i].answer.strip()) for i, answer in stated.items()}
    wrong = {i: "" for i, right in verdicts.items() if right is False}
    undecided = [i for i, right in verdicts.items() if right is None]
    for i, verdict in zip(undecided, _in_workers([items[i] for i in undecided]), strict=True):
        if not verdict.correct:
            wrong[i] = f" ({verdict.message})" if verdict.message else ""
    return {i: f"{_short(stated[i])} instead of {_short(items[i].answer)}{wrong[i]}" for i in sorted(wrong)}


def stated_answer(steps: Sequence[str]) -> str | None:
    """The final answer that the steps state, or None. A Markdown heading of four hashes states none."""
    return extract_answer(_text(steps)) if steps else None


def _text(steps: Sequence[str]) -> str:
    return HEADING.sub("", "".join(map(step_text, steps)))


def _at_once(stated: str, gold: str) -> bool | None:
    return checkers.choice(stated, gold) or checkers.quick(CHECKER, stated, gold)


def _in_workers(items: Sequence[Item]) -> "list[Verdict]":
    """Verdicts of worker processes. Where there was none, the machine may have been busy: asked once more."""
    verdicts = _asked(items)
    again = [i for i, verdict in enumerate(verdicts) if verdict.status != "ok"]
    for i, verdict in zip(again, _asked([items[i] for i in again]), strict=True):
        verdicts[i] = verdict
    return verdicts


def _asked(items: Sequence[Item]) -> "list[Verdict]":
    if not items:
        return []
    from reasonrl.verify.pool import Verifier, VerifierError, VerifyConfig

    try:
        with Verifier(VerifyConfig(CHECKER, timeout=SECONDS)) as verifier:
            verifier.warm_up()
            return verifier.verify_many([(_text(item.steps), item.answer) for item in items])
    except VerifierError as error:
        raise DataError(
            f"cannot compare the answers that the solutions state with the gold answers: {error}. "
            "steps=none leaves the solutions out (data.steps=none in a run)"
        ) from error


def _short(answer: str) -> str:
    return repr(answer if len(answer) <= SHOWN else answer[: SHOWN - 3] + "...")
