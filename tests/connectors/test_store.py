import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from connectors.store import (
    Campaign,
    CampaignBusy,
    CampaignChanged,
    read_json,
    write_atomic,
    write_json,
    write_table,
)


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_process_killed_while_writing_leaves_no_artefact(tmp_path):
    code = """
import sys, time
from pathlib import Path
from connectors.store import write_atomic
def slowly(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
write_atomic(Path(sys.argv[1]) / "rounds" / "0000" / "batch.parquet", slowly)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Campaign(tmp_path).round(0).has("batch.parquet")


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"accuracy": float("nan")})


def test_table_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame({"item_id": ["a", "b"], "score": [0.5, None]})
    pd.testing.assert_frame_equal(pd.read_parquet(write_table(tmp_path / "t.parquet", table)), table)


def test_rounds_are_in_order_of_number(tmp_path):
    campaign = Campaign(tmp_path)
    for number in (10_000, 9_999, 2):
        write_json(campaign.round(number) / "config.json", {})
    assert [folder.number for folder in campaign.rounds()] == [2, 9_999, 10_000]


def test_changed_setting_is_written_unless_it_is_fixed(tmp_path):
    campaign = Campaign(tmp_path)
    before = {"name": "pets", "budget": 10, "model": {"name": "a", "device": "cpu"}}
    campaign.claim(before, fixed={"name", "model.name"})
    campaign.claim(before | {"budget": 20}, fixed={"name", "model.name"})
    assert read_json(tmp_path / "campaign.json")["budget"] == 20
    with pytest.raises(CampaignChanged, match=r"model.name: 'a' -> 'b'; name: 'pets' -> 'cars'") as caught:
        campaign.claim({"name": "cars", "model": {"name": "b"}}, fixed={"name", "model.name"})
    assert caught.value.settings == ["model.name", "name"]
    assert read_json(tmp_path / "campaign.json")["budget"] == 20
    campaign.claim({"name": "cars", "model": {"name": "b"}})
    assert read_json(tmp_path / "campaign.json") == {"name": "cars", "model": {"name": "b"}}


def test_second_process_is_told_who_works_on_the_campaign(tmp_path):
    code = """
import sys
from pathlib import Path
from connectors.store import Campaign
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
