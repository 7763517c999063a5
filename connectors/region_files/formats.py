"""The formats by their names: what each holds, how it is read and written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from connectors.region_files import coco, mask_files, voc, yolo
from connectors.region_files.images import Source
from connectors.region_files.labelled import LabelledImage, Read
from pipeline.types import RegionKind


class Format(NamedTuple):
    """A format.

    Attributes:
        reads: kinds of regions that can be had from it, the usual one first.
        writes: kinds of regions that it can hold.
        write: folder, images, classes.
        images: what a folder of images is called beside the labels.
        has_names: whether its files name the classes, so that no other file does.
        labels: what a folder of labels is called beside the images; empty where it has no such name.
        is_of_pictures: whether its labels are pictures, and no images.
    """

    reads: tuple[RegionKind, ...]
    writes: tuple[RegionKind, ...]
    read: Callable[[Source], Read]
    write: Callable[[Path, Sequence[LabelledImage], Sequence[str]], None]
    has_names: bool
    images: str = "images"
    labels: str = ""
    is_of_pictures: bool = False


FORMATS = {
    "coco": Format(("box", "mask"), ("box", "mask"), coco.read, coco.write, has_names=True),
    "yolo": Format(("box", "mask"), ("box",), yolo.read, yolo.write, has_names=False),
    "voc": Format(("box",), ("box",), voc.read, voc.write, has_names=True, images="JPEGImages", labels="Annotations"),
    "masks": Format(
        ("mask",), ("mask",), mask_files.read, mask_files.write, has_names=False, labels="masks", is_of_pictures=True
    ),
}
