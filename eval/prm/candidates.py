"""The candidates that best-of-N chooses from: recorded responses, several a problem, in a fixed order.

    B problems, N candidates of one, L tokens of a response

From a store of `reasonrl prm data` (or its `prm.parquet`), or from a run's folder, whose rollouts are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reasonrl.config import ConfigError
from reasonrl.eval.prm.labelled import read_responses
from reasonrl.functional.confidence import capped, confidence, line_ends, random_ends, step_ends
from reasonrl.verify.code import program_in, vote_key
from reasonrl.verify.pool import CODE

SPLITS = ("confidence", "newline", "random5")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One response."""

    question: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]  # (L,) a prefix that the run gave included
    logprobs: NDArray[np.float32]  # (L,) 0 at prefix tokens
    sampled: NDArray[np.bool_]  # (L,) False at prefix tokens
    given: str | None  # the answer it states
    right: bool
    finished: bool


@dataclass(frozen=True, eq=False)
class Candidates:
    """All of them.

    policy: model that wrote them, as a path or hub name; None when unknown. problems: id -> its N, first sampled first.
    programs: whether the answers are programs.
    """

    source: str
    policy: str | None
    problems: Mapping[str, Sequence[Candidate]]
    programs: bool = False

    @property
    def key(self) -> Callable[[str | None], Hashable]:
        """An answer in a form in which equal ones are equal, for votes; None for none."""
        return program_key if self.programs else answer_key

    @property
    def most(self) -> int:
        """N of the problem that has most."""
        return max(map(len, self.problems.values()))

    def __iter__(self) -> Iterator[tuple[str, int, Candidate]]:
        """(problem id, place among its candidates, candidate)."""
        for name, some in self.problems.items():
            yield from ((name, place, candidate) for place, candidate in enumerate(some))


def read_candidates(given: str, limit: int | None = None) -> Candidates:
    """From `candidates=`. limit: problems, the first of the file. Raises ConfigError."""
    path = Path(given).expanduser()
    run = (path / "rollouts").is_dir() and not (path / "responses").is_dir()  # a labelled store has both
    found = _from_run(path) if run else _from_store(given)
    kept = dict(list(found.problems.items())[:limit])
    if len(kept) < 2:
        raise ConfigError(
            f"{given} has candidates of {len(kept)} problem; intervals resample problems and need 2 or more"
        )
    return replace(found, problems=kept)


def _from_store(given: str) -> Candidates:
    responses = read_responses(given, labels=False)
    problems: dict[str, list[tuple[int, Candidate]]] = {}
    for row in responses.rows:
        made = Candidate(
            row.question,
            row.prompt_ids,
            row.response_ids,
            row.logprobs,
            np.ones(len(row.response_ids), np.bool_),
            row.given,
            row.right,
            row.finished,
        )
        # a response that was sampled several times stands once in the file, and is that many candidates
        for number in row.numbers:
            problems.setdefault(row.problem_id, []).append((int(number), made))
    ordered = {name: [made for _, made in sorted(some, key=lambda x: x[0])] for name, some in problems.items()}
    policy = responses.about.get("path")
    programs = responses.settings.get("verify.checker") == CODE
    return Candidates(str(responses.path), None if policy is None else str(policy), ordered, programs)


def _from_run(path: Path) -> Candidates:
    """The trained rollouts of a run; of a problem that came in several steps, those of the last one."""
    import pyarrow.parquet as pq
    from omegaconf import OmegaConf

    from reasonrl.data.problems import load
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.launch import load_tokenizer
    from reasonrl.runs.folder import RunFolder

    folder = RunFolder.open(path)
    cfg: Any = OmegaConf.load(folder.path / "config.yaml")
    loaded = load(
        folder.path / "data" / "train.parquet",
        prompt_from_config(cfg.prompt),
        load_tokenizer(cfg),
        max_prompt_tokens=cfg.max_prompt_tokens,
        solutions=False,
    )
    questions = {problem.id: question for problem, question in zip(loaded.problems, loaded.questions, strict=True)}
    problems: dict[str, list[Candidate]] = {}
    programs = cfg.verify.get("checker") == CODE
    names = ["problem_id", "trained", "text", "prompt_ids", "prefix_ids", "token_ids", "logprobs", "finished", "score"]
    for file in sorted((folder.path / "rollouts").glob("step_*.parquet")):
        here: dict[str, list[Candidate]] = {}
        for row in pq.read_table(file, columns=names).to_pylist():
            if not row["trained"]:
                continue
            prefix, made = row["prefix_ids"] or [], row["token_ids"]
            here.setdefault(row["problem_id"], []).append(
                Candidate(
                    questions[row["problem_id"]],
                    np.asarray(row["prompt_ids"], np.int32),
                    np.asarray([*prefix, *made], np.int32),
                    np.asarray([0.0] * len(prefix) + row["logprobs"], np.float32),
                    np.asarray([False] * len(prefix) + [True] * len(made), np.bool_),
                    _stated(row["text"], cfg.verify),
                    row["score"] > 0.5,
                    row["finished"],
                )
            )
        problems.update(here)
    if not problems:
        raise ConfigError(f"{folder.path} has no recorded rollouts (record=true): choose another run")
    return Candidates(str(folder.path), str(cfg.model.path), problems, programs)


def _stated(text: str, verify: Any) -> str | None:
    """The answer that a text states."""
    from reasonrl.verify.extract import cut_reasoning, extract_answer

    scored = cut_reasoning(text, verify.get("answer_after", "none"))
    if scored is None:
        return None
    return (
        program_in(scored) if verify.get("checker") == CODE else extract_answer(scored, verify.get("extract", "auto"))
    )


@dataclass(frozen=True)
class Cutter:
    """Where the steps of a candidate end.

    split: with each token of confidence below `tau` (AdaptiveStep), with each line, or at four random tokens.
    max_steps: of a confidence split, as in the PRM's data.
    """

    split: Literal["confidence", "newline", "random5"] | str
    tokenizer: Any
    tau: float | None = None
    max_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for a confidence split without tau."""
        if self.split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.split == "confidence" and (self.tau is None or not 0 <= self.tau <= 1):
            raise ConfigError(
                f"split=confidence needs tau, a probability, got {self.tau}: the process reward model's data does not say one, "
                "give tau= or another split="
            )

    def __call__(self, candidate: Candidate, key: int) -> NDArray[np.int64]:
        """Ends (K,). key: of the candidate, for its own random ends."""
        excluded = ~candidate.sampled | np.isin(candidate.response_ids, self.tokenizer.all_special_ids)
        if candidate.finished:
            excluded[-1:] = True
        if self.split == "newline":
            texts = self.tokenizer.batch_decode(candidate.response_ids[:, None])
            return line_ends(np.array(["\n" in text for text in texts], dtype=np.bool_), excluded=excluded)
        if self.split == "random5":
            rng = np.random.default_rng([self.seed, key])
            return random_ends(candidate.response_ids.size, rng, steps=5, excluded=excluded)
        sure = confidence(candidate.logprobs)
        assert self.tau is not None
        ends = step_ends(sure, self.tau, excluded=excluded)
        return ends if self.max_steps is None else capped(ends, sure, self.max_steps)


def answer_key(given: str | None) -> str | Fraction | None:
    """An answer in a form in which equal ones are equal: 18, 18.0, 1,080 and $18 as numbers, other texts without spaces."""
    if given is None:
        return None
    plain = "".join(given.split()).strip("$").rstrip(".").replace("\\dfrac", "\\frac").replace("\\!", "")
    try:
        return Fraction(plain.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return plain or None


def program_key(program: str | None) -> str | None:
    """A program in a form in which equal ones are equal, whatever their layout and comments."""
    return None if program is None else vote_key(program)
