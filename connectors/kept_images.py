"""Decoded images that networks learn from: kept beside the features, so that each is decoded once for all rounds."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import PIL
import torch

from connectors.feature_store import FeatureCache
from connectors.images.pixels import stream_images
from connectors.images.reading import WHOLE, Range, Reading
from pipeline.image_rows import Images, joined, subset
from pipeline.types import OnProgress

FORMAT = 1
"""Part of every key: raise it when a change of the code changes the pixels of an image."""
CHUNK_BYTES = 2**26
"""Images of one append, at most; three times as many are in memory while they are decoded."""


def open_images(folder: Path, *, size: int, channels: int, ranges: tuple[Range, ...] = ()) -> FeatureCache:
    """The part of a cache that holds images of this size; asked for again, it is not made anew.

    Args:
        folder: of the whole cache.
        size: side of the square images, pixels.
        ranges: of the pool's deep pixels; a pool of 8 bits has none.
    """
    how = [FORMAT, f"Pillow {PIL.__version__}", *((one.kind, one.low, one.high) for one in ranges)]
    digest = hashlib.blake2b(json.dumps(how).encode(), digest_size=8).hexdigest()
    return _opened(folder, f"images-{size}x{size}x{channels}-{digest}")


@lru_cache(maxsize=1)
def _opened(folder: Path, key: str) -> FeatureCache:
    return FeatureCache(folder, key, torch.uint8)


def kept_images(
    cache: FeatureCache,
    ids: Sequence[str],
    uris: Sequence[str],
    *,
    size: int,
    channels: int,
    reading: Reading = WHOLE,
    on_progress: OnProgress | None = None,
) -> Images:
    """Images as `load_images` gives them, on the disk; what is missing there is decoded and appended, part by part.

    A call that was killed goes on where it stood. What other processes remove stays readable here.

    Args:
        cache: of this size, these channels and ranges: see `open_images`.
        ids: `(n,)` item ids.
        uris: `(n,)` their paths.
        size: side of the square images, pixels.
        reading: how the images are read.
        on_progress: called with (done, total) images.

    Raises:
        PoolError: an image cannot be read; the parts before it are kept.
    """
    missing, rows = cache.rows_kept(ids)
    found: Images = rows
    order = [torch.ones(len(ids), dtype=torch.bool).index_fill(0, missing, False).nonzero().flatten()]
    chunk = max(1, CHUNK_BYTES // (channels * size**2))
    n_done, wanted = len(ids) - len(missing), [uris[position] for position in missing.tolist()]
    with closing(stream_images(wanted, size=size, channels=channels, chunk=chunk, reading=reading)) as parts:
        for positions, part in zip(missing.split(chunk) if len(missing) else (), parts, strict=True):
            of_part = [ids[position] for position in positions.tolist()]
            left = cache.missing(of_part)  # another process may have been as quick
            cache.append([of_part[position] for position in left.tolist()], part[left])
            removed, kept = cache.rows_kept(of_part)
            found = joined(found, part if len(removed) else kept)
            order.append(positions)
            n_done += len(part)
            if on_progress is not None:
                on_progress(n_done, len(ids))
    return subset(found, torch.cat(order).argsort())
