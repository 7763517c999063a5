"""What an image file holds, learnt by decoding it or from its header: size, pages, kind of pixels, colour."""

from contextlib import suppress
from typing import BinaryIO, NamedTuple

from PIL import ImageFile, TiffImagePlugin

from connectors.images.colour import GREY, flatten
from connectors.images.containers import may_be_turned
from connectors.images.decode import Decoded, decode_file, open_image, orientation_of, reason_of
from connectors.images.deep_pixels import deep_of
from connectors.images.reading import WHOLE, Reading
from pipeline.pool.reasons import ImageError, PoolError, PoolUnavailable

MAX_PAGES = 10_000
"""Pages that are counted."""
NEW_SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101
"""A TIFF's tag, and its bits that tell overviews and masks of a page from pages."""


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

    def use(decoded: Decoded) -> Seen:
        corner = decoded.stored.crop((0, 0, 1, 1))
        if decoded.deep is None:
            flatten(corner, "L")
        width, height = decoded.size[::-1] if decoded.orientation >= 5 else decoded.size
        return Seen(width, height, _count_pages(decoded.stored), decoded.deep.kind if decoded.deep else None)

    return decode_file(file, use, at_least=lambda _width, _height: (1, 1), reading=reading)


def has_colour(uri: str, reading: Reading = WHOLE) -> bool:
    """Whether an image has colour, by the header of its file.

    Raises:
        ImageError: it cannot be read.
        PoolUnavailable: the place of the images does not answer.
    """
    try:
        with reading.open(uri) as file:
            image = open_image(file)
            deep = deep_of(image)
            return deep.has_colours if deep else image.mode not in GREY
    except PoolUnavailable:
        raise
    except Exception as exc:
        raise ImageError(uri, reason_of(exc)) from exc


def upright_size(uri: str, reading: Reading = WHOLE) -> tuple[int, int]:
    """Width and height of an image when it is upright, by the header of its file where that can be read.

    Raises:
        ImageError: it cannot be read.
        PoolUnavailable: the place of the images does not answer.
    """
    try:
        with reading.open(uri) as file:
            try:
                image = open_image(file)
            except PoolError:
                raise
            except Exception:  # metadata may yet be forgiven
                seen = examine(file)
                return seen.width, seen.height
            # Pillow has the size of a TIFF turned already, and decodes a PNG to look for EXIF.
            is_upright = image.format == "TIFF" or (image.format == "PNG" and not may_be_turned(file))
            return image.size if is_upright or orientation_of(image) < 5 else image.size[::-1]
    except PoolUnavailable:
        raise
    except Exception as exc:
        raise ImageError(uri, reason_of(exc)) from exc


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
