"""Average precision of ranked images, with an interval over draws of the images."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.bootstrap import draw_images, percentile_interval


class MacroAveragePrecision(NamedTuple):
    """The mean of the classes' average precisions, its 95 % interval, and that of each class."""

    value: float
    low: float
    high: float
    of_classes: list[float]


def macro_average_precision(scores: Tensor, is_there: Tensor, *, seed: int = 0) -> MacroAveragePrecision:
    """Mean over the classes of the average precision, with its percentile bootstrap interval over images.

    Each draw weighs an image by how often it was drawn, so that the images are ranked once. A class that a draw has no
    image of is left out of that draw's mean.

    Args:
        scores: `(n, C)`, higher for images that rather have the class.
        is_there: `(n, C)` bool; every class has an image.
        seed: of the draws.
    """
    n, n_classes = is_there.shape
    weights = draw_images(n, seed=seed)
    each = torch.stack(
        [average_precision(scores[:, place], is_there[:, place], weights) for place in range(n_classes)], dim=1
    )
    low, high = percentile_interval(each.nanmean(dim=1), n)
    return MacroAveragePrecision(float(each[0].mean()), low, high, each[0].tolist())


def average_precision(scores: Tensor, is_there: Tensor, weights: Tensor) -> Tensor:
    """Mean precision at the images that have the class, `(B,)`: sum over thresholds of recall gained times precision.

    Images of equal scores come in together. NaN where all images of the class weigh nothing.

    Args:
        scores: `(n,)`.
        is_there: `(n,)` bool.
        weights: `(B, n)`, at least 0, how much each image counts; B sets of them.
    """
    ranked, order = scores.sort(descending=True, stable=True)
    is_last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
    counted = weights[:, order].cumsum(dim=1)[:, is_last]
    right = (weights[:, order] * is_there[order]).cumsum(dim=1)[:, is_last]
    gained = right.diff(dim=1, prepend=torch.zeros(len(right), 1, dtype=right.dtype))
    precision = right / counted.clamp(min=torch.finfo(counted.dtype).tiny)
    return (gained * precision).sum(dim=1) / right[:, -1]
