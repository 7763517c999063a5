"""What is measured of each round, how much of it may change over a campaign, and a picture of it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import theilslopes

from deploy.programs import HEALTH

WARM_UP = 3
"""Rounds before the servers have settled; round 0 trains nothing."""
SMOOTHED = 3
"""Rounds whose mean is taken of what is added to a file."""
CONFIDENCE = 0.95
FEWEST = WARM_UP + SMOOTHED + 5
"""Rounds to which a line can be fitted."""


class Measure(NamedTuple):
    """Something that is measured in each round.

    Attributes:
        title: for people, with the unit.
        limit: by which share it may grow between the first and the last round.
        floor: a change that does not matter, in its unit.
        is_total: measured as a total so far; what counts is what a round adds.
    """

    title: str
    limit: float
    floor: float
    is_total: bool = False


MEASURES: Mapping[str, Measure] = {
    "seconds": Measure("seconds of a run", 1.0, 2.0),
    "rss_mb": Measure("memory of a run, MB", 0.25, 50),
    "open_files": Measure("open files of a run", 0.1, 3),
    **{f"{name}_requests": Measure(f"requests to {name}", 0.1, 5) for name in HEALTH},
    **{f"{name}_rss_mb": Measure(f"memory of {name}, MB", 0.5, 100) for name in HEALTH},
    **{f"{name}_open_files": Measure(f"open files of {name}", 0.25, 5) for name in HEALTH},
    "folder_mb": Measure("campaign's folder, MB added", 1.0, 0.05, is_total=True),
    **{f"{name}_mb": Measure(f"data of {name}, MB added", 1.0, 0.2, is_total=True) for name in HEALTH},
}
"""Time and bytes may grow with the labels, which are learnt and kept; nothing else may grow."""


class Growth(NamedTuple):
    """How a measure changes from the first to the last round.

    Attributes:
        typical: its median.
        change: of the fitted line, in its unit; `low` is the lower end of its interval.
        is_too_much: whether the change is surely above the limit.
    """

    title: str
    typical: float
    change: float
    low: float
    is_too_much: bool

    def __str__(self) -> str:
        """One line."""
        verdict = "GROWS" if self.is_too_much else "grows" if self.low > 0 else "flat"
        return f"{self.title:36} {self.typical:9.2f}   {self.change:+9.2f} ({verdict}, at least {self.low:+.2f})"


def series(name: str, rows: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rounds, and what each cost; without the first."""
    numbers, values = (np.array([row[key] for row in rows]) for key in ("round", name))
    if MEASURES[name].is_total:
        numbers, values = numbers[1:], np.diff(values)
    kept = numbers >= WARM_UP
    return numbers[kept], values[kept]


def growth_of(name: str, rows: Sequence[Mapping[str, float]]) -> Growth:
    """The change of a measure by the slope that most pairs of rounds agree on (Theil, 1950; Sen, 1968)."""
    measure = MEASURES[name]
    numbers, values = series(name, rows)
    if measure.is_total and len(values) > SMOOTHED:  # databases grow in steps
        values = np.convolve(values, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
        numbers = numbers[: len(values)]
    slope, _, low, _ = theilslopes(values, numbers, alpha=CONFIDENCE)
    length, typical = numbers[-1] - numbers[0], float(np.median(values))
    allowed = max(measure.floor, measure.limit * typical)
    return Growth(measure.title, typical, float(slope * length), float(low * length), bool(low * length > allowed))


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw each measure over the rounds, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = dict(_panels())
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for name in names:
            numbers, values = series(name, rows)
            axes.plot(numbers, values, marker=".", markersize=3, linewidth=1, label=_who(name))
        axes.set(title=title, xlabel="round")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"What a round costs, over {len(rows)} rounds")
    figure.savefig(path, dpi=90)


def _panels() -> Iterator[tuple[str, list[str]]]:
    yield "seconds of a run", ["seconds"]
    for title, ending in (("memory, MB", "rss_mb"), ("open files", "open_files"), ("requests", "requests")):
        yield title, [name for name in MEASURES if name.endswith(ending)]
    yield "MB added to data of servers", [f"{name}_mb" for name in HEALTH]
    yield "MB added to the campaign's folder", ["folder_mb"]


def _who(name: str) -> str:
    """Whose cost it is."""
    return next((server for server in HEALTH if name.startswith(server)), "run")
