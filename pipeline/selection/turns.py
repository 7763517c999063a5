"""Groups that take turns."""

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor


def take_turns(groups: Tensor) -> Tensor:
    """Return the positions in the order in which groups take turns: the first of each, then the second of each.

    Args:
        groups: `(N,)` int64, at least 0; within a turn the lowest position comes first.

    >>> take_turns(torch.tensor([1, 1, 0, 1, 0])).tolist()
    [0, 2, 1, 4, 3]
    """
    by_group = groups.argsort(stable=True)
    sizes = groups.bincount()
    turns = torch.empty_like(groups)
    turns[by_group] = torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[groups[by_group]]
    return turns.argsort(stable=True)


def even_turns(n_labels: Sequence[int], available: Sequence[int], size: int, generator: torch.Generator) -> Tensor:
    """Return `(size,)` classes: each turn is for the class with the fewest labels so far that has any left.

    Args:
        n_labels: `(C,)` labels there are of each class.
        available: `(C,)` candidates of each class, at least `size` in all.
        generator: decides which of the classes with equally many labels comes first.
    """
    lots = torch.randperm(len(n_labels), generator=generator).tolist()
    waiting = [(n, lot, guess) for guess, (n, lot) in enumerate(zip(n_labels, lots, strict=True)) if available[guess]]
    heapq.heapify(waiting)
    left = list(available)
    turns = []
    for _ in range(size):
        n, lot, guess = waiting[0]
        turns.append(guess)
        left[guess] -= 1
        if left[guess]:
            heapq.heapreplace(waiting, (n + 1, lot, guess))
        else:
            heapq.heappop(waiting)
    return torch.tensor(turns, dtype=torch.long)
