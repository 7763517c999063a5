"""Who holds a lock of a campaign, for whoever only asks."""

import fcntl
import os
from pathlib import Path

from connectors.store import StoreError, read_json


def holder_of(lock: Path) -> str | None:
    """The process of this machine that holds a lock; None where none does. The file stays as it is.

    Args:
        lock: beside it `NAME.json` tells who took it last.
    """
    try:
        handle = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
    except BlockingIOError:
        return _name_in(lock.with_name(f"{lock.name}.json"))
    finally:
        os.close(handle)
    return None


def _name_in(note: Path) -> str:
    try:
        return f"process {read_json(note)['pid']}"
    except (StoreError, TypeError, KeyError):
        return "another process"
