"""lighteval's task for each of ours that compares with one."""

from __future__ import annotations

from dataclasses import dataclass

BOX = "its prompt wants 'Therefore, the final answer is: $\\boxed{..}$'"


@dataclass(frozen=True)
class Counterpart:
    """lighteval's task for one of ours.

    metric: what its name begins with. repeats: several answers a question can be asked for.
    paired: its question holds ours, so that problems can be matched. differs: from ours, besides the model's answers.
    """

    task: str
    metric: str
    differs: str
    repeats: bool = True
    paired: bool = True


COUNTERPARTS = {
    "aime24": Counterpart("aime24", "pass@k", BOX),
    "aime25": Counterpart("aime25", "pass@k", f"{BOX}; another copy of the set"),
    "math500": Counterpart(
        "math_500", "pass@k", "its prompt wants a last line 'ANSWER: ..'; its gold is read from the worked solution"
    ),
    "gsm8k": Counterpart(
        "gsm8k",
        "extractive_match",
        "its prompt is 'Question: .. Answer:', and any number may be read as the answer",
        repeats=False,
    ),
    "gpqa_diamond": Counterpart(
        "gpqa:diamond",
        "gpqa_pass@k",
        "its options stand in another order; it wants a last line 'Answer: ..'",
        paired=False,
    ),
    "mmlu_pro": Counterpart(
        "mmlu_pro",
        "extractive_match",
        "its prompt speaks of options A to D though there are up to ten",
        repeats=False,
        paired=False,
    ),
    "ifeval": Counterpart(
        "ifeval", "prompt_level_strict_acc", "checkers of its own; prompt, strict, in both", repeats=False
    ),
}
