"""A backup as one file: a zip archive with a manifest, written whole or not at all, checked before it is believed."""

import errno
import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from connectors.store import StoreError, explain, explained, write_atomic
from pipeline.settings import Plain

BACKUP_FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 2**20
CHUNK = 2**20
MOST_GROWTH = 100
"""What an archive unpacks to is at most so many times its size, and `FREE_GROWTH`: ours are far below."""
FREE_GROWTH = 256 * 2**20
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What Python's zipfile raises for archives that are damaged, encrypted or packed in a way of their own."""


class Member(BaseModel):
    """What an archive holds under a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    n_bytes: int


class Manifest(BaseModel):
    """What an archive says of itself.

    Attributes:
        made_with: the version of labelcycle.
        facts: of what was saved.
        members: all others, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["labelcycle backup"] = "labelcycle backup"
    format: int = BACKUP_FORMAT
    made_with: str
    made_at: str
    facts: dict[str, str]
    members: dict[str, Member]


def write_archive(path: Path, members: Iterable[tuple[str, Path | Iterable[bytes]]], facts: Mapping[str, str]) -> int:
    """Write an archive that only its owner can read; return its size in bytes.

    Args:
        members: the name and the content of each, a file or its bytes in parts.

    Raises:
        StoreError: the disk does not take it, or a file cannot be read.
    """

    def write(temporary: Path) -> None:
        temporary.chmod(0o600)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            held = {name: _write_member(archive, name, content) for name, content in members}
            made_at = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(made_with=own_version(), made_at=made_at, facts=dict(facts), members=held)
            archive.writestr(MANIFEST, manifest.model_dump_json(indent=1))

    return write_atomic(path, write).stat().st_size


def own_version() -> str:
    """The version of labelcycle."""
    try:
        return version("labelcycle")
    except PackageNotFoundError:  # of a checkout that nobody installed
        return "unknown"


def _write_member(archive: zipfile.ZipFile, name: str, content: Path | Iterable[bytes]) -> Member:
    counted, n_bytes = hashlib.sha256(), 0
    with archive.open(name, "w", force_zip64=True) as out:
        for part in _parts_of(content) if isinstance(content, Path) else content:
            out.write(part)
            counted.update(part)
            n_bytes += len(part)
    return Member(sha256=counted.hexdigest(), n_bytes=n_bytes)


def _parts_of(path: Path) -> Iterator[bytes]:
    with explained(path), path.open("rb") as file:
        yield from iter(lambda: file.read(CHUNK), b"")


@dataclass(frozen=True)
class Archive:
    """An archive that is open; all that it holds was read once, and is what its manifest says."""

    path: Path
    manifest: Manifest
    zip: zipfile.ZipFile

    @property
    def n_bytes(self) -> int:
        """What it unpacks to."""
        return sum(member.n_bytes for member in self.manifest.members.values())

    def names(self, folder: str) -> list[str]:
        """The members below a folder."""
        return [name for name in self.manifest.members if name.startswith(f"{folder}/")]

    def extract(self, name: str, to: Path) -> None:
        """Write a member as a file."""
        with explained(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            with to.open("xb") as file:
                for part in self.parts(name):
                    file.write(part)

    def read(self, name: str) -> bytes:
        """A member that is small."""
        return b"".join(self.parts(name))

    def records(self, name: str) -> Iterator[Plain]:
        """A member that holds a JSON value in each line, one after the other."""
        rest = b""
        for part in self.parts(name):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def parts(self, name: str) -> Iterator[bytes]:
        """A member in parts.

        Raises:
            StoreError: it is not what the manifest says; no more is read than that says.
        """
        wanted = self.manifest.members.get(name)
        if wanted is None:
            raise StoreError(f"{self.path} is no backup of labelcycle: it has no {name}")
        counted, n_bytes = hashlib.sha256(), 0
        with _told(self.path), self.zip.open(name) as file:
            for part in iter(lambda: file.read(CHUNK), b""):
                counted.update(part)
                n_bytes += len(part)
                if n_bytes > wanted.n_bytes:
                    break
                yield part
        if (n_bytes, counted.hexdigest()) != (wanted.n_bytes, wanted.sha256):
            raise StoreError(f"{self.path} is damaged: {name} is not what was saved. Use another copy of the backup")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive, and see that each member is there, has a name that leads nowhere else, and its checksum.

    Raises:
        StoreError: it is none of ours, damaged, or made by another version.
    """
    with _told(path):
        opened = zipfile.ZipFile(path)
    with opened:
        with _told(path):
            archive = Archive(path, _read_manifest(path, opened), opened)
            _check_names(archive)
            if archive.n_bytes > MOST_GROWTH * path.stat().st_size + FREE_GROWTH:
                raise StoreError(f"{path} would unpack to {archive.n_bytes:,} bytes, as no backup of labelcycle does")
            for name in archive.manifest.members:
                for _ in archive.parts(name):
                    pass
        yield archive


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what is wrong with an archive into a StoreError."""
    try:
        yield
    except (*BROKEN, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno != errno.EINVAL:  # which is a place before the file's first byte
            raise StoreError(explain(exc, path)) from exc
        raise StoreError(f"{path} is no backup of labelcycle, or is damaged: {exc}. Use another copy") from exc


def _read_manifest(path: Path, opened: zipfile.ZipFile) -> Manifest:
    found = [info for info in opened.infolist() if info.filename == MANIFEST]
    if len(found) != 1 or found[0].file_size > LARGEST_MANIFEST:
        raise StoreError(f"{path} is no backup of labelcycle: wanted one {MANIFEST} in it, which lists the others")
    with opened.open(found[0]) as file:
        held: Any = json.loads(file.read(LARGEST_MANIFEST))
    if isinstance(held, dict) and held.get("kind") == "labelcycle backup" and held.get("format") != BACKUP_FORMAT:
        raise StoreError(
            f"{path} has the format {held.get('format')!r}, and this version of labelcycle reads the format "
            f"{BACKUP_FORMAT}: restore it with labelcycle {held.get('made_with')}, which made it"
        )
    try:
        return Manifest.model_validate(held)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is no backup of labelcycle: {MANIFEST}: {where}: {first['msg']}") from exc


def _check_names(archive: Archive) -> None:
    """See that the archive holds what the manifest lists, once each, under names that stay where they are put."""
    there = sorted(info.filename for info in archive.zip.infolist())
    if there != sorted([MANIFEST, *archive.manifest.members]):
        raise StoreError(f"{archive.path} does not hold what its {MANIFEST} lists. Use another copy of the backup")
    for name in there:
        place = PurePosixPath(name)
        is_plain = not place.is_absolute() and ".." not in place.parts and str(place) == name and "\\" not in name
        if not is_plain or not name.isprintable():
            raise StoreError(f"{archive.path} is no backup of labelcycle: it has a file called {name!r}")


def check_room(archive: Archive, folder: Path) -> None:
    """See that the disk of a folder that is there has room for what an archive holds."""
    with explained(folder):
        free = shutil.disk_usage(folder).free
    if free < archive.n_bytes:
        raise StoreError(
            f"{archive.path} unpacks to {archive.n_bytes / 1e9:.1f} GB, and the disk of {folder} has "
            f"{free / 1e9:.1f} GB left: free some space there, or name another folder in the campaign file"
        )
