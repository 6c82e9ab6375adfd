"""Stage 3 of `reasonrl prm data`: J continuations from every interior step end, and what they say about it.

    J continuations of a step end, K steps of a response

A journal's row is a response: the verdicts on the continuations of those ends that it owns. An end that several responses
of a problem share, token by token, is owned by the first of them and rolled out once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from reasonrl.config import ConfigError
from reasonrl.eval.prm import responses as stage
from reasonrl.eval.prm.cuts import Cut
from reasonrl.eval.prm.file import Floats
from reasonrl.eval.prm.responses import NO_VERDICT, Engine, verdicts
from reasonrl.functional.process import hard_label, soft_label
from reasonrl.sampled.answers import Progress, judged, noise_key, sampling

if TYPE_CHECKING:
    from concurrent.futures import Future

    from reasonrl.data.problems import Loaded
    from reasonrl.engine.sampling import Answer, Ask
    from reasonrl.runs.journal import Journal
    from reasonrl.verify.pool import Verdict

Labels: TypeAlias = tuple[Floats, Floats]  # hard (K,), soft (K,)


@dataclass(frozen=True, eq=False)
class Task:
    """A response with ends to roll out."""

    place: int  # of its problem
    problem_id: str
    cut: Cut

    @property
    def id(self) -> str:
        """Of its journal row."""
        return f"{self.cut.response.number} {self.problem_id}"


def tasks_of(place: int, problem_id: str, cuts: Sequence[Cut]) -> list[Task]:
    """The tasks of one problem."""
    return [Task(place, problem_id, cut) for cut in cuts if cut.owned]


def together(tasks: Sequence[Task], rollouts: int) -> Iterator[list[Task]]:
    """Tasks in groups of about as many continuations as responses are sampled together."""
    group: list[Task] = []
    asked = 0
    for task in tasks:
        group.append(task)
        asked += rollouts * len(task.cut.owned)
        if asked >= stage.TOGETHER:
            yield group
            group, asked = [], 0
    if group:
        yield group


def roll_out(
    engine: Engine, rollouts: int, loaded: Loaded, groups: Sequence[list[Task]], journal: Journal, progress: Progress
) -> None:
    """Continue the responses of these groups from their own ends, and write each down as soon as it is done."""
    from reasonrl.engine.sampling import Ask

    for group in groups:
        tasks = {task.id: task for task in group}

        def asks(group: Sequence[Task] = group) -> Iterator[Ask]:
            for task in group:
                prompt = loaded.problems[task.place].prompt_ids.tolist()
                for rank, end in enumerate(task.cut.owned):
                    start = task.cut.response.token_ids[: end + 1].tolist()
                    name = f"{task.problem_id}\0{hashlib.sha256(task.cut.prefix(end)).hexdigest()}"
                    for number in range(rollouts):
                        how = sampling(
                            engine.cfg,
                            noise_key(engine.cfg.seed, name, number),
                            max_tokens=engine.cfg.max_new_tokens - len(start),
                        )
                        yield Ask((task.id, rank * rollouts + number), prompt + start, how)

        def judge(answer: Answer, tasks: Mapping[str, Task] = tasks) -> Future[Verdict]:
            task = tasks[answer.key[0]]
            end = task.cut.owned[answer.key[1] // rollouts]
            whole = [*task.cut.response.token_ids[: end + 1].tolist(), *answer.token_ids]
            return engine.judge(whole, loaded.problems[task.place].answer)

        def wanted(id: str, tasks: Mapping[str, Task] = tasks) -> int:
            return rollouts * len(tasks[id].cut.owned)

        for id, samples in judged(asks(), wanted, engine.sampler, judge):
            found = verdicts(tasks[id].problem_id, samples)
            right = np.array([verdict.correct for verdict in found], int).reshape(-1, rollouts)
            row = {
                "id": id,
                "ends": list(tasks[id].cut.owned),
                "right": right.tolist(),  # (ends, J)
                "tokens": sum(len(sample.token_ids) for sample in samples),
                "no_verdict": sum(verdict.status in NO_VERDICT for verdict in found),
            }
            if id not in journal.done:
                journal.add(row)
            progress(samples)


def labels(problem_id: str, cuts: Sequence[Cut], rows: Mapping[str, Mapping[str, Any]]) -> list[Labels]:
    """Hard and soft labels (K,) of a problem's responses, from the journals' rows by id.

    The last end has the response's own verdict, and so has an end after which nothing can change it any more. Raises
    ConfigError for rows of other responses.
    """
    known: dict[bytes, tuple[float, float]] = {}
    for task in tasks_of(0, problem_id, cuts):
        row = rows.get(task.id)
        if row is None or tuple(row["ends"]) != task.cut.owned:
            raise ConfigError(
                f"the rollouts of response {task.cut.response.number} of problem {problem_id!r} are not of the response "
                "that is in the store: its journals were mixed with others. Choose another store=, and start again"
            )
        for end, right in zip(row["ends"], row["right"], strict=True):
            known[task.cut.prefix(end)] = (float(hard_label(right)), float(soft_label(right)))
    both = []
    for cut in cuts:
        own = (float(cut.response.right),) * 2
        open_ends = cut.interior[: len(cut.interior) - cut.settled]
        pairs = [known[cut.prefix(int(end))] for end in open_ends]
        pairs += [own] * (cut.settled + bool(cut.ends.size))
        table = np.array(pairs, np.float32).reshape(-1, 2)  # (K, 2)
        both.append((table[:, 0], table[:, 1]))
    return both
