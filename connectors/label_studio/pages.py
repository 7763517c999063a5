"""What a labelling page, a task and an annotation of Label Studio look like; no connection."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

from connectors.annotation import Question
from connectors.escaping import label_studio_choice, reads_as_variable
from pipeline.types import Region

CONTROL, OBJECT, IMAGE, REASONS = "label", "image", "image", "reasons"
OWN_KEYS = frozenset({IMAGE, REASONS, "item_id", "round_number", "reason"})
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
    _add_choices(choices, classes, {})
    ElementTree.SubElement(view, "Header", value=f"${REASONS}", size="5", style=REASONS_STYLE)
    ElementTree.SubElement(view, "Image", name=OBJECT, value=f"${IMAGE}", maxWidth="600px")
    return ElementTree.tostring(view, encoding="unicode")


def page_with_classes(page: str, classes: Sequence[str], renamed: Mapping[str, str]) -> str:
    """A campaign's page with these classes to choose from; what else somebody put there stays.

    An answer holds the name that its class had when it was given. So that it stays ticked, a class that was renamed
    shows its new name and is kept under the old one, and a class that was merged into another is there unseen.

    Args:
        renamed: what a class was called -> what it is called now.
    """
    view = ElementTree.fromstring(page)  # noqa: S314 (of a server that this campaign trusts with its labels)
    choices = _choices_of(view)
    stored = [name for choice in choices.iter("Choice") if (name := choice.get("alias") or choice.get("value"))]
    for part in list(choices):
        choices.remove(part)
    names = stored_names(stored, classes, renamed)
    _add_choices(choices, classes, names)
    merged = [name for name in stored if renamed.get(normalize("NFC", name)) in names and name not in names.values()]
    if merged:
        unseen = ElementTree.SubElement(choices, "View", style="display: none")
        for name in merged:
            ElementTree.SubElement(unseen, "Choice", label_studio_choice(name))
    return ElementTree.tostring(view, encoding="unicode")


def _choices_of(view: ElementTree.Element) -> ElementTree.Element:
    return next(control for control in view.iter("Choices") if control.get("name") == CONTROL)


def stored_names(stored: Sequence[str], classes: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """The name under which a page keeps each class: its own, or the first of its former names.

    >>> stored_names(["cat", "dog"], ["feline", "dog", "bird"], {"cat": "feline"})
    {'feline': 'cat', 'dog': 'dog', 'bird': 'bird'}
    """
    own = {normalize("NFC", name): name for name in reversed(stored)}
    former = {renamed[name]: kept for name, kept in own.items() if name in renamed}
    return {label: own.get(label) or former.get(label, label) for label in classes}


def _add_choices(choices: ElementTree.Element, classes: Sequence[str], names: Mapping[str, str]) -> None:
    """Add a choice for each class; `names` are those that are kept where they are others."""
    keys = hotkeys(classes)
    for label in classes:
        hotkey = {"hotkey": keys[label]} if label in keys else {}
        alias = {"alias": names[label]} if names.get(label, label) != label else {}
        ElementTree.SubElement(choices, "Choice", label_studio_choice(label) | alias | hotkey)


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


def page_differences(controls: Mapping[str, Any], page: str) -> list[str]:
    """How a project's page differs from a campaign's in what answers depend on, but for the classes.

    What somebody put there besides, such as a box for comments, is no difference.
    """
    if controls.get(CONTROL, {}).get("type") != "Choices":
        asks = ", ".join(f"{name} ({control['type']})" for name, control in controls.items()) or "nothing"
        return [f"asks for {asks} where {CONTROL} (Choices) is wanted"]
    control = controls[CONTROL]
    differences = []
    differences += _classes_without_name(control)
    shown = [(part["type"], part["value"]) for part in control["inputs"]]
    if control["to_name"] != [OBJECT] or shown != [("Image", IMAGE)]:
        differences.append(f"shows {shown} where an Image named {OBJECT!r} with value ${IMAGE} is wanted")
    if _choices_of(ElementTree.fromstring(page)).get("choice") == "multiple":  # noqa: S314 (as below)
        differences.append("lets people choose several classes where one is wanted")
    return differences


def _classes_without_name(control: Mapping[str, Any]) -> list[str]:
    """Classes that the page shows as nothing, as it takes their names for variables of the task."""
    choices = control.get("labels_attrs", {}).items()
    nameless = [label for label, choice in choices if reads_as_variable(choice.get("value", ""))]
    return [f"shows no name for {', '.join(nameless)}, which it takes for variables of the task"] if nameless else []


def check_columns(questions: Sequence[Question]) -> None:
    """Raise ValueError for columns that would take the place of what a task needs."""
    for question in questions:
        for name in question.columns.keys() & OWN_KEYS:
            raise ValueError(f"item {question.item_id}: column {name!r} is taken")


def task_to_import(
    question: Question, *, image: str, version: str, n_ranks: int, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The question as Label Studio imports it: a task, without the purpose, which is not for people to know.

    Label Studio serves the lowest score of the project's model version first, so the score is the place in the
    batch. A question without a guess has an empty prediction, which shows nothing and keeps its place.

    Args:
        image: address that a browser loads it from.
        version: model version, of this round alone.
        n_ranks: ranks are below it.
        names: under which the page keeps classes, where they are others: see `stored_names`.
    """
    why = f"Why this image: {question.reason}" if question.reason else ""
    data = {IMAGE: image, REASONS: why, "item_id": question.item_id, "round_number": question.ask.round_number}
    prediction = {
        "model_version": version,
        "score": question.rank / n_ranks,
        "result": _guess(question.guess or (), names),
    }
    return {"data": data | {"reason": question.reason} | dict(question.columns), "predictions": [prediction]}


def _guess(guess: Sequence[Region], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "from_name": CONTROL,
            "to_name": OBJECT,
            "type": "choices",
            "value": {"choices": [names.get(region.label, region.label)]},
            **({} if region.score is None else {"score": region.score}),
        }
        for region in guess
    ]
