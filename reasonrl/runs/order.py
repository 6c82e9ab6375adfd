"""In which order problems are trained on: a shuffle per epoch from the seed, and one number to resume from."""

from __future__ import annotations

import json

import numpy as np


class DataOrder:
    """An endless sequence of problem indices: epoch e is a permutation drawn from (seed, e). Batches cross epochs.

    Kept apart from any data loader so that a resumed run continues exactly where the last complete step ended.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("no training problem: the data set is empty")
        self.size, self.seed, self.position = size, seed, 0
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    @property
    def epoch(self) -> int:
        """Whole passes completed."""
        return self.position // self.size

    def take(self, count: int) -> list[int]:
        """The next `count` problem indices."""
        taken = [self._at(self.position + i) for i in range(count)]
        self.position += count
        return taken

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._epoch = epoch
        return int(self._permutation[place])

    def state(self) -> str:
        """JSON to restore from."""
        return json.dumps({"size": self.size, "seed": self.seed, "position": self.position})

    def restore(self, state: str) -> None:
        """Continue from `state`. Raises ValueError when it belongs to other data or another seed."""
        saved = json.loads(state)
        if (saved["size"], saved["seed"]) != (self.size, self.seed):
            raise ValueError(
                f"the checkpoint's data order is for {saved['size']} problems and seed {saved['seed']}, this run has "
                f"{self.size} and {self.seed}: resume with the run's own data and seed"
            )
        self.position = saved["position"]
