"""Linear heads on ready-made features: what replays without a network learn."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearHead:
    """A linear head with the dropout of features that makes members of it.

    Attributes:
        weights: `(C, D)`.
        biases: `(C,)`.
        masks: `(K, D)` that each member's features are multiplied with, the same for all images; None for one member.
    """

    weights: Tensor
    biases: Tensor
    masks: Tensor | None = None

    def decide(self, features: Tensor) -> Tensor:
        """Probabilities `(n, K, C)` of features `(n, D)`."""
        weights = self.weights.float()
        heads = weights.unsqueeze(0) if self.masks is None else self.masks.unsqueeze(1) * weights
        logits = torch.einsum("nd,kcd->nkc", features, heads) + self.biases.float()
        return logits.softmax(dim=-1)


def draw_feature_masks(n_members: int, n_features: int, *, dropout: float, seed: int) -> Tensor:
    """Masks `(K, D)` of inverted dropout, one for each member."""
    drawn = torch.rand(n_members, n_features, generator=torch.Generator().manual_seed(seed))
    return (drawn >= dropout).float() / (1 - dropout)
