"""Everything that the learning curves of a replay come to, as JSON values."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.arms import CONTROL
from pipeline.evaluation.comparison import (
    Difference,
    Interval,
    PenaltyMatrix,
    mean_interval,
    paired_difference,
    penalty_matrix,
    verdict,
)
from pipeline.evaluation.curves import (
    Curves,
    Efficiency,
    area_under_curve,
    finite,
    labelling_efficiency,
    labels_to,
    median_of_reached,
    thirds,
    win_rate,
)

SECONDS = ("seconds_select", "seconds_train", "seconds_score")
TARGETS = (90, 95, 99)
"""Percent of the headline with all labels, to which labels are counted."""


class Reached(TypedDict):
    """Labels to a target at each seed, None where it was not reached; their median, and how many seeds reached it."""

    per_seed: list[float | None]
    median: float | None
    reached: int


class AgainstControl(TypedDict):
    """How an arm compares with the control; None for the control itself, and where there is none."""

    labelling_efficiency: dict[str, Efficiency] | None
    win_rate_vs_random: float | None
    difference_to_random: Difference | None
    difference_to_random_thirds: list[Difference] | None


class ArmSummary(AgainstControl):
    """What the curves of one arm come to: `final` by metric; targets are named by their percent."""

    aulc: Interval
    aulc_thirds: list[Interval]
    final: dict[str, Interval]
    labels_to: dict[str, Reached]
    seconds_select: float | None
    seconds_train: float | None
    seconds_score: float | None


class Summary(TypedDict):
    """What a replay comes to: `n_trained_on` holds the labels of each point, `curves` the points by metric and arm.

    All else is of the `headline`, the metric that counts.
    """

    headline: str
    verdict: str
    winner: str | None
    tied: list[str]
    seeds: list[int]
    n_trained_on: list[int]
    full_data: Interval
    strategies: dict[str, ArmSummary]
    penalty_matrix: PenaltyMatrix
    curves: dict[str, dict[str, list[Interval]]]


class ClassBalance(TypedDict):
    """Images of each class: in all data, and in the last labelled set of each arm, as the mean over the seeds."""

    classes: list[str]
    data: list[int]
    labelled: dict[str, list[float]]


def summarise(curves: pd.DataFrame, full_data: Mapping[int, float], metrics: Sequence[str]) -> Summary:
    """Everything that the curves come to, as JSON values without a not-a-number.

    Args:
        curves: one row for each `strategy`, `seed` and `round`: `n_trained_on`, the metrics and the `SECONDS`
            (missing where nothing was selected). Every strategy has all seeds and rounds.
        full_data: seed -> headline of a model that was trained on all labels outside the test set.
        metrics: names of the metrics, the headline first.
    """
    grids = {metric: _grids(curves, metric) for metric in metrics}
    of_headline = grids[metrics[0]]
    seeds = sorted(full_data)
    n_trained_on = sorted(curves["n_trained_on"].unique().tolist())
    full = np.array([full_data[seed] for seed in seeds])
    reached = {name: _labels_to_targets(grid, n_trained_on, full) for name, grid in of_headline.items()}
    found = verdict(of_headline)
    return {
        "headline": metrics[0],
        "verdict": found["text"],
        "winner": found["winner"],
        "tied": found["tied"],
        "seeds": seeds,
        "n_trained_on": n_trained_on,
        "full_data": mean_interval(full),
        "strategies": {name: _summary_of(name, curves, grids, metrics[0], reached) for name in of_headline},
        "penalty_matrix": penalty_matrix(of_headline),
        "curves": {
            metric: {name: [mean_interval(points) for points in grid.T] for name, grid in by_name.items()}
            for metric, by_name in grids.items()
        },
    }


def ranked(summary: Summary) -> list[str]:
    """The arms, that of the largest mean AULC first."""
    return sorted(summary["strategies"], key=lambda name: -summary["strategies"][name]["aulc"]["mean"])


def balance_of(curves: pd.DataFrame, data: Sequence[int], classes: Sequence[str]) -> ClassBalance:
    """How the labelled sets of the last round are spread over the classes, beside all data.

    Args:
        curves: one row for each `strategy`, `seed` and `round`: `class_histogram` `(C,)`.
        data: `(C,)` images of each class.
        classes: their names.
    """
    last = curves[curves["round"] == curves["round"].max()]
    return {
        "classes": list(classes),
        "data": list(data),
        "labelled": {
            str(name): np.mean(rows["class_histogram"].to_list(), axis=0).tolist()
            for name, rows in last.groupby("strategy", sort=False)
        },
    }


def evenness(counts: Sequence[float]) -> float:
    """Entropy of the shares `(C,)` over that of equal ones: 1 is perfectly balanced, 0 is one class alone.

    >>> evenness([5, 5]), evenness([3, 0])
    (1.0, 0.0)
    """
    if len(counts) == 1:
        return 1.0
    shares = shares_of(counts)
    return sum(-share * math.log(share) for share in shares if share > 0) / math.log(len(shares)) + 0.0


def shares_of(counts: Sequence[float]) -> list[float]:
    """The counts over their sum; all 0 where there is nothing.

    >>> shares_of([1, 3]), shares_of([0, 0])
    ([0.25, 0.75], [0.0, 0.0])
    """
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _summary_of(
    name: str,
    curves: pd.DataFrame,
    grids: Mapping[str, Curves],
    headline: str,
    reached: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> ArmSummary:
    grid, rows = grids[headline][name], curves[curves["strategy"] == name]
    return {
        "aulc": mean_interval(area_under_curve(grid)),
        "aulc_thirds": [mean_interval(part) for part in thirds(grid)],
        "final": {metric: mean_interval(by_name[name][:, -1]) for metric, by_name in grids.items()},
        "labels_to": {target: _reached(values) for target, values in reached[name].items()},
        **_against_control(name, grids[headline], reached),
        "seconds_select": finite(float(rows["seconds_select"].mean())),
        "seconds_train": finite(float(rows["seconds_train"].mean())),
        "seconds_score": finite(float(rows["seconds_score"].mean())),
    }


def _labels_to_targets(
    grid: NDArray[np.float64], n_trained_on: Sequence[int], full: NDArray[np.float64]
) -> dict[str, list[float | None]]:
    """Labels to each target at each seed; `full` `(S,)` is the headline with all labels."""
    return {
        str(target): [
            labels_to(row, n_trained_on, target / 100 * goal) for row, goal in zip(grid.tolist(), full, strict=True)
        ]
        for target in TARGETS
    }


def _against_control(
    name: str, grids: Curves, reached: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> AgainstControl:
    if CONTROL not in grids or name == CONTROL:
        return {
            "labelling_efficiency": None,
            "win_rate_vs_random": None,
            "difference_to_random": None,
            "difference_to_random_thirds": None,
        }
    control, arm = grids[CONTROL], grids[name]
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


def _reached(values: Sequence[float | None]) -> Reached:
    n_reached = sum(value is not None for value in values)
    return {"per_seed": list(values), "median": median_of_reached(values), "reached": n_reached}
