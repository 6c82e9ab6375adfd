"""Plain GRPO: what it pays, what it compares, and its degenerate groups."""

from __future__ import annotations

import numpy as np
import pytest
from builders import group

from reasonrl.core import Ledger, assign_credit, make
from reasonrl.methods.grpo import build
from reasonrl.parts.advantages import RLOO


def test_golden_numbers() -> None:
    # rewards 1, 0, 0, 0: mean .25, sample deviation .5; .75 / .500001 = 1.499997, -.25 / .500001 = -.499999
    credit = assign_credit(build(n=4), [group([1, 0, 0, 0], [4, 3, 2, 1])], Ledger())
    assert [float(row[0]) for row in credit.advantages[0]] == pytest.approx(
        [1.499997, -0.499999, -0.499999, -0.499999], abs=1e-6
    )
    assert [row.size for row in credit.advantages[0]] == [4, 3, 2, 1]


def test_length_does_not_matter() -> None:
    short, long = (assign_credit(build(), [group([1, 0], n)], Ledger()) for n in ([1, 2], [300, 4]))
    np.testing.assert_array_equal(short.rewards[0], long.rewards[0])


def test_advantages_ignore_a_shift_of_the_reward() -> None:
    from reasonrl.parts.rewards import Correctness

    plain = assign_credit(build(), [group([1, 0, 0])], Ledger())
    shifted = assign_credit(build(reward=Correctness(-5.0, -4.0)), [group([1, 0, 0])], Ledger())
    for row, other in zip(plain.advantages[0], shifted.advantages[0], strict=True):
        np.testing.assert_allclose(row, other, atol=1e-9)


@pytest.mark.parametrize("scores", [[1] * 8, [0] * 8, [0]])
def test_groups_that_agree_teach_nothing(scores) -> None:
    credit = assign_credit(build(), [group(scores)], Ledger())
    assert not any(row.any() for row in credit.advantages[0])


def test_defaults_and_replaced_parts() -> None:
    method = build()
    assert (method.prefix.n, method.overlong, method.loss.aggregation) == (8, None, "seq-mean-token-mean")
    assert build(advantage=RLOO()).advantage == RLOO()
    with pytest.raises(ValueError, match=r"no knob 'clip'. Did you mean"):
        make(build, {"clip": 0.2})
