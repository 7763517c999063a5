"""What a walk over a folder takes for images that a person put there."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from connectors.image_folder.index import MAX_BYTES
from pipeline.pool.notes import unused_lines
from pipeline.pool.table import usable
from tests.images import index_images


@pytest.fixture
def put(tmp_path):
    """Write a different small image under a path."""

    def write(name):
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = len(list((tmp_path / "pool").rglob("*.png")))
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)).save(path, format="PNG")
        return path

    write("a.png")
    return write


def index(folder, known=None, **options):
    told = []
    return index_images(folder, known, tell=told.append, **options), told


def names(table, folder):
    return [os.path.relpath(uri, folder) for uri in usable(table)["uri"]]


@pytest.mark.parametrize(
    "system_folder",
    [
        *("@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"),
        *(".Trash-1000", ".thumbnails", ".ipynb_checkpoints", "node_modules", "env/lib/site-packages"),
    ],
)
def test_folders_that_systems_make_are_passed_over(put, tmp_path, system_folder):
    put(f"{system_folder}/b.png/SYNOPHOTO_THUMB_M.png")
    table, told = index(tmp_path / "pool")
    assert names(table, tmp_path / "pool") == ["a.png"]
    if not system_folder.startswith("."):
        (line,) = told
        assert re.match(r"1 folders? of systems and programs was passed over, such as .*", line)
        assert line.endswith(system_folder)


@pytest.mark.parametrize("near", ["eaDir", "recycle", "trash", "lost and found", "macosx", "node", "rounds", "runs"])
def test_folders_with_names_that_people_give_are_not(put, tmp_path, near):
    put(f"{near}/b.png")
    table, told = index(tmp_path / "pool")
    assert names(table, tmp_path / "pool") == ["a.png", f"{near}/b.png"]
    assert told == []


@pytest.mark.parametrize(
    "marks", [("campaign.json", "campaign.lock"), ("replay.json", "runs"), ("last-campaign.json",), ("pyvenv.cfg",)]
)
def test_own_output_and_environments_are_passed_over(put, tmp_path, marks):
    put("run1/rounds/0001/confusion_matrix.png")
    for name in marks:
        (tmp_path / "pool" / "run1" / name).touch()
    table, (line,) = index(tmp_path / "pool")
    assert names(table, tmp_path / "pool") == ["a.png"]
    assert line.endswith("passed over, such as " + str(tmp_path / "pool" / "run1"))


def test_own_output_is_passed_over_where_the_pool_is_the_folder_of_the_campaign(put, tmp_path):
    put("rounds/0001/confusion_matrix.png")
    put("photos/b.png")
    for name in ("campaign.json", "campaign.lock", "campaign.lock.holders", "pool.parquet", "pool_notes.json"):
        (tmp_path / "pool" / name).touch()
    table, _ = index(tmp_path / "pool")
    assert table["uri"].tolist() == [str(tmp_path / "pool" / name) for name in ("a.png", "photos/b.png")]


def test_what_an_earlier_run_took_for_images_leaves_the_pool(put, tmp_path):
    put("run1/matrix.png")
    earlier, _ = index(tmp_path / "pool")
    for name in ("campaign.json", "campaign.lock"):
        (tmp_path / "pool" / "run1" / name).touch()
    table, _ = index(tmp_path / "pool", earlier)
    assert names(table, tmp_path / "pool") == ["a.png"]
    assert "1 passed over: such as " in unused_lines(table)[0]
    assert unused_lines(table, wrong_only=True) == []


def test_images_of_formats_that_are_not_read_are_named_and_others_counted(put, tmp_path):
    for name in ("1.psd", "2.PSD", "3.svg", "a.txt", "b.xml", "c.txt", "README"):
        (tmp_path / "pool" / name).write_bytes(b"x")
    table, _ = index(tmp_path / "pool")
    others, formats = unused_lines(table)
    assert others.startswith("4 not an image: 2 suffix .txt, 1 ")
    example = f"such as {tmp_path}/pool/1.psd (save them as JPEG or PNG)"
    assert formats == f"3 of a format that is not read: 2 Photoshop, 1 SVG, {example}"
    assert unused_lines(table, wrong_only=True) == [formats]


def test_files_that_go_with_images_do_not_stop_a_run_and_images_that_are_not_read_do(put, tmp_path):
    for number in range(9):
        (tmp_path / "pool" / f"{number}.txt").write_bytes(b"0 0.5 0.5 1 1")
    index(tmp_path / "pool", max_unused=0.5)
    (tmp_path / "pool" / "b.psd").write_bytes(b"8BPS")
    index(tmp_path / "pool", max_unused=0.5)
    (tmp_path / "pool" / "c.psd").write_bytes(b"8BPS")
    with pytest.raises(ValueError, match=r"2 of 3 images cannot be used, more than max_unused = 0.5 allows.*Photoshop"):
        index(tmp_path / "pool", max_unused=0.5)


def test_huge_files_are_refused_by_their_header_and_size(put, tmp_path):
    whole = put("whole.png")
    for name, start, size in (
        ("zeros.png", b"", 20 * 1024**3),
        ("header.png", whole.read_bytes(), 20 * 1024**3),
        ("text.png", b"no image", MAX_BYTES),
    ):
        with (tmp_path / "pool" / name).open("wb") as file:
            file.write(start)
            file.truncate(size)
    table, _ = index(tmp_path / "pool")
    reasons = table.dropna(subset=["set_aside_reason"]).set_index("uri")["set_aside_reason"]
    assert [reasons[str(tmp_path / "pool" / name)] for name in ("header.png", "zeros.png")] == [
        "too large: 21,474,836,480 bytes, more than 2,147,483,648"
    ] * 2
    # Reading two gigabytes to hash them would take seconds.
    assert reasons[str(tmp_path / "pool" / "text.png")].startswith("not an image: the content")
