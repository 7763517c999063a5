"""A long campaign whose rounds are measured."""

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, perf_counter

import psutil
import typer

from deploy.processes import members
from deploy.programs import HEALTH
from deploy.servers import Servers
from tests.soak.checks import findings
from tests.soak.measured import measured_command
from tests.soak.measures import FEWEST, MEASURES, draw, growth_of
from tests.soak.trial import BATCH, FIRST, Place, Pool, Workers, as_json, make_campaign
from tests.system.conftest import TestCampaign


def grow(
    place: Place, *, n_rounds: int, minutes: float, out: Path, pool: Pool = "disk", workers: Workers = "local"
) -> list[str]:
    """Run a campaign over so many rounds, write costs as CSV, JSON and PNG, and return what grows too much.

    Args:
        minutes: after which no further round begins.
    """
    ends = monotonic() + 60 * minutes
    campaign = make_campaign(place, "classification", n_rounds=n_rounds, pool=pool, workers=workers)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    for number in range(n_rounds):
        rows.append(one_round(campaign, place, out, number))
        typer.echo(", ".join(f"{name} {value:.6g}" for name, value in rows[-1].items()))
        write_rows(rows, out)
        if monotonic() > ends:
            break
    if len(rows) < FEWEST:
        return [f"{len(rows)} rounds tell nothing of growth; {FEWEST} do: allow more minutes", *findings(campaign)]
    fitted = [growth_of(name, rows) for name in MEASURES]
    (out / "growth.json").write_text(as_json([each._asdict() for each in fitted]), encoding="utf-8")
    typer.echo("\n".join(["", f"{'a round':36} {'median':>9}   change over {len(rows)} rounds", *map(str, fitted)]))
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


def write_rows(rows: Sequence[Mapping[str, float]], out: Path) -> None:
    """Write a line for each round."""
    with (out / "growth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
