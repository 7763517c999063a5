"""Segmentation: every cell of a network's map is a decision of C + 1 answers, nothing there or one of C classes."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline import probabilities
from pipeline.evaluation.intersection import Overlap, intersection_over_union, mean_intersection, overlap
from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood
from pipeline.masks import mask_to_png, pixels_of
from pipeline.memory import BLOCK
from pipeline.probabilities import check_probs
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.tasks import cells
from pipeline.tasks.task_type import Answered
from pipeline.types import AskFor, Metrics, Region, mask_size

asks = AskFor(kind="mask", several=True)
has_one_decision = False
decides_each_class = False
headline = "mIoU"
stride: int | None = 4
reduction = "top_tenth"
batch_size = 8
SIDE = 256
"""Rows and columns of a raster, whatever the size of an image and of a network's map."""
MOST_CLASSES = 254
UNKNOWN = 255
"""Answer of a pixel that nobody looked at: nothing is learnt from it, and nothing measured on it."""


def n_outputs(n_classes: int) -> int:
    """Channels of a network's map: one for each answer."""
    return 1 + n_classes


def n_logits(n_classes: int) -> int:
    """All of them."""
    return 1 + n_classes


def read_label(text: str) -> tuple[Region, ...]:
    """The regions that `regions_to_json` wrote; "[]" says that nothing is there."""
    return _painted(regions_from_json(text))


def write_label(regions: Sequence[Region]) -> str:
    """The cell that `read_label` reads."""
    return regions_to_json(_painted(regions))


def consensus(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    """What most people painted at each pixel, of a tie what the first of them painted, as a mask of each class.

    People agree as far as two of them do on average: the mean of their intersections over unions over the classes that
    either painted. Two who painted nothing agree.

    Returns:
        Masks, as large as the first mask that somebody gave, or `SIDE` where all gave polygons; and the agreement,
        in [0, 1]. What a single person gave stays as it is.

    Raises:
        ValueError: somebody gave a region that is neither a mask nor a polygon.
    """
    painted = [_painted(regions) for regions in given]
    if len(painted) == 1:
        return painted[0], 1.0
    classes = sorted({region.label for regions in painted for region in regions})
    width, height = next((mask_size(one.mask) for regions in painted for one in regions if one.mask), (SIDE, SIDE))
    rasters = [_raster(regions, classes, width, height) for regions in painted]
    agreed = _voted(rasters)
    masks = {label: agreed == 1 + place for place, label in enumerate(classes)}
    regions = tuple(Region("mask", label, mask=mask_to_png(mask)) for label, mask in masks.items() if mask.any())
    shares = [_agreement(one, other, 1 + len(classes)) for one, other in combinations(rasters, 2)]
    return regions, sum(shares) / len(shares)


def _painted(regions: Sequence[Region]) -> tuple[Region, ...]:
    if any(region.kind not in ("mask", "polygon") for region in regions):
        raise ValueError(f"wanted masks or polygons, got regions of kind {', '.join(one.kind for one in regions)}")
    return tuple(regions)


def _voted(rasters: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The answer that most rasters have at each pixel, of a tie that of the earliest."""
    agreed, most = rasters[0].copy(), np.zeros(rasters[0].shape, dtype=np.int16)
    for one in rasters:
        votes = np.zeros_like(most)
        for other in rasters:
            votes += one == other
        np.copyto(agreed, one, where=votes > most)
        np.maximum(most, votes, out=most)
    return agreed


def _agreement(one: NDArray[np.uint8], other: NDArray[np.uint8], n_answers: int) -> float:
    """Mean intersection over union of the classes that either of two people painted; 1 where there is none."""
    shares = []
    for answer in range(1, n_answers):
        by_one, by_other = one == answer, other == answer
        n_either = np.count_nonzero(by_one | by_other)
        shares += [np.count_nonzero(by_one & by_other) / n_either] if n_either else []
    return sum(shares) / len(shares) if shares else 1.0


def _raster(regions: Sequence[Region], classes: Sequence[str], width: int, height: int) -> NDArray[np.uint8]:
    """`(height, width)`, 0 or 1 + the index of the class; what comes later covers what came before."""
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"segmentation takes {MOST_CLASSES} classes at most, got {len(classes)}")
    raster = np.zeros((height, width), dtype=np.uint8)
    for region in regions:
        raster[pixels_of(region, width, height)] = 1 + classes.index(region.label)
    return raster


def targets(labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
    """`(n, SIDE, SIDE)` uint8 of masks and polygons: 0 where there is nothing, else 1 + the index of the class."""
    rasters = np.zeros((len(labels), SIDE, SIDE), dtype=np.uint8)
    for raster, regions in zip(rasters, labels, strict=True):
        raster[:] = _raster(regions, classes, SIDE, SIDE)
    return torch.from_numpy(rasters)


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    """Raise ValueError unless these are n rasters of answers, n >= 1."""
    if targets.shape != (n, SIDE, SIDE) or targets.dtype != torch.uint8 or n == 0:
        raise ValueError(
            f"rasters are targets ({n}, {SIDE}, {SIDE}) of uint8, n >= 1, got {tuple(targets.shape)} of {targets.dtype}"
        )
    highest = _highest(targets)
    if highest > n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}] or {UNKNOWN}, got {highest}")


def _highest(targets: Tensor) -> int:
    """The highest answer that is known, 0 where none is."""
    return int(torch.where(targets == UNKNOWN, 0, targets).max()) if len(targets) else 0


def warp(targets: Tensor, affine: Tensor) -> Tensor:
    """The rasters after the augmentation, by the nearest pixel; what lies outside repeats the edge, as in images."""
    floats = targets[:, None].float()
    grid = functional.affine_grid(affine.to(floats), list(floats.shape), align_corners=False)
    moved = functional.grid_sample(floats, grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved[:, 0].to(targets.dtype)


def strata(targets: Tensor) -> Tensor:
    """`(n,)` the class of each image that the fewest images have, of equals the first.

    Images without any class are a stratum of their own, one above the highest class that there is.
    """
    there = _there(targets, _highest(targets))
    return cells.rarest(there)


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """Images `(C,)` that have each class, float64."""
    return _there(targets, n_classes).sum(dim=0).double()


def _there(targets: Tensor, n_classes: int) -> Tensor:
    """Whether each image has each class, `(n, C)` bool."""
    counts = [raster.flatten().bincount(minlength=1 + n_classes)[1 : 1 + n_classes] for raster in targets]
    return torch.stack(counts) > 0 if counts else torch.zeros(0, n_classes, dtype=torch.bool, device=targets.device)


def wanted(targets: Tensor, outputs: Tensor) -> Tensor:
    """`(n, C + 1, h, w)` the share of each cell's known pixels that has each answer; all 0 where none is known.

    A pixel is of the cell it is in.
    """
    return _shares(targets, outputs.shape[1], outputs.shape[-1]).to(outputs)


def loss(outputs: Tensor, wanted: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the cells with the shares that answers have in them, in nats.

    Thin things have a share where they have no majority: with shares heads on a frozen trunk came to a mIoU of .34 from
    10 composed scenes and .59 from 40, with the answer of most pixels to .33 and .56 (two seeds).

    Args:
        outputs: logits `(n, C + 1, h, w)`.
        wanted: `(n, C + 1, h, w)` shares; cells of which no pixel is known are left out.
        class_weights: `(C,)`; what is nothing counts 1. None where every pixel counts the same.
        label_smoothing: share of the probability that the right answer gives to all C + 1 evenly.
    """
    n_answers = outputs.shape[1]
    weights = outputs.new_ones(n_answers)
    if class_weights is not None:
        weights[1:] = class_weights.to(outputs)
    weighted = wanted * weights[:, None, None]
    evenly = wanted.any(dim=1, keepdim=True) / n_answers * weights[:, None, None]
    smoothed = weighted * (1 - label_smoothing) + label_smoothing * evenly
    return -(smoothed * outputs.log_softmax(dim=1)).sum() / weighted.sum().clamp(min=torch.finfo(weighted.dtype).eps)


def overlap_loss(outputs: Tensor, wanted: Tensor) -> Tensor:
    """1 less the soft Dice coefficient of each class, the mean over the classes that are there, in [0, 1].

    With p the probability of a class in a cell and s the share that it has in it, over the cells of all images,

        Dice = 2 sum p s / (sum p^2 + sum s^2)

    (V-Net: Milletari et al., 2016): a class counts alike however few its cells are. The squares make it 1 where p = s,
    and nowhere else, also in cells that a class has a part of. What is nothing is left out: it has most of the cells.

    Args: as in `loss`.
    """
    probs = outputs.softmax(dim=1) * wanted.any(dim=1, keepdim=True)
    both, seen, true = (each[:, 1:].sum(dim=(0, 2, 3)) for each in (probs * wanted, probs.square(), wanted.square()))
    is_there = true > 0
    dice = 2 * both / (seen + true).clamp(min=torch.finfo(true.dtype).eps)
    return ((1 - dice) * is_there).sum() / is_there.sum().clamp(min=1)


def _shares(targets: Tensor, n_answers: int, side: int) -> Tensor:
    """`(n, A, side, side)`, see `wanted`."""
    n_images = max(1, BLOCK // (n_answers * side * side + SIDE * SIDE))
    return torch.cat([_shares_of_few(part, n_answers, side) for part in targets.split(n_images)])


def _shares_of_few(targets: Tensor, n_answers: int, side: int) -> Tensor:
    n, length = len(targets), max(SIDE, side)
    middle = torch.arange(length, device=targets.device) + 0.5
    nearest, cell = (middle * SIDE / length).long(), (middle * side / length).long()
    answers = targets if length == SIDE else targets[:, nearest][:, :, nearest]
    counts = torch.zeros((n, n_answers, side, side), device=targets.device)
    for answer in answers.flatten().bincount(minlength=n_answers)[:n_answers].nonzero().flatten().tolist():
        rows = counts.new_zeros((n, side, length)).index_add_(1, cell, (answers == answer).float())
        counts[:, answer].index_add_(2, cell, rows)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _majority(shares: Tensor) -> Tensor:
    """`(n, h w)` the answer that most of a cell's known pixels have, of equals the lowest; -1 if none is known.

    Args:
        shares: `(n, A, h, w)`, see `wanted`.
    """
    shares = shares.flatten(2)
    return torch.where(shares.any(dim=1), shares.argmax(dim=1), -1)


def _overlap(guessed: Tensor, right: Tensor, n_answers: int) -> Overlap:
    """Counts of what is known: answers `(n, ...)` that are right in [0, A)."""
    is_known = (right >= 0) & (right < n_answers)
    known = (torch.where(is_known, answers, n_answers) for answers in (guessed, right))
    return Overlap(*(counts[:, :-1] for counts in overlap(*known, n_answers=n_answers + 1)))


def logits(outputs: Tensor) -> Tensor:
    """`(n, h w, C + 1)` from logits `(n, C + 1, h, w)`: a decision for each cell, row by row."""
    return outputs.flatten(2).transpose(1, 2)


def places(_outputs: Tensor) -> None:
    """None: probabilities are all that a mask is made of."""
    return None


def answered(values: Tensor, targets: Tensor) -> Answered:
    """Some cells of each image, and what most of their pixels are."""
    return cells.answered(values, _majority(_shares(targets, values.shape[2], cells.side_of(values.shape[1]))))


in_words = cells.in_words


def metrics(outputs: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Share of the cells that are right; mean intersection over union of each image, 1 where it has no class."""
    n_answers = outputs.shape[1]
    right, guessed = _majority(wanted), outputs.argmax(dim=1).flatten(1)
    each = intersection_over_union(*_overlap(guessed, right, n_answers))[:, 1:].nanmean(dim=1)
    n_known = (right >= 0).sum().clamp(min=1)
    return {"accuracy": (guessed == right).sum() / n_known, "image_mIoU": each.nan_to_num(1.0).mean()}


def measure(probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None) -> Metrics | None:
    """Mean over the classes of the intersection over union of all images together, with its bootstrap interval.

    Predictions are brought up to the rasters first. Classes that no image has are left out. Log-likelihood and
    calibration are those of the cells that `answered` takes, half of them of classes.

    Args:
        probs: `(n, U, C + 1)`, n >= 1.
        targets: `(n, SIDE, SIDE)` uint8.
        classes: C names.
        places: there are none.

    Returns:
        None where no image has any class: nothing could be found.
    """
    if len(probs) == 0:
        raise ValueError("there are no images to measure on")
    n_answers = n_outputs(len(classes))
    if probs.ndim != 3 or (len(probs), probs.shape[2]) != (len(targets), n_answers):
        raise ValueError(f"probs must be (n, U, C + 1) = ({len(targets)}, U, {n_answers}), got {tuple(probs.shape)}")
    check_targets(targets, len(probs), len(classes))
    probs, targets = check_probs(probs.cpu()), targets.cpu()
    if _highest(targets) == 0:
        return None
    parts = [_overlap(seen.argmax(dim=1), targets[rows], n_answers) for rows, seen in _brought_up(probs)]
    found = Overlap(*(torch.cat(counts) for counts in zip(*parts, strict=True)))
    occurs = found.true.any(dim=0)
    occurs[0] = False
    over_classes = mean_intersection(Overlap(*(counts[:, occurs] for counts in found)))
    names = [name for name, has_pixels in zip(classes, occurs[1:].tolist(), strict=True) if has_pixels]
    known = answered(probs, targets)
    return Metrics(
        n=len(targets),
        headline=headline,
        value=over_classes.value,
        low=over_classes.low,
        high=over_classes.high,
        nll=negative_log_likelihood(known.values, known.right),
        ece=calibration_error(known.values, known.right),
        scalars={
            "background_IoU": float(intersection_over_union(*(counts[:, 0].sum() for counts in found)).nan_to_num(1.0)),
            "pixel_accuracy": float(found.both.sum() / found.true.sum()),
        },
        by_class={"IoU": dict(zip(names, over_classes.of_answers, strict=True))},
        is_share_of_images=False,
    )


def _brought_up(probs: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some of the images of `(n, U, A)` after another, each with its probabilities `(images, A, SIDE, SIDE)`."""
    side, n_images = cells.side_of(probs.shape[1]), max(1, BLOCK // (probs.shape[2] * SIDE * SIDE))
    for start in range(0, len(probs), n_images):
        rows = slice(start, start + n_images)
        maps = probs[rows].transpose(1, 2).unflatten(2, (side, side))
        yield rows, functional.interpolate(maps, (SIDE, SIDE), mode="bilinear", align_corners=False)


def guess(probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
    """One mask of each class that is the likeliest answer somewhere, with the mean of its pixels' probabilities."""
    return [_masks(seen, classes) for _, part in _brought_up(probs) for seen in part]


def _masks(seen: Tensor, classes: Sequence[str]) -> tuple[Region, ...]:
    """What probabilities `(A, SIDE, SIDE)` show."""
    best = seen.max(dim=0)
    masks = []
    for answer in best.indices.unique().tolist():
        if answer:
            mask = best.indices == answer
            score = min(1.0, float(best.values[mask].mean()))
            masks.append(Region("mask", classes[answer - 1], score=score, mask=mask_to_png(mask.numpy())))
    return tuple(masks)


def in_columns(
    probs: Tensor, classes: Sequence[str], places: Tensor | None = None
) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
    """`regions`, the guess as JSON."""
    return {"regions": np.array([write_label(regions) for regions in guess(probs, classes)], dtype=object)}


merged = probabilities.merged
