"""Does the judge know right from wrong? Every gold solution of HumanEval and MBPP, and each with one mutated line.

    python benchmarks/judge_gold.py DATA_DIR [--mode strict] [--cores 2]

DATA_DIR holds HumanEval.jsonl.gz and mbpp.jsonl (anywhere below it). A gold must pass. A mutant must fail, unless its
tests cannot tell it from the gold: that is so when plain Python, without any judge, passes it too. Those are listed.
The exit code is 1 when a gold does not pass, or when judge and plain Python disagree on any program.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reasonrl.verify.judge.embedded import opened_judge
from reasonrl.verify.judge.jobs import humaneval_job, mbpp_job
from reasonrl.verify.judge.types import BadJob, Job, Limits, Mode, Outcome

PLAIN_SECONDS = 60.0
END = "all tests have run"
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Case:
    """A program, what it is, and the same as a plain script."""

    name: str
    kind: str  # gold or mutant
    job: Job
    line: str = ""  # the mutated line


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--mode", choices=("strict", "nonce"), default="strict")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cpu-seconds", type=float, default=10.0)
    args = parser.parse_args()
    limits = Limits(cpu_seconds=args.cpu_seconds)
    cases = [*humaneval(args.data_dir, args.mode, limits), *mbpp(args.data_dir, args.mode, limits)]
    begin = time.monotonic()
    outcomes = asyncio.run(judged(cases, args.cores))
    took = time.monotonic() - begin
    with ThreadPoolExecutor(args.cores) as pool:
        plain = list(pool.map(passes_plainly, cases))
    return report(cases, outcomes, plain, took)


async def judged(cases: list[Case], cores: int) -> list[Outcome]:
    """The judge's word on each."""
    with opened_judge(cores=cores, queue=len(cases) + 1) as judge:
        room = asyncio.Semaphore(8 * cores)

        async def one(case: Case) -> Outcome:
            async with room:
                try:
                    return await judge.judge_async(case.job)
                except BadJob as error:
                    return Outcome("sandbox_error", str(error))

        try:
            return await asyncio.gather(*map(one, cases))
        finally:
            await judge.aclose()


def passes_plainly(case: Case) -> bool:
    """Plain Python's word: program and tests in one script."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.py"
        path.write_text(f"{case.job.code}\n{case.job.tests}\nprint({END!r})\n", encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(path)],
                capture_output=True,
                timeout=PLAIN_SECONDS,
                cwd=folder,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0 and END.encode() in done.stdout  # exit(0) before the end is not passing


def report(cases: list[Case], outcomes: list[Outcome], plain: list[bool], took: float) -> int:
    """Print what there is to know; 1 if the judge was wrong."""
    wrong = 0
    for source in dict.fromkeys(case.name.split("/")[0] for case in cases):
        for kind in ("gold", "mutant"):
            mine = [k for k, case in enumerate(cases) if case.name.startswith(f"{source}/") and case.kind == kind]
            count = Counter(outcomes[k].verdict for k in mine)
            print(f"{source:<10} {kind:<7} {len(mine):>5}: {dict(count.most_common())}")
    print(f"{len(cases)} programs in {took:.1f} s, {len(cases) / took:.1f} a second")
    for case, outcome, right in zip(cases, outcomes, plain, strict=True):
        if outcome.passed != right or (case.kind == "gold" and not outcome.passed):
            wrong += 1
            told = "passes" if right else "does not pass"
            print(
                f"WRONG {case.name} {case.kind}: {outcome.verdict} ({outcome.message}), plain Python {told}  {case.line}"
            )
    alive = [case for case, outcome in zip(cases, outcomes, strict=True) if case.kind == "mutant" and outcome.passed]
    print(f"{len(alive)} mutants that their tests cannot tell from the gold, in plain Python either:")
    for case in alive:
        print(f"  {case.name}: {case.line}")
    print(f"{wrong} wrong verdicts")
    return 1 if wrong else 0


def humaneval(folder: Path, mode: Mode, limits: Limits) -> Iterator[Case]:
    """Its 164 programs and their mutants."""
    for path in folder.rglob("HumanEval.jsonl*"):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for row in map(json.loads, text.splitlines()):
            whole = row["prompt"] + row["canonical_solution"]
            parts = (row["prompt"], row["test"], row["entry_point"])
            for kind, code, line in variants(whole, row["entry_point"]):
                job = humaneval_job(*parts, code, limits=limits, mode=mode, with_prompt=False)
                yield Case(row["task_id"], kind, job, line)


def mbpp(folder: Path, mode: Mode, limits: Limits) -> Iterator[Case]:
    """Its 974 programs and their mutants."""
    for path in folder.rglob("mbpp.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            for kind, code, line in variants(row["code"].replace("\r\n", "\n").replace("\r", "\n"), None):
                job = mbpp_job(row["test_list"], code, setup=row["test_setup_code"], limits=limits, mode=mode)
                yield Case(f"MBPP/{row['task_id']}", kind, job, line)


def variants(code: str, function: str | None) -> Iterator[tuple[str, str, str]]:
    """(kind, program, mutated line): the program itself, and with its first operator or constant changed."""
    yield "gold", code, ""
    changed = mutant(code, function)
    if changed is not None:
        before, after = ast.unparse(ast.parse(code)).splitlines(), changed.splitlines()
        line = next((f"{a.strip()}  ->  {b.strip()}" for a, b in zip(before, after, strict=False) if a != b), "")
        yield "mutant", changed, line


def mutant(code: str, function: str | None) -> str | None:
    """The program with one line changed: an operator swapped, else a constant, else a result; None if it has neither."""
    tree = ast.parse(code)
    functions: list[ast.AST] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    nodes = [node for spot in functions or [tree] for node in ast.walk(spot)]
    for node in nodes:
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
            return ast.unparse(tree)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
            return ast.unparse(tree)
    for node in nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
            return ast.unparse(tree)
    for node in nodes:
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.List(elts=[node.value], ctx=ast.Load())
            return ast.unparse(tree)
    return None


if __name__ == "__main__":
    sys.exit(main())
