"""The gold of a question whose answer is a program, from its row, in the form that the verifier reads (`verify.code`).

humaneval      `check(entry_point)` after the prompt, whose imports and helper functions stay there
mbpp           the asserts that the prompt shows; the hidden ones of `challenge_test_list` do not count
livecodebench  public and private tests: a program run with each input, or calls of one method where there is starter code
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from reasonrl.eval.tasks.task import Question, Task
from reasonrl.verify.code import code_answer

MOST_BYTES = 1 << 30  # of unpacked tests of one question


def program_gold(task: Task, question: Question) -> str:
    """What its programs are judged by. Raises ValueError for a row that cannot be judged, naming the question."""
    try:
        return GOLDS[task.format](question.extra)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"task {task.name}, question {question.id}: {error}") from error


def _humaneval(extra: Mapping[str, Any]) -> str:
    return code_answer("humaneval", **{name: extra[name] for name in ("prompt", "tests", "entry_point")})


def _mbpp(extra: Mapping[str, Any]) -> str:
    return code_answer("mbpp", tests=list(extra["tests"]), setup=extra["setup"])


def _livecodebench(extra: Mapping[str, Any]) -> str:
    tests = [*unpacked(extra["tests"].get("public")), *unpacked(extra["tests"]["private"])]
    cases: dict[str, Any] = {
        "inputs": [str(test["input"]) for test in tests],
        "outputs": [str(test["output"]) for test in tests],
    }
    if not extra.get("starter_code"):
        return code_answer("stdin", **cases)
    metadata = extra.get("metadata") or "{}"
    facts = json.loads(metadata) if isinstance(metadata, str) else metadata
    return code_answer("functional", name=str(facts.get("func_name", "")).rpartition(".")[2], **cases)


GOLDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "livecodebench": _livecodebench,
}


def unpacked(stored: Any) -> list[dict[str, Any]]:
    """Tests as LiveCodeBench stores them: a list, its JSON, or the packed pickle of its JSON. Raises ValueError."""
    if stored is None or stored == "":
        return []
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except ValueError:
            stored = json.loads(_unpickled(stored))
    if not isinstance(stored, list) or not all(isinstance(each, Mapping) and "input" in each for each in stored):
        raise ValueError("tests must be a list of records with input and output")
    return [dict(each) for each in stored]


class _Texts(pickle.Unpickler):
    """Of a text, which is all that there should be: a pickle may run anything else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it would call {module_name}.{global_name}")


def _unpickled(stored: str) -> str:
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(stored, validate=True), MOST_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        found = _Texts(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"the packed tests cannot be read: {error}") from error
    if not isinstance(found, str):
        raise ValueError(f"the packed tests hold a {type(found).__name__} instead of a text")
    return found
