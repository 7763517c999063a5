"""YOLO: a text file for each image, a line for each box, in fractions; names of classes in data.yaml or classes.txt."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from connectors.region_files.images import Source
from connectors.region_files.labelled import (
    LabelledImage,
    Read,
    RegionFileError,
    Size,
    box_of,
    checked_names,
    label_files,
    read_names,
    read_text,
    two_images,
    with_suffix,
    write_lists,
    write_text,
)
from pipeline.masks import filled, mask_to_png
from pipeline.names import shorten
from pipeline.types import Region

DIGITS = re.compile("[0-9]{1,9}")
NAMES = ("data.yaml", "data.yml", "classes.txt")


def read(source: Source) -> Read:
    """Labels of the images that have a text file: an empty one says that nothing is there.

    A file lies beside its image, or in the folder of the labels or a folder `labels` as the image lies in the folder of
    the images or a folder `images`.

    Raises:
        RegionFileError: naming the line that is wrong.
    """
    classes = _read_classes(source.name_file(*NAMES))
    there = source.files(".txt")
    file_of = {path: _file_of(path, source, there) for path in source.images.paths}
    labelled = {path: file for path, file in file_of.items() if file is not None}
    image_of: dict[str, str] = {}
    for path, file in labelled.items():
        if image_of.setdefault(file, path) != path:
            raise two_images(image_of[file], path, file)
    is_apart = any(file.startswith("labels/") for file in there)
    for file in there.keys() - image_of.keys():
        if PurePosixPath(file).name != NAMES[-1] and (not is_apart or file.startswith("labels/")):
            source.told.add("text files are of no image, and left out", file)
    sizes = source.images.sizes(labelled, source.told)
    return Read(
        tuple(classes.values()),
        {path: _regions(there[labelled[path]], classes, size, source) for path, size in sizes.items()},
    )


def _file_of(path: str, source: Source, there: dict[str, Path]) -> str | None:
    """The text file of an image, by its path below the folder of the labels."""
    text = with_suffix(path, ".txt")
    beside = f"{source.images.folder.name}/{text}"
    before, is_in_images, after = f"/{text}".rpartition("/images/")
    candidates = {text, f"labels/{text}", beside, f"{before}/labels/{after}".lstrip("/") if is_in_images else text}
    found = sorted(candidates & there.keys())
    if len(found) > 1:
        raise RegionFileError(f"{source.path}: {path} has two labels, {' and '.join(found)}: delete one of the two")
    return found[0] if found else None


def _read_classes(file: Path) -> dict[int, str]:
    """The names of the classes by their numbers."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        return dict(enumerate(read_names(file)))
    text = read_text(file)
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise RegionFileError(f"{file} is no YAML: {exc}") from exc
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(number) is int for number in names):
        raise RegionFileError(f"{file}: wanted names: a list of the names of the classes")
    return dict(zip(sorted(names), checked_names([names[n] for n in sorted(names)], str(file)), strict=True))


def _regions(file: Path, classes: dict[int, str], size: Size, source: Source) -> list[Region | None]:
    lines = enumerate(read_text(file).splitlines(), 1)
    return [_region(line.split(), f"{file}, line {n}", classes, size, source) for n, line in lines if line.strip()]


def _region(words: Sequence[str], where: str, classes: dict[int, str], size: Size, source: Source) -> Region | None:
    label = classes.get(int(words[0])) if DIGITS.fullmatch(words[0]) else None
    if label is None:
        raise RegionFileError(f"{where}: {shorten(words[0])} is no class: there are {min(classes)} to {max(classes)}")
    try:
        values = np.array([float(word) for word in words[1:]])
    except ValueError as exc:
        raise RegionFileError(f"{where}: {exc}: wanted numbers") from exc
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = ", a score is for guesses" if len(values) == 5 else ""
        raise RegionFileError(
            f"{where} has {len(values)} numbers after the class{hint}: wanted x and y of the centre, width, height; or "
            "x and y of each corner of a polygon"
        )
    if len(values) == 4:
        return _box(label, values.tolist(), where, size, source)
    corners = values.reshape(-1, 2)
    if source.kind == "box":
        source.told.add("polygons are read as the boxes around them", where)
        edges = [*corners.min(axis=0) * size, *corners.max(axis=0) * size]
        return box_of(label, edges, size, source.told, where)
    mask = filled(corners, size.width, size.height) if np.isfinite(corners).all() else np.zeros(1, dtype=bool)
    if not mask.any():
        source.told.add("polygons in which no pixel's centre lies are left out", where)
        return None
    return Region("mask", label, mask=mask_to_png(mask))


def _box(label: str, values: Sequence[float], where: str, size: Size, source: Source) -> Region | None:
    if source.kind != "box":
        source.told.add("boxes are left out, as masks are wanted", where)
        return None
    x, y, width, height = values
    if max(map(abs, values)) > 2 and all(map(math.isfinite, values)):
        raise RegionFileError(f"{where} is in pixels: wanted fractions of the image's width and height")
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return box_of(label, np.multiply(edges, (*size, *size)).tolist(), size, source.told, where)


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """labels/ with a file for each image, data.yaml, and lists of the images of each split."""
    files = label_files(images, ".txt")
    numbers = {name: place for place, name in enumerate(classes)}
    for image in images:
        lines = [f"{numbers[region.label]} {_line(region)}\n" for region in image.regions]
        write_text(folder / "labels" / files[image.path], "".join(lines))
    names = json.dumps(list(classes), ensure_ascii=False)  # which YAML reads as well
    write_text(folder / "data.yaml", f"train: pool.txt\nval: audit.txt\nnc: {len(classes)}\nnames: {names}\n")
    write_lists(folder, images, "./images/{path}")


def _line(region: Region) -> str:
    left, upper, right, lower = region.geometry or ()
    values = ((left + right) / 2, (upper + lower) / 2, right - left, lower - upper)
    return " ".join(f"{value:.10g}" for value in values)
