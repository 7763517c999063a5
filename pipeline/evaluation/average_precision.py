"""Average precision of ranked images, with an interval over draws of the images."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.metrics import wilson_interval

N_DRAWS = 1000
"""Draws of the images, with replacement, that an interval is taken from."""


class MacroAveragePrecision(NamedTuple):
    """The mean of the classes' average precisions, its 95 % interval, and that of each class."""

    value: float
    low: float
    high: float
    of_classes: list[float]


def macro_average_precision(scores: Tensor, is_there: Tensor, *, seed: int = 0) -> MacroAveragePrecision:
    """Mean over the classes of the average precision, with its percentile bootstrap interval over images (Efron, 1979).

    Each draw weighs an image by how often it was drawn, so that the images are ranked once. A class that a draw has no
    image of is left out of that draw's mean. Draws of a ranking without a fault are all without one, which tells
    nothing of the next fault: then the interval is Wilson's of as many images that are all right.

    Args:
        scores: `(n, C)`, higher for images that rather have the class.
        is_there: `(n, C)` bool; every class has an image.
        seed: of the draws.
    """
    n, n_classes = is_there.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (N_DRAWS, n), generator=generator)
    weights = torch.zeros(1 + N_DRAWS, n, dtype=torch.float64)
    weights[0] = 1
    weights[1:].scatter_add_(1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(N_DRAWS, n))
    each = torch.stack(
        [average_precision(scores[:, place], is_there[:, place], weights) for place in range(n_classes)], dim=1
    )
    value, of_draws = float(each[0].mean()), each[1:].nanmean(dim=1)
    low, high = torch.quantile(of_draws[~of_draws.isnan()], torch.tensor([0.025, 0.975]).double()).tolist()
    if value == 1.0:
        low, high = wilson_interval(n, n)
    return MacroAveragePrecision(value, min(low, value), max(high, value), each[0].tolist())


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
