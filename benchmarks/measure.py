"""How a benchmark measures: side by side in one process, median of several runs, memory in a process of its own.

A benchmark is a list of cases; a case is some work on some inputs, done by us and by its peers. Times and
quality come from alternating runs, so that what else the machine does meets all of them alike.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline.training import device_name

RUNS = 5
"""Timed runs of each contender, after one to warm up."""

SLOW_S = 30.0
"""A first run longer than this counts as a run already, and the rest is cut down to what fits into BUDGET_S."""

BUDGET_S = 120.0

FILE_WIDTH = 180
"""Characters in a line of the table, where it does not go to a terminal."""

HIGH_WATER, RESET_HIGH_WATER = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def as_they_are(inputs: Any) -> Any:
    """Return the inputs."""
    return inputs


@dataclass(frozen=True)
class Contender:
    """Somebody who does the work of a case.

    Attributes:
        name: for the table.
        work: what is timed: (inputs, seed) -> result. A function of a module, so that a new process finds it.
        package: whose version is named, None for code of our own.
        prepare: what comes before every run and is not timed: inputs -> what `work` is given.
    """

    name: str
    work: Callable[[Any, int], Any]
    package: str | None = None
    prepare: Callable[[Any], Any] = as_they_are

    def __str__(self) -> str:
        return f"{self.name} {version(self.package)}" if self.package else self.name


@dataclass(frozen=True)
class Case:
    """One piece of work that contenders do on the same inputs.

    Attributes:
        name: for the command line.
        work: what is done, for people; the inputs say of themselves how large they are.
        inputs: makes them; `small` makes ones that take no time.
        quality: (inputs, result) -> a number, None where every right result is the same.
        quality_of: what that number is, and which direction is better.
        note: (inputs, our result, our seconds, our peak in MB or None) -> what else is to be said of ours.
    """

    name: str
    work: str
    inputs: Callable[[], Any]
    small: Callable[[], Any]
    ours: Contender
    peers: tuple[Contender, ...] = ()
    quality: Callable[[Any, Any], float] | None = None
    quality_of: str = ""
    note: Callable[[Any, Any, float, float | None], str] | None = None


@dataclass(frozen=True)
class Row:
    """What came out for us and one peer; `ratio` is peer over ours, so above 1 is faster than the peer.

    Attributes:
        ours_s, peer_s: seconds, the median of `ours_runs` and `peer_runs` runs.
        quality_ours, quality_peer: means over the runs, of what `quality` says.
        peak_mb, peak_mb_peer: most memory held beyond the inputs, in 10^6 bytes.
        setting: data, seeds, processor and versions.
    """

    work: str
    ours_s: float
    peer: str | None = None
    peer_s: float | None = None
    ratio: float | None = None
    quality: str = ""
    quality_ours: float | None = None
    quality_peer: float | None = None
    peak_mb: float | None = None
    peak_mb_peer: float | None = None
    ours_runs: int = 1
    peer_runs: int = 0
    note: str = ""
    setting: str = ""


@dataclass(frozen=True)
class Runs:
    """The timed runs of one contender, seeds 0, 1, 2 and so on."""

    seconds: list[float]
    results: list[Any]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


def measure(case: Case, *, quick: bool = False) -> list[Row]:
    """Run a case and return one row for each peer, or a single one where there is none.

    Args:
        quick: small inputs, one run and no memory: shows that everything runs.
    """
    if quick:
        case = replace(case, inputs=case.small)
    inputs = case.inputs()
    contenders = (case.ours, *case.peers)
    runs = side_by_side(contenders, inputs, runs=1 if quick else RUNS)
    peaks = [
        None if quick or run.median > BUDGET_S else peak_mb(case, who)
        for who, run in zip(contenders, runs, strict=True)
    ]
    qualities = [
        statistics.fmean(case.quality(inputs, result) for result in run.results) if case.quality else None
        for run in runs
    ]
    ours = runs[0]
    row = Row(
        work=f"{case.work}: {inputs}",
        ours_s=ours.median,
        quality=case.quality_of,
        quality_ours=qualities[0],
        peak_mb=peaks[0],
        ours_runs=len(ours.seconds),
        note=case.note(inputs, ours.results[0], ours.median, peaks[0]) if case.note else "",
    )
    if not case.peers:
        return [row]
    return [
        replace(
            row,
            peer=str(who),
            peer_s=run.median,
            ratio=run.median / ours.median,
            quality_peer=quality,
            peak_mb_peer=peak,
            peer_runs=len(run.seconds),
        )
        for who, run, quality, peak in zip(case.peers, runs[1:], qualities[1:], peaks[1:], strict=True)
    ]


def side_by_side(
    contenders: Sequence[Contender], inputs: Any, *, runs: int, clock: Callable[[], float] = perf_counter
) -> list[Runs]:
    """Time the contenders in turn, again and again; the slow ones fewer times.

    Args:
        runs: timed runs of each, after one that is not counted; of a slow one the first is counted too.
        clock: seconds.
    """
    measured = []
    planned = []
    for who in contenders:
        seconds, result = _timed(who, inputs, 0, clock)
        is_slow = seconds > SLOW_S
        measured.append(Runs([seconds] if is_slow else [], [result] if is_slow else []))
        planned.append(min(runs, max(1, int(BUDGET_S // seconds))) if is_slow else runs)
    for _ in range(runs):
        for who, so_far, limit in zip(contenders, measured, planned, strict=True):
            if len(so_far.seconds) < limit:
                seconds, result = _timed(who, inputs, len(so_far.seconds), clock)
                so_far.seconds.append(seconds)
                so_far.results.append(result)
    return measured


def _timed(who: Contender, inputs: Any, seed: int, clock: Callable[[], float]) -> tuple[float, Any]:
    prepared = who.prepare(inputs)
    started = clock()
    result = who.work(prepared, seed)
    return clock() - started, result


def peak_mb(case: Case, who: Contender) -> float | None:
    """Return the most memory that the work holds beyond its inputs, in 10^6 bytes; None where Linux does not tell.

    Measured in a fresh process, which has done the work on small inputs before: what the libraries load is
    not counted.
    """
    if not RESET_HIGH_WATER.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_here, who, case.small, case.inputs).result()


def _peak_here(who: Contender, small: Callable[[], Any], full: Callable[[], Any]) -> float:
    who.work(who.prepare(small()), 0)
    inputs = who.prepare(full())
    gc.collect()
    RESET_HIGH_WATER.write_text("5")  # else what it took to build the inputs would hide what the work takes
    before = _high_water()
    who.work(inputs, 0)
    return _high_water() - before


def _high_water() -> float:
    """Return the peak of this process in 10^6 bytes.

    Not `ru_maxrss`, which is the same but cannot be below that of the parent process.
    """
    line = next(line for line in HIGH_WATER.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def setting(data: str) -> str:
    """Name what the numbers depend on.

    Args:
        data: what the inputs are.
    """
    processor = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, {platform.system()}"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy", "scikit-learn"))
    return f"{data}; seeds 0, 1, ... of the runs; {processor}; Python {platform.python_version()}, {packages}"


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run the cases with these names")
    parser.add_argument("--quick", action="store_true", help="small inputs, one run: shows that everything runs")
    return parser.parse_args()


def run(cases: Sequence[Case], options: argparse.Namespace) -> list[Row]:
    """Measure the cases that the command line asks for, telling which one is running."""
    console = Console(stderr=True)
    rows: list[Row] = []
    for case in cases:
        if options.only and case.name not in options.only:
            continue
        console.print(f"{case.name} ...", style="dim")
        rows += measure(case, quick=options.quick)
    return rows


def report(rows: Sequence[Row], data: str, path: Path | None) -> None:
    """Print the rows as a table, and under it what else is to be said; write them where `path` says.

    Args:
        data: what the inputs are.
    """
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    rows = [replace(row, setting=setting(data)) for row in rows]
    table = Table(title=setting(data), caption="ratio = peer over ours; peak = memory beyond the inputs")
    for heading in ("work", "peer"):
        table.add_column(heading, overflow="fold")
    for heading in ("ours s", "peer s", "ratio", "quality ours", "quality peer", "peak MB ours", "peer", "runs"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [row.ours_s, row.peer_s, row.ratio, row.quality_ours, row.quality_peer, row.peak_mb, row.peak_mb_peer]
        table.add_row(row.work, row.peer or "", *map(_cell, cells), f"{row.ours_runs}/{row.peer_runs}")
    console.print(table)
    for work in dict.fromkeys(row.work for row in rows):
        said = next(row for row in rows if row.work == work)
        for line in (said.quality and f"quality: {said.quality}", said.note):
            if line:
                console.print(f"{work}: {line}", style="dim", highlight=False)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
