"""Prefect's books of a campaign, put right by whoever holds the campaign's lock: only the lock proves who is alive.

A killed process leaves its runs RUNNING, PENDING or CANCELLING for ever. Such a run of this campaign, while another
process holds the campaign's lock, is dead, and is closed with a word. A run is known to be of this campaign by a tag
that holds an id out of the campaign's folder: a name, or a path in another container, may be another campaign's too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed

from flows.artefacts import CAMPAIGN_ID
from flows.campaign import OpenCampaign
from flows.folder import Campaign
from flows.lease import WATCH_SECONDS
from flows.records import CampaignId

T = TypeVar("T")
FLOW = "labelcycle-round"
GONE = "its process is gone"
MISSED = "missed: a later one runs in its place"
STOPPED = "stopped with `labelcycle serve`"
TAG = "labelcycle"
CAMPAIGN_TAG = "campaign:"

LIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
PATIENCE = {
    StateType.RUNNING: timedelta(seconds=WATCH_SECONDS + 10),
    StateType.CANCELLING: timedelta(seconds=10),
    StateType.PENDING: timedelta(minutes=2),
}
"""How long a run may be alive and not hold the campaign's lock: it starts, and looks whether another machine works."""
TASK_PATIENCE = timedelta(minutes=1)
"""How long a step of a run that ended by itself may still count as running: the server notes it with a delay."""
TIMEOUT_SECONDS = 20.0
PAGE = 200
SHOWN = 3


def books() -> SyncPrefectClient:
    """A connection to Prefect's server; enter it to use it."""
    return get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_SECONDS})


def time_of(client: SyncPrefectClient) -> datetime:
    """The time by the clock of Prefect's server, which stamps the books, up to the next whole second."""
    told = client.hello().headers.get("date")
    return parsedate_to_datetime(told) + timedelta(seconds=1) if told else datetime.now(UTC)


def campaign_tag(folder: Campaign) -> str:
    """The tag that a run of this campaign carries and no other campaign's does."""
    if not folder.has(CAMPAIGN_ID):
        folder.write(CAMPAIGN_ID, CampaignId(uuid4().hex))
    return f"{CAMPAIGN_TAG}{folder.read(CAMPAIGN_ID).id}"


def tags_of(name: str, folder: Campaign) -> list[str]:
    """What the runs of a campaign are tagged with."""
    return [TAG, name, campaign_tag(folder)]


def sign(work: OpenCampaign, *, round_number: int) -> None:
    """Name the present run after its campaign and round, and tag it; a refusal stops nothing."""
    zone = ZoneInfo(work.settings.timezone) if work.settings.timezone else None
    name = f"{work.settings.name}, round {round_number}, {datetime.now(zone):%Y-%m-%d %H:%M}"
    tags = sorted({*flow_run.tags, *tags_of(work.settings.name, work.folder)})
    with _at_most_a_warning("could not name this run"), books() as client:
        client.update_flow_run(UUID(flow_run.id), name=name, tags=tags)


def put_right(work: OpenCampaign) -> tuple[str, ...]:
    """Close what dead processes left behind, as the present run that holds the lock; a refusal stops nothing.

    Returns:
        A line on what was closed, for people.
    """
    closed: list[FlowRun] = []
    with _at_most_a_warning("could not close runs whose process is gone"), books() as client:
        file = flow_run.parameters["campaign_file"]
        closed = close_dead(client, campaign_tag(work.folder), file=file, present=UUID(flow_run.id))
        if deployment.id:
            cancel_missed(client, UUID(deployment.id), file=file)
    if not closed:
        return ()
    names = ", ".join(run.name for run in closed[:SHOWN]) + (", ..." if len(closed) > SHOWN else "")
    line = f"Closed in Prefect what was left running or pending, because {GONE}: {names}"
    get_run_logger().info(line)
    return (line,)


def close_dead(client: SyncPrefectClient, tag: str, *, file: str, present: UUID | None = None) -> list[FlowRun]:
    """Close the runs and steps of a campaign that a dead process left; call it under the campaign's lock only.

    Args:
        client: a connection that is open.
        tag: of the campaign.
        file: the campaign's file, by which a run is known that was killed before it got the tag.
        present: the run that is alive, if there is one.

    Returns:
        The flow runs that were closed.
    """
    now = time_of(client)
    runs = live_runs(client)
    dead = dead_among(runs, tag, file=file, present=present, now=now)
    closed = [run for run in dead if _set(client.set_flow_run_state, run.id, Crashed(message=GONE))]
    alive = ({run.id for run in runs} - {run.id for run in closed}) | ({present} if present else set())
    ended = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]), id=FlowRunFilterId(not_any_=list(alive)))
    _close_steps(client, FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in closed])), before=now)
    _close_steps(client, ended, before=now - TASK_PATIENCE)
    return closed


def live_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The runs of all campaigns that Prefect calls alive."""
    live = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE)))
    named = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    return list(_pages(client.read_flow_runs, flow_filter=named, flow_run_filter=live))


def dead_among(
    runs: Sequence[FlowRun], tag: str, *, file: str, now: datetime, present: UUID | None = None
) -> list[FlowRun]:
    """Of live runs those of a campaign whose process is gone, if nobody but `present` holds the campaign's lock.

    Args:
        now: as of `time_of`.
    """
    return [
        run
        for run in runs
        if run.id != present
        and run.state is not None
        and _is_of(run, tag, file)
        and _is_older(run.state, now - PATIENCE[run.state.type])
    ]


def cancel_stopped(client: SyncPrefectClient, deployment_id: UUID) -> None:
    """Close what the runs of a deployment left, all of whose processes have just been ended."""
    live = FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE))
    of_deployment = FlowRunFilterDeploymentId(any_=[deployment_id])
    left = list(_pages(client.read_flow_runs, flow_run_filter=FlowRunFilter(state=live, deployment_id=of_deployment)))
    for run in left:
        _set(client.set_flow_run_state, run.id, Cancelled(message=STOPPED))
    stopped = FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in left]))
    _close_steps(client, stopped, before=time_of(client), word=STOPPED)


def cancel_missed(client: SyncPrefectClient, deployment_id: UUID, *, file: str) -> list[FlowRun]:
    """Cancel the scheduled runs of a campaign's file in whose place a later one runs: one catches up with all."""
    due = scheduled_runs(client, deployment_id, before=datetime.now(UTC))
    late = [run for run in due if run.parameters.get("campaign_file") == file]
    late.sort(key=lambda run: run.expected_start_time or datetime.now(UTC))
    return [run for run in late[:-1] if _set(client.set_flow_run_state, run.id, Cancelled(message=MISSED))]


def scheduled_runs(client: SyncPrefectClient, deployment_id: UUID, **when: datetime) -> list[FlowRun]:
    """The scheduled runs of a deployment that are to begin `before` a moment, or `after` it."""
    bounds = {f"{name}_": moment for name, moment in when.items()}
    scheduled = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(**bounds),
    )
    return list(_pages(client.read_flow_runs, flow_run_filter=scheduled))


def _close_steps(client: SyncPrefectClient, runs: FlowRunFilter, *, before: datetime, word: str = GONE) -> None:
    """Close the steps of these runs that Prefect has called alive since before a moment."""
    live = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=LIVE)))
    for step in list(_pages(client.read_task_runs, flow_run_filter=runs, task_run_filter=live)):
        if _is_older(step.state, before):
            _set(client.set_task_run_state, step.id, Crashed(message=word))


def _pages(read: Callable[..., list[T]], **filters: object) -> Iterator[T]:
    """All that a reading finds, and not its first page only."""
    offset = 0
    while page := read(**filters, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _is_of(run: FlowRun, tag: str, file: str) -> bool:
    """Whether a run is the campaign's; one that has no tag yet is, when it has this very file."""
    tagged = [name for name in run.tags if name.startswith(CAMPAIGN_TAG)]
    return tag in tagged if tagged else run.parameters.get("campaign_file") == file


def _is_older(state: State[object] | None, than: datetime) -> bool:
    return state is not None and bool(state.timestamp < than)


def _set(set_state: Callable[..., object], run_id: UUID, state: State[object]) -> bool:
    """Whether the server took the state; a run that was deleted meanwhile is no error."""
    try:
        set_state(run_id, state, force=True)
    except (ObjectNotFound, PrefectHTTPStatusError):
        return False
    return True


@contextmanager
def _at_most_a_warning(what: str) -> Iterator[None]:
    """Go on with the round where Prefect's server does not answer or refuses; a warning stands in the run's log."""
    try:
        yield
    except Exception as exc:
        get_run_logger().warning("Prefect: %s: %s", what, exc)
