"""What lock step over questions gains in `reasonrl tts`: a batch of 64 against one question at a time.

    python benchmarks/tts_batching.py [--method best_of_n fttt] [--limit 128] [--budget 4]

Embedded model, arithmetic, one seed. fttt learns at a rate at which its steps change what is sampled. Raises where the two
make other attempts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from reasonrl.eval.tts.run import run_tts
from reasonrl.eval.tts.settings import read_settings

KNOBS = {"best_of_n": [], "fttt": ["method.lr=0.03"]}
PROMISED = {"best_of_n": "at least 5 promised", "fttt": "no promise"}


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Everything that was tried, without the time it took, by question."""
    rows = [json.loads(line) for line in (folder / "attempts" / "seed1.jsonl").read_text().splitlines()]
    return sorted(
        ({key: value for key, value in row.items() if key != "seconds"} for row in rows),
        key=lambda row: (row["id"], row["number"]),
    )


def compare(method: str, limit: int, budget: int) -> None:
    """Print the speed of both batches and their ratio."""
    speeds, made = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for batch in (64, 1):
            out = Path(scratch) / str(batch)
            asked = [f"method={method}", "model=tiny", "task=arithmetic", "seeds=1", f"budget={budget}", *KNOBS[method]]
            run_tts(read_settings([*asked, "engine.device=cpu", f"limit={limit}", f"batch={batch}", f"out={out}"]))
            session = json.loads((out / "timing.json").read_text())["sessions"][-1]
            speeds.append(limit / session["seconds"]["run"])
            made.append(attempts(out))
            learned = session.get("learning")
            steps = f", {learned['steps']} steps in {learned['seconds']:.1f} s" if learned else ""
            print(f"{method}, batch {batch}: {speeds[-1]:.1f} questions a second{steps}", flush=True)
    if made[0] != made[1]:
        other = sum(one != two for one, two in zip(made[0], made[1], strict=False))
        raise SystemExit(f"{method}: the two made other attempts ({other} of {len(made[0])})")
    ratio = speeds[0] / speeds[1]
    print(f"{method}: {ratio:.1f} times as many in lock step ({PROMISED[method]}), the same {len(made[0])} attempts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(KNOBS), default=list(KNOBS))
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--budget", type=int, default=4)
    args = parser.parse_args()
    for method in args.method:
        compare(method, args.limit, args.budget)


if __name__ == "__main__":
    main()
