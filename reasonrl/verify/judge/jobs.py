"""Jobs from the rows of code tasks, and the program in a model's answer."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Sequence
from dataclasses import replace

from reasonrl.verify.judge.types import Job, Limits, Mode

_TAG = re.compile(r"[\w+.-]*")
FENCE = "```"
PYTHON_TAGS = ("", "python", "python3", "py")


def extract_code(text: str, *, released: bool = False) -> str | None:
    """The program in an answer: the first fenced block of Python, else the whole text if it compiles; else None.

    A block that is never closed is a program cut short: None. released: as the code of arXiv 2502.15771 does it, for
    parity: the first fenced block whatever it is, of whose tags only `python` in small letters is taken off.
    """
    if released:
        return _first_block(text)
    fenced = False
    tag: str | None = None  # of the block that is open
    inside: list[str] = []
    for line in text.split("\n"):  # each once: whoever samples the text waits, and a model may write fences for ever
        bare = line.strip(" \t\r")
        if bare.startswith(FENCE):
            fenced = True
            rest = bare[len(FENCE) :]
            if tag is None and "`" not in rest:
                tag, inside = _tag(rest), []
                continue
            if tag is not None and not rest:
                if tag in PYTHON_TAGS:
                    return "".join(inside)
                tag = None
                continue
        if tag is not None:
            inside.append(f"{line}\n")
    if fenced or not text.strip():
        return None
    return text if compiles(text) else None


def _tag(rest: str) -> str:
    found = _TAG.match(rest.lstrip(" \t"))
    return found[0].lower() if found is not None else ""


def _first_block(text: str) -> str | None:
    before, opened, after = text.partition(FENCE)
    inside, closed, _ = after.partition(FENCE)
    if opened and closed:
        return inside.removeprefix("python")
    return before if before and not opened and compiles(before) else None


def humaneval_job(
    prompt: str,
    tests: str,
    entry_point: str,
    code: str,
    *,
    limits: Limits | None = None,
    mode: Mode = "strict",
    with_prompt: bool = True,
) -> Job:
    """HumanEval: `check(candidate)`, helper functions in the prompt.

    with_prompt: the program starts with the prompt, as in the original harness, so that its imports and helpers are
    there. The code may be the rest of the function, or the whole of it, which defines it anew. False: it stands alone.
    """
    return Job(
        code=f"{prompt.rstrip()}\n{code}" if with_prompt else code,
        tests=f"{tests}\n\ncheck({entry_point})\n",
        prelude=prompt if compiles(prompt) else "",
        names=(entry_point,),
        mode=mode,
        limits=limits or Limits(),
    )


def mbpp_job(
    tests: Sequence[str], code: str, *, setup: str = "", limits: Limits | None = None, mode: Mode = "strict"
) -> Job:
    """MBPP: asserts, which name the function; `setup` runs before them."""
    text = "\n".join([setup.replace("\r\n", "\n"), *tests])
    return Job(code, text, names=names_under_test(text), mode=mode, limits=limits or Limits())


def compat_job(prompt: str, test: str, entry_point: str, completion: str, limits: Limits) -> Job:
    """The released judge's `prompt + completion`, then `test`, then `check(entry_point)`."""
    if entry_point and not entry_point.isidentifier():
        raise ValueError(f"entry_point: {entry_point!r} is no name of Python")
    job = Job(
        code=prompt + completion,
        tests=f"{test}\n\ncheck({entry_point})\n",
        prelude=prompt if compiles(prompt) else "",
        names=(entry_point,) if entry_point else names_under_test(test),
        limits=limits,
    )
    return job if entry_point else replace(job, prelude="")


def names_under_test(tests: str) -> tuple[str, ...]:
    """Names that hide a built-in (`sum`), where the tests have nothing else that could be what they test.

    All other names that the tests use and do not define come from the program anyway. Raises ValueError for tests that
    do not compile.
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests do not compile: {error}") from error
    nodes = list(ast.walk(tree))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - made
    if any(not hasattr(builtins, name) for name in used):
        return ()
    called = []
    for node in nodes:
        if isinstance(node, ast.Assert):
            left: ast.AST = node.test
            while not isinstance(left, ast.Call):
                inner = next(ast.iter_child_nodes(left), None)
                if inner is None:
                    break
                left = inner
            if isinstance(left, ast.Call) and isinstance(left.func, ast.Name):
                called.append(left.func.id)
    return (called[0],) if called and len(set(called)) == 1 else ()


def compiles(code: str) -> bool:
    """Whether it is Python."""
    try:
        compile(code, "code", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True
