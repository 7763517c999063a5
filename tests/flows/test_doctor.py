"""`labelcycle doctor`: each check is seen to fail and tells what to do, none holds others up, nothing is changed."""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.states import Running, Scheduled
from typer.testing import CliRunner

from connectors.health import Finding, beside_clock, failure
from deploy.private import is_open_to_others
from flows.artefacts import CAMPAIGN, CAMPAIGN_ID
from flows.cli import app
from flows.doctor import machine
from flows.doctor.examine import CHECKS, Check, examine
from flows.doctor.schedule import runs_of
from flows.doctor.subject import Subject, subject_of
from flows.folder import LOCK
from flows.home import SERVERS
from flows.lease import hold, holder_of
from flows.records import CampaignId

ELSEWHERE = """
[label_studio]
url = "http://127.0.0.1:9"

[mlflow]
uri = "http://127.0.0.1:9"
"""
"""Servers that do not answer, and that are not those of this machine."""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123456789")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def sick(make_loop, tmp_path, monkeypatch):
    """A campaign whose first batch is out, and ways to break what it works with."""
    loop = make_loop(f'workers = "ray"{ELSEWHERE}', own_images=True)
    loop.run()
    return Sick(loop, tmp_path, monkeypatch)


class Sick:
    def __init__(self, loop, tmp_path, patch):
        self.loop, self.home, self.patch, self.tmp_path = loop, tmp_path / "home", patch, tmp_path
        self.home.mkdir(exist_ok=True)

    def subject(self, **doors) -> Subject:
        return subject_of(self.home, self.loop.file, **doors)

    def break_campaign_file(self):
        self.loop.change(("budget = 23", "budget = 3"))

    def break_pool(self):
        images = self.loop.file.parent / "images"
        images.rename(images.with_name("elsewhere"))

    def break_lock(self):
        claims = self.loop.folder.path / f"{LOCK}.holders"
        shutil.rmtree(claims)
        claims.mkdir()
        (claims / "a.json").symlink_to("a.json")

    def break_disk(self):
        self.patch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1e6))

    def break_privacy(self):
        (self.home / SERVERS).write_text("[]")  # and no password, which makes whoever starts the servers find none

    def break_versions(self):
        folder = self.tmp_path / "site" / "labelcycle-0.dist-info"
        folder.mkdir(parents=True)
        needs = "Requires-Python: >=3.99\nRequires-Dist: fastapi<0.1\nRequires-Dist: no-such-package\n"
        needs += 'Requires-Dist: nothing-of-an-extra ; extra == "dev"\n'
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: labelcycle\nVersion: 0\n{needs}")
        self.patch.syspath_prepend(folder.parent)

    def break_gpu(self):
        there = "cuda" if sys.platform == "darwin" else "mps"
        self.loop.change(('name = "small_cnn"', f'name = "small_cnn"\ndevice = "{there}"'))

    def break_workers(self):
        self.loop.change(('workers = "ray"', 'workers = "ray"\nray_address = "127.0.0.1:9"'))

    def break_clock(self):
        later = time.time() + 3600
        os.utime(self.loop.folder.path_of(CAMPAIGN), (later, later))


BREAKS = {
    "campaign file": (Sick.break_campaign_file, "budget = 3 does not pay for round 0", "mend the file"),
    "pool": (Sick.break_pool, "which does not exist", "let `pool` in the campaign file name where they are"),
    "lock": (Sick.break_lock, "symbolic links lead in a circle", "right to read the campaign's folder"),
    "disk": (Sick.break_disk, "0.0 GB free", "free some space"),
    "privacy": (Sick.break_privacy, "password is not there", "labelcycle up"),
    "versions": (Sick.break_versions, "fastapi 0.", "make install"),
    "GPU": (Sick.break_gpu, "is not on this machine", 'device = "auto"'),
    "workers": (Sick.break_workers, "no Ray cluster answers at 127.0.0.1:9", "start the cluster"),
    "clock": (Sick.break_clock, "the clock was set back", "NTP"),
    "Label Studio": (None, "Label Studio at http://127.0.0.1:9 does not answer", "labelcycle up"),
    "MLflow": (None, "MLflow at http://127.0.0.1:9 does not answer", "mend uri in [mlflow]"),
    "Prefect": (None, "there is no Prefect server", "PREFECT_API_URL"),
}
"""How each check comes to fail, what it then tells, and what to do."""


def test_each_check_is_seen_to_fail():
    assert [check.name for check in CHECKS] == list(BREAKS)


@pytest.mark.parametrize("name", BREAKS)
def test_a_check_that_fails_tells_what_is_wrong_and_what_to_do(sick, name):
    damage, told, mend = BREAKS[name]
    [check] = [check for check in CHECKS if check.name == name]
    if damage is not None:
        [before] = examine(sick.subject(), [check])
        assert (before.status, before.mend) == ("ok", ""), before
        damage(sick)
    [finding] = examine(sick.subject(), [check])
    assert finding.status == ("warning" if name == "clock" else "failure")
    assert told in finding.found
    assert mend in finding.mend
    assert "\n" not in finding.found + finding.mend


def test_all_versions_that_are_wrong_are_named(sick):
    sick.break_versions()
    [finding] = machine.versions(sick.subject())
    for wrong in ("Python 3.", "where >=3.99 is wanted", "where <0.1 is wanted", "no-such-package is missing"):
        assert wrong in finding.found
    assert "nothing-of-an-extra" not in finding.found


def test_a_campaign_that_cannot_be_read_leaves_the_checks_of_the_machine(sick):
    sick.break_campaign_file()
    found = {finding.name: finding.status for finding in examine(sick.subject())}
    assert found.pop("campaign file") == "failure"
    assert found.keys() == {"disk", "privacy", "versions", "GPU", "clock", "Label Studio", "MLflow"}


def test_settings_of_another_campaign_in_the_folder_are_found(sick):
    sick.loop.change(("audit_size = 6", "audit_size = 5"))
    [finding] = examine(sick.subject(), [check for check in CHECKS if check.name == "campaign file"])
    assert finding.status == "failure"
    assert "audit_size: 6 -> 5" in finding.found


def test_images_that_are_gone_or_damaged_are_found(sick):
    images = Path(sick.loop.file.parent / "images")
    [pool] = [check for check in CHECKS if check.name == "pool"]
    first = min(images.iterdir())
    first.write_bytes(b"no image")
    [finding] = examine(sick.subject(), [pool])
    assert finding.status == "warning"
    assert f"1 cannot be used, such as {sick.subject().settings.pool / first.name}" in finding.found
    for path in sorted(images.iterdir())[15:]:
        path.unlink()
    [finding] = examine(sick.subject(), [pool])
    assert finding.status == "failure"
    assert "15 images in" in finding.found
    assert "the last run knew 40" in finding.found


def test_a_look_changes_nothing(make_loop, tmp_path):
    loop = make_loop(own_images=True)
    for expected in (["in this process, 0 tasks"], ["in this process, 15 tasks"]):
        before = files_below(tmp_path)
        subject = subject_of(tmp_path / "home", loop.file, tool=loop.tool, tracker=loop.tracker)
        list(examine(subject))
        told = [finding.found for finding in subject.work.tool.check([])]
        assert told[0].startswith(expected[0])
        assert files_below(tmp_path) == before
        loop.run()


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_check_that_does_not_come_back_holds_no_other_up():
    ended = threading.Event()

    def slow(_subject):
        yield Finding("slow", "the first part")
        ended.wait(60)

    def broken(_subject):
        raise ZeroDivisionError("a bug\nof two lines")
        yield

    checks = [
        Check("slow", slow, "start it"),
        Check("broken", broken, "report it"),
        Check("quick", lambda _: iter([Finding("quick", "well")]), "nothing"),
    ]
    began = time.monotonic()
    found = list(examine(Subject(Path("home")), checks, seconds=0.5))
    ended.set()
    assert time.monotonic() - began < 5
    assert found == [
        Finding("slow", "the first part"),
        failure("slow", "no answer within 0 s", "start it"),
        failure("broken", found[2].found, "report it"),
        Finding("quick", "well"),
    ]
    assert "ZeroDivisionError: a bug" in found[2].found


@pytest.mark.parametrize(
    ("seconds", "status", "told"),
    [(30, "ok", "agrees with ours"), (95, "warning", "95 s behind"), (-95, "warning", "95 s ahead of this machine's")],
)
def test_a_clock_that_differs_from_a_servers_is_found(seconds, status, told):
    found = beside_clock(
        "MLflow",
        "3 at http://m",
        "Sun, 29 Nov 2026 12:00:00 GMT",
        datetime(2026, 11, 29, 12, tzinfo=UTC) + timedelta(seconds=seconds),
    )
    assert (found.status, told in found.found) == (status, True)


def test_server_that_tells_no_time_is_well():
    assert beside_clock("MLflow", "3", None) == beside_clock("MLflow", "3", "yesterday") == Finding("MLflow", "3")


def test_what_is_not_well_has_a_mend_and_nothing_else_has():
    for status, mend in (("warning", ""), ("failure", ""), ("ok", "do it")):
        with pytest.raises(ValueError, match="has a mend"):
            Finding("disk", "full", status, mend)


def test_folder_that_others_can_look_into_is_found(sick):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place) / "pets"
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask is
        assert not is_open_to_others(folder)
        Path(place).chmod(0o755)
        assert is_open_to_others(folder)
        sick.loop.change(('folder = "campaign"', f'folder = "{folder}"'))
        [finding] = machine.privacy(sick.subject())
        assert (finding.status, finding.mend) == ("warning", f"chmod -R o-rwx {folder}")
        folder.chmod(0o750)  # a team may share it
        assert not is_open_to_others(folder)


def test_disk_that_cannot_be_written_to_or_takes_no_file_is_found(sick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda _path, _how: False)
        [finding] = machine.disk(sick.subject())
    assert finding.found == f"{sick.loop.folder.path}, for the campaign, cannot be written to"
    assert "mount the disk for writing" in finding.mend
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_files=1000, f_favail=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1e12))
    [finding] = machine.disk(sick.subject())
    assert (finding.status, "takes no more files" in finding.found) == ("failure", True)


def test_gpu_that_torch_cannot_use_and_one_without_room_are_found(monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_gpus_of_driver", lambda: ["H200"])
    [finding] = machine.gpu(Subject(Path("home")))
    assert (finding.status, "though there is H200" in finding.found) == ("warning", True)
    assert "install a build of torch" in finding.mend
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda _device: "H200")
    monkeypatch.setattr(machine.torch.cuda, "mem_get_info", lambda _device: (10**9, 141 * 10**9))
    [finding] = machine.gpu(Subject(Path("home")))
    assert (finding.status, "1.0 of 141.0 GB free" in finding.found) == ("warning", True)


def test_holder_of_a_lock_is_told_and_the_lock_stays_free(sick):
    folder = sick.loop.folder
    with folder.lock():
        told = holder_of(folder.path / LOCK)
        assert told is not None
        assert told.startswith(f"process {os.getpid()} on host {os.uname().nodename}, since ")
    assert holder_of(folder.path / LOCK) is None
    with folder.lock():
        pass
    assert holder_of(folder.path / "no.lock") is None


class Prefect:
    """What Prefect's client reads: a deployment, its runs, workers of a pool."""

    def __init__(self, deployment=None, *, planned=3, late=0, alive=(), workers=()):
        self.deployment, self.alive, self.workers = deployment, list(alive), workers
        now = datetime.now(UTC)
        times = [now + timedelta(minutes=n + 1) for n in range(planned)]
        times += [now - timedelta(minutes=n + 9) for n in range(late)]
        self.scheduled = [run_of(Scheduled(scheduled_time=when), "scheduled") for when in times]

    def hello(self):
        return SimpleNamespace(headers={"date": format_datetime(datetime.now(UTC))})

    def read_deployment_by_name(self, name):
        if self.deployment is None or name != f"labelcycle-round/{self.deployment.name}":
            raise ObjectNotFound(None)
        return self.deployment

    def read_flow_runs(self, *, flow_run_filter, offset, flow_filter=None, limit):
        if offset:
            return []
        bounds = flow_run_filter.next_scheduled_start_time
        if bounds is None:
            return self.alive
        return [
            run
            for run in self.scheduled
            if (bounds.before_ is None or run.expected_start_time <= bounds.before_)
            and (bounds.after_ is None or run.expected_start_time >= bounds.after_)
        ]

    def read_workers_for_work_pool(self, _pool):
        return [SimpleNamespace(name="worker-1", status=status) for status in self.workers]


def run_of(state, name, **more) -> FlowRun:
    when = state.state_details.scheduled_time
    return FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=state, expected_start_time=when, **more)


@pytest.fixture
def scheduled(sick):
    """A campaign with a schedule, its deployment, and what the doctor finds of both."""
    sick.loop.change(("budget = 23", 'budget = 23\nschedule = "*/15 * * * *"\ntimezone = "UTC"'))
    subject = sick.subject()
    file = str(sick.loop.file)

    def deployment(cron="*/15 * * * *", *, active=True, **changes):
        schedules = [DeploymentSchedule(schedule=CronSchedule(cron=cron), active=active)]
        standing = {"parameters": {"campaign_file": file}, "last_polled": datetime.now(UTC), "schedules": schedules}
        return DeploymentResponse(id=uuid4(), name="loop", flow_id=uuid4(), **(standing | changes))

    def found(client) -> dict[str, Finding]:
        return {finding.name: finding for finding in runs_of(subject.work, file, client)}

    return SimpleNamespace(deployment=deployment, found=found, folder=subject.folder, file=file)


def test_schedule_that_is_registered_planned_and_served_is_well(scheduled):
    found = scheduled.found(Prefect(scheduled.deployment()))
    assert {finding.status for finding in found.values()} == {"ok"}, found
    assert list(found) == ["runs", "schedule", "serve", "scheduler", "late runs"]
    assert "next run" in found["schedule"].found
    assert "on another machine" in found["serve"].found
    with hold(scheduled.folder.path / "serve.lock"):
        found = scheduled.found(Prefect(scheduled.deployment(last_polled=None)))
    assert found["serve"].status == "ok"


@pytest.mark.parametrize(
    ("changes", "status", "told", "mend"),
    [
        (None, "warning", "Prefect knows no schedule of it", "labelcycle serve"),
        ({"paused": True}, "failure", "is paused", "resume the deployment loop in Prefect's pages"),
        ({"active": False}, "failure", "is paused", "labelcycle serve"),
        ({"cron": "0 9 * * *"}, "warning", "Prefect goes by 0 9 * * *", "start it again"),
        ({"parameters": {"campaign_file": "/b/x.toml"}}, "warning", "runs /b/x.toml, not ", "labelcycle serve"),
    ],
)
def test_schedule_that_is_not_what_the_file_says_is_found(scheduled, changes, status, told, mend):
    found = scheduled.found(Prefect(None if changes is None else scheduled.deployment(**changes)))["schedule"]
    assert (found.status, told in found.found, mend in found.mend) == (status, True, True), found


def test_schedule_that_nobody_serves_is_found(scheduled):
    old = datetime.now(UTC) - timedelta(minutes=9)
    found = scheduled.found(Prefect(scheduled.deployment(last_polled=old)))["serve"]
    assert (found.status, found.mend) == ("failure", f"labelcycle serve {scheduled.file}")
    in_pool = scheduled.deployment(work_pool_name="gpus")
    found = scheduled.found(Prefect(in_pool, workers=[WorkerStatus.OFFLINE]))["worker"]
    assert (found.status, found.mend) == ("failure", "prefect worker start --pool gpus")
    found = scheduled.found(Prefect(in_pool, workers=[WorkerStatus.ONLINE]))["worker"]
    assert (found.status, found.found) == ("ok", "worker-1 of the work pool gpus")


def test_scheduler_that_plans_nothing_and_runs_that_do_not_begin_are_found(scheduled, monkeypatch):
    monkeypatch.setattr("flows.doctor.schedule.PLAN_SECONDS", 0.01)
    found = scheduled.found(Prefect(scheduled.deployment(), planned=0, late=2))
    assert (found["scheduler"].status, "log of Prefect's server" in found["scheduler"].mend) == ("failure", True)
    assert (found["late runs"].status, "2 scheduled runs" in found["late runs"].found) == ("failure", True)
    with scheduled.folder.lock():
        found = scheduled.found(Prefect(scheduled.deployment(), late=2))
    assert (found["late runs"].status, found["late runs"].found) == ("ok", "2 wait for the run that is on")


def test_runs_whose_process_is_gone_are_found(scheduled):
    scheduled.folder.write(CAMPAIGN_ID, CampaignId("ours"))
    long_ago = Running(timestamp=datetime.now(UTC) - timedelta(hours=1))
    ours = run_of(long_ago, "loop, round 1", tags=["campaign:ours"])
    others = run_of(long_ago, "pets, round 1", tags=["campaign:theirs"])
    found = scheduled.found(Prefect(scheduled.deployment(), alive=[ours, others]))["runs"]
    assert found.status == "warning"
    assert found.found == "1 that Prefect calls alive, such as 'loop, round 1', whose process is gone"
    assert "the next run closes what is left" in found.mend
    with scheduled.folder.lock():
        found = scheduled.found(Prefect(scheduled.deployment(), alive=[ours]))["runs"]
    assert (found.status, found.found) == ("ok", "'loop, round 1' is on")


def test_command_prints_a_line_for_each_check_and_fails_where_one_does(sick, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(sick.home))
    monkeypatch.setenv("COLUMNS", "200")
    well = CliRunner().invoke(app, ["doctor"])
    assert well.exit_code == 0, well.output
    assert "✓ versions: Python 3." in well.output
    assert f"! Label Studio: no servers were ever started from {sick.home}\n    labelcycle up\n" in well.output
    ill = CliRunner().invoke(app, ["doctor", str(sick.loop.file)])
    assert ill.exit_code == 1, ill.output
    assert "✗ Label Studio: Label Studio at http://127.0.0.1:9 does not answer" in ill.output
    told = json.loads(CliRunner().invoke(app, ["doctor", str(sick.loop.file), "--json"]).stdout)
    assert told["well"] is False
    assert {"name", "status", "found", "mend"} == told["checks"][0].keys()
    assert [one["name"] for one in told["checks"]][:3] == ["campaign file", "pool", "lock"]
    assert CliRunner().invoke(app, ["doctor", "--jason"]).exit_code == 2


def test_campaign_file_that_is_not_there_is_a_check_that_fails(sick, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(sick.home))
    found = next(examine(subject_of(sick.home, Path("no.toml"))))
    assert replace(found, found="") == failure("campaign file", "", found.mend)
    assert "no such campaign file" in found.found
