"""The store of features: files that keep what a frozen trunk made of images, between rounds and campaigns.

A cache is a folder with a subfolder for each key, the digest of all that the features depend on besides the image:

    <folder>/<key>/<any name>.arrow      what one call appended: `item_id`, `features`; written once, never changed
                  /used                  its time says when the key was last used

Processes share a cache without a lock: a file appears under its name when it is whole, and one item in two files does
no harm, since both hold the same numbers.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import mmap
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.ids import Run, as_bytes, merged
from pipeline.image_rows import ImageRows

ABANDONED_AFTER = 86_400.0
"""Seconds after which a temporary file has no writer any more."""
ATTEMPTS = 20
SETTLED_NS = 2_000_000_000
"""Age from which on the time of a folder tells whether files appeared: clocks of disks tick coarsely."""
USED = "used"
ENDING = ".arrow"
UNFINISHED = ".part"
_NO_IDS: NDArray[np.bytes_] = np.empty(0, dtype="S1")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheUsage:
    """What the cache holds under one key.

    Attributes:
        key: see `pipeline.networks.features.feature_key`.
        n_items: images.
        n_bytes: size of the files.
        last_used: when features were last read or appended, UTC.
    """

    key: str
    n_items: int
    n_bytes: int
    last_used: datetime


class FeatureCache:
    """Features by item id under one key, in files that processes and threads may add to at the same time.

    The ids are in memory; the features are mapped. What another process removes is gone here at the next call, and
    gives its memory back. A file that is damaged is removed with a warning, and its items are missing again.

    Args:
        folder: of the whole cache.
        key: see `pipeline.networks.features.feature_key`.
        dtype: of what is appended: float16, or uint8 for images.
    """

    def __init__(self, folder: Path, key: str, dtype: torch.dtype = torch.float16) -> None:
        self.folder = folder / key
        self._dtype = dtype
        self._lock = threading.RLock()
        self._seen: set[str] = set()
        self._looked_at: int | None = None
        self._files: dict[int, _File] = {}
        self._runs: list[Run] = []
        self.n_fresh: float = math.inf
        """Bytes appended since whoever keeps the cache within a bound last looked; before that it is not known."""

    def __len__(self) -> int:
        """Items that are there now."""
        with self._lock:
            self._look_for_files()
            return len(np.unique(np.concatenate([_NO_IDS, *(run.ids for run in self._runs)])))

    def missing(self, ids: Sequence[str]) -> Tensor:
        """Positions `(m,)` of the ids that the cache does not hold; what other processes appended counts."""
        with self._lock:
            is_there, _, _ = self._find_whole(ids)
        return torch.from_numpy(np.flatnonzero(~is_there))

    def read(self, ids: Sequence[str]) -> Tensor:
        """Features of items that are there.

        Args:
            ids: `(n,)` item ids, at least one.

        Returns:
            float16 `(n, …)`, in the order of `ids`.

        Raises:
            KeyError: the cache does not hold all of them.
        """
        missing, features = self.read_kept(ids)
        if features is None or len(missing):
            absent = ", ".join(ids[position] for position in missing[:3].tolist())
            raise KeyError(f"{self.folder} lacks {len(missing)} of {len(ids)} items: {absent}")
        return features

    def read_kept(self, ids: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Positions `(m,)` of the ids that the cache does not hold, and features of the others.

        Returns:
            The features are float16 `(n, …)`, in the order of `ids`, with zeros where they are missing; None where all
            are, as their shape is not known.
        """
        with self._lock:
            is_there, files, rows = self._find_whole(ids)
            missing = torch.from_numpy(np.flatnonzero(~is_there))
            if len(files) == 0:
                return missing, None
            first = self._files[files[0]].features
            make = np.zeros if len(missing) else np.empty
            features = make((len(ids), *first.shape[1:]), dtype=first.dtype)
            positions = np.flatnonzero(is_there)
            by_file = files.argsort(kind="stable")
            for these in np.split(by_file, np.flatnonzero(np.diff(files[by_file])) + 1):
                file = self._files[files[these[0]]]
                _copy_rows(features, positions[these], file.features, rows[these])
                file.let_go()
        self._mark_used()
        return missing, torch.from_numpy(features)

    def rows_kept(self, ids: Sequence[str]) -> tuple[Tensor, ImageRows]:
        """Positions `(m,)` of the ids that the cache does not hold; the others as mapped images, in order.

        The images stay readable when their files are removed.
        """
        with self._lock:
            missing = self.missing(ids)
            _, files, rows = self._find(ids)
            numbers, part = np.unique(files, return_inverse=True)
            parts = [self._files[number].features for number in numbers]
        self._mark_used()
        return missing, ImageRows(parts, torch.from_numpy(part), torch.from_numpy(rows))

    def append(self, ids: Sequence[str], features: Tensor) -> None:
        """Add features `(n, …)`, one file at a time; others see it when it is whole."""
        if len(ids) != len(features) or features.dtype != self._dtype:
            wanted = str(self._dtype).removeprefix("torch.")
            raise ValueError(
                f"wanted {wanted} features of {len(ids)} items, got {features.dtype} {tuple(features.shape)}"
            )
        if ids:
            path, values = self.folder / f"{uuid4().hex}{ENDING}", features.cpu().contiguous().numpy()
            _write(path, as_bytes(ids), values)
            self.n_fresh += values.nbytes
            self._mark_used()

    def _find_whole(self, ids: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """What `_find` gives of the files that are there now and whole."""
        self._look_for_files()
        found = self._find(ids)
        while damaged := [number for number in np.unique(found[1]) if not self._files[number].is_whole()]:
            for number in damaged:
                _set_aside(self._files[number].path, "its content is not what was written")
            self._forget(damaged)
            found = self._find(ids)  # another file may have the same items
        return found

    def _mark_used(self) -> None:
        with suppress(FileNotFoundError):  # all of it has been removed meanwhile
            (self.folder / USED).touch()

    def _forget(self, numbers: Sequence[int]) -> None:
        """Drop files from the index."""
        self._runs = [run.without(numbers) for run in self._runs]
        for number in numbers:
            del self._files[number]

    def _look_for_files(self) -> None:
        """Drop the files that vanished since the last look, and index those that appeared, by name.

        Of equal items the first one wins.
        """
        changed = _changed_at(self.folder)
        if changed is not None and changed == self._looked_at:
            return
        self._looked_at = changed if changed is not None and time.time_ns() - changed > SETTLED_NS else None
        names = set(_names(self.folder))
        if vanished := [number for number, file in self._files.items() if file.path.name not in names]:
            self._forget(vanished)
        appeared = sorted(names - self._seen)
        self._seen = names
        opened = [file for name in appeared if (file := _open(self.folder / name)) is not None]
        if not opened:
            return
        runs = []
        for number, file in enumerate(opened, 1 + max(self._files, default=-1)):
            self._files[number] = file
            runs.append(Run.of_file(number, file.ids))
            file.let_go()
        self._runs.append(merged(runs))
        while len(self._runs) > 1 and len(self._runs[-2].ids) <= 2 * len(self._runs[-1].ids):
            self._runs[-2:] = [merged(self._runs[-2:])]

    def _find(self, ids: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Whether each id is there, `(n,)`; of those that are, file and row, `(m,)` each."""
        wanted = as_bytes(ids)
        is_there = np.zeros(len(ids), dtype=np.bool_)
        files, rows = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        for run in self._runs:
            sought = np.flatnonzero(~is_there)
            if not len(sought):
                break
            found, at = run.find(wanted[sought])
            is_there[sought[found]] = True
            files[sought[found]], rows[sought[found]] = run.files[at[found]], run.rows[at[found]]
        return is_there, files[is_there], rows[is_there]


def usage(folder: Path) -> list[CacheUsage]:
    """What the cache holds, the key used last first."""
    used = [
        CacheUsage(
            key=key.name,
            n_items=len(FeatureCache(folder, key.name)),
            n_bytes=sum(status.st_size for _, status in _listed(key)),
            last_used=datetime.fromtimestamp(_last_used(key), UTC),
        )
        for key in _keys(folder)
    ]
    return sorted(used, key=lambda one: one.last_used, reverse=True)


def shrink(folder: Path, max_bytes: int) -> None:
    """Remove files until the cache has at most `max_bytes`: those of the key not used for longest first, oldest first.

    Processes that have the files open keep their content. Temporary files that no one writes any more go too.
    """
    files = [
        (_last_used(key), status.st_mtime_ns, status.st_size, path)
        for key in _keys(folder)
        for path, status in _listed(key)
    ]
    n_bytes = sum(size for _, _, size, _ in files)
    for _, _, size, path in sorted(files):
        if n_bytes <= max_bytes:
            break
        path.unlink(missing_ok=True)
        n_bytes -= size
    for key in _keys(folder):
        with suppress(OSError):  # another process removes the key too, or is about to append
            _remove_abandoned(key)
            if not _names(key):
                (key / USED).unlink(missing_ok=True)
                key.rmdir()


def clear(folder: Path) -> None:
    """Remove all features."""
    shrink(folder, 0)


# Files


@dataclass
class _File:
    """Ids `(n,)` and features `(n, …)`, mapped from a file, and the checksum that they had when they were written."""

    path: Path
    mapped: pa.Buffer
    ids: NDArray[np.bytes_]
    features: NDArray[Any]
    checksum: int
    is_checked: bool = False

    def is_whole(self) -> bool:
        """Whether the content is what was written; all of it is read the first time."""
        if not self.is_checked:
            self.is_checked = _checksum(self.ids, self.features) == self.checksum
            self.let_go()
        return self.is_checked

    def let_go(self) -> None:
        """Give the memory of the file's pages back, which the system reads again when they are wanted.

        Else a process that has read all features once counts as holding them, for the system and whoever bounds it.
        """
        advise = _advise()
        if advise is not None:
            advise(self.mapped.address, self.mapped.size, mmap.MADV_DONTNEED)


@lru_cache(maxsize=1)
def _advise() -> Callable[[int, int, int], int] | None:
    """The system's `madvise`; Python has it for files that stay open alone, and thousands may not."""
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found


def _copy_rows(
    target: NDArray[Any], positions: NDArray[np.int64], source: NDArray[Any], rows: NDArray[np.int64]
) -> None:
    """Copy rows of a file to their positions; what follows each other in both is copied at once."""
    n = len(rows) - 1
    in_line = rows[n] - rows[0] == n == positions[n] - positions[0]  # which few rows from anywhere are not
    if in_line and (np.diff(positions) == 1).all() and (np.diff(rows) == 1).all():
        target[positions[0] : positions[0] + len(rows)] = source[rows[0] : rows[0] + len(rows)]
    else:
        target[positions] = source[rows]


def _checksum(ids: NDArray[np.bytes_], features: NDArray[Any]) -> int:
    form = f"{ids.dtype} {features.shape}".encode()
    return zlib.crc32(features.data, zlib.crc32(np.ascontiguousarray(ids).data, zlib.crc32(form)))


def _write(path: Path, ids: NDArray[np.bytes_], features: NDArray[Any]) -> None:
    """Write an Arrow file under a temporary name, then rename it: `path` is never seen half written."""
    n_items = len(ids)
    id_column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ids.itemsize), n_items, [None, pa.py_buffer(ids)])
    feature_column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features[0].size)
    metadata = {"shape": json.dumps(features.shape[1:]), "checksum": str(_checksum(ids, features))}
    batch = pa.record_batch({"item_id": id_column, "features": feature_column}).replace_schema_metadata(metadata)
    temporary = _make_unfinished(path)
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:  # Arrow does not say which file
        raise OSError(exc.errno, exc.strerror or str(exc), str(path)) from exc
    finally:
        temporary.unlink(missing_ok=True)


def _make_unfinished(path: Path) -> Path:
    """Make a temporary file in the folder of `path`, which another process may remove as long as it is empty."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
            temporary.touch(exist_ok=False)
            return temporary
    raise FileNotFoundError(f"the folder {path.parent} cannot be made, or is removed again and again")


def _open(path: Path) -> _File | None:
    """A file, mapped and not yet read; None where it has vanished, or is damaged and therefore removed."""
    try:
        with pa.memory_map(str(path)) as source:
            mapped = source.read_buffer()
        batch = pa.ipc.open_file(pa.BufferReader(mapped)).get_batch(0)
        ids, features = batch.column("item_id"), batch.column("features")
        shape = json.loads(batch.schema.metadata[b"shape"])
        checksum = int(batch.schema.metadata[b"checksum"])
        return _File(
            path,
            mapped,
            np.frombuffer(ids.buffers()[1], dtype=f"S{ids.type.byte_width}"),
            np.frombuffer(features.buffers()[-1], features.type.value_type.to_pandas_dtype()).reshape(-1, *shape),
            checksum,
        )
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        if not isinstance(exc, OSError) or exc.errno is None:  # else the system would not open it now
            _set_aside(path, str(exc))
        return None


def _set_aside(path: Path, reason: str) -> None:
    """Remove a damaged file, as far as that is allowed."""
    log.warning("feature cache: %s is damaged and is removed, its features are computed again: %s", path, reason)
    with suppress(OSError):
        path.unlink()


def _keys(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _names(key: Path, ending: str = ENDING) -> list[str]:
    """Names of the files of a key; none where another process has removed it."""
    with suppress(FileNotFoundError), os.scandir(key) as entries:
        return [entry.name for entry in entries if entry.name.endswith(ending)]
    return []


def _listed(key: Path, ending: str = ENDING) -> Iterator[tuple[Path, os.stat_result]]:
    """Files of a key with what the disk says of them."""
    for name in _names(key, ending):
        with suppress(FileNotFoundError):
            yield key / name, (key / name).stat()


def _last_used(key: Path) -> float:
    """Seconds since the epoch."""
    with suppress(FileNotFoundError):
        return (key / USED).stat().st_mtime
    return max((status.st_mtime for _, status in _listed(key)), default=0.0)


def _remove_abandoned(key: Path) -> None:
    """Remove temporary files whose writers were killed, told by the clock of the disk."""
    with tempfile.TemporaryFile(dir=key) as file:
        now = os.fstat(file.fileno()).st_mtime
    for path, status in _listed(key, UNFINISHED):
        if now - status.st_mtime > ABANDONED_AFTER:
            path.unlink(missing_ok=True)


def _changed_at(folder: Path) -> int | None:
    """When files of a folder appeared or vanished last, nanoseconds; None where it is not there."""
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime_ns
    return None
