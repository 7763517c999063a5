"""The range that the deep pixels of a pool lie in, kind by kind, measured on a sample of its images."""

import itertools
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from connectors.images.decode import Decoded, decode, open_image, without_pillow_warnings
from connectors.images.deep_pixels import DeepImage, deep_of
from connectors.images.reading import WHOLE, Range, Reading
from connectors.images.threads import map_in_threads
from pipeline.pool.reasons import PoolError, PoolUnavailable

SAMPLED_PER_KIND = 300
"""Images that the range of a kind of deep pixels is measured on."""
SAMPLED_LINES = 64
"""Rows, and columns, of each."""
PERCENTILES = (0.1, 99.9)
"""Of the pixels of a pool's sample: what becomes black and what becomes white."""
N_DISTINCT = 16
"""Values that must be left beside one that is taken for no data: an image of a few values means each of them."""


def measure_ranges(uris: Sequence[str], *, reading: Reading = WHOLE) -> tuple[Range, ...]:
    """The range of each kind of deep pixels that images have, from the first hundreds of each kind.

    Each image gives equally many pixels, so that the sample takes megabytes.

    Args:
        uris: `(n,)` paths; what cannot be read is passed over.
    """
    with without_pillow_warnings():
        kinds = map_in_threads(lambda uri: _deep_kind(uri, reading), uris, n_threads=reading.n_threads(uris))
        sample = list(
            itertools.chain.from_iterable(
                [uri for uri, other in zip(uris, kinds, strict=True) if other == kind][:SAMPLED_PER_KIND]
                for kind in sorted({kind for kind in kinds if kind is not None})
            )
        )
        values = map_in_threads(lambda uri: _sample_values(uri, reading), sample, n_threads=reading.n_threads(sample))
    return ranges_of([found for found in values if found is not None])


def _deep_kind(uri: str, reading: Reading) -> str | None:
    """The kind of an image's deep pixels, by its header; None for 8 bits and for what cannot be read."""
    try:
        with reading.open(uri) as file:
            deep = deep_of(open_image(file))
            return deep.kind if deep else None
    except PoolUnavailable:
        raise
    except Exception:  # of any bytes
        return None


def _sample_values(uri: str, reading: Reading) -> tuple[str, NDArray[np.float64]] | None:
    """Kind and some values of an image with deep pixels."""

    def use(decoded: Decoded) -> tuple[str, NDArray[np.float64]] | None:
        if decoded.deep is None:
            return None
        image = DeepImage(decoded.deep, decoded.stored, decoded.low)
        return decoded.deep.kind, image.sample(SAMPLED_LINES, SAMPLED_LINES)

    with suppress(PoolError):
        return decode(uri, use, at_least=lambda _width, _height: (1, 1), reading=reading)
    return None


def robust_range(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """From where to where the values of a sample lie, without their tails and without what stands for no data.

    A value that is at an end, is repeated, and is farther from the others than these are from each other says that
    there is no data, or that a sensor was at its limit: -9999 beside degrees, 65535 beside 12 bits.

    Args:
        values: `(n,)`, finite.

    Returns:
        The ends; None where all values are equal.
    """
    values = np.sort(values)
    while (without := _without_far_end(values)) is not None:
        values = without
    if not values.size:
        return None
    low, high = np.percentile(values, PERCENTILES, method="nearest")
    if not high > low:  # most is background of one value
        low, high = values[0], values[-1]
    return (float(low), float(high)) if high > low else None


def _without_far_end(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Sorted values without those equal to one end, where that one is far off; None where no end is."""
    if not values.size:
        return None
    first = int(np.searchsorted(values, values[0], side="right"))
    last = int(np.searchsorted(values, values[-1], side="left"))
    for rest, end in ((values[first:], values[0]), (values[:last], values[-1])):
        if len(rest) == 0 or len(values) - len(rest) < 2:
            continue
        low, high = np.percentile(rest, PERCENTILES, method="nearest")
        gap = low - end if end < rest[0] else end - high
        if gap > high - low and len(np.unique(rest)) >= N_DISTINCT:
            return rest
    return None


def ranges_of(samples: Sequence[tuple[str, NDArray[np.float64]]]) -> tuple[Range, ...]:
    """The range of each kind, by name, from samples of its images."""
    found = []
    for kind in sorted({kind for kind, _ in samples}):
        parts = [values for name, values in samples if name == kind]
        ends = robust_range(np.concatenate(parts))
        if ends is not None:
            found.append(Range(kind, *ends, n_images=len(parts)))
    return tuple(found)
