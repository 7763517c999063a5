"""A disk that is full at any write, or can only be read: one clear line, no half file, and the next run goes on."""

import errno
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from connectors import store
from connectors.store import StoreError
from flows import round as loop_module
from tests.flows.loop import Loop
from tests.flows.test_loop import came_to, files_of, tracked

N_ROUNDS = 2
MOST = 2


@pytest.fixture(autouse=True)
def _index_only_once(monkeypatch):
    index = loop_module.index_pool
    monkeypatch.setattr(
        loop_module, "index_pool", lambda at, known, **how: index(at, known, **how) if known is None else known
    )


class FullDisk:
    """Takes half of the bytes of a write once, and all of them the next time.

    It does so at the first `MOST` writes of each file: some are written again by each run, without an end.
    """

    def __init__(self, monkeypatch) -> None:
        self.failed: set[tuple[str, int]] = set()
        self._done: Counter[str] = Counter()
        self._fsync = os.fsync
        monkeypatch.setattr(store.os, "fsync", self.write_down)

    def write_down(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.suffix == ".part":
            target = path.name[1:].rsplit(".", 2)[0]
            write = (str(path.with_name(target)), self._done[str(path.with_name(target))])
            if write not in self.failed and write[1] < MOST:
                self.failed.add(write)
                os.truncate(path, path.stat().st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._done[write[0]] += 1
        self._fsync(descriptor)


def attempt(loop: Loop) -> tuple[str, str]:
    """What a run says, or what it fails with."""
    try:
        return loop.run(), ""
    except StoreError as exc:
        return "", str(exc)


def run_through(loop: Loop, disk: FullDisk) -> str:
    """Run until the round is out, however often the disk is full on the way."""
    while True:
        n_failed = len(disk.failed)
        told, error = attempt(loop)
        if told:
            return told
        assert len(disk.failed) == n_failed + 1
        assert "the disk is full: free some space there" in error
        assert "\n" not in error
        assert list(loop.file.parent.rglob("*.part")) == []
        assert not [line for line in loop.folder.check_files() if "is damaged" in line]


def test_a_campaign_whose_disk_is_full_at_each_write_once_ends_as_an_undisturbed_one(make_loop, monkeypatch):
    undisturbed, disturbed = make_loop(), make_loop()
    for _ in range(N_ROUNDS):
        undisturbed.run()
        undisturbed.label()
    disk = FullDisk(monkeypatch)
    for number in range(N_ROUNDS):
        assert f"round {number} a" in run_through(disturbed, disk)  # asks, or already awaits labels
        disturbed.label()
    written = {str(path.relative_to(disturbed.folder.path)) for path in files_of(disturbed.folder)}
    assert written <= {os.path.relpath(target, disturbed.folder.path) for target, _ in disk.failed}
    for one, other in zip(undisturbed.folder.rounds(), disturbed.folder.rounds(), strict=True):
        assert came_to(one) == came_to(other)
    assert disturbed.asked() == undisturbed.asked(), "no task twice"
    assert tracked(disturbed.tracker) == tracked(undisturbed.tracker)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no program `mount` on this machine")
def test_a_real_disk_that_is_full_or_read_only_is_told_and_the_next_run_goes_on(make_loop, loop_images, small_disk):
    undisturbed, loop = make_loop(), Loop(small_disk / "loop", loop_images)
    n_full = 0
    for number, kilobytes in enumerate((0, 400)):
        undisturbed.run()
        undisturbed.label()
        for more in range(0, 4000, 64):
            size = f"remount,size={64 + kilobytes + more}k"
            subprocess.run(["mount", "-o", size, small_disk], check=True)
            told, error = attempt(loop)
            if told:
                assert f"round {number} asks for" in told
                break
            assert "the disk is full: free some space there" in error
            assert str(small_disk) in error
            n_full += 1
        loop.label()
    assert n_full > 1
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="the disk can only be read"):
        loop.run()
    subprocess.run(["mount", "-o", "remount,rw,size=50m", small_disk], check=True)
    assert [loop.batch(n) for n in range(N_ROUNDS)] == [undisturbed.batch(n) for n in range(N_ROUNDS)]
    assert loop.run() == undisturbed.run()
