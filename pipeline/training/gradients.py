"""Gradients of a batch's loss; of a batch that memory has no room for, part by part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Classifier
from pipeline.networks.halving import Work, halving
from pipeline.tasks.task_type import TaskType


class Loss(Protocol):
    """What training makes small."""

    def __call__(self, outputs: Tensor, wanted: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """A scalar of outputs and what is wanted of them."""
        ...


class Learnt(NamedTuple):
    """What a batch came to: outputs `(n, C, ...)`, what is wanted `(n, ...)`, and the loss, a scalar; no graph."""

    outputs: Tensor
    wanted: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Learner:
    """A network in training, and what it is to make small.

    Attributes:
        model: in training mode, on its device.
        predict: from a batch of inputs to outputs `(n, C, ...)`, by the model or a part of it.
        weights: those that are trained.
    """

    model: Classifier
    predict: Callable[[Tensor], Tensor]
    task: TaskType
    loss: Loss
    weights: Sequence[Tensor]

    def set_gradients(self, inputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Learnt:
        """Give the weights the gradients of a batch's loss.

        A batch that memory has no room for passes in parts of about the same size, twice. The first time gives the
        outputs, from which the loss of the whole batch has its gradient; the second time takes this gradient on to the
        weights (Gao et al., 2021, who call it a gradient cache). So the gradients are those of the whole batch up to
        rounding, whatever the loss: one with weights of classes or overlaps is no mean over images. Two things differ.
        Dropout draws other numbers than for a whole batch. Batch-norm in training mode sees the statistics of a part,
        which has two images at least, and a try that did not fit may have moved its own.

        Args:
            inputs: `(n, ...)`, n >= 1.
            targets: `(n, ...)` as the task has them.
        """
        least = 2 if self._has_moving_batch_norm and len(inputs) > 1 else 1

        def compute(n: int) -> Learnt:
            for values in self.weights:
                values.grad = None
            n_parts = min(-(-len(inputs) // n), len(inputs) // least)
            if n_parts > 1:
                return self._learn_in_parts(inputs, targets, n_parts, label_smoothing)
            outputs = self.predict(inputs)
            wanted = self.task.wanted(targets, outputs)
            loss = self.loss(outputs, wanted, label_smoothing=label_smoothing)
            loss.backward()
            return Learnt(outputs.detach(), wanted, loss.detach())

        return halving(compute, len(inputs), Work("training", self.model, inputs.shape[1:]), least=least)

    def _learn_in_parts(self, inputs: Tensor, targets: Tensor, n_parts: int, label_smoothing: float) -> Learnt:
        parts = inputs.tensor_split(n_parts)
        with torch.no_grad(), _as_it_was(self.model):
            outputs = torch.cat([self.predict(part) for part in parts])
        wanted = self.task.wanted(targets, outputs)
        loss = self.loss(outputs.requires_grad_(), wanted, label_smoothing=label_smoothing)
        (of_outputs,) = torch.autograd.grad(loss, outputs)
        for part, of_part in zip(parts, of_outputs.tensor_split(n_parts), strict=True):
            self.predict(part).backward(of_part)
        return Learnt(outputs.detach(), wanted, loss.detach())

    @cached_property
    def _has_moving_batch_norm(self) -> bool:
        layers = (module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return any(layer.training for layer in layers)


def moving_buffers(network: nn.Module) -> list[Tensor]:
    """Buffers of modules in training mode, such as the statistics of batch-norm."""
    return [each for module in network.modules() if module.training for each in module.buffers(recurse=False)]


@contextmanager
def _as_it_was(model: Classifier) -> Iterator[None]:
    """Afterwards buffers have the values, and generators the state, that they had before."""
    device, buffers = model.mean.device, moving_buffers(model)
    before = [values.clone() for values in buffers]
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        yield
    for values, kept in zip(buffers, before, strict=True):
        values.copy_(kept)
