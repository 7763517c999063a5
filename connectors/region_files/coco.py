"""COCO: one JSON file of images, annotations and categories; boxes in pixels, masks as polygons or run lengths."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.region_files.images import Source
from connectors.region_files.labelled import (
    LabelledImage,
    Read,
    RegionFileError,
    Told,
    box_within,
    checked_names,
    has_size,
    read_json,
    write_text,
)
from connectors.region_files.runs import compressed, decompressed, mask_of, runs_of
from pipeline.masks import filled, mask_from_png, mask_to_png
from pipeline.names import shorten
from pipeline.types import Region, Size

FILE = "annotations.json"


class _Entry(NamedTuple):
    """An entry of one of the lists, and what messages call it."""

    values: Mapping[str, Any]
    name: str

    def get(self, key: str, is_right: Callable[[Any], bool], wanted: str) -> Any:
        """A value.

        Raises:
            RegionFileError: it is not there, or is not right.
        """
        if key not in self.values:
            raise RegionFileError(f"{self.name} has no {key}: wanted {wanted}")
        if not is_right(self.values[key]):
            raise RegionFileError(f"{self.name}: {key} is {shorten(self.values[key])}: wanted {wanted}")
        return self.values[key]

    def id(self, key: str = "id") -> int | str:
        """A number or text that names an entry."""
        found: int | str = self.get(key, _is_id, "a whole number")
        return found


def read(source: Source) -> Read:
    """Labels of the images that the file names: one without an annotation has nothing in it.

    Raises:
        RegionFileError: naming the entry that is wrong.
    """
    file = source.path / FILE if source.path.is_dir() else source.path
    document = read_json(file)
    if not isinstance(document, dict):
        raise RegionFileError(f"{file}: wanted an object with images, annotations and categories")
    categories = _by_id(_entries(file, document, "categories"))
    order = sorted(categories) if all(isinstance(one, int) for one in categories) else sorted(categories, key=str)
    names = [categories[one].get("name", _is_text, "a text") for one in order]
    classes = dict(zip(order, checked_names(names, str(file)), strict=True))
    images = _by_id(_entries(file, document, "images"))
    of_image: dict[int | str, list[tuple[_Entry, str]]] = {image_id: [] for image_id in images}
    for annotation in _entries(file, document, "annotations"):
        image_id, label = _known(annotation, "image_id", images), classes[_known(annotation, "category_id", classes)]
        of_image[image_id].append((annotation, label))
    found: dict[str, list[Region | None]] = {}
    for image_id, path, size in _on_disk(images, source):
        if path in found:
            raise RegionFileError(f"{images[image_id].name} names {path} for the second time: delete one of the two")
        found[path] = [_region(one, label, size, source) for one, label in of_image[image_id]]
    return Read(tuple(classes.values()), found)


def _entries(file: Path, document: Mapping[str, Any], key: str) -> list[_Entry]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise RegionFileError(f"{file}: wanted a list {key}, got {shorten(entries)}")
    for place, values in enumerate(entries):
        if not isinstance(values, dict):
            raise RegionFileError(f"{file}: {key}[{place}] is {shorten(values)}: wanted an object")
    return [_Entry(values, f"{file}: {key}[{place}]") for place, values in enumerate(entries)]


def _by_id(entries: Sequence[_Entry]) -> dict[int | str, _Entry]:
    by_id: dict[int | str, _Entry] = {}
    for entry in entries:
        other = by_id.setdefault(entry.id(), entry)
        if other is not entry:
            raise RegionFileError(f"{entry.name} has the id of {other.name}: give it another")
    return by_id


def _known(entry: _Entry, key: str, known: Collection[int | str]) -> int | str:
    found = entry.id(key)
    if found not in known:
        raise RegionFileError(f"{entry.name}: there is no {key} {found!r}: add it, or delete the annotation")
    return found


def _on_disk(images: Mapping[int | str, _Entry], source: Source) -> list[tuple[int | str, str, Size]]:
    """The images that are there in the size that the file says, with path and size."""
    names = [image.get("file_name", _is_text, "a path below the folder of the images") for image in images.values()]
    paths = dict(zip(images, source.images.find(names), strict=True))
    sizes = source.images.sizes({path for path in paths.values() if path is not None}, source.told)
    there: list[tuple[int | str, str, Size]] = []
    for (image_id, path), name in zip(paths.items(), names, strict=True):
        if path is None:
            source.told.add(f"images are not in {source.images.folder}, and are left out", name)
        elif (size := sizes.get(path)) and has_size(_said(images[image_id], size), size, source.told, path):
            there.append((image_id, path, size))
    return there


def _said(image: _Entry, otherwise: Size) -> tuple[int, int]:
    """Width and height by the file; those of the image itself where it has none."""
    width, height = (
        image.get(key, _is_count, "a number of pixels") if key in image.values else length
        for key, length in (("width", otherwise.width), ("height", otherwise.height))
    )
    return width, height


def _region(annotation: _Entry, label: str, size: Size, source: Source) -> Region | None:
    if "iscrowd" in annotation.values and annotation.get("iscrowd", _is_flag, "0 or 1"):
        source.told.add("annotations of a crowd (iscrowd) are left out", annotation.name)
        return None
    if source.kind == "box":
        x, y, width, height = annotation.get("bbox", _is_box, "[x, y, width, height] in pixels")
        if max(x + width, y + height) <= 1 < min(size):
            source.told.add("boxes lie in the first pixel of their image; were fractions meant?", annotation.name)
        return box_within(label, (x, y, x + width, y + height), size, source.told, annotation.name)
    mask = _mask(annotation, size, source.told)
    if mask is not None and not mask.any():
        source.told.add("masks in which no pixel's centre lies are left out", annotation.name)
        return None
    return None if mask is None else Region("mask", label, mask=mask_to_png(mask))


def _mask(annotation: _Entry, size: Size, told: Told) -> NDArray[np.bool_] | None:
    given = annotation.values.get("segmentation")
    if not given:
        told.add("annotations without a segmentation are left out", annotation.name)
        return None
    if isinstance(given, dict):
        return _from_runs(annotation, given, size)
    wanted = "a list of polygons, each [x, y, x, y, x, y, ...] in pixels, or run lengths"
    polygons = annotation.get("segmentation", _are_polygons, wanted)
    outlines = [np.array(polygon, dtype=np.float64).reshape(-1, 2) / size for polygon in polygons if len(polygon) > 5]
    if len(outlines) < len(polygons):
        told.add("annotations have parts of fewer than three corners, which are left out", annotation.name)
    masks = [filled(outline, size.width, size.height) for outline in outlines]
    return np.logical_or.reduce(masks) if masks else None


def _from_runs(annotation: _Entry, given: Mapping[str, Any], size: Size) -> NDArray[np.bool_]:
    runs = _Entry(given, f"{annotation.name}, segmentation")
    height, width = runs.get("size", lambda value: _are_numbers(value) and len(value) == 2, "[height, width]")
    if Size(width, height) != size:
        sizes = f"{width} x {height} pixels, and its image of {size.width} x {size.height}"
        raise RegionFileError(f"{runs.name} is of {sizes}: make both the same, or delete the annotation")
    counts = runs.get("counts", lambda value: isinstance(value, str) or _are_whole(value), "run lengths")
    try:
        return mask_of(decompressed(counts) if isinstance(counts, str) else counts, size.height, size.width)
    except ValueError as exc:
        raise RegionFileError(f"{runs.name} is damaged: {exc}") from exc


def _are_whole(value: Any) -> bool:
    return _are_numbers(value) and all(each == int(each) for each in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return value in (0, 1, None)


def _is_text(value: Any) -> bool:
    """Whether it is a text that a file can be called."""
    if not isinstance(value, str):
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return _is_number(value) and value == int(value) > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_box(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 4


def _are_polygons(value: Any) -> bool:
    return isinstance(value, list) and all(_are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in value)


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """annotations.json; `split` and `source` are further keys of its images."""
    ids = {name: place for place, name in enumerate(classes, 1)}
    annotations: list[dict[str, object]] = []
    for image_id, image in enumerate(images, 1):
        for region in image.regions:
            place = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[region.label], "iscrowd": 0}
            annotations.append(place | _places(region, image.size))
    document = {
        "images": [
            {
                "id": image_id,
                "file_name": image.path,
                "width": image.size.width,
                "height": image.size.height,
                "split": image.split,
                "source": image.source,
            }
            for image_id, image in enumerate(images, 1)
        ],
        "categories": [{"id": place, "name": name} for name, place in ids.items()],
        "annotations": annotations,
    }
    write_text(folder / FILE, json.dumps(document, ensure_ascii=False))


def _places(region: Region, size: Size) -> dict[str, object]:
    if region.mask is None:
        left, upper, right, lower = np.array(region.geometry) * (*size, *size)
        width, height = right - left, lower - upper
        return {"bbox": [left, upper, width, height], "area": width * height, "segmentation": []}
    mask = mask_from_png(region.mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    edges = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    runs = {"size": [size.height, size.width], "counts": compressed(runs_of(mask))}
    return {"bbox": [int(edge) for edge in edges], "area": int(mask.sum()), "segmentation": runs}
