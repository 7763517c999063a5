"""Regions as text: JSON for tables, words for people."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.types import AskFor, Region

SEPARATOR = "|"
"""Stands between the labels of an image in one cell of a table; alone, it says that none of the classes is there."""
OTHERS = ""
"""A further label of an image of which only what is there was written down: a class that is not named may be there."""
PERHAPS = "?"
OPEN = f"{SEPARATOR}{PERHAPS}"
"""How a cell ends that has this label."""


def regions_to_json(regions: Sequence[Region]) -> str:
    """The regions as JSON, in their order, masks in base64; an empty list is what somebody found who found nothing.

    >>> regions_to_json([Region("image", "cat")])
    '[{"kind": "image", "label": "cat"}]'
    """
    return json.dumps([_values(region) for region in regions], ensure_ascii=False)


def regions_from_json(text: str) -> tuple[Region, ...]:
    """The regions that `regions_to_json` wrote."""
    return tuple(region_of(one) for one in json.loads(text))


def region_of(values: Mapping[str, Any]) -> Region:
    """The region of what stands between a pair of braces in the JSON."""
    return Region(
        values["kind"],
        values["label"],
        geometry=tuple(values["geometry"]) if "geometry" in values else None,
        score=values.get("score"),
        mask=base64.b64decode(values["mask"], validate=True) if "mask" in values else None,
    )


def cell_of_labels(labels: Sequence[str]) -> str:
    """Labels of an image as one cell of a table; `OTHERS` comes last.

    >>> cell_of_labels(["cat", "dog"]), cell_of_labels([]), cell_of_labels(["cat", OTHERS])
    ('cat|dog', '|', 'cat|?')
    """
    named = SEPARATOR.join(name for name in labels if name != OTHERS)
    return f"{named}{OPEN}" if OTHERS in labels else named or SEPARATOR


def labels_of_cell(cell: str) -> list[str]:
    """The labels that `cell_of_labels` wrote; none of an empty cell."""
    if cell in ("", SEPARATOR):
        return []
    named = cell.removesuffix(OPEN).split(SEPARATOR)
    return [*named, OTHERS] if is_open(cell) else named


def is_open(cell: str) -> bool:
    """Whether a cell has the label `OTHERS`; no class of any task ends as such a cell does."""
    return cell.endswith(OPEN)


def may_read_as_labels(name: str) -> bool:
    """Whether the name of a class has a sign that means something in a cell of labels."""
    return SEPARATOR in name or name == PERHAPS


def check_signs(names: Sequence[str], asks: AskFor) -> None:
    """Raise ValueError for names of classes, of which each `may_read_as_labels`, that cannot be told from labels."""
    has_several = asks.kind == "image" and asks.several
    for name in names:
        if has_several and SEPARATOR in name:
            raise ValueError(f"a class name must not hold {SEPARATOR}, which stands between labels, as {name!r} does")
        if has_several or is_open(name):
            raise ValueError(
                f"no class can be called {name!r}: {OPEN} ends a label that leaves open what else is there"
            )


def classes_in_cell(cell: str, asks: AskFor) -> list[str]:
    """The class of each label that a cell of a manifest gives, by what people are asked for.

    >>> classes_in_cell("cat|dog", AskFor("image", several=True))
    ['cat', 'dog']
    >>> classes_in_cell("cat|dog", AskFor("image", several=False))
    ['cat|dog']
    >>> classes_in_cell("[]", AskFor("box", several=True))
    []
    """
    if asks.kind != "image":
        return [region.label for region in regions_from_json(cell)]
    return [name for name in labels_of_cell(cell) if name != OTHERS] if asks.several else [cell]


def renamed_cell(cell: str, names: Mapping[str, str], asks: AskFor) -> str:
    """The cell of a manifest whose classes have other names; labels of the image that get one name are one.

    >>> renamed_cell("cat|kitty|dog|?", {"kitty": "cat"}, AskFor("image", several=True))
    'cat|dog|?'
    """
    if asks.kind != "image":
        regions = regions_from_json(cell)
        return regions_to_json([replace(region, label=names.get(region.label, region.label)) for region in regions])
    if asks.several:
        return cell_of_labels([*dict.fromkeys(names.get(name, name) for name in labels_of_cell(cell))])
    return names.get(cell, cell)


def regions_in_words(regions: Sequence[Region]) -> str:
    """The labels of the regions, one after another.

    >>> regions_in_words([Region("image", "cat")])
    'cat'
    """
    return "; ".join("perhaps others" if region.label == OTHERS else region.label for region in regions)


def _values(region: Region) -> dict[str, object]:
    values: dict[str, object] = {"kind": region.kind, "label": region.label}
    if region.geometry is not None:
        values["geometry"] = list(region.geometry)
    if region.score is not None:
        values["score"] = region.score
    if region.mask is not None:
        values["mask"] = base64.b64encode(region.mask).decode("ascii")
    return values
