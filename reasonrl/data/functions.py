"""Procedural programming problems: "Write a Python function f(x) that returns 3*x - 7.", with tests, nothing downloaded.

Made like `arithmetic`: a question belongs to one split for ever, one call yields no question twice, and the same
arguments yield the same items on any machine. A level is a shape of expression, each needs one more idea than the last.
The tests are values of the expression at numbers that the question does not show.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.data.arithmetic import SPLIT_BUCKETS
from reasonrl.data.items import Item
from reasonrl.data.programs import solution_in
from reasonrl.verify.code import code_answer

if TYPE_CHECKING:
    from reasonrl.data.sources import DataConfig

Numbers = tuple[int, int, int]
Value = Callable[[int, Numbers], int]
# what is to be returned, as Python, and its value at x; the numbers are 2 to 99
SHAPES: tuple[tuple[str, Value], ...] = (
    ("{0}*x + {1}", lambda x, n: n[0] * x + n[1]),
    ("{0}*x - {1}", lambda x, n: n[0] * x - n[1]),
    ("x*x + {0}*x - {1}", lambda x, n: x * x + n[0] * x - n[1]),
    ("({0}*x + {1}) % {2}", lambda x, n: (n[0] * x + n[1]) % n[2]),
    ("max({0}*x, {1}) + {2}", lambda x, n: max(n[0] * x, n[1]) + n[2]),
    ("abs(x - {0}) * {1} - x // {2}", lambda x, n: abs(x - n[0]) * n[1] - x // n[2]),
)
MOST = {"train": 6000, "validation": 400, "test": 400}  # of a level: the smallest has 9,604, one in 16 of validation
AT = (-13, -2, 0, 1, 5, 8, 21, 144)  # arguments of the tests
QUESTION = "Write a Python function f(x) that returns {}, for a whole number x."


def items(
    split: str, size: int, seed: int, *, min_level: int = 1, max_level: int = len(SHAPES), how: str | None = None
) -> Iterator[Item]:
    """Yield `size` distinct problems of `split`, levels in turn. Raises ValueError for arguments out of range."""
    if split not in SPLIT_BUCKETS:
        raise ValueError(f"Unknown split {split!r}. Choices: {', '.join(SPLIT_BUCKETS)}")
    if not 1 <= min_level <= max_level <= len(SHAPES):
        raise ValueError(f"need 1 <= min_level <= max_level <= {len(SHAPES)}, got {min_level} and {max_level}")
    most = MOST[split] * (max_level - min_level + 1)
    if not 0 <= size <= most:
        raise ValueError(
            f"data=functions has at most {most} {split} questions with these levels, but {size} were asked for: lower the "
            "size, or raise max_level"
        )
    rng = np.random.default_rng([seed, *b"functions"])
    seen: set[str] = set()
    for level, _ in zip(itertools.cycle(range(min_level, max_level + 1)), range(size), strict=False):
        while True:
            numbers: Any = tuple(int(n) for n in rng.integers(2, 100, size=3))
            expression = SHAPES[level - 1][0].format(*numbers)
            bucket = zlib.crc32(expression.encode()) % 16
            if expression not in seen and bucket in SPLIT_BUCKETS[split]:
                break
        seen.add(expression)
        yield _item(expression, numbers, level, how)


def _item(expression: str, numbers: Numbers, level: int, how: str | None) -> Item:
    value = SHAPES[level - 1][1]
    tests = [f"assert f({x}) == {value(x, numbers)}" for x in AT]
    return Item(
        question=QUESTION.format(expression),
        answer=code_answer("mbpp", tests=tests),
        steps=solution_in(f"def f(x):\n    return {expression}", how),
        source="functions",
        id=f"functions/{expression}",
        level=float(level),
    )


def from_config(config: DataConfig, split: str, size: int | None) -> Iterator[Item]:
    """`items` for a configuration."""
    low, high = config.min_level or 1, config.max_level or len(SHAPES)
    for name, level in (("min_level", low), ("max_level", high)):
        if level != int(level):
            raise ValueError(f"data.{name} must be a whole number, got {level}")
    return items(split, size or 1024, config.seed, min_level=int(low), max_level=int(high), how=config.steps)
