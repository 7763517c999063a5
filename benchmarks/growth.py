"""How the seconds of a whole batch grow with the number of candidates: table rows, and a drawing."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.measure import Contender, Row, Runs, side_by_side
from benchmarks.pools import N_LABELLED, Pool, as_candidates, make_pool
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Batch, Candidates

GROWTH = ("k_center", "badge", "typiclust", "uherding", "max_herding", "auto")
GROWTH_SIZES = (3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
GROWTH_RUNS = 3
GROWTH_LIMIT_S = 20.0
"""A strategy that took longer is not given a larger pool."""

WHOLE = 30_000
"""Up to so many candidates, a strategy that draws a sub-pool is also timed without one."""

Line = list[tuple[int, Runs]]
"""Candidates, and the timed runs on so many."""


def growth(sizes: tuple[int, ...]) -> Iterator[tuple[str, Line]]:
    """Time whole `select_batch`es of 100 picks, D = 64, for one strategy after the other.

    Yields:
        What is timed, for people, and its line. A strategy that draws a sub-pool is timed again without.
    """
    for strategy in GROWTH:
        sub_pool = STRATEGIES[strategy].sub_pool
        if sub_pool is None:
            yield strategy, growth_line(strategy, sizes)
            continue
        yield f"{strategy}, sub-pool of {sub_pool:,}", growth_line(strategy, sizes)
        whole = tuple(n for n in sizes if n <= WHOLE)
        yield f"{strategy}, no sub-pool", growth_line(strategy, whole, is_whole=True)


def growth_line(strategy: str, sizes: tuple[int, ...], *, is_whole: bool = False) -> Line:
    """Return pairs of candidates and runs, up to the first size that fails or takes too long.

    Args:
        is_whole: the strategy sees all candidates.
    """
    line: Line = []
    for n in sizes:
        work, prepare = partial(batch_of, strategy, n if is_whole else None), partial(growth_candidates, strategy)
        who = Contender(strategy, work, prepare=prepare)
        (runs,) = side_by_side([who], n, sizes[0], runs=GROWTH_RUNS)
        line.append((n, runs))
        if runs.error or max(runs.seconds) > GROWTH_LIMIT_S:
            break
    return line


@cache
def growth_candidates(strategy: str, n: int) -> Candidates:
    """Return n candidates as a strategy reads them."""
    return as_candidates(growth_pool(n), SelectionSettings(strategy=strategy))


@cache
def growth_pool(n: int) -> Pool:
    """Return the pool with n candidates, one for all strategies."""
    return make_pool(n + N_LABELLED, 64, 0)


def batch_of(strategy: str, sub_pool: int | None, candidates: Candidates, seed: int) -> Batch:
    """A batch of 100, as a round chooses it."""
    how = SelectionSettings(strategy=strategy, query_size=100, sub_pool=sub_pool)
    return select_batch(candidates, how, round_number=0, seed=seed)


def exponent(line: Line) -> float:
    """Return e of seconds ~ N^e, fitted to the logarithms of the medians; NaN of fewer than two sizes.

    >>> round(exponent([(10, Runs([3.0])), (100, Runs([300.0])), (1000, Runs([30000.0]))]), 6)
    2.0
    """
    points = [(n, runs.median) for n, runs in line if runs.median]
    if len(points) < 2:
        return float("nan")
    sizes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def growth_rows(label: str, line: Line) -> list[Row]:
    """Return a row for each size; the exponent is a note on the last."""
    return [
        Row(
            work=f"growth, select_batch with {label}: {n:,} x 64, 100 picks",
            ours_s=runs.median,
            ours_runs=len(runs.seconds),
            note=f"seconds grow as N^{exponent(line):.2f} from {line[0][0]:,} on" if n == line[-1][0] else "",
            error=runs.error,
        )
        for n, runs in line
    ]


def draw_growth(lines: dict[str, Line], path: Path) -> None:
    """Draw seconds over candidates, both logarithmic, as PNG; dashed where a strategy sees all candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for label, line in lines.items():
        points = [(n, runs.median) for n, runs in line if runs.median]
        if not points:
            continue
        colour = colours.setdefault(label.split(",")[0], f"C{len(colours)}")
        style = "--" if label.endswith("no sub-pool") else "-"
        named = f"{label}: N^{exponent(line):.2f}"
        axes.loglog(*zip(*points, strict=True), style, marker="o", color=colour, label=named)
    axes.set(xlabel="candidates N", ylabel="seconds for 100 picks", title="select_batch, D = 64")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
