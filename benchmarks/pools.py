"""The synthetic pool that the benchmarks of selection run on: ten Gaussian clusters, seeded; what is read off it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.selection.acquisition import margin
from pipeline.selection.ask import candidates_of
from pipeline.selection.settings import SelectionSettings
from pipeline.types import Candidates

N_LABELLED = 200
"""The first so many images have a label."""

CHUNK = 50_000
"""Images made at a time, so that making a pool takes little more memory than the pool."""


@dataclass(frozen=True)
class Pool:
    """Images, some of them labelled, and a batch to choose from the others.

    Attributes:
        embeddings: `(N, D)` float32, the labelled first.
        targets: `(N,)` int64 true classes.
        probs: `(N, K, C)` float32 class probabilities of K members; K may be 0.
        n_picks: images to choose.
    """

    embeddings: Tensor
    targets: Tensor
    probs: Tensor
    n_picks: int

    def __str__(self) -> str:
        n, n_features = self.embeddings.shape
        _, n_members, n_classes = self.probs.shape
        members = f", {n_members} members x {n_classes} classes" if n_members > 1 else ""
        picks = f", {N_LABELLED} labelled, {self.n_picks:,} picks" if self.n_picks else ""
        return f"{n:,} x {n_features}{members}{picks}"

    @property
    def candidates(self) -> Tensor:
        """`(N - M, D)` embeddings of what may be chosen."""
        return self.embeddings[N_LABELLED:]

    @property
    def labelled(self) -> Tensor:
        """`(M, D)` embeddings of what has a label."""
        return self.embeddings[:N_LABELLED]

    def on(self, device: str) -> "Pool":
        """Return the pool on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("embeddings", "targets", "probs")}
        return replace(self, **tensors)

    def unit(self) -> "Pool":
        """Return the pool with embeddings of length 1."""
        return replace(self, embeddings=torch.nn.functional.normalize(self.embeddings, dim=1))


def make_pool(
    n: int,
    n_features: int,
    n_picks: int,
    *,
    n_members: int = 1,
    n_classes: int = 10,
    sharpness: float = 1.0,
    disagreement: float = 0.5,
) -> Pool:
    """Draw a pool with seed 0: centres N(0, 1), embeddings N(centre, 1.5^2).

    The logits of a member are N(sharpness * centres . x / sqrt D, disagreement^2). The defaults make nearly one-hot
    probabilities.

    Args:
        n: images, at least `N_LABELLED`.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_classes, n_features))
    targets = rng.integers(0, n_classes, n)
    embeddings = np.empty((n, n_features), dtype=np.float32)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        embeddings[rows] = centres[targets[rows]] + 1.5 * rng.normal(size=embeddings[rows].shape)
    weights = (sharpness * centres.T / n_features**0.5).astype(np.float32)
    probs = np.empty((n, n_members, n_classes), dtype=np.float32)
    for start in range(0, n if n_members else 0, CHUNK):
        rows = slice(start, start + CHUNK)
        noise = rng.normal(size=(len(embeddings[rows]), n_classes, n_members)).astype(np.float32)
        logits = (embeddings[rows] @ weights)[:, None, :] + disagreement * noise.swapaxes(1, 2)
        likely = np.exp(logits - logits.max(axis=2, keepdims=True))
        probs[rows] = likely / likely.sum(axis=2, keepdims=True)
    return Pool(torch.from_numpy(embeddings), torch.from_numpy(targets), torch.from_numpy(probs), n_picks)


def gradient_factors(pool: Pool) -> list[Tensor]:
    """Return `(N - M, C)` and `(N - M, D)`, whose products of rows are BADGE's gradients (Ash et al., 2020)."""
    mean = pool.probs[N_LABELLED:].mean(dim=1)
    guesses = torch.nn.functional.one_hot(mean.argmax(dim=1), mean.shape[1])
    return [mean - guesses, pool.candidates]


def uncertainty(pool: Pool) -> Tensor:
    """Return `(N - M,)` one minus the margin."""
    return margin(pool.probs[N_LABELLED:])


def adaptive_radius(pool: Pool) -> float:
    """Return the smallest distance between two labelled images (Bae et al., 2025)."""
    return float(torch.nn.functional.pdist(pool.labelled.cpu()).min())


def as_candidates(pool: Pool, how: SelectionSettings) -> Candidates:
    """Return the candidates with those columns that choosing a batch reads."""
    decided = [(pool.probs[N_LABELLED:].unsqueeze(1), pool.candidates)]
    labelled = [(pool.probs[:N_LABELLED].unsqueeze(1), pool.labelled)]
    labels = {"labelled_targets": lambda: pool.targets[:N_LABELLED]}
    return candidates_of(make_ids(pool), decided, lambda: labelled, labels, how, n_classes=pool.probs.shape[2])


def make_ids(pool: Pool) -> NDArray[np.str_]:
    """Return `(N - M,)` ids of the candidates."""
    return np.char.zfill(np.arange(len(pool.candidates)).astype(str), 7)
