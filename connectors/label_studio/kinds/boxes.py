"""Boxes: upright rectangles."""

import math
from collections.abc import Mapping
from typing import Any

from connectors.label_studio.kinds.kind import LeftOut, Spoilt, number, words
from connectors.label_studio.kinds.parts import Shape, kind_of_parts
from pipeline.types import Region, Size

NEARLY = 1 - 1e-6
"""Of a pixel: percentages are rounded."""


def _write(region: Region) -> dict[str, Any]:
    """In percent of the image, from its upper left corner."""
    left, upper, right, lower = region.geometry or ()
    place = {"x": left, "y": upper, "width": right - left, "height": lower - upper}
    return {name: 100 * value for name, value in place.items()} | {"rotation": 0}


def _read(label: str, value: Mapping[str, Any], type_: str, size: Size | None) -> Region:
    x, y, width, height = (number(value.get(name)) / 100 for name in ("x", "y", "width", "height"))
    if not math.isfinite(x + y + width + height):
        raise Spoilt(f"has no place: {words(dict(value))}")
    if number(value.get("rotation") or 0) % 360 != 0:
        raise Spoilt(f"is turned by {words(value['rotation'])} degrees: draw it upright")
    left, right = (min(1.0, max(0.0, edge)) for edge in (x, x + width))
    upper, lower = (min(1.0, max(0.0, edge)) for edge in (y, y + height))
    if left >= right or upper >= lower:
        raise LeftOut("is outside of the image, or has no size")
    if size and ((right - left) * size.width < NEARLY or (lower - upper) * size.height < NEARLY):
        raise LeftOut("is smaller than a pixel")
    return Region("box", label, (left, upper, right, lower))


BOXES = kind_of_parts(
    Shape("box", ("rectanglelabels",), _write, _read),
    tag="RectangleLabels",
    attributes={"canRotate": "false", "strokeWidth": "3", "opacity": "0.4"},
    draw="draw a box around it",
)
