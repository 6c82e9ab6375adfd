r"""Grading answers: our verifier against Math-Verify called one by one, and a set poisoned with answers that hang.

    OMP_NUM_THREADS=1 python benchmarks/grading.py [--problems 120] [--n 16] [--repeats 3] [--workers 2] [--data math.jsonl]

The loop is what a script does: `parse(gold)`, `parse(text)`, `verify`, in one process. Ours is `Verifier` with
`verify=math_verify`. Both get the same texts, whole responses of a few hundred words that end in a box, in batches of
another seed each repeat, in turn; a figure is the median of the paired ratios with its range. Verdicts are compared one
by one and differences listed; those that `reasonrl/verify/guards.py` makes on purpose are counted apart (made golds have
none, MATH500's have numbers to another base, which Math-Verify takes for equal). Four workloads:

- samples: n answers a problem that repeat as samples do: right in several spellings, a few common wrong ones, rare ones;
  half GSM8K-like whole numbers, half MATH-like LaTeX. What an evaluation grades.
- samples, boxes only: the same with the box as the whole text, which is the least that the loop can read.
- distinct: every answer of a problem is another one, so that nothing can be remembered.
- distinct LaTeX: that, without the whole numbers that need no library.

`--data` takes golds from a JSON-lines file instead (field `answer`; of GSM8K's the part behind `####`).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from math_verify import parse, verify

from reasonrl.verify.extract import extract_answer
from reasonrl.verify.guards import contradicts
from reasonrl.verify.pool import MAX_ANSWER_CHARS, Verifier, VerifyConfig

PROMISED = 5.0  # times as fast, for samples
RESTART_SECONDS = 2.0  # allowed for replacing a killed worker on a busy machine; 0.3 to 0.6 s on an idle one
HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"(x+1)^{100000}",
    r"100000000!",
    r"\sum_{k=1}^{10^{12}} k^{k}",
    r"\int_0^1 \int_0^x \int_0^y \sin(\cos(\exp(z^7+\sqrt{z}))) \, dz \, dy \, dx",
    r"2^{2^{2^{2^{2^{2}}}}}",
    "1+" * 5_000 + "1",  # 10,001 characters
]


@dataclass(frozen=True)
class Gold:
    """A reference answer, spellings of it that mean the same, and a maker of wrong answers."""

    text: str
    spellings: tuple[str, ...]
    wrong: Callable[[random.Random], str]


def whole(rng: random.Random) -> Gold:
    value = round(10 ** rng.uniform(0.3, 4.7))
    same = (f"{value:,}", f"{value}.00", rf"{value}\text{{ dollars}}", rf"\${value}")
    return Gold(str(value), same, lambda r: str(value + r.choice((-1, 1)) * r.randint(1, max(60, value))))


def fraction(rng: random.Random) -> Gold:
    bottom = rng.randint(3, 60)
    top = next(t for t in iter(lambda: rng.randint(1, 99), 0) if math.gcd(t, bottom) == 1)
    same = (rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", rf"\frac{{{2 * top}}}{{{2 * bottom}}}")
    return Gold(
        rf"\frac{{{top}}}{{{bottom}}}",
        same,
        lambda r: rf"\frac{{{top + r.randint(1, 400)}}}{{{bottom + r.randint(0, 9)}}}",
    )


def root(rng: random.Random) -> Gold:
    a, b = rng.randint(2, 30), rng.choice((2, 3, 5, 6, 7, 10, 11, 13))
    same = (rf"{a} \sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a}\cdot\sqrt{{{b}}}")
    return Gold(rf"{a}\sqrt{{{b}}}", same, lambda r: rf"{a + r.randint(1, 300)}\sqrt{{{b + r.randint(0, 3)}}}")


def multiple_of_pi(rng: random.Random) -> Gold:
    a, b = rng.randint(1, 40), rng.choice((2, 3, 4, 5, 6, 8, 9, 12))
    g = math.gcd(a, b)
    a, b = a // g, b // g
    same = (rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}", rf"\dfrac{{{a}\pi}}{{{b}}}")
    return Gold(
        rf"\frac{{{a}\pi}}{{{b}}}", same, lambda r: rf"\frac{{{a + r.randint(1, 300)}\pi}}{{{b + r.randint(0, 3)}}}"
    )


def pair(rng: random.Random) -> Gold:
    a, b = rng.randint(-20, 40), rng.randint(-20, 40)
    same = (f"({a}, {b})", rf"\left({a},{b}\right)", rf"\left( {a}, {b} \right)")
    return Gold(f"({a},{b})", same, lambda r: f"({a + r.randint(1, 200)},{b - r.randint(0, 20)})")


def interval(rng: random.Random) -> Gold:
    a = rng.randint(-30, 30)
    b = a + rng.randint(1, 40)
    same = (f"[{a}, {b})", rf"\left[{a},{b}\right)")
    return Gold(f"[{a},{b})", same, lambda r: f"[{a - r.randint(0, 9)},{b + r.randint(1, 200)})")


def polynomial(rng: random.Random) -> Gold:
    a, b, c = (rng.randint(1, 20) for _ in range(3))
    same = (f"{a}x^2 + {b}x + {c}", f"{c}+{b}x+{a}x^2", f"{a}x^{{2}}+{b}x+{c}")
    return Gold(f"{a}x^2+{b}x+{c}", same, lambda r: f"{a}x^2+{b + r.randint(1, 200)}x+{c + r.randint(0, 9)}")


def some(rng: random.Random) -> Gold:
    values = rng.sample(range(-40, 60), 3)
    shuffled = rng.sample(values, 3)
    as_set = r"\{" + ",".join(map(str, values)) + r"\}"
    same = (r"\{" + ", ".join(map(str, shuffled)) + r"\}", ",".join(map(str, values)))
    return Gold(
        as_set, same, lambda r: r"\{" + ",".join(map(str, (values[0], 100 + r.randint(0, 300), values[2]))) + r"\}"
    )


def word(rng: random.Random) -> Gold:
    names = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fritz", "Greta", "Hugo")
    name = rng.choice(names)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Gold(rf"\text{{{name}}}", (name,), lambda r: rf"\text{{{name}{''.join(r.sample(letters, 3))}}}")


LATEX = (fraction, root, multiple_of_pi, pair, interval, polynomial, some, word)
MATH = (*(whole,) * 10, *(fraction,) * 4, *LATEX)  # over half of MATH's answers are whole numbers


def from_file(path: Path) -> list[Gold]:
    """Golds of a JSON-lines file, with spellings and wrong answers made by rule from the text."""
    golds = []
    for line in path.read_text().splitlines():
        text = str(json.loads(line)["answer"]).split("####")[-1].strip()
        same = {
            text.replace(r"\frac", r"\dfrac"),
            text.replace(",", ", "),
            text.replace(r"\left", "").replace(r"\right", ""),
        }
        golds.append(Gold(text, tuple(same - {text}) or (f"{{{text}}}",), lambda r, text=text: _changed(text, r)))
    return golds


def _changed(text: str, rng: random.Random) -> str:
    """The text with one of its numbers replaced, or a term added."""
    numbers = list(re.finditer(r"\d+", text))
    if not numbers:
        return f"{text}+{rng.randint(1, 400)}"
    at = rng.choice(numbers)
    return text[: at.start()] + str(int(at[0]) + rng.randint(1, 400)) + text[at.end() :]


def response(answer: str, rng: random.Random) -> str:
    """A worked solution of 100 to 300 words with inline formulas, and the answer in a box."""
    steps = []
    for number in range(rng.randint(6, 18)):
        a, b = rng.randint(2, 90), rng.randint(2, 90)
        steps.append(
            rng.choice(
                (
                    f"Step {number + 1}. The two parts come to ${a} + {b} = {a + b}$, which is used below.",
                    rf"We divide and obtain $\frac{{{a}}}{{{b}}}$ of the amount, so the rest stays as it is.",
                    f"Let $x$ be the unknown quantity, then ${a}x + {b} = {a * 3 + b}$ gives $x = 3$.",
                    "Therefore the condition of the problem holds and we can go on with the next part.",
                )
            )
        )
    return "\n".join(steps) + rf" So the final result is $\boxed{{{answer}}}$."


def samples(golds: list[Gold], n: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(answer, gold) as n samples of each problem repeat them."""
    for gold in golds:
        solved = rng.betavariate(1.2, 0.9)
        common = [gold.wrong(rng) for _ in range(2)]
        for _ in range(n):
            if rng.random() < solved:
                yield (rng.choice(gold.spellings) if rng.random() < 0.25 else gold.text), gold.text
            else:
                yield (rng.choice(common) if rng.random() < 0.6 else gold.wrong(rng)), gold.text


def distinct(golds: list[Gold], n: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(answer, gold) with no pair twice: each spelling once, the rest wrong."""
    seen: set[tuple[str, str]] = set()
    for gold in golds:
        answers = [gold.text, *gold.spellings]
        while len(answers) < n:
            answers.append(gold.wrong(rng))
            if (answers[-1], gold.text) in seen or answers.count(answers[-1]) > 1:
                answers.pop()
        seen.update((answer, gold.text) for answer in answers)
        yield from ((answer, gold.text) for answer in rng.sample(answers[:n], n))


def one_by_one(pairs: list[tuple[str, str]]) -> list[bool]:
    """What a script does."""
    return [bool(verify(parse(rf"\boxed{{{gold}}}"), parse(text))) for text, gold in pairs]


def cpu_seconds() -> float:
    """Of this process and the living workers."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def compared(
    name: str,
    verifier: Verifier,
    make: Callable[[int], list[tuple[str, str]]],
    repeats: int,
    promised: float | None,
) -> bool:
    """Print a workload's row and the verdicts that differ; whether the promise is kept."""
    walls, works, rates, differences, closed, total = [], [], [], [], 0, 0
    for repeat in range(repeats + 1):  # the first warms both sides up
        pairs = make(repeat)
        order = (0, 1) if repeat % 2 else (1, 0)
        took, cpu, found = [0.0, 0.0], [0.0, 0.0], [[], []]
        for side in order:
            started, cpu_started = time.perf_counter(), cpu_seconds()
            found[side] = [v.correct for v in verifier.verify_many(pairs)] if side else one_by_one(pairs)
            took[side], cpu[side] = time.perf_counter() - started, cpu_seconds() - cpu_started
        for (text, gold), theirs, ours in zip(pairs, *found, strict=True):
            if theirs != ours:
                guarded = theirs and contradicts(extract_answer(text) or "", gold)
                closed += guarded
                differences += [] if guarded else [(text, gold, theirs, ours)]
        total += len(pairs)
        if repeat:
            walls.append(took[0] / took[1])
            works.append(cpu[0] / cpu[1])
            rates.append(len(pairs) / took[1])
    print(
        f"{name}: {np.median(walls):.1f} times as fast [{min(walls):.1f}, {max(walls):.1f}]"
        f"{f' (at least {promised:g} promised)' if promised else ''}, "
        f"{np.median(works):.1f} times less CPU time, {np.median(rates):,.0f} answers a second; "
        f"{len(differences)} of {total} verdicts differ" + (f", {closed} more by a guard" if closed else "")
    )
    for text, gold, theirs, ours in differences[:20]:
        print(f"    gold {gold!r}, answer {text[-60:]!r}: one by one {theirs}, ours {ours}")
    return not differences and (promised is None or np.median(walls) >= promised)


def poisoned(workers: int, timeout: float, answers: int) -> bool:
    """Grade a set of which 5 % hang; whether it ends by the bound that the deadline sets."""
    rng = random.Random(0)
    golds = [rng.choice(MATH)(rng) for _ in range(answers // 16 + 1)]
    pairs = [(rf"so \boxed{{{answer}}}", gold) for answer, gold in samples(golds, 16, rng)][:answers]
    hostile = rng.sample(range(answers), answers // 20)
    with Verifier(VerifyConfig(checker="math_verify", workers=workers, timeout=timeout)) as verifier:
        verifier.warm_up()
        started = time.perf_counter()
        verifier.verify_many(pairs)
        plain = time.perf_counter() - started
    for number, at in enumerate(hostile):  # the number makes each of them another answer, and no verdict is shared
        answer = HOSTILE[number % len(HOSTILE)]
        pairs[at] = (rf"so \boxed{{{answer}+{number}}}", r"\frac{1}{3}")
    slow = sum(len(text) <= MAX_ANSWER_CHARS for text, _ in (pairs[at] for at in hostile))
    bound = (math.ceil(slow / workers) + 1) * (timeout + RESTART_SECONDS) + plain
    with Verifier(VerifyConfig(checker="math_verify", workers=workers, timeout=timeout)) as verifier:
        verifier.warm_up()
        started = time.perf_counter()
        verdicts = verifier.verify_many(pairs)
        took = time.perf_counter() - started
    late = sum(verdict.status == "timeout" for verdict in verdicts)
    wrong = [at for at in hostile if verdicts[at].correct]
    print(
        f"poisoned: {answers} answers, {len(hostile)} hostile ({late} killed after {timeout:g} s), {workers} workers: "
        f"{took:.1f} s, bound {bound:.1f} s ({plain:.1f} s without them); {len(wrong)} of them called right"
    )
    return took <= bound and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=120)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="JSON lines with a field `answer`, instead of made golds")
    parser.add_argument("--poisoned", type=int, default=2_000, help="answers of the poisoned set; 0 leaves it out")
    parser.add_argument("--timeout", type=float, default=2.0, help="deadline of the poisoned set, seconds")
    args = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    known = from_file(args.data) if args.data else None
    print(
        f"{args.problems} problems x {args.n} samples, {args.repeats} repeats, {args.workers} workers; {os.cpu_count()} cores"
    )

    def golds(rng: random.Random, latex_only: bool) -> list[Gold]:
        if known is not None:
            chosen = [gold for gold in known if not (latex_only and gold.text.lstrip("-").isdigit())]
            return rng.sample(chosen, min(args.problems, len(chosen)))
        if latex_only:
            return [rng.choice(LATEX)(rng) for _ in range(args.problems)]
        return [(whole if number % 2 else rng.choice(MATH))(rng) for number in range(args.problems)]

    def make(
        kind: Callable[[list[Gold], int, random.Random], Iterator[tuple[str, str]]], latex_only: bool, long: bool
    ) -> Callable[[int], list[tuple[str, str]]]:
        def workload(seed: int) -> list[tuple[str, str]]:
            rng = random.Random(seed)
            drawn = kind(golds(rng, latex_only), args.n, rng)
            return [(response(a, rng) if long else rf"\boxed{{{a}}}", gold) for a, gold in drawn]

        return workload

    kept = []
    with Verifier(VerifyConfig(checker="math_verify", workers=args.workers)) as verifier:
        verifier.warm_up()
        for name, kind, latex_only, long in (
            ("samples", samples, False, True),
            ("samples, boxes only", samples, False, False),
            ("distinct", distinct, False, True),
            ("distinct LaTeX", distinct, True, True),
        ):
            promised = PROMISED if name == "samples" else None
            kept.append(compared(name, verifier, make(kind, latex_only, long), args.repeats, promised))
    if args.poisoned:
        kept.append(poisoned(args.workers, args.timeout, args.poisoned))
    if not all(kept):
        sys.exit("a promise is not kept")


if __name__ == "__main__":
    main()
