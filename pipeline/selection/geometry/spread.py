"""Picks that lie far apart: positions in and out, Euclidean distance."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.selection.geometry.distances import (
    ROWS,
    Points,
    block_by_block,
    lower_to_nearest,
    nearest_squared,
    origin_of,
    rows_in_float,
    squared_distances,
    squared_lengths,
)

BLOCK = 512
"""Farthest points among which `k_center_greedy` looks ahead."""

PROPOSALS = 256
"""Points that `d2_sampling` proposes at a time."""


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
    origin = origin_of(embeddings)
    nearest = nearest_squared(embeddings, centres, origin)[order]
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
            nearest = nearest_squared(embeddings[order[some]], embeddings[unseen], origin)
            value[some] = torch.minimum(value[some], _worth(nearest, scale[some], min_distance))
            seen[some] = len(picks)
        best = value[highest].topk(min(BLOCK, len(highest)))
        block = highest[best.indices]
        points = [embeddings[order[block]].float() - origin]
        after = _worth(squared_distances(points, points), scale[block], min_distance).fill_diagonal_(-1)
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


def d2_sampling(factors: Sequence[Points], n_picks: int, *, generator: torch.Generator) -> Tensor:
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
    lengths = block_by_block(
        lambda rows: squared_lengths(rows_in_float(factors, rows)), len(factors[0]), factors[0].device
    )
    return d2_sampling_from(factors, int(lengths.argmax()), n_picks, generator)


def d2_sampling_from(factors: Sequence[Points], first: int, n_picks: int, generator: torch.Generator) -> Tensor:
    """Go on from a first pick, as `d2_sampling` does."""
    device = factors[0].device
    n_picks = min(n_picks, len(factors[0]))
    distance = torch.full((len(factors[0]),), torch.inf, device=device)
    picks = torch.tensor([first], device=device)
    n_seen = 0
    while len(picks) < n_picks:
        lower_to_nearest(distance, factors, rows_in_float(factors, picks[n_seen:]))
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
            points = rows_in_float(factors, proposals)
            current = distance[proposals]
            thresholds = levels[1] * current
            if len(picks) > n_seen:
                lower_to_nearest(current, points, rows_in_float(factors, picks[n_seen:]))
            taken = _accepted(
                current.cpu().numpy(), squared_distances(points, points).cpu().numpy(), thresholds.cpu().numpy()
            )
            picks = torch.cat([picks, proposals[taken[: n_picks - len(picks)]]])
            useful = len(taken) > PROPOSALS // 16
    return picks


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
