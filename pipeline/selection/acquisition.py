"""Acquisition functions: how much a label would tell, from class probabilities alone.

All are `(..., K, C) -> (...)`, K members, C classes, and higher is always more informative. They trust their
input: `check_probs` is called once, where the probabilities come in. `score_all` computes several in one pass.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.probabilities import at_least_float32
from pipeline.registries import look_up

CPU_VALUES = 2**18
"""Probabilities handled at a time on a CPU: they and what is made of them stay in its cache."""

GPU_VALUES = 2**26
"""Probabilities handled at a time on a GPU, which is slow on little work; with what is made of them under 1 GB."""


def entropy(probs: Tensor) -> Tensor:
    """Entropy of the mean prediction: how open the decision is (Shannon, 1948).

    Args:
        probs: `(..., K, C)` class probabilities of K members.

    Returns:
        `(...)` in nats, in `[0, log C]`.

    >>> entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.6931)
    """
    return _score(probs, "entropy")


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
    return _score(probs, "margin")


def least_confidence(probs: Tensor) -> Tensor:
    """One minus the probability of the most likely class of the mean prediction (Lewis & Gale, 1994).

    Args:
        probs: `(..., K, C)` class probabilities of K members.

    Returns:
        `(...)`, no unit, in `[0, 1 - 1/C]`.
    """
    return _score(probs, "least_confidence")


def variance(probs: Tensor) -> Tensor:
    """Variance over the members, averaged over the classes (as used by Beluch et al., 2018).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in squared probability, in `[0, 1/4]`; the variance divides by K.
    """
    return _score(probs, "variance")


def mean_std(probs: Tensor) -> Tensor:
    """Standard deviation over the members, averaged over the classes (Kampffmeyer et al., 2016).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in probability, in `[0, 1/2]`; the standard deviation divides by K.
    """
    return _score(probs, "mean_std")


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
    return _score(probs, "variation_ratio")


def bald(probs: Tensor) -> Tensor:
    """Mutual information between label and model: what the members disagree on (Houlsby et al., 2011).

    Args:
        probs: `(..., K, C)` class probabilities of K members; with K = 1 the score is zero everywhere.

    Returns:
        `(...)` in nats, in `[0, log C]`.
    """
    return _score(probs, "bald")


def score_all(probs: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return `(...)` scores for each name, from one pass over the probabilities that shares the work.

    Args:
        probs: `(..., K, C)` class probabilities of K members.
        names: of `ACQUISITIONS`, or of a part of the entropy (Depeweg et al., 2018): "aleatoric", the mean entropy of
            the members, doubt that they share and more labels do not remove; "epistemic", the rest, which is BALD.

    >>> score_all(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), ["entropy", "epistemic"])
    {'entropy': tensor(0.6931), 'epistemic': tensor(0.)}
    """
    known = dict.fromkeys([*ACQUISITIONS, "aleatoric", "epistemic"])
    parts: dict[str, list[Tensor]] = {}
    for name in names:
        look_up(known, name, "acquisition function")
        parts[name] = []
    rows = probs.reshape(-1, *probs.shape[-2:])
    values = CPU_VALUES if probs.device.type == "cpu" else GPU_VALUES
    for chunk in rows.split(max(1, values // probs.shape[-2:].numel())):
        scores = _Scores(at_least_float32(chunk))
        for name, part in parts.items():
            part.append(getattr(scores, name))
    return {name: torch.cat(part).reshape(probs.shape[:-2]) for name, part in parts.items()}


@dataclass(frozen=True)
class _Scores:
    """The scores of n images, `(n,)` each; what several of them read is computed once.

    Attributes:
        probs: `(n, K, C)` of at least single precision.
    """

    probs: Tensor

    @cached_property
    def entropy(self) -> Tensor:
        return _entropy(self._mean)

    @property
    def margin(self) -> Tensor:
        top, guess = self._mean.max(dim=-1, keepdim=True)
        runner_up = self._mean.scatter(-1, guess, -1).amax(dim=-1)  # half the time of topk
        return 1 - (top.squeeze(-1) - runner_up)

    @property
    def least_confidence(self) -> Tensor:
        return 1 - self._mean.amax(dim=-1)

    @property
    def variance(self) -> Tensor:
        return self._variances.mean(dim=-1)

    @property
    def mean_std(self) -> Tensor:
        return self._variances.sqrt().mean(dim=-1)

    @property
    def variation_ratio(self) -> Tensor:
        n_members, n_classes = self.probs.shape[-2:]
        no_votes = (self.probs - self.probs.amax(dim=-1, keepdim=True)).sign_()  # 0 is a vote, -1 is none
        ratio = -no_votes.mean(dim=-2).amax(dim=-1)
        return ratio + self.entropy * ((n_members - 1) / (2 * n_members**2 * math.log(n_classes)))

    @cached_property
    def aleatoric(self) -> Tensor:
        return _entropy(self.probs, over=(-2, -1)) / self.probs.shape[-2]

    @cached_property
    def epistemic(self) -> Tensor:
        return (self.entropy - self.aleatoric).clamp_min_(0)

    @property
    def bald(self) -> Tensor:
        return self.epistemic

    @cached_property
    def _mean(self) -> Tensor:
        return self.probs.squeeze(-2) if self.probs.shape[-2] == 1 else self.probs.mean(dim=-2)

    @cached_property
    def _variances(self) -> Tensor:
        # In two passes: torch.var is four times slower over this axis, and E[p^2] - E[p]^2 loses digits.
        return (self.probs - self._mean.unsqueeze(-2)).square_().mean(dim=-2)


def _score(probs: Tensor, name: str) -> Tensor:
    return score_all(probs, [name])[name]


def _entropy(probs: Tensor, *, over: tuple[int, ...] = (-1,)) -> Tensor:
    """Return the entropy over the last axis, or the sum of the entropies over the last two; 0 log 0 is 0."""
    logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log_()  # six times as fast as torch.xlogy
    return logs.mul_(probs).sum(dim=over).neg_()


ACQUISITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bald": bald,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "mean_std": mean_std,
    "variance": variance,
    "variation_ratio": variation_ratio,
}
