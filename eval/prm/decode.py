"""`reasonrl prm decode`: value-guided decoding beside greedy decoding on the same problems. AdaptiveStep, arXiv 2502.13943."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.prm.knobs import read_knobs, require
from reasonrl.eval.prm.programs import UntilComplete

if TYPE_CHECKING:
    from concurrent.futures import Future

    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.core import Problem
    from reasonrl.engine.prm import Scorer
    from reasonrl.engine.prm.guided import Row
    from reasonrl.verify.pool import Verdict

HELP = """\
reasonrl prm decode model=<policy> data=... prm=<folder or http://host:port> [key=value ...]

Decodes greedily, then again with the process reward model choosing among the likeliest tokens where the model is unsure.

  reasonrl prm decode model=tiny data=arithmetic prm=prm/scorer limit=200
  reasonrl prm decode model=... data=humaneval prompt=code verify=code prm=...     programs, run by a judge

  tau=                  unsure: the best token has less probability; default: that of the data the PRM learned from
  candidates=8          tokens to choose among
  tags=last             as released, only a candidate's own end is tagged; all: earlier such places too, as in training
  round_percent=false   true: compare in hundredths of a percent, as released
  split=validation      or train
  limit=                problems, the first of the split
  rows=64               responses decoded together
  out=                  default: prm-decode/MODEL-DATA
  batch_tokens= backend=transformers (or vllm)    of the process reward model

Everything else is what a run takes: model, data, prompt, verify, max_prompt_tokens, max_new_tokens, engine=cpu|gpu.
Temperature, top_p and top_k play no part. Writes results.json, table.md and responses.jsonl to out.
"""
COMMAND = "reasonrl prm decode"
ELSEWHERE = {  # keys of a run that would not do here what they say
    "prefixes": "is what a run is given; nothing is put before these responses",
    "name": "is for run folders; the folder is out=",
    "resume": "is for run folders",
    "dry_run": "is for training",
}
RESPONSES = "responses.jsonl"
TOLD_SECONDS = 10.0


@dataclass(frozen=True)
class DecodeKnobs:
    """See `HELP`."""

    prm: str
    tau: float | None = None
    candidates: int = 8
    tags: str = "last"
    round_percent: bool = False
    split: str = "validation"
    limit: int | None = None
    rows: int = 64
    out: str | None = None
    batch_tokens: int | None = None
    backend: str = "transformers"

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        require(self.tau is None or 0 <= self.tau <= 1, f"tau must be a probability in [0, 1], got {self.tau}")
        for name in ("candidates", "limit", "rows", "batch_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name, choices in (
            ("tags", ("last", "all")),
            ("split", ("validation", "train")),
            ("backend", ("transformers", "vllm")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code. Raises ConfigError."""
    from dataclasses import fields

    from reasonrl.sampled.arguments import composed_run, parse, wants_help

    if wants_help(args):
        print(HELP)
        return 0
    from rich.console import Console

    own, rest = parse(args, command=COMMAND, own=[f.name for f in fields(DecodeKnobs)], elsewhere=ELSEWHERE)
    compare(
        composed_run(rest),
        read_knobs(DecodeKnobs, [f"{key}={value}" for key, value in own.items()], COMMAND),
        console=Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False),
    )
    return 0


def compare(
    cfg: DictConfig, knobs: DecodeKnobs, *, scorer: Scorer | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Decode both ways, judge, write; returns what is in results.json. scorer: one that is open already.

    Raises ConfigError, and RunFailed when a judge gives no verdict; the responses are kept then.
    """
    from rich.console import Console

    from reasonrl.config import package_path, typed
    from reasonrl.engine.prm import open_scorer
    from reasonrl.engine.prm.guided import Guide, decode, greedy
    from reasonrl.models import check_model
    from reasonrl.runs.files import write_text
    from reasonrl.sampled.problems import asked_problems
    from reasonrl.train import check_nodes
    from reasonrl.verify.pool import CODE, Verifier, VerifierError, verify_from_config

    console = console or Console(quiet=True)
    cfg = typed(cfg)
    check_nodes(cfg)
    check_model(cfg)
    asked = asked_problems(cfg, 1, split=knobs.split)
    problems, questions = asked.loaded.problems[: knobs.limit], asked.loaded.questions[: knobs.limit]
    require(len(problems) >= 2, f"limit={knobs.limit} leaves {len(problems)} problem; intervals need 2 or more")
    model, end_ids = loaded(cfg, asked.tokenizer)
    device = "cpu" if cfg.engine.device == "cpu" else "auto"
    scorer = scorer or open_scorer(
        knobs.prm,
        tokenizer=asked.tokenizer,
        device=device,
        batch_tokens=knobs.batch_tokens,
        backend=knobs.backend,  # type: ignore[arg-type]
    )
    tau = knobs.tau if knobs.tau is not None else scorer.card.data.get("tau")
    if tau is None:
        raise ConfigError("the process reward model's data does not say its tau: give tau=")
    prompts = [problem.prompt_ids.tolist() for problem in problems]
    guide = Guide(
        scorer,
        questions,
        prompts,
        float(tau),
        frozenset(end_ids),
        candidates=knobs.candidates,
        round_percent=knobs.round_percent,
        tags=knobs.tags,
    )
    console.print(f"{len(problems)} problems{asked.dropped}, tau {tau:.4f}, {knobs.candidates} candidates")
    found: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    asked_for: dict[str, list[Future[Verdict]]] = {}
    programs = cfg.verify.checker == CODE
    guided = UntilComplete(guide, greedy, asked.tokenizer, cfg.verify.answer_after) if programs else guide
    out = Path(knobs.out or Path("prm-decode") / f"{cfg.model.name}-{cfg.data.name}".replace("/", "-")).expanduser()
    try:
        with Verifier(verify_from_config(cfg.verify)) as verifier:
            verifier.warm_up()  # what is broken is told before the first token
            for name, choose in (("greedy", greedy), ("guided", guided)):
                started = time.monotonic()
                try:
                    found[name] = decode(
                        model,
                        prompts,
                        end_ids=end_ids,
                        max_tokens=cfg.max_new_tokens,
                        choose=choose,
                        rows=knobs.rows,
                        tell=_telling(console, name, len(prompts)),
                    )
                except ValueError as error:  # the scorer's: another vocabulary, a lossy tokenizer
                    raise ConfigError(str(error)) from error
                seconds[name] = time.monotonic() - started
                texts[name] = [asked.tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in found[name]]
                asked_for[name] = [
                    verifier.submit(text, problem.answer) for text, problem in zip(texts[name], problems, strict=True)
                ]
            verdicts = {name: [future.result().correct for future in each] for name, each in asked_for.items()}
    except VerifierError as error:
        raise ConfigError(str(error)) from error
    except RunFailed as error:
        if len(found) < 2:
            raise
        _write_responses(out, problems, found, texts, None)
        raise RunFailed(f"{error}. The responses are in {out / RESPONSES}, without verdicts") from error
    results = {
        "model": package_path(cfg.model.path),
        "data": cfg.data.name,
        "prm": knobs.prm,
        "identity": scorer.identity,
        "tau": float(tau),
        "verify": verify_from_config(cfg.verify).comparable,
        **{name: getattr(knobs, name) for name in ("candidates", "tags", "round_percent", "split")},
        **measured(found, verdicts, seconds, guide),
    }
    _write_responses(out, problems, found, texts, verdicts)
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "table.md", table(results))
    console.print(f"{table(results)}\n{out}")
    if not results["triggers_a_response"]:
        console.print(
            f"the process reward model was never asked: no best token had less probability than tau={tau:.4g}, which is a "
            "quantile of sampled tokens. Give a larger tau=, such as 0.5"
        )
    return results


def _write_responses(
    out: Path,
    problems: Sequence[Problem],
    found: Mapping[str, Sequence[Row]],
    texts: Mapping[str, Sequence[str]],
    verdicts: Mapping[str, Sequence[bool]] | None,
) -> None:
    """A line a problem, with both ways. verdicts: None when there are none. Raises ConfigError."""
    from reasonrl.runs.files import write_text

    lines = [
        json.dumps(
            {
                "problem_id": problem.id,
                "answer": problem.answer,
                **{
                    way: {
                        "text": texts[way][i],
                        "right": None if verdicts is None else verdicts[way][i],
                        "asked": rows[i].asked,
                        "changed": rows[i].changed,
                    }
                    for way, rows in found.items()
                },
            }
        )
        for i, problem in enumerate(problems)
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): choose another out=") from error
    write_text(out / RESPONSES, "\n".join(lines) + "\n")


def _telling(console: Console, name: str, total: int) -> Any:
    started = told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > TOLD_SECONDS:
            told = now
            console.print(f"{name}: {done}/{total} problems, {now - started:.0f} s")

    return tell


def loaded(cfg: DictConfig, tokenizer: Any) -> tuple[Any, list[int]]:
    """The policy in evaluation mode, and its end tokens. Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from reasonrl.config import package_path
    from reasonrl.engine.prm.transformers_scorer import chosen_device

    logging.disable_progress_bar()
    device = "cpu" if cfg.engine.device == "cpu" else chosen_device("cuda")
    path = package_path(cfg.model.path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            attn_implementation="sdpa",
            trust_remote_code=cfg.model.trust_remote_code,
        )
    except Exception as error:  # the libraries behind it raise a dozen kinds
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(f"cannot load model {path}: {type(error).__name__}: {line}") from error
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return model.to(device).eval().requires_grad_(False), sorted(
        {int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None}
    )


def measured(
    found: dict[str, list[Row]], verdicts: dict[str, list[bool]], seconds: dict[str, float], guide: Any
) -> dict[str, Any]:
    """Accuracies with intervals, their paired difference, and what the guide cost."""
    from reasonrl.functional.estimates import mean_interval, paired_interval

    right = {name: np.array(each, dtype=np.float64) for name, each in verdicts.items()}
    rows = found["guided"]
    tokens = sum(len(row.token_ids) for row in rows)
    return {
        "problems": len(rows),
        **{name: asdict(mean_interval(each)) for name, each in right.items()},
        "difference": asdict(paired_interval(right["guided"], right["greedy"])),
        "triggers_a_response": sum(len(row.asked) for row in rows) / len(rows),
        "trigger_share_of_tokens": sum(len(row.asked) for row in rows) / tokens,
        "changed_a_response": sum(row.changed for row in rows) / len(rows),
        "unscored_triggers": sum(row.unscored for row in rows),
        "prm_calls": guide.calls,
        "prm_candidates": guide.scored,
        "tokens_a_response": {
            name: sum(len(row.token_ids) for row in each) / len(each) for name, each in found.items()
        },
        "seconds": seconds,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""

    def cell(name: str) -> str:
        got = results[name]
        return f"{got['estimate']:.1%} ({got['low']:.1%}–{got['high']:.1%})"

    gap = results["difference"]
    change = gap["difference"]
    return "\n".join(
        [
            f"{results['problems']} problems, tau {results['tau']:.4f}, {results['candidates']} candidates, tags "
            f"{results['tags']}",
            "",
            "| decoding | accuracy | tokens | seconds |",
            "|---|---|---|---|",
            *(
                f"| {name} | {cell(name)} | {results['tokens_a_response'][name]:.1f} | {results['seconds'][name]:.1f} |"
                for name in ("greedy", "guided")
            ),
            "",
            f"guided - greedy: {100 * change['estimate']:+.1f} points ({100 * change['low']:+.1f} to "
            f"{100 * change['high']:+.1f}), p {gap['p_value']:.3g}, {gap['gained']} gained, {gap['lost']} lost",
            f"triggers: {results['triggers_a_response']:.2f} a response ({results['trigger_share_of_tokens']:.1%} of tokens), "
            f"{results['changed_a_response']:.2f} changed; {results['prm_calls']} calls of the process reward model, "
            f"{results['prm_candidates']} candidates, {results['unscored_triggers']} triggers beyond its context",
            "",
        ]
    )
