"""Task types by the name that the campaign file gives; the module of one, which loads torch, is loaded when it must."""

from pydantic import ValidationInfo

from pipeline.registries import look_up
from pipeline.settings import is_held
from pipeline.types import ONE_CLASS, AskFor

TASK, HEADLINE = "classification", "accuracy"
"""The task type where none is named, and what its models are judged by."""


def check_task(value: str, info: ValidationInfo) -> str:
    """The name, where there is such a task type; a ValueError otherwise."""
    if value == TASK or is_held(info, "task", value):
        return value
    from pipeline.tasks import TASKS

    look_up(TASKS, value, "task type")
    return value


def asked_for(task: str) -> AskFor:
    """What people are asked for."""
    if task == TASK:
        return ONE_CLASS
    from pipeline.tasks import TASKS

    return TASKS[task].asks
