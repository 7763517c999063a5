"""How a benchmark measures: side by side in one process, median of several runs, memory in a process of its own.

A benchmark is a list of cases; a case is some work on some inputs, done by us and by its peers. Times and
quality come from alternating runs, so that what else the machine does meets all of them alike. What fails is said
in its row and stops nothing; the rows are written after every case.

What is not a matter of seconds, but of hours, is a list of jobs whose outcomes are kept in a file: `do_jobs`.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.networks.devices import device_name

RUNS = 5
"""Timed runs of each contender."""

BUDGET_S = 30.0
"""No contender starts a run that would take it beyond this many seconds, but everybody runs once."""

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
        runs: most timed runs.
        device: "cpu" or "cuda", whose memory is measured.
    """

    name: str
    work: Callable[[Any, int], Any]
    package: str | None = None
    prepare: Callable[[Any], Any] = as_they_are
    runs: int = RUNS
    device: str = "cpu"

    def __str__(self) -> str:
        try:
            return f"{self.name} {version(self.package)}" if self.package else self.name
        except PackageNotFoundError:
            return f"{self.name} (not installed)"


@dataclass(frozen=True)
class Case:
    """One piece of work that contenders do on the same inputs.

    Attributes:
        name: for the command line.
        work: what is done, for people; the inputs say of themselves how large they are.
        inputs: makes them; `small` makes ones that take no time, to warm up and to try everything.
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
        error: who failed and how; what was measured before that is kept.
        setting: data, seeds, processor and versions.
        exponent: e of seconds ~ N^e over sizes of one work.
        last_over_first: seconds of the last round over those of the first.
    """

    work: str
    ours_s: float | None = None
    peer: str | None = None
    peer_s: float | None = None
    ratio: float | None = None
    quality: str = ""
    quality_ours: float | None = None
    quality_peer: float | None = None
    peak_mb: float | None = None
    peak_mb_peer: float | None = None
    ours_runs: int = 0
    peer_runs: int = 0
    note: str = ""
    error: str = ""
    setting: str = ""
    exponent: float | None = None
    last_over_first: float | None = None


@dataclass
class Runs:
    """The timed runs of one contender, seeds 0, 1, 2 and so on, until one fails."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.seconds) if self.seconds else None


def measure(case: Case, *, quick: bool = False) -> list[Row]:
    """Run a case and return one row for each peer, or a single one where there is none.

    Args:
        quick: small inputs, one run and no memory: shows that everything runs.
    """
    if quick:
        case = replace(case, inputs=case.small)
    inputs = case.inputs()
    contenders = (case.ours, *case.peers)
    runs = side_by_side(contenders, inputs, case.small(), runs=1 if quick else RUNS)
    qualities = [_quality(case, inputs, run) for run in runs]
    peaks = [None if quick else _peak(case, who, run) for who, run in zip(contenders, runs, strict=True)]
    ours = runs[0]
    row = Row(
        work=f"{case.work}: {inputs}",
        ours_s=ours.median,
        quality=case.quality_of,
        quality_ours=qualities[0],
        peak_mb=peaks[0],
        ours_runs=len(ours.seconds),
        note=_note(case, inputs, ours, peaks[0]),
        error=_said(case.ours, ours),
    )
    if not case.peers:
        return [row]
    return [
        replace(
            row,
            peer=str(who),
            peer_s=run.median,
            ratio=run.median / ours.median if run.median and ours.median else None,
            quality_peer=quality,
            peak_mb_peer=peak,
            peer_runs=len(run.seconds),
            error="; ".join(filter(None, (row.error, _said(who, run)))),
        )
        for who, run, quality, peak in zip(case.peers, runs[1:], qualities[1:], peaks[1:], strict=True)
    ]


def side_by_side(
    contenders: Sequence[Contender], inputs: Any, small: Any, *, runs: int, clock: Callable[[], float] = perf_counter
) -> list[Runs]:
    """Time the contenders in turn, again and again; the slow ones fewer times, and none that failed.

    Args:
        small: inputs that everybody works on first, so that no import or first call is timed.
        runs: timed runs of each.
        clock: seconds.
    """
    measured = [Runs() for _ in contenders]
    for turn in range(-1, runs):
        for who, so_far in zip(contenders, measured, strict=True):
            seconds = so_far.seconds
            if so_far.error or turn >= who.runs or (seconds and sum(seconds) + seconds[-1] > BUDGET_S):
                continue
            try:
                took, result = _timed(who, small if turn < 0 else inputs, max(turn, 0), clock)
            except Exception as exc:
                so_far.error = _told(exc)
                continue
            if turn >= 0:
                seconds.append(took)
                so_far.results.append(result)
    return measured


def _quality(case: Case, inputs: Any, run: Runs) -> float | None:
    if not case.quality or not run.results:
        return None
    try:
        return statistics.fmean(case.quality(inputs, result) for result in run.results)
    except Exception as exc:
        run.error = run.error or _told(exc)
        return None


def _peak(case: Case, who: Contender, run: Runs) -> float | None:
    if run.error or run.median is None or run.median > BUDGET_S:
        return None
    try:
        return peak_mb(case, who)
    except Exception as exc:
        run.error = _told(exc)
        return None


def _note(case: Case, inputs: Any, ours: Runs, peak: float | None) -> str:
    if not case.note or ours.median is None:
        return ""
    try:
        return case.note(inputs, ours.results[0], ours.median, peak)
    except Exception as exc:
        ours.error = ours.error or _told(exc)
        return ""


def _told(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


def _said(who: Contender, run: Runs) -> str:
    return run.error and f"{who.name}: {run.error}"


def _timed(who: Contender, inputs: Any, seed: int, clock: Callable[[], float]) -> tuple[float, Any]:
    prepared = who.prepare(inputs)
    started = clock()
    result = who.work(prepared, seed)
    return clock() - started, result


def peak_mb(case: Case, who: Contender) -> float | None:
    """Return the most memory that the work holds beyond its inputs, in 10^6 bytes; None where Linux does not tell.

    Measured in a fresh process, which has done the work on small inputs before: what the libraries load is
    not counted. On a GPU it is what torch allocates there.
    """
    if who.device == "cpu" and not RESET_HIGH_WATER.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_here, who, case.small, case.inputs).result()


def _peak_here(who: Contender, small: Callable[[], Any], full: Callable[[], Any]) -> float:
    few, many = small(), full()  # held to the end: what is prepared may only name files that go with them
    who.work(who.prepare(few), 0)
    inputs = who.prepare(many)
    gc.collect()
    if who.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        who.work(inputs, 0)
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    before = reset_peak()
    who.work(inputs, 0)
    return high_water() - (before or 0.0)


def reset_peak() -> float | None:
    """Forget the peak of this process, and return what it holds now, in 10^6 bytes; None where Linux does not tell.

    Else what it took to build the inputs would hide what the work takes.
    """
    if not RESET_HIGH_WATER.exists():
        return None
    RESET_HIGH_WATER.write_text("5")
    return high_water()


def high_water() -> float:
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


def arguments(description: str | None, names: Sequence[str]) -> argparse.Namespace:
    """Read the command line that all benchmarks share.

    Args:
        names: what may be asked for.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows there")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"run only {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small inputs, one run: shows that everything runs")
    return parser.parse_args()


def run(cases: Sequence[Case], options: argparse.Namespace, data: str) -> list[Row]:
    """Measure the cases that the command line asks for, telling which one is running; write after each.

    Args:
        data: what the inputs are.
    """
    console = Console(stderr=True)
    rows: list[Row] = []
    for case in cases:
        if options.only and case.name not in options.only:
            continue
        console.print(f"{case.name} ...", style="dim")
        try:
            rows += measure(case, quick=options.quick)
        except Exception as exc:
            rows.append(Row(work=case.work, error=_told(exc)))
        write(rows, data, options.json)
    return rows


def do_jobs(
    jobs: Sequence[Mapping[str, Any]], work: Callable[[Mapping[str, Any]], Mapping[str, Any]], path: Path
) -> list[dict[str, Any]]:
    """Do the jobs that have no line in the file yet, and return the lines of all, in the order of the jobs.

    A line is a JSON object: what the job says and what came out. One that was cut off by a kill is done again.

    Args:
        jobs: what says all that the outcome depends on, as JSON values.
        work: from a job to its outcome, both JSON objects.
    """
    lines = read_lines(path)
    left = [job for job in jobs if _line_of(job, lines) is None]
    path.parent.mkdir(parents=True, exist_ok=True)
    for job in track(left, description=path.name, console=Console(stderr=True), transient=True):
        lines.append({**job, **work(job)})
        with path.open("a") as file:
            file.write(f"{json.dumps(lines[-1], allow_nan=False)}\n")
    return [line for job in jobs if (line := _line_of(job, lines)) is not None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON objects; a last one that was cut off is taken out of the file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _line_of(job: Mapping[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((line for line in lines if job.items() <= line.items()), None)


def write(rows: Sequence[Row], data: str, path: Path | None) -> None:
    """Write the rows as JSON where `path` says, all or nothing.

    Args:
        data: what the inputs are.
    """
    if not path:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [asdict(replace(row, setting=setting(data))) for row in rows]
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(listed, indent=1, allow_nan=False) + "\n")
    unfinished.replace(path)


def report(rows: Sequence[Row], data: str) -> None:
    """Print the rows as a table, and under it what else is to be said.

    Args:
        data: what the inputs are.
    """
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    caption = "ratio = peer over ours; peak = memory beyond the inputs; s = median of the runs, ours/peer"
    table = Table(title=setting(data), caption=caption)
    for heading in ("work", "peer"):
        table.add_column(heading, overflow="fold")
    for heading in ("ours s", "peer s", "ratio", "quality ours", "quality peer", "peak MB ours", "peer", "runs"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [row.ours_s, row.peer_s, row.ratio, row.quality_ours, row.quality_peer, row.peak_mb, row.peak_mb_peer]
        table.add_row(row.work, row.peer or "", *map(_cell, cells), f"{row.ours_runs}/{row.peer_runs}")
    console.print(table)
    for work in dict.fromkeys(row.work for row in rows):
        about = [row for row in rows if row.work == work]
        failures = dict.fromkeys(f"FAILED: {row.error}" for row in about if row.error)
        for line in (about[0].quality and f"quality: {about[0].quality}", about[0].note, *failures):
            if line:
                console.print(f"{work}: {line}", style="dim", highlight=False, markup=False)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
