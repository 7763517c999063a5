"""The folders of a pool with their times: while none has changed, no file came, went, moved or was renamed.

A file that is written over in place keeps its folder's time; only a look at the file itself finds it.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

FRESH_NS = 2 * 10**9
"""A folder that changed so short a time ago may change again within one tick of its disk's clock; of FAT, 2 s."""


class Times(NamedTuple):
    """What changes with the names in a folder, and with the content of a file."""

    modified_ns: int
    changed_ns: int
    inode: int


@dataclass
class FolderTimes:
    """Folders, and files that name others, as they were when somebody looked into them.

    Attributes:
        of: their times by path; None where nothing was there, or where they were too fresh to tell a later change.
        notes: what else is to be known of that look.
        begun_ns: when it began.
    """

    of: dict[str, Times | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    begun_ns: int = field(default_factory=time_ns)

    def add(self, path: str, status: os.stat_result | None) -> None:
        """Remember one as it is now, or was since the look began."""
        times = None if status is None else Times(status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        is_fresh = times is not None and max(times[:2]) > self.begun_ns - FRESH_NS
        self.of[path] = None if is_fresh else times

    def add_parents(self, paths: Iterable[str], root: str) -> None:
        """Remember the folders from `root` down to each of the paths below it."""
        inside = root.rstrip(os.sep) + os.sep
        wanted = {os.path.dirname(path) for path in paths if path.startswith(inside)}  # noqa: PTH120
        while wanted:
            for folder in wanted:
                self.add(folder, _stat(folder))
            above = {os.path.dirname(folder) for folder in wanted if folder != root}  # noqa: PTH120
            wanted = above - self.of.keys()

    def are_unchanged(self) -> bool:
        """Whether all are now as they were then; a stat of each."""
        return bool(self.of) and all(times is not None and _is_as(path, times) for path, times in self.of.items())

    @staticmethod
    def read(path: Path) -> "FolderTimes":
        """What `write` wrote."""
        table = pq.read_table(path)
        columns = (table[name].to_pylist() for name in ("path", *Times._fields))
        of = {path: None if times[0] is None else Times(*times) for path, *times in zip(*columns, strict=True)}
        return FolderTimes(of, json.loads((table.schema.metadata or {})[b"notes"]))

    def write(self, path: Path) -> None:
        """Write all of it as Parquet."""
        schema = pa.schema([("path", pa.large_string()), *((name, pa.int64()) for name in Times._fields)])
        schema = schema.with_metadata({b"notes": json.dumps(self.notes).encode()})
        rows = [{"path": path} | (times._asdict() if times else {}) for path, times in self.of.items()]
        pq.write_table(pa.Table.from_pylist(rows, schema), path)


def _is_as(path: str, times: Times) -> bool:
    status = _stat(path)
    return status is not None and (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) == times


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 (a third of the time)
    except OSError:
        return None
