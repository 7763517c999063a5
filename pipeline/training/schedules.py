"""How the learning rate falls, and when training has gone on for long enough."""

import math
from collections.abc import Callable, Sequence

WARM_UP_STEPS = 20
"""Steps until the learning rate is whole, at most a tenth of all: AdamW's first steps rest on few gradients, and a new
head sends noise into a pretrained trunk."""
PATIENCE_GROWTH = 1.5
"""Training goes on until this many times the best epoch at least: late progress is slow, and is not cut."""
STALL = 3
"""Epochs without a lower loss after which the schedule "plateau" halves the learning rate."""


def is_over(losses: Sequence[float], patience: int) -> bool:
    """Whether training has waited long enough: e >= max(b + patience, `PATIENCE_GROWTH` b) after e epochs, b the best.

    Args:
        losses: `(e,)` of the epochs so far, e >= 1.

    >>> is_over([3.0, 2.0, 2.5], patience=2), is_over([3.0, 2.0, 2.5, 2.5], patience=2)
    (False, True)
    """
    best = losses.index(min(losses)) + 1
    return len(losses) >= max(best + patience, PATIENCE_GROWTH * best)


def learning_rate_share(step: int, n_steps: int, *, schedule: str, losses: Sequence[float]) -> float:
    """Share of the learning rate that an optimiser step has, in (0, 1].

    Args:
        step: counted from 0.
        n_steps: steps of the whole training. Of these, `WARM_UP_STEPS` and at most a tenth rise in a line.
        schedule: a key of `SCHEDULES`.
        losses: of the epochs so far.
    """
    warm_up = min(WARM_UP_STEPS, n_steps // 10)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return SCHEDULES[schedule]((step - warm_up) / (n_steps - warm_up), losses)


def cosine(progress: float, losses: Sequence[float]) -> float:
    """From 1 down to 0 along half a cosine over the whole training (Loshchilov and Hutter, 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


def plateau(progress: float, losses: Sequence[float]) -> float:
    """Half as much each time that `STALL` epochs in a row brought no lower loss."""
    share, lowest, waited = 1.0, math.inf, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == STALL:
            share, waited = share / 2, 0
    return share


def constant(progress: float, losses: Sequence[float]) -> float:
    """All of it, to the end."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, Sequence[float]], float]] = {
    "constant": constant,
    "cosine": cosine,
    "plateau": plateau,
}
"""From the progress after the warm-up, in [0, 1), and the losses of the epochs so far, to a share of the rate."""
