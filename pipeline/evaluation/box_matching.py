"""Average precision of boxes as COCO measures it, with an interval over draws of the images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.evaluation.bootstrap import draw_images, percentile_interval
from pipeline.memory import BLOCK

OVERLAPS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""Intersections over union from which on a box is the right one; AP is the mean over them, AP50 of the first."""
MOST = 100
"""Boxes of each class that count in an image, the likeliest, as in COCO."""
RECALLS = torch.arange(101, dtype=torch.float64) * 0.01
"""Where the precision is read: to the last bit as pycocotools does it, for a recall of 3 in 10 may be 0.3 or not."""


class Found(NamedTuple):
    """Boxes that a model sees in an image, the likeliest first.

    Attributes:
        boxes: `(d, 4)` left, upper, right and lower edge, in any unit.
        scores: `(d,)` falling.
        labels: `(d,)` int64 class of each.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Ranked(NamedTuple):
    """The boxes of one class in all images, the likeliest first, each judged once.

    Attributes:
        scores: `(D,)` falling.
        image: `(D,)` int64, where each is.
        is_hit: `(T, D)` whether each has an object of its own, at each of `OVERLAPS`.
        n_objects: `(N,)` float64, objects of the class in each image.
    """

    scores: Tensor
    image: Tensor
    is_hit: Tensor
    n_objects: Tensor


class BoxPrecision(NamedTuple):
    """How good boxes are: means over the classes that occur, and the 95 % interval of AP50.

    Attributes:
        ap50: average precision at an overlap of 0.5.
        ap: mean of those at each of `OVERLAPS`.
        recall: share of the objects found at all, mean over `OVERLAPS`.
        of_classes: AP50 `(C,)`, NaN for a class without an object.
    """

    ap50: float
    low: float
    high: float
    ap: float
    recall: float
    of_classes: Tensor


def box_precision(ranked: Sequence[Ranked], *, seed: int = 0) -> BoxPrecision:
    """Average precisions of C classes, of which at least one occurs.

    The interval is the percentile bootstrap's over images: boxes are judged once, each draw weighs an image by how
    often it was drawn.

    Args:
        ranked: of each class, as `rank` gives them.
        seed: of the draws.
    """
    n = len(ranked[0].n_objects)
    weights = draw_images(n, seed=seed)
    each = torch.stack([average_precision(of_class, of_class.is_hit[0], weights) for of_class in ranked], dim=1)
    plain = torch.stack(
        [torch.cat([average_precision(of_class, hits, weights[:1]) for hits in of_class.is_hit]) for of_class in ranked]
    )
    recalls = torch.stack([of_class.is_hit.sum(dim=1) / of_class.n_objects.sum() for of_class in ranked])
    low, high = percentile_interval(each.nanmean(dim=1), n)
    return BoxPrecision(
        ap50=float(each[0].nanmean()),
        low=low,
        high=high,
        ap=float(plain.nanmean()),
        recall=float(recalls.nanmean()),
        of_classes=each[0],
    )


def average_precision(ranked: Ranked, is_hit: Tensor, weights: Tensor) -> Tensor:
    """Mean over `RECALLS` of the highest precision at that recall or a higher one, `(B,)`; NaN without an object.

    As pycocotools has it (Lin et al., 2014), for images that count as much as their weights.

    Args:
        ranked: N images.
        is_hit: `(D,)` one row of `ranked.is_hit`.
        weights: `(B, N)` float64, at least 0; B sets of them.
    """
    rows = max(1, BLOCK // max(1, len(is_hit)))
    return torch.cat([_average_precision(ranked, is_hit, part) for part in weights.split(rows)])


def _average_precision(ranked: Ranked, is_hit: Tensor, weights: Tensor) -> Tensor:
    n_objects = weights @ ranked.n_objects
    counted = weights[:, ranked.image].cumsum(dim=1)[:, is_hit]  # only hits raise recall and precision
    if not counted.shape[1]:
        return torch.where(n_objects > 0, 0.0, torch.nan)
    right = weights[:, ranked.image[is_hit]].cumsum(dim=1)
    precision = right / counted.clamp(min=torch.finfo(counted.dtype).tiny)
    highest = precision.flip(1).cummax(dim=1).values.flip(1)
    wanted = RECALLS.expand(len(weights), -1).contiguous()
    place = torch.searchsorted(right / n_objects[:, None], wanted)
    reached = torch.cat([highest, torch.zeros_like(highest[:, :1])], dim=1).gather(1, place)
    return torch.where(n_objects > 0, reached.mean(dim=1), torch.nan)


def rank(found: Sequence[Found], targets: Tensor, *, n_classes: int) -> list[Ranked]:
    """The boxes of each class in all images, judged.

    Args:
        found: boxes of each of N images.
        targets: `(N, M, 5)` class and edges of the objects in each image, in the unit of the boxes; class -1 where
            there is none.
    """
    n_objects = torch.stack([(targets[:, :, 0] == label).sum(dim=1) for label in range(n_classes)]).double()
    is_hit = torch.cat([judge(seen, objects) for seen, objects in zip(found, targets, strict=True)], dim=1)
    scores, labels = torch.cat([seen.scores for seen in found]), torch.cat([seen.labels for seen in found])
    image = torch.arange(len(found)).repeat_interleave(torch.tensor([len(seen.scores) for seen in found]))
    ranked = []
    for label in range(n_classes):
        own = (labels == label).nonzero()[:, 0]
        order = own[scores[own].argsort(descending=True, stable=True)]
        ranked.append(Ranked(scores[order], image[order], is_hit[:, order], n_objects[label]))
    return ranked


def judge(seen: Found, objects: Tensor) -> Tensor:
    """Which boxes of an image have an object of their own, `(T, d)` bool, at each of `OVERLAPS`.

    The likeliest box chooses first: of the objects of its class that are left and that it overlaps enough, the one that
    it overlaps most, of equals the last, as in pycocotools.

    Args:
        objects: `(M, 5)` class and edges; class -1 where there is none.
    """
    overlaps = torch.tensor(OVERLAPS, dtype=torch.float64)
    is_hit = torch.zeros(len(OVERLAPS), len(seen.scores), dtype=torch.bool)
    shared = box_iou(seen.boxes.double(), objects[:, 1:].double())
    shared[seen.labels[:, None] != objects[:, 0]] = 0
    is_free = torch.ones(len(OVERLAPS), len(objects), dtype=torch.bool)
    for place in (shared >= OVERLAPS[0]).any(dim=1).nonzero()[:, 0].tolist():
        best = (shared[place] * is_free).flip(1).max(dim=1)
        is_hit[:, place] = best.values >= overlaps
        is_free[is_hit[:, place], len(objects) - 1 - best.indices[is_hit[:, place]]] = False
    return is_hit
