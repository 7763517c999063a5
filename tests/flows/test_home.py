"""Which home a command uses, whatever folder it is called from."""

import os
import shutil

import pytest

from connectors.store import StoreError
from flows.home import home, settle_home


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, without a home that somebody named."""
    monkeypatch.setenv("LABELCYCLE_HOME", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_home(folder):
    (folder / ".labelcycle").mkdir(parents=True)
    (folder / ".labelcycle" / "servers.json").write_text("[]")
    return folder / ".labelcycle"


def campaign_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pets.toml").touch()
    return folder / "pets.toml"


def test_home_beside_or_above_the_campaign_file_is_found_from_any_folder(place, monkeypatch):
    above, file = make_home(place / "work"), campaign_in(place / "work" / "campaigns" / "pets")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for folder in (place, place / "work", file.parent, elsewhere):
        monkeypatch.chdir(folder)
        assert home(file) == above
    beside = make_home(file.parent)
    assert home(file) == beside


def test_folder_of_campaigns_is_no_home_of_servers(place):
    above, file = make_home(place), campaign_in(place / "campaigns")
    (file.parent / ".labelcycle" / "campaigns").mkdir(parents=True)
    assert home(file) == above


def test_home_of_the_working_folder_serves_files_that_have_none(place, monkeypatch):
    here, file = make_home(place / "work"), campaign_in(place / "data")
    monkeypatch.chdir(place / "work")
    assert home(file) == here
    (place / "work" / "deep").mkdir()
    monkeypatch.chdir(place / "work" / "deep")
    assert home(file) == here
    assert home() == here


def test_new_home_is_where_the_next_command_finds_it(place, monkeypatch):
    file = campaign_in(place / "work" / "campaigns")
    monkeypatch.chdir(place / "work")
    assert home() == home(file) == place / "work" / ".labelcycle"
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert home(file) == file.parent / ".labelcycle"
    assert home() == place / "elsewhere" / ".labelcycle"


def test_home_that_somebody_named_counts_and_must_be_a_folder(place, monkeypatch):
    make_home(place)
    monkeypatch.setenv("LABELCYCLE_HOME", "named")
    assert home() == home(place / "pets.toml") == place / "named"
    (place / "named").touch()
    with pytest.raises(StoreError, match="LABELCYCLE_HOME must name a folder"):
        home()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_home_of_another_user_is_passed_over(place):
    theirs, file = make_home(place), campaign_in(place / "campaigns")
    os.chown(theirs, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to another user; let LABELCYCLE_HOME name a folder of your own"):
        home(file)
    ours = make_home(file.parent)
    assert home(file) == ours
    shutil.rmtree(ours)
    os.chown(theirs, os.getuid(), -1)
    assert home(file) == theirs


def test_what_is_started_uses_the_same_home(place, monkeypatch):
    file = campaign_in(place / "work")
    found = settle_home(file)
    assert os.environ["LABELCYCLE_HOME"] == str(found)
    monkeypatch.chdir("/")
    assert home() == found
