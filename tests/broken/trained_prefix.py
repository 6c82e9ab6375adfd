"""Broken on purpose: gives a prefix advantages without declaring loss="policy" on it."""

from dataclasses import dataclass

import numpy as np

from reasonrl.core import Method, Plain, Prefix, Request


@dataclass(frozen=True)
class HiddenHint(Plain):
    def plan(self, problem, view):
        return () if view.round else (Request(Prefix([3] * min(4, view.room)), self.n),)


@dataclass(frozen=True)
class WholeSequence:
    def __call__(self, groups, rewards, ledger):
        return [
            [np.full(rollout.total_tokens, reward) for rollout, reward in zip(group.rollouts, column, strict=True)]
            for group, column in zip(groups, rewards, strict=True)
        ]


def build(*, n: int = 8) -> Method:
    return Method("trained_prefix", prefix=HiddenHint(n), advantage=WholeSequence())
