"""Images as a model takes them: decoded in threads, upright, on white, as squares of 8 bits."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from connectors.images.colour import on_white
from connectors.images.decode import UPRIGHT, Decoded, decode, without_pillow_warnings
from connectors.images.reading import WHOLE, Reading


def load_images(uris: Sequence[str], *, size: int, channels: int, reading: Reading = WHOLE) -> Tensor:
    """Images as a model takes them, decoded in threads.

    Images are turned upright as EXIF says, put on white where they are transparent, and resized with
    antialiasing to a square: nothing is cut off, and the aspect ratio is not kept. Pixels deeper than 8 bits are
    scaled as `reading` says. Of several pages or frames the first is read.

    Args:
        uris: `(n,)` paths or addresses.
        channels: 1 for grey, 3 for RGB.
        reading: the ranges of the pool's deep pixels, and the memory that may be taken.

    Returns:
        uint8 `(n, channels, size, size)`.

    Raises:
        ImageError: an image cannot be read.
        PoolUnavailable: the place of the images does not answer.
    """
    chunks = list(stream_images(uris, size=size, channels=channels, chunk=max(1, len(uris)), reading=reading))
    return chunks[0] if chunks else torch.empty((0, channels, size, size), dtype=torch.uint8)


def stream_images(
    uris: Sequence[str], *, size: int, channels: int, chunk: int, reading: Reading = WHOLE
) -> Generator[Tensor, None, None]:
    """Images as `load_images` gives them, in chunks; the next chunk is decoded while the caller works on this one.

    Threads of the caller's process decode. They end with the iterator: when it is exhausted or closed, or when it
    raises.

    Args:
        uris: `(n,)` paths or addresses.
        channels: 1 for grey, 3 for RGB.
        chunk: images in each chunk; the last may have fewer. Two chunks are in memory besides the caller's own.
        reading: the ranges of the pool's deep pixels, and the memory that may be taken.

    Yields:
        uint8 `(chunk, channels, size, size)`, in the order of `uris`.

    Raises:
        ImageError: an image cannot be read. It comes in place of its chunk.
        PoolUnavailable: the place of the images does not answer.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    ahead: deque[_Decoding] = deque()
    # The filters of warnings belong to the whole process: they are set here, by the caller's thread alone.
    with without_pillow_warnings(), ThreadPoolExecutor(reading.n_threads(uris)) as threads:
        try:
            for start in range(0, len(uris), chunk):
                ahead.append(_start_decoding(threads, uris[start : start + chunk], size, channels, reading))
                if len(ahead) > 1:
                    yield ahead.popleft().wait()
            if ahead:
                yield ahead.popleft().wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _Decoding(NamedTuple):
    """A chunk of images, and the work that fills it."""

    images: NDArray[np.uint8]
    work: list[Future[None]]

    def wait(self) -> Tensor:
        """The images once all are there."""
        for part in self.work:
            part.result()
        return torch.from_numpy(self.images)


def _start_decoding(
    threads: ThreadPoolExecutor, uris: Sequence[str], size: int, channels: int, reading: Reading
) -> _Decoding:
    images = np.empty((len(uris), channels, size, size), dtype=np.uint8)

    def load(start: int) -> None:
        for position, uri in enumerate(uris[start : start + 16], start):
            images[position] = _load(uri, size=size, channels=channels, reading=reading)

    return _Decoding(images, [threads.submit(load, start) for start in range(0, len(uris), 16)])


def _load(uri: str, *, size: int, channels: int, reading: Reading) -> NDArray[np.uint8]:
    """Pixels `(channels, size, size)` of one image."""

    def use(decoded: Decoded) -> NDArray[np.uint8]:
        image = on_white(decoded, channels, reading)
        square = image.resize((size, size), Image.Resampling.BILINEAR, box=decoded.box)
        if channels == 3:
            square = square.convert("RGB")
        if decoded.orientation in UPRIGHT:
            square = square.transpose(UPRIGHT[decoded.orientation])
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)

    # From three times the side on, Pillow calls what comes out "indistinguishable from fair resampling in most
    # cases" (`reducing_gap`); with twice the side, 4 of 512 predictions changed.
    return decode(uri, use, at_least=lambda _width, _height: (3 * size, 3 * size), reading=reading)
