"""Strategies that read where images lie among the others: embeddings, and no score."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pipeline.selection.geometry.clusters import kmeans, nearest_to_centroids, typicality
from pipeline.selection.geometry.distances import block_by_block, mean_of
from pipeline.selection.geometry.spread import k_center_greedy
from pipeline.selection.strategies.by_score import top_k
from pipeline.selection.turns import take_turns

MOST_CLUSTERS = 500
"""Clusters of `typiclust`."""


def k_center(embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Take again and again what is farthest from all that is labelled or picked (Sener & Savarese, 2018).

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the first pick is random.
    """
    return k_center_greedy(embeddings, query_size, centres=labelled_embeddings, generator=generator)


def novel(
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    labelled_targets: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what is farthest from the mean of every labelled class: unlike all that is known.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the distance is that to the mean of the pool.
        labelled_targets: `(M,)` class indices.
        generator: not used: nothing is left to chance.
    """
    distance = _distance_to_class_means(embeddings, labelled_embeddings, labelled_targets)
    return top_k(distance, query_size=query_size, generator=generator)


def typical(
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    labelled_targets: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what is nearest to the mean of a labelled class: the plainest examples, the opposite of `novel`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the distance is that to the mean of the pool.
        labelled_targets: `(M,)` class indices.
        generator: not used: nothing is left to chance.
    """
    distance = _distance_to_class_means(embeddings, labelled_embeddings, labelled_targets)
    return top_k(-distance, query_size=query_size, generator=generator)


def coverage(embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Cluster the pool and take what is nearest to each centroid, largest cluster first (Gupte et al., 2024).

    A cold start, which needs neither labels nor a model (arXiv 2401.14555).

    Args:
        embeddings: `(N, D)`.
    """
    centres, clusters = kmeans(embeddings, query_size, generator=generator)
    sizes = clusters.bincount(minlength=len(centres))
    return nearest_to_centroids(embeddings, centres)[sizes.argsort(descending=True, stable=True)]


def typiclust(
    embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator
) -> Tensor:
    """Cluster all images and take the most typical of the clusters with the fewest labels (Hacohen et al., 2022).

    There are as many clusters as labels after this batch, at most `MOST_CLUSTERS`, on the unit sphere. Among
    those with equally few labels the largest comes first; clusters of fewer than 5 images come last. An image is
    typical where it lies dense: see `clusters.typicality`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    n, n_labelled = len(embeddings), len(labelled_embeddings)
    rows = normalize(torch.cat([embeddings, labelled_embeddings.to(embeddings.dtype)]).float(), dim=1)
    centroids, clusters = kmeans(rows, min(n_labelled + query_size, MOST_CLUSTERS), generator=generator)
    sizes = clusters.bincount(minlength=len(centroids)).tolist()
    labels = clusters[n:].bincount(minlength=len(centroids)).tolist()
    here = clusters[:n].unique().tolist()
    here.sort(key=lambda cluster: (sizes[cluster] < 5, labels[cluster], -sizes[cluster], cluster))
    place = torch.full((len(centroids),), len(here), device=embeddings.device)
    place[here] = torch.arange(len(here), device=embeddings.device)
    places = place[clusters[:n]]
    # Only these clusters are drawn from: one place each, and all of them where there are too few.
    asked = (places < query_size).nonzero().flatten()
    typical_first = asked[typicality(rows[asked], places[asked]).argsort(descending=True, stable=True)]
    in_place = typical_first[places[typical_first].argsort(stable=True)]
    return in_place[take_turns(places[in_place])[:query_size]]


def _distance_to_class_means(embeddings: Tensor, labelled_embeddings: Tensor, labelled_targets: Tensor) -> Tensor:
    """Return `(N,)` the distance to the nearest class mean; to the mean of the embeddings where nothing is labelled."""
    origin = mean_of(embeddings)
    means = torch.zeros_like(origin)[None]
    if len(labelled_embeddings):
        _, classes, counts = labelled_targets.unique(return_inverse=True, return_counts=True)
        members = one_hot(classes).T.float() / counts[:, None]
        means = members @ (labelled_embeddings.float() - origin)

    def distance(rows: slice) -> Tensor:
        return torch.cdist(embeddings[rows].float() - origin, means).amin(dim=1)

    return block_by_block(distance, len(embeddings), embeddings.device)
