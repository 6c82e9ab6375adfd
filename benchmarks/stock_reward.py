"""The reward function that plain verl calls in `overhead.py`: the same extraction and comparison as ours."""

from __future__ import annotations

from typing import Any

from reasonrl.verify.checkers import quick
from reasonrl.verify.extract import extract_answer


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """1.0 when the last box holds the answer. Integers only, which are compared without a library on both sides."""
    extracted = extract_answer(solution_str)
    return float(extracted is not None and bool(quick("either", extracted, ground_truth)))
