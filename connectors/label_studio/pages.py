"""What a labelling page, a task and an annotation of Label Studio look like; no connection."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

from connectors.annotation import Question
from connectors.escaping import label_studio_choice, reads_as_variable
from connectors.label_studio.kinds.classes import ONE, SEVERAL
from connectors.label_studio.kinds.kind import CONTROL, NOTHING, NOTHING_KEY, OBJECT, Kind
from connectors.label_studio.kinds.table import kind_of
from pipeline.colours import class_colours
from pipeline.masks import mask_to_png, pixels_of
from pipeline.types import ONE_CLASS, AskFor, Region, Size, mask_size

IMAGE, REASONS = "image", "reasons"
WIDTH, HEIGHT = "width", "height"
OWN_KEYS = frozenset({IMAGE, REASONS, WIDTH, HEIGHT, "item_id", "round_number", "reason"})
REASONS_STYLE = "margin: 0 0 8px; font-size: 14px; font-weight: 400"


def labelling_page(classes: Sequence[str], asks: AskFor = ONE_CLASS) -> str:
    """The page that annotators see, as a Label Studio configuration: what asks for regions, reasons, image.

    >>> labelling_page(["cat", "R&D"])[:80]
    '<View><Choices name="label" toName="image" showInline="true" choice="single-radi'
    """
    kind = kind_of(asks)
    view = ElementTree.Element("View")
    common = {"name": CONTROL, "toName": OBJECT, "showInline": "true"}
    control = ElementTree.SubElement(view, kind.tag, common | dict(kind.attributes))
    _add_classes(control, classes, {}, kind)
    if kind.nothing is not None:
        beside = {"name": NOTHING, "toName": OBJECT, "choice": "single", "showInline": "true"}
        nothing = ElementTree.SubElement(view, "Choices", beside)
        ElementTree.SubElement(nothing, "Choice", value=kind.nothing, hotkey=NOTHING_KEY)
    ElementTree.SubElement(view, "Header", value=f"${REASONS}", size="5", style=REASONS_STYLE)
    ElementTree.SubElement(view, "Image", {"name": OBJECT, "value": f"${IMAGE}"} | dict(kind.shown))
    return ElementTree.tostring(view, encoding="unicode")


def page_with_classes(page: str, classes: Sequence[str], renamed: Mapping[str, str], asks: AskFor = ONE_CLASS) -> str:
    """A campaign's page with these classes to choose from; what else somebody put there stays.

    An answer holds the name that its class had when it was given. So that it stays ticked, a class that was renamed
    shows its new name and is kept under the old one, and a class that was merged into another is there unseen.

    Args:
        renamed: what a class was called -> what it is called now.
    """
    kind = kind_of(asks)
    view = ElementTree.fromstring(page)  # noqa: S314 (of a server that this campaign trusts with its labels)
    control = _control_of(view, kind)
    stored = [name for option in control.iter(kind.option) if (name := option.get("alias") or option.get("value"))]
    for part in list(control):
        control.remove(part)
    names = stored_names(stored, classes, renamed)
    _add_classes(control, classes, names, kind)
    present = {name: renamed.get(normalize("NFC", name), "") for name in stored}
    merged = [name for name in stored if present[name] in names and name not in names.values()]
    if merged:
        unseen = ElementTree.SubElement(control, "View", style="display: none")
        colours = _colours(classes, kind)
        for name in merged:
            ElementTree.SubElement(unseen, kind.option, label_studio_choice(name) | colours.get(present[name], {}))
    return ElementTree.tostring(view, encoding="unicode")


def _control_of(view: ElementTree.Element, kind: Kind) -> ElementTree.Element:
    return next(control for control in view.iter(kind.tag) if control.get("name") == CONTROL)


def stored_names(stored: Sequence[str], classes: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """The name under which a page keeps each class: its own, or the first of its former names.

    >>> stored_names(["cat", "dog"], ["feline", "dog", "bird"], {"cat": "feline"})
    {'feline': 'cat', 'dog': 'dog', 'bird': 'bird'}
    """
    own = {normalize("NFC", name): name for name in reversed(stored)}
    former = {renamed[name]: kept for name, kept in own.items() if name in renamed}
    return {label: own.get(label) or former.get(label, label) for label in classes}


def _add_classes(control: ElementTree.Element, classes: Sequence[str], names: Mapping[str, str], kind: Kind) -> None:
    """Add each class to choose; `names` are those that are kept where they are others."""
    keys, colours = hotkeys(classes, kind.keys), _colours(classes, kind)
    for label in classes:
        hotkey = {"hotkey": keys[label]} if label in keys else {}
        alias = {"alias": names[label]} if names.get(label, label) != label else {}
        option = label_studio_choice(label) | alias | colours.get(label, {}) | hotkey
        ElementTree.SubElement(control, kind.option, option)


def _colours(classes: Sequence[str], kind: Kind) -> dict[str, dict[str, str]]:
    """The attribute of each class that gives its regions their colour."""
    return {label: {"background": colour} for label, colour in class_colours(classes).items()} if kind.has_parts else {}


def hotkeys(classes: Sequence[str], keys: str = ONE.keys) -> dict[str, str]:
    """A key for each class while there are any; a class that is a key itself has that one.

    >>> hotkeys(["0", "1", "cat"])
    {'0': '0', '1': '1', 'cat': '2'}
    """
    own = {label.lower(): label for label in reversed(classes) if label.lower() in frozenset(keys)}
    others = [label for label in classes if label not in own.values()]
    free = [key for key in keys if key not in own]
    given = {label: key for key, label in own.items()} | dict(zip(others, free, strict=False))
    return {label: given[label] for label in classes if label in given}


def page_differences(controls: Mapping[str, Any], page: str, asks: AskFor = ONE_CLASS) -> list[str]:
    """How a project's page differs from a campaign's in what answers depend on, but for the classes.

    What somebody put there besides, such as a box for comments, is no difference.
    """
    kind = kind_of(asks)
    wanted = {CONTROL: kind.tag} | ({} if kind.nothing is None else {NOTHING: "Choices"})
    if any(controls.get(name, {}).get("type") != tag for name, tag in wanted.items()):
        asked = ", ".join(f"{name} ({control['type']})" for name, control in controls.items()) or "nothing"
        are = "is" if len(wanted) == 1 else "are"
        return [f"asks for {asked} where {', '.join(f'{name} ({tag})' for name, tag in wanted.items())} {are} wanted"]
    control = controls[CONTROL]
    differences = []
    differences += _classes_without_name(control)
    shown = [(part["type"], part["value"]) for part in control["inputs"]]
    if control["to_name"] != [OBJECT] or shown != [("Image", IMAGE)]:
        differences.append(f"shows {shown} where an Image named {OBJECT!r} with value ${IMAGE} is wanted")
    choice = _control_of(ElementTree.fromstring(page), kind).get("choice")  # noqa: S314 (as above)
    if kind is ONE and choice == "multiple":
        differences.append("lets people choose several classes where one is wanted")
    if kind is SEVERAL and choice != "multiple":
        differences.append("lets people choose one class where several are wanted")
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


def guess_of_size(question: Question, size: Size | None) -> Question:
    """The question with the masks of its guess as large as the image that annotators see.

    Label Studio shows a mask of another size in its right place, and changes it in a wrong one. So where nobody knows
    how large the image is, a guess with masks is not shown.
    """
    if not any(region.mask for region in question.guess or ()):
        return question
    return replace(question, guess=size and tuple(_of_size(region, size) for region in question.guess or ()))


def _of_size(region: Region, size: Size) -> Region:
    if region.mask is None or mask_size(region.mask) == size:
        return region
    return replace(region, mask=mask_to_png(pixels_of(region, *size)))


def task_to_import(
    question: Question,
    *,
    image: str,
    version: str,
    n_ranks: int,
    names: Mapping[str, str] = MappingProxyType({}),
    asks: AskFor = ONE_CLASS,
    size: Size | None = None,
) -> dict[str, Any]:
    """The question as Label Studio imports it: a task, without the purpose, which is not for people to know.

    Label Studio serves the lowest score of the project's model version first, so the score is the place in the
    batch. A question without a guess has an empty prediction, which shows nothing and keeps its place; so has one where
    the model sees nothing: that nothing is there is for a person to tick, who has looked.

    Args:
        image: address that a browser loads it from.
        version: model version, of this round alone.
        n_ranks: ranks are below it.
        names: under which the page keeps classes, where they are others: see `stored_names`.
        size: of the image as it is shown, where regions are parts of it; an answer is read by it.
    """
    why = f"Why this image: {question.reason}" if question.reason else ""
    data = {IMAGE: image, REASONS: why, "item_id": question.item_id, "round_number": question.ask.round_number}
    prediction = {
        "model_version": version,
        "score": question.rank / n_ranks,
        "result": kind_of(asks).write(question.guess or (), names),
    }
    data |= {} if size is None else {WIDTH: size.width, HEIGHT: size.height}
    return {"data": data | {"reason": question.reason} | dict(question.columns), "predictions": [prediction]}
