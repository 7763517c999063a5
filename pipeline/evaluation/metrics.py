"""Measures of predictions, and intervals of shares."""

import math

import torch
from torch import Tensor

N_BINS = 15
Z_95 = 1.959963984540054
"""97.5th percentile of the normal distribution."""


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


def f1(predicted: Tensor, targets: Tensor) -> Tensor:
    """Harmonic mean of precision and recall over the first axis, `(...)` float64; 0 where there is nothing to find.

    Args:
        predicted: `(n, ...)` bool.
        targets: `(n, ...)` bool.
    """
    found = (predicted & targets).sum(dim=0).double()
    return 2 * found / (predicted.sum(dim=0) + targets.sum(dim=0)).clamp(min=1)


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
