"""Strategies that read both how unsure the model is and where images lie: an unsure batch of different images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.selection.acquisition import margin
from pipeline.selection.geometry import joint
from pipeline.selection.geometry.clusters import kmeans
from pipeline.selection.geometry.distances import block_by_block
from pipeline.selection.geometry.spread import d2_sampling, k_center_greedy
from pipeline.selection.strategies.by_score import best_by_score
from pipeline.selection.strategies.columns import check_no_negative, mean_of_members
from pipeline.selection.turns import take_turns

LARGEST_TREE = 5000
"""Images that `cluster_margin` clusters, which takes time and memory of their square."""

TINY = 1e-12
"""Stands for a length of zero where something is divided by it."""


def weighted_k_center(
    scores: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    guesses: Tensor | None = None,
    *,
    query_size: int,
    generator: torch.Generator,
    strength: float = 1.0,
    max_class_share: float = 1.0,
    min_distance: float = 0.0,
) -> Tensor:
    """Take again and again the largest `scores ** strength` times distance to all that is labelled or picked.

    The weighted greedy pass of selection engines such as lightly-mundig, with their limits on one class and on
    near-duplicates; without scores it is `k_center`. Where the limits leave too little, fewer are returned, and
    `select_batch` fills the batch with the highest scores, which the limits do not bind.

    Args:
        scores: `(N,)`, at least 0.
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
        guesses: `(N,)` predicted classes, only needed for `max_class_share`.
        strength: of the scores against the distance, at least 0; 0 is `k_center`.
        max_class_share: at most this share of the batch, but at least one image, is of one predicted class; in (0, 1].
        min_distance: nothing is picked that is nearer than this to a labelled image or an earlier pick.
    """
    check_no_negative(scores, "weighted_k_center")
    if not strength >= 0:
        raise ValueError(f"strength must be at least 0, got {strength}")
    if not 0 < max_class_share <= 1:
        raise ValueError(f"max_class_share must be in (0, 1], got {max_class_share}")
    if not min_distance >= 0:
        raise ValueError(f"min_distance must be at least 0, got {min_distance}")
    quota = None
    if max_class_share < 1:
        if guesses is None:
            raise ValueError("option 'max_class_share' needs guesses, which scoring did not compute")
        n_classes = int(guesses.max()) + 1
        most = max(1, math.floor(max_class_share * query_size + 1e-9))  # 0.29 * 100 rounds to less than 29
        quota = torch.full((n_classes,), most, device=guesses.device)
    return k_center_greedy(
        embeddings,
        query_size,
        centres=labelled_embeddings,
        generator=generator,
        weights=scores.float() ** strength,
        groups=guesses if quota is not None else None,
        quota=quota,
        min_distance=min_distance,
    )


def top_k_diverse(
    scores: Tensor,
    embeddings: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
    shortlist: float = 10,
) -> Tensor:
    """Cluster the most informative and take the most informative of each cluster (after Zhdanov, 2019).

    Where duplicates leave fewer clusters than wanted, the next most informative fill the batch.

    Args:
        scores: `(N,)`, higher is more informative.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` enter the clustering, at least 1; with 1 this is `top_k`.
    """
    rows = best_by_score(scores, shortlist, query_size, generator)
    _, clusters = kmeans(embeddings[rows], query_size, generator=generator)
    later = torch.ones(len(rows), dtype=torch.bool)
    later[np.unique(clusters.cpu().numpy(), return_index=True)[1]] = False
    return rows[later.to(rows.device).to(torch.uint8).argsort(stable=True)[:query_size]]


def cluster_margin(
    scores: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator, shortlist: float = 10
) -> Tensor:
    """Cluster the most informative and draw from each cluster in turn, the smallest first (Citovsky et al., 2021).

    The clusters come from average linkage, which leaves a rare kind of image a cluster of its own. They are made
    of the shortlist, at most `LARGEST_TREE` images of it, and there are half as many as images wanted: with as many,
    each would get one turn, and outliers, each a cluster of its own, would fill the batch.

    Args:
        scores: `(N,)`, higher is more informative; the paper's is the margin.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` enter the clustering, at least 1; with 1 this is `top_k`.
    """
    from sklearn.cluster import AgglomerativeClustering  # takes a second to load

    rows = best_by_score(scores, shortlist, query_size, generator)[: max(LARGEST_TREE, query_size)]
    if len(rows) <= query_size:
        return rows
    tree = AgglomerativeClustering(math.ceil(query_size / 2), linkage="average")
    clusters = torch.from_numpy(tree.fit_predict(embeddings[rows].float().cpu().numpy()))
    shuffled = torch.randperm(len(rows), generator=generator)
    places = clusters.bincount().argsort(stable=True).argsort()[clusters]
    smallest_first = shuffled[places[shuffled].argsort(stable=True)]
    turns = take_turns(places[smallest_first])
    return rows[smallest_first[turns[:query_size]].to(rows.device)]


def falcun(probs: Tensor, *, query_size: int, generator: torch.Generator, gamma: float = 10.0) -> Tensor:
    """Draw what is uncertain and predicted unlike all that is drawn already (FALCUN; Gilhuber et al., 2024).

    The odds are `(uncertainty + distance) ** gamma`. The uncertainty is the margin score of the mean prediction.
    The distance is that to the nearest draw, the sum of the absolute differences of the class probabilities; it
    starts as the uncertainty, never grows, and is scaled to [0, 1] over what is left at each draw.

    Args:
        probs: `(N, K, C)`.
        gamma: at least 0; 0 is random, infinitely large takes the best each time.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    mean, uncertainty = mean_of_members(probs), margin(probs).double()
    distance = uncertainty.clone()
    left = torch.ones(len(probs), dtype=torch.bool, device=probs.device)
    chances = torch.rand(min(query_size, len(probs)), generator=generator, dtype=torch.float64).tolist()
    picks: list[int] = []
    for chance in chances:
        low, high = distance[left].aminmax()
        relevance = uncertainty + (distance - low) / (high - low).clamp_min(TINY)
        # The largest becomes 1, so that no power overflows, and not all powers underflow.
        odds = torch.where(left, (relevance / relevance[left].max().clamp_min(TINY)) ** gamma, 0.0)
        odds = odds if odds.any() else left.double()
        picks.append(_draw(odds, chance))
        left[picks[-1]] = False
        distance = torch.minimum(distance, (mean - mean[picks[-1]]).abs().sum(dim=1))
    return torch.tensor(picks, dtype=torch.long, device=probs.device)


def badge(probs: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Draw gradients that are long and far apart (BADGE; Ash et al., 2020).

    The gradient is that of the loss at the last layer, were the prediction right: the outer product of the error
    that this makes of the mean prediction, and the embedding. It is never computed: see `spread.d2_sampling`.

    Args:
        probs: `(N, K, C)`.
        embeddings: `(N, D)`.
    """
    return d2_sampling([_Errors(probs), embeddings], query_size, generator=generator)


@dataclass(frozen=True)
class _Errors:
    """The errors `(N, C)` of mean predictions, were the likeliest class right; made when they are read, never held.

    Attributes:
        probs: `(N, K, C)`.
    """

    probs: Tensor

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def device(self) -> torch.device:
        return self.probs.device

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        error = mean_of_members(self.probs[rows])
        return error.scatter_add_(1, error.argmax(dim=1, keepdim=True), error.new_full((len(error), 1), -1))


def bait(
    embeddings: Tensor,
    probs: Tensor,
    labelled_embeddings: Tensor,
    labelled_probs: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what leaves the last layer least in doubt over the whole pool (BAIT; Ash et al., 2021).

    In its fast form, where a prediction is the most likely class against the rest (Huseljic et al., 2024): see
    `joint.bait`. The embeddings are divided by their mean length, because the prior that it starts from
    has a fixed scale: without this, long embeddings would make it count for nothing and short ones for all.

    Args:
        embeddings: `(N, D)`.
        probs: `(N, K, C)`.
        labelled_embeddings: `(M, D)`.
        labelled_probs: `(M, K, C)`.
        generator: not used: nothing is left to chance.
    """
    lengths = block_by_block(lambda rows: embeddings[rows].float().norm(dim=1), len(embeddings), embeddings.device)
    length = lengths.mean().clamp_min(TINY)
    return joint.bait(
        embeddings,
        mean_of_members(probs).amax(dim=1),
        labelled_embeddings,
        mean_of_members(labelled_probs).amax(dim=1),
        query_size,
        length=length,
    )


def _draw(odds: Tensor, chance: float) -> int:
    """Return the position that a number drawn evenly from [0, 1) falls on; `torch.multinomial` ends at 2**24 odds."""
    cumulative = odds.cumsum(dim=0)
    total = float(cumulative[-1])
    return int(torch.searchsorted(cumulative, min(chance * total, math.nextafter(total, 0)), right=True))
