"""Images that depend on each other, such as the frames of a film: a group is on one side of a split, never on two.

A model that has learnt from one frame of a film knows the next one by heart, so that an accuracy measured on it says
nothing of the next film. Groups are named by a manifest, or found in the paths by `pipeline.pool.group_rules`.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def group_codes(groups: pd.Series, items: pd.Series) -> Tensor | None:
    """Numbers `(n,)` from 0 that are equal for images of one group; an image without one has its own.

    They are given in the order in which the groups come up. None where every image is on its own.

    Args:
        groups: `(n,)` names, missing where an image is on its own.
        items: `(n,)` what tells images apart.
    """
    if groups.isna().all():
        return None
    names = ("group " + groups.astype("str")).fillna("item " + items.astype("str"))
    return torch.from_numpy(pd.factorize(names)[0].astype(np.int64))


def strata_of_groups(groups: Tensor, strata: Tensor) -> Tensor:
    """The most frequent class of each group, `(G,)`; of equals the first.

    Args:
        groups: `(n,)` numbers from 0 to G - 1, each at least once.
        strata: `(n,)` the class of each image.
    """
    n_groups, n_classes = int(groups.max()) + 1, int(strata.max()) + 1
    counts = (groups * n_classes + strata).bincount(minlength=n_groups * n_classes)
    return counts.reshape(n_groups, n_classes).argmax(dim=1)


def draw_groups(groups: Tensor, *, size: int, generator: torch.Generator, strata: Tensor | None = None) -> Tensor:
    """Whether each image is drawn, `(n,)`: whole groups in a random order, each that still fits, up to `size` images.

    As many as `size` are drawn, or less than the smallest group that was left out fewer. A group of more than `size`
    images is never drawn.

    Args:
        groups: `(n,)` numbers from 0, each at least once.
        strata: `(n,)` the class of each image: groups then come in turn from all classes, by how many each class has.
    """
    sizes = groups.bincount()
    order = torch.randperm(len(sizes), generator=generator)
    if strata is not None:
        classes = strata_of_groups(groups, strata)[order]
        by_class = classes.argsort(stable=True)
        counts = classes.bincount()
        rank = torch.empty(len(order), dtype=torch.float64)
        rank[by_class] = torch.arange(len(order), dtype=torch.float64) - (counts.cumsum(0) - counts)[classes[by_class]]
        order = order[((rank + 0.5) / counts[classes]).argsort(stable=True)]
    is_drawn = torch.zeros(len(sizes), dtype=torch.bool)
    left = size
    for group, n_images in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if n_images <= left:
            is_drawn[group] = True
            left -= n_images
        if not left:
            break
    return is_drawn[groups]
