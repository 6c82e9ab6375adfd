"""`reasonrl prm best-of-n`: choose among N candidates by their step scores. AdaptiveStep, arXiv 2502.13943, section 4.

    B problems, N candidates of one, K steps of a candidate

Candidates are the first N of a fixed list, as in the paper: no resampling over subsets. The paper aggregates by the minimum.
A candidate that cannot be scored keeps its place and is never chosen (the released code drops it, and later ones slide).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.eval.prm.knobs import read_knobs, require

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrl.engine.prm import Scorer
    from reasonrl.eval.prm.candidates import Candidate, Candidates, Cutter

HELP = """\
reasonrl prm best-of-n candidates=<store or run folder> prm=<folder or http://host:port> [key=value ...]

Scores every candidate's steps and lets the process reward model choose, beside majority vote, chance and pass@N.

  reasonrl prm data model=tiny data=arithmetic split=validation n=8 rollouts=0 tau=prm/tiny-arithmetic
  reasonrl prm best-of-n candidates=prm/tiny-arithmetic-validation prm=prm/scorer

  n=                    numbers of candidates, such as 1,2,4,8; default: powers of 2, and all there are
  aggregate=min,mean,max,last,product    of a candidate's step scores; the first one weighs votes and is compared
  split=confidence      where steps end: below tau, or newline, random5 (the paper's baselines)
  tau=                  default: that of the data the process reward model learned from
  policy=               model that wrote the candidates, where they do not say
  limit=                problems; default: all
  out=                  default: best-of-n-SPLIT beside the candidates
  device=auto backend=transformers (or vllm) seed=1
  batch_tokens=         padded tokens of one forward pass; default 2048 on a CPU, 16384 on a GPU

Writes results.json, table.md and scores.parquet (a row a candidate) to out.
"""
COMMAND = "reasonrl prm best-of-n"
AT_ONCE = 1024  # candidates between two writes
TOLD_SECONDS = 10.0


@dataclass(frozen=True)
class ChoiceKnobs:
    """See `HELP`."""

    candidates: str
    prm: str
    n: tuple[int, ...] | None = None
    aggregate: tuple[str, ...] = ("min", "mean", "max", "last", "product")
    split: str = "confidence"
    tau: float | None = None
    policy: str | None = None
    limit: int | None = None
    out: str | None = None
    device: str = "auto"
    batch_tokens: int | None = None
    backend: str = "transformers"
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        from reasonrl.eval.prm.candidates import SPLITS
        from reasonrl.functional.choice import AGGREGATES

        for how in self.aggregate:
            require(how in AGGREGATES, f"aggregate must be of {', '.join(AGGREGATES)}, got {how!r}")
        for name, choices in (("split", SPLITS), ("backend", ("transformers", "vllm"))):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("limit", "batch_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(self.n is None or min(self.n) >= 1, f"n must be numbers of at least 1, got {self.n}")
        require(self.tau is None or 0 <= self.tau <= 1, f"tau must be a probability in [0, 1], got {self.tau}")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    from rich.console import Console

    best_of_n(
        read_knobs(ChoiceKnobs, args, COMMAND),
        console=Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False),
    )
    return 0


def best_of_n(knobs: ChoiceKnobs, *, scorer: Scorer | None = None, console: Console | None = None) -> dict[str, Any]:
    """Score, choose, write; returns what is in results.json. scorer: one that is open already. Raises ConfigError."""
    from rich.console import Console

    from reasonrl.eval.prm.candidates import Cutter, read_candidates
    from reasonrl.runs.files import write_text

    console = console or Console(quiet=True)
    found = read_candidates(knobs.candidates, knobs.limit)
    sizes = numbers(knobs.n, found.most)
    scorer, tokenizer = opened(knobs, found, scorer)
    made_with = scorer.card.data
    tau = knobs.tau if knobs.tau is not None else made_with.get("tau")
    cutter = Cutter(knobs.split, tokenizer, tau=tau, max_steps=made_with.get("max_steps"), seed=knobs.seed)
    out = Path(knobs.out or default_out(knobs)).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): choose another out=") from error
    console.print(f"{sum(1 for _ in found)} candidates of {len(found.problems)} problems")
    scores = scored(found, scorer, cutter, out / "scores.parquet", console)
    results = {
        "candidates": found.source,
        "prm": knobs.prm,
        "identity": scorer.identity,
        "form": scorer.card.form(),
        "split": knobs.split,
        "tau": tau,
        "seed": knobs.seed,
        **compared(found, scores, sizes, knobs.aggregate),
    }
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    text = table(results)
    write_text(out / "table.md", text)
    console.print(f"{text}\n{out}")
    return results


def numbers(asked: tuple[int, ...] | None, most: int) -> list[int]:
    """The N of the curve, rising. Raises ConfigError for more than any problem has."""
    if asked is None:
        return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
    require(max(asked) <= most, f"n={max(asked)}: no problem has more than {most} candidates; sample more of them")
    return sorted(set(asked))


def default_out(knobs: ChoiceKnobs) -> Path:
    """Beside the candidates."""
    path = Path(knobs.candidates).expanduser()
    return (path.parent if path.is_file() else path) / f"best-of-n-{knobs.split}"


def opened(knobs: ChoiceKnobs, found: Candidates, scorer: Scorer | None) -> tuple[Scorer, Any]:
    """Scorer and the policy's tokenizer. Raises ConfigError."""
    from transformers import AutoTokenizer

    from reasonrl.config import package_path
    from reasonrl.engine.prm import open_scorer
    from reasonrl.eval.prm.train import model_path

    policy = model_path(knobs.policy) if knobs.policy else found.policy
    require(policy is not None, f"{found.source} does not say which model wrote it: give policy=")
    try:
        tokenizer = AutoTokenizer.from_pretrained(package_path(str(policy)))
    except Exception as error:  # the libraries behind it raise a dozen kinds
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"cannot load the tokenizer of {policy} ({line}): give policy=<model>") from error
    if scorer is None:
        scorer = open_scorer(
            knobs.prm,
            tokenizer=tokenizer,
            device=knobs.device,
            batch_tokens=knobs.batch_tokens,
            backend=knobs.backend,  # type: ignore[arg-type]
        )
    return scorer, tokenizer


def scored(
    found: Candidates, scorer: Scorer, cutter: Cutter, file: Path, console: Console
) -> dict[str, list[NDArray[np.float32]]]:
    """(K,) for each candidate, NaN beyond the PRM's context; written to `file` as they come. Raises ConfigError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from reasonrl.engine.prm import Steps
    from reasonrl.runs.files import replacing

    schema = pa.schema(
        {
            "problem_id": pa.string(),
            "candidate": pa.int32(),
            "right": pa.bool_(),
            "given": pa.string(),
            "step_ends": pa.list_(pa.int32()),
            "scores": pa.list_(pa.float32()),
        }
    )
    every = list(found)
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in found.problems}
    started = told = time.monotonic()
    with replacing(file) as scratch, pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        for start in range(0, len(every), AT_ONCE):
            some = every[start : start + AT_ONCE]
            cut: dict[int, tuple[Candidate, NDArray[np.int64]]] = {}  # a candidate that came twice is scored once
            for place, (_, _, candidate) in enumerate(some, start):
                if id(candidate) not in cut:
                    cut[id(candidate)] = (candidate, cutter(candidate, place))
            items = [Steps(c.question, c.prompt_ids, c.response_ids, e) for c, e in cut.values()]  # type: ignore[arg-type]
            try:
                made = dict(zip(cut, scorer.score(items), strict=True))
            except ValueError as error:
                raise ConfigError(str(error)) from error
            rows: dict[str, list[Any]] = {name: [] for name in schema.names}
            for name, place, candidate in some:
                scores[name].append(made[id(candidate)])
                ends = cut[id(candidate)][1]
                values = (name, place, bool(candidate.right), candidate.given, ends, made[id(candidate)])
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
            writer.write_table(pa.table(rows, schema=schema))
            now = time.monotonic()
            if now - told > TOLD_SECONDS:
                told, done = now, start + len(some)
                console.print(f"scored {done}/{len(every)} candidates, {done / (now - started):,.0f} a second")
    return scores


def compared(
    found: Candidates, scores: Mapping[str, Sequence[NDArray[np.float32]]], sizes: Sequence[int], hows: Sequence[str]
) -> dict[str, Any]:
    """Accuracy of every way to choose at each N, with intervals over problems, and paired differences."""
    from reasonrl.engine.prm import beyond_context
    from reasonrl.functional.choice import aggregate
    from reasonrl.functional.estimates import mean_interval, paired_interval

    values = {
        name: {how: [_aggregated(aggregate, s, how) for s in each] for how in hows} for name, each in scores.items()
    }
    keys = {name: [found.key(c.given) for c in some] for name, some in found.problems.items()}
    right = {name: np.array([c.right for c in some], dtype=np.float64) for name, some in found.problems.items()}
    flat = [s for each in scores.values() for s in each]
    curve, differences = [], []
    for n in sizes:
        ways = _ways(n, right, keys, values, hows)
        row: dict[str, Any] = {"n": n}
        for way, outcome in ways.items():
            row[way] = asdict(mean_interval(outcome))
        curve.append(row)
        if n > 1:
            for other in ("random", "majority"):
                pair = paired_interval(ways[f"prm_{hows[0]}"], ways[other])
                differences.append({"n": n, "of": f"prm_{hows[0]}", "less": other, **asdict(pair)})
    return {
        "problems": len(found.problems),
        "candidates_each": {"least": min(map(len, found.problems.values())), "most": found.most},
        "steps_a_candidate": sum(s.size for s in flat) / len(flat),
        "beyond_context": beyond_context(flat),
        "failed_candidates": sum(_aggregated(aggregate, s, "min") is None for s in flat),
        "short_problems": sum(len(some) < max(sizes) for some in found.problems.values()),
        "auc": {how: _auc(values, right, how) for how in hows},
        "curve": curve,
        "differences": differences,
    }


def _aggregated(aggregate: Callable[..., float], scores: NDArray[np.float32], how: str) -> float | None:
    """None for a candidate without steps, or with one beyond the PRM's context."""
    return aggregate(scores, how) if scores.size and not np.isnan(scores).any() else None


def _ways(
    n: int,
    right: Mapping[str, NDArray[np.float64]],
    keys: Mapping[str, Sequence[Any]],
    values: Mapping[str, Mapping[str, Sequence[float | None]]],
    hows: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """For each way to choose among the first n candidates: (B,) how right the choice is on each problem."""
    from reasonrl.functional.choice import best, majority, weighted_vote
    from reasonrl.functional.estimates import pass_at_k

    def of_answer(name: str, answer: Any) -> float:
        """Whether an answer is right: its first candidate's verdict."""
        return 0.0 if answer is None else float(right[name][keys[name].index(answer)])

    def of_place(name: str, place: int | None) -> float:
        """No candidate could be scored: no choice, which is not right."""
        return 0.0 if place is None else float(right[name][place])

    made: dict[str, list[float]] = {}
    for name, verdicts in right.items():
        for how in hows:
            made.setdefault(f"prm_{how}", []).append(of_place(name, best(values[name][how][:n])))
        vote = weighted_vote(keys[name][:n], values[name][hows[0]][:n])
        made.setdefault(f"weighted_{hows[0]}", []).append(of_answer(name, vote))
        made.setdefault("majority", []).append(of_answer(name, majority(keys[name][:n])))
        made.setdefault("random", []).append(float(verdicts[:n].mean()))
        made.setdefault("any_of_first", []).append(float(verdicts[:n].max()))
        size = verdicts.size
        made.setdefault("pass_at_n", []).append(
            float(pass_at_k(size, np.array([int(verdicts.sum())]), min(n, size))[0])
        )
    return {way: np.array(outcome) for way, outcome in made.items()}


def _auc(values: Mapping[str, Any], right: Mapping[str, NDArray[np.float64]], how: str) -> float | None:
    """How well the aggregate tells right candidates from wrong ones, over all problems."""
    from reasonrl.eval.prm.held_out import auc

    pairs = [(v, r) for name in right for v, r in zip(values[name][how], right[name], strict=True) if v is not None]
    if not pairs:
        return None
    found = auc(np.array([v for v, _ in pairs]), np.array([r for _, r in pairs]) > 0.5)
    return None if math.isnan(found) else found


def table(results: Mapping[str, Any]) -> str:
    """The curve and the differences in Markdown."""
    ways = [way for way in results["curve"][0] if way != "n"]

    def cell(found: Mapping[str, float]) -> str:
        return f"{found['estimate']:.1%} ({found['low']:.1%}–{found['high']:.1%})"

    lines = [
        f"{results['problems']} problems, split {results['split']}"
        + (f" at tau {results['tau']:.4f}" if results["split"] == "confidence" else "")
        + f", {results['steps_a_candidate']:.2f} steps a candidate, {results['failed_candidates']} without a score "
        f"({results['beyond_context']} steps beyond the context)",
        "",
        f"| choice | {' | '.join('N = ' + str(row['n']) for row in results['curve'])} |",
        f"|---|{'---|' * len(results['curve'])}",
        *(f"| {way} | {' | '.join(cell(row[way]) for row in results['curve'])} |" for way in ways),
        "",
        "| N | difference | points | p |",
        "|---|---|---|---|",
    ]
    for row in results["differences"]:
        found = row["difference"]
        lines.append(
            f"| {row['n']} | {row['of']} - {row['less']} | {100 * found['estimate']:+.1f} "
            f"({100 * found['low']:+.1f} to {100 * found['high']:+.1f}) | {row['p_value']:.3g} |"
        )
    return "\n".join(lines) + "\n"
