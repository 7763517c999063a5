"""Labels that are probably wrong, found by confident learning: a review list, nothing is changed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.acquisition import check_probs


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """Suspicious labels, the most suspicious first.

    Attributes:
        positions: `(m,)` int64, which of the images.
        suggested: `(m,)` int64, the class that the image probably has.
        given_probability: `(m,)` of the class that the image was given.
        suggested_probability: `(m,)` of the class suggested, higher than that of the given one.
    """

    positions: Tensor
    suggested: Tensor
    given_probability: Tensor
    suggested_probability: Tensor


def find_label_errors(probs: Tensor, targets: Tensor) -> LabelErrors:
    """Return the images off the diagonal of the confident joint (Northcutt, Jiang and Chuang, 2021).

    A class is confident for an image where its probability is at least the mean probability that the images of this
    class give it; the likeliest of the confident classes is suggested. The image is suspicious where another class than
    the given one is suggested. Theirs keeps those whose given class is as likely as the suggested one or likelier, and
    only not confident; a person would look at them for nothing, so here they are left out.

    Args:
        probs: `(n, C)` class probabilities from networks that were not trained on the image.
        targets: `(n,)` class indices as given; a class without images is never suggested.

    Returns:
        Ordered by the suggested probability less the given one; ties go to the lower position.

    >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    >>> find_label_errors(probs, torch.tensor([0, 0, 1, 1])).positions
    tensor([3])
    """
    if probs.shape[:1] != targets.shape:
        raise ValueError(f"every image needs probabilities and a label, got {len(probs)} and {len(targets)}")
    probs, targets = check_probs(probs).double(), targets.to(probs.device)
    given = probs.gather(1, targets[:, None]).flatten()
    confident = torch.where(probs >= confident_thresholds(probs, targets), probs, -1.0)
    suggested_probability, suggested = confident.max(dim=1)
    suspicion = suggested_probability - given
    positions = (suspicion > 0).nonzero().flatten()
    positions = positions[suspicion[positions].argsort(descending=True, stable=True)]
    return LabelErrors(
        positions=positions,
        suggested=suggested[positions],
        given_probability=given[positions],
        suggested_probability=suggested_probability[positions],
    )


def confident_thresholds(probs: Tensor, targets: Tensor) -> Tensor:
    """Mean probability `(C,)` of each class over the images that were given it; infinite where there are none.

    Args:
        probs: `(n, C)` class probabilities.
        targets: `(n,)` class indices.
    """
    sums = probs.new_zeros(probs.shape[1]).scatter_add(0, targets, probs.gather(1, targets[:, None]).flatten())
    counts = targets.bincount(minlength=probs.shape[1])
    return torch.where(counts > 0, sums / counts, torch.inf)
