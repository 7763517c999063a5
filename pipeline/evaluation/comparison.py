"""How learning curves of arms differ outside the noise: seeds are paired, and tests are corrected for their number.

Curves are arrays `(S, P)`: S seeds, P points of the label grid. At one seed all arms have the same test images, the
same start and the same seeds of the weights, so arms are compared by their differences at each seed.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.curves import Curves, area_under_curve

ALPHA = 0.05
POWER_80 = 0.8416212335729143
"""80th percentile of the normal distribution."""
FEWEST_SEEDS = 5
"""Seeds from which on an arm can be declared the winner."""
MOST_SEEDS = 1000
"""A difference that more seeds than this would be needed for is not worth having."""
MOST_NAMES = 4
"""Arms that a sentence names."""


class Interval(TypedDict):
    """A mean over the seeds and the ends of its 95 % interval, which one seed does not have."""

    mean: float
    low: float | None
    high: float | None


class Difference(Interval):
    """A mean of paired differences, its interval, and p, two-sided; one seed has no p."""

    p: float | None


class PenaltyMatrix(TypedDict):
    """How often arms beat each other: see `penalty_matrix`."""

    strategies: list[str]
    matrix: list[list[float]]
    column_mean: dict[str, float]


class Verdict(TypedDict):
    """Which arm is the best outside the noise: see `verdict`."""

    winner: str | None
    tied: list[str]
    text: str


def mean_interval(values: ArrayLike) -> Interval:
    """Mean over the seeds `(S,)` and its 95 % interval by Student's t; one seed has no interval.

    >>> mean_interval([0.5])
    {'mean': 0.5, 'low': None, 'high': None}
    """
    data = np.asarray(values, dtype=np.float64)
    mean, n = float(data.mean()), len(data)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = critical_t(n) * float(data.std(ddof=1)) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def paired_difference(control: ArrayLike, arm: ArrayLike) -> Difference:
    """Mean of `arm - control` over paired seeds `(S,)`, its 95 % t interval, and p, two-sided; one seed has no p."""
    from scipy.special import stdtr

    differences = np.asarray(arm, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    t, n = paired_t(differences), len(differences)
    p = None if n < 2 else 2 * float(stdtr(n - 1, -abs(float(t))))
    return {**mean_interval(differences), "p": p}


def paired_t(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """`sqrt(S) mean / sd` of differences `(S, ...)`, `(...)`; 0 where all are 0, infinite where all are another number.

    A spread in the last digits is rounding and counts as none.
    """
    if len(differences) < 2:
        return np.zeros(differences.shape[1:])
    mean, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
    spread = np.where(spread <= 1e-12, 0.0, spread)
    mean = np.where(np.abs(mean) <= 1e-12, 0.0, mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = math.sqrt(len(differences)) * mean / spread
    return np.where((mean == 0) & (spread == 0), 0.0, t)


def critical_t(n_seeds: int, *, alpha: float = ALPHA) -> float:
    """What |t| of `n_seeds` differences, at least 2, must exceed at level `alpha`, two-sided.

    >>> round(critical_t(5), 3)
    2.776
    """
    from scipy.special import stdtrit

    return float(stdtrit(n_seeds - 1, 1 - alpha / 2))


def penalty_matrix(curves: Curves) -> PenaltyMatrix:
    """How often each arm significantly beats each other along the curve (Ash et al., 2020, section 4).

    At each of the points after the start a paired t test at 5 % gives the row that wins 1 / number of points in the
    column of the arm that loses. Many tests are made and not corrected for: this describes, it does not prove.

    Returns:
        `strategies`, `matrix` (row beats column, in [0, 1]) and `column_mean` over the other arms: lower is better.
    """
    names = list(curves)
    matrix = np.zeros((len(names), len(names)))
    for (i, winner), (j, loser) in itertools.permutations(enumerate(names), 2):
        differences = (curves[winner] - curves[loser])[:, 1:]
        if len(differences) > 1:
            matrix[i, j] = (paired_t(differences) > critical_t(len(differences))).mean()
    means = matrix.sum(axis=0) / max(1, len(names) - 1)
    return {
        "strategies": names,
        "matrix": matrix.tolist(),
        "column_mean": dict(zip(names, means.tolist(), strict=True)),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false alarm at the level they are compared with (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def seeds_needed(differences: NDArray[np.float64], *, alpha: float) -> int | None:
    """Seeds that would show a difference like that of the seeds `(S,)` with a chance of 80 % at level `alpha`.

    By the normal approximation of the power, `sqrt(n) |mean| / sd >= t_{1 - alpha/2} + z_0.8`. None where more than
    `MOST_SEEDS` would be needed.
    """
    from scipy.special import stdtrit

    effect = abs(float(paired_t(differences))) / math.sqrt(len(differences))
    n = np.arange(2, MOST_SEEDS + 1)
    enough = np.sqrt(n) * effect >= stdtrit(n - 1, 1 - alpha / 2) + POWER_80
    return max(int(n[enough][0]), len(differences) + 1) if enough.any() else None


def verdict(curves: Curves) -> Verdict:
    """Whether one arm has the largest AULC outside the noise, in a sentence.

    An arm wins if its AULC is above that of every other by a paired t test at 5 %, Holm-corrected for all pairs of
    arms, since which arm comes first is seen in the same numbers. Of fewer than `FEWEST_SEEDS` seeds none wins: few
    accuracies in steps of 1 / test images can happen to have no spread at all.

    Returns:
        `winner` (None inside the noise), `tied` (arms that cannot be told from the best, the best first) and `text`.
    """
    areas = {name: area_under_curve(curve) for name, curve in curves.items()}
    ranked = sorted(areas, key=lambda name: -areas[name].mean())
    best, n_seeds = ranked[0], len(areas[ranked[0]])
    if len(ranked) == 1:
        return _verdict(None, [best], f"{best} was replayed alone: there is nothing to compare it with.")
    if n_seeds < FEWEST_SEEDS:
        seeds = f"{n_seeds} seed{'s say' if n_seeds > 1 else ' says'}"
        return _verdict(
            None, ranked, f"No winner: {seeds} too little about the noise; replay at least {FEWEST_SEEDS} (--seeds)."
        )
    pairs = list(itertools.combinations(ranked, 2))
    p_values = holm([float(paired_difference(areas[b], areas[a])["p"] or 0.0) for a, b in pairs])
    p_of = {b: p for (a, b), p in zip(pairs, p_values, strict=True) if a == best}
    tied, below = [name for name, p in p_of.items() if p > ALPHA], [name for name, p in p_of.items() if p <= ALPHA]
    test = f"paired t test over {n_seeds} seeds, Holm-corrected for {len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    gap = paired_difference(areas[(tied or ranked[1:])[0]], areas[best])
    if not tied:
        return _verdict(
            best,
            [best],
            f"{best} wins: its AULC is {_points(gap['mean'])} points above {ranked[1]}, the next best "
            f"(95 % interval {_points(gap['low'])} to {_points(gap['high'])}; {test}).",
        )
    told = (
        f"{best} is {_points(gap['mean'])} points above {tied[0]}, 95 % interval {_points(gap['low'])} to "
        f"{_points(gap['high'])}."
    )
    hope = _hope(best, {name: areas[best] - areas[name] for name in tied}, alpha=ALPHA / len(pairs))
    others = f" {best} is above {_listed(below)}." if below else ""
    tied = [best, *tied]
    return _verdict(
        None, tied, f"No winner: {_listed(tied)} cannot be told apart by AULC ({test}). {told}{hope}{others}"
    )


def _hope(best: str, differences: Curves, *, alpha: float) -> str:
    """How many seeds might tell the best arm from arms that lie `differences` `(S,)` below it."""
    needed = [(seeds_needed(values, alpha=alpha), name) for name, values in differences.items()]
    more = [f"{name} (about {n:,})" for n, name in sorted((n, name) for n, name in needed if n is not None)]
    return f" More seeds in all might tell {best} from {_listed(more)}." if more else ""


def _verdict(winner: str | None, tied: Iterable[str], text: str) -> Verdict:
    return {"winner": winner, "tied": list(tied), "text": text}


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f}"


def _listed(names: Sequence[str]) -> str:
    """The names as words; of many, the first and how many more.

    >>> _listed(list("abc")), _listed(list("abcdef"))
    ('a, b and c', 'a, b, c and 3 more')
    """
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
