"""The folder of a campaign: whose it is, who works on it, and whether its files are what was written."""

import errno
import os
import shutil
import subprocess
import sys

import filelock
import pandas as pd
import pytest

from connectors.store import StoreError, write_json
from flows.artefacts import BATCH, METRICS, PUSHED, SECONDS, TRAINING, json_of
from flows.folder import LOCK, Campaign, CampaignBusy
from flows.records import Member, Pushed
from pipeline.tables import BatchTable
from pipeline.training.calibration import Calibration
from pipeline.training.diagnosis import Finding
from tests.flows.rounds import begin_to_push, metrics_of, push_tasks, training_of


def test_rounds_are_in_order_of_number(tmp_path):
    campaign = Campaign(tmp_path)
    for number in (10_000, 9_999, 2):
        campaign.round(number).write(SECONDS, {})
    assert [folder.number for folder in campaign.rounds()] == [2, 9_999, 10_000]


def test_round_that_comes_next_is_the_open_one_or_a_new_one(tmp_path):
    campaign = Campaign(tmp_path)
    assert campaign.current_round().number == 0
    campaign.round(0).write(SECONDS, {})
    assert campaign.current_round().number == 0
    write_json(campaign.round(0).path / "round.json", {})
    assert campaign.current_round().number == 1


def test_batch_may_have_been_seen_once_its_push_has_begun(tmp_path):
    campaign = Campaign(tmp_path)
    campaign.round(0).write(SECONDS, {})
    assert not campaign.is_out()
    begin_to_push(campaign.round(0))
    assert campaign.is_out()
    push_tasks(Campaign(tmp_path / "other").round(3), {})
    assert Campaign(tmp_path / "other").is_out()


def test_a_folder_that_is_made_is_for_its_owner_alone(make_loop):
    loop = make_loop()
    loop.run()
    assert loop.folder.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_a_team_shares_keeps_its_rights(make_loop):
    loop = make_loop()
    loop.folder.path.mkdir(mode=0o770)
    loop.folder.path.chmod(0o2770)
    loop.run()
    assert loop.folder.path.stat().st_mode & 0o7777 == 0o2770


def test_record_comes_back_as_it_was(tmp_path):
    folder = Campaign(tmp_path).round(1)
    records = {
        METRICS: metrics_of(150),
        TRAINING: training_of(50),
        PUSHED: Pushed("now", "http://ls", {"ž": 3}, {"ž": "audit"}),
    }
    for artefact, record in records.items():
        assert folder.get(artefact) is None
        folder.write(artefact, record)
        assert folder.read(artefact) == record
    folder.write(METRICS, None)
    assert (folder.has(METRICS), folder.get(METRICS)) == (True, None)


def test_record_of_a_member_comes_back_with_the_records_in_it(tmp_path):
    artefact = json_of("member.json", Member)
    member = Member(
        name="member-0",
        seed=3,
        weights=("member-0.pt",),
        epochs=[{"loss": 0.5}],
        best_epoch=0,
        findings=(Finding("stuck_at_prior", "what", "advice"),),
        calibration=Calibration(1.5, 20, 0.4, 0.3, 0.05, 0.04),
        preprocessing={"mean": [0.5]},
    )
    artefact.write(tmp_path / artefact.name, member)
    assert artefact.read(tmp_path / artefact.name) == member


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"pushed_at": "now", "address": "", "purposes": {}}, "tasks: Field required"),
        (
            {"pushed_at": "now", "address": "", "purposes": {}, "tasks": {"a": "x"}},
            "tasks.a: Input should be a valid integer",
        ),
        ([], "dictionary"),
        (None, "dictionary"),
    ],
)
def test_record_that_lacks_a_field_is_told_with_file_and_field(tmp_path, held, told):
    folder = Campaign(tmp_path).round(0)
    write_json(folder.path_of(PUSHED), held)
    with pytest.raises(StoreError, match=r"pushed\.json is damaged: ") as caught:
        folder.read(PUSHED)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


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
    told = rf"process {process.pid} on host {os.uname().nodename}, since 20.*, last sign \d s ago; try again"
    with pytest.raises(CampaignBusy, match=told), Campaign(tmp_path).lock():
        pass
    process.kill()
    process.communicate()
    with Campaign(tmp_path).lock():
        pass


def test_disk_that_refuses_the_lock_is_told(tmp_path, monkeypatch):
    def refuse(*_data, **_how):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / LOCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(StoreError, match="can only be read"), Campaign(tmp_path).lock():
        pass


def test_lock_in_a_place_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="must be a folder"), Campaign(tmp_path / "file").lock():
        pass


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no program `mount` on this machine")
def test_lock_on_a_disk_that_can_only_be_read_is_told(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="can only be read"), Campaign(small_disk / "campaign").lock():
        pass


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
    campaign.round(0).write(SECONDS, {"train": 1.0})
    campaign.round(0).write(BATCH, BatchTable(pd.DataFrame({"item_id": ["a"]})))
    campaign.check_files()
    table, seconds = campaign.round(0).path_of(BATCH), campaign.round(0).path_of(SECONDS)
    whole = table.read_bytes()
    table.write_bytes(whole[:-10])
    with pytest.raises(StoreError, match=r"batch\.parquet is damaged: "):
        campaign.check_files()
    table.write_bytes(whole)
    seconds.write_text("{")
    with pytest.raises(StoreError, match=r"seconds\.json is damaged: "):
        campaign.check_files()
