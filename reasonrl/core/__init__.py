"""The method in four parts, numpy only: no torch, ray, verl or hydra is imported from here."""

from reasonrl.core.contract import LAWS, MEANING, LawResult, Violation, run_contract
from reasonrl.core.credit import METRICS, Credit, PartError, assign_credit
from reasonrl.core.defaults import Correctness, FailureRate, GroupNormalised, Plain
from reasonrl.core.factory import Factory, check_knobs, load_factory, make, with_parts
from reasonrl.core.knobs import check_choice, check_number
from reasonrl.core.ledger import Ledger, LedgerView, Memory
from reasonrl.core.method import AGGREGATIONS, SLOTS, Loss, Method, check_needs, with_limits
from reasonrl.core.protocols import (
    NEEDS,
    AdvantageEstimator,
    DifficultyEstimator,
    Overlong,
    PrefixPolicy,
    RewardShaper,
    Shaped,
    per_group,
)
from reasonrl.core.types import (
    EMPTY,
    Counts,
    Floats,
    Ids,
    Prefix,
    Problem,
    Request,
    Rollout,
    RolloutGroup,
    View,
    plan_rng,
)

__all__ = [
    "AGGREGATIONS",
    "EMPTY",
    "LAWS",
    "MEANING",
    "METRICS",
    "NEEDS",
    "SLOTS",
    "AdvantageEstimator",
    "Correctness",
    "Counts",
    "Credit",
    "DifficultyEstimator",
    "Factory",
    "FailureRate",
    "Floats",
    "GroupNormalised",
    "Ids",
    "LawResult",
    "Ledger",
    "LedgerView",
    "Loss",
    "Memory",
    "Method",
    "Overlong",
    "PartError",
    "Plain",
    "Prefix",
    "PrefixPolicy",
    "Problem",
    "Request",
    "RewardShaper",
    "Rollout",
    "RolloutGroup",
    "Shaped",
    "View",
    "Violation",
    "assign_credit",
    "check_choice",
    "check_knobs",
    "check_needs",
    "check_number",
    "load_factory",
    "make",
    "per_group",
    "plan_rng",
    "run_contract",
    "with_limits",
    "with_parts",
]
