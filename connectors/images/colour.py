"""How pixels become grey or RGB of 8 bits, on white where they are transparent."""

from functools import cache

from PIL import Image, ImageCms

from connectors.images.decode import Decoded
from connectors.images.deep_pixels import STRIP, DeepImage
from connectors.images.reading import Reading
from pipeline.pool.reasons import PoolError

GREY = frozenset({"1", "L", "LA", "La"})
"""Modes of 8 bits without colour."""


def on_white(decoded: Decoded, channels: int, reading: Reading) -> Image.Image:
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
        return flatten(image, mode)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, n_rows):  # all copies at once would take several times the memory
        bottom = min(top + n_rows, image.height)
        whole.paste(flatten(image.crop((0, top, image.width, bottom)), mode), (0, top))
    return whole


def flatten(image: Image.Image, mode: str) -> Image.Image:
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
