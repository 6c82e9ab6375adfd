"""What a test-time run says at its end: curves over attempts and tokens, with intervals over questions.

    B attempts at most, Q questions, S seeds

acc@k is the share of questions with a right answer among their first k charged attempts. Where only the verifier's word says
which attempt that is, it is a coverage and is called so. A question's value is its mean over seeds; intervals are over
questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.eval.tts.base import PHASES, Trace, voted
from reasonrl.functional.choice import best
from reasonrl.functional.estimates import share_interval

if TYPE_CHECKING:
    from rich.table import Table

    from reasonrl.eval.tts.hard import HardSet

POINTS = 8  # of the curve over tokens


def solved_by(traces: Sequence[Trace], k: int) -> np.ndarray:
    """(Q,) 1 where one of the first k charged attempts is right."""
    firsts = [trace.first_correct for trace in traces]
    return np.array([first is not None and first <= k for first in firsts], dtype=np.float64)


def voted_by(traces: Sequence[Trace], k: int, *, raw: bool = False, programs: bool = False) -> np.ndarray:
    """(Q,) 1 where the vote of the first k charged attempts is right."""
    found = np.zeros(len(traces))
    for row, trace in enumerate(traces):
        first = [each for each in trace.attempts if 0 < each.number <= k]
        chosen = voted([each.extracted for each in first], raw=raw, programs=programs)
        found[row] = chosen is not None and first[chosen].verdict == "correct"
    return found


def selected_by(traces: Sequence[Trace], k: int) -> np.ndarray:
    """(Q,) 1 where the attempt that a reward model likes best of the first k charged ones is right."""
    found = np.zeros(len(traces))
    for row, trace in enumerate(traces):
        first = [i for i, each in enumerate(trace.attempts) if 0 < each.number <= k]
        chosen = best([trace.notes.get("scores", [])[i] for i in first]) if "scores" in trace.notes else None
        found[row] = chosen is not None and trace.attempts[first[chosen]].verdict == "correct"
    return found


def sizes(most: int) -> list[int]:
    """The k of a curve: powers of two, and the budget."""
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})


def interval(rows: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean over seeds and questions. rows: S of (Q,)."""
    found = share_interval(np.mean(rows, axis=0))
    return {name: round(value, 10) for name, value in asdict(found).items()}


def over_tokens(seeds: Sequence[Sequence[Trace]]) -> list[dict[str, float]]:
    """Share of questions with a right attempt once a question was given so many tokens, reflections included."""
    costs = [cost_of_first(trace, "tokens") for traces in seeds for trace in traces]
    return curve(costs, [float(trace.tokens) for traces in seeds for trace in traces], "tokens")


def over_seconds(seeds: Sequence[Sequence[Trace]]) -> list[dict[str, float]]:
    """The same over its share of the model's time."""
    costs = [cost_of_first(trace, "seconds") for traces in seeds for trace in traces]
    return curve(costs, [trace.seconds for traces in seeds for trace in traces], "seconds")


def cost_of_first(trace: Trace, unit: str) -> float | None:
    """What was spent up to the first right attempt; None without one."""
    spent = 0.0
    for each in trace.attempts:
        spent += getattr(each, unit)
        if each.verdict == "correct":
            return spent
    return None


def curve(costs: Sequence[float | None], spent: Sequence[float], unit: str) -> list[dict[str, float]]:
    """Points at halvings of the most that a question was given."""
    most = max(spent, default=0.0)
    points = [most / 2**halvings for halvings in reversed(range(POINTS))] if most else []
    return [
        {unit: round(at, 4), "share": sum(cost is not None and cost <= at + 1e-9 for cost in costs) / len(costs)}
        for at in points
    ]


def summary(
    seeds: Mapping[int, Sequence[Trace]],
    *,
    budget: int,
    votes: bool,
    raw: bool = False,
    programs: bool = False,
    hard: HardSet | None = None,
    hard_of_base: bool = False,
) -> dict[str, Any]:
    """The numbers of results.json. No times: a run that was killed and continued gives the same.

    votes: the method's own choice is a vote. programs: answers are programs. Raises ValueError without a question.
    """
    runs = list(seeds.values())
    if not runs or not runs[0]:
        raise ValueError("no question was asked")
    flat = [trace for traces in runs for trace in traces]
    oracle = any(trace.oracle for trace in flat)
    solved = [np.array([trace.solved for trace in traces], dtype=np.float64) for traces in runs]
    found: dict[str, Any] = {
        "questions": len(runs[0]),
        "seeds": list(seeds),
        "oracle": oracle,
        "score": {"name": f"coverage@{budget}" if oracle else "accuracy", **interval(solved)},
        "coverage": {str(k): interval([solved_by(traces, k) for traces in runs]) for k in sizes(budget)},
    }
    if votes:
        found["vote"] = {
            str(k): interval([voted_by(traces, k, raw=raw, programs=programs) for traces in runs])
            for k in sizes(budget)
        }
    if any("scores" in trace.notes for trace in flat):
        found["selected"] = {str(k): interval([selected_by(traces, k) for traces in runs]) for k in sizes(budget)}
        found["unscored"] = sum(score is None for trace in flat for score in trace.notes.get("scores", ()))
    if hard is not None:
        share = float(np.mean(solved))
        # of a base's hard set nobody knows what this model does on the other questions
        whole = len(runs[0]) == len(hard.ids) and not hard_of_base
        found["hard"] = {
            "questions": len(hard.ids),
            "of": hard.questions,
            "greedy_correct": hard.greedy_correct,
            "of_base": hard_of_base,
            "full_accuracy": full_share(hard, share * len(runs[0])) if whole else None,
        }
    attempts = [each for trace in flat for each in trace.attempts]
    phases = Counter(each.phase for each in attempts)
    charged = sum(each.number > 0 for each in attempts)
    found["spent"] = {
        "generations": len(attempts),
        **{phase: phases[phase] for phase in PHASES},
        "charged": charged,
        "charged_a_question": charged / len(flat),
        "tokens": sum(each.tokens for each in attempts),
        "tokens_a_question": sum(each.tokens for each in attempts) / len(flat),
        "prompt_tokens": sum(each.prompt_tokens for each in attempts),
        "steps": sum(trace.notes.get("steps", 0) for trace in flat),
    }
    found["over_tokens"] = over_tokens(runs)
    found["verdicts"] = dict(sorted(Counter(each.verdict for each in attempts).items()))
    found["stops"] = dict(sorted(Counter(trace.stop for trace in flat).items()))
    return found


def full_share(hard: HardSet, solved: float) -> float:
    """Right answers of the whole set: those of greedy decoding and those that were solved on the hard set."""
    return (hard.greedy_correct + solved) / hard.questions


def told(found: Mapping[str, Any]) -> Table:
    """The curves for the terminal."""
    from rich.text import Text

    from reasonrl.eval.table import narrow, percent

    curves = ["coverage", *(name for name in ("vote", "selected") if name in found)]
    level = f"{100 * found['score']['level']:g} %"
    table = narrow("", ["k", *(f"{name}@k ({level})" for name in curves)], [])
    table.title = None
    for k in found["coverage"]:
        cells = [found[name][k] for name in curves]
        shown = [f"{percent(c['estimate'])} ({100 * c['low']:.1f}–{100 * c['high']:.1f})" for c in cells]
        table.add_row(*(Text(cell) for cell in (k, *shown)))
    return table


def legend(found: Mapping[str, Any], timing: Mapping[str, Any] | None = None) -> list[str]:
    """What the curves do not say: the score, what it means, what it cost."""
    score, spent = found["score"], found["spent"]
    runs = f"{found['questions']:,} questions" + (f" x {len(found['seeds'])} seeds" if len(found["seeds"]) > 1 else "")
    lines = [
        f"{score['name']} {score['estimate']:.1%} ({100 * score['low']:.1f}–{100 * score['high']:.1f}) of {runs}; "
        f"{spent['charged_a_question']:.1f} attempts and {spent['tokens_a_question']:,.0f} tokens a question"
    ]
    if found["oracle"]:
        lines.append("the verifier's word chose: a coverage, no accuracy")
    if (full := found.get("hard", {}).get("full_accuracy")) is not None:
        lines.append(f"with greedy decoding's right answers: {full:.1%} of all {found['hard']['of']:,}")
    if unscored := found.get("unscored"):
        lines.append(f"{unscored} attempts could not be scored and were not chosen")
    if unknown := found["verdicts"].get("error"):
        lines.append(f"{unknown} attempts could not be verified (verdict error), and count as not right")
    if failed := found["stops"].get("failed"):
        lines.append(f"{failed} questions failed and count as not solved; why: notes in traces/")
    if too_long := found["stops"].get("prompt_too_long"):
        lines.append(f"{too_long} prompts fill the context and count as not solved")
    sessions = (timing or {}).get("sessions") or ()
    if sessions:
        seconds = sum(each["seconds"]["run"] for each in sessions)
        tokens = sum(each["tokens"] for each in sessions)
        rounds = sum(each["rounds"] for each in sessions)
        rate = f", {tokens / seconds:,.0f} tokens a second" if seconds else ""
        lines.append(f"{seconds:,.0f} s in {rounds:,} rounds{rate}")
    return lines
