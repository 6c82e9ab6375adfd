"""Benchmarks: what each asks, where its questions are, how they are read. A new one is a YAML file."""

from reasonrl.eval.tasks.load import load_questions
from reasonrl.eval.tasks.task import Question, Questions, Source, Task, TaskSampling, load_task, task_names

__all__ = [
    "Question",
    "Questions",
    "Source",
    "Task",
    "TaskSampling",
    "load_questions",
    "load_task",
    "task_names",
]
