"""Features of a frozen trunk, computed once for each image and kept between rounds.

A cache is a folder with a subfolder for each key, the digest of all that the features depend on besides the image:

    <folder>/<key>/<any name>.arrow      what one call appended: `item_id`, `features`; written once, never changed
                  /used                  its time says when the key was last used

Processes share a cache without a lock: a file appears under its name when it is whole, and one item in two files does
no harm, since both hold the same numbers.
"""

import hashlib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np
import PIL
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from connectors.images.deep_pixels import Range, Reading
from connectors.images.pixels import WHOLE, stream_images
from pipeline.networks.classifier import Classifier, evaluating, half_precision
from pipeline.networks.errors import ModelError

FORMAT = 3
"""Part of every key: raise it when a change of the code changes the features of an image."""
BATCH = 32
"""Images of one forward pass on a processor, few enough for its cache: with 64 of 96 or 224 pixels EfficientNet-Lite0
takes 1.5 times as long, ResNet-18 from 0.9 to 1.1 times."""
GPU_BATCH = 64
"""Images of one forward pass elsewhere."""
CHUNK_BYTES = 2**28
"""Decoded images of one append, at most."""
ABANDONED_AFTER = 86_400.0
"""Seconds after which a temporary file has no writer any more."""
LIBRARIES = ("torch", "torchvision", "timm")
"""Whose layers are told by their release, and not by their source."""
ATTEMPTS = 20
USED = "used"
ENDING = ".arrow"
UNFINISHED = ".part"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheUsage:
    """What the cache holds under one key.

    Attributes:
        key: see `feature_key`.
        n_items: images.
        n_bytes: size of the files.
        last_used: when features were last read or appended, UTC.
    """

    key: str
    n_items: int
    n_bytes: int
    last_used: datetime


# Computing


def extract(model: Classifier, images: Tensor, *, device: torch.device) -> Tensor:
    """What the tail reads of each image, rounded to float16, with the trunk in evaluation mode.

    Every forward pass has the same number of images, filled up with black ones, because a network's last bits depend
    on the size of the batch: so an image's features do not depend on the images beside it. They may depend on the
    device, the release of torch, and the number of threads.

    Args:
        images: uint8 `(n, channels, S, S)`.
        device: where the network runs; it is moved there.

    Returns:
        float16 `(n, D)`, or `(n, …)` where the trunk ends in something else than a vector; on the CPU.

    Raises:
        ModelError: a feature is not finite in float16, whose largest number is 65,504.
    """
    model.to(device)
    with torch.no_grad(), evaluating(model):
        n_images = BATCH if device.type == "cpu" else GPU_BATCH
        features = torch.cat([_batch_features(model, few, n_images, device) for few in images.split(n_images)]).cpu()
    if not features.isfinite().all():
        raise ModelError(
            f"the features of {type(model.trunk).__name__} do not fit into float16: some are not finite or larger than "
            "65504; take another network, or train this one's body too"
        )
    return features


def _batch_features(model: Classifier, images: Tensor, n_images: int, device: torch.device) -> Tensor:
    """Float16 features, on `device`, of images that are filled up to `n_images`."""
    batch = torch.cat([images, images.new_zeros((n_images - len(images), *images.shape[1:]))])
    if device.type == "cuda":
        batch = batch.pin_memory()  # copied while the network works on the batch before
    return model.features(batch.to(device, non_blocking=True))[: len(images)].half()


@torch.no_grad()
def feature_key(
    model: Classifier, *, image_size: int, device: torch.device | None = None, ranges: Sequence[Range] = ()
) -> str:
    """Digest of all that the features of an image depend on: equal keys, equal features.

    It covers the trunk's layers, weights and statistics, mean and std, size and channels of the images, the kind of
    device with the type of number it computes in, releases of the libraries, the source of layers of one's own, and
    `FORMAT`; not functions that such layers call, nor numbers that they keep elsewhere than in tensors and their names.
    All weights are read: ask once for a network, not once for each part of a pool.

    Args:
        image_size: side of the square images, pixels.
        device: where the network will run; None where it is now.
        ranges: of the pool's deep pixels; a pool of 8 bits has none.

    Returns:
        32 hexadecimal digits.
    """
    device = device or model.mean.device
    with half_precision(model, device):
        is_half = torch.is_autocast_enabled(device.type)
        computed_in = torch.get_autocast_dtype(device.type) if is_half else torch.float32
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model.trunk))  # the address of a function changes from run to run
    told = [FORMAT, image_size, model.channels, device.type, str(computed_in), layers, _code_of(model.trunk)]
    told += [[one.kind, one.low, one.high] for one in ranges]
    digest = hashlib.sha256(json.dumps(told).encode())
    for name, values in {"mean": model.mean, "std": model.std, **model.trunk.state_dict()}.items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _code_of(trunk: nn.Module) -> list[str]:
    """Releases of Pillow and of the libraries that the layers are of, and the source of layers of one's own."""
    releases, sources = {f"Pillow {PIL.__version__}"}, set()
    for layer in {base for module in trunk.modules() for base in type(module).__mro__}:
        library = layer.__module__.partition(".")[0]
        if library in LIBRARIES:
            releases.add(f"{library} {sys.modules[library].__version__}")
        elif library != "builtins":
            with suppress(OSError, TypeError):  # typed in, so that there is no source
                sources.add(inspect.getsource(layer))
    return [*sorted(releases), *sorted(sources)]


def cached_features(
    cache: "FeatureCache",
    model: Classifier,
    ids: Sequence[str],
    uris: Sequence[str],
    *,
    image_size: int,
    channels: int,
    device: torch.device,
    reading: Reading = WHOLE,
    advance: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of images, from the cache; what is missing there is computed and appended, chunk by chunk.

    A call that was killed goes on where it stood; the next chunk is decoded while the network works on one. Another
    process may remove anything meanwhile.

    Args:
        cache: opened with the `feature_key` of this network, size, device and ranges.
        ids: `(n,)` item ids.
        uris: `(n,)` their paths.
        image_size: side of the square images, pixels.
        channels: 1 for grey, 3 for RGB.
        device: where the network runs.
        reading: how the images are read.
        advance: called with the images done and all images.

    Returns:
        float16 `(n, …)` on the CPU.

    Raises:
        PoolError: an image cannot be read; the chunks before it are kept.
    """
    if not ids:
        return extract(model, torch.empty((0, channels, image_size, image_size), dtype=torch.uint8), device=device)
    missing, features = cache.read_kept(ids)
    n_done = len(ids) - len(missing)
    chunk = _chunk_size(image_size, channels)
    wanted = [uris[p] for p in missing.tolist()]
    images = stream_images(wanted, size=image_size, channels=channels, chunk=chunk, reading=reading)
    with closing(images):
        for positions, part in zip(missing.split(chunk) if len(missing) else (), images, strict=True):
            computed = extract(model, part, device=device)
            cache.append([ids[p] for p in positions.tolist()], computed)
            features = computed.new_zeros((len(ids), *computed.shape[1:])) if features is None else features
            features[positions] = computed
            n_done += len(part)
            if advance is not None:
                advance(n_done, len(ids))
    return cast(Tensor, features)


# Keeping


class FeatureCache:
    """Features by item id under one key, in files that processes and threads may add to at the same time.

    The ids are in memory; the features are mapped. What another process removes is gone here at the next call, and
    gives its memory back. A file that is damaged is removed with a warning, and its items are missing again.

    Args:
        folder: of the whole cache.
        key: see `feature_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        self._lock = threading.RLock()
        self._seen: set[str] = set()
        self._files: dict[int, _File] = {}
        # Where each item is: sorted ids, which a million of finds thousands in milliseconds, with file and row.
        self._ids: NDArray[np.bytes_] = np.empty(0, dtype="S1")
        self._file: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._row: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Items that are there now."""
        with self._lock:
            self._look_for_files()
            return len(np.unique(self._ids))

    def missing(self, ids: Sequence[str]) -> Tensor:
        """Positions `(m,)` of the ids that the cache does not hold; what other processes appended counts."""
        with self._lock:
            self._look_for_files()
            is_there, files, _ = self._find(ids)
            while damaged := [number for number in np.unique(files) if not self._files[number].is_whole()]:
                for number in damaged:
                    _set_aside(self._files[number].path, "its content is not what was written")
                self._forget(damaged)
                is_there, files, _ = self._find(ids)  # another file may have the same items
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
            missing = self.missing(ids)
            is_there, files, rows = self._find(ids)
            if len(files) == 0:
                return missing, None
            features = np.zeros((len(ids), *self._files[files[0]].features.shape[1:]), dtype=np.float16)
            positions = np.flatnonzero(is_there)
            for number in np.unique(files):
                of_file = files == number
                features[positions[of_file]] = self._files[number].features[rows[of_file]]
        self._mark_used()
        return missing, torch.from_numpy(features)

    def append(self, ids: Sequence[str], features: Tensor) -> None:
        """Add features `(n, …)` of float16, one file at a time; others see it when it is whole."""
        if len(ids) != len(features) or features.dtype != torch.float16:
            raise ValueError(
                f"wanted float16 features of {len(ids)} items, got {features.dtype} {tuple(features.shape)}"
            )
        if ids:
            path, values = self.folder / f"{uuid4().hex}{ENDING}", features.cpu().contiguous().numpy()
            _write(path, _as_bytes(ids), values)
            self._mark_used()

    def _mark_used(self) -> None:
        with suppress(FileNotFoundError):  # all of it has been removed meanwhile
            (self.folder / USED).touch()

    def _forget(self, numbers: Sequence[int]) -> None:
        """Drop files from the index."""
        kept = ~np.isin(self._file, numbers)
        self._ids, self._file, self._row = self._ids[kept], self._file[kept], self._row[kept]
        for number in numbers:
            del self._files[number]

    def _look_for_files(self) -> None:
        """Drop the files that vanished since the last look, and index those that appeared, by name.

        Of equal items the first one wins.
        """
        names = set(_names(self.folder))
        if vanished := [number for number, file in self._files.items() if file.path.name not in names]:
            self._forget(vanished)
        appeared = sorted(names - self._seen)
        self._seen = names
        opened = [file for name in appeared if (file := _open(self.folder / name)) is not None]
        if not opened:
            return
        numbered = dict(enumerate(opened, 1 + max(self._files, default=-1)))
        ids = np.concatenate([self._ids, *(file.ids for file in opened)])
        numbers = [np.full(len(file.ids), number) for number, file in numbered.items()]
        order = ids.argsort(kind="stable")  # quick where most is sorted already
        self._ids = ids[order]
        self._file = np.concatenate([self._file, *numbers])[order]
        self._row = np.concatenate([self._row, *(np.arange(len(file.ids)) for file in opened)])[order]
        self._files |= numbered

    def _find(self, ids: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Whether each id is there, `(n,)`; of those that are, file and row, `(m,)` each."""
        wanted = _as_bytes(ids)
        if not len(self._ids):
            return np.zeros(len(ids), dtype=bool), self._file, self._row
        at = self._ids.searchsorted(wanted).clip(max=len(self._ids) - 1)
        is_there = self._ids[at] == wanted
        return is_there, self._file[at[is_there]], self._row[at[is_there]]


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
    ids: NDArray[np.bytes_]
    features: NDArray[np.float16]
    checksum: int
    is_checked: bool = False

    def is_whole(self) -> bool:
        """Whether the content is what was written; all of it is read the first time."""
        self.is_checked = self.is_checked or _checksum(self.ids, self.features) == self.checksum
        return self.is_checked


def _checksum(ids: NDArray[np.bytes_], features: NDArray[np.float16]) -> int:
    form = f"{ids.dtype} {features.shape}".encode()
    return zlib.crc32(features.data, zlib.crc32(np.ascontiguousarray(ids).data, zlib.crc32(form)))


def _write(path: Path, ids: NDArray[np.bytes_], features: NDArray[np.float16]) -> None:
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
            batch = pa.ipc.open_file(source).get_batch(0)
        ids, features = batch.column("item_id"), batch.column("features")
        shape = json.loads(batch.schema.metadata[b"shape"])
        checksum = int(batch.schema.metadata[b"checksum"])
        return _File(
            path,
            np.frombuffer(ids.buffers()[1], dtype=f"S{ids.type.byte_width}"),
            np.frombuffer(features.buffers()[-1], dtype=np.float16).reshape(len(batch), *shape),
            checksum,
        )
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
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


def _as_bytes(ids: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([item_id.encode() for item_id in ids], dtype=np.bytes_)


def _chunk_size(image_size: int, channels: int) -> int:
    """Images of one append: 1,024, or fewer where they are large; whole batches."""
    return min(1024, max(1, CHUNK_BYTES // (BATCH * channels * image_size**2)) * BATCH)
