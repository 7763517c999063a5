"""Regions in files of other tools: what is written is read again, what others wrote is read as they meant it."""

import json
import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from connectors.region_files.formats import FORMATS
from connectors.region_files.images import Images, Source
from connectors.region_files.labelled import LabelledImage, RegionFileError, Told, read_names
from connectors.region_files.runs import compressed, decompressed, mask_of, runs_of
from connectors.region_files.voc import NO_XML
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.types import Region, Size
from tests.hostile import CLASSES, HIDDEN, NAMES

IMAGES = {"a.png": Size(12, 8), "turned.jpg": Size(6, 10), "deep/a.png": Size(5, 7), "deep/er/a.png": Size(20, 3)}
SHARES = st.floats(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of equal names in several folders; one lies on its side in its file."""
    folder = tmp_path_factory.mktemp("regions") / "images"
    for path, size in IMAGES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save(folder / path, size, sideways=path == "turned.jpg")
    return folder


def save(path: Path, size: tuple[int, int], *, sideways: bool = False) -> None:
    exif = Image.Exif()
    if sideways:
        exif[ExifTags.Base.Orientation] = 6
    Image.new("L", size[::-1] if sideways else size).save(path, exif=exif)


def read(name: str, labels: Path, images: Path, *, kind: str | None = None, names: Path | None = None):
    """What is read, and the lines on what was left out."""
    told = Told()
    format_ = FORMATS[name]
    found = format_.read(Source(labels, Images(images), kind or format_.reads[0], names, told))
    return found, told.lines()


def written(name: str, labelled: list[LabelledImage], classes, folder: Path) -> Path:
    FORMATS[name].write(folder, labelled, classes)
    return folder


def labels_in(name: str, folder: Path) -> Path:
    """Where the labels are in what is written."""
    return folder / FORMATS[name].labels


@st.composite
def boxes(draw, classes) -> Region:
    x, y = (sorted(draw(st.lists(SHARES, min_size=2, max_size=2, unique=True))) for _ in range(2))
    x1, y1 = max(x[1], min(1.0, x[0] + 1e-3)), max(y[1], min(1.0, y[0] + 1e-3))
    return Region("box", draw(st.sampled_from(classes)), (min(x[0], x1 - 1e-3), min(y[0], y1 - 1e-3), x1, y1))


@st.composite
def scenes(draw, kind: str) -> tuple[list[LabelledImage], tuple[str, ...]]:
    """Labels of some of the images, and the classes."""
    classes = tuple(draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True)))
    paths = draw(st.lists(st.sampled_from(list(IMAGES)), min_size=1, unique=True))
    scene = []
    for path in sorted(paths):
        width, height = IMAGES[path]
        if kind == "box":
            regions = draw(st.lists(boxes(classes), max_size=3))
        else:
            numbers = draw(st.binary(min_size=width * height, max_size=width * height))
            numbers = np.frombuffer(numbers, np.uint8).reshape(height, width) % (1 + len(classes))
            regions = [
                Region("mask", name, mask=mask_to_png(numbers == n))
                for n, name in enumerate(classes, 1)
                if (numbers == n).any()
            ]
        split, source = draw(st.sampled_from([("pool", "manifest"), ("audit", "annotators")]))
        scene.append(LabelledImage(path, IMAGES[path], tuple(regions), split, source))
    return scene, classes


def used(scene: list[LabelledImage]) -> set[str]:
    return {region.label for image in scene for region in image.regions}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["coco", "yolo", "voc"]), scenes("box"))
def test_boxes_come_back_as_they_were_written(folder, name, scene):
    labelled, classes = scene
    with tempfile.TemporaryDirectory() as place:
        out = written(name, labelled, classes, Path(place) / "out")
        if name == "voc" and not used(labelled):
            with pytest.raises(RegionFileError, match="there is no class"):
                read(name, labels_in(name, out), folder)
            return
        found, told = read(name, labels_in(name, out), folder)
    assert [line for line in told if "in the first pixel" not in line] == []
    assert found.classes == (tuple(sorted(used(labelled))) if name == "voc" else classes)
    assert found.found.keys() == {image.path for image in labelled}, "nothing there is a label as well"
    for image in labelled:
        back = found.found[image.path]
        assert [region.label for region in back] == [region.label for region in image.regions]
        for region, wanted in zip(back, image.regions, strict=True):
            off = np.abs(np.subtract(region.geometry, wanted.geometry)) * (*image.size, *image.size)
            assert off.max() <= (1.0 if name == "voc" else 1e-7), "whole pixels, or all digits"


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["coco", "masks"]), scenes("mask"))
def test_masks_come_back_as_they_were_written(folder, name, scene):
    labelled, classes = scene
    with tempfile.TemporaryDirectory() as place:
        out = written(name, labelled, classes, Path(place) / "out")
        found, told = read(name, labels_in(name, out), folder, kind="mask")
    assert told == []
    assert found.classes == classes
    assert found.found == {image.path: list(image.regions) for image in labelled}


def test_boxes_of_whole_pixels_come_back_from_voc_without_a_change(folder, tmp_path):
    whole = Region("box", "cat", (2 / 12, 0.0, 1.0, 3 / 8))
    written("voc", [labelled("a.png", whole)], ["cat"], tmp_path)
    read_back, _ = read("voc", tmp_path / "Annotations", folder)
    assert read_back.found["a.png"][0].geometry == pytest.approx(whole.geometry)
    document = ET.parse(tmp_path / "Annotations" / "a.xml")
    assert [document.findtext(f".//{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] == ["3", "1", "12", "3"]


def labelled(path: str, *regions: Region, split: str = "pool", size: Size | None = None) -> LabelledImage:
    return LabelledImage(path, size or IMAGES[path], regions, split, "annotators")


BOX = Region("box", "cat", (0.0, 0.0, 0.5, 0.5))
SQUARE = np.zeros((8, 12), dtype=bool)
SQUARE[1:4, 2:7] = True


def test_formats_hold_split_and_source_as_far_as_they_can(tmp_path):
    images = [labelled("a.png", BOX), labelled("deep/a.png", split="audit")]
    coco, yolo, voc = (written(name, images, ["cat"], tmp_path / name) for name in ("coco", "yolo", "voc"))
    entries = json.loads((coco / "annotations.json").read_text())["images"]
    assert [(one["file_name"], one["split"], one["source"]) for one in entries] == [
        ("a.png", "pool", "annotators"),
        ("deep/a.png", "audit", "annotators"),
    ]
    assert (yolo / "pool.txt").read_text() == "./images/a.png\n"
    assert (yolo / "audit.txt").read_text() == "./images/deep/a.png\n"
    assert yaml.safe_load((yolo / "data.yaml").read_text())["val"] == "audit.txt"
    assert (voc / "ImageSets" / "Main" / "audit.txt").read_text() == "deep/a\n"
    assert ET.parse(voc / "Annotations" / "a.xml").findtext("source/annotation") == "annotators"


@pytest.mark.parametrize("name", ["yolo", "voc", "masks"])
def test_images_that_differ_in_the_suffix_alone_are_never_written_over_each_other(tmp_path, name):
    images = [labelled(path, size=Size(2, 2)) for path in ("deep/b.jpg", "deep/b.png")]
    with pytest.raises(RegionFileError, match=r"deep/b\.jpg and deep/b\.png would both have the label .*rename one"):
        written(name, images, ["cat"], tmp_path)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "masks"])
def test_classes_of_any_name_come_back(folder, tmp_path, name):
    mask = mask_to_png(np.eye(8, 12, dtype=bool))
    classes = CLASSES[:90]
    regions = [
        Region("mask", label, mask=mask_to_png(np.arange(96).reshape(8, 12) == n))
        if name == "masks"
        else Region("mask", label, mask=mask)
        if name == "coco"
        else Region("box", label, BOX.geometry)
        for n, label in enumerate(classes)
    ]
    out = written(name, [labelled("a.png", *regions)], classes, tmp_path)
    found, told = read(name, labels_in(name, out), folder, kind=regions[0].kind)
    assert told == []
    assert set(found.classes) == set(classes)
    assert [region.label for region in found.found["a.png"]] == list(classes)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "masks"])
def test_files_of_any_name_come_back_or_are_refused(tmp_path, name):
    names = {text.replace("\0", "").replace("/", "_")[:60] for text in NAMES + HIDDEN if "\ud800" not in text}
    for text in sorted(names):
        path, (images, out) = f"{text}.png", (tmp_path / kind / f"{len(list(tmp_path.glob('*/*')))}" for kind in "io")
        if path.startswith("."):
            continue  # hidden, and in no pool
        images.mkdir(parents=True)
        save(images / path, (4, 4))
        mask = mask_to_png(np.eye(4, dtype=bool))
        region = Region("mask", "cat", mask=mask) if name == "masks" else BOX
        one = [labelled(path, region, size=Size(4, 4))]
        if name != "coco" and (path.splitlines() != [path] or (name == "voc" and NO_XML.search(path))):
            with pytest.raises(RegionFileError, match="rename the image"):
                written(name, one, ["cat"], out)
            continue
        written(name, one, ["cat"], out)
        assert read(name, labels_in(name, out), images)[0].found.keys() == {path}


def test_coco_is_read_as_its_makers_mean_it(folder, tmp_path):
    """Polygons by the centres of pixels, run lengths column by column as a list or as pycocotools writes them."""
    write_coco(
        tmp_path,
        annotations=[
            {"segmentation": [[2, 1, 7, 1, 7, 4, 2, 4]], "bbox": [2, 1, 5, 3]},
            {"segmentation": {"size": [8, 12], "counts": [17, 3, 5, 3, 5, 3, 5, 3, 5, 3, 44]}, "bbox": [2, 1, 5, 3]},
            {"segmentation": {"size": [8, 12], "counts": compressed(runs_of(SQUARE))}, "category_id": 3},
            {"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1], [11, 7, 12, 7, 12, 8, 11, 8]]},
        ],
    )
    found, told = read("coco", tmp_path / "c.json", folder, kind="mask")
    assert found.classes == ("dog", "cat"), "in the order of the ids"
    assert [region.label for region in found.found["a.png"]] == ["cat", "cat", "dog", "cat"]
    masks = [mask_from_png(region.mask) for region in found.found["a.png"]]
    assert all(np.array_equal(mask, SQUARE) for mask in masks[:3])
    assert np.argwhere(masks[3]).tolist() == [[0, 0], [7, 11]]
    assert found.found["deep/a.png"] == [], "an image without annotations stays, and nothing is in it"
    assert told == []


def write_coco(folder: Path, *, annotations=(), images=None, categories=None, **more) -> None:
    images = images or [
        {"id": 1, "file_name": "a.png", "width": 12, "height": 8},
        {"id": 2, "file_name": "deep/a.png", "width": 5, "height": 7},
    ]
    full = [{"id": n, "image_id": 1, "category_id": 7} | one for n, one in enumerate(annotations)]
    categories = categories or [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    document = {"images": images, "annotations": full, "categories": categories} | more
    (folder / "c.json").write_text(json.dumps(document))


def test_boxes_of_coco_that_may_be_fractions_are_told(folder, tmp_path):
    write_coco(tmp_path, annotations=[{"bbox": [0.2, 0.2, 0.5, 0.8]}, {"bbox": [0, 0, 1, 2]}])
    found, [told] = read("coco", tmp_path / "c.json", folder)
    assert None not in found.found["a.png"]
    assert told.startswith("boxes lie in the first pixel of their image; were fractions meant?: 1, such as ")
    assert told.endswith("annotations[0]")


def test_coco_tells_what_it_leaves_out(folder, tmp_path):
    write_coco(
        tmp_path,
        images=[
            {"id": 1, "file_name": "a.png", "width": 12, "height": 8},
            {"id": 2, "file_name": "deep\\a.png"},
            {"id": 3, "file_name": "turned.jpg", "width": 10, "height": 6},
            {"id": 4, "file_name": "gone.png"},
            {"id": 5, "file_name": "../../etc/passwd"},
        ],
        annotations=[
            {"bbox": [10, 1, 5, 3]},
            {"bbox": [20, 1, 5, 3]},
            {"bbox": [2, 1, 5, 0]},
            {"bbox": [0, 0, 12, 8], "iscrowd": 1, "image_id": 2},
        ],
    )
    found, told = read("coco", tmp_path / "c.json", folder)
    assert found.found["a.png"] == [Region("box", "cat", (10 / 12, 1 / 8, 1.0, 0.5)), None, None]
    assert found.found["deep/a.png"] == [None]
    assert found.found.keys() == {"a.png", "deep/a.png"}
    assert told == [
        "images have another size on the disk than in the labels, which are left out: 1, such as turned.jpg: 10 x 6, "
        "on the disk 6 x 10 (turned upright)",
        f"images are not in {folder}, and are left out: 2, such as gone.png",
        f"boxes that reach beyond their image are cut at its edge: 1, such as {tmp_path}/c.json: annotations[0]",
        f"boxes without a size, or outside of their image, are left out: 2, such as {tmp_path}/c.json: annotations[1]",
        f"annotations of a crowd (iscrowd) are left out: 1, such as {tmp_path}/c.json: annotations[3]",
    ]
    write_coco(
        tmp_path, annotations=[{"segmentation": []}, {"segmentation": [[1, 1, 2, 2]]}, {"segmentation": [[0] * 6]}]
    )
    found, told = read("coco", tmp_path / "c.json", folder, kind="mask")
    assert found.found["a.png"] == [None] * 3
    assert [line.split(", such as")[0] for line in told] == [
        "annotations without a segmentation are left out: 1",
        "annotations have parts of fewer than three corners, which are left out: 1",
        "masks in which no pixel's centre lies are left out: 1",
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"annotations": [{"bbox": [1, 2, 3]}]},
            r"annotations\[0\]: bbox is \[1, 2, 3\]: wanted \[x, y, width, height\]",
        ),
        ({"annotations": [{}]}, r"annotations\[0\] has no bbox: wanted"),
        ({"annotations": [{"bbox": [1, 2, 3, 4], "iscrowd": "0"}]}, r"annotations\[0\]: iscrowd is '0': wanted 0 or 1"),
        ({"annotations": [{"bbox": [1, 2, 3, float("nan")]}]}, r"bbox is \[1, 2, 3, nan\]"),
        ({"annotations": [{"image_id": 9}]}, r"annotations\[0\]: there is no image_id 9: add it, or delete"),
        ({"annotations": [{"category_id": "7"}]}, "there is no category_id '7'"),
        ({"annotations": [{"category_id": None}]}, "category_id is None: wanted a whole number"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
        (
            {"images": [{"id": 1, "file_name": "a.png"}] * 2},
            r"images\[1\] has the id of .*images\[0\]: give it another",
        ),
        (
            {"images": [{"id": n, "file_name": "a.png"} for n in (1, 2)]},
            r"images\[1\] names a.png for the second time",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 8}]},
            "width is 0: wanted a number of pixels",
        ),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "cat"}]}, "two classes have the name 'cat'"),
        ({"categories": [{"id": 7, "name": "a\nb"}]}, "must not hold U\\+000A"),
        ({"categories": [{"id": 7}]}, r"categories\[0\] has no name"),
    ],
)
def test_what_is_wrong_in_coco_is_named(folder, tmp_path, how, message):
    write_coco(tmp_path, **how)
    with pytest.raises(RegionFileError, match=message):
        read("coco", tmp_path / "c.json", folder)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [8, 12], "counts": "55~"}, "segmentation is damaged: run lengths hold '~'"),
        ({"size": [8, 12], "counts": [3, 4]}, "have 7 pixels, and 12 x 8 are wanted"),
        ({"size": [8, 12], "counts": [-3, 99]}, "damaged"),
        ({"size": [12, 8], "counts": [96]}, "of 8 x 12 pixels, and its image of 12 x 8"),
        ({"counts": [96]}, "segmentation has no size"),
        ([[1, 2, 3, 4, 5, 6, 7]], "wanted a list of polygons"),
    ],
)
def test_a_mask_of_coco_that_cannot_be_read_is_named(folder, tmp_path, segmentation, message):
    write_coco(tmp_path, annotations=[{"segmentation": segmentation}])
    with pytest.raises(RegionFileError, match=message):
        read("coco", tmp_path / "c.json", folder, kind="mask")


@pytest.mark.parametrize("text", ["{", "[]", '{"categories": 3}', '{"categories": [3]}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_coco_is_refused(folder, tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(RegionFileError, match=r"c\.json"):
        read("coco", tmp_path / "c.json", folder)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_run_lengths_are_those_of_a_slow_look_at_every_pixel(height, width, data):
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(pixels).reshape(height, width)
    slow, state = [0], False
    for x in range(width):
        for y in range(height):
            if mask[y, x] != state:
                slow.append(0)
                state = mask[y, x]
            slow[-1] += 1
    assert runs_of(mask) == slow
    assert np.array_equal(mask_of(slow, height, width), mask)


@given(st.lists(st.integers(0, 10**7)))
def test_compressed_run_lengths_come_back(runs):
    assert decompressed(compressed(runs)) == runs


def test_run_lengths_are_compressed_as_pycocotools_does():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:7] = mask[5, 0] = True
    assert compressed(runs_of(mask)) == "5172L00000005"
    mask = np.zeros((50, 70), dtype=bool)
    mask[3:40, 10:60] = True
    mask[20, 20] = False
    assert compressed(runs_of(mask)) == f"g?U1={'0' * 18}\\OD2<b{'0' * 77}a?"


def yolo(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("dog\ncat\n")
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_yolo_is_read_as_its_makers_mean_it(folder, tmp_path):
    files = {
        "a": "1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.2 0.2\r\n",
        "deep__a": "",
        "gone": "0 0.5 0.5 1 1",
        "deep__er__b": "",
    }
    found, told = read("yolo", yolo(tmp_path / "labels", **files), folder)
    assert found.classes == ("dog", "cat")
    assert found.found["a.png"][0] == Region("box", "cat", (0.25, 0.375, 0.75, 0.625))
    assert found.found["a.png"][1].geometry == pytest.approx((0, 0, 0.2, 0.2))
    assert found.found["deep/a.png"] == []
    assert found.found.keys() == {"a.png", "deep/a.png"}, "without a file there is no label"
    assert [line.split(", such as")[0] for line in told] == [".txt files are of no image, and left out: 2"]


def test_polygons_of_yolo_are_masks_or_the_boxes_around_them(folder, tmp_path):
    labels = yolo(tmp_path / "labels", a="1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n0 0.5 0.5 1 1")
    found, told = read("yolo", labels, folder)
    assert found.found["a.png"][0].geometry == pytest.approx((0.25, 0.25, 0.75, 0.5))
    assert "polygons are read as the boxes around them: 1" in told[0]
    found, told = read("yolo", labels, folder, kind="mask")
    wanted = np.zeros((8, 12), dtype=bool)
    wanted[2:4, 3:9] = True
    assert np.array_equal(mask_from_png(found.found["a.png"][0].mask), wanted)
    assert found.found["a.png"][1] is None
    assert "boxes are left out, as masks are wanted: 1" in told[0]


@pytest.mark.parametrize("place", ["images", "labels", "train/images", "train/labels"])
def test_files_of_yolo_lie_beside_the_images_or_in_a_folder_of_their_own(tmp_path, place):
    images = tmp_path / ("train/images" if place.startswith("train") else "images") / "x"
    labels = tmp_path / place / "x"
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    save(images / "1.png", (4, 4))
    (labels / "1.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("names: {0: cat}")
    for root in (tmp_path, tmp_path / "images"):
        if root.is_dir() and images.is_relative_to(root):
            found, _ = read("yolo", tmp_path, root)
            assert [len(regions) for regions in found.found.values()] == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "2 0.5 0.5 1 1",
            r"a\.txt, line 1: '2' is no class: .*classes\.txt has '0 dog, 1 cat'; name it there",
        ),
        ("cat 0.5 0.5 1 1", "'cat' is no class"),
        ("-1 0.5 0.5 1 1", "'-1' is no class"),
        ("0 0.5 0.5 1", "has 3 numbers after the class: wanted x and y of the centre"),
        ("0 0.5 0.5 1 1 0.9", "has 5 numbers after the class, a score is for guesses"),
        ("0 0.5 0,5 1 1", "could not convert string to float: '0,5': wanted numbers"),
        ("0 6 4 3 3", "is in pixels: wanted fractions"),
        ("0 1 1 6 1 6 4", "is in pixels: wanted fractions"),
        ("0 nan 0.5 1 1", r"a\.txt, line 1: 'nan' is no place: wanted finite numbers"),
        ("0 0.1 0.1 0.6 1e400 0.6 0.4", "'1e400' is no place"),
    ],
)
def test_what_is_wrong_in_yolo_is_named(folder, tmp_path, line, message):
    with pytest.raises(RegionFileError, match=message):
        read("yolo", yolo(tmp_path / "labels", a=line), folder)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_what_cannot_be_a_place_is_refused_whatever_is_wanted(folder, tmp_path, kind):
    for line in ("0 nan 0.5 1 1", "0 6 4 3 3", "0 inf 1 6 1 6 4", "0 1 1 6 1 6 4"):
        with pytest.raises(RegionFileError, match=r"is no place|is in pixels"):
            read("yolo", yolo(tmp_path / "labels", a=line), folder, kind=kind)


def test_yolo_leaves_out_boxes_without_a_size_or_outside(folder, tmp_path):
    found, told = read("yolo", yolo(tmp_path / "labels", a="0 0.5 0.5 0 0.5\n0 1.5 0.5 0.1 0.1"), folder)
    assert found.found["a.png"] == [None] * 2
    assert "boxes without a size, or outside of their image, are left out: 2" in told[0]


def test_text_files_beside_a_folder_of_labels_are_no_labels(tmp_path):
    """An image may be called as a list of images is, or the names of the classes."""
    (tmp_path / "images").mkdir()
    for name in ("pool", "x"):
        save(tmp_path / "images" / f"{name}.png", (4, 4))
        (tmp_path / f"{name}.txt").write_text("cat\n")
    assert read("yolo", yolo(tmp_path / "labels", x=""), tmp_path / "images")[0].found.keys() == {"x.png"}
    found, told = read("yolo", tmp_path, tmp_path / "images", names=tmp_path / "x.txt")
    assert found.found.keys() == {"x.png"}
    assert told == []


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("names: [dog, cat]", ("dog", "cat")),
        ("names:\n  1: cat\n  0: dog\n", ("dog", "cat")),
        ("train: x\nnames:\n- 'no'\n- \"a: b\"\n", ("no", "a: b")),
    ],
)
def test_names_of_yolo_are_read_from_yaml(folder, tmp_path, text, classes):
    (tmp_path / "data.yaml").write_text(text)
    assert read("yolo", tmp_path, folder)[0].classes == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [no, cat]", "False is no name of a class: put the name in quotes"),
        ("names: [1, 2]", "1 is no name of a class: put"),
        ("names: 3", "wanted names: a list"),
        ("names: {a: cat}", "wanted names: a list"),
        ("names: []", "there is no class"),
        ("[", "is no YAML"),
        ("names: [!!python/object/apply:os.getcwd []]", "is no YAML"),
    ],
)
def test_names_of_yolo_that_cannot_be_read_are_refused(folder, tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(RegionFileError, match=message):
        read("yolo", tmp_path, folder)


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("0 .5 .5 .1 .1", "caf\u00e9\ncafe\u0301\n", "two classes have the name"),
        (f"{'1' * 5000} .5 .5 .1 .1", "cat\n", "is no class"),
        ("\u0661 .5 .5 .1 .1", "cat\ndog\n", "is no class"),
    ],
)
def test_names_that_look_alike_and_numbers_that_are_none_are_refused_in_yolo(folder, tmp_path, label, names, message):
    labels = yolo(tmp_path / "labels", a=label)
    (labels / "classes.txt").write_text(names, encoding="utf-8")
    with pytest.raises(RegionFileError, match=message):
        read("yolo", labels, folder)


def test_a_date_that_is_none_in_yaml_is_named(folder, tmp_path):
    (tmp_path / "data.yaml").write_text("names: [2001-99-99, dog]")
    with pytest.raises(RegionFileError, match="is no YAML"):
        read("yolo", yolo(tmp_path / "labels", a=""), folder, names=tmp_path / "data.yaml")


@pytest.mark.parametrize("counts", ["o" * 12 + "?", [0.7, 95.9, 0]])
def test_run_lengths_that_cannot_be_are_named(folder, tmp_path, counts):
    write_coco(tmp_path, annotations=[{"segmentation": {"size": [8, 12], "counts": counts}}])
    with pytest.raises(RegionFileError, match=r"run lengths"):
        read("coco", tmp_path / "c.json", folder, kind="mask")


def test_a_name_that_no_file_can_have_is_named(folder, tmp_path):
    write_coco(tmp_path, images=[{"id": 1, "file_name": "\ud800.png", "width": 12, "height": 8}])
    with pytest.raises(RegionFileError, match="file_name"):
        read("coco", tmp_path / "c.json", folder)


def test_a_file_of_voc_that_may_be_of_two_images_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "a.jpg"):
        save(tmp_path / "images" / name, (12, 8))
    labels = voc(tmp_path / "labels", voc_file(voc_object(), filename="old.bmp"))
    with pytest.raises(RegionFileError, match="would both have the label"):
        read("voc", labels, tmp_path / "images")


def test_labels_lie_behind_links_and_have_suffixes_in_capitals(folder, tmp_path):
    yolo(tmp_path / "elsewhere", deep__a="0 0.5 0.5 1 1")
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "labels" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "labels" / "round").symlink_to(tmp_path / "labels")
    (tmp_path / "labels" / "a.TXT").write_text("")
    assert read("yolo", tmp_path, folder)[0].found.keys() == {"a.png", "deep/a.png"}
    (tmp_path / "labels" / "a.txt").write_text("")
    with pytest.raises(RegionFileError, match=r"a\.TXT and .*a\.txt are of one image: delete one"):
        read("yolo", tmp_path, folder)


@pytest.mark.timeout(20)
def test_folders_that_link_to_each_other_are_each_read_once(folder, tmp_path):
    yolo(tmp_path, a="0 0.5 0.5 1 1")
    places = [tmp_path / "labels" / f"{n:02d}" for n in range(12)]
    for place in places:
        place.mkdir(parents=True)
        for other in places:
            (place / f"to-{other.name}").symlink_to(other)
    assert read("yolo", tmp_path, folder)[0].found.keys() == {"a.png"}


def test_labels_that_cannot_be_read_are_told(folder, tmp_path):
    (yolo(tmp_path, deep__a="") / "a.txt").symlink_to("nowhere")
    found, [told] = read("yolo", tmp_path, folder)
    assert found.found.keys() == {"deep/a.png"}
    assert told.startswith(
        f"files or folders of labels are left out: 1, such as {tmp_path}/a.txt: cannot be read: No such"
    )


def test_names_of_classes_are_asked_for(folder, tmp_path):
    for name in ("yolo", "masks"):
        with pytest.raises(RegionFileError, match="no such file; name the file of the class names with --names"):
            read(name, tmp_path, folder)
    (tmp_path / "n.txt").write_text("cat\n\ndog\n")
    with pytest.raises(RegionFileError, match="a class name is not empty"):
        read_names(tmp_path / "n.txt")
    with pytest.raises(RegionFileError, match=r"n\.yaml: wanted a text file with the name of a class in each line"):
        read_names(tmp_path / "n.yaml")
    (tmp_path / "n.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(RegionFileError, match="is not UTF-8"):
        read_names(tmp_path / "n.txt")


def voc(folder: Path, text: str, name: str = "a") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.xml").write_text(text)
    return folder


def voc_object(name="cat", xmin="2", more="", ymax="5"):
    edges = f"<xmin>{xmin}</xmin><ymin>2</ymin><xmax>6</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{edges}</bndbox></object>"


def voc_file(*objects: str, size="<size><width>12</width><height>8</height></size>", filename="a.png") -> str:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def test_voc_is_read_as_its_makers_mean_it(folder, tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc(tmp_path, voc_file(voc_object(more=f"<difficult>1</difficult>{part}"), voc_object("R&amp;D", "1")))
    voc(tmp_path, voc_file(size="", filename="C:\\elsewhere\\a.png"), "deep/a")
    voc(tmp_path, voc_file(filename="gone.png"), "gone")
    voc(tmp_path, "<other/>", "other")
    found, told = read("voc", tmp_path, folder)
    assert found.classes == ("R&D", "cat")
    assert [region.label for region in found.found["a.png"]] == ["cat", "R&D"]
    assert found.found["a.png"][0].geometry == pytest.approx((1 / 12, 1 / 8, 6 / 12, 5 / 8)), "both edges are inside"
    assert found.found["a.png"][1].geometry[0] == 0
    assert found.found["deep/a.png"] == [], "found by the name of its file"
    assert [line.split(", such as")[0] for line in told] == [
        "XML files are no annotations, and left out: 1",
        f"XML files are of images that are not in {folder}, and left out: 1",
        "objects are marked as difficult, and stay: 1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_file(voc_object(xmin="x")), r"a\.xml, object 1: xmin is 'x': wanted a number of pixels"),
        (voc_file(voc_object(), voc_object(ymax="nan")), "object 2: ymax is 'nan'"),
        (voc_file(voc_object(ymax="")), "object 1 has no ymax: add it, or delete the bndbox"),
        (voc_file(voc_object(name=" ")), "object 1 has no name: add it, or delete the object"),
        (voc_file(size="<size><width>x</width><height>8</height></size>"), "width is 'x'"),
        ("<annotation>", "is no XML: no element found"),
        ("", "is no XML"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', r"a document type \(a\).*delete the line"),
        ('<!DOCTYPE a SYSTEM "http://x.y/z"><annotation/>', "a document type"),
    ],
)
def test_what_is_wrong_in_voc_is_named(folder, tmp_path, text, message):
    with pytest.raises(RegionFileError, match=message):
        read("voc", voc(tmp_path, text), folder)


def test_an_image_of_voc_that_is_found_at_the_top_alone_is_told(folder, tmp_path):
    found, told = read("voc", voc(tmp_path, voc_file(voc_object()), "elsewhere/b"), folder)
    assert found.found.keys() == {"a.png"}
    [told] = told
    assert told.startswith(
        f"XML files are read as labels of an image at the top of {folder}, as none of the name lies "
    )
    assert told.endswith("elsewhere/b.xml")


def test_an_image_with_two_files_of_voc_is_named(folder, tmp_path):
    voc(tmp_path, voc_file(voc_object()))
    with pytest.raises(RegionFileError, match=r"a\.xml and .*b\.xml are both of a\.png: delete one"):
        read("voc", voc(tmp_path, voc_file(voc_object()), "b"), folder)


def test_voc_without_files_is_refused(folder, tmp_path):
    with pytest.raises(RegionFileError, match="holds no annotations: wanted XML files"):
        read("voc", tmp_path, folder)


@pytest.mark.parametrize("name", ["yolo", "voc", "masks"])
def test_a_folder_of_labels_that_is_not_there_is_named(folder, tmp_path, name):
    with pytest.raises(RegionFileError, match=r"nowhere: no such folder of labels"):
        read(name, tmp_path / "nowhere", folder)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RegionFileError, match=r"a\.txt: is a file: name the folder of the labels"):
        read(name, tmp_path / "a.txt", folder)


NUMBERS = np.zeros((8, 12), dtype=np.uint8)
NUMBERS[1:4, 2:7] = 2
NUMBERS[6] = 1


def mask_file(folder: Path, picture: Image.Image, name: str = "a.png", **how) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name, **how)
    (folder / "classes.txt").write_text("dog\ncat\n")
    return folder


def palette(numbers) -> Image.Image:
    picture = Image.fromarray(numbers).convert("P")
    picture.putdata(numbers.ravel().tolist())
    picture.putpalette([7, 7, 7, 9, 9, 9, 9, 9, 9])
    return picture


@pytest.mark.parametrize("picture", [Image.fromarray(NUMBERS), palette(NUMBERS)], ids=["grey", "palette"])
def test_masks_are_numbers_of_classes_in_grey_or_a_palette(folder, tmp_path, picture):
    mask_file(tmp_path, picture)
    mask_file(tmp_path, Image.new("L", (5, 7)), "deep/a.png")
    mask_file(tmp_path, Image.new("L", (5, 7)), "gone.png")
    found, told = read("masks", tmp_path, folder)
    assert [region.label for region in found.found["a.png"]] == ["dog", "cat"]
    assert np.array_equal(mask_from_png(found.found["a.png"][1].mask), SQUARE)
    assert found.found["deep/a.png"] == []
    assert found.found.keys() == {"a.png", "deep/a.png"}
    assert told == [".png files are of no image, and left out: 1, such as gone.png"]


def test_masks_of_few_bits_are_numbers_as_well(folder, tmp_path):
    mask_file(tmp_path, palette(NUMBERS), bits=2)
    assert [region.label for region in read("masks", tmp_path, folder)[0].found["a.png"]] == ["dog", "cat"]
    mask_file(tmp_path, Image.fromarray(NUMBERS == 1))
    assert [region.label for region in read("masks", tmp_path, folder)[0].found["a.png"]] == ["dog"]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_numbers_as_well(folder, tmp_path, bits):
    """As OpenCV and libpng write it, and Pillow does not."""
    numbers = NUMBERS % 2**bits
    mask_file(tmp_path, Image.new("L", (12, 8)))
    (tmp_path / "a.png").write_bytes(grey_png(numbers, bits))
    found, _ = read("masks", tmp_path, folder)
    assert [region.label for region in found.found["a.png"]] == ["dog", "cat"][: numbers.max()]
    for region in found.found["a.png"]:
        assert np.array_equal(mask_from_png(region.mask), numbers == 1 + ["dog", "cat"].index(region.label))


def grey_png(numbers, bits: int) -> bytes:
    """A picture whose pixels are grey of 1, 2 or 4 bits."""
    height, width = numbers.shape
    each = (numbers[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(each.reshape(height, -1).astype(bool), axis=1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [b"IHDR" + header, b"IDAT" + content, b"IEND"]
    packed = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_ignored_pixels_count_as_nothing_and_are_told(folder, tmp_path):
    numbers = NUMBERS.copy()
    numbers[0] = 255
    found, told = read("masks", mask_file(tmp_path, Image.fromarray(numbers)), folder)
    assert np.array_equal(mask_from_png(found.found["a.png"][1].mask), SQUARE)
    assert told == [f"masks have pixels of 255 (ignored), which count as nothing: 1, such as {tmp_path}/a.png"]


def test_what_is_wrong_in_masks_is_named(folder, tmp_path):
    with pytest.raises(RegionFileError, match=r"a\.png has pixels of 9, and there are 2 classes: add the names"):
        read("masks", mask_file(tmp_path, Image.fromarray(NUMBERS * 3 // 2 * 3)), folder)
    with pytest.raises(RegionFileError, match=r"a\.png has colours or transparency \(RGB\)"):
        read("masks", mask_file(tmp_path, Image.new("RGB", (12, 8))), folder)
    with pytest.raises(RegionFileError, match=r"a\.png has 16 bits a pixel \(I;16\): save .* grey of 8 bits or fewer"):
        read("masks", mask_file(tmp_path, Image.fromarray(NUMBERS.astype(np.uint16))), folder)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RegionFileError, match=r"a\.png is no PNG that can be read"):
        read("masks", tmp_path, folder)
    found, told = read("masks", mask_file(tmp_path, Image.new("L", (8, 12))), folder)
    assert found.found == {}
    assert "a.png: 8 x 12, on the disk 12 x 8 (turned upright)" in told[0]
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    with pytest.raises(RegionFileError, match="'background' is the number 0, and no class: delete the line"):
        read("masks", tmp_path, folder)


def test_a_later_region_covers_an_earlier_one_in_a_picture(folder, tmp_path):
    everywhere = Region("mask", "dog", mask=mask_to_png(np.ones((8, 12), dtype=bool)))
    square = Region("mask", "cat", mask=mask_to_png(SQUARE))
    written("masks", [labelled("a.png", everywhere, square)], ["dog", "cat"], tmp_path)
    with Image.open(tmp_path / "masks" / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), 1 + SQUARE)


def test_a_mask_that_is_not_of_its_images_size_is_never_written():
    with pytest.raises(RegionFileError, match=r"deep/a\.png: a mask of cat is not of the image's size"):
        labelled("deep/a.png", Region("mask", "cat", mask=mask_to_png(SQUARE)))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(RegionFileError, match="holds no images: name their folder with --images"):
        Images(tmp_path).paths  # noqa: B018
    with pytest.raises(RegionFileError, match="no such folder of images"):
        Images(tmp_path / "nowhere").paths  # noqa: B018


def test_an_image_that_cannot_be_read_has_no_label(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((folder / "a.png").read_bytes()[:20])
    found, told = read("yolo", yolo(tmp_path / "labels", a=""), images)
    assert found.found == {}
    assert "images cannot be read, and their labels are left out: 1" in told[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)
PLACES = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd"),
    "categories": ("id", "name"),
}


def is_read_or_refused(*how, **more) -> None:
    with suppress(RegionFileError):
        read(*how, **more)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([(part, key) for part, keys in PLACES.items() for key in ("", *keys)]), JSON, st.booleans())
def test_any_value_in_coco_is_read_or_refused_in_words(folder, place, value, is_mask):
    part, key = place
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[0] * 6]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    if key:
        document[part][0][key] = value
    else:
        document[part] = value
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "c.json").write_text(json.dumps(document))
        is_read_or_refused("coco", Path(out) / "c.json", folder, kind="mask" if is_mask else "box")


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["counts", "size"]), JSON | st.lists(st.integers(-9, 99)) | st.text("0123456789:;<=>?@PQo"))
def test_any_run_lengths_are_read_or_refused_in_words(folder, key, value):
    with tempfile.TemporaryDirectory() as out:
        write_coco(Path(out), annotations=[{"segmentation": {"size": [8, 12], "counts": [96], key: value}}])
        is_read_or_refused("coco", Path(out) / "c.json", folder, kind="mask")


@settings(deadline=None, max_examples=50)
@given(
    st.text() | st.lists(st.sampled_from(["0", "1", "0.5", "-1", "nan", "1e400", "x", " ", "\n", "²"])).map(" ".join),
    st.text(max_size=20),
)
def test_any_text_of_yolo_is_read_or_refused_in_words(folder, text, names):
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        (Path(out) / "classes.txt").write_text("cat\ndog\n")
        is_read_or_refused("yolo", Path(out), folder)
        is_read_or_refused("yolo", Path(out), folder, kind="mask")
        (Path(out) / "data.yaml").write_bytes(b"names: " + names.encode("utf-8", "surrogatepass"))
        is_read_or_refused("yolo", Path(out), folder)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_damage_to_voc_and_to_masks_is_read_or_refused_in_words(folder, data):
    mask = Region("mask", "cat", mask=mask_to_png(SQUARE))
    with tempfile.TemporaryDirectory() as place:
        for name, region, path in (("voc", BOX, "Annotations/a.xml"), ("masks", mask, "masks/a.png")):
            out = written(name, [labelled("a.png", region)], ["cat"], Path(place) / name)
            content = bytearray((out / path).read_bytes())
            for _ in range(data.draw(st.integers(0, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            (out / path).write_bytes(content[: data.draw(st.integers(0, len(content)))])
            is_read_or_refused(name, labels_in(name, out), folder)
