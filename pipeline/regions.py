"""Regions as text: JSON for tables, words for people."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.types import Region

SEPARATOR = "|"
"""Stands between the labels of an image in one cell of a table; alone, it says that none of the classes is there."""


def regions_to_json(regions: Sequence[Region]) -> str:
    """The regions as JSON, in their order, masks in base64; an empty list is what somebody found who found nothing.

    >>> regions_to_json([Region("image", "cat")])
    '[{"kind": "image", "label": "cat"}]'
    """
    return json.dumps([_values(region) for region in regions], ensure_ascii=False)


def regions_from_json(text: str) -> tuple[Region, ...]:
    """The regions that `regions_to_json` wrote."""
    return tuple(_region(one) for one in json.loads(text))


def _region(values: dict[str, Any]) -> Region:
    return Region(
        values["kind"],
        values["label"],
        geometry=tuple(values["geometry"]) if "geometry" in values else None,
        score=values.get("score"),
        mask=base64.b64decode(values["mask"], validate=True) if "mask" in values else None,
    )


def cell_of_labels(labels: Sequence[str]) -> str:
    """Labels of an image as one cell of a table.

    >>> cell_of_labels(["cat", "dog"]), cell_of_labels([])
    ('cat|dog', '|')
    """
    return SEPARATOR.join(labels) or SEPARATOR


def labels_of_cell(cell: str) -> list[str]:
    """The labels that `cell_of_labels` wrote; none of an empty cell."""
    return [] if cell in ("", SEPARATOR) else cell.split(SEPARATOR)


def renamed_cell(cell: str, names: Mapping[str, str]) -> str:
    """The cell whose labels have other names; labels that get one name are one.

    >>> renamed_cell("cat|kitty|dog", {"kitty": "cat"})
    'cat|dog'
    """
    return cell_of_labels([*dict.fromkeys(names.get(name, name) for name in labels_of_cell(cell))])


def regions_in_words(regions: Sequence[Region]) -> str:
    """The labels of the regions, one after another.

    >>> regions_in_words([Region("image", "cat")])
    'cat'
    """
    return "; ".join(region.label for region in regions)


def _values(region: Region) -> dict[str, object]:
    values: dict[str, object] = {"kind": region.kind, "label": region.label}
    if region.geometry is not None:
        values["geometry"] = list(region.geometry)
    if region.score is not None:
        values["score"] = region.score
    if region.mask is not None:
        values["mask"] = base64.b64encode(region.mask).decode("ascii")
    return values
