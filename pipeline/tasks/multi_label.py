"""Multi-label: an image has any of C classes, or none; each class is a decision of two answers, absent and there."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.average_precision import macro_average_precision
from pipeline.evaluation.metrics import calibration_error, f1, negative_log_likelihood
from pipeline.probabilities import check_probs
from pipeline.regions import OTHERS, cell_of_labels, labels_of_cell
from pipeline.tasks import cells
from pipeline.tasks.task_type import Answered
from pipeline.types import AskFor, Metrics, Region

asks = AskFor(kind="image", several=True)
has_one_decision = False
decides_each_class = True
headline = "macro_AP"
stride: int | None = None
reduction = "mean"
batch_size = 32
overlap_loss = None
THERE = 0.5
"""A class of a higher probability is in the guess."""
UNKNOWN = -1
"""The target of a class of which nobody wrote down whether it is there."""
UNLISTED = 0.1
"""How much such a class counts as absent, of 1 for a class that is known."""


def read_label(text: str) -> tuple[Region, ...]:
    """The classes of a cell such as "cat|dog"; an empty one and "|" alone say that none of the classes is there.

    "cat|?" names what is there, and leaves open what else is: it gives the label `OTHERS` too.
    """
    return _found(labels_of_cell(text))


def write_label(regions: Sequence[Region]) -> str:
    """The cell that `read_label` reads."""
    return cell_of_labels([region.label for region in regions])


def _found(names: Sequence[str]) -> tuple[Region, ...]:
    return tuple(Region("image", name) for name in sorted(set(names), key=lambda name: (name == OTHERS, name)))


def consensus(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    """The classes that most people found, of a tie what the first said; how far people agree on a class, on average.

    Only classes that somebody found are counted: on all others everybody agrees, however many there are.

    Raises:
        ValueError: somebody gave a part of the image.
    """
    votes = [_classes_of(regions) for regions in given]
    shares = {name: sum(name in vote for vote in votes) / len(votes) for name in set().union(*votes)}
    agreed = [name for name, share in shares.items() if share > 0.5 or (share == 0.5 and name in votes[0])]
    agreement = [max(share, 1 - share) for share in shares.values()]
    return _found(agreed), sum(agreement) / len(agreement) if agreement else 1.0


def _classes_of(regions: Sequence[Region]) -> frozenset[str]:
    if any(region.kind != "image" for region in regions):
        raise ValueError(f"wanted labels for the whole image, got {tuple(regions)}")
    return frozenset(region.label for region in regions)


def targets(labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
    """`(n, C)` int8: 1 where a class is there, 0 where it is not, `UNKNOWN` where a label leaves that open."""
    found = [_classes_of(regions) for regions in labels]
    rows = [[1 if name in names else UNKNOWN if OTHERS in names else 0 for name in classes] for names in found]
    return torch.tensor(rows, dtype=torch.int8).reshape(len(rows), len(classes))


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    """Raise ValueError unless these are int8 `(n, C)` of 0, 1 and `UNKNOWN`, n >= 1."""
    if targets.shape != (n, n_classes) or targets.dtype != torch.int8 or n == 0:
        raise ValueError(
            f"several labels for each image are targets ({n}, {n_classes}) of int8, n >= 1, got "
            f"{tuple(targets.shape)} of {targets.dtype}"
        )
    if not torch.isin(targets, targets.new_tensor([0, 1, UNKNOWN])).all():
        raise ValueError(f"targets must be 0, 1 or {UNKNOWN}, got {targets.unique().tolist()}")


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
    """`(n,)` the class of each image that the fewest images have, of equals the first; C where it has none."""
    return cells.rarest(targets == 1)


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """Images `(C,)` that have each class as far as is known, float64."""
    return (targets == 1).sum(dim=0).double()


def wanted(targets: Tensor, outputs: Tensor) -> Tensor:
    """The targets: a whole image has no form."""
    return targets


def loss(outputs: Tensor, wanted: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy over images and classes, in nats; an unknown class is weakly absent: `UNLISTED`.

    Args:
        outputs: logits `(n, C)` of each class being there.
        wanted: `(n, C)` int8.
        class_weights: `(C,)`, how much both answers about a class count; None where all count the same.
        label_smoothing: share of the probability that the right answer gives to both evenly.
    """
    weights = torch.where(wanted == UNKNOWN, UNLISTED, 1.0).to(outputs)
    if class_weights is not None:
        weights = weights * class_weights
    smoothed = (wanted == 1).to(outputs) * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(outputs, smoothed, weights, reduction="sum")
    return losses / weights.sum()


def logits(outputs: Tensor) -> Tensor:
    """`(n, C, 2)` from logits `(n, C)`: the softmax of 0 and z is the sigmoid of z."""
    return torch.stack([torch.zeros_like(outputs), outputs], dim=-1)


def places(outputs: Tensor) -> None:
    """None: labels of whole images have no place."""


def answered(values: Tensor, targets: Tensor) -> Answered:
    """The decisions of `(n, C, 2)` about the images of which all are known, image by image.

    Of other images only what is there is known, and whoever sees everything everywhere is right about them:
    a temperature that is fitted to them makes predictions worse.
    """
    is_complete = (targets != UNKNOWN).all(dim=1, keepdim=True)
    image, decision = is_complete.expand_as(targets).nonzero(as_tuple=True)
    return Answered(values[image, decision], targets[image, decision].long(), image, decision)


def in_words(decision: int, answer: int, classes: Sequence[str], _n_decisions: int) -> str:
    """The class, or that it is not there."""
    return classes[decision] if answer else f"no {classes[decision]}"


def metrics(outputs: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Share of the known decisions that are right, and of the images all of whose known decisions are."""
    is_known, is_right = wanted != UNKNOWN, (outputs > 0) == (wanted == 1)
    return {
        "accuracy": (is_right & is_known).sum() / is_known.sum().clamp(min=1),
        "exact_match": (is_right | ~is_known).all(dim=1).float().mean(),
    }


def measure(probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None) -> Metrics | None:
    """Mean over the classes of the average precision, with a 95 % bootstrap interval over images; F1 at 0.5.

    Classes that no image has are left out of the means over classes.

    Args:
        probs: `(n, C, 2)`, n >= 1.
        targets: `(n, C)` int8, all known.
        classes: C names.

    Returns:
        None where no image has any class: nothing could be ranked.
    """
    if len(probs) == 0:
        raise ValueError("there are no images to measure on")
    if probs.shape != (len(targets), len(classes), 2):
        raise ValueError(f"probs must be (n, C, 2) = {(len(targets), len(classes), 2)}, got {tuple(probs.shape)}")
    check_targets(targets, len(probs), len(classes))
    if (targets == UNKNOWN).any():
        raise ValueError("wanted labels that tell of every class whether it is there: others measure nothing")
    probs, targets = check_probs(probs.cpu()), targets.cpu()
    is_there, known = targets == 1, answered(probs, targets)
    occurs = is_there.any(dim=0)
    if not occurs.any():
        return None
    there = probs[..., 1]
    precision = macro_average_precision(there[:, occurs], is_there[:, occurs])
    guessed = there > THERE
    names = [name for name, has_images in zip(classes, occurs.tolist(), strict=True) if has_images]
    return Metrics(
        n=len(targets),
        headline=headline,
        value=precision.value,
        low=precision.low,
        high=precision.high,
        nll=negative_log_likelihood(known.values, known.right),
        ece=calibration_error(known.values, known.right),
        scalars={
            "macro_f1": float(f1(guessed, is_there)[occurs].mean()),
            "micro_f1": float(f1(guessed.flatten(), is_there.flatten())),
            "exact_match": float((guessed == is_there).all(dim=1).double().mean()),
        },
        by_class={"average_precision": dict(zip(names, precision.of_classes, strict=True))},
        is_share_of_images=False,
    )


def guess(probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
    """The classes that are rather there than not, in each image."""
    return [
        tuple(
            Region("image", name, score=min(1.0, score))
            for name, score in zip(classes, row, strict=True)
            if score > THERE
        )
        for row in probs[..., 1].tolist()
    ]


def in_columns(
    probs: Tensor, classes: Sequence[str], places: Tensor | None = None
) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
    """`labels`, the guess as a manifest has it, and the probability of each class as `p_` and its name."""
    labels = np.array([write_label(regions) for regions in guess(probs, classes)], dtype=object)
    return {"labels": labels} | {f"p_{name}": probs[:, place, 1].numpy() for place, name in enumerate(classes)}


def merged(probs: Tensor, classes: Sequence[str], renamed: Mapping[str, str]) -> tuple[Tensor, tuple[str, ...]]:
    """By the names that classes have now; of classes that are one now, one is there as far as the likeliest is."""
    present = [renamed.get(name, name) for name in classes]
    names = tuple(dict.fromkeys(present))
    there = [probs[:, [place for place, other in enumerate(present) if other == name], 1].amax(dim=1) for name in names]
    likeliest = torch.stack(there, dim=1)
    return torch.stack([1 - likeliest, likeliest], dim=-1), names
