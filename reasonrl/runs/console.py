"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reasonrl.runs.folder import RunFolder


class Progress:
    """One line a step: step, accuracy, tokens, reward, seconds, time left. Works in a pipe as in a terminal."""

    def __init__(self, console: Console, steps: int, done: int = 0) -> None:
        self.console, self.steps, self.first = console, steps, done
        self.started = self.previous = time.monotonic()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if "val/acc" in metrics:
            correct = f", {metrics['val/tokens_correct']:.1f} when right" if "val/tokens_correct" in metrics else ""
            self.console.print(
                f"[bold]validation[/bold] at step {step}: accuracy {metrics['val/acc']:.1%}, "
                f"tokens {metrics['val/tokens']:.1f}{correct}"
            )
        if "score/mean" not in metrics:
            self.started = self.previous = time.monotonic()  # the validation before the first step
            return
        now = time.monotonic()
        made = step - self.first
        left = (now - self.started) / made * (self.steps - step)
        self.console.print(
            f"step {step:>{len(str(self.steps))}}/{self.steps}  accuracy {metrics['score/mean']:6.1%}  "
            f"tokens {metrics['length/mean']:7.1f}  reward {metrics['reward/mean']:+.3f}  "
            f"{now - self.previous:5.1f} s  left {clock(left)}",
            highlight=False,
        )
        self.previous = now


def clock(seconds: float) -> str:
    """125 -> 2:05"""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(folder: RunFolder, console: Console, seconds: float) -> None:
    """Before and after as a table, and where everything lies."""
    frame = folder.metrics()
    validated = frame[frame["val/acc"].notna()] if "val/acc" in frame else frame.iloc[:0]
    table = Table(title=f"{folder.path.name}: {int(frame.index.max())} steps in {clock(seconds)}")
    for name in ("validation", "before", "after", "change"):
        table.add_column(name, justify="left" if name == "validation" else "right")
    for name, key, shape in (
        ("accuracy", "val/acc", "{:.1%}"),
        ("tokens", "val/tokens", "{:.1f}"),
        ("tokens of right answers", "val/tokens_correct", "{:.1f}"),
        ("cut at the limit", "val/cut", "{:.1%}"),
    ):
        if key in validated and len(validated) > 1:
            before, after = validated[key].iloc[0], validated[key].iloc[-1]
            change = f"{(after - before) * 100:+.1f} pt" if "%" in shape else f"{after - before:+.1f}"
            table.add_row(name, shape.format(before), shape.format(after), change)
    if len(validated) > 1:
        console.print(table, soft_wrap=False)
    curves = draw_curves(frame, folder.path / "curves.png", title=folder.path.name)
    console.print(
        f"run folder: {folder.path}" + (f"   curves: {curves}" if curves else ""), highlight=False, markup=False
    )


def draw_curves(frame: Any, path: Path, *, title: str) -> Path | None:
    """Accuracy and length against steps as a PNG; None when there is nothing to draw."""
    if "score/mean" not in frame:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    smooth = frame["score/mean"].rolling(5, min_periods=1).mean()
    left.plot(frame.index, frame["score/mean"], color="tab:blue", alpha=0.25)
    left.plot(frame.index, smooth, color="tab:blue", label="training rollouts")
    if "val/acc" in frame:
        points = frame["val/acc"].dropna()
        left.plot(points.index, points, "o-", color="tab:orange", label="validation")
    left.set(xlabel="step", ylabel="accuracy", ylim=(0, 1))
    left.legend()
    for key, label, colour in (
        ("length/correct", "right", "tab:green"),
        ("length/wrong", "wrong", "tab:red"),
    ):
        if key in frame:
            right.plot(frame.index, frame[key].rolling(5, min_periods=1).mean(), color=colour, label=label)
    if "val/tokens_correct" in frame:
        points = frame["val/tokens_correct"].dropna()
        right.plot(points.index, points, "o-", color="tab:orange", label="validation, right")
    right.set(xlabel="step", ylabel="tokens", ylim=(0, None))
    if right.get_legend_handles_labels()[0]:  # a run can be all cut, or recorded before any answer was right
        right.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
