"""Pascal VOC: an XML file for each image, boxes in pixels that count from 1, with both edges inside."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from connectors.region_files.images import Source
from connectors.region_files.labelled import (
    LabelledImage,
    Read,
    RegionFileError,
    box_within,
    checked_names,
    has_size,
    label_files,
    two_images,
    with_suffix,
    write_lists,
)
from pipeline.names import shorten
from pipeline.types import Region, Size

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _NoEntities(ET.TreeBuilder):
    def doctype(self, name: str, *_: object) -> None:
        raise RegionFileError(
            f"it has a document type ({name}), which may hold entities: delete the line <!DOCTYPE ...>"
        )


def read(source: Source) -> Read:
    """Labels of the images that an XML file is of: one without an object says that nothing is there.

    Raises:
        RegionFileError: naming the file and the object that is wrong.
    """
    documents = {path: _parse(file) for path, file in source.files(".xml").items()}
    for path in [path for path, document in documents.items() if document.tag != "annotation"]:
        source.told.add("XML files are no annotations, and left out", path)
        del documents[path]
    if not documents:
        raise RegionFileError(f"{source.path} holds no annotations: wanted XML files of Pascal VOC")
    file_of = _images_of(documents, source)
    sizes = source.images.sizes(file_of, source.told)
    found: dict[str, list[Region | None]] = {}
    names: set[str] = set()
    for path, size in sizes.items():
        document, where = documents[file_of[path]], str(source.path / file_of[path])
        objects = [(f"{where}, object {n}", one) for n, one in enumerate(document.findall("object"), 1)]
        names |= {_text(one, "name", which) for which, one in objects}
        if has_size(_said(document, size, where), size, source.told, path):
            found[path] = [_region(one, size, which, source) for which, one in objects]
    return Read(checked_names(sorted(names), str(source.path)), found)


def _parse(file: Path) -> ET.Element:
    parser = ET.XMLParser(target=_NoEntities())  # noqa: S314
    try:
        return ET.fromstring(file.read_bytes(), parser)  # noqa: S314
    except RegionFileError as exc:
        raise RegionFileError(f"{file}: {exc}") from exc
    except (ET.ParseError, LookupError, ValueError) as exc:
        raise RegionFileError(f"{file} is no XML: {exc}") from exc


def _images_of(documents: dict[str, ET.Element], source: Source) -> dict[str, str]:
    """Image -> the XML file that is of it."""
    of_stem: dict[str, list[str]] = {}
    for path in source.images.paths:
        of_stem.setdefault(with_suffix(path, ""), []).append(path)
    names = {path: list(_names(path, document)) for path, document in documents.items()}
    flat = [name for each in names.values() for name in each]
    located = iter(source.images.find(flat))
    file_of: dict[str, str] = {}
    for file, each in names.items():
        found = [next(located) for _ in each]
        paths = [path for path in found if path is not None]
        if paths and each[found.index(paths[0])] == each[-1] != each[0]:
            where = f"an image at the top of {source.images.folder}, as none of the name lies beside them"
            source.told.add(f"XML files are read as labels of {where}", file)
        alike = paths or of_stem.get(with_suffix(file, ""), [])
        if not paths and len(alike) > 1:
            raise two_images(alike[0], alike[1], file)
        if not alike:
            source.told.add(f"XML files are of images that are not in {source.images.folder}, and left out", file)
        elif file_of.setdefault(alike[0], file) != file:
            raise RegionFileError(
                f"{source.path}: {file_of[alike[0]]} and {file} are both of {alike[0]}: delete one of the two"
            )
    return file_of


def _names(file: str, document: ET.Element) -> Iterator[str]:
    """What the image of an XML file may be called, below the folder of the images; the likeliest first."""
    name = document.findtext("filename")
    if name:
        yield str(PurePosixPath(file).parent / name)
        yield str(PurePosixPath(document.findtext("folder") or "") / name)
        yield name


def _said(document: ET.Element, otherwise: Size, where: str) -> tuple[int, int]:
    """Width and height by the file; those of the image itself where they are missing or 0."""
    said = document.find("size")
    if said is None:
        return otherwise
    width, height = (int(_number(said, key, where)) for key in ("width", "height"))
    return (width, height) if (width, height) != (0, 0) else otherwise


def _region(one: ET.Element, size: Size, where: str, source: Source) -> Region | None:
    if (one.findtext("difficult") or "").strip() == "1":
        source.told.add("objects are marked as difficult, and stay", where)
    box = one.find("bndbox")
    if box is None:
        source.told.add("objects have no bndbox, and are left out", where)
        return None
    left, upper, right, lower = (_number(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    return box_within(_text(one, "name", where), (left - 1, upper - 1, right, lower), size, source.told, where)


def _text(element: ET.Element, key: str, where: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise RegionFileError(f"{where} has no {key}: add it, or delete the {element.tag}")
    return text


def _number(element: ET.Element, key: str, where: str) -> float:
    text = _text(element, key, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RegionFileError(f"{where}: {key} is {shorten(text)}: wanted a number of pixels")
    return number


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Annotations/ with a file for each image, and lists of the images of each split in ImageSets/Main/."""
    files = label_files(images, ".xml")
    for image in images:
        if wrong := NO_XML.search(image.path):
            raise RegionFileError(
                f"the name {shorten(image.path)} holds {wrong[0]!r}, which XML cannot hold: rename the image, which is "
                "known by its content"
            )
        path = folder / "Annotations" / files[image.path]
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(_document(image)).write(path, encoding="utf-8", xml_declaration=True)
    write_lists(folder / "ImageSets" / "Main", images, "{stem}")


def _document(image: LabelledImage) -> ET.Element:
    document, path = ET.Element("annotation"), PurePosixPath(image.path)
    _add(document, folder=str(path.parent), filename=path.name)
    _add(ET.SubElement(document, "source"), annotation=image.source)
    _add(ET.SubElement(document, "size"), width=image.size.width, height=image.size.height, depth=3)
    _add(document, segmented=0)
    for region in image.regions:
        one = ET.SubElement(document, "object")
        _add(one, name=region.label, pose="Unspecified", truncated=0, difficult=0)
        _add(ET.SubElement(one, "bndbox"), **_edges(region, image.size))
    ET.indent(document)
    return document


def _edges(region: Region, size: Size) -> dict[str, int]:
    left, upper, right, lower = region.geometry or ()
    (xmin, xmax), (ymin, ymax) = _pixels(left, right, size.width), _pixels(upper, lower, size.height)
    return {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}


def _pixels(low: float, high: float, n: int) -> tuple[int, int]:
    """The first and the last of n pixels, which count from 1; at least one."""
    first, end = round(low * n), round(high * n)
    return (first + 1, end) if first < end else (min(int(low * n), n - 1) + 1,) * 2


def _add(element: ET.Element, **texts: str | int) -> None:
    for key, text in texts.items():
        ET.SubElement(element, key).text = str(text)
