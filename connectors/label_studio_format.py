"""What a labelling page, a task and an annotation of Label Studio look like; no connection."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

from connectors.annotation import Task
from connectors.escaping import label_studio_choice, reads_as_variable
from pipeline.names import checked_class
from pipeline.types import Region

CONTROL, OBJECT, IMAGE, REASONS = "label", "image", "image", "reasons"
OWN_KEYS = frozenset({IMAGE, REASONS, "item_id", "round_number"})
HOTKEYS = "1234567890abcdefgijklmnopqrstwxyz"
"""In the order in which classes get them; h, u and v do something else in Label Studio."""
NO_CLASS = "No class is chosen: choose one, or skip. The key of the class that is ticked takes the tick away."
REASONS_STYLE = "margin: 0 0 8px; font-size: 14px; font-weight: 400"


def labelling_page(classes: Sequence[str]) -> str:
    """The page that annotators see, as a Label Studio configuration: one choice of a class, reasons, image.

    >>> labelling_page(["cat", "R&D"])[:80]
    '<View><Choices name="label" toName="image" showInline="true" choice="single-radi'
    """
    view = ElementTree.Element("View")
    one = {"choice": "single-radio", "required": "true", "requiredMessage": NO_CLASS}
    choices = ElementTree.SubElement(view, "Choices", {"name": CONTROL, "toName": OBJECT, "showInline": "true"} | one)
    keys = hotkeys(classes)
    for label in classes:
        hotkey = {"hotkey": keys[label]} if label in keys else {}
        ElementTree.SubElement(choices, "Choice", label_studio_choice(label) | hotkey)
    ElementTree.SubElement(view, "Header", value=f"${REASONS}", size="5", style=REASONS_STYLE)
    ElementTree.SubElement(view, "Image", name=OBJECT, value=f"${IMAGE}", maxWidth="600px")
    return ElementTree.tostring(view, encoding="unicode")


def hotkeys(classes: Sequence[str]) -> dict[str, str]:
    """A key for each class while there are any; a class that is a key itself has that one.

    >>> hotkeys(["0", "1", "cat"])
    {'0': '0', '1': '1', 'cat': '2'}
    """
    own = {label.lower(): label for label in reversed(classes) if label.lower() in frozenset(HOTKEYS)}
    others = [label for label in classes if label not in own.values()]
    free = [key for key in HOTKEYS if key not in own]
    keys = {label: key for key, label in own.items()} | dict(zip(others, free, strict=False))
    return {label: keys[label] for label in classes if label in keys}


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes, or ValueError if a page could not tell them apart."""
    checked = tuple(checked_class(label) for label in classes)
    if len(set(checked)) != len(checked) or len(checked) < 2:
        raise ValueError(f"wanted two or more distinct classes, got {list(classes)}")
    return checked


def page_differences(controls: Mapping[str, Any], page: str, classes: Sequence[str]) -> list[str]:
    """How a project's page differs from `labelling_page(classes)` in what answers depend on.

    It may ask for more: a comment, a rating, another choice.
    """
    if CONTROL not in controls or controls[CONTROL]["type"] != "Choices":
        asks = ", ".join(f"{name} ({control['type']})" for name, control in controls.items()) or "nothing"
        return [f"asks for {asks} where {CONTROL} (Choices) is wanted"]
    control = controls[CONTROL]
    differences = []
    if {normalize("NFC", label) for label in control["labels"]} != set(classes):
        differences.append(f"has the classes {', '.join(control['labels'])} where {', '.join(classes)} are wanted")
    differences += _classes_without_name(control)
    shown = [(part["type"], part["value"]) for part in control["inputs"]]
    if control["to_name"] != [OBJECT] or shown != [("Image", IMAGE)]:
        differences.append(f"shows {shown} where an Image named {OBJECT!r} with value ${IMAGE} is wanted")
    ours = re.search(rf"""<Choices\b[^<>]*\bname\s*=\s*["']{CONTROL}["'][^>]*>""", page)
    if ours and re.search(r"""choice\s*=\s*["']multiple""", ours[0]):
        differences.append("lets people choose several classes where one is wanted")
    return differences


def _classes_without_name(control: Mapping[str, Any]) -> list[str]:
    """Classes that the page shows as nothing, as it takes their names for variables of the task."""
    choices = control.get("labels_attrs", {}).items()
    nameless = [label for label, choice in choices if reads_as_variable(choice.get("value", ""))]
    return [f"shows no name for {', '.join(nameless)}, which it takes for variables of the task"] if nameless else []


def check_tasks(tasks: Sequence[Task], round_number: int, classes: Sequence[str]) -> None:
    """Raise ValueError for what Label Studio would take and then show wrongly, or in the wrong order."""
    seen: set[str] = set()
    for task in tasks:
        if task.item_id in seen:
            raise ValueError(f"item {task.item_id} is in the batch twice")
        seen.add(task.item_id)
        if task.round_number != round_number:
            raise ValueError(f"item {task.item_id} belongs to round {task.round_number}, not {round_number}")
        if task.rank < 0:
            raise ValueError(f"item {task.item_id}: a rank counts from 0, got {task.rank}")
        if task.guess and (task.guess.kind != "image" or task.guess.label not in classes):
            raise ValueError(
                f"item {task.item_id}: the guess must be one of {', '.join(classes)} for the whole image, "
                f"got {task.guess.label!r} of kind {task.guess.kind!r}"
            )
        for name, value in task.columns.items():
            if name in OWN_KEYS:
                raise ValueError(f"item {task.item_id}: column {name!r} is taken")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"item {task.item_id}: column {name!r} is not a finite number")


def task_to_import(task: Task, *, image: str, version: str, n_ranks: int) -> dict[str, Any]:
    """The task as Label Studio imports it.

    Label Studio serves the lowest score of the project's model version first, so the score is the place in the
    batch. A task without a guess has an empty prediction, which shows nothing and keeps its place.

    Args:
        image: address that a browser loads it from.
        version: model version, of this round alone.
        n_ranks: ranks are below it.
    """
    data = {IMAGE: image, REASONS: _why(task.columns), "item_id": task.item_id}
    prediction = {"model_version": version, "score": task.rank / n_ranks, "result": _guess(task.guess)}
    return {"data": {**data, "round_number": task.round_number, **task.columns}, "predictions": [prediction]}


def _guess(guess: Region | None) -> list[dict[str, Any]]:
    if guess is None:
        return []
    score = {} if guess.score is None else {"score": guess.score}
    choice = {"type": "choices", "value": {"choices": [guess.label]}}
    return [{"from_name": CONTROL, "to_name": OBJECT, **choice, **score}]


def _why(columns: Mapping[str, str | float]) -> str:
    """What stands above the image: words. The numbers are columns of the project's table."""
    return f"Why this image: {columns['reason']}" if columns.get("reason") else ""
