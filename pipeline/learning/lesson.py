"""What the networks of a round learn from, and which of its labels can be spared to judge them by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.image_rows import Images, subset
from pipeline.networks.classifier import Classifier
from pipeline.randomness import seeded_generator
from pipeline.tasks.task_type import TaskType
from pipeline.training.splits import split_validation

N_SAMPLED = 256
"""Images of the pool that networks without pretrained weights are standardised by."""
VALIDATION_SHARE = 0.1
"""Of the labels, held out to calibrate networks on whose trunk is trained too, where that makes enough of them."""


@dataclass(frozen=True)
class OutOfFold:
    """What networks that have not seen them predict of the labelled images.

    Attributes:
        phase: what these networks trained, a key of `PHASES`.
        logits: `(m, U, C)` of the decisions about the m labelled images, float32 on the CPU.
        epochs: that each network was trained for, and that those of the round are to be; None for the settings' own.
    """

    phase: str
    logits: Tensor
    epochs: int | None = None


@dataclass(frozen=True)
class Lesson:
    """What the networks of a round learn from, and how far.

    Attributes:
        task: what they decide.
        n_classes: C.
        phase: what is trained, a key of `PHASES`.
        inputs: images `(n, channels, S, S)`, on a disk or in memory; or where only heads are trained what the trunk of
            `body` made of them.
        targets: `(n, ...)` as the task has them.
        body: the network whose trunk all share; None where each has its own.
        out_of_fold: of the first m inputs, by networks of the same phase, to calibrate on; None to calibrate on what
            is held out.
        n_labels: so many of the first targets are labels, and the others guesses, which nothing is judged by; None
            where all are labels.
        pool_sample: images `(m, channels, S, S)` to standardise by; None where mean and std come with the weights.
        groups: of the labels, numbers `(m,)` from 0: labels of one group are held out together; None where each is its
            own.
    """

    task: TaskType
    n_classes: int
    phase: str
    inputs: Images
    targets: Tensor
    body: Classifier | None = None
    out_of_fold: OutOfFold | None = None
    n_labels: int | None = None
    pool_sample: Tensor | None = None
    groups: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """Targets `(m, ...)` of the first m inputs, those that are labels."""
        return self.targets[: self.n_labels]

    @property
    def labelled_inputs(self) -> Images:
        """The first m inputs, those that have a label."""
        return subset(self.inputs, slice(len(self.labels)))

    @property
    def reads_features(self) -> bool:
        """Whether the inputs are features of a trunk that all share."""
        return self.body is not None

    @property
    def epochs(self) -> int | None:
        """Epochs to train for, to the last; None for the settings' own."""
        return None if self.out_of_fold is None else self.out_of_fold.epochs


def held_out_labels(targets: Tensor, *, task: TaskType, seed: int, groups: Tensor | None = None) -> Tensor:
    """Positions of the labels that can be spared to calibrate on and to stop early by; none where they are few."""
    generator = seeded_generator(seed, 0, "held out")
    return split_validation(task.strata(targets), share=VALIDATION_SHARE, generator=generator, groups=groups)[1]


def can_hold_out(targets: Tensor, *, task: TaskType, groups: Tensor | None = None) -> bool:
    """Whether there are labels enough to hold some out and calibrate networks on them."""
    return len(held_out_labels(targets, task=task, seed=0, groups=groups)) > 0


def can_cross(targets: Tensor, groups: Tensor | None = None) -> bool:
    """Whether labels can be predicted out of fold: there are two at least that do not depend on each other."""
    return len(targets) >= 2 and (groups is None or len(groups.unique()) >= 2)


def sample_pool(n: int, *, seed: int, round_number: int) -> Tensor:
    """Rows of the images, of n, that networks without pretrained weights are standardised by."""
    return torch.randperm(n, generator=seeded_generator(seed, round_number, "pool sample"))[:N_SAMPLED]
