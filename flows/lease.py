"""Who works in a folder: one process at a time, on this machine and on all that share the disk.

The kernel's lock on a file keeps the processes of one machine apart, and is free the moment its process dies; over
network disks it may reach no other machine. So each holder also lays a claim: a file of its own beside the lock, whose
time it renews. Whoever finds the claim of another machine watches it. A claim that is renewed meanwhile has a holder;
one that stays as it is has none. Clocks may differ or be set back: what counts is what changes before a watcher's eyes.

A claim is laid first and then the folder is looked through, so that of two who come at once one sees the other.
"""

import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import filelock
import psutil

from flows.progress import say

RENEW_SECONDS = 5.0
LOOK_SECONDS = 1.0
LOOKS = 40
"""A claim of another machine that is the same in so many looks is dead. Time in which the disk hangs is no look."""
WATCH_SECONDS = LOOKS * LOOK_SECONDS
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""How a disk tells that the kernel's locks do not work on it."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Taken(Exception):
    """Another process holds it; the message is who."""


@dataclass(frozen=True)
class Holder:
    """Who laid a claim; `boot` tells a machine, since its last start, from all others."""

    pid: int
    host: str
    since: str
    boot: str


@dataclass(frozen=True)
class Claim:
    """A claim as it was seen: whose it is, None where that cannot be read, and when it was renewed."""

    holder: Holder | None
    renewed_ns: int

    def who(self) -> str:
        """The holder, for people; the last sign by the clock here, unless that cannot be."""
        if self.holder is None:
            return "another process"
        age = time.time() - self.renewed_ns / 1e9
        seen = f", last sign {age:.0f} s ago" if age >= 0 else ""
        return f"process {self.holder.pid} on host {self.holder.host}, since {self.holder.since}{seen}"


@contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Hold a lock; a killed process gives it back at once, and one of another machine after `WATCH_SECONDS`.

    A process that was asleep so long that another took its place is sent SIGTERM when it wakes up.

    Args:
        lock: file in a folder that exists.

    Raises:
        Taken: another process holds it.
        OSError: the disk does not take it.
    """
    claims = lock.with_name(f"{lock.name}.holders")
    kernel = filelock.FileLock(lock, fallback_to_soft=False)
    try:
        kernel.acquire(timeout=0)
    except filelock.Timeout as exc:
        raise Taken(_newest(claims)) from exc
    except OSError as exc:
        if exc.errno not in NO_LOCKS:
            raise
    try:
        claim = _lay_claim(claims, has_kernel=kernel.is_locked)
        try:
            with _renewed(claim):
                yield
        finally:
            claim.unlink(missing_ok=True)
    finally:
        kernel.release()


def holder_of(lock: Path) -> str | None:
    """Who holds a lock, for people; None where nobody does. Nothing is taken, and nothing changes.

    Raises:
        OSError: the disk cannot be read.
    """
    alive = [claim for claim in _look(lock.with_name(f"{lock.name}.holders")).values() if _seems_alive(claim)]
    return max(alive, key=lambda claim: claim.renewed_ns).who() if alive else None


def _seems_alive(claim: Claim) -> bool:
    here = (
        this_boot(),
        os.uname().nodename,
    )  # containers of one machine have the same boot, and processes of their own
    if claim.holder is not None and (claim.holder.boot, claim.holder.host) == here:
        return psutil.pid_exists(claim.holder.pid)
    return time.time() - claim.renewed_ns / 1e9 < WATCH_SECONDS


def this_boot() -> str:
    """What tells this machine, since its last start, from all others."""
    with suppress(OSError):
        return BOOT.read_text().strip()
    return os.uname().nodename


def _lay_claim(claims: Path, *, has_kernel: bool) -> Path:
    claims.mkdir(exist_ok=True)
    dead: set[str] = set()
    while True:
        dead |= _watch(claims, has_kernel=has_kernel)
        mine = _new_claim(claims)
        if set(_look(claims)) <= {*dead, mine.name}:
            for name in dead:
                (claims / name).unlink(missing_ok=True)
            return mine
        mine.unlink()  # somebody came at the same moment
        time.sleep(random.uniform(0, LOOK_SECONDS))


def _new_claim(claims: Path) -> Path:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    path = claims / f"{uuid4().hex}.json"
    with path.open("x", encoding="utf-8") as file:
        try:
            json.dump(asdict(Holder(os.getpid(), os.uname().nodename, since, this_boot())), file)
            file.flush()
        except OSError:
            path.unlink()
            raise
    return path


def _watch(claims: Path, *, has_kernel: bool) -> set[str]:
    """The claims that are dead.

    Args:
        claims: their folder.
        has_kernel: whether the kernel's lock is ours: then claims of this machine are of processes that died.

    Raises:
        Taken: one has a holder.
    """
    there, boot = _look(claims), this_boot()
    foreign = {
        name: claim
        for name, claim in there.items()
        if not (has_kernel and claim.holder is not None and claim.holder.boot == boot)
    }
    for look in range(LOOKS if foreign else 0):
        if look == 1:
            say(f"{claims.parent} was held by {_newest(claims)}: looking for {WATCH_SECONDS:.0f} s whether it still is")
        time.sleep(LOOK_SECONDS)
        now = _look(claims)
        for name, claim in foreign.items():
            if name in now and now[name] != claim:
                raise Taken(now[name].who())
        if not foreign.keys() & now.keys():
            break
    return set(there)


def _look(claims: Path) -> dict[str, Claim]:
    """The claims by their names. Each is opened: network disks then ask the server how it is."""
    found = {}
    for path in claims.glob("*.json"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            renewed = os.fstat(file.fileno()).st_mtime_ns
            try:
                holder = Holder(**json.load(file))
            except (ValueError, TypeError):
                holder = None
            found[path.name] = Claim(holder, renewed)
    return found


def _newest(claims: Path) -> str:
    """Whose claim was renewed last, for people."""
    found = _look(claims).values()
    return max(found, key=lambda claim: claim.renewed_ns).who() if found else "another process"


@contextmanager
def _renewed(claim: Path) -> Iterator[None]:
    """Renew a claim while the block lasts; if somebody took it away, end this process."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                os.utime(claim)
            except FileNotFoundError:
                taker = _newest(claim.parent)
                say(f"{claim.parent.parent} was taken over by {taker}: this process gave no sign for too long")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError:  # the disk is away, for whoever watches too
                continue

    thread = threading.Thread(target=renew, name="labelcycle-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
