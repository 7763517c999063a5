"""A campaign that was destroyed comes back from its backup, and goes on as if nothing had happened."""

import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from connectors.annotation import AnnotationToolUnavailable
from connectors.memory import MemoryTool, MemoryTracker
from connectors.store import StoreError
from connectors.tracking import TrackerUnavailable
from flows.artefacts import ANSWERS, PUSHED, ROUND
from flows.backup import renumber, restore_backup, write_backup
from flows.config import ConfigError
from flows.folder import CampaignBusy
from flows.reports.status import campaign_status
from tests.flows.loop import CLASSES, Loop

SECRET = "marked-token-0123456789abcdef"


def status_of(loop: Loop) -> dict:
    """What `labelcycle status --json` prints."""
    return campaign_status(loop.folder, loop.file.parent / "home").as_json()


def given_to(loop: Loop) -> list[tuple]:
    """What people answered, who did and when; without the numbers of tasks and answers."""
    answers = sorted(loop.tool.answers.values(), key=lambda a: (a.round_number, a.item_id))
    return [(a.ask, a.outcome, a.annotation, a.annotator, a.updated_at, a.seconds) for a in answers]


def back_up(loop: Loop) -> Path:
    out = loop.file.parent / "pets.zip"
    write_backup(loop.file, out, tool=loop.tool)
    return out


def destroy(loop: Loop) -> None:
    """The folder, the campaign file, the annotators' server and the tracker are gone; new servers are empty."""
    shutil.rmtree(loop.folder.path)
    loop.file.unlink()
    loop.tool, loop.tracker = MemoryTool(CLASSES), MemoryTracker()
    loop.tool._ids = itertools.count(1000)


def restore(loop: Loop, backup: Path) -> list[str]:
    return restore_backup(backup, loop.file, tool=loop.tool, tracker=loop.tracker)


@pytest.fixture
def begun_loop(make_loop) -> Loop:
    """Two rounds with labels, a skip and a task that somebody deleted; half of the third is labelled."""
    loop = make_loop()
    loop.run()
    loop.skip(loop.batch(0)[-1:])
    loop.label()
    loop.run()
    del loop.tool.tasks[loop.tasks(1)[loop.batch(1)[-1]]]
    loop.label()
    loop.run()
    loop.label(2)
    loop.run()
    return loop


def test_a_destroyed_campaign_stands_where_it_stood_and_asks_for_nothing_twice(begun_loop, make_loop):
    loop = begun_loop
    before, asked, given = status_of(loop), loop.asked(), given_to(loop)
    backup = back_up(loop)
    destroy(loop)
    told = restore(loop, backup)
    assert f"made {len(asked)} tasks with {len(given)} answers again" in " ".join(told)
    after = status_of(loop)
    assert after == before
    assert list(loop.asked().values()) == list(asked.values()), "each task once, in its order"
    assert given_to(loop) == given

    assert "2 of 4 labelled" in loop.run()
    assert status_of(loop)["n_labels_paid"] == before["n_labels_paid"]
    loop.label()
    assert "round 3 asks for" in loop.run()
    third = loop.folder.round(2)
    assert third.has(ROUND)
    assert {a.item_id for a in third.read(ANSWERS)} == set(loop.batch(2)), "no old answer was taken for a new one"
    items = [question.ask.item_id for question in loop.tool.tasks.values()]
    assert len(items) == len(set(items)), "no image was asked for a second time"
    assert set(loop.tasks(3).values()) <= loop.tool.tasks.keys()


def test_a_restored_campaign_ends_as_an_undisturbed_one(begun_loop, make_loop):
    other = Loop(begun_loop.file.parent.with_name("other"), begun_loop.file.parent / "images")
    shutil.copytree(begun_loop.folder.path, other.folder.path)
    other.tool, other.tracker = begun_loop.tool, begun_loop.tracker
    backup = back_up(begun_loop)
    destroy(begun_loop)
    restore(begun_loop, backup)
    for loop in (begun_loop, other):
        loop.label()
        loop.run()
    assert begun_loop.batch(3) == other.batch(3)
    assert begun_loop.known(3) == other.known(3)


def test_a_project_that_is_still_there_is_used_as_it_is(begun_loop):
    before, tasks, answers = status_of(begun_loop), dict(begun_loop.tool.tasks), dict(begun_loop.tool.answers)
    backup = back_up(begun_loop)
    shutil.rmtree(begun_loop.folder.path)
    told = restore(begun_loop, backup)
    assert any("still there" in line for line in told)
    assert (begun_loop.tool.tasks, begun_loop.tool.answers, status_of(begun_loop)) == (tasks, answers, before)


def test_a_restore_that_was_broken_off_goes_on_and_makes_nothing_twice(begun_loop, monkeypatch):
    before, n_tasks, n_answers = status_of(begun_loop), len(begun_loop.tool.tasks), len(begun_loop.tool.answers)
    backup = back_up(begun_loop)
    destroy(begun_loop)
    with monkeypatch.context() as patch:

        def fail(*_arguments):
            raise AnnotationToolUnavailable("away")

        patch.setattr("flows.backup.renumber", fail)
        with pytest.raises(AnnotationToolUnavailable):
            restore(begun_loop, backup)
    assert not begun_loop.folder.path.exists(), "the folder appears when all is done"
    restore(begun_loop, backup)
    assert (len(begun_loop.tool.tasks), len(begun_loop.tool.answers)) == (n_tasks, n_answers)
    assert status_of(begun_loop) == before
    assert [p.name for p in begun_loop.file.parent.iterdir() if p.name.endswith(".part")] == []


def test_two_restores_at_once_keep_out_of_each_others_way(begun_loop, monkeypatch):
    before, backup = status_of(begun_loop), back_up(begun_loop)
    destroy(begun_loop)

    def restore_beside(*arguments):
        with pytest.raises(ConfigError, match="another `labelcycle restore` works"):
            restore(begun_loop, backup)
        renumber(*arguments)

    monkeypatch.setattr("flows.backup.renumber", restore_beside)
    restore(begun_loop, backup)
    assert status_of(begun_loop) == before


def test_a_second_restore_leaves_what_people_did_since_the_first(begun_loop):
    backup = back_up(begun_loop)
    destroy(begun_loop)
    restore(begun_loop, backup)
    first, second = begun_loop.folder.round(0).read(ANSWERS)[:2]
    begun_loop.edit(first.item_id, "left" if first.annotation.regions[0].label != "left" else "right")
    begun_loop.delete(second.item_id)
    begun_loop.label(1)
    tasks, answers = dict(begun_loop.tool.tasks), dict(begun_loop.tool.answers)
    shutil.rmtree(begun_loop.folder.path)

    told = restore(begun_loop, backup)
    assert any("still there" in line for line in told)
    assert (begun_loop.tool.tasks, begun_loop.tool.answers) == (tasks, answers)
    numbers = {one.answer_id for folder in begun_loop.folder.rounds() for one in folder.get(ANSWERS) or ()}
    assert {number for number in numbers if number > 0} <= answers.keys()
    assert [number for number in numbers if number < 0] == [-second_of(backup)]
    begun_loop.label()
    assert "round 3 asks for" in begun_loop.run()


def second_of(backup: Path) -> int:
    """The number that the second answer of round 0 had when it was saved."""
    with zipfile.ZipFile(backup) as archive:
        place = zipfile.Path(archive) / "folder" / "rounds" / "0000" / ANSWERS.name
        with place.open("rb") as file:
            return int(pd.read_parquet(io.BytesIO(file.read()))["answer_id"].iloc[1])


@pytest.mark.parametrize("is_away", [False, True])
def test_rounds_that_the_tracker_knows_and_the_backup_does_not_come_anew(begun_loop, monkeypatch, is_away):
    backup = back_up(begun_loop)
    begun_loop.label()
    begun_loop.run()
    assert begun_loop.tracker.runs.keys() == {"round-0", "round-1", "round-2", "round-3"}
    shutil.rmtree(begun_loop.folder.path)
    begun_loop.tool = MemoryTool(CLASSES)
    if is_away:
        monkeypatch.setattr(begun_loop.tracker, "discard_rounds", Raises(TrackerUnavailable("MLflow is away")))
    told = " ".join(restore(begun_loop, backup))
    if is_away:
        assert "rounds from 2 on, which come anew: MLflow is away." in told
        assert "delete these rounds' runs of the experiment 'loop'" in told
        return
    assert "deleted the runs of 2 rounds in MLflow, from round 2 on" in told
    assert begun_loop.tracker.runs.keys() == {"round-0", "round-1"}
    for question in begun_loop.tool.served():
        begun_loop.tool.answer(question.ask, "left")
    assert "round 3 asks for" in begun_loop.run(), "with other labels than before"


class Raises:
    """A call that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_arguments: object) -> None:
        raise self.error


def test_what_is_restored_is_its_owners_alone_and_a_killed_restore_leaves_nothing(begun_loop):
    backup = back_up(begun_loop)
    destroy(begun_loop)
    folder = begun_loop.folder.path
    left = folder.with_name(f".{folder.name}.{'a' * 32}.part")
    others = [folder.with_name(f".{folder.name}.old.part"), folder.with_name(f".other.{'a' * 32}.part")]
    for each in (left, *others):
        (each / "rounds").mkdir(parents=True)
    before = os.umask(0o022)
    try:
        restore(begun_loop, backup)
    finally:
        os.umask(before)
    assert (folder.stat().st_mode & 0o777, begun_loop.file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert not left.exists()
    assert all(each.exists() for each in others), "they are of something else"


def test_nothing_is_written_over(begun_loop, tmp_path):
    backup = back_up(begun_loop)
    held = {path: path.read_bytes() for path in begun_loop.folder.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"is there already, and nothing is written over: .* with folder in"):
        restore(begun_loop, backup)
    assert {path: path.read_bytes() for path in begun_loop.folder.path.rglob("*") if path.is_file()} == held
    with pytest.raises(ConfigError, match="exists already"):
        back_up(begun_loop)
    begun_loop.change(('name = "loop"', 'name = "another"'))
    with pytest.raises(ConfigError, match="is of the campaign 'another'"):
        restore(begun_loop, backup)


def test_a_campaign_file_that_is_there_tells_where_to(begun_loop):
    before, backup = status_of(begun_loop), back_up(begun_loop)
    destroy(begun_loop)
    with zipfile.ZipFile(backup) as archive:
        text = archive.read("campaign.toml").decode()
    begun_loop.file.write_text(text.replace('folder = "campaign"', 'folder = "elsewhere"'))
    told = restore(begun_loop, backup)
    assert any("it counts" in line for line in told)
    begun_loop.folder.path = begun_loop.folder.path.with_name("elsewhere")
    assert status_of(begun_loop) == before | {
        "folder": str(begun_loop.folder.path),
        "suspicious": status_of(begun_loop)["suspicious"],
    }


def test_images_that_are_missing_are_told_and_a_pool_that_moved_is_found(begun_loop, tmp_path):
    backup = back_up(begun_loop)
    images = begun_loop.file.parent / "images"
    place = images.resolve()
    destroy(begun_loop)
    images.unlink()
    told = " ".join(restore(begun_loop, backup))
    assert "40 of 40 images are not where the campaign knows them" in told

    shutil.rmtree(begun_loop.folder.path)
    moved = Path(shutil.copytree(place, tmp_path / "moved"))
    begun_loop.change(('pool = "images"', f'pool = "{moved}"'))
    begun_loop.tool = MemoryTool(CLASSES)
    begun_loop.tool._ids = itertools.count(5000)
    assert "images are not where" not in " ".join(restore(begun_loop, backup))
    assert {Path(question.uri).parent for question in begun_loop.tool.tasks.values()} == {moved}


def test_a_backup_is_private_and_holds_no_secret(begun_loop, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", SECRET)
    (begun_loop.folder.path / "serve.log").write_text(f"token {SECRET}")
    backup = back_up(begun_loop)
    assert backup.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(backup) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, content in held.items() if SECRET.encode() in content]
    assert not [name for name in held if "lock" in name or "serve" in name or ".part" in name]
    assert json.loads(held["manifest.json"])["members"].keys() == held.keys() - {"manifest.json"}


def test_a_backup_waits_for_nobody_and_is_whole_or_not_there(begun_loop):
    out = begun_loop.file.parent / "pets.zip"
    with begun_loop.folder.lock(), pytest.raises(CampaignBusy):
        write_backup(begun_loop.file, out, tool=begun_loop.tool)
    begun_loop.folder.round(0).path_of(PUSHED).write_text("{")
    with pytest.raises(StoreError, match=r"pushed\.json is damaged"):
        write_backup(begun_loop.file, out, tool=begun_loop.tool)
    assert not list(begun_loop.file.parent.glob("*pets.zip*"))


def test_a_campaign_that_has_asked_for_nothing_needs_no_annotators(make_loop):
    loop = make_loop()
    with pytest.raises(ConfigError, match="holds no campaign yet"):
        back_up(loop)
