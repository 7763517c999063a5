"""Pools of many tiny images on disk, no two of one content: python -m benchmarks.pools_on_disk FOLDER N"""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 16
PER_FOLDER = 1000
HEADER = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
"""Of a PNG: width, height, 8 bits of grey."""


def write_pool(folder: Path, n_images: int, *, per_folder: int = PER_FOLDER) -> Path:
    """Write grey PNGs of noise, 16 x 16, into sub-folders; one that is there stays. Of two pools the smaller is a part.

    A million takes some two minutes, 4 GB and a million inodes.

    Returns:
        `folder`.
    """
    for start in range(0, n_images, per_folder):
        inside = folder / f"{start // per_folder:05d}"
        n_here = min(per_folder, n_images - start)
        inside.mkdir(parents=True, exist_ok=True)
        if len(list(inside.iterdir())) == n_here:
            continue
        pixels = np.random.default_rng(start).integers(0, 256, (per_folder, SIDE, SIDE), dtype=np.uint8)
        for number, image in enumerate(pixels[:n_here], start):
            (inside / f"{number:08d}.png").write_bytes(png(image))
    return folder


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey PNG of pixels `(16, 16)`, whose data are stored as they are: noise does not get smaller."""
    rows = np.concatenate([np.zeros((SIDE, 1), dtype=np.uint8), pixels], axis=1).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", HEADER) + _chunk(b"IDAT", zlib.compress(rows, 0)) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


if __name__ == "__main__":
    write_pool(Path(sys.argv[1]), int(sys.argv[2]))
