"""Checks of Prefect: the server, the campaign's schedule, who runs it, and what earlier runs left."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from connectors.health import Finding, beside_clock, failure, warning
from deploy import servers
from flows import books
from flows.artefacts import CAMPAIGN_ID
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings
from flows.doctor.servers import what_is_away
from flows.doctor.subject import Subject
from flows.folder import LOCK, SERVE_LOCK, Campaign
from flows.lease import holder_of
from flows.local import require_prefect
from flows.serve.schedule import machine_timezone, next_time

LATE = timedelta(minutes=2)
PLANNED_AHEAD = timedelta(days=30)
"""Prefect's scheduler plans further ahead than that."""
PLAN_SECONDS = 8.0
"""What the scheduler gets for a schedule that has just been registered."""


def prefect(subject: Subject) -> Iterator[Finding]:
    """Runs can be kept, and come when they should."""
    url = (get_current_settings().api.url or "").rstrip("/")
    if not url and subject.work is None:
        return
    require_prefect()
    local = servers.remembered(subject.home)
    if local is not None and url == local.prefect_api_url:
        away = what_is_away(subject, "prefect", "Prefect")
        if away is not None:
            yield away
            return
    with books.books() as client:
        client.raise_for_api_version_mismatch()
        date = client.hello().raise_for_status().headers.get("date")
        yield beside_clock("Prefect", f"{client.api_version()} at {url} takes the login", date)
        if subject.work is not None:
            yield from runs_of(subject.work, str(subject.file), client)


def runs_of(work: OpenCampaign, file: str, client: SyncPrefectClient) -> Iterator[Finding]:
    """The campaign's runs come when they should.

    Args:
        file: the campaign's, as an absolute path.
        client: a connection that is open.
    """
    settings, folder, start = work.settings, work.folder, f"labelcycle serve {file}"
    yield _stale(client, folder, file)
    if settings.schedule is None:
        yield Finding("schedule", f"none is set: each round is begun by `labelcycle run {file}`")
        return
    try:
        registered = client.read_deployment_by_name(f"{books.FLOW}/{settings.name}")
    except ObjectNotFound:
        yield warning("schedule", f"{settings.schedule!r} is set, and Prefect knows no schedule of it", start)
        return
    schedule = _schedule(registered, settings, file, start)
    yield schedule
    if schedule.status != "failure":
        yield _who_runs(client, registered, folder, start)
        yield _planned(client, registered.id, settings)
        yield _late(client, registered.id, folder, start)


def _stale(client: SyncPrefectClient, folder: Campaign, file: str) -> Finding:
    known = folder.get(CAMPAIGN_ID)
    tag = f"{books.CAMPAIGN_TAG}{known.id}" if known else ""
    alive = books.dead_among(books.live_runs(client), tag, file=file, now=books.time_of(client))
    if not alive or holder_of(folder.path / LOCK):
        return Finding("runs", f"{alive[0].name!r} is on" if alive else "none is on, and none was left behind")
    found = f"{len(alive)} that Prefect calls alive, such as {alive[0].name!r}, whose process is gone"
    return warning("runs", found, f"nothing: the next run closes what is left; `labelcycle run {file}` does so now")


def _schedule(registered: DeploymentResponse, settings: CampaignSettings, file: str, start: str) -> Finding:
    name = "schedule"
    theirs = registered.parameters.get("campaign_file")
    lines = [getattr(each.schedule, "cron", None) for each in registered.schedules if each.active]
    if registered.paused or not lines:
        mend = f"resume the deployment {registered.name} in Prefect's pages, or start again: {start}"
        return failure(name, f"the schedule of {settings.name} is paused: no run begins by itself", mend)
    if theirs != file:
        return warning(name, f"Prefect's schedule of {settings.name} runs {theirs}, not {file}", start)
    if settings.schedule not in lines:
        found = f"the file has {settings.schedule!r}, and Prefect goes by {', '.join(map(str, lines))}"
        return warning(name, found, f"end `labelcycle serve`, and start it again: {start}")
    following = _next(settings)
    return Finding(name, f"{settings.schedule!r}, next run {following:%a %Y-%m-%d %H:%M %Z}")


def _next(settings: CampaignSettings) -> datetime:
    zone = ZoneInfo(settings.timezone or machine_timezone())
    return next_time(settings.schedule, zone, datetime.now(UTC))


def _who_runs(client: SyncPrefectClient, registered: DeploymentResponse, folder: Campaign, start: str) -> Finding:
    """`labelcycle serve` on this machine, one elsewhere that asks for runs, or a worker of the work pool."""
    pool = registered.work_pool_name
    if pool is not None:
        online = [one.name for one in client.read_workers_for_work_pool(pool) if one.status is WorkerStatus.ONLINE]
        if online:
            return Finding("worker", f"{', '.join(online)} of the work pool {pool}")
        return failure("worker", f"no worker of the work pool {pool} is online", f"prefect worker start --pool {pool}")
    server = holder_of(folder.path / SERVE_LOCK)
    if server is not None:
        return Finding("serve", f"`labelcycle serve` is {server}")
    polled = registered.last_polled
    if polled is not None and datetime.now(UTC) - polled < LATE:
        age = (datetime.now(UTC) - polled).total_seconds()
        return Finding("serve", f"asked Prefect {age:.0f} s ago: it runs on another machine, or has ended since")
    return failure("serve", "`labelcycle serve` does not run, and a schedule is set: no run begins", start)


def _planned(client: SyncPrefectClient, deployment_id: UUID, settings: CampaignSettings) -> Finding:
    name = "scheduler"
    if _next(settings) - datetime.now(UTC) > PLANNED_AHEAD:
        return Finding(name, "the next run is so far off that none is planned yet")
    for seconds in (0.0, PLAN_SECONDS):
        time.sleep(seconds)
        planned = books.scheduled_runs(client, deployment_id, after=datetime.now(UTC))
        if planned:
            return Finding(name, f"Prefect's scheduler has planned {len(planned)} runs")
    mend = "look into the log of Prefect's server, and start the server again"
    return failure(name, "Prefect's scheduler has planned no run: it does not work", mend)


def _late(client: SyncPrefectClient, deployment_id: UUID, folder: Campaign, start: str) -> Finding:
    late = books.scheduled_runs(client, deployment_id, before=datetime.now(UTC) - LATE)
    if late and holder_of(folder.path / LOCK) is None:
        first = min(run.expected_start_time for run in late if run.expected_start_time is not None)
        found = f"{len(late)} scheduled runs have not begun, the first of {first:%Y-%m-%d %H:%M} UTC"
        return failure("late runs", found, f"start what runs them, and look into its log: {start}")
    return Finding("late runs", f"{len(late)} wait for the run that is on" if late else "none")
