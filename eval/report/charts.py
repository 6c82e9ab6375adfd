"""Where the marks of the page's charts stand; the template draws them.

Drawn by hand instead of by a plotting library: a bar is a rectangle, the colours follow the reader's light or dark theme,
every mark carries its numbers as a tooltip, and a chart has 3 to 8 kB. Matplotlib's SVG has 25 to 60 kB and one theme.

N samples of a task
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 460.0  # of a chart's own units, shown at 300 to 600 pixels
LEFT, RIGHT = 48.0, 452.0  # of the plotted area
ACCURACY_TOP, ACCURACY_BOTTOM = 26.0, 200.0
PANEL_HEIGHT, PANEL_GAP = 46.0, 22.0
BINS = 32
WIDE = 32.0  # lengths that span more than this factor are drawn on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Tokens from `low` to `high`, both above 0 when `log`, between LEFT and RIGHT."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Position of `value`; what lies outside is put at the end."""
        low, high, here = (self.low, self.high, min(max(value, self.low), self.high))
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return round(LEFT + (RIGHT - LEFT) * (here - low) / (high - low), 2)

    def ticks(self, at_most: int = 6) -> list[Tick]:
        """At most `at_most` round values: powers of 2 when `log`, else multiples of 1, 2 or 5."""
        if self.log:
            powers = range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)
            values = [2.0**power for power in powers[:: math.ceil(len(powers) / at_most) or 1]]
        else:
            step = round_step((self.high - self.low) / (at_most - 1))
            first = math.ceil(self.low / step)
            values = [step * i for i in range(first, math.floor(self.high / step) + 1)]
        return [Tick(self.at(value), f"{value:,.0f}") for value in values]


def round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `least`."""
    power: int = 10 ** max(0, math.floor(math.log10(max(least, 1.0))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def token_axis(tokens: NDArray[np.int64]) -> Axis:
    """The axis that both charts of a task share. tokens: (N,)"""
    some = tokens[tokens > 0]
    if not some.size:
        return Axis(0.0, 1.0, log=False)
    low, high = float(some.min()), float(some.max())
    if high > WIDE * max(1.0, float(np.quantile(some, 0.05))):
        return Axis(low, high, log=True)
    return Axis(0.0, high, log=False)


@dataclass(frozen=True)
class Point:
    """One bin of lengths: a bar from `left` to `right` at the accuracy, a line from `bottom` to `top` of its interval."""

    left: float
    right: float
    y: float
    top: float | None
    bottom: float | None
    text: str


@dataclass(frozen=True)
class AccuracyChart:
    points: tuple[Point, ...]
    x: list[Tick]
    y: list[Tick]


def accuracy_chart(bins: Sequence[Mapping[str, Any]], axis: Axis) -> AccuracyChart:
    """Accuracy against tokens. bins: `length_bins` of results.json; empty ones are not drawn."""

    def height(share: float | None) -> float | None:
        return None if share is None else round(ACCURACY_BOTTOM - (ACCURACY_BOTTOM - ACCURACY_TOP) * share, 2)

    points = []
    for entry in bins:
        if not entry["samples"] or entry["accuracy"] is None:
            continue
        left, right = axis.at(entry["low"]), axis.at(entry["high"])
        middle = (left + right) / 2
        left, right = min(left, middle - 3), max(right, middle + 3)  # a bin of one length is a mark all the same
        low, high = entry["low_ci"], entry["high_ci"]
        told = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        points.append(
            Point(
                round(left, 2),
                round(right, 2),
                height(entry["accuracy"]) or 0.0,
                height(high),
                height(low),
                f"{_span(entry['low'], entry['high'])}: accuracy {100 * entry['accuracy']:.1f} %{told}, "
                f"{entry['samples']:,} samples",
            )
        )
    return AccuracyChart(
        tuple(points),
        axis.ticks(),
        [Tick(height(share / 100) or 0.0, str(share)) for share in (0, 25, 50, 75, 100)],
    )


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Panel:
    """The histogram of one kind of answers."""

    kind: str  # right | wrong | truncated
    count: int
    highest: int  # samples of the highest bar, its scale
    top: float
    bottom: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class LengthChart:
    panels: tuple[Panel, ...]
    x: list[Tick]
    height: float
    truncated_right: int  # answers that were right although they were cut


def length_chart(
    tokens: NDArray[np.int64], correct: NDArray[np.bool_], finished: NDArray[np.bool_], axis: Axis
) -> LengthChart:
    """Lengths of right, wrong and truncated answers, each on a scale of its own; every sample is in one of the three.

    Args:
        tokens, correct, finished: (N,), without those that were never asked.
        axis: of the tokens.
    """
    edges = bin_edges(axis)
    kinds = {"right": correct & finished, "wrong": ~correct & finished, "truncated": ~finished}
    panels = []
    for i, (kind, chosen) in enumerate(kinds.items()):
        counts = np.histogram(tokens[chosen], edges)[0]
        top = 16.0 + i * (PANEL_HEIGHT + PANEL_GAP)
        bottom, highest = top + PANEL_HEIGHT, int(counts.max(initial=0))
        bars = []
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
            if count:
                x, tall = axis.at(low), max(1.0, PANEL_HEIGHT * count / highest)
                wide = max(1.0, axis.at(high) - x - 0.5)
                text = f"{_span(low, high)}: {count:,} {kind}"
                bars.append(Bar(x, round(bottom - tall, 2), round(wide, 2), round(tall, 2), text))
        panels.append(Panel(kind, int(chosen.sum()), highest, top, bottom, tuple(bars)))
    return LengthChart(tuple(panels), axis.ticks(), panels[-1].bottom + 36.0, int((correct & ~finished).sum()))


def bin_edges(axis: Axis) -> NDArray[np.float64]:
    """Edges of at most BINS + 1 bins that hold every length of the axis; the last bin is closed."""
    if axis.log:
        edges = np.unique(
            np.floor(np.geomspace(axis.low, axis.high + 1, BINS + 1))
        )  # (bins + 1,) whole numbers of tokens
        return edges if edges.size > 1 else np.array([axis.low, axis.low + 1])
    step = round_step(axis.high / BINS)
    return np.arange(0.0, axis.high + 1 + step, step)


def _span(low: float, high: float) -> str:
    return f"{low:,.0f} tokens" if high - low < 1 else f"{low:,.0f} to {high:,.0f} tokens"
