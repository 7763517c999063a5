"""Class probabilities, checked once where they come in."""

from collections.abc import Mapping, Sequence

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
    probs = at_least_float32(probs)
    off = (probs.sum(dim=-1) - 1).abs()
    if probs.numel() and not (off.max() <= tolerance and probs.min() >= 0):  # NaN fails both comparisons
        _refuse_first_bad_row(probs, ~(off <= tolerance), tolerance)
    return probs


def at_least_float32(probs: Tensor) -> Tensor:
    """The probabilities, of a type that sums of many can be taken in."""
    return probs.float() if probs.dtype in (torch.float16, torch.bfloat16) else probs


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


def merged(probs: Tensor, classes: Sequence[str], renamed: Mapping[str, str]) -> tuple[Tensor, tuple[str, ...]]:
    """By the names that classes have now; probabilities of classes that are one now are added up.

    Args:
        probs: `(n, U, A)`, of A answers the last are the classes.
        renamed: what a class was called -> what it is called now.
    """
    present = [renamed.get(name, name) for name in classes]
    names = tuple(dict.fromkeys(present))
    n_others = probs.shape[2] - len(classes)
    answers = torch.tensor([*range(n_others), *(n_others + names.index(name) for name in present)])
    return torch.zeros(*probs.shape[:2], n_others + len(names)).index_add(2, answers, probs), names
