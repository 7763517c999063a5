"""What labelcycle asks of a task type: what people are asked for, how networks learn it, how good they are at it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.selection.ask import OF_EACH_CLASS, OF_ONE_DECISION
from pipeline.types import AskFor, Metrics, Outputs, Region


class Answered(NamedTuple):
    """Decisions whose answer is known.

    Attributes:
        values: `(m, C)` of each decision, whatever they are: logits or probabilities.
        right: `(m,)` index of the right class.
        image: `(m,)` index of the image that a decision is about.
        decision: `(m,)` which of the image's U decisions it is.
    """

    values: Tensor
    right: Tensor
    image: Tensor
    decision: Tensor


class TaskType(Protocol):
    """What a task type knows; a module with these names is one.

    Outputs and targets have the images as their first axis and any form beyond it: only the task reads them. A network
    makes U decisions about an image, each between C classes.
    """

    asks: AskFor
    has_one_decision: bool
    """Whether U = 1: what reads the probabilities of an image's one decision is refused elsewhere."""
    decides_each_class: bool
    """Whether decision u is about class u alone: is it in the image or not."""
    headline: str
    """Name of the measure that counts, a share."""
    stride: int | None
    """Pixels of the image for a place of the networks' maps, in each direction; None where they keep no places. Each
    place is decided about between the same answers, of which the first is that nothing is there."""
    reduction: str
    """How the scores of the decisions about an image become one where a campaign does not choose: see `REDUCTIONS`."""
    batch_size: int
    """Images in an optimiser step where a campaign does not choose. Each place of a map is an example, so that a few
    images are many; more take longer, because few labels are learnt in `min_steps`, however many images a step has."""

    def read_label(self, text: str) -> tuple[Region, ...]:
        """The regions that a label in a manifest means."""

    def write_label(self, regions: Sequence[Region]) -> str:
        """The label in a manifest that `read_label` reads as these regions."""

    def consensus(self, given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
        """What several people found in an image, at least one, and how far they agree, in [0, 1].

        Args:
            given: regions of each person, oldest first.
        """

    def targets(self, labels: Sequence[Sequence[Region]], classes: Sequence[str]) -> Tensor:
        """`(n, ...)`, what the regions of n images are to a network."""

    def check_targets(self, targets: Tensor, n: int, n_classes: int) -> None:
        """Raise ValueError unless these can be the targets of n images, n >= 1."""

    def warp(self, targets: Tensor, affine: Tensor) -> Tensor:
        """The targets of images that were moved by `affine`, see `Augmented`."""

    def n_outputs(self, n_classes: int) -> int:
        """Numbers that come out of a network, or channels of its map."""

    def n_logits(self, n_classes: int) -> int:
        """How many of these, the first, are logits."""

    def strata(self, targets: Tensor) -> Tensor:
        """`(n,)` int64, the class that stands for each image where a labelled set is split evenly."""

    def class_counts(self, targets: Tensor, n_classes: int) -> Tensor:
        """`(C,)` float64, how often each of the campaign's classes is the right answer of a decision."""

    def wanted(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """`(n, ...)`, what outputs of this form should come to: made of the targets once for all that compares them."""

    def loss(
        self, outputs: Tensor, wanted: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Scalar to minimise, nats; `class_weights` is `(C,)` by class, `label_smoothing` a share of probability."""

    @property
    def overlap_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Scalar of outputs and what is wanted, in [0, 1]: how little what is painted overlaps what a network sees.

        Training adds it to the loss unless a campaign leaves it out. None where people paint nothing.
        """

    def logits(self, outputs: Tensor) -> Tensor:
        """`(n, U, C)`: the softmax over the last axis gives the probabilities of each decision."""

    def places(self, outputs: Tensor) -> Tensor | None:
        """`(n, U, G)`, what regions are made of besides probabilities; None where they need no more."""

    def answered(self, values: Tensor, targets: Tensor) -> Answered:
        """The decisions of `(n, U, C)` whose right answer is among the targets."""

    def in_words(self, decision: int, answer: int, classes: Sequence[str], n_decisions: int) -> str:
        """What an answer to one of an image's U decisions means."""

    def metrics(self, outputs: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """What to show for each epoch: scalars, each a mean over the images."""

    def measure(
        self, probs: Tensor, targets: Tensor, classes: Sequence[str], places: Tensor | None = None
    ) -> Metrics | None:
        """How good predictions `(n, U, C)` are, n >= 1; the mean over the members where there are several.

        None where the targets are such that no prediction is better than another by the headline.
        """

    def guess(self, probs: Tensor, classes: Sequence[str], places: Tensor | None = None) -> list[tuple[Region, ...]]:
        """What a model sees in each of n images, with its probability, from `(n, U, C)`."""

    def in_columns(
        self, probs: Tensor, classes: Sequence[str], places: Tensor | None = None
    ) -> dict[str, NDArray[np.object_] | NDArray[np.float32]]:
        """A prediction `(n, U, C)` as a table: texts and numbers `(n,)` by the names of their columns."""

    def merged(
        self, probs: Tensor, classes: Sequence[str], renamed: Mapping[str, str]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """A prediction `(n, U, C)` of these classes by the names that they have now, and these names.

        Args:
            renamed: what a class was called -> what it is called now; two that get one name are one class.
        """


def absent_columns(task: TaskType) -> frozenset[str]:
    """Columns of `Candidates` that there are not where images take a task's decisions."""
    of_several = frozenset() if task.has_one_decision else OF_ONE_DECISION
    return of_several | (frozenset() if task.decides_each_class else OF_EACH_CLASS)


def outputs_of(task: TaskType, n_classes: int) -> Outputs:
    """What networks of a task give."""
    return Outputs(task.n_outputs(n_classes), task.n_logits(n_classes), task.stride)


def is_measurable(task: TaskType, targets: Tensor, classes: Sequence[str]) -> bool:
    """Whether images with these targets tell how good a model is, n >= 1: see `TaskType.measure`."""
    outputs = no_outputs(task, len(targets), len(classes))
    return task.measure(task.logits(outputs).softmax(dim=-1), targets, classes, task.places(outputs)) is not None


def no_outputs(task: TaskType, n: int, n_classes: int) -> Tensor:
    """Outputs of n images in which there is nothing, of one place where they are maps."""
    return torch.zeros((n, task.n_outputs(n_classes), *((1, 1) if task.stride else ())))
