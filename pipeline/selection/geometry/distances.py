"""Distances between points: squared, in float32 and in blocks, so that nothing of size N x M is ever made."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 2048
"""Points handled at a time, which bounds the memory: nothing of size N x M is ever made."""

MANY = 100_000
"""Points of which a copy in float32 does no harm."""

MOST_COMPARED = 2000
"""Labelled images that are compared with all others to find how far apart the labelled ones are."""

NOISE = 2e-6
"""Squared distance, as a share of the squared length, that is nothing but the rounding of float32.

Lengths are from the mean of the points, so what is nearer to a point than `sqrt(NOISE)`, 0.14 %, of its distance from
the mean counts as equal to it.
"""


class Points(Protocol):
    """Rows `(N, D)` of numbers on a device, as a tensor has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor: ...

    @property
    def device(self) -> torch.device:
        """Where they are computed."""


def on_the_sphere(embeddings: Tensor) -> Tensor:
    """Return `(N, D)` in float32, each row of length 1, or 0 where it was 0."""
    return normalize(embeddings.float(), dim=1)


def even_rows(embeddings: Tensor, most: int) -> Tensor:
    """Return the positions of at most so many rows, evenly spread."""
    n = min(len(embeddings), most)
    return torch.arange(n, device=embeddings.device) * len(embeddings) // max(n, 1)


def neighbour_distance(rows: Tensor, *, share: float) -> float:
    """Return the distance within which a share of the rows have another that is no duplicate; 1 where none has.

    The share is that of at most `MOST_COMPARED` rows, evenly spread; the others are sought among all.
    """
    if len(rows) < 2:
        return 1.0
    asked = rows[even_rows(rows, MOST_COMPARED)].double()  # float32 rounds small distances to multiples of about 1e-3
    nearest = torch.full((len(asked),), torch.inf, dtype=torch.float64, device=rows.device)
    for some in rows.split(1024):
        distance = torch.cdist(asked, some.double())
        nearest = torch.minimum(nearest, distance.masked_fill_(distance <= 1e-6, torch.inf).amin(dim=1))
    apart = nearest[nearest < torch.inf]
    return float(apart.quantile(share)) if len(apart) else 1.0


def novelty(embeddings: Tensor, labelled_embeddings: Tensor) -> Tensor:
    """Return `(N,)` how unlike anything labelled each point is: one minus the largest cosine similarity, in [0, 2].

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`, M >= 1.
    """
    return (1 - (on_the_sphere(embeddings) @ on_the_sphere(labelled_embeddings).T).amax(dim=1)).clamp(min=0)


def nearest_squared(embeddings: Tensor, centres: Tensor, origin: Tensor) -> Tensor:
    """Return `(N,)` squared distances of `(N, D)` points to the nearest of `(M, D)` centres."""
    distance = torch.full((len(embeddings),), torch.inf, device=embeddings.device)
    for start in range(0, len(embeddings), ROWS):
        points = [embeddings[start : start + ROWS].float() - origin]
        for some in centres.split(ROWS):
            lower_to_nearest(distance[start : start + ROWS], points, [some.float() - origin])
    return distance


def lower_to_nearest(distance: Tensor, factors: Sequence[Points], targets: Sequence[Tensor]) -> None:
    """Lower `(N,)` squared distances in place where one of the `(M, D_f)` targets is nearer."""
    lengths = squared_lengths(targets)
    for start in range(0, len(distance), ROWS):
        rows = slice(start, start + ROWS)
        points = rows_in_float(factors, rows)
        own = squared_lengths(points)
        nearest = inner_products(points, [-2 * targets[0], *targets[1:]]).add_(lengths).amin(dim=1).add_(own)
        nearest.masked_fill_(nearest <= NOISE * own, 0)
        distance[rows] = torch.minimum(distance[rows], nearest)


def squared_distances(points: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return `(N, M)` squared distances between Kronecker products of rows, 0 where only rounding is left."""
    lengths = squared_lengths(points)[:, None]
    squared = inner_products(points, targets).mul_(-2).add_(squared_lengths(targets)).add_(lengths)
    return squared.masked_fill_(squared <= NOISE * lengths, 0)


def inner_products(points: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return `(N, M)` inner products of the Kronecker products of rows."""
    return reduce(Tensor.mul_, [some @ others.T for some, others in zip(points, targets, strict=True)])


def squared_lengths(points: Sequence[Tensor]) -> Tensor:
    """Return `(N,)` squared lengths of the Kronecker products of rows."""
    return reduce(torch.mul, [some.square().sum(dim=1) for some in points])


def block_by_block(of_rows: Callable[[slice], Tensor], n: int, device: torch.device) -> Tensor:
    """Return `(n,)` what a function gives of each block of rows.

    All is written into one tensor: small results that stay between the large ones that pass would cut up the memory
    that these give back, and a process would grow by a block each time.
    """
    values = torch.empty(n, device=device)
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        values[rows] = of_rows(rows)
    return values


def rows_in_float(factors: Sequence[Points], rows: Tensor | slice) -> list[Tensor]:
    """Return some rows of each factor in float32."""
    return [factor[rows].float() for factor in factors]


def mean_of(embeddings: Tensor) -> Tensor:
    """Return `(D,)` the mean in float32; of many points in parts, so that they are not all copied."""
    if len(embeddings) <= MANY:
        return embeddings.mean(dim=0, dtype=torch.float32)
    sums = torch.stack([part.sum(dim=0, dtype=torch.float32) for part in embeddings.split(MANY)])
    return (sums.double().sum(dim=0) / len(embeddings)).float()


def origin_of(embeddings: Tensor) -> Tensor:
    """Return `(D,)` about the mean: relative to it the products round least."""
    return embeddings[:: max(1, len(embeddings) // ROWS)].float().mean(dim=0)
