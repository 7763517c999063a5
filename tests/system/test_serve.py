"""A campaign on its schedule: it fires, and what killed processes and lost servers left behind mends itself."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Pending, Running, Scheduled

from deploy.processes import free_port
from flows import books
from flows.artefacts import PAGES, PUSHED
from flows.books import GONE, MISSED, STOPPED, campaign_tag, close_dead
from flows.folder import Campaign
from tests.conftest import LOGIN_VARIABLES
from tests.system.test_killed import check_one_run_for_each_round, n_tasks

REPOSITORY = Path(__file__).parent.parent.parent
NEVER = 'schedule = "0 0 1 1 *"'
IMPATIENT = """
import os
from datetime import timedelta
from pathlib import Path
from flows import books
from flows.serve import service
service.OVERDUE = timedelta(seconds=1)
books.PATIENCE = dict.fromkeys(books.PATIENCE, timedelta(0))
time_of, set_back = books.time_of, Path(os.environ["CLOCK_IS_SET_BACK"])
books.time_of = lambda client: time_of(client) - timedelta(hours=3 * set_back.exists())
from flows.cli import main
main()
"""


def wait_for(look, *, seconds=150, told=lambda: "waited in vain"):
    """What `look` returns, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)
    return found


class Serve:
    """`labelcycle serve`, and what it prints."""

    def __init__(self, campaign, *, program=("-m", "flows.cli"), **environment):
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", str(campaign.file)],
            env=campaign.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
        )
        self.lines = []
        self.log = campaign.folder.path / "serve.log"
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self._reader.start()

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def said(self, text: str, *, seconds=150) -> str:
        """The line that holds `text`, when it is there."""

        def told():
            log = self.log.read_text() if self.log.exists() else ""
            return f"nothing said {text!r}:\n{self.printed}\nlog:\n{log}"

        return wait_for(lambda: next((line for line in self.lines if text in line), None), seconds=seconds, told=told)

    def kill(self) -> None:
        """SIGKILL this process and its run, at once."""
        family = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for each in family:
            each.kill()
        self.end(None)

    def end(self, number: int | None = signal.SIGTERM) -> int:
        if number is not None:
            self.process.send_signal(number)
        exit_code = self.process.wait(timeout=90)
        self._reader.join()
        self.process.stdout.close()
        return exit_code


@pytest.fixture
def serve():
    """Starts `labelcycle serve`; whatever still runs at the end is killed."""
    started = []

    def start(campaign, **how) -> Serve:
        started.append(Serve(campaign, **how))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


@pytest.fixture
def prefect(servers):
    """Prefect's own client, which asks again where the server is busy (503)."""
    with SyncPrefectClient(servers.prefect_api_url, auth_string=servers.prefect_login) as client:
        yield client


def deployment_of(prefect, campaign):
    return prefect.read_deployment_by_name(f"labelcycle-round/{campaign.name}")


def ask_for_run(prefect, campaign, **how):
    return prefect.create_flow_run_from_deployment(deployment_of(prefect, campaign).id, **how).id


def begin_run(prefect, campaign, state):
    """A run of the campaign that nobody works on."""
    from flows.flow import run_round

    return prefect.create_flow_run(run_round, parameters={"campaign_file": str(campaign.file)}, state=state).id


def wait_for_state(prefect, run_id, *kinds):
    def state():
        now = prefect.read_flow_run(run_id).state
        return now if now.type.value in kinds else None

    return wait_for(state, told=lambda: f"still {prefect.read_flow_run(run_id).state}")


def runs_of(prefect, campaign):
    tag = campaign_tag(campaign.folder)
    return prefect.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))


def test_schedule_of_each_minute_fires_after_a_kill_and_outlives_a_signal(make_campaign, prefect, serve):
    campaign = make_campaign('schedule = "* * * * *"\ntimezone = "America/New_York"')
    killed = serve(campaign)
    first = killed.said("serving")
    assert f"from {campaign.file}: '* * * * *' in America/New_York, next run " in first
    assert first.split(";")[0].endswith(("EST", "EDT"))
    left = ask_for_run(prefect, campaign)
    wait_for_state(prefect, left, "RUNNING")
    killed.kill()

    serving = serve(campaign)
    serving.said(": round 0 asks for 22 labels")
    deployment = deployment_of(prefect, campaign)
    (schedule,) = deployment.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("* * * * *", "America/New_York")
    assert deployment.global_concurrency_limit is None
    fired = [run for run in runs_of(prefect, campaign) if run.auto_scheduled and run.start_time]
    assert fired, "the schedule itself started a run"
    assert fired[0].name.startswith(f"{campaign.name}, round 0, 20")
    assert {"labelcycle", campaign.name} <= set(fired[0].tags)
    assert wait_for_state(prefect, left, "CRASHED").message == GONE  # a run that began just now: one period later

    campaign.label()
    ask_for_run(prefect, campaign)
    on = wait_for(lambda: next((run for run in runs_of(prefect, campaign) if run.state.is_running()), None))
    assert serving.end() == 0
    stopped = prefect.read_flow_run(on.id).state
    assert (stopped.type, stopped.message) == ("CANCELLED", STOPPED)
    assert serving.lines[-1].endswith("  stopped\n")
    for line in (*killed.lines, *serving.lines):
        datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")  # each is an event, none is a traceback or a warning
    log = serving.log.read_text()
    assert "never awaited" not in log, log
    assert not deployment_of(prefect, campaign).paused
    assert not [run for run in runs_of(prefect, campaign) if run.state.is_running() or run.state.is_pending()]
    with campaign.folder.lock():  # nobody works on it any more
        pass


def test_one_serve_for_a_campaign_runs_its_own_file_and_no_other(make_campaign, prefect, serve, relay, servers):
    campaign = make_campaign(NEVER)
    asked_for = []

    def note(handler, _body):
        asked_for.append(handler.path)
        return False

    serving = serve(campaign)
    serving.said("serving")
    second = serve(campaign)
    assert second.end(None) == 1
    assert f"{campaign.name} is served already, by process {serving.process.pid} on " in second.printed
    assert not deployment_of(prefect, campaign).paused
    namesake = make_campaign(NEVER)
    namesake.file.write_text(namesake.file.read_text().replace(namesake.name, campaign.name))
    third = serve(namesake)
    assert third.end(None) == 2
    assert f"a schedule of another campaign '{campaign.name}', with the file {campaign.file}" in third.printed

    with relay(servers.label_studio_url, note) as url:
        foreign = make_campaign(label_studio=url)
        run = ask_for_run(prefect, campaign, parameters={"campaign_file": str(foreign.file)})
        refused = wait_for_state(prefect, run, "FAILED", "COMPLETED", "CRASHED")
        assert refused.type == "FAILED"
        assert f"runs {campaign.file} and no other campaign file" in refused.message
        assert not asked_for
        assert not foreign.folder.path.exists()
    line = serving.said("no other campaign file")
    assert str(foreign.file) in line

    ago = [datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (3, 2, 1)]
    late = [ask_for_run(prefect, campaign, state=Scheduled(scheduled_time=time)) for time in ago]
    serving.said(": round 0 asks for 22 labels")
    states = [wait_for_state(prefect, run, "COMPLETED", "CANCELLED") for run in late]
    assert [state.name for state in states] == ["Cancelled", "Cancelled", "AskedForLabels"]
    assert states[0].message == MISSED
    assert len(campaign.tasks(0)) == 22
    serving.said(MISSED)
    assert serving.end(signal.SIGINT) == 0
    assert "Traceback" not in serving.printed + second.printed + third.printed
    assert not deployment_of(prefect, campaign).paused


def test_run_that_finds_the_campaign_busy_alarms_nobody_and_says_so(make_campaign, prefect):
    campaign = make_campaign()
    with campaign.folder.lock():
        assert f"is being worked on by process {os.getpid()}" in campaign.run(expect=1)
    (run,) = runs_of(prefect, campaign)
    assert (run.state.type, run.state.name) == ("COMPLETED", "Busy")
    assert f"process {os.getpid()}" in run.state.message
    assert run.name.startswith(f"{campaign.name}, round 0, 20")


def run_with_books_that_refuse(file: str) -> None:
    """Run a round while Prefect's server refuses to have its books put right."""
    from flows.flow import run_round

    def refuse(*_, **__):
        raise httpx.ConnectError("refused")

    books.close_dead = refuse
    run_round(file)


def test_books_that_cannot_be_put_right_stop_no_round_and_the_next_run_tells_what_it_closed(
    make_campaign, prefect, fork
):
    campaign = make_campaign()
    left, began = begin_run(prefect, campaign, Cancelling()), time.monotonic()
    assert fork(run_with_books_that_refuse, str(campaign.file)) == (0, "")
    assert campaign.folder.round(0).has(PUSHED)
    patience = books.PATIENCE[StateType.CANCELLING].total_seconds() + 2
    time.sleep(max(0.0, began + patience - time.monotonic()))  # a run is not taken for dead before
    assert f"because {GONE}: {prefect.read_flow_run(left).name}" in campaign.run(expect=3)


def test_only_dead_runs_of_this_very_campaign_are_closed(prefect, tmp_path, monkeypatch):
    for kind in books.PATIENCE:
        monkeypatch.setitem(books.PATIENCE, kind, timedelta(seconds=-10))  # the time that Prefect tells is that late
    here, namesake = Campaign(tmp_path / "here"), Campaign(tmp_path / "there")
    file = str(tmp_path / "pets.toml")

    def begin(state, *, folder=None, campaign_file=file):
        from flows.flow import run_round

        parameters = {"campaign_file": campaign_file}
        tags = books.tags_of("pets", folder) if folder else ["labelcycle", "pets"]
        return prefect.create_flow_run(run_round, parameters=parameters, tags=tags, state=state).id

    dead = [begin(Running(), folder=here), begin(Pending(), folder=here), begin(Running())]
    alive = {
        "the present run": (present := begin(Running(), folder=here)),
        "another campaign of that name": begin(Running(), folder=namesake),
        "another campaign of that name, in a container with the same paths": begin(Pending(), folder=namesake),
        "a run without a tag, of another file": begin(Running(), campaign_file=str(tmp_path / "other.toml")),
        "a run that is to come": begin(Scheduled(), folder=here),
    }
    closed = close_dead(prefect, campaign_tag(here), file=file, present=present)
    assert sorted(run.id for run in closed) == sorted(dead)
    for run in dead:
        state = prefect.read_flow_run(run).state
        assert (state.type, state.message) == ("CRASHED", GONE)
    for whose, run in alive.items():
        assert not prefect.read_flow_run(run).state.is_final(), whose

    monkeypatch.undo()
    young = begin(Running(), folder=here)
    assert close_dead(prefect, campaign_tag(here), file=file, present=present) == []
    assert prefect.read_flow_run(young).state.is_running()


class PrefectServer:
    """A server of the test's own that can be killed, with its memory on the disk and no scheduler."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        for each in (self.process, *family):
            each.kill()
        self.process.wait()


@pytest.fixture
def own_prefect(tmp_path):
    server = PrefectServer(tmp_path / "prefect")
    try:
        yield server
    finally:
        server.kill()


OLD_VERSION = """
import sys
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from flows.flow import run_round
limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
run_round.to_deployment(
    name=sys.argv[1], cron="0 0 1 1 *", parameters={"campaign_file": sys.argv[2]}, tags=["labelcycle", sys.argv[1]],
    concurrency_limit=limit,
).apply()
"""
"""What `labelcycle serve` registered when it still had a concurrency limit."""


def test_lost_server_leftovers_of_the_old_version_and_a_broken_scheduler(make_campaign, own_prefect, serve):
    campaign = make_campaign('schedule = "* * * * *"')
    set_back = campaign.file.with_name("set back")
    address = {"PREFECT_API_URL": own_prefect.url, "CLOCK_IS_SET_BACK": str(set_back)}
    registered = [sys.executable, "-c", OLD_VERSION, campaign.name, str(campaign.file)]
    subprocess.run(registered, env=campaign.environment | address, cwd=REPOSITORY, check=True)
    with SyncPrefectClient(own_prefect.url) as prefect:
        slots = f"deployment:{deployment_of(prefect, campaign).id}"
        left = ask_for_run(prefect, campaign)
        prefect.set_flow_run_state(left, Pending())
        prefect.set_flow_run_state(left, Running())
        assert prefect.read_global_concurrency_limit_by_name(slots).active_slots == 1
        own_prefect.kill()
        own_prefect.start()
        assert prefect.read_global_concurrency_limit_by_name(slots).active_slots == 1

        serving = serve(campaign, program=("-c", IMPATIENT), **address)
        serving.said("serving")
        with pytest.raises(ObjectNotFound):
            prefect.read_global_concurrency_limit_by_name(slots)
        wait_for_state(prefect, ask_for_run(prefect, campaign), "COMPLETED")
        serving.said(": round 0 asks for 22 labels")
        closed = prefect.read_flow_run(left).state
        assert (closed.type, closed.message) == ("CRASHED", GONE)
        serving.said("no run was made for")
        assert "the scheduler of Prefect's server seems to be broken" in serving.printed

        assert serving.printed.count("no run was made for") == 1
        (before,) = deployment_of(prefect, campaign).schedules
        set_back.touch()  # the server makes no second run for a time of the same schedule
        serving.said("the clock of Prefect's server was set back by 2:59:")
        wait_for(lambda: serving.printed.count("  serving ") == 2)
        (after,) = deployment_of(prefect, campaign).schedules
        assert after.id != before.id

    own_prefect.kill()
    serving.said(f"Prefect does not answer at {own_prefect.url}")
    own_prefect.start()
    serving.said("Prefect answers again")
    with SyncPrefectClient(own_prefect.url) as prefect:
        wait_for_state(prefect, ask_for_run(prefect, campaign), "COMPLETED")
    serving.said(": round 0 awaits labels: 0 of 22 labelled")
    assert serving.printed.count("does not answer") == 1
    assert "Traceback" not in serving.printed
    assert serving.end() == 0


def test_worker_of_a_work_pool_advances_the_campaign_by_the_deployment_file(make_campaign, prefect, tmp_path):
    campaign = make_campaign()
    dead = begin_run(prefect, campaign, Cancelling())
    text = (REPOSITORY / "deploy" / "prefect.yaml").read_text()
    ours = {
        "directory: /opt/labelcycle": f"directory: {REPOSITORY}",
        "/campaigns/my-campaign.toml": str(campaign.file),
        "name: my-campaign": f"name: {campaign.name}",
        "name: local": f"name: {campaign.name}",
    }
    for stood, put in ours.items():
        assert text.count(stood) == 1
        text = text.replace(stood, put)
    (tmp_path / "prefect.yaml").write_text(text)
    commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   prefect ")]
    create, deploy, start = (
        line.replace("local", campaign.name)
        .replace("my-campaign", campaign.name)
        .replace("deploy/prefect.yaml", str(tmp_path / "prefect.yaml"))
        .split()[1:]
        for line in commands
    )
    program = [sys.executable, "-m", "prefect"]
    environment = campaign.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    how = {"env": environment, "cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for command in (create, deploy):
        done = subprocess.run([*program, *command], check=False, **how)
        assert done.returncode == 0, done.stdout
    assert deployment_of(prefect, campaign).global_concurrency_limit is None
    assert [each.schedule.timezone for each in deployment_of(prefect, campaign).schedules] == ["UTC"]
    run = ask_for_run(prefect, campaign)
    with subprocess.Popen([*program, *start], **how) as worker:
        try:
            wait_for_state(prefect, run, "COMPLETED", "FAILED", "CRASHED")
        finally:
            worker.terminate()
            told = worker.communicate()[0]
            prefect.delete_deployment(deployment_of(prefect, campaign).id)
            prefect.delete_work_pool(campaign.name)
    assert campaign.folder.round(0).has(PUSHED), told
    assert len(campaign.tasks(0)) == 22
    closed = prefect.read_flow_run(dead).state
    assert (closed.type, closed.message) == ("CRASHED", GONE)
    log = prefect.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
    assert any(GONE in line.message for line in log), "it is said, too"


class Gate:
    """The way to a server, byte for byte, which can be shut and opened again.

    Attributes:
        shut_at: it shuts by itself before a request that holds this.
    """

    def __init__(self, target: str) -> None:
        self._target, self._port = urlsplit(target).port, 0
        self._sockets: list[socket.socket] = []
        self.shut_at = b""
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self.is_open = True
        threading.Thread(target=self._let_in, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        self.is_open, self.shut_at = False, b""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets = []

    def _let_in(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(2**16):
                if self.shut_at and self.shut_at in chunk:
                    self.shut()
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def gates(servers):
    """A gate before each of the three servers."""
    made = [Gate(url) for url in (servers.label_studio_url, servers.mlflow_url, servers.prefect_api_url)]
    yield made
    for each in made:
        if each.is_open:
            each.shut()


def test_serve_outlives_each_of_its_servers_and_mlflow_has_all_once(make_campaign, prefect, serve, gates, servers):
    label_studio, mlflow, books_of_prefect = gates
    campaign = make_campaign(NEVER, label_studio=label_studio.url)
    with campaign.file.open("a") as file:
        file.write(f'\n[mlflow]\nuri = "{mlflow.url}"\n')
    logins = dict(zip(LOGIN_VARIABLES, servers.mlflow_login, strict=True))
    campaign = replace(campaign, environment=campaign.environment | logins)
    serving = serve(campaign, PREFECT_API_URL=f"{books_of_prefect.url}/api")
    serving.said("serving")

    label_studio.shut_at = b"/import"  # away for a moment: the same run goes on
    run = ask_for_run(prefect, campaign)
    wait_for(lambda: not label_studio.is_open)
    told = campaign.fresh_command("status", str(campaign.file))
    assert f"Label Studio is away, {label_studio.url}: " in told
    label_studio.open()
    assert wait_for_state(prefect, run, "COMPLETED", "FAILED", "CRASHED").name == "AskedForLabels"

    campaign.label()
    mlflow.shut_at = b"model-versions/create"  # away for longer: the next run goes on
    wait_for_state(prefect, ask_for_run(prefect, campaign), "FAILED")
    serving.said("MLflow at")
    assert not mlflow.is_open
    mlflow.open()
    wait_for_state(prefect, ask_for_run(prefect, campaign), "COMPLETED")
    serving.said(": round 1 asks for 8 labels")

    campaign.label()
    run = ask_for_run(prefect, campaign)
    wait_for(lambda: campaign.folder.round(2).has(PAGES))
    books_of_prefect.shut()
    serving.said("Prefect does not answer")
    books_of_prefect.open()
    serving.said("Prefect answers again")
    wait_for_state(prefect, run, "COMPLETED", "FAILED", "CRASHED")
    wait_for_state(prefect, ask_for_run(prefect, campaign), "COMPLETED")
    serving.said(": round 2 awaits labels")
    assert serving.end() == 0
    assert "Traceback" not in serving.printed
    assert campaign.pulled_tasks(0, 1, 2) == campaign.tasks(0) | campaign.tasks(1) | campaign.tasks(2)
    assert n_tasks(campaign) == 38
    check_one_run_for_each_round(campaign, n_rounds=3)
