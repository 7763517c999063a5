"""Which images a replay tests on, starts from and asks for; at one seed they are the same for all arms."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.pool.groups import draw_groups
from pipeline.randomness import seeded_generator


class ReplaySplit(NamedTuple):
    """Positions of the images of one seed, disjoint: `test` is measured on, `start` is labelled before any query."""

    test: Tensor
    start: Tensor
    rest: Tensor


def draw_split(
    targets: Tensor,
    *,
    test_size: int,
    start: int,
    seed: int,
    test: Tensor | None = None,
    groups: Tensor | None = None,
) -> ReplaySplit:
    """Draw the images of one seed: the test images by class where every class can give one, the start evenly.

    Whole groups are tested on, from all classes in turn, each that still fits: as many images as wanted, or less than
    the smallest group that was left out fewer.

    Args:
        targets: `(N,)` class indices.
        test_size: images in the test set, at least 1.
        start: images labelled before the first query; `test_size + start` is at most N.
        test: positions of the test set where it is not to be drawn.
        groups: `(N,)` numbers of the groups from 0; None where each image is its own.
    """
    from sklearn.model_selection import train_test_split

    n = len(targets)
    if min(test_size, start) < 1 or test_size + start > n:
        raise ValueError(f"{n} images cannot give {test_size} to test on and {start} to start with")
    if test is None and groups is not None:
        drawn = draw_groups(groups, size=test_size, generator=seeded_generator(seed, 0, "test"), strata=targets)
        test = drawn.nonzero().flatten()
    elif test is None:
        counts = targets.unique(return_counts=True)[1]
        by_class = counts.min() >= 2 and min(test_size, n - test_size) >= len(counts)
        _, positions = train_test_split(
            np.arange(n), test_size=test_size, random_state=seed, stratify=targets.numpy() if by_class else None
        )
        test = torch.from_numpy(positions)
    pool = torch.arange(n)[~torch.isin(torch.arange(n), test)]
    shuffled = pool[torch.randperm(len(pool), generator=seeded_generator(seed, 0, "start"))]
    return ReplaySplit(test.sort().values, shuffled[:start], shuffled[start:].sort().values)
