"""Images that depend on each other, such as the frames of a film: a group is on one side of a split, never on two.

A model that has learnt from one frame of a film knows the next one by heart, so that an accuracy measured on it says
nothing of the next film. Groups are named by a manifest, or found in the paths of the images by a rule.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

PARENT = "parent"
"""The rule by which the images of one folder are a group."""


def check_rule(rule: str) -> str:
    """The rule, if it is one: `PARENT`, or a regular expression with one capture group.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if rule == PARENT:
        return rule
    try:
        n_captures = re.compile(rule).groups
    except re.error as exc:
        raise ValueError(f"is not a regular expression: {exc}") from exc
    if n_captures != 1:
        raise ValueError(
            f"must be {PARENT!r}, or a regular expression with one part in round brackets, which names the group, for "
            f"example '^(.+)_frame\\d+'; this one has {n_captures} (others are written (?:...))"
        )
    return rule


def groups_of(paths: Sequence[str], rule: str) -> list[str | None]:
    """The group of each path by a rule; None for one that the expression is not found in, which is on its own.

    Args:
        paths: relative to the folder that the images lie in, with "/".
        rule: of `check_rule`.

    Raises:
        ValueError: the expression is found in no path.

    >>> groups_of(["a/1.png", "a/2.png", "b.png"], "parent")
    ['a', 'a', '.']
    >>> groups_of(["film1_frame1.png", "film1_frame2.png", "still.png"], r"(.+)_frame\\d+")
    ['film1', 'film1', None]
    """
    if rule == PARENT:
        return [path.rpartition("/")[0] or "." for path in paths]
    search = re.compile(rule).search
    found = [search(path) for path in paths]
    groups = [(match[1] or None) if match else None for match in found]
    if paths and not any(groups):
        raise ValueError(f"group = {rule!r} names no group in any of {len(paths)} paths, for example {paths[0]!r}")
    return groups


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


def group_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How the usable images of a pool table are grouped; empty where they are not.

    Returns:
        `n_groups`, the `largest` (images), `n_alone` (images in none), and of the audit set `n_audit_groups`, its
        images without a group counted as one each, for `n_audit` images.
    """
    rows = pool[pool["set_aside_reason"].isna()]
    if "group" not in rows or rows["group"].isna().all():
        return {}
    sizes, audit = rows["group"].value_counts(), rows[rows["split"] == "audit"]
    return {
        "n_groups": len(sizes),
        "largest": int(sizes.max()),
        "n_alone": int(rows["group"].isna().sum()),
        "n_audit_groups": audit["group"].nunique() + int(audit["group"].isna().sum()),
        "n_audit": len(audit),
    }
