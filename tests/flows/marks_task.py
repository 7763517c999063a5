"""A made-up task: an image bears any of C marks, or none; each mark is a decision of two answers, absent or there."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood, wilson_interval
from pipeline.tasks.task_type import Answered
from pipeline.types import AskFor, Metrics, Region

asks = AskFor(kind="image", several=True)
has_one_decision = False
decides_each_class = True
headline = "exact_match"
stride: int | None = None
reduction = "mean"
batch_size = 32
overlap_loss = None


def read_label(text: str) -> tuple[Region, ...]:
    return tuple(Region("image", name) for name in text.split("+") if name)


def write_label(regions: Sequence[Region]) -> str:
    return "+".join(region.label for region in regions)


def consensus(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    names = {region.label: None for regions in given for region in regions}
    votes = {name: sum(any(r.label == name for r in regions) for regions in given) / len(given) for name in names}
    agreed = tuple(Region("image", name) for name, share in votes.items() if share > 0.5)
    shares = [max(share, 1 - share) for share in votes.values()]
    return agreed, sum(shares) / len(shares) if shares else 1.0


def targets(labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
    return torch.tensor([[any(region.label == name for region in regions) for name in classes] for regions in labels])


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    if targets.shape != (n, n_classes) or n == 0:
        raise ValueError(f"marks need targets ({n}, {n_classes}), got {tuple(targets.shape)}")


def warp(targets: Tensor, affine: Tensor) -> Tensor:
    """As they are: a whole image stays what it is."""
    return targets


def n_outputs(n_classes: int) -> int:
    """A logit for each class."""
    return n_classes


def n_logits(n_classes: int) -> int:
    """All."""
    return n_classes


def strata(targets: Tensor) -> Tensor:
    return targets.long().argmax(dim=1)


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    return targets.sum(dim=0).double()


def wanted(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets


def loss(outputs: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    smoothed = targets.to(outputs) * (1 - label_smoothing) + label_smoothing / 2
    return functional.binary_cross_entropy_with_logits(outputs, smoothed, weight=class_weights)


def logits(outputs: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(outputs), outputs], dim=-1)


def places(outputs: Tensor) -> None:
    """None: labels of whole images have no place."""


def answered(values: Tensor, targets: Tensor) -> Answered:
    n, n_marks = targets.shape
    return Answered(
        values.flatten(0, 1),
        targets.long().flatten(),
        torch.arange(n).repeat_interleave(n_marks),
        torch.arange(n_marks).repeat(n),
    )


def in_words(decision: int, answer: int, classes: Sequence[str], n_decisions: int) -> str:
    return classes[decision] if answer else f"no {classes[decision]}"


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"exact_match": ((outputs > 0) == targets).all(dim=1).float().mean()}


def measure(probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None) -> Metrics:
    is_right = (probs.argmax(dim=2) == targets.long()).all(dim=1)
    low, high = wilson_interval(int(is_right.sum()), len(is_right))
    known = answered(probs, targets)
    return Metrics(
        n=len(targets),
        headline=headline,
        value=float(is_right.float().mean()),
        low=low,
        high=high,
        nll=negative_log_likelihood(known.values, known.right),
        ece=calibration_error(known.values, known.right),
    )


def guess(probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
    return [
        tuple(Region("image", name, score=p) for name, p in zip(classes, row, strict=True) if p > 0.5)
        for row in probs[:, :, 1].tolist()
    ]


def in_columns(
    probs: Tensor, classes: Sequence[str], places: Tensor | None = None
) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
    return {f"p_{name}": probs[:, place, 1].numpy() for place, name in enumerate(classes)}


def merged(probs: Tensor, classes: Sequence[str], renamed: Mapping[str, str]) -> tuple[Tensor, tuple[str, ...]]:
    return probs, tuple(renamed.get(name, name) for name in classes)
