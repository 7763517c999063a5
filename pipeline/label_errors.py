"""Labels that are probably wrong: a review list, nothing is changed.

Confident learning finds the labels that a model contradicts. Most of what a weak model contradicts is right, and the
method's own count of errors, which takes the model's word, says nothing of that. So how likely each label is wrong
comes from weighing the model against the label: see `wrong_probabilities`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.acquisition import check_probs

FEWEST_RIGHT = 0.6
"""Share of labels that a model has to get right for a list to be worth reading. Between .4 and .6, with 3 % of the
labels wrong, it would be wrong about two labels of three that it lists."""
LIKELY_WRONG = 0.5
"""Labels on the list are as likely wrong as right, or likelier."""
TEMPERATURES = (0.25, 100.0)
N_TEMPERATURES, N_RATES = 32, 40
HIGHEST_RATE = 0.5
USUAL_RATE = 20.0
"""Before anything is seen, a share e of wrong labels is as likely as (1 - e)^19: 5 % on average."""


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """Suspicious labels, the most suspicious first.

    Attributes:
        positions: `(m,)` int64, which of the images.
        suggested: `(m,)` int64, the class that the image probably has.
        given_probability: `(m,)` of the class that the image was given.
        suggested_probability: `(m,)` of the class suggested, higher than that of the given one.
        wrong_probability: `(m,)` that the label is wrong; their sum is how many of them are, on average.
    """

    positions: Tensor
    suggested: Tensor
    given_probability: Tensor
    suggested_probability: Tensor
    wrong_probability: Tensor


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
        Ordered by the probability of being wrong, then by the suggested probability less the given one; ties go to the
        lower position.

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
    wrong = wrong_probabilities(probs, targets)
    positions = (suspicion > 0).nonzero().flatten()
    positions = positions[suspicion[positions].argsort(descending=True, stable=True)]
    positions = positions[wrong[positions].argsort(descending=True, stable=True)]
    return LabelErrors(
        positions=positions,
        suggested=suggested[positions],
        given_probability=given[positions],
        suggested_probability=suggested_probability[positions],
        wrong_probability=wrong[positions],
    )


def share_right(probs: Tensor, targets: Tensor) -> float:
    """Share of the labels `(n,)` that are the likeliest class of `(n, C)`: see `FEWEST_RIGHT`."""
    return float((probs.argmax(dim=1) == targets).double().mean())


def wrong_probabilities(probs: Tensor, targets: Tensor) -> Tensor:
    """How likely each label is wrong, `(n,)`.

    A share e of the labels is taken for wrong, any other class in place of the true one, and the true class for what
    the model says at a temperature t:
    `P(label | image) = (1 - e) p_t(label) + e (1 - p_t(label)) / (C - 1)`. The second part is what a wrong label
    contributes. The labels themselves say how likely each pair of e and t is; a weak model is not sure of anything at
    its best t, and so has little against a label. Nothing is fitted: all pairs of a grid are weighed.

    Args:
        probs: `(n, C)` class probabilities from networks that were not trained on the image, C >= 2.
        targets: `(n,)` class indices as given.
    """
    logits, n_others = probs.double().clamp_min(torch.finfo(torch.float64).tiny).log(), probs.shape[1] - 1
    # Even steps of the root, so that small shares, which are usual, are told apart.
    roots = (torch.arange(N_RATES, dtype=torch.float64, device=probs.device) + 0.5) / N_RATES
    rates = (HIGHEST_RATE * roots.square())[:, None]
    prior = (USUAL_RATE - 1) * torch.log1p(-rates[:, 0]) + roots.log()

    def right_and_wrong(temperature: float) -> tuple[Tensor, Tensor]:
        own = (logits / temperature).softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return (1 - rates) * own, rates * (1 - own) / n_others

    low, high = (math.log10(end) for end in TEMPERATURES)
    temperatures = torch.logspace(low, high, N_TEMPERATURES, dtype=torch.float64).tolist()
    fits = torch.stack([torch.add(*right_and_wrong(t)).log().sum(dim=1) + prior for t in temperatures])
    weights = fits.flatten().softmax(dim=0).reshape(fits.shape)
    shares = torch.zeros(len(targets), dtype=torch.float64, device=probs.device)
    for temperature, weight in zip(temperatures, weights, strict=True):
        right, wrong = right_and_wrong(temperature)
        shares += weight @ (wrong / (right + wrong))
    return shares


def confident_thresholds(probs: Tensor, targets: Tensor) -> Tensor:
    """Mean probability `(C,)` of each class over the images that were given it; infinite where there are none.

    Args:
        probs: `(n, C)` class probabilities.
        targets: `(n,)` class indices.
    """
    sums = probs.new_zeros(probs.shape[1]).scatter_add(0, targets, probs.gather(1, targets[:, None]).flatten())
    counts = targets.bincount(minlength=probs.shape[1])
    return torch.where(counts > 0, sums / counts, torch.inf)
