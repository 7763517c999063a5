"""Which labelled images are trained on and which are not: a validation part, folds, a bootstrap."""

import torch
from torch import Tensor

from pipeline.pool.groups import strata_of_groups

MIN_VALIDATION = 30
"""A validation part of fewer images picks the best epoch by luck (30 give an accuracy within 9 points) and costs labels
that training needs, so none is held out; with fewer than `MIN_PER_CLASS` labelled images for each class neither."""
MIN_PER_CLASS = 5


def split_validation(
    strata: Tensor, *, share: float, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to hold out, each sorted; the second is empty for a small labelled set.

    Of n images it is `round(share * n)`, dealt out by largest remainder: each class gives its share, rounded down, and
    one more where most is left of it; at least one image of a class stays to train on. Groups are held out whole: the
    one of `1 / share` folds that comes nearest to that number, and none where each takes all of a class, has less than
    `MIN_VALIDATION` images or more than twice the share.

    Args:
        strata: `(n,)` the class of each image.
        share: in [0, 1).
        groups: `(n,)` numbers of the groups; None where each image is its own.
    """
    n, counts = len(strata), strata.bincount()
    n_classes = int((counts > 0).sum())
    n_held_out = min(round(share * n), n - n_classes)
    if n_held_out < MIN_VALIDATION or n < MIN_PER_CLASS * n_classes:
        n_held_out = 0
    is_held_out = torch.zeros(n, dtype=torch.bool)
    if groups is None:
        is_held_out[_evenly(strata, share, generator)[:n_held_out]] = True
    elif n_held_out:
        folds = split_folds(strata, n_folds=round(1 / share), generator=generator, groups=groups)
        can_be_spared = [
            fold
            for fold in folds
            if MIN_VALIDATION <= len(fold) <= 2 * n_held_out
            and (strata[fold].bincount(minlength=len(counts)) < counts)[counts > 0].all()
        ]
        if can_be_spared:
            is_held_out[min(can_be_spared, key=lambda fold: abs(len(fold) - n_held_out))] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def split_folds(
    strata: Tensor, *, n_folds: int, generator: torch.Generator, groups: Tensor | None = None
) -> list[Tensor]:
    """Positions of each fold, sorted; together every position once.

    The images are dealt out class by class, so that folds differ by one image at most, in all and in each class.
    Groups are dealt out whole, by their most frequent class, the large ones first.

    Args:
        strata: `(n,)` the class of each image.
        n_folds: folds wanted; there are as many as images, or groups, at most.
        groups: `(n,)` numbers from 0, each at least once; None where each image is its own.
    """
    if groups is None:
        return _deal(strata, n_folds, generator)
    sizes = groups.bincount()
    dealt = _deal(strata_of_groups(groups, strata), n_folds, generator, sizes)
    fold_of = torch.empty(len(sizes), dtype=torch.int64)
    for number, members in enumerate(dealt):
        fold_of[members] = number
    return [(fold_of[groups] == number).nonzero().flatten() for number in range(len(dealt))]


def draw_bootstrap(strata: Tensor, *, generator: torch.Generator) -> Tensor:
    """Positions `(n,)` drawn with replacement within each class, so that no class is lost or outgrows its share.

    Args:
        strata: `(n,)` the class of each image.
    """
    drawn = []
    for label in strata.unique():
        rows = (strata == label).nonzero().flatten()
        drawn.append(rows[torch.randint(len(rows), (len(rows),), generator=generator)])
    return torch.cat(drawn).sort().values


def _evenly(strata: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Positions `(n,)` in an order whose beginning has all classes by their shares."""
    n, counts = len(strata), strata.bincount()
    shuffled = torch.randperm(n, generator=generator)
    labels = strata[shuffled]
    by_class = labels.argsort(stable=True)
    rank = torch.empty(n, dtype=torch.int64)
    rank[by_class] = torch.arange(n) - (counts.cumsum(0) - counts)[labels[by_class]]
    # How far holding out this one too takes its class above its share: 0 for the share rounded down.
    above = (rank + 1 - share * counts[labels].double()).clamp(min=0)
    above[rank == counts[labels] - 1] = torch.inf
    return shuffled[above.argsort(stable=True)]


def _deal(strata: Tensor, n_folds: int, generator: torch.Generator, sizes: Tensor | None = None) -> list[Tensor]:
    """Positions of each fold, dealt out class by class, within a class the largest first."""
    shuffled = torch.randperm(len(strata), generator=generator)
    if sizes is not None:
        shuffled = shuffled[sizes[shuffled].argsort(descending=True, stable=True)]
    dealt = shuffled[strata[shuffled].argsort(stable=True)]
    return [dealt[first::n_folds].sort().values for first in range(min(n_folds, len(strata)))]
