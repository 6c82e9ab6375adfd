"""`reasonrl tts ...`: dispatch only; help imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

HELP = """\
reasonrl tts method=... model=... task=... [key=value ...]     several attempts at each question, by a method
reasonrl tts hard model=... task=... [key=value ...]           the hard set: questions whose greedy answer fails

Writes tts/<name>/: results.json (curves with intervals), attempts/ and traces/ (everything that was tried). Stopped at any
moment, it continues with the same command.

  reasonrl tts method=best_of_n model=tiny task=arithmetic budget=16
  reasonrl tts hard model=tiny task=arithmetic
  reasonrl tts method=revision model=tiny task=arithmetic budget=8 hard=auto

Methods (knobs with method.<knob>=)
  greedy            one answer at temperature 0
  best_of_n         independent samples until one is right; method.selector=oracle|vote|prm|orm method.oracle_stop=true
                    prm: method.prm=<folder or http://...> method.aggregate=min method.prm_device=auto, a step a line
                    orm: method.orm=http://... (POST {chat: [...]} -> a number) method.orm_tokens=
  self_consistency  independent samples that vote; method.raw_vote=false
  beam_search       one search as wide as the budget
  revision          "incorrect, try again", with the whole conversation; method.overflow=drop_oldest|stop
  self_refine       "there is an error, find it", with the latest output
  fttt              a gradient step on the feedback after each wrong attempt, on a LoRA that ends with the question;
                    method.plus=false (true: on a reflection too) method.lr=1e-5 method.targets=q_proj+v_proj
                    method.rank=4 method.alpha=16 method.dropout=0.05 method.steps=1 method.optimizer=adamw|sgd
                    method.prefix_grad=false method.sample_in_train_mode=false method.c=1
  optune            a learned editor of weights in the place of the step: method.editor=<folder of `reasonrl optune train`>
                    method.schedule=alternate|chain method.other_model=false (true: on weights it was not trained on)

Where a verifier ends the search, the number is a coverage (coverage@N), never an accuracy.

What may be spent, on each question
  budget=32         attempts; every one is charged, one without an answer and a draft too
  tokens= seconds=  no attempt begins once so many were spent
  free_unparsable=false   true: attempts without an answer are drawn again for free, at most 2 budget + 1 in all

What is asked
  hard=             file of a hard set; auto: where `reasonrl tts hard` puts it. Default: all questions
  data_dir= limit=  as in reasonrl eval
  prompt= verify= verify.checker= verify.extract= verify.answer_after= verify.timeout=    as in reasonrl eval
  verify.judge= verify.cpu_seconds= verify.memory_mb=    of programs, as in reasonrl eval

How attempts are sampled
  temperature=0.6 top_p=0.95 top_k=-1    of methods that sample
  max_new_tokens=   default: the task's, at most 2048      max_context=   tokens of prompt and answer together
  seeds=42,85,100   the numbers are means over them; methods that sample nothing use the first
  trust_remote_code=false

Where it runs
  backend=auto      transformers, or vllm where there are a GPU and vLLM and the method only samples. With vllm
                    beams are vLLM's own; fttt and optune keep a second copy of the model beside it, for gradients
  batch=64          questions at once; changes no trace      workers=   processes that grade
  engine.threads= engine.max_sequences= engine.device= engine.dtype=
  of vllm: engine.memory=0.9 (0.5 where another model lies on the GPU) engine.tensor_parallel= engine.eager=
           engine.max_loras=16 (weights of questions' own in use at once) engine.edit_rank=64 (optune's edits are cut to it)

Where it goes
  name=             folder under tts/; default: from the settings      out=   the folder itself
  overwrite=false   true: what is there is removed first
"""

PIPE_WIDTH = 160
SUBCOMMANDS = ("hard",)


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from reasonrl.config import ConfigError, nearest
    from reasonrl.sampled.arguments import wants_help

    if wants_help(args):
        print(HELP)
        return 0
    builds = args[0] == "hard"
    rest = list(args[1:] if builds else args)
    if rest and "=" not in rest[0]:
        raise ConfigError(f"Unknown command 'tts {rest[0]}'{nearest(rest[0], SUBCOMMANDS)}; or key=value")
    from reasonrl.eval.tts.settings import read_settings

    if builds:
        for arg in rest:
            key = arg.partition("=")[0]
            if key in ("method", "budget", "hard") or key.startswith("method."):
                raise ConfigError(f"{arg}: `reasonrl tts hard` is greedy decoding of all questions; leave {key}= out")
    knobs = read_settings(rest, fixed=("method=greedy",) if builds else ())
    from rich.console import Console

    from reasonrl.eval.tts.run import build_hard_set, run_tts

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, soft_wrap=True, highlight=False, markup=False)
    (build_hard_set if builds else run_tts)(knobs, console=console, command=args)
    return 0
