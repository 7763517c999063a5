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


def test_changed_setting_that_would_mix_experiments_is_refused_by_name(tmp_path):
    campaign = Campaign(tmp_path)
    before = {"strategy": "top_k", "budget": 10, "model": {"name": "a", "device": "cpu"}}
    campaign.claim(before, may_change={"budget", "model.device"})
    campaign.claim(
        before | {"budget": 20, "model": {"name": "a", "device": "cuda"}},
        may_change={"budget", "model.device"},
    )
    assert read_json(tmp_path / "campaign.json")["budget"] == 20
    campaign.claim(before | {"setting of a newer version": 1}, may_change={"budget", "model.device"})
    campaign.claim(before, may_change={"budget", "model.device"})
    with pytest.raises(CampaignChanged, match=r"model.name: 'a' -> 'b'; strategy: 'top_k' -> 'random'"):
        campaign.claim(before | {"strategy": "random", "model": {"name": "b", "device": "cpu"}}, may_change={"budget"})


def test_setting_that_the_written_configuration_lacks_is_compared_with_its_default(tmp_path):
    campaign, defaults = Campaign(tmp_path), {"sub_pool": None, "model.decay": 0.0, "members": 3}
    campaign.claim({"model": {"name": "a"}}, may_change=())
    changed = {"sub_pool": 7, "model": {"name": "a", "decay": 0.5}}
    with pytest.raises(CampaignChanged, match=r"model.decay: 0.0 -> 0.5; sub_pool: None -> 7\.") as caught:
        campaign.claim(changed, may_change=(), defaults=defaults)
    assert caught.value.settings == ["model.decay", "sub_pool"]
    assert read_json(tmp_path / "campaign.json") == {"model": {"name": "a"}}
    campaign.claim(changed, may_change={"sub_pool", "model.decay"}, defaults=defaults)
    campaign.claim(changed, may_change=(), defaults=defaults)


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
