"""Detection: boxes around objects. Every cell of a map decides between nothing and C classes, and tells a box.

The detector has one stage and no anchors, as FCOS (Tian et al., 2019) and CenterNet (Zhou et al., 2019): cells near the
middle of an object learn its class, and how far its edges are from the cell's centre. See docs/decisions/0022-boxes.md.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median, mode

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou, generalized_box_iou_loss, nms

from pipeline import probabilities
from pipeline.evaluation.box_matching import MOST as MOST_COUNTED
from pipeline.evaluation.box_matching import Found, box_precision, rank
from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood
from pipeline.memory import BLOCK
from pipeline.probabilities import check_probs
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.tasks import cells
from pipeline.tasks.task_type import Answered
from pipeline.types import AskFor, Metrics, Region

asks = AskFor(kind="box", several=True)
has_one_decision = False
decides_each_class = False
headline = "AP50"
stride: int | None = 8
reduction = "mean"
batch_size = 8
overlap_loss = None
NONE = -1
"""Class of a row of targets without an object, and answer of a cell that is left out."""
MIDDLE = 0.5
"""Cells whose centre is in this part of a box, in width and in height, learn its class; the rest of it learns none."""
NOTHING = 0.3
"""How much a cell counts that learns that nothing is there, beside one that learns a class: there are many more."""
DECIDES = 5.0
"""How much the mean over the cells of what they answer counts, beside the mean of how far boxes are off."""
USUAL = 1 / 8
"""Distance to an edge, as a fraction of the image, at which learning begins."""
FARTHEST = 6.0
"""Logarithm of `USUAL` distances, either way, beyond which a network cannot go."""
SAME = 0.5
"""Boxes of a larger intersection over union are of one object."""
MOST = 100
"""Boxes of a guess at most."""
SEEN = 0.01
"""Boxes of a lower probability are not measured."""
SHOWN = 0.22
"""Boxes of a higher probability are guessed: to draw a box takes 7 s (Papadopoulos et al., 2017), to delete one 2 s."""
LEFT = 0.2
"""Objects of which less than this part is still in an image are no longer in it."""


def n_outputs(n_classes: int) -> int:
    """Channels of a network's map: one for each answer, and the logarithms of the distances to four edges."""
    return n_logits(n_classes) + 4


def n_logits(n_classes: int) -> int:
    """One for each answer."""
    return 1 + n_classes


def read_label(text: str) -> tuple[Region, ...]:
    """The boxes that `regions_to_json` wrote; "[]" says that nothing is there."""
    return _boxes(regions_from_json(text))


def write_label(regions: Sequence[Region]) -> str:
    """The cell that `read_label` reads."""
    return regions_to_json(_boxes(regions))


def _boxes(regions: Sequence[Region]) -> tuple[Region, ...]:
    if any(region.kind != "box" for region in regions):
        raise ValueError(f"wanted boxes, got {tuple(regions)}")
    return tuple(regions)


def _edges(regions: Sequence[Region]) -> Tensor:
    """`(b, 4)` left, upper, right and lower edge, fractions."""
    return torch.tensor([region.geometry for region in regions], dtype=torch.float64).reshape(-1, 4)


def consensus(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    """The objects that at least half of the people marked: the class that most gave, the median of each edge.

    Two boxes are of one object from an intersection over union of `SAME` on, whatever their classes; nobody marks an
    object twice. People agree as far as two of them do on average: twice the boxes of one object and one class over all
    boxes of the two. Two who marked nothing agree.

    Returns:
        Boxes, those that somebody marked first coming first; and the agreement, in [0, 1]. What a single person gave
        stays as it is.

    Raises:
        ValueError: somebody gave a region that is no box.
    """
    marked = [_boxes(regions) for regions in given]
    if len(marked) == 1:
        return marked[0], 1.0
    objects: list[list[Region]] = []
    for regions in marked:
        pairs = dict(_pairs(regions, [members[0] for members in objects]))
        for place, region in enumerate(regions):
            if place in pairs:
                objects[pairs[place]].append(region)
            else:
                objects.append([region])
    agreed = [_agreed(members) for members in objects if 2 * len(members) >= len(marked)]
    shares = [_agreement(one, other) for one, other in combinations(marked, 2)]
    return tuple(agreed), sum(shares) / len(shares)


def _pairs(ones: Sequence[Region], others: Sequence[Region]) -> Iterator[tuple[int, int]]:
    """Positions of boxes of one object, each once, those that share the most first."""
    shared = box_iou(_edges(ones), _edges(others))
    one, other = (shared >= SAME).nonzero(as_tuple=True)
    order = shared[one, other].argsort(descending=True, stable=True)
    taken, taken_of_others = set[int](), set[int]()
    for each, its in zip(one[order].tolist(), other[order].tolist(), strict=True):
        if each not in taken and its not in taken_of_others:
            taken.add(each)
            taken_of_others.add(its)
            yield each, its


def _agreed(members: Sequence[Region]) -> Region:
    edges = _edges(members).T.tolist()
    return Region("box", mode(region.label for region in members), tuple(median(edge) for edge in edges))


def _agreement(ones: Sequence[Region], others: Sequence[Region]) -> float:
    """F1 of the boxes of two people."""
    if not ones and not others:
        return 1.0
    n_same = sum(ones[one].label == others[other].label for one, other in _pairs(ones, others))
    return 2 * n_same / (len(ones) + len(others))


def targets(labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
    """`(n, M, 5)` float32: index of the class, left, upper, right and lower edge as fractions; M >= 1.

    M is the most boxes of an image; the rows that are left have `NONE` and zeros.
    """
    index = {name: float(place) for place, name in enumerate(classes)}
    rows = [sorted((index[one.label], *(one.geometry or ())) for one in _boxes(regions)) for regions in labels]
    targets = torch.zeros(len(rows), max(1, *(len(row) for row in rows), 0), 5)
    targets[:, :, 0] = NONE
    for image, row in enumerate(rows):
        targets[image, : len(row)] = torch.tensor(row).reshape(-1, 5)
    return targets


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    """Raise ValueError unless these are the boxes of n images, n >= 1."""
    fits = targets.ndim == 3 and len(targets) == n > 0 and targets.shape[1] > 0 and targets.shape[2] == 5
    if not fits or targets.dtype != torch.float32:
        raise ValueError(
            f"boxes are targets ({n}, M, 5) of float32, n >= 1, M >= 1, got {tuple(targets.shape)} of {targets.dtype}"
        )
    classes = targets[:, :, 0]
    if classes.min() < NONE or classes.max() >= n_classes or (classes != classes.round()).any():
        raise ValueError(f"classes of targets must be in [0, {n_classes}) or {NONE}, got {classes.unique().tolist()}")
    edges = targets[classes != NONE][:, 1:]
    if not ((edges >= 0) & (edges <= 1)).all() or not (edges[:, :2] <= edges[:, 2:]).all():
        raise ValueError("edges of targets must be fractions, left before right and upper before lower")


def warp(targets: Tensor, affine: Tensor) -> Tensor:
    """The boxes around the corners of the boxes after the augmentation.

    An object of which less than `LEFT` is still in the image is left out.
    """
    left, upper, right, lower = (2 * targets[:, :, 1:] - 1).unbind(dim=2)
    corners = torch.stack([left, upper, left, lower, right, upper, right, lower], dim=2).unflatten(2, (4, 2))
    affine = affine.to(targets)
    back = torch.linalg.inv(affine[:, :, :2])
    moved = (torch.einsum("nij,nmkj->nmki", back, corners - affine[:, None, None, :, 2]) + 1) / 2
    bounds = torch.cat([moved.amin(dim=2), moved.amax(dim=2)], dim=2)
    kept = bounds.clamp(0, 1)
    is_left = (targets[:, :, 0] != NONE) & (_area(kept) > 0) & (_area(kept) >= LEFT * _area(bounds))
    rows = torch.cat([targets[:, :, :1], kept], dim=2)
    nothing = torch.tensor([float(NONE), 0, 0, 0, 0], device=targets.device)
    return torch.where(is_left[:, :, None], rows, nothing)


def _area(boxes: Tensor) -> Tensor:
    """`(...)` of boxes `(..., 4)`."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def strata(targets: Tensor) -> Tensor:
    """`(n,)` the class of each image that the fewest images have, of equals the first.

    Images without an object are a stratum of their own, one above the highest class that there is.
    """
    classes = targets[:, :, 0].long()
    n_classes = 1 + int(classes.max()) if classes.numel() else 0
    there = functional.one_hot(classes + 1, 1 + n_classes)[:, :, 1:].any(dim=1)
    return cells.rarest(there)


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """Objects `(C,)` of each class, float64."""
    classes = targets[:, :, 0].long()
    return classes[classes != NONE].bincount(minlength=n_classes).double()


def wanted(targets: Tensor, outputs: Tensor) -> Tensor:
    """`(n, h w, 5)` what each cell should tell: its answer, and the four edges of its box where it has a class.

    The answer is 0 for nothing, 1 + the index of the class, `NONE` where a cell is left out. A cell in the middle of
    several objects belongs to the smallest. The cell of an object's own centre is in its middle, however small the
    object is, unless a smaller object claims it.
    """
    return _wanted(targets, outputs.shape[-1])


def _wanted(targets: Tensor, side: int) -> Tensor:
    """`(n, side * side, 5)`, see `wanted`."""
    n_images = max(1, BLOCK // (side * side * targets.shape[1]))
    return torch.cat([_wanted_of_few(part, side) for part in targets.split(n_images)])


def _wanted_of_few(targets: Tensor, side: int) -> Tensor:
    boxes, is_object = targets[:, None, :, 1:], targets[:, None, :, 0] != NONE
    away = (_centres(side, targets)[:, None] - (boxes[..., :2] + boxes[..., 2:]) / 2).abs()
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    is_own = (away <= 0.5 / side).all(dim=-1)
    is_middle = ((away < MIDDLE * half).all(dim=-1) | is_own) & is_object
    is_inside = ((away < half).all(dim=-1) & is_object).any(dim=2)
    smallest = torch.where(is_middle, _area(boxes), torch.inf).argmin(dim=2)
    own = targets.gather(1, smallest[:, :, None].expand(-1, -1, 5))
    answers = torch.where(is_middle.any(dim=2), 1 + own[:, :, 0], torch.where(is_inside, float(NONE), 0.0))
    return torch.cat([answers[:, :, None], own[:, :, 1:]], dim=2)


def _centres(side: int, like: Tensor) -> Tensor:
    """`(U, 2)` x and y of the centre of each cell, row by row, as fractions."""
    each = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
    down, across = torch.meshgrid(each, each, indexing="ij")
    return torch.stack([across.flatten(), down.flatten()], dim=1)


def loss(outputs: Tensor, wanted: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """`DECIDES` times the mean cross-entropy of the cells in nats, and how far boxes are off in the mean.

    Each mean is over the cells that it is of, so that images count alike, whether few of their cells have an object or
    none. Boxes are as far off as their generalised intersection over union (Rezatofighi et al., 2019) is below 1.
    Cells in the outer part of an object are left out.

    Args:
        outputs: `(n, C + 5, h, w)`, h = w.
        wanted: `(n, h w, 5)`.
        class_weights: `(C,)`, how much a cell of each class counts; None where all count the same.
        label_smoothing: share of the probability that the right answer gives to all C + 1 evenly.
    """
    scores, answers = logits(outputs), wanted[:, :, 0].long()
    weights = scores.new_ones(scores.shape[2])
    weights[0] = NOTHING
    if class_weights is not None:
        weights[1:] = class_weights.to(weights)
    has_class = answers > 0
    each = functional.cross_entropy(
        scores.flatten(0, 1),
        answers.flatten().clamp(min=0),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    counts = weights[answers.flatten().clamp(min=0)] * (answers.flatten() != NONE)
    of_answers = (each * counts).sum() / counts.sum().clamp(min=torch.finfo(counts.dtype).eps)
    return DECIDES * of_answers + _off(_told(outputs), wanted, has_class) / has_class.sum().clamp(min=1)


def _off(told: Tensor, wanted: Tensor, has_class: Tensor) -> Tensor:
    """How far the boxes that cells tell, `(n, U, 4)`, are off, added up over the cells that have a class."""
    off: Tensor = generalized_box_iou_loss(told[has_class], wanted[:, :, 1:][has_class].to(told), reduction="sum")
    return off


def _told(outputs: Tensor) -> Tensor:
    """`(n, U, 4)` the boxes that the cells tell, which may reach beyond the image."""
    distances = outputs[:, -4:].flatten(2).transpose(1, 2).clamp(-FARTHEST, FARTHEST).exp() * USUAL
    centres = _centres(outputs.shape[-1], outputs)
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=2)


def logits(outputs: Tensor) -> Tensor:
    """`(n, h w, C + 1)` from outputs `(n, C + 5, h, w)`: a decision for each cell, row by row."""
    return outputs[:, :-4].flatten(2).transpose(1, 2)


def places(outputs: Tensor) -> Tensor:
    """`(n, h w, 4)` the box of each cell: left, upper, right and lower edge as fractions."""
    return _told(outputs).clamp(0, 1)


def answered(values: Tensor, targets: Tensor) -> Answered:
    """Some cells of each image and what they should tell; cells in the outer part of an object are left out."""
    return cells.answered(values, _wanted(targets, cells.side_of(values.shape[1]))[:, :, 0].long())


in_words = cells.in_words


def metrics(outputs: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Of the cells that have a class, the share that tell it, and how far their boxes are off; 0 where none has one."""
    answers = wanted[:, :, 0]
    has_class = answers > 0
    n_cells = has_class.sum().clamp(min=1)
    is_right = logits(outputs).argmax(dim=2) == answers
    off = _off(places(outputs), wanted, has_class)
    return {"found": (is_right & has_class).sum() / n_cells, "box_loss": off / n_cells}


def measure(probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None) -> Metrics | None:
    """AP50 as COCO has it with its bootstrap interval, and AP, the mean over overlaps of 0.5, 0.55 … 0.95.

    Classes that no image has are left out. Recall is that of the boxes that count, the mean over the same overlaps.
    Log-likelihood and calibration are those of the cells that `answered` takes, half of them of objects.

    Args:
        probs: `(n, U, C + 1)`, n >= 1.
        targets: `(n, M, 5)`.
        classes: C names.
        places: `(n, U, 4)`.

    Returns:
        None where no image has any object: nothing could be found.
    """
    if len(probs) == 0:
        raise ValueError("there are no images to measure on")
    n_answers = n_logits(len(classes))
    if probs.ndim != 3 or (len(probs), probs.shape[2]) != (len(targets), n_answers):
        raise ValueError(f"probs must be (n, U, C + 1) = ({len(targets)}, U, {n_answers}), got {tuple(probs.shape)}")
    check_targets(targets, len(probs), len(classes))
    boxes = _check_places(places, probs).cpu()
    probs, targets = check_probs(probs.cpu()), targets.cpu()
    occurs = class_counts(targets, len(classes)) > 0
    if not occurs.any():
        return None
    found = [_found(seen, at) for seen, at in zip(probs, boxes, strict=True)]
    precision = box_precision(rank(found, targets, n_classes=len(classes)))
    known = answered(probs, targets)
    of_classes = zip(classes, occurs.tolist(), precision.of_classes.tolist(), strict=True)
    return Metrics(
        n=len(targets),
        headline=headline,
        value=precision.ap50,
        low=precision.low,
        high=precision.high,
        nll=negative_log_likelihood(known.values, known.right),
        ece=calibration_error(known.values, known.right),
        scalars={"AP": precision.ap, "recall": precision.recall},
        by_class={"AP50": {name: value for name, has_objects, value in of_classes if has_objects}},
        is_share_of_images=False,
    )


def _check_places(places: Tensor | None, probs: Tensor) -> Tensor:
    if places is None or places.shape != (*probs.shape[:2], 4):
        got = None if places is None else tuple(places.shape)
        raise ValueError(f"boxes need places (n, U, 4) = {(*probs.shape[:2], 4)}, got {got}")
    return places


def _found(probs: Tensor, boxes: Tensor) -> Found:
    """The boxes of an image `(U, C + 1)`, `(U, 4)`: of boxes of one object and one class the likeliest."""
    of_classes = [_found_of(label, scores, boxes) for label, scores in enumerate(probs[:, 1:].unbind(dim=1))]
    found = Found(*(torch.cat(each) for each in zip(*of_classes, strict=True)))
    order = found.scores.argsort(descending=True, stable=True)
    return Found(*(each[order] for each in found))


def _found_of(label: int, scores: Tensor, boxes: Tensor) -> Found:
    is_seen = scores > SEEN
    scores, boxes = scores[is_seen], boxes[is_seen]
    kept = nms(boxes, scores, SAME)[:MOST_COUNTED]
    return Found(_fused(boxes, scores, kept), scores[kept], torch.full_like(kept, label))


def _fused(boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """`(k, 4)` the kept boxes, each the mean of the boxes of its object, which count by their scores.

    As in weighted boxes fusion (Solovyev et al., 2021): neighbouring cells tell of one object, and err each for itself.

    Args:
        boxes: `(b, 4)`.
        scores: `(b,)`.
        kept: `(k,)` positions.
    """
    weights = scores * (box_iou(boxes[kept], boxes) > SAME)
    weights[torch.arange(len(kept)), kept] += torch.finfo(weights.dtype).eps  # a box without area overlaps nothing
    fused: Tensor = weights @ boxes / weights.sum(dim=1, keepdim=True)
    return fused.clamp(0, 1)


def guess(probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
    """Boxes more probable than `SHOWN`, the likeliest first, `MOST` at most; one for each object."""
    return [_seen(seen, at, classes) for seen, at in zip(probs, _check_places(places, probs), strict=True)]


def _seen(probs: Tensor, boxes: Tensor, classes: Sequence[str]) -> tuple[Region, ...]:
    scores, labels = probs[:, 1:].max(dim=1)
    shown = scores > SHOWN
    scores, labels, boxes = scores[shown], labels[shown], boxes[shown]
    kept = nms(boxes, scores, SAME)[:MOST]
    fused = _fused(boxes, scores, kept)
    rows = zip(labels[kept].tolist(), fused.tolist(), scores[kept].tolist(), _area(fused).tolist(), strict=True)
    return tuple(Region("box", classes[label], tuple(box), min(1.0, score)) for label, box, score, area in rows if area)


def in_columns(
    probs: Tensor, classes: Sequence[str], places: Tensor | None = None
) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
    """`regions`, the guess as JSON."""
    return {"regions": np.array([write_label(regions) for regions in guess(probs, classes, places)], dtype=object)}


merged = probabilities.merged
