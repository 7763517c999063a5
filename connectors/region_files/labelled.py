"""What readers and writers of regions share: labelled images, classes, and what was left out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.names import checked_class, printable, shorten
from pipeline.types import Region, Size, mask_size


class RegionFileError(ValueError):
    """A file of regions cannot be read or written; the message has the file, the entry and what to do."""


@dataclass(frozen=True)
class LabelledImage:
    """An image with the regions that were found in it.

    Attributes:
        path: below the folder that all images lie in, with / between the folders.
        regions: none where nothing is there.
        split: "pool" or "audit".
        source: who gave the label, "annotators" or "manifest".
    """

    path: str
    size: Size
    regions: tuple[Region, ...]
    split: str
    source: str

    def __post_init__(self) -> None:
        for region in self.regions:
            if region.mask is not None and mask_size(region.mask) != self.size:
                raise RegionFileError(f"{printable(self.path)}: a mask of {region.label} is not of the image's size")


@dataclass(frozen=True)
class Read:
    """What a reader found.

    Attributes:
        classes: their names, in the order of the file.
        found: image -> its regions, None in the place of each that is left out; images without a label have no entry.
    """

    classes: tuple[str, ...]
    found: dict[str, list[Region | None]]


@dataclass
class Told:
    """What was left out or changed, by what it is: how often, and the first example."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, example: str) -> None:
        """Count one more."""
        n, first = self.kinds.get(what, (0, example))
        self.kinds[what] = (n + 1, first)

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [f"{what}: {n}, such as {printable(example)}" for what, (n, example) in self.kinds.items()]


def box_within(label: str, edges: Sequence[float], size: Size, told: Told, where: str) -> Region | None:
    """A box with its left, upper, right and lower edge in pixels; None where nothing of it is in the image."""
    left, upper, right, lower = edges
    x0, x1 = (min(1.0, max(0.0, x / size.width)) for x in (left, right))
    y0, y1 = (min(1.0, max(0.0, y / size.height)) for y in (upper, lower))
    if x0 >= x1 or y0 >= y1:
        told.add("boxes without a size, or outside of their image, are left out", where)
        return None
    if min(left, upper) < -1 or right > size.width + 1 or lower > size.height + 1:
        told.add("boxes that reach beyond their image are cut at its edge", where)
    return Region("box", label, (x0, y0, x1, y1))


def has_size(said: tuple[int, int], size: Size, told: Told, where: str) -> bool:
    """Whether an image has the size that a file says; told where it has not, as its labels are of no use then."""
    if said != size:
        turned = " (turned upright)" if said == size[::-1] else ""
        told.add(
            "images have another size on the disk than in the labels, which are left out",
            f"{where}: {said[0]} x {said[1]}, on the disk {size.width} x {size.height}{turned}",
        )
    return said == size


def checked_names(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Names of classes.

    Raises:
        RegionFileError: one is no name of a class, or there twice.
    """
    checked: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise RegionFileError(f"{where}: {shorten(name)} is no name of a class: put the name in quotes")
        try:
            name = checked_class(name)
        except ValueError as exc:
            raise RegionFileError(f"{where}: the name {shorten(name)}: {exc}") from exc
        if name in checked:
            raise RegionFileError(f"{where}: two classes have the name {shorten(name)}: give one another name")
        checked[name] = None
    if not checked:
        raise RegionFileError(f"{where}: there is no class")
    return tuple(checked)


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, a line each.

    Raises:
        RegionFileError: the file holds something else.
    """
    if path.suffix.lower() in (".yaml", ".yml", ".json", ".csv"):
        raise RegionFileError(f"{path}: wanted a text file with the name of a class in each line")
    return checked_names(read_text(path).rstrip().splitlines(), str(path))


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        RegionFileError: it is no UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise RegionFileError(f"{path} is not UTF-8: save it as UTF-8") from exc
    except OSError as exc:
        raise RegionFileError(f"{path}: cannot be read: {exc.strerror}") from exc


def read_json(path: Path) -> Any:
    """A JSON file of somebody else.

    Raises:
        RegionFileError: it is none.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        if isinstance(exc, RegionFileError):
            raise
        raise RegionFileError(f"{path} is no JSON: {exc}") from exc


def label_files(images: Iterable[LabelledImage], suffix: str) -> dict[str, str]:
    """For each image the path of the file of its label, which differs in the suffix alone.

    Raises:
        RegionFileError: two images would have one, or a path does not fit into one line of a list.
    """
    taken: dict[str, str] = {}
    for image in images:
        if image.path.splitlines() != [image.path]:
            raise RegionFileError(
                f"the name {shorten(image.path)} holds a line break, which lists of images cannot hold: rename the "
                "image, which is known by its content"
            )
        file = with_suffix(image.path, suffix)
        if file in taken:
            raise two_images(taken[file], image.path, file)
        taken[file] = image.path
    return {path: file for file, path in taken.items()}


def with_suffix(path: str, suffix: str) -> str:
    """The path with another suffix."""
    return str(PurePosixPath(path).with_suffix(suffix))


def two_images(one: str, other: str, file: str) -> RegionFileError:
    """That two images have names that differ in the suffix alone."""
    return RegionFileError(
        f"{printable(one)} and {printable(other)} would both have the label {printable(file)}: rename one of the two "
        "images, which are known by their content"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file of a folder that is not seen until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_lists(folder: Path, images: Sequence[LabelledImage], line: str) -> None:
    """pool.txt and audit.txt: which images are to learn from, and which to measure on.

    Args:
        line: of an image, with `path` and `stem` in braces.
    """
    for split in ("pool", "audit"):
        lines = [
            line.format(path=image.path, stem=with_suffix(image.path, "")) for image in images if image.split == split
        ]
        write_text(folder / f"{split}.txt", "".join(f"{one}\n" for one in lines))
