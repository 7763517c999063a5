"""Intersection over union of what was predicted and what is there, with an interval over draws of the images."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.bootstrap import draw_images, percentile_interval


class Overlap(NamedTuple):
    """Pixels of each image by answer, `(n, A)` int64 each: where both have it, the prediction, the truth."""

    both: Tensor
    predicted: Tensor
    true: Tensor


class MeanIntersection(NamedTuple):
    """The mean of the answers' intersections over unions, its 95 % interval, and that of each answer."""

    value: float
    low: float
    high: float
    of_answers: list[float]


def overlap(predicted: Tensor, true: Tensor, *, n_answers: int) -> Overlap:
    """Counts of two rasters of answers `(n, ...)`, integers in [0, A)."""
    n = len(true)
    offsets = n_answers * torch.arange(n, device=true.device)[:, None]
    guessed, right = (raster.flatten(1) + offsets for raster in (predicted, true))

    def count(places: Tensor) -> Tensor:
        return places.flatten().bincount(minlength=n * n_answers).reshape(n, n_answers)

    return Overlap(count(right[guessed == right]), count(guessed), count(right))


def intersection_over_union(both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Share of the pixels that either has which both have (Jaccard, 1912), `(...)` float64; NaN where neither has any.

    Args: counts `(...)`, as in `Overlap`.
    """
    return both.double() / (predicted + true - both)


def mean_intersection(found: Overlap, *, seed: int = 0) -> MeanIntersection:
    """Mean over the answers of the intersection over union of all images together, with its interval over images.

    The pixels of all images are added up before they are divided, so that an image counts by its pixels. An answer that
    a draw of the images has no pixel of is left out of that draw's mean.

    Args:
        found: of n images; each answer has a true pixel in one of them.
        seed: of the draws.
    """
    weights = draw_images(len(found.true), seed=seed)
    both, predicted, true = (weights @ counts.double() for counts in found)
    each = torch.where(true > 0, intersection_over_union(both, predicted, true), torch.nan)
    low, high = percentile_interval(each.nanmean(dim=1), len(found.true))
    return MeanIntersection(float(each[0].mean()), low, high, each[0].tolist())
