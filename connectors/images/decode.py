"""One image file is decoded: any format, within a bound on memory, whatever its header claims.

What a decoder makes 8 bits of itself stays as it makes it, from the full range that the file declares: 10 and 12 bits
of AVIF and HEIC, colours of JPEG 2000, of PPM and of a TIFF in separate planes, CMYK, and colours that are multiplied
with their alpha. All else that is deeper is scaled by the range of the pool: see `connectors.images.deep_pixels`.
"""

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NamedTuple, TypeVar, cast

from PIL import ExifTags, Image, ImageFile, ImagePalette, TiffImagePlugin, UnidentifiedImageError

from connectors.images.containers import count_scans, describe_tiff, without_metadata
from connectors.images.deep_pixels import Deep, deep_of, unpack_all_bytes, unpack_low_bytes
from connectors.images.reading import Reading
from connectors.images.threads import MemoryGate
from pipeline.pool.reasons import TOO_LARGE, UNREAD, ImageError, PoolError, PoolUnavailable

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
MAX_PIXELS = 2**30
"""Above this nobody waits for a decoder, however little memory it takes."""
MAX_SCANS = 100
"""Of a JPEG: each is decoded over the whole image. Cameras and programs write at most a dozen."""
GIGABYTE = 1e9

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
DECODER_BYTES = {"WEBP": 8, "AVIF": 8, "HEIF": 8, "JPEG2000": 16}
"""What a decoder holds for each pixel besides the image that it makes."""

_Box = tuple[float, float, float, float]
T = TypeVar("T")
_GATE = MemoryGate()


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


class Decoded(NamedTuple):
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


AtLeast = Callable[[int, int], tuple[int, int]]
"""Of width and height, the size that no JPEG is to be decoded below."""


def decode(uri: str, use: Callable[[Decoded], T], *, at_least: AtLeast, reading: Reading) -> T:
    """What `use` makes of the image of a file, while the memory of its pixels is held.

    Args:
        uri: path or address.
        use: called with the decoded image, which it must not keep.
        at_least: of the image's width and height, what a JPEG is not to be decoded below.
        reading: what opens it, and the memory that may be taken.

    Raises:
        ImageError: the image cannot be read.
        PoolUnavailable: the place of the images does not answer.
    """
    try:
        with reading.open(uri) as file:
            return decode_file(file, use, at_least=at_least, reading=reading)
    except PoolUnavailable:
        raise
    except Exception as exc:
        raise ImageError(uri, reason_of(exc)) from exc


def decode_file(file: BinaryIO, use: Callable[[Decoded], T], *, at_least: AtLeast, reading: Reading) -> T:
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


def _decode(file: BinaryIO, use: Callable[[Decoded], T], at_least: AtLeast, reading: Reading) -> T:
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
        return use(Decoded(image, deep, low, size, orientation_of(image), drafted[1] if drafted else None))


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


def orientation_of(image: ImageFile.ImageFile) -> int:
    """How a viewer turns the image, by EXIF: a key of `UPRIGHT`, or 1 for not at all."""
    if image.format == "HEIF":  # turned by the decoder, as the container says
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not make a damaged image
        return 1
    return orientation if orientation in UPRIGHT else 1


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
