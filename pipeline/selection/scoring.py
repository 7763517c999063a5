"""From the decisions about an image to one score for the image."""

from collections.abc import Callable, Iterable

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
    return score_columns(decisions, [acquisition], reduce=reduce)[acquisition]


def score_columns(decisions: Tensor, acquisitions: Iterable[str], *, reduce: str) -> dict[str, Tensor]:
    """Return `(n,)` scores for each name in `acquisitions`; the decisions are checked and read once for all.

    Args: as in `score_images`.
    """
    reduction = look_up(REDUCTIONS, reduce, "reduction")
    if decisions.ndim != 4 or decisions.shape[1] < 1:
        raise ValueError(f"decisions must be (n, U, K, C) with U >= 1, got {tuple(decisions.shape)}")
    scores = score_all(check_probs(decisions), acquisitions)
    return {name: reduction(of_decisions) for name, of_decisions in scores.items()}


def mean(scores: Tensor) -> Tensor:
    """Mean over the decisions: `(n, U) -> (n,)`."""
    return scores.mean(dim=1)


def maximum(scores: Tensor) -> Tensor:
    """Score of the most informative decision: `(n, U) -> (n,)`."""
    return scores.amax(dim=1)


def total(scores: Tensor) -> Tensor:
    """Sum over the decisions, so that an image with more of them scores higher: `(n, U) -> (n,)`."""
    return scores.sum(dim=1)


def top_mean(scores: Tensor) -> Tensor:
    """Mean of the most informative tenth of the decisions, at least one: `(n, U) -> (n,)`.

    Between mean, where a large easy background hides a small doubt, and max, which one odd pixel decides.
    """
    n_top = -(-scores.shape[1] // 10)
    return scores.topk(n_top, dim=1).values.mean(dim=1)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": maximum,
    "mean": mean,
    "sum": total,
    "top_mean": top_mean,
}
