"""Validation during training on the tasks of `reasonrl eval`: the same questions, prompts and graders.

A task's prompt and verifier are those that evaluating the finished run would take: of kind `answer` the run's own prompt
and `verify.answer_after`, of the other kinds the task's. Sampling is the run's: val_n, val_temperature, max_new_tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonrl.config import ConfigError
from reasonrl.data.items import DataError, Item
from reasonrl.eval.models import RUN_PROMPT, EvalModel
from reasonrl.eval.settings import Resolved, resolve, verify_config
from reasonrl.eval.tasks import Questions, Task, load_questions, load_task
from reasonrl.eval.tasks.programs import program_gold

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from reasonrl.data.prompts import Prompt
    from reasonrl.engine.validation import Judge
    from reasonrl.eval.grading import Grade
    from reasonrl.verify.pool import VerifyConfig

SOURCE = "eval/"  # before a task's name: training data may have a source of the same name


@dataclass(frozen=True)
class OneTask:
    """A task, with what follows from the run."""

    questions: Questions
    settings: Resolved
    verify: VerifyConfig

    @property
    def task(self) -> Task:
        return self.questions.task

    @property
    def source(self) -> str:
        """What its problems are called in the run's metrics."""
        return SOURCE + self.task.name

    def gold(self, place: int) -> str:
        """What the data holds as answer; for instructions and programs all that they are graded by. Raises DataError."""
        question = self.questions.items[place]
        if self.task.kind == "code":
            try:
                return program_gold(self.task, question)
            except ValueError as error:
                raise DataError(f"{error}: mend the row, or leave it out of the file") from error
        return json.dumps(dict(question.extra), sort_keys=True) if self.task.kind == "instructions" else question.answer


@dataclass(frozen=True)
class TaskValidation:
    """`reasonrl.engine.validation.Validation`, over tasks."""

    tasks: tuple[OneTask, ...]
    prompt: Prompt  # the run's
    model: str  # its name

    def items(self) -> list[Item]:
        """The problems of all tasks."""
        return [
            Item(question.text, one.gold(place), (), one.source, f"{one.source}/{question.id}")
            for one in self.tasks
            for place, question in enumerate(one.questions.items)
        ]

    def write(self, file: Path) -> dict[str, Any]:
        """The validation file of a run; what is known of each task. Raises DataError."""
        from reasonrl.data.prepare import write_items

        write_items(self.items(), file, split="val")
        return {
            one.source: {
                "problems": len(one.questions.items),
                "data_sha256": one.questions.sha256,
                "origin": one.questions.origin,
                "verify": asdict(one.verify),
            }
            for one in self.tasks
        }

    def prompts(self, tokenizer: Any) -> dict[str, dict[str, Any]]:
        """Of each source. Raises ConfigError."""
        from reasonrl.eval.plan import chosen_prompt

        model = EvalModel(self.model, self.model, prompt=self.prompt)
        return {one.source: asdict(chosen_prompt(one.task, one.settings, model, tokenizer)) for one in self.tasks}

    def judges(self, programs: str | None = None) -> dict[str, Callable[[], Judge]]:
        """Of each source. programs: address of the judge of programs."""
        return {one.source: partial(judge, one.task, replace(one.verify, judge=programs)) for one in self.tasks}

    @property
    def programs(self) -> bool:
        """Whether any of them asks for programs."""
        return any(one.task.kind == "code" for one in self.tasks)


def validation_of(cfg: DictConfig) -> TaskValidation | None:
    """What a run validates on when it names tasks, None when it names none. Raises ConfigError; imports no torch."""
    from reasonrl.data.prompts import prompt_from_config
    from reasonrl.eval.grading import Grader

    if not cfg.val_tasks:
        if cfg.val_data_dir is not None:
            raise ConfigError(
                "val_data_dir= is where the files of val_tasks= are, and no task is given: val_tasks=[gsm8k]"
            )
        return None
    names = list(cfg.val_tasks)
    prompt = prompt_from_config(cfg.prompt)
    own = {"prompt": f"{RUN_PROMPT}{prompt.name}", "verify.answer_after": cfg.verify.answer_after}
    folder = Path(cfg.val_data_dir).expanduser() if cfg.val_data_dir else None
    tasks = []
    for name in names:
        task = load_task(name)
        settings = resolve(task, None, {}, own if task.kind == "answer" else None)
        verify = verify_config(settings, cfg.verify.workers)
        Grader(task, verify).close()  # raises, and starts no process yet
        try:
            questions = load_questions(task, data_dir=folder, limit=cfg.val_limit)
        except ConfigError:
            raise
        except ValueError as error:  # DataError says what, where and the way out
            raise ConfigError(f"val_tasks: {str(error).replace('data_dir=', 'val_data_dir=')}") from error
        tasks.append(OneTask(questions, settings, verify))
    twice = [one.task.name for i, one in enumerate(tasks) if one.source in [other.source for other in tasks[:i]]]
    if twice:
        raise ConfigError(f"val_tasks={','.join(names)} names {twice[0]} twice")
    return TaskValidation(tuple(tasks), prompt, str(cfg.model.name))


def judge(task: Task, verify: VerifyConfig) -> Judge:
    """Start a task's grader in this process."""
    from reasonrl.eval.grading import Grader
    from reasonrl.eval.tasks import Question

    grader = Grader(task, verify)

    def submit(id: str, gold: str, text: str) -> Future[Grade]:
        extra: Mapping[str, Any] = json.loads(gold) if task.kind == "instructions" else {}
        return grader.submit(Question(id, "", "" if extra else gold, extra=extra), text)

    return submit
