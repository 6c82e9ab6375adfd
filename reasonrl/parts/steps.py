"""Responses cut into steps where the model hesitates, and credit for each step.

AdaptiveStep, arXiv 2502.13943, cuts a response behind each token to which the generator gave little probability. What it
does not have, training with GRPO, is ours: probes or a process reward model value the ends of steps, and a token gets
the change of value over its step beside the usual advantage of its response.

B problems in a step of training, n rollouts of a problem, L generated tokens of a rollout, K steps of a rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from reasonrl.core.defaults import GroupNormalised
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger, Memory
from reasonrl.core.protocols import AdvantageEstimator
from reasonrl.core.types import Counts, Floats, Prefix, Problem, Request, Rollout, RolloutGroup, View
from reasonrl.functional.confidence import capped, confidence, every, spread, step_ends, threshold, top_share
from reasonrl.functional.process import he_inverse, min_form, mixed, process_supervision, telescoping

LEAST_TOKENS = 1000  # a threshold from fewer would follow single tokens


@dataclass(frozen=True)
class Splitter:
    """Where a response is cut: behind each token that the model gave less than tau, and at its last token.

    tau is the value below which the share `quantile` of sampled tokens lies, over all responses of a training step. The end
    token of a finished response is neither pooled nor cut behind; other tokens are all alike (section 3.2 of the paper).
    """

    quantile: float = 0.02  # share of tokens behind which is cut; larger: more and shorter steps; paper 0.005..0.02
    # calibrated: tau of one step of training serves the next `refresh` steps. batch: each step has its own, which cuts a
    # constant share however sure the model gets. fixed: `tau`.
    scope: Literal["calibrated", "batch", "fixed"] = "calibrated"
    tau: float | None = None  # only with scope=fixed; a probability
    refresh: int = 20  # steps between calibrations; smaller follows the policy more closely
    # rollout: the probability under which the token was sampled, after temperature and top-p. recomputed: by the trained
    # policy before the update; to be preferred with top_p < 1, which inflates the former.
    source: Literal["rollout", "recomputed"] = "rollout"
    max_steps: int = 16  # of a response; the least confident ends are kept
    interval: int = 1  # every how many of the ends is one, in the order of the text
    # end: the uncertain token belongs to the step that it ends. spo_cut: it begins the next one (SPO, arXiv 2505.23564).
    boundary: Literal["end", "spo_cut"] = "end"

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile, least=0.0, most=1.0)
        check_choice("scope", self.scope, ("calibrated", "batch", "fixed"))
        check_choice("source", self.source, ("rollout", "recomputed"))
        check_choice("boundary", self.boundary, ("end", "spo_cut"))
        for name in ("refresh", "max_steps", "interval"):
            check_number(name, getattr(self, name), least=1, whole=True)
        if (self.tau is not None) != (self.scope == "fixed"):
            raise ValueError(f"tau={self.tau} with scope={self.scope}: tau is given with scope=fixed, and only then")
        if self.tau is not None:
            check_number("tau", self.tau, least=0.0, most=1.0)

    @property
    def needs(self) -> frozenset[str]:
        """Whose probabilities are read."""
        return frozenset({"logprobs" if self.source == "rollout" else "old_logprobs"})

    def confidences(self, rollout: Rollout) -> Floats:
        """(L,) Raises ValueError for a log-probability that none can be, and where `recomputed` ones are missing."""
        if self.source == "rollout":
            return confidence(rollout.logprobs)
        if "old_logprobs" not in rollout.aux:
            raise ValueError("confidence=recomputed, but the engine gave no recomputed log-probabilities")
        return confidence(rollout.aux["old_logprobs"][rollout.prefix.token_ids.size :])

    def ends(self, rollout: Rollout, tau: float | None) -> Counts:
        """(K,) indices of generated tokens, the last one last, an end token aside. Without tau all is one step."""
        if _last(rollout) < 0 or tau is None:
            return np.array([_last(rollout)] if _last(rollout) >= 0 else [], dtype=np.int64)
        values = self.confidences(rollout)
        ends = step_ends(values, tau, excluded=_end_token(rollout))
        ends = capped(every(ends, self.interval), values, self.max_steps)
        if self.boundary == "end":
            return ends
        return np.append(ends[:-1][ends[:-1] > 0] - 1, ends[-1:])

    def tau_of(self, groups: Sequence[RolloutGroup]) -> float | None:
        """tau of these responses; None when they are too few tokens to say."""
        known = (r for g in groups for r in g.rollouts if self.source == "rollout" or "old_logprobs" in r.aux)
        pooled = [self.confidences(rollout)[~_end_token(rollout)] for rollout in known]
        pool = np.concatenate(pooled) if pooled else np.zeros(0)
        return threshold(pool, self.quantile, least=LEAST_TOKENS) if pool.size >= LEAST_TOKENS else None

    def tau_now(self, groups: Sequence[RolloutGroup], scalars: Mapping[str, float]) -> float | None:
        """tau of a step of training whose responses are all there; what was calibrated before where they are few."""
        remembered = scalars.get("tau")
        if self.scope == "fixed":
            return self.tau
        if self.scope == "calibrated" and remembered is not None:
            return remembered
        own = self.tau_of(groups)
        return remembered if own is None else own

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """A new tau when one is due: the first time that the pool is large enough, then every `refresh` steps."""
        if self.scope == "fixed" or not groups:
            return Memory()
        step = groups[0].step
        wait = 1 if self.scope == "batch" else self.refresh
        if step - ledger.scalar("calibrated_at", -np.inf) < wait:
            return Memory()
        tau = self.tau_of(groups)
        return Memory() if tau is None else Memory({"tau": tau, "calibrated_at": float(step)})


def _end_token(rollout: Rollout) -> Any:
    """(L,) True at the end token."""
    mask = np.zeros(rollout.token_ids.size, dtype=bool)
    mask[-1:] = rollout.finished
    return mask


def _last(rollout: Rollout) -> int:
    """Index of the last token that is no end token; -1 where there is none."""
    return rollout.token_ids.size - 1 - int(rollout.finished and rollout.token_ids.size > 0)


@dataclass(frozen=True)
class StepProbes:
    """n rollouts, then `probes` continuations from each end of a step: how often does an answer still come out right?

    The ends are cut with the tau of the steps before, so the first step of training has no probes. Probes are sampled like
    rollouts, read by the verifier together with what they continue, and never trained on. Rollouts that agree up to an
    end share its probes.
    """

    n: int = 8
    probes: int = 8  # J; more: values of finer grain, at as many continuations an end; the paper's data has 8
    splitter: Splitter = Splitter()

    def __post_init__(self) -> None:
        check_number("n", self.n, least=1, whole=True)
        check_number("probes", self.probes, least=1, whole=True)
        if self.splitter.source != "rollout":
            raise ValueError(
                f"confidence={self.splitter.source} comes after all sampling, and probes are sampled from the ends that it "
                "would give: use confidence=rollout, or values from a process reward model (scorer=prm)"
            )
        if self.splitter.scope == "batch":
            raise ValueError(
                "scope=batch takes tau from responses of all problems, and a problem's probes are sampled before the others "
                "are done: use scope=calibrated or fixed, or values from a process reward model (scorer=prm)"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Log-probabilities of the rollouts."""
        return self.splitter.needs

    def check(self, method: Any) -> None:
        """Raise ValueError where nobody would read what the probes cost."""
        if not getattr(method.advantage, "reads_probes", False):
            raise ValueError(
                f"{method.name}: prefix part StepProbes samples probes that advantage part "
                f"{type(method.advantage).__name__} does not read: use method/prefix=plain, or another advantage"
            )

    def plan(self, problem: Problem, view: View) -> Sequence[Request]:
        """The rollouts, then their probes."""
        if view.round == 0:
            return (Request(Prefix(), self.n),)
        tau = self.splitter.tau if self.splitter.scope == "fixed" else view.scalars.get("tau")
        return tuple(self._probes(view, tau)) if view.round == 1 and tau is not None else ()

    def _probes(self, view: View, tau: float) -> Iterator[Request]:
        """At most as many a rollout as it has ends, each prefix once."""
        asked = set()
        for i, rollout in enumerate(view.rollouts):
            for end in self.splitter.ends(rollout, tau)[:-1].tolist():
                prefix = rollout.token_ids[: end + 1]
                if prefix.tobytes() not in asked:
                    asked.add(prefix.tobytes())
                    yield Request(Prefix(prefix, scored=True), self.probes, train=False, parent=(i, end))

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """tau."""
        return self.splitter.remember(groups, ledger)

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """tau in use; probes a rollout; generated tokens of probes over those of rollouts; share of right probes."""
        tau = self.splitter.tau if self.splitter.scope == "fixed" else ledger.scalars().get("tau")
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        probes = [probe for group in groups for probe in group.probes]
        found = {} if tau is None else {"tau": tau}
        tokens = sum(rollout.token_ids.size for rollout in rollouts)
        if rollouts:
            found["probes_per_rollout"] = len(probes) / len(rollouts)
        if tokens:
            found["probe_cost"] = sum(probe.token_ids.size for probe in probes) / tokens
        if probes:
            found["probe_accuracy"] = float(np.mean([probe.score for probe in probes]))
        return found


@dataclass(frozen=True)
class StepAdvantage:
    """An advantage for each step, mixed with the outcome advantage of the response.

    Values V of the ends inside a response come from probes or from a process reward model (PRM), the value of its last
    end is its own verdict R.

    form:
        telescoping: V_k - V_(k-1), from V_0 = the group's share of right rollouts; they add up to R - V_0.
        process_supervision: values as rewards, standardised over the group and summed from a step to the end
            (DeepSeekMath, arXiv 2402.03300, section 4.1.3).
        min_form: 2 V - 1 as rewards, weighted by a softmax towards the worst step, summed to the end (PURE); the mean
            over the group's responses of the sum at their start is taken off.
        outcome_only: the outcome advantage alone; values are still recorded.
    A response whose last scores are missing, because it is longer than the PRM can read, has its outcome advantage alone.
    """

    form: Literal["telescoping", "process_supervision", "min_form", "outcome_only"] = "telescoping"
    outcome_weight: float = 0.5  # w, of the outcome advantage in the mix; 1 = plain outcome, 0 = steps alone
    scorer: Literal["probes", "prm"] = "probes"
    # Of probes: `mean`, the share that is right, or `any`, whether one is, as the paper labels. Of a PRM: `identity`, or
    # `he_inverse`, from the chance that any of 8 is right to the chance of one; for a PRM of hard labels.
    value: Literal["mean", "any", "identity", "he_inverse"] = "mean"
    temperature: float = 0.1  # of min_form's softmax; smaller is closer to the minimum
    splitter: Splitter = Splitter()  # of scorer=prm; probes bring their own ends
    outcome: AdvantageEstimator = GroupNormalised()  # noqa: RUF009

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("telescoping", "process_supervision", "min_form", "outcome_only"))
        check_number("outcome_weight", self.outcome_weight, least=0.0, most=1.0)
        check_choice("scorer", self.scorer, ("probes", "prm"))
        check_choice("value", self.value, ("mean", "any") if self.scorer == "probes" else ("identity", "he_inverse"))
        check_number("temperature", self.temperature, above=0.0)

    @property
    def needs(self) -> frozenset[str]:
        """With a PRM: its scores, and the probabilities that say where."""
        return frozenset() if self.scorer == "probes" else self.splitter.needs | {"prm"}

    @property
    def reads_probes(self) -> bool:
        """Whether sampled probes are of use."""
        return self.scorer == "probes"

    def check(self, method: Any) -> None:
        """Raise ValueError where no values would ever come."""
        if self.scorer == "probes" and not hasattr(method.prefix, "probes"):
            raise ValueError(
                f"{method.name}: advantage part StepAdvantage reads probes that prefix part {type(method.prefix).__name__} "
                "does not sample: use method/prefix=step_probes, or scorer=prm"
            )

    def step_ends(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> list[list[Counts]]:
        """Where a PRM scores: B times n times (K,) indices of generated tokens."""
        tau = self.splitter.tau_now(groups, ledger.scalars())
        return [[self.splitter.ends(rollout, tau) for rollout in group.rollouts] for group in groups]

    def check_labels(self, labels: str) -> None:
        """Raise ValueError when `value` reads scores of such labels as what they are not."""
        fitting = "he_inverse" if labels == "hard" else "identity"
        if self.value != fitting:
            raise ValueError(
                f"value={self.value} with a process reward model trained on {labels} labels: use value={fitting} "
                f"(value_map={fitting} of method=adaptivestep)"
            )

    def __call__(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[Floats], ledger: Ledger
    ) -> Sequence[Sequence[Floats]]:
        """B times n rows (L,); a trained prefix, which has no step, gets the outcome advantage."""
        outcome = self.outcome(groups, rewards, ledger)
        if self.form == "outcome_only":
            return outcome
        valued = self._valued(groups, ledger)
        return [self._mixed(group, own, rows) for group, own, rows in zip(groups, valued, outcome, strict=True)]

    def _mixed(self, group: RolloutGroup, valued: Sequence[Valued], outcome: Sequence[Floats]) -> list[Floats]:
        made = list(outcome)
        for i, steps in self._steps(group, valued).items():  # an end token belongs to the last step
            prefix = made[i].size - steps.size  # tokens of a trained prefix
            made[i] = np.append(made[i][:prefix], mixed(made[i][prefix:], steps, self.outcome_weight))
        return made

    def _steps(self, group: RolloutGroup, valued: Sequence[Valued]) -> dict[int, Floats]:
        """Advantages (L,) of the steps of each response that has values, by its place."""
        known = {i: own for i, own in enumerate(valued) if own.ends.size and not own.missing}
        lengths = {i: group.rollouts[i].token_ids.size for i in known}
        if self.form == "telescoping":
            start, verdicts = group.pass_rate, group.scores
            gains = {i: telescoping(start, own.interior, verdicts[i]) for i, own in known.items()}
            return {i: spread(gains[i], own.ends, lengths[i]) for i, own in known.items()}
        values = [np.append(own.interior, own.last) for own in known.values()]
        ends = [own.ends for own in known.values()]
        if self.form == "process_supervision":
            return dict(zip(known, process_supervision(values, ends, lengths=[*lengths.values()]), strict=True))
        returns = [min_form(2.0 * own - 1.0, self.temperature).returns for own in values]
        baseline = float(np.mean([own[0] for own in returns])) if len(returns) > 1 else 0.0
        rows = zip(known, returns, ends, strict=True)
        return {i: spread(own - baseline, own_ends, lengths[i]) for i, own, own_ends in rows}

    def _valued(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> list[list[Valued]]:
        if self.scorer == "probes":
            return [list(_probed(group, self.value == "any")) for group in groups]
        ends = self.step_ends(groups, ledger)
        return [
            [self._read(rollout, own) for rollout, own in zip(group.rollouts, rows, strict=True)]
            for group, rows in zip(groups, ends, strict=True)
        ]

    def _read(self, rollout: Rollout, ends: Counts) -> Valued:
        """What the PRM gave; a group that dynamic sampling drops was not scored."""
        if "step_scores" not in rollout.aux:
            return Valued(ends, np.zeros(0), 0.0, missing=True)
        scores = np.asarray(rollout.aux["step_scores"], dtype=np.float64)[rollout.prefix.token_ids.size + ends]
        if np.isnan(scores).any() or not ends.size:
            return Valued(ends, np.zeros(0), 0.0, missing=True)
        values = he_inverse(scores) if self.value == "he_inverse" else scores
        return Valued(ends, values[:-1], float(values[-1]))

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """tau, where this part cuts."""
        return Memory() if self.scorer == "probes" else self.splitter.remember(groups, ledger)

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """Steps a response; mean value of ends inside; share of responses without values; what equal rewards leave.

        `step_value_only`: share of the groups with equal verdicts that still have a step advantage.
        """
        pairs = list(zip(groups, self._valued(groups, ledger), strict=True))
        valued = [own for _, rows in pairs for own in rows if own.ends.size]
        if not valued:
            return {}
        found = {
            "steps": float(np.mean([own.ends.size for own in valued])),
            "step_missing": float(np.mean([own.missing for own in valued])),
        }
        inside = [own.interior for own in valued if own.interior.size]
        if inside:
            found["step_value"] = float(np.concatenate(inside).mean())
        even = [(group, rows) for group, rows in pairs if group.rollouts and np.ptp(group.scores) == 0]
        if even and self.form == "telescoping":
            left = [any(row.any() for row in self._steps(group, rows).values()) for group, rows in even]
            found["step_value_only"] = float(np.mean(left))
        if self.scorer == "prm":
            tau = self.splitter.tau_now(groups, ledger.scalars())
            found |= {} if tau is None else {"tau": tau}
        return found


@dataclass(frozen=True)
class Valued:
    """A response, valued at its ends."""

    ends: Counts  # (K,)
    interior: Floats  # (K - 1,)
    last: float  # by the scorer; telescoping takes the verdict instead
    missing: bool = False  # not scored to its end


def _probed(group: RolloutGroup, any_right: bool) -> Iterator[Valued]:
    """n responses, valued where probes continued their tokens, whoever's probes they were."""
    verdicts: dict[bytes, list[float]] = {}
    for probe in group.probes:
        verdicts.setdefault(probe.prefix.token_ids.tobytes(), []).append(probe.score)
    sizes = sorted({len(key) // np.dtype(np.int32).itemsize for key in verdicts})
    for rollout in group.rollouts:
        text = np.concatenate([rollout.prefix.token_ids, rollout.token_ids])
        own = {}
        for size in sizes:
            end = size - 1 - rollout.prefix.token_ids.size
            heard = verdicts.get(text[:size].tobytes()) if 0 <= end < _last(rollout) else None
            if heard is not None:
                own[end] = float(max(heard)) if any_right else float(np.mean(heard))
        ends = np.array([*own, _last(rollout)] if _last(rollout) >= 0 else [], dtype=np.int64)
        yield Valued(ends, np.array([*own.values()], dtype=np.float64), rollout.score)


@dataclass(frozen=True)
class UncertainTokens:
    """The outcome advantage on uncertain tokens alone: those below tau, or of highest entropy.

    After Beyond the 80/20 Rule, arXiv 2506.01939, which trains the share 0.2 of tokens of highest entropy. All others get
    0, and those that are left are scaled up by the share that they are of the step's tokens, so that a token-mean loss is
    a mean over them.
    """

    by: Literal["confidence", "entropy"] = "confidence"
    share: float = 0.2  # by=entropy: of a step's tokens; larger trains more
    splitter: Splitter = Splitter()  # by=confidence: its tau
    outcome: AdvantageEstimator = GroupNormalised()  # noqa: RUF009

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("confidence", "entropy"))
        check_number("share", self.share, above=0.0, most=1.0)

    @property
    def needs(self) -> frozenset[str]:
        """Probabilities or entropy."""
        return self.splitter.needs if self.by == "confidence" else frozenset({"entropy"})

    def __call__(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[Floats], ledger: Ledger
    ) -> Sequence[Sequence[Floats]]:
        """B times n rows (L,); a trained prefix is left out."""
        outcome = self.outcome(groups, rewards, ledger)
        masks = self._masks(groups, ledger)
        kept, tokens = sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)
        scale = tokens / kept if kept else 0.0
        mask = iter(masks)
        made = []
        for rows in outcome:
            own = zip(rows, islice(mask, len(rows)), strict=True)
            made.append(
                [np.append(np.zeros(row.size - m.size), row[row.size - m.size :] * m * scale) for row, m in own]
            )
        return made

    def _masks(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> list[Any]:
        """One (L,) a rollout."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        if self.by == "entropy":
            entropy = [rollout.aux["entropy"][rollout.prefix.token_ids.size :] for rollout in rollouts]
            if not any(own.size for own in entropy):
                return [np.zeros(own.size, dtype=bool) for own in entropy]
            top = top_share(np.concatenate(entropy), self.share)
            return np.split(top, np.cumsum([own.size for own in entropy])[:-1])
        tau = self.splitter.tau_now(groups, ledger.scalars())
        if tau is None:  # nothing is known of what is uncertain: everything is trained
            return [np.ones(rollout.token_ids.size, dtype=bool) for rollout in rollouts]
        return [(self.splitter.confidences(rollout) < tau) & ~_end_token(rollout) for rollout in rollouts]

    def remember(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Memory:
        """tau."""
        return self.splitter.remember(groups, ledger) if self.by == "confidence" else Memory()

    def metrics(self, groups: Sequence[RolloutGroup], ledger: Ledger) -> Mapping[str, float]:
        """tau, and the share of tokens that is trained."""
        masks = self._masks(groups, ledger)
        tokens = sum(mask.size for mask in masks)
        found = {"trained_tokens": sum(int(mask.sum()) for mask in masks) / tokens} if tokens else {}
        tau = self.splitter.tau_now(groups, ledger.scalars()) if self.by == "confidence" else None
        return found if tau is None else {**found, "tau": tau}
