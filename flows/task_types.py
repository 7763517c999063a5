"""Task types by the name that the campaign file gives; the module of one, which loads torch, is loaded when it must."""

from collections.abc import Mapping

from pydantic import ValidationInfo

from pipeline.registries import look_up
from pipeline.settings import is_held
from pipeline.types import ONE_CLASS, AskFor, Counted, RegionKind

TASK, HEADLINE = "classification", "accuracy"
"""The task type where none is named, and what its models are judged by."""
WHAT_TASKS_ASK = (
    "classification: one class for each image; multi_label: any of the classes, or none; segmentation: masks of them; "
    "detection: boxes around them"
)
REGIONS: Mapping[RegionKind, str] = {"box": "boxes", "polygon": "polygons", "mask": "masks"}
"""What regions of a kind are called; the label of a whole image is none that a budget could count apart."""


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


def check_counted(value: Counted, info: ValidationInfo) -> Counted:
    """What a budget counts, where people mark that in images; a ValueError otherwise.

    Args:
        info: whose data has the task, unless the task is wrong.
    """
    task = info.data.get("task")
    if value == "images" or task is None or is_held(info, "budget_in", value):
        return value
    asks = asked_for(task)
    if not asks.several or asks.kind not in REGIONS:
        raise ValueError(
            f"{value!r} needs a task in which people mark boxes, polygons or masks, and task = {task!r} asks for "
            "classes of whole images: leave budget_in out"
        )
    return value


def word_for(task: str, counted: Counted) -> str:
    """What a budget counts, in a word for people: labels, boxes, polygons or masks."""
    return "labels" if counted == "images" else REGIONS[asked_for(task).kind]
