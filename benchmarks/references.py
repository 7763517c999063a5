"""Textbook versions to compare with, one pass for each pick, and what a selection is worth."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

CHUNK = 4096


def one_at_a_time(points: Tensor, n_picks: int, centres: Tensor, *, dtype: DTypeLike = np.float64) -> NDArray[np.int64]:
    """Return the farthest point again and again, one product with all points for each pick.

    Args:
        points: `(N, D)`.
        centres: `(M, D)` what counts as picked already, M >= 1.
        dtype: what it is computed in; float32 takes half the time, and rounding can change a pick.
    """
    x, c = points.numpy().astype(dtype), centres.numpy().astype(dtype)
    origin = x.mean(axis=0)
    x, c = x - origin, c - origin
    lengths = np.square(x).sum(axis=1)
    distance = np.full(len(x), np.inf, dtype=dtype)
    picks: list[int] = []
    for centre in c:
        np.minimum(distance, lengths - 2 * (x @ centre) + centre @ centre, out=distance)
    while len(picks) < n_picks:
        picks.append(int(distance.argmax()))
        centre = x[picks[-1]]
        np.minimum(distance, lengths - 2 * (x @ centre) + centre @ centre, out=distance)
        distance[picks] = -np.inf
    return np.array(picks)


def d2_one_at_a_time(factors: Sequence[NDArray[np.float32]], n_picks: int, seed: int) -> NDArray[np.int64]:
    """Seed k-means++ on the products of the factors' rows, as BADGE does (Ash et al., 2020).

    ||x - y||^2 = |x1|^2 |x2|^2 + |y1|^2 |y2|^2 - 2 (x1 . y1)(x2 . y2): one product with each factor for each pick.
    The longest vector is first.
    """
    rng = np.random.default_rng(seed)
    lengths = np.prod([np.square(factor).sum(axis=1, dtype=np.float64) for factor in factors], axis=0)
    distance = np.full(len(lengths), np.inf)
    picks = [int(lengths.argmax())]
    while True:
        last = picks[-1]
        products = np.prod([factor @ factor[last] for factor in factors], axis=0, dtype=np.float64)
        np.minimum(distance, np.maximum(lengths + lengths[last] - 2 * products, 0), out=distance)
        distance[picks] = 0
        if len(picks) == n_picks:
            return np.array(picks)
        picks.append(int(rng.choice(len(distance), p=distance / distance.sum())))


def herd_one_at_a_time(
    points: Tensor, n_picks: int, centres: Tensor, weights: Tensor, radius: float
) -> NDArray[np.int64]:
    """Take again and again what adds most to the weighted coverage, from the whole kernel (Bae et al., 2024; 2025).

    Args:
        points: `(N, D)`.
        centres: `(M, D)` what covers already, M >= 1.
        weights: `(N,)` of the points to be covered.
    """
    kernel = torch.exp(-torch.cdist(points, points).square() / radius**2).numpy()
    covered = torch.exp(-torch.cdist(points, centres).square() / radius**2).amax(dim=1).numpy()
    picks: list[int] = []
    for _ in range(n_picks):
        gains = np.maximum(kernel - covered, 0) @ weights.numpy()  # (x, y): the kernel is symmetric
        gains[picks] = -np.inf
        picks.append(int(gains.argmax()))
        covered = np.maximum(covered, kernel[picks[-1]])
    return np.array(picks)


def cover_radius(points: Tensor, centres: Tensor) -> float:
    """Return the largest distance of a point to its nearest centre."""
    return max(float(torch.cdist(rows, centres).amin(dim=1).max()) for rows in points.split(CHUNK))


def mean_distance(points: Tensor, centres: Tensor) -> float:
    """Return the mean distance of a point to its nearest centre."""
    return float(torch.cat([torch.cdist(rows, centres).amin(dim=1) for rows in points.split(CHUNK)]).mean())


def coverage(points: Tensor, centres: Tensor, weights: Tensor, radius: float) -> float:
    """Return the weighted mean of the points' kernel with the centre nearest to them, in [0, 1]."""
    near = torch.cat([torch.cdist(rows, centres).amin(dim=1) for rows in points.split(CHUNK)])
    return float((weights * torch.exp(-near.square() / radius**2)).sum() / weights.sum())


def potential(factors: Sequence[Tensor], picks: Tensor) -> float:
    """Return the mean squared distance to the nearest pick, between the products of the factors' rows."""
    lengths = torch.stack([factor.square().sum(dim=1) for factor in factors]).prod(dim=0)
    total = 0.0
    for rows in torch.arange(len(lengths)).split(CHUNK):
        products = torch.stack([factor[rows] @ factor[picks].T for factor in factors]).prod(dim=0)
        total += float((lengths[rows, None] + lengths[picks] - 2 * products).clamp_min(0).amin(dim=1).sum())
    return total / len(lengths)


def batch_bald_score(probs: Tensor, *, n_samples: int = 20_000) -> float:
    """Estimate what the labels of a batch tell together about the members, in nats (Kirsch et al., 2019).

    Mean of log p(y | w) / p(y) over members w and the labels y that these draw; seed 0.

    Args:
        probs: `(b, K, C)`.
    """
    generator = torch.Generator().manual_seed(0)
    n_members = probs.shape[1]
    logs = probs.double().clamp_min(1e-30).log()
    members = torch.randint(n_members, (n_samples,), generator=generator)
    together = torch.zeros(n_samples, n_members, dtype=torch.float64)
    for image, log in zip(probs, logs, strict=True):
        labels = torch.multinomial(image[members], 1, generator=generator).flatten()
        together += log.T[labels]
    own = together.gather(1, members[:, None]).flatten()
    return float((own - together.logsumexp(dim=1) + math.log(n_members)).mean())
