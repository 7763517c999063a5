"""The worker: each campaign of a folder is served, and again when its `serve` has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy import worker
from deploy.worker import Worker

ROOT = Path(__file__).parents[2]
SERVE = """
import signal, sys, time
from pathlib import Path
file = Path(sys.argv[1])
log = file.with_suffix(".log")
if "broken" in file.name:
    sys.exit(2)
def stop(*_):
    log.open("a").write("stopped\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
log.open("a").write("serving\\n")
time.sleep(60)
"""


def wait_for(look):
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(folder: Path, name: str) -> list[str]:
    log = folder / f"{name}.log"
    return log.read_text().split() if log.exists() else []


@pytest.fixture
def working(tmp_path):
    made = Worker(tmp_path, command=(sys.executable, "-c", SERVE))
    yield made
    made.stop()


def names(working: Worker) -> set[str]:
    return {file.name for file in working.serving}


def test_each_campaign_with_a_schedule_is_served_whenever_it_comes(working, tmp_path):
    (tmp_path / "pets.toml").write_text('schedule = "* * * * *"')
    (tmp_path / "by-hand.toml").write_text('name = "by-hand"')
    working.look()
    assert names(working) == {"pets.toml"}
    (tmp_path / "birds.toml").write_text('schedule = "* * * * *"')
    working.look()
    working.look()
    assert names(working) == {"pets.toml", "birds.toml"}
    for name in ("pets", "birds"):
        wait_for(lambda: told(tmp_path, name) == ["serving"])  # noqa: B023
    working.stop()
    assert told(tmp_path, "pets") == told(tmp_path, "birds") == ["serving", "stopped"]


def test_another_schedule_is_another_start_and_a_file_that_is_gone_an_end(working, tmp_path):
    file = tmp_path / "pets.toml"
    file.write_text('schedule = "* * * * *"')
    working.look()
    wait_for(lambda: told(tmp_path, "pets") == ["serving"])
    file.write_text('schedule = "* * * * *"\nquery_size = 8')  # each run reads it anew
    working.look()
    file.write_text('schedule = "* * *')  # somebody is about to write it
    working.look()
    assert told(tmp_path, "pets") == ["serving"]
    file.write_text('schedule = "0 * * * *"')
    working.look()
    wait_for(lambda: told(tmp_path, "pets") == ["serving", "stopped", "serving"])
    file.unlink()
    working.look()
    assert not working.serving
    assert told(tmp_path, "pets")[-1] == "stopped"


def test_one_that_ends_is_started_again_later_and_disturbs_no_other(working, tmp_path, monkeypatch, capsys):
    for name in ("broken", "pets"):
        (tmp_path / f"{name}.toml").write_text('schedule = "* * * * *"')
    working.look()
    broken = working.serving[tmp_path / "broken.toml"].process
    broken.wait()
    working.look()
    assert "broken.toml: labelcycle serve ended with 2; it is started again in 60 s" in capsys.readouterr().out
    assert names(working) == {"pets.toml"}
    monkeypatch.setattr(worker, "AGAIN_SECONDS", 0)
    working.not_before.clear()
    working.look()
    assert names(working) == {"pets.toml", "broken.toml"}
    assert working.serving[tmp_path / "broken.toml"].process.pid != broken.pid


def test_one_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as stubborn:
        stubborn.stdout.readline()
        worker.end([stubborn])
        assert stubborn.returncode == -signal.SIGKILL


def test_command_is_alive_until_a_signal_comes(tmp_path):
    alive = tmp_path / "alive"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deploy.worker", "--alive", alive, tmp_path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for(alive.exists)
        process.terminate()
        assert process.wait(30) == 0
        assert f"serving the campaigns in {tmp_path}" in process.stdout.read()


def test_folder_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        worker.main([str(tmp_path / "nowhere")])
    assert "nowhere is no folder" in capsys.readouterr().err
