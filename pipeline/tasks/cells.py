"""Decisions about the cells of a map: each is between nothing, answer 0, and the C classes of the campaign."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.tasks.task_type import Answered

MOST_CELLS = 256
"""Cells of an image that are answered for: neighbours tell little more than one of them."""


def side_of(n_cells: int) -> int:
    """Rows and columns of a map of so many cells.

    Raises:
        ValueError: there are not as many rows as columns.
    """
    side = math.isqrt(n_cells)
    if side * side != n_cells:
        raise ValueError(f"the cells of a map are as many rows as columns, got {n_cells} cells")
    return side


def answered(values: Tensor, right: Tensor) -> Answered:
    """Some cells of each image, `MOST_CELLS` at most.

    Half of them are of classes, as far as there are any: in most images nearly every cell has nothing in it. The cells
    of an image are the first ones in an order that is drawn once for all.

    Args:
        values: `(n, U, C + 1)`.
        right: `(n, U)` int64 answers, below 0 where none is known.
    """
    order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0)).to(right.device)
    has_class, is_nothing = right[:, order] > 0, right[:, order] == 0
    n_with, n_without = has_class.sum(dim=1, keepdim=True), is_nothing.sum(dim=1, keepdim=True)
    keep_with = torch.maximum(MOST_CELLS - n_without, torch.full_like(n_with, MOST_CELLS // 2)).minimum(n_with)
    is_kept = has_class & (has_class.cumsum(dim=1) <= keep_with)
    is_kept |= is_nothing & (is_nothing.cumsum(dim=1) <= MOST_CELLS - keep_with)
    image, at = is_kept.nonzero(as_tuple=True)
    decision = order[at]
    return Answered(
        values[image.to(values.device), decision.to(values.device)], right[image, decision], image, decision
    )


def in_words(decision: int, answer: int, classes: Sequence[str], n_decisions: int) -> str:
    """The class, or that nothing is marked, and where the cell is.

    >>> in_words(1, 0, ["cat"], 4), in_words(2, 1, ["cat"], 4)
    ('nothing at 75 % from the left, 25 % from the top', 'cat at 25 % from the left, 75 % from the top')
    """
    side = side_of(n_decisions)
    across, down = (round(100 * (place + 0.5) / side) for place in (decision % side, decision // side))
    what = classes[answer - 1] if answer else "nothing"
    return f"{what} at {across} % from the left, {down} % from the top"


def rarest(there: Tensor) -> Tensor:
    """`(n,)` the class of each image that the fewest images have, of equals the first; C where it has none.

    Args:
        there: `(n, C)` bool, whether each image has each class.
    """
    counts = torch.where(there, there.sum(dim=0), len(there) + 1)
    none = torch.full((len(there), 1), len(there), device=there.device)
    return torch.cat([counts, none], dim=1).argmin(dim=1)
