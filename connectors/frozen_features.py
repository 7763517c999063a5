"""Features of images under a frozen trunk: read from the store, or computed from the pixels and kept there."""

from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import cast

import PIL
import torch
from torch import Tensor

from connectors.feature_store import FeatureCache
from connectors.images.pixels import stream_images
from connectors.images.reading import WHOLE, Range, Reading
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import BATCH, extract, feature_key
from pipeline.networks.once import once_for_each_network
from pipeline.types import OnProgress

CHUNK_BYTES = 2**28
"""Decoded images of one append, at most."""


def open_cache(folder: Path, model: Classifier, *, image_size: int, ranges: tuple[Range, ...] = ()) -> FeatureCache:
    """The part of a cache that holds the features of this network; asked for again, it is not made anew.

    Args:
        folder: of the whole cache.
        model: whose trunk is frozen, on the device that computes.
        image_size: side of the square images, pixels.
        ranges: of the pool's deep pixels; a pool of 8 bits has none.
    """
    return _opened(folder, _key(model, image_size, ranges, model.mean.device))


@once_for_each_network
def _key(model: Classifier, image_size: int, ranges: tuple[Range, ...], device: torch.device) -> str:
    """The digest of a frozen trunk, made once for all shards of a pool."""
    return feature_key(
        model,
        image_size=image_size,
        device=device,
        releases=(f"Pillow {PIL.__version__}",),
        ranges=[(one.kind, one.low, one.high) for one in ranges],
    )


@lru_cache(maxsize=1)
def _opened(folder: Path, key: str) -> FeatureCache:
    """The cache, opened once for all shards of a pool: a million ids take their time."""
    return FeatureCache(folder, key)


def cached_features(
    cache: FeatureCache,
    model: Classifier,
    ids: Sequence[str],
    uris: Sequence[str],
    *,
    image_size: int,
    reading: Reading = WHOLE,
    keep: bool = True,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Features of images, from the cache; what is missing there is computed and appended, chunk by chunk.

    They are the same bit by bit, kept or not. A call that was killed goes on where it stood; the next chunk is decoded
    while the network works on one. Another process may remove anything meanwhile.

    Args:
        cache: of this network, size, device and ranges: see `open_cache`.
        model: on the device that computes.
        ids: `(n,)` item ids.
        uris: `(n,)` their paths.
        image_size: side of the square images, pixels.
        reading: how the images are read.
        keep: False appends nothing.
        on_progress: called with (done, total) images.

    Returns:
        float16 `(n, …)` on the CPU.

    Raises:
        PoolError: an image cannot be read; the chunks before it are kept.
    """
    device, channels = model.mean.device, model.channels
    if not ids:
        return extract(model, torch.empty((0, channels, image_size, image_size), dtype=torch.uint8), device=device)
    missing, features = cache.read_kept(ids)
    n_done = len(ids) - len(missing)
    chunk = _chunk_size(image_size, channels)
    wanted = [uris[p] for p in missing.tolist()]
    images = stream_images(wanted, size=image_size, channels=channels, chunk=chunk, reading=reading)
    with closing(images):
        for positions, part in zip(missing.split(chunk) if len(missing) else (), images, strict=True):
            computed = extract(model, part, device=device)
            if keep:
                cache.append([ids[p] for p in positions.tolist()], computed)
            features = computed.new_zeros((len(ids), *computed.shape[1:])) if features is None else features
            features[positions] = computed
            n_done += len(part)
            if on_progress is not None:
                on_progress(n_done, len(ids))
    return cast(Tensor, features)


def _chunk_size(image_size: int, channels: int) -> int:
    """Images of one append: 1,024, or fewer where they are large; whole batches."""
    return min(1024, max(1, CHUNK_BYTES // (BATCH * channels * image_size**2)) * BATCH)
