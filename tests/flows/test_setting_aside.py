"""A run that sets images aside has an end."""

import pytest

import flows.unread
from flows.campaign import open_campaign
from pipeline.pool.reasons import ImageError, PoolError


def test_run_ends_where_each_index_takes_an_image_for_usable_that_cannot_be_read(make_loop, monkeypatch):
    loop = make_loop()
    loop.run()
    work = open_campaign(loop.file, tool=loop.tool, tracker=loop.tracker)
    before, uri = work.pool, work.pool.usable["uri"].iloc[0]
    monkeypatch.setattr(flows.unread, "reason_to_set_aside", lambda one, _: "damaged: so" if one == uri else None)
    times = []

    def go():
        assert len(times) < 9, "for ever"
        times.append(work.keep_pool(before))
        raise ImageError(uri, "damaged: so")

    with pytest.raises(PoolError, match="damaged: so: set aside 2 times in this run, and found usable by each index"):
        flows.unread.setting_aside(go, work, lambda _: None)


def test_run_ends_where_several_images_can_be_read_here_and_not_by_the_workers(make_loop):
    loop = make_loop()
    loop.run()
    work = open_campaign(loop.file, tool=loop.tool, tracker=loop.tracker)
    uris = iter(work.pool.usable["uri"])

    def go():
        raise ImageError(next(uris), "cannot be read: forbidden")

    with pytest.raises(ImageError, match=work.pool.usable["uri"].iloc[3]):
        flows.unread.setting_aside(go, work, lambda _: None)
