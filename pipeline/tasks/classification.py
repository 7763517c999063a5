"""Classification: every image has one class out of C, so one decision (U = 1)."""

from torch import Tensor
from torch.nn import functional


def check_targets(targets: Tensor, n: int, n_classes: int) -> None:
    """Raise ValueError unless these are n class indices `(n,)`, n >= 1."""
    if len(targets) != n or n == 0:
        raise ValueError(f"training needs one target for each image, got {n} and {len(targets)}")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def strata(targets: Tensor) -> Tensor:
    """The class `(n,)` of each image."""
    return targets


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """Images `(C,)` of each class, float64."""
    return targets.bincount(minlength=n_classes).double()


def loss(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        logits: `(n, C)`.
        targets: `(n,)` class indices.
        class_weights: `(C,)`, None where every image counts the same.
        label_smoothing: share of the probability that the right class gives to all C evenly (Szegedy et al., 2016).
    """
    return functional.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing)


def decisions(logits: Tensor) -> Tensor:
    """Class probabilities `(n, 1, C)` from logits `(n, C)`."""
    return logits.softmax(dim=-1).unsqueeze(-2)


def metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Share of images `(n,)` whose likeliest class is right."""
    return {"accuracy": (logits.argmax(dim=-1) == targets).float().mean()}
