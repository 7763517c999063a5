"""Labels that are probably wrong: a review list, nothing is changed.

Most of what a weak model contradicts is right. Confident learning (Northcutt, Jiang and Chuang, 2021) takes the model's
word for it, in its list as in its count of errors: of 49 labels that it named, by a model that was right on 51 %, 3
were wrong. So here how likely a label is wrong comes from weighing the model against the label: `wrong_probabilities`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.probabilities import check_probs

FEWEST_RIGHT = 0.6
"""Share of labels that a model has to get right for a list to be worth reading. Between .4 and .6, with 3 % of the
labels wrong, it would be wrong about two labels of three that it lists."""
LIKELY_WRONG = 0.5
"""Labels on the list are as likely wrong as right, or likelier."""
TEMPERATURES = (0.25, 100.0)
"""Of what the model says; the lowest and the highest."""
HARD_SHARES = (0.0, 0.15, 0.35)
HARD = 3.0
"""For so large a share of images the model is this many times less sure than for the others. Without them it is taken
at its word too often: 60 % of what it lists is wrong where it claims 80; with them 69 % and 73."""
N_TEMPERATURES, N_RATES = 24, 30
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
    """Return the labels that the model contradicts, those that are likeliest to be wrong first.

    Args:
        probs: `(n, C)` class probabilities from networks that were not trained on the image.
        targets: `(n,)` class indices as given.

    Returns:
        The images whose likeliest class is another than the given one, which is suggested; ordered by the probability
        of being wrong, ties by the lower position.

    >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    >>> find_label_errors(probs, torch.tensor([0, 0, 1, 1])).positions
    tensor([3])
    """
    if probs.shape[:1] != targets.shape:
        raise ValueError(f"every image needs probabilities and a label, got {len(probs)} and {len(targets)}")
    probs, targets = check_probs(probs).double(), targets.to(probs.device)
    given = probs.gather(1, targets[:, None]).flatten()
    suggested_probability, suggested = probs.max(dim=1)
    positions = (suggested_probability > given).nonzero().flatten()
    wrong = wrong_probabilities(probs, targets)
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
    the model says at a temperature t, of a share h of the images at `HARD` t:
    `P(label | image) = (1 - e) p(label) + e (1 - p(label)) / (C - 1)`. The second part is what a wrong label
    contributes. The labels themselves say how likely each e, t and h is; a weak model is not sure of anything at its
    best t, and so has little against a label. Nothing is fitted: the whole grid is weighed.

    Args:
        probs: `(n, C)` class probabilities from networks that were not trained on the image, C >= 2.
        targets: `(n,)` class indices as given.
    """
    logits, n_others = probs.double().clamp_min(torch.finfo(torch.float64).tiny).log(), probs.shape[1] - 1
    # Even steps of the root, so that small shares, which are usual, are told apart.
    roots = (torch.arange(N_RATES, dtype=torch.float64, device=probs.device) + 0.5) / N_RATES
    rates = (HIGHEST_RATE * roots.square())[:, None]
    prior = (USUAL_RATE - 1) * torch.log1p(-rates[:, 0]) + roots.log()

    low, high = (math.log10(end) for end in TEMPERATURES)
    temperatures = torch.logspace(low, high, N_TEMPERATURES, dtype=torch.float64).tolist()

    def at(temperature: float) -> Tensor:
        return (logits / temperature).softmax(dim=1).gather(1, targets[:, None])[:, 0]

    given = [(at(t), at(HARD * t)) for t in temperatures]
    given_by_model = [(1 - hard) * own + hard * unsure for own, unsure in given for hard in HARD_SHARES]
    fits = torch.stack(
        [((1 - rates) * own + rates * (1 - own) / n_others).log().sum(dim=1) + prior for own in given_by_model]
    )
    weights = fits.flatten().softmax(dim=0).reshape(fits.shape)
    shares = torch.zeros(len(targets), dtype=torch.float64, device=probs.device)
    for own, weight in zip(given_by_model, weights, strict=True):
        wrong = rates * (1 - own) / n_others
        shares += weight @ (wrong / (wrong + (1 - rates) * own))
    return shares
