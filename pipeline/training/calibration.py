"""Temperature: how much the logits are divided by, so that probabilities mean what they say."""

import math

from torch import Tensor

from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood
from pipeline.types import Calibration

COLDEST, HOTTEST = 0.05, 20.0
"""Limits of a temperature: beyond them the probabilities are those of other logits in all but name."""
PRIOR_IMAGES = 2.0
"""How much the temperature is held at 1, see `fit_temperature`: without it twenty images that are all right have the
lowest limit as their best temperature, and every doubt of the network is gone. With 2 the temperature lies between
0.32 and 2.4 with 90 % probability before an image is seen; some hundred images outweigh it."""


def calibrate(logits: Tensor, targets: Tensor) -> Calibration:
    """Fit a temperature and measure what it changes.

    Args:
        logits: `(n, C)` of images that were not trained on, n >= 1.
        targets: `(n,)` class indices.
    """
    temperature = fit_temperature(logits, targets)
    logits, targets = logits.double().cpu(), targets.cpu()
    before, after = logits.softmax(dim=1), (logits / temperature).softmax(dim=1)
    return Calibration(
        temperature=temperature,
        n=len(targets),
        nll_before=negative_log_likelihood(before, targets),
        nll_after=negative_log_likelihood(after, targets),
        ece_before=calibration_error(before, targets),
        ece_after=calibration_error(after, targets),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature that makes the labels likeliest (Guo et al., 2017), held at 1 where there are few images.

    With a = 1 / T it minimises `sum of NLL + PRIOR_IMAGES * (a - 1 - log a)`, minus the log of a gamma prior whose mode
    is T = 1. Both parts are convex in a, so there is one minimum; its mean NLL is never above that of T = 1.

    Args:
        logits: `(n, C)` of images that were not trained on, n >= 1; those of the training images make T too low.
        targets: `(n,)` class indices.

    Returns:
        In `[COLDEST, HOTTEST]`.

    >>> import torch
    >>> fit_temperature(torch.tensor([[8.0, 0.0]] * 9), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])) > 3
    True
    """
    if len(logits) == 0 or logits.shape[:1] != targets.shape:
        raise ValueError(
            "a temperature needs logits (n, C) and targets (n,), n >= 1, "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    logits, targets = logits.double(), targets.to(logits.device)
    if not logits.isfinite().all():
        raise ValueError("a temperature needs finite logits")
    true = logits.gather(1, targets[:, None]).sum()
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):  # halves log(high / low), which is 6, to less than the rounding of a double
        middle = math.sqrt(low * high)
        expected = ((middle * logits).softmax(dim=1) * logits).sum()
        slope = float(expected - true) + PRIOR_IMAGES * (1 - 1 / middle)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1 / low
