"""Labels of regions that come from other tools and go to them, and their cells in manifests."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from connectors.image_folder.index import index_pool
from connectors.image_folder.manifest import read_manifest
from connectors.image_folder.source import PoolSource
from connectors.memory import MemoryTracker
from flows.campaign import open_campaign, standing_labels
from flows.cli import app
from flows.config import ConfigError, load_settings
from flows.exchange import export_regions, import_regions
from flows.results import write_labels
from flows.successor import write_successor
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.pool.reasons import PoolError
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.tables import PoolTable
from pipeline.tasks import TASKS
from pipeline.types import Annotation, Answer, Ask, AskFor, Region
from tests.flows.rounds import THEN, close_round

CLASSES = ("cat", "dog")
BOXES, MASKS = AskFor("box", several=True), AskFor("mask", several=True)
HELD = {"detection": ("coco", "yolo", "voc"), "segmentation": ("coco", "masks")}
FILE = """\
name = "places"
task = "{task}"
pool = "{pool}"
classes = ["cat", "dog"]
folder = "campaign"
budget = 20
audit_size = 2
seed_set_size = 3
query_size = 2
strategy = "uherding"
{more}
"""


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve images of 12 x 8 pixels, of equal names in two folders; one lies on its side in its file."""
    folder = tmp_path / "photos"
    draw = np.random.default_rng(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for n in range(6):
            pixels = draw.integers(0, 255, size=(8, 12), dtype=np.uint8)
            if n == 0:
                Image.fromarray(np.rot90(pixels)).save(folder / name / f"{n}.png", exif=exif)
            else:
                Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def test_images_beside_their_labels_are_images_of_all_formats_but_masks(photos):
    rows = {"images": [{"id": 1, "file_name": "one/1.png", "width": 12, "height": 8}], "annotations": []}
    (photos / "one" / "annotations.json").write_text(json.dumps(rows | {"categories": [{"id": 1, "name": "cat"}]}))
    lines, _ = import_regions("coco", photos / "one", images=photos)
    assert lines[0].endswith("12 images, 1 of them with a label; in 1 of these nothing is there")


def test_a_manifest_that_is_written_can_be_read_whatever_images_are_called(photos):
    name = "c\rr.png"
    (photos / "one" / "1.png").rename(photos / name)
    rows = {"images": [{"id": 1, "file_name": name, "width": 12, "height": 8}], "annotations": []}
    (photos / "a.json").write_text(json.dumps(rows | {"categories": [{"id": 1, "name": "cat"}]}))
    import_regions("coco", photos / "a.json", images=photos)
    table = read_manifest(photos / "labels.csv", CLASSES, asks=BOXES).rows
    assert table.set_index("uri")["label"].dropna().to_dict() == {name: "[]"}


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def regions_of(kind: str, uri: str) -> tuple[Region, ...]:
    """What is to be found in an image: the number of its file tells it; in some nothing."""
    n = int(Path(uri).stem)
    labels = {1: [], 2: ["cat"], 3: ["dog"]}.get(n, ["cat", "dog"])
    return tuple(region_of(kind, label, n) for label in labels)


def region_of(kind: str, label: str, n: int) -> Region:
    row = 2 * n % 7
    if kind == "box":
        return Region("box", label, (CLASSES.index(label) / 2, row / 8, 0.5 + CLASSES.index(label) / 2, (row + 1) / 8))
    mask = np.zeros((8, 12), dtype=bool)
    mask[row, 6 * CLASSES.index(label) :][: 3 + n] = True
    mask[row] &= (np.arange(12) >= 6) == (label == "dog")
    return Region("mask", label, mask=mask_to_png(mask))


def campaign(folder: Path, pool: str, task: str, *, more: str = "") -> Path:
    """A campaign that people gave five labels, two of them to the audit set."""
    file = folder / "places.toml"
    file.write_text(FILE.format(task=task, pool=pool, more=more))
    work = open_campaign(file, tracker=MemoryTracker())
    work.keep_pool(PoolTable(index_pool(work.settings.pool_source, None, audit_size=2, seed=0)))
    free = work.pool.table.query("label.isna()").sort_values("split")[["item_id", "uri"]].head(5)
    answers = [
        Answer(Ask(item_id, 0, "seed"), n, n, "labelled", "ann", THEN, Annotation(item_id, given, "ann"))
        for n, (item_id, uri) in enumerate(free.itertuples(index=False))
        for given in [regions_of(TASKS[task].asks.kind, uri)]
    ]
    close_round(work.folder.round(0), answers, work.settings)
    return file


@pytest.mark.parametrize(("name", "task"), [(name, task) for task, names in HELD.items() for name in names])
def test_labels_go_out_to_other_tools_and_come_back(photos, tmp_path, monkeypatch, name, task):
    kind = TASKS[task].asks.kind
    rows = [{"uri": f"one/{n}.png", "label": regions_to_json(regions_of(kind, str(n)))} for n in (1, 2, 3)]
    rows += [{"uri": f"one/{n}.png", "label": None} for n in (0, 4, 5)]
    rows += [{"uri": f"two/{n}.png", "label": None} for n in range(6)]
    pd.DataFrame(rows).to_csv(photos / "pool.csv", index=False)
    file = campaign(tmp_path, "photos/pool.csv", task)
    out = tmp_path / "out"
    exit_code, told = command("labels", file, out, "--format", name)
    assert exit_code == 0, told
    assert told.startswith("Wrote 8 labels with ")
    assert (out / ("JPEGImages" if name == "voc" else "images")).resolve() == photos
    exit_code, told = command("import", name, out, "--images", photos, "--kind", kind, "--out", photos / "back.csv")
    assert exit_code == 0, told
    assert told.splitlines()[0].startswith(f"Wrote {photos}/back.csv: 12 images, 8 of them with a label; in ")
    assert told.splitlines()[1:] == ['classes = ["cat", "dog"]']
    back = read_manifest(photos / "back.csv", CLASSES, asks=TASKS[task].asks).rows
    given = back.dropna(subset=["label"])
    assert len(given) == 8
    assert (given["label"] == "[]").any()
    for uri, label in zip(given["uri"], given["label"], strict=True):
        assert_alike(regions_from_json(label), regions_of(kind, uri))
    index_pool(PoolSource(photos / "back.csv", CLASSES, asks=TASKS[task].asks), None, audit_size=2, seed=0)


def assert_alike(regions, wanted) -> None:
    assert [region.label for region in regions] == [region.label for region in wanted]
    for region, other in zip(regions, wanted, strict=True):
        if region.mask is not None:
            assert np.array_equal(mask_from_png(region.mask), mask_from_png(other.mask))
        else:
            assert region.geometry == pytest.approx(other.geometry)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_of_regions_come_out_as_a_manifest_takes_them(photos, tmp_path, task, suffix):
    file = campaign(tmp_path, "photos", task)
    out = tmp_path / f"labels{suffix}"
    assert write_labels(load_settings(file), out) == 5
    table = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    table[["uri", "label"]].to_csv(tmp_path / "manifest.csv", index=False)
    rows = read_manifest(tmp_path / "manifest.csv", CLASSES, asks=TASKS[task].asks).rows
    for uri, label in zip(rows["uri"], rows["label"], strict=True):
        assert regions_from_json(label) == regions_of(TASKS[task].asks.kind, uri)


def test_labels_of_a_manifest_are_learnt_from_and_renamed(photos, tmp_path):
    rows = [{"uri": f"one/{n}.png", "label": regions_to_json(regions_of("box", str(n)))} for n in (1, 2, 3, 4)]
    text = pd.DataFrame(rows).to_csv(index=False).replace('""cat""', '""kitty""')
    (photos / "pool.csv").write_text(text + "".join(f"two/{n}.png,\n" for n in range(6)))
    file = campaign(tmp_path, "photos/pool.csv", "detection", more='renamed = { kitty = "cat" }')
    work = open_campaign(file, tracker=MemoryTracker())
    assert work.pool.count_given(work.settings.asks) == {"cat": 2, "dog": 2}
    labelled = standing_labels(work.pool, work.ledger, work.settings)
    assert len(labelled) == 4 + 5
    assert {region.label for regions in labelled.regions for region in regions} == {"cat", "dog"}
    file.write_text(
        file.read_text().replace('["cat", "dog"]', '["dog", "owl"]').replace('renamed = { kitty = "cat" }', "")
    )
    with pytest.raises(Exception, match=r"of 'cat'.*write \[renamed\] \"cat\" = "):
        open_campaign(file, tracker=MemoryTracker())
    file.write_text(file.read_text() + 'renamed = { cat = "owl", kitty = "owl" }\n')
    work = open_campaign(file, tracker=MemoryTracker())
    assert set(work.pool.count_given(work.settings.asks)) == {"dog", "owl"}
    write_labels(work.settings, tmp_path / "labels.csv")
    assert '""owl""' in (tmp_path / "labels.csv").read_text()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_another_campaign_begins_with_all_regions(photos, tmp_path, task):
    file = campaign(tmp_path, "photos", task)
    new = tmp_path / "places-two.toml"
    assert "5 labels of 12 images" in write_successor(new, file)[0]
    settings = load_settings(new)
    rows = read_manifest(settings.pool, CLASSES, asks=settings.asks).rows.dropna(subset=["label"])
    assert len(rows) == 5
    for uri, label in zip(rows["uri"], rows["label"], strict=True):
        assert regions_from_json(label) == regions_of(TASKS[task].asks.kind, uri)


BOX = '{"kind": "box", "label": "cat", "geometry": [0, 0, 0.5, 1]}'
MASK = json.loads(regions_to_json([Region("mask", "cat", mask=mask_to_png(np.eye(8, 12, dtype=bool)))]))[0]


def manifest(folder: Path, cell: str) -> Path:
    pd.DataFrame([{"uri": "one/1.png", "label": None}, {"uri": "one/2.png", "label": cell}]).to_csv(
        folder / "m.csv", index=False
    )
    return folder / "m.csv"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "cat",
            r"row 2 \(uri 'one/2.png', label 'cat'\) has a label that is no JSON.*: write \[\] where nothing is there",
        ),
        ("none", r"no JSON.*leave the field empty where there is no label"),
        ("[", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "is no list of regions"),
        ("[3]", r"region 1 is 3: the campaign's task asks for \{\"kind\": \"box\""),
        (f"[{BOX}, {BOX.replace('box', 'mask')}]", r"region 2 is .*: the campaign's task asks for \{\"kind\": \"box\""),
        (
            f"[{BOX.replace('cat', 'cart')}]",
            "region 1 is of the label 'cart', which is not one of the classes cat, dog: did you mean 'cat'",
        ),
        (f"[{BOX.replace('0.5', '1.5')}]", r"region 1 is wrong \(geometry must be fractions in \[0, 1\].*wanted \{"),
        (f"[{BOX.replace('0.5', 'NaN')}]", "geometry must be fractions"),
        (f"[{BOX.replace('0.5', '0')}]", "a box has a left, upper, right and lower edge"),
        (f"[{BOX.replace('0.5', 'true')}]", "region 1 has the geometry"),
        (f'[{BOX[:-1]}, "score": 0.5}}]', "region 1 has a score, as guesses have: take the score away"),
        (f'[{BOX[:-1]}, "colour": 1}}]', "region 1 has colour, geometry, kind, label: wanted geometry, kind, label"),
    ],
)
def test_regions_of_a_manifest_are_read_strictly(photos, cell, message):
    with pytest.raises(PoolError, match=message):
        read_manifest(manifest(photos, cell), CLASSES, asks=BOXES)


def test_regions_of_a_manifest_come_in_one_form(photos):
    cell = f" [ {BOX.replace('cat', 'café')} ,\n{BOX}] "
    rows = read_manifest(manifest(photos, cell), ["cat", "café"], asks=BOXES).rows
    assert [region.label for region in regions_from_json(rows["label"].iloc[1])] == ["café", "cat"]
    assert regions_to_json(regions_from_json(rows["label"].iloc[1])) == rows["label"].iloc[1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            mask_to_png(np.ones((12, 8), dtype=bool)),
            r"2\.png has a label whose region 1 \('cat'\) has 8 x 12 pixels, and its image 12 x 8: draw",
        ),
        (mask_to_png(np.zeros((8, 12), dtype=bool)), "has no pixel: take the region away"),
        (mask_to_png(np.eye(8, 12, dtype=bool))[:60], r"cannot be read \(a mask"),
    ],
)
def test_masks_of_a_manifest_fit_their_images(photos, mask, message):
    cell = regions_to_json([Region("mask", "cat", mask=mask)])
    with pytest.raises(PoolError, match=message):
        index_pool(PoolSource(manifest(photos, cell), CLASSES, asks=MASKS), None, audit_size=0, seed=0)


def test_a_mask_that_is_no_png_is_refused_with_its_row(photos):
    with pytest.raises(PoolError, match=r"row 2 .*a mask is a PNG of 1 bit a pixel with a palette"):
        read_manifest(manifest(photos, json.dumps([MASK | {"mask": "aaaa"}])), CLASSES, asks=MASKS)
    with pytest.raises(PoolError, match=r"row 2 .*region 1 is wrong"):
        read_manifest(manifest(photos, json.dumps([MASK | {"mask": "%"}])), CLASSES, asks=MASKS)


def test_labels_of_many_masks_are_longer_than_other_fields(photos):
    noise = np.random.default_rng(0).random((8, 12)) < 0.5
    cell = regions_to_json([Region("mask", "cat", mask=mask_to_png(noise))] * 1_000)
    assert len(cell) > 131_072
    assert read_manifest(manifest(photos, cell), CLASSES, asks=MASKS).rows["label"].iloc[1] == cell
    with pytest.raises(PoolError, match="a field is longer than 131,072 characters"):
        read_manifest(manifest(photos, cell), CLASSES)


def test_copies_of_an_image_with_other_regions_are_set_aside_in_few_words(photos):
    (photos / "copy.png").write_bytes((photos / "one" / "1.png").read_bytes())
    labels = [regions_to_json([region_of("mask", label, 1)]) for label in CLASSES]
    pd.DataFrame({"uri": ["one/1.png", "copy.png", "one/2.png"], "label": [*labels, None]}).to_csv(
        photos / "m.csv", index=False
    )
    table = index_pool(PoolSource(photos / "m.csv", CLASSES, asks=MASKS), None, audit_size=0, seed=0)
    reason = table.dropna(subset=["set_aside_reason"])["set_aside_reason"].iloc[0]
    assert reason == "labelled more than one way: 2 lists of regions"


def test_an_image_all_of_whose_regions_are_left_out_has_no_label(photos, tmp_path):
    (photos / "classes.txt").write_text("cat\n")
    (photos / "one" / "1.txt").write_text("0 0.5 0.5 0 0\n")
    (photos / "one" / "2.txt").write_text("0 0.5 0.5 0 0\n0 0.5 0.5 1 1\n")
    (photos / "one" / "3.txt").write_text("")
    lines, classes = import_regions("yolo", photos)
    assert classes == ("cat",)
    assert lines[0] == f"wrote {photos}/labels.csv: 12 images, 2 of them with a label; in 1 of these nothing is there"
    assert lines[2] == "images have no label, as all their regions were left out: 1, such as one/1.png"
    table = pd.read_csv(photos / "labels.csv").set_index("uri")["label"]
    assert table["one/3.png"] == "[]"
    assert table.isna().sum() == 10


def test_names_that_a_spreadsheet_takes_for_formulas_are_found(photos, tmp_path):
    (photos / "=1+1.png").write_bytes((photos / "one" / "1.png").read_bytes())
    (photos / "classes.txt").write_text("cat\ndog")
    (photos / "=1+1.txt").write_text("")
    import_regions("yolo", photos)
    assert "./=1+1.png,[]" in (photos / "labels.csv").read_text()
    table = index_pool(PoolSource(photos / "labels.csv", CLASSES, asks=BOXES), None, audit_size=0, seed=0)
    assert table.dropna(subset=["label"])["uri"].tolist() == [str(photos / "=1+1.png")]


def test_what_cannot_be_imported_is_told(photos, tmp_path):
    (photos / "classes.txt").write_text("cat\n")
    cases = [
        (("coca", photos), "unknown format 'coca', did you mean 'coco'?"),
        (("voc", photos, "--kind", "mask"), "the format voc is read as box, got 'mask'"),
        (("yolo", photos), "has a label for none of the images in"),
        (("coco", photos, "--names", photos / "classes.txt"), "name their classes: leave --names away"),
        (("masks", photos, "--names", "data.yaml"), "no such file; name the file of the class names"),
        (("yolo", photos, "--out", photos / "x.txt"), "wanted a .csv or .parquet file to write"),
        (("yolo", photos, "--out", tmp_path / "elsewhere" / "x.csv"), "the images of a manifest lie in its own folder"),
        (("yolo", tmp_path / "nowhere"), "nowhere: no such folder of labels"),
        (("coco", tmp_path / "nowhere.json"), "nowhere.json: cannot be read: No such file"),
    ]
    for arguments, message in cases:
        exit_code, told = command("import", *arguments)
        assert exit_code == 2
        assert message in told
        assert "unexpected" not in told
    (photos / "labels.csv").write_text("")
    assert "labels.csv exists already" in command("import", "yolo", photos)[1]


def test_what_cannot_be_exported_is_told(photos, tmp_path, monkeypatch):
    file = campaign(tmp_path, "photos", "segmentation")
    settings = load_settings(file)
    with pytest.raises(
        ConfigError, match="the format yolo holds no labels of task = 'segmentation': take coco or masks"
    ):
        export_regions(settings, tmp_path / "out", "yolo")
    with pytest.raises(ConfigError, match=r"wanted a folder to write, got .*labels\.csv"):
        export_regions(settings, tmp_path / "labels.csv", "coco")
    with pytest.raises(ConfigError, match="exists already"):
        export_regions(settings, tmp_path / "photos", "coco")
    with pytest.raises(ConfigError, match="lies in the pool"):
        export_regions(settings, tmp_path / "photos" / "out", "masks")
    file.write_text(file.read_text().replace('"segmentation"', '"classification"'))
    with pytest.raises(
        ConfigError, match="the format coco holds no labels of task = 'classification': leave --format away"
    ):
        export_regions(load_settings(file), tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing_behind(photos, tmp_path, monkeypatch):
    (photos / "one" / "1.jpg").write_bytes((photos / "one" / "2.png").read_bytes()[:-1] + b"\x82")
    Image.new("L", (12, 8)).save(photos / "one" / "1.jpg")
    rows = [{"uri": f"one/1{suffix}", "label": "[]"} for suffix in (".png", ".jpg")]
    rows += [{"uri": f"two/{n}.png", "label": None} for n in range(6)]
    pd.DataFrame(rows).to_csv(photos / "pool.csv", index=False)
    file = campaign(tmp_path, "photos/pool.csv", "detection")
    before = sorted(tmp_path.iterdir())
    exit_code, told = command("labels", file, tmp_path / "out", "--format", "voc")
    assert exit_code == 2
    assert "one/1.jpg and one/1.png would both have the label one/1.xml: rename one of the two" in told
    assert sorted(tmp_path.iterdir()) == before
