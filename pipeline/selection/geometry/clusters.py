"""Groups of points around centroids: Euclidean distance, positions in and out."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.selection.geometry.distances import ROWS, block_by_block, origin_of, squared_distances
from pipeline.selection.geometry.spread import d2_sampling_from

LARGE = 10_000
"""Points among which k-means looks for its centroids: an even random sample of a larger pool."""

LARGE_CLUSTER = 30
"""The same, for each cluster."""

PAIRS = 4_000_000
"""Distances between the members of a cluster held at a time."""

TOLERANCE = 1e-3
"""Share of the inertia that another iteration of k-means must be worth."""


def kmeans(embeddings: Tensor, n_clusters: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Group points around centroids: k-means++, then Lloyd (Arthur & Vassilvitskii, 2007).

    The centroids come from an even random sample where there are many points. Duplicates can leave clusters empty.

    Args:
        embeddings: `(N, D)`, N >= 1, of any floating-point type; computed in float32.
        n_clusters: how many; at most N are made.
        generator: draws the sample and the start.

    Returns:
        `(min(n_clusters, N), D)` centroids in float32, and `(N,)` the cluster of each point, that of the nearest.
    """
    n_clusters = min(n_clusters, len(embeddings))
    origin = origin_of(embeddings)
    sample = torch.randperm(len(embeddings), generator=generator)[: max(LARGE, LARGE_CLUSTER * n_clusters)]
    points = embeddings[sample.to(embeddings.device)].float() - origin
    start = points[d2_sampling_from([points], 0, n_clusters, generator)]
    is_copy = _repeats(start)  # products of equal rows can differ in their last bits, so that copies would share points
    centroids, n_distinct = start[~is_copy], int((~is_copy).sum())
    before = torch.inf
    while True:
        clusters, squared = _assign(points, centroids, torch.zeros_like(origin))
        inertia = float(squared.sum(dtype=torch.float64))
        if not inertia < (1 - TOLERANCE) * before:
            break
        before = inertia
        sizes = clusters.bincount(minlength=n_distinct)
        means = embedding_bag(clusters.argsort(stable=True), points, sizes.cumsum(0) - sizes, mode="mean")
        centroids = torch.where(sizes[:, None] > 0, means, centroids)
    return torch.cat([centroids, start[is_copy]]) + origin, _assign(embeddings, centroids, origin)[0]


def typicality(embeddings: Tensor, clusters: Tensor, *, n_neighbours: int = 20) -> Tensor:
    """Return how densely a point's own cluster surrounds it (Hacohen et al., 2022, arXiv 2202.02794).

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32.
        clusters: `(N,)` int64, the cluster of each point.
        n_neighbours: nearest members of the cluster, or all of a smaller one.

    Returns:
        `(N,)` the inverse of the mean distance to these neighbours, higher is more typical: 0 for a point alone in
        its cluster, infinite for one whose neighbours all equal it.

    >>> typicality(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), torch.tensor([0, 0, 0, 1]), n_neighbours=1)
    tensor([1.0000, 1.0000, 0.5000, 0.0000])
    """
    distance = torch.full((len(embeddings),), torch.inf, device=embeddings.device)
    sizes = clusters.unique(return_counts=True)[1].tolist()
    for members in clusters.argsort(stable=True).split(sizes):
        points = embeddings[members].float()
        points = points - points.mean(dim=0)
        step = max(1, PAIRS // len(members))
        for start in range(0, len(members) if len(members) > 1 else 0, step):
            squared = squared_distances([points[start : start + step]], [points])
            squared.diagonal(start).fill_(torch.inf)
            neighbours = squared.topk(min(n_neighbours, len(members) - 1), largest=False).values
            distance[members[start : start + step]] = neighbours.sqrt().mean(dim=1)
    return 1 / distance


def nearest_to_centroids(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """Find for each centroid the point nearest to it; no point is found twice.

    Of several centroids with the same nearest point the first has it. After all these, each of the others gets the
    nearest that is left, in their order.

    Args:
        embeddings: `(N, D)`, of any floating-point type.
        centroids: `(K, D)`, K <= N.

    Returns:
        `(K,)` distinct positions in `embeddings`.
    """
    if len(centroids) > len(embeddings):
        raise ValueError(f"{len(centroids)} centroids need as many points, got {len(embeddings)}")
    origin = origin_of(embeddings)
    targets = centroids.float() - origin
    found = _nearest(embeddings, targets, origin)
    owners = np.unique(found.cpu().numpy(), return_index=True)[1]
    clashing = np.setdiff1d(np.arange(len(found)), owners)
    taken = set(found[owners].tolist())
    # Others take fewer points than there are centroids: of so many nearest ones, one is left.
    choices = _nearest_few(embeddings, targets[clashing], origin, len(found))
    for centroid, positions in zip(clashing, choices.tolist(), strict=True):
        found[centroid] = next(position for position in positions if position not in taken)
        taken.add(int(found[centroid]))
    return found


def _repeats(rows: Tensor) -> Tensor:
    """Return `(K,)` whether a row equals one before it."""
    which = rows.unique(dim=0, return_inverse=True)[1].cpu().numpy()
    repeats = torch.ones(len(rows), dtype=torch.bool)
    repeats[np.unique(which, return_index=True)[1]] = False
    return repeats.to(rows.device)


def _assign(embeddings: Tensor, centroids: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(N,)` the nearest of the centroids, which are relative to `origin`, and the squared distance to it."""
    clusters = torch.empty(len(embeddings), dtype=torch.long, device=embeddings.device)
    lengths = centroids.square().sum(dim=1)

    def nearest(rows: slice) -> Tensor:
        points = embeddings[rows].float() - origin
        least = torch.addmm(lengths, points, centroids.T, alpha=-2).min(dim=1)
        clusters[rows] = least.indices
        return (least.values + points.square().sum(dim=1)).clamp_min_(0)

    squared = block_by_block(nearest, len(embeddings), embeddings.device)
    return clusters, squared


def _nearest(points: Tensor, targets: Tensor, origin: Tensor) -> Tensor:
    """Return `(K,)` the position nearest to each of `(K, D)` targets; these are relative to `origin`."""
    best = torch.full((len(targets),), torch.inf, device=points.device)
    positions = torch.zeros(len(targets), dtype=torch.long, device=points.device)
    for start in range(0, len(points), ROWS):
        distance, rows = squared_distances([points[start : start + ROWS].float() - origin], [targets]).min(dim=0)
        closer = distance < best
        best = torch.where(closer, distance, best)
        positions = torch.where(closer, rows + start, positions)
    return positions


def _nearest_few(points: Tensor, targets: Tensor, origin: Tensor, n_nearest: int) -> Tensor:
    """Return `(K, n_nearest)` the positions nearest to each of `(K, D)` targets, of equals the lowest first."""
    least = torch.empty(len(targets), 0, device=points.device)
    positions = torch.empty(len(targets), 0, dtype=torch.long, device=points.device)
    for start in range(0, len(points) if len(targets) else 0, ROWS):
        squared = squared_distances([points[start : start + ROWS].float() - origin], [targets]).T
        rows = torch.arange(start, start + squared.shape[1], device=points.device).expand(len(targets), -1)
        least, kept = torch.cat([least, squared], dim=1).sort(dim=1, stable=True)
        least = least[:, :n_nearest]
        positions = torch.cat([positions, rows], dim=1).gather(1, kept[:, :n_nearest])
    return positions
