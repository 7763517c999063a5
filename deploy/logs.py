"""Logs of servers that run for months: one that has grown large is shortened, whoever writes to it."""

import os
from contextlib import suppress
from pathlib import Path

from deploy.private import open_private

MOST_BYTES = 10 * 2**20
"""Of a log; the one before it, which is kept as `.1`, has as many at most."""


def shorten_logs(folder: Path, *, most_bytes: int = MOST_BYTES) -> list[Path]:
    """Move the end of each log that is larger than `most_bytes` to a file of its own, and empty it.

    The programs that write keep the file open, and append to what is in it; a line that comes meanwhile may be lost.

    Returns:
        The logs that were shortened.
    """
    shortened = []
    for log in sorted(folder.glob("*.log")):
        with suppress(OSError):  # another run shortens it too, or the disk is full: no reason to stop
            if log.stat().st_size > most_bytes:
                _shorten(log, most_bytes)
                shortened.append(log)
    return shortened


def _shorten(log: Path, most_bytes: int) -> None:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        end = file.read().partition(b"\n")[2]
    try:
        with open_private(log.with_name(f"{log.name}.1"), os.O_TRUNC) as before:
            before.buffer.write(end)
    finally:
        os.truncate(log, 0)  # on a full disk most of all
