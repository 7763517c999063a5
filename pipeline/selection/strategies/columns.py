"""What strategies check in their columns, and make of them first."""

from torch import Tensor


def check_no_negative(scores: Tensor, strategy: str) -> None:
    """Refuse scores below 0, which cannot weigh anything."""
    if (scores < 0).any():
        raise ValueError(f"strategy {strategy!r} needs scores of at least 0, got {scores.min():.6g}")


def check_several_members(probs: Tensor, strategy: str) -> None:
    """Refuse a single member, which cannot be compared with others."""
    if probs.shape[1] < 2:
        raise ValueError(f"strategy {strategy!r} needs the probabilities of at least 2 members, got {probs.shape[1]}")


def mean_of_members(probs: Tensor) -> Tensor:
    """Return `(N, C)`, at least in float32."""
    return probs.float().mean(dim=1)
