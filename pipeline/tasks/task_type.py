"""What `fit`, the members and the rules of learning ask of a task type."""

from typing import Protocol

from torch import Tensor


class TaskType(Protocol):
    """What a task type knows; a module with these functions is one.

    Logits and targets have the images as their first axis and any form beyond it: only the task reads them.
    """

    def check_targets(self, targets: Tensor, n: int, n_classes: int) -> None:
        """Raise ValueError unless these can be the targets of n images, n >= 1."""

    def strata(self, targets: Tensor) -> Tensor:
        """`(n,)` int64, the class that stands for each image where a labelled set is split evenly."""

    def class_counts(self, targets: Tensor, n_classes: int) -> Tensor:
        """`(C,)` float64, how often each class is the right answer of a decision."""

    def loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Scalar to minimise, nats; `class_weights` is `(C,)`, `label_smoothing` a share of probability."""

    def decisions(self, logits: Tensor) -> Tensor:
        """Class probabilities `(n, U, C)` of the U decisions of each image."""

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What to show for each epoch: scalars, each a mean over the images."""
