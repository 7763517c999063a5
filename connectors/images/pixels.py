"""How the pixels of an image file are read: any format, upright, on white, as 8 bits, within a bound on memory.

What a decoder makes 8 bits of itself stays as it makes it, from the full range that the file declares: 10 and 12 bits
of AVIF and HEIC, colours of JPEG 2000, of PPM and of a TIFF in separate planes, CMYK, and colours that are multiplied
with their alpha. All else that is deeper is scaled by the range of the pool: see `connectors.images.deep_pixels`.
"""

import itertools
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImagePalette, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from connectors.images.containers import count_scans, describe_tiff, without_metadata
from connectors.images.deep_pixels import (
    STRIP,
    Deep,
    DeepImage,
    Range,
    Reading,
    deep_of,
    ranges_of,
    unpack_all_bytes,
    unpack_low_bytes,
)
from connectors.images.memory import MemoryGate

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
MAX_PIXELS = 2**30
"""Above this nobody waits for a decoder, however little memory it takes."""
MAX_SCANS = 100
"""Of a JPEG: each is decoded over the whole image. Cameras and programs write at most a dozen."""
MAX_PAGES = 10_000
"""Pages that are counted."""
NEW_SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101
"""A TIFF's tag, and its bits that tell overviews and masks of a page from pages."""
GIGABYTE = 1e9

UNREAD = "cannot be read"
TOO_LARGE = "too large"
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEG = frozenset({"JPEG", "MPO"})
GREY = frozenset({"1", "L", "LA", "La"})
"""Modes of 8 bits without colour."""
DECODER_BYTES = {"WEBP": 8, "AVIF": 8, "HEIF": 8, "JPEG2000": 16}
"""What a decoder holds for each pixel besides the image that it makes."""
WHOLE = Reading()
"""How files are read of which nothing is known."""
SAMPLED_PER_KIND = 300
"""Images that the range of a kind of deep pixels is measured on."""
SAMPLED_LINES = 64
"""Rows, and columns, of each."""

_Box = tuple[float, float, float, float]
T = TypeVar("T")
R = TypeVar("R")
_GATE = MemoryGate()


class PoolError(ValueError):
    """The pool cannot be indexed as asked, or an image of it cannot be read."""


def load_image(uri: str, *, size: int, channels: int, reading: Reading = WHOLE) -> Tensor:
    """One image as a model takes it: see `load_images`.

    Returns:
        uint8 `(channels, size, size)`.
    """
    return load_images([uri], size=size, channels=channels, reading=reading)[0]


def load_images(uris: Sequence[str], *, size: int, channels: int, reading: Reading = WHOLE) -> Tensor:
    """Images as a model takes them, decoded in threads.

    Images are turned upright as EXIF says, put on white where they are transparent, and resized with
    antialiasing to a square: nothing is cut off, and the aspect ratio is not kept. Pixels deeper than 8 bits are
    scaled as `reading` says. Of several pages or frames the first is read.

    Args:
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.
        reading: the ranges of the pool's deep pixels, and the memory that may be taken.

    Returns:
        uint8 `(n, channels, size, size)`.

    Raises:
        PoolError: an image cannot be read; the message begins with its uri.
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
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.
        chunk: images in each chunk; the last may have fewer. Two chunks are in memory besides the caller's own.
        reading: the ranges of the pool's deep pixels, and the memory that may be taken.

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
                ahead.append(_start_decoding(threads, uris[start : start + chunk], size, channels, reading))
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
            return f"{TOO_LARGE}: {exc}"
        case MemoryError():
            return f"{TOO_LARGE}: there was no memory left to decode it"
        case UnidentifiedImageError():
            return "not an image: the content is of no known image format"
        case OSError(errno=int(), strerror=str(strerror)):
            return f"{UNREAD}: {strerror}"
        case _:
            return f"damaged: {' '.join(str(exc).split()) or type(exc).__name__}"


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


def read_picture(uri: str, *, longest_side: int, reading: Reading = WHOLE) -> Image.Image:
    """The whole picture for a person to look at: upright, on white, in its own proportions.

    Args:
        longest_side: pixels of the longer side at most; a smaller picture keeps its size.
        reading: the ranges of the pool's deep pixels, and the memory that may be taken.

    Returns:
        An image in grey ("L") or RGB.

    Raises:
        PoolError: it cannot be read; the message begins with its uri.
    """

    def use(decoded: _Decoded) -> Image.Image:
        is_grey = not decoded.deep.has_colours if decoded.deep else decoded.stored.mode in GREY
        image = _on_white(decoded, 1 if is_grey else 3, reading)
        width, height = decoded.box[2:] if decoded.box else image.size
        share = min(1.0, longest_side / max(width, height))
        size = (max(1, round(width * share)), max(1, round(height * share)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS, box=decoded.box, reducing_gap=3.0)
        upright = UPRIGHT.get(decoded.orientation)
        return image.copy() if upright is None else image.transpose(upright)

    with without_pillow_warnings():
        return _read(uri, use, at_least=lambda width, height: _fitted(width, height, longest_side), reading=reading)


def _fitted(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """The size that a picture is to have; its own where that is smaller."""
    share = min(1.0, longest_side / max(width, height))
    return max(1, int(width * share)), max(1, int(height * share))


class Seen(NamedTuple):
    """What a file holds.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        pages: pages or frames, of which the first is used; None where it is the only one.
        pixels: the kind of deep pixels; None for 8 bits.
    """

    width: int
    height: int
    pages: int | None
    pixels: str | None


def examine(file: BinaryIO, reading: Reading = WHOLE) -> Seen:
    """Decode a file, which proves that it can be used.

    Raises:
        Exception: any, as decoders raise anything when they are given any bytes; see `reason_of`.
    """

    def use(decoded: _Decoded) -> Seen:
        corner = decoded.stored.crop((0, 0, 1, 1))
        if decoded.deep is None:
            _flatten(corner, "L")
        width, height = decoded.size[::-1] if decoded.orientation >= 5 else decoded.size
        return Seen(width, height, _count_pages(decoded.stored), decoded.deep.kind if decoded.deep else None)

    return _with_decoded(file, use, at_least=lambda _width, _height: (1, 1), reading=reading)


def has_colour(uri: str) -> bool:
    """Whether an image has colour, by the header of its file.

    Raises:
        PoolError: it cannot be read; the message begins with its uri.
    """
    try:
        with Path(uri).open("rb") as file:
            image = open_image(file)
            deep = deep_of(image)
            return deep.has_colours if deep else image.mode not in GREY
    except Exception as exc:
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc


def measure_ranges(uris: Sequence[str], *, reading: Reading = WHOLE) -> tuple[Range, ...]:
    """The range of each kind of deep pixels that images have, from the first hundreds of each kind.

    Each image gives equally many pixels, so that the sample takes megabytes.

    Args:
        uris: `(n,)` paths; what cannot be read is passed over.
    """
    with without_pillow_warnings():
        kinds = map_in_threads(_deep_kind, uris)
        sample = list(
            itertools.chain.from_iterable(
                [uri for uri, other in zip(uris, kinds, strict=True) if other == kind][:SAMPLED_PER_KIND]
                for kind in sorted({kind for kind in kinds if kind is not None})
            )
        )
        values = map_in_threads(lambda uri: _sample_values(uri, reading), sample)
    return ranges_of([found for found in values if found is not None])


def _deep_kind(uri: str) -> str | None:
    """The kind of an image's deep pixels, by its header; None for 8 bits and for what cannot be read."""
    with suppress(Exception), Path(uri).open("rb") as file:
        deep = deep_of(open_image(file))
        return deep.kind if deep else None
    return None


def _sample_values(uri: str, reading: Reading) -> tuple[str, NDArray[np.float64]] | None:
    """Kind and some values of an image with deep pixels."""

    def use(decoded: _Decoded) -> tuple[str, NDArray[np.float64]] | None:
        if decoded.deep is None:
            return None
        image = DeepImage(decoded.deep, decoded.stored, decoded.low)
        return decoded.deep.kind, image.sample(SAMPLED_LINES, SAMPLED_LINES)

    with suppress(PoolError):
        return _read(uri, use, at_least=lambda _width, _height: (1, 1), reading=reading)
    return None


def _load(uri: str, *, size: int, channels: int, reading: Reading) -> NDArray[np.uint8]:
    """Pixels `(channels, size, size)` of one image."""

    def use(decoded: _Decoded) -> NDArray[np.uint8]:
        image = _on_white(decoded, channels, reading)
        square = image.resize((size, size), Image.Resampling.BILINEAR, box=decoded.box)
        if channels == 3:
            square = square.convert("RGB")
        if decoded.orientation in UPRIGHT:
            square = square.transpose(UPRIGHT[decoded.orientation])
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)

    # From three times the side on, Pillow calls what comes out "indistinguishable from fair resampling in most
    # cases" (`reducing_gap`); with twice the side, 4 of 512 predictions changed.
    return _read(uri, use, at_least=lambda _width, _height: (3 * size, 3 * size), reading=reading)


# Decoding


class _Decoded(NamedTuple):
    """An image that is decoded; all of it is gone, and its memory free, once it has been used.

    Attributes:
        stored: as Pillow has it, a JPEG perhaps made smaller.
        deep: what its pixels are; None for 8 bits.
        low: of 16-bit colours the low bytes.
        size: width and height in the file, before it is turned upright or made smaller.
        orientation: by EXIF.
        box: the part of the pixels that is image where a JPEG was made smaller.
    """

    stored: ImageFile.ImageFile
    deep: Deep | None
    low: Image.Image | None
    size: tuple[int, int]
    orientation: int
    box: _Box | None


_AtLeast = Callable[[int, int], tuple[int, int]]
"""Of width and height, the size that no JPEG is to be decoded below."""


def _read(uri: str, use: Callable[[_Decoded], T], *, at_least: _AtLeast, reading: Reading) -> T:
    try:
        with Path(uri).open("rb") as file:
            return _with_decoded(file, use, at_least=at_least, reading=reading)
    except Exception as exc:
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc


def _with_decoded(file: BinaryIO, use: Callable[[_Decoded], T], *, at_least: _AtLeast, reading: Reading) -> T:
    """What `use` makes of the image; metadata that Pillow cannot or will not read are left out."""
    try:
        return _decode(file, use, at_least, reading)
    except PoolError:
        raise
    except Exception as exc:
        plain = without_metadata(file)
        if plain is None:
            raise
        try:
            return _decode(plain, use, at_least, reading)
        except Exception:
            raise exc from None


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header; what no decoder should be let loose on is refused."""
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(12)[4:8] == b"ftyp":
            image = _open_heif(file)
        elif (numbers := describe_tiff(file)) is not None:
            raise PoolError(f"not supported: a TIFF of {numbers}; save it with 8, 16 or 32 bits") from None
        else:
            raise
    if image.width * image.height > MAX_PIXELS:
        raise PoolError(f"{TOO_LARGE}: {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    if image.format in JPEG and _scans(image, file) > MAX_SCANS:
        raise PoolError(f"not supported: a JPEG of more than {MAX_SCANS} scans; save it anew")
    _mend(image)
    return image


def _open_heif(file: BinaryIO) -> ImageFile.ImageFile:
    """Photographs of phones; the decoder is loaded when there is one."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    file.seek(0)
    try:
        return Image.open(file, formats=("HEIF",))
    except UnidentifiedImageError:
        file.seek(0)
        try:
            pillow_heif.open_heif(file)  # which says why
        except Exception as exc:
            file.seek(8)
            brand = file.read(4).decode("ascii", "replace").strip()
            raise PoolError(f"damaged: HEIC or AVIF (brand {brand}) that cannot be decoded: {exc}") from exc
        raise


def _scans(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Scans of a JPEG; one where the first has all colours and no later one can refine it."""
    n_layers = image.layers  # type: ignore[attr-defined]
    header = b"\xff\xda" + (2 * n_layers + 6).to_bytes(2, "big") + bytes([n_layers])
    position = file.tell()
    if "progressive" not in image.info:
        file.seek(max(0, position - 2 * n_layers - 8))
        found = file.read(len(header))
        file.seek(position)
        if found == header:
            return 1
    return count_scans(file, limit=MAX_SCANS)


def _mend(image: ImageFile.ImageFile) -> None:
    """What Pillow takes at the wrong depth: the transparent value of few bits, the colours of some palettes."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(transparent, int):
        n_bits = {"L;2": 2, "L;4": 4}.get(str(image.tile[0].args), 8)
        image.info["transparency"] = (transparent & (2**n_bits - 1)) * (255 // (2**n_bits - 1))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("P", "PA"):
        colours = image.tag_v2[TiffImagePlugin.COLORMAP]
        if max(colours) < 256:  # written as bytes, against the standard, and all black by it
            image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _decode(file: BinaryIO, use: Callable[[_Decoded], T], at_least: _AtLeast, reading: Reading) -> T:
    image = open_image(file)
    size, deep = image.size, deep_of(image)
    limit = reading.memory_gb * GIGABYTE
    wanted = at_least(*size)
    scale = _scale(image, wanted) if image.format in JPEG else 1
    while (n_bytes := _bytes_needed(image, deep, scale)) > limit and image.format in JPEG and scale < 8:
        scale *= 2
    if n_bytes > limit:
        raise PoolError(
            f"{TOO_LARGE}: {size[0]} x {size[1]} pixels take {n_bytes / GIGABYTE:.2g} GB of memory to decode, and "
            f"decode_memory_gb = {reading.memory_gb:g} allows less; raise it, or store the image smaller"
        )
    with _GATE.hold(n_bytes, limit=limit):
        drafted = None
        if image.format in JPEG:
            drafted = image.draft(None, (max(1, size[0] // scale), max(1, size[1] // scale)))
        low = None
        if deep is not None and deep.has_alpha and not deep.has_colours:
            unpack_all_bytes(image)
        image.load()
        if deep is not None and deep.has_colours:
            file.seek(0)
            low = Image.open(file, formats=(str(image.format),))
            unpack_low_bytes(low)
            low.load()
        return use(_Decoded(image, deep, low, size, _orientation(image), drafted[1] if drafted else None))


def _scale(image: ImageFile.ImageFile, wanted: tuple[int, int]) -> int:
    """How many times smaller a JPEG can be decoded."""
    most = min(image.width // wanted[0], image.height // wanted[1])
    return next((scale for scale in (8, 4, 2) if most >= scale), 1)


def _bytes_needed(image: ImageFile.ImageFile, deep: Deep | None, scale: int) -> int:
    """What decoding takes at most: the pixels as they are stored, what the decoder holds, and what is made of them."""
    n_pixels = (image.width // scale + 1) * (image.height // scale + 1)
    each = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    each += DECODER_BYTES.get(str(image.format), 0)
    if deep is not None:
        each += 8 if deep.has_colours else 1
    elif image.mode not in ("L", "RGB") or image.has_transparency_data:
        each += 4
    elif image.mode == "RGB":
        each += 1  # made grey
    n_bytes = n_pixels * each
    if image.format in JPEG and "progressive" in image.info:  # whose coefficients are all kept
        n_bytes += 2 * image.width * image.height * image.layers  # type: ignore[attr-defined]
    return n_bytes


def _orientation(image: ImageFile.ImageFile) -> int:
    if image.format == "HEIF":  # turned by the decoder, as the container says
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not make a damaged image
        return 1
    return orientation if orientation in UPRIGHT else 1


def _count_pages(image: ImageFile.ImageFile) -> int | None:
    """Pages or frames where there are several; overviews and masks of a TIFF's page are none, nor is an MPO's depth."""
    if image.format == "MPO":
        return None
    n_pages = 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        with suppress(Exception):  # a later page may be damaged
            for page in range(1, MAX_PAGES):
                image.seek(page)
                n_pages += not int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0)) & REDUCED_OR_MASK
    else:
        with suppress(Exception):
            n_pages = getattr(image, "n_frames", 1)
    return n_pages if n_pages > 1 else None


# Converting


def _on_white(decoded: _Decoded, channels: int, reading: Reading) -> Image.Image:
    """The image in grey, or where it has colours and three channels are wanted in RGB."""
    mode = "L" if channels == 1 else "RGB"
    if decoded.deep is not None:
        image = DeepImage(decoded.deep, decoded.stored, decoded.low).to_eight_bits(reading)
        return image.convert(mode) if image.mode == "RGB" else image
    image = decoded.stored
    if image.mode in ("L", mode) and not image.has_transparency_data:
        return image
    n_rows = max(1, 4 * STRIP // image.width)
    if n_rows >= image.height:
        return _flatten(image, mode)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, n_rows):  # all copies at once would take several times the memory
        bottom = min(top + n_rows, image.height)
        whole.paste(_flatten(image.crop((0, top, image.width, bottom)), mode), (0, top))
    return whole


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """8 bits in grey or RGB, on white."""
    if image.mode == "LAB":
        return _from_lab(image).convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _from_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_to_srgb())
    if converted is None:
        raise PoolError("damaged: the colours cannot be converted")
    return converted


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Pillow warns of size and of odd metadata, and has a limit on pixels; all are dealt with here.

    That limit knows neither how many bytes a pixel takes nor that a JPEG is decoded smaller; ours is on memory. Streams
    may end in any order, so that each takes away one filter like its own, rather than put back those of before.
    """
    ignored = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
    cast("list[object]", warnings.filters).insert(0, ignored)
    try:
        with _LIFTED:
            yield
    finally:
        with suppress(ValueError):  # the caller has put back filters of before
            cast("list[object]", warnings.filters).remove(ignored)


class _LiftedLimit:
    """While at least one is inside, Pillow has no limit on pixels; the last one out puts it back."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


_LIFTED = _LiftedLimit()


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
