"""`reasonrl check my_method:build knob=value ...`: judge a strategy by the laws of `reasonrl.core.contract`, in a second.

Nothing is sampled from a language model: the contract shows made-up problems and groups to the parts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from reasonrl.core import Factory, LawResult

HELP = """\
reasonrl check PACKAGE.MODULE:FACTORY [knob=value ...]

Tests a method of your own: plans, rewards, advantages and memory, on made-up problems. Takes about a second; no model.

  reasonrl check my_method:build                        a factory in my_method.py of the current folder
  reasonrl check my_method:build bonus=0.2              with other knobs
  reasonrl check deepcompress direction=penalty         a built-in method
  reasonrl check my_method:build reward._target_=reasonrl.parts.rewards.DualLength
                                                        with another part in a slot

kept = the law holds. broken = it does not, with the numbers. blocked = it cannot be judged until another law holds.
Exit code: 0 all kept, 1 not all kept, 2 the factory cannot be found or the arguments cannot be read.
"""

COLOURS = {"kept": "green", "broken": "bold red", "blocked": "yellow"}


def run(args: Sequence[str]) -> int:
    """Do the command; the exit status."""
    if not args or any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    from rich.console import Console

    from reasonrl.core import run_contract

    try:
        target, *rest = args
        factory, knobs = find(target), knobs_from(rest)
    except ValueError as error:
        print(f"reasonrl check: {error}", file=sys.stderr)
        return 2
    results = run_contract(factory, **knobs)
    console = Console(soft_wrap=True)
    console.print(table(target, results), soft_wrap=False)
    failed = [result for result in results if not result.passed]
    kept = len(results) - len(failed)
    console.print(f"{kept} of {len(results)} laws kept", highlight=False)
    return 1 if failed else 0


def find(target: str) -> Factory:
    """The factory named on the command line. Raises ValueError when there is none, or its module fails to import."""
    from reasonrl.config import method_names, nearest
    from reasonrl.core import load_factory

    if "=" in target or target.startswith("-"):
        raise ValueError(f"the first argument is the factory, like my_method:build; got {target!r}")
    if ":" not in target and "." not in target:
        if target not in method_names():
            raise ValueError(
                f"Unknown method '{target}'{nearest(target, method_names())}. Your own: {target}:build, for a factory "
                f"build in {target}.py"
            )
        target = f"reasonrl.methods.{target}:build"
    try:
        return load_factory(target)
    except ValueError as error:
        raise ValueError(f"{error}. Run from the folder that holds the module, or install its package") from error
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise ValueError(f"importing {target.partition(':')[0]!r} failed: {type(error).__name__}: {error}") from error


def knobs_from(args: Sequence[str]) -> dict[str, Any]:
    """`knob=value` arguments, read as a training run reads `method.knob=value`. Raises ValueError for other forms."""
    from omegaconf import OmegaConf

    from reasonrl.config import build_node

    for arg in args:
        if arg.startswith("-") or not arg.partition("=")[0] or "=" not in arg:
            raise ValueError(f"arguments after the factory look like knob=value, got {arg!r}")
    values = OmegaConf.to_container(OmegaConf.from_dotlist([arg.removeprefix("method.") for arg in args]))
    assert isinstance(values, dict)
    return {str(name): build_node(value) for name, value in values.items()}


def table(title: str, results: Sequence[LawResult]) -> Table:
    """One row a law: how it fared, and what it says or where it broke."""
    from rich.markup import escape
    from rich.table import Table

    from reasonrl.core import MEANING

    made = Table(title=escape(title), title_justify="left")
    for name in ("law", "verdict", "what it says, or where it broke"):
        made.add_column(name, overflow="fold")
    for result in results:
        text = escape(result.message.removeprefix(f"{result.law}: "))
        if result.status == "kept":
            text = f"[dim]{escape(MEANING[result.law])}[/dim]"
        elif result.status == "blocked":
            text = f"[dim]cannot be judged until {result.message.partition(':')[0]} is kept[/dim]"
        made.add_row(result.law, f"[{COLOURS[result.status]}]{result.status}[/]", text)
    return made
