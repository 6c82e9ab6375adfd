"""`reasonrl optune COMMAND key=value ...`: dispatch only; help imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

OVERVIEW = """\
reasonrl optune COMMAND [key=value ...]: a learned editor of weights, for `reasonrl tts method=optune`

  reasonrl optune train   train an editor: from wrong attempts of a model to the solutions that it should have written

reasonrl optune train --help says what it takes."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.config import ConfigError, nearest

    if not args or args[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    name, *rest = args
    if name != "train":
        raise ConfigError(f"Unknown command 'optune {name}'{nearest(name, ['train'])}")
    from reasonrl.eval.tts.optune.train import run as train

    return train(rest)
