"""Spreading picks over a cloud of points: geometry only, Euclidean distance, positions in and out."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

ROWS = 2048
"""Points handled at a time, which bounds the memory: nothing of size N x M is ever made."""

BLOCK = 512
"""Farthest points among which `k_center_greedy` looks ahead."""

PROPOSALS = 256
"""Points that `d2_sampling` proposes at a time."""

LARGE = 10_000
"""Points among which k-means looks for its centroids: an even random sample of a larger pool."""

LARGE_CLUSTER = 30
"""The same, for each cluster."""

PAIRS = 4_000_000
"""Distances between the members of a cluster held at a time."""

TOLERANCE = 1e-3
"""Share of the inertia that another iteration of k-means must be worth."""

NOISE = 2e-6
"""Squared distance, as a share of the squared length, that is nothing but the rounding of float32.

Lengths are from the mean of the points, so what is nearer to a point than `sqrt(NOISE)`, 0.14 %, of its distance from
the mean counts as equal to it.
"""


def k_center_greedy(
    embeddings: Tensor,
    n_picks: int,
    *,
    centres: Tensor | None = None,
    generator: torch.Generator,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    quota: Tensor | None = None,
    min_distance: float = 0.0,
) -> Tensor:
    """Pick again and again the point farthest from all centres and earlier picks (Gonzalez, 1985).

    Exact, up to the rounding of float32 (see `NOISE`: what is nearer than 0.14 % of its distance from the mean to a
    pick counts as its duplicate), and lazy: picks only lower what the other points are worth, so an old
    value is an upper bound (Minoux, 1978). The points with the largest bounds are brought up to date, and picks are
    made among these as long as the best of them is worth no less than any bound outside.

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32.
        n_picks: how many; with fewer points, or too few that quotas and `min_distance` allow, all of these.
        centres: `(M, D)` points that count as picked already. Without any, the first pick is random among the
            points of the largest weight.
        generator: draws the first pick and breaks ties.
        weights: `(N,)`, at least 0: what counts is weight times distance.
        groups: `(N,)` int64, the group of each point; needs `quota`.
        quota: `(G,)` int64, the most picks of each group.
        min_distance: a point nearer than this to a centre or pick is not picked; no finer than `NOISE`.

    Returns:
        `(n,)` distinct positions, n <= `min(n_picks, N)`, in the order of the picks.

    >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> k_center_greedy(line, 3, centres=line[:1], generator=torch.Generator()).tolist()
    [3, 2, 1]
    >>> k_center_greedy(line, 3, centres=line[:1], generator=torch.Generator(), min_distance=2.0).tolist()
    [3, 2]
    """
    device = embeddings.device
    # All that is kept per point is in this order, which breaks the ties.
    order = torch.randperm(len(embeddings), generator=generator).to(device)
    scale = torch.ones(len(order), device=device) if weights is None else weights.to(device)[order].float().square()
    group = torch.zeros_like(order) if groups is None else groups.to(device)[order]
    room = np.array([len(order)]) if quota is None else quota.cpu().numpy().copy()
    value = _close_full(scale.clone(), group, room)
    picks = torch.empty(0, dtype=torch.long, device=device)
    if min(n_picks, len(order)) < 1 or value.max() < 0:
        return picks
    if centres is None or not len(centres):
        picks = value.argmax()[None]
        centres = embeddings[order[picks]]
        value[picks] = -1
        room[int(group[picks])] -= 1
    origin = _origin(embeddings)
    nearest = _nearest_centre(embeddings, centres, origin)[order]
    value = torch.where(value < 0, value, _worth(nearest, scale, min_distance))
    seen = torch.full_like(order, len(picks), dtype=torch.int32)
    width = BLOCK
    while len(picks) < min(n_picks, len(order)):
        _close_full(value, group, room)
        bounds, highest = value.topk(min(width, len(order)))
        if bounds[0] < 0:
            break
        stale = highest[seen[highest] < len(picks)]
        for start in range(0, len(stale), ROWS):
            some = stale[start : start + ROWS]
            unseen = order[picks[int(seen[some].min()) :]]
            nearest = _nearest_centre(embeddings[order[some]], embeddings[unseen], origin)
            value[some] = torch.minimum(value[some], _worth(nearest, scale[some], min_distance))
            seen[some] = len(picks)
        best = value[highest].topk(min(BLOCK, len(highest)))
        block = highest[best.indices]
        points = [embeddings[order[block]].float() - origin]
        after = _worth(_squared(points, points), scale[block], min_distance).fill_diagonal_(-1)
        new = _picks_within(
            best.values.cpu().numpy(),
            after.cpu().numpy(),
            group[block].cpu().numpy(),
            room,
            outside=max(float(bounds[-1]), float(best.values[-1]), 0.0),
            limit=n_picks - len(picks),
        )
        picks = torch.cat([picks, block[new]])
        value[block[new]] = -1  # below every value: never again
        width = max(BLOCK, width // 2) if new else 2 * width
    return order[picks]


def d2_sampling(factors: Sequence[Tensor], n_picks: int, *, generator: torch.Generator) -> Tensor:
    """Draw points with odds of their squared distance to the nearest pick so far: k-means++ seeding.

    The points are the Kronecker products of the factors' rows, never made: their inner products are the products of
    the factors' (Ash et al., 2020, arXiv 1906.03671; Arthur & Vassilvitskii, 2007). The first pick is the longest.
    Exactly distributed, up to `NOISE` (from the origin, not the mean), though many draws share a pass over all points:
    a point drawn with odds of an older, larger distance is taken with probability new / old.

    Args:
        factors: one or more `(N, D_f)`, of any floating-point type; computed in float32.
        n_picks: how many; with fewer points, all of them are picked.

    Returns:
        `(min(n_picks, N),)` distinct positions in the order of the draws. Points that equal a pick come last.

    >>> line = torch.tensor([[9.0], [9.0], [0.0]])
    >>> d2_sampling([line], 3, generator=torch.Generator()).tolist()
    [0, 2, 1]
    """
    if min(n_picks, len(factors[0])) < 1:
        return torch.empty(0, dtype=torch.long, device=factors[0].device)
    lengths = [_lengths(_float(factors, slice(i, i + ROWS))) for i in range(0, len(factors[0]), ROWS)]
    return _d2_sampling(factors, int(torch.cat(lengths).argmax()), n_picks, generator)


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
    origin = _origin(embeddings)
    sample = torch.randperm(len(embeddings), generator=generator)[: max(LARGE, LARGE_CLUSTER * n_clusters)]
    points = embeddings[sample.to(embeddings.device)].float() - origin
    start = points[_d2_sampling([points], 0, n_clusters, generator)]
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
            squared = _squared([points[start : start + step]], [points])
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
    origin = _origin(embeddings)
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


def _d2_sampling(factors: Sequence[Tensor], first: int, n_picks: int, generator: torch.Generator) -> Tensor:
    """Go on from a first pick, as `d2_sampling` says."""
    device = factors[0].device
    n_picks = min(n_picks, len(factors[0]))
    distance = torch.full((len(factors[0]),), torch.inf, device=device)
    picks = torch.tensor([first], device=device)
    n_seen = 0
    while len(picks) < n_picks:
        _shrink(distance, factors, _float(factors, picks[n_seen:]))
        distance[picks] = 0
        n_seen = len(picks)
        mass = distance.cumsum(0, dtype=torch.float64)  # float32 cannot add up millions
        if not mass[-1] > 0:
            rest = torch.ones(len(distance), dtype=torch.bool, device=device)
            rest[picks] = False
            return torch.cat([picks, rest.nonzero().flatten()])[:n_picks]
        useful = True
        while useful and len(picks) < n_picks:
            levels = torch.rand(2, PROPOSALS, dtype=torch.float64, generator=generator).to(device)
            proposals = torch.searchsorted(mass, levels[0] * mass[-1], right=True)
            points = _float(factors, proposals)
            current = distance[proposals]
            thresholds = levels[1] * current
            if len(picks) > n_seen:
                _shrink(current, points, _float(factors, picks[n_seen:]))
            taken = _accepted(current.cpu().numpy(), _squared(points, points).cpu().numpy(), thresholds.cpu().numpy())
            picks = torch.cat([picks, proposals[taken[: n_picks - len(picks)]]])
            useful = len(taken) > PROPOSALS // 16
    return picks


def _repeats(rows: Tensor) -> Tensor:
    """Return `(K,)` whether a row equals one before it."""
    which = rows.unique(dim=0, return_inverse=True)[1].cpu().numpy()
    repeats = torch.ones(len(rows), dtype=torch.bool)
    repeats[np.unique(which, return_index=True)[1]] = False
    return repeats.to(rows.device)


def _accepted(current: NDArray[np.float32], between: NDArray[np.float32], thresholds: NDArray[np.float64]) -> list[int]:
    """Return which proposals to take: in their order, where the distance is still above the threshold.

    Args:
        current: `(P,)` squared distance to the nearest pick.
        between: `(P, P)` squared distance between the proposals.
        thresholds: `(P,)` even in [0, 1) times the distance that a point was proposed by.
    """
    taken: list[int] = []
    waiting = current > thresholds
    while waiting.any():
        taken.append(int(waiting.argmax()))
        current = np.minimum(current, between[taken[-1]])
        waiting &= current > thresholds
        waiting[: taken[-1] + 1] = False
    return taken


def _assign(embeddings: Tensor, centroids: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(N,)` the nearest of the centroids, which are relative to `origin`, and the squared distance to it."""
    clusters, squared = [], []
    lengths = centroids.square().sum(dim=1)
    for some in embeddings.split(ROWS):
        points = some.float() - origin
        least = torch.addmm(lengths, points, centroids.T, alpha=-2).min(dim=1)
        clusters.append(least.indices)
        squared.append((least.values + points.square().sum(dim=1)).clamp_min_(0))
    return torch.cat(clusters), torch.cat(squared)


def _nearest(points: Tensor, targets: Tensor, origin: Tensor) -> Tensor:
    """Return `(K,)` the position nearest to each of `(K, D)` targets; these are relative to `origin`."""
    best = torch.full((len(targets),), torch.inf, device=points.device)
    positions = torch.zeros(len(targets), dtype=torch.long, device=points.device)
    for start in range(0, len(points), ROWS):
        distance, rows = _squared([points[start : start + ROWS].float() - origin], [targets]).min(dim=0)
        closer = distance < best
        best = torch.where(closer, distance, best)
        positions = torch.where(closer, rows + start, positions)
    return positions


def _nearest_few(points: Tensor, targets: Tensor, origin: Tensor, n_nearest: int) -> Tensor:
    """Return `(K, n_nearest)` the positions nearest to each of `(K, D)` targets, of equals the lowest first."""
    least = torch.empty(len(targets), 0, device=points.device)
    positions = torch.empty(len(targets), 0, dtype=torch.long, device=points.device)
    for start in range(0, len(points) if len(targets) else 0, ROWS):
        squared = _squared([points[start : start + ROWS].float() - origin], [targets]).T
        rows = torch.arange(start, start + squared.shape[1], device=points.device).expand(len(targets), -1)
        least, kept = torch.cat([least, squared], dim=1).sort(dim=1, stable=True)
        least = least[:, :n_nearest]
        positions = torch.cat([positions, rows], dim=1).gather(1, kept[:, :n_nearest])
    return positions


def _nearest_centre(embeddings: Tensor, centres: Tensor, origin: Tensor) -> Tensor:
    """Return `(N,)` squared distances of `(N, D)` points to the nearest of `(M, D)` centres."""
    distance = torch.full((len(embeddings),), torch.inf, device=embeddings.device)
    for start in range(0, len(embeddings), ROWS):
        points = [embeddings[start : start + ROWS].float() - origin]
        for some in centres.split(ROWS):
            _shrink(distance[start : start + ROWS], points, [some.float() - origin])
    return distance


def _shrink(distance: Tensor, factors: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Lower `(N,)` squared distances in place where one of the `(M, D_f)` targets is nearer."""
    lengths = _lengths(targets)
    for start in range(0, len(distance), ROWS):
        rows = slice(start, start + ROWS)
        points = _float(factors, rows)
        own = _lengths(points)
        nearest = _products(points, [-2 * targets[0], *targets[1:]]).add_(lengths).amin(dim=1).add_(own)
        nearest.masked_fill_(nearest <= NOISE * own, 0)
        distance[rows] = torch.minimum(distance[rows], nearest)


def _squared(points: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return `(N, M)` squared distances between Kronecker products of rows, 0 where only rounding is left."""
    lengths = _lengths(points)[:, None]
    squared = _products(points, targets).mul_(-2).add_(_lengths(targets)).add_(lengths)
    return squared.masked_fill_(squared <= NOISE * lengths, 0)


def _products(points: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return `(N, M)` inner products of the Kronecker products of rows."""
    return reduce(Tensor.mul_, [some @ others.T for some, others in zip(points, targets, strict=True)])


def _lengths(points: Sequence[Tensor]) -> Tensor:
    """Return `(N,)` squared lengths of the Kronecker products of rows."""
    return reduce(torch.mul, [some.square().sum(dim=1) for some in points])


def _float(factors: Sequence[Tensor], rows: Tensor | slice) -> list[Tensor]:
    """Return some rows of each factor in float32."""
    return [factor[rows].float() for factor in factors]


def _origin(embeddings: Tensor) -> Tensor:
    """Return `(D,)` about the mean: relative to it the products round least."""
    return embeddings[:: max(1, len(embeddings) // ROWS)].float().mean(dim=0)


def _worth(squared: Tensor, scale: Tensor, min_distance: float) -> Tensor:
    """Return what points are worth at these squared distances from a pick, -1 where they are too near to it."""
    return (scale * squared).masked_fill_(squared < min_distance**2, -1)


def _close_full(value: Tensor, group: Tensor, room: NDArray[np.int64]) -> Tensor:
    """Set the value of all points in groups without room to -1, in place."""
    return value.masked_fill_(torch.from_numpy(room < 1).to(value.device)[group], -1) if (room < 1).any() else value


def _picks_within(
    value: NDArray[np.float32],
    after: NDArray[np.float32],
    group: NDArray[np.int64],
    room: NDArray[np.int64],
    *,
    outside: float,
    limit: int,
) -> list[int]:
    """Go on greedily inside a block, as long as no point outside of it can be worth more.

    Args:
        value: `(B,)`.
        after: `(B, B)` the most that a point is worth (second axis) once another is picked.
        group: `(B,)`.
        room: `(G,)` picks left in each group; changed in place.
        outside: the most that a point outside is worth.
        limit: the most picks to make.
    """
    picks: list[int] = []
    while len(picks) < limit and value[best := int(value.argmax())] >= outside:
        picks.append(best)
        value = np.minimum(value, after[best])
        room[group[best]] -= 1
        if not room[group[best]]:
            value[group == group[best]] = -1
    return picks
