"""Masks: painted pixels, written as pictures; what a brush painted in an imported project is read too."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from connectors.images.decode import without_pillow_warnings
from connectors.label_studio.kinds.kind import LeftOut, Spoilt
from connectors.label_studio.kinds.parts import Shape, kind_of_parts
from pipeline.masks import mask_to_png
from pipeline.types import Region, Size

PNG = "data:image/png;base64,"
BRUSH = "brushlabels"
OPAQUE = 127
"""Strokes of a person have soft edges; what is more opaque belongs to the mask."""
MOST_PIXELS = 2**26


def _write(region: Region) -> dict[str, Any]:
    return {"imageDataURL": PNG + base64.b64encode(region.mask or b"").decode("ascii")}


def _read(label: str, value: Mapping[str, Any], type_: str, size: Size | None) -> Region:
    try:
        mask = _brushed(value, size) if type_ == BRUSH else _painted(value, size)
    except (Spoilt, LeftOut):
        raise
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        raise Spoilt(f"cannot be read: {exc}") from exc
    if not mask.any():
        raise LeftOut("has no pixel")
    return Region("mask", label, mask=mask_to_png(mask))


def _painted(value: Mapping[str, Any], size: Size | None) -> NDArray[np.bool_]:
    address = value.get("imageDataURL")
    if not isinstance(address, str) or not address.startswith(PNG):
        raise Spoilt("has no picture")
    try:
        content = base64.b64decode(address[len(PNG) :], validate=True)
    except binascii.Error as exc:
        raise Spoilt(f"has a picture that cannot be read: {exc}") from exc
    with without_pillow_warnings():
        picture = Image.open(io.BytesIO(content), formats=("PNG",))
        _check_size(Size(*picture.size), size)
        if not picture.has_transparency_data:
            raise LeftOut("has no transparent part, which would be what is not the mask")
        return np.asarray(picture.convert("RGBA"))[..., 3] > OPAQUE


def _brushed(value: Mapping[str, Any], size: Size | None) -> NDArray[np.bool_]:
    runs = value.get("rle")
    if not isinstance(runs, list) or value.get("format") != "rle":
        raise Spoilt("has no run lengths")
    if size is None:
        raise LeftOut("does not tell how large its image is")
    _check_size(size, None)
    return decode_runs(runs, 4 * size.width * size.height).reshape(size.height, size.width, 4)[..., 3] > OPAQUE


def _check_size(came: Size, wanted: Size | None) -> None:
    if came.width * came.height > MOST_PIXELS:
        raise LeftOut(f"has {came.width} x {came.height} pixels, more than {MOST_PIXELS}")
    if wanted is not None and came != wanted:
        raise LeftOut(
            f"has {came.width} x {came.height} pixels, and its image {wanted.width} x {wanted.height}: it is in the "
            "wrong place. Draw it again"
        )


def decode_runs(runs: Sequence[int], n_values: int) -> NDArray[np.uint8]:
    """The bytes that a brush of Label Studio keeps as run lengths: red, green, blue and alpha of each pixel.

    Bits: 32 of the number of values, 5 of the bits of a value less one, 4 x 4 of the widths of run lengths less one;
    then records: 1 whether it is a run, 2 which width, so many of its length less one, and its value once, or of all.

    Raises:
        LeftOut: it holds another number of values, as of an image of another size.
        ValueError: it is damaged.
    """
    given = np.array(runs)
    if given.ndim != 1 or given.dtype.kind != "i" or not len(given) or given.min() < 0 or given.max() > 255:
        raise ValueError("bytes are wanted")
    data = given.astype(np.uint8)
    bits, padded = np.unpackbits(data), data.tobytes() + bytes(8)
    if int.from_bytes(padded[:4], "big") != n_values:
        raise LeftOut("was painted on an image of another size: draw it again")
    fields = int.from_bytes(padded[4:8], "big") >> 11
    if fields >> 16 != 7:
        raise ValueError("values of 8 bits are wanted")
    widths = [(fields >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    values = np.zeros(n_values, dtype=np.uint8)
    done, place = 0, 53
    while done < n_values:
        # a record begins with 1 + 2 + at most 16 + 8 bits, which five bytes hold wherever they begin
        window = int.from_bytes(padded[place >> 3 : (place >> 3) + 5], "big") << (place & 7) & 2**40 - 1
        width = widths[window >> 37 & 3]
        length = (window >> 37 - width & (1 << width) - 1) + 1
        begins = place + 3 + width
        place = begins + (8 if window >> 39 else 8 * length)
        if place > len(bits) or done + length > n_values:
            raise ValueError("its run lengths end early")
        values[done : done + length] = np.packbits(bits[begins:place])
        done += length
    return values


MASKS = kind_of_parts(
    Shape("mask", ("bitmasklabels", BRUSH), _write, _read),
    tag="BitmaskLabels",
    attributes={"opacity": "0.6"},
    draw="paint over it",
    tasks_a_page=50,
)
