"""Learning curves: how good a model is over the labels that it learnt from.

Curves are arrays `(S, P)`: S seeds, P points of the label grid, the first before any query.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Curves = Mapping[str, NDArray[np.float64]]
"""The curves `(S, P)` of each arm."""


class Efficiency(TypedDict):
    """How many labels the control needs for one of an arm's: see `labelling_efficiency`."""

    per_seed: list[float | None]
    median: float | None
    both: int
    only_arm: int
    only_random: int
    neither: int


def area_under_curve(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """AULC `(...)`: mean over the points of evenly spaced label counts `(..., P)`, the start included."""
    return np.asarray(curves.mean(axis=-1), dtype=np.float64)


def thirds(curves: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """AULC `(...)` of the first, middle and last third of the points `(..., P)`; the earlier are longer by a point.

    >>> [float(third) for third in thirds(np.array([1.0, 2.0, 3.0, 5.0]))]
    [1.5, 3.0, 5.0]
    """
    return [area_under_curve(part) for part in np.array_split(curves, 3, axis=-1)]


def labels_to(curve: Sequence[float], n_trained_on: Sequence[int], target: float) -> float | None:
    """Labels at which the curve first reaches the target, by linear interpolation; None where it does not.

    Args:
        curve: `(P,)` accuracies.
        n_trained_on: `(P,)` labels that each point learnt from, growing.

    >>> labels_to([0.5, 0.7, 0.6], [10, 20, 30], 0.6), labels_to([0.5, 0.7], [10, 20], 0.8)
    (15.0, None)
    """
    reached = [point for point, value in enumerate(curve) if value >= target]
    if not reached:
        return None
    after = reached[0]
    if after == 0:
        return float(n_trained_on[0])
    share = (target - curve[after - 1]) / (curve[after] - curve[after - 1])
    return float(n_trained_on[after - 1] + share * (n_trained_on[after] - n_trained_on[after - 1]))


def median_of_reached(values: Sequence[float | None]) -> float | None:
    """Median over the seeds, "not reached" being larger than any number; None where that is the median.

    >>> median_of_reached([40.0, None, 60.0]), median_of_reached([40.0, None])
    (60.0, None)
    """
    return finite(float(np.median([math.inf if value is None else value for value in values])))


def labelling_efficiency(control: Sequence[float | None], arm: Sequence[float | None]) -> Efficiency:
    """How many labels the control needs for one of the arm's, `n_control / n_arm` at each seed (Beck et al., 2021).

    Counted are all labels, the start's included. The ratio of a seed is None unless both reached the target; for the
    median it is then larger than any number where only the arm did, 0 where only the control did, and left out where
    neither did.

    Returns:
        `per_seed`; `median`, which is None where no finite ratio can be named, or it would be 0; and in how many seeds
        `both` reached the target, `only_arm` did, `only_random` did and `neither` did.
    """
    pairs = list(zip(control, arm, strict=True))
    per_seed = [None if c is None or a is None else c / a for c, a in pairs]
    reached = [(c is not None, a is not None) for c, a in pairs]
    only_arm, only_control = reached.count((False, True)), reached.count((True, False))
    ratios = [ratio for ratio in per_seed if ratio is not None]
    ranked = [0.0] * only_control + ratios + [math.inf] * only_arm
    return {
        "per_seed": per_seed,
        "median": (finite(float(np.median(ranked))) or None) if ranked else None,
        "both": reached.count((True, True)),
        "only_arm": only_arm,
        "only_random": only_control,
        "neither": reached.count((False, False)),
    }


def win_rate(control: NDArray[np.float64], arm: NDArray[np.float64]) -> float:
    """Share of seeds and points `(S, P)` at which the arm is above the control; a tie is half a win.

    The first point is left out: it is the same for all.
    """
    return float(((arm > control) + 0.5 * (arm == control))[:, 1:].mean())


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number: JSON holds neither."""
    return value if math.isfinite(value) else None
