"""What annotators see of a local image: the file itself where browsers show it, else a rendition of it.

Tried with Chromium 156 on what Pillow writes: JPEG (CMYK and with several pictures too), PNG, GIF, BMP, WebP and AVIF
show as Pillow reads them. TIFF, JPEG 2000, PPM and HEIC do not show at all. 16 bits show by their highest values,
so that a 12-bit camera's picture is black, and a WebP is not turned upright as its EXIF says.
"""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast
from urllib.parse import quote

from PIL import ExifTags, Image, ImageFile

from connectors.images.colour import GREY, on_white
from connectors.images.decode import UPRIGHT, Decoded, decode, open_image, reason_of, without_pillow_warnings
from connectors.images.reading import WHOLE, Reading
from connectors.store import write_atomic
from pipeline.pool.reasons import PoolError, PoolUnavailable

ENDINGS = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "AVIF": ".avif",
}
"""Formats that browsers show, with the ending by which a server tells browsers the type."""
IN_STORES = ("s3", "gs", "az")
"""Schemes of addresses that Label Studio resolves itself; others are the browser's."""
NOT_IN_BROWSERS = frozenset(
    {*(".tif", ".tiff"), *(".heic", ".heif"), *(".j2c", ".j2k", ".jp2", ".jpf"), *(".pbm", ".pgm", ".pnm", ".ppm")}
)
"""Endings of what browsers do not show, where an ending is all that is known."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations of EXIF that turn width into height."""
LONGEST_SIDE = 2048
FEWEST_BYTES = 100
"""Label Studio's editor takes a smaller file for one that did not load."""
MOST_BYTES = 20 * 2**20
MOST_PIXELS = 2**26
"""A file that is larger makes people wait, and a browser take gigabytes."""
RENDITIONS = ".labelcycle-renditions"
"""Folder beside the images for renditions, where the images themselves are shown; hidden, so that no image of the
pool lies in it."""

T = TypeVar("T")


def link_to_show(path: Path, item_id: str, *, folder: Path, reading: Reading) -> Path:
    """Lay an image out in `folder` under a name made of its content: a link to it, or a rendition of it.

    Raises:
        PoolError: the image cannot be read.
        OSError: the folder cannot be written to.
    """
    ending = _ending(path)
    if ending is None:
        return _rendition(str(path), item_id, folder=folder, reading=reading)
    shown = folder / f"{_name(item_id)}{ending}"
    if not (shown.is_symlink() and shown.readlink() == path):
        write_link(shown, path)
    return shown


def file_to_show(path: Path, item_id: str, *, root: Path, reading: Reading) -> Path:
    """The image itself, or a rendition of it below `root`; raises as `link_to_show` does."""
    return path if _ending(path) else _rendition(str(path), item_id, folder=root / RENDITIONS, reading=reading)


def why_not_shown(uri: str) -> str:
    """Why Label Studio can show nobody an image, by the name of its object in a store; empty where it can.

    Seen with Label Studio 1.23: what stands behind `?` is cut off, and so are a slash in front, white space at the end,
    and tabs and ends of lines.

    >>> why_not_shown("s3://bucket/a b#%20.png"), why_not_shown("s3://bucket/a?.png")
    ('', "Label Studio shows no object with '?' in its name")
    """
    scheme, _, place = uri.partition("://")
    key = place.partition("/")[2] if scheme.lower() in IN_STORES else ""
    if "?" in key:
        return "Label Studio shows no object with '?' in its name"
    if key.startswith("/"):
        return "Label Studio shows no object whose name begins with '/'"
    if key != key.rstrip() or any(sign in key for sign in "\t\r\n"):
        return "Label Studio shows no object with a tab, an end of a line, or white space at the end in its name"
    return ""


def rendition_of(uri: str, item_id: str, *, folder: Path, reading: Reading) -> Path | None:
    """What browsers are shown of an object that has the ending of a format that they do not show; None for others.

    Raises:
        PoolError: the image cannot be read.
        OSError: the folder cannot be written to.
    """
    ending = PurePosixPath(uri).suffix.lower()
    return _rendition(uri, item_id, folder=folder, reading=reading) if ending in NOT_IN_BROWSERS else None


def check_shown(content: bytes, content_type: str) -> str:
    """What is wrong with an image as a server gave it to a browser; empty where a browser shows it."""
    if not content_type.startswith("image/"):
        return f"it is of the type {content_type or 'that nobody names'}, not an image"
    try:
        with without_pillow_warnings():
            image = open_image(io.BytesIO(content))
            if image.format not in ENDINGS:
                return f"browsers do not show {image.format}"
            image.draft(None, (1, 1))
            image.load()
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        return reason_of(exc)
    return f"Label Studio shows none of {FEWEST_BYTES} bytes or fewer" if len(content) <= FEWEST_BYTES else ""


def size_shown(uri: str, reading: Reading = WHOLE) -> tuple[int, int]:
    """Width and height in pixels of an image that browsers show, turned upright as they turn it; raises as above."""

    def look(image: ImageFile.ImageFile) -> tuple[int, int]:
        width, height = image.size
        return (height, width) if image.format != "WEBP" and _orientation(image) in SIDEWAYS else (width, height)

    return _reading(uri, look, reading)


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

    def use(decoded: Decoded) -> Image.Image:
        is_grey = not decoded.deep.has_colours if decoded.deep else decoded.stored.mode in GREY
        image = on_white(decoded, 1 if is_grey else 3, reading)
        width, height = decoded.box[2:] if decoded.box else image.size
        share = min(1.0, longest_side / max(width, height))
        size = (max(1, round(width * share)), max(1, round(height * share)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS, box=decoded.box, reducing_gap=3.0)
        upright = UPRIGHT.get(decoded.orientation)
        return image.copy() if upright is None else image.transpose(upright)

    with without_pillow_warnings():
        return decode(uri, use, at_least=lambda width, height: _fitted(width, height, longest_side), reading=reading)


def _fitted(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """The size that a picture is to have; its own where that is smaller."""
    share = min(1.0, longest_side / max(width, height))
    return max(1, int(width * share)), max(1, int(height * share))


def write_link(link: Path, target: Path) -> None:
    """Make a symbolic link, or let one lead elsewhere, at once."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _ending(path: Path) -> str | None:
    """Ending of the name that a browser can be given the file under; None where it would not show what is there."""
    if not FEWEST_BYTES < path.stat().st_size <= MOST_BYTES:
        return None
    return _reading(str(path), lambda image: ENDINGS.get(image.format or "") if _is_plain(image) else None, WHOLE)


def _is_plain(image: ImageFile.ImageFile) -> bool:
    """Whether a browser that knows the format shows the same picture as Pillow reads."""
    turned = image.format == "WEBP" and _orientation(image) != 1
    deep = image.mode.startswith(("I", "F")) or (image.format == "PNG" and _png_depth(image) > 8)
    return not turned and not deep and image.width * image.height <= MOST_PIXELS


def _orientation(image: ImageFile.ImageFile) -> int:
    with suppress(Exception):  # damaged metadata does not make a damaged image
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _png_depth(image: ImageFile.ImageFile) -> int:
    """Bits of a value, which Pillow does not tell of colours: byte 24 of every PNG."""
    file = cast("BinaryIO", image.fp)
    here = file.tell()
    file.seek(24)
    depth = file.read(1)[0]
    file.seek(here)
    return depth


def _reading(uri: str, look: Callable[[ImageFile.ImageFile], T], reading: Reading) -> T:
    try:
        with without_pillow_warnings(), reading.open(uri) as file:
            return look(open_image(file))
    except PoolUnavailable:
        raise
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc
    except Exception as exc:
        raise PoolError(f"{uri}: {reason_of(exc)}") from exc


def _rendition(uri: str, item_id: str, *, folder: Path, reading: Reading) -> Path:
    shown = folder / f"{_name(item_id)}.shown.jpg"
    if not shown.exists():
        picture = read_picture(uri, longest_side=LONGEST_SIDE, reading=reading)
        write_atomic(shown, lambda temporary: picture.save(temporary, format="JPEG", quality=95, subsampling=0))
    return shown


def _name(item_id: str) -> str:
    """An item id is a hash of the content; whatever it is, it is no path."""
    return quote(item_id, safe="")
