"""From the decisions about an image to one score for the image."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipeline.probabilities import check_probs
from pipeline.registries import look_up
from pipeline.selection.acquisition import score_all


def score_images(decisions: Tensor, acquisition: str, *, reduce: str) -> Tensor:
    """Return one score for each image, higher is more informative.

    Args:
        decisions: `(n, U, K, C)` class probabilities of U decisions by K members; checked here.
        acquisition: a name in `ACQUISITIONS`, or "aleatoric" or "epistemic".
        reduce: a name in `REDUCTIONS`: how the scores of the U decisions become one.

    Returns:
        `(n,)` in the unit of the acquisition function.

    >>> import torch
    >>> score_images(torch.tensor([[[[0.5, 0.5]], [[0.9, 0.1]]]]), "least_confidence", reduce="mean")
    tensor([0.3000])
    """
    return score_columns(decisions, {"score": (acquisition, reduce)})["score"]


def score_columns(decisions: Tensor, columns: Mapping[str, tuple[str, str]]) -> dict[str, Tensor]:
    """Return `(n,)` scores by the names of columns; the decisions are checked and read once for all.

    Args:
        decisions: as in `score_images`.
        columns: name -> acquisition and reduction, as in `score_images`.
    """
    reductions = {reduce: look_up(REDUCTIONS, reduce, "reduction") for _, reduce in columns.values()}
    if decisions.ndim != 4 or decisions.shape[1] < 1:
        raise ValueError(f"decisions must be (n, U, K, C) with U >= 1, got {tuple(decisions.shape)}")
    scores = score_all(check_probs(decisions), {acquisition for acquisition, _ in columns.values()})
    return {name: reductions[reduce](scores[acquisition], decisions) for name, (acquisition, reduce) in columns.items()}


def mean(scores: Tensor, _decisions: Tensor) -> Tensor:
    """Mean over the decisions."""
    return scores.mean(dim=1)


def maximum(scores: Tensor, _decisions: Tensor) -> Tensor:
    """Score of the most informative decision, which one odd place decides."""
    return scores.amax(dim=1)


def total(scores: Tensor, _decisions: Tensor) -> Tensor:
    """Sum over the decisions: an image with many doubtful places scores high, however small each doubt is."""
    return scores.sum(dim=1)


def top_tenth(scores: Tensor, _decisions: Tensor) -> Tensor:
    """Mean over the most informative tenth: between the mean, where a large background hides a doubt, and the most."""
    n_top = -(-scores.shape[1] // 10)
    return scores.topk(n_top, dim=1).values.mean(dim=1)


def foreground(scores: Tensor, decisions: Tensor) -> Tensor:
    """Mean weighted by how likely something is there: many objects score no higher than few; of tasks with places."""
    weights = 1 - decisions[..., 0].mean(dim=2)
    return (weights * scores).sum(dim=1) / weights.sum(dim=1).clamp(min=torch.finfo(weights.dtype).tiny)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "foreground": foreground,
    "max": maximum,
    "mean": mean,
    "sum": total,
    "top_tenth": top_tenth,
}
"""From scores `(n, U)` and the decisions `(n, U, K, C)` that they are of to scores `(n,)` of the images."""
