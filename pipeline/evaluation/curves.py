"""Replays on labelled data: how seeds are paired, and what learning curves say about strategies.

An arm is a way of asking that is replayed. Curves are arrays `(S, P)`: S seeds, P points of the label grid, the first
before any query. Seeds are paired: at one seed all arms have the same test images, the same start and the same seeds of
the weights, so arms are compared by their differences at each seed.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.pool.groups import draw_groups
from pipeline.randomness import seeded_generator
from pipeline.registries import look_up
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.training.fit import TrainingError

CONTROL = "random"
"""The arm that others are compared with."""
DEFAULT_ACQUISITION = "margin"
METRICS = ("accuracy", "balanced_accuracy", "nll", "ece")
SECONDS = ("seconds_select", "seconds_train", "seconds_score")
TARGETS = (90, 95, 99)
"""Percent of the accuracy with all labels, to which labels are counted."""
ALPHA = 0.05
POWER_80 = 0.8416212335729143
"""80th percentile of the normal distribution."""
FEWEST_SEEDS = 5
"""Seeds from which on an arm can be declared the winner."""
MOST_SEEDS = 1000
"""A difference that more seeds than this would be needed for is not worth having."""
MOST_NAMES = 4
"""Arms that a sentence names."""
ITERATIONS = (1_000, 10_000, 100_000)
"""Of the logistic regression: tried one after another until one is enough."""

Curves = Mapping[str, NDArray[np.float64]]


class Arm(NamedTuple):
    """A way of asking: a query strategy, and the acquisition function whose scores it reads."""

    name: str
    strategy: str
    acquisition: str


class Split(NamedTuple):
    """Positions of the images of one seed, disjoint: `test` is measured on, `start` is labelled before any query."""

    test: Tensor
    start: Tensor
    rest: Tensor


def parse_arm(name: str) -> Arm:
    """Read the name of an arm: a strategy, an acquisition function (then its top k), or both as STRATEGY:ACQUISITION.

    >>> parse_arm("k_center"), parse_arm("entropy"), parse_arm("power:bald")[1:]
    (Arm(name='k_center', strategy='k_center', acquisition='margin'), \
Arm(name='entropy', strategy='top_k', acquisition='entropy'), ('power', 'bald'))
    """
    strategy, colon, acquisition = name.partition(":")
    if colon:
        look_up(STRATEGIES, strategy, "strategy")
        look_up(ACQUISITIONS, acquisition, "acquisition function")
        return Arm(name, strategy, acquisition)
    if name in ACQUISITIONS:
        return Arm(name, "top_k", name)
    look_up(dict.fromkeys((*STRATEGIES, *ACQUISITIONS)), name, "strategy or acquisition function")
    return Arm(name, name, DEFAULT_ACQUISITION)


def draw_split(
    targets: Tensor,
    *,
    test_size: int,
    start: int,
    seed: int,
    test: Tensor | None = None,
    groups: Tensor | None = None,
) -> Split:
    """Draw the images of one seed: the test images by class where every class can give one, the start evenly.

    Whole groups are tested on, from all classes in turn, each that still fits: as many images as wanted, or less than
    the smallest group that was left out fewer.

    Args:
        targets: `(N,)` class indices.
        test_size: images in the test set, at least 1.
        start: images labelled before the first query; `test_size + start` is at most N.
        test: positions of the test set where it is not to be drawn.
        groups: `(N,)` numbers of the groups from 0; None where each image is its own.
    """
    from sklearn.model_selection import train_test_split

    n = len(targets)
    if min(test_size, start) < 1 or test_size + start > n:
        raise ValueError(f"{n} images cannot give {test_size} to test on and {start} to start with")
    if test is None and groups is not None:
        drawn = draw_groups(groups, size=test_size, generator=seeded_generator(seed, 0, "test"), strata=targets)
        test = drawn.nonzero().flatten()
    elif test is None:
        counts = targets.unique(return_counts=True)[1]
        by_class = counts.min() >= 2 and min(test_size, n - test_size) >= len(counts)
        _, positions = train_test_split(
            np.arange(n), test_size=test_size, random_state=seed, stratify=targets.numpy() if by_class else None
        )
        test = torch.from_numpy(positions)
    pool = torch.arange(n)[~torch.isin(torch.arange(n), test)]
    shuffled = pool[torch.randperm(len(pool), generator=seeded_generator(seed, 0, "start"))]
    return Split(test.sort().values, shuffled[:start], shuffled[start:].sort().values)


def linear_head(features: Tensor, targets: Tensor, *, n_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weights `(C, D)` and biases `(C,)` of an L2-regularised multinomial logistic regression, to convergence.

    The features are used as they are. A class without a label has probability 0: its bias is minus infinity.

    Args:
        features: `(M, D)`.
        targets: `(M,)` class indices, M >= 1; one class alone is answered with certainty.
        l2: half the squared weights times this is added to the summed loss (nats); scikit-learn's C is its inverse.

    Raises:
        TrainingError: the fit does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = targets.unique()
    weights = torch.zeros(n_classes, features.shape[1], dtype=torch.float64)
    biases = torch.full((n_classes,), -math.inf, dtype=torch.float64)
    biases[present] = 0.0
    if len(present) == 1:
        return weights, biases
    data, labels = features.cpu().double().numpy(), targets.cpu().numpy()
    for max_iter in ITERATIONS:
        head = LogisticRegression(C=1 / l2, max_iter=max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            head.fit(data, labels)
        if not any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            fitted = present[-len(head.coef_) :]  # with two classes the second's log-odds alone
            weights[fitted], biases[fitted] = torch.from_numpy(head.coef_), torch.from_numpy(head.intercept_)
            return weights, biases
    raise TrainingError(
        f"the logistic regression does not converge on {len(targets)} labels in {ITERATIONS[-1]} iterations: bring "
        f"the features to one scale, or regularise more than l2 = {l2:g}"
    )


def area_under_curve(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """AULC `(...)`: mean over the points of evenly spaced label counts `(..., P)`, the start included."""
    return np.asarray(curves.mean(axis=-1), dtype=np.float64)


def thirds(curves: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """AULC `(...)` of the first, middle and last third of the points `(..., P)`; the earlier are longer by a point.

    >>> [float(third) for third in thirds(np.array([1.0, 2.0, 3.0, 5.0]))]
    [1.5, 3.0, 5.0]
    """
    return [area_under_curve(part) for part in np.array_split(curves, 3, axis=-1)]


def labels_to(curve: Sequence[float], n_labels: Sequence[int], target: float) -> float | None:
    """Labels at which the curve first reaches the target, by linear interpolation; None where it does not.

    Args:
        curve: `(P,)` accuracies.
        n_labels: `(P,)` growing.

    >>> labels_to([0.5, 0.7, 0.6], [10, 20, 30], 0.6), labels_to([0.5, 0.7], [10, 20], 0.8)
    (15.0, None)
    """
    reached = [point for point, value in enumerate(curve) if value >= target]
    if not reached:
        return None
    after = reached[0]
    if after == 0:
        return float(n_labels[0])
    share = (target - curve[after - 1]) / (curve[after] - curve[after - 1])
    return float(n_labels[after - 1] + share * (n_labels[after] - n_labels[after - 1]))


def median_of_reached(values: Sequence[float | None]) -> float | None:
    """Median over the seeds, "not reached" being larger than any number; None where that is the median.

    >>> median_of_reached([40.0, None, 60.0]), median_of_reached([40.0, None])
    (60.0, None)
    """
    return _finite(float(np.median([math.inf if value is None else value for value in values])))


def labelling_efficiency(control: Sequence[float | None], arm: Sequence[float | None]) -> dict[str, Any]:
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
    n = {
        "both": reached.count((True, True)),
        "only_arm": reached.count((False, True)),
        "only_random": reached.count((True, False)),
        "neither": reached.count((False, False)),
    }
    ratios = [ratio for ratio in per_seed if ratio is not None]
    ranked = [0.0] * n["only_random"] + ratios + [math.inf] * n["only_arm"]
    return {"per_seed": per_seed, "median": (_finite(float(np.median(ranked))) or None) if ranked else None, **n}


def win_rate(control: NDArray[np.float64], arm: NDArray[np.float64]) -> float:
    """Share of seeds and points `(S, P)` at which the arm is above the control; a tie is half a win.

    The first point is left out: it is the same for all.
    """
    return float(((arm > control) + 0.5 * (arm == control))[:, 1:].mean())


def mean_interval(values: ArrayLike) -> dict[str, float | None]:
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


def paired_difference(control: ArrayLike, arm: ArrayLike) -> dict[str, float | None]:
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


def penalty_matrix(curves: Curves) -> dict[str, Any]:
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


def verdict(curves: Curves) -> dict[str, Any]:
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
    tied = [best, *(b for (a, b), p in zip(pairs, p_values, strict=True) if a == best and p > ALPHA)]
    below = [b for (a, b), p in zip(pairs, p_values, strict=True) if a == best and p <= ALPHA]
    test = f"paired t test over {n_seeds} seeds, Holm-corrected for {len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    if len(tied) == 1:
        gap = paired_difference(areas[ranked[1]], areas[best])
        return _verdict(
            best,
            tied,
            f"{best} wins: its AULC is {_points(gap['mean'])} points above {ranked[1]}, the next best "
            f"(95 % interval {_points(gap['low'])} to {_points(gap['high'])}; {test}).",
        )
    gap = paired_difference(areas[tied[1]], areas[best])
    told = (
        f"{best} is {_points(gap['mean'])} points above {tied[1]}, 95 % interval {_points(gap['low'])} to "
        f"{_points(gap['high'])}."
    )
    needed = [(seeds_needed(areas[best] - areas[name], alpha=ALPHA / len(pairs)), name) for name in tied[1:]]
    more = [f"{name} (about {n:,})" for n, name in sorted((n, name) for n, name in needed if n is not None)]
    hope = f" More seeds in all might tell {best} from {_listed(more)}." if more else ""
    others = f" {best} is above {_listed(below)}." if below else ""
    return _verdict(
        None, tied, f"No winner: {_listed(tied)} cannot be told apart by AULC ({test}). {told}{hope}{others}"
    )


def summarise(curves: pd.DataFrame, full_data_accuracy: Mapping[int, float]) -> dict[str, Any]:
    """Everything that the curves say, as JSON values without a not-a-number.

    Args:
        curves: one row for each `strategy`, `seed` and `round`: `n_labels`, the `METRICS` and the `SECONDS` (missing
            where nothing was selected). Every strategy has all seeds and rounds.
        full_data_accuracy: seed -> accuracy of a model that was trained on all labels outside the test set.
    """
    grids = {metric: _grids(curves, metric) for metric in METRICS}
    accuracy = grids["accuracy"]
    seeds = sorted(full_data_accuracy)
    n_labels = sorted(curves["n_labels"].unique().tolist())
    full = np.array([full_data_accuracy[seed] for seed in seeds])
    reached = {
        name: {
            str(target): [
                labels_to(row, n_labels, target / 100 * goal) for row, goal in zip(grid.tolist(), full, strict=True)
            ]
            for target in TARGETS
        }
        for name, grid in accuracy.items()
    }
    seconds = {
        str(name): {column: _finite(float(rows[column].mean())) for column in SECONDS}
        for name, rows in curves.groupby("strategy")
    }
    found = verdict(accuracy)
    return {
        "verdict": found["text"],
        "winner": found["winner"],
        "tied": found["tied"],
        "seeds": seeds,
        "n_labels": n_labels,
        "full_data_accuracy": mean_interval(full),
        "strategies": {
            name: {
                "aulc": mean_interval(area_under_curve(grid)),
                "aulc_thirds": [mean_interval(part) for part in thirds(grid)],
                **{f"final_{metric}": mean_interval(grids[metric][name][:, -1]) for metric in METRICS},
                "labels_to": {target: _reached(values) for target, values in reached[name].items()},
                **_against_control(name, accuracy, reached),
                **seconds[name],
            }
            for name, grid in accuracy.items()
        },
        "penalty_matrix": penalty_matrix(accuracy),
        "curves": {
            metric: {name: [mean_interval(points) for points in grid.T] for name, grid in by_name.items()}
            for metric, by_name in grids.items()
        },
    }


def _against_control(
    name: str, accuracy: Curves, reached: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> dict[str, Any]:
    if CONTROL not in accuracy or name == CONTROL:
        nothing = ("labelling_efficiency", "win_rate_vs_random", "difference_to_random", "difference_to_random_thirds")
        return dict.fromkeys(nothing)
    control, arm = accuracy[CONTROL], accuracy[name]
    return {
        "labelling_efficiency": {
            target: labelling_efficiency(reached[CONTROL][target], values) for target, values in reached[name].items()
        },
        "win_rate_vs_random": win_rate(control, arm),
        "difference_to_random": paired_difference(area_under_curve(control), area_under_curve(arm)),
        "difference_to_random_thirds": [
            paired_difference(before, after) for before, after in zip(thirds(control), thirds(arm), strict=True)
        ],
    }


def _grids(curves: pd.DataFrame, metric: str) -> dict[str, NDArray[np.float64]]:
    """The curves `(S, P)` of each strategy, in the order of the table."""
    grids = {}
    for name in curves["strategy"].unique():
        grid = curves[curves["strategy"] == name].pivot_table(index="seed", columns="round", values=metric)
        grids[str(name)] = grid.to_numpy(dtype=np.float64)
    return grids


def _reached(values: Sequence[float | None]) -> dict[str, Any]:
    n_reached = sum(value is not None for value in values)
    return {"per_seed": list(values), "median": median_of_reached(values), "reached": n_reached}


def _verdict(winner: str | None, tied: Iterable[str], text: str) -> dict[str, Any]:
    return {"winner": winner, "tied": list(tied), "text": text}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
