"""Procedural arithmetic: questions such as `12+34-5=?`, graded by their number of terms, with every step written out.

Made on the fly, so nothing is downloaded and any amount exists. Three promises:
- a question belongs to one split for ever (a hash of its text), so training and validation never overlap, whatever
  sizes and seeds are asked for;
- one call never yields a question twice, and the same arguments yield the same items on any machine;
- every total on the way is a whole number >= 0, so digits and operators suffice to write everything.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reasonrl.data.items import Item

SPLIT_BUCKETS = {"train": range(2, 16), "validation": range(1), "test": range(1, 2)}  # of 16 hash buckets
OPERATIONS = "+-*"
STYLES = ("short", "restate", "check")
OPENINGS = ("find", "now", "take")  # how a restated line begins
APPROVALS = ("ok", "yes", "good")  # how a check ends; both drawn at random, so that lengths vary within a style too
INVERSE = {"+": "-", "-": "+", "*": "/"}


class Step(NamedTuple):
    """One operation carried out: `left op right = result`, or `~` when the result is rounded."""

    left: int
    operation: str
    right: int
    result: int
    relation: str = "="

    def __str__(self) -> str:
        return f"{self.left}{self.operation}{self.right}{self.relation}{self.result}"

    @property
    def check(self) -> str:
        """The same fact backwards. It only copies numbers already written, so it cannot find a mistake."""
        return f"{self.result}{INVERSE[self.operation]}{self.right}{self.relation}{self.left}"


def items(
    split: str,
    size: int,
    seed: int,
    *,
    min_terms: int = 2,
    max_terms: int = 4,
    digits: int = 2,
    operations: str = "+-",
) -> Iterator[Item]:
    """Yield `size` distinct problems of `split`, levels in turn: 1 has `min_terms` numbers, the last `max_terms`.

    More `max_terms` or `digits` make the set harder and larger; `operations` is any choice of `+-*`, and `*` binds
    tighter. When a level has no questions left, the other levels fill its place. All items are made before the first
    is yielded, so a `size` that is too large fails at once.
    """
    _check(split, size, min_terms, max_terms, digits, operations)
    levels = [_Level(terms, digits, operations) for terms in range(min_terms, max_terms + 1)]
    streams = [level.items(split, number, seed) for number, level in enumerate(levels, 1)]
    in_turn = (item for row in zip_longest(*streams) for item in row if item is not None)
    made = [item for item, _ in zip(in_turn, range(size), strict=False)]
    if len(made) < size:
        raise ValueError(
            f"data=arithmetic has {len(made)} distinct {split} questions with {min_terms} to {max_terms} terms of "
            f"{digits} digit(s) and operations {operations!r}, but {size} were asked for: "
            f"lower the size, or raise max_terms or digits"
        )
    return iter(made)


def split_of(question: str) -> str:
    """The split to which this question belongs, for any size and seed."""
    bucket = zlib.crc32(question.encode()) % 16
    return next(name for name, buckets in SPLIT_BUCKETS.items() if bucket in buckets)


def solve(numbers: Sequence[int], operations: Sequence[str]) -> list[Step] | None:
    """The steps that reduce the expression to one number, products first; None when a total falls below zero."""
    left, todo, steps = list(numbers), list(operations), []
    while todo:
        step = _next_step(left, todo)
        if step.result < 0:
            return None
        steps.append(step)
    return steps


def estimate(numbers: Sequence[int], operations: Sequence[str]) -> list[Step]:
    """As `solve`, but every result is rounded to tens (half upwards, never below 0) before it is used further."""
    left, todo, steps = list(numbers), list(operations), []
    while todo:
        steps.append(_next_step(left, todo, rounded=True))
    return steps


def _next_step(numbers: list[int], operations: list[str], rounded: bool = False) -> Step:
    """Carry out one operation and shorten both lists by it."""
    k = _next_index(operations)
    operation, a, b = operations.pop(k), numbers[k], numbers.pop(k + 1)
    result = a + b if operation == "+" else a - b if operation == "-" else a * b
    if rounded:
        result = max(0, (result + 5) // 10 * 10)
    numbers[k] = result
    return Step(a, operation, b, result, "~" if rounded else "=")


def _next_index(operations: Sequence[str]) -> int:
    return operations.index("*") if "*" in operations else 0


def trace(problem: Item, style: str, rng: np.random.Generator, *, estimated: bool = False) -> str:
    r"""A worked answer that ends in `\boxed{...}`, in one of `STYLES`; `rng` draws the wording.

    `short` is the item's own steps; `restate` copies what is left to do before every step; `check` turns every step
    round again. The long styles hold no more information than the short one: they cost tokens only.
    `estimated` rounds on the way (`12+34~50`): true as an estimate, and as the answer usually wrong. The embedded model
    is taught this habit beside the exact one, to have something that reinforcement learning can cure.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown trace style {style!r}. Choices: {', '.join(STYLES)}")
    numbers, operations = parse(problem.question)
    steps = (estimate if estimated else solve)(numbers, operations) or []
    match style:
        case "short":
            lines = [str(step) for step in steps]
        case "check":
            lines = [f"{step}, check {step.check} {APPROVALS[rng.integers(len(APPROVALS))]}" for step in steps]
        case _:
            lines = list(_restated(numbers, operations, steps, rng))
    return "\n".join([*lines, rf"\boxed{{{steps[-1].result}}}"])


def _restated(
    numbers: list[int], operations: list[str], steps: Sequence[Step], rng: np.random.Generator
) -> Iterator[str]:
    for step in steps:
        yield f"{OPENINGS[rng.integers(len(OPENINGS))]} {_expression(numbers, operations)}: {step}"
        k = _next_index(operations)
        numbers[k : k + 2], operations[k : k + 1] = [step.result], []


def parse(question: str) -> tuple[list[int], list[str]]:
    """The numbers and operations of a question made here: `12+34-5=?` gives `[12, 34, 5], ["+", "-"]`."""
    if not re.fullmatch(r"\d+([-+*]\d+)+=\?", question):
        raise ValueError(f"not a question of data=arithmetic: {question!r} (expected the form 12+34-5=?)")
    return [int(n) for n in re.findall(r"\d+", question)], re.findall(r"[-+*]", question)


def _expression(numbers: Sequence[int], operations: Sequence[str]) -> str:
    return "".join(f"{n}{o}" for n, o in zip(numbers, [*operations, ""], strict=True))


@dataclass(frozen=True)
class _Level:
    """All questions with one number of terms, addressed by a whole number below `candidates`."""

    terms: int
    digits: int
    operations: str

    @property
    def candidates(self) -> int:
        return int(self._numbers**self.terms * len(self.operations) ** (self.terms - 1))

    @property
    def _numbers(self) -> int:
        return int(10**self.digits - 10 ** (self.digits - 1))  # 1..9, 10..99, ...: no leading zero, no zero

    def items(self, split: str, level: int, seed: int) -> Iterator[Item]:
        buckets = SPLIT_BUCKETS[split]
        rng = np.random.default_rng([seed, self.terms, self.digits, len(self.operations)])
        for indices in _every_index_once(self.candidates, rng):
            for numbers, operations in zip(*self._decode(indices), strict=True):
                question = _expression(numbers, operations) + "=?"
                if zlib.crc32(question.encode()) % 16 not in buckets:
                    continue
                if steps := solve(numbers, operations):
                    yield Item(
                        question=question,
                        answer=str(steps[-1].result),
                        steps=tuple(map(str, steps)),
                        source="arithmetic",
                        id=f"arithmetic/{question}",
                        level=float(level),
                    )

    def _decode(self, indices: NDArray[np.uint64]) -> tuple[list[list[int]], list[list[str]]]:
        rest, numbers, operations = indices, [], []
        for _ in range(self.terms):
            rest, digit = np.divmod(rest, self._numbers)
            numbers.append(digit + 10 ** (self.digits - 1))
        for _ in range(self.terms - 1):
            rest, digit = np.divmod(rest, len(self.operations))
            operations.append(np.array(list(self.operations))[digit.astype(np.int64)])
        return np.stack(numbers, axis=1).tolist(), np.stack(operations, axis=1).tolist()


def _every_index_once(n: int, rng: np.random.Generator, chunk: int = 4096) -> Iterator[NDArray[np.uint64]]:
    """0 .. n-1 in a random order without holding it: a four-round Feistel permutation, skipping what is >= n."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    mix: list[Callable[[NDArray[np.uint64]], NDArray[np.uint64]]] = [
        lambda x, key=key: ((x ^ key) * np.uint64(0x9E3779B97F4A7C15)) >> (np.uint64(64) - half)  # type: ignore[misc]
        for key in rng.integers(0, 2**63, size=4, dtype=np.uint64)
    ]
    for start in range(0, 1 << (2 * int(half)), chunk):
        x = np.arange(start, min(start + chunk, 1 << (2 * int(half))), dtype=np.uint64)
        high, low = x >> half, x & mask
        for f in mix:
            high, low = low, high ^ f(low)
        shuffled = (high << half) | low
        yield shuffled[shuffled < n]


def _check(split: str, size: int, min_terms: int, max_terms: int, digits: int, operations: str) -> None:
    if split not in SPLIT_BUCKETS:
        raise ValueError(f"Unknown split {split!r}. Choices: {', '.join(SPLIT_BUCKETS)}")
    if size < 0:
        raise ValueError(f"size must be >= 0, got {size}")
    if not 2 <= min_terms <= max_terms:
        raise ValueError(f"need 2 <= min_terms <= max_terms, got min_terms={min_terms}, max_terms={max_terms}")
    if digits < 1:
        raise ValueError(f"digits must be >= 1, got {digits}")
    if not operations or set(operations) - set(OPERATIONS) or len(set(operations)) < len(operations):
        raise ValueError(f"operations must be different characters of {OPERATIONS!r}, got {operations!r}")
    largest = _Level(max_terms, digits, operations).candidates
    if largest > 2**62:
        raise ValueError(f"max_terms={max_terms} and digits={digits} give {largest:.1e} questions: lower one of them")
