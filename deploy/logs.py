"""Logs of servers that run for months: one that has grown large is shortened, whoever writes to it."""

import os
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
    large = [log for log in sorted(folder.glob("*.log")) if log.stat().st_size > most_bytes]
    for log in large:
        with log.open("rb") as file:
            file.seek(-most_bytes, os.SEEK_END)
            end = file.read().partition(b"\n")[2]
        with open_private(log.with_name(f"{log.name}.1"), os.O_TRUNC) as before:
            before.buffer.write(end)
        os.truncate(log, 0)
    return large
