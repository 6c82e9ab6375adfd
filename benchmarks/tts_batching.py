"""What lock step over questions gains in `reasonrl tts`: best of 4 with a batch of 64 against one question at a time.

    python benchmarks/tts_batching.py [--limit 128] [--budget 4]

Embedded model, arithmetic, one seed. Raises where the two make other attempts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from reasonrl.eval.tts.run import run_tts
from reasonrl.eval.tts.settings import read_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--budget", type=int, default=4)
    args = parser.parse_args()
    speeds, made = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for batch in (64, 1):
            out = Path(scratch) / str(batch)
            asked = ["method=best_of_n", "model=tiny", "task=arithmetic", "seeds=1", f"budget={args.budget}"]
            run_tts(read_settings([*asked, f"limit={args.limit}", f"batch={batch}", f"out={out}"]))
            seconds = json.loads((out / "timing.json").read_text())["sessions"][-1]["seconds"]["run"]
            speeds.append(args.limit / seconds)
            results = json.loads((out / "results.json").read_text())
            made.append({name: value for name, value in results.items() if name not in ("name", "settings")})
            print(f"batch {batch}: {speeds[-1]:.1f} questions a second", flush=True)
    if made[0] != made[1]:
        raise SystemExit("the two made other attempts")
    print(f"{speeds[0] / speeds[1]:.1f} times as many in lock step (at least 5 promised), the same results")


if __name__ == "__main__":
    main()
