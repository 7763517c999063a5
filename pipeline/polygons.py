"""Outlines: how large a polygon is, and whether its edges cross."""

import numpy as np
from numpy.typing import NDArray


def area(corners: NDArray[np.float64]) -> float:
    """Area of a polygon of corners `(n, 2)`, in their unit squared (the shoelace formula).

    >>> area(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]))
    2.0
    """
    x, y = (corners - corners[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def crosses_itself(corners: NDArray[np.float64]) -> bool:
    """Whether an edge of a polygon of corners `(n, 2)` cuts through another; edges that touch do not.

    >>> crosses_itself(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    True
    """
    begins, ends = corners, np.roll(corners, -1, axis=0)
    for place in range(2, len(corners)):
        begin, end = begins[place], ends[place]
        earlier = slice(0, place - 1)
        sides = _side(begin, end, begins[earlier]) * _side(begin, end, ends[earlier])
        others = _side(begins[earlier], ends[earlier], begin) * _side(begins[earlier], ends[earlier], end)
        if bool(np.any((sides < 0) & (others < 0))):
            return True
    return False


def _side(begin: NDArray[np.float64], end: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """On which side of lines points are: positive, negative, or 0 on the line."""
    along, there = end - begin, point - begin
    side: NDArray[np.float64] = np.sign(along[..., 0] * there[..., 1] - along[..., 1] * there[..., 0])
    return side
