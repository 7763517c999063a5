"""Which files there are: a walk over a folder, and what the disk says of each path."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.pixels import UNREAD, reason_of

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
HIDDEN_NAMES = frozenset({"thumbs.db", "desktop.ini"})


class File(NamedTuple):
    """A path and what the disk says of it; size and time are None where it is not to be read."""

    uri: str
    size_bytes: int | None
    modified_ns: int | None
    set_aside_reason: str | None


def walk(folder: Path) -> Iterator[File]:
    """All files under a folder; real folders come before linked ones, and each is entered once."""
    real, linked, entered = deque([os.path.normpath(folder.absolute())]), deque[str](), set[tuple[int, int]]()
    while real or linked:
        here = real.popleft() if real else linked.popleft()
        try:
            status = Path(here).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as exc:
            yield File(_printable(here), None, None, reason_of(exc))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in HIDDEN_NAMES:
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else real).append(entry.path)
            else:
                yield _check_suffix(stat_file(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop; `_stat` gives the reason
        return False


def stat_file(path: str) -> File:
    """What the disk says of a path."""
    try:
        path.encode()
        status = Path(path).stat()
    except UnicodeEncodeError:
        return File(_printable(path), None, None, f"{UNREAD}: the file name is not UTF-8")
    except (OSError, ValueError) as exc:
        return File(path, None, None, reason_of(exc))
    if not stat.S_ISREG(status.st_mode):
        return File(path, None, None, "not an image: not a regular file")
    return File(path, status.st_size, status.st_mtime_ns, None)


def _check_suffix(file: File) -> File:
    suffix = Path(file.uri).suffix.lower()
    if suffix in IMAGE_SUFFIXES or file.set_aside_reason is not None:
        return file
    return File(file.uri, None, None, f"not an image: {f'suffix {suffix}' if suffix else 'no suffix'}")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
