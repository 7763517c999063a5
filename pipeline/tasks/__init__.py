"""Task types: one module each; what `fit` and the members ask of it is `Task`."""

from typing import Protocol

from torch import Tensor


class Task(Protocol):
    """What a task type knows; a module with these functions is one."""

    def loss(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
        """Scalar to minimise, nats; `class_weights` is `(C,)`."""

    def decisions(self, logits: Tensor) -> Tensor:
        """Class probabilities `(n, U, C)` of the U decisions of each image."""

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """What to show for each epoch, each a mean over the images."""
