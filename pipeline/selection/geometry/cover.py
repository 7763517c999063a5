"""Picks that stand for all points: greedy maximum coverage, positions in and out."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import hardshrink, normalize

from pipeline.selection.geometry.distances import NOISE

CELLS = 1 << 20
"""Similarities held at a time, which bounds the memory: nothing of size N x R is ever made."""

WIDTH = 32
"""Candidates whose gain is brought up to date at first, twice as many each time that this settles nothing."""


def herd(
    embeddings: Tensor,
    n_picks: int,
    *,
    centres: Tensor | None = None,
    weights: Tensor | None = None,
    radius: float,
    references: Tensor | None = None,
    affinity: Tensor | None = None,
    centre_affinity: Tensor | None = None,
) -> Tensor:
    """Pick again and again what raises the generalised coverage most.

    The coverage is `sum_y w(y) max_x exp(-|x - y|^2 / radius^2)`, x over centres and picks: MaxHerding (Bae et al.,
    2024, arXiv 2407.12212), with weights UHerding (Bae et al., 2025, arXiv 2412.20644). Points nearer to each other
    than `sqrt(NOISE)`, 0.14 %, of the longest distance of a point from the mean count as the same.

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32.
        n_picks: how many; with fewer points, all of them are picked.
        centres: `(M, D)` points that cover from the start.
        weights: `(N,)`, at least 0, how much it counts to cover each point; by default 1.
        radius: above 0, in the unit of the embeddings: how far a point covers.
        references: `(R,)` positions of the points to be covered; by default all.
        affinity: `(N, C)`, at least 0: what a point covers another is multiplied by the inner product of their rows.
        centre_affinity: `(M, C)`, the same of the centres; both or neither.

    Returns:
        `(min(n_picks, N),)` distinct positions in the order of the picks; of equals the lowest.

    >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> herd(line, 2, radius=2.0).tolist()
    [1, 3]
    """
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    if centres is not None and (affinity is None) != (centre_affinity is None):
        raise ValueError("affinity and centre_affinity go together")
    wanted = slice(None) if references is None else references
    alike_targets = affinity[wanted].float() if affinity is not None else torch.empty(0)
    origin = embeddings[wanted].float().mean(dim=0)
    targets = (embeddings[wanted].float() - origin) / radius
    once, lengths = torch.ones(len(targets), device=targets.device), targets.square().sum(dim=1)
    noise = NOISE * float(lengths.max()) if len(targets) else 0.0
    # One product gives minus the squared distance: (x, 1, -|x|^2) . (2 y, -|y|^2, 1).
    factors = torch.cat([2 * targets, -lengths[:, None], once[:, None]], dim=1)

    def similarities(points: Tensor, alike: Tensor | None) -> Tensor:
        points = (points.float() - origin) / radius
        lengths = points.square().sum(dim=1, keepdim=True)
        minus_squared = torch.cat([points, torch.ones_like(lengths), -lengths], dim=1) @ factors.T
        near = hardshrink(minus_squared, noise).exp_()
        return near if alike is None else near.mul_(alike.float() @ alike_targets.T)

    covered = torch.zeros_like(once)
    if centres is not None and len(centres):
        for rows in torch.arange(len(centres)).split(max(1, CELLS // max(1, len(targets)))):
            near = similarities(centres[rows], centre_affinity[rows] if centre_affinity is not None else None)
            covered = torch.maximum(covered, near.amax(dim=0))
    counts = once if weights is None else weights[wanted].to(once)
    return _cover(
        lambda rows: similarities(embeddings[rows], affinity[rows] if affinity is not None else None),
        covered,
        counts,
        len(embeddings),
        n_picks,
    )


def facility_location(
    embeddings: Tensor, n_picks: int, *, candidates: Tensor, references: Tensor | None = None
) -> Tensor:
    """Pick again and again the candidate that most raises how well all points are represented (Yang et al., 2017).

    The aim is `sum_y max(0, max_x cos(x, y))`, x over the picks (arXiv 1706.04737).

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32.
        n_picks: how many; with fewer candidates, all of them are picked.
        candidates: `(P,)` distinct positions that may be picked.
        references: `(R,)` positions of the points to be represented; by default all.

    Returns:
        `(min(n_picks, P),)` distinct positions in `embeddings`, in the order of the picks; of equals the one first in
        `candidates`.

    >>> corner = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    >>> facility_location(corner, 2, candidates=torch.arange(3)).tolist()
    [1, 0]
    """
    candidates = candidates.to(embeddings.device)
    targets = normalize((embeddings if references is None else embeddings[references]).float())

    def similarities(rows: Tensor) -> Tensor:
        return normalize(embeddings[candidates[rows]].float()) @ targets.T

    nothing = torch.zeros(len(targets), device=targets.device)
    return candidates[_cover(similarities, nothing, torch.ones_like(nothing), len(candidates), n_picks)]


def _cover(
    similarities: Callable[[Tensor], Tensor], covered: Tensor, weights: Tensor, n_candidates: int, n_picks: int
) -> Tensor:
    """Maximise greedily `sum_y w(y) max_x s(x, y)`, x over the picks.

    Lazy: picks only lower the gains of the others, so an old gain is an upper bound, and only candidates with the
    largest bounds are looked at again (Minoux, 1978). Exact, up to the rounding of float32.

    Args:
        similarities: of candidates at `(B,)` positions to the R points to be covered, `(B, R)`.
        covered: `(R,)` the similarity that each point is covered with at first.
        weights: `(R,)`.
        n_candidates: N.
        n_picks: how many.

    Returns:
        `(min(n_picks, N),)` distinct positions in the order of the picks.
    """
    gains = torch.full((n_candidates,), torch.inf, device=covered.device)
    step = max(1, CELLS // max(1, len(covered)))
    picks: list[int] = []
    width = n_candidates
    while len(picks) < min(n_picks, n_candidates):
        fresh = torch.zeros(n_candidates, dtype=torch.bool, device=covered.device)
        while not fresh[best := int(gains.argmax())]:
            highest = gains.topk(min(width, n_candidates)).indices
            for rows in highest[~fresh[highest]].split(step):
                gains[rows] = torch.minimum(gains[rows], similarities(rows).sub_(covered).clamp_min_(0) @ weights)
            fresh[highest] = True
            width *= 2
        picks.append(best)
        gains[best] = -1  # below every gain: never again
        covered = torch.maximum(covered, similarities(torch.tensor([best], device=covered.device))[0])
        width = WIDTH
    return torch.tensor(picks, dtype=torch.long, device=covered.device)
