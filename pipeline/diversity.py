"""Spreading picks over a cloud of points: geometry only, Euclidean distance, positions in and out."""

import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

ROWS = 4096
"""Points handled at a time, which bounds the memory: nothing of size N x M is ever made."""

BLOCK = 512
"""Farthest points among which `k_center_greedy` looks ahead."""

LARGE = 20_000
"""Points from which on k-means works on mini-batches."""


def k_center_greedy(
    embeddings: Tensor, n_picks: int, *, centres: Tensor | None = None, generator: torch.Generator
) -> Tensor:
    """Pick again and again the point farthest from all centres and earlier picks (Gonzalez, 1985).

    Exact, up to the rounding of float32. A distance only ever shrinks: after a pick among the BLOCK farthest
    points, one of them that is still farther than the nearest of them was at first is farther than all points
    outside the block. So one pass over all points serves many picks.

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32.
        n_picks: how many; with fewer points, all of them are picked.
        centres: `(M, D)` points that count as picked already. Without any, the first pick is random.
        generator: draws the first pick and breaks ties.

    Returns:
        `(min(n_picks, N),)` distinct positions, farthest first.

    >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> k_center_greedy(line, 3, centres=line[:1], generator=torch.Generator()).tolist()
    [3, 2, 1]
    """
    n_picks = min(n_picks, len(embeddings))
    origin = embeddings.mean(dim=0, dtype=torch.float32)
    distance = torch.full((len(embeddings),), torch.inf, device=embeddings.device)
    if centres is not None and len(centres):
        _shrink(distance, embeddings, centres, origin)
    shuffled = torch.randperm(len(embeddings), generator=generator).to(embeddings.device)
    picks = torch.empty(0, dtype=torch.long, device=embeddings.device)
    while len(picks) < n_picks:
        farthest = distance[shuffled].topk(min(BLOCK, len(embeddings)))
        rows = shuffled[farthest.indices]
        block = embeddings[rows].float() - origin
        between = _squared(block, block)
        new = rows[_picks_within(farthest.values.cpu(), between.cpu(), n_picks - len(picks))]
        _shrink(distance, embeddings, embeddings[new], origin)
        distance[new] = -1  # below every distance: never again
        picks = torch.cat([picks, new])
    return picks


def kmeans(embeddings: Tensor, n_clusters: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Group points around centroids: k-means++, then Lloyd (Arthur & Vassilvitskii, 2007), by scikit-learn.

    From LARGE points on in mini-batches (Sculley, 2010). Duplicates can leave clusters empty.

    Args:
        embeddings: `(N, D)`, N >= 1, of any floating-point type.
        n_clusters: how many; at most N are made.
        generator: seeds the start.

    Returns:
        `(min(n_clusters, N), D)` centroids in float32, and `(N,)` the cluster of each point.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # takes a second to load
    from sklearn.exceptions import ConvergenceWarning

    points = embeddings.detach().float().cpu().numpy()
    n_clusters = min(n_clusters, len(points))
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if len(points) < LARGE:
        model = KMeans(n_clusters, n_init=1, random_state=seed)
    else:
        model = MiniBatchKMeans(n_clusters, n_init=1, random_state=seed, batch_size=max(ROWS, 4 * n_clusters))
    # One thread: with several, the order of the sums depends on the machine, and with it the batch.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        model.fit(points)
    return (
        torch.from_numpy(model.cluster_centers_).to(embeddings.device, torch.float32),
        torch.from_numpy(model.labels_).to(embeddings.device, torch.long),
    )


def nearest_to_centroids(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """Find for each centroid the point nearest to it that no earlier centroid has taken.

    Args:
        embeddings: `(N, D)`, of any floating-point type.
        centroids: `(K, D)`, K <= N.

    Returns:
        `(K,)` distinct positions in `embeddings`.
    """
    if len(centroids) > len(embeddings):
        raise ValueError(f"{len(centroids)} centroids need as many points, got {len(embeddings)}")
    origin = embeddings.mean(dim=0, dtype=torch.float32)
    targets = centroids.float() - origin
    taken: list[int] = []
    for centroid, position in enumerate(_nearest(embeddings, targets, origin).tolist()):
        if position in taken:
            free = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
            free[taken] = False
            rows = free.nonzero().flatten()
            position = int(rows[_nearest(embeddings[rows], targets[centroid, None], origin)])
        taken.append(position)
    return torch.tensor(taken, dtype=torch.long, device=embeddings.device)


def _nearest(points: Tensor, targets: Tensor, origin: Tensor) -> Tensor:
    """Return `(K,)` the position nearest to each of `(K, D)` targets; these are relative to `origin`."""
    best = torch.full((len(targets),), torch.inf, device=points.device)
    positions = torch.zeros(len(targets), dtype=torch.long, device=points.device)
    for start in range(0, len(points), ROWS):
        distance, rows = _squared(points[start : start + ROWS].float() - origin, targets).min(dim=0)
        closer = distance < best
        best = torch.where(closer, distance, best)
        positions = torch.where(closer, rows + start, positions)
    return positions


def _shrink(distance: Tensor, points: Tensor, centres: Tensor, origin: Tensor) -> None:
    """Lower `(N,)` squared distances in place where one of the centres is nearer."""
    for some in torch.split(centres, ROWS):
        targets = some.float() - origin
        for start in range(0, len(points), ROWS):
            rows = slice(start, start + ROWS)
            nearest = _squared(points[rows].float() - origin, targets).amin(dim=1)
            distance[rows] = torch.minimum(distance[rows], nearest)


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    """Return `(N, M)` squared distances; both are relative to the mean, where the products round least."""
    lengths = centres.square().sum(dim=1)
    products = torch.addmm(lengths, points, centres.T, alpha=-2)
    return products.add_(points.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def _picks_within(distance: Tensor, between: Tensor, limit: int) -> list[int]:
    """Go on greedily inside a block, as long as no point outside of it can be farther.

    Args:
        distance: `(B,)` squared, largest first.
        between: `(B, B)` squared.
        limit: the most picks to make.
    """
    outside = distance[-1]
    picks: list[int] = []
    while len(picks) < limit:
        best = int(distance.argmax())
        if picks and not distance[best] > outside:
            break
        picks.append(best)
        distance = torch.minimum(distance, between[best])
        distance[best] = -1
    return picks
