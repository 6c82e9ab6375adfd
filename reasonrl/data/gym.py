"""Problems of Reasoning Gym (optional extra), made once in a child process and stored as rows.

Some of its tasks differ between values of PYTHONHASHSEED, so the child runs with PYTHONHASHSEED=0; and its scorers hand
model text to `eval`, so they are never called: answers are compared by reasonrl's own verifier. Tasks with many right
answers need those scorers and are refused.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from reasonrl.data.items import DataError, Dropped, Item, Rows
from reasonrl.data.steps import solution_steps

MANY_ANSWERS = frozenset(
    {
        "boxnet",
        "codeio",
        "countdown",
        "graph_color",
        "group_anagrams",
        "intermediate_integration",
        "jugs",
        "knight_swap",
        "n_queens",
        "palindrome_generation",
        "palindrome_partitioning",
        "polynomial_equations",
        "polynomial_multiplication",
        "propositional_logic",
        "puzzle24",
        "quantum_lock",
        "rubiks_cube",
        "rush_hour",
        "sentence_reordering",
        "shortest_path",
        "simple_integration",
        "sokoban",
        "tower_of_hanoi",
        "word_ladder",
    }
)
BUILD_SECONDS = 3600.0  # the slowest tasks make five problems a second

_CHILD = """
import json, sys
import reasoning_gym
task, seed, size, options = json.loads(sys.argv[1])
names = sorted(reasoning_gym.factory.DATASETS)
if task not in names:
    sys.exit("UNKNOWN " + " ".join(names))
data = reasoning_gym.create_dataset(task, seed=seed, size=size, **options)
for i in range(size):
    row = data[i]
    cot = (row.get("metadata") or {}).get("answer_cot")
    print(json.dumps({"question": row["question"], "answer": row["answer"], "cot": cot}, default=str))
"""


def items(
    *,
    size: int,
    seed: int,
    source: str,
    task: str = "chain_sum",
    options: dict[str, Any] | None = None,
    how: str = "lines",
) -> Rows:
    """`size` problems of `task`, as Reasoning Gym makes them from `seed` and the task's own `options`.

    how: the way its worked solutions, where a task has them, are cut into steps.

    Raises DataError when the extra is not installed, the task is unknown or has many right answers, or it fails.
    """
    if task in MANY_ANSWERS:
        raise DataError(
            f"reasoning_gym task {task!r} has many right answers, and its scorer is not safe to run on model text; "
            f"choose a task with one answer, such as chain_sum, gcd, basic_arithmetic or gsm_symbolic"
        )
    if find_spec("reasoning_gym") is None:
        raise DataError('source=reasoning_gym needs an optional package: pip install "reasonrl[reasoning-gym]"')
    for number, line in enumerate(_made_by_child(task, seed, size, options or {}).splitlines()):
        row, where = json.loads(line), f"{task}[seed {seed}]:{number}"
        answer = row["answer"]
        if not isinstance(answer, str | int | float) or not str(answer).strip():
            yield Dropped("no single gold answer", where)
        else:
            steps = solution_steps((row["cot"] or "").split("####")[0], how)
            yield Item(row["question"], str(answer).strip(), steps, source, None, None)


def _made_by_child(task: str, seed: int, size: int, options: dict[str, Any]) -> str:
    command = [sys.executable, "-c", _CHILD, json.dumps([task, seed, size, options])]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"reasoning_gym task {task!r}: {size} problems took over {BUILD_SECONDS:g} s; ask for fewer"
        ) from error
    if done.returncode != 0:
        raise DataError(_failure(task, done.stderr.strip()))
    return done.stdout


def _failure(task: str, stderr: str) -> str:
    from reasonrl.data.typed import unknown_name

    if stderr.startswith("UNKNOWN "):
        return unknown_name("reasoning_gym task", task, stderr.split()[1:])
    return f"reasoning_gym task {task!r} failed: {stderr.splitlines()[-1] if stderr else 'no message'}"
