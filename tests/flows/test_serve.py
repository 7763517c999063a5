"""When a campaign's schedule runs, by whose clock, and who serves it."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from flows.config import ConfigError
from flows.flow import SERVED_FILE, check_is_served
from flows.folder import Campaign, CampaignBusy
from flows.serve.schedule import next_time
from flows.serve.screen import one_line, output_to
from flows.serve.service import only_server_of, refuse_moved_server

TELL = """
from flows.serve.schedule import machine_timezone
try:
    print(machine_timezone())
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize(
    ("zone", "after", "expected"),
    [
        ("America/New_York", "2026-11-27T15:00+00:00", "2026-11-30T09:00-05:00"),  # a Friday, after nine
        ("America/New_York", "2026-07-01T12:00+00:00", "2026-07-01T09:00-04:00"),
        ("Europe/Berlin", "2026-03-27T12:00+00:00", "2026-03-30T09:00+02:00"),  # summer time begins between
        ("Asia/Kolkata", "2026-11-30T03:29:30+00:00", "2026-11-30T09:00+05:30"),
        ("UTC", "2026-11-30T09:00:00+00:00", "2026-12-01T09:00+00:00"),
    ],
)
def test_next_time_of_a_schedule_is_reckoned_in_its_zone(zone, after, expected):
    found = next_time("0 9 * * 1-5", ZoneInfo(zone), datetime.fromisoformat(after))
    assert found == datetime.fromisoformat(expected)
    assert found.tzinfo == ZoneInfo(zone)


def test_schedule_whose_time_never_comes_is_refused():
    with pytest.raises(ConfigError, match="the time of schedule = '0 0 30 2 \\*' never comes"):
        next_time("0 0 30 2 *", ZoneInfo("UTC"), datetime.now(UTC))


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("America/New_York", "America/New_York"),
        (":Asia/Tokyo", "Asia/Tokyo"),
        (
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "ConfigError this machine does not tell the name of its time zone: set timezone",
        ),
        ("Nowhere/Else", "ConfigError this machine does not tell the name of its time zone: set timezone"),
    ],
)
def test_time_zone_is_that_of_the_machine_or_must_be_set(zone, told):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:tzlocal", "-c", TELL],
        env=os.environ | {"TZ": zone},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(told), done.stdout + done.stderr


def test_second_server_of_a_campaign_is_told_which_process_serves_it(tmp_path):
    folder = Campaign(tmp_path / "campaign")
    with only_server_of(folder, "pets"):
        told = rf"pets is served already, by process {os.getpid()} on .*, since 20"
        with pytest.raises(CampaignBusy, match=told), only_server_of(folder, "pets"):
            pass
        with only_server_of(Campaign(tmp_path / "other"), "pets"):
            pass
        with folder.lock():  # who serves is another matter than who works
            pass
    with only_server_of(folder, "pets"):
        pass


def test_local_server_that_has_moved_is_not_waited_for_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path))
    refuse_moved_server("http://127.0.0.1:5")  # nobody knows where it is now
    (tmp_path / "servers.json").write_text(json.dumps([{"name": "prefect", "port": 6}]))
    refuse_moved_server(None)
    refuse_moved_server("http://127.0.0.1:6")
    with pytest.raises(ConfigError, match=r"was at http://127\.0\.0\.1:5 and is at http://127\.0\.0\.1:6 now: start"):
        refuse_moved_server("http://127.0.0.1:5")


def test_run_of_another_file_than_the_served_one_is_refused(monkeypatch):
    check_is_served("/a/pets.toml")  # nobody serves: a run by hand
    monkeypatch.setenv(SERVED_FILE, "/a/pets.toml")
    check_is_served("/a/pets.toml")
    for other in ("/b/pets.toml", "pets.toml", "/a/../a/pets.toml", "", None, ["/a/pets.toml"], {"a": 1}):
        with pytest.raises(ConfigError, match=r"runs /a/pets\.toml and no other campaign file"):
            check_is_served(other)


def test_output_of_runs_goes_to_the_log_and_the_screen_comes_back(tmp_path, capfd):
    with output_to(tmp_path / "serve.log") as screen:
        subprocess.run([sys.executable, "-c", "print('of a run')"], check=True)
        os.write(2, b"Traceback\n")
        screen.write("an event\n")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "an event\nafter\n"
    assert (tmp_path / "serve.log").read_text() == "of a run\nTraceback\n"


def test_what_other_programs_say_is_one_line_that_steers_no_terminal():
    assert one_line("\x1b]0;owned\x07 a [red]b[/]\nTraceback") == " ]0;owned  a [red]b[/]"
    assert one_line(ValueError("")) == ""
    assert len(one_line("x" * 10_000)) == 500
