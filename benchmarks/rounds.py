"""A whole round on cached features, besides servers and files: train, score, select."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from benchmarks.photos import (
    CPU,
    N_CLASSES,
    N_HEADS,
    N_LABELLED,
    SETTINGS,
    SIZE,
    Photos,
    trunk,
    with_empty_cache,
    write_photos,
)
from connectors.frozen_features import cached_features, open_cache
from connectors.images.pixels import load_images
from flows.predict import SHARD
from pipeline.learning.lesson import Lesson
from pipeline.learning.predict import decide_on_features
from pipeline.learning.settings import MemberSettings
from pipeline.learning.train import learn
from pipeline.members.predict import Decided
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import extract
from pipeline.selection.ask import gather_candidates, probs_read, score_candidates
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import classification
from pipeline.types import Batch, Candidates

MEMBERS, HOW = MemberSettings(ensemble=N_HEADS), SelectionSettings()


@dataclass(frozen=True)
class Round:
    """A round about to train: features of labelled images and candidates are in the cache.

    Attributes:
        ids: of the labelled images, which come first, and of the candidates.
        uris: of the crops that their features were made of.
        targets: `(M,)` class indices of the labelled images.
    """

    photos: Photos
    folder: Path
    ids: list[str]
    uris: list[str]
    targets: Tensor

    def __str__(self) -> str:
        return f"{len(self.targets)} labels, {len(self.ids) - len(self.targets):,} candidates"

    def features(self, rows: slice) -> Tensor:
        """Features `(n, D)` of some of the images, from the cache."""
        cache = open_cache(self.folder, trunk(), image_size=SIZE)
        return cached_features(cache, trunk(), self.ids[rows], self.uris[rows], image_size=SIZE)


@dataclass(frozen=True)
class Done:
    """What a round asks for, and the seconds of its parts: train, which includes the cross-fit, score, select."""

    batch: Batch
    seconds: dict[str, float]


def make_round(n: int) -> Round:
    """Fill a cache with features of n candidates and of `N_LABELLED` images with labels.

    No image is read in the round, so the features are those of 1,000 crops at most, again and again with noise.
    """
    photos, folder = with_empty_cache(write_photos(min(n, 1000)))
    images = load_images(photos.uris, size=SIZE, channels=3)
    features = extract(trunk(), images, device=CPU).float()
    n_labelled = min(N_LABELLED, len(features))
    rows = torch.arange(n_labelled + n) % len(features)
    generator = torch.Generator().manual_seed(0)
    noisy = features[rows] + features.std() / 4 * torch.randn(len(rows), features.shape[1], generator=generator)
    ids = [f"{row:07d}" for row in range(len(rows))]
    open_cache(folder, trunk(), image_size=SIZE).append(ids, noisy.half())
    return Round(photos, folder, ids, [photos.uris[row] for row in rows], photos.targets[:n_labelled])


def whole_round(prepared: Round, seed: int) -> Done:
    """Train, score and select, with the functions of a round in their order."""
    times = [perf_counter()]
    labelled = slice(len(prepared.targets))
    lesson = Lesson(classification, N_CLASSES, "head", prepared.features(labelled), prepared.targets, trunk())
    heads = learn(lesson, SETTINGS, MEMBERS, seed=seed, round_number=1)
    times.append(perf_counter())
    candidates = score_pool(prepared, heads, seed)
    times.append(perf_counter())
    batch = select_batch(candidates, HOW, round_number=1, seed=seed)
    times.append(perf_counter())
    return Done(batch, dict(zip(("train", "score", "select"), np.diff(times).tolist(), strict=True)))


def score_pool(prepared: Round, heads: Sequence[Classifier], seed: int) -> Candidates:
    """Score the candidates shard by shard, and gather those columns that choosing a batch reads."""
    n_labelled = len(prepared.targets)
    parts = [
        (score_candidates(decisions, HOW).scores, probs_read(decisions, HOW), embeddings.half())
        for start in range(n_labelled, len(prepared.ids), SHARD)
        for decisions, embeddings, _ in decide(heads, prepared.features(slice(start, start + SHARD)), seed)
    ]
    scores, probs, embeddings = (torch.cat(column) for column in zip(*parts, strict=True))
    of_labelled = decide(heads[:1], prepared.features(slice(n_labelled)), seed)
    columns = {
        "probs": lambda: probs,
        "embeddings": lambda: embeddings,
        "labelled_embeddings": lambda: torch.cat([embedded.half() for _, embedded, _ in of_labelled]),
        "labelled_targets": lambda: prepared.targets,
    }
    ids = np.array(prepared.ids[n_labelled:], dtype=np.str_)
    return gather_candidates(ids, scores, columns, HOW, n_classes=N_CLASSES)


def decide(heads: Sequence[Classifier], features: Tensor, seed: int) -> Iterator[Decided]:
    """What the members decide, a part of the images at a time."""
    return decide_on_features(heads, features, MEMBERS, task=classification, seed=seed)


def waits(prepared: Round, done: Done, seconds: float, peak: float | None) -> str:
    """Say what a user waits for besides servers and files, part by part, in the first run."""
    parts = ", ".join(f"{name} {part:.2f} s" for name, part in done.seconds.items())
    return f"wait besides servers and files, first run: {sum(done.seconds.values()):.2f} s = {parts}"
