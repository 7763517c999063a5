"""A run that waits for labels looks at the pool's folders alone; a round begins on a pool that was looked at whole."""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flows.pool_look
import flows.round
from connectors.image_folder import folder_times
from flows.artefacts import POOL, POOL_FOLDERS, POOL_NOTES
from pipeline.pool.reasons import CHANGED
from pipeline.pool.table import set_aside_counts


@pytest.fixture
def loop(make_loop, monkeypatch):
    """A campaign that waits for its first labels; none of its folders changed a moment ago."""
    monkeypatch.setattr(folder_times, "FRESH_NS", 0)
    loop = make_loop(own_images=True)
    loop.run()
    return loop


@pytest.fixture
def n_looks(monkeypatch):
    """How often all files of the pool were looked at."""
    calls = []
    index = flows.round.index_pool
    monkeypatch.setattr(flows.round, "index_pool", lambda *a, **how: calls.append(1) or index(*a, **how))
    return lambda: len(calls)


@pytest.fixture
def images(loop):
    """The folder of the pool."""
    return (loop.file.parent / "images").resolve()


def write_over(path, seed=99):
    """Another image in place of a file, as programs do that keep it open; its folder does not show it."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def test_run_that_waits_looks_at_no_file(loop, n_looks):
    assert "awaits labels" in loop.run()
    assert n_looks() == 0


def test_run_of_a_campaign_that_has_ended_looks_at_no_file(loop, n_looks):
    for _ in range(3):
        loop.label()
        loop.run()
    before = n_looks()
    assert loop.run_as().kind == "finished"
    assert n_looks() == before


def test_file_that_came_is_found_at_once(loop, n_looks, images):
    write_over(images / "99.png")
    assert any("1 image new" in line for line in loop.run_as().notes)
    assert n_looks() == 1
    assert loop.run_as().notes == ()
    assert n_looks() == 1


def test_file_that_was_written_over_is_found_before_the_next_round_begins(loop, n_looks, images):
    asked = set(loop.batch(0))
    pool = loop.folder.read(POOL).usable
    path = pool.loc[~pool["item_id"].isin(asked), "uri"].iloc[0]
    write_over(images / Path(path).name)
    loop.run()
    assert n_looks() == 0
    loop.label()
    assert "round 1 asks for" in loop.run()
    assert n_looks() == 1
    assert set_aside_counts(loop.folder.read(POOL).table) == {CHANGED: 1}


def test_round_that_was_broken_off_goes_on_with_a_pool_that_was_looked_at(loop, n_looks, monkeypatch):
    loop.label()
    with monkeypatch.context() as patched:
        patched.delattr("flows.advance.begin")
        with pytest.raises(NameError):
            loop.run()
    before = n_looks()
    assert "round 1 asks for" in loop.run()
    assert n_looks() == before + 1


def test_all_files_are_looked_at_once_a_day(loop, n_looks, images, monkeypatch):
    write_over(images / "00.png") if (images / "00.png").exists() else write_over(next(images.iterdir()))
    monkeypatch.setattr(flows.pool_look, "TRUSTED_FOR", timedelta(0))
    loop.run()
    assert n_looks() == 1
    assert set_aside_counts(loop.folder.read(POOL).table) == {CHANGED: 1}


@pytest.mark.parametrize("gone", [POOL_FOLDERS, POOL_NOTES])
def test_all_files_are_looked_at_where_what_an_earlier_look_left_is_gone(loop, n_looks, gone):
    loop.folder.path_of(gone).unlink()
    loop.run()
    assert n_looks() == 1
    assert loop.folder.has(gone)


def test_all_files_are_looked_at_where_the_table_came_from_elsewhere(loop, n_looks):
    pool = loop.folder.path_of(POOL)
    shutil.copy(pool, pool.with_name("copy"))
    pool.with_name("copy").rename(pool)
    loop.run()
    assert n_looks() == 1


def test_all_files_are_looked_at_where_the_pool_is_asked_for_otherwise(loop, n_looks):
    loop.change(("budget =", "max_unused = 0.9\nbudget ="))
    loop.run()
    assert n_looks() == 1
