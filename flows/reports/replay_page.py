"""What people see of a replay: one self-contained page, and a table for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from connectors.escaping import visible
from connectors.store import flatten
from pipeline.evaluation.arms import CONTROL
from pipeline.evaluation.comparison import Interval
from pipeline.evaluation.summary import ClassBalance, Summary, evenness, ranked, shares_of
from pipeline.settings import Plain

WIDTH, HEIGHT = 920, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
"""Of a chart, in its own pixels; the plot lies inside the four margins."""
N_COLOURS = 9
"""Colours of the page, besides the control's grey; more arms repeat them with dashes."""
DASHES = ("", "7 4", "2 3")
TITLES = {"nll": "NLL (nats)", "ece": "calibration error"}
"""Of metrics whose names are no words."""
RANGES = {"nll": (0.0, math.inf)}
"""Values that a metric can have; the others are shares."""
MOST_CLASSES = 40
"""More classes than this make a table that nobody can read."""


class ReplaySummary(Summary):
    """What a replay comes to, and how it was made: what `summary.json` holds and the page shows."""

    command: str
    notes: list[str]
    class_balance: ClassBalance
    settings: Plain


def report_page(summary: ReplaySummary) -> str:
    """The page of a replay, from its summary; it loads nothing from anywhere."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("flows.reports"), autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"points": _points, "percent": _percent, "count": _count, "number": _number}
    colours = _colours(summary)
    return environment.get_template("replay.html").render(
        summary=summary,
        ranked=ranked(summary),
        colours=colours,
        charts=[_chart(summary, metric, colours) for metric in summary["curves"]],
        headline=_title(summary["headline"]),
        balance=_class_balance(summary),
        settings=_settings(summary["settings"]),
        efficiency=partial(_efficiency, summary),
        best=ranked(summary)[0],
    )


def _title(metric: str) -> str:
    """What a metric is called."""
    return TITLES.get(metric, metric.replace("_", " "))


def _shown(value: object) -> object:
    """What the page writes of a value: of a text that comes from elsewhere, no sign that hides or reorders others."""
    return visible(value) if type(value) is str else value


def summary_table(summary: ReplaySummary) -> Table:
    """One row for each arm, the best first."""
    n_points, seeds, headline = len(summary["n_trained_on"]), summary["seeds"], _title(summary["headline"])
    caption = (
        f"AULC: mean {headline} over {n_points} points, in percent; ±: 95 % interval over {len(seeds)} seeds.\n"
        f"To 95 %: labels to 95 % of the {headline} with all labels, median (seeds that reached it).\n"
        "Efficiency: labels that random needs for each one of the arm's, to there."
    )
    texts = {name: _efficiency(summary, name, "95") for name in ranked(summary)}
    caption += "".join(f"\n{name}: {text}." for name, text in texts.items() if text.startswith("only"))
    table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for column in ("arm", "AULC", "to random", "to 95 %", "efficiency", "s/batch"):
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for name, efficiency in texts.items():
        arm = summary["strategies"][name]
        reached = arm["labels_to"]["95"]
        table.add_row(
            name,
            _percent(arm["aulc"]),
            _points(arm["difference_to_random"]),
            f"{_count(reached['median'])} ({reached['reached']}/{len(seeds)})",
            efficiency if efficiency.endswith("x") else "",
            "" if arm["seconds_select"] is None else f"{arm['seconds_select']:.3f}",
        )
    return table


def _colours(summary: ReplaySummary) -> dict[str, dict[str, str]]:
    """CSS colour and dashes of each arm; the control is grey."""
    others = [name for name in summary["strategies"] if name != CONTROL]
    found = {
        name: {
            "colour": f"var(--arm-{number % N_COLOURS})",
            "dash": DASHES[number // N_COLOURS % len(DASHES)],
        }
        for number, name in enumerate(others)
    }
    return found | {CONTROL: {"colour": "var(--control)", "dash": ""}}


@dataclass(frozen=True)
class _Plot:
    """Where values lie in a chart, in its pixels: labels from left to right, a metric from its lowest tick upwards."""

    labels: Sequence[int]
    ticks: Sequence[float]

    def x(self, n: float) -> float:
        """Of a number of labels."""
        return LEFT + float(n - self.labels[0]) / (self.labels[-1] - self.labels[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Of a value of the metric."""
        return HEIGHT - BOTTOM - (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]) * (HEIGHT - TOP - BOTTOM)

    def line(self, values: Sequence[float]) -> str:
        """Points of a line through one value for each number of labels."""
        return " ".join(self._points(values))

    def band(self, low: Sequence[float], high: Sequence[float]) -> str:
        """Points around the area between two lines."""
        return " ".join([*self._points(high), *self._points(low)[::-1]])

    def _points(self, values: Sequence[float]) -> list[str]:
        return [f"{self.x(n):.1f},{self.y(value):.1f}" for n, value in zip(self.labels, values, strict=True)]


def _chart(summary: ReplaySummary, metric: str, colours: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Everything to draw of one metric, in the chart's pixels; the values too, for those who point at it."""
    labels = summary["n_trained_on"]
    curves = summary["curves"][metric]
    goal = summary["full_data"]["mean"] if metric == summary["headline"] else None
    bands = {name: [_drawn(point, metric) for point in points] for name, points in curves.items()}
    ends = [value for band in bands.values() for interval in band for value in interval]
    ticks = _ticks(min(ends), max([*ends, *([goal] if goal is not None else [])]))
    plot = _Plot(labels, ticks)
    every = -(-len(labels) // 12)
    return {
        "metric": metric,
        "title": _title(metric),
        "lines": [
            {
                "name": name,
                **colours[name],
                "line": plot.line([point["mean"] for point in points]),
                "band": plot.band(*zip(*bands[name], strict=True)),
                "values": [[point["mean"], *_limits(point)] for point in points],
            }
            for name, points in curves.items()
        ],
        "xs": [plot.x(n) for n in labels],
        "x_ticks": [{"at": plot.x(n), "text": f"{n:,}"} for n in labels[::every]],
        "y_ticks": [{"at": plot.y(value), "text": f"{value:.{_decimals(ticks)}f}"} for value in ticks],
        "goal": None if goal is None else {"at": plot.y(goal), "text": f"all labels: {goal:.3f}"},
    }


def _drawn(point: Interval, metric: str) -> tuple[float, float]:
    """The interval of a point, as far as the metric can have such values."""
    (low, high), (lowest, highest) = _limits(point), RANGES.get(metric, (0.0, 1.0))
    return max(low, lowest), min(high, highest)


def _limits(point: Interval) -> tuple[float, float]:
    """The interval of a point, or the point twice where one seed gives none."""
    mean, low, high = point["mean"], point["low"], point["high"]
    return (mean, mean) if low is None or high is None else (low, high)


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers that enclose the values."""
    span = max(high - low, 1e-6)
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _decimals(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _class_balance(summary: ReplaySummary) -> dict[str, object]:
    """How the labelled set of the last round is spread over the classes, beside all data."""
    balance = summary["class_balance"]
    rows: dict[str, Sequence[float]] = {"all data": balance["data"]}
    rows |= {name: balance["labelled"][name] for name in ranked(summary)}
    shares = {name: shares_of(counts) for name, counts in rows.items()}
    most = max(max(values) for values in shares.values()) or 1.0
    return {
        "classes": balance["classes"] if len(balance["classes"]) <= MOST_CLASSES else [],
        "rows": [
            {
                "name": name,
                "evenness": evenness(rows[name]),
                "rarest": min(rows[name]),
                "cells": [
                    {"count": count, "heat": value / most} for count, value in zip(rows[name], values, strict=True)
                ],
            }
            for name, values in shares.items()
        ],
    }


def _settings(settings: Plain) -> dict[str, str]:
    """The settings as words, nested ones with a dot; what was left open is left out."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in flatten(settings).items()
        if value is not None
    }


def _percent(interval: Interval) -> str:
    """A share in percent, with half its interval: "91.52 ± 0.30"."""
    low, high = _limits(interval)
    text = f"{100 * interval['mean']:.2f}"
    return text if interval["low"] is None else f"{text} ± {50 * (high - low):.2f}"


def _points(interval: Interval | None) -> str:
    """A difference in points of percent, with its sign: "+1.20 ± 0.30"."""
    if interval is None:
        return ""
    text = _percent(interval)
    return text if text.startswith("-") else f"+{text}"


def _count(value: float | None) -> str:
    return "not reached" if value is None else f"{value:,.0f}"


def _number(value: float) -> str:
    """A count, or a mean of counts: "12", "12.5", "12,345"."""
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:,.1f}"


def _efficiency(summary: ReplaySummary, name: str, target: str) -> str:
    """Labels that random needs for each one of the arm's, "1.25x", or who reached the target where no number is."""
    all_targets = summary["strategies"][name]["labelling_efficiency"]
    if all_targets is None:
        return ""
    found = all_targets[target]
    if found["median"] is not None:
        return f"{found['median']:.2f}x"
    if found["neither"] == len(found["per_seed"]):
        return "not reached"
    alone = ((name, found["only_arm"]), (CONTROL, found["only_random"]))
    return ", ".join(f"only {who} reached it ({n} seed{'s' if n > 1 else ''})" for who, n in alone if n)
