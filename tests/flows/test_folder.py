"""The folder of a campaign: whose it is, who works on it, which rounds and records are in it."""

import errno
import json
import os
import subprocess
import sys

import filelock
import pandas as pd
import pytest

from connectors.store import StoreError, read_json, write_json, write_table
from flows.artefacts import BATCH, CAMPAIGN, CONFIG, METRICS, PLAN, PUSHED, PUSHING, Plan, Pushed, Pushing
from flows.changes import CampaignChanged, claim
from flows.folder import LOCK, Campaign, CampaignBusy


def test_rounds_are_in_order_of_number(tmp_path):
    campaign = Campaign(tmp_path)
    for number in (10_000, 9_999, 2):
        write_json(campaign.round(number).path_of(CONFIG), {})
    assert [folder.number for folder in campaign.rounds()] == [2, 9_999, 10_000]


def test_second_process_is_told_who_works_on_the_campaign(tmp_path):
    code = """
import sys
from pathlib import Path
from flows.folder import Campaign
with Campaign(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(CampaignBusy, match=f"process {process.pid}"), Campaign(tmp_path).lock():
        pass
    process.kill()
    process.communicate()
    with Campaign(tmp_path).lock():
        assert json.loads((tmp_path / "campaign.lock.json").read_text()) == {"pid": os.getpid()}


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({"mine": 1}, "no format"),
        ([], "no format"),
        (None, "no format"),
        ("text", "no format"),
        ({"name": "pets", "budget": 5}, "no format"),
        ({"format": 2, "name": "pets"}, "the format 2"),
        ({"format": "1"}, "the format '1'"),
    ],
)
def test_folder_of_another_format_is_refused_with_what_was_found_and_what_to_do(tmp_path, held, found):
    written = write_json(tmp_path / "campaign.json", held).read_bytes()
    told = (
        rf"campaign\.json has {found}, and this version of labelcycle reads the format 1: begin a new folder, or use "
        "the version that made this one$"
    )
    with pytest.raises(StoreError, match=told):
        Campaign(tmp_path).check_ours()
    assert (tmp_path / "campaign.json").read_bytes() == written


@pytest.mark.parametrize("name", ["pool.parquet", "rounds"])
def test_folder_in_which_something_would_be_written_over_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    Campaign(tmp_path).check_ours()
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=rf"holds {name} and no campaign\.json"):
        Campaign(tmp_path).check_ours()
    write_json(tmp_path / "campaign.json", {"format": 1})
    Campaign(tmp_path).check_ours()
    with pytest.raises(StoreError, match="must be a folder for the campaign, and is a file"):
        Campaign(tmp_path / "campaign.json").check_ours()


def test_damaged_file_of_a_round_is_found_by_name(tmp_path):
    campaign = Campaign(tmp_path)
    write_json(campaign.round(0).path_of(CONFIG), {})
    table = write_table(campaign.round(0).path_of(BATCH), pd.DataFrame({"a": [1]}))
    campaign.check_files()
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(StoreError, match=r"batch\.parquet is damaged: "):
        campaign.check_files()


def test_folder_that_cannot_be_one_is_told_before_it_is_locked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="must be a folder"), Campaign(tmp_path / "file").lock():
        pass


def test_record_comes_back_as_it_was_and_nothing_stands_for_what_is_not_there(tmp_path):
    folder = Campaign(tmp_path).round(3)
    assert (folder.number, folder.is_out, folder.is_closed) == (3, False, False)
    assert folder.get(PLAN) is None
    plan = Plan("head", "all", {"all": 3.5, "head": 0.25}, 1.0, "dear")
    folder.write(PLAN, plan)
    assert folder.read(PLAN) == plan
    folder.write(METRICS, None)
    assert folder.has(METRICS)
    assert folder.get(METRICS) is None, "the model was measured on nothing"
    folder.write(PUSHED, Pushed("2026-11-01T12:00:00+00:00", "http://here", {"a": 1}))
    assert folder.is_out


@pytest.mark.parametrize("held", [{}, [], None, {"phase": "head"}, {"tasks": {"a": "b"}}])
def test_record_that_lacks_something_is_damage_that_is_told_by_name(tmp_path, held):
    folder = Campaign(tmp_path).round(0)
    write_json(folder.path_of(PUSHED), held)
    with pytest.raises(
        StoreError, match=r"pushed\.json is damaged, or of another version: .*Bring it back from a copy"
    ):
        folder.read(PUSHED)


def test_changed_setting_is_written_unless_it_makes_another_campaign_of_one_that_is_out(make_work, tmp_path):
    work, file = make_work(), tmp_path / "stripes.toml"
    folder, before = work.folder, work.settings
    claim(folder, before, file)
    assert read_json(folder.path_of(CAMPAIGN))["format"] == 1
    claim(folder, before.model_copy(update={"budget": 20, "audit_size": 7}), file)
    assert (folder.read(CAMPAIGN)["budget"], folder.read(CAMPAIGN)["audit_size"]) == (20, 7), "nobody was asked yet"
    folder.round(0).write(PUSHING, Pushing("2026-11-01T12:00:00+00:00"))
    other = before.model_copy(update={"budget": 30, "audit_size": 8, "name": "cars"})
    told = "another campaign: audit_size: 7 -> 8; name: 'stripes' -> 'cars'"
    with pytest.raises(CampaignChanged, match=told) as caught:
        claim(folder, other, file)
    assert caught.value.settings == ["audit_size", "name"]
    assert folder.read(CAMPAIGN)["budget"] == 20
    claim(folder, before.model_copy(update={"budget": 30, "audit_size": 7}), file)
    assert folder.read(CAMPAIGN)["budget"] == 30


def test_disk_that_can_only_be_read_is_told_by_the_lock(tmp_path, monkeypatch):
    def refuse(*_data, **_how):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / LOCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(StoreError, match="can only be read"), Campaign(tmp_path).lock():
        pass
