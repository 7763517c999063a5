import functools
import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile

from connectors.image_folder.index import reason_to_set_aside
from connectors.images.decode import MAX_PIXELS
from connectors.images.pixels import load_images, stream_images
from connectors.images.reading import Reading
from pipeline.pool.notes import unused_lines
from pipeline.pool.reasons import CHANGED, PoolError
from pipeline.pool.table import COLUMNS, set_aside_counts, usable
from pipeline.types import AskFor
from tests.images import index_images, load_image

CLASSES = ("cat", "dog", "NA")


def picture(seed, *, width=12, height=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(folder, names):
    """Write a different small image under each name."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    return folder


def index(source, known=None, **options):
    return index_images(source, known, classes=CLASSES, **options)


def row_of(table, path):
    """The one row of a path, missing values as None."""
    rows = table[table["uri"] == str(path)].astype(object)
    (row,) = rows.where(rows.notna(), None).to_dict("records")
    return row


def reason_of(table, path):
    return row_of(table, path)["set_aside_reason"]


def png_of_size(width, height, data=b""):
    """A colour PNG whose header claims any size."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "images", ["b.png", "a.jpg", "deep/er/c.PNG", "d.bmp"])


class TestTable:
    def test_has_a_row_for_each_image_sorted_by_path(self, folder):
        table = index(folder)
        assert table["uri"].tolist() == [str(folder / name) for name in ("a.jpg", "b.png", "d.bmp", "deep/er/c.PNG")]
        row = row_of(table, folder / "b.png")
        status = (folder / "b.png").stat()
        assert row == {
            "item_id": hashlib.blake2b((folder / "b.png").read_bytes(), digest_size=16).hexdigest(),
            "uri": str(folder / "b.png"),
            "width": 12,
            "height": 8,
            "split": "pool",
            "set_aside_reason": None,
            "size_bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "label": None,
            "group": None,
            "pages": None,
            "pixels": None,
        }

    def test_is_the_same_after_a_parquet_file_and_after_indexing_again(self, folder, tmp_path):
        (folder / "broken.png").write_bytes(b"no")
        table = index(folder, audit_size=1)
        table.to_parquet(tmp_path / "pool.parquet", index=False)
        read = pd.read_parquet(tmp_path / "pool.parquet")
        assert read.equals(table)
        assert index(folder, read, audit_size=1).equals(read)
        assert dict(table.dtypes.astype(str)) == COLUMNS

    def test_gives_absolute_paths_for_a_relative_folder(self, folder, monkeypatch):
        monkeypatch.chdir(folder / "deep")
        assert index(Path("../deep")).equals(index(folder / "deep"))

    def test_shows_one_row_for_copies_under_the_first_path(self, folder):
        (folder / "z.jpg").write_bytes((folder / "a.jpg").read_bytes())
        (folder / "0.jpg").write_bytes((folder / "a.jpg").read_bytes())
        table = index(folder)
        assert len(table) == 4
        assert row_of(table, folder / "0.jpg")["set_aside_reason"] is None

    def test_counts_the_kinds_of_reasons(self, folder):
        for name in ("1.txt", "2.csv", "3.png"):
            (folder / name).write_bytes(b"no image")
        (folder / "4.png").touch()
        assert set_aside_counts(index(folder)) == {"not an image": 3, "empty": 1}
        assert len(usable(index(folder))) == 4

    def test_passes_over_hidden_files(self, folder):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.jpg"):
            (folder / name).write_bytes(b"no image")
        fill(folder, [".thumbnails/a.png"])
        assert len(index(folder)) == 4

    def test_reports_progress_to_the_end(self, folder):
        calls = []
        table = index(folder, on_progress=lambda done, total: calls.append((done, total)))
        assert calls[0] == (0, 4)
        assert calls[-1] == (4, 4)
        calls.clear()
        index(folder, table, on_progress=lambda done, total: calls.append((done, total)))
        assert calls == [(4, 4)]

    def test_gives_width_and_height_as_people_see_them(self, tmp_path):
        save_rotated(picture(0, width=20, height=10), tmp_path / "a.jpg", 6)
        row = row_of(index(tmp_path), tmp_path / "a.jpg")
        assert (row["width"], row["height"]) == (10, 20)


def test_a_sound_pool_has_nothing_set_aside(tmp_path):
    fill(tmp_path, ["a.png", "b.png"])
    assert set_aside_counts(index(tmp_path)) == {}


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("x.png", b"", "empty: the file has no content"),
            ("x.jpg", b"<html>not found</html>", "not an image: the content is of no known image format"),
            ("x.txt", b"hello", "not an image: suffix .txt"),
            ("x.heic", b"hello", "not an image: the content is of no known image format"),
            ("README", b"hello", "not an image: no suffix"),
            ("x.png", png_of_size(200_000, 200_000), f"too large: 200000 x 200000 pixels, more than {MAX_PIXELS}"),
            (
                "x.png",
                png_of_size(24_000, 24_000),
                "too large: 24000 x 24000 pixels take 2.9 GB of memory to decode, and decode_memory_gb = 2 allows less",
            ),
            ("x.png", png_of_size(10, 10, b"no zlib stream"), "damaged: "),
            ("x.eps", b"%!PS-Adobe-3.0 EPSF-3.0", "not an image: suffix .eps"),
            ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0", "not an image: the content is of no known image format"),
        ],
    )
    def test_are_set_aside_with_the_reason(self, folder, name, content, reason):
        (folder / name).write_bytes(content)
        row = row_of(index(folder), folder / name)
        assert row["set_aside_reason"].startswith(reason)
        assert row["item_id"] is row["width"] is row["height"] is row["label"] is None

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "ppm", "webp", "avif", "jp2"])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_are_found_when_cut_short_in_any_format(self, folder, suffix, share):
        path = folder / f"whole.{suffix}"
        picture(99, width=64, height=64).save(path)
        content = path.read_bytes()
        cut = folder / f"cut.{suffix}"
        cut.write_bytes(content[: int(share * len(content))])
        table = index(folder)
        assert reason_of(table, path) is None
        assert reason_of(table, cut).startswith(("damaged: ", "not an image: "))

    def test_each_have_a_row_even_with_the_same_content(self, folder):
        for name in ("x.png", "y.png"):
            (folder / name).touch()
        assert set_aside_counts(index(folder)) == {"empty": 2}

    def test_are_usable_once_repaired(self, folder):
        path = folder / "x.png"
        path.write_bytes(b"half")
        table = index(folder)
        picture(50).save(path)
        again = index(folder, table)
        assert reason_of(again, path) is None
        assert len(again) == len(table) == 5

    def test_leave_the_table_when_they_are_deleted(self, folder):
        (folder / "x.png").write_bytes(b"half")
        table = index(folder)
        (folder / "x.png").unlink()
        assert index(folder, table).equals(table[table["set_aside_reason"].isna()].reset_index(drop=True))

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
    def test_too_large_to_decode_cost_no_memory(self, tmp_path):
        fill(tmp_path, ["a.png"])
        rows = zlib.compress(bytes(8_000 * (1 + 3 * 11_000)), 1)
        (tmp_path / "large.png").write_bytes(png_of_size(11_000, 8_000, rows))
        (tmp_path / "bomb.png").write_bytes(png_of_size(24_000, 24_000, rows))
        del rows
        code = (
            "import re, sys; from pathlib import Path; from connectors.image_folder import index as pools\n"
            # ru_maxrss would count the memory of the process that started this one
            "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
            "def index(name):\n"
            "    before, folder = peak(), Path(sys.argv[1])\n"
            "    (folder / name).rename(folder / 'a' / name)\n"
            "    pools.index_pool(pools.PoolSource(folder / 'a', []), None, audit_size=0, seed=0)\n"
            "    return (peak() - before) // 1024\n"
            "print(index('a.png'), index('bomb.png'), index('large.png'))"
        )
        (tmp_path / "a").mkdir()
        out = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
        _, bomb, large = map(int, out.stdout.split())
        assert not out.stderr
        assert bomb < 50 < 150 < large, "MiB; the image just small enough is decoded and shows that this can fail"

    def test_change_no_setting_of_pillow_and_of_warnings(self, folder):
        (folder / "x.png").write_bytes(png_of_size(24_000, 24_000))
        before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
        index(folder)
        assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))

    def test_that_may_not_be_read_are_tried_again(self, folder):
        table = index(folder)
        new, touched, inside = folder / "new.png", folder / "b.png", folder / "deep" / "er" / "c.PNG"
        picture(50).save(new)
        os.utime(touched, ns=(0, 0))
        for locked in (new, touched, folder / "deep"):
            locked.chmod(0)
        if os.access(new, os.R_OK):
            pytest.skip("nothing is forbidden to this user")
        denied = index(folder, table)
        for path in (new, touched, inside, folder / "deep"):
            assert reason_of(denied, path) == "cannot be read: Permission denied"
        for locked in (new, touched, folder / "deep"):
            locked.chmod(0o755)
        again = index(folder, denied)
        assert again["set_aside_reason"].isna().all()
        assert set(again["item_id"]) > set(table["item_id"])

    def test_that_are_no_files_are_set_aside(self, folder):
        os.mkfifo(folder / "pipe.png")
        (folder / "dangling.png").symlink_to("nowhere.png")
        (folder / "own tail.png").symlink_to("own tail.png")
        table = index(folder)
        assert reason_of(table, folder / "pipe.png") == "not an image: not a regular file"
        assert reason_of(table, folder / "dangling.png") == "cannot be read: No such file or directory"
        assert reason_of(table, folder / "own tail.png") == "cannot be read: Too many levels of symbolic links"

    def test_with_a_name_that_is_not_utf8_are_set_aside(self, folder, tmp_path):
        picture(50).save(folder / "x.png")
        (folder / "x.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
        table = index(folder)
        assert reason_of(table, f"{folder}/caf\\xe9.png") == "cannot be read: the file name is not UTF-8"
        table.to_parquet(tmp_path / "pool.parquet")


class TestLinks:
    def test_in_a_loop_are_entered_once(self, folder):
        table = index(folder)
        (folder / "deep" / "up").symlink_to(folder)
        (folder / "deep" / "self").symlink_to(".")
        assert index(folder).equals(table)

    @pytest.fixture
    def linked(self, folder, tmp_path):
        """The folder with links to ten images that do not lie in it."""
        elsewhere = fill(tmp_path / "elsewhere", [f"{n}.png" for n in range(9)])
        (folder / "link").symlink_to(elsewhere)
        (folder / "one.png").symlink_to(elsewhere / "8.png")
        return folder

    def test_lead_to_images_elsewhere_where_they_may(self, linked):
        table = index(linked, follow_links=True)
        assert row_of(table, linked / "link" / "7.png")["set_aside_reason"] is None
        assert len(usable(table)) == 11, "two of the nine are copies"

    def test_do_not_leave_the_pool_unless_they_may(self, linked, tmp_path):
        table = index(linked)
        assert len(usable(table)) == 4
        elsewhere = tmp_path / "elsewhere"
        assert reason_of(table, linked / "link") == f"linked from outside the pool: it leads to {elsewhere}"
        assert reason_of(table, linked / "one.png") == f"linked from outside the pool: it leads to {elsewhere}/8.png"
        assert "follow_links = true" in "".join(unused_lines(table))

    def test_take_their_images_out_of_the_pool_when_they_may_no_longer_be_followed(self, linked):
        followed = index(linked, follow_links=True)
        table = index(linked, followed)
        assert len(usable(table)) == 4
        assert reason_of(table, linked / "link" / "7.png").startswith("passed over: ")
        again = index(linked, table, follow_links=True)
        assert set(usable(again)["item_id"]) == set(usable(followed)["item_id"])

    def test_do_not_leave_the_pool_of_a_manifest_either(self, linked):
        (linked / "m.csv").write_text("uri\nb.png\nlink/7.png\none.png\nlink/../a.jpg\n")
        table = index(linked / "m.csv")
        assert set_aside_counts(table) == {"linked from outside the pool": 2}
        assert set_aside_counts(index(linked / "m.csv", table, follow_links=True)) == {}

    def test_within_the_pool_are_fine(self, folder):
        (folder / "again").symlink_to(folder / "deep")
        (folder / "z.png").symlink_to("b.png")
        (folder / "m.csv").write_text("uri\nagain/er/c.PNG\nz.png\n")
        assert set_aside_counts(index(folder / "m.csv")) == {}

    def test_may_be_the_pool_itself(self, folder, tmp_path):
        (tmp_path / "pool").symlink_to(folder)
        assert len(usable(index(tmp_path / "pool"))) == 4
        (folder / "m.csv").write_text(f"uri\nb.png\n{folder}/a.jpg\n")
        table = index(tmp_path / "pool" / "m.csv")
        assert table["uri"].tolist() == [str(tmp_path / "pool" / name) for name in ("a.jpg", "b.png")]

    def test_give_way_to_the_real_path(self, folder):
        (folder / "a link").symlink_to("deep")
        assert str(folder / "deep/er/c.PNG") in index(folder)["uri"].tolist()


class TestIndexingAgain:
    def test_only_spares_reading_until_people_are_asked(self, folder, tmp_path):
        table = index(folder, audit_size=2)
        other = fill(tmp_path / "other", ["x.png"])
        (folder / "b.png").rename(other / "b.png")
        again = index(folder, table, audit_size=1, was_asked=False)
        assert again["uri"].tolist() == sorted(set(table["uri"]) - {str(folder / "b.png")})
        assert (again["split"] == "audit").sum() == 1
        assert again.equals(index(folder, audit_size=1))

    def test_only_adds(self, folder):
        table = index(folder)
        picture(50).save(folder / "new.png")
        again = index(folder, table)
        assert again[again["uri"] != str(folder / "new.png")].reset_index(drop=True).equals(table)
        assert len(again) == 5

    @pytest.mark.parametrize("nanoseconds", [0, 1, 1_700_000_000_123_456_789])
    def test_reads_a_file_again_exactly_when_its_time_changed(self, folder, nanoseconds):
        (folder / "dangling.png").symlink_to("nowhere.png")
        path = folder / "b.png"
        os.utime(path, ns=(0, nanoseconds))
        table = index(folder)
        assert row_of(table, path)["modified_ns"] == nanoseconds
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(0, nanoseconds))
        assert index(folder, table).equals(table)
        os.utime(path, ns=(0, nanoseconds + 1))
        assert set_aside_counts(index(folder, table)) == {CHANGED: 1, "not an image": 1, "cannot be read": 1}

    def test_keeps_the_item_of_a_touched_file(self, folder):
        table = index(folder)
        os.utime(folder / "b.png", ns=(1, 1))
        again = index(folder, table)
        assert row_of(again, folder / "b.png") == row_of(table, folder / "b.png") | {"modified_ns": 1}

    def test_follows_a_renamed_file(self, folder):
        table = index(folder, audit_size=3)
        (folder / "deep").rename(folder / "0")
        (folder / "b.png").rename(folder / "y.png")
        again = index(folder, table, audit_size=3)
        assert set(again["uri"]) == {str(folder / name) for name in ("0/er/c.PNG", "a.jpg", "d.bmp", "y.png")}
        key = ["item_id", "split", "width", "height", "set_aside_reason"]
        old, new = (t[key].sort_values("item_id", ignore_index=True) for t in (table, again))
        assert old.equals(new)

    def test_stays_with_the_earlier_path_while_it_is_there(self, folder):
        table = index(folder)
        (folder / "0.png").write_bytes((folder / "b.png").read_bytes())
        assert index(folder, table).equals(table)
        (folder / "b.png").unlink()
        assert str(folder / "0.png") in index(folder, table)["uri"].tolist()

    def test_follows_two_files_that_change_places(self, folder):
        table = index(folder)
        (folder / "a.jpg").rename(folder / "x.jpg")
        (folder / "b.png").rename(folder / "a.jpg")
        (folder / "x.jpg").rename(folder / "b.png")
        again = index(folder, table)
        assert row_of(again, folder / "a.jpg")["item_id"] == row_of(table, folder / "b.png")["item_id"]
        assert row_of(again, folder / "b.png")["item_id"] == row_of(table, folder / "a.jpg")["item_id"]
        assert len(again) == 4

    def test_sets_a_vanished_file_aside_until_it_is_back(self, folder):
        table = index(folder, audit_size=3)
        content = (folder / "b.png").read_bytes()
        (folder / "b.png").unlink()
        gone = index(folder, table, audit_size=3)
        assert reason_of(gone, folder / "b.png") == "cannot be read: No such file or directory"
        assert len(gone) == 4
        assert index(folder, gone, audit_size=3).equals(gone)
        (folder / "b.png").write_bytes(content)
        back = index(folder, gone, audit_size=3)
        assert back.drop(columns="modified_ns").equals(table.drop(columns="modified_ns"))

    def test_makes_a_new_item_of_changed_content_and_keeps_the_old_row(self, folder):
        table = index(folder, audit_size=3)
        path = folder / "b.png"
        old_id, old_content = row_of(table, path)["item_id"], path.read_bytes()
        picture(50).save(path)
        changed = index(folder, table, audit_size=3)
        path.write_bytes(old_content)
        back = index(folder, changed, audit_size=3)
        for again, old_reason, new_reason in ((changed, CHANGED, None), (back, None, CHANGED)):
            rows = again[again["uri"] == str(path)].set_index("item_id").astype(object)
            rows = rows.where(rows.notna(), None)
            assert rows.loc[old_id, "set_aside_reason"] == old_reason
            assert rows.loc[old_id, "split"] == row_of(table, path)["split"]
            assert rows.drop(old_id)["set_aside_reason"].item() == new_reason
            assert rows.drop(old_id)["split"].item() == "pool"

    def test_sets_an_item_aside_whose_file_broke(self, folder):
        table = index(folder)
        path = folder / "b.png"
        path.write_bytes(path.read_bytes()[:-40])
        again = index(folder, table)
        reasons = again.loc[again["uri"] == str(path), "set_aside_reason"].tolist()
        assert reasons[0] == "file changed since it was indexed"
        assert reasons[1].startswith("damaged: ")

    def test_decodes_an_item_that_was_set_aside_before_it_is_used_again(self, folder):
        table = index(folder)
        path, less = folder / "b.png", Reading(memory_gb=1e-6)
        is_it = table["uri"] == str(path)
        table.loc[is_it, "set_aside_reason"] = why = reason_to_set_aside(str(path), less)
        table.loc[is_it, ["size_bytes", "modified_ns"]] = pd.NA
        assert reason_of(index(folder, table, reading=less), path) == why
        assert reason_of(index(folder, table), path) is None

    def test_keeps_items_that_lie_elsewhere(self, folder, tmp_path):
        table = index(folder)
        other = tmp_path / "other"
        other.mkdir()
        picture(50).save(other / "x.png")
        both = index(other, table)
        assert both[both["uri"] != str(other / "x.png")].reset_index(drop=True).equals(table)

    def test_refuses_a_folder_that_became_empty(self, folder, tmp_path):
        table = index(folder)
        folder.rename(tmp_path / "not mounted")
        folder.mkdir()
        with pytest.raises(PoolError, match="is empty: wanted at least one image"):
            index(folder, table)


class TestAudit:
    def test_is_fixed_when_the_first_table_is_made(self, folder):
        table = index(folder, audit_size=2)
        assert table["split"].value_counts().to_dict() == {"audit": 2, "pool": 2}
        for seed in range(50, 60):
            picture(seed).save(folder / f"{seed}.png")
        again = index(folder, table, audit_size=5, seed=9)
        assert set(again.loc[again["split"] == "audit", "item_id"]) == set(
            table.loc[table["split"] == "audit", "item_id"]
        )

    def test_does_not_depend_on_names_order_and_place(self, tmp_path):
        for place in ("one", "two"):
            (tmp_path / place).mkdir()
        for seed in range(20):
            picture(seed).save(tmp_path / "one" / f"{seed}.png")
        for seed in reversed(range(20)):
            picture(seed).save(tmp_path / "two" / f"{97 * seed % 20}.png")
        splits = [
            index(tmp_path / place, audit_size=5, seed=3).set_index("item_id")["split"].sort_index()
            for place in ("one", "two")
        ]
        assert splits[0].equals(splits[1])

    def test_is_another_with_another_seed_and_reaches_every_image(self, folder):
        drawn = [frozenset(t.loc[t["split"] == "audit", "item_id"]) for t in _tables(folder, n_seeds=20)]
        assert len(frozenset.union(*drawn)) == 4
        assert len(set(drawn)) > 1

    def test_holds_no_broken_file(self, folder):
        for name in range(10):
            (folder / f"{name}.png").write_bytes(b"no")
        table = index(folder, audit_size=3)
        assert table.loc[table["split"] == "audit", "set_aside_reason"].isna().all()

    @pytest.mark.parametrize("audit_size", [4, 100])
    def test_must_leave_something_for_the_pool(self, folder, audit_size):
        with pytest.raises(PoolError, match=f"an audit set of {audit_size} leaves nothing for the pool: 4 images"):
            index(folder, audit_size=audit_size)


def _tables(folder, *, n_seeds):
    return [index(folder, audit_size=1, seed=seed) for seed in range(n_seeds)]


class TestSource:
    def test_must_exist(self, tmp_path):
        with pytest.raises(PoolError, match="nowhere, which does not exist"):
            index(tmp_path / "nowhere")

    def test_must_not_be_a_file_of_another_kind(self, tmp_path):
        (tmp_path / "images.zip").touch()
        with pytest.raises(
            PoolError, match=r"wanted a folder of images or a manifest \(\.csv, \.parquet\), got .*zip$"
        ):
            index(tmp_path / "images.zip")

    def test_must_hold_something(self, tmp_path):
        with pytest.raises(PoolError, match="is empty: wanted at least one image"):
            index(tmp_path)

    def test_must_hold_a_usable_image(self, tmp_path):
        (tmp_path / "a.txt").touch()
        (tmp_path / "b.png").touch()
        (tmp_path / "c.png").touch()
        with pytest.raises(
            PoolError, match=r"has no usable image: 2 empty: such as .*b\.png: .*; 1 not an image: .*a\.txt"
        ):
            index(tmp_path)


class TestManifest:
    def write(self, folder, text, name="manifest.csv"):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_lists_images_relative_to_itself_with_labels(self, folder, tmp_path, suffix):
        rows = pd.DataFrame(
            {
                "uri": ["b.png", "deep/er/../er/c.PNG", str(folder / "a.jpg"), "missing.png"],
                "label": ["cat", None, "NA", "dog"],
                "other": range(4),
            },
            index=[5, 6, 7, 8],
        )
        path = folder / f"manifest{suffix}"
        rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
        table = index(path)
        assert row_of(table, folder / "b.png")["label"] == "cat"
        assert row_of(table, folder / "deep/er/c.PNG")["label"] is None
        assert row_of(table, folder / "a.jpg")["label"] == "NA"
        assert reason_of(table, folder / "missing.png") == "cannot be read: No such file or directory"
        assert len(table) == 4
        assert index(path, table).equals(table)

    def test_may_name_files_of_any_suffix(self, folder):
        (folder / "b.png").rename(folder / "b")
        table = index(self.write(folder, "uri\nb\na.jpg\n"))
        assert reason_of(table, folder / "b") is None
        assert reason_of(index(folder, table), folder / "b") is None

    def test_may_still_name_a_file_that_vanished(self, folder):
        path = self.write(folder, "uri\nb.png\na.jpg\n")
        table = index(path)
        (folder / "b.png").unlink()
        again = index(path, table)
        assert again["item_id"].equals(table["item_id"])
        assert reason_of(again, folder / "b.png") == "cannot be read: No such file or directory"

    def test_reads_a_byte_order_mark_and_numbers_as_text(self, folder):
        path = self.write(folder, "\ufeffuri,label\nb.png,1\na.jpg,0\n")
        table = index_images(path, classes=["0", "1"])
        assert table["label"].tolist() == ["0", "1"]

    def test_keeps_labelled_images_out_of_the_audit_set(self, folder):
        path = self.write(folder, "uri,label\nb.png,cat\na.jpg,\nd.bmp,\ndeep/er/c.PNG,\n")
        tables = [index(path, audit_size=2, seed=seed) for seed in range(10)]
        assert all(row_of(table, folder / "b.png")["split"] == "pool" for table in tables)
        with pytest.raises(PoolError, match="an audit set of 3 leaves nothing for the pool: 3 images"):
            index(path, audit_size=3)

    def test_draws_images_of_which_only_positives_are_known_and_drops_what_is_known_of_them(self, folder):
        path = self.write(folder, "uri,label\nb.png,cat\na.jpg,cat|dog\nd.bmp,|\ndeep/er/c.PNG,dog\n")
        several = {"asks": AskFor("image", several=True), "are_open": True}
        tables = [index(path, audit_size=2, seed=seed, **several) for seed in range(10)]
        for table in tables:
            assert row_of(table, folder / "d.bmp")["split"] == "pool", "whose label is complete"
            assert table.groupby("split")["label"].count().to_dict() == {"audit": 0, "pool": 2}
        assert len({tuple(table["split"]) for table in tables}) > 1
        assert index(path, tables[0], audit_size=2, **several).equals(tables[0])

    def test_adds_labels_later_but_not_to_the_audit_set(self, folder):
        names = ["b.png", "a.jpg", "d.bmp", "deep/er/c.PNG"]
        table = index(folder, audit_size=2)
        path = self.write(folder, "uri,label\n" + "".join(f"{name},cat\n" for name in names))
        again = index(path, table, audit_size=2)
        assert again.groupby("split")["label"].count().to_dict() == {"audit": 0, "pool": 2}
        assert index(folder, again, audit_size=2)["label"].count() == 2

    def test_sets_content_aside_that_has_two_labels(self, folder):
        (folder / "copy.png").write_bytes((folder / "b.png").read_bytes())
        path = self.write(folder, "uri,label\nb.png,dog\ncopy.png,cat\na.jpg,\n")
        table = index(path)
        assert reason_of(table, folder / "b.png") == "labelled more than one way: cat and dog"
        assert row_of(table, folder / "b.png")["label"] is None
        assert index(path, table).equals(table)
        path = self.write(folder, "uri,label\nb.png,dog\ncopy.png,\na.jpg,\n")
        assert row_of(index(path, table), folder / "b.png")["label"] == "dog"

    def test_may_list_an_image_twice(self, folder):
        table = index(self.write(folder, "uri,label\nb.png,\nb.png,cat\n./b.png,cat\n"))
        assert table["label"].tolist() == ["cat"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,label\nb.png,cat\n", "needs a column uri, has path, label"),
            ("", "needs a column uri, has no columns"),
            ("uri,label\n", "is empty: wanted at least one image"),
            (
                "uri,label\nb.png,cat\na.jpg,cow\n",
                r"row 2 \(uri 'a.jpg', label 'cow'\) has a label that is not one of the classes cat, dog, NA",
            ),
            ("uri,label\nb.png,cat\n,cat\n", r"row 2 \(label 'cat'\) has no uri"),
            ("uri,label\nb.png,cat\nb.png,dog\n", r"row 2 \(uri '.*b.png', label 'dog'\) gives a second label"),
            ('uri,label\n"b.png,cat\n', r"manifest\.csv: row 1: a quote that is opened here is not closed"),
        ],
    )
    def test_is_refused_with_the_row(self, folder, text, message):
        with pytest.raises(PoolError, match=message):
            index(self.write(folder, text))

    def test_counts_its_rows_whatever_their_index(self, folder):
        rows = pd.DataFrame({"uri": ["b.png", "a.jpg"], "label": ["cat", "cow"]}, index=[7, 3])
        rows.to_parquet(folder / "manifest.parquet")
        with pytest.raises(PoolError, match=r"row 2 \(uri 'a.jpg', label 'cow'\)"):
            index(folder / "manifest.parquet")

    def test_is_refused_when_it_is_no_parquet(self, folder):
        with pytest.raises(PoolError, match=r"manifest\.parquet: cannot be read: "):
            index(self.write(folder, "uri\nb.png\n", name="manifest.parquet"))

    def test_sets_other_addresses_aside(self, folder):
        table = index(self.write(folder, "uri\nb.png\nftp://ann:hunter2@host/a.png\n"))
        assert set_aside_counts(table) == {"an address, not a file": 1}
        assert "ftp://host/a.png" in table["uri"].tolist(), "without the login"


def save_rotated(image, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=100, subsampling=0)


@functools.cache
def photo(width, height):
    """Edges, gradients and texture of every fineness, as in a photograph."""
    generator = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (height // step, width // step, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.NEAREST if step % 3 else Image.Resampling.BICUBIC
            )
        )
        * np.float32(step**0.5)
        for step in (2, 6, 20, 60, 200, 600)
    ]
    mixed = sum(layers) / sum(step**0.5 for step in (2, 6, 20, 60, 200, 600))
    return Image.fromarray(mixed.astype(np.uint8))


def shades(*values, mode="L"):
    """An image of equal vertical stripes, 8 pixels each."""
    dtype = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    return Image.fromarray(np.repeat(np.array(values, dtype=dtype), 8)[None].repeat(8 * len(values), axis=0))


def stripes_of(path, *, channels=1):
    """The colour in the middle of each 8-pixel stripe, loaded at the size it has; a number where grey."""
    with Image.open(path) as image:
        size = image.width
    pixels = load_image(str(path), size=size, channels=channels)[:, size // 2, 4::8]
    return pixels[0].tolist() if channels == 1 else [tuple(colour) for colour in pixels.T.tolist()]


class TestLoading:
    def test_gives_the_pixels_of_a_plain_image(self, tmp_path):
        image = picture(1, width=16, height=16)
        image.save(tmp_path / "a.png")
        loaded = load_image(str(tmp_path / "a.png"), size=16, channels=3)
        assert loaded.dtype == torch.uint8
        np.testing.assert_array_equal(loaded.permute(1, 2, 0), np.asarray(image))

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "jp2"])
    def test_reads_lossless_formats_exactly(self, tmp_path, suffix):
        image = picture(1, width=16, height=16)
        image.save(tmp_path / f"a.{suffix}")
        loaded = load_image(str(tmp_path / f"a.{suffix}"), size=16, channels=3)
        np.testing.assert_array_equal(loaded.permute(1, 2, 0), np.asarray(image))

    def test_squeezes_the_whole_image_into_a_square(self, tmp_path):
        image = shades(0, 80, 160, 240).resize((64, 16))
        image.save(tmp_path / "a.png")
        loaded = load_image(str(tmp_path / "a.png"), size=32, channels=1)
        assert loaded.shape == (1, 32, 32)
        assert loaded[0, 16, 4::8].tolist() == [0, 80, 160, 240]

    def test_averages_when_it_makes_smaller(self, tmp_path):
        board = np.indices((64, 64)).sum(axis=0) % 2 * 255
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
        loaded = load_image(str(tmp_path / "a.png"), size=8, channels=1)
        assert (loaded.float() - 127.5).abs().max() < 3

    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("L", 3), ("RGB", 1), ("RGB", 3)])
    def test_converts_between_grey_and_colour_as_pillow_does(self, tmp_path, mode, channels):
        image = picture(1, width=16, height=16).convert(mode)
        image.save(tmp_path / "a.png")
        loaded = load_image(str(tmp_path / "a.png"), size=16, channels=channels)
        wanted = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
        np.testing.assert_array_equal(loaded.permute(1, 2, 0), wanted)

    @pytest.mark.parametrize("shape", [(2000, 1500), (601, 453), (70, 70), (20, 30)])
    def test_scales_a_jpeg_as_a_full_decode_would(self, tmp_path, shape):
        smooth = picture(1, width=9, height=7).resize(shape, Image.Resampling.BICUBIC)
        smooth.save(tmp_path / "a.jpg", quality=95)
        loaded = load_image(str(tmp_path / "a.jpg"), size=64, channels=3).permute(1, 2, 0)
        with Image.open(tmp_path / "a.jpg") as image:
            wanted = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        difference = np.abs(loaded.numpy().astype(int) - wanted.astype(int))
        assert difference.mean() < 0.2
        assert difference.max() <= 2

    @pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGB", 1), ("L", 3), ("CMYK", 3)])
    def test_decodes_a_detailed_jpeg_at_a_smaller_scale_close_to_a_full_decode(self, tmp_path, mode, channels):
        path = tmp_path / "a.jpg"
        photo(3000, 2000).convert(mode).save(path, quality=90)

        with Image.open(path) as image:
            square = image.convert("L" if channels == 1 else "RGB").resize((224, 224), Image.Resampling.BILINEAR)
        fully = np.asarray(square).reshape(224, 224, channels).transpose(2, 0, 1)
        loaded = load_image(str(path), size=224, channels=channels)
        difference = np.abs(loaded.numpy().astype(int) - fully.astype(int))
        assert 0 < difference.mean() < 0.15, "a full decode would be equal"
        assert difference.max() < 4

    def test_turns_a_reduced_jpeg_upright(self, tmp_path):
        stored = Image.fromarray(np.repeat(np.uint8([250, 170, 90, 10]), 400)[None].repeat(900, axis=0))
        save_rotated(stored, tmp_path / "a.jpg", 6)  # a quarter turn to the right: the left side comes up
        loaded = load_image(str(tmp_path / "a.jpg"), size=32, channels=1)
        np.testing.assert_allclose(loaded[0, 4::8, 16], [250, 170, 90, 10], atol=2)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
    def test_turns_images_upright(self, tmp_path, orientation, suffix):
        upright = np.zeros((32, 32), dtype=np.uint8)
        upright[:16, :16], upright[:16, 16:], upright[16:, :16] = 250, 170, 90
        # How a camera stores the upright image, by the definition of the tag: which side row 0 and column 0 are.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.T,
            6: upright.T[::-1],
            7: upright.T[::-1, ::-1],
            8: upright.T[:, ::-1],
        }[orientation]
        path = tmp_path / f"a.{suffix}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).convert("RGB").save(path, exif=exif, **{"lossless": True} if suffix == "webp" else {})
        loaded = load_image(str(path), size=32, channels=1)[0].float()
        np.testing.assert_allclose(loaded[8::16, 8::16], upright[8::16, 8::16], atol=3)

    def test_ignores_damaged_metadata(self, tmp_path):
        picture(1).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
        picture(2).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00garbage")
        assert len(usable(index(tmp_path))) == 2
        assert load_images(index(tmp_path)["uri"].tolist(), size=8, channels=3).shape == (2, 3, 8, 8)

    def test_reads_a_palette_with_and_without_transparency(self, tmp_path):
        image = Image.new("P", (24, 24))
        image.putpalette([0, 0, 0, 200, 100, 50, 10, 20, 30])
        image.paste(1, (8, 0, 16, 24))
        image.paste(2, (16, 0, 24, 24))
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "b.png", transparency=0)
        image.save(tmp_path / "c.png", transparency=bytes([0, 255, 128]))
        image.save(tmp_path / "d.gif", transparency=0)
        assert stripes_of(tmp_path / "a.png", channels=3) == [(0, 0, 0), (200, 100, 50), (10, 20, 30)]
        assert stripes_of(tmp_path / "b.png", channels=3) == [(255, 255, 255), (200, 100, 50), (10, 20, 30)]
        assert stripes_of(tmp_path / "c.png", channels=3) == [(255, 255, 255), (200, 100, 50), (132, 137, 142)]
        assert stripes_of(tmp_path / "d.gif", channels=3) == [(255, 255, 255), (200, 100, 50), (10, 20, 30)]

    @pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
    def test_puts_transparent_images_on_white(self, tmp_path, suffix):
        image = Image.new("RGBA", (16, 16), (200, 0, 100, 255))
        image.paste((200, 0, 100, 0), (8, 0, 16, 16))
        image.save(tmp_path / f"a.{suffix}", lossless=True)
        assert stripes_of(tmp_path / f"a.{suffix}", channels=3) == [(200, 0, 100), (255, 255, 255)]

    def test_puts_transparent_grey_on_white(self, tmp_path):
        image = Image.merge("LA", [shades(100, 100), shades(255, 51)])
        image.save(tmp_path / "a.png")
        assert stripes_of(tmp_path / "a.png") == [100, round(0.2 * 100 + 0.8 * 255)]

    def test_reads_one_bit(self, tmp_path):
        for suffix in ("png", "tif", "bmp", "pbm"):
            shades(0, 255, 0).convert("1").save(
                tmp_path / f"a.{suffix}", **{"format": "PPM"} if suffix == "pbm" else {}
            )
            assert stripes_of(tmp_path / f"a.{suffix}") == [0, 255, 0]

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
    def test_scales_sixteen_bits_to_eight(self, tmp_path, suffix):
        values = [257, 1000, 32768, 60000]
        shades(*values, mode="I;16").save(tmp_path / f"a.{suffix}")
        assert stripes_of(tmp_path / f"a.{suffix}") == [round(value / 257) for value in values]

    def test_reads_sixteen_bits_of_either_byte_order(self, tmp_path):
        values = np.array([0, 257, 1000, 65535], dtype=np.uint16)
        big = Image.frombytes("I;16B", (32, 32), np.repeat(values, 8)[None].repeat(32, 0).astype(">u2").tobytes())
        big.save(tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as image:
            assert image.mode == "I;16B"
        assert stripes_of(tmp_path / "a.tif") == [0, 1, 4, 255]

    def test_stretches_32_bits_from_the_smallest_to_the_largest(self, tmp_path):
        shades(-1_000_000, 0, 1_000_000, mode="I").save(tmp_path / "a.tif")
        assert stripes_of(tmp_path / "a.tif") == [0, 128, 255]
        shades(-0.5, 0.0, 1.5, mode="F").save(tmp_path / "b.tif")
        assert stripes_of(tmp_path / "b.tif") == [0, 64, 255]

    def test_gives_black_for_a_constant_and_for_what_is_not_finite(self, tmp_path):
        shades(7.0, 7.0, mode="F").save(tmp_path / "a.tif")
        assert stripes_of(tmp_path / "a.tif") == [0, 0]
        shades(np.nan, 1.0, 2.0, np.inf, mode="F").save(tmp_path / "b.tif")
        assert stripes_of(tmp_path / "b.tif") == [0, 0, 255, 0]
        shades(np.nan, np.inf, mode="F").save(tmp_path / "c.tif")
        assert stripes_of(tmp_path / "c.tif") == [0, 0]

    def test_reads_print_colours(self, tmp_path):
        image = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
        image.paste((0, 255, 255, 0), (8, 0, 16, 16))
        image.save(tmp_path / "a.tif")
        image.save(tmp_path / "b.jpg", quality=100)
        assert stripes_of(tmp_path / "a.tif", channels=3) == [(255, 255, 255), (255, 0, 0)]
        np.testing.assert_allclose(stripes_of(tmp_path / "b.jpg", channels=3), [(255, 255, 255), (255, 0, 0)], atol=3)

    def test_reads_the_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        for suffix in ("gif", "png", "tif", "webp"):
            frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
            assert stripes_of(tmp_path / f"a.{suffix}", channels=3) == [(255, 0, 0)] * 2


class TestLoadingMany:
    def test_keeps_the_order(self, tmp_path):
        for seed in range(150):
            picture(seed).save(tmp_path / f"{seed}.png")
        uris = [str(tmp_path / f"{seed}.png") for seed in range(150)]
        loaded = load_images(uris, size=8, channels=3)
        assert loaded.shape == (150, 3, 8, 8)
        for position in (0, 63, 64, 149):
            assert torch.equal(loaded[position], load_image(uris[position], size=8, channels=3))

    def test_of_nothing_is_empty(self):
        assert load_images([], size=8, channels=1).shape == (0, 1, 8, 8)

    def test_names_the_image_that_cannot_be_read(self, folder):
        broken = folder / "x.png"
        broken.write_bytes(b"no image")
        uris = [str(folder / "b.png"), str(broken)]
        with pytest.raises(PoolError, match=r"x\.png: not an image: the content is of no known image format$"):
            load_images(uris, size=8, channels=3)
        with pytest.raises(PoolError, match=r"nowhere\.png: cannot be read: No such file or directory$"):
            load_image(str(folder / "nowhere.png"), size=8, channels=3)
        broken.write_bytes(png_of_size(24_000, 24_000))
        with pytest.raises(PoolError, match=r"x\.png: too large: 24000 x 24000 pixels"):
            load_image(str(broken), size=8, channels=3)

    def test_wants_one_channel_or_three(self, folder):
        with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
            load_image(str(folder / "b.png"), size=8, channels=4)


def uris_of_pictures(folder, n):
    names = [f"{number:03d}.png" for number in range(n)]
    fill(folder, names)
    return [str(folder / name) for name in names]


class TestStreaming:
    @pytest.mark.parametrize("chunk", [1, 7, 50, 100])
    def test_gives_what_loading_gives_in_chunks(self, tmp_path, chunk):
        uris = uris_of_pictures(tmp_path, 50)
        chunks = list(stream_images(uris, size=8, channels=3, chunk=chunk))
        assert [len(part) for part in chunks] == [min(chunk, 50 - start) for start in range(0, 50, chunk)]
        assert torch.equal(torch.cat(chunks), load_images(uris, size=8, channels=3))

    def test_of_nothing_is_empty(self):
        assert list(stream_images([], size=8, channels=3, chunk=4)) == []

    def test_decodes_the_next_chunk_while_the_caller_works(self, tmp_path):
        uris = uris_of_pictures(tmp_path, 2)
        pipe = tmp_path / "pipe.png"
        os.mkfifo(pipe)
        chunks = stream_images([*uris, str(pipe)], size=8, channels=3, chunk=2)
        assert len(next(chunks)) == 2
        os.close(open_when_read(pipe))
        with pytest.raises(PoolError, match=r"pipe\.png: "):
            next(chunks)

    def test_decodes_no_further_than_the_next_chunk(self, tmp_path):
        uris = uris_of_pictures(tmp_path, 12)
        chunks = stream_images(uris, size=8, channels=3, chunk=4)
        next(chunks)
        for uri in uris[8:]:
            picture(100).save(uri)
        _, third = chunks
        assert torch.equal(third, load_images(uris[8:], size=8, channels=3))

    def test_raises_in_place_of_the_chunk_with_the_broken_image(self, tmp_path):
        uris = uris_of_pictures(tmp_path, 12)
        Path(uris[5]).write_bytes(b"no image")
        chunks = stream_images(uris, size=8, channels=3, chunk=4)
        assert torch.equal(next(chunks), load_images(uris[:4], size=8, channels=3))
        with pytest.raises(PoolError, match=r"005\.png: not an image"):
            next(chunks)
        assert not list(chunks)

    def test_leaves_no_thread_and_no_warning_filter_when_the_caller_stops_early(self, tmp_path):
        uris = uris_of_pictures(tmp_path, 200)
        before, filters = threading.active_count(), list(warnings.filters)
        for part in stream_images(uris, size=8, channels=3, chunk=50):
            assert len(part) == 50
            assert threading.active_count() > before
            break
        del part
        assert threading.active_count() == before
        assert warnings.filters == filters

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_puts_no_filter_of_warnings_back_where_two_overlap(self, tmp_path, order):
        uris = uris_of_pictures(tmp_path, 12)
        filters = list(warnings.filters)
        streams = [stream_images(uris, size=8, channels=3, chunk=4) for _ in range(2)]
        for stream in streams:
            next(stream)
        warnings.warn_explicit("odd metadata", UserWarning, "Image.py", 1, module="PIL.Image")
        streams[order[0]].close()
        warnings.warn_explicit("odd metadata", UserWarning, "Image.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="of another"):
            warnings.warn_explicit("of another", UserWarning, "other.py", 1, module="other")
        streams[order[1]].close()
        assert warnings.filters == filters
        with pytest.raises(UserWarning, match="odd metadata"):
            warnings.warn_explicit("odd metadata", UserWarning, "Image.py", 1, module="PIL.Image")


def open_when_read(pipe):
    """Open a named pipe for writing once another thread reads it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
    raise TimeoutError(f"nobody reads {pipe}")


def test_says_how_long_ten_thousand_small_images_take(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png", compress_level=1)
    start = time.perf_counter()
    table = index(tmp_path, audit_size=500)
    indexed = time.perf_counter()
    again = index(tmp_path, table, audit_size=500)
    known = time.perf_counter()
    loaded = load_images(table["uri"].tolist(), size=28, channels=1)
    end = time.perf_counter()
    print(f"\n10,000 PNGs: {indexed - start:.1f} s, again {known - indexed:.1f} s, loaded {end - known:.1f} s")  # noqa: T201
    assert again.equals(table)
    numbers = [int(Path(uri).stem) for uri in table["uri"]]
    np.testing.assert_array_equal(loaded[:, 0], pixels[numbers])


def films(folder, *, n_films=8, n_frames=5):
    return fill(folder, [f"film{film}/{frame}.png" for film in range(n_films) for frame in range(n_frames)])


def sides_of(table):
    """The groups of the audit set and those of the pool."""
    rows = usable(table)
    return [set(rows.loc[rows["split"] == split, "group"].dropna()) for split in ("audit", "pool")]


class TestGroups:
    @pytest.mark.parametrize("rule", ["parent", r"^(film\d+)/"])
    def test_whole_groups_are_in_the_audit_set_or_in_the_pool(self, tmp_path, rule):
        for seed in range(5):
            table = index(films(tmp_path / "images"), audit_size=12, seed=seed, group=rule)
            audit, pool = sides_of(table)
            assert not audit & pool
            assert (len(audit), len(pool)) == (2, 6)
            assert (table["split"] == "audit").sum() == 10

    def test_without_a_rule_images_have_no_group_and_the_audit_set_is_as_ever(self, tmp_path):
        table = index(films(tmp_path / "images"), audit_size=12)
        assert table["group"].isna().all()
        assert (table["split"] == "audit").sum() == 12

    def test_images_that_the_expression_does_not_find_are_on_their_own(self, tmp_path):
        folder = films(tmp_path / "images")
        fill(folder, [f"still{number}.jpg" for number in range(5)])
        table = index(folder, audit_size=12, group=r"^(film\d+)/")
        assert table["group"].isna().sum() == 5
        assert (table["split"] == "audit").sum() == 12, "they fill what whole groups leave"

    def test_manifest_names_the_groups(self, tmp_path):
        folder = films(tmp_path)
        rows = [(f"film{film}/{frame}.png", f"f{film % 4}") for film in range(8) for frame in range(5)]
        pd.DataFrame(rows, columns=["uri", "group"]).to_csv(folder / "images.csv", index=False)
        table = index(folder / "images.csv", audit_size=12)
        audit, pool = sides_of(table)
        assert not audit & pool
        assert audit | pool == {"f0", "f1", "f2", "f3"}
        with pytest.raises(PoolError, match="take the setting group = 'parent' away, or the column"):
            index(folder / "images.csv", audit_size=12, group="parent")

    @pytest.mark.parametrize("changed", ["other", None])
    def test_manifest_whose_groups_changed_is_refused(self, tmp_path, changed):
        folder = films(tmp_path)
        rows = [(f"film{film}/{frame}.png", f"f{film}") for film in range(8) for frame in range(5)]
        table = pd.DataFrame(rows, columns=["uri", "group"])
        table.to_csv(folder / "images.csv", index=False)
        known = index(folder / "images.csv", audit_size=12)
        assert index(folder / "images.csv", known, audit_size=12).equals(known)
        table.loc[7, "group"] = changed
        table.to_csv(folder / "images.csv", index=False)
        with pytest.raises(PoolError, match=r"film1/2.png was in 'f1' .* is in .* now, and 0 more images"):
            index(folder / "images.csv", known, audit_size=12)

    def test_rule_that_means_other_groups_below_another_folder_is_refused(self, tmp_path):
        folder = films(tmp_path)
        known = index(folder, audit_size=12, group="parent")
        paths = [path.relative_to(tmp_path.parent) for path in sorted(folder.rglob("*.png"))]
        pd.DataFrame({"uri": paths}).to_csv(tmp_path.parent / f"{tmp_path.name}.csv", index=False)
        with pytest.raises(PoolError, match=r"where it was in .* and most images with it"):
            index(tmp_path.parent / f"{tmp_path.name}.csv", known, audit_size=12, group="parent")
        (folder / "elsewhere").mkdir()
        moved = next(folder.rglob("*.png"))
        moved.rename(folder / "elsewhere" / moved.name)
        again = index(folder, known, audit_size=12, group="parent").set_index("item_id")["group"]
        assert again.equals(known.set_index("item_id").loc[again.index, "group"]), "one that moved keeps its group"

    def test_groups_that_a_manifest_gives_after_the_audit_set_was_drawn_without_are_refused(self, tmp_path):
        folder = films(tmp_path)
        table = pd.DataFrame({"uri": [f"film{film}/{frame}.png" for film in range(8) for frame in range(5)]})
        table.to_csv(folder / "images.csv", index=False)
        known = index(folder / "images.csv", audit_size=12).drop(columns="group")
        table.assign(group="a").to_csv(folder / "images.csv", index=False)
        with pytest.raises(PoolError, match="people were asked before there were any: take the column away"):
            index(folder / "images.csv", known, audit_size=12)

    def test_second_group_of_an_image_is_refused(self, tmp_path):
        fill(tmp_path, ["a.png"])
        (tmp_path / "images.csv").write_text("uri,group\na.png,x\na.png,y\n")
        with pytest.raises(PoolError, match=r"row 2 .* gives a second group"):
            index(tmp_path / "images.csv")

    def test_later_image_of_an_audit_group_is_held_out_and_one_of_another_is_pool(self, tmp_path):
        folder = films(tmp_path / "images")
        known = index(folder, audit_size=12, group="parent")
        audit, pool = (sorted(side) for side in sides_of(known))
        for seed, name in enumerate((audit[0], pool[0], "new"), start=100):
            (folder / name).mkdir(exist_ok=True)
            picture(seed).save(folder / name / "late.png")
        table = index(folder, known, audit_size=12, group="parent")
        assert reason_of(table, folder / audit[0] / "late.png").startswith("of a group in the audit set")
        assert reason_of(table, folder / pool[0] / "late.png") is None
        assert row_of(table, folder / "new" / "late.png")["split"] == "pool"
        assert (table["split"] == "audit").sum() == (known["split"] == "audit").sum()
        assert index(folder, table, audit_size=12, group="parent").equals(table)

    def test_group_with_a_label_is_not_in_the_audit_set(self, tmp_path):
        folder = films(tmp_path)
        names = [f"film{film}/{frame}.png" for film in range(8) for frame in range(5)]
        labels = ["cat" if number % 5 == 0 and number < 20 else None for number in range(40)]
        pd.DataFrame({"uri": names, "label": labels}).to_csv(folder / "images.csv", index=False)
        for seed in range(5):
            audit, _ = sides_of(index(folder / "images.csv", audit_size=12, seed=seed, group="parent"))
            assert not audit & {"film0", "film1", "film2", "film3"}

    def test_file_that_moves_keeps_its_group_and_its_side(self, tmp_path):
        folder = films(tmp_path / "images")
        known = index(folder, audit_size=12, group="parent")
        audit, pool = (sorted(side) for side in sides_of(known))
        (folder / audit[0] / "0.png").rename(folder / pool[0] / "moved.png")
        row = row_of(index(folder, known, audit_size=12, group="parent"), folder / pool[0] / "moved.png")
        assert (row["group"], row["split"]) == (audit[0], "audit")

    def test_audit_set_that_no_whole_group_fits_in_is_refused(self, tmp_path):
        folder = films(tmp_path / "images", n_films=3, n_frames=12)
        with pytest.raises(PoolError, match=r"cannot be drawn in whole groups: there are 3 .* of 12 to 12 images"):
            index(folder, audit_size=10, group="parent")

    def test_rule_that_finds_nothing_is_refused_with_an_example(self, tmp_path):
        with pytest.raises(PoolError, match=r"names no group in any of 40 paths, for example 'film0/0.png'"):
            index(films(tmp_path / "images"), audit_size=12, group=r"clip(\d)")
