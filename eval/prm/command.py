"""`reasonrl prm COMMAND key=value ...`: dispatch only; help imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# name -> (where its `run(args) -> exit code` is, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "data": (
        "reasonrl.eval.prm.data",
        "sample responses, cut them where the model hesitates, label the cuts by rollouts",
    ),
    "train": ("reasonrl.eval.prm.train", "train a process reward model from labelled responses"),
    "serve": ("reasonrl.eval.prm.serve", "score steps over HTTP, for several clients"),
    "best-of-n": ("reasonrl.eval.prm.best_of_n", "choose among recorded candidates by their step scores"),
    "decode": ("reasonrl.eval.prm.decode", "decode with the process reward model where the model hesitates"),
}


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.config import ConfigError, nearest

    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = args
    if name not in COMMANDS:
        raise ConfigError(f"Unknown command 'prm {name}'{nearest(name, COMMANDS)}")
    module, _ = COMMANDS[name]
    code: int = importlib.import_module(module).run(rest)
    return code


def overview() -> str:
    """What there is."""
    width = max(map(len, COMMANDS))
    lines = [f"  reasonrl prm {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "reasonrl prm COMMAND [key=value ...]: process reward models, which score every step of a response\n",
            *lines,
            "\nreasonrl prm COMMAND --help says what each takes.",
        ]
    )
