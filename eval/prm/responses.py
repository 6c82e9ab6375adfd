"""Stage 1 of `reasonrl prm data`: n responses a problem with the confidence of their tokens, each judged.

    L tokens of a response

A journal's row is a problem: its different responses in the order of their numbers; equal ones are one of them.

Problems are sampled in groups, the same whatever the shards and interruptions: the rounding of a log-probability follows
from what is computed beside it. A group that was stopped is sampled again as a whole.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrl.config import ConfigError, RunFailed
from reasonrl.eval.prm.file import Floats, Ids
from reasonrl.functional.confidence import Mask, confidence
from reasonrl.sampled.answers import Progress, Sample, judged, noise_key, sampling

if TYPE_CHECKING:
    from concurrent.futures import Future

    from omegaconf import DictConfig

    from reasonrl.data.problems import Loaded
    from reasonrl.engine.sampling import Answer, Ask, Sampler
    from reasonrl.runs.journal import Journal, Shard
    from reasonrl.verify.pool import Verdict, Verifier

TOGETHER = 1024  # answers that are asked for together: larger uses a GPU better, and loses more when killed
NO_VERDICT = ("timeout", "error")  # counts as wrong: it would happen again. A program has a verdict or stops everything


@dataclass(frozen=True, eq=False)
class Response:
    """One response of the policy, different from the others of its problem."""

    numbers: tuple[int, ...]  # which of the n, 0..n-1, were exactly this one; rising
    token_ids: Ids  # (L,) the end token included when it was emitted
    logprobs: Floats  # (L,)
    finished: bool
    right: bool
    given: str | None  # the answer found in it
    judged: bool  # False: the verifier came to no verdict in time, which counts as wrong

    @property
    def number(self) -> int:
        """Of the first that was so."""
        return self.numbers[0]

    @property
    def times(self) -> int:
        """How often it came."""
        return len(self.numbers)

    @property
    def confidence(self) -> Any:
        """(L,) float64."""
        return confidence(self.logprobs)

    def excluded(self, special_ids: Ids) -> Mask:
        """(L,) True at tokens that never end a step: special ones, and the end token whatever it is."""
        mask = np.isin(self.token_ids, special_ids)
        if self.finished:
            mask[-1:] = True
        return mask


def groups(problems: int, n: int) -> list[range]:
    """Places of the problems that are sampled together, for n answers each."""
    size = -(-TOGETHER // n)
    return [range(start, min(start + size, problems)) for start in range(0, problems, size)]


def own_groups(part: Shard, problems: int, n: int) -> list[range]:
    """Those of a shard."""
    all_groups = groups(problems, n)
    return [all_groups[index] for index in part.own(len(all_groups))]


@dataclass(frozen=True)
class Engine:
    """What samples and judges."""

    cfg: DictConfig
    tokenizer: Any
    sampler: Sampler
    verifier: Verifier

    def judge(self, token_ids: Sequence[int], answer: str) -> Future[Verdict]:
        """The verdict on a whole response."""
        return self.verifier.submit(self.tokenizer.decode(token_ids, skip_special_tokens=True), answer)


def verdicts(problem_id: str, samples: Sequence[Sample]) -> list[Verdict]:
    """The verdicts on samples of one problem. Raises RunFailed where a judge has none: that is no label."""
    try:
        return [sample.verdict.result() for sample in samples]
    except RunFailed as error:
        raise RunFailed(f"problem {problem_id!r}: {error}") from error


def sample_responses(
    engine: Engine, n: int, loaded: Loaded, todo: Sequence[range], journal: Journal, progress: Progress
) -> None:
    """Sample the groups `todo`, and write each problem down as soon as it is done.

    Raises ConfigError for a sampler that gives no usable log-probabilities.
    """
    from reasonrl.engine.sampling import Ask

    def judge(answer: Answer) -> Future[Verdict]:
        return engine.judge(answer.token_ids, loaded.problems[answer.key[0]].answer)

    for group in todo:

        def asks(group: range = group) -> Iterator[Ask]:
            for place in group:
                problem = loaded.problems[place]
                for number in range(n):
                    how = sampling(engine.cfg, noise_key(engine.cfg.seed, problem.id, number))
                    yield Ask((place, number), problem.prompt_ids.tolist(), how)

        for place, samples in judged(asks(), lambda place: n, engine.sampler, judge):
            problem_id = loaded.problems[place].id
            if problem_id not in journal.done:
                verdicts(problem_id, samples)
                journal.add(written(problem_id, distinct(problem_id, samples)))
            progress(samples)


def distinct(problem_id: str, samples: Sequence[Sample]) -> list[Response]:
    """The different responses among samples, which come in the order of their numbers. Raises ConfigError."""
    equal: dict[bytes, list[Sample]] = {}
    for sample in samples:
        equal.setdefault(np.asarray(sample.token_ids, np.int32).tobytes(), []).append(sample)
    return [_response(problem_id, some) for some in equal.values()]


def _response(problem_id: str, equal: Sequence[Sample]) -> Response:
    sample = equal[0]
    where = f"problem {problem_id!r}, response {sample.number}"
    if sample.logprobs is None or len(sample.logprobs) != len(sample.token_ids):
        have = "no" if sample.logprobs is None else f"{len(sample.logprobs)}"
        raise ConfigError(
            f"{where}: the engine gave {have} log-probabilities for {len(sample.token_ids)} tokens, and steps are cut by "
            "them: use engine=cpu, or the vllm that reasonrl[gpu] installs"
        )
    logprobs = np.asarray(sample.logprobs, np.float32)
    try:
        confidence(logprobs)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {error}. The model's numbers are broken: try another precision or attention, or check its weights"
        ) from error
    verdict = sample.verdict.result()
    return Response(
        numbers=tuple(each.number for each in equal),
        token_ids=np.asarray(sample.token_ids, np.int32),
        logprobs=logprobs,
        finished=sample.finished,
        right=verdict.correct,
        given=verdict.extracted,
        judged=verdict.status not in NO_VERDICT,
    )


# A journal's row. Arrays as base64 of their bytes: exact, and a third of the size of decimal numbers.


def written(problem_id: str, responses: Sequence[Response]) -> dict[str, Any]:
    """A journal's row."""
    return {
        "id": problem_id,
        "responses": [
            {
                **{name: getattr(r, name) for name in ("numbers", "finished", "right", "given", "judged")},
                "token_ids": base64.b64encode(r.token_ids.astype("<i4").tobytes()).decode(),
                "logprobs": base64.b64encode(r.logprobs.astype("<f4").tobytes()).decode(),
            }
            for r in responses
        ],
    }


def read_back(row: Mapping[str, Any]) -> list[Response]:
    """`written`, undone."""
    return [
        Response(
            **{
                **values,
                "numbers": tuple(values["numbers"]),
                "token_ids": np.frombuffer(base64.b64decode(values["token_ids"]), "<i4"),
                "logprobs": np.frombuffer(base64.b64decode(values["logprobs"]), "<f4"),
            }
        )
        for values in row["responses"]
    ]
