"""Archives that are whole, damaged, foreign or hostile: nothing is believed that is not what was saved."""

import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from connectors import archive as archive_module
from connectors.archive import MANIFEST, check_room, open_archive, write_archive
from connectors.store import StoreError


@pytest.fixture
def whole(tmp_path) -> Path:
    (tmp_path / "a.json").write_text('{"a": 1}')
    path = tmp_path / "whole.zip"
    write_archive(
        path, [("folder/a.json", tmp_path / "a.json"), ("lines", iter([b'{"n": 1}\n{"n"', b": 2}\n"]))], {"of": "x"}
    )
    return path


def rewritten(whole: Path, change=lambda manifest: None, **members: bytes) -> Path:
    """The archive with another manifest, and members added or replaced."""
    path = whole.with_name("other.zip")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        manifest = json.loads(old.read(MANIFEST))
        change(manifest)
        held = {name: old.read(name) for name in old.namelist() if name != MANIFEST} | members
        for name, content in held.items():
            new.writestr(name, content)
        new.writestr(MANIFEST, json.dumps(manifest))
    return path


def refuse(path: Path, told: str) -> None:
    with pytest.raises(StoreError, match=told) as caught, open_archive(path):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_written_comes_back(whole, tmp_path):
    assert whole.stat().st_mode & 0o777 == 0o600
    with open_archive(whole) as archive:
        assert archive.manifest.facts == {"of": "x"}
        assert archive.names("folder") == ["folder/a.json"]
        assert list(archive.records("lines")) == [{"n": 1}, {"n": 2}]
        archive.extract("folder/a.json", tmp_path / "there" / "a.json")
    assert (tmp_path / "there" / "a.json").read_text() == '{"a": 1}'


def test_bytes_that_changed_or_are_cut_off_are_damage(whole):
    held = whole.read_bytes()
    for place in range(0, len(held), 7):
        changed = bytearray(held)
        changed[place] ^= 0xFF
        path = whole.with_name("changed.zip")
        path.write_bytes(changed)
        with suppress(StoreError), open_archive(path) as archive:  # or it is a byte that says nothing
            assert list(archive.records("lines")) == [{"n": 1}, {"n": 2}]
            assert archive.read("folder/a.json") == b'{"a": 1}'
    for n in (0, 10, len(held) // 2, len(held) - 1):
        path = whole.with_name("cut.zip")
        path.write_bytes(held[:n])
        refuse(path, "is no backup of labelcycle, or is damaged")


def test_other_content_under_a_name_is_damage(whole):
    refuse(rewritten(whole, lines=b'{"n": 3}\n'), "lines is not what was saved")
    refuse(rewritten(whole, lines=b'{"n": 1}\n{"n": 9}\n'), "lines is not what was saved")


def test_files_of_other_kinds_are_refused(whole, tmp_path):
    shutil.make_archive(str(tmp_path / "foreign"), "zip", whole.parent, "a.json")
    refuse(tmp_path / "foreign.zip", "is no backup of labelcycle: wanted one manifest.json")
    (tmp_path / "text.zip").write_text("not a zip")
    refuse(tmp_path / "text.zip", "is no backup of labelcycle, or is damaged")
    refuse(tmp_path / "absent.zip", "it is not there")
    refuse(tmp_path, "a folder is there, and must be a file")
    refuse(rewritten(whole, lambda manifest: manifest.update(kind="x")), "manifest.json: kind")
    refuse(rewritten(whole, lambda manifest: manifest.pop("facts")), "manifest.json: facts")


def test_another_format_names_the_version_that_reads_it(whole):
    path = rewritten(whole, lambda manifest: manifest.update(format=2, made_with="9.9"))
    refuse(path, "has the format 2, and this version of labelcycle reads the format 1: restore it with labelcycle 9.9")


@pytest.mark.parametrize("name", ["../a", "/etc/a", "folder/../../a", "folder\\..\\a", "folder//a", "./a", "a\x1b]0;"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(whole, name):
    path = rewritten(
        whole, lambda manifest: manifest["members"].update({name: manifest["members"]["lines"]}), **{name: b"{}"}
    )
    refuse(path, "is no backup of labelcycle: it has a file called")


def test_a_file_that_the_manifest_does_not_list_is_refused(whole):
    refuse(rewritten(whole, more=b"x"), "does not hold what its manifest.json lists")
    refuse(
        rewritten(whole, lambda manifest: manifest["members"].pop("lines")),
        "does not hold what its manifest.json lists",
    )


def test_a_bomb_is_refused_before_it_is_unpacked(whole, monkeypatch):
    monkeypatch.setattr(archive_module, "FREE_GROWTH", 0)
    bomb = bytes(2**24)

    def tell_the_truth(manifest):
        manifest["members"]["lines"]["n_bytes"] = len(bomb)

    refuse(rewritten(whole, tell_the_truth, lines=bomb), "would unpack to 16,777,")
    refuse(rewritten(whole, lines=bomb), "lines is not what was saved")


def test_a_disk_without_room_is_told(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with open_archive(whole) as archive, pytest.raises(StoreError, match="free some space there"):
        check_room(archive, tmp_path)
