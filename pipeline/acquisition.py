"""Acquisition functions: how much a label would tell, from class probabilities alone.

All are `(..., K, C) -> (...)`, K members, C classes, and higher is always more informative. They trust their
input: `check_probs` is called once, where the probabilities come in.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def check_probs(probs: Tensor) -> Tensor:
    """Return `probs` ready to be scored, or say which row is no probability distribution.

    Logits are refused and never turned into probabilities: only the caller knows which of the two they are.

    Args:
        probs: `(..., K, C)`; each row of C values is finite, not negative and sums to 1, within 1e-4 or
            within two machine epsilons of a type that is coarser than that.

    Returns:
        `probs`; float16 and bfloat16 come back as float32.
    """
    if not probs.is_floating_point():
        raise TypeError(f"probs must be of a floating-point type, got {probs.dtype}")
    if probs.ndim < 2 or probs.shape[-2] < 1 or probs.shape[-1] < 2:
        raise ValueError(f"probs must be (..., K, C) with K >= 1 members and C >= 2 classes, got {tuple(probs.shape)}")
    tolerance = max(1e-4, 2 * torch.finfo(probs.dtype).eps)
    probs = _at_least_float32(probs)
    off = (probs.sum(dim=-1) - 1).abs()
    if probs.numel() and not (off.max() <= tolerance and probs.min() >= 0):  # NaN fails both comparisons
        _refuse_first_bad_row(probs, ~(off <= tolerance), tolerance)
    return probs


def entropy(probs: Tensor) -> Tensor:
    """Entropy of the mean prediction: how open the decision is (Shannon, 1948).

    Args:
        probs: `(..., K, C)` class probabilities of K members.

    Returns:
        `(...)` in nats, in `[0, log C]`.

    >>> entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.6931)
    """
    return _entropy(_mean_of_members(probs))


def margin(probs: Tensor) -> Tensor:
    """One minus the gap between the two most likely classes (Scheffer et al., 2001).

    The smallest gap scores highest.

    Args:
        probs: `(..., K, C)` class probabilities of K members; the gap is that of their mean.

    Returns:
        `(...)`, no unit, in `[0, 1]`.

    >>> margin(torch.tensor([[[0.5, 0.3, 0.2]], [[0.9, 0.1, 0.0]]]))
    tensor([0.8000, 0.2000])
    """
    top = _mean_of_members(probs).topk(2, dim=-1).values
    return 1 - (top[..., 0] - top[..., 1])


def least_confidence(probs: Tensor) -> Tensor:
    """One minus the probability of the most likely class of the mean prediction (Lewis & Gale, 1994).

    Args:
        probs: `(..., K, C)` class probabilities of K members.

    Returns:
        `(...)`, no unit, in `[0, 1 - 1/C]`.
    """
    return 1 - _mean_of_members(probs).amax(dim=-1)


def variance(probs: Tensor) -> Tensor:
    """Variance over the members, averaged over the classes (as used by Beluch et al., 2018).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in squared probability, in `[0, 1/4]`; the variance divides by K.
    """
    return _variance_per_class(probs).mean(dim=-1)


def mean_std(probs: Tensor) -> Tensor:
    """Standard deviation over the members, averaged over the classes (Kampffmeyer et al., 2016).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in probability, in `[0, 1/2]`; the standard deviation divides by K.
    """
    return _variance_per_class(probs).sqrt_().mean(dim=-1)


def variation_ratio(probs: Tensor) -> Tensor:
    """Share of the members that do not vote for the most voted class (Freeman, 1965; Gal et al., 2017).

    A member votes for its most likely class; with several equally likely ones it votes for each of them, so
    that the order of the classes does not matter. The ratio takes at most K values, so many images tie. Ties
    are broken by the entropy of the mean prediction: scaled into `[0, (K - 1) / 2K^2]`, below half a vote, it
    is added to the ratio, which stays readable as the score rounded down to a multiple of 1/K.

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)`, no unit, in `[0, 1)`.
    """
    probs = _at_least_float32(probs)
    n_members, n_classes = probs.shape[-2:]
    votes = (probs == probs.amax(dim=-1, keepdim=True)).to(probs.dtype)
    ratio = 1 - votes.mean(dim=-2).amax(dim=-1)
    return ratio + entropy(probs) * ((n_members - 1) / (2 * n_members**2 * math.log(n_classes)))


class UncertaintySplit(NamedTuple):
    """Uncertainty and its two parts, each `(...)` in nats; `total = aleatoric + epistemic` up to rounding.

    Attributes:
        total: entropy of the mean prediction.
        aleatoric: mean entropy of the members: doubt that they share, which more labels do not remove.
        epistemic: mutual information between label and model: doubt that more labels remove.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def uncertainty_split(probs: Tensor) -> UncertaintySplit:
    """Split uncertainty into what is in the image and what the members disagree on (Depeweg et al., 2018).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 all of it counts as aleatoric.
    """
    total = entropy(probs)
    aleatoric = _entropy(_at_least_float32(probs)).mean(dim=-1)
    return UncertaintySplit(total, aleatoric, (total - aleatoric).clamp_min_(0))


def bald(probs: Tensor) -> Tensor:
    """Mutual information between label and model: what the members disagree on (Houlsby et al., 2011).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in nats, in `[0, log C]`.
    """
    return uncertainty_split(probs).epistemic


def _at_least_float32(probs: Tensor) -> Tensor:
    return probs.float() if probs.dtype in (torch.float16, torch.bfloat16) else probs


def _mean_of_members(probs: Tensor) -> Tensor:
    probs = _at_least_float32(probs)
    return probs.squeeze(-2) if probs.shape[-2] == 1 else probs.mean(dim=-2)


def _variance_per_class(probs: Tensor) -> Tensor:
    # In two passes: torch.var is four times slower over this axis, and E[p^2] - E[p]^2 loses digits.
    probs = _at_least_float32(probs)
    return (probs - probs.mean(dim=-2, keepdim=True)).square_().mean(dim=-2)


def _entropy(probs: Tensor) -> Tensor:
    """Return the entropy over the last axis, in nats; 0 log 0 is 0."""
    return torch.xlogy(probs, probs).sum(dim=-1).neg_()


def _refuse_first_bad_row(probs: Tensor, off: Tensor, tolerance: float) -> None:
    row = tuple((off | (probs < 0).any(dim=-1)).nonzero()[0].tolist())
    values = probs[row]
    if not values.isfinite().all():
        raise ValueError(f"probs: row {row} is not finite")
    if values.min() < 0:
        raise ValueError(f"probs: row {row} has a negative value, {values.min():.6g}")
    raise ValueError(
        f"probs: row {row} must sum to 1 within {tolerance:.1g} and sums to {values.sum():.6g}; "
        "logits must be turned into probabilities first"
    )


ACQUISITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bald": bald,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "mean_std": mean_std,
    "variance": variance,
    "variation_ratio": variation_ratio,
}

NEEDS_MEMBERS = frozenset({"bald", "mean_std", "variance", "variation_ratio"})
"""What measures disagreement, and is zero everywhere with a single member."""
