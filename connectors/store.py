"""Files that are written whole or not at all, and errors of a disk in words."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:  # which takes longer to load than some commands take in all
    import pandas as pd

FORMAT = 1
"""Of the folders that this version reads and writes; campaign.json and replay.json hold it."""
PROBE = bytes(2**20)

NO_ROOM = "the disk is full: free some space there, or move what is on it"
REASONS = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: "your share of the disk (quota) is used up: free some space there, or ask for more",
    errno.EFBIG: "the file would be larger than this process or this disk allows: see `ulimit -f`",
    errno.EROFS: "the disk can only be read, not written to: name a folder on another one, or mount it for writing",
    errno.EACCES: "you have no permission: give yourself the right (chmod, chown), or name a folder of your own",
    errno.EPERM: "the system does not permit it: give yourself the right (chmod, chown), or name a folder of your own",
    errno.ENOENT: "it is not there: a folder was moved or deleted, or a disk is not mounted",
    errno.ENOTDIR: "a part of the path is a file, and must be a folder: name another path, or move the file away",
    errno.EEXIST: "a file is there, and must be a folder: name another path, or move the file away",
    errno.EISDIR: "a folder is there, and must be a file: name another path, or move the folder away",
    errno.ENAMETOOLONG: "the name is too long for this disk: give a shorter one",
    errno.ELOOP: "symbolic links lead in a circle",
    errno.EMFILE: "too many files are open: raise the limit, see `ulimit -n`",
    errno.ENFILE: "this machine has too many files open: end other programs, or raise its limit",
    errno.ENOMEM: "there is not enough memory: end other programs",
    errno.EIO: "the disk fails to read or write: look at it, and at the system's log, before anything else",
    errno.ESTALE: "the network disk has lost it: mount the disk again",
    errno.EBUSY: "another program uses it: end that",
}
"""What an error of the system means for a file of ours, and what to do."""


class StoreError(Exception):
    """A file cannot be read or written, or is not ours; the message has the file, the reason and the repair."""


class Damaged(StoreError):
    """A file does not hold what was written.

    Attributes:
        path: of the file.
        what: is wrong with it.
    """

    def __init__(self, path: Path, what: object, mend: str = "Bring it back from a backup") -> None:
        self.path = path
        self.what = (str(what).strip().splitlines() or [type(what).__name__])[0]
        self._mend = mend
        super().__init__(f"{path} is damaged: {self.what}. {mend}")

    def __reduce__(self) -> tuple[type["Damaged"], tuple[Path, str, str]]:
        return type(self), (self.path, self.what, self._mend)  # for errors that come from another process


def explain(exc: OSError, path: Path | None = None) -> str:
    """One line on a file that could not be read or written: which, why, and what to do.

    Args:
        path: what was worked on, where the error does not name it.
    """
    named = exc.filename if isinstance(exc.filename, str | os.PathLike) and os.fspath(exc.filename) else path
    where = f"{named}: " if named else ""
    why = REASONS.get(exc.errno or 0) or exc.strerror or str(exc) or type(exc).__name__
    return f"{where}{why}"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the system on `path` into a `StoreError` with the repair."""
    try:
        yield
    except OSError as exc:
        raise StoreError(explain(exc, path)) from exc


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is never seen half written.

    Who may read it is what the caller's umask says.

    Raises:
        StoreError: the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            try:
                write(temporary)
            except Exception as exc:
                _tell_failing_disk(temporary, path, exc)
                raise
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):  # of a disk that went away, which is told already
                temporary.unlink(missing_ok=True)
    return path


def write_folder(path: Path, write: Callable[[Path], None], *, mode: int = 0o777) -> Path:
    """Let `write` fill a temporary folder beside `path`, then rename it: no program sees `path` half written.

    Unlike `write_atomic` it does not wait for the disk: what is written may be lost where the machine itself stops.

    Args:
        mode: rights of the folder, as far as the caller's umask leaves them.

    Raises:
        StoreError: the disk does not take it, or a file or a folder that is not empty has the name.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode)
        try:
            write(temporary)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def _tell_failing_disk(temporary: Path, path: Path, exc: Exception) -> None:
    """Raise a `StoreError` if the disk is why a writer failed: libraries say so in their own words, or not at all."""
    try:
        with temporary.open("ab") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        raise StoreError(explain(cause, path)) from exc


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; not-a-number is refused."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def write_table(path: Path, table: "pd.DataFrame") -> Path:
    """Write a table as Parquet, atomically."""
    return write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        StoreError: the file cannot be read, or does not hold what was written.
    """
    with explained(path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as exc:
            raise Damaged(path, exc) from exc


def check_format(path: Path, held: object) -> None:
    """See that the campaign.json or replay.json of a folder was written by a version that writes as this one reads.

    Args:
        path: of the file.
        held: what is in it.

    Raises:
        StoreError: naming the format that was found.
    """
    found = held.get("format") if isinstance(held, dict) else None
    if found != FORMAT:
        raise StoreError(
            f"{path} has {'no format' if found is None else f'the format {found!r}'}, and this version of labelcycle "
            f"reads the format {FORMAT}: begin a new folder, or use the version that made this one"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names.

    >>> flatten({"name": "pets", "model": {"channels": 3}})
    {'name': 'pets', 'model.channels': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
