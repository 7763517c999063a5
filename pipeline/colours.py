"""A colour for each class, the same wherever classes are drawn."""

import colorsys
from collections.abc import Sequence

PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#ffe119",
    "#469990",
    "#9a6324",
    "#800000",
    "#808000",
    "#000075",
    "#bfef45",
    "#fabed4",
    "#dcbeff",
    "#aaffc3",
    "#ffd8b1",
    "#808080",
)
"""Trubetskoy, "List of 20 simple, distinct colors": the clearest first."""
GOLDEN = 0.618033988749895
"""Steps of this share of the colour circle never come close to an earlier one."""


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour of each class, by its place in the order of the campaign.

    >>> class_colours(["cat", "dog"])
    {'cat': '#e6194b', 'dog': '#3cb44b'}
    """
    return {label: PALETTE[place] if place < len(PALETTE) else _further(place) for place, label in enumerate(classes)}


def _further(place: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb(place * GOLDEN % 1, 0.65, 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
