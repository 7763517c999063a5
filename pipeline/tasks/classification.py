"""Classification: every image has one class out of C, so one decision (U = 1)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline import probabilities
from pipeline.evaluation.metrics import (
    calibration_error,
    confusion_matrix,
    negative_log_likelihood,
    wilson_interval,
)
from pipeline.probabilities import check_probs
from pipeline.tasks.task_type import Answered
from pipeline.types import ONE_CLASS, Metrics, Region

asks = ONE_CLASS
has_one_decision = True
decides_each_class = False
headline = "accuracy"
stride: int | None = None
reduction = "mean"
batch_size = 32
overlap_loss = None


def read_label(text: str) -> tuple[Region, ...]:
    """The class of the whole image."""
    return (Region("image", text),)


def write_label(regions: Sequence[Region]) -> str:
    """The class of the whole image."""
    return _class_of(regions)


def consensus(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    """The class that most people gave, and their share; of equals the first.

    Raises:
        ValueError: somebody gave another number of classes than one, or a part of the image.
    """
    votes = [_class_of(regions) for regions in given]
    label, n_votes = Counter(votes).most_common(1)[0]
    return read_label(label), n_votes / len(votes)


def targets(labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
    """Class index `(n,)` of each image."""
    index = {name: position for position, name in enumerate(classes)}
    return torch.tensor([index[_class_of(regions)] for regions in labels], dtype=torch.long)


def _class_of(regions: Sequence[Region]) -> str:
    if len(regions) != 1 or regions[0].kind != "image":
        raise ValueError(f"wanted one label for the whole image, got {tuple(regions)}")
    return regions[0].label


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    """Raise ValueError unless these are n class indices `(n,)`, n >= 1."""
    if len(targets) != n or n == 0:
        raise ValueError(f"training needs one target for each image, got {n} and {len(targets)}")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


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
    """The class `(n,)` of each image."""
    return targets


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """Images `(C,)` of each class, float64."""
    return targets.bincount(minlength=n_classes).double()


def wanted(targets: Tensor, outputs: Tensor) -> Tensor:
    """The targets: a whole image has no form."""
    return targets


def loss(outputs: Tensor, wanted: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        outputs: logits `(n, C)`.
        wanted: `(n,)` class indices.
        class_weights: `(C,)`, None where every image counts the same.
        label_smoothing: share of the probability that the right class gives to all C evenly (Szegedy et al., 2016).
    """
    return functional.cross_entropy(outputs, wanted, weight=class_weights, label_smoothing=label_smoothing)


def logits(outputs: Tensor) -> Tensor:
    """`(n, 1, C)` from logits `(n, C)`."""
    return outputs.unsqueeze(-2)


def places(outputs: Tensor) -> None:
    """None: labels of whole images have no place."""


def answered(values: Tensor, targets: Tensor) -> Answered:
    """Each image's one decision, of `(n, 1, C)`."""
    return Answered(values.squeeze(1), targets, torch.arange(len(targets)), torch.zeros_like(targets))


def in_words(_decision: int, answer: int, classes: Sequence[str], _n_decisions: int) -> str:
    """The class."""
    return classes[answer]


def metrics(outputs: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Share of images `(n,)` whose likeliest class is right."""
    return {"accuracy": (outputs.argmax(dim=-1) == wanted).float().mean()}


def measure(probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None) -> Metrics:
    """Accuracy with its 95 % Wilson interval, recall of each class that occurs, and their mean.

    Args:
        probs: `(n, 1, C)`, n >= 1.
        targets: `(n,)` class indices.
        classes: C names.
    """
    if len(probs) == 0:
        raise ValueError("there are no images to measure on")
    if probs.shape != (len(targets), 1, len(classes)):
        raise ValueError(f"probs must be (n, 1, C) = {(len(targets), 1, len(classes))}, got {tuple(probs.shape)}")
    check_targets(targets, len(probs), len(classes))
    probs, targets = check_probs(probs[:, 0].cpu()), targets.cpu()
    confusion = confusion_matrix(probs.argmax(dim=1), targets, n_classes=len(classes))
    right, counts = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    recall = {name: hits / total for name, hits, total in zip(classes, right, counts, strict=True) if total}
    low, high = wilson_interval(sum(right), len(targets))
    return Metrics(
        n=len(targets),
        headline=headline,
        value=sum(right) / len(targets),
        low=low,
        high=high,
        nll=negative_log_likelihood(probs, targets),
        ece=calibration_error(probs, targets),
        scalars={"balanced_accuracy": sum(recall.values()) / len(recall)},
        by_class={"recall": recall},
        table=tuple(tuple(row) for row in confusion.tolist()),
    )


def guess(probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
    """The likeliest class of each image."""
    best = probs[:, 0].max(dim=1)
    return [
        (Region("image", classes[index], score=min(1.0, score)),)
        for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def in_columns(
    probs: Tensor, classes: Sequence[str], places: Tensor | None = None
) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
    """The likeliest `class`, its `probability`, and the probability of each class as `p_` and its name."""
    best = probs[:, 0].max(dim=1)
    columns = {"class": np.array(classes, dtype=object)[best.indices.numpy()], "probability": best.values.numpy()}
    return columns | {f"p_{name}": probs[:, 0, place].numpy() for place, name in enumerate(classes)}


merged = probabilities.merged
