"""Polygons: outlines of straight edges, without holes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from connectors.label_studio.kinds.kind import LeftOut, Spoilt, number, words
from connectors.label_studio.kinds.parts import Shape, kind_of_parts
from pipeline.polygons import area, crosses_itself
from pipeline.types import Region, Size

MOST_CORNERS = 10_000
NO_AREA = 1e-12
"""Of the image: what rounding makes of corners in one line."""


def _write(region: Region) -> dict[str, Any]:
    """Corners in percent of the image."""
    geometry = region.geometry or ()
    corners = [[100 * x, 100 * y] for x, y in zip(geometry[::2], geometry[1::2], strict=True)]
    return {"points": corners, "closed": True}


def _read(label: str, value: Mapping[str, Any], type_: str, size: Size | None) -> Region:
    points = value.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise Spoilt(f"has no corners: {words(points)}")
    if len(points) > MOST_CORNERS:
        raise LeftOut(f"has {len(points)} corners, more than {MOST_CORNERS}")
    corners = np.array([[number(x), number(y)] for x, y in points], dtype=np.float64).reshape(-1, 2) / 100
    if not np.isfinite(corners).all():
        raise Spoilt("has corners that are no numbers")
    if value.get("closed") is False:
        raise LeftOut("is not closed: click on its first corner")
    corners = corners.clip(0.0, 1.0)
    corners = corners[(corners != np.roll(corners, -1, axis=0)).any(axis=1)]
    if len(corners) < 3:
        raise LeftOut("is outside of the image, or has no size")
    if crosses_itself(corners):
        raise LeftOut("crosses itself: draw two")
    if area(corners) < NO_AREA:
        raise LeftOut("is outside of the image, or has no size")
    if size and area(corners * np.array(size)) < 1:
        raise LeftOut("is smaller than a pixel")
    return Region("polygon", label, tuple(corners.flatten().tolist()))


POLYGONS = kind_of_parts(
    Shape("polygon", ("polygonlabels",), _write, _read),
    tag="PolygonLabels",
    attributes={"strokeWidth": "3", "opacity": "0.4"},
    draw="click the corners of its outline, the first one again at the end",
)
