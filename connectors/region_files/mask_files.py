"""Masks as PNG: one picture for each image, whose pixels are numbers of classes; 0 is nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from connectors.images.decode import without_pillow_warnings
from connectors.region_files.images import Source
from connectors.region_files.labelled import (
    LabelledImage,
    Read,
    RegionFileError,
    has_size,
    label_files,
    read_names,
    with_suffix,
    write_lists,
    write_text,
)
from pipeline.colours import class_colours
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.types import Region, Size

NAMES = "classes.txt"
IGNORED = 255
BACKGROUND = frozenset({"background", "_background_", "__background__"})
SPREAD = {"L;2": 85, "L;4": 17}
"""Grey of few bits, which Pillow spreads over 0 to 255."""


def read(source: Source) -> Read:
    """Labels of the images that have a picture of the same name, with the suffix .png: a black one has nothing in it.

    Raises:
        RegionFileError: naming the picture that is wrong.
    """
    file = source.name_file(NAMES)
    classes = read_names(file)
    if classes[0].casefold() in BACKGROUND:
        raise RegionFileError(f"{file}: {classes[0]!r} is the number 0, and no class: delete the line")
    there = source.files(".png")
    picture_of = source.label_of(there.keys(), lambda path: {with_suffix(path, ".png")})
    sizes = source.images.sizes(picture_of, source.told)
    seen = {path: _regions(there[picture_of[path]], path, size, classes, source) for path, size in sizes.items()}
    return Read(classes, {path: list(regions) for path, regions in seen.items() if regions is not None})


def _regions(file: Path, path: str, size: Size, classes: Sequence[str], source: Source) -> list[Region] | None:
    try:
        with without_pillow_warnings(), Image.open(file, formats=("PNG",)) as picture:
            if not has_size(picture.size, size, source.told, path):
                return None
            if picture.mode not in ("P", "L", "1"):
                is_what = "16 bits a pixel" if picture.mode.startswith("I") else "colours or transparency"
                raise RegionFileError(
                    f"{file} has {is_what} ({picture.mode}): save the numbers of classes as a palette or as grey of 8 "
                    "bits or fewer"
                )
            step = SPREAD.get(str(picture.tile[0].args), 1)
            numbers = np.asarray(picture).astype(np.uint8) // step
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as exc:
        if isinstance(exc, RegionFileError):
            raise
        raise RegionFileError(f"{file} is no PNG that can be read: {exc}") from exc
    values = [number for number in np.unique(numbers).tolist() if number not in (0, IGNORED)]
    if values and values[-1] > len(classes):
        raise RegionFileError(f"{file} has pixels of {values[-1]}, and there are {len(classes)} classes: add the names")
    if (numbers == IGNORED).any():
        source.told.add(f"masks have pixels of {IGNORED} (ignored), which count as nothing", str(file))
    return [Region("mask", classes[n - 1], mask=mask_to_png(numbers == n)) for n in values]


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """masks/ with a picture for each image and classes.txt, and lists of the images of each split.

    Where regions overlap, the later one counts.
    """
    if len(classes) >= IGNORED:
        raise RegionFileError(f"a picture holds at most {IGNORED - 1} classes, and there are {len(classes)}")
    files = label_files(images, ".png")
    palette = [0, 0, 0]
    for colour in class_colours(classes).values():
        palette += bytes.fromhex(colour[1:])
    for image in images:
        path = folder / "masks" / files[image.path]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(_numbers(image, classes))
        picture.putpalette(palette)
        picture.save(path, format="PNG")
    write_text(folder / "masks" / NAMES, "".join(f"{name}\n" for name in classes))
    write_lists(folder, images, "{path}")


def _numbers(image: LabelledImage, classes: Sequence[str]) -> NDArray[np.uint8]:
    numbers = np.zeros(image.size[::-1], dtype=np.uint8)
    for region in image.regions:
        numbers[mask_from_png(region.mask or b"")] = 1 + classes.index(region.label)
    return numbers
