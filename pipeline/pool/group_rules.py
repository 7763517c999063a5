"""How the group of an image is found in its path: by its folder, or by a regular expression."""

import re
from collections.abc import Sequence

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
