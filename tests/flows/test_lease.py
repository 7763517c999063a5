"""Who works in a folder that several machines share. Of another machine the kernel's lock does not reach this one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import filelock
import pytest

from flows import lease
from flows.lease import Taken, hold, holder_of

OTHER_MACHINE = """
import os, sys, time
from pathlib import Path
import filelock
from flows import lease

skew = float(sys.argv[2])
renew = os.utime

def by_another_clock(path):
    now = time.time() + skew
    renew(path, (now, now))

filelock.FileLock.acquire = lambda *_, **__: None
lease.this_boot = lambda: "another machine"
lease.os.utime = by_another_clock
lease.RENEW_SECONDS = 0.1
with lease.hold(Path(sys.argv[1])):
    by_another_clock(next(Path(sys.argv[1] + ".holders").glob("*.json")))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOKS", 20)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "campaign.lock"


@pytest.fixture
def elsewhere(lock):
    """Let a process of another machine hold the lock, by a clock that is `skew` seconds ahead."""

    @contextmanager
    def held(skew: float = 0):
        command = [sys.executable, "-c", OTHER_MACHINE, str(lock), str(skew)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()
            process.communicate()

    return held


@pytest.mark.parametrize("skew", [-7200, 0, 300], ids=["set back", "equal", "ahead"])
def test_holder_on_another_machine_is_told_and_one_that_died_is_followed(lock, elsewhere, skew):
    with elsewhere(skew) as process:
        with pytest.raises(Taken, match=f"process {process.pid} on host .*, since 20"), hold(lock):
            pass
        process.kill()
        process.wait()
        began = time.monotonic()
        with hold(lock):
            assert time.monotonic() - began > 0.9, "it was watched first"
            (claim,) = lock.with_name("campaign.lock.holders").iterdir()
            assert json.loads(claim.read_text())["pid"] == os.getpid()
    assert not list(lock.with_name("campaign.lock.holders").iterdir())


def test_holder_in_another_container_is_alive_though_its_process_has_no_such_number_here(lock):
    with hold(lock):
        (claim,) = lock.with_name("campaign.lock.holders").iterdir()
        there = json.loads(claim.read_text())
        claim.write_text(json.dumps(there | {"pid": 2**22 + 1, "host": "another container"}))
        assert "another container" in holder_of(lock)
        claim.write_text(json.dumps(there | {"pid": 2**22 + 1}))
        assert holder_of(lock) is None


def test_clock_that_is_set_back_meanwhile_lets_nobody_in(lock, monkeypatch):
    with hold(lock):
        (claim,) = lock.with_name("campaign.lock.holders").iterdir()
        os.utime(claim, (time.time() + 3600, time.time() + 3600))  # renewed for the last time before it was set back
        monkeypatch.setattr(lease, "this_boot", lambda: "another machine")
        monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: None)
        with pytest.raises(Taken, match=f"process {os.getpid()} on host"), hold(lock):
            pass


def test_sign_of_the_future_is_not_told_as_an_age(lock, elsewhere):
    with elsewhere(skew=3600), pytest.raises(Taken) as caught, hold(lock):
        pass
    assert "last sign" not in str(caught.value)


def test_process_that_slept_while_another_took_over_ends_when_it_wakes(lock, elsewhere):
    with elsewhere() as sleeper:
        sleeper.send_signal(signal.SIGSTOP)
        with hold(lock):
            sleeper.send_signal(signal.SIGCONT)
            assert sleeper.wait(timeout=20) == -signal.SIGTERM
            assert len(list(lock.with_name("campaign.lock.holders").iterdir())) == 1


def test_of_machines_that_come_at_once_only_one_works(lock, monkeypatch):
    """Machines are threads here, whom no lock of a kernel keeps apart."""
    machine = threading.local()
    monkeypatch.setattr(lease, "this_boot", lambda: machine.name)
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: None)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    working, together, times = [], [], []

    def come(name):
        machine.name = name
        ready.wait()
        while time.monotonic() < end:
            try:
                with hold(lock):
                    working.append(name)
                    together.append(len(working))
                    time.sleep(0.002)
                    working.remove(name)
                    times.append(name)
            except Taken:
                pass

    ready, end = threading.Barrier(4), time.monotonic() + 4
    threads = [threading.Thread(target=come, args=(f"machine {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1}
    assert len(times) > 5


def test_disk_without_locks_of_the_kernel_is_shared_by_claims_alone(lock, monkeypatch):
    def refuse(*_data, **_how):
        raise OSError(lease.errno.ENOSYS, "not on this disk")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with hold(lock), pytest.raises(Taken, match=f"process {os.getpid()}"), hold(lock):
        pass
    with hold(lock):
        pass


def test_claim_that_was_written_in_part_is_watched_like_any_other(lock):
    claims = lock.with_name("campaign.lock.holders")
    claims.mkdir()
    (claims / "torn.json").touch()
    with hold(lock):
        assert not (claims / "torn.json").exists()


def test_holder_that_lives_is_seen_though_somebody_removed_the_file_of_the_lock(lock):
    code = "import sys; from pathlib import Path; from flows import lease; lease.RENEW_SECONDS = 0.1\n"
    code += f"with lease.hold(Path({str(lock)!r})): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        lock.unlink()
        with pytest.raises(Taken, match=f"process {process.pid} on host"), hold(lock):
            pass
    finally:
        process.kill()
        process.communicate()
    began = time.monotonic()
    with hold(lock):
        assert time.monotonic() - began < 0.5, "a process that is gone holds nothing"
