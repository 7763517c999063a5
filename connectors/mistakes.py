"""What people do wrong when they mark regions, for replays and trials."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pipeline.types import Region, RegionKind

NEW_SHARE = (0.1, 0.4)
"""Width and height of a region that is not there, as shares of the image's."""


@dataclass(frozen=True, slots=True)
class Mistakes:
    """How often people err.

    Attributes:
        drop_rate: share of regions that are not marked.
        add_rate: share of images with one region more than there is.
        shift: boxes, polygons and masks are off by at most this share of their width and height.
        relabel_rate: share of regions that are of another class.
    """

    drop_rate: float = 0.0
    add_rate: float = 0.0
    shift: float = 0.0
    relabel_rate: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0.0 <= getattr(self, each.name) <= 1.0:
                raise ValueError(f"{each.name} must be in [0, 1], got {getattr(self, each.name)}")


NO_MISTAKES = Mistakes()


def with_mistakes(
    regions: Sequence[Region],
    mistakes: Mistakes,
    kind: RegionKind,
    classes: Sequence[str],
    rng: random.Random,
    *,
    size: tuple[int, int] = (0, 0),
) -> tuple[Region, ...]:
    """The regions as a person marks them who errs; those that are right first, in order.

    Args:
        regions: all that are there, of one kind.
        size: width and height of the image in pixels, for a mask where there is none yet; 0 where nobody knows it.
    """
    marked: list[Region] = []
    for region in regions:
        if rng.random() < mistakes.drop_rate:
            continue
        taken = {region.label} | ({one.label for one in (*regions, *marked)} if kind == "image" else set())
        others = [label for label in classes if label not in taken]
        label = rng.choice(others) if rng.random() < mistakes.relabel_rate and others else region.label
        marked.append(_shifted(replace(region, label=label), mistakes.shift, rng))
    if rng.random() < mistakes.add_rate:
        marked += _new(kind, regions, marked, classes, rng, size)
    return tuple(marked)


def _new(
    kind: RegionKind,
    regions: Sequence[Region],
    marked: Sequence[Region],
    classes: Sequence[str],
    rng: random.Random,
    size: tuple[int, int],
) -> list[Region]:
    """A region that is not there; none where there cannot be one."""
    if kind == "image":
        absent = [label for label in classes if label not in {one.label for one in (*regions, *marked)}]
        return [Region("image", rng.choice(absent))] if absent else []
    label = rng.choice(classes)
    width, height = rng.uniform(*NEW_SHARE), rng.uniform(*NEW_SHARE)
    left, upper = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    right, lower = left + width, upper + height
    if kind == "box":
        return [Region("box", label, (left, upper, right, lower))]
    if kind == "polygon":
        return [Region("polygon", label, (left, upper, right, upper, right, lower, left, lower))]
    return _new_mask(label, (left, upper, right, lower), size)


def _new_mask(label: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> list[Region]:
    import numpy as np

    from pipeline.masks import mask_to_png

    width, height = size
    if not (width and height):
        return []
    mask = np.zeros((height, width), dtype=np.bool_)
    left, upper, right, lower = box
    mask[int(upper * height) : int(lower * height) + 1, int(left * width) : int(right * width) + 1] = True
    return [Region("mask", label, mask=mask_to_png(mask))]


def _shifted(region: Region, share: float, rng: random.Random) -> Region:
    """A region moved within the image, in both directions by at most a share of its own size."""
    if share == 0.0 or region.kind == "image":
        return region
    by_x, by_y = rng.uniform(-share, share), rng.uniform(-share, share)
    if region.mask is not None:
        return replace(region, mask=_moved(region.mask, by_x, by_y))
    geometry = region.geometry or ()
    xs, ys = geometry[::2], geometry[1::2]
    x, y = _within(xs, by_x), _within(ys, by_y)
    moved = tuple(
        min(1.0, max(0.0, value + by))
        for pair in zip(xs, ys, strict=True)
        for value, by in zip(pair, (x, y), strict=True)
    )
    return replace(region, geometry=moved)


def _within(values: Sequence[float], share: float) -> float:
    """By how much to move them so that they stay in [0, 1]."""
    low, high = min(values), max(values)
    return min(1.0 - high, max(-low, share * (high - low)))


def _moved(png: bytes, by_x: float, by_y: float) -> bytes:
    """A mask moved by shares of its width and height; what leaves the image is lost, but for a last pixel."""
    import numpy as np

    from pipeline.masks import mask_from_png, mask_to_png

    mask = mask_from_png(png)
    ys, xs = mask.nonzero()
    if not len(xs):
        return png
    x, y = (round(by * (1 + int(at.max()) - int(at.min()))) for by, at in ((by_x, xs), (by_y, ys)))
    moved = np.zeros_like(mask)
    moved[(ys + y).clip(0, mask.shape[0] - 1), (xs + x).clip(0, mask.shape[1] - 1)] = True
    return mask_to_png(moved)
