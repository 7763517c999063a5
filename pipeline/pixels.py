"""How the pixels of an image file are read: any format, upright, on white, as 8 bits."""

import re
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
MAX_PIXELS = 1024**3 // 4 // 3
"""Above this Pillow suspects a decompression bomb."""

UNREAD = "cannot be read"
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_Box = tuple[float, float, float, float]
T = TypeVar("T")
R = TypeVar("R")


class PoolError(ValueError):
    """The pool cannot be indexed as asked, or an image of it cannot be read."""


def load_image(uri: str, *, size: int, channels: int) -> Tensor:
    """One image as a model takes it: see `load_images`.

    Returns:
        uint8 `(channels, size, size)`.
    """
    return load_images([uri], size=size, channels=channels)[0]


def load_images(uris: Sequence[str], *, size: int, channels: int) -> Tensor:
    """Images as a model takes them, decoded in threads.

    Images are turned upright as EXIF says, put on white where they are transparent, and resized with
    antialiasing to a square: nothing is cut off, and the aspect ratio is not kept. 16 bits are scaled to 8.
    32-bit integers and floats have no known range: each image is stretched from its own smallest to its own
    largest value. Of an animation the first frame is read.

    Args:
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 `(n, channels, size, size)`.

    Raises:
        PoolError: an image cannot be read; the message begins with its uri.
    """
    chunks = list(stream_images(uris, size=size, channels=channels, chunk=max(1, len(uris))))
    return chunks[0] if chunks else torch.empty((0, channels, size, size), dtype=torch.uint8)


def stream_images(uris: Sequence[str], *, size: int, channels: int, chunk: int) -> Generator[Tensor, None, None]:
    """Images as `load_images` gives them, in chunks; the next chunk is decoded while the caller works on this one.

    Threads of the caller's process decode. They end with the iterator: when it is exhausted or closed, or when it
    raises.

    Args:
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.
        chunk: images in each chunk; the last may have fewer. Two chunks are in memory besides the caller's own.

    Yields:
        uint8 `(chunk, channels, size, size)`, in the order of `uris`.

    Raises:
        PoolError: an image cannot be read; the message begins with its uri. It comes in place of its chunk.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    ahead: deque[_Decoding] = deque()
    # The filters of warnings belong to the whole process: they are set here, by the caller's thread alone.
    with without_pillow_warnings(), ThreadPoolExecutor() as threads:
        try:
            for start in range(0, len(uris), chunk):
                ahead.append(_start_decoding(threads, uris[start : start + chunk], size, channels))
                if len(ahead) > 1:
                    yield ahead.popleft().wait()
            if ahead:
                yield ahead.popleft().wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def reason_of(exc: Exception) -> str:
    """Why a file cannot be used, for people to read; the part before the colon is the kind."""
    match exc:
        case PoolError():
            return str(exc)
        case Image.DecompressionBombError():
            return f"too large: more than {MAX_PIXELS} pixels"
        case UnidentifiedImageError():
            return "not an image: the content is of no known image format"
        case OSError(errno=int(), strerror=str(strerror)):
            return f"{UNREAD}: {strerror}"
        case _:
            return f"damaged: {str(exc) or type(exc).__name__}"


class _Decoding(NamedTuple):
    """A chunk of images, and the work that fills it."""

    images: NDArray[np.uint8]
    work: list[Future[None]]

    def wait(self) -> Tensor:
        """The images once all are there."""
        for part in self.work:
            part.result()
        return torch.from_numpy(self.images)


def _start_decoding(threads: ThreadPoolExecutor, uris: Sequence[str], size: int, channels: int) -> _Decoding:
    images = np.empty((len(uris), channels, size, size), dtype=np.uint8)

    def load(start: int) -> None:
        for position, uri in enumerate(uris[start : start + 16], start):
            images[position] = _load(uri, size=size, channels=channels)

    return _Decoding(images, [threads.submit(load, start) for start in range(0, len(uris), 16)])


def _load(uri: str, *, size: int, channels: int) -> NDArray[np.uint8]:
    """Pixels `(channels, size, size)` of one image."""
    try:
        with Path(uri).open("rb") as file:
            stored = open_image(file)
            # From three times the side on, Pillow calls what comes out "indistinguishable from fair resampling in most
            # cases" (`reducing_gap`); with twice the side, 4 of 512 predictions changed.
            orientation, box = decode(stored, at_least=3 * size)
            image = to_eight_bits(stored, channels)
    except Exception as exc:
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if orientation in UPRIGHT:
        square = square.transpose(UPRIGHT[orientation])
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header; an image too large to decode is refused."""
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise PoolError(f"too large: {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def decode(image: ImageFile.ImageFile, *, at_least: int) -> tuple[int, _Box | None]:
    """Decode all of the file, a JPEG no finer than sides of `at_least` need.

    Returns:
        The EXIF orientation, and the part of the pixels that is image where a JPEG was made smaller.
    """
    drafted = image.draft(None, (at_least, at_least))
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not make a damaged image
        orientation = None
    return (orientation if orientation in UPRIGHT else 1), (drafted[1] if drafted else None)


def to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey or RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_stretch(np.asarray(image)))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _stretch(values: NDArray[np.int32 | np.float32]) -> NDArray[np.uint8]:
    """`values` from 0 at the smallest to 255 at the largest; a constant and what is not finite are 0."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    low = float(np.min(wide, where=finite, initial=np.inf))
    high = float(np.max(wide, where=finite, initial=-np.inf))
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(255 * (np.where(finite, wide, low) - low) / (high - low)).astype(np.uint8)


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Pillow warns of size and of odd metadata; both are dealt with here.

    Streams may end in any order, so that each takes away one filter like its own, rather than put back those of before.
    """
    ignored = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
    cast("list[object]", warnings.filters).insert(0, ignored)
    try:
        yield
    finally:
        with suppress(ValueError):  # the caller has put back filters of before
            cast("list[object]", warnings.filters).remove(ignored)


def map_in_threads(
    function: Callable[[T], R], values: Sequence[T], report: Callable[[int], None] | None = None
) -> list[R]:
    """`[function(value) for value in values]`; in chunks, as a million futures would fill the memory."""
    chunks = [values[start : start + 64] for start in range(0, len(values), 64)]
    results: list[R] = []
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda chunk: [function(value) for value in chunk], chunks):
            results += part
            if report is not None:
                report(len(results))
    return results


def read_picture(uri: str, *, longest_side: int) -> Image.Image:
    """An image for people to look at: upright, on white, in 8 bits, as RGB or grey.

    Args:
        longest_side: a larger image is made smaller, to this many pixels on its longer side.

    Raises:
        PoolError: the image cannot be read; the message begins with its uri.
    """
    try:
        with without_pillow_warnings(), Path(uri).open("rb") as file:
            stored = open_image(file)
            orientation, box = decode(stored, at_least=longest_side)
            image = to_eight_bits(stored, channels=3)
    except Exception as exc:
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc
    image = image.crop((0, 0, round(box[2]), round(box[3]))) if box else image
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
