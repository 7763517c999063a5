"""Classes of the whole image: one of them, or any number."""

from collections.abc import Mapping, Sequence
from typing import Any

from connectors.label_studio.kinds.kind import CONTROL, KEYS, NOTHING_KEY, Found, Given, Kind, part, words
from pipeline.types import Region

TYPE = "choices"
NO_CLASS = "No class is chosen: choose one, or skip. The key of the class that is ticked takes the tick away."
SHOWN = {"maxWidth": "600px"}


def _write_one(guess: Sequence[Region], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [part(CONTROL, TYPE, {"choices": [names.get(region.label, region.label)]}, region.score) for region in guess]


def _write_several(guess: Sequence[Region], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """All in one part; it has no score, as Label Studio keeps one for all of them."""
    return [part(CONTROL, TYPE, {"choices": [names.get(one.label, one.label) for one in guess]})] if guess else []


def _read_one(given: Given) -> Found:
    if not any(one.get("type") == TYPE for one in given.of(CONTROL)):
        return Found(spoilt=(_came(given, given.parts),))
    labels = _labels(given)
    if isinstance(labels, str):
        return Found(spoilt=(labels,))
    if len(labels) > 1:
        return Found(spoilt=(f"wanted one class, got {', '.join(map(words, labels))}",))
    if labels and labels[0] not in given.classes:
        return Found(spoilt=(_unknown(labels[0]),))
    return Found(tuple(Region("image", label) for label in labels))


def _read_several(given: Given) -> Found:
    ours = given.of(CONTROL)
    if any(one.get("type") != TYPE for one in ours):
        return Found(spoilt=(_came(given, ours),))
    labels = _labels(given)
    if isinstance(labels, str):
        return Found(spoilt=(labels,))
    return Found(
        regions=tuple(Region("image", label) for label in labels if label in given.classes),
        left_out=tuple(_unknown(label) for label in labels if label not in given.classes),
    )


def _labels(given: Given) -> list[str] | str:
    """The distinct labels that are chosen, in order, or why they cannot be told."""
    labels: list[str] = []
    for one in given.of(CONTROL):
        if one.get("type") != TYPE:
            continue
        value = one.get("value")
        chosen = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(chosen, list) or not all(isinstance(label, str) for label in chosen):
            return f"wanted the name of a class, got {words(value)}"
        labels += [label for label in dict.fromkeys(map(given.present, chosen)) if label not in labels]
    return labels


def _came(given: Given, parts: Sequence[Mapping[str, Any]]) -> str:
    came = sorted(f"{words(one.get('from_name'))} of type {words(one.get('type'))}" for one in parts)
    return f"wanted {CONTROL} of type {TYPE}, got {', '.join(came) or words(given.result)}"


def _unknown(label: str) -> str:
    return f"{words(label)!r} is not a class of this campaign"


ONE = Kind(
    region="image",
    tag="Choices",
    option="Choice",
    attributes={"choice": "single-radio", "required": "true", "requiredMessage": NO_CLASS},
    shown=SHOWN,
    keys="1234567890" + KEYS[9:],
    instructions=(
        "Choose the class that the image shows, with the mouse or the key beside it. Where the model's guess is ticked "
        "and you agree, press Ctrl+Enter; it may be wrong. Skip an image that you cannot judge."
    ),
    write=_write_one,
    read=_read_one,
)
SEVERAL = Kind(
    region="image",
    tag="Choices",
    option="Choice",
    attributes={"choice": "multiple"},
    shown=SHOWN,
    keys=KEYS,
    instructions=(
        "Choose each class that the image shows, with the mouse or the keys beside them. Where the model's guesses are "
        f"ticked, correct what is wrong. Where none of the classes is there, tick 'none of these' (key {NOTHING_KEY}). "
        "Then press Ctrl+Enter. Skip an image that you cannot judge."
    ),
    write=_write_several,
    read=_read_several,
    nothing="none of these",
)
