"""What was read of object stores, kept on the disk within a bound: what was not used for longest goes first.

Any number of processes may share a cache. A file holds a digest of its content and the content: what a machine that
stopped left half written is thrown away when it is read.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from uuid import uuid4

from filelock import FileLock, Timeout

DIGEST = 16
"""Bytes of a digest."""
SHARE_LEFT = 0.9
"""Of the bound, what is left when room is made, so that it is not made for each file."""


class ImageCache:
    """Contents by item id, in a folder.

    Args:
        folder: made when the first file is kept.
        max_bytes: bound of all files together; each process may be 5 % above it for a while. 0 keeps nothing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._lock, self._n_written = Lock(), max_bytes  # the first file of a process looks how much there is

    def read(self, item_id: str) -> bytes | None:
        """The content, which counts as used now; None where it is not kept."""
        path = self._path(item_id)
        try:
            held = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, content = held[:DIGEST], held[DIGEST:]
        if digest == _digest(content):
            return content
        self.forget(item_id)
        return None

    def keep(self, item_id: str, content: bytes) -> None:
        """Keep a content; a disk that does not take it stops nothing."""
        if len(content) > self.max_bytes // 20:
            return
        path = self._path(item_id)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_digest(content) + content)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        with self._lock:
            self._n_written += len(content)
            is_due = self._n_written > self.max_bytes // 20
            if is_due:
                self._n_written = 0
        if is_due:
            shrink(self.folder, self.max_bytes)

    def forget(self, item_id: str) -> None:
        """Throw a content away."""
        with suppress(OSError):
            self._path(item_id).unlink(missing_ok=True)

    def _path(self, item_id: str) -> Path:
        return self.folder / item_id[:2] / item_id


def usage(folder: Path) -> tuple[int, int]:
    """How many files a cache has, and how many bytes they take."""
    sizes = [size for _, size, _ in _files(folder)]
    return len(sizes), sum(sizes)


def shrink(folder: Path, max_bytes: int) -> None:
    """Where a cache is larger than its bound, throw away what was not used for longest; one process at a time does."""
    if not folder.is_dir():
        return
    with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
        files = sorted(_files(folder))
        n_bytes = sum(size for _, size, _ in files)
        if n_bytes <= max_bytes:
            return
        for _, size, path in files:
            if n_bytes <= SHARE_LEFT * max_bytes:
                break
            with suppress(OSError):
                path.unlink()
            n_bytes -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each file was used, its size and its path."""
    for inner in (path for path in folder.glob("*") if path.is_dir()):
        for entry in os.scandir(inner):
            with suppress(OSError):
                status = entry.stat()
                yield status.st_mtime, status.st_size, Path(entry.path)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()
