"""Processes that train one network together by torch's DDP: each takes its share of every batch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from pipeline.networks.classifier import Classifier
from pipeline.randomness import seeded

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of a batch that a process takes.

    Attributes:
        sizes: of the shares of all processes, in their order; one where each takes the whole batch.
        place: position of this process's share.
    """

    sizes: tuple[int, ...]
    place: int

    def of(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch `(n, ...)`."""
        return batch.split(self.sizes)[self.place] if len(self.sizes) > 1 else batch

    def joined(self, own: Tensor) -> Tensor:
        """What all processes have, `(n, ...)`; gradients flow into this process's own alone."""
        if len(self.sizes) == 1:
            return own
        sent = own.new_zeros((max(self.sizes), *own.shape[1:]))
        sent[: len(own)] = own.detach()
        found = [torch.empty_like(sent) for _ in self.sizes]
        distributed.all_gather(found, sent)
        parts = [part[:size] for part, size in zip(found, self.sizes, strict=True)]
        parts[self.place] = own
        return torch.cat(parts)


@dataclass(frozen=True)
class Ranks:
    """The processes that train a network, of which this is one; by default it is alone.

    All do the same with the same seeds, but for the batches that pass through the network. Each makes the whole batch,
    so that it is changed at random as by a process alone, and takes its rows of it.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def here() -> "Ranks":
        """The processes of torch's group, where there is one."""
        is_one = distributed.is_available() and distributed.is_initialized()
        return Ranks(distributed.get_rank(), distributed.get_world_size()) if is_one else ALONE

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all come to."""
        return self.rank == 0

    def share(self, n: int, *, least: int = 1) -> Share:
        """This process's share of n images; of a batch with fewer than `least` for each, all take the whole."""
        if self.size == 1 or n < self.size * least:
            return Share((n,), 0)
        few, more = divmod(n, self.size)
        return Share(tuple(few + (place < more) for place in range(self.size)), self.rank)

    def wrapped(self, model: Classifier) -> Classifier | DistributedDataParallel:
        """The network whose gradients, after a backward pass, are the mean over the processes."""
        if self.size == 1:
            return model
        # Weights that play no part in the outputs are left as they are, as by a process alone.
        return DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)

    @contextmanager
    def drawing(self, share: Share, device: torch.device, seeds: torch.Generator) -> Iterator[None]:
        """Let dropout draw other numbers for each share, and leave torch's generators alike in all processes.

        Args:
            seeds: gives a seed for each step, the same in all processes.
        """
        if self.size == 1:
            yield
            return
        with seeded(int(torch.randint(2**31, (), generator=seeds)) + share.place, device):
            yield

    def take_over(self, buffers: Sequence[Tensor]) -> None:
        """Give buffers the values that they have in the first process."""
        for values in buffers if self.size > 1 else ():
            distributed.broadcast(values, 0)

    def as_first(self, value: T) -> T:
        """The value that the first process has."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Let the first process do the block alone, and the others after it: they find what it kept on the disk."""
        if not self.is_first:
            distributed.barrier()
        yield
        if self.is_first and self.size > 1:
            distributed.barrier()


ALONE = Ranks()
"""A process that trains a network for itself."""


def without_exchange(network: object) -> AbstractContextManager[None]:
    """Add gradients in this process alone, for a part of its share that others follow."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
