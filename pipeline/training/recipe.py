"""How a network is trained, as one value."""

from dataclasses import dataclass, replace

from pipeline.registries import look_up
from pipeline.tasks.task_type import TaskType
from pipeline.training.augmentation import AUGMENTATIONS
from pipeline.training.schedules import SCHEDULES


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever it is trained on.

    Attributes:
        learning_rate: of weights that are drawn anew.
        body_rate: the trunk's learning rate as a share of `learning_rate`, where its weights are pretrained.
        weight_decay: of AdamW.
        max_epochs: epochs at most, and the horizon of the cosine: one that is much longer than training needs has it
            stopped while the learning rate is still high.
        patience: epochs without a lower loss before training stops, more where the best came late (`is_over`); None:
            it does not stop, the last epoch is taken, and the validation part is only measured: the schedule "plateau"
            goes by the loss on the training images.
        batch_size: images in an optimiser step, None for the task's; a single image left over joins the step before it.
        min_steps: an epoch is one pass over the images, or this many optimiser steps where a pass has fewer: what a
            network learns from few images is decided by the steps that it makes.
        class_balanced: weigh classes by inverse frequency, up to `MAX_CLASS_WEIGHT`.
        dice: how much the task's `overlap_loss` counts beside its loss; None for 1, or 0 where the task has none.
        label_smoothing: share of the probability that a label gives to all classes evenly, in [0, 1).
        schedule: a key of `SCHEDULES`: what becomes of the learning rate after the warm-up.
        augmentation: a key of `AUGMENTATIONS`, for images; features are never augmented.
    """

    learning_rate: float = 2e-3
    body_rate: float = 0.1
    weight_decay: float = 1e-2
    max_epochs: int = 30
    patience: int | None = 5
    batch_size: int | None = None
    min_steps: int = 16
    class_balanced: bool = True
    dice: float | None = None
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    augmentation: str = "none"

    def __post_init__(self) -> None:
        counts = (self.max_epochs, self.patience, self.batch_size, self.min_steps)
        if any(count is not None and count < 1 for count in counts):
            raise ValueError(
                f"max_epochs, patience, batch_size and min_steps must be at least 1, got {self.max_epochs}, "
                f"{self.patience}, {self.batch_size} and {self.min_steps}"
            )
        look_up(AUGMENTATIONS, self.augmentation, "augmentation")
        look_up(SCHEDULES, self.schedule, "schedule")
        if self.dice is not None and self.dice < 0:
            raise ValueError(f"dice must be 0 or more, got {self.dice}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def batch_size_for(self, task: TaskType) -> int:
        """Images in an optimiser step of a training for a task."""
        return task.batch_size if self.batch_size is None else self.batch_size

    def for_epochs(self, epochs: int) -> "Recipe":
        """The same for exactly so many epochs, of which the last is taken."""
        return replace(self, max_epochs=epochs, patience=None)
