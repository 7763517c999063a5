"""Run lengths of COCO: a mask column by column, how many pixels are not in it, then are, then are not, and so on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """The run lengths of a mask `(H, W)`; the first is of pixels outside.

    >>> runs_of(np.array([[True, False], [True, True]]))
    [0, 2, 1, 1]
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(changes, prepend=0, append=mask.size).tolist()
    return runs


LONGEST_SHIFT = 30
"""Bits below the last sign of a run length; longer ones are of no image."""


def mask_of(runs: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """The mask `(height, width)` of run lengths.

    Raises:
        ValueError: they are of another number of pixels.
    """
    lengths = np.asarray(runs, dtype=np.int64)
    if (len(lengths) and lengths.min() < 0) or lengths.sum() != height * width:
        raise ValueError(f"the run lengths have {lengths.sum()} pixels, and {width} x {height} are wanted")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape((height, width), order="F")


def compressed(runs: Sequence[int]) -> str:
    """Run lengths as pycocotools writes them: from the fourth on the difference to the last but one.

    Each number is in signs of 5 bits, the lowest first, and a sixth where there are more.
    """
    signs: list[str] = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        is_open = True
        while is_open:
            low, value = value & 31, value >> 5
            is_open = value != (-1 if low & 16 else 0)
            signs.append(chr(48 + low + 32 * is_open))
    return "".join(signs)


def decompressed(text: str) -> list[int]:
    """The run lengths that `compressed` wrote.

    Raises:
        ValueError: the text is damaged.
    """
    runs: list[int] = []
    value = shift = 0
    for sign in text:
        bits = ord(sign) - 48
        if not 0 <= bits < 64 or shift > LONGEST_SHIFT:
            raise ValueError(f"run lengths hold {sign!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths end early")
    return runs
