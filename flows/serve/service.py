"""A campaign on its schedule: one line for each event, until stopped."""

import asyncio
import multiprocessing
import os
import signal
import time
import warnings
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import get_current_settings

from connectors.store import StoreError
from deploy import servers
from flows import books
from flows.config import CampaignSettings, ConfigError
from flows.flow import SERVED_FILE, STATES, run_round
from flows.folder import SERVE_LOCK, Campaign, CampaignBusy
from flows.home import home
from flows.notify import Teller, tell_from_outside
from flows.reports.servers import without_login
from flows.serve.schedule import machine_timezone, next_time
from flows.serve.screen import ENDING, Stopped, loop_of_a_thread, one_line, output_to, signals_raise

LOG = "serve.log"
SET_BACK = timedelta(seconds=60)
"""By how much a clock must go back to have been set back."""
OVERDUE = timedelta(seconds=60)
"""How long after a time of the schedule there must be a run; Prefect's scheduler looks each minute."""
REQUEST_SECONDS = 60.0
STOP_SECONDS = 45.0
"""What a run gets to end in, of which Prefect's runner takes up to 30 before it kills."""
AWAY_SECONDS = 5.0
"""The same, where Prefect's server is away and the run would only wait for it."""
SILENT_SECONDS = 900.0
"""How long Prefect's server may be away before people are told."""
TELL_SECONDS = 3600.0
"""Between two tries to tell them."""


def serve_campaign(file: Path, settings: CampaignSettings) -> None:
    """Run the campaign on its schedule until a signal asks to end.

    Args:
        file: the campaign's file, as an absolute path; no run of another file is started.
        settings: of the file as it is now; each run reads the file again.

    Raises:
        CampaignBusy: another process serves the campaign.
        ConfigError: there is no server to ask, no time zone, or the schedule's time never comes.
    """
    if not get_current_settings().api.url:
        raise ConfigError(
            "a schedule needs a Prefect server: start the local ones with `labelcycle up`, or set PREFECT_API_URL"
        )
    zone = ZoneInfo(settings.timezone or machine_timezone())
    next_time(settings.schedule, zone, datetime.now(UTC))
    folder = Campaign(settings.folder)
    os.environ[SERVED_FILE] = str(file)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # of a runner that is stopped
    with only_server_of(folder, settings.name), output_to(folder.path / LOG) as screen, loop_of_a_thread() as loop:
        Service(file, settings, folder, zone, screen, loop).run()


def only_server_of(folder: Campaign, name: str) -> AbstractContextManager[None]:
    """Keep a second `labelcycle serve` from the campaign; a killed one gives the place free.

    Raises:
        CampaignBusy: naming the process that serves.
    """
    return folder.held(
        SERVE_LOCK, lambda who: f"{name} is served already, by {who}; end that one first, or leave it to it"
    )


def refuse_moved_server(began_with: str | None) -> None:
    """Refuse to wait for a local Prefect that answers elsewhere since its port was taken by another program.

    Args:
        began_with: where it was when this process began; None where Prefect is no local server.

    Raises:
        ConfigError: it moved. What is loaded keeps the old address.
    """
    now = servers.addresses(home()).get("prefect")
    if began_with is not None and now not in (None, began_with):
        raise ConfigError(
            f"the local Prefect server was at {began_with} and is at {now} now: start `labelcycle serve` again"
        )


class Service:
    """One campaign being served: asks Prefect what is due, lets a `Runner` run it, and prints what happens.

    The runner is started for each run anew: one that stays gives up, and kills the run, when Prefect's server has been
    away for some minutes.
    """

    def __init__(
        self,
        file: Path,
        settings: CampaignSettings,
        folder: Campaign,
        zone: ZoneInfo,
        screen: TextIO,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.file, self.settings, self.folder, self.zone, self.screen = file, settings, folder, zone, screen
        self.loop = loop
        self.tag = books.campaign_tag(folder)
        local = servers.addresses(home()).get("prefect")
        self.local = local if get_current_settings().api.url == f"{local}/api" else None
        self.poll_seconds = get_current_settings().runner.poll_frequency
        self.runner = Runner(name="labelcycle", limit=1, prefetch_seconds=0, pause_on_shutdown=False)
        self.deployment_id: UUID | None = None
        self.running: Future[None] | None = None
        self.teller = Teller(settings.name, file, folder, settings.notify)
        self.is_away, self.away_since, self.tell_after, self.missed = False, 0.0, 0.0, ""
        self.disk = ""
        self.is_overdue = False
        self.told: set[tuple[UUID, StateType]] = set()
        self.now = self.told_until = self.watched = datetime.now(UTC)

    def run(self) -> None:
        """Serve until a signal comes."""
        with signals_raise():
            try:
                while True:
                    self.look()
                    time.sleep(self.poll_seconds)
            except Stopped:
                for number in ENDING:
                    signal.signal(number, signal.SIG_IGN)  # asked once is asked
                self.stop()

    def look(self) -> None:
        """Do what there is to do now; that a server is away is printed once."""
        try:
            if self.running is not None and self.running.done():
                ended, self.running = self.running, None
                ended.result()
            with books.books() as client:
                self.read_clock(client)
                self.be_registered(client)
                self.tell_runs(client)
                if self.running is None:
                    self.start_due(client)
                self.watch_scheduler(client)
        except StoreError as exc:
            if str(exc) != self.disk:
                self.disk = str(exc)
                self.say(f"{exc}; trying on, no run begins until then")
        except Exception as exc:
            self.tell_away(exc)
        else:
            self.disk = ""
            if self.is_away:
                self.is_away = False
                self.say("Prefect answers again")

    def read_clock(self, client: SyncPrefectClient) -> None:
        """Read the clock of Prefect's server, which rules the schedule; where it was set back, register again.

        The server makes no second run for a time of a schedule: it would make none until that time is reached again.
        """
        before, self.now = self.now, books.time_of(client)
        if self.deployment_id is None:
            self.told_until = self.now
        elif self.now < before - SET_BACK:
            self.say(f"the clock of Prefect's server was set back by {before - self.now}: the schedule begins anew")
            self.deployment_id, self.told_until = None, self.now
            self.told = {(run.id, run.state.type) for run in self.runs_to_tell(client) if run.state is not None}

    def be_registered(self, client: SyncPrefectClient) -> None:
        """Make sure that Prefect knows the campaign's schedule, also after it lost its memory."""
        if self.deployment_id is not None:
            if not self.is_away:
                return
            with suppress(ObjectNotFound):
                client.read_deployment(self.deployment_id)
                self.watched = self.now
                return
        self.refuse_namesake(client)
        self.put_right(client)
        self.deployment_id = asyncio.run_coroutine_threadsafe(self._register(), self.loop).result(REQUEST_SECONDS)
        self.watched = self.now
        following = next_time(self.settings.schedule, self.zone, self.watched)
        self.say(
            f"serving {self.settings.name} from {self.file}: {self.settings.schedule!r} in {self.zone.key}, next run "
            f"{following:%a %Y-%m-%d %H:%M %Z}; what Prefect and the runs print is in {self.folder.path / LOG}"
        )

    async def _register(self) -> UUID:
        schedule = Cron(self.settings.schedule or "", timezone=self.zone.key)
        flow = cast("Flow[[str], object]", run_round)
        return await self.runner.aadd_flow(
            flow,
            name=self.settings.name,
            schedule=schedule,
            parameters={"campaign_file": str(self.file)},
            tags=books.tags_of(self.settings.name, self.folder),
        )

    def refuse_namesake(self, client: SyncPrefectClient) -> None:
        """Leave the schedule of another campaign of the same name alone.

        Raises:
            ConfigError: Prefect's server has one.
        """
        with suppress(ObjectNotFound):
            found = client.read_deployment_by_name(f"{books.FLOW}/{self.settings.name}")
            others = [tag for tag in found.tags if tag.startswith(books.CAMPAIGN_TAG) and tag != self.tag]
            theirs = found.parameters.get("campaign_file")
            if others and theirs != str(self.file):
                raise ConfigError(
                    f"Prefect's server has a schedule of another campaign {self.settings.name!r}, with the file "
                    f"{theirs}: give this one another name; or, if the other one is gone: "
                    f"prefect deployment delete {books.FLOW}/{self.settings.name}"
                )

    def put_right(self, client: SyncPrefectClient) -> None:
        """Close what earlier processes left behind, unless one of them still works on the campaign."""
        with suppress(CampaignBusy), self.folder.lock():
            for run in books.close_dead(client, self.tag, file=str(self.file)):
                self.say(f"{self.name_of(run)}: {books.GONE}, closed")
                self.told.add((run.id, StateType.CRASHED))

    def start_due(self, client: SyncPrefectClient) -> None:
        """Let the runner run what is due; of several times that have passed, only the last."""
        deployment_id = self.registered()
        books.cancel_missed(client, deployment_id, file=str(self.file))
        if client.get_scheduled_flow_runs_for_deployments([deployment_id], scheduled_before=datetime.now(UTC)):
            os.ftruncate(1, 0)  # the log is of the last run
            self.running = asyncio.run_coroutine_threadsafe(self.runner.start(run_once=True), self.loop)

    def registered(self) -> UUID:
        """The id of the deployment."""
        if self.deployment_id is None:
            raise RuntimeError("not registered yet")
        return self.deployment_id

    def tell_runs(self, client: SyncPrefectClient) -> None:
        """Print which runs of the campaign began and ended since last time, whoever started them."""
        runs = self.runs_to_tell(client)
        told = {(run.id, run.state.type) for run in runs if run.state is not None}
        new = [run for run in runs if run.state is not None and (run.id, run.state.type) not in self.told]
        missed = [run for run in new if run.state is not None and run.state.message == books.MISSED]
        if len(missed) > 1:
            due = sorted(run.expected_start_time or self.now for run in missed)
            first, last = (f"{moment.astimezone(self.zone):%Y-%m-%d %H:%M}" for moment in (due[0], due[-1]))
            self.say(f"{len(missed)} runs of {first} to {last} were {books.MISSED}")
        for run in sorted(new, key=lambda run: run.end_time or self.now):
            if run.state is not None and (len(missed) < 2 or run not in missed):
                self.say(f"{self.name_of(run)}: {_outcome(run.state)}")
                if run.state.type in (StateType.FAILED, StateType.CRASHED):
                    tell_from_outside(self.teller, "failed", f"{self.name_of(run)}: {_outcome(run.state)}")
        self.told = told
        self.told_until = max([self.told_until, *(run.end_time for run in runs if run.end_time is not None)])

    def runs_to_tell(self, client: SyncPrefectClient) -> list[FlowRun]:
        """The runs of the campaign that are on, and those that ended since the last one that was told."""
        tagged = FlowRunFilterTags(all_=[self.tag])
        running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tagged, state=running))
        ended = FlowRunFilterEndTime(after_=self.told_until)
        return runs + client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tagged, end_time=ended))

    def watch_scheduler(self, client: SyncPrefectClient) -> None:
        """Print once that a time of the schedule has passed and Prefect's server has made no run for it."""
        expected = next_time(self.settings.schedule, self.zone, self.watched + OVERDUE)
        if self.now < expected + OVERDUE:
            return
        deployment_id = self.registered()
        made = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
            flow_run_filter=FlowRunFilter(
                expected_start_time=FlowRunFilterExpectedStartTime(after_=expected - timedelta(seconds=1))
            ),
            limit=1,
        )
        if made:
            self.watched = expected
            self.is_overdue = False
        elif not self.is_overdue:
            self.is_overdue = True
            is_paused = client.read_deployment(deployment_id).paused
            why = (
                "the deployment is paused; resume it in Prefect's pages"
                if is_paused
                else "the scheduler of Prefect's server seems to be broken; look into its log"
            )
            self.missed = f"no run was made for {expected:%Y-%m-%d %H:%M %Z}: {why}"
            self.say(self.missed)
        if self.is_overdue:
            self.tell_silent(self.missed)

    def tell_silent(self, message: str) -> None:
        """Tell people that no run begins; an hour later again, where a hook failed or the time has come."""
        if time.monotonic() >= self.tell_after:
            self.tell_after = time.monotonic() + TELL_SECONDS
            tell_from_outside(self.teller, "schedule_silent", message)

    def tell_away(self, exc: Exception) -> None:
        """Print once that nothing can be done now. The next look tries again, unless a person has to mend something.

        Raises:
            ConfigError: what came, if it was one; or the local Prefect server has moved.
        """
        if isinstance(exc, ConfigError):
            raise exc
        refuse_moved_server(self.local)
        if not self.is_away:
            self.is_away, self.away_since = True, time.monotonic()
            url = without_login(get_current_settings().api.url or "")
            why = one_line(exc) or type(exc).__name__
            self.say(f"Prefect does not answer at {url} ({why}); trying on, runs wait until it does")
        elif (seconds := time.monotonic() - self.away_since) > SILENT_SECONDS:
            self.tell_silent(f"Prefect has not answered for {seconds / 60:.0f} minutes, and no run begins")

    def stop(self) -> None:
        """End the run that is on, if there is one, and leave the schedule as it is."""
        if self.running is None or self.running.done():
            self.say("stopped; the schedule stays, `labelcycle serve` goes on with it")
            return
        self.say("stopping the run that is on; the next one goes on where it stands")
        patience = AWAY_SECONDS if self.is_away else STOP_SECONDS
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._stop_runner(), self.loop).result(patience)
            self.running.result(patience)
        for (
            process
        ) in multiprocessing.active_children():  # where the runner cannot tell Prefect, it does not come to it
            process.terminate()
            process.join(AWAY_SECONDS)
            process.kill()
        with suppress(Exception), books.books() as client:
            books.cancel_stopped(client, self.registered())
            self.tell_runs(client)
        self.say("stopped")

    async def _stop_runner(self) -> None:
        """Let the runner end its run; it may end itself sooner than it has told the server."""
        if self.runner.started:
            await self.runner.astop()

    def name_of(self, run: FlowRun) -> str:
        """A run under the name that it gave itself, or by its time where it has not yet, or never began."""
        if not run.name.startswith(f"{self.settings.name}, ") and run.expected_start_time is not None:
            return f"{self.settings.name}, run of {run.expected_start_time.astimezone(self.zone):%Y-%m-%d %H:%M}"
        return one_line(run.name)

    def say(self, line: str) -> None:
        """One event on the screen; a screen that is gone stops nothing."""
        with suppress(OSError, ValueError):
            self.screen.write(f"{datetime.now(self.zone):%Y-%m-%d %H:%M:%S}  {line}\n")
            self.screen.flush()


def _outcome(state: State[object]) -> str:
    """The state of a run in words; a state that a round has named has its message."""
    if state.type is StateType.RUNNING:
        return "started"
    message = one_line(state.message or "")
    if state.name in STATES.values() and message:
        return message
    return f"{one_line(state.name).lower()}: {message}" if message else one_line(state.name).lower()
