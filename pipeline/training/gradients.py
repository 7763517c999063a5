"""Gradients of a batch's loss; of a batch that memory has no room for, part by part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Classifier
from pipeline.networks.halving import Work, halving
from pipeline.tasks.task_type import TaskType
from pipeline.training.ranks import ALONE, Ranks, Share, without_exchange


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
        ranks: the processes that train it.
        seeds: of what dropout draws in each of them.
    """

    model: Classifier
    predict: Callable[[Tensor], Tensor]
    task: TaskType
    loss: Loss
    weights: Sequence[Tensor]
    ranks: Ranks = ALONE
    seeds: torch.Generator = field(default_factory=torch.Generator)

    def set_gradients(self, inputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Learnt:
        """Give the weights the gradients of a batch's loss.

        A batch that memory has no room for passes in parts of about the same size, twice. The first time gives the
        outputs, from which the loss of the whole batch has its gradient; the second time takes this gradient on to the
        weights (Gao et al., 2021, who call it a gradient cache). So the gradients are those of the whole batch up to
        rounding, whatever the loss: one with weights of classes or overlaps is no mean over images. Two things differ.
        Dropout draws other numbers than for a whole batch. Batch-norm in training mode sees the statistics of a part,
        which has two images at least, and moves its own with each.

        Of several processes each passes its share of the batch, and each makes the loss of the whole. Batch-norm in
        training mode sees a share.

        Args:
            inputs: `(n, ...)`, n >= 1.
            targets: `(n, ...)` as the task has them.
        """
        least = 2 if self._has_moving_batch_norm and len(inputs) > 1 else 1
        share = self.ranks.share(len(inputs), least=least)
        own = share.of(inputs)
        put_back = self._keep()

        def compute(n: int) -> Learnt:
            put_back()  # what a try that did not fit has moved
            for values in self.weights:
                values.grad = None
            n_parts = min(-(-len(own) // n), len(own) // least)
            with self.ranks.drawing(share, own.device, self.seeds):
                if n_parts > 1:
                    return self._learn_in_parts(own.tensor_split(n_parts), share, targets, label_smoothing)
                learnt = self._judge(share.joined(self.predict(own)), targets, label_smoothing)
                self._summed(learnt.loss, share).backward()
                return Learnt(learnt.outputs.detach(), learnt.wanted, learnt.loss.detach())

        work = Work("training", self.model, inputs.shape[1:])
        return halving(compute, len(own), work, least=least, alone=self.ranks.size == 1)

    def _learn_in_parts(self, parts: Sequence[Tensor], share: Share, targets: Tensor, label_smoothing: float) -> Learnt:
        put_back = self._keep()
        with torch.no_grad():
            own = torch.cat([self.predict(part) for part in parts])
        put_back()
        learnt = self._judge(share.joined(own.requires_grad_()), targets, label_smoothing)
        (of_own,) = torch.autograd.grad(self._summed(learnt.loss, share), own)
        *first, last = zip(parts, of_own.split([len(part) for part in parts]), strict=True)
        with without_exchange(self.predict):
            for part, of_part in first:
                self.predict(part).backward(of_part)
        self.predict(last[0]).backward(last[1])
        return Learnt(learnt.outputs.detach(), learnt.wanted, learnt.loss.detach())

    def _judge(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Learnt:
        """What outputs come to, with the graph of the loss."""
        wanted = self.task.wanted(targets, outputs)
        return Learnt(outputs, wanted, self.loss(outputs, wanted, label_smoothing=label_smoothing))

    @staticmethod
    def _summed(loss: Tensor, share: Share) -> Tensor:
        """What makes the mean over processes, each of which has the gradient of its share, the sum of these."""
        return loss * len(share.sizes) if len(share.sizes) > 1 else loss

    def see(self, inputs: Tensor) -> Tensor:
        """Outputs `(n, C, ...)` of inputs `(n, ...)`, without gradients."""
        share = self.ranks.share(len(inputs))
        return share.joined(self.predict(share.of(inputs)))

    def _keep(self) -> Callable[[], None]:
        """Keep the buffers that move and what dropout draws from; returns what puts both back."""
        before, device = [values.clone() for values in self._moving], self.model.mean.device
        on_gpu = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()

        def put_back() -> None:
            torch.cuda.set_rng_state(state, device) if on_gpu else torch.set_rng_state(state)
            with torch.no_grad():
                for values, kept in zip(self._moving, before, strict=True):
                    values.copy_(kept)

        return put_back

    @cached_property
    def _moving(self) -> list[Tensor]:
        return moving_buffers(self.model)

    @cached_property
    def _has_moving_batch_norm(self) -> bool:
        layers = (module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return any(layer.training for layer in layers)


def moving_buffers(network: nn.Module) -> list[Tensor]:
    """Buffers of modules in training mode, such as the statistics of batch-norm."""
    return [each for module in network.modules() if module.training for each in module.buffers(recurse=False)]
