"""Files of a disk that vanish in the middle of a run are set aside, unless it is the disk that is gone."""

from pathlib import Path

import pytest

import flows.round
from flows.artefacts import LABELLED, POOL
from pipeline.pool.reasons import PoolError
from pipeline.pool.table import usable


@pytest.fixture
def vanishing(monkeypatch):
    """Let files vanish between the index and all that comes after it in the next run."""

    def vanish(*files: Path) -> None:
        go_on, left = flows.round.go_on, [files]

        def going_on(work, **how):
            for file in left.pop() if left else ():
                file.unlink()
            return go_on(work, **how)

        monkeypatch.setattr(flows.round, "go_on", going_on)

    return vanish


def test_candidate_that_vanishes_is_left_out_and_the_round_goes_on(make_loop, vanishing):
    loop = make_loop(own_images=True)
    loop.run()
    asked = {task.uri for task in loop.tool.tasks.values()}
    loop.label()
    gone = next(Path(uri) for uri in usable(loop.folder.read(POOL).table)["uri"] if uri not in asked)
    vanishing(gone)
    assert loop.run() == "round 1 asks for 4 labels"
    table = loop.folder.read(POOL).table.set_index("uri")
    assert table["set_aside_reason"].dropna().to_dict() == {str(gone): "cannot be read: No such file or directory"}
    loop.label()
    assert loop.run() == "round 2 asks for 4 labels"


def test_round_that_learnt_from_what_vanishes_begins_anew(make_loop, vanishing):
    loop = make_loop(own_images=True)
    loop.run()
    gone = next(task.uri for task in loop.tool.tasks.values())
    loop.label()
    vanishing(Path(gone))
    assert loop.run() == "round 1 asks for 4 labels"
    assert gone not in loop.folder.round(1).read(LABELLED).table["uri"].tolist()


def test_disk_that_is_gone_stops_the_run_and_sets_nothing_aside(make_loop, vanishing):
    loop = make_loop(own_images=True)
    loop.run()
    loop.label()
    before = loop.folder.read(POOL).table
    vanishing(*(Path(uri) for uri in before["uri"][5:]))
    with pytest.raises(PoolError, match=r"35 of 40 images cannot be used, more than max_unused = 0\.5 allows"):
        loop.run()
    assert loop.folder.read(POOL).table.equals(before)
