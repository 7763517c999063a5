"""What people are told, and how often: campaigns in memory, whose command writes each event down."""

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from PIL import Image
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed
from typer.testing import CliRunner

from connectors.annotation import AnnotationToolError
from connectors.notify.hooks import WEBHOOK
from connectors.store import write_json
from flows.artefacts import CONFIG, DRAWN_AUDIT, METRICS, NOTIFIED, PUSHED
from flows.campaign import OpenCampaign, open_campaign
from flows.cli import app
from flows.config import ConfigError, load_settings
from flows.events import standing_of
from flows.notify import Teller, failure_told, run_and_tell, tell_from_outside
from flows.outcome import RoundOutcome
from flows.records import DrawnAudit
from flows.round import work_on
from tests.connectors.test_hooks import receiver
from tests.flows.loop import Loop
from tests.flows.rounds import metrics_of

APPEND = "import sys; open('told.jsonl', 'a').write(sys.stdin.read())"
COMMAND = f"command = {json.dumps([sys.executable, '-c', APPEND])}\n"


@pytest.fixture(autouse=True)
def _no_webhook(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    monkeypatch.delenv(f"{WEBHOOK}_FILE", raising=False)


@pytest.fixture
def make_told(make_loop):
    """A campaign in memory whose command writes each event down; with other settings of [notify]."""

    def make(settings: str = "", **changes: int) -> Loop:
        loop = make_loop(**changes)
        loop.change(("[members]", f"[notify]\n{COMMAND}{settings}\n[members]"))
        return loop

    return make


def run(loop: Loop, work_on: Callable[[OpenCampaign], RoundOutcome] = work_on) -> RoundOutcome:
    """Do what can be done, as a new process, and tell of it as the flow does."""
    with failure_told(loop.file):
        work = open_campaign(loop.file, tool=loop.tool, tracker=loop.tracker)
        with work.folder.lock():
            return run_and_tell(work, loop.file, work_on)


def fail(_: OpenCampaign) -> RoundOutcome:
    raise AnnotationToolError("nobody is there")


def die(loop: Loop) -> None:
    """A run whose process is killed: nothing that it would do afterwards is done."""
    Teller("loop", loop.file, loop.folder, load_settings(loop.file).notify).mark()


def told(loop: Loop) -> list[dict[str, str]]:
    """What the command got since the last time."""
    path = loop.file.parent / "told.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def kinds(loop: Loop) -> list[str]:
    return [event["event"] for event in told(loop)]


def later(loop: Loop, **by: float) -> None:
    """Let so much time pass since all that was told and pushed."""

    def earlier(moment: str) -> str:
        return (datetime.fromisoformat(moment) - timedelta(**by)).isoformat()

    record = loop.folder.read(NOTIFIED)
    loop.folder.write(NOTIFIED, replace(record, told=tuple(replace(one, at=earlier(one.at)) for one in record.told)))
    for folder in loop.folder.rounds():
        if folder.has(PUSHED):
            pushed = folder.read(PUSHED)
            folder.write(PUSHED, replace(pushed, pushed_at=earlier(pushed.pushed_at)))


def test_a_failure_is_told_once_and_again_while_it_lasts_and_anew_when_it_comes_back(make_told):
    loop = make_told('again_after = "1d"')
    run(loop)
    for _ in range(3):
        with pytest.raises(AnnotationToolError):
            run(loop, fail)
    (event,) = told(loop)
    assert (event["event"], event["campaign"], event["message"]) == ("failed", "loop", "nobody is there")
    assert event["text"] == "loop: nobody is there"
    later(loop, hours=25)
    with suppress(AnnotationToolError):
        run(loop, fail)
    assert kinds(loop) == ["failed"]
    run(loop)
    with suppress(AnnotationToolError):
        run(loop, fail)
    assert kinds(loop) == ["failed"], "the run between ended it"


def test_a_run_whose_process_died_is_told_by_the_next(make_told):
    loop = make_told()
    die(loop)
    assert kinds(loop) == []
    run(loop)
    (event,) = told(loop)
    assert (event["event"], "died: it was killed" in event["message"]) == ("failed", True)
    run(loop)
    assert kinds(loop) == []


def test_runs_that_die_each_time_are_told_though_none_ends(make_told):
    loop = make_told()
    for _ in range(4):
        die(loop)
    assert kinds(loop) == ["failed"]
    later(loop, days=2)
    die(loop)
    assert kinds(loop) == ["failed"]


def test_a_run_that_a_person_stops_did_not_die(make_told):
    loop = make_told()

    def stop(_: OpenCampaign) -> RoundOutcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loop, stop)
    run(loop)
    assert kinds(loop) == []


def test_a_campaign_file_that_is_wrong_elsewhere_is_told(make_told):
    loop = make_told()
    loop.change(("max_epochs = 1", "max_epochs = -1"))
    for _ in range(2):
        with pytest.raises(ConfigError):
            run(loop)
    (event,) = told(loop)
    assert "max_epochs" in event["message"]


def test_labels_that_are_awaited_for_days_are_told_each_time_again(make_told):
    loop = make_told('awaiting_after = "3d"')
    run(loop)
    run(loop)
    assert kinds(loop) == []
    later(loop, days=3, hours=2)
    loop.label(5)
    run(loop)
    (event,) = told(loop)
    assert event["message"] == "round 0 awaits labels: 5 of 15 labelled, 3 d 2 h after they were asked for"
    assert event["address"] == "memory:"
    run(loop)
    assert kinds(loop) == []
    later(loop, days=3)
    run(loop)
    assert kinds(loop) == ["awaiting"]


def test_each_new_champion_is_told_once_and_the_end_of_the_budget_too(make_told):
    loop = make_told()
    run(loop)
    loop.label()
    run(loop)
    (event,) = told(loop)
    assert event["event"] == "new_champion"
    assert event["message"].startswith("the model of round 1 is the best so far: audit accuracy ")
    run(loop)
    assert kinds(loop) == []
    best = loop.folder.round(1).read(METRICS)
    loop.folder.round(1).write(METRICS, replace(best, low=0.0))
    loop.label()
    run(loop)
    assert kinds(loop) == ["new_champion"]
    loop.label()
    run(loop)
    assert "budget_spent" in kinds(loop)
    run(loop)
    assert kinds(loop) == []


def test_the_end_of_a_campaign_is_told_by_its_cause(make_told):
    loop = make_told()
    loop.change(("query_size = 4", "query_size = 4\ntarget_accuracy = 0.5"))
    run(loop)
    loop.label()
    run(loop)
    outcome = RoundOutcome("finished", 1, "the campaign is finished")

    def causes() -> list[str]:
        work = open_campaign(loop.file, tool=loop.tool, tracker=loop.tracker)
        return [one.kind for one in standing_of(work, outcome) if one.kind != "new_champion"]

    assert causes() == ["finished"]
    loop.folder.round(1).write(METRICS, metrics_of(200, 200))
    assert causes() == ["target_reached"]
    loop.change(("target_accuracy = 0.5\n", ""), ("budget = 23", "budget = 19"))
    assert causes() == ["budget_spent"]


def test_what_is_not_wanted_is_not_told(make_told):
    loop = make_told('on = ["awaiting"]')
    run(loop)
    loop.label()
    run(loop)
    with suppress(AnnotationToolError):
        run(loop, fail)
    assert kinds(loop) == []


def test_an_audit_set_that_the_pool_outgrew_is_told_once_and_printed_each_time(make_told):
    loop = make_told('on = ["audit_outgrown"]')
    run(loop)
    n_images = loop.folder.read(DRAWN_AUDIT).n_images
    assert n_images == 40
    loop.folder.write(DRAWN_AUDIT, DrawnAudit(33))
    assert not any("came after" in note for note in run(loop).notes), "7 of 40 are less than a fifth"
    loop.folder.write(DRAWN_AUDIT, DrawnAudit(30))
    printed = [note for _ in range(2) for note in run(loop).notes if "came after" in note]
    assert len(printed) == 2
    (event,) = told(loop)
    assert "10 of 40 images came after the audit set was drawn" in event["message"]
    assert "off by up to 25 points" in event["message"]


def test_a_pool_that_grows_outgrows_its_audit_set(make_loop):
    loop = make_loop(own_images=True)
    loop.change(("[members]", f"[notify]\n{COMMAND}\n[members]"))
    run(loop)
    draw = np.random.default_rng(1)
    for number in range(40, 52):
        pixels = draw.integers(0, 255, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(loop.file.parent / "images" / f"{number}.png")
    run(loop)
    (event,) = told(loop)
    assert event["event"] == "audit_outgrown"
    assert event["message"].startswith("12 of 52 images came after the audit set was drawn")


def test_a_hook_that_fails_is_a_warning_and_is_tried_again(make_told, monkeypatch):
    loop = make_told()
    run(loop)
    loop.label()
    with monkeypatch.context() as patch:
        patch.setenv(WEBHOOK, "http://127.0.0.1:1/s3cret")
        outcome = run(loop)
    assert outcome.kind == "asked"
    (warning,) = outcome.warnings
    assert warning.startswith("the webhook that is to be told of 'new_champion' cannot be reached: ")
    assert f"`labelcycle notify {loop.file}` tries it now" in warning
    assert "s3cret" not in warning
    assert kinds(loop) == ["new_champion"], "the other hook got it"
    with receiver() as (address, got):
        monkeypatch.setenv(WEBHOOK, f"{address}/s3cret")
        assert run(loop).warnings == ()
    assert [json.loads(body)["event"] for _, _, body in got] == ["new_champion"]
    assert kinds(loop) == [], "the command was told before"
    assert "s3cret" not in "".join(path.read_text() for path in loop.folder.path.rglob("*.json"))


def test_a_hook_that_fails_leaves_the_failure_of_a_run_as_it_is(make_told, capsys):
    loop = make_told()
    loop.change((COMMAND, 'command = ["false"]\n'))
    for _ in range(2):
        with pytest.raises(AnnotationToolError, match="nobody is there"):
            run(loop, fail)
        told = (
            "Warning: the command that is to be told of 'failed' ended with the exit code 1; the next run tries again"
        )
        assert told in capsys.readouterr().err


def test_a_death_that_a_hook_did_not_take_is_told_by_a_later_run(make_told):
    loop = make_told()
    loop.change((COMMAND, 'command = ["false"]\n'))
    die(loop)
    run(loop)
    loop.change(('command = ["false"]\n', COMMAND))
    run(loop)
    assert kinds(loop) == ["failed"]


def test_what_is_in_notify_is_written_to_no_file_and_not_tracked(make_told):
    loop = make_told()
    loop.change(("told.jsonl', 'a'", "s3cret', 'a'"))
    run(loop)
    loop.label()
    run(loop)
    (loop.file.parent / "s3cret").unlink()
    files = [path for path in loop.folder.path.rglob("*") if path.is_file()]
    assert loop.folder.round(1).has(CONFIG)
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []
    assert "s3cret" not in repr(loop.tracker.runs)


def test_without_a_hook_nothing_is_written_down(make_loop):
    loop = make_loop()
    run(loop)
    assert not loop.folder.has(NOTIFIED)


@pytest.mark.parametrize("content", ["", "{", '{"told": 3}'])
def test_a_damaged_record_is_told_and_begun_anew(make_told, capsys, content):
    loop = make_told()
    with suppress(AnnotationToolError):
        run(loop, fail)
    loop.folder.path_of(NOTIFIED).write_text(content)
    with suppress(AnnotationToolError):
        run(loop, fail)
    assert kinds(loop) == ["failed", "failed"]
    assert capsys.readouterr().err.count("what was told is told again: ") == 1


def test_a_full_disk_is_told_though_that_cannot_be_written_down(make_told, monkeypatch):
    loop = make_told()
    run(loop)

    def full(*_):
        raise OSError(28, "No space left on device")

    def fail_writing(work: OpenCampaign) -> RoundOutcome:
        monkeypatch.setattr(Path, "replace", full)
        write_json(work.folder.path / "a.json", {})
        raise AssertionError

    with pytest.raises(Exception, match="the disk is full"):
        run(loop, fail_writing)
    monkeypatch.undo()
    (event,) = told(loop)
    assert "the disk is full" in event["message"]


def test_who_serves_tells_of_a_silent_schedule_and_of_runs_that_could_not_tell_themselves(make_told):
    loop = make_told()
    run(loop)
    teller = Teller("loop", loop.file, loop.folder, load_settings(loop.file).notify)
    for _ in range(2):
        tell_from_outside(teller, "schedule_silent", "Prefect does not answer")
    assert kinds(loop) == ["schedule_silent"]
    with suppress(AnnotationToolError):
        run(loop, fail)
    assert kinds(loop) == ["failed"]
    tell_from_outside(teller, "failed", "round 0: failed: nobody is there")
    assert kinds(loop) == [], "the run told it"
    run(loop)
    tell_from_outside(teller, "failed", "round 0: failed: the file holds no TOML")
    assert kinds(loop) == ["failed"]
    run(loop)
    die(loop)
    tell_from_outside(teller, "failed", "round 0: its process is gone")
    assert kinds(loop) == ["failed"]
    run(loop)
    assert kinds(loop) == [], "the next run finds it told"


def test_the_command_tries_each_hook(make_told, monkeypatch):
    loop = make_told()
    done = CliRunner().invoke(app, ["notify", str(loop.file)])
    assert (done.exit_code, done.output.strip()) == (0, "The command took the event.")
    (event,) = told(loop)
    assert (event["event"], event["campaign"], event["file"]) == ("test", "loop", str(loop.file))
    assert datetime.now(UTC) - datetime.fromisoformat(event["at"]) < timedelta(minutes=5)
    with receiver(404) as (address, _):
        monkeypatch.setenv(WEBHOOK, f"{address}/s3cret")
        done = CliRunner().invoke(app, ["notify", str(loop.file)])
    assert done.exit_code == 1
    assert "Error: the webhook refuses, with the status 404" in done.output
    assert "s3cret" not in done.output


def test_the_command_says_how_to_set_somebody_to_tell(make_loop):
    done = CliRunner().invoke(app, ["notify", str(make_loop().file)])
    assert done.exit_code == 2
    assert "set command in [notify], or the address of a webhook in LABELCYCLE_WEBHOOK" in done.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('webhook = "https://h/s3cret"', "the address of a webhook is a secret: take webhook out, and export"),
        ('command = "curl https://h/s3cret"', "notify.command: must be a list, a program and its arguments"),
        ('on = ["failure"]', "notify.on: Input should be 'failed'"),
    ],
)
def test_a_wrong_setting_is_explained_without_a_secret(make_loop, line, message):
    loop = make_loop()
    loop.change(("[members]", f"[notify]\n{line}\n[members]"))
    with pytest.raises(ConfigError) as caught:
        load_settings(loop.file)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_flow_run_tells(make_told, monkeypatch):
    from flows import flow

    loop = make_told()
    die(loop)
    monkeypatch.setattr(flow.books, "sign", lambda *_, **__: None)
    monkeypatch.setattr(flow.books, "put_right", lambda _: ())
    monkeypatch.setattr(flow, "open_campaign", lambda file: open_campaign(file, tool=loop.tool, tracker=loop.tracker))
    assert flow.run_round.fn(str(loop.file)).name == "AskedForLabels"
    assert kinds(loop) == ["failed"]
    monkeypatch.setattr(flow, "work_on", fail)
    with pytest.raises(AnnotationToolError):
        flow.run_round.fn(str(loop.file))
    assert kinds(loop) == ["failed"]


def test_a_service_tells_what_no_run_can_tell(make_told, monkeypatch, capsys):
    from flows.serve import service

    loop = make_told()
    settings = load_settings(loop.file)
    monkeypatch.setenv("LABELCYCLE_HOME", str(loop.file.parent))
    with closing(asyncio.new_event_loop()) as events_loop:
        serving = service.Service(loop.file, settings, loop.folder, ZoneInfo("UTC"), sys.stdout, events_loop)
        serving.now = datetime.now(UTC)
        crashed = FlowRun(flow_id=uuid4(), name="loop, round 1", state=Crashed(message="its process is gone"))
        monkeypatch.setattr(serving, "runs_to_tell", lambda _: [crashed])
        for _ in range(2):
            serving.tell_runs(None)
        began = time.monotonic()
        for seconds in (0, service.SILENT_SECONDS - 1, service.SILENT_SECONDS + 1, service.SILENT_SECONDS + 2, 9000):
            monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda now=began + seconds: now))
            serving.tell_away(ConnectionError("refused"))
    events = told(loop)
    assert [event["event"] for event in events] == ["failed", "schedule_silent"]
    assert "loop, round 1" in events[0]["message"]
    assert events[1]["message"] == "Prefect has not answered for 15 minutes, and no run begins"
    assert capsys.readouterr().out.count("Prefect does not answer") == 1


def test_a_secret_in_a_wrong_setting_is_not_told(make_told, capsys):
    loop = make_told()
    loop.change((COMMAND, 'command = "curl https://chat.example.org/s3cret"\n'))
    with pytest.raises(ConfigError) as caught, failure_told(loop.file):
        load_settings(loop.file)
    shown = capsys.readouterr()
    assert "s3cret" not in "".join([*traceback.format_exception(caught.value), shown.out, shown.err])


def test_a_run_that_ends_while_a_hook_is_told_is_not_taken_for_dead(make_told, monkeypatch):
    loop = make_told()
    teller = Teller("loop", loop.file, loop.folder, load_settings(loop.file).notify)
    die(loop)
    send = Teller.event

    def end_meanwhile(self, *arguments, **more):
        teller.unmark()
        return send(self, *arguments, **more)

    monkeypatch.setattr(Teller, "event", end_meanwhile)
    tell_from_outside(teller, "schedule_silent", "nobody is there")
    assert loop.folder.read(NOTIFIED).running_since is None
    assert loop.folder.read(NOTIFIED).died is None


def test_another_failure_is_told_and_the_same_one_is_not(make_told):
    loop = make_told()

    def fail_with(text):
        def fail(_):
            raise AnnotationToolError(text)

        with suppress(AnnotationToolError):
            run(loop, fail)

    for text in ("no answer for 3 s", "no answer for 14 s", "the project is gone"):
        fail_with(text)
    assert [event["message"] for event in told(loop)] == ["no answer for 3 s", "the project is gone"]
