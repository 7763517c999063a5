"""How good a model is, with an interval, on images that nobody chose for being hard."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.selection.acquisition import check_probs
from pipeline.types import Metrics

N_BINS = 15
Z_95 = 1.959963984540054
"""97.5th percentile of the normal distribution."""


def evaluate(probs: Tensor, targets: Tensor, *, classes: Sequence[str]) -> Metrics:
    """Measure predictions against the truth.

    Args:
        probs: `(n, C)` class probabilities, n >= 1; the mean over the members where there are several.
        targets: `(n,)` class indices.
        classes: C names.
    """
    if len(probs) == 0:
        raise ValueError("there are no images to measure on")
    if probs.shape != (len(targets), len(classes)):
        raise ValueError(f"probs must be (n, C) = {(len(targets), len(classes))}, got {tuple(probs.shape)}")
    if targets.min() < 0 or targets.max() >= len(classes):
        raise ValueError(f"targets must be in [0, {len(classes)}), got {targets.min()} to {targets.max()}")
    probs, targets = check_probs(probs.cpu()), targets.cpu()
    n = len(targets)
    confusion = confusion_matrix(probs.argmax(dim=1), targets, n_classes=len(classes))
    counts = confusion.sum(dim=1)
    right = confusion.diagonal()
    recall = {
        name: hits / total for name, hits, total in zip(classes, right.tolist(), counts.tolist(), strict=True) if total
    }
    low, high = wilson_interval(int(right.sum()), n)
    return Metrics(
        n=n,
        accuracy=int(right.sum()) / n,
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=sum(recall.values()) / len(recall),
        nll=negative_log_likelihood(probs, targets),
        ece=calibration_error(probs, targets),
        recall=recall,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def confusion_matrix(predicted: Tensor, targets: Tensor, *, n_classes: int) -> Tensor:
    """Counts `(C, C)` from class indices `(n,)`; row = true class, column = predicted."""
    return (targets * n_classes + predicted).bincount(minlength=n_classes**2).reshape(n_classes, n_classes)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927); unlike the normal one it stays in [0, 1] and is never empty.

    >>> [round(limit, 3) for limit in wilson_interval(10, 10)]
    [0.722, 1.0]
    """
    share = successes / n
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def negative_log_likelihood(probs: Tensor, targets: Tensor) -> float:
    """Mean of minus the log of the true class's probability `(n, C)`, nats.

    A probability of zero counts as the machine epsilon of its type, so that one sure mistake is dear (15.9 nats in
    float32) and not infinite.
    """
    true = probs[torch.arange(len(targets)), targets]
    return float(-true.clamp(min=torch.finfo(probs.dtype).eps).double().log().mean())


def calibration_error(probs: Tensor, targets: Tensor) -> float:
    """Expected calibration error (Naeini, Cooper and Hauskrecht, 2015): gap of confidence and accuracy, in [0, 1].

    Images are put in `N_BINS` bins of equal width by their highest probability, `(lower, upper]`; the gaps of the bins
    are averaged by their number of images.

    Args:
        probs: `(n, C)`.
        targets: `(n,)` class indices.
    """
    confidence, predicted = probs.double().max(dim=1)
    gap = confidence - (predicted == targets).double()
    bins = (confidence * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    return float(torch.zeros(N_BINS, dtype=torch.float64).index_add(0, bins, gap).abs().sum() / len(targets))
