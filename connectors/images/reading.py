"""How image files are opened and read: from a disk or a store, by the ranges of deep pixels, within a memory."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Protocol

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""How an address begins; paths of files are absolute."""
N_WAITING = 32
"""Threads that read where most of the time they wait for a network."""


@dataclass(frozen=True)
class Range:
    """What becomes 0 and 255 in images of one kind.

    Attributes:
        kind: see `Deep`.
        n_images: whose pixels it was measured on.
    """

    kind: str
    low: float
    high: float
    n_images: int


class Opener(Protocol):
    """Opens what is no file on a disk."""

    def open(self, uri: str) -> AbstractContextManager[BytesIO]:
        """The bytes at an address."""


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        ranges: of the kinds of pixels that the pool has. Another kind has the full range of its type; 32 bits and
            floats, which have none, are stretched from the smallest to the largest value of each image.
        memory_gb: that all images that are being decoded may take together.
        objects: opens addresses; None where all images are files.
    """

    ranges: tuple[Range, ...] = ()
    memory_gb: float = 2.0
    objects: Opener | None = None

    def open(self, uri: str) -> AbstractContextManager[BufferedReader | BytesIO]:
        """An image's bytes, wherever it is."""
        if self.objects is not None and ADDRESS.match(uri):
            return self.objects.open(uri)
        return Path(uri).open("rb")

    def n_threads(self, uris: Sequence[str]) -> int | None:
        """How many threads read images: more where they wait for a network; None for what suits the cores."""
        waits = self.objects is not None and any(ADDRESS.match(uri) for uri in uris)
        return N_WAITING if waits else None

    def range_of(self, kind: str) -> Range | None:
        """The range of a kind; None where the pool has none."""
        return next((one for one in self.ranges if one.kind == kind), None)


WHOLE = Reading()
"""How files are read of which nothing is known."""
