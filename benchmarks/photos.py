"""Crops of two photographs on disk, and heads on one frozen trunk to score them with."""

import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.transfer import lite0_settings
from connectors.images.pixels import load_images
from pipeline.learning.lesson import Lesson
from pipeline.learning.networks import frozen_body
from pipeline.learning.settings import MemberSettings
from pipeline.learning.train import train_network
from pipeline.networks.build import with_new_head
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import extract
from pipeline.tasks import classification

SIZE, N_CLASSES, N_LABELLED, N_HEADS = 96, 10, 500, 5
SETTINGS = lite0_settings("cifar").model_copy(update={"image_size": SIZE})
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Photos:
    """Crops on disk, and networks on one trunk to score them with.

    Attributes:
        ids: `(N,)` item ids, with uris and targets `(N,)`, class indices.
        heads: networks that share their trunk, the first with a trained head.
        folder: deleted when nobody holds it.
    """

    ids: list[str]
    uris: list[str]
    targets: Tensor
    heads: list[Classifier]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def __str__(self) -> str:
        return f"{len(self.uris):,} photographs"


def write_photos(n: int) -> Photos:
    """Write n crops as JPEG files, and train a head on others."""
    folder = tempfile.TemporaryDirectory()
    n_labelled = min(n, N_LABELLED)
    uris, targets = write_crops(Path(folder.name), n + n_labelled)
    labelled = load_images(uris[n:], size=SIZE, channels=3)
    trained = fit_head(extract(trunk(), labelled, device=CPU), targets[n:], seed=0)
    heads = [trained, *(with_new_head(trained, seed=seed) for seed in range(1, N_HEADS))]
    return Photos([Path(uri).stem for uri in uris[:n]], uris[:n], targets[:n], heads, folder)


def write_crops(folder: Path, n: int) -> tuple[list[str], Tensor]:
    """Write n crops as JPEG files; return their paths and classes `(n,)`."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    uris, targets = [], []
    for place in range(n):
        which = int(rng.integers(len(pictures)))
        picture, side = pictures[which], int(rng.integers(160, 261))
        left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
        uris.append(str(folder / f"{place:06d}.jpg"))
        picture.resize((400, 400), box=(left, top, left + side, top + side)).save(uris[-1], quality=90)
        targets.append(5 * which + int(5 * (left + side / 2) / picture.width))
    return uris, torch.tensor(targets)


def with_empty_cache(photos: Photos) -> tuple[Photos, Path]:
    """Return the crops, and a new folder for their features."""
    return photos, Path(tempfile.mkdtemp(dir=photos.folder.name))


@dataclass(frozen=True)
class Features:
    """Features in memory, of labelled crops and of others.

    Attributes:
        labelled: `(n, D)`, with targets `(n,)`.
        others: `(m, D)`, with other_targets `(m,)`.
    """

    labelled: Tensor
    targets: Tensor
    others: Tensor
    other_targets: Tensor

    def __str__(self) -> str:
        n, n_features = self.labelled.shape
        return f"{n} labels x {n_features}"


def extract_features(n: int) -> Features:
    """Return features of n labelled crops and of as many others."""
    with tempfile.TemporaryDirectory() as folder:
        uris, targets = write_crops(Path(folder), 2 * n)
        features = extract(trunk(), load_images(uris, size=SIZE, channels=3), device=CPU)
    return Features(features[:n], targets[:n], features[n:], targets[n:])


def fit_head(features: Tensor, targets: Tensor, *, seed: int) -> Classifier:
    """A head on features, trained as a campaign trains it, but for the search out of fold."""
    lesson = Lesson(classification, N_CLASSES, "head", features, targets, trunk())
    return train_network(lesson, SETTINGS, MemberSettings(), seed=seed).model


@cache
def trunk() -> Classifier:
    """The network whose frozen trunk all heads share."""
    return frozen_body(SETTINGS, classification, n_classes=N_CLASSES)
