"""Loaded into plain verl (VERL_USE_EXTERNAL_MODULES) to give it our replay-buffer poll interval, which no setting reaches."""

from __future__ import annotations

import functools

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from reasonrl.engine.verl.trainer import POLL_SECONDS

ReplayBuffer.__init__ = functools.partialmethod(ReplayBuffer.__init__, poll_interval=POLL_SECONDS)
