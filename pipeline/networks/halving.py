"""How many inputs pass through a network at a time: half as many, and half again, where memory is too small."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import device_name
from pipeline.networks.once import once_for_each_network

T = TypeVar("T")


class DoesNotFit(MemoryError):
    """The fewest inputs that a network can work on are too many for the memory of its device."""


class Work(NamedTuple):
    """What is computed at a time; its text is what a size is remembered by.

    Attributes:
        kind: what is done with the inputs, for people: "training", "features".
        model: the network, on the device that computes.
        shape: of one input.
    """

    kind: str
    model: Classifier
    shape: torch.Size

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.model.mean.device

    def __str__(self) -> str:
        layers = _digest_of_layers(self.model, self.model.frozen)
        network = f"{type(self.model.trunk).__name__} {layers}"
        return f"{self.kind}, {network}, {'x'.join(map(str, self.shape))}, {_name_of(self.device)}"


@dataclass
class BatchSizes:
    """What fitted into memory where more did not.

    Attributes:
        known: text of a `Work` -> so many inputs at a time.
        on_found: called with what is added.
    """

    known: dict[str, int] = field(default_factory=dict)
    on_found: Callable[[str, int], None] | None = None

    def for_work(self, work: Work, most: int) -> int:
        """How many inputs to begin with, `most` at most."""
        return min(most, self.known.get(str(work), most)) if self.known else most

    def remember(self, work: Work, n: int) -> None:
        """Begin with n inputs from now on."""
        self.known[str(work)] = n
        if self.on_found is not None:
            self.on_found(str(work), n)


FITTING = BatchSizes()
"""Of this process, for all networks; `flows/batch_sizes.py` keeps it for later ones."""


class Halved(Exception):
    """Work that other processes take part in does not fit: all must begin anew, with n at a time.

    Attributes:
        work: text of the work.
    """

    def __init__(self, work: str, n: int) -> None:
        super().__init__(work, n)
        self.work, self.n = work, n


def halving(compute: Callable[[int], T], most: int, work: Work, *, least: int = 1, alone: bool = True) -> T:
    """What `compute` gives for as many inputs at a time as memory has room for.

    It is called with `most`, or with what fitted before, and again with half of that as long as the device is out of
    memory. What fits then is remembered. It never becomes more by itself.

    Args:
        compute: does all of the work with so many inputs at a time; called again, it begins anew.
        least: fewer make no sense.
        alone: no other process waits for this one in `compute`.

    Raises:
        DoesNotFit: memory has no room for `least` inputs.
        Halved: it has none for those that were tried, and others wait.
    """
    least = min(least, most)
    n = first = max(least, FITTING.for_work(work, most))
    while True:
        try:
            result = compute(n)
        except torch.OutOfMemoryError as exc:
            told = str(exc).partition("\n")[0]
        else:
            break
        if n <= least:
            raise DoesNotFit(_advice(work, n, told))
        n = max(least, n // 2)
        if not alone:
            FITTING.remember(work, n)
            raise Halved(str(work), n)
        if work.device.type == "cuda":  # the error is gone, and with it what its frames held
            torch.cuda.empty_cache()
    if n < first:
        FITTING.remember(work, n)
    return result


def _advice(work: Work, n: int, told: str) -> str:
    few = "one input is" if n == 1 else f"{n} inputs at a time are"
    return (
        f"{few} too much for the memory of the device ({work}): {told}. End other programs that use "
        'it, or choose a smaller image_size or network, train = "head", or a device with more memory'
    )


@once_for_each_network
def _digest_of_layers(model: Classifier, frozen: tuple[str, ...]) -> str:
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # the address of a function changes from run to run
    return hashlib.sha256(f"{layers} {frozen}".encode()).hexdigest()[:8]


@cache
def _name_of(device: torch.device) -> str:
    return device_name(device)
