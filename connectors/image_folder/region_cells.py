"""Labels of regions in a manifest: JSON, read strictly."""

import json
from collections.abc import Callable
from typing import Any

from pipeline.masks import mask_from_png
from pipeline.names import shorten
from pipeline.regions import region_of, regions_from_json, regions_to_json
from pipeline.types import Region, RegionKind, mask_size

NOTHING = "write [] where nothing is there, and leave the field empty where there is no label"
KEYS = {"box": {"geometry"}, "polygon": {"geometry"}, "mask": {"mask"}}
"""What a region of a kind has besides kind and label."""
FORMS = {
    "box": '{"kind": "box", "label": "...", "geometry": [left, upper, right, lower]}, in fractions of the image',
    "polygon": '{"kind": "polygon", "label": "...", "geometry": [x, y, x, y, x, y]}, in fractions of the image',
    "mask": '{"kind": "mask", "label": "...", "mask": "..."}, a PNG of 1 bit in base64',
}


class WrongCell(ValueError):
    """A label cannot be read.

    Attributes:
        what: is wrong with it; a row is the subject.
        mend: what to do.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}")
        self.what, self.mend = what, mend


def checked_regions(cell: str, kind: RegionKind, class_of: Callable[[str], str]) -> str:
    """The cell of a manifest as `regions_to_json` writes it.

    Args:
        cell: as somebody wrote it.
        kind: that its regions must be of.
        class_of: the class that a name stands for; raises `WrongCell` for none.

    Raises:
        WrongCell: for the first region that is wrong.
    """
    try:
        given = json.loads(cell)
    except (ValueError, RecursionError) as exc:
        raise WrongCell(f"has a label that is no JSON ({exc})", NOTHING) from exc
    if not isinstance(given, list):
        raise WrongCell("has a label that is no list of regions", NOTHING)
    regions = [_checked(one, kind, class_of, f"has a label whose region {n}") for n, one in enumerate(given, 1)]
    return regions_to_json(regions)


def _checked(one: Any, kind: RegionKind, class_of: Callable[[str], str], which: str) -> Region:
    if not isinstance(one, dict) or one.get("kind") != kind or not isinstance(one.get("label"), str):
        raise WrongCell(f"{which} is {shorten(one)}", f"the campaign's task asks for {FORMS[kind]}")
    if "score" in one:
        raise WrongCell(f"{which} has a score, as guesses have", "take the score away where a person has decided")
    wanted = {"kind", "label"} | KEYS[kind]
    if one.keys() != wanted:
        raise WrongCell(f"{which} has {', '.join(sorted(one))}", f"wanted {', '.join(sorted(wanted))}")
    try:
        label = class_of(one["label"])
    except WrongCell as exc:
        raise WrongCell(f"{which} is of the label {exc.what}", exc.mend) from exc
    if kind != "mask" and not _are_numbers(one["geometry"]):
        raise WrongCell(f"{which} has the geometry {shorten(one['geometry'])}", f"wanted {FORMS[kind]}")
    try:
        return region_of(one | {"label": label})
    except (ValueError, TypeError) as exc:
        raise WrongCell(f"{which} is wrong ({exc})", f"wanted {FORMS[kind]}") from exc


def check_masks(cell: str, width: int, height: int) -> None:
    """See that masks are whole, and of the size of their image.

    Raises:
        WrongCell: for the first that is not.
    """
    for n, region in enumerate(regions_from_json(cell), 1):
        which = f"has a label whose region {n} ({shorten(region.label)})"
        mask = region.mask or b""
        if mask_size(mask) != (width, height):
            sizes = f"{' x '.join(map(str, mask_size(mask)))} pixels, and its image {width} x {height}"
            raise WrongCell(f"{which} has {sizes}", "draw it on the image as it is now, or empty the label")
        try:
            is_there = mask_from_png(mask).any()
        except ValueError as exc:
            raise WrongCell(f"{which} cannot be read ({exc})", f"wanted {FORMS['mask']}") from exc
        if not is_there:
            raise WrongCell(f"{which} has no pixel", "take the region away")


def _are_numbers(geometry: object) -> bool:
    return isinstance(geometry, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in geometry
    )
