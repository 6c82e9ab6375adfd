"""How far two scorers of one process reward model differ: two folders that `reasonrl prm best-of-n` wrote.

reasonrl prm best-of-n candidates=STORE prm=PRM out=a
reasonrl prm best-of-n candidates=STORE prm=PRM out=b backend=vllm
python benchmarks/same_scores.py a b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    args = parser.parse_args()
    tables = [pq.read_table(folder / "scores.parquet") for folder in (args.a, args.b)]
    for column in ("problem_id", "candidate", "step_ends"):
        if not tables[0][column].equals(tables[1][column]):
            raise SystemExit(
                f"{args.a} and {args.b} differ in {column}: score the same candidates, cut at the same places"
            )
    a, b = (np.concatenate([np.asarray(row, np.float64) for row in table["scores"].to_pylist()]) for table in tables)
    if np.isnan(a).any() or np.isnan(b).any():
        raise SystemExit(f"{int(np.isnan(a).sum())} and {int(np.isnan(b).sum())} steps have no score")
    apart = np.abs(a - b)
    print(
        f"{a.size:,} scores: correlation {np.corrcoef(a, b)[0, 1]:.4f}, apart by {apart.mean():.4f} on average, "
        f"{np.median(apart):.4f} in the middle, {apart.max():.3f} at most"
    )


if __name__ == "__main__":
    main()
