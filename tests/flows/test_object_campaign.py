"""A campaign whose images are in an object store goes as one on a disk; what cannot be used is set aside on the way."""

import io
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import flows.advance
from connectors.image_folder.index import index_pool
from connectors.memory import MemoryTool
from connectors.objects import store as store_module
from connectors.objects.cache import usage
from flows.artefacts import LABELLED, PIXEL_RANGES, POOL
from flows.backup import restore_backup, write_backup
from flows.campaign import open_campaign
from flows.config import ConfigError, load_settings
from flows.exchange import _root as folder_of_images
from flows.kept_objects import objects_folder
from flows.replay.inputs import digest_of, read_campaign_labels
from flows.results import predict_files, write_labels
from flows.successor import write_successor
from pipeline.pool.reasons import GONE, PoolRefused, PoolUnavailable
from pipeline.pool.table import usable
from tests import s3
from tests.flows.loop import CLASSES, Loop
from tests.s3 import IMPOSTOR


@pytest.fixture
def loop(loop_images, tmp_path, s3_environment, bucket, monkeypatch) -> Loop:
    """The campaign of the other loops, whose images are in a bucket."""
    store_module._store.cache_clear()
    monkeypatch.setattr(store_module, "_READS", store_module._FirstReads())
    s3_environment.put(bucket, {f"pool/{path.name}": path.read_bytes() for path in loop_images.iterdir()})
    made = Loop(tmp_path / "loop", loop_images)
    made.change(('pool = "images"', f'pool = "s3://{bucket}/pool"'))
    return made


def reasons(loop):
    rows = loop.folder.read(POOL).table.dropna(subset=["set_aside_reason"])
    return dict(zip((Path(uri).name for uri in rows["uri"]), rows["set_aside_reason"], strict=True))


def before_going_on(monkeypatch, act):
    """Do something between the index and all that comes after it in the next run."""
    advance = flows.advance.advance
    left = [act]

    def acting(folder, work):
        while left:
            left.pop()()
        return advance(folder, work)

    monkeypatch.setattr(flows.advance, "advance", acting)


def test_runs_to_its_second_batch_and_is_good_for_labels_and_predictions(loop, tmp_path, bucket, monkeypatch):
    assert loop.run() == "round 0 asks for 15 labels"
    assert all(task.uri.startswith(f"s3://{bucket}/pool/") for task in loop.tool.tasks.values())
    loop.label()
    assert loop.run() == "round 1 asks for 4 labels"
    loop.label()
    settings = open_campaign(loop.file).settings
    monkeypatch.chdir(tmp_path)
    assert write_labels(settings, Path("labels.csv")) == 15
    done = predict_files(settings, f"s3://{bucket}/pool", Path("all.csv"))
    assert done.n_images == 40
    assert predict_files(settings, f"s3://{bucket}/pool/07.png", Path("one.csv")).n_images == 1
    assert usage(objects_folder())[0] == 40


def test_objects_that_hold_no_image_are_set_aside_by_the_run_that_reads_them(loop, s3_environment, bucket):
    loop.run()
    loop.label()
    s3_environment.put(bucket, {f"pool/{n}.png": b"no image %d" % n for n in range(100, 103)})
    outcome = loop.run_as()
    assert outcome.message == "round 1 asks for 4 labels"
    reason = "not an image: the content is of no known image format"
    assert reasons(loop) == {f"{n}.png": reason for n in range(100, 103)}
    assert any(line.startswith("3 not an image: such as s3://") for line in outcome.notes) or any(
        "3 not an image" in line for line in outcome.notes
    )
    loop.label()
    assert loop.run() == "round 2 asks for 4 labels"
    assert len(reasons(loop)) == 3


def test_first_batch_asks_for_no_broken_image(loop, s3_environment, bucket):
    s3_environment.put(bucket, {f"pool/{n}.png": b"no image %d" % n for n in range(100, 120)})
    assert loop.run() == "round 0 asks for 15 labels"
    assert len(reasons(loop)) == 20
    assert not any("/1" in task.uri and len(Path(task.uri).stem) == 3 for task in loop.tool.tasks.values())
    assert (loop.folder.read(POOL).table["split"] == "audit").sum() == 6


def test_object_that_vanishes_between_index_and_scoring_stops_no_run(loop, s3_environment, bucket, monkeypatch):
    loop.run()
    loop.label()
    asked = {Path(task.uri).name for task in loop.tool.tasks.values()}
    name = next(f"{n:02d}.png" for n in range(40) if f"{n:02d}.png" not in asked)
    shutil.rmtree(objects_folder())  # which would have it still
    before_going_on(monkeypatch, lambda: s3_environment.delete(bucket, f"pool/{name}"))
    assert loop.run() == "round 1 asks for 4 labels"
    assert [(place, why.partition(":")[0]) for place, why in reasons(loop).items()] == [(name, GONE)]
    loop.label()
    assert loop.run() == "round 2 asks for 4 labels"
    assert set(reasons(loop)) == {name}


def test_labelled_object_that_changes_in_the_middle_of_a_run_begins_the_round_anew(
    loop, s3_environment, bucket, loop_images, monkeypatch
):
    loop.run()
    loop.label()
    labelled = next(task.uri for task in loop.tool.tasks.values())
    name = Path(labelled).name
    shutil.rmtree(objects_folder())
    other = (loop_images / "00.png").read_bytes() + b" "
    before_going_on(monkeypatch, lambda: s3_environment.put(bucket, {f"pool/{name}": other}))
    assert loop.run() == "round 1 asks for 4 labels"
    assert reasons(loop) == {name: "file changed since it was indexed"}
    labels = loop.folder.round(1).read(LABELLED)
    assert labelled not in labels.table["uri"].tolist()


def test_what_goes_out_of_a_campaign_names_addresses(loop, tmp_path, bucket, monkeypatch):
    loop.run()
    loop.label()
    monkeypatch.chdir(tmp_path)
    loop.run()
    settings = open_campaign(loop.file).settings
    (tmp_path / "new").mkdir()
    write_successor(tmp_path / "new" / "again.toml", loop.file)
    manifest = pd.read_csv(tmp_path / "new" / "again-labels.csv")
    assert sorted(manifest["uri"])[0] == f"s3://{bucket}/pool/00.png"
    new = load_settings(tmp_path / "new" / "again.toml")
    table = index_pool(new.pool_source, None, audit_size=2, seed=0)
    assert usable(table)["label"].notna().sum() == 15
    rows, _ = read_campaign_labels(settings)
    assert len(rows) == 15
    assert digest_of(rows, None) == digest_of(rows, None)
    with pytest.raises(ConfigError, match="15 images are at addresses: write the labels as a table"):
        folder_of_images(tmp_path, loop.folder.read(POOL).usable["uri"].head(15).tolist())


def test_black_and_white_of_deep_pixels_are_those_of_a_sample(loop, s3_environment, bucket):
    draw = np.random.default_rng(0)
    for n in range(40):
        deep = io.BytesIO()
        Image.fromarray(draw.integers(100, 4096, (8, 8)).astype(np.uint16)).save(deep, "PNG")
        s3_environment.put(bucket, {f"pool/{n:02d}.png": deep.getvalue()})
    loop.run()
    (found,) = loop.folder.read(PIXEL_RANGES).ranges
    assert found.n_images == 40
    assert 4000 < found.high < 4096


def test_campaign_comes_back_from_its_backup(loop, bucket):
    loop.run()
    loop.label(5)
    backup = loop.file.parent / "loop.zip"
    write_backup(loop.file, backup, tool=loop.tool)
    shutil.rmtree(loop.folder.path)
    loop.file.unlink()
    loop.tool = MemoryTool(CLASSES)
    restore_backup(backup, loop.file, tool=loop.tool, tracker=loop.tracker)
    assert len(loop.tool.answers) == 5
    assert all(task.uri.startswith(f"s3://{bucket}/pool/") for task in loop.tool.tasks.values())
    loop.label()
    assert loop.run() == "round 1 asks for 4 labels"


def test_run_that_was_killed_goes_on(loop, training_is_killed):
    loop.run()
    loop.label()
    with training_is_killed(after=1):
        loop.run()
    assert loop.run() == "round 1 asks for 4 labels"


@pytest.mark.parametrize(("gigabytes", "keeps_pool"), [(0.000005, False), (1, True)])
def test_candidates_are_kept_on_the_disk_where_the_whole_pool_fits(loop, gigabytes, keeps_pool):
    loop.change(("budget = 23", f"budget = 23\nimage_cache_gb = {gigabytes}"))
    loop.run()
    images = open_campaign(loop.file).images
    rows = images.pool.usable
    assert images.reading_of(rows).objects.cache is not None
    assert (images.reading_of(rows, of_pool=True).objects.cache is not None) == keeps_pool


def test_store_that_is_away_stops_the_run_which_goes_on_when_it_is_back(loop_images, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", timedelta(seconds=1))
    with s3.started(tmp_path / "s3") as (server, process):
        store_module._store.cache_clear()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.put("pets", {path.name: path.read_bytes() for path in loop_images.iterdir()})
        loop = Loop(tmp_path / "loop", loop_images)
        loop.change(('pool = "images"', 'pool = "s3://pets"'))
        loop.run()
        loop.label()
        before = loop.folder.read(POOL).table
        process.kill()
        process.wait()
        with pytest.raises(PoolUnavailable, match="s3://pets: the store does not answer"):
            loop.run()
        assert loop.folder.read(POOL).table.equals(before)
        again = s3._start(tmp_path / "s3", server.port)
        monkeypatch.setattr(store_module, "PATIENCE", timedelta(seconds=60))  # while the server begins
        store_module._store.cache_clear()
        assert loop.run() == "round 1 asks for 4 labels"
        again.kill()
        again.wait()


def test_wrong_secret_stops_the_run_and_sets_nothing_aside(loop, s3_environment, monkeypatch):
    loop.run()
    loop.label()
    before = loop.folder.read(POOL).table
    store_module._store.cache_clear()
    for name, value in s3_environment.environment(IMPOSTOR).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PoolRefused, match="refuses the credentials"):
        loop.run()
    assert loop.folder.read(POOL).table.equals(before)
    assert len(usable(before)) == 40
