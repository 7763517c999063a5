"""Strategies that compare the members of a model one by one."""

import torch
from torch import Tensor

from pipeline.selection.acquisition import bald
from pipeline.selection.geometry import joint
from pipeline.selection.geometry.clusters import kmeans, nearest_to_centroids
from pipeline.selection.geometry.distances import on_the_sphere
from pipeline.selection.strategies.by_score import top_k
from pipeline.selection.strategies.columns import check_several_members, mean_of_members

MOST_JOINT = 2000
"""Images among which `batch_bald` looks."""

WIDE_ENOUGH = 25
"""Images that `drop_query` clusters at least, for each one asked for, as long as the members differ on so many."""


def batch_bald(probs: Tensor, *, query_size: int, generator: torch.Generator, n_configurations: int = 10_000) -> Tensor:
    """Take what tells most about the model jointly, for small batches (BatchBALD; Kirsch et al., 2019).

    Looks at the `MOST_JOINT` images with the highest BALD. See `joint.batch_bald`.

    Args:
        probs: `(N, K, C)`, K >= 2.
        n_configurations: joint labels that the entropy is computed from; fewer are faster and noisier.
    """
    check_several_members(probs, "batch_bald")
    rows = top_k(bald(probs), query_size=max(MOST_JOINT, query_size), generator=generator).sort().values
    picks = joint.batch_bald(probs[rows], query_size, generator=generator, n_configurations=n_configurations)
    return rows[picks]


def drop_query(probs: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Cluster what the members do not agree on and take the middle of each cluster (DropQuery; Gupte et al., 2024).

    Clustered is what more than half of the members predict unlike their mean; where this is less than `WIDE_ENOUGH`
    times the batch, so many of what any member does, those first on which most do. The rest of the batch is random.
    The paper's members are three passes with dropout on the embedding, compared with the pass without it.

    Args:
        probs: `(N, K, C)`, K >= 2.
        embeddings: `(N, D)`, clustered on the unit sphere.
    """
    check_several_members(probs, "drop_query")
    differ = (probs.argmax(dim=2) != mean_of_members(probs).argmax(dim=1, keepdim=True)).float().mean(dim=1)
    n_open = max(int((differ > 0.5).sum()), min(int((differ > 0).sum()), WIDE_ENOUGH * query_size))
    open_ones = top_k(differ, query_size=n_open, generator=generator)
    shuffled = torch.randperm(len(probs), generator=generator).to(probs.device)
    if len(open_ones) == 0:
        return shuffled[:query_size]
    rows = on_the_sphere(embeddings[open_ones])
    centroids, _ = kmeans(rows, query_size, generator=generator)
    picks = open_ones[nearest_to_centroids(rows, centroids)]
    others = shuffled[~torch.isin(shuffled, picks)]
    return torch.cat([picks, others[: query_size - len(picks)]])
