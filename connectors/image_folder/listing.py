"""Which files there are: a walk over a folder, the rows of a manifest, and what the disk says of each path."""

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.strict_table import nfc
from connectors.images.decode import reason_of
from connectors.images.threads import map_in_threads
from pipeline.names import printable
from pipeline.pool.reasons import ADDRESS, LINKED, NO_SUFFIX, NOT_BY_NAME, OTHER_FORMAT, OUTSIDE, UNREAD

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
OTHER_IMAGES = {
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"), "raw"),
    **dict.fromkeys((".j2k", ".j2c", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".svs", ".ndpi", ".czi", ".lif", ".nd2"), "microscopy"),
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".svg": "SVG",
    ".exr": "OpenEXR",
    ".hdr": "HDR",
    ".tga": "Targa",
    ".ico": "icon",
    ".pcx": "PCX",
    ".fits": "FITS",
    ".nii": "NIfTI",
}
"""Endings of images that are not read, and what people call them."""
HIDDEN_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"})
OF_SYSTEMS = frozenset(
    {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"}
    | {"$recycle.bin", "system volume information", "lost+found", "found.000", "__macosx"}
    | {"__pycache__", "node_modules", "site-packages"}
)
"""Folders that systems and programs make for themselves, in small letters; others are hidden by a dot."""
OF_SYSTEMS_BY_CONTENT = ("pyvenv.cfg",)
OWN_BY_CONTENT = (
    ("campaign.json", "campaign.lock"),
    ("campaign.json", "pool.parquet"),
    ("replay.json", "runs"),
    ("last-campaign.json",),
)
"""What a folder holds that labelcycle wrote: a campaign, a replay, the home of the local servers."""
OWN_NAMES = frozenset({"mlruns", "mlartifacts"})
OWN_INSIDE = frozenset(
    {"rounds", "campaign.json", "campaign.lock", "campaign.lock.holders", "pool.parquet", "pool_notes.json", "runs"}
)
"""What is labelcycle's own where the pool itself is such a folder."""


NOT_UTF8 = f"{UNREAD}: the file name is not UTF-8"
_by_name = attrgetter("name")


class File(NamedTuple):
    """A path and what the disk says of it; size and time are None where it is not to be read."""

    uri: str
    size_bytes: int | None
    modified_ns: int | None
    set_aside_reason: str | None


@dataclass
class PassedOver:
    """Folders that no person put images into, by what they are."""

    folders: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, path: str) -> None:
        """Remember a folder."""
        self.folders.setdefault(what, []).append(path)

    def notes(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{len(paths)} {what} {'was' if len(paths) == 1 else 'were'} passed over, such as {printable(paths[0])}"
            for what, paths in self.folders.items()
        ]


def walk(
    folder: Path,
    *,
    follow_links: bool = False,
    passed: PassedOver | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    times: FolderTimes | None = None,
) -> Iterator[File]:
    """All files under a folder; real folders come before linked ones, and each is entered once.

    Args:
        folder: where to look.
        follow_links: whether links may leave the folder; one that does is else set aside.
        passed: remembers what was passed over besides hidden files.
        suffixes: of the files that are wanted, in small letters; others are set aside by their names.
        times: remembers the folders that were looked into.
    """
    root = os.path.normpath(folder.absolute())
    return _Walk(root, _Inside(root, follow_links), suffixes, passed or PassedOver(), times or FolderTimes()).files()


class _Walk:
    """Which folders a walk has entered, and which it is yet to enter."""

    def __init__(
        self, root: str, stays: "_Inside", suffixes: Collection[str], passed: PassedOver, times: FolderTimes
    ) -> None:
        self._root, self._stays, self._suffixes, self._passed, self._times = root, stays, suffixes, passed, times
        self._real, self._linked, self._entered = deque([root]), deque[str](), set[tuple[int, int]]()

    def files(self) -> Iterator[File]:
        """What is there, folder by folder."""
        while self._real or self._linked:
            here = self._real.popleft() if self._real else self._linked.popleft()
            try:
                yield from self._inside(here)
            except OSError as exc:
                yield File(_printable(here), None, None, reason_of(exc))

    def _inside(self, here: str) -> Iterator[File]:
        with _opened(here) as (opened, status):
            if (status.st_dev, status.st_ino) in self._entered:
                return
            self._entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(opened), key=_by_name, reverse=True)
            names = {entry.name for entry in entries}
            is_own = any(names.issuperset(marks) for marks in OWN_BY_CONTENT)
            if here != self._root and (is_own or not names.isdisjoint(OF_SYSTEMS_BY_CONTENT)):
                self._passed.add("own folders of labelcycle" if is_own else "folders of systems and programs", here)
                return
            self._times.add(here, status)
            below = here.rstrip(os.sep) + os.sep
            while entries:
                entry = entries.pop()  # with what it remembers of the file: a million would fill the memory
                name = entry.name.lower()
                if name.startswith(".") or name in HIDDEN_NAMES or (is_own and name in OWN_INSIDE):
                    continue
                path = below + entry.name
                if name.isascii() and entry.is_file(follow_symlinks=False) and _suffix(name) in self._suffixes:
                    yield _stat_entry(entry, path)
                elif not _is_folder(entry):
                    yield _look_at(path, self._stays, self._suffixes)
                elif (reason := self._enter(entry, name, path)) is not None:
                    yield File(_printable(path), None, None, reason)

    def _enter(self, entry: os.DirEntry[str], name: str, path: str) -> str | None:
        """Enter a folder later on, unless it is to be passed over; why not, where a person should know."""
        if name in OF_SYSTEMS or name in OWN_NAMES:
            kind = "own folders of labelcycle" if name in OWN_NAMES else "folders of systems and programs"
            self._passed.add(kind, path)
        elif not entry.is_symlink():
            self._real.append(path)
        elif (reason := self._stays.reason(path)) is None:
            self._linked.append(path)
        else:
            return reason
        return None


@contextmanager
def _opened(folder: str) -> Iterator[tuple[int, os.stat_result]]:
    """A folder, open, and what the disk says of it: names in an open folder are looked up without its path."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened, os.fstat(opened)
    finally:
        os.close(opened)


def _stat_entry(entry: os.DirEntry[str], path: str) -> File:
    """What the disk says of a file that is no link and whose name is ASCII: as `stat_file`, in half the time."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as exc:
        return File(path, None, None, reason_of(exc))
    return File(path, status.st_size, status.st_mtime_ns, None)


def stat_file(path: str, link_reason: Callable[[str], str | None] | None = None) -> File:
    """What the disk says of a path.

    Args:
        path: absolute.
        link_reason: why a link is not to be followed, or None.
    """
    try:
        path.encode()
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            status = Path(path).stat()
            if link_reason is not None and (reason := link_reason(path)) is not None:
                return File(path, None, None, reason)
    except UnicodeEncodeError:
        return File(_printable(path), None, None, NOT_UTF8)
    except (OSError, ValueError) as exc:
        return File(path, None, None, reason_of(exc))
    if not stat.S_ISREG(status.st_mode):
        return File(path, None, None, "not an image: not a regular file")
    return File(path, status.st_size, status.st_mtime_ns, None)


class Located(NamedTuple):
    """The files that names in a manifest stand for.

    Attributes:
        files: one for each name.
        readings: how names were read that are not there as written -> the positions of these names.
    """

    files: list[File]
    readings: dict[str, list[int]]


def locate(uris: Sequence[str], folder: Path, *, follow_links: bool = False) -> Located:
    """Find the files that a manifest names, relative to its folder.

    A name that is not there as written is looked for in another Unicode form, with / for back-slashes, and with %
    codes as characters. Files outside of the folder are set aside: annotators could not be shown them.

    Args:
        uris: as written.
        folder: that all files lie in.
        follow_links: whether links may leave the folder.
    """
    root = os.path.normpath(folder.absolute())
    stays = _Inside(root, follow_links)
    files = map_in_threads(lambda uri: stays.stat(uri), uris)
    shelf = _Shelf(root)
    readings: dict[str, list[int]] = {}
    for position, file in enumerate(files):
        if file.set_aside_reason is None or not file.set_aside_reason.startswith((UNREAD, OUTSIDE)):
            continue
        for reading, uri in _meant(uris[position]):
            path = shelf.find(stays.absolute(uri), nfc)
            if path is not None and (found := stays.stat(path)).modified_ns is not None:
                files[position] = found
                readings.setdefault(reading, []).append(position)
                break
        else:
            near = shelf.find(file.uri, _caseless)
            if near is not None and file.set_aside_reason.startswith(UNREAD):
                hint = f"; there is {os.path.relpath(near, root)}"
                files[position] = file._replace(set_aside_reason=file.set_aside_reason + printable(hint))
    return Located(files, readings)


def _meant(uri: str) -> Iterator[tuple[str, str]]:
    """Other readings of a name, each with what it is called."""
    yield "in another Unicode form", uri
    plain = uri.strip()
    slashes = plain.replace("\\", "/")
    yield "without white space around them", plain
    yield "with / for back-slashes", slashes
    yield "with % codes as characters", unquote(plain)
    yield "with / for back-slashes and % codes as characters", unquote(slashes)


class _Inside:
    """A folder that files must lie in, by their names and, unless links may leave it, in truth."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root = root
        self.real = os.path.realpath(root)
        self._follow_links = follow_links
        self._folder_reason: Callable[[str], str | None] = cache(self.reason)

    def absolute(self, uri: str) -> str:
        """The path of a name or a file:// address, by the name of the folder, not by the true place of that."""
        if _is_file_address(uri):
            uri = url2pathname(urlsplit(uri).path)
        elif uri.startswith("~/") and not os.path.lexists(os.path.join(self.root, "~")):  # noqa: PTH118
            uri = os.path.expanduser(uri)  # noqa: PTH111 (does not raise where there is no home)
        path = os.path.normpath(os.path.join(self.root, uri))  # noqa: PTH118 (a tenth of the time)
        if not is_below(path, self.root) and is_below(path, self.real):
            return os.path.normpath(os.path.join(self.root, os.path.relpath(path, self.real)))  # noqa: PTH118
        return path

    def stat(self, uri: str) -> File:
        """What the disk says of a name, if it lies in the folder."""
        path = self.absolute(uri)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", uri) and not _is_file_address(uri):
            return File(
                re.sub(r"//[^/?#]*@", "//", uri, count=1),  # the table is to hold no login
                None,
                None,
                f"{ADDRESS}: images must be on a disk that this machine sees, or at s3://, gs://, az:// or https://",
            )
        if not is_below(path, self.root) or path == self.root:
            return File(path, None, None, f"{OUTSIDE}: images must lie in {printable(self.root)}")
        if (reason := self._folder_reason(os.path.dirname(path))) is not None:  # noqa: PTH120
            return File(path, None, None, reason)
        return stat_file(path, self.reason)

    def reason(self, path: str) -> str | None:
        """Why a file or folder is not to be used that is reached by links."""
        if self._follow_links:
            return None
        true = os.path.realpath(path)
        return None if is_below(true, self.real) else f"{LINKED}: it leads to {printable(true)}"


class _Shelf:
    """What the folders below a root hold, to find names that are written otherwise."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._held = cache(_held)

    def find(self, path: str, form: Callable[[str], str]) -> str | None:
        """The one path on the disk that is equal in this form of names; None where there is none, or more."""
        if not is_below(path, self._root):
            return None
        here = self._root
        for name in Path(os.path.relpath(path, here)).parts:
            exact, alike = self._held(here, form)
            if name not in exact:
                found = alike.get(form(name), ())
                if len(found) != 1:
                    return None
                name = found[0]
            here = os.path.join(here, name)  # noqa: PTH118
        return here


def is_below(path: str, folder: str) -> bool:
    """Whether a normal path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def path_from(folder: str | Path, path: str | Path) -> str:
    """The path of a file as it is written in a folder, with / between the folders."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _is_file_address(uri: str) -> bool:
    return uri.startswith(("file:///", "file://localhost/"))


def _held(folder: str, form: Callable[[str], str]) -> tuple[frozenset[str], dict[str, list[str]]]:
    """The names in a folder, and those of each form."""
    try:
        names = [path.name for path in Path(folder).iterdir()]
    except OSError:
        names = []
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(form(name), []).append(name)
    return frozenset(names), alike


def _caseless(name: str) -> str:
    return nfc(name).casefold()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop; `stat_file` gives the reason
        return False


def _look_at(path: str, stays: _Inside, suffixes: Collection[str]) -> File:
    """What the disk says of a file in a folder, if its name is that of a wanted one."""
    suffix = _suffix(os.path.basename(path).lower())  # noqa: PTH119
    if suffix in suffixes:
        return stat_file(path, stays.reason)
    if suffix in OTHER_IMAGES:
        return File(_printable(path), None, None, f"{OTHER_FORMAT}: {OTHER_IMAGES[suffix]}")
    return File(_printable(path), None, None, f"{NOT_BY_NAME}{suffix}" if suffix else NO_SUFFIX)


def _suffix(name: str) -> str:
    """As `Path(name).suffix` of Python 3.11 to 3.13, in a tenth of the time."""
    dot = name.rfind(".")
    return name[dot:] if 0 < dot < len(name) - 1 else ""


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
