"""Task types by the name that the campaign file gives; the module of one, which loads torch, is loaded when it must."""

from pydantic import ValidationInfo

from pipeline.registries import look_up
from pipeline.settings import is_held

TASK, HEADLINE = "classification", "accuracy"
"""The task type where none is named, and what its models are judged by."""
WHAT_TASKS_ASK = (
    "classification: one class for each image; multi_label: any of the classes, or none; segmentation: masks of them; "
    "detection: boxes around them"
)


def check_task(value: str, info: ValidationInfo) -> str:
    """The name, where there is such a task type; a ValueError otherwise."""
    if value == TASK or is_held(info, "task", value):
        return value
    from pipeline.tasks import TASKS

    look_up(TASKS, value, "task type")
    return value


def takes_several(task: str) -> bool:
    """Whether an image may have several labels of its own."""
    from pipeline.tasks import TASKS

    asks = TASKS[task].asks
    return asks.kind == "image" and asks.several


def takes_one_class(task: str) -> bool:
    """Whether there may be one class alone."""
    from pipeline.tasks import TASKS

    return TASKS[task].asks.fewest_classes == 1
