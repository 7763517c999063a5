"""A campaign on its schedule: one line for each event, until stopped."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TextIO, cast
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import filelock
import tzlocal
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
from prefect.server.schemas.schedules import CronSchedule  # so that we reckon as the server does
from prefect.settings import get_current_settings

from connectors.store import read_json, write_json
from flows import books
from flows.config import CampaignSettings, ConfigError
from flows.flow import SERVED_FILE, STATES, run_round
from flows.folder import Campaign, CampaignBusy

LOG = "serve.log"
OVERDUE = timedelta(seconds=60)
"""How long after a time of the schedule there must be a run; Prefect's scheduler looks each minute."""
REQUEST_SECONDS = 60.0
STOP_SECONDS = 45.0
"""What a run gets to end in, of which Prefect's runner takes up to 30 before it kills."""
AWAY_SECONDS = 5.0
"""The same, where Prefect's server is away and the run would only wait for it."""


class _Stopped(BaseException):
    """Somebody asked this process to end."""


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
    with only_server_of(folder, settings.name), output_to(folder.path / LOG) as screen, _loop_of_a_thread() as loop:
        Service(file, settings, folder, zone, screen, loop).run()


def machine_timezone() -> str:
    """The IANA name of this machine's time zone.

    Raises:
        ConfigError: when the machine has no time zone set.
    """
    name = None
    with warnings.catch_warnings(), suppress(ValueError, OSError, KeyError):
        warnings.simplefilter("ignore")
        name = str(tzlocal.get_localzone())
    if name not in available_timezones() - {"localtime"}:
        raise ConfigError(
            "this machine does not tell the name of its time zone: set timezone in the campaign file, for example "
            'timezone = "Europe/Berlin"'
        )
    return name


def next_time(schedule: str | None, zone: ZoneInfo, after: datetime) -> datetime:
    """The first time of a cron line after a moment, in its zone.

    Raises:
        ConfigError: there is none.
    """
    reckoned = CronSchedule(cron=schedule or "", timezone=zone.key).get_dates(1, start=after + timedelta(seconds=1))
    try:
        (found,) = asyncio.run(reckoned)
    except ValueError as exc:
        raise ConfigError(f"the time of schedule = {schedule!r} never comes") from exc
    return datetime.fromtimestamp(found.timestamp(), zone)


@contextmanager
def only_server_of(folder: Campaign, name: str) -> Iterator[None]:
    """Keep a second `labelcycle serve` from the campaign; a killed one gives the place free.

    Raises:
        CampaignBusy: naming the process that serves.
    """
    folder.make()
    note = folder.path / "serve.lock.json"
    lock = filelock.FileLock(folder.path / "serve.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as exc:
        server = "another process"
        with suppress(OSError, ValueError, KeyError):
            server = "process {pid} on {host}, since {since}".format(**read_json(note))
        raise CampaignBusy(f"{name} is served already, by {server}; end that one first, or leave it to it") from exc
    try:
        since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        write_json(note, {"pid": os.getpid(), "host": os.uname().nodename, "since": since})
        yield
    finally:
        lock.release()


@contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Send what Prefect, its runs and their errors print to a file, so that the screen, which is yielded, stays clear.

    A run is a process of its own and writes to the descriptors it inherits.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    screens = [os.dup(descriptor) for descriptor in (1, 2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    try:
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        with open(screens[0], "w", encoding="utf-8", errors="replace", closefd=False) as screen:
            yield screen
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, screen_descriptor in zip((1, 2), screens, strict=True):
            os.dup2(screen_descriptor, descriptor)
            os.close(screen_descriptor)
        os.close(target)


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
        self.poll_seconds = get_current_settings().runner.poll_frequency
        self.runner = Runner(name="labelcycle", limit=1, prefetch_seconds=0, pause_on_shutdown=False)
        self.deployment_id: UUID | None = None
        self.running: Future[None] | None = None
        self.is_away = False
        self.is_overdue = False
        self.told: set[tuple[UUID, StateType]] = set()
        self.told_until = datetime.now(UTC)
        self.watched = datetime.now(UTC)

    def run(self) -> None:
        """Serve until a signal comes."""
        with _signals_raise():
            try:
                while True:
                    self.look()
                    time.sleep(self.poll_seconds)
            except _Stopped:
                for number in _ENDING:
                    signal.signal(number, signal.SIG_IGN)  # asked once is asked
                self.stop()

    def look(self) -> None:
        """Do what there is to do now; that a server is away is printed once."""
        try:
            if self.running is not None and self.running.done():
                ended, self.running = self.running, None
                ended.result()
            with books.books() as client:
                self.be_registered(client)
                self.tell_runs(client)
                if self.running is None:
                    self.start_due(client)
                self.watch_scheduler(client)
        except Exception as exc:
            self.tell_away(exc)
        else:
            if self.is_away:
                self.is_away = False
                self.say("Prefect answers again")

    def be_registered(self, client: SyncPrefectClient) -> None:
        """Make sure that Prefect knows the campaign's schedule, also after it lost its memory."""
        if self.deployment_id is not None:
            if not self.is_away:
                return
            with suppress(ObjectNotFound):
                client.read_deployment(self.deployment_id)
                self.watched = datetime.now(UTC)
                return
        self.refuse_namesake(client)
        self.put_right(client)
        self.deployment_id = asyncio.run_coroutine_threadsafe(self._register(), self.loop).result(REQUEST_SECONDS)
        self.watched = datetime.now(UTC)
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
        tagged = FlowRunFilterTags(all_=[self.tag])
        running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tagged, state=running))
        ended = FlowRunFilterEndTime(after_=self.told_until)
        runs += client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tagged, end_time=ended))
        told = {(run.id, run.state.type) for run in runs if run.state is not None}
        for run in sorted(runs, key=lambda run: run.end_time or datetime.now(UTC)):
            if run.state is not None and (run.id, run.state.type) not in self.told:
                self.say(f"{self.name_of(run)}: {_outcome(run.state)}")
        self.told = told
        self.told_until = max([self.told_until, *(run.end_time for run in runs if run.end_time is not None)])

    def watch_scheduler(self, client: SyncPrefectClient) -> None:
        """Print once that a time of the schedule has passed and Prefect's server has made no run for it."""
        expected = next_time(self.settings.schedule, self.zone, self.watched + OVERDUE)
        if datetime.now(UTC) < expected + OVERDUE:
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
            self.say(f"no run was made for {expected:%Y-%m-%d %H:%M %Z}: {why}")

    def tell_away(self, exc: Exception) -> None:
        """Print once that nothing can be done now. The next look tries again, unless a person has to mend something.

        Raises:
            ConfigError: what came, if it was one.
        """
        if isinstance(exc, ConfigError):
            raise exc
        if not self.is_away:
            self.is_away = True
            url = get_current_settings().api.url
            why = _one_line(exc) or type(exc).__name__
            self.say(f"Prefect does not answer at {url} ({why}); trying on, runs wait until it does")

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
        return _one_line(run.name)

    def say(self, line: str) -> None:
        """One event on the screen; a screen that is gone stops nothing."""
        with suppress(OSError, ValueError):
            self.screen.write(f"{datetime.now(self.zone):%Y-%m-%d %H:%M:%S}  {line}\n")
            self.screen.flush()


def _outcome(state: State[object]) -> str:
    """The state of a run in words; a state that a round has named has its message."""
    if state.type is StateType.RUNNING:
        return "started"
    message = _one_line(state.message or "")
    if state.name in STATES.values() and message:
        return message
    return f"{_one_line(state.name).lower()}: {message}" if message else _one_line(state.name).lower()


def _one_line(foreign: object) -> str:
    """The first line of another program's text, without characters that steer a terminal."""
    lines = str(foreign).strip().splitlines() or [""]
    return "".join(character if character.isprintable() else " " for character in lines[0])[:500]


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the signals that ask a process to end do so in order; one that is ignored already stays so (nohup)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _loop_of_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own; what still waits in it at the end is cancelled there.

    In the main thread Prefect's runner would put its own handler of SIGTERM in place of ours. Ctrl+C, which a terminal
    sends to all its processes, is not heard by the runs that the thread starts: we end them.
    """
    loop = asyncio.new_event_loop()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # a task that the interpreter's end meets would warn
            runner.get_loop().run_forever()

    thread = threading.Thread(target=run, name="labelcycle-runner", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(AWAY_SECONDS)
