"""Test-time methods side by side: a table and curves, from the folders of `reasonrl tts`.

    python benchmarks/tts_table.py run tts/tiny                  # the methods on model=tiny task=arithmetic, budget 16
    python benchmarks/tts_table.py table tts/tiny --image docs/images/tts_curves.png

    python benchmarks/tts_table.py run tts/gsm8k --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --budget 8 --hard auto \\
        --limit 128 --methods greedy,best_of_n,self_consistency,revision,fttt,fttt_plus max_new_tokens=256 data_dir=data

What `run` is told beside its options (key=value) goes to every method. --arm 'label: key=value ...' adds one of one's own, or
replaces one of that name; optune needs --arm 'optune: method=optune method.editor=<folder>'. What is complete is not made
again; `table` also takes a folder of runs that were given out=<folder>/<label> by hand. A tuned model is an arm too, on its
base's hard set:

    --hard tts/hard/tiny-arithmetic.json --arm 'lora: method=best_of_n model=tuned/tiny-arithmetic-lora'

Columns: the share of questions solved with k attempts, a coverage where the verifier ends the search; then the share solved
when a question may cost T tokens, T being what an average question cost the first method there is of --equal; both with 95 %
intervals over questions. Beam search is one search of all its width, so its tokens are those of all beams, paid at once.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonrl.eval.tts.base import Attempt, Trace, voted
from reasonrl.eval.tts.folder import Seed
from reasonrl.eval.tts.results import interval
from reasonrl.functional.choice import best
from reasonrl.functional.estimates import difference_interval

ARMS: dict[str, list[str]] = {
    "greedy": ["method=greedy"],
    "revision": ["method=revision"],
    "beam_search": ["method=beam_search"],
    "best_of_n": ["method=best_of_n"],
    "self_consistency": ["method=self_consistency"],
    "self_refine": ["method=self_refine"],
    "fttt": ["method=fttt"],
    "fttt_plus": ["method=fttt", "method.plus=true"],
}
SETTINGS = "table.json"  # what `run` was told, in the folder
CURVES = {"vote": "vote", "selected": "chosen by a reward model", "coverage": "coverage"}
POINTS = 40  # of the curve over tokens


@dataclass(frozen=True)
class Run:
    """What a folder holds. traces: of each seed, the questions in one order."""

    label: str
    results: Mapping[str, Any]
    seconds: float
    traces: Sequence[Sequence[Trace]]

    @property
    def kind(self) -> str:
        """Which curve is the method's own: what chooses among its attempts."""
        return next((name for name in CURVES if name in self.results), "coverage")

    @property
    def measure(self) -> str:
        """What its numbers are called."""
        return CURVES[self.kind] if self.kind != "coverage" or self.results["oracle"] else "accuracy"

    @property
    def single(self) -> bool:
        """One attempt, whatever the budget."""
        return not self.results["oracle"] and self.kind == "coverage"

    @property
    def programs(self) -> bool:
        """Whether answers are programs, of which equal ones are one answer in a vote."""
        return bool(self.results["settings"].get(f"{self.results['task']}.checker") == "code")

    @property
    def solved(self) -> np.ndarray:
        """(Q,) of each question, the mean over seeds."""
        return np.mean([[float(trace.solved) for trace in traces] for traces in self.traces], axis=0)

    @property
    def tokens_a_question(self) -> float:
        return float(self.results["spent"]["tokens_a_question"])

    def at(self, k: int) -> Mapping[str, float] | None:
        """With k attempts; None where the method has no such number."""
        found: Mapping[str, float] | None = self.results[self.kind].get(str(k))
        return found if not self.single or k == 1 else None

    def within(self, tokens: float) -> dict[str, float]:
        """With so many tokens a question."""
        return interval([np.array([self._solved(trace, tokens) for trace in traces]) for traces in self.traces])

    def _solved(self, trace: Trace, tokens: float) -> float:
        whole = sum(each.tokens for each in trace.attempts) if self.results["method"]["name"] == "beam_search" else 0
        spent, kept = 0, []
        for index, each in enumerate(trace.attempts):
            spent += each.tokens
            if max(spent, whole) <= tokens:
                kept.append(index)
        some = [trace.attempts[i] for i in kept if trace.attempts[i].number > 0]
        if self.kind == "vote":
            raw = self.results["method"].get("raw_vote", False)
            chosen = voted([each.extracted for each in some], raw=raw, programs=self.programs)
            return float(chosen is not None and some[chosen].verdict == "correct")
        if self.kind == "selected":
            chosen = best([trace.notes.get("scores", [])[i] for i in kept])
            return float(chosen is not None and trace.attempts[kept[chosen]].verdict == "correct")
        return float(any(each.verdict == "correct" for each in some))


def labels_in(folder: Path) -> list[str]:
    """The rows: what `run` was told, else the complete runs there are, in the order of `ARMS`. Raises FileNotFoundError."""
    if (folder / SETTINGS).is_file():
        told: list[str] = json.loads((folder / SETTINGS).read_text())["labels"]
        return told
    found = sorted(file.parent.name for file in folder.glob("*/results.json"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no complete run of `reasonrl tts`: `run` first, or give out={folder}/<method>"
        )
    return sorted(found, key=lambda label: list(ARMS).index(label) if label in ARMS else len(ARMS))


def read(folder: Path, label: str) -> Run:
    """Raises FileNotFoundError for a run that is not complete."""
    file = folder / label / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} is not a complete run: `run` first")
    results = json.loads(file.read_text())
    seeds = [Seed.read(file.parent, seed) for seed in results["seeds"]]
    ids = sorted({id for id, _ in seeds[0].traces.rows})
    timing = json.loads((file.parent / "timing.json").read_text())["sessions"]
    return Run(label, results, sum(each["seconds"]["run"] for each in timing), [seed.found(ids) for seed in seeds])


def require_comparable(runs: Sequence[Run]) -> None:
    """Raise ValueError for runs of other questions, models, prompts or verifiers.

    A model that `reasonrl tune` made may stand beside its base, on the base's hard set.
    """
    task = runs[0].results["task"]
    names = ("model", "tasks", "ids", *(f"{task}.{name}" for name in ("data", "prompt", "prompt_sha256", "checker")))
    for run in runs[1:]:
        tuned = any(each.results.get("hard", {}).get("of_base") for each in (runs[0], run))
        for name in names[1:] if tuned else names:
            one, two = (each.results["settings"].get(name) for each in (runs[0], run))
            if one != two:
                raise ValueError(f"{runs[0].label} and {run.label} have another {name}: they cannot stand in one table")


def equal_tokens(runs: Sequence[Run], labels: Sequence[str]) -> tuple[str, float] | None:
    """Whose spending the last columns are at, and how much."""
    by_label = {run.label: run for run in runs}
    for label in labels:
        if label in by_label:
            return label, by_label[label].tokens_a_question
    return None


def table(runs: Sequence[Run], equal: Sequence[str] = ("best_of_n",), *, seconds: bool = True) -> str:
    """Markdown. seconds: whether runs had the machine to themselves. Raises ValueError for runs that cannot be compared."""
    require_comparable(runs)
    sizes = sorted({int(k) for run in runs for k in run.results["coverage"]})
    at = equal_tokens(runs, equal)
    heads = ["method", "measure", *(f"@{k}" for k in sizes)]
    heads += [f"within {at[1]:,.0f} tokens"] if at else []
    heads += ["tokens a question", "attempts a question", *(["seconds"] if seconds else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in runs:
        spent = run.results["spent"]
        cells = [f"`{run.label}`", run.measure, *(_cell(run.at(k)) for k in sizes)]
        cells += [_cell(run.within(at[1]))] if at else []
        cells += [f"{run.tokens_a_question:,.0f}", f"{spent['charged_a_question']:.1f}"]
        cells += [f"{run.seconds:,.0f}"] if seconds else []
        lines.append(f"| {' | '.join(cells)} |")
    first = runs[0].results
    about = (
        f"{first['model']['name']} on {first['task']}: {first['questions']} questions"
        + (f" of the hard set of {first['hard']['questions']}" if "hard" in first else "")
        + f", seeds {', '.join(str(s) for s in max((run.results['seeds'] for run in runs), key=len))} (methods that sample "
        "nothing: the first). Per cent, 95 % intervals over questions."
    )
    about += f" {at[1]:,.0f} tokens are what a question cost {at[0]} on average." if at else ""
    return "\n".join([about, "", *lines, ""])


def beside(runs: Sequence[Run], label: str) -> str:
    """Markdown: what each run solves more or less than the one of this label, and how many texts differ; '' without it.

    Differences are paired by question, of all that a question was given. Texts: of attempts after a question's first with the
    same seed and number, those that differ; methods that sample the same way write the same there.
    """
    base = next((run for run in runs if run.label == label), None)
    if base is None:
        return ""
    lines = [
        f"| method | less `{label}`, points | other texts after the first | cut | without an answer |",
        "|---" * 5 + "|",
    ]
    for run in runs:
        gap = difference_interval(run.solved, base.solved)
        other, both = other_texts(run, base)
        attempts = [each for traces in run.traces for trace in traces for each in trace.attempts if each.number > 0]
        cut = sum(not each.finished for each in attempts) / len(attempts)
        silent = sum(each.verdict == "unparseable" for each in attempts) / len(attempts)
        cells = [
            f"`{run.label}`",
            "" if run is base else f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})",
            "" if run is base or not both else f"{other} of {both} ({_percent(other / both)} %)",
            f"{_percent(cut)} %",
            f"{_percent(silent)} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def other_texts(run: Run, base: Run) -> tuple[int, int]:
    """Attempts from the second on that differ, of those that both made."""
    found = [
        one.token_ids != two.token_ids
        for seed, traces in zip(run.results["seeds"], run.traces, strict=True)
        if seed in base.results["seeds"]
        for mine, theirs in zip(traces, base.traces[base.results["seeds"].index(seed)], strict=True)
        for one, two in zip(_charged(mine)[1:], _charged(theirs)[1:], strict=False)
    ]
    return sum(found), len(found)


def _charged(trace: Trace) -> list[Attempt]:
    return [each for each in trace.attempts if each.number > 0]


def _cell(found: Mapping[str, float] | None) -> str:
    return (
        "" if found is None else f"{_percent(found['estimate'])} ({_percent(found['low'])}–{_percent(found['high'])})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def draw(runs: Sequence[Run], file: Path) -> None:
    """Two panels: the share solved over attempts, and over tokens a question."""
    import matplotlib as mpl
    import matplotlib.ticker

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    most = max(trace.tokens for run in runs for traces in run.traces for trace in traces)
    least = min(each.tokens for run in runs for traces in run.traces for t in traces for each in t.attempts[:1])
    grid = np.geomspace(max(least, 1), max(most, 2), POINTS)
    for number, run in enumerate(runs):
        style = {"color": f"C{number}", "marker": "os^vDPX*"[number % 8], "markersize": 4, "label": run.label}
        if run.single:
            left.axhline(run.results["coverage"]["1"]["estimate"] * 100, color=style["color"], ls=":", label=run.label)
        else:
            sizes = sorted(map(int, run.results[run.kind]))
            found = [run.results[run.kind][str(k)] for k in sizes]
            left.plot(sizes, [100 * each["estimate"] for each in found], **style)
            left.fill_between(
                sizes,
                [100 * each["low"] for each in found],
                [100 * each["high"] for each in found],
                color=style["color"],
                alpha=0.10,
                lw=0,
            )
        right.plot(grid, [100 * run.within(tokens)["estimate"] for tokens in grid], **{**style, "marker": None})
    left.set(xscale="log", xlabel="attempts a question", ylabel="questions solved (%)")
    top = max(int(k) for run in runs for k in run.results["coverage"])
    ticks = [2**power for power in range(int(math.log2(top)) + 1)]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    right.set(xscale="log", xlabel="generated tokens a question may cost")
    right.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    right.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    for axis in (left, right):
        axis.grid(alpha=0.25)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    first = runs[0].results
    figure.suptitle(f"{first['model']['name']} on {first['task']}, {first['questions']} questions", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def arms_of(methods: Sequence[str], own: Sequence[str]) -> dict[str, list[str]]:
    """Label -> arguments. Raises SystemExit for an unknown method."""
    given = {}
    for arm in own:
        label, colon, args = arm.partition(":")
        if not colon or not args.strip():
            sys.exit(f"--arm {arm!r} is not 'label: key=value ...'")
        given[label.strip()] = shlex.split(args)
    unknown = [name for name in methods if name not in ARMS and name not in given]
    if unknown:
        sys.exit(f"unknown method {unknown[0]}; there are {', '.join(ARMS)}, others with --arm")
    chosen = {name: given.get(name) or ARMS[name] for name in methods}
    return {**chosen, **{label: args for label, args in given.items() if label not in chosen}}


def run(args: argparse.Namespace) -> None:
    """The runs, one after the other, each in a process of its own."""
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    arms = arms_of([name for name in args.methods.split(",") if name], args.arm)
    common = [f"model={args.model}", f"task={args.task}", *args.more]
    if args.hard == "auto":
        reasonrl("tts", "hard", *common)
    hard = [f"hard={args.hard}"] if args.hard else []
    limit = [f"limit={args.limit}"] if args.limit else []
    (folder / SETTINGS).write_text(json.dumps({"labels": list(arms)}) + "\n")
    for label, own in arms.items():
        budget = [] if "method=greedy" in own else [f"budget={args.budget}"]
        given = {arg.partition("=")[0] for arg in own}
        reasonrl(
            "tts",
            *own,
            *(arg for arg in common if arg.partition("=")[0] not in given),
            *budget,
            *hard,
            *limit,
            f"seeds={args.seeds}",
            f"batch={args.batch}",
            f"out={folder / label}",
        )


def reasonrl(*args: str) -> None:
    print("reasonrl", shlex.join(args), flush=True)
    subprocess.run([sys.executable, "-m", "reasonrl", *args], check=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder")
    parser.add_argument("more", nargs="*", help="key=value for every method")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--seeds", default="42,85,100")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hard", default=None, help="a manifest, or auto: built first")
    parser.add_argument("--methods", default=",".join(ARMS))
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument(
        "--equal", default="best_of_n", help="methods at whose tokens all are compared, the first there is"
    )
    parser.add_argument("--beside", default=None, help="a method that all are compared with, question by question")
    parser.add_argument("--no-seconds", action="store_true", help="for runs that shared a machine")
    parser.add_argument("--markdown", default=None)
    parser.add_argument("--image", default=None)
    args = parser.parse_intermixed_args(argv)
    if args.what == "run":
        run(args)
    folder = Path(args.folder)
    runs = [read(folder, label) for label in labels_in(folder)]
    text = table(runs, args.equal.split(","), seconds=not args.no_seconds)
    if args.beside:
        text += f"\n{beside(runs, args.beside)}"
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text)
    if args.image:
        draw(runs, Path(args.image))


if __name__ == "__main__":
    main()
