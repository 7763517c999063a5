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
    box_within,
    checked_names,
    label_files,
    read_names,
    read_text,
    with_suffix,
    write_lists,
    write_text,
)
from pipeline.masks import filled, mask_to_png
from pipeline.names import shorten
from pipeline.types import Region, Size

DIGITS = re.compile("[0-9]{1,9}")
MOST = 2
"""Fractions of objects that reach beyond their image are smaller; numbers of pixels are larger."""
NAMES = ("data.yaml", "data.yml", "classes.txt")


def read(source: Source) -> Read:
    """Labels of the images that have a text file: an empty one says that nothing is there.

    A file lies beside its image, or in the folder of the labels or a folder `labels` as the image lies in the folder of
    the images or a folder `images`.

    Raises:
        RegionFileError: naming the line that is wrong.
    """
    names = source.name_file(*NAMES)
    classes = _read_classes(names)
    there = source.files(".txt")
    files = {path for path, file in there.items() if not file.samefile(names)}
    is_apart = any(map(_is_apart, files))  # then lists of images, notes and names of classes lie beside the labels
    others = {path for path in files if PurePosixPath(path).name == NAMES[-1] or (is_apart and not _is_apart(path))}

    def usual(path: str) -> set[str]:
        candidates = _usual(path, source.images.folder.name)
        return set(filter(_is_apart, candidates)) if is_apart else candidates

    file_of = source.label_of(files, usual, others=others)
    sizes = source.images.sizes(file_of, source.told)
    found = {path: _regions(there[file_of[path]], classes, names, size, source) for path, size in sizes.items()}
    return Read(tuple(classes.values()), found)


def _usual(path: str, folder: str) -> set[str]:
    """What the text file of an image may be called, below the folder of the labels.

    Args:
        folder: name of the folder that the path of the image begins in.
    """
    text = with_suffix(path, ".txt")
    before, is_in_images, after = f"/{text}".rpartition("/images/")
    in_place_of_images = {f"{before}/labels/{after}".lstrip("/")} if is_in_images else set()
    return {text, f"labels/{text}", f"{folder}/{text}"} | in_place_of_images


def _is_apart(path: str) -> bool:
    """Whether a text file lies in a folder of labels."""
    return "labels" in PurePosixPath(path).parts[:-1]


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


def _regions(file: Path, classes: dict[int, str], names: Path, size: Size, source: Source) -> list[Region | None]:
    found: list[Region | None] = []
    for n, line in enumerate(read_text(file).splitlines(), 1):
        if words := line.split():
            where = f"{file}, line {n}"
            label = _label(words[0], classes, f"{where}: {shorten(words[0])} is no class", names)
            found.append(_region(label, _numbers(words[1:], where), where, size, source))
    return found


def _label(word: str, classes: dict[int, str], wrong: str, names: Path) -> str:
    label = classes.get(int(word)) if DIGITS.fullmatch(word) else None
    if label is None:
        known = shorten(", ".join(f"{number} {name}" for number, name in sorted(classes.items())))
        raise RegionFileError(f"{wrong}: {names} has {known}; name it there, or mend the line")
    return label


def _numbers(words: Sequence[str], where: str) -> list[float]:
    """Of a box or a polygon, in fractions."""
    try:
        values = [float(word) for word in words]
    except ValueError as exc:
        raise RegionFileError(f"{where}: {exc}: wanted numbers") from exc
    for word, value in zip(words, values, strict=True):
        if not math.isfinite(value):
            raise RegionFileError(f"{where}: {shorten(word)} is no place: wanted finite numbers")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = ", a score is for guesses" if len(values) == 5 else ""
        raise RegionFileError(
            f"{where} has {len(values)} numbers after the class{hint}: wanted x and y of the centre, width, height; or "
            "x and y of each corner of a polygon"
        )
    if max(map(abs, values)) > MOST:
        raise RegionFileError(f"{where} is in pixels: wanted fractions of the image's width and height")
    return values


def _region(label: str, values: Sequence[float], where: str, size: Size, source: Source) -> Region | None:
    if len(values) == 4:
        return _box(label, values, where, size, source)
    corners = np.array(values).reshape(-1, 2)
    if source.kind == "box":
        source.told.add("polygons are read as the boxes around them", where)
        edges = [*corners.min(axis=0) * size, *corners.max(axis=0) * size]
        return box_within(label, edges, size, source.told, where)
    mask = filled(corners, size.width, size.height)
    if not mask.any():
        source.told.add("polygons in which no pixel's centre lies are left out", where)
        return None
    return Region("mask", label, mask=mask_to_png(mask))


def _box(label: str, values: Sequence[float], where: str, size: Size, source: Source) -> Region | None:
    if source.kind != "box":
        source.told.add("boxes are left out, as masks are wanted", where)
        return None
    x, y, width, height = values
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return box_within(label, np.multiply(edges, (*size, *size)).tolist(), size, source.told, where)


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
