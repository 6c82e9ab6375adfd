"""The prepared parquet as verl's data set: each item carries its `Problem`, so tokens are made once, on the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from reasonrl.data.prefixes import beside
from reasonrl.data.problems import load
from reasonrl.data.prompts import prompt_from_config


class ProblemDataset(Dataset):
    """Constructed by verl from `data.custom_cls`; reads its prompt template from `data.reasonrl`."""

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1, **_: Any
    ) -> None:
        path = Path(data_files if isinstance(data_files, str) else data_files[0])
        self.loaded = load(
            path,
            prompt_from_config(config.reasonrl.prompt),
            tokenizer,
            max_prompt_tokens=config.max_prompt_length,
            overlong=config.reasonrl.overlong,
            prefixes=beside(path),
            prompts={source: prompt_from_config(node) for source, node in config.reasonrl.prompts.items()},
        )
        self.places = {problem.id: place for place, problem in enumerate(self.loaded.problems)}
        self.problems = self.loaded.problems if max_samples < 0 else self.loaded.problems[:max_samples]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> dict[str, Any]:
        problem = self.problems[index]
        return {
            "raw_prompt": problem.id,  # verl only counts these
            "index": index,
            "problem": problem,
            "data_source": problem.source or "data",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
        }
