"""What each round of a long campaign costs, whether it costs more and more, and a picture of it."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import psutil
import typer
from scipy.stats import theilslopes

from deploy.processes import members
from deploy.programs import HEALTH
from deploy.servers import Servers
from tests.soak.checks import findings
from tests.soak.measured import measured_command
from tests.soak.trial import BATCH, FIRST, Place, as_json, make_campaign
from tests.system.conftest import TestCampaign

WARM_UP = 3
"""Rounds before the servers have settled; round 0 trains nothing."""
CONFIDENCE = 0.95


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


def grow(place: Place, *, n_rounds: int, out: Path) -> list[str]:
    """Run a campaign over so many rounds, write costs as CSV, JSON and PNG, and return what grows too much."""
    campaign = make_campaign(place, "classification", n_rounds=n_rounds)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    for number in range(n_rounds):
        rows.append(one_round(campaign, place, out, number))
        typer.echo(", ".join(f"{name} {value:.6g}" for name, value in rows[-1].items()))
        write_rows(rows, out)
    fitted = [growth_of(name, rows) for name in MEASURES]
    (out / "growth.json").write_text(as_json([each._asdict() for each in fitted]), encoding="utf-8")
    typer.echo("\n".join(["", f"{'a round':36} {'median':>9}   change over {n_rounds} rounds", *map(str, fitted)]))
    draw(rows, out / "growth.png")
    return [*(f"{each.title} grows: {each}" for each in fitted if each.is_too_much), *findings(campaign)]


def one_round(campaign: TestCampaign, place: Place, out: Path, number: int) -> dict[str, float]:
    """Run, measure, and label what was asked."""
    report, output = out / "run.json", out / "output.txt"
    begun = perf_counter()
    run = ("run", str(campaign.file))
    exit_code, error = place.forks.call(measured_command, str(report), str(output), run, campaign.environment)
    seconds = perf_counter() - begun
    if exit_code != 0:
        raise RuntimeError(f"round {number}: exit code {exit_code}, {error}\n{output.read_text(encoding='utf-8')}")
    costs = json.loads(report.read_text(encoding="utf-8"))
    asked = requests_by_server(costs["requests"], place.servers)
    row = {"round": number, "labels": 0 if number == 0 else FIRST + BATCH * (number - 1), "seconds": seconds}
    row |= {"rss_mb": costs["rss_mb"], "open_files": costs["open_files"]}
    row |= {f"{name}_requests": sum(asked[name].values()) for name in HEALTH}
    row |= of_servers(place.servers.home) | {"folder_mb": megabytes(campaign.folder.path)}
    (out / f"requests-{min(number, 2)}.json").write_text(as_json(asked), encoding="utf-8")
    campaign.label()
    return row


def requests_by_server(counts: Mapping[str, int], servers: Servers) -> dict[str, Counter[str]]:
    """Server -> method and path -> requests."""
    addresses = (servers.label_studio_url, servers.mlflow_url, servers.prefect_ui_url)
    names = {address.rpartition(":")[2]: name for name, address in zip(HEALTH, addresses, strict=True)}
    found: dict[str, Counter[str]] = {name: Counter() for name in HEALTH}
    for request, n in counts.items():
        port, _, what = request.partition(" ")
        if port in names:
            found[names[port]][what] += n
    return found


def of_servers(home: Path) -> dict[str, float]:
    """Memory, open files and data of the servers of a home."""
    known = {each["name"]: each for each in json.loads((home / "servers.json").read_text())}
    row: dict[str, float] = {}
    for name in HEALTH:
        held = members(known[name]["pid"], known[name]["created"])
        row[f"{name}_rss_mb"] = sum(each.memory_info().rss for each in held) / 2**20
        row[f"{name}_open_files"] = sum(map(psutil.Process.num_fds, held))
        row[f"{name}_mb"] = megabytes(home / name)
    return row


def megabytes(folder: Path) -> float:
    """All files of a folder; of a file that is going away, nothing."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(inside) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total / 2**20


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
    if measure.is_total:  # databases grow in steps: their mean over the halves tells what the slope of a median hides
        values = np.convolve(values, np.ones(WARM_UP) / WARM_UP, mode="same")
    slope, _, low, _ = theilslopes(values, numbers, alpha=CONFIDENCE)
    length, typical = numbers[-1] - numbers[0], float(np.median(values))
    allowed = max(measure.floor, measure.limit * typical)
    return Growth(measure.title, typical, float(slope * length), float(low * length), bool(low * length > allowed))


def write_rows(rows: Sequence[Mapping[str, float]], out: Path) -> None:
    """Write a line for each round."""
    with (out / "growth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw each measure over the rounds, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = dict(_panels())
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for name in names:
            numbers, values = series(name, rows)
            axes.plot(numbers, values, marker=".", markersize=3, linewidth=1, label=_who(name))
        axes.set(title=title, xlabel="round", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"What a round costs: {len(rows)} rounds of {BATCH} labels")
    figure.savefig(path, dpi=90)


def _panels() -> Iterator[tuple[str, list[str]]]:
    yield "seconds of a run", ["seconds"]
    for title, ending in (("memory, MB", "rss_mb"), ("open files", "open_files"), ("requests", "requests")):
        yield title, [name for name in MEASURES if name.endswith(ending)]
    yield "MB added to data of servers", [f"{name}_mb" for name in HEALTH]
    yield "MB added to the campaign's folder", ["folder_mb"]


def _who(name: str) -> str:
    for ending in ("_requests", "_rss_mb", "_open_files", "_mb"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return "run"
