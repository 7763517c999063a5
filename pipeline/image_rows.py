"""Images that need not be in memory: rows of arrays, of which those that are asked for are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageRows:
    """Images `(n, channels, S, S)` of uint8 as rows of arrays, which may be mapped from a disk.

    It stands where a tensor of images does, on the CPU: rows by position, and parts, are tensors in memory. What a
    tensor would copy to have fewer rows, `subset` has without a copy.

    Attributes:
        parts: arrays `(m, channels, S, S)`.
        part: `(n,)` position in `parts` of the array of each image.
        row: `(n,)` its row there.
    """

    parts: Sequence[NDArray[np.uint8]]
    part: Tensor
    row: Tensor
    dtype = torch.uint8
    device = torch.device("cpu")
    is_cuda = False

    def __len__(self) -> int:
        return len(self.row)

    @property
    def shape(self) -> torch.Size:
        """`(n, channels, S, S)`."""
        return torch.Size((len(self), *self.parts[0].shape[1:]))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images at these positions."""
        return self.take(rows, torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype))

    def take(self, rows: Tensor, out: Tensor) -> Tensor:
        """Images at these positions, copied into `out`, which is returned."""
        copies = out.numpy()
        for place, (part, row) in enumerate(zip(self.part[rows].tolist(), self.row[rows].tolist(), strict=True)):
            copies[place] = self.parts[part][row]
        return out

    def split(self, n: int) -> Iterator[Tensor]:
        """The images in parts of `n`, of which one is in memory at a time."""
        return (self[rows] for rows in torch.arange(len(self)).split(n))

    def tensor_split(self, n_parts: int) -> Iterator[Tensor]:
        """The images in so many parts of about the same size, likewise."""
        return (self[rows] for rows in torch.arange(len(self)).tensor_split(n_parts))


Images = Tensor | ImageRows
"""Images in memory or on a disk."""


def subset(images: Images, rows: Tensor | slice) -> Images:
    """Images at these positions, or where a mask is true; of a tensor, positions and masks make a copy."""
    if isinstance(images, Tensor):
        return images[rows]
    return ImageRows(images.parts, images.part[rows], images.row[rows])


def joined(images: Images, more: Images) -> Images:
    """Images with others behind them."""
    if isinstance(images, Tensor) and isinstance(more, Tensor):
        return torch.cat([images, more])
    first, last = _rows(images), _rows(more)
    part = torch.cat([first.part, last.part + len(first.parts)])
    return ImageRows([*first.parts, *last.parts], part, torch.cat([first.row, last.row]))


def _rows(images: Images) -> ImageRows:
    if isinstance(images, ImageRows):
        return images
    return ImageRows([images.numpy()], torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)))
