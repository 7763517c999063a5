"""What the models of a replay read, computed once: images, or the features that a trunk makes of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.images.pixels import load_images
from connectors.images.ranges import measure_ranges
from connectors.images.reading import Reading
from connectors.objects.reading import Objects
from connectors.store import write_atomic
from flows.artefacts import PIXEL_RANGES
from flows.progress import progress_bar
from flows.records import PixelRanges
from flows.replay.folder import Replay, ReplaySettings
from flows.replay.model import SMALL_SIDE
from pipeline.learning.networks import CHUNK, frozen_body, new_model
from pipeline.networks.devices import choose_device
from pipeline.networks.features import extract
from pipeline.types import OnProgress


def write_data(replay: Replay, features: NDArray[np.float32] | None, *, memory_gb: float) -> None:
    """Write what the models read: ready features `(N, D)`, else images, or the features of a trunk that stays as it is.

    Args:
        memory_gb: that one image may take while it is decoded.
    """
    if features is not None:
        write_atomic(replay.data_path, partial(_save_chunks, [torch.from_numpy(features)], len(features)))
        return
    uris = replay.labels["uri"].tolist()
    reading = _measure(replay, memory_gb)
    with progress_bar("reading images", unit="images") as on_progress:
        chunks = _read_chunks(replay.settings, uris, reading, on_progress)
        write_atomic(replay.data_path, partial(_save_chunks, chunks, len(uris)))


def write_trunk_features(replay: Replay) -> None:
    """Write what the frozen trunk of a pretrained network makes of the images, float16 `(N, ...)`."""
    network, images = replay.settings.network, replay.data
    if network is None:
        raise ValueError("a replay of ready features has no network")
    body = frozen_body(network, replay.settings.task_type, n_classes=len(replay.settings.classes))
    with progress_bar("features", unit="images") as on_progress:

        def chunks() -> Iterator[Tensor]:
            for start in range(0, len(images), CHUNK):
                yield extract(body, images[start : start + CHUNK], device=body.mean.device)
                on_progress(min(start + CHUNK, len(images)), len(images))

        write_atomic(replay.trunk_features_path, partial(_save_chunks, chunks(), len(images)))


def _measure(replay: Replay, memory_gb: float) -> Reading:
    """How the images are read: deep pixels by the range of a sample, drawn by the names in the labels file."""
    labels = replay.labels
    order = sorted(range(len(labels)), key=lambda row: hashlib.blake2b(labels["file"][row].encode()).digest())
    ranges = measure_ranges(labels["uri"].iloc[order].tolist(), reading=Reading((), memory_gb, Objects()))
    replay.write(PIXEL_RANGES, PixelRanges(ranges))
    return Reading(ranges, memory_gb, Objects())


def _read_chunks(
    settings: ReplaySettings, uris: Sequence[str], reading: Reading, on_progress: OnProgress
) -> Iterator[Tensor]:
    """Chunks of the images, or of their features where the head is linear."""
    side, channels = settings.image_size or SMALL_SIDE, settings.channels or 3
    trunk = None
    if settings.is_linear and settings.network is not None:
        device = choose_device(settings.network.device)
        trunk = new_model(settings.network, settings.task_type, n_classes=len(settings.classes), seed=0).to(device)
    for start in range(0, len(uris), CHUNK):
        images = load_images(uris[start : start + CHUNK], size=side, channels=channels, reading=reading)
        if trunk is not None:
            yield trunk.embed(images.to(trunk.mean.device)).float().cpu()
        else:
            yield images.flatten(1) / 255 if settings.is_linear else images
        on_progress(min(start + CHUNK, len(uris)), len(uris))


def _save_chunks(chunks: Iterable[Tensor], n_rows: int, path: Path) -> None:
    """Write chunks one after another as one array, which is never in memory as a whole."""
    with path.open("wb") as file:
        for number, chunk in enumerate(chunks):
            values = np.ascontiguousarray(chunk.numpy())
            if number == 0:
                form = {"descr": values.dtype.str, "fortran_order": False, "shape": (n_rows, *values.shape[1:])}
                np.lib.format.write_array_header_1_0(file, form)  # type: ignore[no-untyped-call]
            file.write(values.data)
