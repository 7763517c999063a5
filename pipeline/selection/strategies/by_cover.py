"""Strategies whose picks stand for other images, each of which counts once it has a pick near it."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.selection.geometry.cover import facility_location, herd
from pipeline.selection.geometry.distances import even_rows, neighbour_distance, on_the_sphere
from pipeline.selection.strategies.by_score import best_by_score
from pipeline.selection.strategies.columns import check_no_negative, mean_of_members
from pipeline.types import Aim

FEW_LABELS = 2
"""Labels for each class below which `auto` does not ask the model."""

MOST_REFERENCES = 10_000
"""Images that a covering is measured on; more cost time and change the picks little."""


def max_herding(
    embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator
) -> Tensor:
    """Cover the pool: each pick adds most to how near every image has a label (MaxHerding; Bae et al., 2024).

    On the unit sphere and with a kernel of radius 1; see `cover.herd`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    rows, labelled = on_the_sphere(embeddings), on_the_sphere(labelled_embeddings)
    references = even_rows(embeddings, MOST_REFERENCES)
    return herd(rows, query_size, centres=labelled, radius=1.0, references=references)


def uherding(
    scores: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Cover what is uncertain: `max_herding` weighted by the scores (UHerding; Bae et al., 2025).

    The radius is the smallest distance between labelled images, see `distances.neighbour_distance`. It shrinks as
    labels come in, and so the strategy goes over from covering the pool to taking the most uncertain. Without labels
    all weights are 1.

    Args:
        scores: `(N,)`, at least 0; the paper's is the margin, which is in [0, 1].
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    check_no_negative(scores, "uherding")
    rows, labelled = on_the_sphere(embeddings), on_the_sphere(labelled_embeddings)
    return herd(
        rows,
        query_size,
        centres=labelled,
        weights=scores.float() if len(labelled) else None,
        radius=neighbour_distance(labelled, share=0),
        references=even_rows(embeddings, MOST_REFERENCES),
    )


def auto(
    scores: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    n_classes: int,
    probs: Tensor | None = None,
    labelled_targets: Tensor | None = None,
    *,
    query_size: int,
    generator: torch.Generator,
) -> tuple[Tensor, str, Aim]:
    """Cover the pool while labels are few, then what is uncertain: the default, for every number of labels.

    Below `FEW_LABELS` for each class the model's word counts for nothing and every image is to be covered, as in
    `max_herding`. Then images count by their score, as in `uherding`, and one covers another only as far as both are
    predicted alike: the kernel is multiplied by the Bhattacharyya coefficient of the two predictions, a labelled image
    counting as sure of its label. So a label is worth most where the model wavers between classes that no label near by
    has settled. The radius is the distance that a quarter of the labelled images have a labelled neighbour within, see
    `distances.neighbour_distance`; it shrinks as labels come in. Where an image takes several decisions the kernel is
    that of the places alone.

    The kernel and the rule were chosen on MNIST digits (pixels, principal components and an imbalanced part of them,
    logistic regression, 10 to 300 labels): docs/decisions/0005.

    Args:
        scores: `(N,)`, at least 0.
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
        n_classes: C.
        probs: `(N, K, C)`; None where an image takes several decisions.
        labelled_targets: `(M,)`; likewise.
    """
    check_no_negative(scores, "auto")
    n_labels = len(labelled_embeddings)
    few = n_labels < FEW_LABELS * n_classes
    affinity = centre_affinity = None
    if not few and probs is not None and labelled_targets is not None:
        affinity = mean_of_members(probs).sqrt()
        centre_affinity = one_hot(labelled_targets, probs.shape[2]).float()
    rows, labelled = on_the_sphere(embeddings), on_the_sphere(labelled_embeddings)
    picks = herd(
        rows,
        query_size,
        centres=labelled,
        weights=None if few else scores.float(),
        radius=neighbour_distance(labelled, share=0.25),
        references=even_rows(embeddings, MOST_REFERENCES),
        affinity=affinity,
        centre_affinity=centre_affinity,
    )
    aim = "the whole pool" if few else "what is uncertain"
    compared = "fewer than" if few else "at least"
    note = f"covers {aim}: {n_labels} labels are {compared} {FEW_LABELS} for each of {n_classes} classes"
    return picks, note, "typical" if few else "unsure"


def suggestive(
    scores: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator, shortlist: float = 10
) -> Tensor:
    """Of the most informative take those that stand for all candidates (suggestive annotation; Yang et al., 2017).

    A candidate is stood for by the most similar pick, by cosine: see `cover.facility_location`.

    Args:
        scores: `(N,)`, higher is more informative; the paper's is the variance.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` may be picked from, at least 1; with 1 this is `top_k`'s choice.
    """
    rows = best_by_score(scores, shortlist, query_size, generator)
    return facility_location(embeddings, query_size, candidates=rows, references=even_rows(embeddings, MOST_REFERENCES))
