"""Pixels deeper than 8 bits: which kinds there are, and how they become 8 bits.

A camera of 12 bits writes files of 16, a thermal camera kelvins, a scanner floats up to 1: what is black and what is
white says the data, not the type of the numbers. So each kind of a pool has one range for all its images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from connectors.images.reading import Reading

STRIP = 2**20
"""Pixels that are converted at a time, so that no second copy of a large image is made."""

GDAL_NODATA = 42113
WHITE_IS_ZERO = ", white is zero"
SIXTEEN_BIT_COLOURS = frozenset({"RGB;16", "RGBX;16", "RGBA;16"})
INTEGERS = {(16, 2): ("16-bit signed", "i4"), (32, 1): ("32-bit unsigned", "u4"), (32, 2): ("32-bit signed", "i4")}
"""Kind, and type of what Pillow makes of them, by the bits and the sample format of a TIFF."""


@dataclass(frozen=True)
class Deep:
    """What the header of a file holds on its deep pixels.

    Attributes:
        kind: for people to read; images of one kind share a range.
        dtype: of the values as Pillow gives them.
        has_colours: three channels, and not one.
        has_alpha: and one more, which says how opaque they are.
        full: the smallest and the largest value of the type; None where these mean nothing.
        no_data: a value that stands for "not measured"; it is black.
        transparent: the value, one or three, that is transparent.
    """

    kind: str
    dtype: str
    has_colours: bool = False
    has_alpha: bool = False
    full: tuple[float, float] | None = None
    no_data: float | None = None
    transparent: tuple[int, ...] | None = None

    @property
    def is_inverted(self) -> bool:
        """Whether the largest value is black."""
        return self.kind.endswith(WHITE_IS_ZERO)


def deep_of(image: ImageFile.ImageFile) -> Deep | None:
    """What the pixels of an opened file are; None for 8 bits and fewer, and where Pillow has made 8 bits of them."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    n_bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))[0]
    inverted = WHITE_IS_ZERO if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else ""
    transparent = image.info.get("transparency")
    no_data = _no_data(tags.get(GDAL_NODATA))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        full = (0.0, 4095.0) if n_bits == 12 else (0.0, 65535.0)
        one = (transparent,) if isinstance(transparent, int) else None
        return Deep(f"16-bit grey{inverted}", "u2", full=full, no_data=no_data, transparent=one)
    if image.mode == "I":
        kind, dtype = INTEGERS.get((n_bits, sample_format), ("32-bit signed", "i4"))
        return Deep(f"{kind}{inverted}", dtype, no_data=no_data)
    if image.mode == "F":
        return Deep(f"32-bit float{inverted}", "f4", no_data=no_data)
    if image.mode == "L" and (sample_format, n_bits) == (2, 8):
        return Deep(f"8-bit signed{inverted}", "i1", full=(-128.0, 127.0), no_data=no_data)
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":
        return Deep("16-bit grey", "u2", has_alpha=True, full=(0.0, 65535.0))
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2  # whose planes Pillow reads as bytes
    if rawmode[:-1] in SIXTEEN_BIT_COLOURS and not is_planar:
        three = transparent if isinstance(transparent, tuple) else None
        return Deep(
            "16-bit colour",
            "u2",
            has_colours=True,
            has_alpha=image.mode == "RGBA",
            full=(0.0, 65535.0),
            no_data=no_data,
            transparent=three,
        )
    return None


def _no_data(told: object) -> float | None:
    try:
        return float(str(told).strip("\0 ")) if told is not None else None
    except ValueError:
        return None


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the decoder is to unpack the pixels; empty where it does otherwise."""
    args = image.tile[0].args if image.tile else ""
    rawmode = args[0] if isinstance(args, tuple) and args else args
    return rawmode if isinstance(rawmode, str) else ""


def unpack_all_bytes(image: ImageFile.ImageFile) -> None:
    """Let Pillow, which keeps one byte of a 16-bit grey beside an alpha channel, give all four bytes instead."""
    image.tile = [tile._replace(args="RGBA") for tile in image.tile]


def unpack_low_bytes(image: ImageFile.ImageFile) -> None:
    """Let Pillow, which keeps the high bytes of 16-bit colours, give the low ones: those of the other byte order."""
    is_big = _rawmode(image)[-1] == "B" or (_rawmode(image)[-1] == "N" and np.dtype("u2") == np.dtype(">u2"))
    other = _rawmode(image)[:-1] + ("L" if is_big else "B")
    image.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in image.tile
    ]


@dataclass(frozen=True)
class DeepImage:
    """Decoded deep pixels.

    Attributes:
        image: as Pillow has it.
        low: of 16-bit colours the low bytes, whose high ones are in `image`.
    """

    deep: Deep
    image: Image.Image
    low: Image.Image | None = None

    def values(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows of values: `(rows, W)`, or `(rows, W, channels)` with colours or alpha."""
        rows = (0, top, self.image.width, bottom)
        part = np.asarray(self.image.crop(rows))
        if self.low is not None:
            return np.asarray((part.astype(np.uint16) << 8) | np.asarray(self.low.crop(rows)))
        if self.deep.has_alpha:
            return np.ascontiguousarray(part).view(">u2").astype(np.uint16)
        if part.dtype.kind == "i" and self.deep.dtype == "u2":
            return part.astype(np.uint16)  # of a PPM
        return part.view(self.deep.dtype) if part.dtype.kind != "u" or self.deep.dtype == "i1" else part

    def strips(self) -> Iterator[tuple[int, int]]:
        """First row and end of parts that are small enough to be converted at once."""
        n_rows = max(1, STRIP // self.image.width)
        return ((top, min(top + n_rows, self.image.height)) for top in range(0, self.image.height, n_rows))

    def to_eight_bits(self, reading: Reading) -> Image.Image:
        """The image in grey or RGB, on white."""
        deep = self.deep
        low, high = self._ends(reading)
        to_bytes = _look_up(low, high) if deep.dtype == "u2" else _stretch(low, high)
        image = Image.new("RGB" if deep.has_colours else "L", self.image.size)
        for top, bottom in self.strips():
            values = self.values(top, bottom)
            alpha = None
            if deep.has_alpha:
                values, alpha = values[..., :-1], values[..., -1:].astype(np.float32) / 65535
                values = values if deep.has_colours else values[..., 0]
                alpha = alpha if deep.has_colours else alpha[..., 0]
            part = to_bytes(values)
            if deep.is_inverted:
                part = 255 - part
            if not _all(is_data := _is_data(values, deep.no_data)):
                part = np.where(is_data, part, np.uint8(0))
            if alpha is not None:
                part = np.rint(part * alpha + 255 * (1 - alpha)).astype(np.uint8)
            if deep.transparent is not None:
                is_clear = _equal(values, deep.transparent, has_colours=deep.has_colours)
                part = np.where(is_clear, np.uint8(255), part)
            image.paste(Image.fromarray(part), (0, top))
        return image

    def _ends(self, reading: Reading) -> tuple[float, float]:
        """The values that become 0 and 255."""
        known = reading.range_of(self.deep.kind)
        if known is not None:
            return known.low, known.high
        if self.deep.full is not None:
            return self.deep.full
        ends = [_smallest_and_largest(self.values(*strip), self.deep.no_data) for strip in self.strips()]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def sample(self, n_rows: int, n_columns: int) -> NDArray[np.float64]:
        """Values at up to so many rows and columns of the image, drawn the same for equal sizes; only what is data."""
        draw = np.random.default_rng(0)
        width, height = self.image.size
        rows, columns = (np.sort(draw.permutation(n)[:most]) for n, most in ((height, n_rows), (width, n_columns)))
        values = np.concatenate([self.values(row, row + 1)[:, columns] for row in rows.tolist()])
        is_data = np.ones(values.shape[:2], dtype=bool)
        if self.deep.has_alpha:
            is_data &= values[..., -1] > 0
            values = values[..., :-1]
        if self.deep.transparent is not None:
            clear = _equal(values, self.deep.transparent, has_colours=self.deep.has_colours)
            is_data &= ~(clear[..., 0] if clear.ndim == 3 else clear)
        values = values[is_data]
        data: NDArray[np.float64] = values[_is_data(values, self.deep.no_data)].astype(np.float64)
        return data


def _all(flags: NDArray[np.bool_] | bool) -> bool:
    return flags if isinstance(flags, bool) else bool(flags.all())


def _is_data(values: NDArray[Any], no_data: float | None) -> NDArray[np.bool_]:
    is_data = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)
    if no_data is not None:
        is_data &= values != (np.float32(no_data) if values.dtype.kind == "f" else no_data)
    return is_data


def _equal(values: NDArray[Any], wanted: tuple[int, ...], *, has_colours: bool) -> NDArray[np.bool_]:
    if not has_colours:
        return np.asarray(values == wanted[0])
    return np.asarray((values == np.array(wanted)).all(axis=-1, keepdims=True))


def _smallest_and_largest(values: NDArray[Any], no_data: float | None) -> tuple[float, float]:
    found = values[_is_data(values, no_data)]
    return (float(found.min()), float(found.max())) if found.size else (np.inf, -np.inf)


@lru_cache(maxsize=16)
def _look_up(low: float, high: float) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """What `_stretch` gives, for 16-bit values, by a table."""
    table = _stretch(low, high)(np.arange(65536))
    return lambda values: table[values.astype(np.uint16, copy=False)]


def _stretch(low: float, high: float) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """Values from 0 at `low` to 255 at `high`; all are 0 where there is nothing between."""

    def stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
        if not high > low:
            return np.zeros(values.shape, dtype=np.uint8)
        wide = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        return np.rint(255 * (np.clip(wide, low, high) - low) / (high - low)).astype(np.uint8)

    return stretch
