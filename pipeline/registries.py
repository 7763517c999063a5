"""Looking up a name that a person wrote, with an error that helps."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def look_up(registry: Mapping[str, T], name: str, kind: str) -> T:
    """Return the entry called `name`; a wrong name is a ValueError that lists all names and the nearest.

    Args:
        registry: name -> entry.
        kind: what the entries are, for the error.

    >>> look_up({"entropy": 1, "margin": 2}, "margn", "acquisition function")
    Traceback (most recent call last):
    ValueError: unknown acquisition function 'margn', did you mean 'margin'? There are: entropy, margin
    """
    if name in registry:
        return registry[name]
    near = get_close_matches(str(name), registry, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {kind} {name!r}{hint} There are: {', '.join(sorted(registry))}")
