"""Indexing a pool again costs what changed, and gives what going through all of it would give."""

import os
import random
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from connectors.image_folder import folder_times, listing
from connectors.image_folder import index as index_module
from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.index import index_pool, is_as_left
from connectors.image_folder.source import PoolSource
from pipeline.pool.reasons import PoolError
from pipeline.pool.unchanged import nothing

CLASSES = ("cat", "dog")
FOLDERS = ("a", "b", "b/c", "b-c")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two dozen images in folders whose names sort in other ways than their paths."""
    for number in range(24):
        path = tmp_path / "pool" / FOLDERS[number % len(FOLDERS)] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "pool"


def change(folder, draw):
    """Do one thing to a pool that people and programs do."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "m.csv")
    one, other = draw.choice(files), draw.choice(files)
    new = folder / draw.choice(FOLDERS) / f"{draw.randrange(10**6)}.png"
    kind = draw.randrange(12)
    if kind == 0:
        picture(draw.randrange(10**6)).save(new)
    elif kind == 1:
        shutil.copy(one, new)
    elif kind == 2 and len(files) > 16:
        one.unlink()
    elif kind == 3:
        picture(draw.randrange(10**6)).save(one, format="PNG")
    elif kind == 4:
        one.rename(new)
    elif kind == 5:
        os.utime(one, ns=(0, draw.randrange(10**15)))
    elif kind == 6:
        one.write_bytes(b"half")
    elif kind == 7:
        new.with_suffix(".txt").write_text("a note")
    elif kind == 8:
        new.symlink_to("nowhere.png")
    elif kind == 9 and one != other:
        one.rename(new)
        other.rename(one)
        new.rename(other)
    elif kind == 10:
        new.touch()
    elif kind == 11:
        new.symlink_to(one)


def write_manifest(folder, draw):
    """Name most of the files, with labels that change now and then, and with groups by their folders."""
    files = [path for path in sorted(folder.rglob("*.png")) if draw.random() < 0.9]
    labels = [draw.choice(("cat", "dog", "", "", "", "")) if draw.random() < 0.2 else "" for _ in files]
    rows = pd.DataFrame({"uri": [str(path.relative_to(folder)) for path in files], "label": labels})
    rows.to_csv(folder / "m.csv", index=False)


def table_and_lines(source, known):
    """What indexing gives, or why it does not."""
    told = []
    try:
        table = index_pool(source, known, audit_size=6, seed=0, tell=told.append)
    except PoolError as exc:
        return str(exc), told
    return table, told


@pytest.mark.parametrize("kind", ["folder", "grouped", "manifest"])
@pytest.mark.parametrize("seed", range(2))
def test_table_and_lines_are_those_of_going_through_all_of_it(folder, monkeypatch, kind, seed):
    draw = random.Random(seed)
    if kind == "manifest":
        write_manifest(folder, draw)
    at = folder / "m.csv" if kind == "manifest" else folder
    source = PoolSource(at, CLASSES, group="parent" if kind == "grouped" else None, max_unused=0.9)
    known = index_pool(source, None, audit_size=6, seed=0)
    for _ in range(8):
        for _ in range(draw.randrange(2)):
            change(folder, draw)
        if kind == "manifest" and draw.random() < 0.5:
            write_manifest(folder, draw)
        with monkeypatch.context() as patched:
            patched.setattr(index_module, "unchanged", lambda listed, earlier, **_: nothing(listed, earlier))
            whole, lines = table_and_lines(source, known)
        table, told = table_and_lines(source, known)
        assert told == lines
        if isinstance(whole, str):
            assert table == whole
        else:
            pd.testing.assert_frame_equal(table, whole)
            known = whole


@pytest.fixture
def gone_through(monkeypatch):
    """Rows that were gone through one by one, files that were looked at and that were read, folders that were."""
    counts = {"rows": 0, "looks": 0, "read": 0, "folders": 0}

    def counted(module, name, key, size):
        function = getattr(module, name)

        def count(*arguments, **options):
            counts[key] += size(*arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, count)

    counted(index_module, "merge", "rows", lambda seen, earlier: len(seen) + len(earlier))
    counted(index_module, "_examine", "read", lambda *_: 1)
    counted(listing, "_stat_entry", "looks", lambda *_: 1)
    counted(listing, "stat_file", "looks", lambda *_: 1)
    counted(folder_times, "_stat", "folders", lambda *_: 1)
    return counts


def test_nothing_is_gone_through_where_nothing_changed_and_only_that_where_something_did(folder, gone_through):
    (folder / "note.txt").touch()
    (folder / "broken.png").write_bytes(b"half")
    source = PoolSource(folder, CLASSES)
    known = index_pool(source, None, audit_size=6, seed=0)
    gone_through.update(rows=0, looks=0, read=0)
    assert index_pool(source, known, audit_size=6, seed=0).equals(known)
    assert gone_through == {"rows": 0, "looks": 25, "read": 0, "folders": 0}, "one look at each file but the note"
    picture(100).save(folder / "a" / "new.png")
    picture(101).save(folder / "a" / "00.png")
    assert len(index_pool(source, known, audit_size=6, seed=0)) == len(known) + 2
    assert gone_through == {"rows": 3, "looks": 51, "read": 2, "folders": 0}, "two files, the row of one of them"


class TestFolders:
    @pytest.fixture
    def settled(self, folder, monkeypatch):
        """The pool with its folders, none of which changed a moment ago."""
        monkeypatch.setattr(folder_times, "FRESH_NS", 0)
        return folder

    def looked(self, source):
        times = FolderTimes()
        return index_pool(source, None, audit_size=2, seed=0, times=times), source, times

    def test_that_are_as_they_were_are_all_that_is_looked_at(self, settled, gone_through):
        left = self.looked(PoolSource(settled, CLASSES))
        gone_through.update(rows=0, looks=0, read=0)
        assert is_as_left(*left)
        assert gone_through == {"rows": 0, "looks": 0, "read": 0, "folders": 1 + len(FOLDERS)}

    def test_tell_of_files_that_came_went_and_were_renamed(self, settled):
        left = self.looked(PoolSource(settled, CLASSES))
        (settled / "b" / "c" / "02.png").rename(settled / "b" / "c" / "x.png")
        assert not is_as_left(*left)
        left = self.looked(PoolSource(settled, CLASSES))
        (settled / "b" / "c" / "x.png").unlink()
        assert not is_as_left(*left)
        left = self.looked(PoolSource(settled, CLASSES))
        picture(100).save(settled / "b" / "c" / "x.png")
        assert not is_as_left(*left)

    def test_that_changed_a_moment_before_they_were_looked_into_tell_nothing(self, folder):
        assert not is_as_left(*self.looked(PoolSource(folder, CLASSES)))

    def test_do_not_tell_that_a_file_can_be_read_again(self, settled):
        (settled / "a" / "link.png").symlink_to(settled.parent / "later.png")
        left = self.looked(PoolSource(settled, CLASSES, follow_links=True))
        assert is_as_left(*left)
        picture(100).save(settled.parent / "later.png")
        assert not is_as_left(*left)

    def test_of_a_manifest_are_those_of_its_files_and_it_counts_itself(self, settled):
        (settled / "m.csv").write_text(
            "uri,label\na/00.png,cat\nb/c/02.png,\nb/01.png,\na/04.png,\nb/05.png,\na/08.png,\n"
        )
        source = PoolSource(settled / "m.csv", CLASSES)
        left = self.looked(source)
        assert is_as_left(*left)
        picture(100).save(settled / "b-c" / "of no interest.png")
        assert is_as_left(*left)
        (settled / "b" / "c" / "02.png").unlink()
        assert not is_as_left(*left)
        left = self.looked(source)
        (settled / "m.csv").write_text((settled / "m.csv").read_text().replace("cat", "dog"))
        assert not is_as_left(*left)

    def test_are_the_same_after_a_file(self, settled, tmp_path):
        table, source, times = self.looked(PoolSource(settled, CLASSES))
        times.notes = {"at": "now"}
        times.write(tmp_path / "folders.parquet")
        read = FolderTimes.read(tmp_path / "folders.parquet")
        assert (read.of, read.notes) == (times.of, times.notes)
        assert is_as_left(table, source, read)
