"""How image files are read: the ranges of deep pixels, and the memory that decoding may take."""

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        ranges: of the kinds of pixels that the pool has. Another kind has the full range of its type; 32 bits and
            floats, which have none, are stretched from the smallest to the largest value of each image.
        memory_gb: that all images that are being decoded may take together.
    """

    ranges: tuple[Range, ...] = ()
    memory_gb: float = 2.0

    def range_of(self, kind: str) -> Range | None:
        """The range of a kind; None where the pool has none."""
        return next((one for one in self.ranges if one.kind == kind), None)


WHOLE = Reading()
"""How files are read of which nothing is known."""
