"""What an editor is trained on: wrong attempts of the model itself, and the solutions that it should have written.

    attempts   n a question, sampled from the plain model, judged, in a store: a journal that continues itself
    targets    the reference solution and the answer in the form the prompt asks for, each accepted by the verifier
    pairs      (question, attempt, words) -> edit; (question, target) -> loss under the edited weights

An attempt that was cut, or that nobody could judge, is never used. Right attempts are left out, or what
`correct_trial_strategy` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.config import ConfigError
from reasonrl.eval.tts.feedback import FeedbackPolicy
from reasonrl.eval.tts.optune.lesson import lesson, tokens

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from reasonrl.data.problems import Loaded
    from reasonrl.eval.tts.backends.local import LocalBackend
    from reasonrl.eval.tts.optune.train import OptuneKnobs

STRATEGIES = ("exclude", "include", "ground_truth")
CORRECT = "Your answer is correct."  # what `ground_truth` answers a right attempt with
TOGETHER = 2048  # answers that are asked for together: what a kill loses, at most
UNKNOWN = ("timeout", "error")  # of a verdict


@dataclass(frozen=True)
class Pair:
    """lesson: question, attempt and words; target: question and solution, of which the tokens from `start` on are learned."""

    problem: int
    lesson: tuple[int, ...]
    target: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Questions:
    """Problems with a solution, their targets as tokens, and everything that their attempts follow from."""

    tokenizer: Any
    feedback: FeedbackPolicy
    loaded: Loaded
    targets: Mapping[int, tuple[int, ...]]
    settings: dict[str, Any]
    about: dict[str, Any]


def read_questions(cfg: DictConfig, knobs: OptuneKnobs, end_ids: Sequence[int], console: Console) -> Questions:
    """Data, prompts and targets. Raises ConfigError for data without solutions, or a model without turns."""
    from reasonrl.config import package_path
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.engine.verl.launch import load_tokenizer
    from reasonrl.eval.tune.targets import gold_texts
    from reasonrl.sampled.problems import load_split, settings
    from reasonrl.verify.pool import verify_from_config

    tokenizer = load_tokenizer(cfg)
    feedback = FeedbackPolicy(tokenizer)
    try:
        prompt = prompt_from_config(cfg.prompt)
        if prompt.kind != "chat":
            raise ConfigError(
                f"prompt={prompt.name} is a text, and an attempt is answered in turns of a chat: choose a prompt of kind chat"
            )
        loaded, sha256 = load_split(cfg, tokenizer, "train")
    except ValueError as error:  # DataError and friends say what, where and the way out
        raise ConfigError(str(error)) from error
    made = gold_texts(loaded, prompt, verify_from_config(cfg.verify), ending=None, source=f"data={cfg.data.name}")
    have = sum(bool(solution.strip()) for solution in loaded.solutions)
    ends = feedback.turn(knobs.words, header=False)[:1]
    closing = ends if ends[0] in end_ids else (int(tokenizer.eos_token_id),)
    targets = {
        i: (*tokenizer(text, add_special_tokens=False)["input_ids"], *closing) for i, text in sorted(made.items())
    }
    notes = [f"{len(loaded) - have} without a solution"] if have < len(loaded) else []
    notes += [f"{have - len(made)} whose solution the verifier does not accept"] if len(made) < have else []
    if loaded.dropped_too_long:
        notes.append(f"{loaded.dropped_too_long} longer than max_prompt_tokens")
    console.print(f"{len(targets)} questions with a solution" + "".join(f", {note}" for note in notes))
    found = {**settings(cfg, knobs.samples, tokenizer, len(loaded), sha256), "engine": knobs.device}
    about = {
        "model": cfg.model.name,
        "path": package_path(cfg.model.path),
        "data": cfg.data.name,
        "prompt": prompt.name,
    }
    return Questions(tokenizer, feedback, loaded, targets, found, about)


# Attempts


def sample_attempts(
    cfg: DictConfig, knobs: OptuneKnobs, questions: Questions, backend: Callable[[], LocalBackend], console: Console
) -> None:
    """Sample and judge what the store lacks. backend: opens the model, called where something is missing."""
    from reasonrl.engine.sampling import Answer, Ask, CPUSampler
    from reasonrl.runs.journal import Journal, Shard
    from reasonrl.sampled.answers import Progress, judged, noise_key, sampling, telling_what_is_kept
    from reasonrl.verify.pool import Verifier, verify_from_config

    problems, store = questions.loaded.problems, knobs.store_path(cfg)
    if _whole(Shard(0, 1).file(store), questions):
        return
    with Journal.opened(store, Shard(0, 1), questions.settings, questions.about) as journal:
        todo = [i for i in questions.targets if problems[i].id not in journal.done]
        if not todo:
            return
        if journal.done:
            console.print(f"{journal.path} has {len(journal.done)} of {len(questions.targets)} questions already")
        with (
            telling_what_is_kept(journal, "questions"),
            Verifier(verify_from_config(cfg.verify)) as verifier,
        ):
            model = backend()
            verifier.warm_up()
            sampler = CPUSampler(
                model.model, end_ids=model.end_ids, decode=questions.tokenizer.decode, max_rows=model.max_rows
            )

            def judge(answer: Answer) -> Any:
                text = questions.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                return verifier.submit(text, problems[answer.key[0]].answer)

            progress = Progress(console, len(todo), what="questions", answers="attempts")
            progress.start()
            size = -(-TOGETHER // knobs.samples)
            for start in range(0, len(todo), size):
                some = todo[start : start + size]

                def asks(some: Sequence[int] = some) -> Iterator[Ask]:
                    for i in some:
                        for number in range(knobs.samples):
                            how = sampling(cfg, noise_key(cfg.seed, problems[i].id, number))
                            yield Ask((i, number), problems[i].prompt_ids.tolist(), how)

                for i, samples in judged(asks(), lambda i: knobs.samples, sampler, judge):
                    attempts = [
                        {
                            "token_ids": sample.token_ids,
                            "finished": sample.finished,
                            "correct": sample.verdict.result().correct,
                            "known": sample.verdict.result().status not in UNKNOWN,
                        }
                        for sample in samples
                    ]
                    journal.add({"id": problems[i].id, "attempts": attempts})
                    progress(samples)


def _whole(file: Path, questions: Questions) -> bool:
    """Whether nothing is missing: then any number of trainings read it at once. Raises ConfigError for other settings."""
    from reasonrl.runs.journal import read_journal, refuse_others

    written = read_journal(file)
    if written is None or not written.rows:
        return False
    refuse_others(file, written.settings, questions.settings)
    return {questions.loaded.problems[i].id for i in questions.targets} <= {row["id"] for row in written.rows}


def read_attempts(cfg: DictConfig, knobs: OptuneKnobs, questions: Questions) -> dict[int, list[dict[str, Any]]]:
    """Of each question, from its store."""
    from reasonrl.runs.journal import Shard, read_journal

    written = read_journal(Shard(0, 1).file(knobs.store_path(cfg)))
    rows = {row["id"]: row["attempts"] for row in (written.rows if written else ())}
    return {i: rows[questions.loaded.problems[i].id] for i in questions.targets}


def pairs_of(
    knobs: OptuneKnobs, questions: Questions, attempts: Mapping[int, Sequence[Mapping[str, Any]]], seed: int
) -> tuple[list[Pair], Counter[str]]:
    """What can be learned from, and how many attempts were left out and why. Raises ConfigError where nothing is left."""
    found, counts = [], Counter[str]()
    for i, some in attempts.items():
        prompt = questions.loaded.problems[i].prompt_ids.tolist()
        target = (*prompt, *questions.targets[i])
        for attempt in some:
            counts["attempts"] += 1
            counts["correct"] += attempt["correct"]
            why = _left_out(knobs, attempt)
            words = CORRECT if attempt["correct"] and knobs.correct_trial_strategy == "ground_truth" else knobs.words
            if why is None:
                step = lesson(prompt, attempt["token_ids"], attempt["finished"], questions.feedback, words)
                pair = Pair(i, tokens(step), target, len(prompt))
                if max(len(pair.lesson), len(target)) > knobs.max_tokens:
                    why = "too long"
                else:
                    found.append(pair)
            if why is not None:
                counts[why] += 1
    if not found:
        told = ", ".join(f"{count} {why}" for why, count in counts.items() if why != "attempts")
        raise ConfigError(
            f"none of {counts['attempts']} attempts can be learned from ({told}): raise max_new_tokens or max_tokens, choose "
            "harder data, or correct_trial_strategy=include"
        )
    if len(found) > knobs.max_pairs:
        counts["over max_pairs"] = len(found) - knobs.max_pairs
        kept = np.sort(np.random.default_rng([seed, 3]).permutation(len(found))[: knobs.max_pairs])
        found = [found[i] for i in kept]
    return found, counts


def _left_out(knobs: OptuneKnobs, attempt: Mapping[str, Any]) -> str | None:
    if not attempt["finished"]:
        return "cut"
    if not attempt["known"]:
        return "not judged"
    if attempt["correct"] and knobs.correct_trial_strategy == "exclude":
        return "right"
    return None


def split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """To train on and held out, by question. Raises ConfigError when nothing would be left to train on."""
    names = sorted({pair.problem for pair in pairs})
    count = round(share * len(names))
    if share > 0:
        count = min(max(count, 1), len(names) - 1)
    held = {names[i] for i in np.random.default_rng([seed, 1]).permutation(len(names))[:count]}
    return [pair for pair in pairs if pair.problem not in held], [pair for pair in pairs if pair.problem in held]
