"""300 digits with their labels, and a replay of them that tests share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flows.replay.command import replay_strategies
from flows.replay.options import Options
from pipeline.evaluation.summary import SECONDS

N = 300


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder with the features, labels and images of 300 digits of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    features = (data.data[:N] / 16).astype(np.float32)
    np.save(folder / "features.npy", features)
    table = pd.DataFrame({"file": [f"{number:03d}.png" for number in range(N)], "label": data.target[:N]})
    table.to_csv(folder / "labels.csv", index=False)
    (folder / "images").mkdir()
    for file, image in zip(table["file"], data.images, strict=False):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / "images" / file)
    return folder


def options_of(digits: Path, out: Path, **changes) -> Options:
    options = Options(
        out=out,
        features=digits / "features.npy",
        labels=digits / "labels.csv",
        strategies="random,margin",
        seeds=3,
        query_size=20,
        rounds=3,
        workers=1,
    )
    return replace(options, **changes)


@pytest.fixture(scope="session")
def replayed(digits, tmp_path_factory) -> Path:
    """The folder of a replay of two arms, three seeds and three rounds."""
    out = tmp_path_factory.mktemp("replayed") / "out"
    replay_strategies(options_of(digits, out))
    return out


def curves_of(out: Path) -> pd.DataFrame:
    """The curves without the seconds, the lists as tuples, so that they can be compared."""
    table = pd.read_parquet(out / "curves.parquet").drop(columns=list(SECONDS))
    return table.map(lambda value: tuple(value) if isinstance(value, np.ndarray) else value)


def same(one: Path, two: Path) -> bool:
    return curves_of(one).equals(curves_of(two))


def options_of_images(folder: Path, out: Path, **changes) -> Options:
    options = Options(
        out=out,
        images=folder / "images",
        labels=folder / "labels.csv",
        strategies="random",
        seeds=5,
        query_size=8,
        rounds=2,
        workers=1,
    )
    return replace(options, **changes)
