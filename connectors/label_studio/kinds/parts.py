"""What boxes, polygons and masks share: each has one label, and is written and read one by one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from connectors.label_studio.kinds.kind import (
    CONTROL,
    KEYS_BESIDE_TOOLS,
    NOTHING_KEY,
    Found,
    Given,
    Kind,
    LeftOut,
    Spoilt,
    number,
    part,
    words,
)
from pipeline.types import Region, RegionKind, Size

MOST_TOLD = 3


class Shape(NamedTuple):
    """What sets a kind of parts apart.

    Attributes:
        name: of the kind, also in messages.
        types: of parts of a result; the first is written. In its value the labels are under the same name, and where
            there is no label, the type is without "labels".
        write: a region -> the value of its part, but for the label.
        read: label, value, type and the image's size -> the region; raises LeftOut or Spoilt.
    """

    name: RegionKind
    types: tuple[str, ...]
    write: Callable[[Region], dict[str, Any]]
    read: Callable[[str, Mapping[str, Any], str, Size | None], Region]


def kind_of_parts(shape: Shape, *, tag: str, attributes: Mapping[str, str], draw: str, tasks_a_page: int = 200) -> Kind:
    """The kind of a shape.

    Args:
        draw: how people draw one, for the instructions.
    """
    return Kind(
        region=shape.name,
        tag=tag,
        option="Label",
        attributes=attributes,
        shown={"zoom": "true", "zoomControl": "true", "rotateControl": "false"},
        keys=KEYS_BESIDE_TOOLS,
        instructions=(
            "Mark everything that belongs to a class: choose the class, with the mouse or the key beside it, and "
            f"{draw}. What the model sees is marked already where there is a guess: correct it, delete what is wrong, "
            f"add what is missing. Where there is nothing to mark, tick 'nothing here' (key {NOTHING_KEY}). Then press "
            "Ctrl+Enter. Skip an image that you cannot judge."
        ),
        write=partial(_write, shape),
        read=partial(_read, shape),
        nothing="nothing here",
        has_parts=True,
        tasks_a_page=tasks_a_page,
    )


def _write(shape: Shape, guess: Sequence[Region], names: Mapping[str, str]) -> list[dict[str, Any]]:
    key = shape.types[0]
    return [part(CONTROL, key, shape.write(one) | {key: [names.get(one.label, one.label)]}, one.score) for one in guess]


def _read(shape: Shape, given: Given) -> Found:
    regions: list[Region] = []
    left_out: list[str] = []
    spoilt: list[str] = []
    for place, one in enumerate(given.of(CONTROL), 1):
        try:
            regions.append(_region(shape, given, one, f"{shape.name} {place}"))
        except LeftOut as exc:
            left_out.append(str(exc))
        except Spoilt as exc:
            spoilt.append(str(exc))
    return Found(tuple(regions), tuple(left_out), tuple(spoilt))


def _region(shape: Shape, given: Given, one: Mapping[str, Any], name: str) -> Region:
    """A part as a region.

    Raises:
        LeftOut: it cannot be used.
        Spoilt: the whole answer cannot be used because of it.
    """
    key = next((key for key in shape.types if one.get("type") in (key, key.removesuffix("labels"))), None)
    value = one.get("value")
    if key is None or not isinstance(value, dict):
        raise Spoilt(f"{name}: wanted {CONTROL} of type {shape.types[0]}, got {words(one.get('type'))}")
    label = _label(given, value.get(key), name)
    named = f"{name} ({words(label)})"
    if number(one.get("image_rotation") or 0) != 0:
        raise Spoilt(f"{named} was drawn on an image that was turned by {words(one['image_rotation'])} degrees")
    if label not in given.classes:
        raise LeftOut(f"{name}: {words(label)!r} is not a class of this campaign")
    try:
        return shape.read(label, value, key, _size(one) or given.size)
    except LeftOut as exc:
        raise LeftOut(f"{named} {exc}") from None
    except Spoilt as exc:
        raise Spoilt(f"{named} {exc}") from None


def _label(given: Given, labels: Any, name: str) -> str:
    if labels is None or labels == []:
        raise Spoilt(f"{name} has no label")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Spoilt(f"{name}: wanted the name of a class, got {words(labels)}")
    present = list(dict.fromkeys(map(given.present, labels)))
    if len(present) > 1:
        raise Spoilt(f"{name} has {len(present)} labels, {', '.join(map(words, present))}")
    return present[0]


def _size(one: Mapping[str, Any]) -> Size | None:
    """Of the image as the browser that drew the part saw it."""
    width, height = number(one.get("original_width")), number(one.get("original_height"))
    return Size(int(width), int(height)) if 1 <= width < 2**31 and 1 <= height < 2**31 else None


def told(problems: Sequence[str]) -> str:
    """Problems in one line: the first few, and how many more there are."""
    more = f"; and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
    return "; ".join(problems[:MOST_TOLD]) + more
