"""`reasonrl eval ...`: dispatch only; help imports nothing heavy."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

HELP = """\
reasonrl eval model=... task=... [key=value ...]      score a checkpoint on benchmarks
reasonrl eval model=... suite=...                     all tasks of a paper, its way
reasonrl eval compare FOLDER FOLDER [...]             two evaluations of the same questions, paired
reasonrl eval lighteval model=... task=...            lighteval's own tasks beside ours
reasonrl eval report FOLDER                           write an evaluation's report.html anew
reasonrl eval tasks                                   what there is to choose from

Writes evals/<name>/: results.json (numbers with intervals), samples.parquet (every answer), report.html. Stopped at any
moment, it continues with the same command.

  reasonrl eval model=tiny task=arithmetic
  reasonrl eval model=runs/mine task=gsm8k,math500 data_dir=~/data n=4
  reasonrl eval model=Qwen/Qwen2.5-7B suite=... engine.data_parallel=8

What is measured
  model=            alias, local folder, hub name, a run (runs/x: its newest checkpoint) or runs/x/checkpoints/global_step_N
  task=             names, several with commas, or a file of your own: ./my_task.yaml
  suite= protocol=  settings of a paper; a suite names tasks and a protocol, and prints the paper's table with ours. What the
                    command line says wins; task= narrows a suite to some of its tasks
  baseline=         folder of the model before: a suite's table says how many tokens are saved
  data_dir=         where the sets lie that are not downloaded
  limit=            the first so many questions of each task

How answers are sampled (default: as the protocol, else the task says)
  n=                answers a question      temperature= top_p= top_k=
  max_new_tokens=   longer answers are cut
  max_context=      tokens of prompt and answer together; default: what the model reads. Of a server: its own limit, where it
                    does not tell it
  prompt=           name or .yaml file; default: the protocol's, else the run's own, else the task's
  seed=1            seeds=true: every answer has noise of its own in vLLM too, which is slow
  trust_remote_code=false

How they are judged
  verify=           option of conf/verify, with verify.checker= verify.extract= verify.answer_after= verify.timeout=
                    verify.answer_phrase= (of verify.extract=phrase_number)
  verify.judge=     of programs: address of a `reasonrl judge`; default: one is started with the evaluation.
                    verify.cpu_seconds=3 and verify.memory_mb=1024 of each program
  ks=1,2,4,...      of pass@k and maj@k; default: the powers of two up to n
  workers=          processes that grade; default: one a core, at most 16

Where it runs
  backend=auto      vllm where there is an NVIDIA GPU, else transformers (on the CPU); openai: a server
  engine.tensor_parallel=1   GPUs of one copy of the model      engine.data_parallel=1   copies
  engine.memory=0.9 engine.eager=false engine.max_sequences= engine.threads= engine.dtype=auto
  base_url= served_model= api_key_env=OPENAI_API_KEY max_connections=64 request_timeout=1800      of backend=openai

Where it goes
  name=             folder under evals/; default: from the settings      out=   the folder itself
  overwrite=false   true: what is there is removed first
"""

PIPE_WIDTH = 160

# name -> where its `run(args) -> exit code` is
COMMANDS = {
    "compare": "reasonrl.eval.compare",
    "lighteval": "reasonrl.eval.lighteval.command",
    "report": "reasonrl.eval.report.command",
}


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.config import ConfigError, nearest
    from reasonrl.sampled.arguments import wants_help

    if args and args[0] == "tasks":
        return list_tasks(args[1:])
    if args and args[0] in COMMANDS:
        code: int = importlib.import_module(COMMANDS[args[0]]).run(list(args[1:]))
        return code
    if wants_help(args):
        print(HELP)
        return 0
    if "=" not in args[0]:
        raise ConfigError(f"Unknown command 'eval {args[0]}'{nearest(args[0], [*COMMANDS, 'tasks'])}; or key=value")
    from reasonrl.eval.settings import read_settings

    knobs = read_settings(args)
    from rich.console import Console

    from reasonrl.eval.run import evaluate

    # A table is not for 80 columns; a file and a pipe have as many as it takes.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    evaluate(
        knobs,
        console=Console(file=sys.stdout, width=width, soft_wrap=True, highlight=False, markup=False),
        command=args,
    )
    return 0


def list_tasks(args: Sequence[str]) -> int:
    """`reasonrl eval tasks`. Raises ConfigError."""
    from rich.console import Console
    from rich.table import Table

    from reasonrl.cli import options
    from reasonrl.config import ConfigError
    from reasonrl.eval.tasks.task import load_task, task_names

    if args:
        raise ConfigError(f"reasonrl eval tasks takes nothing, got {args[0]!r}")
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("task", "kind", "questions", "n", "max tokens", "what it is"):
        table.add_column(name, justify="right" if name in ("questions", "n", "max tokens") else "left", overflow="fold")
    for name in task_names():
        task = load_task(name)
        size = "" if task.size is None else f"{task.size:,}"
        table.add_row(task.name, task.kind, size, str(task.sampling.n), str(task.sampling.max_new_tokens), task.title)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(table)
    for group, what in (("suite", "suites"), ("protocol", "protocols")):
        if names := options(group):
            console.print(f"\n{what}: {', '.join(names)}")
    return 0
