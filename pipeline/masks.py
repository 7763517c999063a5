"""Masks: brought to a size, filled from outlines, and as PNG of 1 bit a pixel whose transparent part is no mask."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from pipeline.types import PNG_BEGINS, Region, mask_size

AS_IT_IS, LESS_THE_ROW_ABOVE = 0, 2
"""How PNG may store a row."""
LEVEL = 6


def resized(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """A mask `(H, W)` at another size: a smaller one has the pixels of which half or more belongs to the mask.

    >>> resized(np.array([[True, True, False, False]]), 2, 3).tolist()
    [[True, False], [True, False], [True, False]]
    """
    if mask.shape == (height, width):
        return mask
    shares, n_pixels = mask.view(np.uint8), np.ones((1, 1), dtype=np.intp)
    for axis, size in ((0, height), (1, width)):
        length = shares.shape[axis]
        if size >= length:
            nearest = ((np.arange(size) + 0.5) * length / size).astype(np.intp)
            shares = shares.take(nearest, axis=axis)
        else:
            # a pixel belongs to the one that its centre falls into
            begins = np.ceil(np.arange(size) * length / size - 0.5).astype(np.intp)
            shares = np.add.reduceat(shares, begins, axis=axis, dtype=np.int32)
            n_pixels = n_pixels * np.expand_dims(np.diff(begins, append=length), 1 - axis)
    return np.asarray(2 * shares >= n_pixels)


def filled(corners: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels `(height, width)` whose centres lie in a polygon.

    A centre is inside where a line from it to the left meets an odd number of edges.

    Args:
        corners: `(n, 2)`, x and y as fractions of the width and the height.
    """
    x, y = (corners * (width, height)).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    rows = np.arange(height)[:, None] + 0.5
    row, edge = np.nonzero((y <= rows) != (next_y <= rows))
    along = (row + 0.5 - y[edge]) / (next_y[edge] - y[edge])
    meets = x[edge] + along * (next_x[edge] - x[edge])
    first_right = np.clip(np.ceil(meets - 0.5), 0, width).astype(np.intp)
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(crossings, (row, first_right), 1)
    return np.asarray(crossings[:, :width].cumsum(axis=1) % 2 == 1)


def pixels_of(region: Region, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels `(height, width)` of a mask or a polygon, brought to this size.

    Raises:
        ValueError: the region is of another kind, or its mask is damaged.
    """
    if region.mask is not None:
        return resized(mask_from_png(region.mask), width, height)
    if region.kind == "polygon":
        return filled(np.reshape(region.geometry or (), (-1, 2)), width, height)
    raise ValueError(f"wanted a mask or a polygon, got a region of kind {region.kind!r}, labelled {region.label!r}")


def mask_to_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask `(H, W)` as PNG with a palette of two colours, the first of them transparent.

    >>> mask_size(mask_to_png(np.ones((2, 3), dtype=bool)))
    Size(width=3, height=2)

    Raises:
        ValueError: it has no pixel, or is no mask.
    """
    if mask.ndim != 2 or not mask.size or mask.dtype != np.bool_:
        raise ValueError(f"a mask is (H, W) of bool, got {mask.shape} of {mask.dtype}")
    height, width = mask.shape
    rows = np.packbits(mask, axis=1)
    stored = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    stored[:, 0] = LESS_THE_ROW_ABOVE
    stored[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    chunks = (
        (b"PLTE", bytes(6)),
        (b"tRNS", b"\x00\xff"),
        (b"IDAT", zlib.compress(stored.tobytes(), LEVEL)),
        (b"IEND", b""),
    )
    return PNG_BEGINS[:8] + _chunk(b"IHDR", header) + b"".join(_chunk(name, content) for name, content in chunks)


def mask_from_png(png: bytes) -> NDArray[np.bool_]:
    """The mask `(H, W)` that `mask_to_png` wrote.

    Raises:
        ValueError: it is damaged, or somebody else wrote it.
    """
    width, height = mask_size(png)
    n_bytes = 1 + (width + 7) // 8
    try:
        content = zlib.decompressobj().decompress(_pixels_of(png), height * n_bytes)
    except (zlib.error, struct.error) as exc:
        raise ValueError(f"a mask is damaged: {exc}") from exc
    if len(content) != height * n_bytes:
        raise ValueError(f"a mask of {width} x {height} is damaged: it ends early")
    stored = np.frombuffer(content, dtype=np.uint8).reshape(height, n_bytes)
    if not np.isin(stored[:, 0], (AS_IT_IS, LESS_THE_ROW_ABOVE)).all():
        raise ValueError("a mask was not written by pipeline.masks.mask_to_png")
    rows = stored[:, 1:].copy()
    for place in range(1, height):
        if stored[place, 0] == LESS_THE_ROW_ABOVE:
            rows[place] += rows[place - 1]
    return np.unpackbits(rows, axis=1, count=width).astype(np.bool_)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _pixels_of(png: bytes) -> bytes:
    """The compressed pixels, which a PNG may hold in several pieces."""
    place, found = 8, b""
    while place + 8 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        if png[place + 4 : place + 8] == b"IDAT":
            found += png[place + 8 : place + 8 + length]
        place += 12 + length
    return found
