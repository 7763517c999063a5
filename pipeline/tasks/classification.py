"""Classification: every image has one class out of C, so one decision (U = 1)."""

from torch import Tensor
from torch.nn import functional


def loss(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        logits: `(n, C)`.
        targets: `(n,)` class indices.
        class_weights: `(C,)`, None where every image counts the same.
    """
    return functional.cross_entropy(logits, targets, weight=class_weights)


def decisions(logits: Tensor) -> Tensor:
    """Class probabilities `(n, 1, C)` from logits `(n, C)`."""
    return logits.softmax(dim=-1).unsqueeze(-2)


def metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Share of images `(n,)` whose likeliest class is right."""
    return {"accuracy": (logits.argmax(dim=-1) == targets).float().mean().item()}
